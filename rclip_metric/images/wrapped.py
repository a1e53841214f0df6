"""Tensors that are no plain array of numbers: of special kinds, and inside `torch.func`'s transforms."""

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


def special_kind(tensor: Tensor) -> str | None:
    """Say what kind of tensor this is if it cannot be computed with like any other, None for an ordinary one."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a tensor in the layout {str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_quantized:
        return f"a quantised tensor ({tensor.dtype})"
    if tensor.is_meta:
        return "a meta tensor, which has a shape and no values"
    if tensor.dtype.itemsize == 1 and tensor.dtype.is_floating_point:
        return f"a tensor of {str(tensor.dtype).removeprefix('torch.')}"
    return None


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
