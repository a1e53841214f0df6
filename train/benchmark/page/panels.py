"""The page's charts: clean against robust, accuracy against the radius, proof, and the direct attack's distances."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rclip_metric.train.benchmark.page import charts, proof_charts
from rclip_metric.train.benchmark.page.proof import ProofTable, proof_table
from rclip_metric.train.benchmark.page.reading import Board, Found, at, interval, numbers, rows, score, smoothed
from rclip_metric.train.benchmark.page.words import NORMS, short

CHANCE = {"2afc": 50.0}
TOP_RATIO = 4.0  # where the axis of the histograms ends at the latest
Panels = list[tuple[Markup, Markup]]  # charts side by side: their names and pictures


def scatter_section(board: Board) -> list[tuple[str | None, Panels]]:
    """Draw clean against robust accuracy, a panel per threat."""

    def draw(data: Found) -> Panels:
        panels = []
        for threat in board.tried(data):
            points = []
            for metric in board.metrics:
                clean, robust = score(metric, data), score(metric, data, threat)
                if clean and robust:
                    place = (clean["accuracy"], robust["accuracy"], interval(clean), interval(robust))
                    points.append(charts.Point(metric["label"], metric["look"], *place))
            if points:
                panels.append((threat["ball"], charts.scatter(points, "clean accuracy, %", "robust accuracy, %")))
        return panels

    return board.per_set(draw)


def radius_section(board: Board) -> list[tuple[str | None, Panels]]:
    """Draw accuracy against the radius, a panel per norm."""

    def draw(data: Found) -> Panels:
        panels = []
        for norm, name in NORMS.items():
            unit, words = (255, "radius, in 255ths") if norm == "linf" else (1, "radius")
            lines = []
            for metric in board.ranked(data):
                sweep = rows(at(metric["sweep"], data["id"], norm), 4)
                points = [(eps * unit, percent, low, high) for eps, percent, low, high in sweep]
                curve = at(metric["results"], data["id"], "certified", "curve") if norm == "l2" else None
                if points or curve:
                    lines.append(charts.Line(metric["label"], metric["look"], points, rows(curve, 2)))
            if lines:
                panels.append((name, charts.curves(lines, words, "accuracy, %", CHANCE.get(data["task"]))))
        return panels

    return board.per_set(draw)


@dataclass(frozen=True)
class ProofPart:
    """What is proven on a data set: its table, a chart of all metrics, and one of each that has a curve."""

    table: ProofTable
    together: Markup | None
    alone: Sequence[tuple[Found, Markup]]


def proof_section(board: Board) -> list[tuple[str | None, ProofPart | None]]:
    """Draw what is certified against the l_2 radius, all metrics in one chart, and each beside its attack."""

    def draw(data: Found) -> ProofPart | None:
        table = proof_table(board, data)
        if table is None:
            return None
        drawn: dict[str, tuple[Found, proof_charts.Proof]] = {}
        for metric in (row.metric for row in table.rows):
            attacked = rows(at(metric["sweep"], data["id"], "l2"), 4)
            own = rows(at(metric["results"], data["id"], "certified", "curve"), 2)
            noisy = {found["sigma"]: rows(found["curve"], 2) for found in smoothed(metric, data)}
            noisy = {sigma: curve for sigma, curve in noisy.items() if curve}
            if own or noisy:
                proof = proof_charts.Proof(metric["label"], metric["look"], attacked, own, noisy)
                drawn[metric["id"]] = (metric, proof)
        if not drawn:
            return ProofPart(table, None, [])
        proofs = [proof for _, proof in drawn.values()]
        top = proof_charts.top_radius(proofs)
        alone = [(metric, proof_charts.alone(proof, top)) for metric, proof in drawn.values()]
        return ProofPart(table, proof_charts.together(proofs, top), alone)

    return board.per_set(draw)


def distance_section(board: Board) -> dict[str, Any]:
    """Draw histograms of d(x, x + delta), a card per threat and metric."""
    ratios: dict[str, list[tuple[Found, list[float], list[float]]]] = {}
    for metric in board.ranked():
        for name, found in metric["direct"].items():
            values, others = numbers(found["distances"]), numbers(found["others"])
            scale = statistics.median(others) if others else 0.0
            if values and scale > 0:
                card = (metric, [value / scale for value in values], [value / scale for value in others])
                ratios.setdefault(name, []).append(card)
    if not ratios:
        return {}
    every = [sorted(values) for cards in ratios.values() for _, *pair in cards for values in pair]
    most = max(values[int(0.98 * (len(values) - 1))] for values in every)
    top = min(TOP_RATIO, max(1.5, math.ceil(2 * most) / 2))
    groups = []
    for threat in board.threats:
        cards = []
        for metric, values, others in ratios.get(threat["id"], ()):
            past = sum(value > 1 for value in values) / len(values)
            cards.append((metric, charts.histogram(values, others, top), statistics.median(values), past))
        if cards:
            groups.append((threat["ball"], cards))
    end = f"{top:g}{'+' * any(values[-1] > top for values in every)}"
    return {"groups": groups, "one": short(5 + 160 / top), "end": end}
