"""Step 1: a student regresses a teacher's embeddings, of images and of jittered copies."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.images import Preprocessing, resize_images
from rclip_metric.progress import progress
from rclip_metric.train.data.stream import Batch, Stream
from rclip_metric.train.data.triplet_images import TripletImages
from rclip_metric.train.data.unreadable import Losses
from rclip_metric.train.finetuning.lipsim.config import DistilConfig, distil_rate
from rclip_metric.train.finetuning.lipsim.images import Squashed, photographs
from rclip_metric.train.finetuning.lipsim.jitter import jittered, mirrored, turned
from rclip_metric.train.finetuning.lipsim.memory import check_memory, together
from rclip_metric.train.finetuning.lipsim.step import distil_step, trained
from rclip_metric.train.finetuning.lipsim.teacher import CACHE_BYTES, CACHE_NAME, Lesson, Teacher
from rclip_metric.train.finetuning.lipsim.validation import proven
from rclip_metric.train.metrics.lipsim.student import Student
from rclip_metric.train.runs.checkpoint import latest_state, restore_training, save_batch, save_state
from rclip_metric.train.runs.interrupt import Interrupt, Interrupted
from rclip_metric.train.runs.log import TrainingLog


@dataclass
class Standing:
    """What a state remembers of a run besides its weights.

    Attributes:
        read: images (or triplets) that could be read.
        lost: those that could not.
        validations: what each found, with its step.
        pending: of the log.
        seconds: of the run so far.
        unreadable: of step 2: for each split, the triplets left out and why.
    """

    read: int = 0
    lost: int = 0
    validations: list[dict[str, float]] = field(default_factory=list)
    pending: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)


class Distillation:
    """A run of step 1: what is trained, on what, and where it stands.

    Attributes:
        student: what is trained, on its device.
        architecture: its sizes.
        steps: of the run.
        start: of them, done before.
        contents: digest of the images.
        standing: where the run stands.
    """

    def __init__(
        self,
        teacher: Teacher,
        sources: Sequence[str | Path],
        out: Path,
        config: DistilConfig,
        device: torch.device,
        *,
        start_from: Mapping[str, Tensor] | None = None,
        start_digest: str | None = None,
        workers: int = 0,
        precision: str = "float32",
        validation: TripletImages | None = None,
    ) -> None:
        """Open the images, and go on from the newest state in `out` if there is one.

        Raises:
            ValueError: if there is no such student, or it does not fit into memory; if there are no images; if the
                state is of another run.
        """
        self.teacher, self.sources, self.out, self.config, self.device = teacher, sources, out, config, device
        self.workers, self.precision, self.validation = workers, precision, validation
        self.architecture = config.architecture(config.dimensions or teacher.dimensions)
        self.chunk_size = min(config.chunk_size or together(self.architecture, device), config.batch_size)
        check_memory(self.architecture, self.chunk_size, device)
        self._read = Squashed(config.image_size)
        opened = self._opened(self._read, 0, 1)
        self.count, self.facts = opened.count, opened.describe()
        self.contents = opened.contents()
        self.steps = config.total_steps(self.count)
        if config.dimensions and not self.keeps_lesson:
            raise ValueError(
                "the leading directions of a teacher's embeddings are those of all images: ask for no random crops or "
                "mixtures, and pass trees, or leave dimensions out"
            )
        self.settings = {
            **config.computed,
            "steps": self.steps,
            "teacher": teacher.digest,
            "images": self.contents,
            "start_from": start_digest,
        }
        self.damaged: list[str] = []
        state = latest_state(out, self.settings, report=self.damaged.append)
        self.student = Student(self.architecture, config.seed)
        if start_from is not None:
            self.student.load_raw(start_from)
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
        self._losses = Losses(config.max_unreadable, self.standing.read, self.standing.lost)

    @property
    def validate_every(self) -> int:
        """Steps between validations."""
        epoch = -(-self.count // self.config.batch_size) if self.count else self.steps
        return self.config.validate_every or epoch

    @property
    def keeps_lesson(self) -> bool:
        """Whether the teacher embeds all images once, before the first step."""
        varies, copies = self.config.augmentation, 2 if self.config.flip else 1
        return (
            varies is None
            and self.count is not None
            and self.count * copies * self.teacher.dimensions * 4 <= CACHE_BYTES
        )

    def run(self, quiet: bool = False) -> None:
        """Take the steps that are left.

        Raises:
            FloatingPointError: if a loss is not finite; the batch is kept.
            ValueError: if a larger share of the files than allowed cannot be read.
            StorageError: if a state cannot be written; the last one stays good.
            Interrupted: after SIGTERM or SIGINT, when the state is saved.
        """
        if self.start >= self.steps:
            return
        lesson = self._lesson(quiet) if self.keeps_lesson else None
        read = self._read if lesson else Squashed(max(self.config.image_size, self.teacher.size))
        log = TrainingLog(
            self.out,
            total=self.steps,
            start=self.start,
            quiet=quiet,
            every=self.config.log_every,
            label="distil",
            pending=self.standing.pending,
        )
        stream = self._opened(read, self.start, self.steps)
        with log, contextlib.closing(iter(stream)) as batches, Interrupt() as interrupt:
            for sentence in self.damaged:
                log.event(self.start, damaged=sentence)
            for done, batch in enumerate(batches, start=self.start + 1):
                self._update(batch, done, lesson, log)
                if self.validation is not None and (done % self.validate_every == 0 or done == self.steps):
                    # Before the state: what is logged by then is kept.
                    self._validate(done, log)
                self._losses.add(len(batch.images), len(batch.broken), batch.broken[0] if batch.broken else None)
                self._losses.check(0 if done == self.steps else min(self.count or 1000, self.steps))
                self._keep(done, log, interrupt)

    def _opened(self, read: Squashed, start: int, stop: int) -> Stream:
        config = self.config
        return photographs(
            self.sources,
            read,
            batch_size=config.batch_size,
            seed=config.seed,
            start=start,
            stop=stop,
            workers=self.workers,
            augmentation=config.augmentation,
        )

    def _lesson(self, quiet: bool) -> Lesson:
        """Read what the teacher says of all images, or ask it and write it down."""
        count, path = self.count or 0, self.out / CACHE_NAME
        about = (
            f"{self.teacher.digest} {self.contents} {self.config.seed} {self.config.batch_size} {self.config.flip > 0} "
            f"{self.config.dimensions}"
        )
        if lesson := Lesson.read(path, about):
            return lesson
        # The read images are kept for the student where both see the same size.
        read = self._read if self.teacher.size == self.config.image_size else Squashed(self.teacher.size, 0)
        epoch = -(-count // self.config.batch_size)
        stream = self._opened(read, 0, epoch)
        with contextlib.closing(iter(stream)) as batches, Interrupt() as interrupt:
            lesson = Lesson.given(
                self.teacher, _shown(batches, epoch, interrupt, self.out, quiet), count, self.config.flip > 0
            )
        if self.config.dimensions:
            # What is written is what was chosen: another machine may turn the same directions another way.
            lesson = lesson.shortened(self.config.dimensions)
        lesson.write(path, about)
        return lesson

    def _update(self, batch: Batch, done: int, lesson: Lesson | None, log: TrainingLog) -> None:
        """Take the step after which `done` steps are done."""
        config = self.config
        rate = distil_rate(config, done - 1, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if batch.broken:
            log.event(done, unreadable=batch.broken)
        if not len(batch.images):
            log.step(done, 0, learning_rate=rate)
            return
        images = batch.images.to(self.device, non_blocking=True)
        which = mirrored(images, batch.keys, done - 1, config)
        originals = turned(images, which)
        target = self.teacher(originals) if lesson is None else lesson(batch.keys, which).to(self.device)
        target = config.scale * target
        own = Preprocessing("squash", config.image_size, config.image_size)
        copies = jittered(resize_images(images, own), batch.keys, done - 1, config)
        views = resize_images(originals, own), copies
        first, second = distil_step(
            self.student,
            self.optimizer,
            target,
            views,
            self.chunk_size,
            config.clip_gradient,
            bfloat16=self.precision == "bfloat16",
        )
        loss = (first + second) / 2
        if not math.isfinite(loss):
            kept = save_batch(self.out, done, views[0], copies=copies, teacher=target)
            raise FloatingPointError(f"the loss is {loss} at step {done}: lower the learning rate; {kept}")
        log.step(done, len(images), loss=loss, original_rmse=first, copy_rmse=second, learning_rate=rate)

    def _validate(self, done: int, log: TrainingLog) -> None:
        if self.validation is None:
            return
        found = proven(
            self.architecture,
            self.student.finish(),
            self.validation,
            self.device,
            max_unreadable=self.config.max_unreadable,
        )
        log.validation(done, found)
        self.standing.validations.append({"step": done, **found})

    def _keep(self, done: int, log: TrainingLog, interrupt: Interrupt) -> None:
        """Save a state where it is time for one, and stop where that was asked for."""
        stopping = interrupt.signal is not None and done < self.steps
        if stopping:
            log.event(done, interrupted=True)
        if stopping or done % self.config.save_every == 0 or done == self.steps:
            standing = self.standing
            standing.read, standing.lost = self._losses.read, self._losses.lost
            standing.pending, standing.seconds = log.pending, log.seconds
            save(self.out, done, self.settings, self.student, self.optimizer, standing, self.config.keep)
        if stopping and interrupt.signal is not None:
            raise Interrupted(
                interrupt.signal, f"the state of step {done} is in {self.out}, and the same command goes on from it"
            )


def save(
    out: Path,
    done: int,
    settings: Mapping[str, Any],
    student: Student,
    optimizer: torch.optim.Optimizer,
    standing: Standing,
    keep: int,
) -> None:
    """Save the state after `done` steps.

    Raises:
        FloatingPointError: if a weight is not finite.
        StorageError: if it cannot be written; the last one stays good.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in student.parameters()):
        raise FloatingPointError(f"the weights are not finite after step {done}: lower the learning rate")
    save_state(out, done, settings, keep=keep, model=student, optimizer=optimizer, facts=asdict(standing))


def _shown(batches: Iterable[Batch], count: int, interrupt: Interrupt, out: Path, quiet: bool) -> Iterator[Batch]:
    """Pass batches on under a progress bar, until a signal comes."""
    for batch in progress(batches, label="teacher", total=count, unit="batch", quiet=quiet):
        if interrupt.signal:
            raise Interrupted(interrupt.signal, f"{out} holds nothing yet, and the same command begins anew")
        yield batch
