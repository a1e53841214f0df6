"""Everything that wants a GPU, in one command: the CUDA tests, and speed and memory of scoring and loss.

python examples/gpu_checks.py --out results/gpu_checks.json

Weights and images are random (seeded). Attacks and training have scripts of their own: gpu_robustness.py and
gpu_training.py. Without a GPU, `--device cpu --models tiny` shows that the script runs.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from rclip_metric import Encoder, RobustPerceptualDistance, __version__
from rclip_metric.train.runs.files import write_json
from rclip_metric.train.runs.machine import device_record
from rclip_metric.weights import get_spec


def seconds(step: Callable[[], object], device: str, repeats: int) -> float:
    """Median duration after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def measure(model: str, device: str, batch: int, repeats: int) -> dict[str, float]:
    """Rates of one architecture with random weights; memory is the peak of all of it, in GB."""
    torch.manual_seed(0)
    spec = get_spec(model)
    encoder = Encoder(spec.architecture, spec.preprocessing, name=model).to(device)
    images = torch.rand(2, batch, 3, encoder.image_size, encoder.image_size).to(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result: dict[str, float] = {}
    metric = RobustPerceptualDistance(encoder, squared=True)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        metric = metric.to(dtype)
        with torch.inference_mode():
            result[f"{name}_pairs_per_second"] = batch / seconds(partial(metric, *images), device, repeats)
        reference = metric.embed(images[0])

        def loss_step(metric: RobustPerceptualDistance = metric, reference: torch.Tensor = reference) -> None:
            x = images[1].clone().requires_grad_()
            metric.distance_to(reference, x).sum().backward()

        result[f"{name}_loss_images_per_second"] = batch / seconds(loss_step, device, repeats)
    if device == "cuda":
        result["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--models", nargs="+", default=["r-clip-f", "r-clip-f-vit-b-16"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)
    if options.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("there is no CUDA device here: run it on a machine with one, or pass --device cpu")
        tests = Path(__file__).parents[1] / "tests" / "test_cuda.py"
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda", str(tests)], check=True)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    results = {name: measure(name, options.device, options.batch_size, options.repeats) for name in options.models}
    for name, rates in results.items():
        for key, value in rates.items():
            print(f"{name:24} {key:36} {value:10.1f}")
    if options.out:
        device = device_record(torch.device(options.device))
        settings = {"device": device, "batch_size": options.batch_size, "repeats": options.repeats, "tf32": False}
        versions = {"rclip-metric": __version__, "torch": torch.__version__}
        write_json(options.out, {"settings": settings, "versions": versions, "results": results})


if __name__ == "__main__":
    main()
