"""What tells a picture from noise, in numbers: how much neighbouring pixels differ, and how fine what is seen is."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """Average how much a value differs from the one below it and from the one to its right, added up: (N,).

    Args:
        images: (N, C, H, W), of at least 2 x 2 pixels.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))  # every step to the right is 1, none down
        tensor([1.])
    """
    down, right = (images.diff(dim=dim).abs().flatten(1).mean(1) for dim in (2, 3))
    return down + right


def high_frequency(images: Tensor) -> Tensor:
    """Compute the share of an image's spectral power above half the Nyquist frequency: (N,) in [0, 1].

    The power is that of the discrete Fourier transform of each colour, added up, without the mean; a frequency counts
    as high if its length sqrt(f_x^2 + f_y^2) is above 1/4 of a cycle per pixel. White noise has a share of
    1 - pi / 16 = 0.80, a photograph little. An image of one colour has none: 0.

    Args:
        images: (N, C, H, W).

    Example:
        >>> stripes = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 1, 16, 16)  # two pixels to a cycle
        >>> high_frequency(stripes), high_frequency(torch.ones(1, 1, 16, 16))
        (tensor([1.]), tensor([0.]))
    """
    power = torch.fft.fft2(images.double()).abs().square().sum(1)  # (N, H, W)
    power[:, 0, 0] = 0
    down, right = (torch.fft.fftfreq(side, device=images.device) for side in images.shape[2:])
    fine = (down[:, None] ** 2 + right**2).sqrt() > 0.25
    total = power.sum((1, 2))
    return (power[:, fine].sum(1) / torch.where(total > 0, total, 1.0)).float()
