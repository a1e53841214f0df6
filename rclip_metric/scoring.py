"""Many distances at once: pairs of images, two folders, or all images of one, a row for each pair."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from rclip_metric.compare import metric_named
from rclip_metric.distance import distance_between
from rclip_metric.errors import ImageError
from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.retrieval.embeddings import (
    FileEmbeddings,
    decoders,
    digest_of,
    embed_pixels,
    images_of,
    pair_by_name,
    significant,
)
from rclip_metric.retrieval.second_look import believed_pairs
from rclip_metric.second_look import undecided

if TYPE_CHECKING:
    from rclip_metric.images.reading import ImageSource

    Pair = Iterable[ImageSource | Tensor]
    Model = str | os.PathLike[str] | nn.Module
    OnSkip = Callable[[str, str], object]

_KEPT = 2**15
"""Embeddings that are kept for pairs to come: 160 MB of `r-clip-f`."""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two images and their distance.

    Attributes:
        a: The path of the first, as it was given; for an image that is no file where it stood, as `pairs[0][0]`; within
            a folder that was scored as a whole, its name there.
        b: Likewise the second.
        distance: In [0, sqrt(2)], or [0, 2] if squared; lower is more alike.

    Example:
        >>> ScoredPair("a.png", "b.png", 0.25).to_dict()
        {'a': 'a.png', 'b': 'b.png', 'distance': 0.25}
    """

    a: str
    b: str
    distance: float

    def to_dict(self) -> dict[str, str | float]:
        """Return it as the commands write it, with the seven digits that a distance has."""
        return {"a": self.a, "b": self.b, "distance": significant(self.distance)}


def score_pairs(
    pairs: Iterable[Pair],
    model: Model = "r-clip-f",
    *,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    workers: int | None = None,
    on_skip: OnSkip | None = None,
    on_done: Callable[[], object] = lambda: None,
) -> Iterator[ScoredPair]:
    """Compute the distances of pairs of images, one after the other.

    Pairs are taken as they are needed, and images read by threads while the model computes, so that memory does not
    grow with the number of pairs. A file that stands in many pairs is read once (the embeddings of 32,768 images are
    kept). Distances are those of `score`, to float rounding; images with the same pixels are at exactly 0.

    Args:
        pairs: Of each two paths, or whatever else `score` takes, of any sizes; also a generator.
        model: As for `RobustPerceptualDistance`, or one of these, which is used with its own settings. The model last
            used by name stays in memory for the next call.
        device: Where to compute; by default on the CPU, or where a module is.
        batch_size: Images per call of the model; more are faster on a GPU.
        workers: Threads that read, by default a few.
        on_skip: Called with the name of an image that cannot be read, and why; the pair is left out. Without it this is
            an error.
        on_done: Called after each image that was read.

    Yields:
        A `ScoredPair` for each pair, in their order.

    Raises:
        ImageError: An image cannot be read, or a pair is not two images; when its turn comes.
        WeightsError: The model cannot be had.

    Example:
        >>> from PIL import Image
        >>> red, blue = Image.new("RGB", (80, 60), "red"), Image.new("RGB", (60, 80), "blue")
        >>> [round(row.distance, 2) for row in score_pairs([(red, red), (red, blue)], "tiny")]
        [0.0, 0.49]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return _Stream(_metric(model, device), batch_size, on_skip, on_done).rows(pairs, workers)


def score_folders(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    model: Model = "r-clip-f",
    *,
    recursive: bool = False,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    workers: int | None = None,
    on_skip: OnSkip | None = None,
) -> Iterator[ScoredPair]:
    """Compute the distances of the images of two folders that have the same name.

    The same with the suffix, or with another one where that is unambiguous (`retrieval.pair_by_name`). A warning says
    how many images have no partner.

    Args:
        a: A folder.
        b: The other one.
        recursive: Take the images in folders below them too; their names then are the paths from a and b on.
        model, device, batch_size, workers, on_skip: As for `score_pairs`.

    Yields:
        A `ScoredPair` of paths for each pair, sorted by name.

    Raises:
        ImageError: A folder cannot be listed, or no name is in both; as for `score_pairs`.
        WeightsError: The model cannot be had.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, colour in (("a/1.png", "red"), ("b/1.png", "blue")):
        ...         Path(folder, name).parent.mkdir()
        ...         Image.new("RGB", (80, 60), colour).save(Path(folder, name))
        ...     rows = list(score_folders(f"{folder}/a", f"{folder}/b", "tiny"))
        >>> [(Path(row.a).name, Path(row.b).name, row.distance > 0.4) for row in rows]
        [('1.png', '1.png', True)]
    """
    pairing = pair_by_name(Path(a), Path(b), recursive)
    if not pairing.pairs:
        raise ImageError(f"no image in {a} has the name of one in {b}")
    if pairing.unpaired:
        warnings.warn(
            f"{len(pairing.unpaired)} images have no partner and are left out; the first: {pairing.unpaired[0]}",
            stacklevel=2,
        )
    return score_pairs(pairing.pairs, model, device=device, batch_size=batch_size, workers=workers, on_skip=on_skip)


def score_all(
    folder: str | os.PathLike[str],
    model: Model = "r-clip-f",
    *,
    top: int | None = None,
    below: float | None = None,
    recursive: bool = False,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    workers: int | None = None,
    on_skip: OnSkip | None = None,
) -> Iterator[ScoredPair]:
    """Compute the distances of all pairs of images of a folder.

    N images have N (N - 1) / 2 pairs, which are never in memory together: only the embeddings are. Go through them
    once, or keep what you need. For millions of pairs `rclip-metric score --all-pairs` writes a table.

    Args:
        folder: Has two images or more.
        top: Of each image the K nearest of the others, nearest first: N times K rows.
        below: Only pairs that are nearer than that.
        recursive: Take the images in folders below it too; their names are the paths from it on, as `dogs/1.png`.
        model, device, batch_size, workers, on_skip: As for `score_pairs`.

    Yields:
        A `ScoredPair` of names for each pair, each once (with `top` from both sides), sorted by name.

    Raises:
        ImageError: The folder cannot be listed or has fewer than two images; an image cannot be read.
        ValueError: `top` is below 1, or `below` not above 0.
        WeightsError: The model cannot be had.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for colour in ("red", "maroon", "blue"):
        ...         Image.new("RGB", (80, 60), colour).save(f"{folder}/{colour}.png")
        ...     [(row.a, row.b) for row in score_all(folder, "tiny", top=1)]
        [('blue.png', 'red.png'), ('maroon.png', 'red.png'), ('red.png', 'maroon.png')]
    """
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    if below is not None and not below > 0:
        raise ValueError(f"below must be above 0, got {below}")
    files = images_of(Path(folder), recursive)
    if len(files) < 2:
        raise ImageError(f"{folder} has {len(files)} images, expected two or more")
    metric = _metric(model, device)

    def rows() -> Iterator[ScoredPair]:
        with FileEmbeddings(
            metric,
            files.values(),
            batch_size=batch_size,
            workers=workers,
            on_skip=lambda file, reason: _skip(on_skip, str(file), reason),
        ) as embeddings:
            names, units = embedded(embeddings, files)
        chosen = believed_pairs(
            metric,
            [files[name] for name in names],
            units,
            top=top,
            below=below,
            batch_size=batch_size,
            on_skip=lambda file, reason: _skip(on_skip, str(file), reason),
        )
        for i, others, distances in chosen:
            for j, distance in zip(others, distances.tolist(), strict=True):
                yield ScoredPair(names[i], names[j], distance)

    return rows()


def pairs_nearer(
    rows: Iterable[ScoredPair],
    below: float,
    metric: RobustPerceptualDistance,
    *,
    batch_size: int = 8,
    on_skip: OnSkip | None = None,
    on_look: Callable[[int], object] = lambda count: None,
) -> Iterator[ScoredPair]:
    """Yield the pairs that are nearer than a limit, in their order: where half precision cannot tell, float32 does.

    Args:
        rows: Pairs of paths, as the metric scored them.
        below: The limit, squared if the metric's distances are.
        metric: Whose slack says what half precision cannot tell; in float32 or with `second_look=False` nothing is
            scored again.
        batch_size, on_skip: As for `score_pairs`. A pair that can no longer be read keeps its distance.
        on_look: Called with the number of pairs that are scored again.

    Example:
        >>> rows = [ScoredPair("a.png", "b.png", 0.25), ScoredPair("a.png", "c.png", 0.75)]
        >>> [row.b for row in pairs_nearer(rows, 0.5, RobustPerceptualDistance("tiny"))]
        ['b.png']
    """
    if not (metric.second_look and metric.slack):
        yield from (row for row in rows if row.distance < below)
        return
    power = 0.5 if metric.squared else 1.0
    rows = iter(rows)
    while window := list(islice(rows, batch_size)):
        margins = torch.tensor([row.distance**power - below**power for row in window])
        unsure = undecided(margins, metric.slack).tolist()
        again = [(row.a, row.b) for row, close in zip(window, unsure, strict=True) if close]
        exact: dict[tuple[str, str], ScoredPair] = {}
        if again:
            on_look(len(again))
            looked = score_pairs(again, metric.in_float32(), batch_size=batch_size, on_skip=on_skip)
            exact = {(row.a, row.b): row for row in looked}
        for row in window:
            believed = exact.get((row.a, row.b), row)
            if believed.distance < below:
                yield believed


def embedded(embeddings: FileEmbeddings, files: dict[str, Path]) -> tuple[list[str], Tensor]:
    """Return the names of the files that can be read, and their embeddings (N, D).

    Example:
        >>> embedded(FileEmbeddings(RobustPerceptualDistance("tiny"), [], batch_size=1, on_skip=print), {})[0]
        []
    """
    found = {name: unit for name, file in files.items() if (unit := embeddings[file]) is not None}
    return list(found), torch.stack(list(found.values())) if found else torch.empty(0, 1)


def _metric(model: Model, device: str | torch.device | None) -> RobustPerceptualDistance:
    if isinstance(model, nn.Module):
        metric = model if isinstance(model, RobustPerceptualDistance) else RobustPerceptualDistance(model)
        return metric if device is None else metric.to(device)
    return metric_named(model, "cpu" if device is None else device)


def _skip(on_skip: OnSkip | None, name: str, reason: str) -> None:
    if on_skip is None:
        raise ImageError(reason if name in reason else f"{name}: {reason}")
    on_skip(name, reason)


class _Image(NamedTuple):
    """An image of a pair: by what it is known again, what it is called, and where it is read."""

    key: str
    name: str
    source: ImageSource | Tensor


class _Stream:
    """Distances of a stream of pairs, a window of them at a time, while the images of the next one are read."""

    def __init__(
        self,
        metric: RobustPerceptualDistance,
        batch_size: int,
        on_skip: OnSkip | None,
        on_done: Callable[[], object],
    ) -> None:
        """Read and compute nothing yet."""
        self._metric, self._batch_size = metric, batch_size
        self._on_skip, self._on_done = on_skip, on_done
        self._file = Lock()
        self._digests: dict[str, bytes | None] = {}  # by key; None of what cannot be read
        self._units: dict[bytes, Tensor] = {}  # by pixels: (D,)

    def rows(self, pairs: Iterable[Pair], workers: int | None) -> Iterator[ScoredPair]:
        """Yield a row for each pair."""
        named = (_named(place, pair) for place, pair in enumerate(pairs))
        pool = decoders(workers)
        reads: dict[str, Future[tuple[bytes, Tensor]]] = {}
        waiting: list[tuple[_Image, _Image]] = []
        try:
            while (window := list(islice(named, self._batch_size))) or waiting:
                ahead = self._start(pool, window, reads)
                self._embed(waiting, reads)
                yield from self._scored(waiting)
                self._forget(window)
                waiting, reads = window, ahead
        finally:
            pool.shutdown(cancel_futures=True)

    def _start(
        self,
        pool: ThreadPoolExecutor,
        window: Sequence[tuple[_Image, _Image]],
        underway: dict[str, Future[tuple[bytes, Tensor]]],
    ) -> dict[str, Future[tuple[bytes, Tensor]]]:
        """Have threads read those images that are neither known nor underway."""
        started: dict[str, Future[tuple[bytes, Tensor]]] = {}
        for image in chain.from_iterable(window):
            if not (image.key in self._digests or image.key in underway or image.key in started):
                started[image.key] = pool.submit(self._read, image.source)
        return started

    def _read(self, source: ImageSource | Tensor) -> tuple[bytes, Tensor]:
        # A Pillow image that is not decoded yet may stand in several pairs: its file is read by one thread at a time.
        unread = getattr(source, "fp", None) is not None
        with self._file if unread else nullcontext(), torch.no_grad():
            pixels = self._metric.gather([source])[0].cpu().contiguous()  # (3, S, S)
        return digest_of(pixels), pixels

    def _embed(self, window: Sequence[tuple[_Image, _Image]], reads: dict[str, Future[tuple[bytes, Tensor]]]) -> None:
        batch: dict[bytes, Tensor] = {}
        names = {image.key: image.name for image in chain.from_iterable(window)}
        for key, read in reads.items():
            try:
                digest, pixels = read.result()
            except ValueError as error:  # an ImageError, or a size that resize=None does not take
                self._digests[key] = None
                _skip(self._on_skip, names[key], str(error))
            else:
                self._digests[key] = digest
                if digest not in self._units:
                    batch[digest] = pixels
            self._on_done()
            if len(batch) == self._batch_size:
                self._compute(batch)
        self._compute(batch)

    def _compute(self, batch: dict[bytes, Tensor]) -> None:
        if batch:
            self._units.update(zip(batch, embed_pixels(self._metric, list(batch.values())), strict=True))
            batch.clear()

    def _scored(self, window: Sequence[tuple[_Image, _Image]]) -> list[ScoredPair]:
        found = [(a, b, x, y) for a, b in window if (x := self._digests[a.key]) and (y := self._digests[b.key])]
        if not found:
            return []
        with torch.inference_mode():
            one = torch.stack([self._units[digest] for _, _, digest, _ in found])
            other = torch.stack([self._units[digest] for _, _, _, digest in found])
            distances = distance_between(one, other, self._metric.squared).tolist()
        return [ScoredPair(a.name, b.name, distance) for (a, b, _, _), distance in zip(found, distances, strict=True)]

    def _forget(self, window: Sequence[tuple[_Image, _Image]]) -> None:
        """Keep no more embeddings than fit, and then those that the next window needs."""
        if len(self._digests) > _KEPT:
            keys = {image.key for image in chain.from_iterable(window)}
            self._digests = {key: digest for key, digest in self._digests.items() if key in keys}
            kept = set(self._digests.values())
            self._units = {digest: unit for digest, unit in self._units.items() if digest in kept}


def _named(place: int, pair: Pair) -> tuple[_Image, _Image]:
    both = None if isinstance(pair, str | bytes) else list(pair) if isinstance(pair, Iterable) else None
    if both is None or len(both) != 2:
        got = f"{len(both)} of them" if both is not None else type(pair).__name__
        raise ImageError(f"pairs[{place}] must be two images, got {got}")
    one, other = (
        _Image(os.path.realpath(source), os.fspath(source), source)
        if isinstance(source, str | os.PathLike)
        else _Image(name := f"pairs[{place}][{side}]", name, source)
        for side, source in enumerate(both)
    )
    return one, other
