"""The page's end: the papers' numbers, the settings, and what to read with care."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from rclip_metric.train.benchmark.page.reading import (
    JsonObject,
    data_name,
    is_judged,
    known,
    measured_sets,
    score_of,
    tried_threats,
)
from rclip_metric.train.benchmark.page.words import DASH, ball_name, joined, norm_name

PAPER_BALLS = {"linf": 4 / 255, "l2": 3.0}


def paper_section(board: JsonObject) -> dict[str, Any]:
    """List the papers' numbers, and those measured here of the same metrics; empty if there are none."""
    metrics = {metric["id"]: metric for metric in board["metrics"]}
    rows = [metrics.get(row.get("metric")) for row in board["paper"]]
    groups: dict[tuple[str, bool], list[tuple[str, list[str]]]] = {}  # name, comparable -> columns: heading and cells
    for key, name in (("nights", "NIGHTS"), ("bapps", "BAPPS")):
        for column in ("clean", *PAPER_BALLS):
            values = [known((row.get(key) or {}).get(column)) for row in board["paper"]]
            if any(value is not None for value in values):
                heading = "clean" if column == "clean" else norm_name(column)
                groups.setdefault((f"paper, {name}", True), []).append((heading, list(map(_cell, values))))
    if not groups:
        return {}
    others = []
    for data in filter(is_judged, measured_sets(board)):
        comparable = data.get("comparable") is True
        near = [_closest(tried_threats(board, data), norm) for norm in PAPER_BALLS]
        for threat in (None, *filter(None, near)):
            scores = [score_of(metric, data, threat) if metric else None for metric in rows]
            if any(scores):
                cells = [_cell(score["accuracy"] if score else None) for score in scores]
                group = groups.setdefault((f"here, {data_name(data)}", comparable), [])
                group.append(("clean" if threat is None else ball_name(threat), cells))
                others += [] if comparable else [data_name(data)]
    columns = [(n == 0, *column) for group in groups.values() for n, column in enumerate(group)]
    return {
        "groups": [(name, comparable, len(group)) for (name, comparable), group in groups.items()],
        "heads": [(edge, heading) for edge, heading, _ in columns],
        "rows": [
            (row["label"], metric, [(edge, cells[n]) for edge, _, cells in columns])
            for n, (row, metric) in enumerate(zip(board["paper"], rows, strict=True))
        ],
        "others": joined(others) if others else None,
    }


def _cell(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}"


def _closest(threats: Sequence[JsonObject], norm: str) -> JsonObject | None:
    """Find the threat of a norm whose radius is nearest to the paper's."""
    found = [threat for threat in threats if threat.get("norm") == norm]
    return min(found, key=lambda threat: abs((known(threat.get("eps")) or 0.0) - PAPER_BALLS[norm]), default=None)


def settings_section(board: JsonObject) -> dict[str, Any]:
    """List the command, the settings, the metrics, and what to read with care."""
    facts: list[tuple[str, str]] = [
        (Markup("attack, ") + ball_name(t), str(t["words"])) for t in board["threats"] if t.get("words")
    ]
    facts += [(str(key), _setting(value)) for key, value in board["settings"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in board["versions"].items())
    machine = {**board["device"]}
    machine |= {"onednn": f"oneDNN {machine['onednn']}"} if machine.get("onednn") else {}
    device = ", ".join(_setting(value) for value in machine.values() if value)
    facts += [(name, words) for name, words in (("versions", versions), ("machine", device)) if words]
    told = []
    for metric in board["metrics"]:
        about = [metric.get("revision"), f"{metric['image_size']} pixels" if metric.get("image_size") else None]
        about += [metric.get("similarity"), metric.get("source")]
        told.append((metric, ", ".join(str(part) for part in about if part) or DASH))
    return {"command": str(board["command"] or ""), "facts": facts, "metrics": told, "care": _caveats(board)}


def _setting(value: Any) -> str:
    """Put a setting into words."""
    if isinstance(value, list | tuple) and value and not any(isinstance(part, dict | list) for part in value):
        return ", ".join(map(_setting, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return value if isinstance(value, str) else json.dumps(value)


def _caveats(board: JsonObject) -> list[str]:
    """Say what the numbers do not say, and what was not measured."""
    metrics = board["metrics"]
    care = [
        f"{data_name(data)}: {data['note']}"
        for data in measured_sets(board)
        if data.get("note") and not is_judged(data)
    ]
    parts = {
        "attacks": bool(board["threats"]),
        "certified accuracy": any(found.get("certified") for metric in metrics for found in metric["results"].values()),
        "speed and memory": any(metric["timing"] for metric in metrics),
        "accuracy against the radius": any(metric["sweep"] for metric in metrics),
        "direct attacks": any(metric["direct"] for metric in metrics),
        "example triplets": bool(board["examples"]),
    }
    if parts["attacks"]:
        care.append("Accuracy under attack is an upper bound: a stronger attack can only lower it.")
    if parts["certified accuracy"]:
        care.append("Certified accuracy is a lower bound: it holds against any attack of that radius.")
    sizes = {metric["image_size"] for metric in metrics if metric.get("image_size")}
    if len(sizes) > 1 and any(threat.get("norm") == "l2" for threat in board["threats"]):
        care.append(
            Markup(
                "The metrics see images of {} to {} pixels, and an {} radius is that of the image as the metric sees "
                "it: the same radius is a larger change of a smaller image."
            ).format(min(sizes), max(sizes), norm_name("l2"))
        )
    if parts["speed and memory"]:
        care.append("Pairs per second and memory are of this machine and this run: compare their ratios.")
    missing = [name for name, there in parts.items() if not there]
    if missing:
        care.append(f"Not part of this benchmark: {joined(missing)}.")
    return [*care, "A dash is what was not measured. This file holds all that it shows, and loads nothing."]
