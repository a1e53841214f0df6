"""A distance from what any metric has, a similarity: how much less alike two images are than one is to itself."""

from __future__ import annotations

import torch
from torch import Tensor

from rclip_metric.train.metrics.base import Metric


def dissimilarity(
    metric: Metric, images: Tensor, fixed: Tensor, clean: Tensor, chunk_size: int | None = None
) -> Tensor:
    """A metric's distances on its own scale, by which an image is less alike than a clean one is to itself.

    s(x, x) - s(z, y): 1 - cos for cosines, the distance itself where the similarity is minus a distance, 1 - SSIM for
    SSIM. In float64, so that what a float32 similarity tells apart stays apart.

    Args:
        metric: has the similarity s.
        images: z, (N, 3, S, S).
        fixed: what the metric keeps of K images y for each, (N, K, ...).
        clean: x, (N, 3, S, S): the images themselves, or what they were before an attack.
        chunk_size: images per forward pass.

    Returns:
        (N, K), float64.

    Raises:
        ValueError: if the metric gives a similarity that is not finite, as PSNR does for an image and itself.
    """
    found = []
    with torch.no_grad():
        for part in torch.arange(len(images), device=images.device).split(chunk_size or max(1, len(images))):
            itself = metric.similarities(clean[part], metric.fix(clean[part])[:, None]).double()  # (n, 1)
            found.append(itself - metric.similarities(images[part], fixed[part]).double())
    apart = torch.cat(found) if found else torch.zeros(fixed.shape[:2], dtype=torch.float64, device=images.device)
    if not bool(apart.isfinite().all()):
        raise ValueError(
            f"{metric.name} gives similarities that are not finite, of an image to itself or to another: "
            "a distance needs a metric that is bounded where images are identical"
        )
    return apart
