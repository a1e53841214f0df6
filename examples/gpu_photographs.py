"""r-lite-f at 224 pixels on a GPU, in one command: the recipe on photographs, then clean and robust accuracy.

    python examples/gpu_photographs.py --pack PHOTOGRAPHS --packed packed           # once, on any machine
    python examples/gpu_photographs.py --packed packed --triplets photos=DIR --out results/gpu_photographs

The first command writes the photographs of a tree again, as small as they have to be to travel (`--megabytes`, 60 by
default). The second one trains from `lite` (extra: lite) with the recipe r-lite-f, at 224 pixels and PGD-10 as the
paper, goes on where it was interrupted, and judges `lite`, the shipped `r-lite-f` and the new weights on triplets in
the NIGHTS format: clean, l_inf 2/255 and 4/255, l_2 3.0, APGD with 100 iterations.

`--device cpu --quick` shows in a minute or two that the script runs.
"""

import argparse
import io
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from rclip_metric.images import ImageError, open_image
from rclip_metric.train.data.images import find_images

SIDE, QUALITIES = 240, (90, 85, 80, 75, 70, 60, 50, 40)


def encoded(path: Path, side: int, quality: int) -> bytes:
    """A photograph as JPEG, its shorter side at most ``side`` pixels."""
    image = open_image(path)
    shorter = min(image.size)
    if shorter > side:
        size = tuple(max(1, round(length * side / shorter)) for length in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def pack(tree: Path, out: Path, megabytes: float) -> None:
    """Write the images of a tree below ``out``, under their own folders, at the best quality that fits."""
    paths = find_images(tree)
    sample = paths[:: max(1, len(paths) // 200)]
    for quality in QUALITIES:
        sizes = []
        for path in sample:
            try:
                sizes.append(len(encoded(path, SIDE, quality)))
            except ImageError:
                continue
        total = sum(sizes) / max(1, len(sizes)) * len(paths) / 2**20
        if total <= megabytes:
            break
    else:
        raise SystemExit(f"{len(paths)} photographs do not fit into {megabytes:g} MB: leave some folders out")
    broken = 0
    for path in paths:
        try:
            content = encoded(path, SIDE, quality)
        except ImageError as error:
            print(f"left out: {error}", file=sys.stderr)
            broken += 1
            continue
        target = (out / path.relative_to(tree)).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    print(f"{out}: {len(paths) - broken} photographs, {SIDE} pixels, quality {quality}, about {total:.0f} MB")


def call(*command: str) -> None:
    """Run ``rclip-metric``; its failure is ours."""
    done = subprocess.run([sys.executable, "-m", "rclip_metric", *command], check=False)
    if done.returncode:
        raise SystemExit(f"failed with {done.returncode}: rclip-metric {' '.join(command)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, metavar="TREE", help="only write the photographs of TREE to --packed")
    parser.add_argument("--packed", type=Path, required=True, metavar="DIR", help="photographs to train on")
    parser.add_argument("--megabytes", type=float, default=60.0, help="most that --pack may write")
    parser.add_argument("--triplets", nargs="*", default=[], metavar="NAME=DIR", help="sets in the NIGHTS format")
    parser.add_argument("--base", default="lite", help="the clean encoder")
    parser.add_argument("--out", type=Path, default=Path("results/gpu_photographs"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    options = parser.parse_args(argv)
    if options.pack:
        pack(options.pack, options.packed, options.megabytes)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: run it on a machine with one, or pass --device cpu")
    sets = dict(pair.partition("=")[::2] for pair in options.triplets)
    size, steps, batch = (32, 2, 4) if options.quick else (options.size, options.steps, options.batch_size)
    run, inner = options.out / "run", ("2", "3/255") if options.quick else ("10", "1/255")
    call(
        "train", "fare", "--recipe", "r-lite-f", "--base", options.base, "--images", f"{options.packed}",
        "--out", f"{run}", "--name", f"r-lite-f-{size}", "--image-size", f"{size}", "--steps", f"{steps}",
        "--warmup-steps", f"{min(100, steps // 2)}", "--eps-warmup-steps", f"{steps // 5}", "--batch-size", f"{batch}",
        "--inner-steps", inner[0], "--inner-step-size", inner[1], "--device", options.device,
    )  # fmt: skip
    attack = ("--steps", "2", "--limit", "4") if options.quick else ("--steps", "100")
    for name, folder in sets.items():
        for norm, eps in (("linf", ("2/255", "4/255")), ("l2", (f"{3 * size / 224:g}",))):
            call(
                "eval", "nights", "--data", folder, "--name", name, "--model", f"{run}", "--norm", norm,
                "--eps", *eps, *attack, "--device", options.device, "--out", f"{options.out / 'results'}",
            )  # fmt: skip
    if sets:
        call("eval", "table", f"{options.out / 'results'}")


if __name__ == "__main__":
    main()
