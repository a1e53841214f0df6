"""The words, numbers and elements that the parts of the page are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from rclip_metric.train.benchmark import charts
from rclip_metric.train.benchmark.reading import Entry, known, measured_sets
from rclip_metric.train.evaluation.labels import PEOPLE

DASH, NO_BREAK, RIGHT, WRONG = "\N{EN DASH}", "\N{NO-BREAK SPACE}", "\N{CHECK MARK}", "\N{BALLOT X}"
NORMS = {"linf": "\u2113<sub>\N{INFINITY}</sub>", "l2": "\u2113<sub>2</sub>", "l1": "\u2113<sub>1</sub>"}


def element(name: str, inner: str = "", **attributes: Any) -> str:
    """An element around HTML: ``class_`` is class, ``data_set`` data-set; values are escaped, None and "" left out."""
    told = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value not in (None, "")]
    return f"<{name}{''.join(f' {key}={chr(34)}{escape(str(value))}{chr(34)}' for key, value in told)}>{inner}</{name}>"


def small(inner: str) -> str:
    """Small print, or nothing."""
    return element("small", inner) if inner else ""


def pair_list(facts: Iterable[tuple[str, str]], style: str) -> str:
    """Names and what they are, as a list."""
    return element(
        "dl", "".join(element("div", element("dt", name) + element("dd", words)) for name, words in facts), class_=style
    )


def titled(heading: str, lede: str, body: str) -> str:
    """A section, or nothing where there is nothing to show."""
    return element("h2", heading) + element("p", lede, class_="lede") + body if body else ""


def figure(value: float) -> str:
    """Three digits, or two: 1,230, 123, 12.3, 1.23, 0.123, 0.0123, 0.0012, 1.2e-4."""
    if 0 < abs(value) < 1e-3:
        digits, _, exponent = f"{value:.1e}".partition("e")
        return f"{digits}e{int(exponent)}"
    power = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(4, 2 - power)}f}" if power < 2 else f"{round(value, 2 - power):,.0f}"


def count_words(value: float) -> str:
    """A number of parameters: 0, 640, 12 k, 1.9 M, 198 M."""
    if value < 1e6:
        return f"{value:.0f}" if value < 1e3 else f"{value / 1e3:.0f}{NO_BREAK}k"
    return f"{value / 1e6:.{1 if value < 1e8 else 0}f}{NO_BREAK}M"


def percent(value: float) -> str:
    """E.g. 92.4 %, which no line ends within."""
    return f"{value:.1f}{NO_BREAK}%"


def norm_name(norm: str) -> str:
    """A norm as HTML."""
    return NORMS.get(norm) or escape(str(norm))


def ball_name(threat: Entry) -> str:
    """E.g. l_inf 4/255, as HTML; the name of the threat where it does not say its norm."""
    if not threat.get("norm"):
        return escape(str(threat["id"]))
    eps = known(threat.get("eps"))
    return f"{norm_name(threat['norm'])} {escape(str(threat.get('eps_text') or ('' if eps is None else f'{eps:g}')))}"


def data_name(data: Entry) -> str:
    """The label of a data set as HTML."""
    return escape(str(data.get("label") or data["id"]))


def glyph_and_label(metric: Entry) -> str:
    """The glyph and the label of a metric."""
    return charts.glyph(metric["look"]) + escape(metric["label"])


def judges_of(data: Entry) -> str:
    """Who said which option is right: people, unless the data says otherwise; HTML."""
    return escape(str(data.get("judges") or PEOPLE))


def joined(words: Iterable[str]) -> str:
    """A, B and C, each once."""
    *most, last = dict.fromkeys(words)
    return f"{', '.join(most)} and {last}" if most else last


def per_set(board: Entry, draw: Callable[[Entry], str]) -> str:
    """What is drawn of each data set, under its name where there are several."""
    sets = measured_sets(board) or [{"id": None, "label": "no data yet"}]
    parts = [draw(data) for data in sets]
    if len(sets) < 2 or not any(parts):
        return "".join(parts)
    nothing = element("p", "Not measured on this data.", class_="none")
    names = [element("h3", data_name(data), class_="set") for data in sets]
    shown = zip(names, parts, strict=True)
    return "".join(element("div", name + (part or nothing), data_set=n) for n, (name, part) in enumerate(shown))


def scroll(table: str, words: str) -> str:
    """A table that scrolls in itself where it is too wide."""
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=words)
