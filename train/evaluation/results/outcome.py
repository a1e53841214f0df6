"""What became of every sample of an evaluation, and its compressed form inside a result record."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rclip_metric.json_files import MOST_BYTES, Checker, parse_json
from rclip_metric.train.evaluation.results.schema import COLUMNS

ENCODING = "base64 of zlib of JSON: an object of columns, each a list with one value per sample"


@dataclass(frozen=True)
class Outcome:
    """What became of one sample.

    Attributes:
        key: the sample's own name, unique within the record.
        split: the part of the data it belongs to.
        clean: 1.0 if right, 0.0 if wrong, or a soft score in between.
        tie: neither option was preferred on the clean images.
        margin: of the clean decision, positive where it is right.
        robust: like `clean`, at the worst point found; None for a sample that was not attacked.
        robust_margin: the margin at that point.

    Example:
        >>> Outcome("000012", "test", clean=1.0, tie=False, margin=0.2, robust=0.0, robust_margin=-0.1).robust
        0.0
    """

    key: str
    split: str
    clean: float
    tie: bool
    margin: float
    robust: float | None = None
    robust_margin: float | None = None


def pack(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Compress the outcomes of all samples, numbers to 6 significant digits.

    Three lines of Python read them again, without this package::

        import base64, json, pathlib, zlib
        packed = json.loads(pathlib.Path("result.json").read_text())["samples"]
        columns = json.loads(zlib.decompress(base64.b64decode(packed["data"])))

    `columns["key"][i]`, `columns["clean"][i]` and so on then belong to sample i. The columns are the fields of
    `Outcome`, `tie` as 0 or 1.
    """

    def number(value: float | None) -> float | int | None:
        if value is None:
            return None
        short = float(f"{value:.6g}")
        return int(short) if short == int(short) else short

    columns = {
        "key": [row.key for row in outcomes],
        "split": [row.split for row in outcomes],
        "tie": [int(row.tie) for row in outcomes],
        **{
            name: [number(getattr(row, name)) for row in outcomes]
            for name in ("clean", "margin", "robust", "robust_margin")
        },
    }
    text = json.dumps(columns, separators=(",", ":"), allow_nan=False)
    data = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    return {"encoding": ENCODING, "columns": list(columns), "count": len(outcomes), "data": data}


def unpack(record: Mapping[str, Any]) -> list[Outcome]:
    """Unpack the outcomes of all samples of a record, in its order.

    Raises:
        ValueError: if they cannot be decoded, or are not as many as the record says.

    Example:
        >>> from rclip_metric.train.evaluation.results import Effort
        >>> from rclip_metric.train.evaluation.results.record import record
        >>> rows = [Outcome("1", "a", 1.0, False, 0.2), Outcome("2", "b", 0.0, False, -0.1)]
        >>> about = {"task": "2afc", "model": {"name": "m"}, "data": {"name": "d"}, "threat": {"attack": "none"}}
        >>> [row.clean for row in unpack(record(rows, effort=Effort(1.0), **about))]
        [1.0, 0.0]
    """

    def real(value: float | None) -> float | None:
        return None if value is None else float(value)

    try:
        packed = record["samples"]
        unzip = zlib.decompressobj()
        text = unzip.decompress(base64.b64decode(packed["data"], validate=True), MOST_BYTES)  # a bomb has more
        if not unzip.eof:
            raise ValueError("they are cut short, or larger than any")
        columns = Checker("the samples").matches("", parse_json(text, "their text"), COLUMNS)
        names = ("key", "split", "clean", "tie", "margin", "robust", "robust_margin")
        rows = [
            Outcome(key, split, float(clean), bool(tie), float(margin), real(robust), real(robust_margin))
            for key, split, clean, tie, margin, robust, robust_margin in zip(*map(columns.get, names), strict=True)
        ]
    except (ValueError, TypeError, KeyError, zlib.error) as error:
        raise ValueError(f"the samples of the record cannot be decoded ({error}): run the evaluation again") from error
    if not len(rows) == packed.get("count") == record["data"]["samples"]:
        raise ValueError(f"the record holds {len(rows)} samples and says otherwise: run the evaluation again")
    return rows
