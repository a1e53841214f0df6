"""Random crops, flips, damage and mixtures: functions of the seed, the step and the image, whoever reads it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rclip_metric.train.data.photo_changes import Blur, Jpeg, Light, Noise
from rclip_metric.train.runs.seeds import seeded

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_DAMAGED_SIDE = 224  # pixels of the shorter side, at most, before damage: in a larger picture no network would see it
_STRETCH = math.log(4 / 3)  # of a crop's aspect ratio: from 3:4 to 4:3, as is usual for ImageNet


@dataclass(frozen=True)
class Augmentation:
    """How an image varies from one visit to the next.

    Attributes:
        scale: smallest share of the area that a crop keeps, in (0, 1]; the share is uniform from there to 1.
        flip: mirror half of the images.
        seed: of the draws.
        mixup: share of the images that are mixed with another one.
        damage: share of the images that get noise, blur, JPEG's artefacts or other light, of any strength.

    Example:
        >>> from PIL import Image
        >>> augmentation = Augmentation(scale=0.25, flip=True, seed=0)
        >>> image = Image.new("RGB", (100, 80))
        >>> augmentation(image, step=3, key=17).size == augmentation(image, step=3, key=17).size  # whoever reads it
        True
    """

    scale: float
    flip: bool
    seed: int
    mixup: float = 0.0
    damage: float = 0.0

    def __call__(self, image: Image.Image, step: int, key: int) -> Image.Image:
        """Crop, mirror and damage an image as step `step` sees it.

        A crop's aspect ratio is drawn log-uniformly from 3:4 to 4:3 of the image's own, and cut where it would
        leave the image.
        """
        image = self._seen(image, step, key)
        return self._damaged(image, step, key) if self.damage else image

    def _seen(self, image: Image.Image, step: int, key: int) -> Image.Image:
        from PIL import Image

        share, stretch, across, down, mirrored = torch.rand(5, generator=seeded(self.seed, 2, step, key)).tolist()
        if self.scale < 1:
            area = self.scale + (1 - self.scale) * share
            ratio = math.exp((2 * stretch - 1) * _STRETCH / 2)
            width = max(1, min(image.width, round(image.width * math.sqrt(area) * ratio)))
            height = max(1, min(image.height, round(image.height * math.sqrt(area) / ratio)))
            left, top = int(across * (image.width - width + 1)), int(down * (image.height - height + 1))
            image = image.crop((left, top, left + width, top + height))
        if self.flip and mirrored < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _damaged(self, image: Image.Image, step: int, key: int) -> Image.Image:
        chosen, kind, strength, *more = torch.rand(6, generator=seeded(self.seed, 4, step, key)).tolist()
        if chosen >= self.damage:
            return image
        if (shorter := min(image.size)) > _DAMAGED_SIDE:
            width, height = (max(1, round(side * _DAMAGED_SIDE / shorter)) for side in image.size)
            image = image.resize((width, height))
        if kind < 0.25:
            return Noise(0.2 * strength, int(2**31 * more[0]))(image)
        if kind < 0.5:
            return Blur(0.02 * strength)(image)
        if kind < 0.75:
            return Jpeg(round(2 * 40**strength))(image)  # 2 to 80; the lower, the more of them
        stops, warmth, saturation = 2 * strength - 1, 0.6 * more[0] - 0.3, 0.5 + more[1]
        return Light(stops, warmth, saturation, hue=240 * more[2] - 120)(image)

    def mixed(self, image: Tensor, other: Callable[[], Tensor], step: int, key: int) -> Tensor:
        """Mix an image with another one as step `step` sees it: w image + (1 - w) other, w uniform in [0, 1].

        Mixup (Zhang et al. 2018) without its labels: what the original network says of the mixture is the target, as in
        distillation (Beyer et al. 2022), so a few images make many.

        Args:
            image: (3, S, S) in [0, 1].
            other: reads the other one, (3, S, S); only called where it is needed.
            step: of the run.
            key: of the image.
        """
        chosen, weight = torch.rand(2, generator=seeded(self.seed, 3, step, key)).tolist()
        return torch.lerp(other(), image, weight) if chosen < self.mixup else image
