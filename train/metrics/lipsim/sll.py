"""SLL layers (Araujo et al. 2023, arXiv 2303.03169): 1-Lipschitz by construction, and here without their overhead.

A layer is x - 2 W^T T relu(W x + b) with T diagonal and positive. With D = 0 or 1 as each ReLU is, its Jacobian is
I - 2 W^T T D W, a symmetric matrix with eigenvalues from 1 - 2 ||sqrt(T) W||^2 to 1: the layer is 1-Lipschitz as soon
as W W^T <= T^-1 (the difference is positive semidefinite). Row sums bound a symmetric matrix: with any q,
T_i = 1 / sum_j exp(q_j - q_i) |W W^T|_ij will do.

T depends on the weights alone, and since relu(c y) = c relu(y) for c > 0 it vanishes into them:
x - V^T relu(V x + c) with V = sqrt(2 T) W and c = sqrt(2 T) b. `folded_kernel` and `folded_weight` do this once, in
float64; what the layers keep is V and c. Backward is the same layer with the gates that forward found: g - V^T D V g.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 64  # of a matrix at a time: they are still in the cache when the transposed product needs them
_LANES = 8  # channels that a processor multiplies at once
_VALUES = 2**21  # activations of one layer, 8 MB, that stay in the cache until the next layer reads them


def folded_kernel(kernel: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a convolution's constraint into its kernel (inner, channels, k, k) and bias (inner,), float32.

    (W W^T)_ij is a convolution with K_i * K_j, the correlation of two kernels over all channels and shifts, and is
    bounded by the sum of its absolute values. That is on the endless plane C; with zero padding the layer's W is
    R C E, where E puts the image on the plane and R cuts the image's part out. E E^T is a projection, so
    W W^T = R C E E^T C^T R^T <= R C C^T R^T <= R T^-1 R^T, which is T^-1: the border only ever helps.
    The published q cancels: its code puts exp(q) and exp(-q) on the same axis. q = 0 is as valid as any other.
    """
    wide = kernel.double()
    scale = kernel_scale(wide)
    return (scale[:, None, None, None] * wide).float(), (scale * bias.double()).float()


def folded_weight(weight: Tensor, bias: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a linear layer's constraint into its weight (inner, features) and bias (inner,), float32."""
    wide = weight.double()
    scale = weight_scale(wide, q.double())
    return (scale[:, None] * wide).float(), (scale * bias.double()).float()


def kernel_scale(kernel: Tensor) -> Tensor:
    """Compute sqrt(2 T) of a convolution's kernel (inner, channels, k, k): (inner,), in its precision, differentiable.

    See `folded_kernel`.
    """
    shifts = F.conv2d(kernel, kernel, padding=kernel.shape[-1] - 1)  # (inner, inner, 2k - 1, 2k - 1)
    return _scale(shifts.abs().sum((1, 2, 3)))


def weight_scale(weight: Tensor, q: Tensor) -> Tensor:
    """Compute sqrt(2 T) of a linear layer's weight (inner, features): (inner,), in its precision, differentiable."""
    gram = (weight @ weight.t()).abs()  # (inner, inner)
    return _scale((gram * (q[None, :] - q[:, None]).exp()).sum(1))


def _scale(bound: Tensor) -> Tensor:
    """Compute sqrt(2 / bound); 0 where the bound, and so the row, is 0."""
    return torch.where(bound > 0, (2 / torch.where(bound > 0, bound, 1.0)).sqrt(), 0.0)


def convolutions(
    images: Tensor, kernels: Tensor, biases: Tensor, pool: int, gates: list[Tensor] | None = None
) -> Tensor:
    """Run convolutional SLL layers on zero-padded channels, then sum over squares and divide by the side of one.

    On a CPU as many images at a time as stay in its cache (one of 224 pixels in 45 channels, 9 MB), channels last,
    updated in place.

    Args:
        images: (N, C0, H, W) with C0 at most the layers' channels.
        kernels: folded, (L, inner, C, 3, 3).
        biases: folded, (L, inner).
        pool: side of the squares; it divides H and W.
        gates: gets what `convolutions_backward` needs, for each part of the batch: bool (n, inner, H, W) of each layer.

    Returns:
        (N, C, H / pool, W / pool).
    """
    layers = _prepared(kernels, biases)
    colours, channels = images.shape[1], kernels.shape[2]
    done = []
    for part in images.split(_together(images.device, channels, images.shape[2:])):
        x = part.contiguous(memory_format=torch.channels_last)
        for index, (forward, bias, back) in enumerate(layers):
            inner = F.conv2d(x, forward[:, :colours] if index == 0 else forward, bias, padding=1)
            inner = inner[:, : kernels.shape[1]].relu()
            if gates is not None:
                gates.append(inner > 0)
            change = F.conv2d(inner, back, padding=1)
            if index == 0:
                change[:, :colours] += x
                x = change
            else:
                x.add_(change)
        done.append(F.avg_pool2d(x[:, :channels], pool, divisor_override=pool))
    return torch.cat(done)


def convolutions_backward(
    gradient: Tensor, kernels: Tensor, colours: int, pool: int, gates: Sequence[Tensor]
) -> Tensor:
    """Turn the gradient (N, C, h, w) of what `convolutions` gave into that of the images, (N, colours, H, W)."""
    layers = _prepared(kernels, None)
    size = [side * pool for side in gradient.shape[2:]]
    done = []
    for place, part in enumerate(gradient.split(_together(gradient.device, gradient.shape[1], size))):
        own = gates[place * len(layers) : (place + 1) * len(layers)]
        x = _spread(part / pool, pool, layers[0][2].shape[0])
        for index in reversed(range(len(layers))):
            forward, _, back = layers[index]
            inner = F.conv2d(x, forward, padding=1)[:, : kernels.shape[1]] * own[index]
            if index == 0:
                done.append(x[:, :colours] + F.conv2d(inner, back[:colours], padding=1))
            else:
                x.add_(F.conv2d(inner, back, padding=1))
    return torch.cat(done)


def linears(x: Tensor, weights: Tensor, biases: Tensor, gates: list[Tensor] | None = None) -> Tensor:
    """Run linear SLL layers: x (N, F), folded weights (L, inner, F) and biases (L, inner) -> (N, F).

    A few rows at a time, both products with them: every weight comes from memory once.
    """
    for weight, bias in zip(weights, biases, strict=True):
        result = x.clone()
        for rows, offset in zip(_rows(weight), _rows(bias), strict=True):
            inner = torch.addmm(offset, x, rows.t()).relu_()  # (N, rows)
            if gates is not None:
                gates.append(inner > 0)
            result.addmm_(inner, rows, alpha=-1)
        x = result
    return x


def linears_backward(gradient: Tensor, weights: Tensor, gates: Sequence[Tensor]) -> Tensor:
    """Turn the gradient (N, F) of what `linears` gave into that of its input."""
    ends = len(gates)
    for weight in reversed(weights.unbind()):
        blocks = _rows(weight)
        result = gradient.clone()
        for rows, gate in zip(blocks, gates[ends - len(blocks) : ends], strict=True):
            result.addmm_((gradient @ rows.t()).mul_(gate), rows, alpha=-1)
        gradient, ends = result, ends - len(blocks)
    return gradient


def _rows(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.split(_ROWS if tensor.device.type == "cpu" else len(tensor))


def _together(device: torch.device, channels: int, size: Sequence[int]) -> int:
    """Count the images that go through all layers together; elsewhere than on a CPU all of them."""
    return max(1, _VALUES // (channels * size[0] * size[1])) if device.type == "cpu" else 2**31


def _prepared(kernels: Tensor, biases: Tensor | None) -> list[tuple[Tensor, Tensor | None, Tensor]]:
    """Prepare for each layer its kernel, bias, and minus its transpose, channels last.

    On a CPU with zeros up to multiples of 8 channels, where odd ones would leave lanes empty.
    """
    inner, channels = kernels.shape[1:3]
    lanes = _LANES if kernels.device.type == "cpu" else 1
    more, wider = -inner % lanes, -channels % lanes
    layers = []
    for index, kernel in enumerate(kernels):
        forward = F.pad(kernel, (0, 0, 0, 0, 0, wider, 0, more))  # (inner + more, channels + wider, 3, 3)
        back = F.pad(
            -kernel.flip(2, 3).transpose(0, 1), (0, 0, 0, 0, 0, 0, 0, wider)
        )  # (channels + wider, inner, 3, 3)
        bias = None if biases is None else F.pad(biases[index], (0, more))
        last = torch.channels_last
        layers.append((forward.contiguous(memory_format=last), bias, back.contiguous(memory_format=last)))
    return layers


def _spread(small: Tensor, pool: int, channels: int) -> Tensor:
    """Repeat (N, C, h, w) over squares: (N, channels, h * pool, w * pool), channels last, zero beyond C."""
    n, c, h, w = small.shape
    wide = small.new_zeros(n, h, pool, w, pool, channels)
    wide[..., :c] = small.permute(0, 2, 3, 1)[:, :, None, :, None]
    return wide.view(n, h * pool, w * pool, channels).permute(0, 3, 1, 2)
