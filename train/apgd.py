"""Attacks on any per-sample loss: APGD (Croce & Hein 2020) and the PGD with momentum inside FARE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rclip_metric.train.threat import LpBall

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps images (n, 3, H, W) and the indices (n,) of their samples to losses (n,), which the attack raises."""


@dataclass(frozen=True)
class Attacked:
    """What an attack found: ``images`` (N, 3, H, W), their ``loss`` (N,), and ``success`` (N,) where it was judged.

    ``gradients`` counts the backward passes over single samples; ``stalled`` the samples that met an all-zero or
    non-finite gradient, a sign of gradient masking.
    """

    images: torch.Tensor
    loss: torch.Tensor
    success: torch.Tensor
    gradients: int
    stalled: int


def checkpoints(steps: int) -> list[int]:
    """The iterations at which APGD reviews its step size: periods of 22 %, shrinking by 3 %, at least 6 % of steps."""
    period, shrink, least = (max(1, int(share * steps)) for share in (0.22, 0.03, 0.06))
    found, at = [], 0
    while at + period < steps:
        at += period
        found.append(at)
        period = max(period - shrink, least)
    return found


def apgd(
    loss_fn: LossFunction,
    images: torch.Tensor,
    ball: LpBall,
    steps: int,
    *,
    start: torch.Tensor | None = None,
    succeeded: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    momentum: float = 0.75,
    threshold: float = 0.75,
) -> Attacked:
    """Auto-PGD: raise a per-sample loss inside a ball, with a step size that adapts to each sample.

    The first step is 2 eps long; at each checkpoint a sample whose loss rose in less than 75 % of the steps
    since the last one, or whose step and best loss both stood still, halves its step and goes back to its best point.

    Args:
        loss_fn: (images (n, 3, H, W), sample indices (n,)) -> losses (n,). Labels, targets and fixed embeddings are
            looked up by index, so that samples can leave the batch.
        images: the clean images (N, 3, H, W) in [0, 1], which are also the centres of the balls.
        ball: the feasible set.
        steps: gradient steps; every sample is judged at ``steps + 1`` points.
        start: where to begin (default: the clean images).
        succeeded: (losses (n,), sample indices (n,)) -> bool (n,): a sample for which it holds at any point visited is
            done; it leaves the batch with that point. Without it the attack runs to the end and returns the
            best point of every sample.
        momentum: weight of the gradient step against the previous move.
        threshold: share of rising steps under which the step is halved.

    Returns:
        The points with the highest loss (or the first success), detached.
    """
    total = len(images)
    best = (images if start is None else start).detach().clone()
    best_loss = images.new_full((total,), -torch.inf)
    success = torch.zeros(total, dtype=torch.bool, device=images.device)
    stalled = torch.zeros_like(success)
    reviews = set(checkpoints(steps))
    gradients = 0

    # The state of the samples still in the batch; `alive` holds their indices.
    alive = torch.arange(total, device=images.device)
    centre, point, previous = images.detach(), best.clone(), best.clone()
    step_size = images.new_full((total, 1, 1, 1), 2 * ball.eps)
    rose = torch.zeros(total, device=images.device)  # steps since the last review on which the loss rose
    last_loss = best_loss.clone()
    reviewed_loss = best_loss.clone()  # the best loss at the last review
    halved = torch.ones(total, dtype=torch.bool, device=images.device)  # at the last review
    best_gradient = torch.zeros_like(centre)
    since = 0

    for step in range(steps + 1):
        last = step == steps
        with torch.enable_grad():
            variable = point.detach().requires_grad_(not last)
            loss = loss_fn(variable, alive)
            gradient = torch.zeros(0)
            if not last:
                (gradient,) = torch.autograd.grad(loss.sum(), variable)
                gradients += len(alive)
        loss = loss.detach()
        if succeeded is not None:
            found = succeeded(loss, alive)
            success[alive[found]] = True
            best[alive[found]] = point[found]
            best_loss[alive[found]] = loss[found]
        else:
            found = torch.zeros_like(success[alive])
        better = (loss > best_loss[alive]) & ~found
        best[alive[better]] = point[better]
        best_loss[alive[better]] = loss[better]
        if last:
            break

        finite = gradient.isfinite().flatten(1).all(1)
        gradient = torch.where(finite.view(-1, 1, 1, 1), gradient, torch.zeros_like(gradient))
        stalled[alive] |= ~finite | (gradient == 0).flatten(1).all(1)
        best_gradient = torch.where(better.view(-1, 1, 1, 1), gradient, best_gradient)
        if step > 0:
            rose += loss > last_loss
            since += 1
        last_loss = loss

        if step in reviews:
            top = best_loss[alive]
            few = rose <= threshold * since
            stuck = ~halved & (top <= reviewed_loss)
            halved = few | stuck
            back = halved.view(-1, 1, 1, 1)
            step_size = torch.where(back, step_size / 2, step_size)
            point = torch.where(back, best[alive], point)
            gradient = torch.where(back, best_gradient, gradient)
            # From the best point as from a start: the old move is forgotten.
            previous = torch.where(back, point, previous)
            reviewed_loss, since = top, 0
            rose = torch.zeros_like(rose)

        if found.any():
            keep = ~found
            if not keep.any():
                break
            alive, centre, point, previous, gradient = (t[keep] for t in (alive, centre, point, previous, gradient))
            step_size, rose, last_loss, reviewed_loss = (t[keep] for t in (step_size, rose, last_loss, reviewed_loss))
            halved, best_gradient = halved[keep], best_gradient[keep]

        moved = ball.project(point + step_size * ball.ascent(gradient), centre)
        if step > 0:
            moved = ball.project(point + momentum * (moved - point) + (1 - momentum) * (point - previous), centre)
        previous, point = point, moved

    return Attacked(best, best_loss, success, gradients, int(stalled.sum()))


def pgd(
    loss_fn: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    ball: LpBall,
    steps: int,
    step_size: float,
    *,
    noise: torch.Tensor,
    momentum: float = 0.9,
) -> torch.Tensor:
    """The inner maximisation of FARE: fixed steps with momentum on the normalised gradient, from a random start.

    v <- momentum * v + ascent(gradient); point <- project(point + step_size * ascent(v)).

    Args:
        loss_fn: images (N, 3, H, W) -> losses (N,).
        images: the clean images (N, 3, H, W) in [0, 1].
        ball: the feasible set.
        steps: gradient steps (10 in the paper).
        step_size: length of one (1/255 in the paper).
        noise: the random start, as ``LpBall.sample`` takes it.
        momentum: 0.9 in the paper.

    Returns:
        The last point, detached (N, 3, H, W).
    """
    images = images.detach()
    point = ball.sample(images, noise)
    velocity = torch.zeros_like(images)
    for _ in range(steps):
        with torch.enable_grad():
            variable = point.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss_fn(variable).sum(), variable)
        velocity = momentum * velocity + ball.ascent(gradient)
        point = ball.project(point + step_size * ball.ascent(velocity), images)
    return point.detach()
