"""Photographs below trees of folders: what can be read, what each is of, and which may stand beside which."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rclip_metric.images import ImageError, open_image
from rclip_metric.progress import progress
from rclip_metric.train.data.class_table import read_class_table
from rclip_metric.train.data.images import find_images

VERSION = 1  # raised whenever the same photographs and seed would give other triplets
LEAST_SIDE = 64  # pixels of a photograph's shorter side; smaller ones are left out
_ALIKE = 0.95  # correlation of two thumbnails from which on they may show the same thing
_THUMBNAIL = 16


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


def generator(seed: int, part: str, number: int) -> np.random.Generator:
    """Make the random numbers of one item: a function of these three alone."""
    return np.random.default_rng([seed, VERSION, *part.encode(), number])


def read_photographs(
    trees: Sequence[Path],
    *,
    classes: Path | None = None,
    most: int | None = None,
    seed: int = 0,
    workers: int = 1,
    quiet: bool = False,
) -> tuple[list[Photograph], list[str]]:
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
        labels = _labels(tree, found, table)
        if not labels:
            raise ValueError(
                f"{classes} names none of the {len(found)} images below {tree}: pass the table of this tree"
            )
        for path, label in labels.items():
            name = (Path(tree.resolve().name) / path if len(trees) > 1 else path).as_posix()
            files.append((tree / path, name, None if label is None else (index, label)))
    if most is not None and len(files) > most:
        chosen = generator(seed, "photographs", 0).permutation(len(files))[:most]
        files = [files[i] for i in sorted(chosen)]
    with ThreadPoolExecutor(workers) as pool:
        read = with_progress(pool.map(lambda file: _read(*file), files), len(files), "photographs", quiet)
        results = list(read)
    photographs = [result for result in results if isinstance(result, Photograph)]
    return photographs, [result for result in results if isinstance(result, str)]


def _labels(tree: Path, found: Sequence[Path], table: Mapping[Path, str] | None) -> dict[Path, str | None]:
    """Give the images of a tree their classes: by the table, which leaves the others out, else by folder."""
    if table is not None:
        places = {path: Path(os.path.normpath(tree.resolve() / path)) for path in found}
        return {path: table[place] for path, place in places.items() if place in table}
    folders = {path.parts[0] for path in found if len(path.parts) > 1}
    return {path: path.parts[0] if len(folders) > 1 and len(path.parts) > 1 else None for path in found}


def _read(path: Path, name: str, label: tuple[int, str] | None) -> Photograph | str:
    try:
        image = open_image(path)
    except ImageError as error:
        return str(error)
    if min(image.size) < LEAST_SIDE:
        return f"{path} has {image.width} x {image.height} pixels, and at least {LEAST_SIDE} are needed each way"
    small = middle_square(image).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return Photograph(
        path, name, label, hashlib.sha256(path.read_bytes()).hexdigest(), np.asarray(small, np.float32) / 255
    )


def middle_square(image: Image.Image) -> Image.Image:
    """Crop the square in the middle of a picture."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def with_progress(items: Iterator[Any], total: int, what: str, quiet: bool) -> Iterator[Any]:
    """Go through items under a progress bar, which is shown on a terminal only."""
    return iter(progress(items, total=total, label=what, quiet=quiet))


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
        """Say whether photographs may show the very thing that `one` shows: itself, its duplicates, its burst."""
        likeness: np.ndarray = self._shape[list(candidates)] @ self._shape[one] > _ALIKE
        return likeness | (np.asarray(candidates) == one)

    def of_class(self, one: int) -> list[int]:
        """List the other photographs of its class."""
        label = self.photographs[one].label
        if label is None:
            return []
        members = self.members[label]
        return [i for i, alike in zip(members, self.alike(one, members), strict=True) if not alike]

    def of_other_classes(self, one: int, rng: np.random.Generator, count: int) -> list[int]:
        """Draw so many of those of other classes of its tree; of all others where classes are not known."""
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
        """Find the candidate whose coarse pixels are nearest."""
        apart = ((self._flat[list(candidates)] - self._flat[one]) ** 2).sum(1)
        return int(candidates[int(apart.argmin())])
