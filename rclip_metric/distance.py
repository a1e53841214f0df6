"""From embeddings to distances: the formula, in float32, and finite wherever the embeddings are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# Embeddings shorter than 1e-12 have no direction that float32 could tell; squared as it is compared squared.
_SHORTEST_SQUARED = 1e-24


def normalize(embeddings: Tensor) -> Tensor:
    """Scale embeddings to unit length, in float32 (float64 stays), also inside autocast.

    An embedding of length zero stays zero and passes its gradient on unscaled, so that no division makes it NaN. One
    that holds a NaN, or whose length float32 cannot hold, becomes NaN as a whole.

    Args:
        embeddings: (..., D), any floating dtype.

    Returns:
        (..., D) of length 1 along the last dimension.
    """
    with full_precision(embeddings.device):
        wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        squared = wide.square().sum(-1, keepdim=True)
        known = torch.where(squared < torch.inf, squared, torch.nan)
        return wide / torch.where(known <= _SHORTEST_SQUARED, 1.0, known).sqrt()


def distance_between(u: Tensor, v: Tensor, squared: bool = False) -> Tensor:
    """Compute the distance of unit embeddings: ||u - v|| / sqrt(2), or its square 1 - <u, v>.

    Computed from u - v, since 1 - <u, v> cancels where images are alike. The slope of the square root is unbounded
    at u = v; the gradient there is zero. NaN stays NaN.

    Args:
        u: (..., D) of unit length.
        v: (..., D) of unit length, broadcast against u.
        squared: Return the squared distance.

    Returns:
        (...) in [0, sqrt(2)], or in [0, 2] if squared; float32 or wider.
    """
    with full_precision(u.device):
        wide = torch.promote_types(torch.promote_types(u.dtype, v.dtype), torch.float32)
        return length(u.to(wide) - v.to(wide), squared)


def length(difference: Tensor, squared: bool) -> Tensor:
    """Compute the distance (...) from u - v (..., D); rounding does not carry it past its maximum."""
    half = (0.5 * difference.square().sum(-1)).clamp(max=2.0)
    if squared:
        return half
    apart = half != 0  # NaN is not 0
    return torch.where(apart, torch.where(apart, half, 1.0).sqrt(), 0.0)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Turn autocast off. On other devices it has nothing of the head on its lists, or does not exist."""
    return torch.autocast(device.type, enabled=False) if device.type in {"cpu", "cuda", "xpu"} else nullcontext()
