"""Direct ascent synthesis: images at all resolutions at once, seen in many views (Fort and Whitaker 2025).

The views are those of DiffAugment (Zhao et al. 2020), colour, translation and cutout, as in the paper's appendix B-C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rclip_metric.distance import normalize
from rclip_metric.train.inversion.invert import Embed, Inversion, Watch, finite, problem
from rclip_metric.train.inversion.settings import STEPS
from rclip_metric.train.runs.seeds import seeded

SHIFT, HOLE = 1 / 8, 1 / 2  # of the side: the longest move, and the side of the square that is cut out
LAYERS = 56  # resolutions, of about equal steps up to the image's own
_EDGE = 1e-4  # how near to 0 and 1 a start may be


class Views(NamedTuple):
    """What is done to an image in each of V views, drawn from a seed and the number of the step.

    Attributes:
        colour: (V, 3) in [0, 1], of brightness, saturation and contrast.
        shift: (V, 2) pixels, down and to the right.
        hole: (V, 2), the first row and column of what is cut out, which may lie outside.
    """

    colour: Tensor
    shift: Tensor
    hole: Tensor

    @classmethod
    def draw(cls, count: int, side: int, seed: int, step: int) -> Views:
        """Draw on the CPU, whatever the device."""
        generator = seeded(seed, step)
        reach, hole = round(side * SHIFT), round(side * HOLE)
        shift = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
        centre = torch.randint(0, side + 1 - hole % 2, (count, 2), generator=generator)
        return cls(torch.rand(count, 3, generator=generator), shift, centre - hole // 2)

    def part(self, first: int, last: int) -> Views:
        """Give views first to last - 1."""
        return Views(*(drawn[first:last] for drawn in self))

    def of(self, image: Tensor) -> Tensor:
        """Make the views (V, 3, S, S) of an image (3, S, S) in [0, 1], differentiably; grey is where nothing is.

        Colours may leave [0, 1] a little, as they do in DiffAugment.
        """
        side, centred = image.shape[-1], 2 * image - 1
        bright, saturated, contrast = self.colour.to(image.device)[:, :, None, None, None].unbind(1)  # (V, 1, 1, 1)
        x = centred + (bright - 0.5)
        means = x.mean(1, keepdim=True)
        x = (x - means) * (2 * saturated) + means
        means = x.mean((1, 2, 3), keepdim=True)
        x = (x - means) * (contrast + 0.5) + means
        reach = round(side * SHIFT)
        wide = F.pad(x, (reach, reach, reach, reach))
        moved = [
            view[:, reach - down : reach - down + side, reach - right : reach - right + side]
            for view, (down, right) in zip(wide, self.shift.tolist(), strict=True)
        ]
        return (torch.stack(moved) * self._kept(side).to(image.device) + 1) / 2

    def _kept(self, side: int) -> Tensor:
        """Mark what is not cut out: (V, 1, S, S)."""
        places, length = torch.arange(side), round(side * HOLE)
        cut = (places >= self.hole[..., None]) & (places < self.hole[..., None] + length)  # (V, 2, S)
        return (~(cut[:, 0, :, None] & cut[:, 1, None, :]))[:, None].float()


def synthesise(
    encoder: Embed,
    target_embedding: Tensor,
    *,
    start: Tensor,
    seeds: Sequence[int],
    steps: int = STEPS["multi-view"],
    views: int = 32,
    learning_rate: float = 0.1,
    chunk_size: int | None = None,
    watch: Watch = lambda step, images: None,
) -> Inversion:
    """Find images of which many augmented views are near given embeddings: direct ascent synthesis.

    The image is (1 + tanh(mean of layers)) / 2, the layers at resolutions from 1 to S and brought to S pixels
    bicubically; all start at zero but the finest, which holds the start. Adam raises the mean cosine of the views and
    the target. There is no ball: what keeps the images smooth are the coarse layers and the views. The mean stands for
    the published sum, so that no step moves a pixel, before the tanh, by much more than the learning rate.

    Args:
        encoder: what is looked into.
        target_embedding: (N, D) or (1, D), of any length but zero, on the device of `start`.
        start: (N, 3, S, S) or (1, 3, S, S), see `grey`.
        seeds: one per image, of its views.
        steps: of Adam, at least 1.
        views: of each image at each step.
        learning_rate: of Adam.
        chunk_size: views per forward and backward pass; None for those of one image.
        watch: told of every step.

    Returns:
        The images after the last step, and the cosines of the images themselves, without augmentation.

    Raises:
        ValueError: as `invert` raises it, or the seeds are not one per image.

    Example:
        >>> from rclip_metric import RobustPerceptualDistance
        >>> from rclip_metric.train.inversion import grey
        >>> encoder = RobustPerceptualDistance("tiny").encoder
        >>> target = encoder(torch.zeros(1, 3, 64, 64))
        >>> found = synthesise(encoder, target, start=grey(64, [0]), seeds=[0], steps=5, views=4)
        >>> found.images.shape
        torch.Size([1, 3, 64, 64])
    """
    start, target = problem(encoder, target_embedding, start, steps)
    if len(seeds) != len(start):
        raise ValueError(f"seeds must be one per image: got {len(seeds)} for {len(start)} images")
    layers = _layers(start)
    optimiser = torch.optim.Adam(layers, lr=learning_rate)
    for step in range(steps):
        with torch.enable_grad():
            images = _image(layers)
            watch(step, images.detach())
            pairs = zip(images.detach(), target, seeds, strict=True)
            slopes = [
                _slope(encoder, image, wanted, Views.draw(views, image.shape[-1], seed, step), chunk_size or views)
                for image, wanted, seed in pairs
            ]
            optimiser.zero_grad()
            images.backward(-torch.stack(slopes))
        optimiser.step()
    with torch.no_grad():
        images = _image(layers)
        watch(steps, images)
        similarities = (normalize(encoder(images)) * target).sum(1)
    return finite(Inversion(images, similarities))


def _slope(encoder: Embed, image: Tensor, wanted: Tensor, drawn: Views, size: int) -> Tensor:
    """Give the gradient (3, S, S) of the mean cosine of views and target (D,)."""
    total, count = torch.zeros_like(image), len(drawn.shift)
    for first in range(0, count, size):
        variable = image.detach().requires_grad_()
        cosines = normalize(encoder(drawn.part(first, first + size).of(variable))) @ wanted
        total += torch.autograd.grad(cosines.sum() / count, variable)[0]
    return total


def _layers(start: Tensor) -> list[Tensor]:
    """Make the layers (N, 3, r, r), r rising to S, whose image is the start."""
    count, side = len(start), start.shape[-1]
    resolutions = list(range(1, side, max(1, side // LAYERS)))
    layers = [torch.zeros(count, 3, side, side, device=start.device) for side in resolutions]
    layers.append((len(layers) + 1) * torch.atanh(2 * start.clamp(_EDGE, 1 - _EDGE) - 1))
    return [layer.requires_grad_() for layer in layers]


def _image(layers: Sequence[Tensor]) -> Tensor:
    """Lay layers over each other: images (N, 3, S, S) in [0, 1]."""
    total, side = layers[-1], layers[-1].shape[-1]
    for layer in layers[:-1]:
        total = total + F.interpolate(layer, size=(side, side), mode="bicubic", align_corners=False)
    return (1 + torch.tanh(total / len(layers))) / 2
