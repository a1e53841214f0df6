"""`score --all-pairs`: the distances of all images of a folder, as lines, a table or a matrix."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.cli.run import Run, UsageError, check_apart
from rclip_metric.files import written_whole
from rclip_metric.printing import printable, show

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Distances = np.ndarray[Any, np.dtype[np.float32]]
    Row = tuple[int, Sequence[int], Distances]
    """Of one image the others (P,) that are written with it, and their distances (P,); of a matrix, all of them."""
    Write = Callable[[int, Sequence[int], Distances], object]

FORMATS = ("jsonl", "csv", "npy", "parquet")
_ROW_GROUP = 2**20  # pairs


def add_options(
    parser: argparse.ArgumentParser, positive: Callable[[str], int], distance: Callable[[str], float]
) -> None:
    """Add what says which pairs are written, where to and how."""
    options = parser.add_argument_group("with --all-pairs")
    options.add_argument(
        "--format",
        choices=FORMATS,
        help="JSON lines, CSV, a NumPy matrix (N, N) of float32, or Parquet (default: as FILE is called, else jsonl)",
    )
    options.add_argument("--below", type=distance, metavar="D", help="only pairs that are nearer than that")
    options.add_argument("--top", type=positive, metavar="K", help="of each image the K nearest, nearest first")
    options.add_argument("-o", "--output", metavar="FILE", help="write the pairs to a file, and print the summary")


def score_all_pairs(args: argparse.Namespace, folder: Path) -> int:
    """Write the pairs of a folder's images; return the exit code."""
    from rclip_metric.images.reading import list_images
    from rclip_metric.retrieval import Summary

    files = list_images(folder)
    if len(files) < 2:
        raise UsageError(f"{folder} has {len(files)} images, expected two or more")
    output = None if args.output is None else Path(args.output)
    named = output.suffix[1:].lower() if output else ""
    kind = args.format or (named if named in FORMATS else "jsonl")
    _check(args, kind, output, files)
    run = Run(args)
    left_out = run.remark_left_out(folder)
    names, units = _embedded(run, files)
    chosen = {"below": args.below, "top": args.top}
    about = {"folder": str(folder), **chosen, **run.identity, "settings": run.settings}
    summary = Summary()
    with ExitStack() as stack:
        partial = beside = None
        if output:
            partial = stack.enter_context(written_whole(output))
            if kind != "jsonl":  # what is said of it is in place first
                beside = stack.enter_context(written_whole(Path(f"{output}.json")))
        put: Callable[[str], object] = show
        if partial and kind in ("jsonl", "csv"):
            put = stack.enter_context(partial.open("w", encoding="utf-8", newline="")).write
        if kind == "jsonl":
            put(f"{json.dumps({'header': {**about, 'images': len(names)}})}\n")
        with _writer(kind, names, put, partial) as write:
            for i, others, distances in _rows(args, units, kind):
                write(i, others, distances)
                after = slice(i + 1, None) if kind == "npy" else slice(None)  # a matrix has each pair twice
                summary.add_row(names[i], [names[j] for j in others[after]], distances[after])
        record = run.record(summary, images=len(names), left_out=left_out)
        if partial and kind == "jsonl":
            put(f"{json.dumps(record)}\n")
        if beside:
            beside.write_text(f"{json.dumps({**about, 'images': names, **record})}\n", encoding="utf-8")
    return run.finish(summary, None if kind == "csv" and not output else record)


def _check(args: argparse.Namespace, kind: str, output: Path | None, files: Sequence[Path]) -> None:
    """Raise, before anything is computed, where what is asked for cannot be written."""
    if kind in ("npy", "parquet") and output is None:
        raise UsageError(f"--format {kind} is no text: say which file to write, with -o FILE")
    if kind == "npy" and (args.below or args.top):
        raise UsageError("a matrix holds all pairs: --below and --top go with --format jsonl, csv or parquet")
    if kind == "parquet":
        from rclip_metric.filtering.shards import require_pyarrow

        require_pyarrow("Parquet files")
    if output:
        check_apart(output, files)
        check_apart(f"{output}.json", files)


def _embedded(run: Run, files: Sequence[Path]) -> tuple[list[str], Tensor]:
    """Return the names of the images that can be read, and their embeddings (N, D)."""
    import torch

    names, units = [], []
    with run.embeddings(files) as embeddings:
        for file in files:
            if (unit := embeddings[file]) is not None:
                names.append(file.name)
                units.append(unit)
    return names, torch.stack(units) if units else torch.empty(0, 1)


def _rows(args: argparse.Namespace, units: Tensor, kind: str) -> Iterator[Row]:
    from rclip_metric.retrieval import all_pairs, nearest_others, pairs_below

    if args.top:
        for i, others, distances in nearest_others(units, args.top, args.squared):
            near = distances < args.below if args.below else slice(None)  # nearest first
            yield i, others[near].tolist(), distances[near].numpy()
    elif args.below:
        for i, others, distances in pairs_below(units, args.below, args.squared):
            yield i, others.tolist(), distances.numpy()
    else:
        for i, row in all_pairs(units, args.squared, whole=kind == "npy"):
            yield i, range(len(units) - len(row), len(units)), row.numpy()


@contextmanager
def _writer(kind: str, names: Sequence[str], put: Callable[[str], object], path: Path | None) -> Iterator[Write]:
    """Yield what writes a row in a format: text is put, the rest goes to a file."""
    if kind == "jsonl":
        quoted = [json.dumps(name) for name in names]
        yield _text(
            put, [f'{{"a": {name}, "b": ' for name in quoted], [f'{name}, "distance": ' for name in quoted], "}"
        )
    elif kind == "csv":
        put("a,b,distance\n")
        quoted = [_csv(name) for name in names]
        yield _text(put, [f"{name}," for name in quoted], [f"{name}," for name in quoted], "")
    elif kind == "npy":
        import numpy as np

        assert path is not None
        shape = (len(names), len(names))
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            yield lambda i, others, distances: file.write(distances.astype("<f4", copy=False).tobytes())
    else:
        assert path is not None
        with _parquet(names, path) as write:
            yield write


def _text(put: Callable[[str], object], heads: Sequence[str], tails: Sequence[str], end: str) -> Write:
    """Write pairs as lines: fifty million of them are possible (10,000 images), so all of a row are put at once."""
    heads = [head.replace("%", "%%") for head in heads]
    tails = [f"{tail.replace('%', '%%')}%.7g{end}\n" for tail in tails]

    def write(i: int, others: Sequence[int], distances: Distances) -> None:
        if others:
            put((heads[i] + heads[i].join([tails[j] for j in others])) % tuple(distances.tolist()))

    return write


def _csv(name: str) -> str:
    cell = io.StringIO()
    csv.writer(cell, lineterminator="").writerow([printable(name)])
    return cell.getvalue()


@contextmanager
def _parquet(names: Sequence[str], path: Path) -> Iterator[Write]:
    import numpy as np

    from rclip_metric.filtering.shards import require_pyarrow

    pa, pq = require_pyarrow("Parquet files")
    words = pa.array([printable(name) for name in names], pa.string())
    kind = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([("a", kind), ("b", kind), ("distance", pa.float32())])
    waiting: list[tuple[Distances, ...]] = []
    count = 0

    def flush() -> None:
        nonlocal count
        one, other, distances = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
        ends = [pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), words) for places in (one, other)]
        writer.write_batch(pa.record_batch([*ends, pa.array(distances)], schema=schema))
        waiting.clear()
        count = 0

    def write(i: int, others: Sequence[int], distances: Distances) -> None:
        nonlocal count
        waiting.append((np.full(len(others), i), np.asarray(others, dtype=np.int64), distances))
        count += len(others)
        if count >= _ROW_GROUP:
            flush()

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield write
        if waiting:
            flush()
