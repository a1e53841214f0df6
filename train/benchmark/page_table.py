"""The page's table: a row per metric, columns that sort."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from rclip_metric.train.benchmark import charts
from rclip_metric.train.benchmark.markup import (
    DASH,
    NO_BREAK,
    ball_name,
    count_words,
    element,
    figure,
    glyph_and_label,
    joined,
    judges_of,
    norm_name,
    per_set,
    scroll,
    small,
    titled,
)
from rclip_metric.train.benchmark.page_charts import CHANCE
from rclip_metric.train.benchmark.reading import (
    SHARE,
    Entry,
    certified_points,
    interval_of,
    is_judged,
    known,
    measured_sets,
    ranked,
    result_of,
    score_of,
    tried_threats,
)


@dataclass(frozen=True)
class Column:
    """A column of the table: what rows are sorted by, what is shown as HTML, and which value is the best."""

    group: str
    heading: str
    value: Callable[[Entry], float | None]
    cell: Callable[[Entry], str]
    best: Callable[[Iterable[float]], float] | None = None
    words: bool = False

    def html(self, metric: Entry, best: float | None) -> str:
        """The cell of a metric."""
        value, inner = self.value(metric), self.cell(metric) or DASH
        if self.words or value is None:
            return element("td", inner, class_="text" if self.words else None)
        mark = element("span", " best", class_="say") if value == best else ""
        return element("td", inner + mark, class_="best" if value == best else None, data_value=f"{value:.6g}")

    def top(self, metrics: Iterable[Entry]) -> float | None:
        """The best value, None for a column of one."""
        values = [value for metric in metrics if (value := self.value(metric)) is not None]
        return self.best(values) if self.best and len(values) > 1 else None


def table_section(board: Entry) -> str:
    """A table of all data sets, one of each, and what failed."""
    heading = "Accuracy, speed and size"
    if not board["metrics"]:
        return element("h2", heading) + element("p", "This benchmark has no metrics yet.", class_="none")
    sets = measured_sets(board)
    judged, lede = [data for data in sets if is_judged(data)], ""
    if judged or not sets:
        lede += f"Accuracy is how often, in percent, a metric sides with {joined(map(judges_of, judged or [{}]))}"
        lede += "; a coin gets 50. " if any(data.get("task") in CHANCE for data in board["data"]) else ". "
    if len(judged) < len(sets):
        lede += "Share for shape is how often a metric goes by shape where shape and texture are of two things: "
        lede += "neither is right or wrong. "
    if board["threats"]:
        lede += "Under attack, the reference is changed by no more than the radius to make the metric pick another. "
    usual = "95 % intervals"  # a board of before they could differ says no more
    intervals = joined(escape(str(data.get("intervals") or usual)) for data in sets or [{}])
    lede += f"Small: {intervals.replace('95 %', f'95{NO_BREAK}%')}, the number of samples where not all were attacked, "
    lede += "and what the paper reports. Highlighted: the best of a column."
    lede += element("span", " Click a heading to sort.", class_="js")
    tables = _glance(board) + per_set(board, lambda data: _table(board, data))
    failed = [
        element("li", f"{element('b', escape(metric['label']))} {escape(str(sentence))}")
        for metric in board["metrics"]
        for sentence in metric.get("failures") or ()
    ]
    if failed:
        tables += element(
            "div", element("h3", "What failed") + element("ul", "".join(failed)), class_="failed", id="failed"
        )
    return titled(heading, lede, tables)


def _glance(board: Entry) -> str:
    """What every metric reached on each of several data sets, in the order of the first one's table."""
    sets = measured_sets(board)
    if len(sets) < 2:
        return ""
    columns = [
        replace(column, group=escape(str(data["id"]))) for data in sets for column in _score_columns(board, data)
    ]
    table = _drawn(ranked(board), _filled(board, columns + _speed_columns(board)), _order(board, sets[0]), "glance")
    return element("h3", "All sets at a glance") + scroll(table, "table, all data sets")


def _table(board: Entry, data: Entry) -> str:
    """A row per metric, the columns that any of them fills, and what is to be said of some."""
    rows = ranked(board, data)
    notes: dict[str, list[Entry]] = {}
    for metric in rows:
        for sentence in result_of(metric, data).get("warnings") or ():
            notes.setdefault(str(sentence), []).append(metric)
    table = _drawn(rows, _columns(board, data), _order(board, data), notes=list(notes.values()))
    told = [
        element("li", f"{escape(note)} {small('(' + joined(escape(metric['label']) for metric in named) + ')')}")
        for note, named in notes.items()
    ]
    return scroll(table, f"table, {data.get('label') or data['id']}") + (
        element("ol", "".join(told), class_="notes") if told else ""
    )


def _order(board: Entry, data: Entry) -> int:
    """The column that decides the order of a table that begins with a data set's scores."""
    return 2 if tried_threats(board, data) else 1


def _drawn(
    rows: Sequence[Entry],
    columns: Sequence[Column],
    order: int,
    style: str = "",
    notes: Sequence[Sequence[Entry]] = (),
) -> str:
    """A table; ``order`` is the column that decides the order, ``notes`` are the metrics of each footnote."""
    tops = [column.top(rows) for column in columns]
    lines = []
    for metric in rows:
        numbers = [str(n) for n, named in enumerate(notes, 1) if metric in named]
        marks = element("sup", ", ".join(numbers)) if numbers else ""
        about = [element("span", metric["kind"], class_="tag")] if metric["look"].filled else []
        about += [element("a", "failed", class_="tag bad", href="#failed")] if metric.get("failures") else []
        about += [f"{metric['image_size']}{NO_BREAK}px"] if metric.get("image_size") else []
        name = element("th", glyph_and_label(metric) + marks + small(" ".join(about)), scope="row")
        cells = "".join(column.html(metric, top) for column, top in zip(columns, tops, strict=True))
        lines.append(element("tr", name + cells, class_=None if metric["look"].filled else "baseline"))
    body = element("tbody", "\n".join(lines))
    return element("table", _table_head(columns, order) + body, class_=f"board {style}".strip())


def _table_head(columns: Sequence[Column], order: int) -> str:
    """Two rows of headings, groups and the columns in them; ``order`` is the column that decides the order."""
    upper = [element("th", "metric", scope="col", data_column=0, data_first="ascending", rowspan=2)]
    lower: list[str] = []
    for n, column in enumerate(columns, 1):
        head = element(
            "th",
            column.heading,
            scope="col",
            class_=None if column.words else "n",
            data_column=n,
            data_first="ascending" if column.words or column.best is min else None,
            aria_sort="descending" if n == order else None,
            rowspan=None if column.group else 2,
        )
        (lower if column.group else upper).append(head)
        if column.group and (n == 1 or columns[n - 2].group != column.group):
            wide = sum(other.group == column.group for other in columns)
            upper.append(element("th", column.group, scope="colgroup", class_="group", colspan=wide))
    return element("thead", element("tr", "".join(upper)) + element("tr", "".join(lower)))


def _columns(board: Entry, data: Entry) -> list[Column]:
    """The columns that any metric fills."""
    columns = _score_columns(board, data)
    certified = [point for metric in board["metrics"] for point in certified_points(metric, data)]
    if certified:
        columns.append(_certified_column(data, min(certified, key=lambda point: point["eps"])))
    columns += _speed_columns(board)
    columns += [
        Column("", "memory,<br>MB", lambda metric: _memory(metric).get("float32"), _memory_cell, min),
        Column("", "para&shy;meters", lambda metric: known(metric.get("parameters")), _parameters),
        Column("", "licence", lambda metric: None, lambda m: escape(str(m.get("licence") or "")), words=True),
    ]
    return _filled(board, columns)


def _filled(board: Entry, columns: Sequence[Column]) -> list[Column]:
    """The first column, and of the others those that any metric fills."""
    return [column for n, column in enumerate(columns) if n == 0 or any(map(column.cell, board["metrics"]))]


def _score_columns(board: Entry, data: Entry) -> list[Column]:
    """What a data set gave, clean and under every threat that was tried on it."""
    return [_accuracy_column(board, data, threat) for threat in (None, *tried_threats(board, data))]


def _accuracy_column(board: Entry, data: Entry, threat: Entry | None) -> Column:
    """Clean, or under a threat, with the paper's number where the data are the paper's; or the share for shape."""
    heading, key = ("clean", "clean") if threat is None else (ball_name(threat), threat["id"])
    if threat and len({str(other.get("words")) for other in board["threats"]}) > 1:
        heading += small(escape(str(threat.get("words") or "")))

    def cell(metric: Entry) -> str:
        found, result = score_of(metric, data, threat), result_of(metric, data)
        reported = known((result.get("paper") or {}).get(key)) if data.get("comparable") is True else None
        return "" if found is None else _accuracy(found, result.get("samples"), reported)

    column = Column("accuracy, %", heading, lambda metric: _rounded(score_of(metric, data, threat)), cell, max)
    return column if is_judged(data) else replace(column, group="", heading=SHARE, best=None)


def _certified_column(data: Entry, at: Entry) -> Column:
    """What no attack of a radius can take away."""

    def point(metric: Entry) -> Entry | None:
        return next((point for point in certified_points(metric, data) if point["eps"] == at["eps"]), None)

    def cell(metric: Entry) -> str:
        found = point(metric)
        return _accuracy(found) if found else ""

    heading = f"certified<br>{norm_name('l2')} {escape(str(at.get('eps_text') or format(at['eps'], '.3g')))}"
    return Column("accuracy, %", heading, lambda metric: _rounded(point(metric)), cell, max)


def _rounded(found: Entry | None) -> float | None:
    """An accuracy as it is shown, so that what looks the same is the same."""
    return round(found["accuracy"], 1) if found else None


def _accuracy(found: Entry, samples: Any = None, reported: float | None = None) -> str:
    """An accuracy with its interval, as numbers and as a picture; its samples where they are not those of the row."""
    interval, told = interval_of(found), []
    if interval:
        told.append(f"{interval[0]:.1f}{DASH}{interval[1]:.1f}")
    if samples and found.get("samples") not in (None, samples):
        told.append(f"of {found['samples']:,}")
    shown = charts.meter(found["accuracy"], interval) + element("b", f"{found['accuracy']:.1f}")
    lines = [", ".join(told), "" if reported is None else f"paper {reported:.1f}"]
    return shown + small("<br>".join(filter(None, lines)))


def _speed_columns(board: Entry) -> list[Column]:
    """Pairs per second, of every type of number and batch size that was timed."""
    timed = {(kind, batch) for m in board["metrics"] for kind, found in m["timing"].items() for batch in found}
    order = sorted(timed, key=lambda key: (key[0] != "float32", key[0], len(key[1]), key[1]))
    return [_speed_column(kind, batch) for kind, batch in order if batch.isdecimal()]


def _speed_column(kind: str, batch: str) -> Column:
    def speed(metric: Entry) -> float | None:
        return known(((metric["timing"].get(kind) or {}).get(batch) or {}).get("pairs_per_second"))

    def cell(metric: Entry) -> str:
        value = speed(metric)
        if value is None:
            return ""
        interval = interval_of(metric["timing"][kind][batch])
        return figure(value) + small(DASH.join(map(figure, interval)) if interval else "")

    return Column("pairs per second", f"{_short(kind)}<br>batch {batch}", speed, cell, max)


def _short(kind: str) -> str:
    return "bf16" if kind == "bfloat16" else escape(kind)


def _memory(metric: Entry) -> dict[str, float]:
    """MB by type of number."""
    found = {kind: known(timing.get("memory_mb")) for kind, timing in metric["timing"].items()}
    return {kind: number for kind, number in found.items() if number is not None}


def _memory_cell(metric: Entry) -> str:
    found = _memory(metric)
    under = [small(f"{_short(kind)} {value:,.0f}") for kind, value in found.items() if kind != "float32"]
    return "".join([f"{found['float32']:,.0f}" if "float32" in found else DASH, *under]) if found else ""


def _parameters(metric: Entry) -> str:
    number = known(metric.get("parameters"))
    return "" if number is None else count_words(number)
