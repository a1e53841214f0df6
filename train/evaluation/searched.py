"""The images that neighbours are looked for among: files, or an index."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from rclip_metric.errors import ImageError
from rclip_metric.images.reading import list_images_below
from rclip_metric.retrieval import ImageIndex
from rclip_metric.train.data.contents import contents_digest
from rclip_metric.train.evaluation.attack import RunSettings, fixed_options
from rclip_metric.train.evaluation.image_set import ImageSet, embeds
from rclip_metric.train.metrics.base import EncoderMetric, Metric

Near: TypeAlias = list[tuple[str, float]]
"""Names of images with their similarities, the most alike first."""

_MORE = 8  # rows of an index that are asked for beyond k: a query may have copies there
_MAY_BE_SAME = 1 - 1e-3  # a similarity from which on an indexed image may be the query itself


@dataclass(frozen=True)
class Points:
    """Queries, clean and attacked, as one metric sees them.

    Attributes:
        files: (Q,) of the queries.
        clean: (Q, 3, S, S).
        attacked: (Q, 3, S, S).
        fixed: (2 Q, D), the unit embeddings of the clean ones, then of the attacked ones; None without embeddings.

    Example:
        >>> image = torch.full((1, 3, 8, 8), 0.5)
        >>> len(Points([Path("a.png")], image, image).images)
        2
    """

    files: Sequence[Path]
    clean: Tensor
    attacked: Tensor
    fixed: Tensor | None = None

    @property
    def images(self) -> Tensor:
        """All of them, (2 Q, 3, S, S), the clean ones first."""
        return torch.cat([self.clean, self.attacked])

    def embedded(self, metric: Metric, chunk_size: int | None) -> Points:
        """Embed them, once for a whole database, if the metric has embeddings."""
        if not embeds(metric):
            return self
        return replace(self, fixed=fixed_options(metric, self.images[:, None], chunk_size)[:, 0])

    @cached_property
    def paths(self) -> list[str]:
        """Where the queries lie, links followed."""
        return [os.path.realpath(file) for file in self.files]

    @cached_property
    def pixels(self) -> list[str]:
        """Digests of the clean queries' pixels."""
        return [pixel_digest(image) for image in self.clean]


@dataclass(frozen=True)
class Found:
    """What a part of a database has.

    Attributes:
        near: (2 Q,) up to k images for each point.
        same: (Q,) images that are the query itself, which are left out.
        unreadable: a sentence for each image that cannot be read.
    """

    near: list[Near]
    same: list[list[str]]
    unreadable: list[str]


class Searched(Protocol):
    """Images to find, by name.

    Attributes:
        name: what it is called in tables.
    """

    name: str

    def __len__(self) -> int:
        """Count the images."""

    def settings(self) -> dict[str, Any]:
        """Describe it as far as results depend on it, apart from what the images hold: JSON."""

    def content(self) -> str:
        """Digest what the images hold."""

    def holds(self, file: Path) -> bool:
        """Say whether a file is one of the images."""

    def parts(self, size: int) -> Sequence[Sequence[Any]]:
        """Divide it into units of work of about so many images."""

    def search(self, metric: Metric, run: RunSettings) -> Callable[[Sequence[Any], Points, int], Found]:
        """Prepare to find the k images of a part that are most like each point, queries themselves left out."""

    def picture(self, name: str) -> Path | None:
        """Find the file of an image, None if there is none."""


class Folder:
    """Image files, called by their paths below a folder.

    Args:
        root: the folder.
        paths: those of its images that count; by default all in it and below.
        name: what it is called (default: the folder's name).

    Raises:
        ImageError: the folder cannot be listed.
        ValueError: there are no images in it.

    Example:
        >>> folder = Folder(Path("photos"), [Path("photos/cats/1.jpg"), Path("photos/2.jpg")])
        >>> len(folder), folder.names
        (2, ['cats/1.jpg', '2.jpg'])
    """

    def __init__(self, root: Path, paths: Sequence[Path] | None = None, name: str | None = None) -> None:
        """List the images; none is read yet."""
        self.paths = list_images_below(root) if paths is None else list(paths)
        if not self.paths:
            raise ValueError(f"there are no images in {root}: pass a folder of them, or an index")
        self.root, self.name = root, name or root.resolve().name
        self.names = [path.relative_to(root).as_posix() for path in self.paths]
        self._real = {os.path.realpath(path) for path in self.paths}

    @classmethod
    def at(cls, root: Path, sample: int | None = None, seed: int = 0) -> Folder:
        """Take all images of a folder, or so many of them at random.

        Raises:
            ValueError: there are fewer.
        """
        whole = cls(root)
        if sample is None:
            return whole
        return cls(root, drawn(whole.paths, sample, seed, f"images of {root}"), name=f"{whole.name}-{sample}")

    def __len__(self) -> int:
        """Count the files."""
        return len(self.paths)

    def settings(self) -> dict[str, Any]:
        """State the name, how many there are, and a digest of what they are called."""
        return {"name": self.name, "images": len(self), "names": _digest(self.names)}

    def content(self) -> str:
        """Digest what the files hold."""
        return contents_digest(self.paths)

    def holds(self, file: Path) -> bool:
        """Say whether a file is one of them, by its path with links followed."""
        return os.path.realpath(file) in self._real

    def parts(self, size: int) -> list[list[int]]:
        """Divide into blocks of places."""
        return [list(range(first, min(first + size, len(self)))) for first in range(0, len(self), size)]

    def search(self, metric: Metric, run: RunSettings) -> Callable[[Sequence[int], Points, int], Found]:
        """Compare points with the images of a part, each of which goes through the metric once if it has embeddings."""
        blocks = ([self.paths[place] for place in part] for part in self.parts(run.batch_size))
        images = ImageSet(blocks, metric.preprocess, metric.device, run)

        def search(part: Sequence[int], points: Points, k: int) -> Found:
            names = {self.paths[place]: self.names[place] for place in part}
            problems = images.problems(None, names)
            unreadable = [f"{names[path]}: {problem}" for path, problem in problems.items()]
            read = [path for path in names if path not in problems]
            same = _same(points, [(names[path], path, image) for path, image in _pairs(read, images.pixels(read))])
            if not read:
                return Found([[] for _ in range(2 * len(points.files))], same, unreadable)
            table = _similarities(metric, points, images.kept(metric, [read])[0], run.chunk_size)  # (2 Q, K)
            kept = [names[path] for path in read]
            near = []
            for number, row in enumerate(table.tolist()):
                out = set(same[number % len(points.files)])
                pairs = [(name, value) for name, value in zip(kept, row, strict=True) if name not in out]
                _refuse_infinite(pairs, metric)
                near.append(most_alike(pairs, k))
            return Found(near, same, unreadable)

        return search

    def picture(self, name: str) -> Path:
        """Find a file by its name."""
        return self.root / name


class Indexed:
    """The images of an `ImageIndex`, which stands for its files: the metric that made it is the only one to use.

    Args:
        path: of the index.
        metric: that made it.

    Raises:
        ImageIndexError: another metric made it, or it is damaged.
    """

    def __init__(self, path: Path, metric: Metric) -> None:
        """Open it."""
        own: Any = metric.metric if isinstance(metric, EncoderMetric) else metric
        self.index = ImageIndex.open(path, own)
        self.name = path.resolve().name
        self._rows = {row.id: row for row in self.index.rows}
        self._real = {os.path.realpath(row.path): row.id for row in self.index.rows if row.path is not None}

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.index)

    def settings(self) -> dict[str, Any]:
        """State the name, how many there are, and a digest of what they are called."""
        return {"name": self.name, "images": len(self), "names": _digest(sorted(self._rows)), "index": True}

    def content(self) -> str:
        """Digest what the files held when they were embedded; of rows that are no files, the embeddings."""
        digests = [f"{row.id} {row.digest}" for row in self.index.rows]
        given = [place for place, row in enumerate(self.index.rows) if row.digest is None]
        if given and self.index.embeddings is not None:
            digests += map(str, self.index.embeddings[given].float().tolist())
        return _digest(digests)

    def holds(self, file: Path) -> bool:
        """Say whether a file is one of those that were indexed, by its path with links followed."""
        return os.path.realpath(file) in self._real

    def parts(self, size: int) -> list[list[int]]:
        """Leave it whole: its own search is exact and has its chunks."""
        return [[0]]

    def search(self, metric: Metric, run: RunSettings) -> Callable[[Sequence[int], Points, int], Found]:
        """Search the index with the embeddings of all points."""

        def search(part: Sequence[int], points: Points, k: int) -> Found:
            assert points.fixed is not None  # only a metric with embeddings has an index
            asked, whole = k, len(self.index)
            while True:
                asked = min(whole, asked + _MORE)
                rows = [list(zip(h.ids, h.similarities.tolist(), strict=True)) for h in self._hits(points, asked)]
                same = self._same(points, rows, metric)
                near = []
                for number, row in enumerate(rows):
                    out = set(same[number % len(points.files)])
                    near.append([pair for pair in row if pair[0] not in out][:k])
                if asked == whole or all(len(row) == k for row in near):
                    return Found(near, same, [])
                asked *= 2

        return search

    def _hits(self, points: Points, k: int) -> list[Any]:
        assert points.fixed is not None
        found: Any = self.index.search(points.fixed, k)
        return list(found)

    def _same(self, points: Points, rows: Sequence[Near], metric: Metric) -> list[list[str]]:
        """Find the rows that are the queries: of those that can be, the file is read again if it is still there."""
        same = []
        for path, pixels, row in zip(points.paths, points.pixels, rows, strict=False):  # the clean ones come first
            own = [self._real[path]] if path in self._real else []
            for name, similarity in row:
                file = self.picture(name)
                if name not in own and similarity > _MAY_BE_SAME and file is not None:
                    try:
                        if pixel_digest(metric.preprocess(file)) == pixels:
                            own.append(name)
                    except ImageError:
                        continue  # the file has gone since, and with it what could be compared
            same.append(own)
        return same

    def picture(self, name: str) -> Path | None:
        """Find the file that a row was made from."""
        path = self._rows[name].path
        return None if path is None else Path(path)


def drawn(paths: Sequence[Path], count: int, seed: int, what: str) -> list[Path]:
    """Draw some of many files, and leave them in their order.

    Raises:
        ValueError: there are fewer; `what` says of what.

    Example:
        >>> drawn([Path("a"), Path("b")], 2, seed=0, what="queries") == [Path("a"), Path("b")]
        True
    """
    if count > len(paths):
        raise ValueError(f"{count} {what} were asked for, and there are {len(paths)}: ask for fewer")
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))[:count]
    return [paths[place] for place in sorted(order.tolist())]


def most_alike(pairs: Sequence[tuple[str, float]], k: int) -> Near:
    """Choose the k images of highest similarity; of equal ones the first.

    Example:
        >>> most_alike([("a", 0.1), ("b", 0.9), ("c", 0.9)], 2)
        [('b', 0.9), ('c', 0.9)]
    """
    return sorted(pairs, key=lambda pair: -pair[1])[:k]


def pixel_digest(image: Tensor) -> str:
    """Digest the pixels of an image (3, S, S): equal for images that no metric of that size can tell apart.

    Example:
        >>> pixel_digest(torch.zeros(3, 8, 8)) == pixel_digest(torch.zeros(3, 8, 8))
        True
    """
    return hashlib.blake2b(image.cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def _similarities(metric: Metric, points: Points, kept: Tensor, chunk_size: int | None) -> Tensor:
    """Compare all points with what the metric keeps of K images (K, ...): (2 Q, K), float64."""
    if points.fixed is not None:
        return points.fixed.double() @ kept.double().T
    with torch.no_grad():
        rows = [
            torch.cat([metric.similarities(image[None], part[None])[0] for part in kept.split(chunk_size or len(kept))])
            for image in points.images
        ]
    return torch.stack(rows).double()


def _same(points: Points, images: Sequence[tuple[str, Path, Tensor]]) -> list[list[str]]:
    """Find, for each query, the images that are its own file, or have its pixels."""
    looked = [(name, os.path.realpath(path), pixel_digest(image)) for name, path, image in images]
    return [
        [name for name, place, digest in looked if place == own or digest == pixels]
        for own, pixels in zip(points.paths, points.pixels, strict=True)
    ]


def _refuse_infinite(pairs: Near, metric: Metric) -> None:
    """Raise ValueError where a similarity to an image is NaN or infinite: it has no place in an order."""
    if bad := [name for name, value in pairs if not math.isfinite(value)]:
        raise ValueError(f"{metric.name}'s similarity to {bad[0]} is no finite number: it cannot be put in order")


def _pairs(paths: Sequence[Path], images: Tensor) -> list[tuple[Path, Tensor]]:
    return list(zip(paths, images, strict=True)) if paths else []


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
