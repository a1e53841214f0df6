"""What a short command costs as a whole, against a process that only imports torch.

    python examples/benchmark_startup.py
    python examples/benchmark_startup.py --repeats 7 --out results/

Every command is a process of its own, from its first instruction to its end: imports, the model that is built, its
first embeddings. All take turns (A B C, C B A, ...) on the same two pictures; the figures are medians of the
processor time of all their threads and of the wall time, and of the processor time over that of `import torch` in the
same turn. Bytecode is kept in a folder of its own, as an installed package has it, and made by a turn that does not
count. Where nothing else runs, the two times are nearly the same; the load is written beside them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rclip_metric.train.benchmark.report import Report
from rclip_metric.train.benchmark.turns import take_turns

IMAGES = Path(__file__).parent / "images"
PAIR = (str(IMAGES / "reference.png"), str(IMAGES / "closer.png"))
BASE = "import torch"
SHORT = ("--help", "--version", "score --help", "eval nights --help", "train fare --help", "models")
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


def run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a process to its end."""
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")


def measure(names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Let the commands take turns, and give the figures of each."""
    with tempfile.TemporaryDirectory(prefix="rclip-metric-benchmark-") as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        commands = {name: partial(run, COMMANDS[name], environment) for name in names}
        turns = take_turns(commands, repeats, told=lambda name, s: print(f"{name}: {s:.2f} s wall", flush=True))
    return {
        name: {
            "processor seconds": round(turns.processor[name], 3),
            "wall seconds": round(turns.seconds[name], 3),
            "over import torch": round(turns.ratio(name, BASE), 3),
            "each": [round(seconds, 3) for seconds in turns.times[name].processor],
        }
        for name in names
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the report to this .json, or to one in this folder")
    arguments = parser.parse_args(argv)
    names = [name for name in COMMANDS if name in {BASE, *arguments.only}]
    report = Report("benchmark_startup", arguments.out, {"repeats": arguments.repeats})
    results = measure(names, arguments.repeats)
    width = max(map(len, names))
    for name, found in results.items():
        report.add(name, found)
        seconds = f"{found['processor seconds']:8.2f} s processor  {found['wall seconds']:8.2f} s wall"
        print(f"{name:<{width}} {seconds}  {found['over import torch']:6.2f} times {BASE}")
    return report.record


if __name__ == "__main__":
    main()
