"""What a step draws and copies: the encoder without weight gradients, a random start and skipped blocks per image."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rclip_metric.encoder import ConvNeXtArchitecture, Encoder
from rclip_metric.train.runs.seeds import mixed_seed


def attacked_copy(encoder: Encoder, bfloat16: bool) -> Encoder:
    """Copy an encoder for passes without weight gradients: it shares the float32 weights, or holds them in bfloat16.

    Either follows the encoder's updates once `refresh` is called.
    """
    twin = copy.deepcopy(encoder).eval().requires_grad_(False)
    if bfloat16:
        twin = twin.bfloat16()
        if encoder.convolutional:
            twin = twin.to(memory_format=torch.channels_last)
        return twin
    tensors = [[*one.parameters(), *one.buffers()] for one in (twin, encoder)]
    for own, shared in zip(*tensors, strict=True):
        own.data = shared.data
    return twin


def refresh(twin: Encoder, encoder: Encoder) -> None:
    """Let a twin follow the encoder's update: its bfloat16 weights are copied anew, what it folded is folded anew."""
    if next(twin.parameters()).dtype == torch.bfloat16:
        with torch.no_grad():
            torch._foreach_copy_(list(twin.parameters()), list(encoder.parameters()))
    twin.forget_folding()


def start_seed(seed: int, step: int, key: int) -> int:
    """Make the seed of an image's random start: a function of the run, the step and the image, whoever attacks it."""
    return mixed_seed(seed, 1, step, key)


def skip_seed(seed: int, step: int, key: int, turn: int) -> int:
    """Make the seed of the blocks that are left out for an image, the first or second time that a step embeds it."""
    return mixed_seed(seed, 2 + turn, step, key)


@contextlib.contextmanager
def skipped_blocks(encoder: Encoder, highest: float, seeds: Sequence[int]) -> Iterator[None]:
    """Let a ConvNeXt leave out blocks at random while it embeds a batch: stochastic depth (Huang et al. 2016).

    Block l of L, from 0, is left out for an image with probability p = highest * l / (L - 1), and what it adds is
    divided by 1 - p otherwise, as timm does in train mode. Other towers have no such branches and stay as they are.

    Args:
        encoder: phi.
        highest: p of the last block.
        seeds: one per image of the batch.
    """
    if not highest or not isinstance(encoder.architecture, ConvNeXtArchitecture):
        yield
        return
    tower: Any = encoder.tower
    tower.branch_factors = branch_factors(sum(encoder.architecture.depths), highest, seeds).to(encoder.mean.device)
    try:
        yield
    finally:
        tower.branch_factors = None


def branch_factors(blocks: int, highest: float, seeds: Sequence[int]) -> Tensor:
    """Draw what each block adds for each image, as a factor (N, blocks): 0, or 1 / (1 - p)."""
    kept = 1 - torch.linspace(0, highest, blocks)
    drawn = torch.stack([torch.rand(blocks, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return (drawn < kept) / kept


def start_noise(images: Tensor, seeds: Sequence[int], norm: str) -> Tensor:
    """Draw noise as `LpBall.sample` takes it, on the images' device from a seed per image."""
    draw = torch.randn if norm == "l2" else torch.rand
    rows = [
        draw(images.shape[1:], generator=torch.Generator(images.device).manual_seed(seed), device=images.device)
        for seed in seeds
    ]
    noise = torch.stack(rows)
    return noise if norm == "l2" else noise * 2 - 1
