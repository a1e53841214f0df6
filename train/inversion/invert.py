"""Images from embeddings: what does a metric take for the same as something of which only the embedding is known?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rclip_metric.distance import normalize
from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.base import LossFunction
from rclip_metric.train.attacks.losses import targeted_embedding_distance
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.inversion.settings import STEPS, InversionSettings
from rclip_metric.train.runs.seeds import seeded

Embed = Callable[[Tensor], Tensor]
"""Images (N, 3, S, S) in [0, 1] to embeddings (N, D) of any length, differentiably: an `Encoder`, or `Metric.embed`."""

Watch = Callable[[int, Tensor], object]
"""Called before each step with its number, from 0, and the images (N, 3, S, S) there; and once after the last."""


class Inversion(NamedTuple):
    """What was found for N targets.

    Attributes:
        images: (N, 3, S, S) in [0, 1].
        similarities: (N,), the cosine of each image's embedding and its target.

    Example:
        >>> Inversion(torch.zeros(1, 3, 8, 8), torch.tensor([0.5])).similarities
        tensor([0.5000])
    """

    images: Tensor
    similarities: Tensor


def grey(side: int, seeds: Sequence[int], noise: float = 8 / 255) -> Tensor:
    """Draw the images that inversion starts from, 0.5 + uniform noise: (N, 3, side, side), one per seed.

    Drawn on the CPU, each from its own seed: a seed means the same start on every device and in every batch.

    Args:
        side: pixels.
        seeds: one per image.
        noise: half the noise's width.

    Example:
        >>> start = grey(8, seeds=[0, 1])
        >>> start.shape, bool(((start - 0.5).abs() <= 8 / 255).all())
        (torch.Size([2, 3, 8, 8]), True)
    """
    drawn = [torch.rand(3, side, side, generator=seeded(seed)) for seed in seeds]
    return 0.5 + (2 * torch.stack(drawn) - 1) * noise


def invert(
    encoder: Embed,
    target_embedding: Tensor,
    *,
    start: Tensor,
    ball: LpBall | None = None,
    steps: int = STEPS["apgd"],
    chunk_size: int | None = None,
    watch: Watch = lambda step, images: None,
) -> Inversion:
    """Find images with given embeddings by APGD (paper, eq. 9, and of a text's embedding eq. 8).

    min over ||delta||_2 <= eps of ||u(z + delta) - t||_2^2, with z + delta in [0, 1], u the unit embedding, t the
    target scaled to unit length and z the start; on unit vectors that is 2 - 2 cos. The first step is 2 eps long.

    Args:
        encoder: what is looked into.
        target_embedding: t, (N, D) or (1, D), of any length but zero, on the device of `start`.
        start: z, (N, 3, S, S), or (1, 3, S, S) for the same one everywhere: see `grey`. Several starts and one target
            are several seeds at once.
        ball: around the start; None for the paper's, an l_2 radius of 100 at 224 pixels.
        steps: iterations, at least 1.
        chunk_size: images per forward and backward pass; None for all at once.
        watch: told of every step, chunk by chunk.

    Returns:
        The best point of each. What is found for an image does not depend on the others, beyond float rounding.

    Raises:
        ValueError: a target is not finite, has no direction or another dimension than the encoder's embeddings, there
            are no steps, shapes do not fit, or the encoder gives nothing finite.

    Example:
        >>> from rclip_metric import RobustPerceptualDistance
        >>> encoder = RobustPerceptualDistance("tiny").encoder
        >>> target = encoder(torch.zeros(1, 3, 64, 64))
        >>> found = invert(encoder, target, start=grey(64, seeds=[0, 1]), steps=20)
        >>> found.images.shape, bool((found.similarities > 0.9).all())
        (torch.Size([2, 3, 64, 64]), True)
    """
    start, target = problem(encoder, target_embedding, start, steps)
    ball = ball or InversionSettings().ball(start.shape[-1])
    size = chunk_size or len(start)
    images, similarities = [], []
    for points, wanted in zip(start.split(size), target.split(size), strict=True):
        found = apgd(_loss(encoder, wanted, watch), points, ball, steps)
        images.append(found.images)
        similarities.append(1 + found.loss / 2)
    return finite(Inversion(torch.cat(images), torch.cat(similarities)))


def _loss(encoder: Embed, wanted: Tensor, watch: Watch) -> LossFunction:
    """Make the loss that APGD raises, -||u(x) - t||_2^2 (n,), for targets (n, D)."""
    numbers = itertools.count()

    def loss(images: Tensor, indices: Tensor) -> Tensor:
        watch(next(numbers), images.detach())
        return targeted_embedding_distance(normalize(encoder(images)), wanted[indices][:, None])

    return loss


def problem(encoder: Embed, target: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Check targets and starts, and match them: (N, 3, S, S) and (N, D) of unit length."""
    if steps < 1:
        raise ValueError(f"inversion needs at least 1 step, and has {steps}")
    if start.ndim != 4 or not len(start):
        raise ValueError(f"start must be (N, 3, S, S), N at least 1, and it is {tuple(start.shape)}: see grey")
    if target.ndim != 2 or not len(target):
        raise ValueError(f"target embeddings must be (N, D), N at least 1, and they are {tuple(target.shape)}")
    if not (target.is_floating_point() and bool(target.isfinite().all())):
        raise ValueError("the target embedding holds NaN or infinity, or no floating-point numbers: compute it anew")
    with torch.no_grad():
        dimension = encoder(start[:1]).shape[1]
    if target.shape[1] != dimension:
        raise ValueError(
            f"the target embedding has {target.shape[1]} numbers, and those of this model have {dimension}: it is "
            "another model's"
        )
    target = normalize(target)
    if not bool((target.norm(dim=1) > 0.5).all()):
        raise ValueError("a target embedding of length zero has no direction: compute it anew")
    count = max(len(start), len(target))
    if {len(start), len(target)} - {1, count}:
        raise ValueError(f"targets and starts must be equally many, or one of them 1: got {len(target)}, {len(start)}")
    return start.expand(count, -1, -1, -1), target.expand(count, -1)


def finite(found: Inversion) -> Inversion:
    """Give back what was found; ValueError where the encoder gave nothing that is finite."""
    if not bool(found.similarities.isfinite().all()):
        raise ValueError("the model gave no finite embedding for any image on the way: its weights may be damaged")
    return found
