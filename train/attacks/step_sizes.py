"""How the steps of APGD adapt, per sample: `Halving` (l_inf, l_2) and `Sparsity` (l_1)."""

from __future__ import annotations

import torch
from torch import Tensor


def checkpoints(steps: int) -> list[int]:
    """List the steps at which APGD reviews its step size: periods of 22 %, shrinking by 3 %, at least 6 % of steps.

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    period, shrink, least = (max(1, int(share * steps)) for share in (0.22, 0.03, 0.06))
    found, at = [], 0
    while at + period < steps:
        at += period
        found.append(at)
        period = max(period - shrink, least)
    return found


class Halving:
    """Step sizes that start at 2 eps and are halved at checkpoints (Croce & Hein 2020, section 3).

    A sample halves its step when its loss rose in at most `threshold` of the steps since the last checkpoint, or when
    neither its step nor its best loss has changed since then.
    """

    def __init__(self, count: int, steps: int, eps: float, threshold: float, device: torch.device) -> None:
        """Begin with `count` samples."""
        self.size = torch.full((count,), 2.0 * eps, device=device)
        self.threshold = threshold
        self._reviews = set(checkpoints(steps))
        self._rose = torch.zeros(count, device=device)  # steps since the last review on which the loss rose
        self._since = 0
        self._last = torch.full((count,), torch.inf, device=device)
        self._top: Tensor | None = None  # the best loss at the last review; at first, that of the start
        self._halved = torch.ones(count, dtype=torch.bool, device=device)  # at the last review

    def due(self, step: int) -> bool:
        """Say whether this iteration needs the best perturbations: never."""
        return False

    def reviewed(self, step: int, loss: Tensor, top: Tensor, _: Tensor | None) -> Tensor | None:
        """Take in an iteration's losses (n,) and best losses (n,); at a checkpoint, say who goes back (n,)."""
        if self._top is None:
            self._top = top
        else:
            self._rose += loss > self._last
            self._since += 1
        self._last = loss
        if step not in self._reviews:
            return None
        few = self._rose <= self.threshold * self._since
        stuck = ~self._halved & (top <= self._top)
        self._halved = few | stuck
        self.size = torch.where(self._halved, self.size / 2, self.size)
        self._top, self._since = top, 0
        self._rose = torch.zeros_like(self._rose)
        return self._halved

    def keep(self, rows: Tensor) -> None:
        """Go on with these samples only."""
        self.size, self._rose, self._last, self._halved = (
            tensor[rows] for tensor in (self.size, self._rose, self._last, self._halved)
        )
        assert self._top is not None
        self._top = self._top[rows]


class Sparsity:
    """Step sizes and shares of pixels for l_1 (Croce & Hein 2021, section 4).

    The first steps move 20 % of the values or, where a start was given, two thirds of those that it moved. After every
    4 % of the steps the share becomes two thirds of that of the best perturbation; a sample whose best perturbation got
    sparser by 5 % starts again with the full step, eps, from its best point, and the others divide their step by 1.5,
    down to eps / 10.
    """

    def __init__(self, count: int, steps: int, eps: float, threshold: float, device: torch.device) -> None:
        """Begin with `count` samples; `threshold` has no part in this schedule."""
        self.eps, self.period = eps, max(1, int(0.04 * steps))
        self.size = torch.full((count,), float(eps), device=device)
        self.share = torch.full((count,), 0.2, device=device)
        self._moved = torch.full((count,), torch.inf, device=device)  # number of values moved at the last review

    def begin(self, delta: Tensor) -> None:
        """Take in the perturbations (n, 3, H, W) that were given as the start."""
        self._moved = _moved(delta)
        self.share = self._moved / delta[0].numel() / 1.5

    def due(self, step: int) -> bool:
        """Say whether this iteration is a review, which needs the best perturbations."""
        return step > 0 and step % self.period == 0

    def reviewed(self, step: int, loss: Tensor, top: Tensor, delta: Tensor | None) -> Tensor | None:
        """At a review, take in the best perturbations (n, 3, H, W) and say who goes back to them (n,), else None."""
        if delta is None:
            return None
        moved = _moved(delta)
        total = delta[0].numel()
        previous = torch.where(self._moved.isinf(), torch.full_like(moved, total), self._moved)
        sparser = moved < 0.95 * previous
        self.share = moved / total / 1.5
        self.size = torch.where(sparser, torch.full_like(self.size, self.eps), self.size / 1.5).clamp(self.eps / 10)
        self._moved = moved
        return sparser

    def keep(self, rows: Tensor) -> None:
        """Go on with these samples only."""
        self.size, self.share, self._moved = (tensor[rows] for tensor in (self.size, self.share, self._moved))


def _moved(delta: Tensor) -> Tensor:
    """Count the values of each perturbation (n, 3, H, W) that moved by more than rounding: (n,), float32."""
    return (delta.abs() > 1e-6).flatten(1).sum(1).float()
