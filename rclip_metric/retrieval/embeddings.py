"""Distances between image files: every distinct image is decoded and embedded once, whatever the pairs."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from rclip_metric.distance import distance_between
from rclip_metric.errors import CheckpointError
from rclip_metric.images.reading import list_images, list_images_below
from rclip_metric.metric import RobustPerceptualDistance

if TYPE_CHECKING:
    from rclip_metric.images.reading import ImageSource

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")

# Pillow decodes and resizes outside Python's lock, so that threads do. Reading a photograph costs a few percent of
# embedding it with a large model, and more than that with a small one or on a GPU: then more of them are worth it.
_DECODERS = min(4, os.cpu_count() or 1)
# Differences of embeddings are made in blocks of at most this many numbers. On a CPU that is what torch does in one
# thread and the cache holds: sharing out such small work among threads costs more than it, many times more where
# the cores are busy. A GPU wants large pieces (64 MB).
_CPU_BLOCK, _GPU_BLOCK = 2**15, 2**24


@dataclass(frozen=True)
class Pairing:
    """The images of two folders that belong together, and the others.

    Example:
        >>> Pairing(pairs=[(Path("a/1.png"), Path("b/1.jpg"))], unpaired=[]).pairs[0][1].name
        '1.jpg'
    """

    pairs: list[tuple[Path, Path]]
    unpaired: list[Path]


def images_of(folder: Path, recursive: bool = False) -> dict[str, Path]:
    """List the images of a folder by their names; those in folders below it by the path from there, as `dogs/1.png`.

    Raises:
        ImageError: A folder cannot be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("1.png", "dogs/1.png"):
        ...         Path(folder, name).parent.mkdir(exist_ok=True)
        ...         Path(folder, name).touch()
        ...     list(images_of(Path(folder))), list(images_of(Path(folder), recursive=True))
        (['1.png'], ['1.png', 'dogs/1.png'])
    """
    if not recursive:
        return {path.name: path for path in list_images(folder)}
    return {path.relative_to(folder).as_posix(): path for path in list_images_below(folder)}


def pair_by_name(a: Path, b: Path, recursive: bool = False) -> Pairing:
    """Pair the images of two folders: the same file name, or else the same name with another suffix.

    The second rule is for copies in another format (`x.png`, `x.jpg`) and holds where only one image of each
    folder is left that could be meant.

    Args:
        a: A folder.
        b: The other one.
        recursive: Take the images in folders below them too; their names then are the paths from a and b on.

    Raises:
        ImageError: A folder cannot be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a/1.png", "a/2.png", "b/1.jpg", "b/3.png"):
        ...         Path(folder, name).parent.mkdir(exist_ok=True)
        ...         Path(folder, name).touch()
        ...     found = pair_by_name(Path(folder, "a"), Path(folder, "b"))
        >>> [(one.name, other.name) for one, other in found.pairs], [path.name for path in found.unpaired]
        ([('1.png', '1.jpg')], ['2.png', '3.png'])
    """
    left, right = images_of(a, recursive), images_of(b, recursive)
    partners = {name: name for name in left if name in right}
    by_stem = _by_stem(name for name in right if name not in partners)
    for stem, names in _by_stem(name for name in left if name not in partners).items():
        others = by_stem.get(stem, [])
        if len(names) == len(others) == 1:
            partners[names[0]] = others[0]
    taken = set(partners.values())
    return Pairing(
        pairs=[(path, right[partners[name]]) for name, path in left.items() if name in partners],
        unpaired=[path for name, path in left.items() if name not in partners]
        + [path for name, path in right.items() if name not in taken],
    )


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(os.path.splitext(name)[0], []).append(name)
    return found


class Embedder(Protocol):
    """What is needed of a metric to embed files: `RobustPerceptualDistance` has it, and every metric that embeds.

    Example:
        >>> metric: Embedder = RobustPerceptualDistance("tiny")
        >>> metric.embed(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 128])
    """

    @property
    def device(self) -> torch.device:
        """Where images have to be."""

    def preprocess(self, image: ImageSource) -> Tensor:
        """Read one image: (3, S, S) in [0, 1]."""

    def embed(self, images: Tensor) -> Tensor:
        """Embed (N, 3, S, S) as (N, D) of unit length."""


def decoders(count: int | None = None) -> ThreadPoolExecutor:
    """Start the threads that decode images.

    Args:
        count: How many; by default a few.

    Example:
        >>> with decoders() as pool:
        ...     pool.submit(len, b"bytes").result()
        5
    """
    return ThreadPoolExecutor(count or _DECODERS, thread_name_prefix="decode")


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[_Item], _Read], items: Iterable[_Item], count: int
) -> Iterator[tuple[_Item, Future[_Read]]]:
    """Yield items in order, each with what is read of it, while threads work on those that follow.

    Args:
        pool: The threads.
        read: Called with an item, in a thread.
        items: Taken as they are needed.
        count: How many are read ahead, at most: what is in memory at a time.

    Example:
        >>> with decoders() as pool:
        ...     [(word, length.result()) for word, length in read_ahead(pool, len, ["a", "few", "words"], 2)]
        [('a', 1), ('few', 3), ('words', 5)]
    """
    waiting: deque[tuple[_Item, Future[_Read]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(read, item)))
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


class FileEmbeddings:
    """Unit embeddings of image files, computed in batches as they are asked for.

    Files are read as published numbers were made (`metric.preprocess`), by a few threads that work ahead
    while the model computes. A file that is given twice is read once; files with the same pixels share one
    embedding, so that their distance is exactly zero, which batches of different size would not give.

    Args:
        metric: On its device and in its dtype.
        files: Everything that will be asked for, best in the order in which it will be.
        batch_size: Images per call of the model.
        on_skip: Called with a file that cannot be read, and why.
        on_done: Called after each file.
        workers: Threads that read, by default a few.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> metric = RobustPerceptualDistance("tiny")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     red, blue = Path(folder, "red.png"), Path(folder, "blue.png")
        ...     Image.new("RGB", (80, 60), "red").save(red)
        ...     Image.new("RGB", (80, 60), "blue").save(blue)
        ...     with FileEmbeddings(metric, [red, blue], batch_size=8, on_skip=print) as embeddings:
        ...         embeddings[red].shape, torch.equal(embeddings[red], embeddings[blue])
        (torch.Size([128]), False)
    """

    def __init__(
        self,
        metric: Embedder,
        files: Iterable[Path],
        *,
        batch_size: int,
        on_skip: Callable[[Path, str], None],
        on_done: Callable[[], object] = lambda: None,
        workers: int | None = None,
    ) -> None:
        """Read and compute nothing yet."""
        self._metric = metric
        self._batch_size = batch_size
        self._on_skip = on_skip
        self._on_done = on_done
        self._found: dict[str, Tensor | None] = {}  # by real path; (D,), or None if it cannot be read
        self._by_pixels: dict[bytes, Tensor] = {}
        distinct: dict[str, Path] = {}
        for file in files:
            distinct.setdefault(os.path.realpath(file), file)
        self._count = len(distinct)
        self._pool = decoders(workers)
        self._ahead = max(2 * batch_size, workers or 0)
        self._batches = self._work(distinct)

    def __len__(self) -> int:
        """Count the distinct files."""
        return self._count

    def __getitem__(self, file: Path) -> Tensor | None:
        """Return the embedding (D,) of one of the files, None if it cannot be read."""
        key = os.path.realpath(file)
        while key not in self._found:
            if next(self._batches, None) is None:
                raise KeyError(f"{file} is not among the files that were given")
        return self._found[key]

    def __enter__(self) -> FileEmbeddings:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop what has not been computed."""
        self._batches.close()
        self._pool.shutdown(cancel_futures=True)

    def _work(self, files: dict[str, Path]) -> Generator[bool, None, None]:
        """Embed batch by batch, as far as it is iterated: True after each batch."""
        waiting: list[tuple[str, bytes]] = []
        batch: dict[bytes, Tensor] = {}
        for (key, file), decoded in read_ahead(self._pool, self._read, files.items(), self._ahead):
            try:
                digest, pixels = decoded.result()
            except ValueError as error:  # an ImageError, or a size that resize=None does not take
                self._found[key] = None
                self._on_skip(file, str(error))
            else:
                waiting.append((key, digest))
                if digest not in self._by_pixels:
                    batch[digest] = pixels
            self._on_done()
            if len(batch) == self._batch_size:
                self._embed(batch, waiting)
                yield True
        self._embed(batch, waiting)
        yield True

    def _read(self, named: tuple[str, Path]) -> tuple[bytes, Tensor]:
        pixels = self._metric.preprocess(named[1])  # (3, S, S)
        return digest_of(pixels), pixels

    def _embed(self, batch: dict[bytes, Tensor], waiting: list[tuple[str, bytes]]) -> None:
        if batch:
            self._by_pixels.update(zip(batch, embed_pixels(self._metric, list(batch.values())), strict=True))
        self._found.update((key, self._by_pixels[digest]) for key, digest in waiting)
        batch.clear()
        waiting.clear()


def digest_of(pixels: Tensor) -> bytes:
    """Tell images (3, S, S) from each other by their pixels.

    Example:
        >>> digest_of(torch.zeros(3, 2, 2)) == digest_of(torch.ones(3, 2, 2))
        False
    """
    return hashlib.sha256(pixels.numpy().data).digest()  # in hardware on most processors


def embed_pixels(metric: Embedder, images: Sequence[Tensor]) -> Tensor:
    """Embed images (3, S, S) in one batch, (N, D) on the metric's device.

    Raises:
        CheckpointError: The model's numbers are not finite.

    Example:
        >>> embed_pixels(RobustPerceptualDistance("tiny"), [torch.zeros(3, 64, 64)]).shape
        torch.Size([1, 128])
    """
    with torch.inference_mode():
        embeddings = metric.embed(torch.stack(list(images)).to(metric.device))
        if not embeddings.isfinite().all():
            raise CheckpointError(
                f"{_name(metric)} gives embeddings that are not finite: "
                "the weights are damaged, or their dtype is too small for them."
            )
    return embeddings


def _name(metric: Embedder) -> str:
    return str(getattr(getattr(metric, "encoder", metric), "name", "the metric"))


def distances(one: Tensor, others: Tensor, squared: bool) -> list[float]:
    """Compute the distances of one unit embedding (D,) to others (N, D), from their differences, in blocks.

    Example:
        >>> axes = torch.eye(3)
        >>> distances(axes[0], axes, squared=True)  # 1 - cos
        [0.0, 1.0, 1.0]
    """
    limit = _CPU_BLOCK if others.device.type == "cpu" else _GPU_BLOCK
    with torch.inference_mode():
        blocks = others.split(max(1, limit // others.shape[1]))
        return torch.cat([distance_between(one, block, squared) for block in blocks]).tolist()


class Summary:
    """Count, mean and extremes of distances, added one by one.

    Example:
        >>> summary = Summary()
        >>> summary.add(0.25, "a.png", "b.png")
        >>> summary.add(0.75, "a.png", "c.png")
        >>> summary.mean, summary.to_dict()["highest"]
        (0.5, {'distance': 0.75, 'a': 'a.png', 'b': 'c.png'})
    """

    def __init__(self) -> None:
        """Start empty."""
        self.count = 0
        self._total = 0.0
        self._lowest: tuple[float, tuple[str, str]] | None = None
        self._highest: tuple[float, tuple[str, str]] | None = None

    def add(self, distance: float, a: str, b: str) -> None:
        """Take one pair into account; raises as `add_row`."""
        self.add_row(a, [b], np.array([distance]))

    def add_row(self, a: str, others: Sequence[str], distances: np.ndarray[Any, Any]) -> None:
        """Take the pairs of one image with others into account: their names and distances (P,).

        Raises:
            ValueError: A distance is NaN, which is neither the lowest nor the highest, and would hide both.
        """
        if np.isnan(distances).any():
            b = others[int(np.isnan(distances).argmax())]
            raise ValueError(f"the distance of {a} and {b} is NaN: it cannot be summed up with the others")
        if not len(distances):
            return
        self.count += len(distances)
        self._total += float(distances.sum(dtype=np.float64))
        low, high = int(distances.argmin()), int(distances.argmax())  # of equal ones the first
        if self._lowest is None or distances[low] < self._lowest[0]:
            self._lowest = float(distances[low]), (a, others[low])
        if self._highest is None or distances[high] > self._highest[0]:
            self._highest = float(distances[high]), (a, others[high])

    @property
    def mean(self) -> float | None:
        """Mean distance, None without pairs."""
        return self._total / self.count if self.count else None

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON; the extremes with the pair that has them, null without pairs."""
        ends = {
            name: end and {"distance": significant(end[0]), "a": end[1][0], "b": end[1][1]}
            for name, end in (("lowest", self._lowest), ("highest", self._highest))
        }
        mean = self.mean
        return {"pairs": self.count, "mean": None if mean is None else significant(mean), **ends}


def significant(value: float) -> float:
    """Round a float32 to the digits that it has, so that it is not written as 0.12345600128173828.

    Example:
        >>> significant(torch.tensor(0.1).item())
        0.1
    """
    return float(f"{value:.7g}")


def identity(metric: RobustPerceptualDistance) -> dict[str, Any]:
    """Name what a score means nothing without.

    Example:
        >>> identity(RobustPerceptualDistance("tiny"))
        {'model': 'tiny', 'revision': 'sha256:...', 'resize': 'published', 'squared': False}
    """
    encoder = metric.encoder
    return {
        "model": encoder.name,
        "revision": encoder.revision,
        "resize": encoder.resize,
        **({} if encoder.reading == "published" else {"reading": encoder.reading}),
        "squared": metric.squared,
    }


def settings(metric: RobustPerceptualDistance, source: str, batch_size: int) -> dict[str, Any]:
    """Name what else it takes to get the same score again.

    Example:
        >>> found = settings(RobustPerceptualDistance("tiny"), source="tiny", batch_size=8)
        >>> found["device"], found["dtype"], found["batch_size"]
        ('cpu', 'float32', 8)
    """
    import PIL

    from rclip_metric import __version__

    origin = metric.encoder.origin
    return {
        "rclip_metric": __version__,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "source": source,
        "weights": origin and origin.digest,
        "preprocessing": metric.encoder.preprocessing.to_dict(),
        "device": str(metric.device),
        "dtype": str(next(metric.encoder.parameters()).dtype).removeprefix("torch."),
        "batch_size": batch_size,
    }
