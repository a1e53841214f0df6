"""Tuning on NIGHTS: what people find more alike, taught to an encoder by LoRA or by a head (Fu et al. 2023, DreamSim).

    min over theta of  E max(0, margin - (d_left - d_right) y),  d = 1 - sim,  y = 1 where right was chosen, else -1

theta is the LoRA updates inside the encoder, or a residual MLP on top of the frozen one. Images are clean and
squashed, and the epoch that is best on `val` is kept.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rclip_metric.encoder import Encoder, ResidualMLP
from rclip_metric.images import Preprocessing
from rclip_metric.train.data.contents import contents_digest
from rclip_metric.train.data.triplet_images import TripletEmbeddings, TripletImages
from rclip_metric.train.data.triplets import TripletFiles, read_nights
from rclip_metric.train.finetuning.nights.config import NightsConfig
from rclip_metric.train.finetuning.nights.loop import Standing, Tuning, TuningLog
from rclip_metric.train.finetuning.nights.step import Forward, Passes, embed_triplets
from rclip_metric.train.models.lora import add_lora, merge_lora
from rclip_metric.train.runs.checkpoint import latest_state
from rclip_metric.train.runs.distributed import chosen_device
from rclip_metric.train.runs.files import provenance, write_json
from rclip_metric.train.runs.log import LOG_NAME
from rclip_metric.train.runs.machine import device_name, device_record, versions
from rclip_metric.train.runs.precision import full_float32, resolved_precision
from rclip_metric.weights import WeightSpec, get_spec, model_names, save_encoder


def tune_nights(
    base: Encoder,
    data: Path,
    out: Path,
    config: NightsConfig = NightsConfig(),  # noqa: B008 (frozen)
    *,
    name: str,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    workers: int = 0,
    origin: WeightSpec | None = None,
    allow_outside: bool = False,
    quiet: bool = False,
) -> Encoder:
    """Tune a copy of `base` on a NIGHTS-format set and write it to `out` as one plain checkpoint.

    `out/log.jsonl` has a line per 10 steps and per epoch; `out/state-STEP.safetensors` is where the run stands, the
    best epoch so far included. A run that finds one goes on there, and on a CPU it ends with the very weights that it
    would have had without a break. The encoder before the first epoch (epoch 0) takes part in the choice of the best
    on val; the earlier of equals is kept. A triplet with an image that cannot be read is left out, counted, and named
    in the log.

    Args:
        base: any encoder without a head; it is not changed. Its preprocessing is replaced by a squash.
        data: folder with data.csv; `train` is trained on and `val` chooses, both with 6 votes or more.
        out: folder for the states, the log and the result.
        config: the recipe.
        name: of the new encoder.
        device: "cpu", "cuda", ..., or "auto" for a GPU where there is one.
        precision: "float32", "bfloat16" (autocast of the encoder; weights, loss and validation stay float32), or
            "auto".
        workers: threads that read images while the device works; 0 reads in between.
        origin: the base's manifest entry or saved record, by default the entry of its name: its training and licence
            go on into the new one's.
        allow_outside: paths in data.csv may lead out of the folder.
        quiet: no progress bar.

    Returns:
        The tuned encoder, frozen and in eval mode: its updates merged, or with the MLP as its head.

    Raises:
        ValueError: for data or a base that cannot be used, or states of other settings.
        FloatingPointError: if the loss is not finite.
        StorageError: if a state cannot be written; the last one survives.
        Interrupted: after SIGTERM or SIGINT, when the state is saved.

    Example:
        >>> import tempfile
        >>> from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
        >>> from rclip_metric.weights import load_encoder
        >>> recipe = NightsConfig(head="mlp", hidden=4, epochs=1)
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     made = write_scenes(folder, ScenesConfig(images=1, triplets=(2, 2, 1), pool=1, queries=1), quiet=True)
        ...     base, out = load_encoder("tiny"), folder / "tuned"
        ...     tuned = tune_nights(base, folder / "nights", out, recipe, name="tuned", quiet=True)
        >>> tuned.mlp_hidden
        4
    """
    begun = time.perf_counter()
    device = chosen_device(str(device))
    precision = resolved_precision(precision, device)
    files = {split: read_nights(data, split, allow_outside=allow_outside) for split in ("train", "val")}
    encoder = _squashed(base, name)
    settings = config.computed | digests(encoder, files)
    state = latest_state(out, settings)
    standing = Standing() if state is None else Standing(**state.facts)
    images = _images(files, encoder, workers, standing)
    out.mkdir(parents=True, exist_ok=True)
    log = TuningLog(out / LOG_NAME, images, config.max_unreadable)
    if encoder.convolutional:
        encoder.channels_last = True
        encoder.to(memory_format=torch.channels_last)
    encoder.to(device)
    passes = _passes(encoder, config, log, precision, quiet)
    prepared = time.perf_counter() - begun
    standing.seconds += prepared

    tuning = Tuning(out, settings, config, encoder, passes, log, standing)
    if state is not None:
        tuning.restore(state)
    tuning.run(quiet)

    if config.head == "lora":
        merge_lora(encoder)
    encoder.channels_last = False
    encoder.requires_grad_(False).to(memory_format=torch.contiguous_format)
    run = {"device": device_name(device), "precision": precision, "workers": workers, "chunk_size": passes.chunk_size}
    _write(tuning, base, origin, data, {**run, "prepared_seconds": round(prepared, 1)})
    return encoder


def _squashed(base: Encoder, name: str) -> Encoder:
    """Make a frozen copy that sees the whole image, squashed to its square."""
    if base.head is not None:
        raise ValueError(f"{base.name} has an MLP head already: pass the encoder that it was put on")
    encoder = copy.deepcopy(base).eval().requires_grad_(False)
    p, size = base.preprocessing, base.image_size
    encoder.preprocessing = Preprocessing("squash", size, size, p.interpolation, p.mean, p.std)
    encoder.resize, encoder.name, encoder.revision = "published", name, None
    return encoder


def digests(base: nn.Module, files: Mapping[str, Sequence[TripletFiles]]) -> dict[str, str]:
    """Sum up what a run depends on besides its settings: none is continued on another base, triplets or images."""
    weights, triplets = hashlib.sha256(), hashlib.sha256()
    for key, value in base.state_dict().items():
        weights.update(key.encode())
        weights.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for split in files:
        triplets.update(json.dumps([split, [(t.key, t.share) for t in files[split]]]).encode())
    images = contents_digest(path for split in files for t in files[split] for path in (t.reference, t.left, t.right))
    return {"base": weights.hexdigest()[:16], "triplets": triplets.hexdigest()[:16], "images": images}


def _images(
    files: Mapping[str, Sequence[TripletFiles]], encoder: Encoder, workers: int, standing: Standing
) -> dict[str, TripletImages]:
    """Open the images of both splits; those that the run knows to be unreadable are not tried again."""
    images = {
        split: TripletImages(triplets, encoder.preprocess, encoder.image_size, threads=workers)
        for split, triplets in files.items()
    }
    for split, sentences in standing.unreadable.items():
        images[split].unreadable.update(sentences)
    return images


def _passes(encoder: Encoder, config: NightsConfig, log: TuningLog, precision: str, quiet: bool) -> Passes:
    """Put LoRA into the encoder, or a head on it, and say how triplets pass through what is trained."""
    device, images = encoder.mean.device, log.images
    chunk_size = config.chunk_size or _default_chunk_size(encoder, config)
    forward: dict[str, Forward] = {
        "train": partial(embed_triplets, encoder, device, precision == "bfloat16"),
        "val": partial(embed_triplets, encoder, device, False),
    }
    if config.head == "lora":
        add_lora(encoder, config.rank, config.alpha, config.dropout, config.seed)
        return Passes(images, forward, chunk_size)
    # Nothing but the head varies from epoch to epoch: every image is embedded once.
    with torch.no_grad(), full_float32():
        embeddings = {split: TripletEmbeddings(images[split], forward[split], chunk_size, quiet) for split in images}
    log.unreadable()
    encoder.mlp_hidden = config.hidden
    encoder.head = drawn_mlp(encoder.embedding_dim, config.hidden, config.seed).to(device)
    return Passes(embeddings, dict.fromkeys(images, encoder.head), config.chunk_size or config.batch_size)


def _default_chunk_size(encoder: Encoder, config: NightsConfig) -> int:
    """Choose triplets per pass: on a CPU larger ones are slower, on a GPU 64 triplets of a ViT-B fit into 80 GB."""
    if encoder.mean.device.type != "cpu":
        return min(config.batch_size, 64)
    return max(1, (encoder.chunk_size or 3) // 3)


def drawn_mlp(dim: int, hidden: int, seed: int) -> ResidualMLP:
    """Draw a head as `nn.Linear` does, which is how DreamSim starts: uniform on +-1 / sqrt(inputs), biases too.

    Example:
        >>> head = drawn_mlp(16, hidden=4, seed=0)
        >>> head(torch.zeros(2, 16)).shape, bool(head.fc1.weight.abs().max() <= 16**-0.5)
        (torch.Size([2, 16]), True)
    """
    with torch.device("meta"):  # draws nothing from torch's own generator
        head = ResidualMLP(dim, hidden)
    head.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for linear in (head.fc1, head.fc2):
            bound = linear.in_features**-0.5
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.uniform_(-bound, bound, generator=generator)
    return head


def _write(tuning: Tuning, base: Encoder, origin: WeightSpec | None, data: Path, run: dict[str, Any]) -> None:
    """Write the encoder, and run.json."""
    config, standing, images = tuning.config, tuning.standing, tuning.log.images
    counted = {split: len(source.triplets) - len(source.unreadable) for split, source in images.items()}
    unreadable = sum(len(source.unreadable) for source in images.values())
    trained = sum(parameter.numel() for parameter in tuning.trained.parameters())
    device = tuning.encoder.mean.device
    record = {
        "method": {"lora": "LoRA", "mlp": "MLP"}[config.head],
        "base": {"name": base.name, "revision": base.revision},
        "data": {
            "path": str(data),
            "triplets": counted["train"],
            "val": counted["val"],
            "unreadable": unreadable,
        },
        "recipe": {name: value for name, value in config.computed.items() if name != "seed"},
        "run": {**run, "save_every": config.save_every, "trained_parameters": trained},
        "seed": config.seed,
        "versions": versions(),
        "device": device_record(device),
        "seconds": round(standing.seconds, 1),
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "epochs": standing.epochs,
        "best_epoch": standing.best_epoch,
    }
    origin = origin or (get_spec(base.name) if base.name in model_names() else None)
    training, license = _training(origin, base, data, config), origin.license if origin else None
    save_encoder(tuning.encoder, tuning.out, training=training, license=license)
    write_json(tuning.out / "run.json", record)


def _training(origin: WeightSpec | None, base: Encoder, data: Path, config: NightsConfig) -> dict[str, str | None]:
    """Fill the manifest's fields: what was done to the base, and then this."""
    before = (origin and origin.training) or {}
    scenes = (data.resolve().parent / "scenes.json").exists()
    sets = ("NIGHTS-format scenes", "procedural scenes") if scenes else ("NIGHTS", "NIGHTS")
    now = f"{'LoRA' if config.head == 'lora' else 'MLP head'} on clean {sets[0]}"
    method = f"{before['method']}, then {now}" if before.get("method") else now
    seen = ", ".join(dict.fromkeys(part for part in (before.get("data"), sets[1]) if part))
    return provenance(method, seen, before.get("norm"), before.get("eps"), base.name)
