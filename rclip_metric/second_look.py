"""Which decisions half precision may make by itself, and which it has to leave to float32."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)
_MEASURED = {"tiny": 0.0018, "tiny-clean": 0.0026, "r-lite-f": 0.0049}
"""1.5 times the root mean square by which bfloat16 moves the difference of two distances, on drawn scenes or
photographs, whichever is more: `examples/benchmark_second_look.py`, `results/benchmark_second_look_avx512.json`."""


def slack_of(model: str | None, dtype: torch.dtype) -> float:
    """Say how far apart two distances have to be for half precision to tell which is larger; 0 in float32.

    This is 1.5 times the error that was measured on a model that ships, and for any other one bfloat16's step at 1,
    2^-7, which is above all of those. It is no bound: errors up to four times as large were seen. For an order to
    change unseen, distances have to be just beyond the slack and their error has to be one of the few that are larger.

    Args:
        model: A name in the manifest, if it is one.
        dtype: Of the weights. float16 has three bits more, and an eighth of the slack.

    Example:
        >>> slack_of("tiny", torch.bfloat16), slack_of(None, torch.bfloat16), slack_of("tiny", torch.float32)
        (0.0018, 0.0078125, 0.0)
    """
    if dtype not in HALVES:
        return 0.0
    step = torch.finfo(dtype).eps
    return step * _MEASURED.get(model or "", 2.0**-7) / torch.finfo(torch.bfloat16).eps


def undecided(margins: Tensor, slack: float) -> Tensor:
    """Say which margins (n,) are too close to zero to be believed; NaN is.

    Example:
        >>> undecided(torch.tensor([0.5, -0.001, torch.nan]), 0.0018)
        tensor([False,  True,  True])
    """
    return ~(margins.abs() >= slack)


def crowded(distances: Tensor, slack: float) -> Tensor:
    """Say which of distances (n,), in ascending order, have a neighbour that they cannot be told from: bool (n,).

    Example:
        >>> crowded(torch.tensor([0.1, 0.101, 0.2, 0.3]), 0.0018)
        tensor([ True,  True, False, False])
    """
    near = undecided(distances.diff(), slack)
    none = near.new_zeros(1)
    return torch.cat([none, near]) | torch.cat([near, none])
