"""The precision of passes: what "auto" means for a device or an encoder, and float32 that is nothing less."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch

from rclip_metric.train.runs.config import PRECISIONS
from rclip_metric.train.runs.machine import bfloat16_instructions

if TYPE_CHECKING:
    from rclip_metric.encoder import Architecture, Encoder


_IMAGES, _REPEATS = 4, 3
_measured: dict[tuple[Architecture, int], Literal["float32", "bfloat16"]] = {}  # one process decides alike throughout
_WORTH = 1.15  # bfloat16 rounds: a gain within the noise of the measurement is none


def bfloat16_is_fast(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 in hardware: NVIDIA from Ampere, x86 with AMX or AVX512-BF16.

    Example:
        >>> bfloat16_is_fast(torch.device("cpu")) == bool(bfloat16_instructions())
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and bool(bfloat16_instructions())


def resolved_precision(precision: str, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Find what "auto" means on a device.

    Raises:
        ValueError: for an unknown precision.

    Example:
        >>> resolved_precision("bfloat16", torch.device("cpu"))
        'bfloat16'
        >>> resolved_precision("half", torch.device("cpu"))
        Traceback (most recent call last):
        ValueError: precision must be one of float32, bfloat16, auto, not 'half'
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "auto":
        return "bfloat16" if bfloat16_is_fast(device) else "float32"
    return "bfloat16" if precision == "bfloat16" else "float32"


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products without TF32, as reported numbers need; the former setting comes back.

    Example:
        >>> with full_float32():
        ...     torch.backends.cuda.matmul.allow_tf32
        False
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def encoder_precision(precision: str, encoder: Encoder) -> Literal["float32", "bfloat16"]:
    """Resolve "auto" for passes through one encoder, forward and backward to the pixels.

    On a CPU that has bfloat16 products, a tower of convolutions is timed in both (processor time, a second or less),
    since what a processor can do is not what pays: depthwise ones have no such products, and are slower on some.
    Everything else goes by `resolved_precision`.

    Args:
        precision: "float32", "bfloat16" or "auto".
        encoder: on its device, in float32.

    Raises:
        ValueError: for an unknown precision.

    Example:
        >>> from rclip_metric.weights import load_encoder
        >>> encoder_precision("float32", load_encoder("tiny"))
        'float32'
    """
    resolved = resolved_precision(precision, encoder.mean.device)
    if precision != "auto" or resolved == "float32" or encoder.mean.device.type != "cpu" or not encoder.convolutional:
        return resolved
    kind = encoder.architecture, encoder.preprocessing.crop
    if kind not in _measured:
        plain = copy.deepcopy(encoder).eval().requires_grad_(False)
        half = copy.deepcopy(plain).bfloat16()
        _measured[kind] = "bfloat16" if _seconds(half) * _WORTH < _seconds(plain) else "float32"
    return _measured[kind]


def _seconds(encoder: Encoder) -> float:
    """Measure the processor time of the fastest of a few passes."""
    side = encoder.preprocessing.crop
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(_IMAGES, 3, side, side, generator=generator).requires_grad_()
    times = []
    with torch.enable_grad():
        for _ in range(_REPEATS + 1):  # the first one warms up
            begun = time.process_time()
            torch.autograd.grad(encoder(pixels).sum(), pixels)
            times.append(time.process_time() - begun)
    return min(times[1:])
