"""How far the fast reading moves pixels and distances, beside what bfloat16 does.

    python examples/fast_reading.py --photographs FOLDER --out results/fast_reading.json

Kinds of JPEG files: the photographs of a folder, each as it is and nine to a sheet of 600 pixels (large enough to be
decoded at a reduced scale), and drawn pictures of 500 pixels and of 12 megapixels. Pairs are of two pictures, and of a
picture and a copy that was saved at quality 50. What is stated by kind and model: levels of 255 between
the two readings, over all values of all pictures; the change of a distance by the fast reading and, as published, by
bfloat16.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmark_folder import CASES, draw_jpegs
from PIL import Image
from torch import Tensor

from rclip_metric import RobustPerceptualDistance
from rclip_metric.images import READINGS, open_image
from rclip_metric.images.reading import list_images_below

_SIDE, _ACROSS = 200, 3  # of a photograph on a sheet, in pixels; photographs in a row


def jpeg(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def sheet(files: Sequence[Path]) -> bytes:
    """Put photographs side by side on a JPEG."""
    whole = Image.new("RGB", (_ACROSS * _SIDE, _ACROSS * _SIDE))
    for number, file in enumerate(files):
        place = (number % _ACROSS * _SIDE, number // _ACROSS * _SIDE)
        whole.paste(open_image(file).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), place)
    return jpeg(whole, quality=90)


def change(distances: Tensor, others: Tensor) -> dict[str, float]:
    moved = (distances - others).abs()
    return {"mean": moved.mean().item(), "largest": moved.max().item()}


def measure(model: str, pictures: Sequence[bytes]) -> dict[str, Any]:
    metrics = {reading: RobustPerceptualDistance(model, reading=reading) for reading in READINGS}
    half = RobustPerceptualDistance(model).to(torch.bfloat16)
    copies = [jpeg(open_image(picture), quality=50) for picture in pictures]
    seen = {
        reading: torch.stack([metric.preprocess(one) for one in (*pictures, *copies)])
        for reading, metric in metrics.items()
    }
    levels = 255 * (seen["fast"] - seen["published"]).abs()
    exact = seen["published"].chunk(2)
    moved = seen["fast"].chunk(2)
    pairs = {
        "two pictures": (exact[0], exact[0].roll(1, 0), moved[0], moved[0].roll(1, 0)),
        "a picture and its copy": (*exact, *moved),
    }
    found: dict[str, Any] = {
        "levels": {
            "mean": levels.mean().item(),
            "largest": levels.max().item(),
            "equal": (levels == 0).float().mean().item(),
        }
    }
    with torch.inference_mode():
        for kind, (x, y, fast_x, fast_y) in pairs.items():
            distances = metrics["published"](x, y)
            found[kind] = {
                "pairs": len(distances),
                "distance": distances.mean().item(),
                "change by fast": change(metrics["fast"](fast_x, fast_y), distances),
                "change by bfloat16": change(half(x, y), distances),
            }
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photographs", type=Path, help="a folder of JPEG files; left out if it is not given")
    parser.add_argument("--models", nargs="+", default=["tiny", "r-lite-f"])
    parser.add_argument("--pictures", type=int, default=300, help="of each kind, at most (default: %(default)s)")
    parser.add_argument("--drawn", type=int, default=32, help="of 500 pixels, and a quarter of 12 megapixels")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    kinds: dict[str, list[bytes]] = {}
    if args.photographs:
        files = [file for file in list_images_below(args.photographs) if file.suffix.lower() in (".jpg", ".jpeg")]
        random.Random(0).shuffle(files)
        nine = _ACROSS**2
        sheets = [files[start : start + nine] for start in range(0, len(files) - nine + 1, nine)]
        kinds["photographs"] = [file.read_bytes() for file in files[: args.pictures]]
        kinds["sheets of nine photographs"] = [sheet(part) for part in sheets[: args.pictures]]
    with tempfile.TemporaryDirectory() as folder:
        for (case, size), count in zip(CASES.items(), (args.drawn, args.drawn // 4), strict=True):
            kinds[f"drawn, {case}"] = [file.read_bytes() for file in draw_jpegs(Path(folder) / case, count, size)]
    report: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    for kind, pictures in kinds.items():
        for model in args.models:
            report[kind][model] = measure(model, pictures)
            print(kind, model, json.dumps(report[kind][model]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
