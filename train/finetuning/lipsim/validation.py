"""What a student is worth while it is trained: its judgements of held-out triplets, and how far they are proven."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rclip_metric.train.data.triplet_images import TripletImages
from rclip_metric.train.data.unreadable import Losses
from rclip_metric.train.evaluation.certificates import RADII
from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture
from rclip_metric.train.metrics.lipsim.model import LipSim, LipSimMetric
from rclip_metric.train.runs.precision import full_float32

PUBLISHED_SIZE = 224
"""Side of the images, in pixels, that the radii of LipSim's table belong to."""
_TOGETHER = 32  # triplets of a pass: nothing is kept for a gradient


def proven(
    architecture: LipSimArchitecture,
    tensors: Mapping[str, Tensor],
    triplets: TripletImages,
    device: torch.device,
    *,
    max_unreadable: float = 1.0,
) -> dict[str, float]:
    """Judge triplets as the evaluation does, and certify each decision.

    Args:
        architecture: the sizes.
        tensors: folded.
        triplets: at the student's size.
        device: where.
        max_unreadable: share of the triplets that may be unreadable.

    Returns:
        val_accuracy: percent right. val_radius: the mean certified l_2 radius, 0 where the decision is wrong.
        val_certified: percent that are right within the smallest radius of LipSim's table, 36/255 at 224 pixels, scaled
        to this size.

    Raises:
        ValueError: if too many triplets cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from rclip_metric.train.data.triplets import TripletFiles
        >>> from rclip_metric.train.metrics.lipsim import folded, random_tensors
        >>> small = LipSimArchitecture(16, channels=4, depth=1, linear_depth=1, linear_inner=8, embedding=4)
        >>> files = TripletFiles("0", Path("x.png"), Path("black.png"), Path("x.png"), share=1.0, split="val")
        >>> images = {Path("x.png"): torch.ones(3, 16, 16), Path("black.png"): torch.zeros(3, 16, 16)}
        >>> triplets = TripletImages([files], images.__getitem__, size=16)
        >>> found = proven(small, folded(small, random_tensors(small)), triplets, torch.device("cpu"))
        >>> found["val_accuracy"], found["val_radius"] > 0
        (100.0, True)
    """
    network = LipSim(architecture, tensors).eval().to(device)
    metric = LipSimMetric(network, architecture.image_size, name="student", device=device)
    right, radius = [], []
    with torch.no_grad(), full_float32():
        for indices, levels in triplets.batches(torch.arange(len(triplets)).split(_TOGETHER)):
            if not len(indices):
                continue
            images = levels.to(device).float() / 255
            fixed = metric.fix(images[:, 1:].flatten(0, 1)).unflatten(0, (-1, 2))
            similarity = metric.similarities(images[:, 0], fixed)  # (n, 2)
            label = triplets.label[indices].to(device)
            right.append(((similarity[:, 1] > similarity[:, 0]).long() == label).cpu())
            radius.append(metric.certified_radius(images[:, 0], fixed).cpu())
    lost = len(triplets.unreadable)
    first = next(iter(triplets.unreadable.values()), None)
    Losses(max_unreadable, len(triplets) - lost, lost, first).check(noun="triplets of val")
    if not right:
        return dict.fromkeys(("val_accuracy", "val_radius", "val_certified"), math.nan)
    held = torch.cat(right)
    certified = torch.where(held, torch.cat(radius), 0.0)
    least = RADII[0] * architecture.image_size / PUBLISHED_SIZE
    return {
        "val_accuracy": 100 * held.double().mean().item(),
        "val_radius": certified.double().mean().item(),
        "val_certified": 100 * (certified > least).double().mean().item(),
    }
