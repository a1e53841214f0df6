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

Everything is a function of the photographs and `(seed, kind, number)`.
"""

from __future__ import annotations

import csv
import hashlib
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rclip_metric.images import open_image
from rclip_metric.train.data.photo_changes import WINDOW, described, seen, visible
from rclip_metric.train.data.photo_recipes import EDITS, PHOTO_KINDS, PhotoCandidate
from rclip_metric.train.data.photographs import (
    VERSION,
    Others,
    Photograph,
    generator,
    middle_square,
    read_photographs,
    with_progress,
)
from rclip_metric.train.data.photos_config import PhotosConfig
from rclip_metric.train.data.set_folder import begin, written
from rclip_metric.train.data.triplets import COLUMNS
from rclip_metric.train.runs.files import write_json

PHOTOS_RECORD = "photos.json"
MORE_COLUMNS = ("prompt", "kind", "closer_change", "farther_change", "reference_source", "other_source")
PER_TRIPLET = 20  # photographs that are looked at, of a tree that holds more
VOTES = 10  # of as many people who would have been asked
_VISIBLE = 0.15  # root of the mean square by which a local edit has to change what it covers
_TRIES = 8


@dataclass(frozen=True)
class PhotoTriplet:
    """A reference, by the index of its photograph, the candidates, and what is written beside them."""

    kind: str
    reference: int
    closer: PhotoCandidate
    farther: PhotoCandidate
    right_is_closer: bool


def references(others: Others, seed: int) -> dict[str, list[int]]:
    """List the photographs that can be references, in order, by kind; kinds for which there is none are left out."""
    everyone = range(len(others.photographs))
    rng = np.random.default_rng(0)  # whether there is anyone, not who
    related = {one for one in everyone if others.of_class(one)}
    opposed = {one for one in everyone if others.of_other_classes(one, rng, 1)}
    allowed = {"stranger": opposed, "replaced": opposed, "photo": related, "class": related & opposed}
    found = {}
    for kind in PHOTO_KINDS:
        order = generator(seed, f"{kind} references", 0).permutation(len(everyone)).tolist()
        if chosen := [one for one in order if one in allowed.get(kind, everyone)]:
            found[kind] = chosen
    return found


def draw(kind: str, number: int, order: Sequence[int], others: Others, config: PhotosConfig) -> PhotoTriplet:
    """Draw triplet `number` of a kind; a local edit that hardly shows is drawn again on the next reference.

    Args:
        kind: of `PHOTO_KINDS`.
        number: from 0.
        order: the photographs that may be references of this kind; number n is about the n-th.
        others: all photographs.
        config: size and seed.
    """
    best: tuple[float, int, tuple[PhotoCandidate, PhotoCandidate]] | None = None
    for attempt in range(_TRIES):
        rng = generator(config.seed, f"{kind} {number}", attempt)
        reference = order[(number + attempt * max(1, len(order) // _TRIES)) % len(order)]

        def look(index: int) -> Image.Image:
            return picture(others.photographs[index], PhotoCandidate(index), config.size)

        pair = PHOTO_KINDS[kind](rng, reference, others, look)
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
    flip = bool(generator(config.seed, f"{kind} side", number // 2).random() < 0.5)
    return PhotoTriplet(kind, best[1], *best[2], right_is_closer=flip != bool(number % 2))


def picture(photograph: Photograph, candidate: PhotoCandidate, size: int, side: int | None = None) -> Image.Image:
    """Draw a candidate.

    Args:
        photograph: that it shows.
        candidate: how.
        size: side in pixels, unless the photograph has fewer.
        side: exactly so many pixels, whatever the photograph has.
    """
    square = middle_square(open_image(photograph.path))
    side = side or min(size, round(WINDOW * square.width))
    whole = round(side / WINDOW)
    image = seen(square.resize((whole, whole), Image.Resampling.LANCZOS), candidate.view, side)
    for change in candidate.changes:
        image = change(image)
    return image


def write_photos(
    folder: Path,
    trees: Sequence[Path],
    config: PhotosConfig = PhotosConfig(),  # noqa: B008 (frozen)
    *,
    classes: Path | None = None,
    workers: int = 1,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the set to `folder` and return the record that is saved as `photos.json`.

    `data.csv` has NIGHTS' columns and `MORE_COLUMNS`: the class, the kind, what was done to either candidate, and the
    photographs that the reference and another thing in the triplet are from. `ref/` and `distort/` hold the images.

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
        ValueError: if `folder` holds a set of other settings or photographs or something else, or the trees hold
            fewer than two photographs that can be told apart.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tree = Path(folder, "tree")
        ...     tree.mkdir()
        ...     for seed in range(2):
        ...         levels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        ...         Image.fromarray(levels).save(tree / f"{seed}.png")
        ...     record = write_photos(Path(folder, "set"), [tree], PhotosConfig(count=9, size=32), quiet=True)
        >>> record["photographs"], list(record["kinds"])  # photo and class need classes
        (2, ['crop', 'warp', 'light', 'blur', 'noise', 'jpeg', 'removed', 'replaced', 'stranger'])
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
    record = _record(config, kinds, photographs, others)
    if written(folder / PHOTOS_RECORD, record):
        return {**record, "left_out": left_out}
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    partial = begin(folder, PHOTOS_RECORD)

    def make(index: int) -> list[Any]:
        kind = kinds[index % len(kinds)]
        triplet = draw(kind, index // len(kinds), orders[kind], others, config)
        return _save(partial, index, triplet, photographs, config)

    with ThreadPoolExecutor(workers) as pool:
        rows = list(with_progress(pool.map(make, range(config.count)), config.count, "triplets", quiet))
    with (partial / "data.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow([*COLUMNS, *MORE_COLUMNS])
        writer.writerows(rows)
    record |= {"versions": _versions(), "left_out": left_out}
    write_json(partial / PHOTOS_RECORD, record)
    partial.replace(folder)
    return record


def _record(
    config: PhotosConfig, kinds: Sequence[str], photographs: Sequence[Photograph], others: Others
) -> dict[str, Any]:
    """Say all that the set depends on."""
    return {
        "generator": "rclip_metric.train.data.photos",
        "version": VERSION,
        **asdict(config),
        "kinds": {kind: len(range(index, config.count, len(kinds))) for index, kind in enumerate(kinds)},
        "photographs": len(photographs),
        "classes": len(others.members),
        "digest": _digest(photographs),
    }


def _save(
    folder: Path, index: int, triplet: PhotoTriplet, photographs: Sequence[Photograph], config: PhotosConfig
) -> list[Any]:
    """Write the three images of a triplet, and give back its row of the table."""
    shelf, stem = f"{index // 1000:03d}", f"{index % 1000:03d}"
    pair = (triplet.closer, triplet.farther)
    places = [f"ref/{shelf}/{stem}.png", f"distort/{shelf}/{stem}_0.png", f"distort/{shelf}/{stem}_1.png"]
    side: int | None = None
    ordered = pair[::-1] if triplet.right_is_closer else pair
    for candidate, place in zip((PhotoCandidate(triplet.reference), *ordered), places, strict=True):
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


def _told(candidate: PhotoCandidate, reference: int) -> str:
    changes = described(candidate.view, *candidate.changes)
    if candidate.photograph == reference:
        return changes
    return "another photograph" if changes == "none" else f"another photograph; {changes}"


def _digest(photographs: Sequence[Photograph]) -> str:
    """Digest the names, classes and bytes of all photographs."""
    lines = [f"{photo.name}\t{photo.label}\t{photo.digest}\n" for photo in photographs]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("rclip-metric", "pillow", "numpy")},
    }
