"""How far a network stretches what images differ by, measured: a check of what is proved of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture
from rclip_metric.train.metrics.lipsim.student import embedded
from rclip_metric.train.runs.seeds import seeded

TOLERANCE = 1e-5
"""By how much the measured constant of a 1-Lipschitz network may exceed 1."""


def lipschitz_constant(
    network: Callable[[Tensor], Tensor], images: Tensor, iterations: int = 20, seed: int = 0
) -> Tensor:
    """Measure the largest singular value of a network's Jacobian at images: (N,), float64.

    By power iteration on J^T J, one product with each of the two per step: an estimate from below, which grows from
    step to step. The constant of the network is the largest that there is anywhere, so this can refute that it is
    1-Lipschitz and not prove it.

    Args:
        network: plain differentiable operations on (N, ...) to (N, D), each image for itself. Where they have no
            derivative, as a ReLU at 0, that of autograd counts.
        images: (N, ...).
        iterations: products with J^T J.
        seed: of the first directions.

    Raises:
        ValueError: if there are no images or no iterations.

    Example:
        >>> stretch = lambda images: images.flatten(1) * torch.tensor([3.0, 1.0, 0.5, 0.25])
        >>> lipschitz_constant(stretch, torch.rand(2, 1, 2, 2))
        tensor([3., 3.], dtype=torch.float64)
    """
    if not len(images) or iterations < 1:
        raise ValueError(f"got {len(images)} images and {iterations} iterations, and a measurement takes one of each")
    direction = _unit(torch.randn(images.shape, generator=seeded(seed), dtype=torch.float64).to(images))
    stretched = torch.zeros(len(images), dtype=torch.float64)
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        y = network(x)
        if not y.requires_grad:  # no image moves it
            return stretched
        u = torch.zeros_like(y, requires_grad=True)
        [pull] = torch.autograd.grad(y, x, u, create_graph=True)  # J^T u, linear in u: its derivative along v is J v
        for _ in range(iterations):
            [pushed] = torch.autograd.grad(pull, u, direction, retain_graph=True)  # (N, D)
            stretched = pushed.flatten(1).double().norm(dim=1).cpu()
            [pulled] = torch.autograd.grad(y, x, pushed, retain_graph=True)  # J^T J v
            direction = _unit(pulled)
    return stretched


def lipsim_constant(
    architecture: LipSimArchitecture, tensors: Mapping[str, Tensor], images: Tensor, iterations: int = 20, seed: int = 0
) -> Tensor:
    """Measure a LipSim's constant in float64, where the images are: that of its weights, without rounding on the way.

    One image after another: at the published size each holds a gigabyte meanwhile.

    Args:
        architecture: the sizes.
        tensors: folded, as `LipSim` takes them.
        images: (N, 3, S, S).
        iterations: as for `lipschitz_constant`.
        seed: as for `lipschitz_constant`.

    Example:
        >>> from rclip_metric.train.metrics.lipsim import folded, random_tensors
        >>> small = LipSimArchitecture(16, channels=4, depth=1, linear_depth=1, linear_inner=8, embedding=4)
        >>> measured = lipsim_constant(small, folded(small, random_tensors(small)), torch.rand(2, 3, 16, 16))
        >>> bool((measured <= 1 + TOLERANCE).all())
        True
    """
    wide = {name: tensor.detach().to(images.device).double() for name, tensor in tensors.items()}
    parts = images.double().split(1)
    return torch.cat(
        [lipschitz_constant(lambda x: embedded(architecture, x, wide), x, iterations, seed) for x in parts]
    )


def _unit(directions: Tensor) -> Tensor:
    """Bring each of (N, ...) to length 1; those of length 0 stay."""
    lengths = directions.flatten(1).norm(dim=1).view(-1, *[1] * (directions.ndim - 1))
    return directions / torch.where(lengths > 0, lengths, 1.0)
