"""How well a metric agrees with people, clean and under attack: what a task asks, and how it is evaluated.

The tasks are in `tasks`, tables and pictures of results in `results`, proofs in `certificates`.
"""

from rclip_metric.train.evaluation.attack import (
    ATTACKS,
    AttackSettings,
    DecisionRule,
    Decisions,
    RunSettings,
    attack_block,
)
from rclip_metric.train.evaluation.ranking import mean_average_precision, precision_at
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.results.record import load_results
from rclip_metric.train.evaluation.run import Aim, Task, evaluate
from rclip_metric.train.evaluation.session import Session, kept

__all__ = [
    "ATTACKS",
    "Aim",
    "AttackSettings",
    "DecisionRule",
    "Decisions",
    "Evaluation",
    "RunSettings",
    "Session",
    "Task",
    "attack_block",
    "evaluate",
    "kept",
    "load_results",
    "mean_average_precision",
    "precision_at",
]
