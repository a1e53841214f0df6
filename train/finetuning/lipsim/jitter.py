"""Copies of images in other colours, and mirrored ones: functions of the seed, the step and the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rclip_metric.train.finetuning.lipsim.config import DistilConfig
from rclip_metric.train.runs.seeds import seeded

_GREY = (0.299, 0.587, 0.114)  # of red, green and blue in a grey level
# What a generator of an image is for; `Augmentation` has 2 to 4.
_MIRRORED, _JITTERED = 5, 6


def mirrored(images: Tensor, keys: Sequence[int], step: int, config: DistilConfig) -> Tensor:
    """Say which of the originals (N, 3, S, S) of a step are mirrored: bool (N,), on the CPU.

    Example:
        >>> sides = mirrored(torch.rand(4, 3, 8, 8), keys=[3, 1, 4, 5], step=0, config=DistilConfig(flip=1.0))
        >>> sides.tolist()
        [True, True, True, True]
    """
    drawn = [torch.rand(1, generator=seeded(config.seed, _MIRRORED, step, key)) for key in keys]
    return torch.cat(drawn) < config.flip if drawn else torch.zeros(len(images), dtype=torch.bool)


def turned(images: Tensor, which: Tensor) -> Tensor:
    """Mirror those of images (N, 3, S, S) that `which` (N,) says, left to right.

    Example:
        >>> images = torch.arange(4.0).view(2, 1, 1, 2)
        >>> turned(images, torch.tensor([True, False])).flatten()
        tensor([1., 0., 2., 3.])
    """
    return torch.where(which.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def jittered(images: Tensor, keys: Sequence[int], step: int, config: DistilConfig) -> Tensor:
    """Copy images as the published reader does: mirrored, then ColorJitter, then without colours, each at random.

    The four changes of ColorJitter come in an order that is drawn for each image.

    Args:
        images: (N, 3, S, S) in [0, 1].
        keys: N numbers, one per image.
        step: of the run.
        config: probabilities and strengths.

    Example:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> copies = jittered(images, keys=[17, 4], step=3, config=DistilConfig())
        >>> torch.equal(copies[1:], jittered(images[1:], keys=[4], step=3, config=DistilConfig()))  # whoever is beside
        True
    """
    if not len(images):
        return images
    generators = [seeded(config.seed, _JITTERED, step, key) for key in keys]
    drawn = torch.stack([torch.rand(7, generator=generator) for generator in generators])  # (N, 7)
    orders = torch.stack([torch.randperm(4, generator=generator) for generator in generators])  # (N, 4)
    images = turned(images, drawn[:, 0] < config.flip)
    signed = 2 * drawn[:, 3:].to(images) - 1
    changes: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = [
        (brightened, 1 + config.brightness * signed[:, 0]),
        (contrasted, 1 + config.contrast * signed[:, 1]),
        (saturated, 1 + config.saturation * signed[:, 2]),
        (hue_turned, config.hue * signed[:, 3]),
    ]
    chosen = drawn[:, 1] < config.jitter
    images = images.clone()
    for place in range(4):
        for kind, (change, by) in enumerate(changes):
            some = (chosen & (orders[:, place] == kind)).nonzero().flatten().to(images.device)
            if len(some):
                images[some] = change(images[some], by[some].view(-1, 1, 1, 1))
    colourless = (drawn[:, 2] < config.grey).to(images.device).view(-1, 1, 1, 1)
    return torch.where(colourless, greyed(images), images)


def greyed(images: Tensor) -> Tensor:
    """Give the grey levels of images (N, 3, H, W): (N, 1, H, W).

    Example:
        >>> greyed(torch.ones(1, 3, 1, 1)).item()
        1.0
    """
    return (images * images.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)


def brightened(images: Tensor, factor: Tensor) -> Tensor:
    """Scale all values: (N, 3, H, W) and (N, 1, 1, 1).

    Example:
        >>> brightened(torch.full((1, 1, 1, 1), 0.5), torch.tensor(1.5)).item()
        0.75
    """
    return (images * factor).clamp(0, 1)


def contrasted(images: Tensor, factor: Tensor) -> Tensor:
    """Scale what differs from the image's mean grey: (N, 3, H, W) and (N, 1, 1, 1)."""
    mean = greyed(images).mean((2, 3), keepdim=True)
    return torch.lerp(mean, images, factor).clamp(0, 1)


def saturated(images: Tensor, factor: Tensor) -> Tensor:
    """Scale what differs from each pixel's grey: (N, 3, H, W) and (N, 1, 1, 1)."""
    return torch.lerp(greyed(images).expand_as(images), images, factor).clamp(0, 1)


def hue_turned(images: Tensor, by: Tensor) -> Tensor:
    """Turn the hue of images (N, 3, H, W) by a share of a circle (N, 1, 1, 1), in HSV: value and saturation stay.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        >>> hue_turned(red, torch.tensor(1 / 3)).flatten()  # green
        tensor([0., 1., 0.])
    """
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    spread = value - least
    safe = torch.where(spread > 0, spread, 1.0)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = sixth[:, None] / 6 + by  # (N, 1, H, W)
    # A channel is the value less the spread times how far the hue is from its own two sixths of the circle.
    offsets = images.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (offsets + 6 * hue).remainder(6)
    return value[:, None] - spread[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)
