"""The page's table: a row per metric, columns that sort."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from markupsafe import Markup

from rclip_metric.train.benchmark.page.reading import (
    SHARE,
    JsonObject,
    certified_points,
    data_name,
    interval_of,
    is_judged,
    known,
    measured_sets,
    per_set,
    ranked,
    result_of,
    score_of,
    timed,
    tried_threats,
)
from rclip_metric.train.benchmark.page.words import (
    DASH,
    NO_BREAK,
    ball_name,
    count_words,
    figure,
    joined,
    judges_of,
    norm_name,
)

CHANCE = {"2afc": 50.0}


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, the small print below it, and the bar beside it if it is an accuracy."""

    text: str
    lines: Sequence[str] = ()
    bar: tuple[float, tuple[float, float] | None] | None = None


@dataclass(frozen=True)
class Column:
    """A column of the table: what rows are sorted by, what is shown, and which value is the best."""

    group: str
    heading: str | Markup
    value: Callable[[JsonObject], float | None]
    cell: Callable[[JsonObject], Cell | None]
    best: Callable[[Iterable[float]], float] | None = None
    words: bool = False
    small: str = ""

    @property
    def rising(self) -> bool:
        """Whether a first click sorts it upwards."""
        return self.words or self.best is min

    def top(self, metrics: Iterable[JsonObject]) -> float | None:
        """Find the best value, None for a column of one."""
        values = [value for metric in metrics if (value := self.value(metric)) is not None]
        return self.best(values) if self.best and len(values) > 1 else None


@dataclass(frozen=True)
class Table:
    """Rows and columns; `order` is the column that decides the order, `notes` are sentences and their metrics."""

    name: str
    rows: Sequence[JsonObject]
    columns: Sequence[Column]
    order: int
    notes: dict[str, list[JsonObject]]

    def heads(self) -> list[tuple[str, list[tuple[int, Column]]]]:
        """Group the columns, each with its number; one without a group is alone, under no name."""
        numbered = groupby(enumerate(self.columns, 1), key=lambda pair: pair[1].group or pair[0])
        return [(name if isinstance(name, str) else "", list(members)) for name, members in numbered]

    def lines(self) -> list[tuple[JsonObject, str, list[tuple[Column, Cell | None, float | None, bool]]]]:
        """List for each metric the numbers of its notes, and for each column the cell, its value and if it is best."""
        tops = [column.top(self.rows) for column in self.columns]
        found = []
        for metric in self.rows:
            notes = ", ".join(str(n) for n, named in enumerate(self.notes.values(), 1) if metric in named)
            values = [(column, column.value(metric), top) for column, top in zip(self.columns, tops, strict=True)]
            cells = [(c, c.cell(metric), v, v is not None and v == top) for c, v, top in values]
            found.append((metric, notes, cells))
        return found


def table_section(board: JsonObject) -> dict[str, Any]:
    """Lay out a table of all data sets, one of each, and what failed."""
    sets = measured_sets(board)
    judged = [data for data in sets if is_judged(data)]
    usual = "95 % intervals"  # a board of before they could differ says no more
    intervals = joined(str(data.get("intervals") or usual) for data in sets or [{}])
    return {
        "empty": not board["metrics"],
        "judges": joined(map(judges_of, judged or [{}])) if judged or not sets else None,
        "chance": any(data.get("task") in CHANCE for data in board["data"]),
        "shares": len(judged) < len(sets),
        "attacked": bool(board["threats"]),
        "intervals": intervals.replace("95 %", f"95{NO_BREAK}%"),
        "glance": _glance(board, sets) if len(sets) > 1 else None,
        "tables": per_set(board, lambda data: _table(board, data)),
        "failed": [(metric["label"], said) for metric in board["metrics"] for said in metric.get("failures") or ()],
    }


def _glance(board: JsonObject, sets: Sequence[JsonObject]) -> Table:
    """Lay out what every metric reached on each of several data sets, in the order of the first one's table."""
    columns = [replace(column, group=str(data["id"])) for data in sets for column in _score_columns(board, data)]
    columns = _filled(board, columns + _speed_columns(board))
    return Table("all data sets", ranked(board), columns, _order(board, sets[0]), {})


def _table(board: JsonObject, data: JsonObject) -> Table:
    """Lay out a row per metric, the columns that any of them fills, and what is to be said of some."""
    rows = ranked(board, data)
    notes: dict[str, list[JsonObject]] = {}
    for metric in rows:
        for sentence in result_of(metric, data).get("warnings") or ():
            notes.setdefault(str(sentence), []).append(metric)
    return Table(data_name(data), rows, _columns(board, data), _order(board, data), notes)


def _order(board: JsonObject, data: JsonObject) -> int:
    """Choose the column that decides the order of a table that begins with a data set's scores."""
    return 2 if tried_threats(board, data) else 1


def _columns(board: JsonObject, data: JsonObject) -> list[Column]:
    """List the columns that any metric fills."""
    columns = _score_columns(board, data)
    certified = [point for metric in board["metrics"] for point in certified_points(metric, data)]
    if certified:
        columns.append(_certified_column(data, min(certified, key=lambda point: point["eps"])))
    columns += _speed_columns(board)
    columns += [
        Column("", Markup("memory,<br>MB"), lambda metric: _memory(metric).get("float32"), _memory_cell, min),
        Column("", Markup("para&shy;meters"), lambda metric: known(metric.get("parameters")), _parameters),
        Column("", "licence", lambda metric: None, _licence, words=True),
    ]
    return _filled(board, columns)


def _filled(board: JsonObject, columns: Sequence[Column]) -> list[Column]:
    """Keep the first column, and of the others those that any metric fills."""
    return [column for n, column in enumerate(columns) if n == 0 or any(map(column.cell, board["metrics"]))]


def _score_columns(board: JsonObject, data: JsonObject) -> list[Column]:
    """List what a data set gave, clean and under every threat that was tried on it."""
    return [_accuracy_column(board, data, threat) for threat in (None, *tried_threats(board, data))]


def _accuracy_column(board: JsonObject, data: JsonObject, threat: JsonObject | None) -> Column:
    """Make a column: clean or under a threat, with the paper's number on the paper's data; or the share for shape."""
    heading, key = ("clean", "clean") if threat is None else (ball_name(threat), threat["id"])
    differ = len({str(other.get("words")) for other in board["threats"]}) > 1

    def cell(metric: JsonObject) -> Cell | None:
        found, result = score_of(metric, data, threat), result_of(metric, data)
        reported = known((result.get("paper") or {}).get(key)) if data.get("comparable") is True else None
        return None if found is None else _accuracy(found, result.get("samples"), reported)

    column = Column("accuracy, %", heading, lambda metric: _rounded(score_of(metric, data, threat)), cell, max)
    if threat and differ:
        column = replace(column, small=str(threat.get("words") or ""))
    return column if is_judged(data) else replace(column, group="", heading=SHARE, best=None)


def _certified_column(data: JsonObject, at: JsonObject) -> Column:
    """Make the column of what no attack of a radius can take away."""

    def point(metric: JsonObject) -> JsonObject | None:
        return next((point for point in certified_points(metric, data) if point["eps"] == at["eps"]), None)

    def cell(metric: JsonObject) -> Cell | None:
        found = point(metric)
        return _accuracy(found) if found else None

    radius = at.get("eps_text") or format(at["eps"], ".3g")
    heading = Markup("certified<br>{} {}").format(norm_name("l2"), radius)
    return Column("accuracy, %", heading, lambda metric: _rounded(point(metric)), cell, max)


def _rounded(found: JsonObject | None) -> float | None:
    """Round an accuracy as it is shown, so that what looks the same is the same."""
    return round(found["accuracy"], 1) if found else None


def _accuracy(found: JsonObject, samples: Any = None, reported: float | None = None) -> Cell:
    """Show an accuracy with its interval, in numbers and as a picture; its samples where they are not the row's."""
    interval, told = interval_of(found), []
    if interval:
        told.append(f"{interval[0]:.1f}{DASH}{interval[1]:.1f}")
    if samples and found.get("samples") not in (None, samples):
        told.append(f"of {found['samples']:,}")
    lines = [", ".join(told), "" if reported is None else f"paper {reported:.1f}"]
    return Cell(f"{found['accuracy']:.1f}", list(filter(None, lines)), (found["accuracy"], interval))


def _speed_columns(board: JsonObject) -> list[Column]:
    """List pairs per second, of every type of number and batch size that was timed."""
    return [_speed_column(kind, batch) for kind, batch in timed(board)]


def _speed_column(kind: str, batch: str) -> Column:
    def speed(metric: JsonObject) -> float | None:
        return known(((metric["timing"].get(kind) or {}).get(batch) or {}).get("pairs_per_second"))

    def cell(metric: JsonObject) -> Cell | None:
        value = speed(metric)
        if value is None:
            return None
        interval = interval_of(metric["timing"][kind][batch])
        return Cell(figure(value), [DASH.join(map(figure, interval))] if interval else [])

    return Column("pairs per second", Markup("{}<br>batch {}").format(_short(kind), batch), speed, cell, max)


def _short(kind: str) -> str:
    return "bf16" if kind == "bfloat16" else kind


def _memory(metric: JsonObject) -> dict[str, float]:
    """Read MB by type of number."""
    found = {kind: known(timing.get("memory_mb")) for kind, timing in metric["timing"].items()}
    return {kind: number for kind, number in found.items() if number is not None}


def _memory_cell(metric: JsonObject) -> Cell | None:
    found = _memory(metric)
    under = [f"{_short(kind)} {value:,.0f}" for kind, value in found.items() if kind != "float32"]
    return Cell(f"{found['float32']:,.0f}" if "float32" in found else DASH, under) if found else None


def _parameters(metric: JsonObject) -> Cell | None:
    number = known(metric.get("parameters"))
    return None if number is None else Cell(count_words(number))


def _licence(metric: JsonObject) -> Cell | None:
    return Cell(str(metric["licence"])) if metric.get("licence") else None
