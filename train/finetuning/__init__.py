"""Training and tuning of encoders: adversarial fine-tuning, tuning on triplets, and a small CLIP from nothing."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
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

import_when_used(
    __name__,
    {
        ".adversarial": "AdversarialStep Fare FinetuneConfig Lore Objective RunConfig SimClip TeCoA finetune",
        ".clip": "train_clip",
        ".nights": "NightsConfig tune_nights",
    },
)
