"""The losses of adversarial fine-tuning by the names that commands and recipes know them by."""

from rclip_metric.train.finetuning.adversarial.lore import Lore
from rclip_metric.train.finetuning.adversarial.objectives import Fare, Objective, SimClip, TeCoA

OBJECTIVES: dict[str, type[Objective]] = {"fare": Fare, "tecoa": TeCoA, "sim-clip": SimClip, "lore": Lore}
