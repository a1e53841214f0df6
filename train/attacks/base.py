"""What every attack takes and gives back: the per-sample loss, the judge of success, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rclip_metric.train.runs.seeds import sample_seed


class Judged(NamedTuple):
    """What a loss function returns when the loss alone does not tell whether a sample is fooled."""

    loss: torch.Tensor  # (n,), which the attack raises
    success: torch.Tensor  # bool (n,)


LossFunction = Callable[[torch.Tensor, torch.Tensor], "torch.Tensor | Judged"]
"""Maps images (n, 3, H, W) and the indices (n,) of their samples to losses (n,), or to `Judged`.

Labels, targets and fixed embeddings are looked up by index, so that samples can leave the batch."""

Judge = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``succeeded``: losses (n,) and indices (n,) -> bool (n,); ``confirm``: images and indices -> bool (n,)."""


@dataclass(frozen=True)
class Attacked:
    """What an attack found, for N samples.

    Attributes:
        images: (N, 3, H, W), the first success of a fooled sample, else its point of highest loss; detached.
        loss: (N,), the loss there.
        success: bool (N,), all False where nothing judged success.
        evaluations: forward passes, counted over single images.
        gradients: backward passes, counted likewise.
        zero_gradients: samples that met an all-zero gradient at some point.
        nonfinite_gradients: samples that met a gradient with NaN or infinity (it is replaced by zero). Both are signs
            of gradient masking: such a sample may be less robust than it looks.
    """

    images: torch.Tensor
    loss: torch.Tensor
    success: torch.Tensor
    evaluations: int = 0
    gradients: int = 0
    zero_gradients: int = 0
    nonfinite_gradients: int = 0


@dataclass(frozen=True)
class Confirmed:
    """What an attack did to n samples: ``fooled`` and the float32 ``margin`` at the final point (n,), and its costs.

    An attack of several ``stages`` says which of them fooled each sample, None where none did.
    """

    fooled: torch.Tensor
    margin: torch.Tensor
    attacked: Attacked
    violation: float
    seconds: float
    stages: Sequence[str | None] | None = None


def judged(
    result: torch.Tensor | Judged, indices: torch.Tensor, succeeded: Judge | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split what a loss function returned into losses (n,), with their graph, and successes (n,).

    Raises:
        ValueError: if the losses are not one per sample.
    """
    loss = result.loss if isinstance(result, Judged) else result
    if loss.shape != indices.shape:
        raise ValueError(f"the loss must be one number per image, {tuple(indices.shape)}, not {tuple(loss.shape)}")
    if isinstance(result, Judged):
        return loss, result.success
    if succeeded is None:
        return loss, torch.zeros_like(indices, dtype=torch.bool)
    return loss, succeeded(loss.detach(), indices)


def restart_seeds(
    count: int, restart: int, seeds: Sequence[int] | None, generator: torch.Generator | None
) -> list[int] | None:
    """A seed per sample for one restart, from the samples' own seeds or else from a generator; None without either.

    Raises:
        ValueError: if the seeds are not one per sample.
    """
    if seeds is None and generator is None:
        return None
    if seeds is None:
        return [int(value) for value in torch.randint(2**62, (count,), generator=generator)]
    if len(seeds) != count:
        raise ValueError(f"seeds must be one per image: got {len(seeds)} for {count} images")
    return list(seeds) if restart == 0 else [sample_seed(seed, f"restart {restart}") for seed in seeds]
