"""A fine-tuning: its steps, and where it stands."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.encoder import Encoder
from rclip_metric.train.data.classes import read_prompts
from rclip_metric.train.data.stream import Batch, Stream, open_stream
from rclip_metric.train.data.unreadable import Losses
from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig, RunConfig, Stage
from rclip_metric.train.finetuning.adversarial.step import AdversarialStep, NonFiniteLoss, StepResult
from rclip_metric.train.finetuning.adversarial.validation import Validator
from rclip_metric.train.models.text import TextModel, class_embeddings
from rclip_metric.train.runs.checkpoint import latest_state, restore_training, save_batch, save_state
from rclip_metric.train.runs.distributed import Team
from rclip_metric.train.runs.interrupt import Interrupt, Interrupted
from rclip_metric.train.runs.log import TrainingLog
from rclip_metric.train.runs.precision import encoder_precision
from rclip_metric.train.runs.schedule import cosine_schedule
from rclip_metric.weights import short_digest, tensors_digest

StartFrom = dict[str, str]
"""Name and digest of the weights that a run begins with, where they are not the original's."""


class Finetuning:
    """A run: what is trained, on what, and where it stands.

    Attributes:
        start: steps that were done before.
        stream: the batches that come first; it knows the data.
        precision: of the passes.
        losses: images that all processes together have read, and files that they could not read, so far.
        contents: digest of the data (`Stream.contents`).
    """

    def __init__(
        self,
        source: str | Path,
        out: Path,
        config: FinetuneConfig,
        run: RunConfig,
        team: Team,
        *,
        encoder: Encoder,
        original: Encoder,
        start_from: StartFrom | None = None,
        text: TextModel | None = None,
    ) -> None:
        """Open the data, and go on from the newest state in `out` if there is one.

        Args:
            source: the images, as `open_stream` takes them.
            out: folder of the run.
            config: what is computed.
            run: how.
            team: the processes that share the batches.
            encoder: what is trained, on its device.
            original: phi_orig, on its device.
            start_from: where the encoder's weights come from if they are not the original's.
            text: the text tower, for a loss that needs labels.

        Raises:
            ValueError: if the state is of another run, or the data do not suit the config.
        """
        self.source, self.out, self.config, self.run, self.team = source, out, config, run, team
        self.encoder, self.size = encoder, encoder.image_size
        fused = team.device.type in ("cuda", "cpu")  # one pass over weights and moments
        self.optimizer = torch.optim.AdamW(
            encoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
        self._damaged: list[str] = []
        state = latest_state(out, config, report=self._damaged.append)  # every process reads it: the folder is shared
        self.start = 0 if state is None else state.step
        if team.first(self.start) != self.start:
            raise ValueError(
                f"process {team.rank} sees step {self.start} in {out}, the first process another: share the folder"
            )
        stages = config.stages(self.size)
        self._stages = [stage for stage in stages if self.start < stage.stop] or stages[-1:]
        self.stream = self._opened(self._stages[0])
        sizes = {name: value for name, value in self.stream.describe().items() if name != "path"}
        self.contents = team.first(self.stream.contents() if team.rank == 0 else "")
        sizes["contents"] = self.contents
        base = short_digest(tensors_digest(original.state_dict()))
        text_tower = None if text is None else short_digest(tensors_digest(text.tower.state_dict()))
        begun = {"data": sizes, "base": base, "start_from": start_from, "text": text_tower}
        if state is not None:
            _check_same(out, state.facts, begun)
        facts = {} if state is None else state.facts
        self._classes = _classes(config, self.stream.classes, text, team.device)
        # A run that goes on keeps what it measured, and the first process measures for all.
        precision = facts.get("precision", run.precision) if run.precision == "auto" else run.precision
        self.precision = team.first(encoder_precision(precision, encoder))
        self.step = AdversarialStep(
            encoder,
            original,
            self.optimizer,
            config,
            bfloat16=self.precision == "bfloat16",
            chunk_size=_chunk_size(run, encoder, team.device),
            compiled=run.compile,
            classes=self._classes,
            team=team,
        )
        if state is not None:
            restore_training(state, encoder, self.optimizer)
            self.step.load_state(state.parts)
        lost = int(facts.get("unreadable", 0))
        read = int(facts.get("read", self.start * config.batch_size - lost))
        self.losses = Losses(run.max_unreadable, read, lost)
        self._pending = facts.get("pending")
        self._facts = {**begun, "precision": self.precision}

    def train(self, validator: Validator | None = None, quiet: bool = False) -> float:
        """Take the steps that are left, and give back the seconds of the whole run.

        Raises:
            NonFiniteLoss: if the loss is not finite; the batch is kept.
            ValueError: if a label has no prompt, or a larger share of the files than allowed cannot be read.
            StorageError: if a state cannot be written; the last one stays good.
            Interrupted: after SIGTERM or SIGINT, when the state is saved.
        """
        config, run = self.config, self.run
        schedule = cosine_schedule(config.steps, config.warmup_steps, config.full_first_step)
        log = TrainingLog(
            self.out,
            total=config.steps,
            start=self.start,
            quiet=quiet,
            tensorboard=run.tensorboard,
            rank=self.team.rank,
            every=run.log_every,
            label=f"{config.objective.title} in {self.precision}",
            pending=self._pending,
        )
        with log, contextlib.closing(self._batches()) as batches, Interrupt() as interrupt:
            for sentence in self._damaged:
                log.event(self.start, damaged=sentence)
            for done, batch in enumerate(batches, start=self.start + 1):
                rate = config.learning_rate * schedule(done - 1)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                if batch.broken:
                    log.event(done, unreadable=batch.broken)
                result = self._update(batch, done)
                log.step(done, result.images, **_values(result), **_memory(self.team.device), learning_rate=rate)
                if validator is not None and (done % run.validate_every == 0 or done == config.steps):
                    # Before the state: what is logged by then is kept.
                    log.validation(done, self._validated(validator))
                self._keep(done, batch, log, interrupt)
            return log.seconds

    @property
    def _expected(self) -> int:
        """Images to try before the share that was lost is held against the run: an epoch, or 1,000 of shards."""
        return min(self.stream.count or 1_000, self.config.steps * self.config.batch_size)

    def _opened(self, stage: Stage) -> Stream:
        config, team = self.config, self.team
        return open_stream(
            self.source,
            self.encoder.preprocess,
            batch_size=config.batch_size,
            seed=config.seed,
            start=max(self.start, stage.start),
            stop=stage.stop,
            rank=team.rank,
            world=team.count,
            labels=config.objective.needs_labels,
            workers=_workers(self.run, team.device),
            augmentation=config.augmentation,
        )

    def _batches(self) -> Generator[Batch, None, None]:
        """Read the batches that are left, of one side of the images after another."""
        for stage in self._stages:
            self.step.resize(stage.size)
            # Closed whatever happens: loading processes leave signals alone, and only end when they are told to.
            opened = self.stream if stage is self._stages[0] else self._opened(stage)
            with contextlib.closing(iter(opened)) as batches:
                yield from batches

    def _update(self, batch: Batch, done: int) -> StepResult:
        """Take the step after which `done` steps are done."""
        config, classes, labels = self.config, self._classes, batch.labels
        if classes is not None and labels is not None and len(labels) and int(labels.max()) >= len(classes):
            raise ValueError(
                f"a label is {int(labels.max())} and the prompts {config.prompts!r} have {len(classes)} "
                "classes: pass the prompts of this data set"
            )
        labels = None if labels is None else labels.to(self.team.device, non_blocking=True)
        images = batch.images.to(self.team.device, non_blocking=True)
        measure = done % self.run.log_every == 0 or done == config.steps
        try:
            return self.step(images, batch.keys, labels, done - 1, measure=measure)
        except NonFiniteLoss as error:
            if error.images is None or error.attacked is None:
                raise
            told = save_batch(self.out, done, error.images, rank=self.team.rank, attacked=error.attacked)
            raise NonFiniteLoss(f"{error}; {told}", error.images, error.attacked) from None

    def _validated(self, validator: Validator) -> dict[str, float]:
        """Validate at the encoder's own side."""
        now = self.encoder.preprocessing.crop
        self.step.resize(self.size)
        found = validator(self.encoder)
        self.step.resize(now)
        return found

    def _keep(self, done: int, batch: Batch, log: TrainingLog, interrupt: Interrupt) -> None:
        """Save a state where it is time for one, and stop where any process was asked to or too much was unreadable."""
        own = [float(interrupt.signal is not None), len(batch.images), len(batch.broken)]
        asked, read, lost = self.team.sum(torch.tensor(own, device=self.team.device)).tolist()
        self.losses.add(int(read), int(lost), batch.broken[0] if batch.broken else None)
        self.losses.check(0 if done == self.config.steps else self._expected)
        stopping = asked and done < self.config.steps
        if stopping:
            log.event(done, interrupted=True)
        if stopping or done % self.run.save_every == 0 or done == self.config.steps:
            self._save(done, log.pending)
        if stopping:
            asked_by = interrupt.signal or signal.SIGTERM  # or another process was asked
            raise Interrupted(
                asked_by, f"the state of step {done} is in {self.out}, and the same command goes on from it"
            )

    def _save(self, done: int, pending: Mapping[str, list[float]]) -> None:
        beside = self.step.state()
        if self.team.rank == 0:
            facts = {**self._facts, "unreadable": self.losses.lost, "read": self.losses.read, "pending": pending}
            save_state(
                self.out,
                done,
                self.config,
                model=self.encoder,
                optimizer=self.optimizer,
                facts=facts,
                keep=self.run.keep,
                **beside,
            )
        self.team.wait()


def _check_same(out: Path, facts: Mapping[str, Any], begun: Mapping[str, Any]) -> None:
    """Raise ValueError where the run in `out` was begun on other data or with other weights.

    States of earlier versions know less of it: what they do not say is not compared.
    """
    stored, sizes = facts.get("data", {}), begun["data"]
    if any(stored[name] != sizes.get(name) for name in stored):
        raise ValueError(f"{out} was begun on other data ({stored}, now {sizes}): choose another output folder")
    for name, what in (("base", "another base"), ("text", "another text tower")):
        if name in facts and facts[name] != begun[name]:
            told = f"{facts[name]}, now {begun[name]}"
            raise ValueError(f"{out} was begun with {what} ({told}): choose another output folder")
    if facts.get("start_from") != begun["start_from"]:
        first = (facts.get("start_from"), begun["start_from"])
        told = ", now ".join(one["revision"] if one else "the base's" for one in first)
        raise ValueError(f"{out} was begun with other weights ({told}): choose another output folder")


def _classes(
    config: FinetuneConfig, names: tuple[str, ...] | None, text: TextModel | None, device: torch.device
) -> Tensor | None:
    """Embed the class prompts, with unit norm (K, D), for a loss that needs them."""
    if not config.objective.needs_labels:
        return None
    if text is None:
        raise ValueError("tecoa needs the text tower of the encoder's CLIP: pass a base that has one")
    if not config.prompts:
        raise ValueError("tecoa needs class prompts: pass --prompts, such as imagenet-tecoa or a JSON file")
    prompts = read_prompts(config.prompts)
    if names is None:  # shards have numbers for classes, in the order of the prompts' own list
        if not isinstance(prompts.classes, tuple):
            raise ValueError(f"shards need prompts that list their classes in order, and {config.prompts!r} does not")
        names = prompts.classes
    return class_embeddings(text, prompts.words(names), prompts.templates, quiet=True).to(device)


def _chunk_size(run: RunConfig, encoder: Encoder, device: torch.device) -> int | None:
    """Choose images per pass: on a CPU more are slower, a GPU takes all that its memory holds."""
    return run.chunk_size or (encoder.chunk_size if device.type == "cpu" else None)


def _workers(run: RunConfig, device: torch.device) -> int:
    if run.workers >= 0:
        return run.workers
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


def _values(result: StepResult) -> dict[str, float]:
    """Choose what is logged: the numbers that were taken."""
    values = {name: value for name, value in asdict(result).items() if name != "images"}
    return {name: value for name, value in values.items() if value == value}


def _memory(device: torch.device) -> dict[str, float]:
    """Measure the most GPU memory that tensors took so far, in GB."""
    return {"peak_gb": torch.cuda.max_memory_allocated(device) / 1e9} if device.type == "cuda" else {}
