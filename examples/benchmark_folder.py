"""What embedding a folder of 500 px JPEGs costs beside the bare tower, and what waiting OpenMP threads cost.

    python examples/benchmark_folder.py --out results/benchmark_folder.json

The drawn pictures have the noise of a sensor, so that their files are as large as photographs' (75 kB). Figures are
medians, in ms of processor time (all threads) and of wall time per image; parts take turns, and every policy of waiting
has processes of its own, since OpenMP reads it once. `reading` is one thread's: decoding, resizing and hashing apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLICIES: dict[str, dict[str, str]] = {
    "as it is": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def draw_jpegs(folder: Path, count: int, side: int = 500) -> list[Path]:
    """Draw smooth colours with noise, and return their files."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        smooth = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side, side))
        noisy = np.asarray(smooth) + rng.normal(0, 12, (side, side, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=85)
    return sorted(folder.iterdir())


def in_turns(parts: dict[str, Callable[[], object]], repeats: int, images: int) -> dict[str, dict[str, float]]:
    """Time parts A B A B, after a round of warming up; return medians in ms per image."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    for turn in range(repeats + 1):
        for name, part in parts.items():
            wall, processor = time.perf_counter(), time.process_time()
            part()
            found = time.process_time() - processor, time.perf_counter() - wall
            if turn:
                taken[name].append(found)
    medians = {name: [1e3 * statistics.median(v) / images for v in zip(*t, strict=True)] for name, t in taken.items()}
    return {name: {"processor": processor, "wall": wall} for name, (processor, wall) in medians.items()}


def of_model(model: str, files: list[Path], repeats: int) -> dict[str, dict[str, float]]:
    """Time the bare tower on pixels that are there, the folder, and the parts of reading."""
    import torch

    from rclip_metric import RobustPerceptualDistance
    from rclip_metric.images.reading import open_image
    from rclip_metric.retrieval import FileEmbeddings

    metric = RobustPerceptualDistance(model)
    encoder = metric.encoder
    pictures = [open_image(file) for file in files]
    pixels = torch.stack([encoder.preprocess(picture) for picture in pictures])

    def tower() -> None:
        with torch.inference_mode():
            for batch in pixels.split(8):
                encoder(batch)

    def folder(workers: int | None = None) -> None:
        with FileEmbeddings(metric, files, batch_size=8, on_skip=print, workers=workers) as embeddings:
            assert all(embeddings[file] is not None for file in files)

    parts: dict[str, Callable[[], object]] = {
        "bare tower": tower,
        "folder": folder,
        "folder, 1 worker": lambda: folder(1),
        "decoding": lambda: [open_image(file) for file in files],
        "resizing": lambda: [encoder.preprocess(picture) for picture in pictures],
        "hashing": lambda: [hashlib.sha256(one.numpy().data).digest() for one in pixels],
    }
    return in_turns(parts, repeats, len(files))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "r-lite-f"])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--rounds", type=int, default=2, help="processes per policy (default: %(default)s)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        files = sorted(Path(args.measure).iterdir())
        import torch

        from rclip_metric.train.runs.machine import device_record

        machine = {"device": device_record(torch.device("cpu")), "torch": torch.__version__, "cores": os.cpu_count()}
        models = {model: of_model(model, files, args.repeats) for model in args.models}
        print(json.dumps({"machine": machine, "models": models}))
        return
    from rclip_metric.train.benchmark.turns import pressure

    runs: dict[str, list[Any]] = {policy: [] for policy in args.policies}
    with tempfile.TemporaryDirectory() as folder:
        files = draw_jpegs(Path(folder) / "jpegs", args.images)
        options = ["--measure", str(files[0].parent), "--repeats", str(args.repeats), "--models", *args.models]
        for _ in range(args.rounds):
            for policy in args.policies:
                clean = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
                command = [sys.executable, __file__, *options]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=clean | POLICIES[policy])
                found = json.loads(said.stdout)
                runs[policy].append({"load": pressure(), "ms an image": found.pop("models")})
                print(policy, json.dumps(runs[policy][-1]), flush=True)
                settings = {"images": args.images, "repeats": args.repeats, **found}
                if args.out:  # what is measured is kept
                    args.out.write_text(json.dumps({**settings, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
