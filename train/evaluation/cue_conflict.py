"""Shape or texture: the share of decisions for shape where the two cues disagree (Geirhos et al. 2019)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from rclip_metric.train.data.cue_conflict import ConflictImage, ConflictTriplet
from rclip_metric.train.evaluation.blocks import ALONE, Processes, run_blocks
from rclip_metric.train.evaluation.collected import Block, Row, cost, empty_block, records_of, settings_of
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.metric import Metric
from rclip_metric.train.evaluation.robustness import DEFAULTS, RunSettings, full_float32

PROTOCOL = "share for shape"
_PAIRS = 64  # triplets compared at a time: metrics of pairs hold three images of each


@dataclass(frozen=True)
class CueConflictData:
    """Conflict images and, of each reference, its triplets (`conflict_triplets`)."""

    name: str
    images: Sequence[ConflictImage]
    triplets: Sequence[Sequence[ConflictTriplet]]
    limit: int | None = None

    def settings(self) -> dict[str, Any]:
        """What the outcomes depend on, JSON: names, cues and triplets go in as a digest."""
        names = [f"{image.key} {image.shape} {image.texture}" for image in self.images]
        rows = [f"{t.reference} {t.shape} {t.texture}" for drawn in self.triplets for t in drawn]
        digest = hashlib.sha256("\n".join(names + rows).encode()).hexdigest()[:16]
        return {"name": self.name, "split": None, "protocol": PROTOCOL, "triplets": digest}


def evaluate_cue_conflict(
    metric: Metric,
    data: CueConflictData,
    run: RunSettings = DEFAULTS,
    *,
    journal: Path | None = None,
    team: Processes = ALONE,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """How often the option that shares the reference's shape is nearer than the one that shares its texture.

    A sample is a reference: its score is the share of its triplets that are decided for shape, a tie one half. The
    interval resamples references, and not their draws. Splits are the classes of the references' shapes.

    Args:
        metric: judged; one with embeddings embeds every image once.
        data: images and triplets.
        run: sizes and precision.
        journal: folder of the journal, see `run_blocks`.
        team: torchrun's processes.
        quiet: no progress bar.

    Returns:
        One record; "accuracy" is the share for shape in percent.

    Raises:
        ValueError: if no image can be read.
    """
    step = max(1, run.batch_size)
    blocks = [data.triplets[i : i + step] for i in range(0, len(data.triplets), step)]
    shown = ([data.images[i].path for drawn in block for i in _members(drawn)] for block in blocks)
    images = ImageSet(shown, metric.preprocess, metric.device, run)

    def evaluate(block: Sequence[Sequence[ConflictTriplet]]) -> Block:
        with full_float32():
            return _evaluate_block(metric, block, data.images, images)

    results = run_blocks(
        blocks,
        evaluate,
        settings=settings_of("cue-conflict", metric, data.settings(), (), run, None),
        journal=journal,
        team=team,
        describe=f"{data.name} {metric.name}",
        sizes=[len(block) for block in blocks],
        quiet=quiet,
    )
    return records_of(
        results,
        task="cue-conflict",
        metric=metric,
        data={"name": data.name, "split": None, "protocol": PROTOCOL, "draws": len(data.triplets[0])},
        attacks=(),
        run=run,
        team=team,
        limit=data.limit,
    )


def _members(drawn: Sequence[ConflictTriplet]) -> list[int]:
    """The images of a reference's triplets."""
    return [index for triplet in drawn for index in (triplet.reference, triplet.shape, triplet.texture)]


def _evaluate_block(
    metric: Metric, block: Sequence[Sequence[ConflictTriplet]], conflicts: Sequence[ConflictImage], images: ImageSet
) -> Block:
    """A row per reference of which at least one triplet can be read."""
    begun, passes = time.perf_counter(), images.passes
    problems = images.problems(metric, (conflicts[i].path for drawn in block for i in _members(drawn)))
    unreadable: list[str] = []
    asked: list[tuple[int, ConflictTriplet]] = []
    for drawn in block:
        usable = [t for t in drawn if not any(conflicts[i].path in problems for i in _members([t]))]
        if not usable:
            first = next(problems[conflicts[i].path] for i in _members(drawn) if conflicts[i].path in problems)
            unreadable.append(f"triplets of {conflicts[drawn[0].reference].key}: {first}")
        asked += [(triplet.reference, triplet) for triplet in usable]
    if not asked:
        return empty_block(unreadable, 0)
    found = []
    for first in range(0, len(asked), _PAIRS):
        part = [triplet for _, triplet in asked[first : first + _PAIRS]]
        options = [[conflicts[t.shape].path, conflicts[t.texture].path] for t in part]
        found.append(images.similarities(metric, [conflicts[t.reference].path for t in part], options).cpu())
    similarities = torch.cat(found)  # (triplets, 2), shape first
    margins: dict[int, list[float]] = {}
    for (reference, _), margin in zip(asked, (similarities[:, 0] - similarities[:, 1]).tolist(), strict=True):
        margins.setdefault(reference, []).append(margin)
    rows = [
        Row(
            key=conflicts[reference].key,
            split=conflicts[reference].shape.name,
            clean=fmean(1.0 if margin > 0 else 0.0 if margin < 0 else 0.5 for margin in own),
            tie=0.0 in own,
            margin=fmean(own),
            attacks=[],
        )
        for reference, own in margins.items()
    ]
    return {
        "rows": rows,
        "unreadable": unreadable,
        "costs": [cost(time.perf_counter() - begun, images.passes - passes)],
    }
