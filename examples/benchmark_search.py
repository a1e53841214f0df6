"""How long exact search takes, beside numpy, FAISS and LanceDB, and beside reading the memory once.

    python examples/benchmark_search.py --rows 1000000 --out results/

All search the same unit embeddings for the same batch of queries, in turn; FAISS and LanceDB are left out where they
are not installed. The embeddings vary in 64 directions and little in the others: like those of photographs, and unlike
plain noise, they have neighbours that an approximate search can find. `same_rows` is the recall. Times are medians, in
processor time of all threads and in wall time; they are compared by ratios, which the load of a machine moves less.
What takes longer than half a minute is timed once.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rclip_metric.distance import normalize
from rclip_metric.retrieval import Row, nearest
from rclip_metric.train.benchmark.report import Report
from rclip_metric.train.benchmark.turns import take_turns, timed

_LONG = 30.0
Search = Callable[[], np.ndarray[Any, Any]]


def draw(rows: int, dimension: int, basis: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw unit embeddings (rows, D) about the space that a basis (64, D) spans."""
    inside = torch.randn(rows, len(basis), generator=generator) @ basis
    return normalize(inside + 0.7 * torch.randn(rows, dimension, generator=generator) / dimension**0.5)


def contestants(embeddings: torch.Tensor, queries: torch.Tensor, k: int, folder: Path) -> dict[str, Search]:
    """Return what searches, each giving rows (Q, k), and what only reads."""
    values = embeddings.numpy()
    found: dict[str, Search] = {
        "read once": lambda: np.asarray(np.frombuffer(values.data, dtype=np.int64).sum()),
        "ours": lambda: nearest(queries, embeddings, k)[1].numpy(),
    }

    def by_numpy() -> np.ndarray[Any, Any]:
        scores = queries.numpy() @ values.astype(np.float32).T
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    found["numpy"] = by_numpy
    if find_spec("faiss"):
        faiss: Any = import_module("faiss")
        halves = values.dtype == np.float16
        product, kind = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_fp16
        size = values.shape[1]
        flat: Any = faiss.IndexScalarQuantizer(size, kind, product) if halves else faiss.IndexFlatIP(size)
        for part in embeddings.split(2**16):
            flat.add(part.float().numpy())
        found["FAISS, exact"] = lambda: flat.search(queries.numpy(), k)[1]
    if find_spec("lancedb"):
        import pyarrow as pa  # type: ignore[import-untyped]

        from rclip_metric.retrieval.lance import LanceTable

        about = {"dimension": values.shape[1], "dtype": str(embeddings.dtype).removeprefix("torch.")}
        table = LanceTable.create(folder, about)
        lance: Any = table._table
        for start in range(0, len(values), 2**16):  # added as they are: `write` would look for each id
            part = values[start : start + 2**16]
            columns: dict[str, Any] = {name: pa.nulls(len(part)) for name in Row._fields}
            columns["id"] = [str(row) for row in range(start, start + len(part))]
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), values.shape[1])
            lance.add(pa.table({name: columns[name] for name in lance.schema.names}).cast(lance.schema))

        def by_lance() -> np.ndarray[Any, Any]:
            rows = []
            for query in queries.numpy():
                looked = lance.search(query).distance_type("dot").bypass_vector_index()
                rows.append(looked.select(["id", "_distance"]).limit(k).to_arrow()["id"].to_pylist())
            return np.array(rows, dtype=np.int64)

        def on_disk(probes: int | None) -> np.ndarray[Any, Any]:
            rows, _ = table.nearest(queries, k, probes=probes)
            return np.array([[row.id for row in found] for found in rows], dtype=np.int64)

        _, spent, parts = timed(table.prepare)
        print(f"prepared for approximate search in {spent:.0f} s processor", flush=True)
        found["LanceDB, flat scan"] = by_lance
        found["ours, on disk"] = lambda: on_disk(None)
        for share in (16, 4):
            found[f"ours, on disk, a {'sixteenth' if share == 16 else 'quarter'} of the parts"] = partial(
                on_disk, max(1, parts // share)
            )
    return found


def _shared(rows: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> float:
    """Return which part of the rows that were to be found was."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]))


def main() -> dict[str, Any]:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=640)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a .json, or a folder")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, args.dtype)
    embeddings = torch.empty(args.rows, args.dimension, dtype=dtype)
    basis = torch.randn(64, args.dimension, generator=generator) / args.dimension**0.5 / 8
    for part in embeddings.split(2**14):
        part.copy_(draw(len(part), args.dimension, basis, generator))
    queries = draw(args.queries, args.dimension, basis, generator).to(dtype).float()
    with tempfile.TemporaryDirectory() as folder:
        searches = contestants(embeddings, queries, args.k, Path(folder))
        turns = take_turns(
            searches,
            args.repeats,
            long=_LONG,
            told=lambda name, seconds: print(f"{name:30} {seconds:8.3f} s wall", flush=True),
        )
    exact = turns.results["ours"]
    measured = {
        name: {
            "processor_s": statistics.median(times.processor),
            "wall_s": statistics.median(times.wall),
            "repeats": len(times.wall),
            "same_rows": None if name == "read once" else _shared(turns.results[name], exact),
        }
        for name, times in turns.times.items()
    }
    for entry in measured.values():
        for kind in ("processor_s", "wall_s"):
            entry[f"{kind}_over_reading"] = entry[kind] / measured["read once"][kind]  # type: ignore[operator]
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    report = Report("benchmark_search_million" if args.rows >= 1_000_000 else "benchmark_search", args.out, settings)
    for name, entry in measured.items():
        print(f"{name:20} {entry['processor_s']:8.3f} s processor {entry['wall_s']:8.3f} s wall")
        report.add(name, entry)
    return report.record


if __name__ == "__main__":
    main()
