"""Do robust outcomes depend on how samples are batched, or on the number of processes?

    python examples/independence.py --data data/scenes/nights --out results/independence.json

One attack on the same triplets with batches of 1, 7 and 64, and with two processes (torchrun, gloo). Random starts
belong to the samples, so only the rounding of matrix products can differ; at least 99.9 % of the outcomes should be
equal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rclip_metric.train.evaluation.results import load_results, unpack

RUNS = {"batch 64": (64, 1), "batch 7": (7, 1), "batch 1": (1, 1), "batch 64, two processes": (64, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="NIGHTS format")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", default="4/255")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    outcomes, found = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (batch_size, processes) in RUNS.items():
            out = Path(folder) / name.replace(" ", "-")
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            command = [sys.executable, *(torchrun if processes > 1 else []), "-m", "rclip_metric", "eval", "nights"]
            command += ["--data", str(options.data), "--model", options.model, "--limit", str(options.limit)]
            command += ["--norm", options.norm, "--eps", options.eps, "--steps", str(options.steps)]
            command += ["--batch-size", str(batch_size), "--device", "cpu", "--quiet", "--out", str(out)]
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            [record] = load_results([out])
            outcomes[name] = {row.key: row for row in unpack(record)}
            first = outcomes["batch 64"]
            rows = outcomes[name].values()
            equal = sum(row.robust == first[row.key].robust for row in rows)
            margins = [(row.robust_margin, first[row.key].robust_margin) for row in rows]
            moved = max(abs(a - b) for a, b in margins if a is not None and b is not None)
            found[name] = {
                "robust_accuracy": record["robust"]["accuracy"],
                "equal_outcomes_percent": 100 * equal / len(first),
                "largest_difference_of_margins": moved,
                "seconds": round(time.perf_counter() - begun, 1),
            }
            print(f"{name}: {found[name]}", flush=True)
    settings = {"model": options.model, "triplets": len(first), "norm": options.norm, "eps": options.eps}
    settings |= {"steps": options.steps, "revision": record["model"]["revision"], "versions": record["versions"]}
    settings["device"] = record["device"]
    if options.out is not None:
        options.out.write_text(json.dumps({"settings": settings, "runs": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
