"""A row of the benchmark in the making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rclip_metric.train.evaluation.tasks.cue_conflict import CueConflictData
from rclip_metric.train.evaluation.tasks.odd_one_out import OddOneOutData
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData
from rclip_metric.train.metrics.base import Facts

Data: TypeAlias = TwoAfcData | OddOneOutData | CueConflictData


def first_triplets(sets: Mapping[str, Data]) -> str | None:
    """Name of the first 2AFC set, the one that the sweep, the direct attack and the examples are of."""
    return next((name for name, data in sets.items() if isinstance(data, TwoAfcData)), None)


@dataclass
class MetricEntry:
    """A metric and all that is known of it so far.

    Attributes:
        name: as it was asked for.
        kind: "ours" (adversarially fine-tuned), "yours" (`module:function`) or "baseline".
        facts: parameters, licence and so on; None until it has been built.
        about: what the metric says of itself.
        image_size: side of its images, in pixels.
        records: results by data set.
        sweep: results at other radii, on fewer samples of the first 2AFC set.
        direct: results of the direct attack, one per ball.
        examples: triplets before and after the attack, one list for the first ball.
        timing: what a score costs.
        failures: sentences.
    """

    name: str
    kind: str = "baseline"
    facts: Facts | None = None
    about: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sweep: list[dict[str, Any]] = field(default_factory=list)
    direct: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    timing: dict[str, Any] | None = None
    failures: list[str] = field(default_factory=list)
