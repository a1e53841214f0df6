"""Tuning on 2AFC triplets: LoRA, or an MLP on frozen embeddings."""

from rclip_metric.train.finetuning.nights.config import NightsConfig
from rclip_metric.train.finetuning.nights.run import drawn_mlp, tune_nights
from rclip_metric.train.finetuning.nights.step import hinge

__all__ = [
    "NightsConfig",
    "drawn_mlp",
    "hinge",
    "tune_nights",
]
