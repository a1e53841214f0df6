"""Detectors of unsafe images under attack, alone and together with a filter (paper, Table IV)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rclip_metric.detectors import Detector
from rclip_metric.train.data.filter_pools import ROLES
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.screening import FilterAttack, Screening
from rclip_metric.train.evaluation.screens import (
    SAFE,
    DetectorScreen,
    EitherScreen,
    Found,
    Queries,
    Verdicts,
    Worst,
    blind,
    first_fooled,
    visiting,
)
from rclip_metric.train.metrics.base import Metric


class ScreenMetric:
    """A metric that lends its preprocessing to a detector, or to itself and a detector, under a name of their own."""

    def __init__(self, metric: Metric, name: str, about: Mapping[str, Any]) -> None:
        """Lend.

        Args:
            metric: reads the images, and is half of the two.
            name: of the detector, or of both.
            about: what records say of it.
        """
        self.metric, self.name, self.about = metric, name, about
        self.revision: str | None = about.get("revision")

    @property
    def device(self) -> torch.device:
        """The metric's."""
        return self.metric.device

    def describe(self) -> dict[str, Any]:
        """Say what the numbers depend on."""
        return dict(self.about)

    def preprocess(self, image: Any) -> Tensor:
        """Read an image as the metric does."""
        return self.metric.preprocess(image)

    def fix(self, images: Tensor) -> Tensor:
        """Keep what the metric keeps."""
        return self.metric.fix(images)

    def similarities(self, images: Tensor, fixed: Tensor) -> Tensor:
        """Compare as the metric does."""
        return self.metric.similarities(images, fixed)

    def in_bfloat16(self) -> Metric:
        """Stay as it is: what is judged at every point runs in float32."""
        return self


@dataclass(frozen=True)
class Detection(Screening):
    """A detector alone, on images as a metric reads them.

    The white box raises or lowers its own log-odds; the grey box knows the encoder of a detector with `embed`.

    Attributes:
        detector: alone.

    Example:
        >>> Detection.task
        'filter'
    """

    detector: Detector = field(kw_only=True, compare=False)

    def screen(self, on: Evaluation) -> DetectorScreen:
        """Make it."""
        return self.detector_screen(self.detector, on.metric, on.run)

    def attacked(
        self,
        screen: DetectorScreen,
        attack: FilterAttack,
        queries: Queries,
        keys: Sequence[str],
        done: dict[FilterAttack, Found],
    ) -> Found:
        """Attack its encoder, or itself."""

        def loss(points: Tensor, rows: Tensor) -> Tensor:
            return screen.blindly(points, queries.target[rows])

        def step(points: Tensor, rows: Tensor) -> tuple[Tensor, Verdicts]:
            return screen.white(points, queries.own[rows], queries.target[rows])

        if attack.attack == "grey-box":
            return blind(loss, screen, queries, attack.ball, attack.steps, screen.chunk_size)
        return visiting(step, queries.clean, queries, attack.ball, attack.steps, screen.chunk_size)


@dataclass(frozen=True)
class EitherOr(Screening):
    """A filter and a detector together: unsafe if either says so.

    "Separate" is the paper's number: each is attacked by itself, and what they say of two images is combined. For
    unsafe queries that is a lower bound: nobody has shown one image that passes both. "Joint" is one perturbation
    against both, judged at every point; where the attacker wants "unsafe", one of the two is enough, and so whatever
    an attack on either has found counts as well.

    Attributes:
        detector: half of the two.
        others: records of the filter and of the detector alone, under the same attacks.

    Example:
        >>> EitherOr.task
        'filter'
    """

    detector: Detector = field(kw_only=True, compare=False)
    others: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]] = field(kw_only=True, compare=False)

    def screen(self, on: Evaluation) -> EitherScreen:
        """Make both."""
        metric = on.metric.metric if isinstance(on.metric, ScreenMetric) else on.metric
        return EitherScreen(self.pool_filter(metric, on), self.detector_screen(self.detector, metric, on.run))

    def attacked(
        self,
        screen: EitherScreen,
        attack: FilterAttack,
        queries: Queries,
        keys: Sequence[str],
        done: dict[FilterAttack, Found],
    ) -> Found:
        """Combine what attacks on either found, or attack both."""
        same = [[record for record in records if _matches(record, attack)] for records in self.others]
        if attack.attack == "separate":
            one, other = (_verdicts(records[0], keys, queries.own) for records in same)
            return Found(screen.combined(one, other, queries.own), [], 0.0)
        worst, single = Worst(queries, queries.clean), (queries.own == SAFE).nonzero()[:, 0]
        for record in (record for records in same for record in records):
            seen = _verdicts(record, keys, queries.own)
            worst.see(single, Verdicts(seen.margin[single], seen.landed[single]))
        first = Verdicts(*(part.clone() for part in worst.verdicts))
        step = screen.joint(queries, attack.ball, attack.loss.startswith("pool"))
        chunk = screen.filter.attack_chunk
        more = visiting(step, worst.verdicts, queries, attack.ball, attack.steps, chunk)
        stages = {"clean": queries.clean, "single": first, "joint": more.verdicts}
        return more._replace(stages=first_fooled(queries.own, stages))


def detector_model(detector: Detector, metric: Metric) -> ScreenMetric:
    """Lend a detector the preprocessing of a metric."""
    how = metric.describe().get("preprocessing")
    words = f"{how['mode']} {how['resize']} to {how['crop']}" if how else f"as {metric.name} reads"
    about = {"name": detector.name, "revision": None, "resize": words, "preprocessing": how}
    return ScreenMetric(metric, detector.name, {**about, "detector": detector.describe()})


def either_model(detector: Detector, metric: Metric) -> ScreenMetric:
    """Name a metric's filter and a detector together."""
    name = f"{metric.name} or {detector.name}"
    about = {**metric.describe(), "name": name, "metric": metric.describe(), "detector": detector.describe()}
    return ScreenMetric(metric, name, about)


def _matches(record: Mapping[str, Any], attack: FilterAttack) -> bool:
    threat = record["threat"]
    return (threat["norm"], threat["eps"], threat["steps"]) == (attack.ball.norm, attack.ball.eps, attack.steps)


def _verdicts(record: Mapping[str, Any], keys: Sequence[str], own: Tensor) -> Verdicts:
    """Read what a record says of queries under its attack."""
    letters = record["landings"]["letters"]
    outcomes = unpack(record)
    landed = {row.key: letters[one] for row, one in zip(outcomes, record["landings"]["attacked"], strict=True)}
    margin = {row.key: row.robust_margin for row in outcomes}
    places = [ROLES.index(landed[key]) for key in keys]
    return Verdicts(torch.tensor([margin[key] for key in keys], device=own.device), torch.tensor(places).to(own))
