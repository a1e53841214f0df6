"""The columns of a benchmark's tables, in Markdown, CSV and HTML: what each shows of a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from rclip_metric.train.benchmark.page.reading import SHARE, Board, Found, JsonObject, at, certified, score, smoothed
from rclip_metric.train.benchmark.page.words import norm_name
from rclip_metric.train.evaluation.results.leaderboard import AccuracyCell

ACCURACY = "accuracy, %"
_VALUES: dict[str, Callable[[Any], float | None]] = {
    "accuracy": lambda cell: round(cell.summary["accuracy"], 1),  # as it is shown: what looks the same is the same
    "certified": lambda cell: round(cell.summary["accuracy"], 1),
    "speed": lambda cell: cell["pairs_per_second"],
    "memory": lambda megabytes: megabytes.get("float32"),
    "count": float,
    "words": lambda words: None,
}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        kind: a key of `_VALUES`; says how a cell is written.
        title: its heading as plain text.
        find: what a metric has to show, None for nothing: an `AccuracyCell`, a measurement of speed, megabytes by type
            of number, a count, or words.
        heading: its heading as HTML, where that is another.
        group: what it is headed by together with its neighbours.
        best: chooses the best of several values.
        small: what is below the heading.
    """

    kind: str
    title: str
    find: Callable[[JsonObject], Any]
    heading: str = ""
    group: str = ""
    best: Callable[[Iterable[float]], float] | None = None
    small: str = ""

    def value(self, metric: JsonObject) -> float | None:
        """Find the number that rows are sorted by."""
        found = self.find(metric)
        return None if found is None else _VALUES[self.kind](found)

    def top(self, metrics: Iterable[JsonObject]) -> float | None:
        """Find the best value, None for a column of one."""
        values = [value for metric in metrics if (value := self.value(metric)) is not None]
        return self.best(values) if self.best and len(values) > 1 else None


@dataclass(frozen=True)
class Table:
    """Rows and columns; `order` is the column that decides the order, `notes` are sentences and their metrics."""

    name: str
    rows: Sequence[Found]
    columns: Sequence[Column]
    order: int
    notes: dict[str, list[Found]]

    def heads(self) -> list[tuple[str, list[tuple[int, Column]]]]:
        """Group the columns, each with its number; one without a group is alone, under no name."""
        numbered = groupby(enumerate(self.columns, 1), key=lambda pair: pair[1].group or pair[0])
        return [(name if isinstance(name, str) else "", list(members)) for name, members in numbered]

    def numbers(self, metric: JsonObject) -> str:
        """List the numbers of the notes on a metric."""
        return ", ".join(str(n) for n, metrics in enumerate(self.notes.values(), 1) if metric in metrics)


def glance(board: Board) -> Table:
    """Lay out what every metric reached on each data set, in the order of the first one's table."""
    sets = board.sets()
    columns = [replace(column, group=data["id"]) for data in sets for column in score_columns(board, data)]
    order = 2 if board.tried(sets[0]) else 1
    return Table("all data sets", board.ranked(), _filled(board, columns + speed_columns(board)), order, {})


def table(board: Board, data: Found) -> Table:
    """Lay out a row per metric, the columns that any of them fills, and what is to be said of some."""
    rows = board.ranked(data)
    notes: dict[str, list[Found]] = {}
    for metric in rows:
        for sentence in at(metric["results"], data["id"], "warnings") or ():
            notes.setdefault(str(sentence), []).append(metric)
    order = 2 if board.tried(data) else 1
    return Table(data["label"], rows, _filled(board, columns(board, data)), order, notes)


def _filled(board: Board, columns: Sequence[Column]) -> list[Column]:
    """Keep the first column, and of the others those that any metric fills."""
    shown = [any(column.find(metric) is not None for metric in board.metrics) for column in columns]
    return [column for n, column in enumerate(columns) if n == 0 or shown[n]]


def columns(board: Board, data: Found) -> list[Column]:
    """List the columns of a data set's table; of what is certified the smallest radius, the others are in the CSV."""
    return [
        *score_columns(board, data),
        *certified_columns(board, data)[:1],
        *(columns[0] for columns in smoothed_columns(board, data)),
        *speed_columns(board),
        Column("memory", "MB", _memory, Markup("memory,<br>MB"), best=min),
        Column("count", "parameters", lambda metric: metric["parameters"], Markup("para&shy;meters")),
        Column("words", "licence", lambda metric: metric["licence"] or None),
    ]


def score_columns(board: Board, data: Found) -> list[Column]:
    """List what a data set gave, clean and under every threat that was tried on it; or the share for shape."""
    if not data["judged"]:
        return [Column("accuracy", SHARE, partial(_score, data=data))]
    made = [Column("accuracy", "clean", partial(_score, data=data), group=ACCURACY, best=max)]
    differ = len({str(threat["words"]) for threat in board.threats}) > 1
    for threat in board.tried(data):
        find, small = partial(_score, data=data, threat=threat), str(threat["words"] or "") if differ else ""
        made.append(Column("accuracy", threat["id"], find, threat["ball"], ACCURACY, max, small))
    return made


def _score(metric: JsonObject, data: Found, threat: Found | None = None) -> AccuracyCell | None:
    """Find an accuracy, beside the paper's where the data are."""
    result, found = metric["results"].get(data["id"]), score(metric, data, threat)
    paper = at(result, "paper", threat["id"] if threat else "clean") if data["comparable"] else None
    return AccuracyCell(found, result["samples"], paper) if found else None


def certified_columns(board: Board, data: Found) -> list[Column]:
    """List what no attack of a radius can take away, by rising radius."""

    def find(metric: JsonObject, eps: float) -> AccuracyCell | None:
        return _cell(metric, data, next((point for point in certified(metric, data) if point["eps"] == eps), None))

    points = {point["eps"]: point for metric in board.metrics for point in certified(metric, data)}
    made = []
    for eps in sorted(points):
        radius = points[eps]["eps_text"] or format(eps, ".3g")
        heading = Markup("certified<br>{} {}").format(norm_name("l2"), radius)
        title = f"certified l2 {radius}"
        made.append(Column("certified", title, partial(find, eps=eps), heading, ACCURACY, max))
    return made


def smoothed_columns(board: Board, data: Found) -> list[list[Column]]:
    """List, for the noise of each sigma, what is certified by rising radius, right at radius 0, and not decided."""

    def under(metric: JsonObject, sigma: float) -> Found:
        return next((found for found in smoothed(metric, data) if found["sigma"] == sigma), Found())

    def point(metric: JsonObject, sigma: float, eps: float) -> AccuracyCell | None:
        points = under(metric, sigma)["points"] or ()
        return _cell(metric, data, next((point for point in points if point["eps"] == eps), None))

    def right(metric: JsonObject, sigma: float) -> AccuracyCell | None:
        return _cell(metric, data, under(metric, sigma)["right"])

    def abstained(metric: JsonObject, sigma: float) -> AccuracyCell | None:
        found = under(metric, sigma)
        samples = at(found["right"], "samples")
        known = samples and found["abstained"] is not None
        share = Found(accuracy=100 * found["abstained"] / samples, samples=samples) if known else None
        return _cell(metric, data, share)

    radii: dict[float, dict[float, str]] = {}
    for metric in board.metrics:
        for found in smoothed(metric, data):
            texts = radii.setdefault(found["sigma"], {})
            texts |= {point["eps"]: point["eps_text"] or format(point["eps"], ".3g") for point in found["points"]}
    made = []
    for sigma, texts in sorted(radii.items()):
        small = f"\N{GREEK SMALL LETTER SIGMA} {sigma:g}"
        columns = []
        for eps, text in sorted(texts.items()):
            title, heading = f"smoothed l2 {text}, sigma {sigma:g}", f"smoothed<br>{norm_name('l2')} {escape(text)}"
            find = partial(point, sigma=sigma, eps=eps)
            columns.append(Column("certified", title, find, Markup(heading), ACCURACY, max, small))
        for word, share in (("smoothed", right), ("abstained", abstained)):
            find = partial(share, sigma=sigma)
            columns.append(Column("certified", f"{word}, sigma {sigma:g}", find, word, ACCURACY, None, small))
        made.append(columns)
    return made


def _cell(metric: JsonObject, data: Found, found: Found | None) -> AccuracyCell | None:
    known = found and found["accuracy"] is not None
    return AccuracyCell(found, metric["results"][data["id"]]["samples"]) if known else None


def speed_columns(board: Board) -> list[Column]:
    """List pairs per second, of every type of number and batch size that was timed, float32 first."""
    timed = {
        (kind, size)
        for metric in board.metrics
        for kind, cells in metric["timing"].items()
        for size in cells
        if size.isdecimal()
    }
    made = []
    for kind, size in sorted(timed, key=lambda cell: (cell[0] != "float32", cell[0], int(cell[1]))):
        title = f"pairs/s {kind.replace('float32', 'fp32').replace('bfloat16', 'bf16')}, batch {size}"
        heading = Markup("{}<br>batch {}").format(kind.replace("bfloat16", "bf16"), size)
        find = partial(_speed, kind=kind, size=size)
        made.append(Column("speed", title, find, heading, "pairs per second", max))
    return made


def _speed(metric: JsonObject, kind: str, size: str) -> Found | None:
    found: Found | None = at(metric["timing"], kind, size)
    return found if found and found["pairs_per_second"] is not None else None


def _memory(metric: JsonObject) -> dict[str, float] | None:
    """Read megabytes by type of number."""
    found = {kind: timing["memory_mb"] for kind, timing in metric["timing"].items()}
    return {kind: number for kind, number in found.items() if number is not None} or None
