"""PGD with fixed steps and momentum: the inner problem of FARE and TeCoA."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rclip_metric.train.attacks.threat import LpBall


def pgd(
    loss_fn: Callable[[Tensor], Tensor],
    images: Tensor,
    ball: LpBall,
    steps: int,
    step_size: float,
    *,
    noise: Tensor,
    momentum: float = 0.9,
    accumulate: bool = False,
    clamp_start: bool = False,
) -> Tensor:
    """Raise a per-sample loss by fixed steps with momentum on the normalised gradient, from a random start.

    v <- ascent(momentum * v + ascent(gradient)); point <- project(point + step_size * v), as FARE's authors have it.
    For l_inf v is then the sign of the gradient wherever that is not zero: nothing is left of the steps before it.

    Args:
        loss_fn: images (N, 3, H, W) -> losses (N,).
        images: the clean images (N, 3, H, W) in [0, 1].
        ball: the feasible set.
        steps: gradient steps (10 in the paper).
        step_size: length of one (1/255 in the paper).
        noise: the random start, as `LpBall.sample` takes it.
        momentum: 0.9 in the paper.
        accumulate: keep the velocity's length, v <- momentum * v + ascent(gradient), and step along ascent(v).
        clamp_start: begin inside the box; as published the first gradient is taken at values below 0 and above 1, too.

    Returns:
        The last point, detached (N, 3, H, W).

    Example:
        >>> images = torch.full((2, 3, 4, 4), 0.5)
        >>> brighter = lambda points: points.flatten(1).sum(1)
        >>> ball = LpBall("linf", 4 / 255)
        >>> adversarial = pgd(brighter, images, ball, 10, 1 / 255, noise=torch.zeros_like(images))
        >>> bool(adversarial.allclose(images + 4 / 255))
        True
    """
    images = images.detach()
    point = ball.sample(images, noise, box=clamp_start)
    velocity = torch.zeros_like(images)
    for _ in range(steps):
        with torch.enable_grad():
            variable = point.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss_fn(variable).sum(), variable)
        velocity = momentum * velocity + ball.ascent(gradient)
        direction = ball.ascent(velocity)
        point = ball.project(point + step_size * direction, images)
        velocity = velocity if accumulate else direction
    return point.detach()
