"""What every attack takes and gives back: the per-sample loss, the judge of success, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rclip_metric.train.runs.seeds import sample_seed


class LossAndSuccess(NamedTuple):
    """What a loss function returns when the loss alone does not tell whether a sample is fooled.

    Example:
        >>> margin = torch.tensor([0.2, -0.1])  # of two decisions, positive where right
        >>> LossAndSuccess(loss=-margin, success=margin <= 0).success
        tensor([False,  True])
    """

    loss: torch.Tensor  # (n,), which the attack raises
    success: torch.Tensor  # bool (n,)


LossFunction = Callable[[torch.Tensor, torch.Tensor], "torch.Tensor | LossAndSuccess"]
"""Maps images (n, 3, H, W) and the indices (n,) of their samples to losses (n,), or to `LossAndSuccess`.

Labels, targets and fixed embeddings are looked up by index, so that samples can leave the batch."""

Judge = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`succeeded`: losses (n,) and indices (n,) -> bool (n,); `confirm`: images and indices -> bool (n,)."""


@dataclass(frozen=True)
class AttackResult:
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

    Example:
        >>> images = torch.zeros(2, 3, 8, 8)
        >>> found = AttackResult(images, loss=torch.tensor([0.4, 0.9]), success=torch.tensor([False, True]))
        >>> robust_accuracy = (~found.success).float().mean().item()
        >>> robust_accuracy
        0.5
    """

    images: torch.Tensor
    loss: torch.Tensor
    success: torch.Tensor
    evaluations: int = 0
    gradients: int = 0
    zero_gradients: int = 0
    nonfinite_gradients: int = 0


@dataclass(frozen=True)
class ConfirmedResult:
    """What an attack did to n samples: ``fooled`` and the float32 ``margin`` at the final point (n,), and its costs.

    An attack of several ``stages`` says which of them fooled each sample, None where none did.
    """

    fooled: torch.Tensor
    margin: torch.Tensor
    attacked: AttackResult
    violation: float
    seconds: float
    stages: Sequence[str | None] | None = None


def split_loss(
    result: torch.Tensor | LossAndSuccess, indices: torch.Tensor, succeeded: Judge | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split what a loss function returned into losses (n,), with their graph, and successes (n,).

    Raises:
        ValueError: if the losses are not one per sample.
    """
    loss = result.loss if isinstance(result, LossAndSuccess) else result
    if loss.shape != indices.shape:
        raise ValueError(f"the loss must be one number per image, {tuple(indices.shape)}, not {tuple(loss.shape)}")
    if isinstance(result, LossAndSuccess):
        return loss, result.success
    if succeeded is None:
        return loss, torch.zeros_like(indices, dtype=torch.bool)
    return loss, succeeded(loss.detach(), indices)


class BestPoints:
    """What an attack has found so far: of every sample its first success, else its point of highest loss.

    Attributes:
        images: (N, 3, H, W).
        loss: (N,).
        success: bool (N,).
    """

    def __init__(self, images: torch.Tensor, dtype: torch.dtype, samples: torch.Tensor, confirm: Judge | None) -> None:
        """Begin where nothing has been evaluated.

        Args:
            images: what stands for the samples until then, (N, 3, H, W); written to.
            dtype: of the losses.
            samples: the indices (N,) by which `confirm` knows them.
            confirm: asked about a success before it counts, if its loss is higher than at the sample's last refusal.
        """
        self.images, self._samples, self._confirm = images, samples, confirm
        self.loss = torch.full((len(images),), -torch.inf, dtype=dtype, device=images.device)
        self.success = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self._refused = self.loss.clone()  # the highest loss that `confirm` has turned down

    def update(
        self, rows: torch.Tensor, points: torch.Tensor, loss: torch.Tensor, success: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in one point of each of some samples; a loss that is NaN is never kept.

        Args:
            rows: which samples, (n,).
            points: (n, 3, H, W).
            loss: (n,).
            success: bool (n,), not confirmed yet.

        Returns:
            The successes that count (n,), and which of the n points are now the best of their samples.
        """
        if self._confirm is not None and bool(success.any()):
            asked = (success & (loss > self._refused[rows])).nonzero()[:, 0]
            success = torch.zeros_like(success)
            if len(asked):
                success[asked] = self._confirm(points[asked], self._samples[rows[asked]])
                denied = asked[~success[asked]]
                self._refused[rows[denied]] = loss[denied]
        better = ((loss > self.loss[rows]) | success).nonzero()[:, 0]
        self.images[rows[better]] = points[better]
        self.loss[rows[better]] = loss[better]
        self.success[rows] = success
        return success, better


def restart_seeds(
    count: int, restart: int, seeds: Sequence[int] | None, generator: torch.Generator | None
) -> list[int] | None:
    """Derive a seed per sample for one restart from the samples' own seeds or from a generator; None without either.

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
