"""An index as a LanceDB table: in a folder, without a server; what is added, replaced or dropped is so at once."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.errors import ImageIndexError, first_line
from rclip_metric.retrieval.storage import LANCE_FOLDER, Row, checked_about

_TABLE = LANCE_FOLDER.removesuffix(".lance")
_BLOCK = 2**16


class LanceTable:
    """The table `images` of the LanceDB database at a path: the columns of `Row`, and `embedding`."""

    def __init__(self, path: Path) -> None:
        """Open an index that exists."""
        self.path = path
        with _explained(path, "is damaged", "build the index again"):
            self._table = _database(path).open_table(_TABLE)

    @classmethod
    def create(cls, path: Path, about: dict[str, Any]) -> LanceTable:
        """Make an empty index."""
        import pyarrow as pa  # type: ignore[import-untyped]

        width = {"float16": pa.float16(), "float32": pa.float32()}[about["dtype"]]
        text, number = pa.string(), pa.int64()
        kinds = {"id": text, "label": text, "path": text, "size": number, "modified": number, "digest": text}
        fields = [pa.field(name, kind) for name, kind in kinds.items()]
        fields.append(pa.field("embedding", pa.list_(width, about["dimension"])))
        schema = pa.schema(fields, metadata={"about": json.dumps(about)})
        _database(path).create_table(_TABLE, schema=schema)
        return cls(path)

    def about(self) -> dict[str, Any]:
        """Return what the index says of itself."""
        try:
            about = json.loads((self._table.schema.metadata or {})[b"about"])
        except (KeyError, ValueError) as error:
            raise ImageIndexError(f"{self.path} is a LanceDB table of something else.") from error
        return checked_about(about, self.path)

    def read(self) -> tuple[list[Row], Tensor]:
        """Return the rows and their embeddings (N, D)."""
        about = self.about()
        with _explained(self.path, "is damaged", "build the index again"):
            self._table.checkout_latest()
            found = self._table.to_arrow()
        columns = [found[name].to_pylist() for name in Row._fields]
        rows = [Row(*values) for values in zip(*columns, strict=True)]
        matrix = torch.empty(len(rows), about["dimension"], dtype=getattr(torch, about["dtype"]))
        start = 0
        for chunk in found["embedding"].chunks:
            values = torch.from_numpy(chunk.flatten().to_numpy(zero_copy_only=False).copy())
            matrix[start : start + len(chunk)] = values.view(len(chunk), -1)
            start += len(chunk)
        return rows, matrix

    def write(self, rows: Sequence[Row], embeddings: Tensor) -> None:
        """Add rows, or replace those that have the same id."""
        import pyarrow as pa

        schema = self._table.schema
        values = pa.array(embeddings.cpu().contiguous().numpy().ravel())
        columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in Row._fields}
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, embeddings.shape[1])
        upsert = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        with _explained(self.path, "cannot be written", "what was added before is there"):
            upsert.execute(pa.table(columns, schema=schema))

    def remove(self, ids: Iterable[str]) -> None:
        """Drop rows."""
        names = list(ids)
        for start in range(0, len(names), _BLOCK):
            quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in names[start : start + _BLOCK])
            with _explained(self.path, "cannot be written", "what was dropped before is gone"):
                self._table.delete(f"id IN ({quoted})")


def _database(path: Path) -> Any:
    import lancedb

    return lancedb.connect(os.fspath(path))


@contextlib.contextmanager
def _explained(path: Path, what: str, then: str) -> Iterator[None]:
    """Turn what LanceDB raises into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise ImageIndexError(f"{path} {what} ({first_line(error)}): {then}.") from error
