"""The settings of triplets made from photographs."""

from __future__ import annotations

from dataclasses import dataclass

from rclip_metric.train.data.splits import PARTS
from rclip_metric.train.runs.config import check_counts, setting


@dataclass(frozen=True)
class PhotosConfig:
    """How many triplets of which size.

    Example:
        >>> config = PhotosConfig(count=22, size=64)
        >>> config.split
        'test'
    """

    count: int = setting(1_000, "triplets, as many of each kind as of the others")
    size: int = setting(224, "side of the images; smaller photographs keep their own resolution", unit="pixels")
    seed: int = setting(0, "seed of everything")
    split: str = setting("test", "the split that the triplets are said to be of", choices=PARTS)

    def __post_init__(self) -> None:
        """Check the fields."""
        check_counts(self)
        if self.count < 1 or self.size < 32:
            raise ValueError(f"got {self.count} triplets of {self.size} pixels, expected 1 or more of 32 or more")
