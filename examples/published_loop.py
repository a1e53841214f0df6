"""Is the published loop of FARE better than ours, step for step? Short runs of `tiny` that differ in one thing.

    python examples/published_loop.py --out results/published_loop          # about 8 minutes of one core

The four things are the velocity of PGD, where its random start may be, the learning rate of the first step, and blocks
left out at random in updates; none of them costs time. Scenes are drawn, every row of `RUNS` trains tiny-clean on them
once per seed, and what comes out is judged on triplets that no run has seen, clean and under APGD. Runs this short are
good for a comparison, and no figure to quote. The records are OUT/published_loop.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from rclip_metric.cli.main import main as rclip_metric
from rclip_metric.train.runs.files import write_json, write_text

PUBLISHED = {"inner-momentum": "published", "inner-start": "ball", "full-first-step": "", "drop-path": "0.1"}
RUNS: dict[str, dict[str, str]] = {
    "as tiny was trained": {},
    **{f"published {name}": {name: value} for name, value in PUBLISHED.items()},
    "published, all four": PUBLISHED,
}
EPS = ("2/255", "4/255")


def call(*command: str) -> float:
    """Run ``rclip-metric`` and return the seconds of processor time; its failure is ours."""
    begun = time.process_time()
    code = rclip_metric(list(command))
    if code:
        raise SystemExit(f"failed with {code}: rclip-metric {' '.join(command)}")
    return time.process_time() - begun


def row(name: str, seed: int, scenes: Path, out: Path, steps: int, batch: int) -> dict[str, Any]:
    """Train and judge one run: a line of the record."""
    folder = out / f"{name}-{seed}".replace(" ", "-").replace(",", "")
    given = [word for key, value in RUNS[name].items() for word in (f"--{key}", value) if word]
    seconds = call(
        "train", "fare", "--recipe", "tiny", "--images", f"{scenes / 'images' / 'train'}", "--out", f"{folder / 'run'}",
        "--steps", f"{steps}", "--warmup-steps", f"{steps // 24}", "--batch-size", f"{batch}", "--seed", f"{seed}",
        "--precision", "float32", "--quiet", *given,
    )  # fmt: skip
    call(
        "eval", "nights", "--data", f"{scenes / 'nights'}", "--model", f"{folder / 'run'}", "--norm", "linf",
        "--eps", *EPS, "--steps", "10", "--out", f"{folder / 'results'}", "--quiet",
    )  # fmt: skip
    records = [json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))]
    accuracy = {record["threat"]["eps_text"]: record["robust"]["accuracy"] for record in records}
    about = json.loads((folder / "run" / "run.json").read_text())
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "loss" in line)
    return {
        "name": name,
        "seed": seed,
        "processor_seconds": round(seconds, 1),
        "accuracy": {"clean": records[0]["clean"]["accuracy"], **accuracy},
        "last_loss": last["loss"],
        "recipe": about["recipe"],
        "versions": about["versions"],
        "device": about["device"],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, a line per row of `RUNS`."""
    columns = ("clean", *EPS)
    lines = ["| run | seeds | " + " | ".join(columns) + " |", "|---|---:|" + "---:|" * len(columns)]
    for name in dict.fromkeys(one["name"] for one in rows):
        of = [one["accuracy"] for one in rows if one["name"] == name]
        cells = [f"{fmean(accuracy[column] for accuracy in of):.1f}" for column in columns]
        lines.append(f"| {name} | {len(of)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, metavar="DIR", help="of scenes and runs (default: OUT/work)")
    parser.add_argument("--steps", type=int, default=72, help="per run (default: 72)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: 16)")
    parser.add_argument("--seeds", type=int, default=2, help="runs per row (default: 2)")
    parser.add_argument("--triplets", type=int, default=300, help="to judge on (default: 300)")
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="ROW", help="these rows (default: all)")
    options = parser.parse_args(argv)
    work = options.work or options.out / "work"
    call(
        "train", "scenes", "--out", f"{work / 'scenes'}", "--images", f"{options.steps * options.batch_size}",
        "--triplets", f"0,0,{options.triplets}", "--pool", "1", "--queries", "1", "--quiet",
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name in options.only or RUNS:
            rows.append(row(name, seed, work / "scenes", work, options.steps, options.batch_size))
            write_json(options.out / "published_loop.json", {"steps": options.steps, "rows": rows})
            write_text(options.out / "published_loop.md", markdown(rows))
    print(markdown(rows), end="")


if __name__ == "__main__":
    main()
