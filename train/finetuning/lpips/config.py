"""The settings of a tuning of LPIPS."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from rclip_metric.train.data.unreadable import MOST_UNREADABLE
from rclip_metric.train.metrics.lpips_trunks import TRUNKS
from rclip_metric.train.runs.config import check_counts, setting

if TYPE_CHECKING:
    from rclip_metric.train.attacks.threat import LpBall

ATTACKS = ("pgd", "apgd")
ATTACK_SETTINGS = ("attack", "norm", "eps", "attack_steps", "step_size")
"""The settings that say nothing without `adversarial`."""
# How a run gets there and not what it computes: a run may go on under other values.
_HOW = ("save_every", "max_unreadable")


@dataclass(frozen=True)
class LpipsConfig:
    """The settings of a tuning; the defaults are those of LPIPS, and with `adversarial` those of R-LPIPS.

    They are what R-LPIPS's published code does (SaraGhazanfari/R-LPIPS 7275b43: train.py, lpips/trainer.py and
    lpips/lpips.py), which took over LPIPS's own: heads from random weights, Adam, 50 triplets a step, 5 epochs and
    5 more with a falling rate, images of 64 pixels. Its attack is PGD with 50 steps, within a
    radius of 8/255 of images in [-1, 1], which is 4/255 here. What differs is told by
    `rclip_metric.train.finetuning.lpips.run`.

    Example:
        >>> plain, robust = LpipsConfig(), LpipsConfig(adversarial=True)
        >>> plain.ball is None, str(robust.ball), robust.attack_steps
        (True, 'linf 4/255', 50)
        >>> [round(robust.rate(epoch) / robust.learning_rate, 6) for epoch in (1, 5, 6, 7, 10)]
        [1.0, 1.0, 1.0, 0.8, 0.2]
    """

    trunk: str = setting("alex", "the network whose features are compared", choices=tuple(TRUNKS))
    random_trunk: bool = setting(False, "draw the trunk's weights instead of taking torchvision's")
    trunk_seed: int = setting(0, "seed of a random trunk")
    train_trunk: bool = setting(False, "train the trunk as well as the heads, as R-LPIPS(tune)")
    image_size: int = setting(64, "side of the square that images are squashed to", unit="pixels", least=1)
    dropout: float = setting(0.5, "probability that a squared difference of features is zeroed")
    hidden: int = setting(32, "width of the network that ranks two distances", least=1)
    learning_rate: float = setting(1e-4, "Adam's learning rate")
    betas: tuple[float, ...] = setting((0.5, 0.999), "decay of Adam's two averages")
    batch_size: int = setting(50, "triplets per step", least=1)
    epochs: int = setting(5, "passes over the triplets at the full rate", least=1)
    decay_epochs: int = setting(5, "passes after these, in which the rate falls")
    adversarial: bool = setting(False, "attack the reference of every triplet first, as R-LPIPS")
    attack: str = setting("pgd", "which attack", choices=ATTACKS)
    norm: str = setting("linf", "of the perturbation", choices=("linf", "l2"))
    eps: float = setting(4 / 255, "radius of the ball; R-LPIPS's 8/255 is one of images in [-1, 1]", pixels=True)
    attack_steps: int = setting(50, "gradient steps of the attack", least=1)
    step_size: float = setting(
        0.0, "length of PGD's steps (0: a quarter of eps; R-LPIPS's end in a corner, as from twice eps on)", pixels=True
    )
    seed: int = setting(0, "seed of the first heads, of the order of the triplets and of the dropout")
    save_every: int = setting(100, "steps between states within an epoch, besides the one at its end", least=1)
    max_unreadable: float = setting(MOST_UNREADABLE, "share of the triplets that may be unreadable")

    def __post_init__(self) -> None:
        """Raise ValueError for the first value that cannot be meant."""
        check_counts(self)
        for name, known in (("trunk", tuple(TRUNKS)), ("attack", ATTACKS), ("norm", ("linf", "l2"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, and it is {getattr(self, name)!r}")
        if self.image_size < (least := TRUNKS[self.trunk].least):
            raise ValueError(
                f"{self.trunk} needs images of at least {least} pixels a side, and they have {self.image_size}"
            )
        if self.trunk_seed and not self.random_trunk:
            raise ValueError("trunk_seed is for a random trunk: pass --random-trunk, or leave it out")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), and it is {self.dropout}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, and it is {self.learning_rate}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), and they are {self.betas}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be a share in [0, 1], and it is {self.max_unreadable}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive, and it is {self.eps}")
        if not 0 <= self.step_size < math.inf:
            raise ValueError(f"step_size must not be negative, and it is {self.step_size}")
        if self.step_size and self.attack != "pgd":
            raise ValueError("step_size is PGD's, and apgd finds its own: leave it out, or pass --attack pgd")
        if not self.adversarial:
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            self.require_attack([name for name in ATTACK_SETTINGS if getattr(self, name) != defaults[name]])

    def require_attack(self, names: Collection[str]) -> None:
        """Raise ValueError if any of `ATTACK_SETTINGS` was set, and there is no attack."""
        first = next((name for name in ATTACK_SETTINGS if name in names), None)
        if first is not None and not self.adversarial:
            flag = first.replace("_", "-")
            raise ValueError(
                f"--{flag} is of the attack, and there is none: pass --adversarial as well, or leave it out"
            )

    @property
    def ball(self) -> LpBall | None:
        """Where the attack may go; None without one."""
        from rclip_metric.train.attacks.threat import LpBall

        return LpBall(cast(Literal["linf", "l2"], self.norm), self.eps) if self.adversarial else None

    @property
    def step_length(self) -> float:
        """The length of PGD's steps, in the scale of [0, 1] images."""
        return self.step_size or self.eps / 4

    @property
    def last_epoch(self) -> int:
        """All epochs, counted from 1."""
        return self.epochs + self.decay_epochs

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1: as published it falls first after the first epoch of decay."""
        late = max(0, epoch - 1 - self.epochs)
        return self.learning_rate * (1 - late / self.decay_epochs if late else 1)

    @property
    def passes(self) -> int:
        """Images that go through the trunk for a triplet in an epoch."""
        attack = 2 + self.attack_steps + (self.attack == "apgd")
        return 3 + (attack if self.adversarial else 0)

    @property
    def computed(self) -> dict[str, Any]:
        """What decides the result: all settings but those of how a run gets there."""
        return {name: value for name, value in asdict(self).items() if name not in _HOW}
