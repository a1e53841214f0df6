"""Adversarial fine-tuning of an image encoder: FARE (Schlarmann et al. 2024; paper, eq. 2), TeCoA, and two others.

One process on a CPU or a GPU, or any number of them under torchrun. The batch of a step, every image's random start
and so the whole run are functions of the config alone; a run that was interrupted goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
from collections.abc import Generator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.encoder import Encoder
from rclip_metric.train.data.classes import read_prompts
from rclip_metric.train.data.stream import Batch, Stream, open_stream
from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig, RunConfig, Stage
from rclip_metric.train.finetuning.adversarial.step import AdversarialStep, NonFiniteLoss, StepResult
from rclip_metric.train.finetuning.adversarial.validation import Validator, held_out
from rclip_metric.train.models.base import resized
from rclip_metric.train.models.text import TextModel, class_embeddings
from rclip_metric.train.models.weights_digest import weights_digest
from rclip_metric.train.runs.checkpoint import latest_state, restore_training, save_batch, save_state
from rclip_metric.train.runs.distributed import Team, join
from rclip_metric.train.runs.files import provenance, write_json
from rclip_metric.train.runs.interrupt import Interrupt, Interrupted
from rclip_metric.train.runs.log import TrainingLog
from rclip_metric.train.runs.machine import device_name, device_record, versions
from rclip_metric.train.runs.precision import encoder_precision
from rclip_metric.train.runs.schedule import cosine_schedule
from rclip_metric.weights import save_encoder


def finetune(
    original: Encoder,
    source: str | Path,
    out: Path,
    config: FinetuneConfig = FinetuneConfig(),  # noqa: B008 (frozen)
    run: RunConfig = RunConfig(),  # noqa: B008 (frozen)
    *,
    name: str | None = None,
    start_from: Encoder | None = None,
    text: TextModel | None = None,
    validation: Path | None = None,
    nights: Path | None = None,
    quiet: bool = False,
) -> Encoder:
    """Fine-tune a copy of ``original`` and write it to ``out`` in our format.

    In ``out``: ``state-*.safetensors`` to go on from, ``log.jsonl``, and when the last step is done
    ``model.safetensors`` with ``config.json`` and ``run.json``. The same call goes on where a run was interrupted and
    ends with the weights that an uninterrupted run has (on a CPU bit for bit). A file that cannot be read is left out
    of its batch, and named in the log.

    Args:
        original: the clean encoder; it is not changed. The run's own original is `resized` as the config says.
        source: any tree of images (TeCoA: a folder per class), or WebDataset shards: see `open_stream`.
        out: folder of the run; processes on several machines must share it.
        config: what is computed.
        run: how.
        name: of the new encoder; the folder's by default.
        start_from: an encoder of the same architecture, whose weights the run begins with: an earlier run's, to train
            it on. None begins with the original's. What attacked images are held to is the original either way.
        text: for TeCoA, the text tower of the same CLIP.
        validation: held-out images, on which cosines under PGD are taken.
        nights: a NIGHTS-format set, whose ``val`` split is judged, clean and under APGD.
        quiet: no progress bar (there is none anyway where stderr is not a terminal).

    Raises:
        ValueError: if there are no images, or too few for a batch; if ``out`` holds a run of other settings; if
            ``start_from`` is of another architecture than ``original``.
        NonFiniteLoss: if the loss is not finite; the batch is kept in ``out``.
        StorageError: if a state cannot be written; the last one stays good.
        Interrupted: after SIGTERM or SIGINT, when the state is saved.
    """
    team = join(run.device, tensors=True)
    try:
        return _finetune(
            original, start_from, source, out, config, run, team, name or out.name, text, validation, nights,
            quiet or team.rank > 0,
        )  # fmt: skip
    finally:
        team.leave()


def _finetune(
    original: Encoder, start_from: Encoder | None, source: str | Path, out: Path, config: FinetuneConfig,
    run: RunConfig, team: Team, name: str, text: TextModel | None, validation: Path | None, nights: Path | None,
    quiet: bool,
) -> Encoder:  # fmt: skip
    device = team.device
    original = copy.deepcopy(resized(original, config.image_size or None, config.squash))
    original = original.to(device).eval().requires_grad_(False)
    encoder = copy.deepcopy(original)
    if start_from is not None:
        _begin_with(encoder, start_from)
    encoder.name, encoder.revision = name, None
    for one in (original, encoder):
        one.checkpointing = run.checkpointing
        if one.convolutional:
            one.channels_last = True
            one.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        encoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=device.type == "cuda"
    )
    damaged: list[str] = []
    found = latest_state(out, config, report=damaged.append)  # every process reads it: the folder is shared
    start = 0 if found is None else found.step
    if team.first(start) != start:
        raise ValueError(f"process {team.rank} sees step {start} in {out}, the first process another: share the folder")
    size = encoder.image_size

    def open_stage(stage: Stage) -> Stream:
        return open_stream(
            source, encoder.preprocess, batch_size=config.batch_size, seed=config.seed,
            start=max(start, stage.start), stop=stage.stop, rank=team.rank, world=team.count,
            labels=config.objective.needs_labels, workers=_workers(run, device), augmentation=config.augmentation,
        )  # fmt: skip

    stages = [stage for stage in config.stages(size) if start < stage.stop] or config.stages(size)[-1:]
    stream = open_stage(stages[0])
    facts = {} if found is None else found.facts
    sizes = {name: value for name, value in stream.describe().items() if name != "path"}
    if facts.get("data", sizes) != sizes:
        raise ValueError(f"{out} was begun on other data ({facts['data']}, now {sizes}): choose another output folder")
    first = {"name": start_from.name, "revision": weights_digest(start_from.state_dict())} if start_from else None
    if found is not None and facts.get("start_from") != first:
        told = [one["revision"] if one else "the base's" for one in (facts.get("start_from"), first)]
        raise ValueError(f"{out} was begun with other weights ({told[0]}, now {told[1]}): choose another output folder")
    classes = _classes(config, stream.classes, text, device) if config.objective.needs_labels else None
    # A run that goes on keeps what it measured, and the first process measures for all.
    precision = facts.get("precision", run.precision) if run.precision == "auto" else run.precision
    precision = team.first(encoder_precision(precision, encoder))
    bfloat16 = precision == "bfloat16"
    step = AdversarialStep(
        encoder, original, optimizer, config, bfloat16=bfloat16, part=_part(run, encoder, device),
        compiled=run.compile, classes=classes, team=team,
    )  # fmt: skip
    if found is not None:
        restore_training(found, encoder, optimizer)
        step.load_state(found.parts)
    validator = None
    if team.rank == 0 and (validation or nights):
        held = None if validation is None else held_out(validation, encoder, run.validation_images)
        validator = Validator(
            held, original, config.ball, steps=config.inner_steps,
            step_size=config.inner_step_size, seed=config.seed, nights=nights, nights_limit=run.validation_triplets,
            nights_steps=run.validation_attack_steps,
        )  # fmt: skip

    unreadable = int(facts.get("unreadable", 0))
    schedule = cosine_schedule(config.steps, config.warmup_steps)
    log = TrainingLog(
        out, total=config.steps, start=start, quiet=quiet, tensorboard=run.tensorboard, rank=team.rank,
        every=run.log_every, label=f"{config.objective.title} in {precision}",
        pending=facts.get("pending"),
    )  # fmt: skip

    def save(done: int) -> None:
        beside = step.state()
        if team.rank == 0:
            facts = {
                "unreadable": unreadable,
                "pending": log.pending,
                "data": sizes,
                "precision": precision,
                "start_from": first,
            }
            save_state(out, done, config, model=encoder, optimizer=optimizer, facts=facts, keep=run.keep, **beside)
        team.wait()

    def read_stages() -> Generator[Batch, None, None]:
        for stage in stages:
            step.resize(stage.size)
            # Closed whatever happens: loading processes leave signals alone, and only end when they are told to.
            opened = stream if stage is stages[0] else open_stage(stage)
            with contextlib.closing(iter(opened)) as batches:
                yield from batches

    with log, contextlib.closing(read_stages()) as batches, Interrupt() as interrupt:
        for sentence in damaged:
            log.event(start, damaged=sentence)
        for number, batch in enumerate(batches, start=start):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(number)
            if batch.broken:
                unreadable += len(batch.broken)
                log.event(number + 1, unreadable=batch.broken)
            labels = batch.labels
            if classes is not None and labels is not None and len(labels) and int(labels.max()) >= len(classes):
                raise ValueError(
                    f"a label is {int(labels.max())} and the prompts {config.prompts!r} have {len(classes)} "
                    "classes: pass the prompts of this data set"
                )
            labels = None if labels is None else labels.to(device, non_blocking=True)
            images = batch.images.to(device, non_blocking=True)
            measure = (number + 1) % run.log_every == 0 or number + 1 == config.steps
            try:
                result = step(images, batch.keys, labels, number, measure=measure)
            except NonFiniteLoss as error:
                raise _kept(error, out, number + 1, team) from None
            done = number + 1
            log.step(done, result.images, **_values(result), **_memory(device), learning_rate=group["lr"])
            if validator is not None and (done % run.validate_every == 0 or done == config.steps):
                now = encoder.preprocessing.crop
                step.resize(size)
                log.validation(done, validator(encoder))  # before the state: what is logged by then is kept
                step.resize(now)
            asked = team.sum(torch.tensor(float(interrupt.signal is not None), device=device)).item()
            stopping = asked and done < config.steps
            if stopping:
                log.event(done, interrupted=True)
            if stopping or done % run.save_every == 0 or done == config.steps:
                save(done)
            if stopping:
                asked_by = interrupt.signal or signal.SIGTERM  # or another process was asked
                raise Interrupted(
                    asked_by, f"the state of step {done} is in {out}, and the same command goes on from it"
                )
        seconds = log.seconds
    step.resize(size)
    encoder.checkpointing = encoder.channels_last = False
    encoder.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    if team.rank == 0:
        data = {**stream.describe(), "unreadable": unreadable}
        base = {"name": original.name, "revision": original.revision}
        _write_run(out, encoder, config, run, {"base": base, "start_from": first}, data, team, bfloat16, seconds)
    team.wait()
    return encoder


def _begin_with(encoder: Encoder, start: Encoder) -> None:
    """Give ``encoder`` the weights of ``start``; the size of its images may differ where the weights allow it."""
    own, given = encoder.state_dict(), start.state_dict()
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in given.items()}:
        raise ValueError(
            f"{start.name} cannot start the run: its weights are those of a {type(start.tower).__name__} of another "
            f"shape than the base {encoder.name}: pass what was fine-tuned from that base"
        )
    encoder.load_state_dict(given)


def _classes(
    config: FinetuneConfig, names: tuple[str, ...] | None, text: TextModel | None, device: torch.device
) -> Tensor:
    """The unit embeddings (K, D) of the class prompts."""
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


def _part(run: RunConfig, encoder: Encoder, device: torch.device) -> int | None:
    """Images per pass: on a CPU more are slower, a GPU takes all that its memory holds."""
    return run.part or (encoder.chunk_size if device.type == "cpu" else None)


def _workers(run: RunConfig, device: torch.device) -> int:
    if run.workers >= 0:
        return run.workers
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


def _values(result: StepResult) -> dict[str, float]:
    """What is logged: the numbers that were taken."""
    values = {name: value for name, value in asdict(result).items() if name != "images"}
    return {name: value for name, value in values.items() if value == value}


def _memory(device: torch.device) -> dict[str, float]:
    """The most GPU memory that tensors took so far, in GB."""
    return {"peak_gb": torch.cuda.max_memory_allocated(device) / 1e9} if device.type == "cuda" else {}


def _kept(error: NonFiniteLoss, out: Path, step: int, team: Team) -> NonFiniteLoss:
    """The same error, which also says where the batch was kept."""
    if error.images is None or error.attacked is None:
        return error
    told = save_batch(out, step, error.images, rank=team.rank, attacked=error.attacked)
    return NonFiniteLoss(f"{error}; {told}", error.images, error.attacked)


def _write_run(
    out: Path, encoder: Encoder, config: FinetuneConfig, run: RunConfig, weights: dict[str, Any], data: dict[str, Any],
    team: Team, bfloat16: bool, seconds: float,
) -> None:  # fmt: skip
    method = config.objective.title
    levels = f"{config.eps * 255:g}/255" if config.norm == "linf" else f"{config.eps:g}"
    encoder.revision = weights_digest(encoder.state_dict())
    training = provenance(method, Path(data["path"]).name, config.norm, levels, weights["base"]["name"])
    save_encoder(encoder, out, training=training, license=None)
    record = {
        "method": method,
        **weights,
        "data": data,
        "recipe": asdict(config),
        "run": {**asdict(run), "bfloat16": bfloat16, "processes": team.count, "device": device_name(team.device)},
        "seed": config.seed,
        "versions": versions(),
        "device": device_record(team.device),
        "seconds": round(seconds, 1),
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    write_json(out / "run.json", record)
