"""What the demo answers about two uploads: how far apart they are, where, and what an attack makes of it."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from rclip_metric import RobustPerceptualDistance
from rclip_metric.errors import ImageError, MissingPackageError
from rclip_metric.images.heat import overlay
from rclip_metric.images.reading import load_image, open_image
from rclip_metric.train.data.scenes.draw import edits, generator, render, sample_scene
from rclip_metric.train.demo.attack import Attacked, attack_image
from rclip_metric.train.demo.typical import place, typical_distances

SIDE = 320
"""Pixels of the longer side of what is shown, mapped and attacked."""
_AMPLIFIED = 20
UPLOADS = "GRADIO_TEMP_DIR"
"""The variable that names the folder of uploads, for Gradio too."""


class Pair(NamedTuple):
    """A clean model and the robust one that was made of it."""

    clean: str
    robust: str


PAIRS = {"photographs": Pair("lite", "r-lite-f"), "drawn scenes": Pair("tiny-clean", "tiny")}


@dataclass(frozen=True)
class Limits:
    """What the demo does at most.

    Attributes:
        bytes: Of an uploaded file.
        pixels: Of an image.
        steps: Of the attack.
        waiting: Visitors in the queue; one is served at a time.
    """

    bytes: int = 10_000_000
    pixels: int = 25_000_000
    steps: int = 10
    waiting: int = 8


@functools.lru_cache(maxsize=4)
def metric_of(name: str) -> RobustPerceptualDistance:
    """Load a model once."""
    return RobustPerceptualDistance(name)


def read(upload: Any, which: str, limits: Limits) -> Image.Image:
    """Open what was uploaded, if it is not too large.

    Args:
        upload: What the browser, or whoever calls the API, says of it: a record with the file's path.
        which: Its name on the page.
        limits: How large it may be.

    Raises:
        ImageError: It is missing, too large, no image, or no upload: other files of this machine are not read.
    """
    path = upload.get("path") if isinstance(upload, dict) else None
    if not path:
        raise ImageError(f"image {which} is missing: upload two images")
    if not (isinstance(path, str) and Path(path).resolve().is_relative_to(Path(os.environ[UPLOADS]).resolve())):
        raise ImageError(f"image {which} is no upload: upload two images")
    if not os.path.isfile(path):
        raise ImageError(f"image {which} is not there any more: upload it again")
    size = os.path.getsize(path)
    if size > limits.bytes:
        raise ImageError(f"image {which} has {size:,} bytes, expected at most {limits.bytes:,}: make it smaller")
    if (pixels := _pixels(path)) > limits.pixels:
        raise ImageError(f"image {which} has {pixels:,} pixels, expected at most {limits.pixels:,}: make it smaller")
    try:
        return open_image(path)
    except ImageError as error:  # without the name that the file has on this machine
        raise ImageError(f"image {which}: {str(error).rpartition(': ')[2]}") from error


def _pixels(path: str) -> int:
    """Ask the head of a file for its size; what is no image has none, and says so when it is opened."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except Image.DecompressionBombError:
        return 2 * (Image.MAX_IMAGE_PIXELS or 0) + 1
    except (OSError, SyntaxError, ValueError):
        return 0


def compare(a: Any, b: Any, kind: str, limits: Limits) -> tuple[float, str, Image.Image]:
    """Compute the distance of two files by the robust model of a kind, what it means, and where they differ.

    Returns:
        Distance, a text in Markdown, and the map over the second image.
    """
    one, other = read(a, "A", limits), read(b, "B", limits)
    model = PAIRS[kind].robust
    metric = metric_of(model)
    with torch.inference_mode():
        distance = float(metric(metric.preprocess(one)[None], metric.preprocess(other)[None]))
    for picture in (one, other):
        picture.thumbnail((SIDE, SIDE))
    found = metric.difference_map(load_image(other)[None], load_image(one)[None])[0].numpy()
    top = float(found.max())
    rows = typical_distances(model, metric.encoder.revision)
    table = [f"| {row.kind} | {row.middle:.2f} | {row.low:.2f} to {row.high:.2f} |" for row in rows]
    share = f"{rows[0].share} % of pairs" if rows else "pairs"
    told = [
        f"**{place(distance, rows)}**",
        f"{model}: 0 for identical images, at most 1.41; lower is more alike.",
        f"The map goes from 0 (dark) to {top:.2f} (bright): mean of 1 - cos over the local features.",
        "\n".join([f"| what differs | median | {share} |", "|---|---|---|", *table]),
    ]
    return distance, "\n\n".join(told), overlay(other, found, top)


def attack(a: Any, b: Any, kind: str, limits: Limits) -> tuple[str, list[tuple[Image.Image, str]]]:
    """Attack the clean and the robust model of a kind, each for itself, with the same steps in the same ball.

    Returns:
        A table in Markdown, and pictures with captions.
    """
    one, other = read(a, "A", limits), read(b, "B", limits)
    for picture in (one, other):
        picture.thumbnail((SIDE, SIDE))
    image, compared = load_image(one), load_image(other)
    rows, pictures, remarks = [], [(one, "A, as it came")], []
    for role, model in PAIRS[kind]._asdict().items():
        try:
            metric = metric_of(model)
        except MissingPackageError as error:
            remarks.append(f"{model} is left out. {error}")
            continue
        found = attack_image(metric, image, compared, steps=limits.steps)
        rows.append(f"| {model} ({role}) | {found.before:.2f} | {found.moved:.2f} | {found.after:.2f} |")
        pictures += _pictures(found, one, model)
    table = ["| model | A to B | A to changed A | changed A to B |", "|---|---|---|---|", *rows]
    about = f"A is changed by at most 4/255 in every value, by {limits.steps} steps of APGD against each model."
    return "\n\n".join([about, "\n".join(table), *remarks]), pictures


def _pictures(found: Attacked, clean: Image.Image, model: str) -> list[tuple[Image.Image, str]]:
    changed = found.levels.permute(1, 2, 0).numpy()
    change = (changed.astype(int) - np.asarray(clean)) * _AMPLIFIED + 128
    return [
        (Image.fromarray(changed), f"changed against {model}: {found.moved:.2f} from A"),
        (Image.fromarray(change.clip(0, 255).astype(np.uint8)), f"the change, times {_AMPLIFIED}"),
    ]


def draw_examples(folder: Path) -> tuple[str, str]:
    """Draw a scene, and the same one after an edit: the files."""
    rng = generator(0, "demo", 0)
    scene = sample_scene(rng)
    edit = next(edit for edit in edits(scene) if edit.weight == 4)
    paths = folder / "scene.png", folder / "edited.png"
    for path, drawn in zip(paths, (scene, edit.apply(scene, rng)), strict=True):
        Image.fromarray(render(drawn)).save(path)
    return str(paths[0]), str(paths[1])
