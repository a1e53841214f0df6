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
from dataclasses import asdict, replace
from itertools import product
from typing import Any

from rclip_metric.json_files import parse_json
from rclip_metric.progress import progress
from rclip_metric.train.benchmark.timing_visit import TimingSettings, Visit

MEGABYTE = 1e6
VISIT = "rclip_metric.train.benchmark.timing_visit"
DEFAULTS = TimingSettings()


def time_metrics(
    names: Sequence[str],
    settings: TimingSettings = DEFAULTS,
    *,
    precisions: Sequence[str] = ("float32",),
    rounds: int = 2,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measure what scoring costs with each of several metrics.

    Args:
        names: as the settings' `load` takes them.
        settings: what is measured in each round.
        precisions: "float32" (without TF32) and "bfloat16", which is left out where the device does not multiply it.
        rounds: visits of each metric.
        quiet: no progress bar.

    Returns:
        Per name, JSON: `timing`, {precision: {batch size as text: {"pairs_per_second" (the median), "low", "high",
        "measurements", "memory_mb"}, "memory_mb"}}; `left_out`, {what: why}; `model`, `image_size` and `machine`.
        Memory is the peak above the level before the metric was built, in 10^6 bytes, resident on a CPU and allocated
        on a GPU: during the passes of that batch size, and in all, building included. A metric that gave no figure is
        {"failed": a sentence}.

    Raises:
        ValueError: for settings that measure nothing.

    Example:
        >>> time_metrics([], quiet=True)  # {"tiny": {"timing": {"float32": ...}, ...}} of ["tiny"], in processes
        {}
    """
    if rounds < 1 or not precisions or not set(precisions) <= {"float32", "bfloat16"}:
        raise ValueError(
            f"timing needs at least 1 round and precisions out of float32 and bfloat16, and has {rounds} and "
            f"{', '.join(precisions) or 'none'}"
        )
    # Ascending: what a larger batch leaves behind in the allocator is not a smaller one's.
    settings = replace(settings, batch_sizes=tuple(sorted(set(settings.batch_sizes))))
    contestants = list(product(dict.fromkeys(names), dict.fromkeys(precisions)))
    turns = [turn for number in range(rounds) for turn in contestants[:: -1 if number % 2 else 1]]
    visits: dict[tuple[str, str], list[Visit]] = {contestant: [] for contestant in contestants}
    failed: dict[tuple[str, str], str] = {}
    for name, precision in progress(turns, label="timing", unit="turn", quiet=quiet):
        if (name, precision) not in failed:
            found = in_a_fresh_process(name, precision, settings)
            if isinstance(found, str):
                failed[name, precision] = found
            else:
                visits[name, precision].append(found)
    entries = {}
    for name in dict.fromkeys(names):
        own = {precision: found for (other, precision), found in visits.items() if other == name}
        entries[name] = _entry(own, {precision: why for (other, precision), why in failed.items() if other == name})
    return entries


def _entry(visits: dict[str, list[Visit]], failed: dict[str, str]) -> dict[str, Any]:
    """Sum up one metric, from the visits of each precision and the sentence of each that failed."""
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


def in_a_fresh_process(name: str, precision: str, settings: TimingSettings) -> Visit | str:
    """Make a visit, or say why there is none; the process imports from where this one does."""
    path = os.pathsep.join(dict.fromkeys(entry or os.getcwd() for entry in sys.path))
    request = json.dumps({"name": name, "precision": precision, "settings": asdict(settings)})
    done = subprocess.run(
        [sys.executable, "-c", f"from {VISIT} import main; main()", request],
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
    answer: dict[str, Any] = parse_json(done.stdout, f"the answer of {name}'s process")
    found: Visit | str = answer.get("failed") or answer["visit"]
    return found
