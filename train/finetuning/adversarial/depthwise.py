"""Weight gradients of depthwise convolutions on a CPU, where the library's own cost more than the rest of a block.

A filter meets its own channel alone, y_nc = w_c * x_nc, so that its gradient is a correlation of two images:

    dL/dw_c = sum over n of  x_nc * dL/dy_nc

a depthwise convolution again, of x with the outputs' gradient as its filters and n C groups. Forward convolutions are
vectorised over such groups, and backward ones by their weights are not: of a ConvNeXt-B's 7x7 filters this takes a
third to a thirtieth of the processor time, and differs by float rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@contextlib.contextmanager
def fast_depthwise_gradients(module: nn.Module) -> Iterator[None]:
    """Differentiate a module's depthwise convolutions by their weights as above, for passes made here.

    Those on a CPU that keep the size of the image, without stride or dilation, and whose weights want gradients;
    outputs, and all other gradients, are the same to the bit. A second derivative is refused.

    Args:
        module: What runs; outside of this context it is as it was.

    Example:
        >>> convolution = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        >>> images = torch.rand(2, 4, 8, 8)
        >>> (usual,) = torch.autograd.grad(convolution(images).square().sum(), convolution.weight)
        >>> with fast_depthwise_gradients(convolution):
        ...     (fast,) = torch.autograd.grad(convolution(images).square().sum(), convolution.weight)
        >>> torch.allclose(fast, usual, rtol=1e-4)
        True
    """
    chosen = [part for part in module.modules() if isinstance(part, nn.Conv2d) and _fits(part)]
    for part in chosen:
        vars(part)["forward"] = partial(_convolved, part)
    try:
        yield
    finally:
        for part in chosen:
            del vars(part)["forward"]


def _fits(part: nn.Conv2d) -> bool:
    same_size = part.padding == tuple(size // 2 for size in part.kernel_size) and all(k % 2 for k in part.kernel_size)
    plain = type(part) is nn.Conv2d and part.padding_mode == "zeros" and {*part.stride, *part.dilation} == {1}
    depthwise = part.groups == part.in_channels == part.out_channels
    return depthwise and plain and same_size and part.weight.requires_grad and part.weight.device.type == "cpu"


def _convolved(part: nn.Conv2d, features: Tensor) -> Tensor:
    convolved: Tensor = _Depthwise.apply(features, part.weight, part.bias)
    return convolved


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution (N, C, H, W) -> (N, C, H, W) with filters (C, 1, K, L), in autocast's dtype if any."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else features.dtype
        pixels, filters = features.to(dtype), weight.to(dtype)
        ctx.save_for_backward(pixels, filters)
        ctx.dtypes = features.dtype, weight.dtype, None if bias is None else bias.dtype
        padding = [size // 2 for size in weight.shape[2:]]
        offset = None if bias is None else bias.to(dtype)
        return F.conv2d(pixels, filters, offset, padding=padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        pixels, filters = ctx.saved_tensors
        of_features, of_weight, of_bias = ctx.dtypes
        count, channels, height, width = pixels.shape
        padding = [size // 2 for size in filters.shape[2:]]
        by_features = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            geometry = [1, 1], padding, [1, 1], False, [0, 0], channels
            wanted = [True, False, False]
            by_features = torch.ops.aten.convolution_backward(gradient, pixels, filters, None, *geometry, wanted)[0]
            by_features = by_features.to(of_features)
        if ctx.needs_input_grad[1]:
            images = pixels.reshape(1, count * channels, height, width)
            outputs = gradient.reshape(count * channels, 1, height, width)
            each = F.conv2d(images, outputs, padding=padding, groups=count * channels)  # (1, N C, K, L)
            by_weight = each.view(count, *filters.shape).sum(0, dtype=of_weight)
        if of_bias is not None and ctx.needs_input_grad[2]:
            by_bias = gradient.sum((0, 2, 3), dtype=of_bias)
        return by_features, by_weight, by_bias
