"""Make lipsim-lite, the provable metric of photographs that ships with the package: an hour and a half on two cores.

    python examples/lipsim_lite.py --learn photos/caltech101 photos/imagenette photos/tiny-imagenet \\
        --tune photos/caltech101 photos/imagenette --judge photos/imagen photos/bsds --classes photos/index.csv \\
        --out runs/lipsim-lite

Four steps, each a command of `rclip-metric`, which goes on where it stopped:

1. `train photos`: triplets to tune on, whose order is known by construction, and others, from other photographs, to
   judge by;
2. `train lipsim`, step 1: a student learns the teacher's embeddings of all photographs;
3. `train lipsim`, step 2: it is tuned on the triplets by a margin;
4. `train pack`: its raw weights as float16, from which loading folds the proof anew.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

COUNTS = {"train": 3300, "val": 330}
SIZE = 96  # pixels: a little more than the student sees, so that it is resized once


def main() -> None:
    """Run the four steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", nargs="+", required=True, metavar="TREE", help="what the teacher explains")
    parser.add_argument("--tune", nargs="+", required=True, metavar="TREE", help="photographs for triplets to tune on")
    parser.add_argument("--judge", nargs="+", required=True, metavar="TREE", help="others, for triplets to judge by")
    parser.add_argument("--classes", required=True, metavar="CSV", help="a table with the columns class and file")
    parser.add_argument("--recipe", default="lipsim-lite", help="recipe of `train lipsim` (default lipsim-lite)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the triplets, the run and the packed file")
    options = parser.parse_args()

    triplets = options.out / "triplets"
    for seed, (split, trees) in enumerate({"train": options.tune, "val": options.judge}.items()):
        drawn = ["--count", str(COUNTS[split]), "--size", str(SIZE), "--split", split, "--seed", str(seed)]
        run("train", "photos", "--images", *trees, "--classes", options.classes, *drawn, "--out", str(triplets / split))
    together(triplets)
    made = options.out / "run"
    learned = ["--recipe", options.recipe, "--images", *options.learn, "--triplets", str(triplets)]
    run("train", "lipsim", *learned, "--name", "lipsim-lite", "--out", str(made))
    run("train", "pack", str(made), "--out", str(options.out / "lipsim-lite.safetensors"))


def run(*words: str) -> None:
    """Run a command of rclip-metric, and end with it where it fails."""
    done = subprocess.run([sys.executable, "-m", "rclip_metric", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def together(folder: Path) -> None:
    """Write one data.csv over the sets in `folder`, whose images stay where they are."""
    rows: list[dict[str, str]] = []
    for split in COUNTS:
        with open(folder / split / "data.csv", newline="") as file:
            for row in csv.DictReader(file):
                paths = {key: f"{split}/{row[key]}" for key in ("ref_path", "left_path", "right_path")}
                rows.append(row | paths | {"id": f"{split}-{row['id']}"})
    with open(folder / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
