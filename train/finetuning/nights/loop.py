"""A tuning on triplets: its epochs, and where it stands."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rclip_metric.train.data.triplet_images import TripletImages
from rclip_metric.train.finetuning.nights.step import Forward, Judged, Loss, Source, judge, sides, update
from rclip_metric.train.runs.checkpoint import TrainingState, restore_training, save_state
from rclip_metric.train.runs.files import append_line
from rclip_metric.train.runs.interrupt import Interrupt, Interrupted
from rclip_metric.train.runs.seeds import mixed_seed, seeded, temporary_seed


@dataclass
class Standing:
    """Where a run stands, as its state remembers it.

    Attributes:
        epoch: the epoch that is under way; 0 is the validation before the first.
        done: its steps that are done.
        seen: triplets in them.
        total: sum of their losses.
        epochs: a record per epoch that is over.
        best_epoch: the first of those with the highest accuracy on val.
        seconds: spent so far.
        unreadable: for each split, the triplets left out and why.
    """

    epoch: int = 0
    done: int = 0
    seen: int = 0
    total: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """Mean loss of the epoch so far; None before its first triplet."""
        return self.total / self.seen if self.seen else None

    def add(self, loss: float, count: int) -> None:
        """Count a step on ``count`` triplets with that mean loss."""
        self.done, self.seen, self.total = self.done + 1, self.seen + count, self.total + loss * count

    def finish(self, judged: Judged, seconds: float) -> bool:
        """Close the epoch with its validation and begin the next; whether it is the best so far."""
        best = judged.accuracy > max((earlier["val_accuracy"] for earlier in self.epochs), default=-1.0)
        record = {"epoch": self.epoch, "loss": self.loss, "val_loss": judged.loss, "val_accuracy": judged.accuracy}
        self.epochs.append({**record, "seconds": round(seconds, 3)})
        if best:
            self.best_epoch = self.epoch
        self.epoch, self.done, self.seen, self.total = self.epoch + 1, 0, 0, 0.0
        return best


class TuningLog:
    """``log.jsonl``: one JSON object per line."""

    def __init__(self, path: Path, images: Mapping[str, TripletImages]) -> None:
        """Append to ``path``; what ``images`` know to be unreadable by now has been told."""
        self.path, self.images = path, images
        self._told = {split: set(source.unreadable) for split, source in images.items()}

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        append_line(self.path, line)

    def unreadable(self) -> None:
        """Name the triplets that were found to be unreadable since the last time."""
        for split, source in self.images.items():
            if new := [why for key, why in source.unreadable.items() if key not in self._told[split]]:
                self({"split": split, "unreadable": new, "unreadable_so_far": len(source.unreadable)})
                self._told[split].update(source.unreadable)


@dataclass
class Tuning:
    """A run: what is trained, on what, and where it stands.

    Attributes:
        out: folder of the states.
        settings: what a state must agree in to be continued.
        trained: the parameters, by name.
        optimizer: over them.
        loss: per triplet.
        sources: "train" and "val".
        forward: for each source; with a graph to what is trained.
        batch_size: triplets per step.
        part: triplets per pass.
        save_every: steps between states within an epoch.
        seed: of the order of the triplets and of dropout.
        device: of the parameters.
        log: where lines go.
        standing: where the run stands.
        best: the parameters after the best epoch so far.
    """

    out: Path
    settings: Mapping[str, Any]
    trained: nn.ParameterDict
    optimizer: torch.optim.Optimizer
    loss: Loss
    sources: Mapping[str, Source]
    forward: Mapping[str, Forward]
    batch_size: int
    part: int
    save_every: int
    seed: int
    device: torch.device
    log: TuningLog
    standing: Standing = field(default_factory=Standing)
    best: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with the weights as they are."""
        self.best = _copied(self.trained)
        self._begun = self._epoch_begun = time.perf_counter()
        self._before = self.standing.seconds

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.sources["train"]) / self.batch_size)

    def restore(self, state: TrainingState) -> None:
        """Go on from a state; ``standing`` has its facts already."""
        restore_training(state, self.trained, self.optimizer)
        self.best = state.parts["best"]

    def train(self, interrupt: Interrupt, label: str, quiet: bool) -> None:
        """Train through the epoch that is under way, from the step that it has come to.

        Raises:
            FloatingPointError: if a loss is not finite.
            ValueError: if no triplet can be read.
            Interrupted: after a signal, when the state is saved.
        """
        standing, source = self.standing, self.sources["train"]
        generator = seeded(self.seed, standing.epoch)
        orders = torch.randperm(len(source), generator=generator).split(self.batch_size)[standing.done :]
        bar = tqdm(
            source.batches(orders),
            desc=label,
            initial=standing.done,
            total=self.steps,
            disable=True if quiet else None,
        )
        self._epoch_begun = begun = time.perf_counter()
        for indices, values in bar:
            with temporary_seed(mixed_seed(self.seed, standing.epoch, standing.done), self.device):
                y = sides(source.label[indices])
                loss = update(self.forward["train"], values, y, self.loss, self.optimizer, self.part)
            if not math.isfinite(loss):
                triplets = self.log.images["train"].triplets
                some = ", ".join(triplets[index].key for index in indices[:5].tolist())
                raise FloatingPointError(
                    f"the loss is {loss} at step {standing.done + 1} of epoch {standing.epoch} (triplets {some}, ...): "
                    "lower the learning rate, or look at these images and at the base"
                )
            standing.add(loss, len(indices))
            bar.set_postfix_str("" if standing.loss is None else f"loss {standing.loss:.4f}")
            if standing.done % 10 == 0 or standing.done == self.steps:
                seconds = round(time.perf_counter() - begun, 2)
                self.log({"epoch": standing.epoch, "step": standing.done, "loss": standing.loss, "seconds": seconds})
            if standing.done % self.save_every == 0 or interrupt.signal:
                self._save()
            if interrupt.signal:
                raise Interrupted(interrupt.signal, f"{self.out} goes on from step {standing.done} of {label}")
        self.log.unreadable()
        if not standing.seen:
            raise ValueError(f"no training triplet can be read: {self.log.path} says why")

    def validate(self) -> None:
        """Close the epoch: judge val, keep the weights if they are the best so far, save.

        Raises:
            FloatingPointError: if the loss is not finite.
            ValueError: if no triplet can be read.
        """
        judged = judge(self.forward["val"], self.sources["val"], self.loss, self.part)
        self.log.unreadable()
        if not judged.count:
            raise ValueError(f"no validation triplet can be read: {self.log.path} says why")
        if not math.isfinite(judged.loss):
            raise FloatingPointError(
                f"the loss on val is {judged.loss} after epoch {self.standing.epoch}: lower the learning rate, or look "
                "at the base"
            )
        if self.standing.finish(judged, time.perf_counter() - self._epoch_begun):
            self.best = _copied(self.trained)
        self.log(self.standing.epochs[-1])
        self._save()

    def _save(self) -> None:
        standing = self.standing
        if not all(bool(parameter.isfinite().all()) for parameter in self.trained.parameters()):
            raise FloatingPointError(f"the weights are not finite in epoch {standing.epoch}: lower the learning rate")
        standing.seconds = self._before + time.perf_counter() - self._begun
        standing.unreadable = {split: dict(images.unreadable) for split, images in self.log.images.items()}
        step = max(0, standing.epoch - 1) * self.steps + standing.done
        save_state(
            self.out,
            step,
            self.settings,
            model=self.trained,
            optimizer=self.optimizer,
            facts=asdict(standing),
            best=self.best,
        )


def _copied(trained: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trained.state_dict().items()}
