"""An index as a LanceDB table: in a folder, without a server; what is added, replaced or dropped is so at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.errors import ImageIndexError
from rclip_metric.files import written_whole
from rclip_metric.retrieval.neighbours import nearest
from rclip_metric.retrieval.storage import LANCE_FOLDER, Approximation, Row, checked_about, explained

_TABLE = LANCE_FOLDER.removesuffix(".lance")
_BLOCK = 2**16
_APPROXIMATION = "approximate.json"
"""A file beside the table: what its approximate search finds."""
_PARTITION, _MORE = 2**11, 4
"""Rows of a partition of the approximate index; candidates for each hit."""
_FEWEST = 256


class LanceTable:
    """The table `images` of the LanceDB database at a path: the columns of `Row`, and `embedding`."""

    def __init__(self, path: Path) -> None:
        """Open an index that exists."""
        self.path = path
        with explained(path, "is damaged", "build the index again"):
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
        with explained(self.path, "is damaged", "build the index again"):
            self._table.checkout_latest()
            found = self._table.to_arrow()
        rows = _rows(found)
        matrix = torch.empty(len(rows), about["dimension"], dtype=getattr(torch, about["dtype"]))
        start = 0
        for chunk in found["embedding"].chunks:
            matrix[start : start + len(chunk)] = _matrix(chunk)
            start += len(chunk)
        return rows, matrix

    def rows(self) -> list[Row]:
        """Return the rows."""
        with explained(self.path, "is damaged", "build the index again"):
            self._table.checkout_latest()
            return _rows(self._table.search().select(list(Row._fields)).to_arrow())

    def count(self) -> int:
        """Count the rows."""
        self._table.checkout_latest()
        return int(self._table.count_rows())

    def nearest(self, queries: Tensor, k: int, *, probes: int | None = None) -> tuple[list[list[Row]], Tensor]:
        """Return the nearest rows of queries (Q, D), and squared distances (Q, k): of all, or of so many partitions."""
        with explained(self.path, "is damaged", "build the index again"):
            self._table.checkout_latest()
            if probes is None:
                return self._scan(queries, k)
            found = [self._look_up(query, k, probes) for query in queries]
            return [rows for rows, _ in found], torch.stack([distances for _, distances in found])

    def _scan(self, queries: Tensor, k: int) -> tuple[list[list[Row]], Tensor]:
        best, places = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        rows: dict[int, Row] = {}
        start = 0
        for batch in self._table.search().select([*Row._fields, "embedding"]).to_batches(_BLOCK):
            distances, found = nearest(queries, _matrix(batch["embedding"]), k, squared=True)
            best, order = torch.cat([best, distances], dim=1).sort(dim=1, stable=True)
            places = torch.cat([places, found + start], dim=1).gather(1, order)[:, :k]
            best = best[:, :k]
            new = places[places >= start].unique()
            rows.update(zip(new.tolist(), _rows(batch.take((new - start).numpy())), strict=True))
            start += len(batch)
        return [[rows[place] for place in of_query] for of_query in places.tolist()], best

    def _look_up(self, query: Tensor, k: int, probes: int) -> tuple[list[Row], Tensor]:
        looked_for = self._table.search(query.numpy(), vector_column_name="embedding").distance_type("l2")
        columns = [*Row._fields, "embedding", "_distance"]
        found = looked_for.nprobes(probes).limit(_MORE * k).select(columns).to_arrow()
        if len(found) < k:  # so many are in no few partitions
            rows, distances = self._scan(query[None], k)
            return rows[0], distances[0]
        candidates = torch.cat([_matrix(chunk) for chunk in found["embedding"].chunks])
        [distances], [places] = nearest(query[None], candidates, k, squared=True)
        return _rows(found.take(places.numpy())), distances

    def prepare(self) -> int:
        """Make the approximate index, rows in partitions, as numbers of eight bits; return how many partitions."""
        from lancedb.index import IvfSq

        if (count := self.count()) < _FEWEST:
            raise ImageIndexError(f"an index of {count} images is searched exactly, approximately from {_FEWEST} on.")
        partitions = max(1, count // _PARTITION)
        config = IvfSq(num_partitions=partitions, max_iterations=10)
        with explained(self.path, "cannot be written", "it is searched exactly as before"):
            (self.path / _APPROXIMATION).unlink(missing_ok=True)  # what is said there is of the one before
            self._table.create_index("embedding", config=config)
        return partitions

    def approximation(self) -> Approximation | None:
        """Return what was measured of the approximate index, None where there is none."""
        file = self.path / _APPROXIMATION
        if not file.exists():
            return None
        try:
            return Approximation(**json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ImageIndexError(f"{file} is damaged: prepare the index for approximate search again.") from error

    def keep_approximation(self, measured: Approximation) -> None:
        """Write down what was measured."""
        cannot = explained(self.path, "cannot be written", "it is searched exactly as before")
        with cannot, written_whole(self.path / _APPROXIMATION) as partial:
            partial.write_text(json.dumps(measured._asdict()) + "\n", encoding="utf-8")

    def write(self, rows: Sequence[Row], embeddings: Tensor) -> None:
        """Add rows, or replace those that have the same id."""
        import pyarrow as pa

        schema = self._table.schema
        values = pa.array(embeddings.cpu().contiguous().numpy().ravel())
        columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in Row._fields}
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, embeddings.shape[1])
        upsert = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        with explained(self.path, "cannot be written", "what was added before is there"):
            upsert.execute(pa.table(columns, schema=schema))

    def remove(self, ids: Iterable[str]) -> None:
        """Drop rows."""
        names = list(ids)
        for start in range(0, len(names), _BLOCK):
            quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in names[start : start + _BLOCK])
            with explained(self.path, "cannot be written", "what was dropped before is gone"):
                self._table.delete(f"id IN ({quoted})")


def _rows(found: Any) -> list[Row]:
    columns = [found[name].to_pylist() for name in Row._fields]
    return [Row(*values) for values in zip(*columns, strict=True)]


def _matrix(chunk: Any) -> Tensor:
    """Copy an Arrow array of n embeddings as (n, D)."""
    values = torch.from_numpy(chunk.flatten().to_numpy(zero_copy_only=False).copy())
    return values.view(len(chunk), -1)


def _database(path: Path) -> Any:
    import lancedb

    return lancedb.connect(os.fspath(path))
