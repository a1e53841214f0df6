"""What proof takes on a GPU, in one command: certificates of many metrics, and a provable metric at the published size.

    python examples/gpu_certificates.py --triplets DIR --images PHOTOGRAPHS --out results/gpu_certificates

1. certified accuracy by smoothing (10,000 draws) of r-lite-f, lite (extra: lite) and lipsim-lite on a NIGHTS-format
   set, beside APGD and the Lipschitz certificate, as a benchmark page;
2. `train lipsim` at 224 pixels with the published sizes from r-lite-f, for as many steps as `--steps` says, then tuned
   on the set's own training triplets where it has any (`--tune`), and judged.

Goes on where it was interrupted. `--device cpu --quick` shows in some minutes that the script runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

NORMS = "l2:0.1412,l2:1.0,l2:3.0"  # at 224 pixels: 36/255, 255/255, and the paper's attack
QUICK_SIZES = "--image-size 32 --patch 4 --pool 4 --channels 64 --depth 2 --linear-depth 1 --linear-inner 64 --from-end"


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=Path, required=True, metavar="DIR", help="set in the NIGHTS format")
    parser.add_argument("--images", nargs="+", required=True, metavar="TREE", help="photographs for step 1")
    parser.add_argument("--tune", action="store_true", help="step 2 on the set's train and val splits")
    parser.add_argument("--steps", type=int, default=3000, help="of step 1 (default 3000)")
    parser.add_argument("--device", default="cuda", help="default cuda")
    parser.add_argument("--quick", action="store_true", help="few draws, steps and samples, tiny sizes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the board and the run")
    options = parser.parse_args()

    metrics = "lipsim-lite,l2" if options.quick else "r-lite-f,lite,lipsim-lite,l2"
    draws, attacked = ("100", "2") if options.quick else ("10000", "200")
    board = ["--norms", NORMS, "--certified", "--smoothing", "0.25", "0.5", "--smoothing-draws", draws]
    board += ["--attacked", attacked, "--examples", "0", "--direct", "0", "--page", "--device", options.device]
    board += ["--steps", "5"] if options.quick else []
    run(
        "benchmark",
        "--metrics",
        metrics,
        "--data",
        f"nights:{options.triplets}",
        *board,
        "--out",
        options.out / "board",
    )

    made = options.out / "lipsim"
    sizes = [*QUICK_SIZES.split(), "--dimensions", "64"] if options.quick else ["--from-end", "--dimensions", "1024"]
    steps = ["--steps", "3" if options.quick else options.steps, "--warmup-steps", "1" if options.quick else "100"]
    step_1 = ["--teacher", "r-lite-f", "--images", *options.images, "--batch-size", "8" if options.quick else "64"]
    step_2 = ["--triplets", options.triplets] if options.tune else []
    learned = [*sizes, *steps, "--scale", "4", "--learning-rate", "0.001", "--betas", "0.9,0.99"]
    run("train", "lipsim", *step_1, *learned, *step_2, "--device", options.device, "--out", made)
    judged = ["--data", options.triplets, "--device", options.device, "--out", options.out / "judged"]
    judged += ["--attack", "none", "--certify", "lipschitz"]
    run("eval", "nights", "--model", made, *judged)


def run(*words: object) -> None:
    """Run a command of rclip-metric, and end with it where it fails."""
    done = subprocess.run([sys.executable, "-m", "rclip_metric", *map(str, words)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
