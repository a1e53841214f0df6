"""Values outside the range that was agreed on: what they are most likely, and clamping that a loss can learn from."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rclip_metric.images.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD

OutOfRange = Literal["raise", "clamp", "ignore"]
CHOICES: tuple[OutOfRange, ...] = get_args(OutOfRange)

# Rounding in a resize or a cast may leave a range by this share of its width; anything more is another range.
TOLERANCE = 1e-3
# What a decoder without a last activation, or a resize that overshoots, may leave it by; [-1, 1] does by half.
_OVERSHOOT = 0.25

_STATISTICS = {"CLIP's": (CLIP_MEAN, CLIP_STD), "ImageNet's": (IMAGENET_MEAN, IMAGENET_STD)}


def check_choice(out_of_range: str) -> None:
    """Raise ValueError unless it is one of `CHOICES`.

    Example:
        >>> check_choice("clip")
        Traceback (most recent call last):
            ...
        ValueError: out_of_range must be raise, clamp or ignore, got 'clip'
    """
    if out_of_range not in CHOICES:
        raise ValueError(f"out_of_range must be raise, clamp or ignore, got {out_of_range!r}")


def clamp(images: Tensor) -> Tensor:
    """Clamp to [0, 1], passing on gradients that lead back into it.

    The gradient of an ordinary clamp is 0 outside, so that a pixel which left the range never returns. Here it is kept
    where a step of gradient descent, x - lr * g, moves the value towards the range: below 0 where g < 0, above 1 where
    g > 0. This is for a loss that is minimised; one that is maximised should be negated before `backward`.

    Args:
        images: Any shape, floating point. NaN stays NaN.

    Example:
        >>> x = torch.tensor([-0.1, -0.1, 0.5, 1.1, 1.1], requires_grad=True)
        >>> clamp(x).backward(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]))
        >>> x.grad
        tensor([ 0., -1.,  1.,  1.,  0.])
    """
    clamped: Tensor = _Clamp.apply(images)
    return clamped


class _Clamp(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor) -> Tensor:
        return images.clamp(0.0, 1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (images,) = ctx.saved_tensors
        leads_out = ((images < 0) & (gradient > 0)) | ((images > 1) & (gradient < 0))
        return gradient.masked_fill(leads_out, 0.0)


def likely_cause(low: float, high: float, lowest: float, highest: float, planes: Tensor | None, what: str) -> str:
    """Say what values outside a range most likely are, and what to do, as the end of a sentence.

    Args:
        low: Smallest value.
        high: Largest value; both finite.
        lowest: Where the range begins.
        highest: Where it ends.
        planes: The values with the colours first, (3, ...); None where there are no three.
        what: "images" for tensors, "array" for an array, which is read without settings.

    Example:
        >>> likely_cause(-0.02, 1.01, 0.0, 1.0, None, "images")
        'a slight overshoot: pass out_of_range="clamp", or clamp them'
        >>> likely_cause(-1.0, 0.9, 0.0, 1.0, None, "images")
        'they look like [-1, 1]: pass value_range=(-1, 1) if black is -1'
    """
    tensors = what != "array"
    signed = low >= -1.0 - 2 * TOLERANCE and high <= 1.0 + 2 * TOLERANCE
    overshoot = max(lowest - low, high - highest) <= _OVERSHOOT * (highest - lowest)
    if signed and (highest > 2 or not overshoot):
        fix = "value_range=(-1, 1)" if tensors else "(array + 1) / 2"
        return f"{'they look' if tensors else 'it looks'} like [-1, 1]: pass {fix} if black is -1"
    if overshoot:
        return f'a slight overshoot: pass out_of_range="clamp", or clamp {"them" if tensors else "it"}'
    if low >= -255.0 * TOLERANCE and high <= 255.0 * (1.0 + TOLERANCE):
        fix = "images / 255, uint8, or value_range=(0, 255)" if tensors else "array / 255, or uint8"
        return f"{'they look' if tensors else 'it looks'} like 0 to 255: pass {fix}"
    for whose, (mean, std) in _STATISTICS.items():
        if planes is not None and len(planes) == 3 and _normalised(planes, mean, std):
            looks = "they look" if tensors else "it looks"
            undone = f"pass {what} * std + mean"
            return f"{looks} normalised with {whose} mean and std: {undone}, the encoder normalises by itself"
    return f"undo any normalisation ({what} * std + mean): the encoder normalises by itself"


def _normalised(planes: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether every colour is in the range that [0, 1] becomes."""
    for plane, middle, scale in zip(planes, mean, std, strict=True):
        pixels = plane.float() * scale + middle
        if not (bool((pixels >= -TOLERANCE).all()) and bool((pixels <= 1.0 + TOLERANCE).all())):
            return False
    return True
