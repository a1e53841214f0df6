"""Which precision is faster for a tower's passes: measured, since what a processor can do is not what pays."""

from __future__ import annotations

import copy
import time
from typing import Literal

import torch

from rclip_metric.encoder import Encoder
from rclip_metric.towers import Architecture
from rclip_metric.train.evaluation.metric import EncoderMetric, Metric
from rclip_metric.train.evaluation.robustness import resolved_precision

_IMAGES, _REPEATS = 4, 3
_measured: dict[tuple[Architecture, int], Literal["float32", "bfloat16"]] = {}  # one process decides alike throughout
_WORTH = 1.15  # bfloat16 rounds: a gain within the noise of the measurement is none


def encoder_precision(precision: str, encoder: Encoder) -> Literal["float32", "bfloat16"]:
    """Resolve "auto" for passes through one encoder, forward and backward to the pixels.

    On a CPU that has bfloat16 products, a tower of convolutions is timed in both (processor time, a second or less):
    depthwise ones have no such products, and are slower on some. Everything else goes by `resolved_precision`.

    Args:
        precision: "float32", "bfloat16" or "auto".
        encoder: On its device, in float32.

    Raises:
        ValueError: for an unknown precision.
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


def metric_precision(precision: str, metric: Metric) -> Literal["float32", "bfloat16"]:
    """Resolve "auto" for the passes of an attack on a metric: of ours by `encoder_precision`, else by the device."""
    if isinstance(metric, EncoderMetric):
        return encoder_precision(precision, metric.metric.encoder)
    return resolved_precision(precision, metric.device)


def _seconds(encoder: Encoder) -> float:
    """Processor time of the fastest of a few passes."""
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
