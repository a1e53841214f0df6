"""Contrastive pre-training of a small CLIP on captioned scenes: where `tiny-clean` comes from.

The model is OpenCLIP's CLIP class with our image encoder as its visual tower; the loss is CLIP's symmetric
cross-entropy over the batch (Radford et al. 2021, Figure 3).
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rclip_metric.encoder import Architecture, Encoder
from rclip_metric.progress import progress
from rclip_metric.train.data.contents import contents_digest
from rclip_metric.train.data.images import ImageFiles, StepSampler, loader
from rclip_metric.train.data.table import place_in, read_table
from rclip_metric.train.models.clip import TINY, ClipConfig, build_clip
from rclip_metric.train.models.tokenizer import WordTokenizer
from rclip_metric.train.runs.checkpoint import read_state, restore_training, write_state
from rclip_metric.train.runs.files import append_line, checksum, provenance, write_json
from rclip_metric.train.runs.log import LOG_NAME
from rclip_metric.train.runs.machine import device_record, versions
from rclip_metric.train.runs.schedule import cosine_schedule
from rclip_metric.weights import save_encoder


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Make two AdamW groups: matrices are decayed; gains, biases and single numbers are not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Compute CLIP's loss for unit-norm embeddings (N, D): the mean of the cross-entropies along rows and columns."""
    logits = scale * image @ text.T  # (N, N)
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def read_captions(folder: Path) -> tuple[list[Path], list[str]]:
    """Read the paths of the images below `folder/images` and their captions, from captions.csv."""
    rows = [row for _, row in read_table(folder / "images" / "captions.csv", ("path", "caption"))]
    return [place_in(folder / "images", row["path"]) for row in rows], [row["caption"] for row in rows]


def train_clip(
    scenes: Path,
    out: Path,
    config: ClipConfig = ClipConfig(),  # noqa: B008 (frozen)
    *,
    architecture: Architecture = TINY,
    quiet: bool = False,
) -> Encoder:
    """Train a small CLIP on `scenes` and write its image encoder to `out` in our format, resuming where it stopped.

    `out/state.safetensors` is the resumable state (text tower included), `out/log.jsonl` one line per 10 steps,
    `out/model.safetensors` and `config.json` the encoder when the last step is done.

    Args:
        scenes: folder with images/ and images/captions.csv, as `write_scenes` leaves it.
        out: folder of the run.
        config: the recipe.
        architecture: of the image encoder.
        quiet: no progress bar.

    Returns:
        The image encoder, in eval mode.

    Raises:
        ValueError: if `out` holds a state of another recipe, of other images or of other captions, or an
            image cannot be read.

    Example:
        >>> import tempfile
        >>> from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
        >>> config = ClipConfig(steps=1, warmup_steps=0, batch_size=2)
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     made = write_scenes(folder, ScenesConfig(images=2, triplets=(1, 1, 1), pool=1, queries=1), quiet=True)
        ...     encoder = train_clip(folder, folder / "clip", config, quiet=True)
        >>> encoder(torch.zeros(1, 3, 64, 64)).shape == (1, encoder.embedding_dim)
        True
    """
    paths, captions = read_captions(scenes)
    tokens = WordTokenizer()(captions)
    model = build_clip(config, architecture).train()
    encoder: Any = model.visual
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98)
    )
    schedule = cosine_schedule(config.steps, config.warmup_steps)
    state_path, start = out / "state.safetensors", 0
    facts = {"contents": contents_digest(paths), "captions": checksum({"captions": list(captions)})}
    if state_path.exists():
        state = read_state(state_path, config)
        if any(state.facts[name] != facts.get(name) for name in state.facts):  # earlier versions stated none
            raise ValueError(f"{out} was begun on other images or captions: choose another output folder")
        restore_training(state, model, optimizer)
        start = state.step

    sampler = StepSampler(len(paths), config.batch_size, config.seed, start, config.steps)
    bar = progress(loader(ImageFiles(paths, encoder.preprocess), sampler), label="clip", unit="step", quiet=quiet)
    begun = time.perf_counter()
    for step, (indices, images, broken) in enumerate(bar, start=start):
        if broken:
            raise ValueError(
                f"{paths[broken[0]]} cannot be read: write the scenes again with rclip-metric train scenes"
            )
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step)
        loss, found = _update(model, optimizer, images, tokens[indices])
        if (step + 1) % 10 == 0:
            seconds = time.perf_counter() - begun
            line = {"step": step + 1, "loss": loss, "retrieval": found, "seconds": seconds}
            line["images_per_second"] = (step + 1 - start) * config.batch_size / seconds
            append_line(out / LOG_NAME, line)
            bar.set_postfix_str(f"loss {loss:.3f}, caption found {found:.0%}")
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            write_state(state_path, step + 1, config, model=model, optimizer=optimizer, facts=facts)
    trained: Encoder = encoder.eval()
    made = {"versions": versions(), "device": device_record(torch.device("cpu"))}
    write_json(out / "run.json", {"method": "CLIP", "scenes": str(scenes), **asdict(config), **made})
    save_encoder(trained, out, training=provenance("CLIP", "scenes"), license="MIT")
    return trained


def _update(
    model: Any, optimizer: torch.optim.Optimizer, images: torch.Tensor, tokens: torch.Tensor
) -> tuple[float, float]:
    """Take a step, and give the loss and the share of the images whose own caption is the nearest of the batch."""
    image, text, scale, *_ = model(images, tokens)
    loss = contrastive_loss(image, text, scale)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))  # as CLIP does: the temperature stays above 0.01
        found = ((image @ text.T).argmax(1) == torch.arange(len(images))).float().mean()
    return loss.item(), found.item()
