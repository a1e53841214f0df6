"""Procedural scenes in the formats of BAPPS, THINGS and class folders: evaluations run where the real sets are not.

The order of the distortions, and which image of three is the odd one, are known by construction; what the
simulated people answer differs from that at a known rate. Everything is a function of the seed and its index,
however many are written (an odd-one-out triplet also of the number of concepts).
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from rclip_metric.images import open_image
from rclip_metric.progress import progress
from rclip_metric.train.data.jnd import JND_SPLITS
from rclip_metric.train.data.scenes import draw as scenes
from rclip_metric.train.data.scenes.draw import (
    BACKGROUNDS,
    COLOURS,
    GROUNDS,
    SHAPES,
    Scene,
    generator,
    render,
    sample_scene,
)
from rclip_metric.train.data.set_folder import begin, written
from rclip_metric.train.data.things import COLUMNS
from rclip_metric.train.data.triplets import BAPPS_SPLITS, BAPPS_TRAINING_SPLITS
from rclip_metric.train.runs.files import write_json

VERSION = 1  # raised, as `scenes.VERSION`, whenever the same seed would give other files
BAPPS_SIZE = 256  # pixels; BAPPS, too, is stored so, enlarged from 64
PEOPLE = 5  # that judge a triplet of BAPPS
TRAINING_PEOPLE = 2  # that judge a training triplet of BAPPS
JND_PEOPLE = 3  # that judge a pair
LABEL_NOISE = 0.05  # share of odd-one-out answers that are wrong
FAMILY = 3  # concepts that share what makes them alike

# Distortions of a 64x64 image, from strength 0 (hardly any) to 1.


def _moved(image: Image.Image, x: float, y: float) -> Image.Image:
    """Shift by parts of a pixel; what comes in repeats the border."""
    margin = math.ceil(max(abs(x), abs(y))) + 1
    padded = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    shift = (1.0, 0.0, x, 0.0, 1.0, y)
    moved = Image.fromarray(padded)
    moved = moved.transform(moved.size, Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR)
    return moved.crop((margin, margin, margin + image.width, margin + image.height))


def _noisy(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    levels = np.asarray(image) + rng.normal(0, 75 * strength, (image.height, image.width, 3))
    return Image.fromarray((levels.clip(0, 255) + 0.5).astype(np.uint8))


def _blurred(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(2.5 * strength))


def _compressed(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=round(80 - 75 * strength))
    return open_image(stream.getvalue())


def _blocky(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    coarse = image.resize((image.width // 8, image.height // 8), Image.Resampling.BOX)
    return Image.blend(image, coarse.resize(image.size, Image.Resampling.NEAREST), strength)


def _cast(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    direction = rng.standard_normal(3)
    levels = np.asarray(image) + 110 * strength * direction / np.linalg.norm(direction)
    return Image.fromarray((levels.clip(0, 255) + 0.5).astype(np.uint8))


def _streaked(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    angle = rng.uniform(0, math.pi)
    steps = np.linspace(-5 * strength, 5 * strength, 11)
    copies = [np.asarray(_moved(image, t * math.cos(angle), t * math.sin(angle)), np.float32) for t in steps]
    return Image.fromarray((np.mean(copies, axis=0) + 0.5).astype(np.uint8))


def _ghosted(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    angle = rng.uniform(-math.pi, math.pi)
    x, y = 5 * strength * math.cos(angle), 5 * strength * math.sin(angle)
    return Image.blend(_moved(image, x, y), _moved(image, -x, -y), 0.5)


def _coarse(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    side = round(image.width * (1 - 0.85 * strength))
    return image.resize((side, side), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


Distortion = Callable[[Image.Image, float, np.random.Generator], Image.Image]

# What each part of BAPPS compares, in its simplest form.
DISTORTIONS: Mapping[str, Mapping[str, Distortion]] = {
    "cnn": {"blocks": _blocky},
    "color": {"cast": _cast},
    "deblur": {"streaks": _streaked},
    "frameinterp": {"ghost": _ghosted},
    "superres": {"coarse": _coarse},
    "traditional": {"noise": _noisy, "blur": _blurred, "jpeg": _compressed},
}
# The training splits; the mixed one has those of the other two.
TRAINING_DISTORTIONS: Mapping[str, Mapping[str, Distortion]] = {
    "traditional": DISTORTIONS["traditional"],
    "cnn": DISTORTIONS["cnn"],
    "mix": {**DISTORTIONS["traditional"], **DISTORTIONS["cnn"]},
}


@dataclass(frozen=True)
class Comparison:
    """Two distortions of one scene and what people say: uint8 images, strengths in [0, 1], votes for p1."""

    reference: Image.Image
    images: tuple[Image.Image, Image.Image]
    kind: str
    strengths: tuple[float, float]
    votes: int


def sample_comparison(rng: np.random.Generator, split: str, *, training: bool = False) -> Comparison:
    """Draw one triplet of a split of BAPPS: the same distortion twice, once stronger.

    A training split, whose triplets fewer people judge, is of `TRAINING_DISTORTIONS`.

    A person prefers p1 with probability 1 / (1 + exp(-12 (s0 - s1))), s the strengths: 65 % of people find
    the milder one at the least difference, 0.05, and 97 % at the largest, 0.3.
    """
    reference = Image.fromarray(render(sample_scene(rng)))
    kinds = (TRAINING_DISTORTIONS if training else DISTORTIONS)[split]
    people = TRAINING_PEOPLE if training else PEOPLE
    kind = sorted(kinds)[rng.integers(len(kinds))]
    milder = rng.uniform(0.1, 0.7)
    strengths = [milder, milder + rng.uniform(0.05, 0.3)]
    if rng.random() < 0.5:
        strengths.reverse()
    votes = int(rng.binomial(people, 1 / (1 + math.exp(-12 * (strengths[0] - strengths[1])))))
    left, right = (kinds[kind](reference, strength, rng) for strength in strengths)
    return Comparison(reference, (left, right), kind, (strengths[0], strengths[1]), votes)


def write_bapps(
    folder: Path, *, seed: int = 0, per_split: int = 40, training: int = 0, quiet: bool = False
) -> dict[str, Any]:
    """Write a set in the BAPPS format below `folder`, and return the record that is saved as `bapps.json`.

    - `2afc/val/<split>/{ref,p0,p1}/NNNNNN.png`, 256x256, enlarged from the scenes' 64x64;
    - `2afc/val/<split>/judge/NNNNNN.npy`: float64 (1,), the share of five people who prefer p1;
    - `2afc/train/<split>/...`, if `training` of each are asked for: the same, judged by two people, in the splits
      traditional, cnn and mix;
    - `strengths.csv`: for each triplet its kind of distortion and the strengths in p0 and p1; the keys of training
      triplets begin with "train/".

    Raises:
        ValueError: if `folder` holds a set of other settings or from elsewhere, or `per_split` is not positive.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = write_bapps(Path(folder), per_split=1, quiet=True)
        ...     shares = [float(np.load(path)[0]) for path in sorted(Path(folder).rglob("*.npy"))]
        >>> len(shares), all(0 <= share <= 1 for share in shares)
        (6, True)
    """
    if per_split < 1:
        raise ValueError(f"got {per_split} triplets per split, expected 1 or more")
    if training < 0:
        raise ValueError(f"got {training} training triplets per split, expected 0 or more")
    record = _record(seed=seed, per_split=per_split, size=BAPPS_SIZE, people=PEOPLE)
    if training:
        record |= {"training": training, "training_people": TRAINING_PEOPLE}
    if written(folder / "bapps.json", record):
        return record
    partial = begin(folder / "2afc", "bapps.json")
    with (folder / "strengths.csv").open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["key", "kind", "p0", "p1"])
        places = [("val", split, index) for split in BAPPS_SPLITS for index in range(per_split)]
        places += [("train", split, index) for split in BAPPS_TRAINING_SPLITS for index in range(training)]
        for part, split, index in progress(places, label="BAPPS", unit="triplet", quiet=quiet):
            what = split if part == "val" else f"train {split}"
            comparison = sample_comparison(generator(seed, f"bapps {what}", index), split, training=part == "train")
            root = partial / part / split
            for name, image in zip(("ref", "p0", "p1"), (comparison.reference, *comparison.images), strict=True):
                (root / name).mkdir(parents=True, exist_ok=True)
                larger = image.resize((BAPPS_SIZE, BAPPS_SIZE), Image.Resampling.BICUBIC)
                larger.save(root / name / f"{index:06d}.png", compress_level=1)
            (root / "judge").mkdir(parents=True, exist_ok=True)
            share = comparison.votes / (PEOPLE if part == "val" else TRAINING_PEOPLE)
            np.save(root / "judge" / f"{index:06d}.npy", np.array([share]))
            strengths = (f"{strength:.4f}" for strength in comparison.strengths)
            key = f"{split}/{index:06d}" if part == "val" else f"train/{split}/{index:06d}"
            table.writerow([key, comparison.kind, *strengths])
    partial.replace(folder / "2afc")
    write_json(folder / "bapps.json", record)
    return record


def write_jnd(folder: Path, *, seed: int = 0, per_split: int = 40, quiet: bool = False) -> dict[str, Any]:
    """Write pairs in the format of BAPPS' JND part below `folder`, and return the record that is saved as `jnd.json`.

    - `jnd/val/<split>/{p0,p1}/NNNNNN.png`, 256x256, enlarged from 64x64: a scene and a distortion of it, whose strength
      is uniform in [0, 0.5];
    - `jnd/val/<split>/same/NNNNNN.npy`: float64 (1,), the share of three people who call them the same, each with the
      probability 1 / (1 + exp(20 (strength - 0.15))): 95 % at 0, a half at 0.15, one in a thousand at 0.5.

    Raises:
        ValueError: if `folder` holds a set of other settings or from elsewhere, or `per_split` is not positive.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = write_jnd(Path(folder), per_split=1, quiet=True)
        ...     images = len(list(Path(folder).rglob("*.png")))
        >>> images, record["people"]
        (4, 3)
    """
    if per_split < 1:
        raise ValueError(f"got {per_split} pairs per split, expected 1 or more")
    record = _record(seed=seed, per_split=per_split, size=BAPPS_SIZE, people=JND_PEOPLE)
    if written(folder / "jnd.json", record):
        return record
    partial = begin(folder / "jnd", "jnd.json")
    places = [(split, index) for split in JND_SPLITS for index in range(per_split)]
    for split, index in progress(places, label="JND", unit="pair", quiet=quiet):
        rng = generator(seed, f"jnd {split}", index)
        reference = Image.fromarray(render(sample_scene(rng)))
        kinds = DISTORTIONS[split]
        kind, strength = sorted(kinds)[rng.integers(len(kinds))], rng.uniform(0, 0.5)
        same = rng.binomial(JND_PEOPLE, 1 / (1 + math.exp(20 * (strength - 0.15)))) / JND_PEOPLE
        root = partial / "val" / split
        for part, image in (("p0", reference), ("p1", kinds[kind](reference, strength, rng))):
            (root / part).mkdir(parents=True, exist_ok=True)
            larger = image.resize((BAPPS_SIZE, BAPPS_SIZE), Image.Resampling.BICUBIC)
            larger.save(root / part / f"{index:06d}.png", compress_level=1)
        (root / "same").mkdir(parents=True, exist_ok=True)
        np.save(root / "same" / f"{index:06d}.npy", np.array([same]))
    partial.replace(folder / "jnd")
    write_json(folder / "jnd.json", record)
    return record


# Odd one out. Concepts come in families of three, which share either the main object's shape and colour, or the
# ground; a triplet is two of a family and one that has neither that shape, nor that colour, nor that ground.


def sample_concept(seed: int, index: int) -> Scene:
    """Draw the scene of one concept, a function of the two numbers; its main object is the first one, and large."""
    family = generator(seed, "family", index // FAMILY)
    shape, colour, ground, paint = (_one_of(family, names) for names in (SHAPES, COLOURS, GROUNDS, BACKGROUNDS))
    rng = generator(seed, "concept", index)
    if _kind(index) == "object":
        scene = sample_scene(rng, shape=shape)
        main = replace(scene.objects[0], colour=colour)
    else:
        scene = replace(sample_scene(rng, shape=_one_of(rng, SHAPES)), ground=ground, ground_colour=paint)
        main = scene.objects[0]
    return replace(scene, objects=(main, *scene.objects[1:]))


def _one_of(rng: np.random.Generator, names: Any) -> str:
    return str(list(names)[rng.integers(len(names))])


def _kind(index: int) -> str:
    """Say what the family of a concept shares."""
    return ("object", "ground")[index // FAMILY % 2]


def _traits(scene: Scene) -> tuple[str, str, str]:
    return scene.objects[0].shape, scene.objects[0].colour, scene.ground_colour


def _choices(concepts: list[Scene]) -> list[tuple[int, int, list[int]]]:
    """List all pairs of a family, each with the concepts that share no trait with either of the two."""
    traits = [_traits(scene) for scene in concepts]
    found = []
    for i, one in enumerate(traits):
        for j in range(i + 1, min((i // FAMILY + 1) * FAMILY, len(concepts))):
            others = []
            for k, other in enumerate(traits):
                shared = (t in (a, b) for t, a, b in zip(other, one, traits[j], strict=True))
                if not any(shared):
                    others.append(k)
            if others:
                found.append((i, j, others))
    return found


def write_things(
    folder: Path, *, seed: int = 0, concepts: int = 60, triplets: int = 1000, quiet: bool = False
) -> dict[str, Any]:
    """Write a set in the THINGS format below `folder`, and return the record that is saved as `things.json`.

    - `images/NNNN_<colour>_<shape>_on_<colour>.png`, 64x64, one per concept, in order;
    - `triplets.csv`: tab-separated, indices from 1, choice 1 to 3 is the odd one; further columns say what the
      other two share ("object" or "ground") and whether this answer is one of the wrong ones.

    An answer is wrong, at random, at the rate `LABEL_NOISE`: a perfect metric scores 95 %.

    Raises:
        ValueError: if `folder` holds a set of other settings or from elsewhere, or the numbers allow no triplet.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = write_things(Path(folder), concepts=12, triplets=5, quiet=True)
        ...     images = len(list(Path(folder, "images").iterdir()))
        >>> images, record["label_noise"]
        (12, 0.05)
    """
    if triplets < 1 or concepts > 10_000:  # four digits: the order of the names is that of the concepts
        raise ValueError(f"got {triplets} triplets of {concepts} concepts, expected 1 or more of at most 10,000")
    record = _record(seed=seed, concepts=concepts, triplets=triplets, size=scenes.SIZE, label_noise=LABEL_NOISE)
    if written(folder / "things.json", record):
        return record
    drawn = [sample_concept(seed, index) for index in range(concepts)]
    choices = _choices(drawn)
    if not choices:
        raise ValueError(f"{concepts} concepts allow no triplet with an odd one: ask for more, such as 60")
    partial = begin(folder / "images", "things.json")
    bar = progress(total=concepts + triplets, label="THINGS", quiet=quiet)
    for index, scene in enumerate(drawn):
        shape, colour, paint = _traits(scene)
        path = partial / f"{index:04d}_{colour}_{shape}_on_{paint}.png"
        Image.fromarray(render(scene)).save(path, compress_level=1)
        bar.update()
    with (folder / "triplets.csv").open("w", newline="") as handle:
        table = csv.writer(handle, delimiter="\t", lineterminator="\n")
        table.writerow([*COLUMNS, "shared", "wrong"])
        for index in range(triplets):
            rng = generator(seed, "odd one out", index)
            one, other, strangers = choices[rng.integers(len(choices))]
            shown = [strangers[rng.integers(len(strangers))], one, other]  # the odd one first
            order = rng.permutation(3)
            wrong = bool(rng.random() < LABEL_NOISE)
            odd = [int(i) for i in order].index(int(rng.integers(1, 3)) if wrong else 0)
            table.writerow([*(shown[i] + 1 for i in order), odd + 1, _kind(one), int(wrong)])
            bar.update()
    bar.close()
    partial.replace(folder / "images")
    write_json(folder / "things.json", record)
    return record


def write_grounds(folder: Path, *, seed: int = 0, per_class: int = 20, quiet: bool = False) -> dict[str, Any]:
    """Write a class-per-folder set, `<folder>/<colour of the ground>/NNNNN.png`, and return its `grounds.json`.

    For zero-shot classification: the shipped CLIP knows the colours of grounds well, and shapes hardly at all.

    Raises:
        ValueError: if `folder` holds a set of other settings or from elsewhere, or `per_class` is not positive.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = write_grounds(Path(folder, "set"), per_class=1, quiet=True)
        ...     classes = sorted(path.name for path in Path(folder, "set").iterdir() if path.is_dir())
        >>> classes == sorted(BACKGROUNDS)
        True
    """
    if per_class < 1:
        raise ValueError(f"got {per_class} images per class, expected 1 or more")
    record = _record(seed=seed, per_class=per_class, size=scenes.SIZE, classes=list(scenes.BACKGROUNDS))
    if written(folder / "grounds.json", record):
        return record
    partial = begin(folder, "grounds.json")
    left = dict.fromkeys(scenes.BACKGROUNDS, per_class)
    with progress(total=sum(left.values()), label="grounds", unit="scene", quiet=quiet) as bar:
        for index in itertools.count():
            if not any(left.values()):
                break
            scene = sample_scene(generator(seed, "ground", index))
            if left[scene.ground_colour]:
                left[scene.ground_colour] -= 1
                path = partial / scene.ground_colour / f"{index:05d}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(render(scene)).save(path, compress_level=1)
                bar.update()
    write_json(partial / "grounds.json", record)
    partial.replace(folder)
    return record


def write_pairs(folder: Path, *, seed: int = 0, per_class: int = 20, quiet: bool = False) -> dict[str, Any]:
    """Write a class-per-folder set, `<folder>/<colour>-on-<ground colour>/NNNNN.png`, and return its `pairs.json`.

    80 classes for supervised fine-tuning (TeCoA). Every scene shows one object, of any shape, size, texture and place.

    Raises:
        ValueError: if `folder` holds a set of other settings or from elsewhere, or `per_class` is not positive.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = write_pairs(Path(folder, "set"), per_class=1, quiet=True)
        ...     images = len(list(Path(folder, "set").rglob("*.png")))
        >>> images == record["classes"] == len(COLOURS) * len(BACKGROUNDS)
        True
    """
    if per_class < 1:
        raise ValueError(f"got {per_class} images per class, expected 1 or more")
    record = _record(seed=seed, per_class=per_class, size=scenes.SIZE, classes=len(COLOURS) * len(BACKGROUNDS))
    if written(folder / "pairs.json", record):
        return record
    partial = begin(folder, "pairs.json")
    with progress(total=record["classes"] * per_class, label="pairs", unit="scene", quiet=quiet) as bar:
        for colour, paint in itertools.product(COLOURS, BACKGROUNDS):
            place = partial / f"{colour}-on-{paint}"
            place.mkdir()
            for index in range(per_class):
                scene = sample_scene(generator(seed, f"pair {colour} on {paint}", index))
                one = replace(scene.objects[0], colour=colour)
                scene = replace(scene, objects=(one,), ground_colour=paint)
                Image.fromarray(render(scene)).save(place / f"{index:05d}.png", compress_level=1)
                bar.update()
    write_json(partial / "pairs.json", record)
    partial.replace(folder)
    return record


def _record(**settings: Any) -> dict[str, Any]:
    return {
        "generator": "rclip_metric.train.data.scenes.formats",
        "version": VERSION,
        "scenes_version": scenes.VERSION,
        **settings,
    }
