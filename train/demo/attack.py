"""An image changed so little that nobody sees it, and so that a metric sees another image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rclip_metric import RobustPerceptualDistance
from rclip_metric.train.attacks import LpBall, apgd, embedding_distance
from rclip_metric.train.runs.seeds import sample_seed


@dataclass(frozen=True)
class Attacked:
    """What an attack found.

    Attributes:
        levels: The changed image, uint8 (3, H, W).
        moved: Distance of the image to its changed self.
        before: Distance of the image to the other one.
        after: Distance of the changed image to the other one.
        largest: Levels of 255 by which a value changed most.

    Example:
        >>> Attacked(torch.zeros(3, 64, 64, dtype=torch.uint8), moved=0.9, before=0.2, after=0.8, largest=4).moved
        0.9
    """

    levels: Tensor
    moved: float
    before: float
    after: float
    largest: int


def attack_image(
    metric: RobustPerceptualDistance, image: Tensor, other: Tensor, *, levels: int = 4, steps: int = 10, seed: int = 0
) -> Attacked:
    """Move an image away from itself, as a metric sees it, by APGD in an l_inf ball.

    What is found is rounded to the 256 levels of a file before it is judged: centre and radius are whole levels, so
    that rounding stays in the ball.

    Args:
        metric: Gives gradients.
        image: (3, H, W), whole levels in [0, 1].
        other: (3, H', W'), what the image is compared with.
        levels: Radius of the ball, of 255.
        steps: Gradient steps.
        seed: Of the random start.

    Example:
        >>> metric = RobustPerceptualDistance("tiny")
        >>> gray = torch.full((3, 64, 64), 128 / 255)
        >>> found = attack_image(metric, gray, gray, steps=2)
        >>> found.largest <= 4, found.before, found.moved == found.after > 0
        (True, 0.0, True)
    """
    images = image[None]
    with torch.no_grad():
        clean = metric.embed(images)
    ball = LpBall("linf", levels / 255)
    found = apgd(
        lambda points, alive: embedding_distance(metric.embed(points), clean[alive]),
        images,
        ball,
        steps,
        start=ball.start(images, [sample_seed(seed, "0")]),
    )
    rounded = (found.images * 255).round().clamp(0, 255).to(torch.uint8)  # (1, 3, H, W)
    with torch.no_grad():
        moved, after = metric(rounded / 255, images), metric(rounded / 255, other[None])
        before = metric(images, other[None])
    largest = int(((rounded / 255 - images).abs().max() * 255).round())
    return Attacked(rounded[0], moved.item(), before.item(), after.item(), largest)
