"""Threat models: an l_p ball around an image, always together with the box [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Norm = Literal["linf", "l2"]


def norms(delta: torch.Tensor) -> torch.Tensor:
    """The l_2 norm of every sample, shaped (N, 1, 1, 1) to multiply images."""
    return delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class LpBall:
    """All images within ``eps`` of a centre in the ``norm``, and inside [0, 1].

    Args:
        norm: "linf" (every value moves by at most eps) or "l2" (the Euclidean norm over all values of an image).
        eps: radius in the scale of [0, 1] images, e.g. 4 / 255.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm must be 'linf' or 'l2', not {self.norm!r}")
        if not self.eps >= 0:
            raise ValueError(f"eps must not be negative, and it is {self.eps}")

    def __str__(self) -> str:
        """Name the ball as papers do: ``linf 4/255`` where that is exact, else ``l2 0.857``."""
        levels = self.eps * 255
        if self.norm == "linf" and abs(levels - round(levels)) < 1e-6:
            return f"linf {round(levels)}/255"
        return f"{self.norm} {self.eps:.4g}"

    def project(self, points: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        """Bring points (N, C, H, W) into ball and box.

        For l_inf this is the nearest point of the intersection. For l_2 the points are scaled into the ball and
        then clamped, which stays inside both (clamping towards a centre in the box never lengthens the
        perturbation) and is what APGD's authors do.
        """
        if self.norm == "linf":
            return torch.clamp(points, (centre - self.eps).clamp_(min=0), (centre + self.eps).clamp_(max=1))
        delta = points - centre
        scale = (self.eps / norms(delta).clamp(min=1e-12)).clamp(max=1)
        return torch.clamp(centre + delta * scale, 0, 1)

    def ascent(self, gradient: torch.Tensor) -> torch.Tensor:
        """The direction of steepest ascent with unit norm: the sign (l_inf) or the normalised gradient (l_2)."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / norms(gradient).clamp(min=1e-12)

    def sample(self, centre: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """A random start: ``noise`` standard uniform on [-1, 1] (l_inf) or normal (l_2), shaped like ``centre``.

        l_inf: uniform in the ball, as FARE and APGD have it. l_2: on the sphere, in a uniform direction.
        """
        delta = noise * self.eps if self.norm == "linf" else noise / norms(noise).clamp(min=1e-12) * self.eps
        return self.project(centre + delta, centre)

    def start(self, centre: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """A random start per sample from a seed per sample: independent of the batch a sample is in."""
        rows = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            if self.norm == "linf":
                rows.append(torch.rand(centre.shape[1:], generator=generator) * 2 - 1)
            else:
                rows.append(torch.randn(centre.shape[1:], generator=generator))
        return self.sample(centre, torch.stack(rows).to(centre))

    def violation(self, points: torch.Tensor, centre: torch.Tensor) -> float:
        """By how much the worst point leaves ball or box (0 when all are inside, up to rounding)."""
        delta = (points - centre).flatten(1)
        size = delta.abs().amax(1) if self.norm == "linf" else delta.double().norm(dim=1)
        outside = torch.maximum(-points, points - 1).amax()
        return max(0.0, (size - self.eps).amax().item(), outside.item())
