"""What is to be decided, in pieces: a slice of the files of a folder, a .tar, a Parquet file, a slice of an index."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from rclip_metric.errors import FilterError, ImageError, first_line
from rclip_metric.files import regular_file
from rclip_metric.images.reading import list_images, list_images_below
from rclip_metric.images.shards import DamagedShard, ShardImage, find_shards, index_shard
from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.retrieval import ImageIndex, Row, is_index, open_storage

FILES_PER_SHARD = 1000
_ROWS_PER_SHARD = 10_000
_SHARDS: tuple[str, ...] = (".tar", ".parquet")
_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "bytes", "content", "img", "image_bytes", "data")


class Item(NamedTuple):
    """An image of a shard, or what stands for those that the shard does not give.

    Attributes:
        name: Of the image, within what was asked about.
        read: Gives the encoded picture, and raises ImageError if it is not there; None where there is none.
        embedding: (D,) of unit length, where it is known already.
        digest: BLAKE2b of the file's bytes, 128 bits, hexadecimal, where it is known already.
        path: Its file, if it is one of its own.
        suffix: What a file of it would be called.
    """

    name: str
    read: Callable[[], bytes] | None = None
    embedding: Tensor | None = None
    digest: str | None = None
    path: str | None = None
    suffix: str = ""


class Shard(Protocol):
    """A piece of the work, which is done as a whole or not at all: plain values that a process can be sent."""

    @property
    def name(self) -> str:
        """As it is called in messages."""

    def stamp(self) -> str:
        """State what differs if it was replaced: then what was decided of it is void."""

    def items(self) -> Iterator[Item]:
        """Yield its images in order, opening each only when it is read."""


@dataclass(frozen=True)
class FileShard:
    """Some of the files below a folder.

    Attributes:
        root: The folder.
        files: Paths from there on.
    """

    root: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first and the last file."""
        return f"{self.files[0]} to {self.files[-1]}"

    def stamp(self) -> str:
        """Digest names, sizes and times of modification."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            digest.update(f"{file}\0{_stamp(os.path.join(self.root, file))}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def items(self) -> Iterator[Item]:
        """Yield the files."""
        for file in self.files:
            path = os.path.join(self.root, file)
            yield Item(printed(file), partial(_file, path), path=path)


@dataclass(frozen=True)
class TarShard:
    """A WebDataset shard.

    Attributes:
        path: The .tar file.
        name: As it is called in the rows.
    """

    path: str
    name: str

    def stamp(self) -> str:
        """State size and time of modification."""
        return _stamp(self.path)

    def items(self) -> Iterator[Item]:
        """Yield the samples; of a shard that ends too early those that are whole, then one that says so."""
        samples, whole = index_shard(self.path)
        for sample in samples:
            key = sample.name.removeprefix(f"{self.path}:")
            suffix = f".{sample.image_kind}" if sample.image_kind else ""
            yield Item(printed(f"{self.name}:{key}"), partial(_sample, sample), suffix=suffix)
        if not whole:
            yield Item(printed(self.name), partial(_sample, DamagedShard(self.name)))


@dataclass(frozen=True)
class ParquetShard:
    """A Parquet file with a column of encoded images: bytes, or a record that has some as `bytes`.

    Attributes:
        path: The file.
        name: As it is called in the rows.
        column: Of the images; None for the first that is one by its name and type.
    """

    path: str
    name: str
    column: str | None = None

    def stamp(self) -> str:
        """State size and time of modification."""
        return _stamp(self.path)

    def items(self) -> Iterator[Item]:
        """Yield the rows; of a file that is damaged those before the damage, then one that says so."""
        pa, pq = require_pyarrow("Parquet files")
        number = 0
        try:
            with pq.ParquetFile(regular_file(Path(self.path))) as file:
                column = self._image_column(file.schema_arrow)
                for batch in file.iter_batches(batch_size=64, columns=[column]):
                    for value in batch.column(0).to_pylist():
                        content = value.get("bytes") if isinstance(value, dict) else value
                        yield Item(printed(f"{self.name}:{number}"), partial(_bytes, content))
                        number += 1
        except (pa.ArrowException, OSError) as error:
            reason = f"{self.name} is damaged, what follows is left out: {first_line(error)}"
            yield Item(printed(self.name), partial(_refused, reason))

    def check(self) -> None:
        """Raise FilterError if no column can be that of the images; a file that is damaged is left for later."""
        pa, pq = require_pyarrow("Parquet files")
        try:
            schema = pq.read_schema(regular_file(Path(self.path)))
        except (pa.ArrowException, OSError):
            return
        self._image_column(schema)

    def _image_column(self, schema: Any) -> str:
        pa, _ = require_pyarrow("Parquet files")
        if self.column is not None and self.column not in schema.names:
            raise FilterError(f"{self.path} has no column {self.column!r}: it has {_listed(schema)}.")
        if self.column is not None:
            return self.column

        def holds_bytes(kind: Any) -> bool:
            if pa.types.is_struct(kind):
                return kind.get_field_index("bytes") >= 0
            return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

        fit = [name for name in schema.names if holds_bytes(schema.field(name).type)]
        chosen = next((name for name in _COLUMNS if name in fit), fit[0] if len(fit) == 1 else None)
        if chosen is None:
            raise FilterError(
                f"no column of {self.path} is known to hold images: name one with --image-column, of {_listed(schema)}."
            )
        return str(chosen)


@dataclass(frozen=True)
class IndexShard:
    """Rows of an index, whose embeddings are there.

    Attributes:
        path: The index.
        start: The first row.
        stop: The one after the last.
    """

    path: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The rows."""
        return f"rows {self.start} to {self.stop} of {self.path}"

    def stamp(self) -> str:
        """Digest what the index knows of the images."""
        rows, _ = _stored(self.path)
        return hashlib.blake2b(repr(rows[self.start : self.stop]).encode(), digest_size=16).hexdigest()

    def items(self) -> Iterator[Item]:
        """Yield the rows."""
        rows, embeddings = _stored(self.path)
        for row, embedding in zip(rows[self.start : self.stop], embeddings[self.start : self.stop], strict=True):
            read = None if row.path is None else partial(_file, row.path)
            yield Item(printed(row.id), read, embedding.float(), row.digest, row.path)


def find_work(images: str, *, column: str | None = None, size: int = FILES_PER_SHARD) -> list[Shard]:
    """Find out what was given, and cut it into shards, the same for the same images.

    Args:
        images: A folder of images (a tree), a folder of .tar or .parquet files, one of those, a pattern in braces
            (`photos-{000..127}.tar`), or an index.
        column: That holds the images of Parquet files; None to find it by name and type.
        size: Files per shard of a folder.

    Raises:
        FilterError: There is nothing to decide, or more than one kind of it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a.png", "b.png", "c.png"):
        ...         Path(folder, name).touch()
        ...     [shard.files for shard in find_work(folder, size=2)]
        [('a.png', 'b.png'), ('c.png',)]
    """
    path = Path(images)
    if path.is_dir() and is_index(path):
        count = len(_stored(images)[0])
        if not count:
            raise FilterError(f"the index {images} is empty.")
        starts = range(0, count, _ROWS_PER_SHARD)
        return [IndexShard(images, start, min(start + _ROWS_PER_SHARD, count)) for start in starts]
    kinds = _kinds(path) if path.is_dir() else [suffix for suffix in _SHARDS if path.suffix == suffix]
    if len(kinds) > 1:
        raise FilterError(f"{images} holds {' and '.join(kinds)}: give each kind a folder of its own.")
    if not kinds and not path.is_dir():
        there = "is a file that is none of these" if path.exists() else "is not there"
        raise FilterError(
            f"{images} {there}: pass a folder of images, .tar or .parquet files, a folder of them, or an index."
        )
    if kinds:
        try:
            shards = find_shards(images, kinds[0])
        except ValueError as error:
            raise FilterError(str(error)) from error
        root = os.path.commonpath([os.path.dirname(os.path.abspath(shard)) for shard in shards])
        names = [Path(os.path.relpath(os.path.abspath(shard), root)).as_posix() for shard in shards]
        if kinds[0] == ".tar":
            return [TarShard(shard, name) for shard, name in zip(shards, names, strict=True)]
        tables = [ParquetShard(shard, name, column) for shard, name in zip(shards, names, strict=True)]
        tables[0].check()
        return [*tables]
    files = [file.relative_to(path).as_posix() for file in list_images_below(path)]
    if not files:
        raise FilterError(f"there are no images below {images}.")
    return [FileShard(images, tuple(files[start : start + size])) for start in range(0, len(files), size)]


def check_model(shards: Sequence[Shard], metric: RobustPerceptualDistance) -> None:
    """Refuse an index of another model.

    Raises:
        ImageIndexError: Its embeddings are of another; both are named.
    """
    for path in {shard.path for shard in shards if isinstance(shard, IndexShard)}:
        ImageIndex.open(path, metric)


def printed(name: str) -> str:
    r"""Write out what is not UTF-8 in a name: tables hold text.

    Example:
        >>> printed("caf\udce9.jpg")
        'caf\\xe9.jpg'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def require_pyarrow(what: str) -> tuple[Any, Any]:
    """Import pyarrow and its reader of Parquet.

    Raises:
        FilterError: It is not installed.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise FilterError(f'{what} need pyarrow, which is an extra: pip install "rclip-metric[parquet]"') from error
    return pyarrow, pyarrow.parquet


def _kinds(folder: Path) -> list[str]:
    try:
        suffixes = {entry.suffix for entry in folder.iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        raise FilterError(f"cannot list {folder}: {error.strerror}.") from error
    found = [suffix for suffix in _SHARDS if suffix in suffixes]
    return [*found, "images"] if found and list_images(folder) else found


def _stamp(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return "not there"
    return f"{found.st_size} {found.st_mtime_ns}"


def _file(path: str) -> bytes:
    try:
        return regular_file(Path(path)).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read it: {error.strerror}") from error


def _sample(sample: ShardImage | DamagedShard) -> bytes:
    return sample.load()[0]


def _refused(reason: str) -> bytes:
    raise ImageError(reason)


def _bytes(content: Any) -> bytes:
    if not isinstance(content, bytes):
        raise ImageError("there is no image in this row")
    return content


def _listed(schema: Any) -> str:
    return ", ".join(f"{name} ({schema.field(name).type})" for name in schema.names)


@lru_cache(maxsize=1)
def _stored(path: str) -> tuple[Sequence[Row], Tensor]:
    """Read an index once per process."""
    return open_storage(Path(path)).read()
