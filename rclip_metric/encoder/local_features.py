"""What a tower computes cell by cell before it pools: the features of every place of an image."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.encoder.encoder import Encoder

# Cells of 4 to 16 pixels: finer ones see colours and edges alone, and those of 32 the whole image.
_FINEST, _COARSEST = 3.5, 18.0
_TOKEN_LEVELS = 3
_MOST_PREFIX_TOKENS = 8
_NO_FEATURES = (nn.Dropout, nn.Identity, nn.Softmax)
"""What also sees attention matrices, which are squares as well."""


def local_features(encoder: Encoder, pixels: Tensor) -> list[Tensor]:
    """Compute the features of every cell, at several levels.

    Of a network that halves its resolution (ConvNeXt, EfficientNet, ResNet, Swin) a level is the last that it computes
    with cells of 4 to 16 pixels. A transformer has one resolution: its patch tokens a third, two thirds and all of the
    way through its blocks (a native tower computes no patch tokens in its last block, so there the one before counts
    as the last).

    Args:
        encoder: Any tower.
        pixels: (N, 3, S, S) in [0, 1], S = image_size; the features have a graph if they require grad.

    Returns:
        Levels (N, C, h, w), float32, the finest first.

    Raises:
        ValueError: The tower computes no cells of that size.

    Example:
        >>> from rclip_metric import RobustPerceptualDistance
        >>> encoder = RobustPerceptualDistance("tiny").encoder
        >>> [tuple(level.shape) for level in local_features(encoder, torch.zeros(1, 3, 64, 64))]
        [(1, 32, 16, 16), (1, 64, 8, 8), (1, 128, 4, 4)]
    """
    folded = encoder._folded_tower()
    module = encoder.tower if folded is None else folded.twin
    grids: dict[int, Tensor] = {}
    tokens: list[Tensor] = []
    repeated = {id(block) for group in module.modules() for block in _repeated(group)}

    def keep(module: nn.Module, output: Tensor) -> None:
        if output.ndim == 4 and (grid := _as_grid(output)) is not None:
            grids[grid.shape[-1]] = grid
        elif output.ndim == 3 and id(module) in repeated:
            tokens.append(output)

    with nullcontext() if pixels.requires_grad else torch.no_grad(), _listening(module, keep):
        encoder._embed(pixels)
    side = encoder.image_size
    levels = [grid for size, grid in sorted(grids.items(), reverse=True) if _FINEST <= side / size <= _COARSEST]
    patches = [grid for output in tokens if (grid := _patches(output)) is not None]
    if patches:
        chosen = {math.ceil(part * len(patches) / _TOKEN_LEVELS) - 1 for part in range(1, _TOKEN_LEVELS + 1)}
        levels = [patches[place] for place in sorted(chosen)]
    if not levels:
        raise ValueError(f"{encoder.name} computes nothing cell by cell that could be compared: use another method")
    return [level.float() for level in levels]


@contextmanager
def _listening(module: nn.Module, keep: Any) -> Iterator[None]:
    """Pass on what the modules inside give in this thread, in the order in which they run."""
    thread = threading.get_ident()

    def after(part: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and threading.get_ident() == thread:
            keep(part, output)

    hooks = [part.register_forward_hook(after) for part in module.modules() if not isinstance(part, _NO_FEATURES)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _repeated(group: nn.Module) -> list[nn.Module]:
    """Return the blocks of a transformer: the members of a list that are all of one kind."""
    members = list(group.children()) if isinstance(group, nn.ModuleList | nn.Sequential) else []
    return members if len(members) > 1 and len({type(member) for member in members}) == 1 else []


def _as_grid(output: Tensor) -> Tensor | None:
    """Bring (N, C, h, h) or (N, h, h, C) to the first form."""
    if output.shape[2] == output.shape[3]:
        return output
    return output.permute(0, 3, 1, 2) if output.shape[1] == output.shape[2] else None


def _patches(tokens: Tensor) -> Tensor | None:
    """Bring tokens (N, p + h * h, C) to (N, C, h, h), without the first p, which stand for the whole image."""
    side = math.isqrt(tokens.shape[1])
    prefix = tokens.shape[1] - side * side
    if side < 2 or prefix > _MOST_PREFIX_TOKENS:
        return None
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
