"""The page's charts: clean against robust, accuracy against the radius, and the direct attack's distances."""

from __future__ import annotations

import math
import statistics
from typing import Any

from markupsafe import Markup

from rclip_metric.train.benchmark.page import charts
from rclip_metric.train.benchmark.page.reading import (
    JsonObject,
    interval_of,
    numbers_of,
    per_set,
    ranked,
    result_of,
    rows_of,
    score_of,
    tried_threats,
)
from rclip_metric.train.benchmark.page.table import CHANCE
from rclip_metric.train.benchmark.page.words import NORMS, ball_name, figure, norm_name

TOP_RATIO = 4.0  # where the axis of the histograms ends at the latest
Panels = list[tuple[Markup, Markup]]  # charts side by side: their names and pictures


def scatter_section(board: JsonObject) -> list[tuple[str | None, Panels]]:
    """Draw clean against robust accuracy, a panel per threat."""

    def draw(data: JsonObject) -> Panels:
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
        return panels

    return per_set(board, draw)


def radius_section(board: JsonObject) -> dict[str, Any]:
    """Draw accuracy against the radius, a panel per norm."""

    def draw(data: JsonObject) -> Panels:
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
        return panels

    found = per_set(board, draw)
    certified = any(result_of(m, data).get("certified") for m in board["metrics"] for data in board["data"])
    return {"sets": found, "certified": certified} if found else {}


def distance_section(board: JsonObject) -> dict[str, Any]:
    """Draw histograms of d(x, x + delta), a card per threat and metric."""
    ratios: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for metric in board["metrics"]:
        for name, found in metric["direct"].items():
            values, others = (numbers_of(found.get(key)) for key in ("distances", "others"))
            scale = statistics.median(others) if others else 0.0
            if values and scale > 0:
                ratios[metric["id"], name] = [v / scale for v in values], [v / scale for v in others]
    if not ratios:
        return {}
    every = [values for pair in ratios.values() for values in pair]
    most = max(sorted(values)[int(0.98 * (len(values) - 1))] for values in every)
    top = min(TOP_RATIO, max(1.5, math.ceil(2 * most) / 2))
    groups = []
    for threat in board["threats"]:
        cards = []
        for metric in ranked(board):
            if (metric["id"], threat["id"]) in ratios:
                values, others = ratios[metric["id"], threat["id"]]
                past = f"{100 * sum(value > 1 for value in values) / len(values):.0f}"
                cards.append((metric, charts.histogram(values, others, top), figure(statistics.median(values)), past))
        if cards:
            groups.append((ball_name(threat), cards))
    end = f"{top:g}{'+' * any(value > top for values in every for value in values)}"
    return {"groups": groups, "one": charts.short(5 + 160 / top), "end": end}
