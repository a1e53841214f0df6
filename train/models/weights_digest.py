"""Which weights an encoder has, for those who write them: none that nobody should publish."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rclip_metric.weights import short_digest, tensors_digest


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Compute `tensors:` and 12 hex digits that tell these weights from others, see `tensors_digest`.

    Raises:
        ValueError: a weight is NaN or infinite, which nobody should publish.

    Example:
        >>> one, other = {"a": torch.zeros(2), "b": torch.ones(2)}, {"b": torch.ones(2), "a": torch.zeros(2)}
        >>> weights_digest(one) == weights_digest(other) != weights_digest({"a": torch.zeros(2)})
        True
    """
    for key in sorted(state):
        if not torch.isfinite(state[key]).all():
            raise ValueError(f"{key} holds NaN or infinity: look at the log of the run, and without --half")
    return short_digest(tensors_digest(state))
