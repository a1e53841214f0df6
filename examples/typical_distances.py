"""What does a distance of 0.3 mean? Typical values on 64x64 scenes, as a Markdown table and JSON.

python examples/typical_distances.py --model tiny tiny-clean --out results/typical_distances.json
"""

import argparse
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from rclip_metric import RobustPerceptualDistance, __version__
from rclip_metric.train.apgd import apgd
from rclip_metric.train.checkpoint import write_json
from rclip_metric.train.data.scenes import edits, generator, render, sample_scene
from rclip_metric.train.threat import LpBall

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


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


PIXEL_CHANGES: dict[str, Change] = {
    "identical": lambda image, _: image,
    "JPEG, quality 90": jpeg(90),
    "JPEG, quality 50": jpeg(50),
    "Gaussian blur, radius 1 pixel": blur(1),
    "Gaussian noise, sigma 0.05": noise(0.05),
}


def pairs(count: int) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """(kind, image, changed image) for ``count`` scenes and every kind of change."""
    for index in range(count):
        rng = generator(0, "typical", index)
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


def under_attack(metric: RobustPerceptualDistance, images: torch.Tensor, steps: int) -> torch.Tensor:
    """The largest distance that APGD finds between each image and itself moved by at most 4/255: (N,)."""
    embedding = metric.embed(images)
    ball = LpBall("linf", 4 / 255)
    start = ball.start(images, list(range(len(images))))
    found = apgd(lambda points, alive: metric.distance_to(embedding[alive], points), images, ball, steps, start=start)
    return found.loss


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["tiny", "tiny-clean"])
    parser.add_argument("--scenes", type=int, default=200, help="scenes per row (default %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="APGD steps of the last row (default %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(argv)

    gathered: dict[str, tuple[list[Image.Image], list[Image.Image]]] = {}
    for kind, image, changed in pairs(options.scenes):
        left, right = gathered.setdefault(kind, ([], []))
        left.append(image)
        right.append(changed)
    table: dict[str, dict[str, list[float]]] = {}
    for name in options.model:
        metric = RobustPerceptualDistance(name)
        for kind, (left, right) in gathered.items():
            x, y = (torch.stack([metric.preprocess(image) for image in side]) for side in (left, right))
            values = metric(x, y)
            table.setdefault(kind, {})[name] = quartiles(values)
        x = torch.stack([metric.preprocess(image) for image in gathered["identical"][0][:64]])
        worst = under_attack(metric, x, options.steps)
        table.setdefault("worst case within l_inf 4/255 (APGD)", {})[name] = quartiles(worst)

    print("| change | " + " | ".join(options.model) + " |")
    print("|---|" + "---|" * len(options.model))
    for kind, cells in table.items():
        print(f"| {kind} | " + " | ".join(f"{m:.2f} ({a:.2f} - {b:.2f})" for a, m, b in cells.values()) + " |")
    if options.out:
        settings = {"scenes": options.scenes, "steps": options.steps, "values": "quartiles: 25 %, 50 %, 75 %"}
        versions = {"rclip-metric": __version__, "torch": torch.__version__}
        write_json(
            options.out,
            {"settings": settings, "versions": versions, "distances": json.loads(json.dumps(table))},
        )


def quartiles(values: torch.Tensor) -> list[float]:
    return [round(v, 4) for v in torch.quantile(values.detach(), torch.tensor([0.25, 0.5, 0.75])).tolist()]


if __name__ == "__main__":
    main()
