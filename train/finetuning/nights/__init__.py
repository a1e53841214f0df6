"""Tuning on 2AFC triplets: LoRA, or an MLP on frozen embeddings."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.train.finetuning.nights.config import NightsConfig
    from rclip_metric.train.finetuning.nights.run import drawn_mlp, tune_nights
    from rclip_metric.train.finetuning.nights.step import hinge

__all__ = [
    "NightsConfig",
    "drawn_mlp",
    "hinge",
    "tune_nights",
]

import_when_used(
    __name__,
    {
        ".config": "NightsConfig",
        ".run": "drawn_mlp tune_nights",
        ".step": "hinge",
    },
)
