"""What embedding a folder of JPEGs costs beside the bare tower, read as published and fast, and what idle threads cost.

    python examples/benchmark_folder.py --out results/
    python examples/benchmark_folder.py --policies passive --models tiny

The drawn pictures have the noise of a sensor, so that their files are as large as photographs' (75 kB at 500 pixels).
The large towers have random weights, which changes nothing about their speed, and a quarter of the images, as has the
case of 12 megapixels. Contestants take turns; a policy of waiting has processes of its own, since it is read once:

    bare tower                   on pixels that are there, in batches of eight
    folder, published / fast     files to embeddings, as every command does it
    reading, published / fast    files to pixels, in one thread

`share` is the share of the bare tower's throughput that a folder reaches: the tower's processor time over the folder's,
the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

POLICIES: dict[str, dict[str, str]] = {
    "as it is": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
CASES = {"500 px": (500, 500), "12 megapixels": (4000, 3000)}
MODELS = ("tiny", "r-lite-f", "r-clip-f@random", "r-clip-f-vit-b-16@random")


def draw_jpegs(folder: Path, count: int, size: tuple[int, int] = (500, 500)) -> list[Path]:
    """Draw smooth colours with noise, and return their files."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        smooth = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size)
        noisy = np.asarray(smooth) + 12 * rng.standard_normal((*size[::-1], 3), dtype=np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=85)
    return sorted(folder.iterdir())


def of_model(model: str, files: list[Path], rounds: int) -> dict[str, Any]:
    """Time the bare tower, the folder, and its reading."""
    import torch

    from rclip_metric import RobustPerceptualDistance
    from rclip_metric.images import READINGS
    from rclip_metric.retrieval import FileEmbeddings
    from rclip_metric.train.benchmark.turns import take_turns
    from rclip_metric.train.models import load_base

    metrics = {reading: RobustPerceptualDistance(load_base(model), reading=reading) for reading in READINGS}
    tower = metrics["published"].encoder
    pixels = torch.stack([tower.preprocess(file) for file in files])

    def embed() -> None:
        with torch.inference_mode():
            for batch in pixels.split(8):
                tower(batch)

    def folder(metric: RobustPerceptualDistance) -> None:
        with FileEmbeddings(metric, files, batch_size=8, on_skip=print) as embeddings:
            assert all(embeddings[file] is not None for file in files)

    def read(metric: RobustPerceptualDistance) -> None:
        for file in files:
            metric.preprocess(file)

    contestants: dict[str, Callable[[], object]] = {"bare tower": embed}
    for reading, metric in metrics.items():
        contestants[f"folder, {reading}"] = partial(folder, metric)
        contestants[f"reading, {reading}"] = partial(read, metric)
    turns = take_turns(contestants, rounds)
    return {
        "images": len(files),
        "processor ms an image": {name: 1e3 * seconds / len(files) for name, seconds in turns.processor.items()},
        "wall ms an image": {name: 1e3 * seconds / len(files) for name, seconds in turns.seconds.items()},
        "share": {reading: turns.ratio("bare tower", to=f"folder, {reading}") for reading in READINGS},
        "pressure": turns.pressure,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), help="as for training; NAME@random: random weights"
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5, help="of the turns (default: %(default)s)")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, help="a .json, or a folder for one of this kind of machine")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        from rclip_metric.train.benchmark.turns import machine_record

        folder, model = args.measure
        found = of_model(model, sorted(Path(folder).iterdir()), args.rounds)
        print(json.dumps({"machine": machine_record(), **found}))
        return
    from rclip_metric.train.benchmark.report import Report

    report = Report("benchmark_folder", args.out, {"images": args.images, "rounds": args.rounds})
    few = max(1, args.images // 4)
    with tempfile.TemporaryDirectory() as folder:
        for case in args.cases:
            small = case == "500 px"
            draw_jpegs(Path(folder) / case / "few", few, CASES[case])
            if small:
                draw_jpegs(Path(folder) / case / "all", args.images, CASES[case])
            for policy in args.policies:
                for model in args.models:
                    files = Path(folder) / case / ("all" if small and not model.endswith("@random") else "few")
                    clean = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
                    command = [sys.executable, __file__, "--measure", str(files), model, "--rounds", str(args.rounds)]
                    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=clean | POLICIES[policy])
                    found = json.loads(said.stdout)
                    print(case, policy, model, json.dumps(found), flush=True)
                    report.add(f"{case}, {policy}, {model}", found)


if __name__ == "__main__":
    main()
