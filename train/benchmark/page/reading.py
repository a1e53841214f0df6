"""What there is of a board: results, intervals, the order of the metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

JsonObject = Mapping[str, Any]
SHARE = "share for shape, %"
OWN = ("ours", "yours")  # kinds that are marked; what is left are baselines
COLOURS, SHAPES = 7, 5  # of the style sheet and of the charts: 35 looks that differ
_LISTS = {"data": "id", "threats": "id", "metrics": "id", "examples": "key", "paper": "label"}
Part = TypeVar("Part")


@dataclass(frozen=True)
class Look:
    """How a metric is drawn on the whole page: a colour, a shape, filled where it is not a baseline."""

    index: int
    filled: bool = True

    @property
    def style(self) -> str:
        """Classes of the style sheet."""
        return f"k{self.index % COLOURS}" + ("" if self.filled else " o")

    @property
    def shape(self) -> int:
        """The number of its shape."""
        return self.index % SHAPES


def whole_board(board: JsonObject) -> dict[str, Any]:
    """Complete a board: empty parts for missing ones, data sets and threats that only results name, and looks."""
    whole: dict[str, Any] = dict.fromkeys(("title", "made", "command", "cores"))
    whole |= {key: board.get(key) or {} for key in ("settings", "versions", "device")}
    whole |= {key: [{name: "?", **entry} for entry in board.get(key) or ()] for key, name in _LISTS.items()}
    whole |= {key: board.get(key) for key in ("title", "made", "command", "cores")}
    for n, metric in enumerate(whole["metrics"]):
        for key in ("results", "sweep", "direct", "timing"):
            metric[key] = {name: found for name, found in (metric.get(key) or {}).items() if found}
        metric |= {key: metric.get(key) for key in ("failures", "image_size", "kind")}
        metric["label"] = str(metric.get("label") or metric["id"])
        metric["look"] = Look(n, metric.get("kind") in OWN)
    results = [result for metric in whole["metrics"] for result in metric["results"].values()]
    for key, lists in (
        ("data", [metric[part] for metric in whole["metrics"] for part in ("results", "sweep")]),
        ("threats", [result.get("robust") or () for result in results] + [m["direct"] for m in whole["metrics"]]),
    ):
        names = dict.fromkeys(name for names in lists for name in names)
        whole[key] += [{"id": name} for name in names if name not in {entry["id"] for entry in whole[key]}]
    return whole


def result_of(metric: JsonObject, data: JsonObject) -> JsonObject:
    """Find what a metric reached on a data set; empty where it was not measured."""
    return metric["results"].get(data["id"]) or {}


def score_of(metric: JsonObject, data: JsonObject, threat: JsonObject | None = None) -> JsonObject | None:
    """Find the summary of a metric on a data set, clean or under a threat; None where it was not measured."""
    result = result_of(metric, data)
    found = result.get("clean") if threat is None else (result.get("robust") or {}).get(threat["id"])
    return found if found and known(found.get("accuracy")) is not None else None


def certified_points(metric: JsonObject, data: JsonObject) -> list[JsonObject]:
    """List the certified points of a metric on a data set, rising."""
    points = (result_of(metric, data).get("certified") or {}).get("points") or ()
    return sorted((point for point in points if known(point.get("accuracy")) is not None), key=lambda p: p["eps"])


def measured_sets(board: JsonObject) -> list[JsonObject]:
    """List the data sets that any metric was measured on, all of them if there are no numbers yet."""
    return [data for data in board["data"] if any(result_of(m, data) for m in board["metrics"])] or board["data"]


def data_name(data: JsonObject) -> str:
    """Name a data set by its label."""
    return str(data.get("label") or data["id"])


def is_judged(data: JsonObject) -> bool:
    """Say whether anybody said which option is right: where shape and texture are in conflict, neither is."""
    return data.get("task") != "cue-conflict"


def tried_threats(board: JsonObject, data: JsonObject) -> list[JsonObject]:
    """List the threats that any metric was measured under on a data set."""
    return [t for t in board["threats"] if any(score_of(metric, data, t) for metric in board["metrics"])]


def ranked(board: JsonObject, data: JsonObject | None = None) -> list[JsonObject]:
    """Rank the metrics by robustness under the first threat, then clean; by default on the first data set."""
    data = data or next(iter(measured_sets(board)), {"id": None})
    first = [*tried_threats(board, data)[:1], None]

    def rank(metric: JsonObject) -> tuple[Any, ...]:
        scores = [score_of(metric, data, threat) for threat in first]
        return (*(-score["accuracy"] if score else 1.0 for score in scores), metric["label"])

    return sorted(board["metrics"], key=rank)


def known(value: Any) -> float | None:
    """Keep a finite number; None for anything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def numbers_of(values: Any) -> list[float]:
    """Keep the finite numbers of a list."""
    return [number for number in map(known, values or ()) if number is not None]


def rows_of(table: Any, width: int) -> list[tuple[float, ...]]:
    """Keep the rows of finite numbers, rising."""
    return sorted(numbers for row in table or () if len(numbers := tuple(numbers_of(row))) == width)


def interval_of(summary: JsonObject) -> tuple[float, float] | None:
    """Read the bounds of a summary: of an accuracy, or of a number of pairs per second."""
    bounds = numbers_of(summary.get("interval_95") or (summary.get("low"), summary.get("high")))
    return (bounds[0], bounds[1]) if len(bounds) == 2 else None


def per_set(board: JsonObject, draw: Callable[[JsonObject], Part]) -> list[tuple[str | None, Part]]:
    """Draw each data set, under its name where there are several; empty where nothing is drawn of any."""
    sets = measured_sets(board) or [{"id": None, "label": "no data yet"}]
    parts = [draw(data) for data in sets]
    names = [data_name(data) for data in sets] if len(sets) > 1 else [None]
    return list(zip(names, parts, strict=True)) if any(parts) else []


def timed(board: JsonObject) -> list[tuple[str, str]]:
    """List types of number and batch sizes that any metric was timed with, float32 first."""
    times = [(metric.get("timing") or {}) for metric in board["metrics"]]
    found = {(kind, size) for time in times for kind, cells in time.items() for size in cells or () if size.isdecimal()}
    return sorted(found, key=lambda cell: (cell[0] != "float32", cell[0], int(cell[1])))
