"""The settings of the small CLIP and of its training."""

from __future__ import annotations

from dataclasses import dataclass

from rclip_metric.train.runs.config import check_counts, setting


@dataclass(frozen=True)
class ClipConfig:
    """Settings of a contrastive run; the defaults are those of the shipped `tiny-clean`.

    Example:
        >>> ClipConfig(steps=10).batch_size
        256
    """

    seed: int = setting(0, "seed of the weights and of the order of images")
    steps: int = setting(750, "optimiser steps", least=1)
    warmup_steps: int = setting(50, "steps of linear warm-up")
    batch_size: int = setting(256, "image-caption pairs per step", least=1)
    learning_rate: float = setting(1e-3, "peak AdamW learning rate")
    weight_decay: float = setting(0.05, "AdamW weight decay of matrices")
    text_width: int = setting(128, "width of the text tower", least=32)
    text_layers: int = setting(2, "layers of the text tower", least=1)
    save_every: int = setting(50, "steps between checkpoints", least=1)

    def __post_init__(self) -> None:
        """Check the fields."""
        check_counts(self)
