"""Which rows of a database belong to a query: checked, and as the revisited Oxford and Paris sets come with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rclip_metric.json_files import ANYTHING, NATURAL, NUMBER, TEXT, Checker, Kind, Schema, listed, or_null, read_json
from rclip_metric.train.data.plain_pickle import read_plain_pickle

LISTS = ("easy", "hard", "junk")
_BOX: Kind = (
    "a box of left, top, right and bottom in pixels",
    lambda value: isinstance(value, list) and len(value) == 4 and all(map(NUMBER[1], value))
    and value[0] < value[2] and value[1] < value[3],
)  # fmt: skip
_SCHEMA: Schema = {
    "imlist": listed(TEXT),
    "qimlist": listed(TEXT),
    "gnd": [{**dict.fromkeys(LISTS, listed(NATURAL)), "bbx": or_null(_BOX), "*": ANYTHING}],
    "*": ANYTHING,
}


def checked_truth(truth: Mapping[str, Any], rows: int, where: str) -> dict[str, np.ndarray]:
    """Return the lists of a query's ground truth as int64 arrays.

    Args:
        truth: with at least one of `LISTS`.
        rows: of the database.
        where: what it is, as the subject of a sentence.

    Raises:
        ValueError: if it is something else, or names a row that is not there, or one twice.
    """
    if not isinstance(truth, Mapping) or not any(name in truth for name in LISTS):
        known = ", ".join(map(str, truth)) if isinstance(truth, Mapping) else type(truth).__name__
        raise ValueError(f"{where} has none of {', '.join(LISTS)}: expected lists of rows, got {known or 'nothing'}")
    found = {name: _listed(truth.get(name, ()), f"{where}, {name},") for name in LISTS}
    everything = np.concatenate(list(found.values()))
    if len(everything) and not 0 <= everything.min() <= everything.max() < rows:
        wrong = next(int(row) for row in everything if not 0 <= row < rows)
        raise ValueError(f"{where} names row {wrong}, and the database has rows 0 to {rows - 1}")
    distinct, counts = np.unique(everything, return_counts=True)
    if len(distinct) < len(everything):
        raise ValueError(f"{where} names row {int(distinct[counts > 1][0])} twice: each is easy, hard or junk, or none")
    return found


def _listed(values: Any, where: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if not array.size:
        return np.zeros(0, np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{where} must be a list of rows, integers, and holds {array.dtype}")
    return array.astype(np.int64).ravel()


def read_ground_truth(path: Path) -> dict[str, Any]:
    """Read the ground truth of a landmark set, `gnd_roxford5k.pkl`, or the JSON that it was converted to.

    Args:
        path: a pickle (`.pkl`), which is read as `read_plain_pickle` does, or JSON.

    Returns:
        JSON: "imlist" and "qimlist", names of the images of the database and of the queries, without `.jpg`; and "gnd",
        for each query "easy", "hard" and "junk", rows of "imlist", and "bbx", the part of the query image that counts,
        in pixels, or None.

    Raises:
        ValueError: if it is something else, or refers to a row that is not there.

    Example:
        >>> import pickle, tempfile
        >>> truth = {"easy": np.array([0]), "hard": [], "junk": np.array([1]), "bbx": [136.5, 34.1, 648.5, 955.7]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "gnd_roxford5k.pkl")
        ...     _ = path.write_bytes(pickle.dumps({"imlist": ["a", "b"], "qimlist": ["q"], "gnd": [truth]}))
        ...     read_ground_truth(path)["gnd"]
        [{'easy': [0], 'hard': [], 'junk': [1], 'bbx': [136.5, 34.1, 648.5, 955.7]}]
    """
    if path.suffix == ".pkl":
        try:
            found = _converted(read_plain_pickle(path), str(path))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}: pass gnd_roxford5k.pkl or its like") from None
    else:
        found = read_json(path, _SCHEMA)
    images, queries, truths = (found[name] for name in ("imlist", "qimlist", "gnd"))
    if not truths or len(queries) != len(truths):
        raise ValueError(f"{path} names {len(queries)} queries and has the ground truth of {len(truths)}")
    for names in (images, queries):
        if len(set(names)) < len(names):
            raise ValueError(f"{path} names {next(name for name in names if names.count(name) > 1)!r} twice")
    for query, truth in zip(queries, truths, strict=True):
        checked_truth(truth, len(images), f"{path}: the ground truth of {query!r}")
    return {"imlist": list(images), "qimlist": list(queries), "gnd": [dict(truth) for truth in truths]}


def _converted(value: Any, where: str) -> dict[str, Any]:
    """Turn what a pickle held into JSON, without what is not used."""
    check = Checker(where)
    whole = check.object("", value, ("imlist", "qimlist", "gnd"), value if isinstance(value, Mapping) else ())
    truths = []
    for index, truth in enumerate(check.value("gnd", _list(whole["gnd"]), _A_LIST)):
        field = f"gnd[{index}]"
        given = check.object(field, truth, LISTS, truth if isinstance(truth, Mapping) else ())
        rows = {name: _whole(_list(given[name])) for name in LISTS}
        truths.append({**rows, "bbx": _list(given.get("bbx"))})
    made = {"imlist": _list(whole["imlist"]), "qimlist": _list(whole["qimlist"]), "gnd": truths}
    found: dict[str, Any] = check.matches("", made, _SCHEMA)
    return found


_A_LIST: Kind = ("a list", lambda value: isinstance(value, list))


def _list(value: Any) -> Any:
    """Give a list for a tuple or an array, (K,) or (1, K); anything else as it is."""
    if isinstance(value, np.ndarray):
        return value.ravel().tolist()
    return list(value) if isinstance(value, tuple) else value


def _whole(values: Any) -> Any:
    """Give integers for floats that are whole: an empty array of numpy's, and those of other programs, are floats."""
    if not isinstance(values, list):
        return values
    return [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
