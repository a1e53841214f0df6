"""Tuning of LPIPS's linear heads on BAPPS-format triplets: plain, or adversarial as R-LPIPS."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.train.finetuning.lpips.config import LpipsConfig
    from rclip_metric.train.finetuning.lpips.run import tune_lpips
    from rclip_metric.train.finetuning.lpips.step import RankingNetwork, head_distance, ranking_loss

__all__ = [
    "LpipsConfig",
    "RankingNetwork",
    "head_distance",
    "ranking_loss",
    "tune_lpips",
]

import_when_used(
    __name__,
    {
        ".config": "LpipsConfig",
        ".run": "tune_lpips",
        ".step": "RankingNetwork head_distance ranking_loss",
    },
)
