"""The papers' numbers, and those measured here of the same metrics."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import Any

from rclip_metric.train.benchmark.page.reading import Board, Found, at, score
from rclip_metric.train.benchmark.page.words import norm_name
from rclip_metric.train.metrics.paper import TWO_AFC_RADII


def paper_section(board: Board) -> dict[str, Any]:
    """List the columns that have any number, and their groups; empty if the papers have none."""
    metrics = {metric["id"]: metric for metric in board.metrics}
    rows = [metrics.get(row["metric"]) for row in board.paper]
    columns: list[tuple[Any, ...]] = []  # where from, of which data, whether those are the paper's, heading, numbers
    for key in ("nights", "bapps"):
        for ball in ("clean", *TWO_AFC_RADII):
            values = [at(row, key, ball) for row in board.paper]
            columns.append(("paper", key.upper(), True, "clean" if ball == "clean" else norm_name(ball), values))
    if not any(map(_filled, columns)):
        return {}
    for data in (data for data in board.sets() if data["judged"]):
        near: list[Found] = []
        for norm, eps in TWO_AFC_RADII.items():
            threats = [threat for threat in board.tried(data) if threat["norm"] == norm]
            near += sorted(threats, key=lambda threat: abs((threat["eps"] or 0.0) - eps))[:1]
        for threat in (None, *near):
            values = [at(score(metric, data, threat) if metric else None, "accuracy") for metric in rows]
            heading = threat["ball"] if threat else "clean"
            columns.append(("here", data["label"], data["comparable"] is True, heading, values))
    columns = list(filter(_filled, columns))
    groups = [(key, len(list(members))) for key, members in groupby(columns, key=itemgetter(0, 1, 2))]
    return {"columns": columns, "groups": groups, "rows": list(zip(board.paper, rows, strict=True))}


def _filled(column: tuple[Any, ...]) -> bool:
    return any(value is not None for value in column[-1])
