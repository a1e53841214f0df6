"""What does a distance of 0.3 mean? Typical values between images, as a Markdown table and JSON.

    python examples/typical_distances.py --model tiny tiny-clean       # on scenes that are drawn here
    python examples/typical_distances.py --model r-clip-f --images PHOTOGRAPHS [--products SET]

PHOTOGRAPHS is a folder with a folder per class, or a CSV file with the columns class and file (relative to it) and
perhaps set: only images of one set are compared. --products names a set whose classes are products rather than kinds.
Photographs of more than 256 pixels are reduced to that, so that a pixel of blur is the same in all of them.
"""

import argparse
import csv
import io
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from rclip_metric import RobustPerceptualDistance
from rclip_metric.images import ImageError, open_image
from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.losses import embedding_distance
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.classes import read_classes
from rclip_metric.train.data.scenes.draw import edits, generator, render, sample_scene
from rclip_metric.train.models.weights_digest import weights_digest
from rclip_metric.train.runs.files import write_json
from rclip_metric.train.runs.machine import device_record, versions
from rclip_metric.train.runs.seeds import sample_seed

Change = Callable[[Image.Image, np.random.Generator], Image.Image]
Pair = tuple[str, Image.Image, Image.Image]
"""What was done, an image, and the image that it became."""
BALLS = tuple(LpBall("linf", levels / 255) for levels in (2, 4))
OTHER_PHOTOGRAPHS = ("same product", "same class", "other class")
LARGEST = 256  # pixels
QUANTILES = {"5 %": 0.05, "50 %": 0.5, "95 %": 0.95}


def jpeg(quality: int) -> Change:
    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def blur(radius: float) -> Change:
    return lambda image, _: image.filter(ImageFilter.GaussianBlur(radius))


def noise(sigma: float) -> Change:
    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        pixels = np.asarray(image) / 255 + rng.normal(0, sigma, (image.height, image.width, 3))
        return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))

    return change


def crop(share: float) -> Change:
    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = (max(1, round(side * share)) for side in image.size)
        left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        return image.crop((int(left), int(top), int(left) + width, int(top) + height))

    return change


PIXEL_CHANGES: dict[str, Change] = {
    "identical": lambda image, _: image,
    "JPEG, quality 90": jpeg(90),
    "JPEG, quality 50": jpeg(50),
    "Gaussian blur, radius 1 pixel": blur(1),
    "Gaussian noise, sigma 0.05": noise(0.05),
}


def scene_pairs(count: int, seed: int) -> Iterator[Pair]:
    """Pairs of every kind for ``count`` scenes."""
    for index in range(count):
        rng = generator(seed, "typical", index)
        scene = sample_scene(rng)
        image = Image.fromarray(render(scene))
        for kind, change in PIXEL_CHANGES.items():
            yield kind, image, change(image, rng)
        for kind, weight in (
            ("other view (moved, turned, relit or resized)", 1),
            ("one attribute changed", 4),
        ):
            choices = [edit for edit in edits(scene) if edit.weight == weight]
            edit = choices[rng.integers(len(choices))]
            yield kind, image, Image.fromarray(render(edit.apply(scene, rng)))
        yield "other scene", image, Image.fromarray(render(sample_scene(rng)))


@dataclass(frozen=True)
class Photograph:
    """A file, the set that it belongs to, and its class there."""

    path: Path
    group: str
    label: str


def read_photographs(source: Path, sets: Sequence[str] | None = None) -> list[Photograph]:
    """The photographs of a class-per-folder tree or of a CSV file, of these sets alone if any are named.

    Raises:
        ValueError: The CSV lacks a column, or nothing is left.
    """
    if source.is_dir():
        tree = read_classes(source)
        found = [Photograph(image.path, "", tree.names[image.label]) for image in tree.images]
    else:
        with source.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := {"class", "file"} - set(reader.fieldnames or ()):
                raise ValueError(f"{source} has no column {sorted(missing)[0]!r}: it needs class and file")
            found = [Photograph(source.parent / row["file"], row.get("set") or "", row["class"]) for row in reader]
    if unknown := set(sets or ()) - {photograph.group for photograph in found}:
        raise ValueError(f"{source} has no set {sorted(unknown)[0]!r}")
    found = [photograph for photograph in found if sets is None or photograph.group in sets]
    if not found:
        raise ValueError(f"{source} lists no images")
    return found


def photograph_pairs(photographs: Sequence[Photograph], products: str | None, count: int, seed: int) -> Iterator[Pair]:
    """Pairs of every kind for ``count`` photographs, as many of every set as there are; a broken file is told of."""
    sets: dict[str, list[Photograph]] = defaultdict(list)
    for photograph in photographs:
        sets[photograph.group].append(photograph)
    drawn = []
    for name, group in sorted(sets.items()):
        order = generator(seed, f"order {name}", 0).permutation(len(group))
        drawn.append([group[place] for place in order])
    taken = [group[turn] for turn in range(max(map(len, drawn))) for group in drawn if turn < len(group)]
    for index, photograph in enumerate(taken[:count]):
        rng = generator(seed, "typical", index)
        image = opened(photograph.path)
        if image is None:
            continue
        for kind, change in {**PIXEL_CHANGES, "another crop (80 % of the sides)": crop(0.8)}.items():
            yield kind, image, change(image, rng)
        group = sets[photograph.group]
        same = [other for other in group if other.label == photograph.label and other != photograph]
        other_class = [other for other in group if other.label != photograph.label]
        of_class = "same product" if photograph.group == products else "same class"
        for kind, choices in ((of_class, same), ("other class", other_class)):
            other = opened(choices[rng.integers(len(choices))].path) if choices else None
            if other is not None:
                yield kind, image, other


def opened(path: Path) -> Image.Image | None:
    try:
        image = open_image(path)
    except ImageError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return None
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BICUBIC)
    return image


def under_attack(metric: RobustPerceptualDistance, images: torch.Tensor, ball: LpBall, steps: int, seed: int) -> Any:
    """The largest distance that APGD finds between each image and itself moved within the ball: (N,)."""
    clean = metric.embed(images)
    start = ball.start(images, [sample_seed(seed, str(index)) for index in range(len(images))])
    found = apgd(
        lambda points, alive: embedding_distance(metric.embed(points), clean[alive]),
        images,
        ball,
        steps,
        start=start,
        chunk_size=16,
    )
    return (found.loss / 2).sqrt()  # d = || u - v || / sqrt(2)


def summary(values: torch.Tensor) -> dict[str, float]:
    quantiles = torch.quantile(values.detach().cpu(), torch.tensor(list(QUANTILES.values()))).tolist()
    return {
        "pairs": len(values),
        **{name: round(value, 4) for name, value in zip(QUANTILES, quantiles, strict=True)},
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["tiny", "tiny-clean"], help="names or paths")
    parser.add_argument("--images", type=Path, help="photographs: a folder of class folders, or a CSV file")
    parser.add_argument("--sets", nargs="+", help="of a CSV file, only these sets (default: all)")
    parser.add_argument("--products", metavar="SET", help="the set whose classes are products")
    parser.add_argument("--count", type=int, default=200, help="images per row (default %(default)s)")
    parser.add_argument("--attacked", type=int, default=64, help="images of the last rows (default %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="APGD steps of the last rows (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)

    if options.images is None:
        pairs = scene_pairs(options.count, options.seed)
    else:
        try:
            photographs = read_photographs(options.images, options.sets)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        pairs = photograph_pairs(photographs, options.products, options.count, options.seed)
    gathered: dict[str, tuple[list[Image.Image], list[Image.Image]]] = {}
    for kind, image, changed in pairs:
        left, right = gathered.setdefault(kind, ([], []))
        left.append(image)
        right.append(changed)
    if not gathered:
        parser.error(f"none of the images of {options.images} can be read")
    kinds = sorted(gathered, key=lambda kind: OTHER_PHOTOGRAPHS.index(kind) if kind in OTHER_PHOTOGRAPHS else -1)

    table: dict[str, dict[str, Any]] = {}
    models: dict[str, Any] = {}
    for model in options.model:
        metric = RobustPerceptualDistance(model).to(options.device)
        encoder = metric.encoder
        revision = encoder.revision or weights_digest(encoder.state_dict())
        models[encoder.name] = {
            "revision": revision,
            "preprocessing": encoder.preprocessing.to_dict(),
            "resize": encoder.resize,
        }
        for kind in kinds:
            x, y = (
                torch.stack([metric.preprocess(image) for image in side]).to(options.device) for side in gathered[kind]
            )
            table.setdefault(kind, {})[encoder.name] = summary(metric(x, y))
        x = torch.stack([metric.preprocess(image) for image in gathered["identical"][0][: options.attacked]])
        for ball in BALLS:
            worst = under_attack(metric, x.to(options.device), ball, options.steps, options.seed)
            table.setdefault(f"worst case within {ball} (APGD)", {})[encoder.name] = summary(worst)

    print("| change | " + " | ".join(models) + " |")
    print("|---|" + "---|" * len(models))
    for kind, cells in table.items():
        ranges = (f"{cell['50 %']:.2f} ({cell['5 %']:.2f} - {cell['95 %']:.2f})" for cell in cells.values())
        print(f"| {kind} | " + " | ".join(ranges) + " |")
    settings = {key: getattr(options, key) for key in ("sets", "products", "count", "attacked", "steps", "seed")}
    report = {
        "images": options.images.name if options.images else "scenes",
        "settings": settings,
        "models": models,
        "versions": versions(),
        "device": device_record(metric.device),
        "distances": table,
    }
    if options.out:
        write_json(options.out, report)
    return report


if __name__ == "__main__":
    main()
