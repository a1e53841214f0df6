"""One metric's cost, measured in this process: what `timing` runs in a process of its own.

A pair is the similarity of two images, both of which go through the metric. A measurement is as many passes as fill a
twentieth of a second, at least one, in wall time and in processor time.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from rclip_metric.json_files import parse_json
from rclip_metric.train.benchmark.turns import Taken, Waiting, machine_record, timed
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.machine import device_record
from rclip_metric.train.runs.precision import bfloat16_is_fast, full_float32

SHORTEST = 0.05  # seconds of a measurement
LOADER = "rclip_metric.train.metrics:load_metric"
_OF_THE_MACHINE = ("kind", "cores", "threads", "load", "waiting", "torch")
# What our own metrics import when they are built.
LIBRARIES = ("huggingface_hub", "open_clip", "safetensors.torch", "timm.models", "torchvision.models")


@dataclass(frozen=True)
class TimingSettings:
    """What is measured in every visit of a metric.

    Attributes:
        device: cpu, cuda, cuda:1, ...
        batch_sizes: pairs at once.
        repeats: measurements of each batch size.
        warmup: passes before them.
        image_size: side of the images, for metrics that leave it open.
        seconds: a batch size that has taken so long gets no further measurement, after its first.
        load: "module:function", called as `function(name, device=..., image_size=...)`, gives the `Metric`.
        libraries: imported before the level of memory is taken: what a library takes is not what a metric takes.

    Example:
        >>> TimingSettings(batch_sizes=(8, 1)).batch_sizes
        (8, 1)
        >>> TimingSettings(repeats=0)
        Traceback (most recent call last):
        ValueError: timing needs batch sizes, repeats and an image size of at least 1, and has (1, 8), 0 and 224
    """

    device: str = "cpu"
    batch_sizes: tuple[int, ...] = (1, 8)
    repeats: int = 5
    warmup: int = 1
    image_size: int = 224
    seconds: float = 20.0
    load: str = LOADER
    libraries: tuple[str, ...] = LIBRARIES

    def __post_init__(self) -> None:
        """Check the fields."""
        if min((self.repeats, self.image_size, *self.batch_sizes), default=0) < 1 or not self.batch_sizes:
            raise ValueError(
                f"timing needs batch sizes, repeats and an image size of at least 1, and has {self.batch_sizes}, "
                f"{self.repeats} and {self.image_size}"
            )


class Visit(TypedDict):
    """What one process measured: JSON.

    Attributes:
        model: as the metric describes itself.
        image_size: side of its images.
        machine: device, kind, cores, threads, load, waiting, torch.
        pressure: the share of the visit in which some task of the machine waited for a core; None where the system does
            not say.
        rates: {batch size: pairs per second of each measurement}.
        processor: {batch size: seconds of processor time per pair of each measurement}.
        bytes: {batch size: peak memory during its passes, above the level before the metric was built}.
        peak: of building and all passes, in bytes above that level.
        left_out: {batch size: a sentence}.
    """

    model: dict[str, Any]
    image_size: int
    machine: dict[str, Any]
    pressure: float | None
    rates: dict[str, list[float]]
    processor: dict[str, list[float]]
    bytes: dict[str, float]
    peak: float
    left_out: dict[str, str]


def visit(name: str, precision: str, settings: TimingSettings) -> Visit:
    """Build a metric and measure it, in this process.

    Raises:
        ValueError: for bfloat16 where it is slow, and whatever building the metric raises.
    """
    device = torch.device(settings.device)
    if precision == "bfloat16" and not bfloat16_is_fast(device):
        raise ValueError(f"{settings.device} does not multiply bfloat16 in hardware, and would be slower than float32")
    for library in settings.libraries:
        importlib.import_module(library)
    module, _, function = settings.load.partition(":")
    load: Callable[..., Metric] = getattr(importlib.import_module(module), function)
    F.linear(*torch.rand(2, 256, 256, device=device))  # what the math library sets up for itself
    peak = Peak(device)
    metric = load(name, device=settings.device, image_size=settings.image_size)
    if precision == "bfloat16":
        metric = metric.in_bfloat16()
        gc.collect()
    highest = peak.above()
    x, y = _images(metric, max(settings.batch_sizes), settings.image_size)
    rates: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    left_out: dict[str, str] = {}
    waiting = Waiting()
    for size in settings.batch_sizes:
        peak.forget()
        try:
            count, runs = _measured(metric, x[:size], y[:size], settings)
            rates[str(size)] = [size * count / run.wall for run in runs]
            processor[str(size)] = [run.processor / (size * count) for run in runs]
            memory[str(size)] = peak.above()
        except Exception as error:
            left_out[str(size)] = _sentence(error)
        highest = max(highest, peak.above())
    machine = machine_record(device)
    return {
        "model": metric.describe(),
        "image_size": x.shape[-1],
        "machine": {"device": device_record(device), **{key: machine[key] for key in _OF_THE_MACHINE}},
        "pressure": waiting.share(),
        "rates": rates,
        "processor": processor,
        "bytes": memory,
        "peak": highest,
        "left_out": left_out,
    }


def _images(metric: Metric, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Draw two batches (count, 3, S, S) of smooth noise, a little like photographs, at the metric's own size S."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(2 * count):
        levels = torch.randint(256, (9 * 9 * 3,), generator=generator).tolist()
        image = Image.frombytes("RGB", (9, 9), bytes(levels)).resize((size, size), Image.Resampling.BICUBIC)
        made.append(metric.preprocess(image))
    images = torch.stack(made).to(metric.device)
    return images[:count], images[count:]


def _measured(metric: Metric, x: Tensor, y: Tensor, settings: TimingSettings) -> tuple[int, list[Taken]]:
    """Time so many passes at once, repeatedly, float32 in full precision."""

    def passes(count: int) -> Taken:
        def run() -> None:
            for _ in range(count):
                metric.similarities(x, metric.fix(y)[:, None])

        return timed(run, x.device)

    begun = time.perf_counter()
    runs: list[Taken] = []
    with full_float32(), torch.inference_mode():
        count = 1
        for _ in range(settings.warmup):
            count = max(1, math.ceil(SHORTEST / max(passes(1).wall, 1e-6)))
        while len(runs) < settings.repeats and (not runs or time.perf_counter() - begun < settings.seconds):
            runs.append(passes(count))
    return count, runs


class Peak:
    """Peak memory above where it began, in bytes: allocated on a GPU, resident elsewhere.

    On Linux the kernel lets a process forget its peak; where it does not, or there is no /proc, peaks are those since
    the process began, and what is above an earlier one is all that can be told.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin here."""
        self._device = device
        gc.collect()
        self.forget()
        self._base = self._highest()

    def forget(self) -> None:
        """Let the peak start again from what is in use now."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif os.access("/proc/self/clear_refs", os.W_OK):
            Path("/proc/self/clear_refs").write_text("5")

    def above(self) -> float:
        """Measure the peak since it was forgotten, above the beginning."""
        return max(0.0, self._highest() - self._base)

    def _highest(self) -> float:
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        status = Path("/proc/self/status")
        stated = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
        if stated:
            return 1024 * float(stated[1])
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def _sentence(error: Exception) -> str:
    """Quote the first line of an error, with its kind where it was not written for users."""
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, ValueError) and first else f"{type(error).__name__}: {first}"


def main() -> None:
    """Make one visit, as the only argument asks for it; the answer alone goes to standard output."""
    request = parse_json(sys.argv[1], "the request")
    answer_to = os.dup(1)
    os.dup2(2, 1)  # whatever a metric prints goes with the errors
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in request["settings"].items()}
    settings = TimingSettings(**fields)
    answer: dict[str, Any]
    try:
        answer = {"visit": visit(request["name"], request["precision"], settings)}
    except Exception as error:
        traceback.print_exc()
        answer = {"failed": _sentence(error)}
    with os.fdopen(answer_to, "w") as stream:
        json.dump(answer, stream)


if __name__ == "__main__":
    main()
