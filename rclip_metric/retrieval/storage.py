"""An index on disk: a folder of safetensors files and a JSON file, or a LanceDB table where that is installed."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from rclip_metric.errors import ImageIndexError, MissingPackageError, first_line
from rclip_metric.files import written_whole

FORMAT = "rclip-metric index"
FORMAT_VERSION = 1


class Row(NamedTuple):
    """What an index holds of an image, besides its embedding.

    Attributes:
        id: Its name in the index.
        label: Its class, where it has one.
        path: The file it was read from; None for an image or an embedding that was given as such.
        size: Bytes of the file.
        modified: The file's time of modification, nanoseconds.
        digest: BLAKE2b of the file's bytes, 128 bits, hexadecimal.

    Example:
        >>> Row("cats/1.jpg", label="cats").path is None
        True
    """

    id: str
    label: str | None = None
    path: str | None = None
    size: int | None = None
    modified: int | None = None
    digest: str | None = None


class Approximation(NamedTuple):
    """What approximate search finds of what exact search does.

    Attributes:
        recall: The fraction of the k nearest others of an image, on average.
        k: How many were looked for.
        sample: Of how many images of the index.
        images: How many it had then.
        probes: Parts of the approximate index that a query looks into.

    Example:
        >>> Approximation(0.98, 10, 256, 1_000_000, probes=32).recall
        0.98
    """

    recall: float
    k: int
    sample: int
    images: int
    probes: int


class Storage(Protocol):
    """Where the rows of an index are kept. Each method leaves the whole on disk or nothing of it."""

    path: Path

    def about(self) -> dict[str, Any]:
        """Return what the index says of itself: the model, the size of its embeddings, their dtype."""

    def read(self) -> tuple[list[Row], Tensor]:
        """Return the rows and their embeddings (N, D), in the order in which ids were first added."""

    def rows(self) -> list[Row]:
        """Return the rows, in that order."""

    def write(self, rows: Sequence[Row], embeddings: Tensor) -> None:
        """Add rows, or replace those that have the same id."""

    def remove(self, ids: Iterable[str]) -> None:
        """Drop rows."""


@runtime_checkable
class SearchableStorage(Storage, Protocol):
    """A storage that can be searched without being read into memory.

    Example:
        >>> isinstance(PartFiles(Path("photos.index")), SearchableStorage)
        False
    """

    def count(self) -> int:
        """Count the rows."""

    def nearest(self, queries: Tensor, k: int, *, probes: int | None = None) -> tuple[list[list[Row]], Tensor]:
        """Return the nearest rows of queries (Q, D), and squared distances (Q, k): of all, or of so many parts."""

    def prepare(self) -> int:
        """Make what approximate search needs, and return in how many parts the rows are."""

    def approximation(self) -> Approximation | None:
        """Return what was measured of approximate search, None where it was not prepared."""

    def keep_approximation(self, measured: Approximation) -> None:
        """Write down what was measured."""


def create_storage(path: Path, about: dict[str, Any], format: str | None = None) -> Storage:
    """Make an empty index.

    Args:
        path: A folder that does not exist yet, or is empty.
        about: What it says of itself; `dimension` and `dtype` ("float32" or "float16") are read back.
        format: "lance", "safetensors", or None for the first if it is installed.

    Raises:
        ImageIndexError: There is something at the path already.
        MissingPackageError: LanceDB was asked for and is not installed.
    """
    require_free(path)
    about = {"format": FORMAT, "format_version": FORMAT_VERSION, **about}
    if format is None:
        format = "lance" if lance_is_installed() else "safetensors"
    if format == "lance":
        return _lance().create(path, about)
    if format != "safetensors":
        raise ValueError(f'format must be "lance", "safetensors" or None, got {format!r}.')
    return PartFiles.create(path, about)


def require_free(path: Path) -> None:
    """Raise ImageIndexError unless an index can be made at a path: nothing is there, or an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ImageIndexError(f"{path} is there already: give an index a folder of its own, or remove this one first.")


def open_storage(path: Path) -> Storage:
    """Find out what kind of index a folder holds.

    Raises:
        ImageIndexError: There is none.
        MissingPackageError: It is a LanceDB table and LanceDB is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = create_storage(Path(folder), {"dimension": 4, "dtype": "float32"}, "safetensors")
        ...     open_storage(Path(folder)).about()["dimension"]
        4
    """
    if (path / LANCE_FOLDER).is_dir():
        return _lance()(path)
    if is_index(path):
        return PartFiles(path)
    what = "is no index" if path.exists() else "does not exist"
    raise ImageIndexError(f"{path} {what}: make one with `rclip-metric index build FOLDER {path}`.")


def is_index(path: Path) -> bool:
    """Return whether a folder holds an index, of either kind.

    Example:
        >>> is_index(Path("nowhere"))
        False
    """
    return (path / LANCE_FOLDER).is_dir() or (path / PartFiles.INDEX).is_file()


LANCE_FOLDER = "images.lance"


def lance_is_installed() -> bool:
    """Return whether the extra `index` is there."""
    from importlib.util import find_spec

    return find_spec("lancedb") is not None


def _lance() -> Any:
    if not lance_is_installed():
        raise MissingPackageError(
            'This index is a LanceDB table, and LanceDB is not installed: pip install "rclip-metric[index]".'
        )
    from rclip_metric.retrieval.lance import LanceTable

    return LanceTable


class PartFiles:
    """An index as files: `index.json` names the parts, each a safetensors file of embeddings with their rows as JSON.

    A part is written as a whole, then the list that names it is replaced: a process that is killed loses the part that
    it was at, and two processes may add at once.
    """

    INDEX = "index.json"

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self.path = path

    @classmethod
    def create(cls, path: Path, about: dict[str, Any]) -> PartFiles:
        """Make an empty index."""
        storage = cls(path)
        storage._list(about, [])
        return storage

    def about(self) -> dict[str, Any]:
        """Return what the index says of itself."""
        return self._read_list()[0]

    def read(self) -> tuple[list[Row], Tensor]:
        """Return the rows and their embeddings (N, D)."""
        about, parts = self._read_list()
        rows: dict[str, tuple[Row, Tensor]] = {}
        for name in parts:
            found, embeddings = self._read_part(name, about["dimension"])
            rows.update((row.id, (row, embedding)) for row, embedding in zip(found, embeddings, strict=True))
        dtype = getattr(torch, about["dtype"])
        empty = torch.empty(0, about["dimension"], dtype=dtype)
        matrix = torch.stack([embedding for _, embedding in rows.values()]).to(dtype) if rows else empty
        return [row for row, _ in rows.values()], matrix

    def rows(self) -> list[Row]:
        """Return the rows."""
        return self.read()[0]

    def write(self, rows: Sequence[Row], embeddings: Tensor) -> None:
        """Add rows, or replace those that have the same id."""
        name = self._write_part(rows, embeddings)
        with self._locked():
            about, parts = self._read_list()
            self._list(about, [*parts, name])

    def remove(self, ids: Iterable[str]) -> None:
        """Drop rows: all that stay are written anew, as one part."""
        dropped = set(ids)
        with self._locked():
            about, parts = self._read_list()
            rows, embeddings = self.read()
            kept = [number for number, row in enumerate(rows) if row.id not in dropped]
            name = self._write_part([rows[number] for number in kept], embeddings[kept])
            self._list(about, [name])
        for part in parts:
            (self.path / part).unlink(missing_ok=True)

    def _writing(self) -> AbstractContextManager[None]:
        return explained(self.path, "cannot be written", "what was added before is there")

    def _locked(self) -> Any:
        from filelock import FileLock

        return FileLock(self.path / ".lock")

    def _list(self, about: dict[str, Any], parts: list[str]) -> None:
        with self._writing(), written_whole(self.path / self.INDEX, flush=True) as partial:
            partial.write_text(json.dumps({**about, "parts": parts}, indent=1) + "\n", encoding="utf-8")

    def _read_list(self) -> tuple[dict[str, Any], list[str]]:
        file = self.path / self.INDEX
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            parts = about.pop("parts")
            if not all(isinstance(name, str) and os.path.basename(name) == name for name in parts):
                raise ValueError("a part is no file name")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ImageIndexError(f"{file} is damaged: build the index again.") from error
        return checked_about(about, file), parts

    def _write_part(self, rows: Sequence[Row], embeddings: Tensor) -> str:
        from safetensors.torch import save_file

        name = f"part-{uuid.uuid4().hex}.safetensors"
        with self._writing(), written_whole(self.path / name, flush=True) as partial:
            save_file({"embeddings": embeddings.cpu().contiguous()}, partial, {"rows": json.dumps(rows)})
        return name

    def _read_part(self, name: str, dimension: int) -> tuple[list[Row], Tensor]:
        from safetensors import SafetensorError, safe_open

        file = self.path / name
        try:
            with safe_open(file, "pt") as part:
                rows = [Row(*values) for values in json.loads((part.metadata() or {})["rows"])]
                embeddings: Tensor = part.get_tensor("embeddings")
            if embeddings.shape != (len(rows), dimension):
                raise ValueError("rows and embeddings do not belong together")
        except (KeyError, OSError, SafetensorError, TypeError, ValueError) as error:
            raise ImageIndexError(f"{file} is missing or damaged: build the index again.") from error
        return rows, embeddings


@contextmanager
def explained(path: Path, what: str, then: str) -> Iterator[None]:
    """Turn what the disk, safetensors or LanceDB raises into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except ImageIndexError:
        raise
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ImageIndexError(f"{path} {what} ({first_line(error)}): {then}.") from error


def checked_about(about: dict[str, Any], where: object) -> dict[str, Any]:
    """Return what an index says of itself, if it is one that this version reads."""
    if about.get("format") != FORMAT or about.get("format_version") != FORMAT_VERSION:
        raise ImageIndexError(
            f"{where} is of format {about.get('format')!r} {about.get('format_version')!r}, and this version reads "
            f"{FORMAT!r} {FORMAT_VERSION}."
        )
    if about.get("dtype") not in ("float32", "float16") or type(about.get("dimension")) is not int:
        raise ImageIndexError(f"{where} is damaged: it states no dtype or dimension.")
    return about
