"""The page of a benchmark: one HTML file that needs nothing else, whole without scripts."""

from __future__ import annotations

import base64
import binascii
import json
import math
import statistics
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from rclip_metric.train.benchmark import charts

Entry = Mapping[str, Any]

DASH, NO_BREAK, RIGHT, WRONG = "\N{EN DASH}", "\N{NO-BREAK SPACE}", "\N{CHECK MARK}", "\N{BALLOT X}"
OWN = ("ours", "yours")  # kinds that are marked; what is left are baselines
NORMS = {"linf": "\u2113<sub>\N{INFINITY}</sub>", "l2": "\u2113<sub>2</sub>", "l1": "\u2113<sub>1</sub>"}
PAPER_BALLS = {"linf": 4 / 255, "l2": 3.0}
CHANCE = {"2afc": 50.0}
SMALL_IMAGE = 128  # pixels; an image with fewer is shown with its pixels
TOP_RATIO = 4.0  # where the axis of the histograms ends at the latest

_FILES = Path(__file__).parent / "page"
_LISTS = {"data": "id", "threats": "id", "metrics": "id", "examples": "key", "paper": "label"}
# Nothing can be loaded, whatever a label says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(board: Entry) -> str:
    """Lay out a benchmark: table, charts, examples, the papers' numbers and the settings.

    Args:
        board: as `rclip-metric benchmark` writes it to JSON. Whatever is missing, empty or null is left out, and said
            to be left out. Accuracies are percent.

    Raises:
        ValueError: for an image that is no data: URI, and would have to be loaded.
    """
    board = _whole(board)
    sections = {
        "Table": _table_section(board),
        "Clean and robust": _scatter_section(board),
        "Radius": _radius_section(board),
        "Distances": _distance_section(board),
        "Examples": _example_section(board),
        "Papers": _paper_section(board),
        "Settings": _settings_section(board),
    }
    there = {name.split()[0].lower(): (name, body) for name, body in sections.items() if body}
    links = "".join(_tag("a", name, href=f"#{anchor}") for anchor, (name, _) in there.items())
    title = escape(str(board["title"] or "Perceptual metrics under attack"))
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<link rel="icon" href="data:,">',
        _tag("title", title),
        _tag("style", _file("page.css")),
    ]
    body = [
        charts.symbols(),
        _tag("header", _tag("h1", title) + _summary(board) + _facts(board)),
        _tag("nav", _tag("div", links, class_="links") + _switches(board), aria_label="on this page"),
        _tag("main", "\n".join(_tag("section", part, id=anchor) for anchor, (_, part) in there.items())),
        _tag("script", _file("page.js")),
    ]
    inner = "\n".join([_tag("head", "\n".join(head)), _tag("body", "\n".join(body))])
    return f"<!DOCTYPE html>\n{_tag('html', inner, lang='en')}\n"


def _file(name: str) -> str:
    """A style sheet or script, without what only its readers need."""
    lines = (_FILES / name).read_text(encoding="utf-8").splitlines()
    return "\n".join(filter(None, map(str.strip, lines)))


# What there is, and in which order


def _whole(board: Entry) -> dict[str, Any]:
    """The board with empty parts for missing ones, data sets and threats that only results name, and looks."""
    whole: dict[str, Any] = dict.fromkeys(("title", "made", "command", "cores"))
    whole |= {key: board.get(key) or {} for key in ("settings", "versions", "device")}
    whole |= {key: [{name: "?", **entry} for entry in board.get(key) or ()] for key, name in _LISTS.items()}
    whole |= {key: board.get(key) for key in ("title", "made", "command", "cores")}
    for n, metric in enumerate(whole["metrics"]):
        for key in ("results", "sweep", "direct", "timing"):
            metric[key] = {name: found for name, found in (metric.get(key) or {}).items() if found}
        metric["label"] = str(metric.get("label") or metric["id"])
        metric["look"] = charts.Look(n, metric.get("kind") in OWN)
    results = [result for metric in whole["metrics"] for result in metric["results"].values()]
    for key, lists in (
        ("data", [metric[part] for metric in whole["metrics"] for part in ("results", "sweep")]),
        ("threats", [result.get("robust") or () for result in results] + [m["direct"] for m in whole["metrics"]]),
    ):
        names = dict.fromkeys(name for names in lists for name in names)
        whole[key] += [{"id": name} for name in names if name not in {entry["id"] for entry in whole[key]}]
    return whole


def _result(metric: Entry, data: Entry) -> Entry:
    return metric["results"].get(data["id"]) or {}


def _score(metric: Entry, data: Entry, threat: Entry | None = None) -> Entry | None:
    """The summary of a metric on a data set: clean, or under a threat; None where it was not measured."""
    result = _result(metric, data)
    found = result.get("clean") if threat is None else (result.get("robust") or {}).get(threat["id"])
    return found if found and _known(found.get("accuracy")) is not None else None


def _certified(metric: Entry, data: Entry) -> list[Entry]:
    """The certified points of a metric on a data set, rising."""
    points = (_result(metric, data).get("certified") or {}).get("points") or ()
    return sorted((point for point in points if _known(point.get("accuracy")) is not None), key=lambda p: p["eps"])


def _measured(board: Entry) -> list[Entry]:
    """The data sets that any metric was measured on, all of them if there are no numbers yet."""
    return [data for data in board["data"] if any(_result(m, data) for m in board["metrics"])] or board["data"]


def _tried(board: Entry, data: Entry) -> list[Entry]:
    """The threats that any metric was measured under on a data set."""
    return [t for t in board["threats"] if any(_score(metric, data, t) for metric in board["metrics"])]


def _ranked(board: Entry, data: Entry | None = None) -> list[Entry]:
    """The metrics, the most robust under the first threat first, then the best clean one; on the first data set."""
    data = data or next(iter(_measured(board)), {"id": None})
    first = [*_tried(board, data)[:1], None]

    def rank(metric: Entry) -> tuple[Any, ...]:
        scores = [_score(metric, data, threat) for threat in first]
        return (*(-score["accuracy"] if score else 1.0 for score in scores), metric["label"])

    return sorted(board["metrics"], key=rank)


# Words and numbers


def _tag(name: str, inner: str = "", **attributes: Any) -> str:
    """An element around HTML: ``class_`` is class, ``data_set`` data-set; values are escaped, None and "" left out."""
    told = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value not in (None, "")]
    return f"<{name}{''.join(f' {key}={chr(34)}{escape(str(value))}{chr(34)}' for key, value in told)}>{inner}</{name}>"


def _small(inner: str) -> str:
    return _tag("small", inner) if inner else ""


def _pairs(facts: Iterable[tuple[str, str]], style: str) -> str:
    """Names and what they are, as a list."""
    return _tag("dl", "".join(_tag("div", _tag("dt", name) + _tag("dd", words)) for name, words in facts), class_=style)


def _titled(heading: str, lede: str, body: str) -> str:
    """A section, or nothing where there is nothing to show."""
    return _tag("h2", heading) + _tag("p", lede, class_="lede") + body if body else ""


def _known(value: Any) -> float | None:
    """A finite number, or None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _numbers(values: Any) -> list[float]:
    """The finite numbers of a list."""
    return [number for number in map(_known, values or ()) if number is not None]


def _rows(table: Any, width: int) -> list[tuple[float, ...]]:
    """The rows of finite numbers, rising."""
    return sorted(numbers for row in table or () if len(numbers := tuple(_numbers(row))) == width)


def _interval(summary: Entry) -> tuple[float, float] | None:
    """The bounds of a summary: of an accuracy, or of a number of pairs per second."""
    bounds = _numbers(summary.get("interval_95") or (summary.get("low"), summary.get("high")))
    return (bounds[0], bounds[1]) if len(bounds) == 2 else None


def _figure(value: float) -> str:
    """Three digits, or two: 1,230, 123, 12.3, 1.23, 0.123, 0.0123, 0.0012, 1.2e-4."""
    if 0 < abs(value) < 1e-3:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits}e{int(exponent)}"
    power = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(4, 2 - power)}f}" if power < 2 else f"{round(value, 2 - power):,.0f}"


def _count(value: float) -> str:
    """A number of parameters: 0, 640, 12 k, 1.9 M, 198 M."""
    if value < 1e6:
        return f"{value:.0f}" if value < 1e3 else f"{value / 1e3:.0f}{NO_BREAK}k"
    return f"{value / 1e6:.{1 if value < 1e8 else 0}f}{NO_BREAK}M"


def _percent(value: float) -> str:
    return f"{value:.1f}{NO_BREAK}%"


def _norm(norm: str) -> str:
    return NORMS.get(norm) or escape(str(norm))


def _ball(threat: Entry) -> str:
    """E.g. l_inf 4/255, as HTML; the name of the threat where it does not say its norm."""
    if not threat.get("norm"):
        return escape(str(threat["id"]))
    eps = _known(threat.get("eps"))
    return f"{_norm(threat['norm'])} {escape(str(threat.get('eps_text') or ('' if eps is None else f'{eps:g}')))}"


def _data_name(data: Entry) -> str:
    return escape(str(data.get("label") or data["id"]))


def _name(metric: Entry) -> str:
    """The glyph and the label of a metric."""
    return charts.glyph(metric["look"]) + escape(metric["label"])


def _joined(words: Iterable[str]) -> str:
    """A, B and C, each once."""
    *most, last = dict.fromkeys(words)
    return f"{', '.join(most)} and {last}" if most else last


# The head


def _summary(board: Entry) -> str:
    """One or two sentences: the most robust metric, and how far the best clean one falls."""
    names = {metric["id"]: _tag("strong", escape(metric["label"])) for metric in board["metrics"]}

    def scores(data: Entry, threat: Entry | None) -> dict[str, Entry]:
        return {m["id"]: found for m in _ranked(board, data) if (found := _score(m, data, threat))}

    for data in _measured(board):
        clean, tried = scores(data, None), _tried(board, data)
        best = max(clean, key=lambda name: clean[name]["accuracy"], default=None)
        before = _percent(clean[best]["accuracy"]) if best else ""
        if tried:
            robust = scores(data, tried[0])
            first, *others = robust
            score = robust[first]["accuracy"]
            equal = [name for name in robust if round(robust[name]["accuracy"], 1) == round(score, 1)]
            words = f"{_joined(names[name] for name in equal)} {'is' if len(equal) == 1 else 'are'} the most robust: "
            words += f"{'it still sides' if len(equal) == 1 else 'they still side'} with people "
            words += f"{_percent(score)} of the time under {_ball(tried[0])}"
            words += f" ({_percent(clean[first]['accuracy'])} clean)" if first in clean and len(equal) == 1 else ""
            bounds = [_interval(robust[name]) for name in (first, *others[:1])]
            if len(equal) == 1 and len(bounds) == 2 and bounds[0] and bounds[1] and bounds[1][1] >= bounds[0][0]:
                words += f", closely followed by {names[others[0]]} ({_percent(robust[others[0]]['accuracy'])})"
            if best in equal:
                words += f". None is better on clean images either{'' if len(equal) == 1 else f' ({before})'}."
            elif best in robust:
                words += f". The best on clean images, {names[best]}, falls from {before} to "
                words += f"{_percent(robust[best]['accuracy'])}."
            else:
                words += f". The best on clean images, {names[best]} ({before}), was not attacked." if best else "."
        elif best:
            words = f"{names[best]} sides with people most often, {before} of the time; nothing was attacked."
        else:
            continue
        return _tag("p", f"On {_data_name(data)}, {words}", class_="summary")
    return _tag("p", "No metric has been measured yet.", class_="summary")


def _facts(board: Entry) -> str:
    """What was measured, with which attack, where and when."""
    facts: list[tuple[str, list[str]]] = []
    sets = []
    for data in board["data"]:
        samples = _known(data.get("samples"))
        sets.append(_data_name(data) + (f" {_small(f'{samples:,.0f} samples')}" if samples else ""))
    facts.append(("Data", sets))
    attacks = {_ball(threat): escape(str(threat.get("words") or "")) for threat in board["threats"]}
    if len(set(attacks.values())) == 1:
        facts.append(("Attack", [_joined(attacks), _small(next(iter(attacks.values())))]))
    else:
        facts.append(("Attacks", [f"{ball} {_small(words)}" for ball, words in attacks.items()]))
    kinds = [metric["kind"] if metric.get("kind") in OWN else "others" for metric in board["metrics"]]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in (*OWN, "others") if kind in kinds)
    facts.append(("Metrics", [str(len(kinds)), _small(told)] if kinds else []))
    device, cores = board["device"], board["cores"]
    machine = [device.get("type"), f"{cores} core{'s' * (cores != 1)}" if cores else None]
    name = escape(str(device.get("name") or ""))
    facts.append(("Machine", [name, _small(escape(", ".join(str(part) for part in machine if part)))]))
    if board["made"]:
        facts.append(("Made", [_date(str(board["made"]))]))
    shown = [(name, "<br>".join(filter(None, lines))) for name, lines in facts]
    return _pairs([fact for fact in shown if fact[1]], "facts")


def _date(text: str) -> str:
    """A day in words; the text itself where it is none."""
    try:
        made = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return escape(text)
    return _tag("time", f"{made.day} {made:%B %Y}", datetime=text)


def _switches(board: Entry) -> str:
    """Buttons that only scripts need: the data set, where there are several, and the theme."""
    sets = [
        _tag("button", _data_name(data), type="button", data_choose=n, aria_pressed="false" if n else "true")
        for n, data in enumerate(_measured(board))
    ]
    group = _tag("div", "".join(sets), class_="sets", role="group", aria_label="data set") if len(sets) > 1 else ""
    theme = _tag("button", "\N{CIRCLE WITH LEFT HALF BLACK}", type="button", class_="theme", aria_label="light or dark")
    return _tag("div", group + theme, class_="switches")


def _per_set(board: Entry, draw: Callable[[Entry], str]) -> str:
    """What is drawn of each data set, under its name where there are several."""
    sets = _measured(board) or [{"id": None, "label": "no data yet"}]
    parts = [draw(data) for data in sets]
    if len(sets) < 2 or not any(parts):
        return "".join(parts)
    nothing = _tag("p", "Not measured on this data.", class_="none")
    names = [_tag("h3", _data_name(data), class_="set") for data in sets]
    shown = zip(names, parts, strict=True)
    return "".join(_tag("div", name + (part or nothing), data_set=n) for n, (name, part) in enumerate(shown))


# The table


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
            return _tag("td", inner, class_="text" if self.words else None)
        mark = _tag("span", " best", class_="say") if value == best else ""
        return _tag("td", inner + mark, class_="best" if value == best else None, data_value=f"{value:.6g}")

    def top(self, metrics: Iterable[Entry]) -> float | None:
        """The best value, None for a column of one."""
        values = [value for metric in metrics if (value := self.value(metric)) is not None]
        return self.best(values) if self.best and len(values) > 1 else None


def _table_section(board: Entry) -> str:
    heading = "Accuracy, speed and size"
    if not board["metrics"]:
        return _tag("h2", heading) + _tag("p", "This benchmark has no metrics yet.", class_="none")
    lede = "Accuracy is how often, in percent, a metric picks the image that people picked"
    lede += "; a coin gets 50. " if any(data.get("task") in CHANCE for data in board["data"]) else ". "
    if board["threats"]:
        lede += "Under attack, the reference is changed by no more than the radius to make the metric pick another. "
    lede += f"Small: 95{NO_BREAK}% intervals, and what the paper reports. Highlighted: the best of a column."
    lede += _tag("span", " Click a heading to sort.", class_="js")
    tables = _per_set(board, lambda data: _table(board, data))
    failed = [
        _tag("li", f"{_tag('b', escape(metric['label']))} {escape(str(sentence))}")
        for metric in board["metrics"]
        for sentence in metric.get("failures") or ()
    ]
    if failed:
        tables += _tag("div", _tag("h3", "What failed") + _tag("ul", "".join(failed)), class_="failed", id="failed")
    return _titled(heading, lede, tables)


def _table(board: Entry, data: Entry) -> str:
    """A row per metric, the columns that any of them fills, and what is to be said of some."""
    rows, columns = _ranked(board, data), _columns(board, data)
    notes: dict[str, list[Entry]] = {}
    for metric in rows:
        for sentence in _result(metric, data).get("warnings") or ():
            notes.setdefault(str(sentence), []).append(metric)
    tops = [column.top(rows) for column in columns]
    lines = []
    for metric in rows:
        numbers = [str(n) for n, named in enumerate(notes.values(), 1) if metric in named]
        marks = _tag("sup", ", ".join(numbers)) if numbers else ""
        about = [_tag("span", metric["kind"], class_="tag")] if metric["look"].filled else []
        about += [_tag("a", "failed", class_="tag bad", href="#failed")] if metric.get("failures") else []
        about += [f"{metric['image_size']}{NO_BREAK}px"] if metric.get("image_size") else []
        name = _tag("th", _name(metric) + marks + _small(" ".join(about)), scope="row")
        cells = "".join(column.html(metric, top) for column, top in zip(columns, tops, strict=True))
        lines.append(_tag("tr", name + cells, class_=None if metric["look"].filled else "baseline"))
    head = _table_head(columns, 2 if _tried(board, data) else 1)
    table = _tag("table", head + _tag("tbody", "\n".join(lines)), class_="board")
    told = [
        _tag("li", f"{escape(note)} {_small('(' + _joined(escape(metric['label']) for metric in named) + ')')}")
        for note, named in notes.items()
    ]
    return _scroll(table, f"table, {data.get('label') or data['id']}") + (
        _tag("ol", "".join(told), class_="notes") if told else ""
    )


def _table_head(columns: Sequence[Column], order: int) -> str:
    """Two rows of headings, groups and the columns in them; ``order`` is the column that decides the order."""
    upper = [_tag("th", "metric", scope="col", data_column=0, data_first="ascending", rowspan=2)]
    lower: list[str] = []
    for n, column in enumerate(columns, 1):
        head = _tag(
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
            upper.append(_tag("th", column.group, scope="colgroup", class_="group", colspan=wide))
    return _tag("thead", _tag("tr", "".join(upper)) + _tag("tr", "".join(lower)))


def _scroll(table: str, words: str) -> str:
    """A table that scrolls in itself where it is too wide."""
    return _tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=words)


def _columns(board: Entry, data: Entry) -> list[Column]:
    """The columns that any metric fills."""
    columns = [_accuracy_column(board, data, threat) for threat in (None, *_tried(board, data))]
    certified = [point for metric in board["metrics"] for point in _certified(metric, data)]
    if certified:
        columns.append(_certified_column(data, min(certified, key=lambda point: point["eps"])))
    timed = {(kind, batch) for m in board["metrics"] for kind, found in m["timing"].items() for batch in found}
    order = sorted(timed, key=lambda key: (key[0] != "float32", key[0], len(key[1]), key[1]))
    columns += [_speed_column(kind, batch) for kind, batch in order if batch.isdecimal()]
    columns += [
        Column("", "memory,<br>MB", lambda metric: _memory(metric).get("float32"), _memory_cell, min),
        Column("", "para&shy;meters", lambda metric: _known(metric.get("parameters")), _parameters),
        Column("", "licence", lambda metric: None, lambda m: escape(str(m.get("licence") or "")), words=True),
    ]
    return [column for n, column in enumerate(columns) if n == 0 or any(map(column.cell, board["metrics"]))]


def _accuracy_column(board: Entry, data: Entry, threat: Entry | None) -> Column:
    """Clean, or under a threat; with the paper's number where the data are the paper's."""
    heading, key = ("clean", "clean") if threat is None else (_ball(threat), threat["id"])
    if threat and len({str(other.get("words")) for other in board["threats"]}) > 1:
        heading += _small(escape(str(threat.get("words") or "")))

    def cell(metric: Entry) -> str:
        found, result = _score(metric, data, threat), _result(metric, data)
        reported = _known((result.get("paper") or {}).get(key)) if data.get("comparable") is True else None
        return "" if found is None else _accuracy(found, result.get("samples"), reported)

    return Column("accuracy, %", heading, lambda metric: _rounded(_score(metric, data, threat)), cell, max)


def _certified_column(data: Entry, at: Entry) -> Column:
    """What no attack of a radius can take away."""

    def point(metric: Entry) -> Entry | None:
        return next((point for point in _certified(metric, data) if point["eps"] == at["eps"]), None)

    def cell(metric: Entry) -> str:
        found = point(metric)
        return _accuracy(found) if found else ""

    heading = f"certified<br>{_norm('l2')} {escape(str(at.get('eps_text') or format(at['eps'], '.3g')))}"
    return Column("accuracy, %", heading, lambda metric: _rounded(point(metric)), cell, max)


def _rounded(found: Entry | None) -> float | None:
    """An accuracy as it is shown, so that what looks the same is the same."""
    return round(found["accuracy"], 1) if found else None


def _accuracy(found: Entry, samples: Any = None, reported: float | None = None) -> str:
    """An accuracy with its interval, as numbers and as a picture; its samples where they are not those of the row."""
    interval, small = _interval(found), []
    if interval:
        small.append(f"{interval[0]:.1f}{DASH}{interval[1]:.1f}")
    if samples and found.get("samples") not in (None, samples):
        small.append(f"of {found['samples']:,}")
    shown = charts.meter(found["accuracy"], interval) + _tag("b", f"{found['accuracy']:.1f}")
    lines = [", ".join(small), "" if reported is None else f"paper {reported:.1f}"]
    return shown + _small("<br>".join(filter(None, lines)))


def _speed_column(kind: str, batch: str) -> Column:
    def speed(metric: Entry) -> float | None:
        return _known(((metric["timing"].get(kind) or {}).get(batch) or {}).get("pairs_per_second"))

    def cell(metric: Entry) -> str:
        value = speed(metric)
        if value is None:
            return ""
        interval = _interval(metric["timing"][kind][batch])
        return _figure(value) + _small(DASH.join(map(_figure, interval)) if interval else "")

    return Column("pairs per second", f"{_short(kind)}<br>batch {batch}", speed, cell, max)


def _short(kind: str) -> str:
    return "bf16" if kind == "bfloat16" else escape(kind)


def _memory(metric: Entry) -> dict[str, float]:
    """MB by type of number."""
    found = {kind: _known(timing.get("memory_mb")) for kind, timing in metric["timing"].items()}
    return {kind: number for kind, number in found.items() if number is not None}


def _memory_cell(metric: Entry) -> str:
    found = _memory(metric)
    under = [_small(f"{_short(kind)} {value:,.0f}") for kind, value in found.items() if kind != "float32"]
    return "".join([f"{found['float32']:,.0f}" if "float32" in found else DASH, *under]) if found else ""


def _parameters(metric: Entry) -> str:
    number = _known(metric.get("parameters"))
    return "" if number is None else _count(number)


# The charts


def _panels(figures: Sequence[tuple[str, str]]) -> str:
    """Charts side by side, each under its name."""
    parts = [_tag("figure", _tag("figcaption", name) + picture) for name, picture in figures]
    return _tag("div", "".join(parts), class_="panels") if parts else ""


def _scatter_section(board: Entry) -> str:
    def draw(data: Entry) -> str:
        panels = []
        for threat in _tried(board, data):
            points = []
            for metric in board["metrics"]:
                clean, robust = _score(metric, data), _score(metric, data, threat)
                if clean and robust:
                    place = (clean["accuracy"], robust["accuracy"], _interval(clean), _interval(robust))
                    points.append(charts.Point(metric["label"], metric["look"], *place))
            if points:
                panels.append((_ball(threat), charts.scatter(points, "clean accuracy, %", "robust accuracy, %")))
        return _panels(panels)

    lede = (
        "Top right is better: further right agrees with people more often on clean images, further up under attack. "
        "On the dotted line the attack costs nothing. Filled marks are ours or yours, hollow ones baselines; "
        f"bars are 95{NO_BREAK}% intervals."
    )
    return _titled("Clean against robust accuracy", lede, _per_set(board, draw))


def _radius_section(board: Entry) -> str:
    def draw(data: Entry) -> str:
        norms = dict.fromkeys(norm for m in board["metrics"] for norm in m["sweep"].get(data["id"]) or ())
        curves = {m["id"]: _rows((_result(m, data).get("certified") or {}).get("curve"), 2) for m in board["metrics"]}
        panels = []
        for norm in [norm for norm in NORMS if norm in norms or (norm == "l2" and any(curves.values()))]:
            unit, words = (255, "radius, in 255ths") if norm == "linf" else (1, "radius")
            lines = []
            for metric in _ranked(board, data):
                sweep = _rows((metric["sweep"].get(data["id"]) or {}).get(norm), 4)
                certified = curves[metric["id"]] if norm == "l2" else []
                points = [(eps * unit, at, low, high) for eps, at, low, high in sweep]
                if points or certified:
                    dashes = [(eps, at) for eps, at in certified]
                    lines.append(charts.Line(metric["label"], metric["look"], points, dashes))
            if lines:
                chance = CHANCE.get(data.get("task") or "")
                panels.append((_norm(norm), charts.curves(lines, words, "accuracy, %", chance)))
        return _panels(panels)

    lede = f"Higher is better; bands are 95{NO_BREAK}% intervals, the dotted line is chance. "
    lede += "Lines may be of fewer samples than the table. "
    if any(_result(m, data).get("certified") for m in board["metrics"] for data in board["data"]):
        lede += f"A dashed line is certified: no attack of that {_norm('l2')} radius, known or not, gets below it. "
    lede += _tag("span", "Point at a line to see it alone.", class_="js")
    return _titled("Accuracy against the radius of the attack", lede, _per_set(board, draw))


def _distance_section(board: Entry) -> str:
    ratios: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for metric in board["metrics"]:
        for name, found in metric["direct"].items():
            values, others = (_numbers(found.get(key)) for key in ("distances", "others"))
            scale = statistics.median(others) if others else 0.0
            if values and scale > 0:
                ratios[metric["id"], name] = [v / scale for v in values], [v / scale for v in others]
    if not ratios:
        return ""
    every = [values for pair in ratios.values() for values in pair]
    most = max(sorted(values)[int(0.98 * (len(values) - 1))] for values in every)
    top = min(TOP_RATIO, max(1.5, math.ceil(2 * most) / 2))
    parts = [charts.histogram_axis(top, any(value > top for values in every for value in values))]
    for threat in board["threats"]:
        cards = []
        for metric in _ranked(board):
            if (metric["id"], threat["id"]) in ratios:
                values, others = ratios[metric["id"], threat["id"]]
                past = f"{100 * sum(value > 1 for value in values) / len(values):.0f}{NO_BREAK}%"
                words = _tag("p", f"median {_figure(statistics.median(values))}, {_tag('b', past)} past 1")
                inner = _tag("figcaption", _name(metric)) + charts.histogram(values, others, top) + words
                cards.append(_tag("figure", inner, class_=f"small {metric['look'].style}"))
        if cards:
            parts.append(_tag("h3", _ball(threat)) + _tag("div", "".join(cards), class_="cards"))
    lede = (
        "Here the attack makes d(x,\u202fx\u202f+\u202f\u03b4), the distance between an image and its own attacked "
        "copy, as large as it can. It is divided by the median distance between two different images, so that 1, the "
        "line, means: to this metric the copy is as far away as another image. Further left is better. "
        "Outlined: other images."
    )
    return _titled("How far the attack moves an image from itself", lede, "".join(parts))


# The examples


def _example_section(board: Entry) -> str:
    lede = (
        "Which of the two, left or right, is more like the reference? For each metric: the reference as attacked "
        "against it, the perturbation (amplified), and the distances to both images before and after. Bold is the one "
        "that it picks."
    )
    parts = [_example(board, example, n) for n, example in enumerate(board["examples"], 1)]
    return _titled("A few triplets", lede, "".join(parts))


def _example(board: Entry, example: Entry, number: int) -> str:
    """A triplet, what people chose, and what each metric makes of it."""
    share = _known(example.get("share_right"))
    chosen = None if share is None or share == 0.5 else int(share > 0.5)
    found = {m["id"]: verdict for m in _ranked(board) if (verdict := (example.get("metrics") or {}).get(m["id"]))}
    named = {metric["id"]: metric for metric in board["metrics"]}
    about = []
    for key, entries, words in (("data", board["data"], _data_name), ("threat", board["threats"], _ball)):
        if example.get(key):
            name = example[key]
            about.append(words(next((entry for entry in entries if entry["id"] == name), {"id": name})))
    about.append(_tag("code", escape(str(example["key"]))))
    images = []
    for side in ("left", "reference", "right"):
        caption = side
        if share is not None and chosen is not None and side == ("left", "right")[chosen]:
            people = f"{RIGHT} people: {100 * max(share, 1 - share):.0f}{NO_BREAK}%"
            caption += _tag("span", people, class_="pick")
        image = _image(example.get(side), f"{side} image of example {number}")
        images.append(_tag("figure", image + _tag("figcaption", caption)))
    told = ""
    if found and chosen is not None:
        before, after = (sum(_agrees(v.get(when), chosen) is True for v in found.values()) for when in _WHEN)
        told = f"{before} of {len(found)} metrics agree with people before the attack, {after} after it."
    cards = [_card(named[name], verdict, chosen, number) for name, verdict in found.items()]
    return _tag(
        "article",
        _tag("h3", f"Example {number} {_small(' &middot; '.join(about))}")
        + _tag("div", _tag("div", "".join(images), class_="images") + _tag("p", told), class_="triplet")
        + _tag("div", "".join(cards), class_="cards verdicts"),
    )


_WHEN = {"before": "clean", "after": "attacked"}
_VERDICTS = {
    True: _tag("td", f"{RIGHT} correct", class_="yes"),
    False: _tag("td", f"{WRONG} wrong", class_="no"),
    "tie": _tag("td", "= tie", class_="no"),
    None: _tag("td", DASH),
}


def _card(metric: Entry, found: Entry, chosen: int | None, number: int) -> str:
    """A metric's attacked reference, perturbation, distances and verdicts."""
    rows = []
    for when, words in _WHEN.items():
        distances = _numbers(found.get(when))
        cells = [DASH, DASH]
        if len(distances) == 2:
            nearer = min(distances) if distances[0] != distances[1] else None
            cells = [_tag("b", _figure(d)) if d == nearer else _figure(d) for d in distances]
        verdict = _VERDICTS["tie" if len(set(distances)) == 1 < len(distances) else _agrees(distances, chosen)]
        rows.append(_tag("tr", _tag("th", words) + "".join(_tag("td", cell) for cell in cells) + verdict))
    images = _image(found.get("attacked"), f"reference {number} attacked: {metric['label']}")
    images += _image(found.get("perturbation"), "perturbation")
    return _tag("div", _tag("h4", escape(metric["label"])) + images + _tag("table", "".join(rows)), class_="card")


def _agrees(pair: Any, chosen: int | None) -> bool | None:
    """Whether the nearer of (left, right) is the chosen one; a tie is not, and without a choice there is no saying."""
    distances = _numbers(pair)
    return None if chosen is None or len(distances) != 2 else distances[chosen] < distances[1 - chosen]


def _image(uri: Any, words: str) -> str:
    """An image, with its pixels where it has few of them.

    Raises:
        ValueError: where it is not in the URI itself.
    """
    if not uri:
        return _tag("span", "no image", class_="empty")
    if not str(uri).startswith("data:image/"):
        raise ValueError(f"the page loads nothing, and {str(uri)[:60]!r} is no data: URI of an image: embed the image")
    style = ' class="px"' if _png_width(str(uri)) < SMALL_IMAGE else ""
    return f'<img{style} src="{escape(str(uri))}" alt="{escape(words)}">'


def _png_width(uri: str) -> float:
    """The width that a PNG's header states, in pixels; infinite for anything else."""
    try:
        head = base64.b64decode(uri.partition("base64,")[2][:32], validate=True)
    except binascii.Error:
        return math.inf
    return struct.unpack(">I", head[16:20])[0] if head[1:4] == b"PNG" and len(head) >= 20 else math.inf


# The papers and the settings


def _paper_section(board: Entry) -> str:
    """The papers' numbers, and those measured here of the same metrics."""
    metrics = {metric["id"]: metric for metric in board["metrics"]}
    rows = [metrics.get(row.get("metric")) for row in board["paper"]]
    groups: dict[str, list[tuple[str, list[str]]]] = {}  # of columns: heading and cells
    for key, name in (("nights", "NIGHTS"), ("bapps", "BAPPS")):
        for column in ("clean", *PAPER_BALLS):
            values = [_known((row.get(key) or {}).get(column)) for row in board["paper"]]
            if any(value is not None for value in values):
                heading = "clean" if column == "clean" else _norm(column)
                groups.setdefault(f"paper, {name}", []).append((heading, [_cell(value) for value in values]))
    if not groups:
        return ""
    others = []
    for data in _measured(board):
        tag = "" if data.get("comparable") is True else f" {_tag('span', 'not comparable', class_='tag bad')}"
        near = [_closest(_tried(board, data), norm) for norm in PAPER_BALLS]
        for threat in (None, *filter(None, near)):
            scores = [_score(metric, data, threat) if metric else None for metric in rows]
            if any(scores):
                cells = [_cell(score["accuracy"] if score else None) for score in scores]
                group = groups.setdefault(f"here, {_data_name(data)}{tag}", [])
                group.append(("clean" if threat is None else _ball(threat), cells))
                others += [_data_name(data)] if tag else []
    columns = [(None if n else "edge", *column) for group in groups.values() for n, column in enumerate(group)]
    upper = [_tag("th", name, scope="colgroup", class_="group", colspan=len(group)) for name, group in groups.items()]
    lower = [_tag("th", heading, scope="col", class_=f"n {edge or ''}".strip()) for edge, heading, _ in columns]
    head = _tag("tr", _tag("th", "metric", scope="col", rowspan=2) + "".join(upper)) + _tag("tr", "".join(lower))
    lines = []
    for n, (row, metric) in enumerate(zip(board["paper"], rows, strict=True)):
        name = (charts.glyph(metric["look"]) if metric else _tag("i", class_="g")) + escape(str(row["label"]))
        line = "".join(_tag("td", cells[n], class_=edge) for edge, _, cells in columns)
        style = "baseline" if metric is None or not metric["look"].filled else None
        lines.append(_tag("tr", _tag("th", name, scope="row") + line, class_=style))
    lede = f"What the papers report: {_norm('linf')} 4/255 and {_norm('l2')} 3, on NIGHTS and BAPPS."
    if others:
        lede += f" What was measured here on {_joined(others)} is of other images: those columns are "
        lede += f"{_tag('b', 'not comparable')}."
    table = _tag("table", _tag("thead", head) + _tag("tbody", "\n".join(lines)), class_="plain")
    return _titled("Beside the papers", lede, _scroll(table, "the papers' numbers"))


def _cell(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}"


def _closest(threats: Sequence[Entry], norm: str) -> Entry | None:
    """The threat of a norm whose radius is nearest to the paper's."""
    found = [threat for threat in threats if threat.get("norm") == norm]
    return min(found, key=lambda threat: abs((_known(threat.get("eps")) or 0.0) - PAPER_BALLS[norm]), default=None)


def _settings_section(board: Entry) -> str:
    parts = [_tag("h2", "Settings")]
    if board["command"]:
        words = [_tag("i", word) if word[:1] == "-" else word for word in escape(str(board["command"])).split(" ")]
        parts.append(_tag("pre", _tag("code", " ".join(words)), tabindex=0))  # no line ends within an option's name
    facts = [(f"attack, {_ball(t)}", escape(str(t["words"]))) for t in board["threats"] if t.get("words")]
    facts += [(escape(str(key)), escape(_setting(value))) for key, value in board["settings"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in board["versions"].items())
    device = ", ".join(str(value) for value in board["device"].values() if value)
    facts += [(name, escape(words)) for name, words in (("versions", versions), ("machine", device)) if words]
    parts.append(_pairs(facts, "settings"))
    told = []
    for metric in board["metrics"]:
        words = [metric.get("revision"), f"{metric['image_size']} pixels" if metric.get("image_size") else None]
        words += [metric.get("similarity"), metric.get("source")]
        told.append((_name(metric), escape(", ".join(str(part) for part in words if part)) or DASH))
    if told:
        head = _tag("summary", "The metrics: revision, image size, similarity, source")
        parts.append(_tag("details", head + _pairs(told, "settings")))
    care = "".join(_tag("li", words) for words in _caveats(board))
    return "".join([*parts, _tag("h3", "Read with care"), _tag("ul", care, class_="care")])


def _setting(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, list | tuple) and value and not any(isinstance(part, dict | list) for part in value):
        return ", ".join(map(_setting, value))
    words = {None: "none", True: "yes", False: "no"}
    if value is None or isinstance(value, bool):
        return words[value]
    return value if isinstance(value, str) else json.dumps(value)


def _caveats(board: Entry) -> list[str]:
    """What the numbers do not say, and what was not measured."""
    metrics, care = board["metrics"], []
    certified = any(result.get("certified") for metric in metrics for result in metric["results"].values())
    if board["threats"]:
        care.append("Accuracy under attack is an upper bound: a stronger attack can only lower it.")
    if certified:
        care.append("Certified accuracy is a lower bound: it holds against any attack of that radius.")
    sizes = {metric["image_size"] for metric in metrics if metric.get("image_size")}
    if len(sizes) > 1 and any(threat.get("norm") == "l2" for threat in board["threats"]):
        care.append(
            f"The metrics see images of {min(sizes)} to {max(sizes)} pixels, and an {_norm('l2')} radius is that of "
            "the image as the metric sees it: the same radius is a larger change of a smaller image."
        )
    if any(metric["timing"] for metric in metrics):
        care.append("Pairs per second and memory are of this machine and this run: compare their ratios.")
    parts = {
        "attacks": bool(board["threats"]),
        "certified accuracy": certified,
        "speed and memory": any(metric["timing"] for metric in metrics),
        "accuracy against the radius": any(metric["sweep"] for metric in metrics),
        "direct attacks": any(metric["direct"] for metric in metrics),
        "example triplets": bool(board["examples"]),
    }
    missing = [name for name, there in parts.items() if not there]
    if missing:
        care.append(f"Not part of this benchmark: {_joined(missing)}.")
    return [*care, "A dash is what was not measured. This file holds all that it shows, and loads nothing."]
