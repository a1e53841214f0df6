"""Results of `eval retrieval` and `eval filter` that lie among a benchmark's own: rows of its board."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rclip_metric.train.evaluation.results.labels import Record, data_label, named
from rclip_metric.train.evaluation.results.record import load_results, short_revision
from rclip_metric.train.metrics.paper import reported_retrieval
from rclip_metric.train.metrics.paper_filter import reported_landed

TASKS = ("retrieval", "filter")
PHASES = {"clean": "clean", "robust": "attacked"}
LEVELS = {"E": "Easy", "M": "Medium", "H": "Hard"}
Numbers = Mapping[str, Mapping[str, float]]
_OURS = re.compile(rb'"task":\s*"(retrieval|filter)"')


def read_searches(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the results of retrieval and filters in a folder, and in `retrieval` and `filter` in it.

    Returns:
        By task the rows of a board, JSON; a task without results is not there. A row has the metric's `label`, `id` and
        `revision`, its `data`, `digest` and `samples`, the attack's `threat` and `words` (None without one), `cells`
        (group of columns -> column -> summary in percent, with the paper's number), `points` (what is compared ->
        clean and attacked summary) and `warnings`.

    Raises:
        ValueError: a result is damaged.

    Example:
        >>> from tempfile import mkdtemp
        >>> read_searches(Path(mkdtemp()))
        {}
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for place in (folder, *(folder / task for task in TASKS)):
        for path in sorted(place.glob("*.json")):
            if _OURS.search(path.read_bytes()):
                [record] = load_results([path])
                found.setdefault(record["task"], []).append(_row(record))
    return {task: found[task] for task in TASKS if task in found}


def _row(record: Record) -> dict[str, Any]:
    model, data, threat = record["model"], record["data"], record["threat"]
    cells, points = (_ranked if record["task"] == "retrieval" else _landed)(record)
    about = {"label": named({**model, "revision": None}), "id": model["name"]}
    about |= {"revision": short_revision(model.get("revision")) or None, "data": data_label(record)}
    about |= {"digest": data.get("digest"), "samples": data["samples"], "warnings": record["warnings"]}
    about |= {"threat": None, "words": None, "cells": cells, "points": points}
    if threat["attack"] == "none":
        return about
    ball = {key: threat[key] for key in ("norm", "eps", "eps_text")}
    words = f"{threat['attack']}, {threat['steps']} steps, on {threat['loss']}"
    return about | {"threat": {"id": f"{threat['norm']} {threat['eps_text']}", **ball}, "words": words}


def _ranked(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read mean average precision of each difficulty, and precision at k of Medium, which is all that belongs to it."""
    found = record["retrieval"]
    alone = len(found["clean"]) == 1
    cells: dict[str, Any] = {}
    points: dict[str, list[Any]] = {}
    for phase, group in PHASES.items():
        paper = _paper(record, group)
        for level, part in (found[phase] or {}).items():
            name = "mAP" if alone else f"mAP {LEVELS.get(level, level)}"
            cell = _cell(part["map"], paper.get(level, {}).get("map"))
            cells.setdefault(group, {})[name] = cell
            points.setdefault(name, []).append(cell)
        for k, share in ((found[phase] or {}).get("M") or {}).get("precision_at", {}).items():
            cells[group][f"P@{k}"] = _cell(share, None)
    return cells, points


def _landed(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read where the queries of each direction land; those that stay what they are are compared."""
    found = record["landed"]
    cells: dict[str, Any] = {}
    points: dict[str, list[Any]] = {}
    for direction in found["clean"]:
        own = direction.split(" to ")[0]
        for phase in PHASES.values():
            paper = _paper(record, phase).get(direction, {})
            if shares := (found[phase] or {}).get(direction):
                group = {role: _cell(share, paper.get(role)) for role, share in shares.items()}
                cells[f"{direction}, {phase}"] = group
                points.setdefault(f"{own} that stays {own}", []).append(group[own])
    return cells, points


def _landmarks(record: Record, phase: str) -> Numbers:
    """Name the paper's mAP as `retrieval` in a record does."""
    found = reported_retrieval(record)
    names = {level: words + ("" if phase == "clean" else "_linf") for level, words in (("M", "medium"), ("H", "hard"))}
    return {level: {"map": found[name]} for level, name in names.items() if name in found}


PAPER: dict[str, Callable[[Record, str], Numbers]] = {"retrieval": _landmarks, "filter": reported_landed}
"""By task: what the paper reports beside a record, "clean" or "attacked": part -> name -> percent; {} for nothing."""


def _paper(record: Record, phase: str) -> Numbers:
    return PAPER[record["task"]](record, phase)


def _cell(found: Mapping[str, Any], paper: float | None) -> dict[str, Any]:
    return {**{key: found[key] for key in ("accuracy", "interval_95", "samples")}, "paper": paper}
