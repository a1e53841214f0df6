"""A tuning on triplets: its epochs, and where it stands."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.encoder import Encoder
from rclip_metric.progress import progress
from rclip_metric.train.data.triplet_images import TripletImages
from rclip_metric.train.data.unreadable import Losses
from rclip_metric.train.finetuning.nights.config import NightsConfig
from rclip_metric.train.finetuning.nights.step import Passes, ValidationScore, hinge, sides, update, validated
from rclip_metric.train.models.lora import train_dropout
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
        """Count a step on `count` triplets with that mean loss."""
        self.done, self.seen, self.total = self.done + 1, self.seen + count, self.total + loss * count

    def finish(self, score: ValidationScore, seconds: float) -> bool:
        """Close the epoch with its validation, begin the next, and say whether it is the best so far."""
        best = score.accuracy > max((earlier["val_accuracy"] for earlier in self.epochs), default=-1.0)
        record = {"epoch": self.epoch, "loss": self.loss, "val_loss": score.loss, "val_accuracy": score.accuracy}
        self.epochs.append({**record, "seconds": round(seconds, 3)})
        if best:
            self.best_epoch = self.epoch
        self.epoch, self.done, self.seen, self.total = self.epoch + 1, 0, 0, 0.0
        return best


class TuningLog:
    """The log of a tuning, `log.jsonl`: one JSON object per line."""

    def __init__(self, path: Path, images: Mapping[str, TripletImages], max_unreadable: float) -> None:
        """Append to `path`; what `images` know to be unreadable by now has been told."""
        self.path, self.images, self.max_unreadable = path, images, max_unreadable
        self._told = {split: set(source.unreadable) for split, source in images.items()}

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        append_line(self.path, line)

    def unreadable(self) -> None:
        """Name the triplets that were found to be unreadable since the last time.

        Raises:
            ValueError: if they are too large a share of their split.
        """
        for split, source in self.images.items():
            if new := [why for key, why in source.unreadable.items() if key not in self._told[split]]:
                self({"split": split, "unreadable": new, "unreadable_so_far": len(source.unreadable)})
                self._told[split].update(source.unreadable)
            lost = len(source.unreadable)
            first = next(iter(source.unreadable.values()), None)
            Losses(self.max_unreadable, len(source) - lost, lost, first).check(noun=f"triplets of {split}")


class Tuning:
    """A run: what is trained, on what, and where it stands.

    Attributes:
        trained: the parameters, by name.
        optimizer: over them.
        best: the parameters after the best epoch so far.
        standing: where the run stands.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        config: NightsConfig,
        encoder: Encoder,
        passes: Passes,
        log: TuningLog,
        standing: Standing,
    ) -> None:
        """Begin with the weights as they are.

        Args:
            out: folder of the states.
            settings: what a state must agree in to be continued.
            config: the recipe.
            encoder: on its device; what has a gradient is trained.
            passes: the triplets, and what turns them into embeddings.
            log: where lines go.
            standing: where the run stands.
        """
        self.out, self.settings, self.config, self.encoder = out, settings, config, encoder
        self.passes, self.log, self.standing = passes, log, standing
        # A ParameterDict takes no dots in its keys.
        self.trained = nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in encoder.named_parameters() if p.requires_grad}
        )
        self.optimizer = torch.optim.Adam(
            self.trained.parameters(),
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
        )
        self.best: Mapping[str, Tensor] = _copied(self.trained)
        self._loss = partial(hinge, margin=config.margin)
        self._begun = self._epoch_begun = time.perf_counter()
        self._before = standing.seconds

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.passes.sources["train"]) / self.config.batch_size)

    def restore(self, state: TrainingState) -> None:
        """Go on from a state; `standing` has its facts already."""
        restore_training(state, self.trained, self.optimizer)
        self.best = state.parts["best"]

    def run(self, quiet: bool = False) -> None:
        """Train and validate to the end of the last epoch, and leave the weights of the best one in the encoder.

        Raises:
            FloatingPointError: if a loss is not finite.
            ValueError: if too many triplets cannot be read.
            Interrupted: after a signal, when the state is saved.
        """
        with Interrupt() as interrupt:
            while (epoch := self.standing.epoch) <= self.config.epochs:
                if epoch > 0:
                    train_dropout(self.encoder)
                    self.train(interrupt, f"epoch {epoch}/{self.config.epochs}", quiet)
                self.encoder.eval()
                self.validate()
        self.trained.load_state_dict(self.best)

    def train(self, interrupt: Interrupt, label: str, quiet: bool) -> None:
        """Train through the epoch that is under way, from the step that it has come to.

        Raises:
            FloatingPointError: if a loss is not finite.
            ValueError: if too many triplets cannot be read.
            Interrupted: after a signal, when the state is saved.
        """
        config, standing, source = self.config, self.standing, self.passes.sources["train"]
        generator = seeded(config.seed, standing.epoch)
        orders = torch.randperm(len(source), generator=generator).split(config.batch_size)[standing.done :]
        bar = progress(
            source.batches(orders),
            label=label,
            unit="step",
            initial=standing.done,
            total=self.steps,
            quiet=quiet,
        )
        self._epoch_begun = begun = time.perf_counter()
        for indices, values in bar:
            with temporary_seed(mixed_seed(config.seed, standing.epoch, standing.done), self.encoder.mean.device):
                y = sides(source.label[indices])
                forward = self.passes.forward["train"]
                loss = update(forward, values, y, self._loss, self.optimizer, self.passes.chunk_size)
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
                self.log.unreadable()
            if standing.done % config.save_every == 0 or interrupt.signal:
                self._save()
            if interrupt.signal:
                raise Interrupted(interrupt.signal, f"{self.out} goes on from step {standing.done} of {label}")
        self.log.unreadable()

    def validate(self) -> None:
        """Close the epoch: judge val, keep the weights if they are the best so far, save.

        Raises:
            FloatingPointError: if the loss is not finite.
            ValueError: if too many triplets cannot be read.
        """
        passes = self.passes
        score = validated(passes.forward["val"], passes.sources["val"], self._loss, passes.chunk_size)
        self.log.unreadable()
        if not math.isfinite(score.loss):
            raise FloatingPointError(
                f"the loss on val is {score.loss} after epoch {self.standing.epoch}: lower the learning rate, or look "
                "at the base"
            )
        if self.standing.finish(score, time.perf_counter() - self._epoch_begun):
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
        model, optimizer, facts = self.trained, self.optimizer, asdict(standing)
        save_state(self.out, step, self.settings, model=model, optimizer=optimizer, facts=facts, best=self.best)


def _copied(trained: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trained.state_dict().items()}
