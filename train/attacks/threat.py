"""Threat models: an l_p ball around an image, always together with the box [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rclip_metric.train.attacks.norms import NORMS, Norm

_ORDER: dict[str, float] = {"linf": math.inf, "l2": 2, "l1": 1}
_TINY = 1e-30  # keeps zero vectors from dividing by zero, and is too small to change any other


@dataclass(frozen=True)
class LpBall:
    """All images within `eps` of a centre in the `norm`, and inside [0, 1].

    Args:
        norm: "linf" (every value moves by at most eps), "l2" (the Euclidean norm over all values of an image) or
            "l1" (the sum of all moves).
        eps: radius in the scale of [0, 1] images, e.g. 4 / 255.

    Example:
        >>> ball = LpBall("linf", 4 / 255)
        >>> str(ball)
        'linf 4/255'
        >>> white = torch.ones(1, 3, 8, 8)
        >>> ball.project(white + 0.5, white).amax(), ball.project(white - 0.5, white).amin() * 255  # box, ball
        (tensor(1.), tensor(251.))
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {self.norm!r}")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must be a finite number that is not negative, and it is {self.eps}")

    def __str__(self) -> str:
        """Name the ball as papers do: `linf 4/255`, `linf 0.25/255` where two decimals tell all, `l2 0.857`."""
        levels = self.eps * 255
        if self.norm == "linf" and abs(levels - round(levels, 2)) < 1e-6:
            return f"linf {round(levels, 2):g}/255"
        return f"{self.norm} {self.eps:.4g}"

    def norms(self, delta: Tensor) -> Tensor:
        """Compute the ball's norm of every sample (N, 1, 1, 1), summed up in float64 where the device has it."""
        wide = None if self.norm == "linf" or delta.device.type == "mps" else torch.float64
        found = torch.linalg.vector_norm(delta.flatten(1), _ORDER[self.norm], dim=1, dtype=wide)
        return found.to(delta.dtype if wide is None else wide).view(-1, 1, 1, 1)

    def project(self, points: Tensor, centre: Tensor) -> Tensor:
        """Bring points (N, C, H, W) into ball and box; see `Feasible`."""
        return Feasible(self, centre).project_(points.clone())

    def ascent(self, gradient: Tensor, share: Tensor | None = None) -> Tensor:
        """Find the direction of steepest ascent with unit norm.

        l_inf: the sign. l_2: the normalised gradient. l_1: the signs of the largest values, a `share` (N,) of them
        (default: the largest alone), divided by their number, as in Croce & Hein 2021; a part of a value counts as a
        value, and values of zero as none, as in AutoAttack (a392200).
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            return gradient / self.norms(gradient).clamp(min=_TINY).to(gradient.dtype)
        size = gradient.abs().flatten(1)
        length = size.shape[1]
        share = torch.zeros(len(size), device=size.device) if share is None else share
        below = ((1 - share) * length).clamp(0, length - 1).long()  # in float32: which side an integer falls on counts
        bar = size.sort(1).values.gather(1, below[:, None])  # (N, 1)
        chosen = (size >= bar) & (size > 0)
        return gradient.sign() * (chosen / chosen.sum(1, keepdim=True).clamp(min=1)).view_as(gradient)

    def sample(self, centre: Tensor, noise: Tensor, box: bool = True) -> Tensor:
        """Turn noise shaped like `centre`, uniform on [-1, 1] (l_inf) or normal (l_2, l_1), into a random point.

        l_inf: uniform in the ball. l_2: on the sphere, in a uniform direction. l_1: the projection of normal noise.
        Without `box` l_inf and l_2 points may leave [0, 1].
        """
        if self.norm == "l1":
            return self.project(centre + noise, centre)
        if self.norm == "linf":
            point = centre + noise * self.eps
        else:
            point = centre + noise * (self.eps / self.norms(noise).clamp(min=_TINY)).to(noise.dtype)
        return self.project(point, centre) if box else point

    def start(self, centre: Tensor, seeds: Sequence[int]) -> Tensor:
        """Draw a start per sample from a seed per sample, as APGD has it: independent of the batch a sample is in.

        Like `sample`; for l_inf, the noise is stretched so that its largest value is eps. Drawn on the CPU, so that
        a seed means the same start on every device.
        """
        if not len(seeds):
            return centre.clone()
        rows = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            if self.norm == "linf":
                row = torch.rand(centre.shape[1:], generator=generator) * 2 - 1
                rows.append(row / row.abs().max())
            else:
                rows.append(torch.randn(centre.shape[1:], generator=generator))
        return self.sample(centre, torch.stack(rows).to(centre))

    def violation(self, points: Tensor, centre: Tensor) -> float:
        """Measure by how much the worst point leaves ball or box (0 when all are inside), in float64."""
        if not len(points):
            return 0.0
        points, centre = points.detach().cpu().double(), centre.detach().cpu().double()
        size = torch.linalg.vector_norm((points - centre).flatten(1), _ORDER[self.norm], dim=1)
        outside = torch.maximum(-points, points - 1).amax()
        return max(0.0, (size - self.eps).amax().item(), outside.item())


class Feasible:
    """The points of ball and box around fixed centres (N, C, H, W): what depends on the centres alone is made once."""

    def __init__(self, ball: LpBall, centre: Tensor) -> None:
        """Begin with all centres."""
        self.ball, self.centre = ball, centre
        if ball.norm == "linf":
            # Shorter by half an ulp below 1, so that no rounding of a bound carries it out of the ball.
            reach = max(0.0, ball.eps - 2**-25)
            self._low, self._high = (centre - reach).clamp_(min=0), (centre + reach).clamp_(max=1)

    def keep(self, rows: Tensor) -> None:
        """Go on with these centres only."""
        self.centre = self.centre[rows]
        if self.ball.norm == "linf":
            self._low, self._high = self._low[rows], self._high[rows]

    def project_(self, points: Tensor, exact: bool = True) -> Tensor:
        """Bring points (N, C, H, W) into ball and box, in place where the norm allows it.

        For l_inf and l_1 this is the nearest point of the intersection (l_1: `_project_l1`). For l_2 the points are
        scaled into the ball and then clamped, which stays inside both (clamping towards a centre in the box never
        lengthens the perturbation) and is what APGD's authors do. Rounding to float32 does not carry a point out by
        more than an ulp of eps, unless `exact` is off: for points on the way to others, which it saves two passes.
        """
        ball, centre = self.ball, self.centre
        if ball.norm == "linf":
            return torch.clamp(points, self._low, self._high, out=points)
        if ball.norm == "l1":
            return self._tucked(_project_l1(points, centre, ball.eps))
        delta = points.sub_(centre)
        size = ball.norms(delta)
        # Short by one part in eight million, so that rounding rarely carries a point out.
        scale = torch.where(size > ball.eps, ball.eps * (1 - 2**-23) / size.clamp(min=_TINY), 1.0)
        points = delta.mul_(scale.to(delta.dtype)).add_(centre).clamp_(0, 1)
        return self._tucked(points) if exact else points

    def _tucked(self, points: Tensor) -> Tensor:
        """Move points that rounding left outside the ball back in, in place, by less than two ulps per value."""
        size = self.ball.norms(points - self.centre)
        outside = (size > self.ball.eps).view(-1)
        if outside.any():
            inner, scale = self.centre[outside], (self.ball.eps / size[outside]).to(points.dtype)
            nearer = inner + (points[outside] - inner) * scale
            # One more ulp towards the centre makes every move shorter than the exact one.
            points[outside] = torch.nextafter(nearer, inner)
        return points


def _project_l1(points: Tensor, centre: Tensor, eps: float) -> Tensor:
    """Find the nearest point of the intersection of the l_1 ball and the box (Croce & Hein 2021, Proposition 2.1).

    It moves value i by sign(d_i) * clip(|d_i| - t, 0, c_i), with d = points - centre, c_i the room between the centre
    and the box in that direction, and the threshold t >= 0 at which the moves sum up to eps. Their sum falls
    piecewise linearly in t, with kinks at |d_i| and |d_i| - c_i: sorting these finds the piece, and so t, exactly.
    """
    wide = torch.float64 if points.device.type != "mps" else torch.float32
    delta = (points.to(wide) - centre.to(wide)).flatten(1)
    size = delta.abs()
    room = torch.where(delta > 0, 1 - centre.to(wide).flatten(1), centre.to(wide).flatten(1))
    move = torch.minimum(size, room)
    outside = move.sum(1) > eps
    if outside.any():
        wanted, limit = size[outside], room[outside]
        kinks = torch.cat([wanted, (wanted - limit).clamp(min=0)], 1)  # (M, 2D): the slope falls by 1, then rises by 1
        change = torch.cat([torch.ones_like(wanted), -torch.ones_like(wanted)], 1)
        kinks, order = kinks.sort(1, descending=True)
        slope = change.gather(1, order).cumsum(1)  # number of values on the move just below each kink
        step = kinks[:, :-1] - kinks[:, 1:]
        moved = torch.cat([torch.zeros_like(kinks[:, :1]), (slope[:, :-1] * step).cumsum(1)], 1)  # sum at each kink
        # The last kink at which the sum is still below eps; from there it is linear.
        last = torch.searchsorted(moved, torch.full_like(moved[:, :1], eps)).sub_(1).clamp_(min=0)
        at, rate = moved.gather(1, last), slope.gather(1, last).clamp(min=1)
        threshold = kinks.gather(1, last) - (eps - at) / rate
        move[outside] = torch.minimum((wanted - threshold).clamp(min=0), limit)
    result = centre.to(wide).flatten(1) + move * delta.sign()
    return result.clamp_(0, 1).to(points.dtype).view_as(points)
