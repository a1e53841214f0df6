"""Tensors inside `torch.func`'s transforms: `vmap` hides a dimension of them, and with it their values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def _layers(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensor, and beneath each transform the one that it stands for; the last is a plain one."""
    yield tensor
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
        yield tensor


def values_of(tensor: Tensor) -> Tensor:
    """Return the plain tensor that holds all values which a transform's tensor stands for, without a graph."""
    *_, plain = _layers(tensor)
    return plain.detach()


def is_batched(tensor: Tensor) -> bool:
    """Tell whether `vmap`, alone or beneath other transforms, hides a dimension of the tensor."""
    return any(torch._C._functorch.is_batchedtensor(layer) for layer in _layers(tensor))


def requires_grad(tensor: Tensor) -> bool:
    """Tell whether anybody differentiates by the tensor: `vmap` hides that from what it maps over."""
    if tensor.requires_grad or torch.compiler.is_compiling():
        return tensor.requires_grad
    return any(layer.requires_grad for layer in _layers(tensor))
