"""A board as the tables and the page read it: what is missing, null or no finite number is None or empty."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from rclip_metric.train.benchmark.page.words import ball_name
from rclip_metric.train.evaluation.results.labels import PEOPLE

JsonObject = Mapping[str, Any]
SHARE = "share for shape, %"
OWN = ("ours", "yours")  # kinds that are marked; what is left are baselines
COLOURS, SHAPES = 7, 5  # of the style sheet and of the charts: 35 looks that differ
Part = TypeVar("Part")


class Found(dict[str, Any]):
    """An object of JSON, in which whatever it does not say is None."""

    def __missing__(self, key: str) -> None:
        """Say nothing."""


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


class Board:
    """What `board.py` wrote, with the data sets and threats that only results name, and what every entry is called.

    A data set has a `label`, its `judges` and whether it is `judged`: where shape and texture are in conflict, no
    option is right. A threat has a `ball`, as HTML. A metric has a `label` and a `look`.
    """

    def __init__(self, board: JsonObject) -> None:
        """Read the board, which stays as it is."""
        said = json.loads(json.dumps(board), object_hook=Found, parse_constant=lambda name: None)
        self.title, self.made, self.command, self.cores = (said[key] for key in ("title", "made", "command", "cores"))
        self.settings, self.versions, self.device = (said[key] or Found() for key in ("settings", "versions", "device"))
        names = {"data": "id", "threats": "id", "metrics": "id", "examples": "key", "paper": "label"}
        parts = [[Found({name: "?"} | entry) for entry in said[key] or ()] for key, name in names.items()]
        self.data, self.threats, self.metrics, self.examples, self.paper = parts
        for n, metric in enumerate(self.metrics):
            for key in ("results", "sweep", "direct", "timing"):
                metric[key] = {name: found for name, found in (metric[key] or {}).items() if found}
            metric |= {"label": str(metric["label"] or metric["id"]), "look": Look(n, metric["kind"] in OWN)}
        self.searches = {task: list(said[task] or ()) for task in ("retrieval", "filter")}
        results = [result for metric in self.metrics for result in metric["results"].values()]
        for result in results:
            result |= {key: result[key] or {} for key in ("robust", "paper", "certified")}
            # A board of before there was smoothing has none.
            result["smoothed"] = [found for found in result["smoothed"] or () if found and found["sigma"] is not None]
        measured = [metric[part] for metric in self.metrics for part in ("results", "sweep")]
        tried = [result["robust"] for result in results] + [metric["direct"] for metric in self.metrics]
        for entries, named in ((self.data, measured), (self.threats, tried)):
            known = {entry["id"] for entry in entries}
            entries += [Found(id=name) for name in dict.fromkeys(chain(*named)) if name not in known]
        for data in self.data:
            data |= {"label": str(data["label"] or data["id"]), "judges": str(data["judges"] or PEOPLE)}
            data["judged"] = data["task"] != "cue-conflict"
        for threat in self.threats:
            threat["ball"] = ball_name(threat)

    def sets(self) -> list[Found]:
        """List the data sets that any metric was measured on, all of them if there are no numbers yet."""
        return [data for data in self.data if any(data["id"] in m["results"] for m in self.metrics)] or self.data

    def tried(self, data: JsonObject) -> list[Found]:
        """List the threats that any metric was measured under on a data set."""
        return [threat for threat in self.threats if any(score(metric, data, threat) for metric in self.metrics)]

    def ranked(self, data: JsonObject | None = None) -> list[Found]:
        """Rank the metrics by robustness under the first threat, then clean; by default on the first data set."""
        data = data or next(iter(self.sets()), Found())
        first = [*self.tried(data)[:1], None]

        def rank(metric: JsonObject) -> tuple[Any, ...]:
            scores = [score(metric, data, threat) for threat in first]
            return (*(-found["accuracy"] if found else 1.0 for found in scores), metric["label"])

        return sorted(self.metrics, key=rank)

    def kinds(self) -> dict[str, int]:
        """Count the metrics that are ours, yours, and others."""
        kinds = [metric["kind"] if metric["kind"] in OWN else "others" for metric in self.metrics]
        return {kind: kinds.count(kind) for kind in (*OWN, "others") if kind in kinds}

    def holds(self) -> dict[str, bool]:
        """Say of each part of a benchmark whether there is any of it."""
        return {
            "attacks": bool(self.threats),
            "certified accuracy": any(found["certified"] for m in self.metrics for found in m["results"].values()),
            "smoothed accuracy": any(found["smoothed"] for m in self.metrics for found in m["results"].values()),
            "speed and memory": any(metric["timing"] for metric in self.metrics),
            "accuracy against the radius": any(metric["sweep"] for metric in self.metrics),
            "direct attacks": any(metric["direct"] for metric in self.metrics),
            "example triplets": bool(self.examples),
        }

    def per_set(self, draw: Callable[[Found], Part]) -> list[tuple[str | None, Part]]:
        """Draw each data set, under its name where there are several; empty where nothing is drawn of any."""
        sets = self.sets() or [Found(id=None, label="no data yet", judged=True)]
        parts = [draw(data) for data in sets]
        names = [data["label"] for data in sets] if len(sets) > 1 else [None]
        return list(zip(names, parts, strict=True)) if any(parts) else []


def at(found: Any, *keys: str) -> Any:
    """Find what is within objects, one in another; None where any of them is missing."""
    for key in keys:
        found = (found or {}).get(key)
    return found


def score(metric: JsonObject, data: JsonObject, threat: JsonObject | None = None) -> Found | None:
    """Find the summary of a metric on a data set, clean or under a threat; None where it was not measured."""
    result = metric["results"].get(data["id"])
    found: Found | None = at(result, "clean") if threat is None else at(result, "robust", threat["id"])
    return found if found and found["accuracy"] is not None else None


def certified(metric: JsonObject, data: JsonObject) -> list[Found]:
    """List what is certified of a metric on a data set, by rising radius."""
    return _points(at(metric["results"], data["id"], "certified"))


def smoothed(metric: JsonObject, data: JsonObject) -> list[Found]:
    """List what is certified of a metric under noise on a data set, by rising sigma, each with its `points`."""
    found = at(metric["results"], data["id"], "smoothed") or ()
    return [Found(one | {"points": _points(one)}) for one in sorted(found, key=lambda one: one["sigma"])]


def _points(found: Found | None) -> list[Found]:
    """List certified accuracies that are numbers, by rising radius."""
    points = (point for point in at(found, "points") or () if point["accuracy"] is not None)
    return sorted((point for point in points if point["eps"] is not None), key=lambda point: point["eps"])


def numbers(values: Any) -> list[float]:
    """Keep the numbers of a list."""
    return [number for number in values or () if number is not None]


def rows(table: Any, width: int) -> list[list[float]]:
    """Keep the rows of numbers, rising."""
    return sorted(row for row in map(numbers, table or ()) if len(row) == width)


def compared(metrics: Iterable[JsonObject], where: str) -> list[str]:
    """Say what the ratios beside pairs per second are of, a sentence for each metric that others are compared with."""
    cells = (cell for metric in metrics for kind in metric["timing"].values() for cell in kind.values())
    ratios = [cell["ratio"] for cell in cells if isinstance(cell, dict) and cell["ratio"]]
    words = {"wall": "how long a pair takes", "processor": "the processor time that a pair takes, of all threads"}
    labels = {metric["id"]: metric["label"] for metric in metrics}
    told = dict.fromkeys((ratio["of"], ratio["reference"]) for ratio in ratios)
    return [
        f"{where}: {words.get(of, of)}, over that of {labels.get(reference, reference)} in the same type of number."
        for of, reference in told
    ]


def interval(summary: JsonObject) -> tuple[float, float] | None:
    """Read the bounds of a summary: of an accuracy, or of a number of pairs per second."""
    bounds = numbers(summary["interval_95"] or (summary["low"], summary["high"]))
    return (bounds[0], bounds[1]) if len(bounds) == 2 else None
