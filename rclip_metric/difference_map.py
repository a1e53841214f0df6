"""Where two images differ, as a metric sees it: a number for every pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rclip_metric.distance import distance_between, normalize
from rclip_metric.encoder import Encoder
from rclip_metric.encoder.local_features import local_features
from rclip_metric.images.resizing import resize_images, seen_by

Method = Literal["features", "gradient", "smoothed", "integrated"]
METHODS: tuple[Method, ...] = get_args(Method)

_NOISE = 0.05
_WINDOW = 1 / 32
"""Side of the squares that `smoothed` averages over, as a share of the shorter side."""


def difference_map(encoder: Encoder, x: Tensor, y: Tensor, method: Method = "features", steps: int = 16) -> Tensor:
    """Compute by how much each pixel of x is seen to differ from y; see `RobustPerceptualDistance.difference_map`.

    Args:
        encoder: Frozen.
        x: (N, 3, H, W) in [0, 1].
        y: (N, 3, H', W') in [0, 1]; of x's size for all methods but "features".
        method: One of `METHODS`.
        steps: Passes of "smoothed" and "integrated".

    Returns:
        (N, H, W), float32, not negative.

    Raises:
        ValueError: The method is unknown, the sizes differ where they must not, or steps is below 1.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if method == "features":
        size = encoder.chunk_size or len(x)
        return torch.cat(
            [_by_features(encoder, one, other) for one, other in zip(x.split(size), y.split(size), strict=True)]
        )
    if x.shape != y.shape:
        sizes = f"{x.shape[2]}x{x.shape[3]} and {y.shape[2]}x{y.shape[3]}"
        raise ValueError(f'the images must have one size for method {method!r}, got {sizes}: use "features"')
    if method == "integrated":
        return integrated_gradients(encoder, x, y, steps).abs()
    if method == "gradient":
        return ((x - y) * _slope(encoder, y)(x)).sum(1).abs()
    slope, total = _slope(encoder, y), torch.zeros_like(x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        noise = torch.randn(1, *x.shape[1:], generator=generator).to(x.device)
        total += slope((x + _NOISE * noise).clamp(0, 1))
    apart = ((x - y) * total / steps).sum(1, keepdim=True).abs()
    side = 2 * round(_WINDOW * min(x.shape[2:]) / 2) + 1
    return F.avg_pool2d(apart, side, 1, side // 2, count_include_pad=False)[:, 0]


def integrated_gradients(encoder: Encoder, x: Tensor, y: Tensor, steps: int = 16) -> Tensor:
    """Share the squared distance 1 - cos out among the pixels of x: integrated gradients (Sundararajan et al. 2017).

    A(p) = (x - y)(p) * integral over t from 0 to 1 of the gradient of 1 - cos(f(z), f(y)) at z = y + t (x - y), summed
    over the colours of p, by the midpoint rule. The sum over all pixels is the squared distance, up to the rule's
    error; a pixel whose change brings the images closer has a negative share.

    Args:
        encoder: Frozen.
        x: (N, 3, H, W) in [0, 1].
        y: (N, 3, H, W) in [0, 1].
        steps: Points on the path, each a forward and a backward pass.

    Returns:
        (N, H, W), float32.

    Example:
        >>> from rclip_metric import RobustPerceptualDistance
        >>> metric = RobustPerceptualDistance("tiny", squared=True)
        >>> x, y = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> shares = integrated_gradients(metric.encoder, x, y, steps=32)
        >>> abs(shares.sum() / metric(x, y).sum() - 1) < 0.02
        tensor(True)
    """
    slope, total = _slope(encoder, y), torch.zeros_like(x)
    for step in range(steps):
        total += slope(y + (step + 0.5) / steps * (x - y))
    return ((x - y) * total / steps).sum(1)


def _slope(encoder: Encoder, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the gradient of 1 - cos(f(z), f(y)) by z."""
    with torch.no_grad():
        fixed = normalize(encoder(y))

    def slope(points: Tensor) -> Tensor:
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            squared = distance_between(normalize(encoder(points)), fixed, squared=True)
            (found,) = torch.autograd.grad(squared.sum(), points)
        return found

    return slope


def _by_features(encoder: Encoder, x: Tensor, y: Tensor) -> Tensor:
    """Average 1 - cos over the levels of local features, and lay it over x."""
    seen = [resize_images(images, encoder.preprocessing, encoder.resize) for images in (x, y)]
    levels = zip(*(local_features(encoder, images) for images in seen), strict=True)
    place = seen_by(encoder.preprocessing, encoder.resize, x.shape[2], x.shape[3]).to(x.device)  # (H, W, 2)
    inside = (place.abs() <= 1).all(2)
    grid = place.expand(len(x), -1, -1, -1)
    maps = []
    for one, other in levels:
        apart = distance_between(_directions(one), _directions(other), squared=True)  # (N, h, w)
        maps.append(F.grid_sample(apart[:, None], grid, padding_mode="border", align_corners=False)[:, 0])
    return torch.stack(maps).mean(0) * inside


def _directions(features: Tensor) -> Tensor:
    return normalize(features.permute(0, 2, 3, 1))  # (N, h, w, C)
