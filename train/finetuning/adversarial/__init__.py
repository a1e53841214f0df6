"""Adversarial fine-tuning: FARE, TeCoA, Sim-CLIP and LORE."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig, RunConfig, Stage
    from rclip_metric.train.finetuning.adversarial.lore import DualNetwork, Lore
    from rclip_metric.train.finetuning.adversarial.named import OBJECTIVES
    from rclip_metric.train.finetuning.adversarial.objectives import Embeddings, Fare, Objective, SimClip, TeCoA
    from rclip_metric.train.finetuning.adversarial.run import finetune
    from rclip_metric.train.finetuning.adversarial.step import AdversarialStep, NonFiniteLoss, StepResult
    from rclip_metric.train.finetuning.adversarial.validation import Validator, held_out

__all__ = [
    "OBJECTIVES",
    "AdversarialStep",
    "DualNetwork",
    "Embeddings",
    "Fare",
    "FinetuneConfig",
    "Lore",
    "NonFiniteLoss",
    "Objective",
    "RunConfig",
    "SimClip",
    "Stage",
    "StepResult",
    "TeCoA",
    "Validator",
    "finetune",
    "held_out",
]

import_when_used(
    __name__,
    {
        ".config": "FinetuneConfig RunConfig Stage",
        ".lore": "DualNetwork Lore",
        ".named": "OBJECTIVES",
        ".objectives": "Embeddings Fare Objective SimClip TeCoA",
        ".run": "finetune",
        ".step": "AdversarialStep NonFiniteLoss StepResult",
        ".validation": "Validator held_out",
    },
)
