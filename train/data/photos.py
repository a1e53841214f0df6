"""Triplets from any tree of photographs whose order is known by construction, in the NIGHTS format.

A reference, and two candidates: the closer one is the same photograph with a change that costs pixels much and people
little (another view of it), or a mild change; the farther one a change that costs people much and, mostly, pixels
little. No metric has a say in the choice, and none of the orders is left to taste:

    crop       a slightly closer view of the photograph, against one that shows a quarter of it
    warp       the camera moved a little, against a strongly slanted and bent picture
    light      another view in nearly the same light, against the very picture in light of another colour and strength
    blur       another view, as good as sharp, against the very picture far out of focus
    noise      another view with noise that hardly shows, against the very picture under heavy noise
    jpeg       another view, well saved, against the very picture in blocks
    removed    the picture moved aside, against the very picture with the busiest part of its middle, a fifth of the
               area, wiped out
    replaced   the same, against the very picture with part of another photograph in that place
    stranger   part of the photograph, mirrored or not and in other light, against another photograph that resembles it
               in its coarse pixels
    photo      the same, against another photograph of its class
    class      another photograph of the class, against the photograph of another class whose coarse pixels are nearest

Why the order is beyond doubt: in crop, warp, light, blur, noise and jpeg the change is of one kind and several times
as strong in the farther image (in a crop, what is left out); the view that comes with the closer one moves the
picture by a tenth of its side or shows three quarters of it, which pixels pay for and people hardly mind. In removed
and replaced the closer image still shows its middle, and of the farther one just that is gone; an edit that changes
too little is drawn again. In stranger and photo the closer image shows the same things, and the farther one others.
class holds where classes are kinds of things that people tell apart at a glance, such as revolver and panda; breeds
of dogs are none. Photographs that are too much alike (duplicates, bursts) are never "another" one.

Everything is a function of the photographs and ``(seed, kind, number)``.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from rclip_metric.images import ImageError, open_image
from rclip_metric.train.data.class_table import read_class_table
from rclip_metric.train.data.images import find_images
from rclip_metric.train.data.photo_changes import (
    WINDOW,
    Blur,
    Box,
    Change,
    Jpeg,
    Light,
    Noise,
    Removed,
    Replaced,
    View,
    busiest,
    described,
    seen,
    visible,
)
from rclip_metric.train.data.set_folder import begin, written
from rclip_metric.train.data.triplets import COLUMNS, PARTS
from rclip_metric.train.runs.config import setting
from rclip_metric.train.runs.files import write_json

VERSION = 1  # raised whenever the same photographs and seed would give other triplets
RECORD = "photos.json"
MORE_COLUMNS = ("prompt", "kind", "closer_change", "farther_change", "reference_source", "other_source")
PER_TRIPLET = 20  # photographs that are looked at, of a tree that holds more
LEAST_SIDE = 64  # pixels of a photograph's shorter side; smaller ones are left out
VOTES = 10  # of as many people who would have been asked
_ALIKE = 0.95  # correlation of two thumbnails from which on they may show the same thing
_VISIBLE = 0.15  # root of the mean square by which a local edit has to change what it covers
_TRIES = 8
_THUMBNAIL = 16


@dataclass(frozen=True)
class PhotosConfig:
    """How many triplets of which size."""

    count: int = setting(1_000, "triplets, as many of each kind as of the others")
    size: int = setting(224, "side of the images; smaller photographs keep their own resolution", unit="pixels")
    seed: int = setting(0, "seed of everything")
    split: str = setting("test", "the split that the triplets are said to be of", choices=PARTS)

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.count < 1 or self.size < 32:
            raise ValueError(f"got {self.count} triplets of {self.size} pixels, expected 1 or more of 32 or more")


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph that can be read.

    Attributes:
        path: where it is.
        name: its path below its tree, after the tree's name where there are several.
        label: its class, told apart by tree; None where classes are not known.
        digest: SHA-256 of the file.
        thumbnail: (16, 16, 3) levels of the square in its middle.
    """

    path: Path
    name: str
    label: tuple[int, str] | None
    digest: str
    thumbnail: np.ndarray


class Candidate(NamedTuple):
    """One image of a triplet: a photograph (by its index), from a view, changed in order."""

    photograph: int
    view: View = View()
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Triplet:
    """A reference, by the index of its photograph, the candidates, and what is written beside them."""

    kind: str
    reference: int
    closer: Candidate
    farther: Candidate
    right_is_closer: bool


# What there is.


def read_photographs(
    trees: Sequence[Path], *, classes: Path | None = None, most: int | None = None, seed: int = 0,
    workers: int = 1, quiet: bool = False,
) -> tuple[list[Photograph], list[str]]:  # fmt: skip
    """Read every photograph below the trees once.

    Args:
        trees: folders. The folders right below one are its classes, where there are at least two that hold images.
        classes: a table of classes (`read_class_table`) instead; files that it does not name are left out.
        most: only so many photographs, drawn at random where there are more.
        seed: of that draw.
        workers: threads.
        quiet: no progress bar.

    Returns:
        The photographs in the order of their paths, and a sentence for each file that was left out.

    Raises:
        ValueError: if a tree holds no image, or the table none of a tree's files.
    """
    table = None if classes is None else read_class_table(classes)
    files: list[tuple[Path, str, tuple[int, str] | None]] = []
    for index, tree in enumerate(trees):
        found = [path.relative_to(tree) for path in find_images(tree)]
        folders = {path.parts[0] for path in found if len(path.parts) > 1}
        kept = []
        for path in found:
            label = None
            if table is not None:
                name = table.get(Path(os.path.normpath(tree.resolve() / path)))
                if name is None:
                    continue
                label = (index, name)
            elif len(folders) > 1 and len(path.parts) > 1:
                label = (index, path.parts[0])
            name = (Path(tree.resolve().name) / path if len(trees) > 1 else path).as_posix()
            kept.append((tree / path, name, label))
        if not kept:
            raise ValueError(
                f"{classes} names none of the {len(found)} images below {tree}: pass the table of this tree"
            )
        files += kept
    if most is not None and len(files) > most:
        chosen = _generator(seed, "photographs", 0).permutation(len(files))[:most]
        files = [files[i] for i in sorted(chosen)]
    with ThreadPoolExecutor(workers) as pool:
        read = _shown(pool.map(lambda file: _read(*file), files), len(files), "photographs", quiet)
        results = list(read)
    photographs = [result for result in results if isinstance(result, Photograph)]
    return photographs, [result for result in results if isinstance(result, str)]


def _read(path: Path, name: str, label: tuple[int, str] | None) -> Photograph | str:
    try:
        image = open_image(path)
    except ImageError as error:
        return str(error)
    if min(image.size) < LEAST_SIDE:
        return f"{path} has {image.width} x {image.height} pixels, and at least {LEAST_SIDE} are needed each way"
    small = _square(image).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return Photograph(
        path, name, label, hashlib.sha256(path.read_bytes()).hexdigest(), np.asarray(small, np.float32) / 255
    )


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _shown(items: Iterator[Any], total: int, what: str, quiet: bool) -> Iterator[Any]:
    return iter(tqdm(items, total=total, desc=what, disable=True if quiet else None))


class Others:
    """Who may stand beside whom: other photographs of a class, and those of other classes."""

    def __init__(self, photographs: Sequence[Photograph]) -> None:
        """Sort the photographs by class, and compare all thumbnails when asked."""
        self.photographs = photographs
        self.trees = [None if p.label is None else p.label[0] for p in photographs]
        self.members: dict[tuple[int, str], list[int]] = {}
        for index, photograph in enumerate(photographs):
            if photograph.label is not None:
                self.members.setdefault(photograph.label, []).append(index)
        self._flat = np.stack([photograph.thumbnail.reshape(-1) for photograph in photographs])
        gray = self._flat.reshape(len(photographs), -1, 3).mean(2)
        gray = gray - gray.mean(1, keepdims=True)
        self._shape = gray / np.maximum(np.linalg.norm(gray, axis=1, keepdims=True), 1e-6)

    def alike(self, one: int, candidates: Sequence[int]) -> np.ndarray:
        """Whether photographs may show the very thing that ``one`` shows: itself, its duplicates, its burst."""
        likeness: np.ndarray = self._shape[list(candidates)] @ self._shape[one] > _ALIKE
        return likeness | (np.asarray(candidates) == one)

    def of_class(self, one: int) -> list[int]:
        """The other photographs of its class."""
        label = self.photographs[one].label
        members = [] if label is None else self.members[label]
        return [i for i, alike in zip(members, self.alike(one, members), strict=True) if not alike] if members else []

    def of_other_classes(self, one: int, rng: np.random.Generator, count: int) -> list[int]:
        """So many drawn from those of other classes of its tree; from all others where classes are not known."""
        label, found = self.photographs[one].label, []
        for index in rng.permutation(len(self.photographs)):
            other = self.photographs[index].label
            wanted = other != label and other is not None and other[0] == label[0] if label else True
            if wanted and not self.alike(one, [index])[0]:
                found.append(int(index))
            if len(found) == count:
                break
        return found

    def nearest(self, one: int, candidates: Sequence[int]) -> int:
        """The candidate whose coarse pixels are nearest."""
        apart = ((self._flat[list(candidates)] - self._flat[one]) ** 2).sum(1)
        return int(candidates[int(apart.argmin())])


# What is done to them. A recipe draws the two candidates of a reference.


def _generator(seed: int, part: str, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, VERSION, *part.encode(), number])


def _either(rng: np.random.Generator, low: float, high: float) -> float:
    """Uniform in [low, high], of either sign."""
    return float(rng.uniform(low, high) * rng.choice((-1, 1)))


def _direction(rng: np.random.Generator, low: float, high: float) -> tuple[float, float]:
    """A vector of a length in [low, high]."""
    angle, length = rng.uniform(-math.pi, math.pi), rng.uniform(low, high)
    return float(length * math.cos(angle)), float(length * math.sin(angle))


def _corners(rng: np.random.Generator, low: float, high: float) -> Any:
    return tuple(_direction(rng, low, high) for _ in range(4))


def _waves(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0, 2 * math.pi))


def _moved(rng: np.random.Generator) -> View:
    """The same scene moved aside."""
    return View(shift=_direction(rng, 0.08, 0.11))


def _another_view(rng: np.random.Generator) -> View:
    """The same scene a step aside: moved, nearer, or from a slightly other point."""
    kind = rng.integers(3)
    if kind == 0:
        return _moved(rng)
    if kind == 1:
        return View(zoom=float(rng.uniform(0.76, 0.86)), shift=_direction(rng, 0.05, 0.08))
    return View(zoom=0.9, shift=_direction(rng, 0.04, 0.07), corners=_corners(rng, 0.05, 0.08))


def _mild_light(rng: np.random.Generator) -> Light:
    return Light(stops=_either(rng, 0.1, 0.2), warmth=_either(rng, 0.02, 0.05))


Recipe = Callable[[np.random.Generator, int, Others, Callable[[int], Image.Image]], tuple[Candidate, Candidate]]


def _crop(rng: np.random.Generator, one: int, others: Others, look: Any) -> tuple[Candidate, Candidate]:
    near = View(zoom=float(rng.uniform(0.8, 0.9)), shift=_direction(rng, 0.06, 0.1))
    far = View(zoom=float(rng.uniform(0.45, 0.52)), shift=_direction(rng, 0.0, 0.1))
    return Candidate(one, near), Candidate(one, far)


def _warp(rng: np.random.Generator, one: int, others: Others, look: Any) -> tuple[Candidate, Candidate]:
    near = View(zoom=0.9, shift=_direction(rng, 0.05, 0.08), corners=_corners(rng, 0.03, 0.05))
    low, high = rng.uniform(0.18, 0.25, 2)
    still = (0.0, 0.0)
    slanted = [
        ((low, 0.0), (-high, 0.0), still, still),
        ((0.0, low), still, still, (0.0, -high)),
        (still, (0.0, low), (0.0, -high), still),
        (still, still, (-high, 0.0), (low, 0.0)),
    ]
    far = View(zoom=1.1, corners=slanted[rng.integers(4)], bend=float(rng.uniform(0.035, 0.045)), waves=_waves(rng))
    return Candidate(one, near), Candidate(one, far)


def _light(rng: np.random.Generator, one: int, others: Others, look: Any) -> tuple[Candidate, Candidate]:
    far = Light(stops=_either(rng, 0.7, 1.0), warmth=_either(rng, 0.2, 0.3), saturation=1.3, hue=_either(rng, 60, 120))
    return Candidate(one, _another_view(rng), (_mild_light(rng),)), Candidate(one, changes=(far,))


def _graded(mild: Callable[[np.random.Generator], Change], strong: Callable[[np.random.Generator], Change]) -> Recipe:
    def recipe(rng: np.random.Generator, one: int, others: Others, look: Any) -> tuple[Candidate, Candidate]:
        return Candidate(one, _another_view(rng), (mild(rng),)), Candidate(one, changes=(strong(rng),))

    return recipe


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


_blur = _graded(lambda rng: Blur(float(rng.uniform(0.003, 0.005))), lambda rng: Blur(float(rng.uniform(0.014, 0.02))))
_noise = _graded(
    lambda rng: Noise(float(rng.uniform(0.015, 0.03)), _seed(rng)),
    lambda rng: Noise(float(rng.uniform(0.15, 0.2)), _seed(rng)),
)
_jpeg = _graded(lambda rng: Jpeg(int(rng.integers(60, 80))), lambda rng: Jpeg(int(rng.integers(2, 6))))


def _box(rng: np.random.Generator, image: Image.Image, low: float, high: float) -> Box:
    side = float(rng.uniform(low, high))
    places = rng.uniform(0.36, 0.64, (12, 2))  # near the middle, where people look and photographs have their object
    return busiest(image, [Box(float(x), float(y), side) for x, y in places])


def _removed(rng: np.random.Generator, one: int, others: Others, look: Any) -> tuple[Candidate, Candidate]:
    edit = Removed(_box(rng, look(one), 0.4, 0.48))
    return Candidate(one, _moved(rng), (_mild_light(rng),)), Candidate(one, changes=(edit,))


def _replaced(rng: np.random.Generator, one: int, others: Others, look: Any) -> tuple[Candidate, Candidate]:
    other = others.of_other_classes(one, rng, 1)[0]
    edit = Replaced(_box(rng, look(one), 0.4, 0.48), look(other))
    return Candidate(one, _moved(rng), (_mild_light(rng),)), Candidate(one, changes=(edit,))


def _part(rng: np.random.Generator, one: int) -> Candidate:
    """Part of a photograph, mirrored or not, in other light: another picture of the same thing."""
    view = View(
        zoom=float(rng.uniform(0.55, 0.7)), shift=_direction(rng, 0.02, 0.08), corners=_corners(rng, 0.02, 0.05),
        mirrored=bool(rng.random() < 0.5),
    )  # fmt: skip
    return Candidate(one, view, (Light(stops=_either(rng, 0.2, 0.4), warmth=_either(rng, 0.03, 0.08)),))


def _stranger(rng: np.random.Generator, one: int, others: Others, look: Any) -> tuple[Candidate, Candidate]:
    return _part(rng, one), Candidate(others.nearest(one, others.of_other_classes(one, rng, 100)))


def _photo(rng: np.random.Generator, one: int, others: Others, look: Any) -> tuple[Candidate, Candidate]:
    return _part(rng, one), Candidate(others.nearest(one, others.of_class(one)))


def _class(rng: np.random.Generator, one: int, others: Others, look: Any) -> tuple[Candidate, Candidate]:
    relative = int(rng.choice(others.of_class(one)))
    return Candidate(relative), Candidate(others.nearest(one, others.of_other_classes(one, rng, 100)))


KINDS: dict[str, Recipe] = {
    "crop": _crop, "warp": _warp, "light": _light, "blur": _blur, "noise": _noise, "jpeg": _jpeg,
    "removed": _removed, "replaced": _replaced, "stranger": _stranger, "photo": _photo, "class": _class,
}  # fmt: skip
EDITS = ("removed", "replaced")


# The set.


def references(others: Others, seed: int) -> dict[str, list[int]]:
    """The photographs that can be references, in order, by kind; kinds for which there is none are left out."""
    everyone = range(len(others.photographs))
    rng = np.random.default_rng(0)  # whether there is anyone, not who
    related = {one for one in everyone if others.of_class(one)}
    opposed = {one for one in everyone if others.of_other_classes(one, rng, 1)}
    allowed = {"stranger": opposed, "replaced": opposed, "photo": related, "class": related & opposed}
    found = {}
    for kind in KINDS:
        order = _generator(seed, f"{kind} references", 0).permutation(len(everyone)).tolist()
        if chosen := [one for one in order if one in allowed.get(kind, everyone)]:
            found[kind] = chosen
    return found


def draw(kind: str, number: int, order: Sequence[int], others: Others, config: PhotosConfig) -> Triplet:
    """Triplet ``number`` of a kind; a local edit that hardly shows is drawn again on the next reference.

    Args:
        kind: of `KINDS`.
        number: from 0.
        order: the photographs that may be references of this kind; number n is about the n-th.
        others: all photographs.
        config: size and seed.
    """
    best: tuple[float, int, tuple[Candidate, Candidate]] | None = None
    for attempt in range(_TRIES):
        rng = _generator(config.seed, f"{kind} {number}", attempt)
        reference = order[(number + attempt * max(1, len(order) // _TRIES)) % len(order)]

        def look(index: int) -> Image.Image:
            return picture(others.photographs[index], Candidate(index), config.size)

        pair = KINDS[kind](rng, reference, others, look)
        if kind not in EDITS:
            best = (0.0, reference, pair)
            break
        before, edit = look(reference), pair[1].changes[0]
        shown = visible(before, edit(before), edit.box)  # type: ignore[attr-defined]
        if best is None or shown > best[0]:
            best = (shown, reference, pair)
        if shown > _VISIBLE:
            break
    assert best is not None
    # Of two that follow each other one has the closer image on the right: half of each kind.
    flip = bool(_generator(config.seed, f"{kind} side", number // 2).random() < 0.5)
    return Triplet(kind, best[1], *best[2], right_is_closer=flip != bool(number % 2))


def picture(photograph: Photograph, candidate: Candidate, size: int, side: int | None = None) -> Image.Image:
    """Draw a candidate.

    Args:
        photograph: that it shows.
        candidate: how.
        size: side in pixels, unless the photograph has fewer.
        side: exactly so many pixels, whatever the photograph has.
    """
    square = _square(open_image(photograph.path))
    side = side or min(size, round(WINDOW * square.width))
    whole = round(side / WINDOW)
    image = seen(square.resize((whole, whole), Image.Resampling.LANCZOS), candidate.view, side)
    for change in candidate.changes:
        image = change(image)
    return image


def write_photos(
    folder: Path, trees: Sequence[Path], config: PhotosConfig = PhotosConfig(), *, classes: Path | None = None,
    workers: int = 1, quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write the set to ``folder`` and return the record that is saved as ``photos.json``.

    ``data.csv`` has NIGHTS' columns and `MORE_COLUMNS`: the class, the kind, what was done to either candidate, and the
    photographs that the reference and another thing in the triplet are from. ``ref/`` and ``distort/`` hold the images.

    Args:
        folder: made here; nothing is written into one that holds something else.
        trees: folders of photographs, see `read_photographs`.
        config: count, size, seed and split.
        classes: a table of classes.
        workers: threads; the set does not depend on their number.
        quiet: no progress bar.

    Returns:
        Settings, kinds, versions, the digest of the photographs, and "left_out", a sentence for each unusable file.

    Raises:
        ValueError: if ``folder`` holds a set of other settings or photographs or something else, or the trees hold
            fewer than two photographs that can be told apart.
    """
    photographs, left_out = read_photographs(
        trees, classes=classes, most=PER_TRIPLET * config.count, seed=config.seed, workers=workers, quiet=quiet
    )
    if len(photographs) < 2:
        raise ValueError(
            f"{len(photographs)} photographs can be used, and at least two are needed"
            + (f"; the first problem: {left_out[0]}" if left_out else "")
        )
    others = Others(photographs)
    orders = references(others, config.seed)
    kinds = list(orders)
    record: dict[str, Any] = {
        "generator": "rclip_metric.train.data.photos",
        "version": VERSION,
        **asdict(config),
        "kinds": {kind: len(range(index, config.count, len(kinds))) for index, kind in enumerate(kinds)},
        "photographs": len(photographs),
        "classes": len(others.members),
        "digest": _digest(photographs),
    }
    if written(folder / RECORD, record):
        return {**record, "left_out": left_out}
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    partial = begin(folder, RECORD)

    def make(index: int) -> list[Any]:
        kind = kinds[index % len(kinds)]
        triplet = draw(kind, index // len(kinds), orders[kind], others, config)
        return _save(partial, index, triplet, photographs, config)

    with ThreadPoolExecutor(workers) as pool:
        rows = list(_shown(pool.map(make, range(config.count)), config.count, "triplets", quiet))
    with (partial / "data.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow([*COLUMNS, *MORE_COLUMNS])
        writer.writerows(rows)
    record |= {"versions": _versions(), "left_out": left_out}
    write_json(partial / RECORD, record)
    partial.replace(folder)
    return record


def _save(
    folder: Path, index: int, triplet: Triplet, photographs: Sequence[Photograph], config: PhotosConfig
) -> list[Any]:
    """Write the three images of a triplet, and give back its row of the table."""
    shelf, stem = f"{index // 1000:03d}", f"{index % 1000:03d}"
    pair = (triplet.closer, triplet.farther)
    places = [f"ref/{shelf}/{stem}.png", f"distort/{shelf}/{stem}_0.png", f"distort/{shelf}/{stem}_1.png"]
    side: int | None = None
    ordered = pair[::-1] if triplet.right_is_closer else pair
    for candidate, place in zip((Candidate(triplet.reference), *ordered), places, strict=True):
        image = picture(photographs[candidate.photograph], candidate, config.size, side)
        side = image.width
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / place, compress_level=1)
    right = int(triplet.right_is_closer)
    reference = photographs[triplet.reference]
    told = [_told(candidate, triplet.reference) for candidate in pair]
    sources = [photographs[c.photograph].name for c in pair if c.photograph != triplet.reference]
    return [
        *(index, 1 - right, right, VOTES, *places, config.split, False),
        *(reference.label[1] if reference.label else "", triplet.kind, *told, reference.name, " ".join(sources)),
    ]


def _told(candidate: Candidate, reference: int) -> str:
    changes = described(candidate.view, *candidate.changes)
    if candidate.photograph == reference:
        return changes
    return "another photograph" if changes == "none" else f"another photograph; {changes}"


def _digest(photographs: Sequence[Photograph]) -> str:
    """Of the names, classes and bytes of all photographs."""
    lines = [f"{photo.name}\t{photo.label}\t{photo.digest}\n" for photo in photographs]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("rclip-metric", "pillow", "numpy")},
    }
