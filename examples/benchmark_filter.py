"""How fast images are filtered, beside the bare model; how memory and time grow; and what decoding costs.

    python examples/benchmark_filter.py --out results/

Rates: JPEGs of 500 pixels, drawn here, are decided on by `Worker.rows`, which is what both engines run, and pixels that
are decoded already are embedded in batches of the same size, in turn; the ratio of the two is what the filter keeps
of the model's speed. On a processor alone the model and the decoding share the cores, and no filter can keep more than
the model's part of both: `parts_over_filter_processor` says how much of the filter's time model, decoding and resizing
take by themselves. Growth: shards of small JPEGs, the same bytes over and over under other names, by `run_local` in a
process of its own for each size, whose peak memory is that of the process; then the table is put together.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rclip_metric.filtering import Parts, Work, Worker, columns, find_pools, find_work, run_local
from rclip_metric.filtering.job import Job
from rclip_metric.filtering.pools import embed_pools
from rclip_metric.images import open_image
from rclip_metric.images.resizing import preprocess_pil
from rclip_metric.retrieval import ModelSource
from rclip_metric.train.benchmark.report import Report, outlined
from rclip_metric.train.benchmark.turns import take_turns, timed

CLASSES = {"safe": 32, "buffer": 32, "unsafe": 32}


def jpeg(seed: int, side: int) -> bytes:
    """Draw something with edges and texture, that takes a JPEG of quality 90 the bytes of a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((side, side), 3)
    pixels = np.asarray(coarse, dtype=np.float32) + random.normal(0, 10, (side, side, 3))
    encoded = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def write_shards(folder: Path, images: list[bytes], count: int, per_shard: int = 1000) -> Path:
    """Write shards of so many images, those that there are in turn."""
    folder.mkdir()
    for start in range(0, count, per_shard):
        with tarfile.open(folder / f"{start // per_shard:05d}.tar", "w") as archive:
            for number in range(start, min(start + per_shard, count)):
                member = tarfile.TarInfo(f"{number:07d}.jpg")
                content = images[number % len(images)]
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def work_on(images: Path, model: str, batch_size: int, folder: Path) -> Work:
    """Make a filter of three classes, and give it the images."""
    source = ModelSource(model)
    pools = folder / "examples"
    for place, (label, count) in enumerate(CLASSES.items()):
        for number in range(count):
            path = pools / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(10_000 * (place + 1) + number, 128))
    index = embed_pools(find_pools(str(pools)), source.load(), folder / "index", batch_size, lambda path, why: None)
    parts = Parts(str(folder / "decisions"), tuple(columns([])), "parquet")
    return Work(source, str(index), tuple(find_work(str(images))), parts, batch_size=batch_size)


def rates(model: str, batch_size: int, count: int, repeats: int) -> dict[str, Any]:
    """Compare the filter with the bare model, and time what the model does not do."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [jpeg(seed, 500) for seed in range(count)]
        work = work_on(write_shards(folder / "tars", images, count, count), model, batch_size, folder)
        with Worker(work) as worker:
            metric = worker.metric
            batches = torch.stack([metric.preprocess(image) for image in images]).split(batch_size)
            decoded = [open_image(image) for image in images]

            def bare() -> None:
                with torch.inference_mode():
                    for batch in batches:
                        metric.embed(batch)

            encoder = metric.encoder
            contestants: dict[str, Callable[[], object]] = {
                "bare model": bare,
                "filter": lambda: worker.rows(work.shards[0]),
                "decoding": lambda: [open_image(image) for image in images],
                "resizing": lambda: [preprocess_pil(one, encoder.preprocessing, encoder.resize) for one in decoded],
            }
            turns = take_turns(contestants, repeats)
    found: dict[str, Any] = {
        name: {
            "wall_ms": 1000 * statistics.median(times.wall) / count,
            "processor_ms": 1000 * statistics.median(times.processor) / count,
        }
        for name, times in turns.times.items()
    }
    for kind in ("wall", "processor"):
        found[f"filter_over_bare_{kind}"] = turns.ratio("bare model", "filter", kind)
    parts = [found[name]["processor_ms"] for name in ("bare model", "decoding", "resizing")]
    found["parts_over_filter_processor"] = sum(parts) / found["filter"]["processor_ms"]
    found["bytes_per_image"] = round(statistics.mean(map(len, images)))
    return {"model": model, "batch_size": batch_size, "images": count, **found}


def grown(count: int, batch_size: int) -> dict[str, Any]:
    """Filter so many small images with `tiny`, in this process; its peak memory is part of the answer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [jpeg(seed, 64) for seed in range(100)]
        work = work_on(write_shards(folder / "tars", images, count), "tiny", batch_size, folder)
        peaks: list[float] = []
        with Worker(work) as worker:
            wall, processor, _ = timed(
                lambda: run_local(
                    worker, lambda report: peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
                )
            )
        _, finishing, finished = timed(lambda: Job(folder).finish(work.parts, len(work.shards)))
    assert finished.images == count
    per_image = processor / count * 1000
    return {
        "images": count,
        "wall_s": wall,
        "processor_s": processor,
        "processor_ms_per_image": per_image,
        "finish_us_per_image": finishing / count * 1e6,
        "peak_mb": peaks[-1],
        "peak_mb_after_first_shard": peaks[0],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "r-lite-f"])
    parser.add_argument("--images", type=int, default=128, help="500-pixel JPEGs for the rates")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--only-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="a .json, or a folder")
    args = parser.parse_args()
    if args.only_size:
        print(json.dumps(grown(args.only_size, args.batch_size)))
        return
    settings = {"images": args.images, "batch_size": args.batch_size, "repeats": args.repeats}
    report = Report("benchmark_filter", args.out, settings)
    for model in args.models:
        report.add(f"rates, {model}", rates(model, args.batch_size, args.images, args.repeats))
    for size in args.sizes:
        command = [sys.executable, __file__, "--only-size", str(size), "--batch-size", str(args.batch_size)]
        done = subprocess.run(command, check=True, capture_output=True)
        report.add(f"growth, {size} images", json.loads(done.stdout))
    print(outlined("results", report.record["results"]))


if __name__ == "__main__":
    main()
