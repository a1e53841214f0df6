"""What a metric costs: pairs per second and memory, each metric in fresh processes, visited in rounds.

Every second round visits the metrics in reverse order, so that a machine that grows slower in the meantime is seen by
all alike; medians are over all rounds.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from rclip_metric.train.benchmark.timing_visit import Protocol, Visit

LOADER = "rclip_metric.train.metrics.registry:load_metric"
# What our own metrics import when they are built.
LIBRARIES = ("huggingface_hub", "open_clip", "safetensors.torch", "timm.models", "torchvision.models")
MEGABYTE = 1e6


def time_metrics(
    names: Sequence[str],
    *,
    device: str = "cpu",
    batch_sizes: Sequence[int] = (1, 8),
    repeats: int = 5,
    warmup: int = 1,
    image_size: int = 224,
    precisions: Sequence[str] = ("float32",),
    rounds: int = 2,
    seconds: float = 20.0,
    quiet: bool = False,
    load: str = LOADER,
    libraries: Sequence[str] = LIBRARIES,
) -> dict[str, dict[str, Any]]:
    """Measure what scoring costs with each of several metrics.

    Args:
        names: as ``load`` takes them.
        device: cpu, cuda, cuda:1, ...
        batch_sizes: pairs at once.
        repeats: measurements of each batch size in each round.
        warmup: passes before them.
        image_size: side of the images, for metrics that leave it open.
        precisions: "float32" (without TF32) and "bfloat16", which is left out where the device does not multiply it.
        rounds: visits of each metric.
        seconds: a batch size that has taken so long in a round gets no further measurement there, after its first.
        quiet: no progress bar.
        load: "module:function", called as ``function(name, device=..., image_size=...)``, gives the `Metric`.
        libraries: imported before the level of memory is taken: what a library takes is not what a metric takes.

    Returns:
        Per name, JSON: ``timing``, {precision: {batch size as text: {"pairs_per_second" (the median), "low", "high",
        "measurements", "memory_mb"}, "memory_mb"}}; ``left_out``, {what: why}; ``model``, ``image_size`` and
        ``machine``. Memory is the peak above the level before the metric was built, in 10^6 bytes, resident on a CPU
        and allocated on a GPU: during the passes of that batch size, and in all, building included. A metric that gave
        no figure is {"failed": a sentence}.

    Raises:
        ValueError: for settings that measure nothing.
    """
    # Ascending: what a larger batch leaves behind in the allocator is not a smaller one's.
    sizes = tuple(sorted(set(batch_sizes)))
    protocol = Protocol(device, sizes, repeats, warmup, image_size, seconds, load, tuple(libraries))
    if rounds < 1 or not precisions or not set(precisions) <= {"float32", "bfloat16"}:
        raise ValueError(
            f"timing needs at least 1 round and precisions out of float32 and bfloat16, and has {rounds} and "
            f"{', '.join(precisions) or 'none'}"
        )
    contestants = [(name, precision) for name in dict.fromkeys(names) for precision in dict.fromkeys(precisions)]
    visits: dict[tuple[str, str], list[Visit]] = {contestant: [] for contestant in contestants}
    failed: dict[tuple[str, str], str] = {}
    with tqdm(total=rounds * len(contestants), desc="timing", disable=True if quiet else None) as bar:
        for number in range(rounds):
            for contestant in contestants[:: -1 if number % 2 else 1]:
                if contestant not in failed:
                    found = in_a_fresh_process(*contestant, protocol)
                    if isinstance(found, str):
                        failed[contestant] = found
                    else:
                        visits[contestant].append(found)
                bar.update()
    return {
        name: _entry(
            {precision: visits[name, precision] for precision in dict.fromkeys(precisions)},
            {precision: failed[name, precision] for precision in precisions if (name, precision) in failed},
        )
        for name in dict.fromkeys(names)
    }


def _entry(visits: dict[str, list[Visit]], failed: dict[str, str]) -> dict[str, Any]:
    """One metric's figures, from the visits of each precision and the sentence of each that failed."""
    timing: dict[str, dict[str, Any]] = {}
    left_out = dict(failed)
    for precision, found in visits.items():
        rates: dict[str, list[float]] = {}
        for visit in found:
            for size, values in visit["rates"].items():
                rates.setdefault(size, []).extend(values)
            left_out |= {f"{precision}, {size} at once": why for size, why in visit["left_out"].items()}
        if rates:
            cells: dict[str, Any] = {}
            for size in sorted(rates, key=int):
                memory = max(visit["bytes"].get(size, 0.0) for visit in found)
                cells[size] = _summary(rates[size]) | {"memory_mb": round(memory / MEGABYTE, 1)}
            timing[precision] = cells | {"memory_mb": round(max(visit["peak"] for visit in found) / MEGABYTE, 1)}
    if not timing:
        return {"failed": next(iter(left_out.values()))}
    first = next(visit for found in visits.values() for visit in found)
    about = {"model": first["model"], "image_size": first["image_size"], "machine": first["machine"]}
    return {"timing": timing, "left_out": left_out, **about}


def _summary(rates: Sequence[float]) -> dict[str, Any]:
    shown = {"pairs_per_second": statistics.median(rates), "low": min(rates), "high": max(rates)}
    return {name: float(f"{value:.5g}") for name, value in shown.items()} | {"measurements": len(rates)}


def in_a_fresh_process(name: str, precision: str, protocol: Protocol) -> Visit | str:
    """A visit, or a sentence that says why there is none; the process imports from where this one does."""
    path = os.pathsep.join(dict.fromkeys(entry or os.getcwd() for entry in sys.path))
    request = json.dumps({"name": name, "precision": precision, "protocol": asdict(protocol)})
    done = subprocess.run(
        [sys.executable, "-m", "rclip_metric.train.benchmark.timing_visit", request],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode < 0:
        killed = signal.Signals(-done.returncode).name
        return f"{name}: its process was ended by {killed}, as it is where memory runs out"
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return f"{name}: its process ended with code {done.returncode}: {''.join(last)}"
    answer: dict[str, Any] = json.loads(done.stdout)
    found: Visit | str = answer.get("failed") or answer["visit"]
    return found
