"""Many pairs from Python: processor time against `score` in a loop, and the peak of memory as the pairs become more.

    python examples/benchmark_pairs.py --out results/

Contestants take turns within one run, with the model `tiny` and noise of 160 x 120 pixels; the figures are medians.
Memory is read from /proc (Linux).
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODEL = "tiny"
PAIRS, ROWS = (100, 20_000), (20, 300)  # how many pairs of ten files; how many files all pairs are taken of


def draw(folder: Path, count: int) -> list[Path]:
    """Write images of noise."""
    import numpy as np
    from PIL import Image

    files = [folder / f"{place:04}.png" for place in range(count)]
    for seed, file in enumerate(files):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (120, 160, 3), np.uint8)).save(file)
    return files


def times(files: Sequence[Path], repeats: int) -> dict[str, float]:
    """Processor seconds of each way to compare one file with all others, and their ratio."""
    from rclip_metric import score, score_pairs
    from rclip_metric.train.benchmark.turns import take_turns

    pairs = [(files[0], file) for file in files[1:]]
    ways: dict[str, Callable[[], object]] = {
        "score in a loop": lambda: [score(a, b, MODEL) for a, b in pairs],
        "score_pairs": lambda: list(score_pairs(pairs, MODEL)),
    }
    turns = take_turns(ways, repeats)
    return {**turns.processor, "times less": turns.ratio("score in a loop", "score_pairs")}


def peak(kind: str, count: int, folder: str) -> float:
    """Peak of this process in MB after so many rows."""
    from rclip_metric import score_all, score_pairs

    files = sorted(Path(folder).iterdir())
    if kind == "score_pairs":
        rows = score_pairs(itertools.islice(itertools.cycle(itertools.permutations(files[:10], 2)), count), MODEL)
    else:
        rows = score_all(folder, MODEL)
    deque(rows, maxlen=0)
    status = Path("/proc/self/status").read_text()  # of this program alone; getrusage begins with its parent's peak
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def growth() -> dict[str, dict[str, float]]:
    """Peaks in MB, each from a process of its own."""
    found: dict[str, dict[str, float]] = {}
    for kind, counts in (("score_pairs", PAIRS), ("score_all", ROWS)):
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                draw(Path(folder), count if kind == "score_all" else 10)
                code = f"import benchmark_pairs as b; print(b.peak({kind!r}, {count}, {folder!r}))"
                command = [sys.executable, "-c", code]
                done = subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True)
            rows = count if kind == "score_pairs" else count * (count - 1) // 2
            found.setdefault(kind, {})[f"{rows} rows, MB"] = float(done.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=33, help="files to compare (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the report to this .json, or to one in this folder")
    arguments = parser.parse_args(argv)

    from rclip_metric.train.benchmark.report import Report, outlined

    settings = {"model": MODEL, "files": arguments.count, "repeats": arguments.repeats}
    report = Report("benchmark_pairs", arguments.out, settings)
    with tempfile.TemporaryDirectory() as folder:
        report.add("processor seconds", times(draw(Path(folder), arguments.count), arguments.repeats))
    report.add("peak", growth())
    print(outlined("results", report.record["results"]))
    return report.record


if __name__ == "__main__":
    main()
