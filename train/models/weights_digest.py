"""Which weights an encoder has: a digest of the tensors themselves, whatever file they are in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Compute `tensors:` and 12 hex digits that tell these weights from others, whatever file they are in.

    A sha256 over the tensors in the order of their names: of each its name, dtype and shape, and its bytes.

    Raises:
        ValueError: a weight is NaN or infinite, which nobody should publish.

    Example:
        >>> one, other = {"a": torch.zeros(2), "b": torch.ones(2)}, {"b": torch.ones(2), "a": torch.zeros(2)}
        >>> weights_digest(one) == weights_digest(other) != weights_digest({"a": torch.zeros(2)})
        True
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{key} holds NaN or infinity: look at the log of the run, and without --half")
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"tensors:{digest.hexdigest()[:12]}"
