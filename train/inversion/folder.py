"""A folder of inversions: pictures, what is known of each as JSON, a contact sheet; what is there is not made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from rclip_metric.files import written_whole
from rclip_metric.images import load_image
from rclip_metric.progress import progress
from rclip_metric.train.inversion.invert import Inversion, Watch, grey, invert, problem
from rclip_metric.train.inversion.multi_view import synthesise
from rclip_metric.train.inversion.settings import InversionSettings
from rclip_metric.train.inversion.sheet import Cell, contact_sheet
from rclip_metric.train.inversion.statistics import high_frequency, total_variation
from rclip_metric.train.inversion.targets import Target, safe_name
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.claim import claimed
from rclip_metric.train.runs.files import checksum, read_sealed, storing, write_sealed
from rclip_metric.train.runs.machine import device_record, versions
from rclip_metric.weights import file_digest

RECORD, SHEET = "inversion.json", "sheet.png"


@dataclass(frozen=True)
class How:
    """What no result depends on: how the work is done.

    Attributes:
        chunk_size: images per pass; None for all seeds at once.
        every: steps between pictures of the way; 0 for none.
        quiet: no progress bar.

    Example:
        >>> How(every=100).chunk_size is None
        True
    """

    chunk_size: int | None = None
    every: int = 0
    quiet: bool = False


AS_USUAL = How()


def reconstruct(
    out: Path,
    targets: Sequence[Target],
    metrics: Sequence[Metric],
    settings: InversionSettings,
    *,
    seeds: int = 4,
    how: How = AS_USUAL,
) -> dict[str, Any]:
    """Invert every target through every metric, and keep what comes out in a folder.

    Each picture is written as soon as it is found, with what is known of it in `inversion.json`; another run with the
    same settings goes on from there, also with more targets, metrics or seeds.

    Args:
        out: the folder; made if it does not exist.
        targets: what to find again.
        metrics: with `embed`; a text is embedded by the tower that goes with the metric's name.
        settings: how.
        seeds: how many starts, of the seeds 0, 1, ...
        how: how the work is done.

    Returns:
        The record in `inversion.json`: settings, targets, models and results. A result has the cosine of the image
        that was found ("similarity") and of the file, which has 256 levels ("similarity_of_file").

    Raises:
        ValueError: the folder holds results of other settings, or is being written; a metric has no embeddings; and as
            `invert` raises it.
        ImageError: an image cannot be read.

    Example:
        >>> from tempfile import mkdtemp
        >>> from rclip_metric.train.inversion.targets import TextTarget
        >>> from rclip_metric.train.metrics import load_metric
        >>> out, tiny = Path(mkdtemp()), load_metric("tiny")
        >>> text, few = TextTarget("a red circle"), InversionSettings(steps=2)
        >>> record = reconstruct(out, [text], [tiny], few, seeds=1, how=How(quiet=True))
        >>> sorted(path.name for path in out.iterdir())
        ['a-red-circle__tiny__seed0.png', 'inversion.json', 'sheet.png']
    """
    for metric in metrics:
        if not hasattr(metric, "embed"):
            raise ValueError(f"{metric.name} has no embeddings to invert: choose a model of images, such as tiny")
    if seeds < 1:
        raise ValueError(f"inversion needs at least 1 seed, and has {seeds}")
    pairs = [(target, metric) for target in targets for metric in metrics]
    embeddings = [_embedded(target, metric, settings) for target, metric in pairs]  # what cannot be is found here
    with claimed(out):
        folder = _Folder(out, settings)
        missing = [folder.missing(target, metric, seeds) for target, metric in pairs]
        steps = settings.steps * sum(map(len, missing))
        with progress(total=steps, label="inversion", unit="step", quiet=how.quiet) as bar:
            for (target, metric), embedding, left in zip(pairs, embeddings, missing, strict=True):
                if left:
                    folder.make(target, metric, embedding, left, how, bar)
        folder.draw(targets, metrics, seeds)
        return folder.record


def found_by(
    metric: Metric, embedding: Tensor, seeds: Sequence[int], settings: InversionSettings, how: How, watch: Watch
) -> Inversion:
    """Invert embeddings (N, D) or (1, D) from the starts of N seeds, by the method that the settings name.

    Args:
        metric: with `embed`.
        embedding: on the metric's device.
        seeds: one per image.
        settings: how.
        how: the size of chunks counts here.
        watch: told of every step.

    Raises:
        ValueError: as `invert` raises it.

    Example:
        >>> from rclip_metric.train.metrics import load_metric
        >>> tiny = load_metric("tiny")
        >>> target = tiny.fix(torch.zeros(1, 3, 64, 64))
        >>> found = found_by(tiny, target, [0, 1], InversionSettings(steps=2), How(), lambda step, images: None)
        >>> found.images.shape
        torch.Size([2, 3, 64, 64])
    """
    side = getattr(metric, "image_size", 224)
    start = grey(side, seeds, settings.noise).to(metric.device)
    encoder: Any = metric
    shared: dict[str, Any] = {"start": start, "steps": settings.steps, "chunk_size": how.chunk_size, "watch": watch}
    if settings.method == "apgd":
        return invert(encoder.embed, embedding, ball=settings.ball(side), **shared)
    views: dict[str, Any] = {"views": settings.views, "learning_rate": settings.learning_rate}
    return synthesise(encoder.embed, embedding, seeds=seeds, **views, **shared)


def _embedded(target: Target, metric: Metric, settings: InversionSettings) -> Tensor:
    """Embed a target, and check that the metric's own embeddings are of its kind."""
    embedding = target.embedding(metric)
    encoder: Any = metric
    start = grey(getattr(metric, "image_size", 224), [0]).to(metric.device)
    problem(encoder.embed, embedding, start, settings.steps)
    return embedding


def picture(pixels: Tensor) -> Image.Image:
    """Round an image (3, S, S) in [0, 1] to 256 levels.

    Example:
        >>> picture(torch.full((3, 2, 2), 0.5)).getpixel((0, 0))
        (128, 128, 128)
    """
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def save_picture(pixels: Tensor | Image.Image, path: Path) -> None:
    """Write an image (3, S, S) in [0, 1], or a picture, as PNG, so that a reader sees all of it or nothing.

    Raises:
        StorageError: the disk is full or the folder cannot be written.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp(), "cats", "grey.png")
        >>> save_picture(torch.full((3, 8, 8), 0.5), path)
        >>> with Image.open(path) as read:
        ...     read.size
        (8, 8)
    """
    image = picture(pixels) if isinstance(pixels, Tensor) else pixels
    with storing(path.name, path.parent), written_whole(path) as unfinished:
        image.save(unfinished, "PNG", optimize=True)


class _Folder:
    """The files of a run and the record of them, which is written after every picture."""

    def __init__(self, out: Path, settings: InversionSettings) -> None:
        """Look at what is there; ValueError if it is of other settings or damaged."""
        self.out, self.settings, self.path = out, settings, out / RECORD
        about = settings.describe()
        self.record: dict[str, Any] = {"settings": about, "targets": [], "models": [], "results": []}
        if self.path.exists():
            held, _ = read_sealed(self.path)
            if not isinstance(held, dict) or held.get("settings") != about:
                raise ValueError(f"{out} holds inversions with other settings: choose another --out")
            self.record = held
        elif out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise ValueError(f"{out} holds other files and no {RECORD}: choose another --out")

    def missing(self, target: Target, metric: Metric, seeds: int) -> list[int]:
        """List the seeds of which there is no picture yet, or another one than was written."""
        there = {result["seed"]: result for result in self._results(target, metric)}
        return [seed for seed in range(seeds) if seed not in there or not self._is_whole(there[seed])]

    def _is_whole(self, result: dict[str, Any]) -> bool:
        path = self.out / result["file"]
        return path.is_file() and file_digest(path) == result["sha256"]

    def _results(self, target: Target, metric: Metric) -> list[dict[str, Any]]:
        key = (target.digest, checksum(metric.describe()))
        return [result for result in self.record["results"] if (result["target"], result["model"]) == key]

    def make(
        self, target: Target, metric: Metric, embedding: Tensor, seeds: Sequence[int], how: How, bar: tqdm[Any]
    ) -> None:
        """Find the images of some seeds, write them and what is known of them."""
        self.out.mkdir(parents=True, exist_ok=True)
        stem = f"{self._name(target)}__{self._label(metric)}"
        found = found_by(metric, embedding, seeds, self.settings, how, self._watch(stem, seeds, how, bar))
        digest = checksum(metric.describe())
        self.record["results"] = [
            result
            for result in self.record["results"]
            if (result["target"], result["model"]) != (target.digest, digest) or result["seed"] not in seeds
        ]
        for seed, pixels, similarity in zip(seeds, found.images, found.similarities.tolist(), strict=True):
            name = f"{stem}__seed{seed}.png"
            save_picture(pixels, self.out / name)
            self.record["results"].append(
                {
                    "target": target.digest,
                    "model": digest,
                    "seed": seed,
                    "file": name,
                    "sha256": file_digest(self.out / name),
                    "similarity": round(similarity, 6),
                    **self._measured(name, metric, embedding),
                }
            )
        self.record |= {"versions": versions(), "device": device_record(metric.device)}
        write_sealed(self.path, self.record)

    def _measured(self, name: str, metric: Metric, embedding: Tensor) -> dict[str, float]:
        """Measure what a file holds."""
        pixels = load_image(self.out / name)[None]
        unit = embedding / embedding.norm(dim=1, keepdim=True)
        numbers = {
            "similarity_of_file": (metric.fix(pixels.to(metric.device)) * unit).sum(),
            "total_variation": total_variation(pixels)[0],
            "high_frequency": high_frequency(pixels)[0],
        }
        return {key: round(value.item(), 6) for key, value in numbers.items()}

    def _watch(self, stem: str, seeds: Sequence[int], how: How, bar: tqdm[Any]) -> Watch:
        """Move the bar, and write the pictures of the way that were asked for."""
        waiting = list(seeds)  # APGD works through the seeds in chunks, one after the other

        def watch(step: int, images: Tensor) -> None:
            bar.update(len(images) if step else 0)
            if how.every and step and step % how.every == 0:
                for seed, pixels in zip(waiting, images, strict=False):
                    save_picture(pixels, self.out / f"{stem}__seed{seed}__step{step:05d}.png")
            if step == self.settings.steps:
                del waiting[: len(images)]

        return watch

    def _name(self, target: Target) -> str:
        """Name a target as no other one in the folder is."""
        about = {"name": target.name, "kind": target.kind, "source": target.source, "digest": target.digest}
        return _entered(self.record["targets"], about)

    def _label(self, metric: Metric) -> str:
        """Name a metric as no other one in the folder is."""
        described = metric.describe()
        about = {"name": safe_name(Path(metric.name).name), "digest": checksum(described), "model": described}
        return _entered(self.record["models"], about)

    def draw(self, targets: Sequence[Target], metrics: Sequence[Metric], seeds: int) -> None:
        """Draw the contact sheet of what was asked for."""
        first_one = "text" if all(target.kind == "text" for target in targets) else "original"
        headings = [first_one, *map(self._label, metrics)]
        rows: list[list[Cell | None]] = []
        for target in targets:
            pixels = target.pixels(metrics[0])
            source = target.source if target.kind == "text" else self._name(target)
            first = Cell(picture(pixels), source) if pixels is not None else Cell(None, source)
            for seed in range(seeds):
                rows.append([first if seed == 0 else None, *(self._cell(target, metric, seed) for metric in metrics)])
        save_picture(contact_sheet(headings, rows), self.out / SHEET)

    def _cell(self, target: Target, metric: Metric, seed: int) -> Cell:
        [result] = [result for result in self._results(target, metric) if result["seed"] == seed]
        with Image.open(self.out / result["file"]) as image:
            return Cell(image.convert("RGB"), f"cosine {result['similarity_of_file']:.3f}, seed {seed}")


def _entered(entries: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Look an entry up by its digest, or enter it, under a name that no other one has."""
    for entry in entries:
        if entry["digest"] == about["digest"]:
            return str(entry["name"])
    taken = {entry["name"] for entry in entries}
    name = f"{about['name']}-{about['digest'][:8]}" if about["name"] in taken else str(about["name"])
    entries.append({**about, "name": name})
    return name
