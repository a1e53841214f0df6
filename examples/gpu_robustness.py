"""What the attacks find and cost on a GPU, in one command of a few minutes.

    pip install --no-deps --no-build-isolation -e .      # where only torch, torchvision, timm and safetensors are there
    python examples/gpu_robustness.py --out results/gpu_robustness.json

open_clip_torch is not needed: neither the metric nor the attack imports it. Four parts:

    outcomes    the shipped `tiny` on scenes, l_inf and l_2: samples that end alike on the GPU and on the CPU
    bfloat16    the same with the attack's passes in bfloat16: accuracy and samples against float32
    rates       ConvNeXt-B and ViT-B/16 with random weights at 224: seconds per APGD iteration, images per second,
                memory, and from them the time of the whole NIGHTS test if no sample leaves, an upper bound
    benchmark   examples/benchmark_attack.py for ConvNeXt-B on this device: ratios against the published loops

Float32 is without TF32. `--device cpu --quick` shows in a minute that the script runs.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rclip_metric import Encoder, RobustPerceptualDistance, __version__
from rclip_metric.encoder import NAMED
from rclip_metric.images import Preprocessing
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
from rclip_metric.train.data.triplets import read_nights
from rclip_metric.train.evaluation.attack import (
    AttackSettings,
    Decisions,
    RunSettings,
    attack_block,
    default_chunk_size,
    fixed_options,
)
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, decision, evaluate_two_afc
from rclip_metric.train.metrics.base import EncoderMetric
from rclip_metric.train.runs.files import write_json
from rclip_metric.train.runs.machine import device_record
from rclip_metric.train.runs.precision import full_float32

NIGHTS_TEST, NIGHTS_STEPS = 1_824, 100
NORMS = ("linf", "l2")
PARTS = ("outcomes", "rates", "benchmark")
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
LEAST_AGREEMENT = 99.0  # percent of samples that end as on the CPU, in float32
BENCHMARK = Path(__file__).with_name("benchmark_attack.py")


def outcomes_part(device: str, count: int, steps: int) -> dict[str, Any]:
    """The shipped model on scenes: CPU, device, and device in bfloat16."""
    with tempfile.TemporaryDirectory(prefix="rclip-metric-scenes-") as folder:
        write_scenes(Path(folder), ScenesConfig(0, 0, (0, 0, count + count // 8 + 8), 0, 0), quiet=True)
        triplets = read_nights(Path(folder) / "nights", "test")[:count]
        attacks = [AttackSettings(LpBall("linf", 4 / 255), steps=steps)]
        attacks.append(AttackSettings(LpBall("l2", 3 * 64 / 224), steps=steps))
        found: dict[str, list[dict[str, Any]]] = {}
        runs: list[tuple[str, str, Precision]] = [("cpu", "cpu", "float32")]
        runs += [(f"{device}, {precision}", device, precision) for precision in PRECISIONS]
        for name, where, precision in runs:
            metric = EncoderMetric(RobustPerceptualDistance("tiny").to(where))
            chunk = default_chunk_size(metric.device, 64)
            run = RunSettings(batch_size=128, chunk_size=chunk, precision=precision)
            found[name] = evaluate_two_afc(metric, TwoAfcData("scenes", "test", triplets), attacks, run, quiet=True)
    results: dict[str, Any] = {}
    for index, attack in enumerate(attacks):
        robust = {
            name: [row.robust for row in unpack(records[index]) if row.robust is not None]
            for name, records in found.items()
        }
        reference = robust["cpu"]
        results[str(attack.ball)] = {
            name: {
                "robust accuracy": 100 * sum(scores) / len(scores),
                "ends as on the cpu, %": 100
                * sum(a == b for a, b in zip(scores, reference, strict=True))
                / len(scores),
                "samples that differ": sum(a != b for a, b in zip(scores, reference, strict=True)),
                "seconds": found[name][index]["seconds"],
            }
            for name, scores in robust.items()
        }
    return results


def random_metric(name: str, device: str) -> EncoderMetric:
    """An architecture with random weights: speed and memory do not depend on them."""
    architecture = NAMED[name]
    size = architecture.image_size
    encoder = Encoder(architecture, Preprocessing(mode="crop", resize=size, crop=size), name=f"{name}, random weights")
    return EncoderMetric(RobustPerceptualDistance(encoder).to(device))


def seconds_of_attack(
    metric: EncoderMetric, half: EncoderMetric | None, images: Tensor, ball: LpBall, steps: int
) -> float:
    """Seconds of an attack on triplets (N, 3, 3, S, S) of which none can be fooled."""
    rule = decision(torch.zeros(len(images), dtype=torch.long, device=images.device))
    sure = torch.tensor([4.0, 0.0], device=images.device)  # two cosines differ by at most 2

    def decide(similarities: Tensor, indices: Tensor) -> Decisions:
        return rule(similarities + sure, indices)

    run = RunSettings(chunk_size=default_chunk_size(images.device, images.shape[-1]))
    keys = [str(index) for index in range(len(images))]
    reference, options = images[:, 0].contiguous(), images[:, 1:].contiguous()
    synchronize(images.device)
    begun = time.perf_counter()
    kept = partial(fixed_options, options=options, chunk_size=run.chunk_size)
    attack_block(metric, reference, kept, decide, AttackSettings(ball, steps=steps), run, keys, half=half)
    synchronize(images.device)
    return time.perf_counter() - begun


def rates_part(device: str, models: Sequence[str], batch: int, steps: int) -> dict[str, Any]:
    """Seconds per APGD iteration of a batch from which nothing leaves."""
    results: dict[str, Any] = {}
    for model in models:
        metric = random_metric(model, device)
        size = metric.metric.encoder.image_size
        images = torch.rand(batch, 3, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        for precision in PRECISIONS:
            half = metric.in_bfloat16() if precision == "bfloat16" else None
            for ball in (LpBall("linf", 4 / 255), LpBall("l2", 3 * size / 224)):
                attack = partial(seconds_of_attack, metric, half, images, ball)
                attack(1)
                if device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                short, long = attack(1), attack(1 + steps)
                iteration = (long - short) / steps
                whole = short + iteration * (NIGHTS_STEPS - 1)
                results[f"{model}, {precision}, {ball.norm}"] = {
                    "seconds per iteration": iteration,
                    "images per second": batch / iteration,
                    "peak gigabytes": torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else None,
                    "hours for NIGHTS if none leaves": whole * NIGHTS_TEST / batch / 3600,
                }
            both = [results[f"{model}, {precision}, {norm}"]["hours for NIGHTS if none leaves"] for norm in NORMS]
            results[f"{model}, {precision}, hours for NIGHTS, both norms, if none leaves"] = sum(both)
    return results


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def benchmark_part(device: str, model: str, batch: int, steps: int, quick: bool) -> dict[str, Any]:
    """The benchmark of the attack, on this device, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="rclip-metric-benchmark-") as folder:
        out = Path(folder) / "benchmark.json"
        command = [sys.executable, str(BENCHMARK), "--models", model, "--device", device, "--out", str(out)]
        command += ["--random-samples", str(batch), "--random-steps", str(steps)]
        command += ["--skip-memory"] if quick else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return dict(json.loads(out.read_text())["results"])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the parts, print their figures and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny architectures and a few steps: does it run?")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--samples", type=int, default=400, help="triplets for the outcomes")
    parser.add_argument("--batch-size", type=int, default=64, help="for the rates")
    parser.add_argument("--steps", type=int, default=20, help="timed iterations")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: run it on a machine with one, or pass --device cpu --quick")
    device, quick = options.device, options.quick
    samples, batch, steps = (3, 2, 1) if quick else (options.samples, options.batch_size, options.steps)
    models = ["tiny_convnext"] if quick else ["convnext_base_w", "vit_b_16"]
    report: dict[str, Any] = {
        "device": device_record(torch.device(device)),
        "settings": {"samples": samples, "batch_size": batch, "steps": steps, "tf32": False, "seed": 0, "quick": quick},
        "versions": {"rclip-metric": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "results": {},
    }
    parts = {
        "outcomes": lambda: outcomes_part(device, samples, 1 if quick else NIGHTS_STEPS),
        "rates": lambda: rates_part(device, models, batch, steps),
        "benchmark": lambda: benchmark_part(device, models[0], batch, steps, quick),
    }
    with full_float32():
        for part in PARTS:
            if part not in options.only:
                continue
            begun = time.perf_counter()
            report["results"][part] = parts[part]()
            print(json.dumps({part: report["results"][part]}, indent=1))
            print(f"{part}: {time.perf_counter() - begun:.0f} s", flush=True)
            if options.out:
                write_json(options.out, report)  # after every part: what is done is kept
    for ball, found in report["results"].get("outcomes", {}).items():
        agreed = found[f"{device}, float32"]["ends as on the cpu, %"]
        if agreed < LEAST_AGREEMENT:
            raise SystemExit(
                f"only {agreed:.1f} % of the samples end on {device} as they do on the CPU under {ball}, and at least "
                f"{LEAST_AGREEMENT:.0f} % should: look into the attack before trusting its figures"
            )
    return report


if __name__ == "__main__":
    main()
