"""What a metric costs: pairs per second, processor time and memory, each metric in fresh processes, visited in rounds.

Every second round visits the metrics in reverse order, so that a machine that grows slower in the meantime is seen by
all alike; medians are over all rounds. Ratios are of processor time within a round, which other work on the machine
changes least, and between metrics in the same type of number: what the type gains is beside them.
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
    reference: str | None = None,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measure what scoring costs with each of several metrics.

    Args:
        names: as the settings' `load` takes them.
        settings: what is measured in each round.
        precisions: "float32" (without TF32) and "bfloat16", which is left out where the device does not multiply it.
        rounds: visits of each metric.
        reference: the name that processor time is compared with; by default the first.
        quiet: no progress bar.

    Returns:
        Per name, JSON: `timing`, {precision: {batch size as text: {"pairs_per_second" (the median), "low", "high",
        "measurements", "processor", "memory_mb"}, "memory_mb"}}; `left_out`, {what: why}; `model`, `image_size` and
        `machine`; `pressure`, {precision: the share of each visit in which some task waited for a core}.
        `processor` is {"ms_per_pair" (the median), "low", "high"} in milliseconds of all threads. Where the reference
        has a figure of that precision and batch size, a cell also has `ratio`, {"times" (the median over rounds),
        "low", "high", "of", "reference"}: how many times the reference's "processor" time it took; on a GPU, "wall".
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
    if reference is not None and reference not in names:
        raise ValueError(f"the reference must be one of the metrics ({', '.join(names)}), and is {reference}")
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
    _compare(entries, visits, reference or next(iter(names), ""))
    return entries


def _compare(entries: dict[str, dict[str, Any]], visits: dict[tuple[str, str], list[Visit]], reference: str) -> None:
    """Add to each cell how many times as long as the reference it took."""
    for name, entry in entries.items():
        for precision, cells in entry.get("timing", {}).items():
            rounds = list(zip(visits[name, precision], visits[reference, precision], strict=False))
            for size in filter(str.isdecimal, cells):
                both = [pair for pair in rounds if all(size in visit["processor"] for visit in pair)]
                # A processor that waits for a GPU spends time, and does nothing.
                of = "wall" if entry["machine"]["device"]["type"] == "cuda" else "processor"
                ratios = [_seconds(own, size, of) / _seconds(other, size, of) for own, other in both]
                if ratios:
                    cells[size]["ratio"] = _summary("times", ratios) | {"of": of, "reference": reference}


def _seconds(visit: Visit, size: str, of: str) -> float:
    """Find the seconds that a pair took in one visit."""
    return (
        statistics.median(visit["processor"][size])
        if of == "processor"
        else 1 / statistics.median(visit["rates"][size])
    )


def _entry(visits: dict[str, list[Visit]], failed: dict[str, str]) -> dict[str, Any]:
    """Sum up one metric, from the visits of each precision and the sentence of each that failed."""
    timing: dict[str, dict[str, Any]] = {}
    left_out = dict(failed)
    for precision, found in visits.items():
        rates: dict[str, list[float]] = {}
        processor: dict[str, list[float]] = {}
        for visit in found:
            for size, values in visit["rates"].items():
                rates.setdefault(size, []).extend(values)
                processor.setdefault(size, []).extend(visit["processor"][size])
            left_out |= {f"{precision}, {size} at once": why for size, why in visit["left_out"].items()}
        if rates:
            cells: dict[str, Any] = {}
            for size in sorted(rates, key=int):
                memory = max(visit["bytes"].get(size, 0.0) for visit in found)
                cells[size] = _summary("pairs_per_second", rates[size]) | {
                    "measurements": len(rates[size]),
                    "processor": _summary("ms_per_pair", [1000 * seconds for seconds in processor[size]]),
                    "memory_mb": round(memory / MEGABYTE, 1),
                }
            timing[precision] = cells | {"memory_mb": round(max(visit["peak"] for visit in found) / MEGABYTE, 1)}
    if not timing:
        return {"failed": next(iter(left_out.values()))}
    first = next(visit for found in visits.values() for visit in found)
    about = {"model": first["model"], "image_size": first["image_size"], "machine": first["machine"]}
    pressure = {precision: [visit["pressure"] for visit in found] for precision, found in visits.items() if found}
    return {"timing": timing, "left_out": left_out, **about, "pressure": pressure}


def _summary(name: str, values: Sequence[float]) -> dict[str, Any]:
    return _rounded({name: statistics.median(values), "low": min(values), "high": max(values)})


def _rounded(figures: dict[str, float]) -> dict[str, Any]:
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


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
