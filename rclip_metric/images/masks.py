"""Masks: where the pixels of an image count."""

from __future__ import annotations

import torch
from torch import Tensor

from rclip_metric.images.wrapped import values_of

_GRAY = 0.5


def masked(images: Tensor, mask: Tensor) -> Tensor:
    """Replace what is outside a mask by gray: m x + (1 - m) / 2.

    Two images that are masked alike are identical outside, so that nothing there tells them apart, and neither they
    nor a gradient hold anything of the pixels where the mask is 0.

    Args:
        images: (N, 3, H, W) in [0, 1].
        mask: (N, 1, H, W) or (1, 1, H, W) in [0, 1], or bool; 1 where pixels count. (H, W) and (1, H, W) count as a
            batch of one.

    Returns:
        (N, 3, H, W).

    Raises:
        ValueError: The mask has another size, values outside [0, 1], or is 0 everywhere on an image.

    Example:
        >>> left = torch.tensor([[1.0, 0.0]])  # of two pixels the left one
        >>> masked(torch.tensor([0.2, 0.9]).expand(1, 3, 1, 2), left)[0, 0]
        tensor([[0.2000, 0.5000]])
    """
    height, width = images.shape[2:]
    given = tuple(mask.shape)
    if mask.ndim == 2 or (mask.ndim == 3 and mask.shape[0] == 1):
        mask = mask.reshape(1, 1, *mask.shape[-2:])
    paired = mask.shape[0] == images.shape[0] or 1 in (mask.shape[0], images.shape[0])
    if mask.ndim != 4 or mask.shape[1:] != (1, height, width) or not paired:
        count = max(1, images.shape[0])
        raise ValueError(f"mask must be ({count}, 1, {height}, {width}) or (1, 1, {height}, {width}), got {given}")
    mask = mask.to(images.device, images.dtype)
    if not torch.compiler.is_compiling():
        values = values_of(mask)
        if not bool(((values >= 0) & (values <= 1)).all()):
            low, high = values.min().item(), values.max().item()
            raise ValueError(f"mask must be in [0, 1], got values from {low:.4g} to {high:.4g}")
        empty = (values.flatten(1).amax(1) == 0).nonzero()
        if len(empty):
            raise ValueError(f"mask {int(empty[0])} is 0 everywhere: nothing of the image would count")
    return mask * images + (1 - mask) * _GRAY
