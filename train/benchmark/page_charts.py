"""The page's charts: clean against robust, accuracy against the radius, and the direct attack's distances."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rclip_metric.train.benchmark import charts
from rclip_metric.train.benchmark.markup import (
    NO_BREAK,
    NORMS,
    ball_name,
    element,
    figure,
    glyph_and_label,
    norm_name,
    per_set,
    titled,
)
from rclip_metric.train.benchmark.reading import (
    Entry,
    interval_of,
    numbers_of,
    ranked,
    result_of,
    rows_of,
    score_of,
    tried_threats,
)

CHANCE = {"2afc": 50.0}
TOP_RATIO = 4.0  # where the axis of the histograms ends at the latest


def _panels(figures: Sequence[tuple[str, str]]) -> str:
    """Charts side by side, each under its name."""
    parts = [element("figure", element("figcaption", name) + picture) for name, picture in figures]
    return element("div", "".join(parts), class_="panels") if parts else ""


def scatter_section(board: Entry) -> str:
    """Clean against robust accuracy, a panel per threat."""

    def draw(data: Entry) -> str:
        panels = []
        for threat in tried_threats(board, data):
            points = []
            for metric in board["metrics"]:
                clean, robust = score_of(metric, data), score_of(metric, data, threat)
                if clean and robust:
                    place = (clean["accuracy"], robust["accuracy"], interval_of(clean), interval_of(robust))
                    points.append(charts.Point(metric["label"], metric["look"], *place))
            if points:
                panels.append((ball_name(threat), charts.scatter(points, "clean accuracy, %", "robust accuracy, %")))
        return _panels(panels)

    lede = (
        "Top right is better: further right is right more often on clean images, further up under attack. "
        "On the dotted line the attack costs nothing. Filled marks are ours or yours, hollow ones baselines; "
        f"bars are 95{NO_BREAK}% intervals."
    )
    return titled("Clean against robust accuracy", lede, per_set(board, draw))


def radius_section(board: Entry) -> str:
    """Accuracy against the radius, a panel per norm."""

    def draw(data: Entry) -> str:
        norms = dict.fromkeys(norm for m in board["metrics"] for norm in m["sweep"].get(data["id"]) or ())
        curves = {
            m["id"]: rows_of((result_of(m, data).get("certified") or {}).get("curve"), 2) for m in board["metrics"]
        }
        panels = []
        for norm in [norm for norm in NORMS if norm in norms or (norm == "l2" and any(curves.values()))]:
            unit, words = (255, "radius, in 255ths") if norm == "linf" else (1, "radius")
            lines = []
            for metric in ranked(board, data):
                sweep = rows_of((metric["sweep"].get(data["id"]) or {}).get(norm), 4)
                certified = curves[metric["id"]] if norm == "l2" else []
                points = [(eps * unit, at, low, high) for eps, at, low, high in sweep]
                if points or certified:
                    dashes = [(eps, at) for eps, at in certified]
                    lines.append(charts.Line(metric["label"], metric["look"], points, dashes))
            if lines:
                chance = CHANCE.get(data.get("task") or "")
                panels.append((norm_name(norm), charts.curves(lines, words, "accuracy, %", chance)))
        return _panels(panels)

    lede = f"Higher is better; bands are 95{NO_BREAK}% intervals, the dotted line is chance. "
    lede += "Lines may be of fewer samples than the table. "
    if any(result_of(m, data).get("certified") for m in board["metrics"] for data in board["data"]):
        lede += f"A dashed line is certified: no attack of that {norm_name('l2')} radius, known or not, gets below it. "
    lede += element("span", "Point at a line to see it alone.", class_="js")
    return titled("Accuracy against the radius of the attack", lede, per_set(board, draw))


def distance_section(board: Entry) -> str:
    """Histograms of d(x, x + delta), a card per threat and metric."""
    ratios: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for metric in board["metrics"]:
        for name, found in metric["direct"].items():
            values, others = (numbers_of(found.get(key)) for key in ("distances", "others"))
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
        for metric in ranked(board):
            if (metric["id"], threat["id"]) in ratios:
                values, others = ratios[metric["id"], threat["id"]]
                past = f"{100 * sum(value > 1 for value in values) / len(values):.0f}{NO_BREAK}%"
                words = element("p", f"median {figure(statistics.median(values))}, {element('b', past)} past 1")
                inner = element("figcaption", glyph_and_label(metric)) + charts.histogram(values, others, top) + words
                cards.append(element("figure", inner, class_=f"small {metric['look'].style}"))
        if cards:
            parts.append(element("h3", ball_name(threat)) + element("div", "".join(cards), class_="cards"))
    lede = (
        "Here the attack makes d(x,\u202fx\u202f+\u202f\u03b4), the distance between an image and its own attacked "
        "copy, as large as it can. It is divided by the median distance between two different images, so that 1, the "
        "line, means: to this metric the copy is as far away as another image. Further left is better. "
        "Outlined: other images."
    )
    return titled("How far the attack moves an image from itself", lede, "".join(parts))
