"""What a short command costs as a whole, against a process that only imports torch.

    python examples/benchmark_startup.py
    python examples/benchmark_startup.py --repeats 7 --out results/benchmark_startup.json

Every command is a process of its own, from its first instruction to its end: imports, the model that is built, its
first embeddings. All take turns (A B C, C B A, ...) on the same two pictures; the figures are medians of the
processor time of all their threads and of the wall time, and of the processor time over that of `import torch` in the
same turn. Bytecode is kept in a folder of its own, as an installed package has it, and made by a turn that does not
count. Where nothing else runs, the two times are nearly the same; the load is written beside them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent / "images"
PAIR = (str(IMAGES / "reference.png"), str(IMAGES / "closer.png"))
BASE = "import torch"
SHORT = ("--help", "--version", "score --help")
LOADING = {"score": ("tiny", "r-lite-f"), "rank": ("tiny",), "diff": ("tiny",)}
COMMANDS: dict[str, Sequence[str]] = {
    "python": ("-c", ""),
    BASE: ("-c", BASE),
    **{f"rclip-metric {words}": ("-m", "rclip_metric", *words.split()) for words in SHORT},
    **{
        f"rclip-metric {command} --model {model}": ("-m", "rclip_metric", command, "--model", model, "--quiet", *PAIR)
        for command, models in LOADING.items()
        for model in models
    },
}
OPEN_MP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")


def cost(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """Run a process to its end: its seconds of processor time, user's and system's, and of wall time."""
    from rclip_metric.train.benchmark.turns import processor_seconds

    before, start = processor_seconds(), time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    wall, used = time.perf_counter() - start, processor_seconds() - before
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return {"processor": used, "wall": wall}


def measure(names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Let the commands take turns, and give the figures of each."""
    with tempfile.TemporaryDirectory(prefix="rclip-metric-benchmark-") as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        turns: list[dict[str, dict[str, float]]] = []
        for turn in range(repeats + 1):
            order = reversed(names) if turn % 2 else names  # who comes after a short command finds another machine
            turns.append({name: cost(COMMANDS[name], environment) for name in order})
            print(
                f"turn {turn}:", {name: round(found["processor"], 2) for name, found in turns[-1].items()}, flush=True
            )
    counted = turns[1:]
    return {
        name: {
            **{
                f"{kind} seconds": round(statistics.median(turn[name][kind] for turn in counted), 3)
                for kind in ("processor", "wall")
            },
            "over import torch": round(
                statistics.median(turn[name]["processor"] / turn[BASE]["processor"] for turn in counted), 3
            ),
            "each": [round(turn[name]["processor"], 3) for turn in counted],
        }
        for name in names
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the report to this JSON file")
    arguments = parser.parse_args(argv)
    names = [name for name in COMMANDS if name in {BASE, *arguments.only}]
    from rclip_metric.train.benchmark.turns import pressure

    before = pressure()
    results = measure(names, arguments.repeats)
    width = max(map(len, names))
    for name, found in results.items():
        seconds = f"{found['processor seconds']:8.2f} s processor  {found['wall seconds']:8.2f} s wall"
        print(f"{name:<{width}} {seconds}  {found['over import torch']:6.2f} times {BASE}")
    import torch

    from rclip_metric.train.runs.machine import device_record

    report = {
        "machine": {
            "device": device_record(torch.device("cpu")),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "pressure before": before,
            "pressure after": pressure(),
        },
        "settings": {"repeats": arguments.repeats, **{name: os.environ.get(name) for name in OPEN_MP}},
        "results": results,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()
