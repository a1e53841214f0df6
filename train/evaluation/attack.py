"""One attack on one block of samples, whatever the task: settings, precision, and the confirmed outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.base import AttackResult, Confirmed, Judge, LossAndSuccess, LossFunction
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
        loss: "ce" (cross-entropy of the similarities, no temperature) or "margin".
        larger_eps: APGD's warm start in larger balls.
    """

    ball: LpBall
    attack: Literal["apgd", "square", "noise", "transfer"] = "apgd"
    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "margin"] = "ce"
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
        """For the record: JSON."""
        threat: dict[str, Any] = {"attack": self.attack, "norm": self.ball.norm, "eps": self.ball.eps}
        threat |= {"steps": self.steps, "restarts": self.restarts, "loss": self.loss}
        return {**threat, "larger_eps": True} if self.larger_eps else threat


@dataclass(frozen=True)
class RunSettings:
    """How an evaluation runs; only the seed belongs to the protocol.

    Attributes:
        seed: with the sample's own name it makes the sample's random start.
        batch_size: samples in a block, the unit of work that is shared out and resumed.
        chunk_size: images per forward and backward pass (None: a whole block).
        precision: of the attack's own passes; successes are always confirmed in float32. "auto" is bfloat16 where the
            device is fast at it.
        resample: what intervals are about: other "samples", or other "images" as well, where few images stand behind
            many samples (`image_interval`).
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
    """Images per pass: about eight of 224x224 on a CPU, whose caches and page faults punish more; 64 elsewhere."""
    return max(8, 8 * 224**2 // image_size**2) if device.type == "cpu" else 64


def chunk_size_of(metric: Metric) -> int:
    """Images per pass for a metric: what it states as its ``chunk_size``, else by device and size."""
    own: int | None = getattr(metric, "chunk_size", None)
    return own or default_chunk_size(metric.device, getattr(metric, "image_size", 224))


class Decided(NamedTuple):
    """How a metric decides samples, from similarities: every field is (n,)."""

    loss: Tensor  # what the attack raises
    margin: Tensor  # positive where right
    wrong: Tensor  # bool; at a margin of zero the task's rule for ties speaks


Decision = Callable[[Tensor, Tensor], Decided]
"""Similarities (n, K) and the samples' indices (n,) -> `Decided`."""


def attack_block(
    metric: Metric,
    images: Tensor,
    fixed: Callable[[Metric], Tensor],
    decide: Decision,
    settings: AttackSettings,
    run: RunSettings,
    keys: Sequence[str],
    *,
    half: Metric | None = None,
    source: Metric | None = None,
) -> Confirmed:
    """Attack samples that the metric decides rightly; what they are compared with stays fixed.

    Args:
        metric: judges, in float32.
        images: (n, 3, S, S), perturbed.
        fixed: what a metric (this one, ``half`` or ``source``) keeps of the options, (n, K, ...): `fixed_options`.
        decide: from similarities (n, K) to loss, margin and outcome; for Square the loss is the margin's negative.
        settings: the attack.
        run: seed and chunk size.
        keys: the samples' names, for their seeds.
        half: the metric in bfloat16, if the attack's own passes shall run there.
        source: the metric that a transferred attack is made on.

    Raises:
        ValueError: for a transfer without a source.
    """
    begun = time.perf_counter()
    if not len(images):
        nothing = torch.zeros(0, dtype=torch.bool, device=images.device)
        return Confirmed(nothing, images.new_zeros(0), AttackResult(images, images.new_zeros(0), nothing), 0.0, 0.0)
    seeds = [sample_seed(run.seed, key) for key in keys]
    kept = fixed(metric)
    ball, chunk = settings.ball, run.chunk_size

    def judge(judging: Metric, held: Tensor, points: Tensor, indices: Tensor) -> Decided:
        return decide(judging.similarities(points, held[indices]), indices)

    def exactly(points: Tensor, indices: Tensor) -> Decided:
        with torch.no_grad():
            parts = [
                judge(metric, kept, p, i)
                for p, i in zip(points.split(chunk or len(points)), indices.split(chunk or len(points)), strict=True)
            ]
        return Decided(*(torch.cat(column) for column in zip(*parts, strict=True)))

    loss_fn: LossFunction
    confirm: Judge | None = None
    if half is None:

        def loss_fn(points: Tensor, indices: Tensor) -> LossAndSuccess:
            decided = judge(metric, kept, points, indices)
            return LossAndSuccess(decided.loss, decided.wrong)

    else:
        held = fixed(half)

        def loss_fn(points: Tensor, indices: Tensor) -> LossAndSuccess:
            decided = judge(half, held, points, indices)
            return LossAndSuccess(decided.loss, decided.margin.detach() < SLACK)

        def confirm(points: Tensor, indices: Tensor) -> Tensor:
            return exactly(points, indices).wrong

    if settings.attack == "apgd":
        found = apgd(
            loss_fn, images, ball, settings.steps, seeds=seeds, restarts=settings.restarts, confirm=confirm,
            larger_eps=settings.larger_eps, chunk_size=chunk,
        )  # fmt: skip
    elif settings.attack == "square":
        found = square(loss_fn, images, ball, settings.steps, seeds=seeds, confirm=confirm)
    elif settings.attack == "noise":
        found = noise(exactly, images, ball, settings.steps, seeds)
    else:
        if source is None:
            raise ValueError("a transferred attack needs the metric it is made on")
        held = fixed(source)
        found = apgd(
            lambda points, indices: judge(source, held, points, indices).loss, images, ball, settings.steps,
            seeds=seeds, restarts=settings.restarts, larger_eps=settings.larger_eps, chunk_size=chunk,
        )  # fmt: skip
    # Every final point is judged once more in float32; a success in half precision has been confirmed there already.
    final = exactly(found.images, torch.arange(len(images), device=images.device))
    violation = ball.violation(found.images, images)
    return Confirmed(final.wrong | found.success, final.margin, found, violation, time.perf_counter() - begun)


def fixed_options(metric: Metric, options: Tensor, chunk_size: int | None) -> Tensor:
    """What a metric keeps of options (n, K, 3, S, S): (n, K, ...), in chunks, without a graph."""
    if not len(options):
        return options
    flat = options.flatten(0, 1)
    kept = torch.cat([metric.fix(part) for part in flat.split(chunk_size or len(flat))])
    return kept.view(*options.shape[:2], *kept.shape[1:])


def noise(
    judge: Callable[[Tensor, Tensor], Decided], images: Tensor, ball: LpBall, draws: int, seeds: Sequence[int]
) -> AttackResult:
    """Random points of the ball, as APGD's starts: what a perturbation of this size does when nobody aims it."""
    best, loss = images.clone(), torch.full((len(images),), -torch.inf, device=images.device)
    success = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    evaluations = 0
    for draw in range(draws):
        left = (~success).nonzero()[:, 0]
        if not len(left):
            break
        points = ball.start(images[left], [sample_seed(seeds[i], f"noise {draw}") for i in left.tolist()])
        decided = judge(points, left)
        evaluations += len(left)
        better = (decided.loss > loss[left]) | decided.wrong
        best[left[better]], loss[left[better]] = points[better], decided.loss[better]
        success[left] = decided.wrong
    return AttackResult(best, loss, success, evaluations)
