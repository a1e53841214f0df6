"""Auto-PGD on any per-sample loss (Croce & Hein 2020; its l_1 form, Croce & Hein 2021), with restarts and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rclip_metric.train.attacks.base import (
    AttackResult,
    BestPoints,
    Judge,
    LossAndSuccess,
    LossFunction,
    restart_seeds,
    split_loss,
)
from rclip_metric.train.attacks.step_sizes import Halving, Sparsity
from rclip_metric.train.attacks.threat import Feasible, LpBall

MOMENTUM = 0.75  # weight of the gradient step against the previous move
LARGER_EPS = ((3, 0.3), (2, 0.3), (1, 0.4))  # radius as a multiple of eps, share of the steps


def apgd(
    loss_fn: LossFunction,
    images: Tensor,
    ball: LpBall,
    steps: int,
    *,
    start: Tensor | None = None,
    succeeded: Judge | None = None,
    confirm: Judge | None = None,
    restarts: int = 1,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    larger_eps: bool = False,
    threshold: float = 0.75,
    chunk_size: int | None = None,
) -> AttackResult:
    """Raise a per-sample loss inside a ball, with a step size that adapts to each sample.

    The first step is 2 eps long (eps for l_1); at checkpoints after 22 %, 41 %, 57 %, ... of the steps a sample whose
    loss rose in at most 75 % of the steps since the last one, or whose step and best loss both stood still, halves its
    step and goes back to its best point. For l_1 the sparsity of the step adapts as well (see `step_sizes`).

    A fooled sample leaves the batch with the point that fooled it; the others are judged at `steps + 1` points, the
    last of them without a backward pass. No sample's path depends on the others, on their order or on the number of
    processes, beyond float rounding.

    Args:
        loss_fn: (images (n, 3, H, W), sample indices (n,)) -> losses (n,), or `LossAndSuccess`.
        images: the clean images (N, 3, H, W) in [0, 1], which are also the centres of the balls.
        ball: the feasible set.
        steps: gradient steps of each restart.
        start: where the first restart begins, (N, 3, H, W). Default: a random point if there are `seeds` or a
            `generator`, else the clean images.
        succeeded: (losses (n,), sample indices (n,)) -> bool (n,), where loss_fn does not return `LossAndSuccess`.
            Without either the attack runs to the end and returns the best point of every sample.
        confirm: (images, sample indices) -> bool, asked about every success before it counts: an attack that runs in
            half precision is confirmed in full. A point is asked about only if its loss is higher than at the
            sample's last refusal.
        restarts: attempts from fresh random starts, each on what is left; without a judge, the best of all.
        seeds: one per sample, for its random starts: outcomes then do not depend on the batch.
        generator: draws the seeds when there are none.
        larger_eps: begin with 3 eps for 30 % of the steps and 2 eps for 30 %, projecting the best points into the
            smaller ball each time. Successes count in the ball itself only.
        threshold: share of rising steps up to which the step is halved.
        chunk_size: images per forward and backward pass (default: all that are left at once).

    Returns:
        What was found.

    Raises:
        ValueError: for restarts without seeds or generator, or arguments that do not fit each other.

    Example:
        >>> images = torch.full((2, 3, 4, 4), 0.5)
        >>> found = apgd(lambda points, _: points.flatten(1).sum(1), images, LpBall("linf", 0.1), steps=10)
        >>> found.images.amin(), found.images.amax()  # the loss is the sum, so every value goes up by eps
        (tensor(0.6000), tensor(0.6000))
        >>> found.evaluations, found.gradients
        (22, 20)
    """
    _check(images, steps, restarts, start)
    images = images.detach()
    result: AttackResult | None = None
    for restart in range(restarts):
        drawn = restart_seeds(len(images), restart, seeds, generator)
        if restart > 0 and drawn is None:
            raise ValueError(f"{restarts} restarts need seeds, one per image, or a generator")

        def attempt(left: Tensor, restart: int = restart, drawn: list[int] | None = drawn) -> AttackResult:
            centre = images[left]
            first = LpBall(ball.norm, ball.eps * LARGER_EPS[0][0]) if larger_eps else ball
            if restart == 0 and start is not None:
                points = first.project(start[left].detach(), centre)
            else:
                points = centre if drawn is None else first.start(centre, [drawn[index] for index in left.tolist()])
            given = larger_eps or (restart == 0 and start is not None)
            problem = _Problem(loss_fn, left, centre, succeeded, confirm, threshold, chunk_size, given)
            return (_larger_eps if larger_eps else _single)(problem, points, ball, steps)

        result = _continued(result, attempt, images)
        if bool(result.success.all()):
            break
    assert result is not None
    return result


def apgd_targeted(
    loss_for: Callable[[int], LossFunction],
    images: Tensor,
    ball: LpBall,
    steps: int,
    targets: int,
    *,
    succeeded: Judge | None = None,
    confirm: Judge | None = None,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> AttackResult:
    """Run APGD at one target after another, each on the samples that no earlier one has fooled.

    Args:
        loss_for: k -> the loss function that aims at every sample's k-th target, k = 0 ... targets - 1.
        images: the clean images (N, 3, H, W) in [0, 1].
        ball: the feasible set.
        steps: gradient steps per target.
        targets: how many.
        succeeded: as for `apgd`, and so for the others.
        confirm: asked about every success.
        seeds: one per sample; every target has a start of its own.
        generator: draws the seeds when there are none.
        chunk_size: images per forward and backward pass.

    Returns:
        What was found; `success` wherever any target succeeded.

    Raises:
        ValueError: for arguments that do not fit each other.

    Example:
        >>> images = torch.full((2, 3, 4, 4), 0.5)
        >>> def towards(target):
        ...     return lambda points, _: points[:, target].mean((1, 2))  # raise one colour
        >>> bright = lambda loss, _: loss > 0.55
        >>> apgd_targeted(towards, images, LpBall("linf", 0.1), 5, targets=3, succeeded=bright).success
        tensor([True, True])
    """
    if targets < 1:
        raise ValueError(f"targets must be at least 1, and it is {targets}")
    _check(images, steps, 1, None)
    images = images.detach()
    result: AttackResult | None = None
    for target in range(targets):
        drawn = restart_seeds(len(images), target, seeds, generator)

        def attempt(left: Tensor, target: int = target, drawn: list[int] | None = drawn) -> AttackResult:
            centre = images[left]
            points = centre if drawn is None else ball.start(centre, [drawn[index] for index in left.tolist()])
            problem = _Problem(loss_for(target), left, centre, succeeded, confirm, 0.75, chunk_size)
            return _single(problem, points, ball, steps)

        result = _continued(result, attempt, images)
        if bool(result.success.all()):
            break
    assert result is not None
    return result


class _Problem(NamedTuple):
    """What one attempt is about: some of the caller's samples, their loss and their judges."""

    loss_fn: LossFunction
    samples: Tensor  # (n,), indices in the caller's batch
    centre: Tensor  # (n, 3, H, W)
    succeeded: Judge | None
    confirm: Judge | None
    threshold: float
    chunk_size: int | None
    given: bool = False  # the start is no random point: l_1 steps begin as sparse as it is


def _check(images: Tensor, steps: int, restarts: int, start: Tensor | None) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must be (N, 3, H, W), and they are {tuple(images.shape)}")
    if start is not None and start.shape != images.shape:
        raise ValueError(f"start must be shaped like the images, {tuple(images.shape)}, and it is {tuple(start.shape)}")
    if steps < 0 or restarts < 1:
        raise ValueError(f"steps must be at least 0 and restarts at least 1, and they are {steps} and {restarts}")


def _continued(before: AttackResult | None, attempt: Callable[[Tensor], AttackResult], images: Tensor) -> AttackResult:
    """Make one more attempt on the samples that are left, and merge it into what was found before."""
    if before is None:
        return attempt(torch.arange(len(images), device=images.device))
    left = (~before.success).nonzero()[:, 0]
    more = attempt(left)
    better = more.success | (more.loss > before.loss[left])
    points, loss, success = before.images, before.loss, before.success
    points[left[better]], loss[left[better]] = more.images[better], more.loss[better]
    success[left] = more.success
    return AttackResult(
        points,
        loss,
        success,
        before.evaluations + more.evaluations,
        before.gradients + more.gradients,
        before.zero_gradients + more.zero_gradients,
        before.nonfinite_gradients + more.nonfinite_gradients,
    )


def _larger_eps(problem: _Problem, points: Tensor, ball: LpBall, steps: int) -> AttackResult:
    """Run in balls that shrink to the one asked for; the warm-up maximises the loss and is not judged."""

    def loss_alone(images: Tensor, indices: Tensor) -> Tensor:
        result = problem.loss_fn(images, indices)
        return result.loss if isinstance(result, LossAndSuccess) else result

    warm_up = problem._replace(loss_fn=loss_alone, succeeded=None, confirm=None)
    spent = 0
    stages: list[AttackResult] = []
    for factor, share in LARGER_EPS:
        now = steps - spent if factor == 1 else min(steps - spent, math.ceil(share * steps))
        spent += now
        wider = LpBall(ball.norm, ball.eps * factor)
        points = wider.project(points, problem.centre)
        stages.append(_single(problem if factor == 1 else warm_up, points, wider, now))
        points = stages[-1].images
    return replace(
        stages[-1],
        evaluations=sum(stage.evaluations for stage in stages),
        gradients=sum(stage.gradients for stage in stages),
        zero_gradients=sum(stage.zero_gradients for stage in stages),
        nonfinite_gradients=sum(stage.nonfinite_gradients for stage in stages),
    )


def _single(problem: _Problem, points: Tensor, ball: LpBall, steps: int) -> AttackResult:
    """Run once, from given points."""
    total, device = len(problem.centre), problem.centre.device
    best = BestPoints(points.clone(), torch.float32, problem.samples, problem.confirm)
    if not total:
        return AttackResult(best.images, best.loss, best.success)
    zero, nonfinite = torch.zeros_like(best.success), torch.zeros_like(best.success)
    evaluations = gradients = 0
    schedule = (Sparsity if ball.norm == "l1" else Halving)(total, steps, ball.eps, problem.threshold, device)
    if isinstance(schedule, Sparsity) and problem.given:
        schedule.begin(points - problem.centre)

    # What follows is of the samples that are still in the batch; `alive` holds their rows.
    alive = torch.arange(total, device=device)
    point = previous = points
    feasible = Feasible(ball, problem.centre)
    best_gradient = torch.zeros_like(problem.centre)

    for step in range(steps + 1):
        last = step == steps
        loss, gradient, fooled = _evaluate(problem, point, problem.samples[alive], differentiate=not last)
        evaluations += len(alive)
        fooled, better = best.update(alive, point, loss, fooled)
        if last:
            break

        gradients += len(alive)
        peak = gradient.flatten(1).abs().amax(1)
        broken = ~peak.isfinite()
        zero[alive] |= peak == 0
        if bool(broken.any()):
            nonfinite[alive] |= broken
            gradient = torch.where(broken.view(-1, 1, 1, 1), 0.0, gradient)
        best_gradient[better] = gradient[better]

        perturbation = best.images[alive] - feasible.centre if schedule.due(step) else None
        back = schedule.reviewed(step, loss, best.loss[alive], perturbation)
        if back is not None and bool(back.any()):
            # Only the next step starts there; the move before it stays in the momentum, as published.
            point = torch.where(back.view(-1, 1, 1, 1), best.images[alive], point)
            gradient = torch.where(back.view(-1, 1, 1, 1), best_gradient, gradient)

        if bool(fooled.any()):
            keep = (~fooled).nonzero()[:, 0]
            if not len(keep):
                break
            alive, point, previous, gradient, best_gradient = (
                tensor[keep] for tensor in (alive, point, previous, gradient, best_gradient)
            )
            schedule.keep(keep)
            feasible.keep(keep)

        point, previous = _stepped(point, previous if step > 0 else None, gradient, feasible, schedule), point

    return AttackResult(
        best.images, best.loss, best.success, evaluations, gradients, int(zero.sum()), int(nonfinite.sum())
    )


def _stepped(
    point: Tensor, previous: Tensor | None, gradient: Tensor, feasible: Feasible, schedule: Halving | Sparsity
) -> Tensor:
    """Go one step up the gradient and, except in l_1 balls and on the first step, on where the one before led."""
    ball = feasible.ball
    share = {"share": schedule.share} if isinstance(schedule, Sparsity) else {}
    moved = torch.addcmul(point, ball.ascent(gradient, **share), schedule.size.view(-1, 1, 1, 1))
    moved = feasible.project_(moved, exact=previous is None or ball.norm == "l1")
    if previous is None or ball.norm == "l1":
        return moved
    # point + 0.75 (moved - point) + 0.25 (point - previous)
    moved.mul_(MOMENTUM).add_(point, alpha=2 * (1 - MOMENTUM)).sub_(previous, alpha=1 - MOMENTUM)
    return feasible.project_(moved)


def _evaluate(
    problem: _Problem, points: Tensor, indices: Tensor, *, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Give losses (n,), their gradients (n, 3, H, W) (empty unless wanted) and successes (n,), chunk by chunk."""
    losses, gradients, successes = [], [], []
    size = problem.chunk_size or len(points)
    for part, where in zip(points.split(size), indices.split(size), strict=True):
        with torch.set_grad_enabled(differentiate):
            variable = part.detach().requires_grad_(differentiate)
            loss, success = split_loss(problem.loss_fn(variable, where), where, problem.succeeded)
        if differentiate:
            gradients.append(torch.autograd.grad(loss.sum(), variable)[0])
        losses.append(loss.detach().float())
        successes.append(success)
    if len(losses) == 1:
        return losses[0], gradients[0] if differentiate else points.new_empty(0), successes[0].clone()
    return torch.cat(losses), torch.cat(gradients) if differentiate else points.new_empty(0), torch.cat(successes)
