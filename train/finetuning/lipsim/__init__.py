"""Provable metrics from any teacher: distillation into a 1-Lipschitz student, then tuning on triplets."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.train.finetuning.lipsim.config import DistilConfig, TuneConfig
    from rclip_metric.train.finetuning.lipsim.result import pack_student, read_student
    from rclip_metric.train.finetuning.lipsim.run import distil, tune
    from rclip_metric.train.finetuning.lipsim.step import distil_step, tune_step
    from rclip_metric.train.finetuning.lipsim.teacher import Teacher

__all__ = [
    "DistilConfig",
    "Teacher",
    "TuneConfig",
    "distil",
    "distil_step",
    "pack_student",
    "read_student",
    "tune",
    "tune_step",
]

import_when_used(
    __name__,
    {
        ".config": "DistilConfig TuneConfig",
        ".result": "pack_student read_student",
        ".run": "distil tune",
        ".step": "distil_step tune_step",
        ".teacher": "Teacher",
    },
)
