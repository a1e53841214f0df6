"""Everything of the benchmark that wants a GPU, in one command of a few minutes.

    pip install --no-deps --no-build-isolation -e .      # where only torch, torchvision, timm and safetensors are there
    python examples/gpu_benchmark.py --out results/gpu_benchmark

    speed    examples/benchmark_metrics.py on this device: batches of 1, 8 and 64, float32 and bfloat16
    scenes   a small benchmark of `tiny`, `tiny-clean` and the pixel metrics on the GPU, and how many outcomes differ
             from the CPU's

LPIPS and DreamSim's package are left out where they are not installed, with the reason. `--device cpu --quick` shows
in a minute or two that the script runs.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import benchmark_metrics

from rclip_metric.cli.main import main as rclip_metric
from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
from rclip_metric.train.evaluation.results import load_results, unpack
from rclip_metric.train.runs.files import write_json

METRICS = "tiny,tiny-clean,psnr,l2"


def speed(out: Path, device: str, quick: bool) -> None:
    """The table of benchmark_metrics.py."""
    command = ["--device", device, "--out", str(out / "speed.json"), "--batch-sizes", "1", "8"]
    if quick:
        command += ["--metrics", "r-clip-f-vit-b-32@random", "--repeats", "1", "--rounds", "1"]
    else:
        command += ["64", "--repeats", "5"]
    benchmark_metrics.main(command)


def scenes(out: Path, device: str, quick: bool) -> None:
    """The same benchmark on the device and on the CPU."""
    count = 16 if quick else 200
    with tempfile.TemporaryDirectory(prefix="rclip-metric-scenes-") as folder:
        write_scenes(Path(folder), ScenesConfig(1, 0, (0, 4, count + count // 8 + 8), 1, 1), quiet=True)
        for name, where in (("device", device), ("cpu", "cpu")):
            command = ["benchmark", "--metrics", METRICS, "--data", f"nights:{folder}/nights", "--limit", str(count)]
            command += ["--norms", "linf:4/255,l2:0.857", "--image-size", "64", "--device", where, "--certified"]
            command += ["--steps", "3" if quick else "100", "--out", str(out / name), "--quiet"]
            if rclip_metric(command):
                raise SystemExit(f"the benchmark failed on {where}")
    here, there = (
        {_key(record): unpack(record) for record in load_results([out / name])} for name in ("device", "cpu")
    )
    differ = {
        key: sum(one.robust != other.robust for one, other in zip(rows, there[key], strict=True))
        for key, rows in here.items()
    }
    write_json(out / "agreement.json", {"samples": count, "outcomes that differ from the cpu": differ})
    print(json.dumps(differ, indent=2))


def _key(record: dict) -> str:
    threat = record["threat"]
    return f"{record['model']['name']} {threat['attack']} {threat['norm']} {threat['eps']:.4g}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("results/gpu_benchmark"))
    parser.add_argument("--quick", action="store_true", help="small enough to show that it runs")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here: --device cpu --quick shows that the script runs")
    speed(options.out, options.device, options.quick)
    scenes(options.out, options.device, options.quick)
