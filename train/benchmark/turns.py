"""Times that may be compared: contestants take turns in one run, in processor and in wall time, beside the load.

A busy machine makes everything slower, but not everything alike: so each round times each contestant once, every
second round in reverse order, and what is compared is the ratio within a round. Processor time is that of all threads
and of finished child processes, which other work on the machine changes least.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rclip_metric.train.runs.machine import device_record

PRESSURE = Path("/proc/pressure/cpu")


class Taken(NamedTuple):
    """What `timed` measured of one run: seconds, and what the run returned."""

    wall: float
    processor: float
    result: Any


@dataclass(frozen=True)
class Times:
    """Seconds of one contestant, a figure per round.

    Example:
        >>> Times(wall=(2.0, 4.0, 3.0), processor=(1.0, 1.5, 1.25)).to_dict()["wall_s"]
        {'median': 3.0, 'low': 2.0, 'high': 4.0}
    """

    wall: tuple[float, ...]
    processor: tuple[float, ...]

    @classmethod
    def of(cls, runs: Sequence[Taken]) -> Times:
        """Collect what `timed` measured, a run per round.

        Example:
            >>> Times.of([Taken(2.0, 1.0, None), Taken(4.0, 3.0, None)])
            Times(wall=(2.0, 4.0), processor=(1.0, 3.0))
        """
        return cls(tuple(run.wall for run in runs), tuple(run.processor for run in runs))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON: `wall_s` and `processor_s`, each {"median", "low", "high"} in seconds, and `rounds`."""
        shown = {
            kind: {"median": statistics.median(values), "low": min(values), "high": max(values)}
            for kind, values in (("wall_s", self.wall), ("processor_s", self.processor))
        }
        return {**shown, "rounds": len(self.wall)}


@dataclass(frozen=True)
class Turns:
    """What `take_turns` measured.

    Attributes:
        times: of each contestant.
        results: what each returned last.
        pressure: the share of the time, in [0, 1], in which some task of the machine waited for a core; None where
            the system does not say.
    """

    times: dict[str, Times]
    results: dict[str, Any]
    pressure: float | None

    @property
    def seconds(self) -> dict[str, float]:
        """The median wall time of each in seconds."""
        return {name: statistics.median(times.wall) for name, times in self.times.items()}

    @property
    def processor(self) -> dict[str, float]:
        """The median processor time of each in seconds."""
        return {name: statistics.median(times.processor) for name, times in self.times.items()}

    def ratio(self, name: str, to: str, kind: str = "processor") -> float:
        """Return how many times as long `name` took as `to`: the median over rounds of the ratio within a round.

        Args:
            name: A contestant.
            to: Another.
            kind: "processor" or "wall".

        Raises:
            ValueError: if the two have no round in common.

        Example:
            >>> times = {"a": Times((2.0, 8.0), (2.0, 8.0)), "b": Times((1.0, 4.0), (1.0, 4.0))}
            >>> Turns(times, {}, None).ratio("a", "b")
            2.0
        """
        return statistics.median(self.ratios(name, to, kind))

    def ratios(self, name: str, to: str, kind: str = "processor") -> list[float]:
        """Return what `ratio` is the median of: a figure per round.

        Example:
            >>> times = {"a": Times((2.0, 9.0), (2.0, 9.0)), "b": Times((1.0, 4.5), (1.0, 3.0))}
            >>> Turns(times, {}, None).ratios("a", "b")
            [2.0, 3.0]
        """
        pairs = zip(getattr(self.times[name], kind), getattr(self.times[to], kind), strict=False)
        ratios = [one / other for one, other in pairs]
        if not ratios:
            raise ValueError(f"{name} and {to} have no round in common")
        return ratios

    def to_dict(self) -> dict[str, Any]:
        """Return JSON: `times` by contestant, and `pressure`."""
        return {"times": {name: times.to_dict() for name, times in self.times.items()}, "pressure": self.pressure}


def take_turns(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    *,
    device: torch.device | str = "cpu",
    warm_up: int = 1,
    long: float = float("inf"),
    prepare: Callable[[int], object] = lambda number: None,
    told: Callable[[str, float], object] = lambda name, seconds: None,
) -> Turns:
    """Time contestants in turn: A B, B A, A B, ...

    Args:
        contestants: What is timed, by name.
        rounds: How often each.
        device: Where they compute; a GPU is waited for.
        warm_up: Runs of each beforehand that do not count: the first pays for pages, primitives and lazy imports.
        long: A contestant whose warm-up takes more seconds than this is not run again: that run counts.
        prepare: Called with the number of each round before it, and with 0 before the warm-up, not timed: for rounds
            that are each about other data.
        told: Called after each run with the contestant's name and its wall time in seconds, for progress.

    Raises:
        ValueError: for less than one round.

    Example:
        >>> turns = take_turns({"sum": lambda: sum(range(10_000)), "len": lambda: len(range(10_000))}, 3)
        >>> turns.results["sum"], turns.ratio("sum", "len") > 1
        (49995000, True)
    """
    if rounds < 1:
        raise ValueError(f"a comparison needs at least 1 round, and has {rounds}")
    taken: dict[str, list[Taken]] = {name: [] for name in contestants}
    results: dict[str, Any] = {}
    waiting = Waiting()

    def run(name: str) -> Taken:
        found = timed(contestants[name], device)
        results[name] = found.result
        told(name, found.wall)
        return found._replace(result=None)

    once = set()
    prepare(0)
    for name in contestants:
        for _ in range(warm_up):
            if name not in once and (found := run(name)).wall > long:
                once.add(name)
                taken[name].append(found)
    order = [name for name in contestants if name not in once]
    for number in range(rounds):
        if number or warm_up:
            prepare(number)
        for name in reversed(order) if number % 2 else order:
            taken[name].append(run(name))
    return Turns({name: Times.of(found) for name, found in taken.items()}, results, waiting.share())


def timed(work: Callable[[], object], device: torch.device | str = "cpu") -> Taken:
    """Time one run, of which there is a garbage collection before the clock starts.

    Example:
        >>> found = timed(lambda: sum(range(1_000_000)))
        >>> found.result, found.wall > 0
        (499999500000, True)
    """
    gc.collect()
    synchronize(device)
    start, spent = time.perf_counter(), processor_seconds()
    result = work()
    synchronize(device)
    return Taken(time.perf_counter() - start, processor_seconds() - spent, result)


class Waiting:
    """The share of the time since this was made, in [0, 1], in which some task of the machine waited for a core.

    Example:
        >>> waiting = Waiting()
        >>> 0 <= (waiting.share() or 0.0) <= 1
        True
    """

    def __init__(self) -> None:
        """Begin here."""
        self._begun, self._waited = time.perf_counter(), _waited()

    def share(self) -> float | None:
        """Return the share; None where the system does not say."""
        if self._waited is None or (waited := _waited()) is None:
            return None
        # The kernel's clock is read a little later than ours.
        return min(1.0, (waited - self._waited) / max(time.perf_counter() - self._begun, 1e-9))


def processor_seconds() -> float:
    """Return the processor time so far of all threads of this process and of its children that have ended.

    Example:
        >>> processor_seconds() > 0
        True
    """
    if sys.platform == "win32":  # which does not add up what children took
        return time.process_time()
    import resource

    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def machine_record(device: torch.device | str = "cpu") -> dict[str, Any]:
    """State the machine that a benchmark runs on.

    Returns:
        JSON: what `device_record` says of the device, `kind` ("GPU", "AMX", "AVX-512", "AVX2", or what the processor
        has), `cores`, `threads`, `load` (of the last minute; None where the system does not say), `waiting` (the OpenMP
        wait policy, if it is set), `torch`.

    Example:
        >>> machine_record()["kind"] in {"AMX", "AVX-512", "AVX2", "DEFAULT", "NO AVX"}
        True
    """
    found = device_record(torch.device(device))
    return {
        **found,
        "kind": kind_of(found),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "waiting": os.environ.get("OMP_WAIT_POLICY"),
        "torch": torch.__version__,
    }


def kind_of(device: Mapping[str, Any]) -> str | None:
    """Tell the kind of a machine by what `device_record` says; None for a record of before it said what decides that.

    Example:
        >>> kind_of({"type": "cpu", "capability": "AVX512", "bfloat16": ["avx512_bf16"]})
        'AVX-512'
        >>> kind_of({"type": "cuda", "name": "H100"}), kind_of({"type": "cpu", "name": "a processor"})
        ('GPU', None)
    """
    if "amx_bf16" in device.get("bfloat16", []):
        return "AMX"
    if capability := device.get("capability"):
        return str(capability).replace("AVX512", "AVX-512")
    kind = device.get("type")
    return None if kind in (None, "cpu") else {"cuda": "GPU"}.get(kind, str(kind))


def pressure() -> str | None:
    """Return Linux's line of how long some task has waited for a core; None where the system does not say.

    Example:
        >>> (pressure() or "some avg10=0.00").startswith("some avg10=")
        True
    """
    try:
        return PRESSURE.read_text().splitlines()[0]
    except (OSError, IndexError):  # an older kernel, another system, or switched off
        return None


def _waited() -> float | None:
    """Read for how many seconds so far some task has waited for a core."""
    stated = pressure()
    return None if stated is None else float(stated.rpartition("total=")[2]) / 1e6


def synchronize(device: torch.device | str) -> None:
    """Wait until a GPU has done all that it was given.

    Example:
        >>> synchronize("cpu")
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
