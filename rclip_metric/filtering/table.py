"""The table of decisions: one row per image, in parts that are there as a whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rclip_metric.files import written_whole
from rclip_metric.filtering.shards import require_pyarrow

Row = dict[str, Any]
"""What was decided of an image, by column; None where there is nothing to say."""

WORDS = ("file", "decision", "class", "neighbour", "error")
NUMBERS = ("similarity", "other", "margin")
FORMATS = ("parquet", "csv")


def columns(detectors: Sequence[str]) -> list[str]:
    """Name the columns of a table, in order.

    Example:
        >>> columns(["opennsfw"])
        ['file', 'decision', 'class', 'neighbour', 'similarity', 'other', 'margin', 'opennsfw', 'identical', 'error']
    """
    return ["file", "decision", "class", "neighbour", *NUMBERS, *detectors, "identical", "error"]


def best_format() -> str:
    """Return "parquet" where pyarrow is installed, else "csv"."""
    return "parquet" if find_spec("pyarrow") else "csv"


@dataclass(frozen=True)
class Parts:
    """The parts of a table, one per shard: a shard is done if its part is there.

    Attributes:
        folder: Where they are.
        columns: Of the table.
        format: "parquet" or "csv".

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     parts = Parts(folder, ("file", "decision", "error"), "csv")
        ...     parts.write(1, [{"file": "a.jpg", "decision": "safe", "error": None}])
        ...     parts.missing(3), list(parts.rows(1))
        ([0, 2], [{'file': 'a.jpg', 'decision': 'safe', 'error': None}])
    """

    folder: str
    columns: tuple[str, ...]
    format: str

    def path(self, number: int) -> Path:
        """Name the part of a shard."""
        return Path(self.folder) / f"part-{number:05d}.{self.format}"

    def missing(self, count: int) -> list[int]:
        """List the shards, of so many, that are not done."""
        return [number for number in range(count) if not self.path(number).exists()]

    def write(self, number: int, rows: Iterable[Row]) -> None:
        """Write the part of a shard, as a whole and down to the disk."""
        with written_whole(self.path(number), flush=True) as partial, ExitStack() as stack:
            write = stack.enter_context(_Writer(partial, self.columns, self.format))
            write(list(rows))

    def rows(self, number: int) -> Iterator[Row]:
        """Read the part of a shard."""
        if self.format == "parquet":
            _, pq = require_pyarrow("these parts")
            with pq.ParquetFile(self.path(number)) as file:
                for batch in file.iter_batches(batch_size=4096):
                    yield from batch.to_pylist()
            return
        with self.path(number).open(newline="", encoding="utf-8") as file:
            yield from map(_parsed, csv.DictReader(file))

    def join(self, path: Path, count: int) -> None:
        """Write so many Parquet parts as one file, as a whole or not at all."""
        _, pq = require_pyarrow("Parquet files")
        with written_whole(path) as partial, ExitStack() as stack:
            writer = None
            for number in range(count):
                with pq.ParquetFile(self.path(number)) as part:
                    if writer is None:
                        writer = stack.enter_context(pq.ParquetWriter(partial, part.schema_arrow, compression="zstd"))
                    for batch in part.iter_batches(batch_size=2**16):
                        writer.write_batch(batch)


def write_table(path: Path, column_names: Sequence[str], parts: Iterable[Sequence[Row]]) -> None:
    """Write rows, block by block, as one file of the format that its name says, as a whole or not at all."""
    with written_whole(path) as partial, _Writer(partial, column_names, path.suffix[1:]) as write:
        for rows in parts:
            write(rows)


class _Writer:
    """Writes blocks of rows to a file."""

    def __init__(self, path: Path, column_names: Sequence[str], format: str) -> None:
        self._columns, self._format = column_names, format
        self._stack = ExitStack()
        if format == "csv":
            file = self._stack.enter_context(path.open("w", newline="", encoding="utf-8"))
            self._csv = csv.writer(file, lineterminator="\n")
            self._csv.writerow(column_names)
            return
        self._pa, pq = require_pyarrow("Parquet files")
        kinds = {name: self._pa.string() for name in WORDS} | {"identical": self._pa.bool_()}
        self._schema = self._pa.schema([(name, kinds.get(name, self._pa.float64())) for name in column_names])
        self._parquet = self._stack.enter_context(pq.ParquetWriter(path, self._schema, compression="zstd"))

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def __call__(self, rows: Sequence[Row]) -> None:
        if self._format == "csv":
            self._csv.writerows([_shown(row[name]) for name in self._columns] for row in rows)
        elif rows:
            self._parquet.write_table(self._pa.Table.from_pylist(list(rows), schema=self._schema))


def _shown(value: Any) -> Any:
    return {None: "", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else value


def _parsed(row: Mapping[str, str]) -> Row:
    found: Row = {}
    for name, text in row.items():
        if text == "":
            found[name] = None
        elif name in WORDS:
            found[name] = text
        else:
            found[name] = text == "true" if name == "identical" else float(text)
    return found
