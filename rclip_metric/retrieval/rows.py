"""Rows of an index: how files become them, and what a search or an update says of them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from rclip_metric.errors import ImageIndexError
from rclip_metric.retrieval.storage import Row

_PART = 2**20
"""Bytes of a file that are read at a time."""


@dataclass(frozen=True)
class Hits:
    """The nearest images of one query, nearest first.

    Attributes:
        ids: (k,) names in the index.
        labels: (k,) classes, None where there is none.
        paths: (k,) files, None where the index has none.
        distances: (k,) as the metric measures them, float32.
        similarities: (k,) cosines, float32.

    Example:
        >>> import torch
        >>> from rclip_metric import ImageIndex, RobustPerceptualDistance
        >>> index = ImageIndex(RobustPerceptualDistance("tiny"))
        >>> _ = index.add(torch.eye(128)[:2], ids=["a", "b"])
        >>> index.search(torch.eye(128)[0], k=2).ids
        ['a', 'b']
    """

    ids: list[str]
    labels: list[str | None]
    paths: list[str | None]
    distances: Tensor
    similarities: Tensor


@dataclass(frozen=True)
class Update:
    """What `ImageIndex.update` found: ids of each kind, and files that could not be read with the reason.

    Example:
        >>> Update(added=["new.jpg"]).changed
        []
    """

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unchanged: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def named(files: Iterable[Path], root: Path) -> list[tuple[Path, Row]]:
    """Call files by their paths from the root on, and label them by the first folder there."""
    start = len(str(root / "x")) - 1  # where names begin, also below "." and "/"
    found = []
    for file in files:
        name = str(file)[start:].replace(os.sep, "/")
        label, inside, _ = name.partition("/")
        found.append((file, Row(name, label=label if inside else None)))
    return found


def rows_of(ids: Sequence[str], labels: Sequence[str | None] | None, count: int) -> list[Row]:
    """Make a row of each name; ImageIndexError where they are not one for each, or one stands twice."""
    for what, given in (("ids", ids), ("labels", labels)):
        if given is not None and len(given) != count:
            raise ImageIndexError(f"{what} must be one for each of {count} images, got {len(given)}.")
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        raise ImageIndexError(f"the id {twice[0]!r} stands twice: give each image one of its own.")
    return [Row(name, label) for name, label in zip(ids, labels or [None] * count, strict=True)]


def stamped_row(file: Path, row: Row) -> Row | None:
    """Add what tells whether a file has changed; None where it cannot be read."""
    try:
        found = file.stat()
        digest = hashlib.blake2b(digest_size=16)
        with file.open("rb") as opened:
            while part := opened.read(_PART):
                digest.update(part)
    except OSError:
        return None
    size, modified = found.st_size, found.st_mtime_ns
    return row._replace(path=str(file.resolve()), size=size, modified=modified, digest=digest.hexdigest())
