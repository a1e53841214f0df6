"""Certified accuracy: right, and provably so for every perturbation of an l_2 length (LipSim, theorem 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress
from statistics import median
from typing import Any

import torch
from torch import Tensor

from rclip_metric.train.attacks.base import AttackResult, ConfirmedResult
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.metrics.base import Certified, Metric

RADII = (36 / 255, 72 / 255, 108 / 255, 1.0)  # of LipSim's table; the last is 255/255


@dataclass(frozen=True)
class Certificate:
    """Asks whether a decision is proven in a whole l_2 ball; stands among the attacks of an evaluation.

    Example:
        >>> Certificate(LpBall("l2", 0.5)).describe()
        {'attack': 'certified', 'norm': 'l2', 'eps': 0.5}
    """

    ball: LpBall
    attack: str = "certified"

    def __post_init__(self) -> None:
        """Refuse other norms: the proofs are for l_2."""
        if self.ball.norm != "l2":
            raise ValueError(f"certified radii are l_2 radii, and {self.ball} is no l_2 ball")

    def describe(self) -> dict[str, Any]:
        """Describe the certificate in the record: JSON."""
        return {"attack": self.attack, "norm": self.ball.norm, "eps": self.ball.eps}


def radii(metric: Metric, images: Tensor, fixed: Tensor, chunk_size: int | None) -> Tensor:
    """Certify the radius of each of n decisions: (n,), float32.

    Args:
        metric: with `Certified.certified_radius`.
        images: references (n, 3, S, S).
        fixed: what the metric keeps of the two options each, (n, 2, ...).
        chunk_size: images per pass.

    Raises:
        ValueError: for a metric without certificates.
    """
    proving = with_certificates(metric)
    if not len(images):
        return torch.zeros(0, device=images.device)
    chunk = chunk_size or len(images)
    with torch.no_grad():
        parts = zip(images.split(chunk), fixed.split(chunk), strict=True)
        return torch.cat([proving.certified_radius(part, held) for part, held in parts])  # (n,)


def with_certificates(metric: Metric) -> Certified:
    """Give a metric as one with certificates; raises ValueError where it has none.

    Example:
        >>> from rclip_metric.train.metrics import load_metric
        >>> with_certificates(load_metric("ssim"))
        Traceback (most recent call last):
        ValueError: ssim can certify nothing by itself: smoothing certifies any metric
    """
    if not isinstance(metric, Certified):
        raise ValueError(f"{metric.name} can certify nothing by itself: smoothing certifies any metric")
    return metric


def certify(images: Tensor, radius: Tensor, certificate: Certificate, seconds: float) -> ConfirmedResult:
    """Compare the `radii` of samples that are right with a ball's.

    Args:
        images: references (n, 3, S, S).
        radius: certified, (n,).
        certificate: the ball.
        seconds: that the radii took.

    Returns:
        `fooled` where the ball is not proven; `margin` is the certified radius less the ball's.
    """
    unproven = ~(radius > certificate.ball.eps)  # NaN proves nothing
    nothing_moved = AttackResult(images, radius, unproven, len(images))
    return ConfirmedResult(unproven, radius - certificate.ball.eps, nothing_moved, 0.0, seconds)


def certified_radii(record: Mapping[str, Any]) -> list[float]:
    """Read the certified radius of every sample from a record of a `Certificate` or a `Smoothing`: 0 where it is wrong.

    A smoothed decision may be right where the one without noise is wrong, and the radii are of the smoothed one.

    Example:
        >>> from rclip_metric.train.evaluation.results import Effort, Outcome
        >>> from rclip_metric.train.evaluation.results.record import record
        >>> rows = [Outcome("1", "all", clean=1.0, tie=False, margin=0.2, robust=1.0, robust_margin=0.25)]
        >>> about = {"task": "2afc", "model": {"name": "m"}, "data": {"name": "d"}, "effort": Effort(1.0)}
        >>> proven = record(rows, threat=Certificate(LpBall("l2", 0.5)).describe(), **about)
        >>> certified_radii(proven)  # 0.25 beyond the ball of 0.5
        [0.75]
    """
    eps, smoothed = record["threat"]["eps"], record["threat"]["attack"] == "smoothing"
    nothing = float(f"{-eps:.6g}")  # the margin of a radius of 0, in the digits that a record has
    radii = []
    for row in unpack(record):
        known = row.robust_margin is not None and row.robust_margin != nothing and (smoothed or row.margin > 0)
        radii.append(max(0.0, row.robust_margin + eps) if known and row.robust_margin is not None else 0.0)
    return radii


def certified_curve(record: Mapping[str, Any], points: int = 65) -> dict[str, Any]:
    """Compute certified accuracy (percent) against the l_2 radius, up to where nothing is left, and the median radius.

    It is of the samples that a certificate was asked of, which may be a part of those of the record.

    Example:
        >>> from rclip_metric.train.evaluation.results import Effort, Outcome
        >>> from rclip_metric.train.evaluation.results.record import record
        >>> rows = [Outcome("1", "all", clean=1.0, tie=False, margin=0.2, robust=1.0, robust_margin=0.25)]
        >>> about = {"task": "2afc", "model": {"name": "m"}, "data": {"name": "d"}, "effort": Effort(1.0)}
        >>> proven = record(rows, threat=Certificate(LpBall("l2", 0.5)).describe(), **about)
        >>> certified_curve(proven, points=3)
        {'curve': [[0.0, 100.0], [0.375, 100.0], [0.75, 0.0]], 'median': 0.75}
    """
    asked = [row.robust is not None for row in unpack(record)]
    radii = list(compress(certified_radii(record), asked)) or [0.0]
    largest = max(radii)
    steps = [largest * step / (points - 1) for step in range(points)] if largest > 0 else [0.0]
    curve = [[step, 100 * sum(radius > step for radius in radii) / len(radii)] for step in steps]
    return {"curve": curve, "median": median(radii)}
