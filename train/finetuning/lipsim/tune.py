"""Step 2: the student's unit embeddings are to agree with people's choices by a margin."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rclip_metric.train.data.contents import contents_digest
from rclip_metric.train.data.triplet_images import TripletImages
from rclip_metric.train.data.triplets import TripletFiles
from rclip_metric.train.data.unreadable import Losses
from rclip_metric.train.finetuning.lipsim.config import TuneConfig
from rclip_metric.train.finetuning.lipsim.distil import Standing, save
from rclip_metric.train.finetuning.lipsim.memory import check_memory, together
from rclip_metric.train.finetuning.lipsim.step import trained, tune_step
from rclip_metric.train.finetuning.lipsim.validation import proven
from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture
from rclip_metric.train.metrics.lipsim.student import Student
from rclip_metric.train.runs.checkpoint import latest_state, restore_training, save_batch
from rclip_metric.train.runs.interrupt import Interrupt, Interrupted
from rclip_metric.train.runs.log import TrainingLog
from rclip_metric.train.runs.seeds import seeded


class MarginTuning:
    """A run of step 2: what is trained, on what, and where it stands.

    Attributes:
        student: what is trained, on its device.
        architecture: its sizes.
        steps: of the run.
        start: of them, done before.
        digests: of the triplets and their images.
        standing: where the run stands.
    """

    def __init__(
        self,
        architecture: LipSimArchitecture,
        raw: Mapping[str, Tensor],
        images: Mapping[str, TripletImages],
        out: Path,
        config: TuneConfig,
        device: torch.device,
        *,
        start_digest: str,
        precision: str = "float32",
    ) -> None:
        """Begin with a student's raw weights, or go on from the newest state in `out`.

        Args:
            architecture: the student's sizes.
            raw: its weights, in the published layout.
            images: "train" and "val", at its size.
            out: folder of the states and the log.
            config: the recipe.
            device: where.
            start_digest: of `raw`.
            precision: of the student's passes in training, float32 or bfloat16.

        Raises:
            ValueError: if it does not fit into memory, or the state is of another run.
        """
        self.architecture, self.images, self.out = architecture, images, out
        self.config, self.device, self.precision = config, device, precision
        self.chunk_size = min(config.chunk_size or max(3, together(architecture, device)), 3 * config.batch_size)
        check_memory(architecture, self.chunk_size, device)
        self.digests = triplet_digests({split: source.triplets for split, source in images.items()})
        self.settings = {**config.computed, **self.digests, "start_from": start_digest}
        self.damaged: list[str] = []
        state = latest_state(out, self.settings, report=self.damaged.append)
        self.student = Student(architecture)
        self.student.load_raw(raw)
        self.student.to(device)
        self.optimizer = torch.optim.Adam(
            trained(self.student),
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            weight_decay=config.weight_decay,
        )
        self.start, self.standing = 0, Standing()
        if state is not None:
            self.start, self.standing = state.step, Standing(**state.facts)
            restore_training(state, self.student, self.optimizer)
            for split, sentences in self.standing.unreadable.items():
                images[split].unreadable.update(sentences)
        self._told = {split: set(source.unreadable) for split, source in images.items()}

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch; its last batch may be smaller."""
        return -(-len(self.images["train"]) // self.config.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return self.config.epochs * self.per_epoch

    def run(self, quiet: bool = False) -> None:
        """Take the steps that are left, and validate before the first and after each epoch.

        Raises:
            FloatingPointError: if a loss is not finite; the batch is kept.
            ValueError: if too many triplets cannot be read.
            StorageError: if a state cannot be written; the last one stays good.
            Interrupted: after SIGTERM or SIGINT, when the state is saved.
        """
        if self.start >= self.steps:
            return
        log = TrainingLog(
            self.out,
            total=self.steps,
            start=self.start,
            quiet=quiet,
            every=self.config.log_every,
            label="tune",
            pending=self.standing.pending,
        )
        with log, Interrupt() as interrupt:
            for sentence in self.damaged:
                log.event(self.start, damaged=sentence)
            if self.start == 0:
                self._validate(0, log)
            for done, (indices, levels) in enumerate(self._batches(), start=self.start + 1):
                self._update(indices, levels, done, log)
                if done % self.per_epoch == 0:
                    self._validate(done, log)
                self._keep(done, log, interrupt)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the batches that are left: every epoch in an order of its own."""
        source, orders = self.images["train"], list[Tensor]()
        for epoch in range(self.config.epochs):
            order = torch.randperm(len(source), generator=seeded(self.config.seed, epoch))
            orders += order.split(self.config.batch_size)
        yield from source.batches(orders[self.start :])

    def _update(self, indices: Tensor, levels: Tensor, done: int, log: TrainingLog) -> None:
        rate = self.config.rate(done - 1, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        source = self.images["train"]
        lost, first = len(source.unreadable), next(iter(source.unreadable.values()), None)
        Losses(self.config.max_unreadable, len(source) - lost, lost, first).check(noun="triplets of train")
        if not len(indices):
            log.step(done, 0, learning_rate=rate)
            return
        images = levels.to(self.device).float() / 255
        label = source.label[indices]
        loss = tune_step(
            self.student,
            self.optimizer,
            images,
            label,
            self.config.margin,
            self.chunk_size,
            bfloat16=self.precision == "bfloat16",
        )
        if not math.isfinite(loss):
            kept = save_batch(self.out, done, images.flatten(0, 1))
            raise FloatingPointError(f"the loss is {loss} at step {done}: lower the learning rate; {kept}")
        log.step(done, len(indices), loss=loss, learning_rate=rate)

    def _validate(self, done: int, log: TrainingLog) -> None:
        found = proven(
            self.architecture,
            self.student.finish(),
            self.images["val"],
            self.device,
            max_unreadable=self.config.max_unreadable,
        )
        log.validation(done, found)
        self.standing.validations.append({"step": done, **found})

    def _keep(self, done: int, log: TrainingLog, interrupt: Interrupt) -> None:
        """Save a state where it is time for one, and stop where that was asked for."""
        stopping = interrupt.signal is not None and done < self.steps
        for split, source in self.images.items():
            if new := [why for key, why in source.unreadable.items() if key not in self._told[split]]:
                log.event(done, split=split, unreadable=new)
                self._told[split].update(source.unreadable)
        if stopping:
            log.event(done, interrupted=True)
        if stopping or done % self.config.save_every == 0 or done == self.steps:
            self.standing.unreadable = {split: dict(source.unreadable) for split, source in self.images.items()}
            self.standing.lost = sum(len(source.unreadable) for source in self.images.values())
            self.standing.read = sum(len(source) for source in self.images.values()) - self.standing.lost
            self.standing.pending, self.standing.seconds = log.pending, log.seconds
            save(self.out, done, self.settings, self.student, self.optimizer, self.standing, self.config.keep)
        if stopping and interrupt.signal is not None:
            raise Interrupted(
                interrupt.signal, f"the state of step {done} is in {self.out}, and the same command goes on from it"
            )


def triplet_digests(files: Mapping[str, Sequence[TripletFiles]]) -> dict[str, str]:
    """Sum up the votes and the images of triplets: a run is not continued on others."""
    votes = hashlib.sha256()
    for split, triplets in files.items():
        votes.update(json.dumps([split, [(triplet.key, triplet.share) for triplet in triplets]]).encode())
    paths = (path for some in files.values() for t in some for path in (t.reference, t.left, t.right))
    return {"triplets": votes.hexdigest()[:16], "triplet_images": contents_digest(paths)}
