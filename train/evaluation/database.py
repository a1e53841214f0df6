"""The images that queries are compared with: embedded once by all processes together, or read again for each block."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rclip_metric.train.evaluation.attack import fixed_options, refuse_nan
from rclip_metric.train.evaluation.image_set import ImageSet, embeds
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.metrics.base import Metric

_ROWS = 2**14  # that are widened to float64 at a time


@dataclass(frozen=True)
class Database:
    """Images that can be compared with many queries.

    A metric of embeddings sees each of them once: blocks of them are shared out over the processes and journalled as
    blocks of samples are. Any other metric compares every query with every image, again for each attack.

    Attributes:
        metric: that embedded them.
        paths: of all images; a row is a place in it.
        problems: row -> why its image cannot be read.
        embeddings: of the others (R, D), float32, on the CPU; None for a metric without.
        images: their pixels, and what other metrics keep of them.
        cost: seconds and images, of all processes.

    Example:
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> from rclip_metric.train.metrics import load_metric
        >>> paths = [Path(mkdtemp()) / f"{level}.png" for level in (0, 51, 255)]
        >>> for path in paths:
        ...     Image.new("RGB", (8, 8), (int(path.stem),) * 3).save(path)
        >>> database = Database.of(paths, Evaluation(load_metric("l1", image_size=8), quiet=True), {}, "")
        >>> database.similarities(load_metric("l1", image_size=8), torch.zeros(1, 3, 8, 8)).numpy().round(4) + 0.0
        array([[ 0. , -0.2, -1. ]], dtype=float32)
    """

    metric: Metric
    paths: Sequence[Path]
    problems: dict[int, str]
    embeddings: Tensor | None
    images: ImageSet
    chunk_size: int | None = None
    cost: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Sequence[Path], on: Evaluation, settings: dict[str, Any], label: str) -> Database:
        """Read all images, and embed them if the metric does.

        Args:
            paths: each file once.
            on: metric, processes and journal.
            settings: what the embeddings depend on, JSON.
            label: of the progress bar.

        Raises:
            ValueError: if an embedding is not finite.
        """
        blocks = on.blocks(range(len(paths)))
        images = ImageSet(
            ([paths[row] for row in block] for block in blocks), on.metric.preprocess, on.metric.device, on.run
        )

        def work(block: Sequence[int]) -> dict[str, Any]:
            begun, passes, files = time.perf_counter(), images.passes, [paths[row] for row in block]
            problems = images.problems(on.metric, files)
            read = [path for path in files if path not in problems]
            told = {str(row): problems[paths[row]] for row in block if paths[row] in problems}
            found: dict[str, Any] = {"problems": told, "embeddings": None}
            if embeds(on.metric) and read:
                kept = images.kept(on.metric, [[path] for path in read])[:, 0].float().cpu()  # (R, D)
                refuse_nan(kept, [str(path) for path in read], f"{on.metric.name}'s embedding")
                found |= {
                    "size": kept.shape[1],
                    "embeddings": base64.b64encode(kept.numpy().astype("<f4").tobytes()).decode(),
                }
            return {**found, "evaluations": images.passes - passes, "seconds": time.perf_counter() - begun}

        done = on.share(blocks, work, {**settings, "part": "database"}, label)
        problems = {int(row): told for block in done for row, told in block["problems"].items()}
        cost = {name: sum(block[name] for block in done) for name in ("seconds", "evaluations")}
        rows = [_decoded(block) for block in done if block["embeddings"] is not None]
        return cls(on.metric, paths, problems, torch.cat(rows) if rows else None, images, on.run.chunk_size, cost)

    def similarities(self, metric: Metric, points: Tensor) -> Tensor:
        """Compare n images (n, 3, S, S) with all of the database: (n, N), float32; -inf for what cannot be read.

        Products of embeddings are summed in float64 and rounded once, so that equal embeddings are at equal
        similarities wherever they stand, and an image's do not depend on what it is compared beside.
        """
        with torch.no_grad():
            found = self._products(metric, points) if embeds(metric) else self._compared(metric, points)
        every = torch.full((len(points), len(self.paths)), -torch.inf)
        every[:, self.rows] = found.float().cpu()
        return every

    @property
    def rows(self) -> list[int]:
        """Those that can be read."""
        return [row for row in range(len(self.paths)) if row not in self.problems]

    def kept(self, metric: Metric, rows: Sequence[Sequence[int]]) -> Tensor:
        """Give what a metric keeps of K images for each of n samples: (n, K, ...)."""
        if metric is self.metric and self.embeddings is not None:
            place = {row: number for number, row in enumerate(self.rows)}
            places = torch.tensor([[place[row] for row in several] for several in rows])
            return self.embeddings[places].to(metric.device)  # (n, K, D)
        return self.images.kept(metric, [[self.paths[row] for row in several] for several in rows])

    def _products(self, metric: Metric, points: Tensor) -> Tensor:
        embedded = fixed_options(metric, points[:, None], self.chunk_size)[:, 0].double().cpu()  # (n, D)
        if self.embeddings is None:
            return torch.empty(len(points), 0)
        return torch.cat([(embedded @ part.double().T).float() for part in self.embeddings.split(_ROWS)], 1)

    def _compared(self, metric: Metric, points: Tensor) -> Tensor:
        rows, size = self.rows, self.chunk_size or 64
        found = [torch.empty(len(points), 0)]
        for first in range(0, len(rows), size):
            kept = self.kept(metric, [rows[first : first + size]])  # (1, K, ...)
            found.append(torch.cat([metric.similarities(point[None], kept).float().cpu() for point in points]))
        return torch.cat(found, 1)


def _decoded(block: dict[str, Any]) -> Tensor:
    stored = np.frombuffer(base64.b64decode(block["embeddings"]), "<f4").reshape(-1, block["size"])
    return torch.from_numpy(stored.astype(np.float32))
