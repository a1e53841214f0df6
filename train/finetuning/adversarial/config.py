"""Settings of adversarial fine-tuning: what is computed, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from rclip_metric.train.data.unreadable import MOST_UNREADABLE
from rclip_metric.train.runs.config import check_counts, setting

if TYPE_CHECKING:
    from rclip_metric.train.attacks.threat import LpBall
    from rclip_metric.train.data.augmentation import Augmentation
    from rclip_metric.train.finetuning.adversarial.objectives import Objective

LOSSES = ("fare", "tecoa", "sim-clip", "lore")
"""The names of `named.OBJECTIVES`, which need torch."""

_NOT_NEGATIVE = (
    "image_size", "warmup_steps", "eps_warmup_steps", "inner_steps", "weight_decay", "eps", "inner_step_size",
    "inner_momentum_factor", "clip_gradient", "rho",
)  # fmt: skip


class Stage(NamedTuple):
    """Steps `start` to `stop` (from 0, without the last) at inputs of a side, in pixels.

    Example:
        >>> for stage in FinetuneConfig(steps=10, sizes=(112,), size_steps=4).stages(224):
        ...     print(stage)
        Stage(size=112, start=0, stop=4)
        Stage(size=224, start=4, stop=10)
    """

    size: int
    start: int
    stop: int


@dataclass(frozen=True)
class FinetuneConfig:
    """What an adversarial fine-tuning computes; the defaults are the paper's (ImageNet, 2 epochs at batch 128).

    Example:
        >>> config = FinetuneConfig(loss="lore", eps=2 / 255, eps_warmup_steps=100)
        >>> config.objective.title, str(config.ball)
        ('LORE', 'linf 2/255')
        >>> str(config.threat(49)[0])  # half of the steps over which eps grows are done
        'linf 1/255'
    """

    loss: str = setting("fare", "what is minimised at the attacked images", choices=LOSSES)
    seed: int = setting(0, "seed of the order of the images and of the random starts")
    steps: int = setting(20_000, "optimiser steps")
    warmup_steps: int = setting(1_400, "steps over which the learning rate rises from 0, linearly")
    full_first_step: bool = setting(
        True, "take the first step at the peak learning rate: the published schedule acts after each step"
    )
    batch_size: int = setting(128, "images per step, over all processes together")
    learning_rate: float = setting(1e-5, "peak learning rate of AdamW; it falls to 0 along half a cosine")
    weight_decay: float = setting(1e-4, "weight decay of AdamW")
    image_size: int = setting(
        0, "side of the square input, for towers of convolutions and bases timm:NAME (0: the base's)", unit="pixels"
    )
    squash: bool = setting(False, "bring whole images to the square, whatever their aspect ratio")
    norm: str = setting("linf", "norm of the ball that the attack stays in", choices=("linf", "l2"))
    eps: float = setting(4 / 255, "radius of the ball, on images in [0, 1]", pixels=True)
    eps_warmup_steps: int = setting(0, "steps over which eps and the attack's steps grow from 0, linearly (0: none)")
    attack: str = setting("pgd", "inner maximiser", choices=("pgd", "apgd"))
    inner_steps: int = setting(10, "gradient steps of the attack")
    inner_step_size: float = setting(1 / 255, "length of a PGD step, on images in [0, 1]", pixels=True)
    inner_momentum: str = setting(
        "published",
        "velocity of the PGD steps: published (normalised again after each step: for l_inf the gradient's sign) or "
        "accumulated",
        choices=("published", "accumulated"),
    )
    inner_momentum_factor: float = setting(0.9, "share of the velocity that is left at the next PGD step")
    inner_start: str = setting(
        "ball",
        "where the random start of PGD is: in the ball (as published) or in ball and box",
        choices=("ball", "box"),
    )
    drop_path: float = setting(
        0.1,
        "share of images that the last block of a ConvNeXt leaves out in an update; 0 for the first, linear between",
    )
    crop_scale: float = setting(1.0, "smallest share of an image's area that a random crop keeps (1: no crops)")
    flip: bool = setting(False, "mirror half of the images, at random")
    mixup: float = setting(0.0, "share of the images that are mixed with another of their batch, by a random weight")
    damage: float = setting(0.0, "share of the images that get noise, blur, JPEG artefacts or other light first")
    sizes: tuple[float, ...] = setting(
        (), "sides of the input before the encoder's own, each for an equal share of --size-steps", unit="pixels"
    )
    size_steps: int = setting(0, "steps at --sizes, from the first; what is left is at the encoder's own side")
    clean_weight: float = setting(0.0, "weight w of the same loss on the clean image: (1 - w) attacked + w clean")
    clip_gradient: float = setting(0.0, "longest gradient of all weights, l_2 (0: no clipping)")
    scale: float = setting(100.0, "tecoa: factor on the cosines with the class prompts")
    prompts: str = setting("", "tecoa: prompts that name the classes, one of the package's or a JSON file")
    rho: float = setting(0.1, "lore: share of ||phi_orig(x)||^2 by which the clean embedding may move, squared")
    dual_learning_rate: float = setting(1e-3, "lore: learning rate of the multipliers' network (Adam; ours)")
    dual_every: int = setting(1, "lore: encoder steps per step of the multipliers", unit="steps")

    def __post_init__(self) -> None:
        """Raise ValueError for the first value that cannot be meant."""
        check_counts(self)
        for name in ("steps", "batch_size", "dual_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and it is {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, and it is {getattr(self, name)}")
        for name in ("learning_rate", "scale", "dual_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, and it is {getattr(self, name)}")
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale must be above 0 and at most 1, and it is {self.crop_scale}")
        if any(size < 1 or size != int(size) for size in self.sizes):
            raise ValueError(f"sizes must be whole numbers of pixels, and they are {_listed(self.sizes)}")
        if not len(self.sizes) <= self.size_steps <= self.steps or (self.size_steps and not self.sizes):
            raise ValueError(
                f"size_steps must give each of the sizes a step and be at most steps ({self.steps}), or 0 without "
                f"sizes; it is {self.size_steps} for the sizes {_listed(self.sizes)}"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, and it is {self.drop_path}")
        for name in ("clean_weight", "mixup", "damage"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], and it is {getattr(self, name)}")
        for field in fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f"{field.name} must be one of {', '.join(choices)}, and it is {value!r}")
        self.objective.check(self)

    @property
    def objective(self) -> type[Objective]:
        """The loss."""
        from rclip_metric.train.finetuning.adversarial.named import OBJECTIVES

        return OBJECTIVES[self.loss]

    @property
    def needs_clean(self) -> bool:
        """Whether the update looks at the clean images too."""
        return self.objective.needs_clean or self.clean_weight > 0

    @property
    def ball(self) -> LpBall:
        """What the attack may reach once eps has grown to its full size."""
        from rclip_metric.train.attacks.threat import LpBall

        return LpBall("l2" if self.norm == "l2" else "linf", self.eps)

    @property
    def pgd_options(self) -> dict[str, Any]:
        """What `pgd` is told of its velocity and its start."""
        accumulate, clamp_start = self.inner_momentum == "accumulated", self.inner_start == "box"
        return {"momentum": self.inner_momentum_factor, "accumulate": accumulate, "clamp_start": clamp_start}

    @property
    def augmentation(self) -> Augmentation | None:
        """Crops, flips, mixtures and damage; None where there are none."""
        from rclip_metric.train.data.augmentation import Augmentation

        varies = self.crop_scale < 1 or self.flip or self.mixup or self.damage
        return Augmentation(self.crop_scale, self.flip, self.seed, self.mixup, self.damage) if varies else None

    def stages(self, size: int) -> list[Stage]:
        """List the sides that the run goes through, of which `size`, the encoder's own, is the last."""
        ends = [self.size_steps * (place + 1) // len(self.sizes) for place in range(len(self.sizes))] + [self.steps]
        sides = [int(side) for side in self.sizes] + [size]
        found = [Stage(side, first, last) for side, first, last in zip(sides, [0, *ends], ends, strict=False)]
        return [stage for stage in found if stage.start < stage.stop]

    def threat(self, step: int) -> tuple[LpBall, float]:
        """Give the ball and the length of a PGD step at a step of the run (from 0)."""
        share = min(1.0, (step + 1) / self.eps_warmup_steps) if self.eps_warmup_steps else 1.0
        return replace(self.ball, eps=self.eps * share), self.inner_step_size * share


@dataclass(frozen=True)
class RunConfig:
    """How a fine-tuning runs: nothing here changes what is computed, but for rounding. A run may go on with others.

    Example:
        >>> RunConfig(device="cpu", chunk_size=16).save_every
        500
    """

    device: str = setting("auto", "auto (a GPU where there is one), cpu or cuda; under torchrun cuda is the local GPU")
    allow_outside: bool = setting(False, "paths in the data.csv of --nights may lead out of its folder")
    precision: str = setting(
        "auto",
        "bfloat16: attack in it, update under autocast with float32 weights; auto: where the device is fast at it",
        choices=("auto", "float32", "bfloat16"),
    )
    chunk_size: int = setting(
        0, "images per forward and backward pass (0: what suits a CPU, everything at once on a GPU)"
    )
    compile: bool = setting(False, "compile the passes with torch.compile: minutes at the start, faster steps")
    checkpointing: bool = setting(False, "recompute activations in the backward pass: less memory, a third slower")
    workers: int = setting(-1, "processes that read images (-1: none on a CPU, up to 8 for a GPU)", least=-1)
    save_every: int = setting(500, "steps between states that a run can go on from", unit="steps")
    max_unreadable: float = setting(MOST_UNREADABLE, "share of the images that may be unreadable before the run stops")
    keep: int = setting(2, "states kept, the newest ones (0: all)")
    log_every: int = setting(10, "steps between lines of log.jsonl", unit="steps")
    validate_every: int = setting(500, "steps between validations, where a set is given", unit="steps")
    validation_images: int = setting(64, "images of --validation that the cosines are taken on")
    validation_triplets: int = setting(100, "triplets of --nights that are judged")
    validation_attack_steps: int = setting(20, "APGD iterations on those triplets")
    tensorboard: bool = setting(False, "also write TensorBoard events (extra: tensorboard)")

    def __post_init__(self) -> None:
        """Raise ValueError for the first value that cannot be meant."""
        check_counts(self)
        for name in ("save_every", "log_every", "validate_every", "validation_images", "validation_triplets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and it is {getattr(self, name)}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be a share in [0, 1], and it is {self.max_unreadable}")
        for name, least in (("chunk_size", 0), ("workers", -1), ("keep", 0), ("validation_attack_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, and it is {getattr(self, name)}")


def _listed(sizes: tuple[float, ...]) -> str:
    return ",".join(f"{size:g}" for size in sizes) or "none"
