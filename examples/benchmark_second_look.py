"""How far bfloat16 moves distances and decisions of trained models, and what a second look in float32 costs.

    rclip-metric train scenes --out data/scenes
    python examples/benchmark_second_look.py --data data/scenes/nights --models tiny tiny-clean r-lite-f

The data are triplets in the format of NIGHTS; their test split if they have one. Float32, bfloat16 and bfloat16 with
the second look of `two_afc` judge the same batches and take turns, forwards and backwards; times are of the processor,
and only their ratios mean anything elsewhere. What is printed, by model and data:

    change            of a distance, and of the difference of the two distances of a triplet
    unchanged         decisions that are float32's, in percent, of bfloat16 and with the second look
    looked again      triplets, in percent
    left              decisions that would differ with other slacks, and the share that would be looked at
    times             bfloat16's time over that of the others, by sums and as the median over batches
"""

import argparse
import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric import RobustPerceptualDistance
from rclip_metric.train.benchmark.report import Report
from rclip_metric.train.benchmark.turns import take_turns

SLACKS = (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008)
CONTESTANTS = ("float32", "bfloat16", "second look")


def contestant(model: str, name: str) -> RobustPerceptualDistance:
    metric = RobustPerceptualDistance(model, second_look=name == "second look")
    if name != "float32":
        metric.to(torch.bfloat16)
    metric.in_float32()  # once for all decisions
    return metric


def triplets(folder: Path, limit: int) -> list[tuple[Path, Path, Path]]:
    """The files of the reference and both candidates: of the test split, or of all if there is none."""
    with (folder / "data.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = [row for row in rows if row.get("split") == "test"] or rows
    return [(folder / row["ref_path"], folder / row["left_path"], folder / row["right_path"]) for row in chosen[:limit]]


def measure(model: str, files: Sequence[tuple[Path, Path, Path]], batch_size: int) -> dict[str, Any]:
    metrics = {name: contestant(model, name) for name in CONTESTANTS}
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    found: dict[str, dict[int, Any]] = {name: {} for name in CONTESTANTS}
    now: tuple[int, list[Tensor]]

    def prepare(number: int) -> None:
        nonlocal now
        columns = zip(*batches[number], strict=True)
        now = number, [torch.stack([metrics["float32"].preprocess(file) for file in column]) for column in columns]

    @torch.inference_mode()
    def judge(name: str) -> None:
        number, images = now
        found[name][number] = metrics[name].two_afc(*images)

    def outcome(name: str) -> Tensor:
        judged = found[name].values()
        similarities = [torch.cat([getattr(one, f"{side}_similarity") for one in judged]) for side in ("left", "right")]
        distances = (1 - torch.stack(similarities)).clamp(min=0).sqrt()
        return torch.cat([distances, torch.cat([one.choice for one in judged])[None]]).double()  # (3, n)

    turns = take_turns({name: partial(judge, name) for name in CONTESTANTS}, len(batches), prepare=prepare)
    full, half, again = map(outcome, CONTESTANTS)
    differ, changed = half[2] != full[2], (half[:2] - full[:2]).abs()
    apart = (half[0] - half[1]).abs()
    margins = (half[0] - half[1]) - (full[0] - full[1])
    slack = metrics["second look"].slack
    sums = {name: sum(times.processor) for name, times in turns.times.items()}

    def percent(which: Tensor) -> float:
        return 100 * which.double().mean().item()

    def ratio(name: str) -> dict[str, float]:
        return {"sums": sums["bfloat16"] / sums[name], "median": turns.ratio("bfloat16", name)}

    return {
        "triplets": len(files),
        "change of a distance": {"mean": changed.mean().item(), "largest": changed.max().item()},
        "change of a margin": {"rms": margins.square().mean().sqrt().item(), "largest": margins.abs().max().item()},
        "slack": slack,
        "unchanged": {"bfloat16": percent(~differ), "second look": percent(again[2] == full[2])},
        "looked again": percent(apart < slack),
        "left": [
            {"slack": one, "looked again": percent(apart < one), "differ": percent(differ & (apart >= one))}
            for one in SLACKS
        ],
        "processor seconds": sums,
        "bfloat16's time over": {name: ratio(name) for name in ("float32", "second look")},
        "pressure": turns.pressure,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and return the report; written after every model, so that a run that is ended leaves some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="DIR", help="folders of triplets")
    parser.add_argument("--names", nargs="+", help="what to call them in the report (default: their paths)")
    parser.add_argument("--models", nargs="+", default=["tiny"], help="default: tiny")
    parser.add_argument("--limit", type=int, default=1150, help="triplets of each (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="triplets at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the report to this .json, or to one in this folder")
    arguments = parser.parse_args(argv)
    names = arguments.names or [str(folder) for folder in arguments.data]
    report = Report("benchmark_second_look", arguments.out, {"batch size": arguments.batch_size})
    for model in arguments.models:
        for name, folder in zip(names, arguments.data, strict=True):
            found = measure(model, triplets(folder, arguments.limit), arguments.batch_size)
            report.add(f"{model}, {name}", found)
            print(json.dumps({f"{model}, {name}": found}), flush=True)
    return report.record


if __name__ == "__main__":
    main()
