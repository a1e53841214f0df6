"""The page's end: the papers' numbers, the settings, and what to read with care."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from rclip_metric.train.benchmark import charts
from rclip_metric.train.benchmark.markup import (
    DASH,
    ball_name,
    data_name,
    element,
    glyph_and_label,
    joined,
    norm_name,
    pair_list,
    scroll,
    titled,
)
from rclip_metric.train.benchmark.reading import Entry, is_judged, known, measured_sets, score_of, tried_threats

PAPER_BALLS = {"linf": 4 / 255, "l2": 3.0}


def paper_section(board: Entry) -> str:
    """The papers' numbers, and those measured here of the same metrics."""
    metrics = {metric["id"]: metric for metric in board["metrics"]}
    rows = [metrics.get(row.get("metric")) for row in board["paper"]]
    groups: dict[str, list[tuple[str, list[str]]]] = {}  # of columns: heading and cells
    for key, name in (("nights", "NIGHTS"), ("bapps", "BAPPS")):
        for column in ("clean", *PAPER_BALLS):
            values = [known((row.get(key) or {}).get(column)) for row in board["paper"]]
            if any(value is not None for value in values):
                heading = "clean" if column == "clean" else norm_name(column)
                groups.setdefault(f"paper, {name}", []).append((heading, [_cell(value) for value in values]))
    if not groups:
        return ""
    others = []
    for data in filter(is_judged, measured_sets(board)):
        tag = "" if data.get("comparable") is True else f" {element('span', 'not comparable', class_='tag bad')}"
        near = [_closest(tried_threats(board, data), norm) for norm in PAPER_BALLS]
        for threat in (None, *filter(None, near)):
            scores = [score_of(metric, data, threat) if metric else None for metric in rows]
            if any(scores):
                cells = [_cell(score["accuracy"] if score else None) for score in scores]
                group = groups.setdefault(f"here, {data_name(data)}{tag}", [])
                group.append(("clean" if threat is None else ball_name(threat), cells))
                others += [data_name(data)] if tag else []
    columns = [(None if n else "edge", *column) for group in groups.values() for n, column in enumerate(group)]
    upper = [
        element("th", name, scope="colgroup", class_="group", colspan=len(group)) for name, group in groups.items()
    ]
    lower = [element("th", heading, scope="col", class_=f"n {edge or ''}".strip()) for edge, heading, _ in columns]
    head = element("tr", element("th", "metric", scope="col", rowspan=2) + "".join(upper)) + element(
        "tr", "".join(lower)
    )
    lines = []
    for n, (row, metric) in enumerate(zip(board["paper"], rows, strict=True)):
        name = (charts.glyph(metric["look"]) if metric else element("i", class_="g")) + escape(str(row["label"]))
        line = "".join(element("td", cells[n], class_=edge) for edge, _, cells in columns)
        style = "baseline" if metric is None or not metric["look"].filled else None
        lines.append(element("tr", element("th", name, scope="row") + line, class_=style))
    lede = f"What the papers report: {norm_name('linf')} 4/255 and {norm_name('l2')} 3, on NIGHTS and BAPPS."
    if others:
        lede += f" What was measured here on {joined(others)} is of other images: those columns are "
        lede += f"{element('b', 'not comparable')}."
    table = element("table", element("thead", head) + element("tbody", "\n".join(lines)), class_="plain")
    return titled("Beside the papers", lede, scroll(table, "the papers' numbers"))


def _cell(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}"


def _closest(threats: Sequence[Entry], norm: str) -> Entry | None:
    """The threat of a norm whose radius is nearest to the paper's."""
    found = [threat for threat in threats if threat.get("norm") == norm]
    return min(found, key=lambda threat: abs((known(threat.get("eps")) or 0.0) - PAPER_BALLS[norm]), default=None)


def settings_section(board: Entry) -> str:
    """The command, the settings, the metrics, and what to read with care."""
    parts = [element("h2", "Settings")]
    if board["command"]:
        words = [element("i", word) if word[:1] == "-" else word for word in escape(str(board["command"])).split(" ")]
        parts.append(
            element("pre", element("code", " ".join(words)), tabindex=0)
        )  # no line ends within an option's name
    facts = [(f"attack, {ball_name(t)}", escape(str(t["words"]))) for t in board["threats"] if t.get("words")]
    facts += [(escape(str(key)), escape(_setting(value))) for key, value in board["settings"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in board["versions"].items())
    machine = {**board["device"]}
    machine |= {"onednn": f"oneDNN {machine['onednn']}"} if machine.get("onednn") else {}
    device = ", ".join(_setting(value) for value in machine.values() if value)
    facts += [(name, escape(words)) for name, words in (("versions", versions), ("machine", device)) if words]
    parts.append(pair_list(facts, "settings"))
    told = []
    for metric in board["metrics"]:
        known_of = [metric.get("revision"), f"{metric['image_size']} pixels" if metric.get("image_size") else None]
        known_of += [metric.get("similarity"), metric.get("source")]
        told.append((glyph_and_label(metric), escape(", ".join(str(part) for part in known_of if part)) or DASH))
    if told:
        head = element("summary", "The metrics: revision, image size, similarity, source")
        parts.append(element("details", head + pair_list(told, "settings")))
    care = "".join(element("li", words) for words in _caveats(board))
    return "".join([*parts, element("h3", "Read with care"), element("ul", care, class_="care")])


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
    for data in measured_sets(board):
        if data.get("note") and not is_judged(data):
            care.append(f"{data_name(data)}: {escape(str(data['note']))}")
    certified = any(result.get("certified") for metric in metrics for result in metric["results"].values())
    if board["threats"]:
        care.append("Accuracy under attack is an upper bound: a stronger attack can only lower it.")
    if certified:
        care.append("Certified accuracy is a lower bound: it holds against any attack of that radius.")
    sizes = {metric["image_size"] for metric in metrics if metric.get("image_size")}
    if len(sizes) > 1 and any(threat.get("norm") == "l2" for threat in board["threats"]):
        care.append(
            f"The metrics see images of {min(sizes)} to {max(sizes)} pixels, and an {norm_name('l2')} radius is that "
            "of the image as the metric sees it: the same radius is a larger change of a smaller image."
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
        care.append(f"Not part of this benchmark: {joined(missing)}.")
    return [*care, "A dash is what was not measured. This file holds all that it shows, and loads nothing."]
