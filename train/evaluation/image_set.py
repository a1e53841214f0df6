"""The distinct images of an evaluation: each is read and embedded once, in however many samples it stands."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from rclip_metric.images import ImageError
from rclip_metric.train.evaluation.attack import RunSettings, fixed_options
from rclip_metric.train.metrics.base import Metric

Key = TypeVar("Key", str, int)
BUDGET = 2**29
"""Bytes of pixels, and of each metric's embeddings, that are held; what was used longest ago goes first."""


def embeds(metric: Metric | None) -> bool:
    """Say whether a metric has embeddings, see `ImageSet`."""
    return hasattr(metric, "embed")


class ImageSet:
    """Images by path, and what metrics keep of them.

    Images go through a metric in groups whose members never change, so that a number does not depend on which blocks
    this process has, or on what an interrupted run had done. Only a metric of embeddings (one with `embed`, whose
    `Metric.fix` gives unit embeddings and whose similarity is their dot product) is spared the repeated pass; any other
    one compares the images of every sample.

    Args:
        blocks: the paths of each block of samples; a group has at most a chunk of the images that a block is the
            first to show.
        load: path -> (3, S, S); raises `ImageError`.
        device: where the images go.
        run: its chunk size is the size of groups and passes.

    Attributes:
        passes: images that went through a metric here so far.
    """

    def __init__(
        self,
        blocks: Iterable[Iterable[Path]],
        load: Callable[[Path], Tensor],
        device: torch.device,
        run: RunSettings,
    ) -> None:
        """Divide into groups; nothing is read yet."""
        self.passes = 0
        self._load, self._device, self._chunk = load, device, run.chunk_size
        self._groups: list[list[Path]] = []
        self._number: dict[Path, int] = {}
        for paths in blocks:
            new = [path for path in dict.fromkeys(paths) if path not in self._number]
            size = run.chunk_size or max(1, len(new))
            for first in range(0, len(new), size):
                group = new[first : first + size]
                self._number |= dict.fromkeys(group, len(self._groups))
                self._groups.append(group)
        self._held: dict[int, OrderedDict[int, dict[Path, Tensor]]] = {}
        self._problems: dict[Path, str] = {}

    def broken(self, metric: Metric | None, files: Mapping[Key, Sequence[Path]]) -> dict[Key, str]:
        """Find the first problem of each sample of whose images one cannot be read, by key; the others are ready then.

        Args:
            metric: that will see the images; None for their pixels alone.
            files: those of each sample.
        """
        problems = self.problems(metric, (path for paths in files.values() for path in paths))
        found: dict[Key, str] = {}
        for key, paths in files.items():
            if met := [problems[path] for path in paths if path in problems]:
                found[key] = met[0]
        return found

    def problems(self, metric: Metric | None, paths: Iterable[Path]) -> dict[Path, str]:
        """Find what is wrong with images that cannot be read; the others are ready for the metric after this."""
        paths = list(dict.fromkeys(paths))
        for number in dict.fromkeys(self._number[path] for path in paths):
            self._group(metric if embeds(metric) else None, number)
        return {path: self._problems[path] for path in paths if path in self._problems}

    def pixels(self, paths: Sequence[Path]) -> Tensor:
        """Stack images (n, 3, S, S) that can be read."""
        return self._rows(None, paths)

    def kept(self, metric: Metric, options: Sequence[Sequence[Path]]) -> Tensor:
        """Give what a metric keeps (`Metric.fix`) of K images per sample: (n, K, ...)."""
        flat = [path for paths in options for path in paths]
        if not flat:
            return torch.empty(0, device=self._device)
        rows = self._rows(metric if embeds(metric) else None, flat).unflatten(0, (len(options), -1))
        return rows if embeds(metric) else fixed_options(metric, rows, self._chunk)

    def similarities(self, metric: Metric, images: Sequence[Path], options: Sequence[Sequence[Path]]) -> Tensor:
        """Compare each of n images with K others: (n, K), float32, without a graph."""
        held = self.kept(metric, options)
        if embeds(metric):
            return (self._rows(metric, images)[:, None] * held).sum(2)
        points, size = self.pixels(images), self._chunk or len(images)
        self.passes += len(images) * (1 + held.shape[1])
        with torch.no_grad():
            parts = zip(points.split(size), held.split(size), strict=True)
            return torch.cat([metric.similarities(part, held_part) for part, held_part in parts])

    def _rows(self, metric: Metric | None, paths: Sequence[Path]) -> Tensor:
        """Stack the metric's embeddings of images, or their pixels: (n, ...)."""
        found: dict[Path, Tensor] = {}
        for number in dict.fromkeys(self._number[path] for path in paths):
            found |= self._group(metric, number)
        return torch.stack([found[path] for path in paths]) if paths else torch.empty(0, device=self._device)

    def _group(self, metric: Metric | None, number: int) -> dict[Path, Tensor]:
        """Give the metric's embeddings of a group, or the group's pixels, without images that cannot be read."""
        held = self._held.setdefault(id(metric), OrderedDict())
        if number not in held:
            held[number] = self._read(number) if metric is None else self._embed(metric, number)
            row = next(iter(held[number].values()), torch.empty(0))
            largest = max(1, self._chunk or len(held[number])) * row.nbytes
            while len(held) > 1 and len(held) * largest > BUDGET:
                held.popitem(last=False)
        held.move_to_end(number)
        return held[number]

    def _read(self, number: int) -> dict[Path, Tensor]:
        def read(path: Path) -> Tensor | str:
            try:
                return self._load(path)
            except ImageError as error:
                return str(error)

        with ThreadPoolExecutor(4) as pool:
            found = dict(zip(self._groups[number], pool.map(read, self._groups[number]), strict=True))
        images = {path: image for path, image in found.items() if isinstance(image, Tensor)}
        self._problems |= {path: problem for path, problem in found.items() if isinstance(problem, str)}
        return dict(zip(images, torch.stack(list(images.values())).to(self._device), strict=True)) if images else {}

    def _embed(self, metric: Metric, number: int) -> dict[Path, Tensor]:
        images = self._group(None, number)
        self.passes += len(images)
        return dict(zip(images, metric.fix(torch.stack(list(images.values()))), strict=True)) if images else {}
