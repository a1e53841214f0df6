"""What is needed of a detector of unsafe images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rclip_metric.images.reading import ImageSource


class Detector(Protocol):
    """A classifier of two classes, safe and unsafe, that has gradients.

    Images are float (N, 3, H, W) RGB in [0, 1] of any size: a detector resizes them in the graph, so that a filter and
    a detector can be asked about, and attacked on, the same pixels. `preprocess` reads a file as the detector was
    published instead, so that its published numbers come out.

    Attributes:
        name: As it stands in tables.
        threshold: An image is unsafe from this score on.

    Example:
        >>> from PIL import Image
        >>> from rclip_metric.detectors import load_detector
        >>> detector: Detector = load_detector("opennsfw")
        >>> detector.preprocess(Image.new("RGB", (400, 300))).shape
        torch.Size([3, 224, 224])
    """

    name: str
    threshold: float

    @property
    def device(self) -> torch.device:
        """Where images have to be."""

    def describe(self) -> dict[str, Any]:
        """Say what its scores depend on, weights included: JSON."""

    def preprocess(self, image: ImageSource) -> Tensor:
        """Read one image as the detector was published: (3, S, S) in [0, 1]."""

    def logits(self, images: Tensor) -> Tensor:
        """Compute the log-odds of "unsafe", (N, 3, H, W) -> (N,), float32, differentiable in the images."""


def unsafe_scores(detector: Detector, images: Tensor, batch_size: int = 32) -> Tensor:
    """Compute the probability that an image is unsafe, in [0, 1], without a graph.

    Args:
        detector: Scores images; they are brought to its device.
        images: (N, 3, H, W) in [0, 1].
        batch_size: Images per pass.

    Returns:
        (N,), float32, on the detector's device.

    Example:
        >>> class Redness:
        ...     name, threshold, device = "redness", 0.5, torch.device("cpu")
        ...
        ...     def logits(self, images):
        ...         return 4 * (images[:, 0] - images[:, 2]).mean((1, 2))
        >>> unsafe_scores(Redness(), torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)).round(decimals=3)
        tensor([0.9820])
    """
    with torch.inference_mode():
        return torch.cat([detector.logits(part.to(detector.device)).sigmoid() for part in images.split(batch_size)])
