"""Sets to retrieve from: a database of images, and queries of which it is known what belongs to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from rclip_metric.images import ImageError, open_image
from rclip_metric.train.data.class_table import read_class_table
from rclip_metric.train.data.classes import read_classes
from rclip_metric.train.data.ground_truth import LISTS, read_ground_truth
from rclip_metric.train.data.images import find_images
from rclip_metric.train.data.table import place_in, read_table
from rclip_metric.train.runs.files import write_json

LANDMARKS = ("roxford5k", "rparis6k")
KINDS = (*LANDMARKS, "classes", "pairs")
Rows = tuple[int, ...]


@dataclass(frozen=True)
class Query:
    """An image, and the rows of the database that belong to it.

    Attributes:
        key: its name within the set.
        path: the file.
        easy: rows that are to be found.
        hard: rows that are to be found and hardly show it; none where a set does not tell them apart.
        junk: rows that leave the ranking: the query itself, or images of which nobody can say.
        box: the part of the image that counts, left, top, right and bottom in pixels; None for all of it.

    Example:
        >>> Query("cat/1.png", Path("set/cat/1.png"), easy=(1, 2), junk=(0,)).positives
        (1, 2)
    """

    key: str
    path: Path
    easy: Rows = ()
    hard: Rows = ()
    junk: Rows = ()
    box: tuple[float, float, float, float] | None = None

    @property
    def positives(self) -> Rows:
        """All rows that are to be found."""
        return self.easy + self.hard

    def image(self) -> Image.Image:
        """Read the part of the image that counts, as `open_image` does.

        Raises:
            ImageError: if it cannot be read, or the box lies outside.
        """
        image = open_image(self.path)
        if self.box is None:
            return image
        left, top, right, bottom = map(round, self.box)
        box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if not (box[0] < box[2] and box[1] < box[3]):
            raise ImageError(
                f"{self.path} has {image.width} x {image.height} pixels, and its box {self.box} is outside."
            )
        return image.crop(box)


@dataclass(frozen=True)
class RetrievalSet:
    """A database and queries.

    Attributes:
        kind: one of `KINDS`.
        name: its own, e.g. the folder's.
        images: the database, each file once.
        names: of its images, relative to the set.
        queries: those to which something belongs, in a fixed order.
        without: the names of queries to which nothing belongs.

    Example:
        >>> cats = RetrievalSet("classes", "pets", (Path("1.png"),), ("1.png",), queries=())
        >>> len(cats.digest())
        16
    """

    kind: str
    name: str
    images: tuple[Path, ...]
    names: tuple[str, ...]
    queries: tuple[Query, ...]
    without: tuple[str, ...] = ()

    def digest(self) -> str:
        """Digest what belongs to what, by names: 16 hex digits."""
        lines = [*self.names, *(str((q.key, q.easy, q.hard, q.junk, q.box)) for q in self.queries)]
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def read_retrieval(data: str, *, classes: Path | None = None, allow_outside: bool = False) -> RetrievalSet:
    """Read a set to retrieve from.

    - `roxford5k:DIR`, `rparis6k:DIR`: `gnd_roxford5k.json`, or the published `.pkl`, which is then converted and
      written beside it (where the folder can be written to); images are `DIR/jpg/NAME.jpg`.
    - `classes:DIR`: a folder per class. Every image is a query for the others of its class, and is itself left out.
      With folders `query` and `database` in DIR, images of the one are queries for those of the other. Queries go
      round the classes, so that the first few are of many.
    - `pairs:FILE.csv`: columns `query` and `image`, paths relative to the table, and, if there is one, `kind`: easy
      (the default), hard, junk, or other, for an image that belongs to no query. The database is every image of the
      table.

    A query to which nothing belongs, or everything, is left out (`without`).

    Args:
        data: KIND:PLACE.
        classes: for `classes`, a table with the columns class and file in place of class folders (`read_class_table`).
        allow_outside: names in the set's own tables may lead out of its folder (`place_in`).

    Raises:
        ValueError: naming what is missing or malformed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        ...         Path(folder, name).parent.mkdir(exist_ok=True)
        ...         Path(folder, name).touch()
        ...     found = read_retrieval(f"classes:{folder}")
        >>> found.queries[0].key, found.queries[0].easy, found.queries[0].junk, found.without
        ('cat/1.png', (1,), (0,), ('dog/1.png',))
    """
    kind, colon, place = data.partition(":")
    if kind not in KINDS or not colon or not place:
        raise ValueError(f"data must be {', '.join(f'{name}:PLACE' for name in KINDS)}, and is {data!r}")
    if classes is not None and kind != "classes":
        raise ValueError(f"a table of classes goes with classes:DIR, and the data are {data!r}")
    if kind in LANDMARKS:
        found = _landmarks(kind, Path(place), allow_outside)
    else:
        found = _classes(Path(place), classes) if kind == "classes" else _pairs(Path(place), allow_outside)
    if not found.queries:
        raise ValueError(
            f"{place} has {len(found.images)} images and no query to which any of them belongs: "
            "a class needs at least two images"
        )
    return found


def ground_truth_file(kind: str, folder: Path) -> Path:
    """Find the ground truth in a landmark set's folder; a pickle is converted to JSON beside it, where that may be.

    Raises:
        ValueError: if there is none, or as `read_ground_truth` raises it.
    """
    converted, published = folder / f"gnd_{kind}.json", folder / f"gnd_{kind}.pkl"
    if converted.exists():
        return converted
    if not published.exists():
        raise ValueError(
            f"{folder} has no {published.name}, as the set's authors publish it: download it into the folder"
        )
    if not os.access(folder, os.W_OK):
        return published
    write_json(converted, read_ground_truth(published))
    return converted


def _landmarks(kind: str, folder: Path, allow_outside: bool) -> RetrievalSet:
    truth = read_ground_truth(ground_truth_file(kind, folder))
    jpg = folder / "jpg"
    if not jpg.is_dir():
        raise ValueError(f"{folder} has no folder jpg: unpack the set's images into it")

    def file(name: str) -> Path:
        return place_in(jpg, f"{name}.jpg", allow_outside)

    queries = [
        replace(_query(name, file(name), one), box=one["bbx"] and tuple(one["bbx"]))
        for name, one in zip(truth["qimlist"], truth["gnd"], strict=True)
    ]
    images = tuple(map(file, truth["imlist"]))
    return _of(kind, folder.resolve().name, images, truth["imlist"], queries)


def _classes(folder: Path, table: Path | None) -> RetrievalSet:
    apart = [folder / "query", folder / "database"]
    if table is not None:
        asked = database = _labelled(folder, table)
    elif all(part.is_dir() for part in apart):
        asked, database = (_by_folder(part) for part in apart)
    else:
        asked = database = _by_folder(folder)
    itself = {path: row for row, (_, path, _) in enumerate(database)}
    members: dict[str, list[int]] = {}
    for row, (_, _, label) in enumerate(database):
        members.setdefault(label, []).append(row)
    by_class: dict[str, list[Query]] = {}
    for key, path, label in asked:
        own = itself.get(path)
        easy = tuple(row for row in members.get(label, ()) if row != own)
        query = Query(key, path, easy, junk=() if own is None else (own,))
        by_class.setdefault(label, []).append(query)
    in_turn = [query for round_ in zip_longest(*by_class.values()) for query in round_ if query is not None]
    images, names = [path for _, path, _ in database], [key for key, _, _ in database]
    return _of("classes", folder.resolve().name, images, names, in_turn)


def _by_folder(folder: Path) -> list[tuple[str, Path, str]]:
    """List name, file and class of every image."""
    found = read_classes(folder)
    return [(image.key, image.path, found.names[image.label]) for image in found.images]


def _labelled(folder: Path, table: Path) -> list[tuple[str, Path, str]]:
    """List the images below a folder that a table names."""
    labels, root = read_class_table(table), folder.resolve()
    places = [(path, Path(os.path.normpath(root / path.relative_to(folder)))) for path in find_images(folder)]
    found = [(path.relative_to(folder).as_posix(), path, labels[place]) for path, place in places if place in labels]
    if not found:
        raise ValueError(
            f"{table} names none of the {len(places)} images below {folder}: pass the table of this folder"
        )
    return found


def _pairs(table: Path, allow_outside: bool) -> RetrievalSet:
    rows: dict[str, int] = {}
    told: dict[str, dict[str, list[int]]] = {}
    try:
        for line, cells in read_table(table, ("query", "image")):
            query, image = ((cells[name] or "").strip() for name in ("query", "image"))
            kind = (cells.get("kind") or "").strip() or "easy"
            if not image or not (query or kind == "other") or kind not in (*LISTS, "other"):
                got = f"query {query!r}, image {image!r}, kind {kind!r}"
                raise ValueError(f"{table}, line {line}: {got}, expected two files and easy, hard, junk or other")
            row = rows.setdefault(image, len(rows))
            if kind == "other" and not query:
                continue
            lists = told.setdefault(query, {name: [] for name in (*LISTS, "other")})
            if any(row in listed for listed in lists.values()):
                raise ValueError(f"{table}, line {line}: {query} and {image} are there before")
            lists[kind].append(row)
    except OSError as error:
        raise ValueError(f"the table of pairs {table} cannot be read: {error.strerror}") from None
    for query, lists in told.items():
        own = rows.get(query)
        if own in lists["easy"] or own in lists["hard"]:
            raise ValueError(f"{table}: {query} would be found by itself: take the line out, or call it junk")
        if own is not None and own not in lists["junk"]:
            lists["junk"].append(own)
    queries = [_query(query, place_in(table.parent, query, allow_outside), lists) for query, lists in told.items()]
    images = [place_in(table.parent, name, allow_outside) for name in rows]
    return _of("pairs", table.stem, images, list(rows), queries)


def _query(key: str, path: Path, lists: Mapping[str, Sequence[int]]) -> Query:
    return Query(key, path, tuple(lists["easy"]), tuple(lists["hard"]), tuple(lists["junk"]))


def _of(kind: str, name: str, images: Sequence[Path], names: Sequence[str], queries: Iterable[Query]) -> RetrievalSet:
    """Make the set; queries to which nothing belongs, or everything, are left out."""
    queries = list(queries)
    for paths in (images, [query.path for query in queries]):
        if len(set(paths)) < len(paths):
            twice = next(path for path in paths if paths.count(path) > 1)
            raise ValueError(f"{twice} is there under two names: call it by one")
    kept: list[Query] = []
    without: list[Query] = []
    for query in queries:
        rest = len(images) - len(query.positives) - len(query.junk)
        (kept if query.positives and rest else without).append(query)
    return RetrievalSet(kind, name, tuple(images), tuple(names), tuple(kept), tuple(query.key for query in without))
