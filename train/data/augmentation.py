"""Random crops and flips: functions of the seed, the step and the image, whoever reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rclip_metric.train.data.images import seeded

if TYPE_CHECKING:
    from PIL import Image

_STRETCH = math.log(4 / 3)  # of a crop's aspect ratio: from 3:4 to 4:3, as is usual for ImageNet


@dataclass(frozen=True)
class Augmentation:
    """How an image varies from one visit to the next.

    Attributes:
        scale: smallest share of the area that a crop keeps, in (0, 1]; the share is uniform from there to 1.
        flip: mirror half of the images.
        seed: of the draws.
    """

    scale: float
    flip: bool
    seed: int

    def __call__(self, image: Image.Image, step: int, key: int) -> Image.Image:
        """Crop and mirror an image as step ``step`` sees it.

        A crop's aspect ratio is drawn log-uniformly from 3:4 to 4:3 of the image's own, and cut where it would
        leave the image.
        """
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
