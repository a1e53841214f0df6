"""Tables of pairs: which pairs are written, where to and how."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.cli.run import UsageError, check_apart
from rclip_metric.files import written_whole
from rclip_metric.printing import printable, show

if TYPE_CHECKING:
    import numpy as np

    Distances = np.ndarray[Any, np.dtype[np.float32]]
    Write = Callable[[int, Sequence[int], Distances], object]
    """Called with an image, the others (P,) that are written with it, and their distances (P,)."""

FORMATS = ("jsonl", "csv", "npy", "parquet")
_ROW_GROUP = 2**20  # pairs


def add_options(
    parser: argparse.ArgumentParser, positive: Callable[[str], int], distance: Callable[[str], float]
) -> None:
    """Add what says which pairs are written, where to and how."""
    options = parser.add_argument_group("with two folders, or --all-pairs")
    options.add_argument(
        "--format",
        choices=FORMATS,
        help="JSON lines, CSV, Parquet or, of all pairs, a NumPy matrix (N, N) of float32 "
        "(default: as FILE is called, else jsonl)",
    )
    options.add_argument("--csv", action="store_const", const="csv", dest="format", help="the same as --format csv")
    options.add_argument("-o", "--output", metavar="FILE", help="write the pairs to a file, and print the summary")
    options.add_argument("--below", type=distance, metavar="D", help="only pairs that are nearer than that")
    options.add_argument(
        "--top",
        type=positive,
        metavar="K",
        help="of all pairs, for each image the K nearest, nearest first; of two folders the K pairs that "
        "differ most, the largest distance first",
    )
    options.add_argument("--recursive", action="store_true", help="images in folders below as well")


@dataclass(frozen=True)
class Target:
    """Where pairs are written, and how: a file, or the standard output."""

    kind: str
    output: Path | None

    @property
    def is_text_alone(self) -> bool:
        """Whether the standard output is a table that no JSON may follow."""
        return self.kind == "csv" and self.output is None


def target_of(args: argparse.Namespace, read: Sequence[Path], *, matrix: bool) -> Target:
    """Return where to write to.

    Args:
        args: See `add_options`.
        read: Files that are read, of which none is overwritten.
        matrix: Whether there is a distance for all pairs.

    Raises:
        UsageError: What is asked for cannot be written; before anything is computed.
    """
    output = None if args.output is None else Path(args.output)
    named = output.suffix[1:].lower() if output else ""
    kind = args.format or (named if named in FORMATS else "jsonl")
    if kind == "npy" and not matrix:
        raise UsageError("two folders have no matrix: write --format jsonl, csv or parquet, or take --all-pairs")
    if kind in ("npy", "parquet") and output is None:
        raise UsageError(f"--format {kind} is no text: say which file to write, with -o FILE")
    if kind == "npy" and (args.below or args.top):
        raise UsageError("a matrix holds all pairs: --below and --top go with --format jsonl, csv or parquet")
    if kind == "parquet":
        from rclip_metric.filtering.shards import require_pyarrow

        require_pyarrow("Parquet files")
    if output:
        check_apart(output, read)
        check_apart(f"{output}.json", read)
    return Target(kind, output)


@dataclass(frozen=True)
class Table:
    """A table that is being written."""

    target: Target
    write: Write
    put: Callable[[str], object]
    beside: Path | None

    def finish(self, about: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Write what is said of it: as the last line of JSON lines in a file, or beside a table or matrix."""
        if self.target.output and self.target.kind == "jsonl":
            self.put(f"{json.dumps(record)}\n")
        if self.beside:
            self.beside.write_text(f"{json.dumps({**about, **record})}\n", encoding="utf-8")


@contextmanager
def written(target: Target, names: Sequence[str], ending: str = "}") -> Iterator[Table]:
    """Write a table, as a whole or not at all.

    Args:
        target: Where to.
        names: Of the images.
        ending: How each of the JSON lines ends.
    """
    with ExitStack() as stack:
        partial = beside = None
        if target.output:
            partial = stack.enter_context(written_whole(target.output))
            if target.kind != "jsonl":  # what is said of it is in place first
                beside = stack.enter_context(written_whole(Path(f"{target.output}.json")))
        put: Callable[[str], object] = show
        if partial and target.kind in ("jsonl", "csv"):
            put = stack.enter_context(partial.open("w", encoding="utf-8", newline="")).write
        write = stack.enter_context(_writer(target.kind, names, put, partial, ending))
        yield Table(target, write, put, beside)


@contextmanager
def _writer(
    kind: str, names: Sequence[str], put: Callable[[str], object], path: Path | None, ending: str
) -> Iterator[Write]:
    """Yield what writes a row in a format: text is put, the rest goes to a file."""
    if kind == "jsonl":
        quoted = [json.dumps(name) for name in names]
        yield _text(
            put, [f'{{"a": {name}, "b": ' for name in quoted], [f'{name}, "distance": ' for name in quoted], ending
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
