"""What a result record and the columns of its samples hold, checked when they are read back."""

from __future__ import annotations

from typing import Any

from rclip_metric.json_files import (
    ANYTHING,
    COUNT,
    LINE,
    NATURAL,
    NUMBER,
    PERCENT,
    TEXT,
    Checker,
    Kind,
    OrNull,
    Schema,
    is_number,
    listed,
    one_of,
    or_null,
)
from rclip_metric.train.attacks.norms import NORMS

_BOUNDS: Kind = (
    "the two bounds of an interval, in percent",
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(PERCENT[1], value)),
)
_SUMMARY: dict[str, Any] = {"accuracy": PERCENT, "interval_95": _BOUNDS, "samples": COUNT, "*": ANYTHING}
_PARTS: Schema = {"*": {"clean": _SUMMARY, "robust": OrNull(_SUMMARY)}}  # by name of the part
_LANDED: Schema = {"*": {"*": _SUMMARY}}  # the share of each direction in each role
_MODEL: Schema = {
    "name": LINE,
    "revision": or_null(LINE),
    "resize": or_null(LINE),
    "reading?": LINE,
    "preprocessing?": OrNull({"crop?": NATURAL, "*": ANYTHING}),
    "*": ANYTHING,
}
_PLAIN: Kind = (
    "a number, a text or a flag",
    lambda value: value is None or isinstance(value, str | bool) or is_number(value),
)
_UNTOUCHED: Schema = {"attack": one_of(("none",)), "*": ANYTHING}
_THREAT: Schema = {
    "attack": LINE,
    "norm": one_of(NORMS),
    "eps": ("a radius", lambda value: is_number(value) and 0 <= value <= 1e6),
    "eps_text": LINE,
    "steps": or_null(COUNT),
    "restarts": or_null(COUNT),
    "loss": or_null(LINE),
    "source?": OrNull(_MODEL),
    "*": _PLAIN,
}
_RECORD: Schema = {
    "schema": COUNT,
    "task": LINE,
    "model": _MODEL,
    "data": {
        "name": LINE,
        **dict.fromkeys(("split", "protocol", "published?", "digest?"), or_null(LINE)),
        "samples": COUNT,
        "unreadable": [TEXT],
        "*": ANYTHING,
    },
    "threat": ANYTHING,  # `check_record` tells the two kinds apart
    "clean": {"ties": NATURAL, **_SUMMARY},
    "robust": OrNull(_SUMMARY),
    "splits": _PARTS,
    "by_kind?": _PARTS,
    "landed?": {"clean": _LANDED, "attacked": OrNull(_LANDED)},
    "smoothing?": {"abstained": NATURAL, "right": OrNull(_SUMMARY), "draws": NATURAL, "*": ANYTHING},
    "landings?": {"letters": {"*": LINE}, "clean": TEXT, "attacked": or_null(TEXT)},
    "human": OrNull({"accuracy": PERCENT, "interval_95?": or_null(_BOUNDS), "samples?": COUNT, "ceiling?": PERCENT,
                      "*": ANYTHING}),
    "largest_violation?": or_null(NUMBER),
    "masking?": {"zero_gradients": NATURAL, "nonfinite_gradients": NATURAL},
    "warnings": [TEXT],
    "settings": {**dict.fromkeys(("limit?", "seed?"), or_null(NATURAL)),
                 **dict.fromkeys(("precision?", "resample?"), or_null(LINE)), "*": ANYTHING},
    "versions?": {"*": or_null(LINE)},
    "device?": OrNull({"type?": LINE, "name?": or_null(LINE), "*": ANYTHING}),
    "seconds?": NUMBER,
    **dict.fromkeys(("passes?", "processes?"), or_null(NATURAL)),
    "images_per_second?": or_null(NUMBER),
    "samples": {"count": COUNT, "data": TEXT, "*": ANYTHING},
    "*": ANYTHING,
}  # fmt: skip

_SCORE: Kind = ("a score from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
COLUMNS: Schema = {
    **dict.fromkeys(("key", "split"), listed(TEXT)),
    "tie": listed(one_of((0, 1))),
    "clean": listed(_SCORE),
    "margin": listed(NUMBER),
    "robust": listed(or_null(_SCORE)),
    "robust_margin": listed(or_null(NUMBER)),
}


def check_record(record: Any, where: str) -> dict[str, Any]:
    """Return a record as JSON gave it, if it is one in all that tables, plots and model cards read.

    Raises:
        ManifestError: names `where` and the field.
    """
    check = Checker(where)
    found: dict[str, Any] = check.matches("", record, _RECORD)
    attacked = check.object("threat", found["threat"]).get("attack") != "none"
    check.matches("threat", found["threat"], _THREAT if attacked else _UNTOUCHED)
    return found
