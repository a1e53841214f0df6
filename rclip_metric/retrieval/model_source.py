"""By what a metric can be had again, in another process too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rclip_metric.metric import RobustPerceptualDistance


@dataclass(frozen=True)
class ModelSource:
    """A model by name and what it is to do: plain values that another process can make the same metric of.

    Attributes:
        model: A name of the manifest, a path, or a Hub id.
        base: For a checkpoint that does not say so itself: the model it is made from.
        revision: Commit, tag or branch on the Hub.
        resize: "published", "squash", "none" (refuse other sizes), or None as the model was saved.
        reading: "published", "fast", or None as the model was saved.
        cache_dir: Hub cache.
        squared: Distances are 1 - cos, not its square root.
        dtype: "float32" or "bfloat16".
        second_look: Whether close decisions of bfloat16 are left to float32.

    Example:
        >>> ModelSource("tiny").load().encoder.name
        'tiny'
    """

    model: str
    base: str | None = None
    revision: str | None = None
    resize: str | None = None
    reading: str | None = None
    cache_dir: str | None = None
    squared: bool = False
    dtype: str = "float32"
    second_look: bool = True

    def load(self, device: str = "cpu") -> RobustPerceptualDistance:
        """Make the metric.

        Raises:
            WeightsError: The model cannot be had.
        """
        from rclip_metric.weights.digest import file_digest
        from rclip_metric.weights.loading import locate

        resize: Any = {None: "default", "none": None}.get(self.resize, self.resize)
        reading: Any = self.reading or "default"
        metric = RobustPerceptualDistance(
            self.model,
            squared=self.squared,
            resize=resize,
            reading=reading,
            base=self.base,
            revision=self.revision,
            cache_dir=self.cache_dir,
            second_look=self.second_look,
        )
        encoder = metric.encoder
        if encoder.revision is None:  # a local file that does not say: its contents do
            path = locate(self.model, base=self.base, cache_dir=self.cache_dir, local_files_only=True).path
            encoder.revision = f"sha256:{file_digest(path)[:12]}"
        return metric.to(device=device, dtype=getattr(torch, self.dtype))
