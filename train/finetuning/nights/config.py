"""The settings of a tuning on triplets."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rclip_metric.train.data.unreadable import MOST_UNREADABLE
from rclip_metric.train.runs.config import check_counts, setting

# What DreamSim's configurations have differently for the two.
_PUBLISHED = {"lora": {"batch_size": 32, "epochs": 8}, "mlp": {"batch_size": 512, "epochs": 20}}
HEADS = tuple(_PUBLISHED)
# How a run gets there and not what it computes: a run may go on under other values. (The triplets per pass also decide
# which inputs a dropout mask falls on.)
_HOW = ("chunk_size", "save_every", "max_unreadable")


@dataclass(frozen=True)
class NightsConfig:
    """The settings of a tuning.

    The paper follows DreamSim's scheme without numbers of its own. Margin, learning rate, Adam's averages, rank,
    alpha, dropout and hidden size stand in the project's specification; batch size, epochs and weight decay are those
    of the configurations that DreamSim's repository publishes for a single encoder (train_single_model_lora.yaml and
    train_single_model_mlp.yaml).

    Example:
        >>> lora, mlp = NightsConfig(), NightsConfig(head="mlp", epochs=5)
        >>> lora.batch_size, lora.epochs, mlp.batch_size, mlp.epochs
        (32, 8, 512, 5)
    """

    head: str = setting("lora", "what is trained: updates inside the encoder, or an MLP on top of it", choices=HEADS)
    hidden: int = setting(512, "hidden size of the MLP")
    rank: int = setting(16, "rank of a LoRA update")
    alpha: float = setting(0.5, "a LoRA update is scaled by alpha / rank")
    dropout: float = setting(0.3, "probability that an input of a LoRA update is zeroed")
    margin: float = setting(0.05, "by how much the chosen image is to be nearer", unit="1 - cosine")
    learning_rate: float = setting(3e-4, "Adam's learning rate, constant")
    betas: tuple[float, ...] = setting((0.5, 0.999), "decay of Adam's two averages")
    weight_decay: float = setting(0.0, "Adam's weight decay")
    batch_size: int = setting(0, "triplets per step (0: as DreamSim, 32 for LoRA and 512 for an MLP)")
    epochs: int = setting(0, "passes over the training triplets (0: as DreamSim, 8 for LoRA and 20 for an MLP)")
    seed: int = setting(0, "seed of the first weights, of the order of the triplets and of the dropout")
    chunk_size: int = setting(0, "triplets, three images each, per pass (0: what suits a CPU; up to 64 on a GPU)")
    save_every: int = setting(100, "steps between states within an epoch, besides the one at its end")
    max_unreadable: float = setting(MOST_UNREADABLE, "share of a split that may be unreadable before the run stops")

    def __post_init__(self) -> None:
        """Raise ValueError for the first value that cannot be meant."""
        check_counts(self)
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, and it is {self.head!r}")
        for name, published in _PUBLISHED[self.head].items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, published)
        for name in ("hidden", "rank", "batch_size", "epochs", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and it is {getattr(self, name)}")
        for name in ("alpha", "margin", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, and it is {getattr(self, name)}")
        for name in ("chunk_size", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, and it is {getattr(self, name)}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be a share in [0, 1], and it is {self.max_unreadable}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), and it is {self.dropout}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), and they are {self.betas}")

    @property
    def computed(self) -> dict[str, Any]:
        """What decides the result: all settings but those of how a run gets there."""
        return {name: value for name, value in asdict(self).items() if name not in _HOW}
