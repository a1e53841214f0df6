"""How many drawn scenes to write."""

from __future__ import annotations

from dataclasses import dataclass

from rclip_metric.train.runs.config import check_counts, setting


@dataclass(frozen=True)
class ScenesConfig:
    """How many of each to write. `triplets` is (train, val, test); `pool` and `queries` count per class.

    Example:
        >>> sum(ScenesConfig().triplets)
        2600
    """

    seed: int = setting(0, "seed of everything")
    images: int = setting(24_000, "captioned images for training")
    triplets: tuple[int, int, int] = (1_000, 400, 1_200)
    pool: int = setting(50, "images per class in the retrieval pool")
    queries: int = setting(20, "query images per class")

    def __post_init__(self) -> None:
        """Check the fields."""
        check_counts(self)
