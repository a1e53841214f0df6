"""Auto-PGD on any per-sample loss (Croce & Hein 2020; its l_1 form, Croce & Hein 2021), with restarts and targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rclip_metric.train.attacks.base import Attacked, Judge, Judged, LossFunction, judged, restart_seeds
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
) -> Attacked:
    """Raise a per-sample loss inside a ball, with a step size that adapts to each sample.

    The first step is 2 eps long (eps for l_1); at checkpoints after 22 %, 41 %, 57 %, ... of the steps a sample whose
    loss rose in at most 75 % of the steps since the last one, or whose step and best loss both stood still, halves its
    step and goes back to its best point. For l_1 the sparsity of the step adapts as well (see `schedule`).

    A fooled sample leaves the batch with the point that fooled it; the others are judged at ``steps + 1`` points, the
    last of them without a backward pass. No sample's path depends on the others, on their order or on the number of
    processes, beyond float rounding.

    Args:
        loss_fn: (images (n, 3, H, W), sample indices (n,)) -> losses (n,), or `Judged`.
        images: the clean images (N, 3, H, W) in [0, 1], which are also the centres of the balls.
        ball: the feasible set.
        steps: gradient steps of each restart.
        start: where the first restart begins, (N, 3, H, W). Default: a random point if there are ``seeds`` or a
            ``generator``, else the clean images.
        succeeded: (losses (n,), sample indices (n,)) -> bool (n,), where loss_fn does not return `Judged`. Without
            either the attack runs to the end and returns the best point of every sample.
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
    """
    _check(images, steps, restarts, start)
    images = images.detach()
    result: Attacked | None = None
    for restart in range(restarts):
        drawn = restart_seeds(len(images), restart, seeds, generator)
        if restart > 0 and drawn is None:
            raise ValueError(f"{restarts} restarts need seeds, one per image, or a generator")

        def attempt(left: Tensor, restart: int = restart, drawn: list[int] | None = drawn) -> Attacked:
            centre = images[left]
            first = LpBall(ball.norm, ball.eps * LARGER_EPS[0][0]) if larger_eps else ball
            if restart == 0 and start is not None:
                points = first.project(start[left].detach(), centre)
            else:
                points = centre if drawn is None else first.start(centre, [drawn[index] for index in left.tolist()])
            run = _larger_eps if larger_eps else _single
            return run((loss_fn, left, succeeded, confirm), centre, points, ball, steps, threshold, chunk_size)

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
) -> Attacked:
    """APGD at one target after another, each on the samples that no earlier one has fooled.

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
        What was found; ``success`` wherever any target succeeded.
    """
    if targets < 1:
        raise ValueError(f"targets must be at least 1, and it is {targets}")
    _check(images, steps, 1, None)
    images = images.detach()
    result: Attacked | None = None
    for target in range(targets):
        drawn = restart_seeds(len(images), target, seeds, generator)

        def attempt(left: Tensor, target: int = target, drawn: list[int] | None = drawn) -> Attacked:
            centre = images[left]
            points = centre if drawn is None else ball.start(centre, [drawn[index] for index in left.tolist()])
            within = (loss_for(target), left, succeeded, confirm)
            return _single(within, centre, points, ball, steps, 0.75, chunk_size)

        result = _continued(result, attempt, images)
        if bool(result.success.all()):
            break
    assert result is not None
    return result


_Within = tuple[LossFunction, Tensor, "Judge | None", "Judge | None"]


def _check(images: Tensor, steps: int, restarts: int, start: Tensor | None) -> None:
    if images.ndim != 4:
        raise ValueError(f"images must be (N, 3, H, W), and they are {tuple(images.shape)}")
    if start is not None and start.shape != images.shape:
        raise ValueError(f"start must be shaped like the images, {tuple(images.shape)}, and it is {tuple(start.shape)}")
    if steps < 0 or restarts < 1:
        raise ValueError(f"steps must be at least 0 and restarts at least 1, and they are {steps} and {restarts}")


def _continued(before: Attacked | None, attempt: Callable[[Tensor], Attacked], images: Tensor) -> Attacked:
    """One more attempt on the samples that are left, merged into what was found before."""
    if before is None:
        return attempt(torch.arange(len(images), device=images.device))
    left = (~before.success).nonzero()[:, 0]
    more = attempt(left)
    better = more.success | (more.loss > before.loss[left])
    points, loss, success = before.images, before.loss, before.success
    points[left[better]], loss[left[better]] = more.images[better], more.loss[better]
    success[left] = more.success
    return Attacked(
        points,
        loss,
        success,
        before.evaluations + more.evaluations,
        before.gradients + more.gradients,
        before.zero_gradients + more.zero_gradients,
        before.nonfinite_gradients + more.nonfinite_gradients,
    )


def _larger_eps(
    within: _Within,
    centre: Tensor,
    points: Tensor,
    ball: LpBall,
    steps: int,
    threshold: float,
    chunk_size: int | None,
) -> Attacked:
    """The schedule of shrinking balls; the warm-up maximises the loss and is not judged."""
    loss_fn, left, _, _ = within

    def loss_alone(images: Tensor, indices: Tensor) -> Tensor:
        result = loss_fn(images, indices)
        return result.loss if isinstance(result, Judged) else result

    spent = 0
    found: list[Attacked] = []
    for factor, part in LARGER_EPS:
        now = steps - spent if factor == 1 else min(steps - spent, math.ceil(part * steps))
        spent += now
        wider = LpBall(ball.norm, ball.eps * factor)
        points = wider.project(points, centre)
        stage = within if factor == 1 else (loss_alone, left, None, None)
        found.append(_single(stage, centre, points, wider, now, threshold, chunk_size))
        points = found[-1].images
    return Attacked(
        found[-1].images,
        found[-1].loss,
        found[-1].success,
        *(
            sum(getattr(stage, name) for stage in found)
            for name in ("evaluations", "gradients", "zero_gradients", "nonfinite_gradients")
        ),
    )


def _single(
    within: _Within,
    centre: Tensor,
    points: Tensor,
    ball: LpBall,
    steps: int,
    threshold: float,
    chunk_size: int | None,
) -> Attacked:
    """One run from given points; ``within`` is the loss, the samples' indices in the caller's batch, and the judges."""
    loss_fn, sample, succeeded, confirm = within
    total, device = len(centre), centre.device
    best = points.clone()
    best_loss = torch.full((total,), -torch.inf, device=device)
    refused = best_loss.clone()  # the highest loss that `confirm` has turned down
    success = torch.zeros(total, dtype=torch.bool, device=device)
    zero, nonfinite = torch.zeros_like(success), torch.zeros_like(success)
    evaluations = gradients = 0
    schedule = (Sparsity if ball.norm == "l1" else Halving)(total, steps, ball.eps, threshold, device)

    if not total:
        return Attacked(best, best_loss, success)

    # What follows is of the samples that are still in the batch; `alive` holds their rows.
    alive = torch.arange(total, device=device)
    point = previous = points
    feasible = Feasible(ball, centre)
    best_gradient = torch.zeros_like(centre)

    for step in range(steps + 1):
        last = step == steps
        loss, gradient, found = _evaluate(loss_fn, point, sample[alive], succeeded, not last, chunk_size)
        evaluations += len(alive)
        gradients += 0 if last else len(alive)
        if confirm is not None and bool(found.any()):
            asked = (found & (loss > refused[alive])).nonzero()[:, 0]
            found = torch.zeros_like(found)
            if len(asked):
                found[asked] = confirm(point[asked], sample[alive[asked]])
                turned_down = asked[~found[asked]]
                refused[alive[turned_down]] = loss[turned_down]
        better = (loss > best_loss[alive]) | found
        rows = better.nonzero()[:, 0]
        best[alive[rows]] = point[rows]
        best_loss[alive[rows]] = loss[rows]
        success[alive] = found
        if last:
            break

        peak = gradient.flatten(1).abs().amax(1)
        broken = ~peak.isfinite()
        zero[alive] |= peak == 0
        if bool(broken.any()):
            nonfinite[alive] |= broken
            gradient = torch.where(broken.view(-1, 1, 1, 1), 0.0, gradient)
        best_gradient[rows] = gradient[rows]

        top = best_loss[alive]
        back = schedule.reviewed(step, loss, top, (best[alive] - feasible.centre) if schedule.due(step) else None)
        if back is not None and bool(back.any()):
            # Only the next step starts there; the move before it stays in the momentum, as published.
            point = torch.where(back.view(-1, 1, 1, 1), best[alive], point)
            gradient = torch.where(back.view(-1, 1, 1, 1), best_gradient, gradient)

        if bool(found.any()):
            keep = (~found).nonzero()[:, 0]
            if not len(keep):
                break
            alive, point, previous, gradient, best_gradient = (
                tensor[keep] for tensor in (alive, point, previous, gradient, best_gradient)
            )
            schedule.keep(keep)
            feasible.keep(keep)

        share = {"share": schedule.share} if isinstance(schedule, Sparsity) else {}
        moved = torch.addcmul(point, ball.ascent(gradient, **share), schedule.size.view(-1, 1, 1, 1))
        moved = feasible.project_(moved, exact=step == 0 or ball.norm == "l1")
        if step > 0 and ball.norm != "l1":
            # point + 0.75 (moved - point) + 0.25 (point - previous)
            moved.mul_(MOMENTUM).add_(point, alpha=2 * (1 - MOMENTUM)).sub_(previous, alpha=1 - MOMENTUM)
            moved = feasible.project_(moved)
        previous, point = point, moved

    return Attacked(best, best_loss, success, evaluations, gradients, int(zero.sum()), int(nonfinite.sum()))


def _evaluate(
    loss_fn: LossFunction,
    points: Tensor,
    indices: Tensor,
    succeeded: Judge | None,
    differentiate: bool,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (n,), their gradients (n, 3, H, W) (empty unless wanted) and successes (n,), chunk by chunk."""
    losses, gradients, successes = [], [], []
    for part, where in zip(
        points.split(chunk_size or len(points)), indices.split(chunk_size or len(points)), strict=True
    ):
        with torch.set_grad_enabled(differentiate):
            variable = part.detach().requires_grad_(differentiate)
            loss, success = judged(loss_fn(variable, where), where, succeeded)
        if differentiate:
            gradients.append(torch.autograd.grad(loss.sum(), variable)[0])
        losses.append(loss.detach().float())
        successes.append(success)
    if len(losses) == 1:
        return losses[0], gradients[0] if differentiate else points.new_empty(0), successes[0].clone()
    return torch.cat(losses), torch.cat(gradients) if differentiate else points.new_empty(0), torch.cat(successes)
