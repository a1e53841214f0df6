"""What the inner problem works on: a copy of the encoder without weight gradients, and a random start per image."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from rclip_metric.encoder import Encoder
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


def start_noise(images: Tensor, seeds: Sequence[int], norm: str) -> Tensor:
    """Draw noise as `LpBall.sample` takes it, on the images' device from a seed per image."""
    draw = torch.randn if norm == "l2" else torch.rand
    rows = [
        draw(images.shape[1:], generator=torch.Generator(images.device).manual_seed(seed), device=images.device)
        for seed in seeds
    ]
    noise = torch.stack(rows)
    return noise if norm == "l2" else noise * 2 - 1
