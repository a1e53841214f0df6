"""The settings of a provable metric's two steps: distilling a teacher, and tuning on triplets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from rclip_metric.train.data.unreadable import MOST_UNREADABLE
from rclip_metric.train.metrics.lipsim.architecture import POOL, LipSimArchitecture
from rclip_metric.train.runs.config import check_counts, setting

if TYPE_CHECKING:
    from rclip_metric.train.data.augmentation import Augmentation

# How a run gets there and not what it computes: a run may go on under other values.
_HOW = ("chunk_size", "save_every", "log_every", "keep", "validate_every", "max_unreadable")


@dataclass(frozen=True)
class DistilConfig:
    """What step 1 computes: a student learns a teacher's embeddings.

    The defaults are those of SaraGhazanfari/lipsim (58fe73e, lipsim/main.py, core/trainer.py and core/data/readers.py),
    and of the command in its README where the two differ:

    - the network's sizes: `--model-name small`, the default, which overrides the sizes given one by one;
    - learning rate, Adam's averages, no weight decay, no clipping of gradients: the parser's defaults;
    - batch: 32 per GPU (parser and README) on 4 nodes (README; the parser says 1) of 4 GPUs (parser), 512 together;
    - epochs: 40 (README; the parser says 100), each of 1,281,167 images;
    - schedule: 2,000 steps of warm-up and half a cosine, fixed in the trainer (`--scheduler` has no effect on it). It
      moves after each step, from a rate of 0: the first two steps change nothing, and step k has the rate of k - 1;
    - augmentation: both copies are mirrored at random, each for itself, and one is jittered; fixed in the readers. The
      crops that the reader is given the scales of are never made.

    Example:
        >>> config = DistilConfig()
        >>> config.architecture(1792) == LipSimArchitecture()
        True
        >>> config.total_steps(1_281_167)
        100091
    """

    image_size: int = setting(224, "side of the student's images", unit="pixels", least=1)
    patch: int = setting(1, "side of the squares of pixels that become channels before the convolutions", least=1)
    pool: int = setting(POOL, "side of the squares that are summed after the convolutions", least=1)
    channels: int = setting(45, "channels of the convolutions", least=1)
    depth: int = setting(20, "convolutional layers", least=1)
    inner: int = setting(5, "ReLUs of a convolutional layer, per place", least=1)
    linear_depth: int = setting(7, "linear layers", least=1)
    linear_inner: int = setting(1024, "ReLUs of a linear layer", least=1)
    from_end: bool = setting(False, "keep the last dimensions of the last layer, not the first as published")
    dimensions: int = setting(0, "leading directions of the teacher's embeddings that are learned (0: all of them)")
    scale: float = setting(1.0, "length of the teacher's embeddings; certified radii grow with it, and what it demands")
    steps: int = setting(0, "optimiser steps (0: those of --epochs)")
    epochs: int = setting(40, "passes over the images, where --steps does not say how many", least=1)
    warmup_steps: int = setting(2000, "steps over which the learning rate rises from 0, linearly")
    batch_size: int = setting(512, "images per step", least=1)
    learning_rate: float = setting(0.01, "peak learning rate of Adam; it falls to 0 along half a cosine")
    betas: tuple[float, ...] = setting((0.5, 0.9), "decay of Adam's two averages")
    weight_decay: float = setting(0.0, "Adam's weight decay")
    clip_gradient: float = setting(0.0, "longest gradient of all weights, l_2 (0: no clipping)")
    brightness: float = setting(0.4, "a jittered copy's brightness is changed by up to this factor")
    contrast: float = setting(0.4, "a jittered copy's contrast is changed by up to this factor")
    saturation: float = setting(0.2, "a jittered copy's saturation is changed by up to this factor")
    hue: float = setting(0.1, "a jittered copy's hue is turned by up to this share of a circle")
    jitter: float = setting(0.8, "share of the copies whose colours are jittered")
    grey: float = setting(0.2, "share of the copies that lose their colours")
    flip: float = setting(0.5, "share of the originals, and of the copies, that are mirrored")
    crop_scale: float = setting(1.0, "smallest share of an image's area that a random crop keeps (1: no crops)")
    mixup: float = setting(0.0, "share of the images that are mixed with another of their batch, by a random weight")
    seed: int = setting(0, "seed of the first weights, of the order of the images and of the augmentation")
    chunk_size: int = setting(0, "images per pass (0: as many as 1/4 GB holds on a CPU, 8 GB elsewhere)")
    save_every: int = setting(500, "steps between states that a run can go on from", least=1)
    keep: int = setting(2, "states kept, the newest ones (0: all)")
    log_every: int = setting(10, "steps between lines of log.jsonl", least=1)
    validate_every: int = setting(0, "steps between validations, where triplets are given (0: an epoch)")
    max_unreadable: float = setting(MOST_UNREADABLE, "share of the images that may be unreadable before the run stops")

    def __post_init__(self) -> None:
        """Raise ValueError for the first value that cannot be meant."""
        check_counts(self)
        _check_training(self)
        for name in ("brightness", "contrast", "saturation", "jitter", "grey", "flip", "mixup", "max_unreadable"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], and it is {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be in [0, 0.5], half a circle, and it is {self.hue}")
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"crop_scale must be above 0 and at most 1, and it is {self.crop_scale}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive, and it is {self.scale}")
        if not 0 <= self.clip_gradient < math.inf:
            raise ValueError(f"clip_gradient must not be negative, and it is {self.clip_gradient}")

    @property
    def computed(self) -> dict[str, Any]:
        """What decides the result: all settings but those of how a run gets there."""
        return _computed(self)

    @property
    def augmentation(self) -> Augmentation | None:
        """Crops and mixtures, which the teacher sees too; None where there are none."""
        from rclip_metric.train.data.augmentation import Augmentation

        varies = self.crop_scale < 1 or self.mixup
        return Augmentation(self.crop_scale, False, self.seed, self.mixup) if varies else None

    def architecture(self, embedding: int) -> LipSimArchitecture:
        """Give the network's sizes, for a teacher's embeddings of that many dimensions.

        Raises:
            ValueError: if no such network exists.
        """
        names = [field.name for field in fields(LipSimArchitecture) if field.name != "embedding"]
        return LipSimArchitecture(embedding=embedding, **{name: getattr(self, name) for name in names})

    def total_steps(self, images: int | None) -> int:
        """Count the steps of a run on that many images, as published: whole batches of all epochs together.

        Raises:
            ValueError: if that cannot be known, or the warm-up is no shorter.
        """
        if not self.steps and images is None:
            raise ValueError("shards are not counted beforehand: say with --steps how long the run is")
        steps = self.steps or self.epochs * (images or 0) // self.batch_size
        if steps < 1:
            raise ValueError(f"{self.epochs} epochs of {images} images make no batch of {self.batch_size}: lower it")
        if self.warmup_steps >= steps:
            raise ValueError(
                f"a warm-up of {self.warmup_steps} steps leaves nothing of the {steps} of the run: lower warmup_steps"
            )
        return steps


@dataclass(frozen=True)
class TuneConfig:
    """What step 2 computes: people's judgements, held apart by a margin.

    The defaults are those of SaraGhazanfari/lipsim (58fe73e, core/finetune.py and core/utils.py) and of the command in
    its README, which fixes batch and epochs (the parser says 32 and 100). The paper has margins of 0.2 and 0.5 and
    uses 0.5; the README's command has 0.2, the parser 0. That command does not ask for the hinge loss (`--loss` is rmse
    where it is not given), which the paper and the README's own text describe, and which is what is computed here: the
    *sum* over the batch. The schedule rises from 0 to the peak over 2/5 of the steps, falls to 1/20 of it by 4/5, and
    to 0; it moves after each step, so that the first has whatever rate the state of step 1 ended with, which is 0.
    The published code also goes on with Adam's averages of step 1; here they begin anew.

    Example:
        >>> config = TuneConfig(margin=0.2)
        >>> [round(config.rate(step, steps=10), 4) for step in (0, 1, 5, 9)]
        [0.0, 0.0, 0.01, 0.0005]
    """

    margin: float = setting(0.5, "by how much the chosen image is to be nearer", unit="1 - cosine")
    learning_rate: float = setting(0.01, "peak learning rate of Adam")
    betas: tuple[float, ...] = setting((0.5, 0.9), "decay of Adam's two averages")
    weight_decay: float = setting(0.0, "Adam's weight decay")
    batch_size: int = setting(32, "triplets per step", least=1)
    epochs: int = setting(1, "passes over the training triplets", least=1)
    seed: int = setting(0, "seed of the order of the triplets")
    chunk_size: int = setting(0, "images per pass (0: as many as 1/4 GB holds on a CPU, 8 GB elsewhere)")
    save_every: int = setting(100, "steps between states that a run can go on from", least=1)
    keep: int = setting(2, "states kept, the newest ones (0: all)")
    log_every: int = setting(10, "steps between lines of log.jsonl", least=1)
    max_unreadable: float = setting(MOST_UNREADABLE, "share of a split that may be unreadable before the run stops")

    def __post_init__(self) -> None:
        """Raise ValueError for the first value that cannot be meant."""
        check_counts(self)
        _check_training(self)
        if not 0 < self.margin <= 2:
            raise ValueError(f"margin must be above 0 and at most 2, as 1 - cosine is, and it is {self.margin}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be a share in [0, 1], and it is {self.max_unreadable}")

    @property
    def computed(self) -> dict[str, Any]:
        """What decides the result: all settings but those of how a run gets there."""
        return _computed(self)

    def rate(self, step: int, steps: int) -> float:
        """Give the learning rate of a step, counted from 0, of a run of so many."""
        corners = [(0, 0.0), (steps * 2 // 5, 1.0), (steps * 4 // 5, 1 / 20), (steps, 0.0)]
        return self.learning_rate * _between(max(0, step - 1), corners)


def distil_rate(config: DistilConfig, step: int, steps: int) -> float:
    """Give the learning rate of a step of step 1, counted from 0, of a run of so many.

    Example:
        >>> config = DistilConfig(warmup_steps=2)
        >>> [round(distil_rate(config, step, steps=6), 4) for step in range(6)]
        [0.0, 0.0, 0.005, 0.01, 0.0085, 0.005]
    """
    before, warmup = max(0, step - 1), config.warmup_steps  # the published schedule moves after each step, from 0
    if step == 0:
        return config.learning_rate if warmup == 0 else 0.0
    if before < warmup:
        return config.learning_rate * before / warmup
    return config.learning_rate * (1 + math.cos(math.pi * (before - warmup) / (steps - warmup))) / 2


def _between(place: float, corners: Sequence[tuple[float, float]]) -> float:
    """Interpolate linearly between corners (place, value); of two at one place, the later counts."""
    left = [corner for corner in corners if corner[0] <= place][-1]
    right = next((corner for corner in corners if corner[0] > place), None)
    if right is None:
        return left[1]
    return left[1] + (right[1] - left[1]) * (place - left[0]) / (right[0] - left[0])


def _check_training(config: DistilConfig | TuneConfig) -> None:
    if not 0 < config.learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive, and it is {config.learning_rate}")
    if not 0 <= config.weight_decay < math.inf:
        raise ValueError(f"weight_decay must not be negative, and it is {config.weight_decay}")
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise ValueError(f"betas must be two numbers in [0, 1), and they are {config.betas}")


def _computed(config: DistilConfig | TuneConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in _HOW}
