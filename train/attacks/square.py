"""Square Attack (Andriushchenko et al. 2020): random search over square patches, which asks for no gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from rclip_metric.train.attacks.base import AttackResult, BestPoints, Judge, LossFunction, restart_seeds, split_loss
from rclip_metric.train.attacks.threat import LpBall

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
BLOCK = 256  # queries whose random numbers are drawn at a time; a sample's stream does not depend on `queries`


def window_side(move: int, queries: int, share: float, ball: LpBall, height: int, width: int) -> int:
    """Compute the side of the square that a move changes, in pixels; moves are counted from 0, after the start.

    The area is a share p of the image; p is halved after move 10, 50, 200, ... 8,000 of 10,000, rescaled to
    `queries`. For l_2 the side is odd and at least 3. It never exceeds the image.
    """
    rescaled = int(move / queries * 10_000)
    p = share / 2 ** sum(rescaled > bound for bound in HALVINGS)
    side = max(1, round(math.sqrt(p * height * width)))
    if ball.norm == "l2":
        side = max(3, side + 1 - side % 2)
    return min(side, height, width)


def _unit(tensor: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Scale to l_2 norm 1 over `dims`; zero stays zero."""
    return tensor / tensor.square().sum(dims, keepdim=True).sqrt().clamp(min=1e-12)


def _pyramid(height: int, width: int) -> torch.Tensor:
    """Build nested rectangles around a centre: sum of 1 / j^2 for j from m + 1 to n + 1, at distance m from the centre.

    m is the larger of the row and the column distance, n = max(height, width) // 2.
    """
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64).square()
    tails = terms.flip(0).cumsum(0).flip(0)
    return tails[torch.maximum(down[:, None], across[None])]  # (height, width)


def bumps(side: int) -> torch.Tensor:
    """Build the l_2 patch eta with norm 1 and its transpose, (2, side, side): a pyramid above its negative.

    Both halves have the same norm, as in the authors' code. A single pixel is its own lower half: -1.
    """
    half = side // 2
    upper, lower = (_unit(_pyramid(rows, side), (0, 1)) for rows in (half, side - half))
    eta = _unit(torch.cat([upper, -lower]), (0, 1)).float()
    return torch.stack([eta, eta.T])


def _signs(uniform: torch.Tensor) -> torch.Tensor:
    """Turn uniform numbers in [0, 1) into random signs."""
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _window(uniform: torch.Tensor, side: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Place random windows along one axis, each start from 0 to length - side alike: coordinates (n, length) and mask.

    A coordinate is counted from the start of the window; where the mask is False it is clamped into the window.
    """
    room = length - side
    start = (uniform * (room + 1)).long().clamp(max=room)  # (n,); the product may round up to room + 1
    offset = torch.arange(length, device=uniform.device) - start[:, None]
    return offset.clamp(0, side - 1), (offset >= 0) & (offset < side)


def _start(images: torch.Tensor, ball: LpBall, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Draw where the search begins, before projection.

    l_inf: vertical stripes one pixel wide, +-eps per channel and column. l_2: the image tiled by eta patches, five to
    the shorter side (square cells in the middle, as many as fit), turned at random, a random sign per channel, scaled
    to eps.
    """
    count, channels, height, width = images.shape
    if ball.norm == "linf":
        drawn = torch.stack([torch.rand(channels, width, generator=generator) for generator in generators])
        return images + ball.eps * _signs(drawn.to(images.device))[:, :, None]
    cell = max(1, min(height, width) // 5)
    down, across = height // cell, width // cell
    size = (1 + channels, down, across)
    drawn = torch.stack([torch.rand(size, generator=generator) for generator in generators]).to(images.device)
    patches = bumps(cell).to(images)[(drawn[:, 0] < 0.5).long()]  # (n, down, across, cell, cell)
    signed = _signs(drawn[:, 1:])[..., None, None] * patches[:, None]  # (n, C, down, across, cell, cell)
    tiled = signed.transpose(3, 4).reshape(count, channels, down * cell, across * cell)
    above, before = (height - down * cell) // 2, (width - across * cell) // 2
    padding = (before, width - across * cell - before, above, height - down * cell - above)
    return images + ball.eps * _unit(F.pad(tiled, padding), (1, 2, 3))


def _linf_move(point: torch.Tensor, uniform: torch.Tensor, side: int, eps: float) -> torch.Tensor:
    """Add +-2 eps per channel inside a square window (the paper's Algorithm 2)."""
    (_, rows), (_, columns) = (_window(uniform[:, axis], side, point.shape[2 + axis]) for axis in (0, 1))
    window = rows[:, None, :, None] & columns[:, None, None, :]  # (n, 1, H, W)
    return point + 2 * eps * window * _signs(uniform[:, 2:])[..., None, None]


def _l2_move(
    point: torch.Tensor, centre: torch.Tensor, uniform: torch.Tensor, patches: torch.Tensor, eps: float
) -> torch.Tensor:
    """Move the norm that two square windows hold, and what the ball leaves unused, into the first (Algorithm 3).

    In every channel the first window keeps its direction plus or minus eta, at the norm of both windows together and a
    channel's part of eps^2 - ||delta||^2; the rest of the second window becomes zero. The result has norm eps.

    Args:
        point: (n, C, H, W).
        centre: likewise, the clean images.
        uniform: (n, 5 + C): corners of both windows, whether to transpose eta, a sign per channel.
        patches: (2, side, side) of `bumps`.
        eps: radius.
    """
    delta = point - centre
    side, channels = patches.shape[1], point.shape[1]
    (row, rows), (column, columns) = (_window(uniform[:, axis], side, point.shape[2 + axis]) for axis in (0, 1))
    (_, rows2), (_, columns2) = (_window(uniform[:, 2 + axis], side, point.shape[2 + axis]) for axis in (0, 1))
    first = rows[:, None, :, None] & columns[:, None, None, :]  # (n, 1, H, W)
    either = first | (rows2[:, None, :, None] & columns2[:, None, None, :])

    turned = (uniform[:, 4] < 0.5).long()[:, None, None]
    eta = patches[turned, row[:, :, None], column[:, None, :]][:, None]  # (n, 1, H, W), to be read inside `first`
    direction = first * (_signs(uniform[:, 5:])[..., None, None] * eta + _unit(delta * first, (2, 3)))
    unused = (eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp(min=0) / channels
    budget = ((delta * either).square().sum((2, 3), keepdim=True) + unused).sqrt()  # (n, C, 1, 1)
    return centre + torch.where(either, _unit(direction, (2, 3)) * budget, delta)


@torch.no_grad()
def square(
    loss_fn: LossFunction,
    images: torch.Tensor,
    ball: LpBall,
    queries: int,
    *,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    succeeded: Judge | None = None,
    confirm: Judge | None = None,
    share: float = 0.8,
) -> AttackResult:
    """Raise a per-sample loss inside a ball by random search, with no gradient of it.

    Every query changes one square patch of each image; the change is kept where the loss rises or the sample is
    fooled. All random numbers of a sample come from its own seed, so its path does not depend on the batch it is in
    (the authors' code draws one window for the whole batch, and never one at the last row or column; here all places
    are alike, as in the paper).

    Args:
        loss_fn: called without gradients.
        images: the clean images (N, 3, H, W) in [0, 1], which are also the centres of the balls. They are not judged.
        ball: the feasible set, l_inf or l_2.
        queries: points judged per sample, the random start among them (the paper has 5,000).
        seeds: one per image; or else
        generator: from which the seeds are drawn.
        succeeded: judges success from the loss, where `loss_fn` does not return `LossAndSuccess`. A fooled sample
            leaves the batch with that point.
        confirm: asked about a success before it counts, if its loss is higher than at the sample's last refusal; what
            it denies counts by its loss alone. Its own forward passes are not in `evaluations`.
        share: of the image's area that the first patches cover.

    Returns:
        The first success of every sample, or its point of highest loss. A loss that is NaN is never kept.

    Raises:
        ValueError: for another norm, without seeds and generator, or with settings out of range.

    Example:
        >>> images = torch.full((2, 3, 8, 8), 0.5)
        >>> found = square(lambda points, _: points.mean((1, 2, 3)), images, LpBall("linf", 0.1), 200, seeds=[0, 1])
        >>> found.evaluations, found.gradients
        (400, 0)
        >>> bool((found.loss > 0.55).all() and (found.loss <= 0.6).all())
        True
    """
    if ball.norm not in ("linf", "l2"):
        raise ValueError(f"Square Attack works in linf and l2 balls and this one is {ball.norm}: use apgd there")
    if queries < 1 or not 0 < share <= 1:
        raise ValueError(f"queries must be at least 1 and share in (0, 1], and they are {queries} and {share}")
    own = restart_seeds(len(images), 0, seeds, generator)
    if own is None:
        raise ValueError("Square Attack draws at random and got neither seeds nor a generator: pass one seed per image")
    alive = torch.arange(len(images), device=images.device)
    centre = images.detach()
    if not own:
        nothing = BestPoints(centre.clone(), images.dtype, alive, confirm)
        return AttackResult(nothing.images, nothing.loss, nothing.success)

    generators = [torch.Generator().manual_seed(seed) for seed in own]
    start = ball.project(_start(centre, ball, generators), centre)
    best = BestPoints(start, images.dtype, alive, confirm)
    numbers = images.shape[1] + (2 if ball.norm == "linf" else 5)  # random numbers in one move
    draws = torch.empty(0)
    patches: dict[int, torch.Tensor] = {}  # of l_2, per side
    evaluations = 0

    for query in range(queries):
        if query % BLOCK == 0:
            rows = [torch.rand(BLOCK, numbers, generator=generators[index]) for index in alive.tolist()]
            draws = torch.stack(rows).to(images.device)  # (n, BLOCK, numbers)
        candidate = best.images[alive]
        if query > 0:
            side = window_side(query - 1, queries, share, ball, *images.shape[2:])
            if ball.norm == "l2" and side not in patches:
                patches[side] = bumps(side).to(images)
            candidate = _moved(candidate, centre, draws[:, query % BLOCK], side, ball, patches.get(side))

        loss, fooled = split_loss(loss_fn(candidate, alive), alive, succeeded)
        evaluations += len(alive)
        fooled, _ = best.update(alive, candidate, loss.to(images.dtype), fooled)
        if fooled.any():
            kept = ~fooled
            if not kept.any():
                break
            alive, centre, draws = alive[kept], centre[kept], draws[kept]

    return AttackResult(best.images, best.loss, best.success, evaluations)


def _moved(
    point: torch.Tensor,
    centre: torch.Tensor,
    uniform: torch.Tensor,
    side: int,
    ball: LpBall,
    patches: torch.Tensor | None,
) -> torch.Tensor:
    """Make one random move and stay in the ball; in an l_2 ball with the `bumps` of that side."""
    if patches is None:
        moved = _linf_move(point, uniform, side, ball.eps)
    else:
        moved = _l2_move(point, centre, uniform, patches, ball.eps)
    return ball.project(moved, centre)
