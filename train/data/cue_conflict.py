"""Cue-conflict images (Geirhos et al. 2019): the shape of one thing in the texture of another, and triplets of them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rclip_metric.train.data.class_table import read_class_table
from rclip_metric.train.data.images import find_images

_NAME = re.compile(r"(.+?)(\d*)-(.+?)(\d*)")


class Cue(NamedTuple):
    """What a shape or a texture is of: a class, and which image of that class ("" where the name does not say)."""

    name: str
    number: str


@dataclass(frozen=True)
class ConflictImage:
    """An image with the shape of one thing and the texture of another; `key` is its path below the set's folder."""

    key: str
    path: Path
    shape: Cue
    texture: Cue


@dataclass(frozen=True)
class ConflictTriplet:
    """A conflict image, one of its shape's class and one of its texture's; `key` names the reference and the draw.

    Example:
        >>> one, two, three = (
        ...     ConflictImage(f"{a}1-{b}1.png", Path(f"{a}1-{b}1.png"), Cue(a, "1"), Cue(b, "1"))
        ...     for a, b in (("cat", "dog"), ("cat", "owl"), ("owl", "dog"))
        ... )
        >>> [path.name for path in ConflictTriplet("cat1-dog1.png#0", one, shape=two, texture=three).files]
        ['cat1-dog1.png', 'cat1-owl1.png', 'owl1-dog1.png']
    """

    key: str
    reference: ConflictImage
    shape: ConflictImage
    texture: ConflictImage

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """Reference, shape and texture."""
        return self.reference.path, self.shape.path, self.texture.path


def read_conflicts(folder: Path, classes: Path | None = None) -> list[ConflictImage]:
    """Read the images of a set, sorted by path.

    Args:
        folder: holds, at any depth, files named `airplane1-bicycle2.png`: shape first, each a class and a number.
        classes: a table (`read_class_table`) whose classes are such names, for files that are called otherwise; files
            that it does not name are left out.

    Raises:
        ValueError: if no image has such a name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "cat4-elephant1.png").touch()
        ...     [image] = read_conflicts(Path(folder))
        >>> image.shape.name, image.texture.name
        ('cat', 'elephant')
    """
    table = None if classes is None else read_class_table(classes)
    found = []
    for path in find_images(folder):
        key = path.relative_to(folder).as_posix()
        name = path.stem if table is None else table.get(Path(os.path.normpath(folder.resolve() / key)), "")
        if match := _NAME.fullmatch(name):
            found.append(ConflictImage(key, path, Cue(match[1], match[2]), Cue(match[3], match[4])))
    if not found:
        where = "file" if table is None else f"class in {classes}"
        raise ValueError(
            f"no image below {folder} has a {where} called like airplane1-bicycle2, the shape first: pass the folder "
            "of a cue-conflict set, with --classes CSV where a table says what its files show"
        )
    return found


def conflict_triplets(
    images: Sequence[ConflictImage], draws: int, seed: int = 0
) -> tuple[list[ConflictTriplet], list[str]]:
    """Draw triplets that ask for nothing but shape or texture: `draws` for every image whose two cues differ.

    The reference has shape A and texture B. One option has shape A and the texture of a third class C, the other one
    shape C and texture B: each shares one cue with the reference, and both are of C in the other. They are of other
    images of A and B than the reference itself (another airplane, another bicycle's texture), so that neither outline
    nor texture comes again as it is.

    Args:
        images: of `read_conflicts`.
        draws: options are drawn anew, with replacement, so many times.
        seed: of the draws, which depend on the reference's key and the set, and on no other reference.

    Returns:
        The triplets, reference by reference, and a sentence for each reference that has no such options.

    Raises:
        ValueError: if none has, or fewer than one draw is asked for.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat1-dog1", "cat2-owl1", "owl2-dog2"):
        ...         Path(folder, f"{name}.png").touch()
        ...     triplets, left_out = conflict_triplets(read_conflicts(Path(folder)), draws=1)
        >>> [path.stem for path in triplets[0].files], len(left_out)
        (['cat1-dog1', 'cat2-owl1', 'owl2-dog2'], 2)
    """
    if draws < 1:
        raise ValueError(f"got {draws} draws, expected 1 or more")
    cells: dict[tuple[str, str], list[int]] = {}
    for index, image in enumerate(images):
        cells.setdefault((image.shape.name, image.texture.name), []).append(index)
    names = sorted({name for cell in cells for name in cell})
    found: list[ConflictTriplet] = []
    left_out: list[str] = []
    for image in images:
        a, b = image.shape.name, image.texture.name
        if a == b:
            continue  # no conflict
        pairs = _options(image, images, cells, [name for name in names if name not in (a, b)])
        if not pairs:
            left_out.append(f"{image.key}: no other image has shape {a}, and none texture {b}, beside one third class")
            continue
        rng = np.random.default_rng([seed, *image.key.encode()])
        for draw in range(draws):
            shapes, textures = pairs[rng.integers(len(pairs))]
            shape, texture = (images[each[rng.integers(len(each))]] for each in (shapes, textures))
            found.append(ConflictTriplet(f"{image.key}#{draw}", image, shape, texture))
    if not found:
        raise ValueError(
            f"none of the {len(images)} images can be compared: a shape A with texture B needs one of shape A with "
            "texture C and one of shape C with texture B"
        )
    return found, left_out


def _options(
    image: ConflictImage,
    images: Sequence[ConflictImage],
    cells: Mapping[tuple[str, str], Sequence[int]],
    third: Sequence[str],
) -> list[tuple[list[int], list[int]]]:
    """List, for each third class that has both, the images of the reference's shape and those of its texture."""
    pairs = []
    for c in third:
        shapes = [i for i in cells.get((image.shape.name, c), ()) if _another(images[i].shape, image.shape)]
        textures = [i for i in cells.get((c, image.texture.name), ()) if _another(images[i].texture, image.texture)]
        if shapes and textures:
            pairs.append((shapes, textures))
    return pairs


def _another(one: Cue, other: Cue) -> bool:
    """Say whether two cues of a class are of two images; where names have no numbers, nobody knows."""
    return one.number != other.number or not one.number
