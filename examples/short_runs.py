"""Which settings of FARE make a network robust for the least processor time: short runs that differ in one thing.

    python examples/short_runs.py --images PHOTOGRAPHS --out results/short_runs        # about 7 minutes a run, one core

Every tenth photograph is set apart, and triplets are drawn from those (`rclip-metric train photos`). Then, for each row
of `RUNS`, what a step costs is measured in processor time, and the run gets the number of steps that --seconds
pays for, with warm-up and growth of the radius in proportion. The result is judged on the triplets, clean and under
APGD with 10 iterations: good for choosing, and no figure to quote. A row that is there already is not computed again.

The table is OUT/short_runs.md, the records OUT/short_runs.json. `OMP_NUM_THREADS=1` and one run per core compare best.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from rclip_metric.cli.main import main as rclip_metric
from rclip_metric.train.data.images import find_images
from rclip_metric.train.runs.files import write_json, write_text

APART = 10  # one photograph of so many
RUNS: dict[str, dict[str, str]] = {
    "as the recipe": {},
    "PGD-2, steps of 3/255": {"inner-steps": "2", "inner-step-size": "3/255"},
    "PGD-4, steps of 2/255": {"inner-steps": "4", "inner-step-size": "2/255"},
    "learning rate 3e-4": {"learning-rate": "3e-4"},
    "learning rate 3e-3": {"learning-rate": "3e-3"},
    "batch of 16": {"batch-size": "16"},
    "batch of 256": {"batch-size": "256"},
    "64 and 80 px first": {"sizes": "64,80"},
    "Sim-CLIP": {"loss": "sim-clip"},
    "LORE": {"loss": "lore"},
    "clean weight 0.3": {"clean-weight": "0.3"},
    "no mixtures": {"mixup": "0"},
    "no damage": {"damage": "0"},
    "no crops, no flips": {"crop-scale": "1", "no-flip": ""},
}
EPS = ("2/255", "4/255")


def call(*command: str) -> float:
    """Run ``rclip-metric`` and return the seconds of processor time; its failure is ours."""
    begun = time.process_time()
    code = rclip_metric(list(command))
    if code:
        raise SystemExit(f"failed with {code}: rclip-metric {' '.join(command)}")
    return time.process_time() - begun


def set_apart(tree: Path, out: Path) -> tuple[Path, Path]:
    """Links to the photographs: OUT/apart with every `APART`-th one, OUT/train with the others."""
    train, apart = out / "train", out / "apart"
    for number, path in enumerate(find_images(tree)):
        link = (apart if number % APART == APART - 1 else train) / "-".join(path.relative_to(tree).parts)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    return train, apart


def trained(train: Path, out: Path, base: str, seconds: float, settings: dict[str, str]) -> tuple[Path, int, float]:
    """A run of about ``seconds`` of processor time: its folder, its steps, and the time that it took."""

    def run(folder: Path, steps: int) -> float:
        options = {"warmup-steps": f"{steps // 10}", "eps-warmup-steps": f"{2 * steps // 5}", **settings}
        if "sizes" in options:
            options["size-steps"] = f"{max(2, steps // 2)}"
        given = [word for name, value in options.items() for word in (f"--{name}", value) if word]
        return call(
            "train", "fare", "--recipe", "r-lite-f", "--base", base, "--images", f"{train}", "--out", f"{folder}",
            "--steps", f"{steps}", *given, "--save-every", "1000000", "--precision", "float32", "--quiet",
        )  # fmt: skip

    few, more = 2, 8
    costs = []
    for steps in (few, more):
        shutil.rmtree(out / "cost", ignore_errors=True)
        costs.append(run(out / "cost", steps))
    shutil.rmtree(out / "cost")
    steps = max(2, round(seconds / (costs[1] - costs[0]) * (more - few)))
    return out / "run", steps, run(out / "run", steps)


def judged(model: Path | str, triplets: Path, out: Path) -> dict[str, float]:
    """Accuracy in percent: clean, and under each radius."""
    call(
        "eval", "nights", "--data", f"{triplets}", "--model", f"{model}", "--norm", "linf", "--eps", *EPS,
        "--steps", "10", "--out", f"{out}", "--quiet",
    )  # fmt: skip
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    robust = {record["threat"]["eps_text"]: record["robust"]["accuracy"] for record in records}
    return {"clean": records[0]["clean"]["accuracy"], **{eps: robust[eps] for eps in EPS}}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of all rows so far."""
    lines = ["| run | steps | images | s | clean | " + " | ".join(EPS) + " |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        cells = [row["name"], row["steps"], row["images"], row["processor_seconds"]]
        cells += [f"{row['accuracy'][column]:.1f}" for column in ("clean", *EPS)]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="TREE", help="photographs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--base", default="lite", help="the clean encoder (default: lite; extra: lite)")
    parser.add_argument("--seconds", type=float, default=300.0, help="of processor time per run (default: 300)")
    parser.add_argument("--triplets", type=int, default=198, help="to judge on (default: 198)")
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="ROW", help="these rows (default: all)")
    parser.add_argument("--size", type=int, help="side of the input in pixels (default: the recipe's)")
    options = parser.parse_args(argv)
    out: Path = options.out
    train, apart = set_apart(options.images, out)
    triplets = out / "triplets"
    call("train", "photos", "--images", f"{apart}", "--out", f"{triplets}", "--count", f"{options.triplets}", "--quiet")
    size = {"image-size": f"{options.size}"} if options.size else {}
    rows = []
    for name in options.only or RUNS:
        folder = out / name.replace(" ", "-").replace("/", "_").replace(",", "")
        record = folder / "row.json"
        if not record.exists():
            settings = {**RUNS[name], **size}
            run, steps, seconds = trained(train, folder, options.base, options.seconds, settings)
            recipe = json.loads((run / "run.json").read_text())
            row = {
                "name": name,
                "steps": steps,
                "images": steps * recipe["recipe"]["batch_size"],
                "processor_seconds": round(seconds),
                "accuracy": judged(run, triplets, folder / "results"),
                "recipe": recipe["recipe"],
                "versions": recipe["versions"],
                "device": recipe["device"],
            }
            write_json(record, row)
        rows.append(json.loads(record.read_text()))
        write_text(out / "short_runs.md", markdown(rows))
    write_text(out / "short_runs.json", json.dumps(rows, indent=2))
    print(markdown(rows), end="")


if __name__ == "__main__":
    main()
