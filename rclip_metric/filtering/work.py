"""What is done with a shard: its images are read, embedded and decided on. A shard in, rows out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rclip_metric.errors import FilterError, ImageError, WeightsError
from rclip_metric.filtering.shards import Item, Shard, printed
from rclip_metric.filtering.table import Parts, Row, columns
from rclip_metric.images.reading import open_image
from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.retrieval import (
    AnyOf,
    ContentFilter,
    Decision,
    ImageIndex,
    ModelSource,
    decoders,
    read_ahead,
    significant,
)

if TYPE_CHECKING:
    from rclip_metric.detectors import Detector

_TOGETHER = 256
"""Images that are decided on together: a search costs as much for one as for a few."""


@dataclass(frozen=True)
class Work:
    """All that a process needs to know in order to decide on shards, as plain values.

    Attributes:
        model: By what the metric is had.
        pools: The index of the examples, whose labels are the classes.
        shards: What is to be decided.
        parts: Where decisions go.
        k: Neighbours that vote.
        threshold: Distance within which the nearest example has to be; None for no limit.
        detectors: By name, path or `module:function`.
        unsafe: The class of what a detector finds.
        batch_size: Images per call of the model.
        device: Of the model and the detectors.
        threads: That decode; None for a few.

    Example:
        >>> work = Work(ModelSource("tiny"), "pools.index", (), Parts("decisions", tuple(columns([])), "csv"), k=3)
        >>> work.k, work.parts.path(7).name
        (3, 'part-00007.csv')
    """

    model: ModelSource
    pools: str
    shards: tuple[Shard, ...]
    parts: Parts
    k: int = 1
    threshold: float | None = None
    detectors: tuple[str, ...] = ()
    unsafe: str = "unsafe"
    batch_size: int = 32
    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True)
class _Read:
    """An image as it goes into the models."""

    digest: str | None = None
    embedding: Tensor | None = None
    pixels: Tensor | None = None  # (3, S, S)
    seen: tuple[Tensor, ...] = ()  # by each detector, (3, S, S)


@dataclass(frozen=True)
class _Embedded:
    """An image as the models see it."""

    digest: str | None
    unit: Tensor  # (D,)
    scores: dict[str, float]


class Worker:
    """Decides on shards: holds the model, the examples and the detectors.

    Args:
        work: What is to be done.
        metric: The model, where it is loaded already.
        detectors: Likewise.

    Raises:
        FilterError: A detector has the name of another column.
        ImageIndexError: The examples are of another model, or do not make a filter.
        WeightsError: The model or a detector cannot be had.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from rclip_metric.filtering import find_work
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("pools/safe/blue.png", "pools/unsafe/red.png", "images/dark_red.png"):
        ...         Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        ...         Image.new("RGB", (64, 64), Path(name).stem.replace("_", "")).save(Path(folder, name))
        ...     model, index = ModelSource("tiny"), Path(folder, "index")
        ...     ImageIndex.build(Path(folder, "pools"), model.load()).save(index)
        ...     parts = Parts(str(Path(folder, "out")), tuple(columns([])), "csv")
        ...     work = Work(model, str(index), tuple(find_work(str(Path(folder, "images")))), parts)
        ...     with Worker(work) as worker:
        ...         [row] = worker.rows(work.shards[0])
        >>> row["file"], row["decision"], row["neighbour"]
        ('dark_red.png', 'unsafe', 'unsafe/red.png')
    """

    def __init__(
        self,
        work: Work,
        metric: RobustPerceptualDistance | None = None,
        detectors: Sequence[Detector] | None = None,
    ) -> None:
        """Load what is not loaded."""
        self.work = work
        self.metric = work.model.load(work.device) if metric is None else metric
        index = ImageIndex.open(work.pools, self.metric)
        self._filter = ContentFilter(index, self.metric, k=work.k, threshold=work.threshold)
        self._detectors = load_detectors(work.detectors, work.device) if detectors is None else detectors
        self._any_of = AnyOf(self._filter, self._detectors, work.unsafe) if self._detectors else None
        self._examples = {row.digest for row in index.rows if row.digest is not None}
        self._pool = decoders(work.threads)

    def __enter__(self) -> Worker:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def rows(self, shard: Shard) -> list[Row]:
        """Decide on the images of a shard, in its order; the work of threads that read ahead, and of the model.

        What cannot be read gets a row that says why, and no decision.
        """
        rows: list[Row] = []
        batch: list[tuple[int, _Read]] = []
        embedded: list[tuple[int, _Embedded]] = []
        for item, reading in read_ahead(self._pool, self._read, shard.items(), 2 * self.work.batch_size):
            row: Row = dict.fromkeys(self.work.parts.columns)
            row["file"] = item.name
            rows.append(row)
            try:
                batch.append((len(rows) - 1, reading.result()))
            except ValueError as error:  # an ImageError, or a size that the model does not take
                row["error"] = printed(str(error))
            if len(batch) == self.work.batch_size:
                embedded += self._embedded(batch)
                batch.clear()
            if len(embedded) >= _TOGETHER:
                self._decide(rows, embedded)
                embedded.clear()
        embedded += self._embedded(batch)
        self._decide(rows, embedded)
        return rows

    def _read(self, item: Item) -> _Read:
        """Decode an image once, for all that look at it."""
        if item.embedding is not None and not self._detectors:
            return _Read(item.digest, item.embedding)
        if item.read is None:
            raise ImageError("detectors need the picture, and the index knows no file of it")
        content = item.read()
        image = open_image(content) if self._detectors else content
        # The fast reading decodes at a scale of its own: an embedding does not depend on who else looks at the image.
        own = image if self.metric.encoder.reading == "published" else content
        return _Read(
            item.digest or hashlib.blake2b(content, digest_size=16).hexdigest(),
            item.embedding,
            self.metric.preprocess(own) if item.embedding is None else None,
            tuple(detector.preprocess(image) for detector in self._detectors),
        )

    def _embedded(self, batch: Sequence[tuple[int, _Read]]) -> Iterator[tuple[int, _Embedded]]:
        """Run the models on a batch."""
        from rclip_metric.detectors import unsafe_scores

        if not batch:
            return
        images = [read for _, read in batch]
        known = [read.embedding for read in images if read.embedding is not None]
        pixels = [read.pixels for read in images if read.pixels is not None]  # a shard has the ones or the others
        with torch.inference_mode():
            units = self.metric.embed(torch.stack(pixels).to(self.metric.device)) if pixels else torch.stack(known)
        scores = [
            unsafe_scores(detector, torch.stack([read.seen[place] for read in images])).tolist()
            for place, detector in enumerate(self._detectors)
        ]
        names = [detector.name for detector in self._detectors]
        for number, (place, read) in enumerate(batch):
            own = {name: float(several[number]) for name, several in zip(names, scores, strict=True)}
            yield place, _Embedded(read.digest, units[number], own)

    def _decide(self, rows: Sequence[Row], embedded: Sequence[tuple[int, _Embedded]]) -> None:
        """Fill in the rows of images."""
        if not embedded:
            return
        units = torch.stack([image.unit for _, image in embedded]).to(self.metric.device)
        decisions = self._filter.decide(units, warn=False)
        for (place, image), decision in zip(embedded, decisions, strict=True):
            label = decision.label
            if self._any_of is not None:
                label = self._any_of.combined(decision, image.scores).label
            rows[place].update(_told(decision, label, image.scores), identical=image.digest in self._examples)


def _told(decision: Decision, label: str | None, scores: dict[str, float]) -> Row:
    similarity, other = significant(decision.similarity), significant(decision.other)
    return {
        "decision": label,
        "class": decision.label,
        "neighbour": printed(decision.neighbour),
        "similarity": similarity,
        "other": other,
        "margin": significant(similarity - other),
        **{name: significant(score) for name, score in scores.items()},
    }


def load_detectors(specs: Sequence[str], device: str) -> list[Detector]:
    """Load detectors by name, path or `module:function`.

    Raises:
        FilterError: One is not what a detector should be, or has the name of a column of the table.
        WeightsError: One cannot be had.
    """
    if not specs:
        return []
    from rclip_metric.detectors.loading import load_detector

    try:
        found = [load_detector(spec, device) for spec in specs]
    except WeightsError:
        raise
    except ValueError as error:
        raise FilterError(str(error)) from error
    if taken := [detector.name for detector in found if detector.name in columns([])]:
        raise FilterError(f"a detector is called {taken[0]!r}, as a column of the table is: give it another name.")
    return found


@dataclass(frozen=True)
class Report:
    """What was done of the work in one go.

    Attributes:
        shard: Its number.
        images: How many rows it gave; None where it had been done before.
        process: That did it.
    """

    shard: int
    images: int | None
    process: int


def decide_shard(worker: Worker, number: int) -> Report:
    """Decide on a shard and write its part, unless that is there already. This is what engines share out."""
    work = worker.work
    if work.parts.path(number).exists():
        return Report(number, None, os.getpid())
    rows = worker.rows(work.shards[number])
    work.parts.write(number, rows)
    return Report(number, len(rows), os.getpid())


Done = Callable[[Report], Any]
