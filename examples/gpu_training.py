"""Fine-tuning on a GPU, in one command: the CUDA tests, the steps against the published ones, runs, and learning.

    pip install --no-deps --no-build-isolation -e .      # where only torch, torchvision, timm and safetensors are there
    python examples/gpu_training.py --out results/gpu_training.json

    tests     tests/test_cuda.py
    steps     examples/benchmark_training.py: ConvNeXt-B, ViT-B/16 and DINO ViT-B/16 at batch 128, ViT-L/14 at 32
    runs      `rclip-metric train fare` itself, a few steps of each on random images: images per second and memory,
              plain, compiled and with activation checkpointing
    learning  200 steps of the tiny recipe in bfloat16 against float32, three seeds of each (needs data/scenes)
    scaling   images per second of one and of two processes, where there are two GPUs

`--device cpu --quick` shows in a few minutes that the script runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rclip_metric.train.runs.files import write_json

HERE = Path(__file__).parent
BASES = {
    "convnext_base_w": "open_clip:convnext_base_w@random",
    "vit_b_16": "open_clip:ViT-B-16@random",
    "dino_vit_b_16": "timm:vit_base_patch16_224.dino@random",
    "vit_l_14": "open_clip:ViT-L-14@random",
}


def call(*command: str) -> str:
    """Run a command, show what it prints, and give it back; its failure is ours."""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(f"failed with {done.returncode}: {' '.join(command)}")
    return done.stdout


def random_images(folder: Path, count: int) -> None:
    """Noise as PNG files of 256x256 pixels."""
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        pixels = torch.randint(0, 256, (256, 256, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:05d}.png", compress_level=0)


def run(base: str, images: Path, steps: int, batch: int, processes: int, *more: str) -> dict[str, Any]:
    """The last line of the log of a run of a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        launch = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
        )
        call(
            sys.executable, *launch, "-m", "rclip_metric", "train", "fare", "--base", base, "--images", f"{images}",
            "--out", folder, "--steps", f"{steps}", "--batch-size", f"{batch}", "--save-every", f"{steps}", *more,
        )  # fmt: skip
        line = json.loads((Path(folder) / "log.jsonl").read_text().splitlines()[-1])
        kept = ("step", "loss", "clean_cosine", "adversarial_cosine", "images_per_second", "peak_gb")
        return {"batch": batch, "processes": processes, "options": list(more)} | {
            name: line[name] for name in kept if name in line
        }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--parts", nargs="+", default=["tests", "steps", "runs", "learning", "scaling"])
    parser.add_argument("--out", type=Path, default=Path("results/gpu_training.json"))
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: run it on a machine with one, or pass --device cpu")
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    benchmark = [sys.executable, f"{HERE / 'benchmark_training.py'}", "--device", options.device]
    partial = options.out.with_name(options.out.stem + "_benchmark.json")
    if "tests" in options.parts and options.device == "cuda":
        call(sys.executable, "-m", "pytest", "-q", "-m", "cuda", f"{HERE.parent / 'tests' / 'test_cuda.py'}")
    if "steps" in options.parts:
        cases = ["tiny:64", "convnext_base_w:128", "vit_b_16:128", "dino_vit_b_16:128", "vit_l_14:32"]
        more = ["--cases", "tiny:8", "--repeats", "1", "--inner-steps", "2"] if options.quick else ["--cases", *cases]
        call(*benchmark, "--out", f"{partial}", *more)
        record |= json.loads(partial.read_text())
        write_json(options.out, record)
    if "learning" in options.parts:
        more = ["--steps", "2", "--seeds", "0", "--triplets", "8"] if options.quick else []
        call(*benchmark, "--parts", "learning", "--out", f"{partial}", *more)
        record |= json.loads(partial.read_text())
        write_json(options.out, record)
    with tempfile.TemporaryDirectory() as folder:
        images, steps = Path(folder), 2 if options.quick else 8
        random_images(images, 8 if options.quick else 512)
        device = ("--device", options.device)
        if "runs" in options.parts:
            runs = {}
            for name, base in list(BASES.items())[: 1 if options.quick else None]:
                batch = 2 if options.quick else (32 if name == "vit_l_14" else 128)
                inner = ("--inner-steps", "1") if options.quick else ()
                variants: list[tuple[str, ...]] = [(), ("--checkpointing",), ("--compile",)]
                for variant in variants[: 1 if options.quick else None]:
                    found = run(base, images, steps, batch, 1, *device, *inner, *variant)
                    runs[" ".join((name, *variant))] = found
                    print(name, variant, found, flush=True)
            record["runs"] = runs
            write_json(options.out, record)
        if "scaling" in options.parts and torch.cuda.device_count() > 1:
            rates = {}
            for processes in (1, 2):
                # The batch of each process stays the same: 128 and 2 x 128.
                found = run(BASES["convnext_base_w"], images, steps, 128 * processes, processes, *device)
                rates[processes] = found["images_per_second"]
            record["scaling"] = {"images_per_second": rates, "efficiency": rates[2] / (2 * rates[1])}
            write_json(options.out, record)
    print(f"{options.out}: written")


if __name__ == "__main__":
    main()
