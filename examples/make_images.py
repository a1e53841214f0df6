"""Write examples/images/: a reference scene, a near and a far edit of it, and the reference under attack.

``attacked.png`` differs from ``reference.png`` by at most 4/255 in every value (rounded to whole grey levels, so
that the PNG holds the attack): to ``tiny-clean`` it then looks more like ``farther.png``. Run from the
repository's root: python examples/make_images.py
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from rclip_metric import RobustPerceptualDistance
from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.scenes.draw import generator, render, sample_triplet


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("examples/images"), help="folder (default %(default)s)")
    parser.add_argument("--triplet", type=int, default=3, help="index of the scene triplet (default %(default)s)")
    parser.add_argument("--model", default="tiny-clean", help="the model to attack (default %(default)s)")
    options = parser.parse_args(argv)

    triplet = sample_triplet(generator(0, "triplet", options.triplet))
    closer, farther = triplet.left, triplet.right
    if triplet.right_is_closer:
        closer, farther = farther, closer
    options.out.mkdir(parents=True, exist_ok=True)
    metric = RobustPerceptualDistance(options.model)
    tensors = []
    for name, scene in (("reference", triplet.reference), ("closer", closer), ("farther", farther)):
        Image.fromarray(render(scene)).save(options.out / f"{name}.png")
        tensors.append(metric.preprocess(options.out / f"{name}.png")[None])
    # Run to the end rather than to the first success: the attack must survive rounding to grey levels.
    reference = tensors[0]
    choices = torch.stack([metric.embed(tensors[1]), metric.embed(tensors[2])], 1)

    def loss(images: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        similarities = (metric.embed(images)[:, None] * choices[alive]).sum(2)
        return similarities[:, 1] - similarities[:, 0]

    found = apgd(loss, reference, LpBall("linf", 4 / 255), 100)
    levels = (found.images[0] * 255).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(options.out / "attacked.png")
    change = (levels / 255 - reference[0]).abs().max().item() * 255
    print(f"{options.out}: attacked.png differs from reference.png by at most {change:.0f}/255")


if __name__ == "__main__":
    main()
