"""A filter by examples together with detectors: unsafe if any of them says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rclip_metric.detectors import Detector, unsafe_scores
from rclip_metric.errors import ImageIndexError
from rclip_metric.retrieval.content_filter import ContentFilter, Decision


@dataclass(frozen=True)
class Verdict:
    """What a filter and detectors say of an image together.

    Attributes:
        label: The class: the unsafe one if anybody says so, else the filter's.
        decision: The filter's own.
        scores: Each detector's probability that the image is unsafe, by name.

    Example:
        >>> Verdict("unsafe", Decision("safe", "a.jpg", None, similarity=0.9, other=0.7), {"head": 0.99}).label
        'unsafe'
    """

    label: str | None
    decision: Decision
    scores: dict[str, float]


class AnyOf:
    """Say "unsafe" if a filter or any detector says so, as the R-CLIP paper combines its filter with LAION's detector.

    Args:
        content_filter: Decides by examples.
        detectors: One or more, of different names.
        unsafe: The filter's class of what is unsafe.

    Raises:
        ImageIndexError: The filter has no such class, or there is no detector, or two have one name.

    Example:
        >>> from rclip_metric import ContentFilter, ImageIndex, RobustPerceptualDistance
        >>> class Redness:
        ...     name, threshold, device = "redness", 0.5, torch.device("cpu")
        ...
        ...     def logits(self, images):
        ...         return 4 * (images[:, 0] - images[:, 2]).mean((1, 2))
        >>> index = ImageIndex(RobustPerceptualDistance("tiny"))
        >>> red, blue = torch.zeros(2, 3, 64, 64)
        >>> red[0], blue[2] = 1, 1
        >>> _ = index.add(torch.stack([red, blue]), ids=["red", "blue"], labels=["safe", "unsafe"])
        >>> both = AnyOf(ContentFilter(index, index.metric), [Redness()])
        >>> [verdict] = both.decide(0.9 * red[None])
        >>> verdict.decision.label, verdict.label
        ('safe', 'unsafe')
    """

    def __init__(self, content_filter: ContentFilter, detectors: Sequence[Detector], unsafe: str = "unsafe") -> None:
        """Check that they go together."""
        if unsafe not in content_filter.pools:
            raise ImageIndexError(f"the filter has no class {unsafe!r}, it has {', '.join(content_filter.pools)}.")
        names = [detector.name for detector in detectors]
        if not names or len(set(names)) < len(names):
            raise ImageIndexError(
                f"one detector or more of different names are needed, got {', '.join(names) or 'none'}."
            )
        self.content_filter, self.detectors, self.unsafe = content_filter, list(detectors), unsafe

    def decide(self, queries: Any) -> list[Verdict]:
        """Decide on images.

        Args:
            queries: Files or Pillow images, which the filter and each detector read in their own way; or images
                (N, 3, H, W) in [0, 1], which all of them see as they are.

        Returns:
            A verdict on each.

        Raises:
            ImageError: A query cannot be read.
            ImageIndexError: The queries are embeddings, of which a detector can make nothing.
        """
        if isinstance(queries, Tensor) and queries.dim() != 4:
            raise ImageIndexError(f"detectors need images (N, 3, H, W), got a tensor of shape {tuple(queries.shape)}.")
        decisions = self.content_filter.decide(queries)
        found = {}
        for detector in self.detectors:
            images = queries
            if not isinstance(queries, Tensor):
                images = torch.stack([detector.preprocess(query) for query in queries])
            found[detector.name] = unsafe_scores(detector, images).tolist()
        return [
            self.combined(decision, {name: scores[number] for name, scores in found.items()})
            for number, decision in enumerate(decisions)
        ]

    def combined(self, decision: Decision, scores: dict[str, float]) -> Verdict:
        """Combine a decision of the filter with the detectors' scores; a score that is NaN counts as unsafe."""
        safe = all(scores[detector.name] < detector.threshold for detector in self.detectors)
        return Verdict(decision.label if safe else self.unsafe, decision, scores)
