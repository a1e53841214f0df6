"""Shape or texture: the share of decisions for shape where the two cues disagree (Geirhos et al. 2019)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclip_metric.train.data.cue_conflict import ConflictTriplet
from rclip_metric.train.evaluation.blocks import run_blocks
from rclip_metric.train.evaluation.collected import Block, Row, cost, empty_block, records_of, settings_of
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.robustness import DEFAULTS, RunSettings
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.precision import full_float32


@dataclass(frozen=True)
class CueConflictData:
    """Triplets of conflict images, as `conflict_triplets` draws them.

    Attributes:
        name: its own, e.g. the folder's.
        triplets: in a fixed order.
        limit: how many were asked for, None for all.
        left_out: a sentence for each image that is no reference.
    """

    name: str
    triplets: Sequence[ConflictTriplet]
    limit: int | None = None
    left_out: Sequence[str] = ()

    def settings(self) -> dict[str, Any]:
        """What the outcomes depend on, JSON: names, cues and draws go in as a digest."""
        return {"name": self.name, "split": None, "protocol": "share for shape", "triplets": self._digest()}

    def describe(self) -> dict[str, Any]:
        """For the record: JSON."""
        images = len({path for triplet in self.triplets for path in triplet.files})
        about = {"name": self.name, "split": None, "protocol": "share for shape"}
        return {**about, "images": images, "digest": self._digest()}

    def _digest(self) -> str:
        shown = (
            (t.key, *((i.key, i.shape, i.texture) for i in (t.reference, t.shape, t.texture))) for t in self.triplets
        )
        return hashlib.sha256("\n".join(map(str, shown)).encode()).hexdigest()[:16]


def evaluate_cue_conflict(
    metric: Metric,
    data: CueConflictData,
    run: RunSettings = DEFAULTS,
    *,
    journal: Path | None = None,
    team: Team = ALONE,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """How often the option that shares the reference's shape is nearer than the one that shares its texture.

    A triplet scores 1 where it is decided for shape, 0 for texture, a tie one half. Splits are the classes of the
    references' shapes. A few images stand behind many triplets, so the interval to quote is that of a run that
    resamples images.

    Args:
        metric: judged; one with embeddings embeds every image once.
        data: the triplets.
        run: sizes, precision and what the interval is about.
        journal: folder of the journal, see `run_blocks`.
        team: torchrun's processes.
        quiet: no progress bar.

    Returns:
        One record; "accuracy" is the share for shape in percent.

    Raises:
        ValueError: if no triplet can be read.
    """
    blocks = [data.triplets[i : i + run.batch_size] for i in range(0, len(data.triplets), run.batch_size)]
    shown = ([path for triplet in block for path in triplet.files] for block in blocks)
    images = ImageSet(shown, metric.preprocess, metric.device, run)

    def evaluate(block: Sequence[ConflictTriplet]) -> Block:
        with full_float32():
            return _evaluate_block(metric, block, images)

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
        data=data.describe(),
        attacks=(),
        run=run,
        team=team,
        limit=data.limit,
        images_of={triplet.key: triplet.files for triplet in data.triplets}.__getitem__,
    )


def _evaluate_block(metric: Metric, block: Sequence[ConflictTriplet], images: ImageSet) -> Block:
    begun, passes = time.perf_counter(), images.passes
    broken = images.broken(metric, {triplet.key: triplet.files for triplet in block})
    unreadable, triplets = list(broken.values()), [triplet for triplet in block if triplet.key not in broken]
    if not triplets:
        return empty_block(unreadable, 0)
    options = [(triplet.shape.path, triplet.texture.path) for triplet in triplets]
    similarities = images.similarities(metric, [triplet.reference.path for triplet in triplets], options)  # (n, 2)
    rows = []
    for triplet, (shape, texture) in zip(triplets, similarities.tolist(), strict=True):
        score = 1.0 if shape > texture else 0.0 if shape < texture else 0.5
        rows.append(
            Row(
                key=triplet.key,
                split=triplet.reference.shape.name,
                clean=score,
                tie=score == 0.5,
                margin=shape - texture,
                attacks=[],
            )
        )
    spent = cost(time.perf_counter() - begun, images.passes - passes)
    return {"rows": rows, "unreadable": unreadable, "costs": [spent]}
