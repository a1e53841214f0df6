"""Attacks as functions of a loss: APGD, PGD and the Square Attack, and the ball that they stay in."""

from typing import TYPE_CHECKING

from rclip_metric.lazy import import_when_used

if TYPE_CHECKING:
    from rclip_metric.train.attacks.apgd import apgd, apgd_targeted
    from rclip_metric.train.attacks.base import AttackResult, Judge, LossAndSuccess, LossFunction
    from rclip_metric.train.attacks.classifier import (
        FEWEST_FOR_TARGETS,
        STAGES,
        ClassifierAttackResult,
        Embed,
        attack_classes,
        margins,
        similarities,
    )
    from rclip_metric.train.attacks.losses import (
        cross_entropy,
        dlr,
        embedding_distance,
        excess,
        fare,
        lore,
        odd_one_out,
        odd_one_out_choice,
        sim_clip,
        targeted_dlr,
        targeted_embedding_distance,
        tecoa,
        two_afc_cross_entropy,
        two_afc_margin,
    )
    from rclip_metric.train.attacks.norms import NORMS
    from rclip_metric.train.attacks.pgd import pgd
    from rclip_metric.train.attacks.square import square
    from rclip_metric.train.attacks.threat import LpBall

__all__ = [
    "FEWEST_FOR_TARGETS",
    "NORMS",
    "STAGES",
    "AttackResult",
    "ClassifierAttackResult",
    "Embed",
    "Judge",
    "LossAndSuccess",
    "LossFunction",
    "LpBall",
    "apgd",
    "apgd_targeted",
    "attack_classes",
    "cross_entropy",
    "dlr",
    "embedding_distance",
    "excess",
    "fare",
    "lore",
    "margins",
    "odd_one_out",
    "odd_one_out_choice",
    "pgd",
    "sim_clip",
    "similarities",
    "square",
    "targeted_dlr",
    "targeted_embedding_distance",
    "tecoa",
    "two_afc_cross_entropy",
    "two_afc_margin",
]

import_when_used(
    __name__,
    {
        ".apgd": "apgd apgd_targeted",
        ".base": "AttackResult Judge LossAndSuccess LossFunction",
        ".classifier": "FEWEST_FOR_TARGETS STAGES ClassifierAttackResult Embed attack_classes margins similarities",
        ".losses": "cross_entropy dlr embedding_distance excess fare lore odd_one_out odd_one_out_choice sim_clip "
        "targeted_dlr targeted_embedding_distance tecoa two_afc_cross_entropy two_afc_margin",
        ".norms": "NORMS",
        ".pgd": "pgd",
        ".square": "square",
        ".threat": "LpBall",
    },
)
