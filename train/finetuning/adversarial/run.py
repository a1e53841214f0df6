"""Adversarial fine-tuning of an image encoder: FARE (Schlarmann et al. 2024; paper, eq. 2), TeCoA, and two others.

One process on a CPU or a GPU, or any number of them under torchrun. The batch of a step, every image's random start
and so the whole run are functions of the config alone; a run that was interrupted goes on as if nothing had happened.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from rclip_metric.encoder import Encoder
from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig, RunConfig
from rclip_metric.train.finetuning.adversarial.loop import Finetuning
from rclip_metric.train.finetuning.adversarial.validation import Validator, held_out
from rclip_metric.train.models.base import resized
from rclip_metric.train.models.text import TextModel
from rclip_metric.train.models.weights_digest import weights_digest
from rclip_metric.train.runs.distributed import join
from rclip_metric.train.runs.files import provenance, write_json
from rclip_metric.train.runs.machine import device_name, device_record, versions
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
    """Fine-tune a copy of `original` and write it to `out` in our format.

    In `out`: `state-*.safetensors` to go on from, `log.jsonl`, and when the last step is done
    `model.safetensors` with `config.json` and `run.json`. The same call goes on where a run was interrupted and
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
        nights: a NIGHTS-format set, whose `val` split is judged, clean and under APGD.
        quiet: no progress bar (there is none anyway where stderr is not a terminal).

    Raises:
        ValueError: if there are no images, or too few for a batch; if `out` holds a run of other settings; if
            `start_from` is of another architecture than `original`.
        NonFiniteLoss: if the loss is not finite; the batch is kept in `out`.
        StorageError: if a state cannot be written; the last one stays good.
        Interrupted: after SIGTERM or SIGINT, when the state is saved.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from rclip_metric.weights import load_encoder
        >>> config = FinetuneConfig(steps=1, warmup_steps=0, batch_size=1, inner_steps=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 64), "red").save(Path(folder, "red.png"))
        ...     run, out = RunConfig(device="cpu", precision="float32"), Path(folder, "robust")
        ...     robust = finetune(load_encoder("tiny"), folder, out, config, run, quiet=True)
        >>> robust.name
        'robust'
    """
    team = join(run.device, tensors=True)
    try:
        original, encoder = _models(original, start_from, name or out.name, config, run, team.device)
        first = {"name": start_from.name, "revision": weights_digest(start_from.state_dict())} if start_from else None
        finetuning = Finetuning(
            source, out, config, run, team, encoder=encoder, original=original, start_from=first, text=text
        )
        validator = _validator(config, run, original, validation, nights) if team.rank == 0 else None
        seconds = finetuning.train(validator, quiet or team.rank > 0)
        finetuning.step.resize(finetuning.size)
        encoder.checkpointing = encoder.channels_last = False
        encoder.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
        if team.rank == 0:
            base = {"name": original.name, "revision": original.revision}
            _write(finetuning, {"base": base, "start_from": first}, seconds)
        team.wait()
        return encoder
    finally:
        team.leave()


def _models(
    original: Encoder,
    start_from: Encoder | None,
    name: str,
    config: FinetuneConfig,
    run: RunConfig,
    device: torch.device,
) -> tuple[Encoder, Encoder]:
    """Make the run's own original, and the encoder that is trained."""
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
    return original, encoder


def _begin_with(encoder: Encoder, start: Encoder) -> None:
    """Give `encoder` the weights of `start`; the size of its images may differ where the weights allow it."""
    own, given = encoder.state_dict(), start.state_dict()
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in given.items()}:
        raise ValueError(
            f"{start.name} cannot start the run: its weights are those of a {type(start.tower).__name__} of another "
            f"shape than the base {encoder.name}: pass what was fine-tuned from that base"
        )
    encoder.load_state_dict(given)


def _validator(
    config: FinetuneConfig, run: RunConfig, original: Encoder, images: Path | None, nights: Path | None
) -> Validator | None:
    """Prepare what is measured while the run goes on; None where nothing is."""
    if images is None and nights is None:
        return None
    return Validator(
        None if images is None else held_out(images, original, run.validation_images),
        original,
        config.ball,
        steps=config.inner_steps,
        step_size=config.inner_step_size,
        pgd_options=config.pgd_options,
        seed=config.seed,
        nights=nights,
        nights_limit=run.validation_triplets,
        nights_steps=run.validation_attack_steps,
        allow_outside=run.allow_outside,
    )


def _write(finetuning: Finetuning, weights: dict[str, Any], seconds: float) -> None:
    """Write the encoder, and run.json."""
    encoder, config, team = finetuning.encoder, finetuning.config, finetuning.team
    data = {**finetuning.stream.describe(), "contents": finetuning.contents, "unreadable": finetuning.losses.lost}
    how = {"bfloat16": finetuning.precision == "bfloat16", "processes": team.count, "device": device_name(team.device)}
    method = config.objective.title
    levels = f"{config.eps * 255:g}/255" if config.norm == "linf" else f"{config.eps:g}"
    encoder.revision = weights_digest(encoder.state_dict())
    training = provenance(method, Path(data["path"]).name, config.norm, levels, weights["base"]["name"])
    save_encoder(encoder, finetuning.out, training=training, license=None)
    record = {
        "method": method,
        **weights,
        "data": data,
        "recipe": asdict(config),
        "run": {**asdict(finetuning.run), **how},
        "seed": config.seed,
        "versions": versions(),
        "device": device_record(team.device),
        "seconds": round(seconds, 1),
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    write_json(finetuning.out / "run.json", record)
