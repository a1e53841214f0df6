"""Training and tuning of encoders: adversarial fine-tuning, tuning on triplets, and a small CLIP from nothing."""

from rclip_metric.train.finetuning.adversarial import (
    AdversarialStep,
    Fare,
    FinetuneConfig,
    Lore,
    Objective,
    RunConfig,
    SimClip,
    TeCoA,
    finetune,
)
from rclip_metric.train.finetuning.clip import train_clip
from rclip_metric.train.finetuning.nights import NightsConfig, tune_nights

__all__ = [
    "AdversarialStep",
    "Fare",
    "FinetuneConfig",
    "Lore",
    "NightsConfig",
    "Objective",
    "RunConfig",
    "SimClip",
    "TeCoA",
    "finetune",
    "train_clip",
    "tune_nights",
]
