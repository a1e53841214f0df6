"""Adversarial fine-tuning of an image encoder: FARE (Schlarmann et al. 2024; paper, eq. 2).

    min over phi of  E_x  max over ||z - x||_inf <= eps of  || phi(z) - phi_orig(x) ||_2^2

This version runs in one process and resumes exactly; the recipe's numbers are the defaults.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rclip_metric.encoder import Encoder
from rclip_metric.train.checkpoint import (
    load_training,
    provenance,
    restore_training,
    save_training,
    write_json,
)
from rclip_metric.train.clip import cosine_schedule, parameter_groups
from rclip_metric.train.data.images import ImageFiles, StepSampler, find_images, loader, seeded
from rclip_metric.train.objectives import fare
from rclip_metric.train.pgd import pgd
from rclip_metric.train.threat import LpBall
from rclip_metric.weights import save_encoder


@dataclass(frozen=True)
class FareConfig:
    """Settings of a FARE run; the defaults are the paper's (ImageNet, 2 epochs at batch 128)."""

    seed: int = 0
    steps: int = 20_000
    warmup_steps: int = 1_400
    batch_size: int = 128
    learning_rate: float = 1e-5
    weight_decay: float = 1e-4
    eps: float = 4 / 255
    inner_steps: int = 10
    inner_step_size: float = 1 / 255
    inner_momentum: float = 0.9
    save_every: int = 100


# What makes `tiny` out of `tiny-clean`: the same loss and inner problem; a network of 2 M parameters that has
# seen 64x64 scenes for minutes needs, and stands, a larger learning rate than a CLIP trained on two billion images.
TINY_RECIPE = {"steps": 1_200, "warmup_steps": 50, "learning_rate": 5e-4, "batch_size": 64}


@dataclass(frozen=True)
class FareStep:
    """What one update saw: the loss (mean over the batch), and mean cosines to the original embedding, under attack."""

    loss: float
    adversarial_cosine: float


def fare_step(
    encoder: Encoder, original: Encoder, optimizer: torch.optim.Optimizer, images: torch.Tensor, noise: torch.Tensor,
    config: FareConfig,
) -> FareStep:  # fmt: skip
    """One update: attack the batch with the encoder in eval mode, then step on the loss at the attacked images.

    Args:
        encoder: phi, trained.
        original: phi_orig, frozen; embedded once, without a graph.
        optimizer: over the encoder's parameters; its gradients are left as None.
        images: (B, 3, S, S) in [0, 1].
        noise: uniform on [-1, 1], shaped like ``images``: the random start of the inner problem.
        config: eps and the inner problem's settings.

    Raises:
        FloatingPointError: if the loss is not finite; the weights are as they were before the step.
    """
    with torch.no_grad():
        target = original(images)  # (B, D)
    encoder.eval()
    encoder.requires_grad_(False)  # the inner problem needs gradients of pixels only
    attacked = pgd(
        lambda points: fare(encoder(points), target),
        images,
        LpBall("linf", config.eps),
        config.inner_steps,
        config.inner_step_size,
        noise=noise,
        momentum=config.inner_momentum,
    )
    encoder.requires_grad_(True)
    encoder.train()
    embedding = encoder(attacked)
    loss = fare(embedding, target).mean()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the FARE loss is {loss.item()}: lower the learning rate, or look at the batch")
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    cosine = torch.cosine_similarity(embedding.detach(), target).mean()
    return FareStep(loss.item(), cosine.item())


def train_fare(
    original: Encoder,
    images: Path,
    out: Path,
    config: FareConfig = FareConfig(),
    *,
    name: str,
    quiet: bool = False,
) -> Encoder:
    """Fine-tune a copy of ``original`` on any tree of images and write it to ``out`` in our format.

    ``out/state.safetensors`` is written every ``save_every`` steps; a run that finds one continues from it and
    ends with the weights that an uninterrupted run would have had. ``out/log.jsonl`` has one line per 10 steps.
    A file that cannot be read is left out of its batch, and named in the log.

    Args:
        original: the clean encoder; it is not changed.
        images: folder; every image file below it is used, labels are not needed.
        out: folder for the state, the log and the result.
        config: the recipe.
        name: the name of the new encoder.
        quiet: no progress bar (there is none anyway where stderr is not a terminal).

    Raises:
        ValueError: if there are no images, too few for a batch, or a state of other settings.
        FloatingPointError: if the loss is not finite.
    """
    paths = find_images(images)
    original = copy.deepcopy(original).eval().requires_grad_(False)
    encoder = copy.deepcopy(original)
    encoder.name, encoder.revision = name, None
    encoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameter_groups(encoder, config.weight_decay), lr=config.learning_rate)
    schedule = cosine_schedule(config.steps, config.warmup_steps)
    state = load_training(out / "state.safetensors", config)
    start = 0
    if state is not None:
        restore_training(state, encoder, optimizer)
        start = state.step

    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.jsonl"
    device = next(encoder.parameters()).device
    sampler = StepSampler(len(paths), config.batch_size, config.seed, start, config.steps)
    progress = tqdm(
        loader(ImageFiles(paths, encoder.preprocess), sampler), desc="FARE", disable=True if quiet else None
    )
    begun = time.perf_counter()
    for step, (_, batch, broken) in enumerate(progress, start=start):
        if broken:
            _append(log, {"step": step + 1, "unreadable": [str(paths[index]) for index in broken]})
        if not len(batch):
            continue
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step)
        noise = torch.rand(batch.shape, generator=seeded(config.seed, 1, step)) * 2 - 1
        result = fare_step(encoder, original, optimizer, batch.to(device), noise.to(device), config)
        if (step + 1) % 10 == 0 or step + 1 == config.steps:
            seconds = time.perf_counter() - begun
            rate = (step + 1 - start) * config.batch_size / seconds
            line = {"step": step + 1, **asdict(result), "seconds": seconds, "images_per_second": rate}
            _append(log, line)
            progress.set_postfix_str(f"loss {result.loss:.3f}, adversarial cosine {result.adversarial_cosine:.3f}")
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            save_training(out / "state.safetensors", encoder, optimizer, step + 1, config)
    encoder.eval()
    write_json(out / "run.json", {"method": "FARE", "base": original.name, "images": str(images), **asdict(config)})
    levels = f"{config.eps * 255:g}/255"
    save_encoder(encoder, out, training=provenance("FARE", images.name, "linf", levels, original.name), license="MIT")
    return encoder


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as handle:
        handle.write(json.dumps(line) + "\n")
