"""One attack on one block of samples, whatever the task: settings, precision, and the confirmed outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.base import AttackResult, BestPoints, ConfirmedResult, LossAndSuccess
from rclip_metric.train.attacks.square import square
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.seeds import sample_seed

ATTACKS = ("apgd", "square", "noise", "transfer")
RESAMPLES = ("samples", "images")
# Below this margin of similarities a bfloat16 pass cannot tell right from wrong, so the float32 one is asked. On `tiny`
# bfloat16 moves a similarity by 0.001 on average.
SLACK = 0.004


@dataclass(frozen=True)
class AttackSettings:
    """One threat model and how hard it is tried; the defaults are the paper's.

    Attributes:
        ball: the feasible set.
        attack: "apgd", "square" (no gradients), "noise" (random points of the ball) or "transfer" (APGD on another
            metric, the points then shown to this one).
        steps: APGD iterations, Square's queries, or draws of noise.
        restarts: of APGD.
        loss: "ce" (cross-entropy of the similarities, no temperature) or "margin"; of retrieval "embedding" (away from
            the image itself) or "neighbours" (away from what is to be found, towards what is not).
        larger_eps: APGD's warm start in larger balls.

    Example:
        >>> AttackSettings(LpBall("linf", 4 / 255)).describe()["steps"]
        100
        >>> AttackSettings(LpBall("l1", 1.0), "square")
        Traceback (most recent call last):
        ValueError: the Square Attack knows l_inf and l_2 only: attack the l_1 ball with apgd
    """

    ball: LpBall
    attack: Literal["apgd", "square", "noise", "transfer"] = "apgd"
    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "margin", "embedding", "neighbours"] = "ce"
    larger_eps: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.attack not in ATTACKS:
            raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, not {self.attack!r}")
        if self.attack == "square" and self.ball.norm == "l1":
            raise ValueError("the Square Attack knows l_inf and l_2 only: attack the l_1 ball with apgd")
        least = 0 if self.attack in ("apgd", "transfer") else 1
        if self.steps < least or self.restarts < 1:
            raise ValueError(
                f"{self.attack} needs at least {least} steps and 1 restart, and has {self.steps} and {self.restarts}"
            )

    def describe(self) -> dict[str, Any]:
        """Describe the attack in the record: JSON."""
        threat: dict[str, Any] = {"attack": self.attack, "norm": self.ball.norm, "eps": self.ball.eps}
        threat |= {"steps": self.steps, "restarts": self.restarts, "loss": self.loss}
        return {**threat, "larger_eps": True} if self.larger_eps else threat


@dataclass(frozen=True)
class RunSettings:
    """How an evaluation runs; only the seed belongs to the protocol.

    Attributes:
        seed: with the sample's own name it makes the sample's random start.
        batch_size: samples in a block, the unit of work that is shared out and resumed (`default_batch_size`).
        chunk_size: images per forward and backward pass (None: a whole block).
        precision: of the attack's own passes; successes are always confirmed in float32. "auto" is bfloat16 where the
            device is fast at it.
        resample: what intervals are about: other "samples", or other "images" as well, where few images stand behind
            many samples (`image_interval`).

    Example:
        >>> RunSettings(batch_size=16).precision
        'float32'
    """

    seed: int = 0
    batch_size: int = 64
    chunk_size: int | None = None
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    resample: Literal["samples", "images"] = "samples"

    def __post_init__(self) -> None:
        """Check what is not checked where it is used."""
        if self.resample not in RESAMPLES:
            raise ValueError(f"resample must be one of {', '.join(RESAMPLES)}, not {self.resample!r}")


DEFAULTS = RunSettings()


def default_chunk_size(device: torch.device, image_size: int) -> int:
    """Choose images per pass: about eight of 224x224 on a CPU, whose caches and page faults punish more, else 64."""
    return max(8, 8 * 224**2 // image_size**2) if device.type == "cpu" else 64


def default_batch_size(chunk_size: int) -> int:
    """Choose samples in a block: 64, or two passes full where a pass holds many small images.

    Those that are not fooled pass together, and of a model that is fooled on most at once few are left of a block.

    Example:
        >>> default_batch_size(chunk_size=8), default_batch_size(chunk_size=98)
        (64, 196)
    """
    return max(64, 2 * chunk_size)


def chunk_size_of(metric: Metric) -> int:
    """Choose images per pass for a metric: what it states as its `chunk_size`, else by device and size."""
    own: int | None = getattr(metric, "chunk_size", None)
    return own or default_chunk_size(metric.device, getattr(metric, "image_size", 224))


class Decisions(NamedTuple):
    """A metric's decisions about n samples; every field is (n,).

    Example:
        >>> margin = torch.tensor([0.3, -0.1])
        >>> Decisions(loss=-margin, margin=margin, wrong=margin <= 0).wrong
        tensor([False,  True])
    """

    loss: Tensor  # what the attack raises
    margin: Tensor  # positive where right
    wrong: Tensor  # bool; at a margin of zero the task's rule for ties speaks


def refuse_nan(values: Tensor, keys: Sequence[str], what: str) -> None:
    """Raise ValueError where a metric gave NaN, (n,) or (n, K), for one of n samples: no decision follows from it.

    Example:
        >>> refuse_nan(torch.tensor([0.5, torch.nan]), ["000012", "000013"], "tiny's margin")
        Traceback (most recent call last):
        ValueError: tiny's margin is NaN for 000013: the weights are damaged, or too large for their precision
    """
    missing = values.isnan().flatten(1).any(1) if values.ndim > 1 else values.isnan()
    if bool(missing.any()):
        first = keys[int(missing.nonzero()[0, 0])]
        raise ValueError(f"{what} is NaN for {first}: the weights are damaged, or too large for their precision")


DecisionRule = Callable[[Tensor, Tensor], Decisions]
"""How decisions follow from similarities (n, K) and the samples' indices (n,)."""


@dataclass(frozen=True)
class _Judge:
    """A metric that decides perturbed samples by what it keeps of their options, (n, K, ...)."""

    metric: Metric
    kept: Tensor
    decide: DecisionRule
    chunk_size: int | None

    def __call__(self, points: Tensor, indices: Tensor) -> Decisions:
        """Decide with a graph, all at once. A similarity that is NaN decides nothing, and fools nobody."""
        similarities = self.metric.similarities(points, self.kept[indices])
        decisions = self.decide(similarities, indices)
        return decisions._replace(wrong=decisions.wrong & ~similarities.isnan().any(1))

    def exactly(self, points: Tensor, indices: Tensor) -> Decisions:
        """Decide without a graph, in chunks."""
        chunk = self.chunk_size or len(points)
        parts = zip(points.split(chunk), indices.split(chunk), strict=True)
        with torch.no_grad():
            decisions = [self(*part) for part in parts]
        return Decisions(*(torch.cat(column) for column in zip(*decisions, strict=True)))

    def confirm(self, points: Tensor, indices: Tensor) -> Tensor:
        """Say which points fool the metric."""
        return self.exactly(points, indices).wrong

    def loss(self, points: Tensor, indices: Tensor) -> Tensor:
        """Compute the loss alone: another metric will judge."""
        return self(points, indices).loss

    def loss_and_success(self, points: Tensor, indices: Tensor) -> LossAndSuccess:
        """Compute the loss, and say which points fool the metric."""
        decisions = self(points, indices)
        return LossAndSuccess(decisions.loss, decisions.wrong)

    def loss_and_suspicion(self, points: Tensor, indices: Tensor) -> LossAndSuccess:
        """Compute the loss, and say which points may fool the metric in float32."""
        decisions = self(points, indices)
        return LossAndSuccess(decisions.loss, decisions.margin.detach() < SLACK)


def attack_block(
    metric: Metric,
    images: Tensor,
    fixed: Callable[[Metric], Tensor],
    decide: DecisionRule,
    settings: AttackSettings,
    run: RunSettings,
    keys: Sequence[str],
    *,
    half: Metric | None = None,
    source: Metric | None = None,
) -> ConfirmedResult:
    """Attack samples that the metric decides rightly; what they are compared with stays fixed.

    Args:
        metric: judges, in float32.
        images: (n, 3, S, S), perturbed.
        fixed: what a metric (this one, `half` or `source`) keeps of the options, (n, K, ...): `fixed_options`.
        decide: from similarities (n, K) to loss, margin and outcome; for Square the loss is the margin's negative.
        settings: the attack.
        run: seed and chunk size.
        keys: the samples' names, for their seeds.
        half: the metric in bfloat16, if the attack's own passes shall run there.
        source: the metric that a transferred attack is made on.

    Raises:
        ValueError: for a transfer without a source, or a metric that gives NaN at an attacked point.

    Example:
        >>> from rclip_metric.train.evaluation.tasks.two_afc import decision
        >>> from rclip_metric.train.metrics import DistanceMetric
        >>> l1 = DistanceMetric(lambda x, y: (x - y).abs().mean((1, 2, 3)), 8, name="l1")
        >>> images = torch.full((1, 3, 8, 8), 0.50)  # a little nearer to 0.48 than to 0.54
        >>> options = torch.tensor([0.48, 0.54]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 8, 8)
        >>> rule, attack = decision(torch.zeros(1, dtype=torch.long)), AttackSettings(LpBall("linf", 8 / 255), steps=9)
        >>> found = attack_block(l1, images, lambda l1: options, rule, attack, DEFAULTS, ["one"])
        >>> found.fooled
        tensor([True])
    """
    begun = time.perf_counter()
    if not len(images):
        nothing = torch.zeros(0, dtype=torch.bool, device=images.device)
        found = AttackResult(images, images.new_zeros(0), nothing)
        return ConfirmedResult(nothing, images.new_zeros(0), found, violation=0.0, seconds=0.0)

    def judge(judging: Metric) -> _Judge:
        return _Judge(judging, fixed(judging), decide, run.chunk_size)

    exact = judge(metric)
    seeds = [sample_seed(run.seed, key) for key in keys]
    other = judge(source) if source and settings.attack == "transfer" else None
    found = _attack(exact, judge(half) if half else None, other, images, settings, seeds)
    # Every final point is judged once more in float32; a success in half precision has been confirmed there already.
    final = exact.exactly(found.images, torch.arange(len(images), device=images.device))
    refuse_nan(final.margin, keys, f"{metric.name}'s margin under {settings.attack}")
    violation = settings.ball.violation(found.images, images)
    return ConfirmedResult(final.wrong | found.success, final.margin, found, violation, time.perf_counter() - begun)


def _attack(
    judge: _Judge,
    half: _Judge | None,
    source: _Judge | None,
    images: Tensor,
    settings: AttackSettings,
    seeds: Sequence[int],
) -> AttackResult:
    """Run the attack itself: on `half` if there is one, or on `source` if its points are to be transferred."""
    ball, steps = settings.ball, settings.steps
    if settings.attack == "noise":
        return noise(judge.exactly, images, ball, steps, seeds)
    how: dict[str, Any] = {"restarts": settings.restarts, "larger_eps": settings.larger_eps}
    how |= {"chunk_size": judge.chunk_size}
    if settings.attack == "transfer":
        if source is None:
            raise ValueError("a transferred attack needs the metric it is made on")
        return apgd(source.loss, images, ball, steps, seeds=seeds, **how)
    loss = judge.loss_and_success if half is None else half.loss_and_suspicion
    confirm = None if half is None else judge.confirm
    if settings.attack == "square":
        return square(loss, images, ball, steps, seeds=seeds, confirm=confirm)
    return apgd(loss, images, ball, steps, seeds=seeds, confirm=confirm, **how)


def fixed_options(metric: Metric, options: Tensor, chunk_size: int | None) -> Tensor:
    """Compute what a metric keeps of options (n, K, 3, S, S): (n, K, ...), in chunks, without a graph."""
    if not len(options):
        return options
    flat = options.flatten(0, 1)
    kept = torch.cat([metric.fix(part) for part in flat.split(chunk_size or len(flat))])
    return kept.view(*options.shape[:2], *kept.shape[1:])


def noise(
    judge: Callable[[Tensor, Tensor], Decisions], images: Tensor, ball: LpBall, draws: int, seeds: Sequence[int]
) -> AttackResult:
    """Try random points of the ball, as APGD's starts: what a perturbation of this size does when nobody aims it."""
    everyone = torch.arange(len(images), device=images.device)
    best = BestPoints(images.clone(), images.dtype, everyone, None)
    evaluations = 0
    for draw in range(draws):
        left = (~best.success).nonzero()[:, 0]
        if not len(left):
            break
        points = ball.start(images[left], [sample_seed(seeds[i], f"noise {draw}") for i in left.tolist()])
        decided = judge(points, left)
        evaluations += len(left)
        best.update(left, points, decided.loss, decided.wrong)
    return AttackResult(best.images, best.loss, best.success, evaluations)
