"""A board as Markdown, CSV and JSON, written with the page as files that are there as a whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rclip_metric.train.checkpoint import write_json, write_text
from rclip_metric.train.evaluation.leaderboard import Cell, plain_markdown

Board = Mapping[str, Any]
_NOTHING = "-"


def write_board(board: Board, out: Path, *, page: bool) -> None:
    """Write benchmark.json, .md, .csv and, if asked for, .html into a folder.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    write_json(out / "benchmark.json", dict(board))
    write_text(out / "benchmark.md", markdown(board))
    write_text(out / "benchmark.csv", as_csv(board))
    if page:
        from rclip_metric.train.benchmark.page import page as html

        write_text(out / "benchmark.html", html(board))


def markdown(board: Board) -> str:
    """A table per data set, the most robust metric first, then what failed."""
    parts = []
    for data in board["data"]:
        columns = _columns(board, data["id"])
        rows = [metric for metric in board["metrics"] if data["id"] in metric["results"]]
        rows.sort(key=lambda metric: _rank(metric["results"][data["id"]], board))
        head = ["metric", *(title for title, _ in columns)]
        lines = ["| " + " | ".join(map(plain_markdown, head)) + " |", "|---|" + "---:|" * len(columns)]
        for metric in rows:
            cells = [show(metric) for _, show in columns]
            lines.append("| " + " | ".join(map(plain_markdown, [_name(metric), *cells])) + " |")
        attacks = sorted({threat["words"] for threat in board["threats"]})
        told = data.get("intervals") or "95 % bootstrap intervals"  # a board of before they could differ has none
        caption = f"{data['label']}, {data['samples']} samples; percent, with {told}."
        caption += f" Attack: {'; '.join(attacks)}." if attacks and data["task"] == "2afc" else ""
        parts.append("\n".join([*lines, "", plain_markdown(caption)]))
    failed = [f"- {metric['label']}: {sentence}" for metric in board["metrics"] for sentence in metric["failures"]]
    if failed:
        parts.append("\n".join(["Not measured:", "", *failed]))
    return "\n\n".join(parts)


def _name(metric: Mapping[str, Any]) -> str:
    return metric["label"] + (f" @ {metric['revision']}" if metric["revision"] else "")


def _rank(result: Mapping[str, Any], board: Board) -> tuple[float, ...]:
    robust = [result["robust"].get(threat["id"]) for threat in board["threats"]]
    return tuple(-found["accuracy"] if found else 1.0 for found in (*robust[:1], result["clean"]))


def _columns(board: Board, data: str) -> list[tuple[str, Callable[[Mapping[str, Any]], str]]]:
    """Heading and cell of every column in which a metric has something to show."""

    def result(metric: Mapping[str, Any]) -> Any:
        return metric["results"][data]

    def cell(metric: Mapping[str, Any], found: Mapping[str, Any] | None, column: str) -> str:
        return Cell(found or None, result(metric)["samples"], result(metric)["paper"].get(column)).text

    def robust(threat: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda metric: cell(metric, result(metric)["robust"].get(threat), threat)

    def certified(metric: Mapping[str, Any]) -> str:
        found = result(metric)["certified"]
        return cell(metric, found and found["points"][0], "certified")

    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("clean", lambda metric: cell(metric, result(metric)["clean"], "clean"))
    ]
    columns += [(threat["id"], robust(threat["id"])) for threat in board["threats"]]
    proven = [m["results"][data]["certified"] for m in board["metrics"] if data in m["results"]]
    if points := next((found["points"] for found in proven if found), None):  # the others are in the CSV
        columns.append((f"certified l2 {points[0]['eps_text']}", certified))
    for precision, size in _timed(board):
        short = {"float32": "fp32", "bfloat16": "bf16"}[precision]
        columns.append((f"pairs/s {short}, batch {size}", lambda m, p=precision, b=size: _speed(m, p, b)))  # type: ignore[misc]
    if _timed(board):
        columns.append(("MB", lambda metric: _memory(metric)))
    columns.append(("parameters", lambda metric: _millions(metric["parameters"])))
    columns.append(("licence", lambda metric: metric["licence"] or "?"))
    return [
        column for column in columns if any(data in m["results"] and column[1](m) != _NOTHING for m in board["metrics"])
    ]


def _timed(board: Board) -> list[tuple[str, str]]:
    """Precisions and batch sizes that were timed."""
    found = {
        (precision, size): None
        for metric in board["metrics"]
        for precision in ("float32", "bfloat16")
        for size in _batches((metric["timing"] or {}).get(precision))
    }
    return sorted(found, key=lambda key: (key[0] != "float32", int(key[1])))


def _batches(cells: Mapping[str, Any] | None) -> list[str]:
    return [size for size in cells or {} if size.isdecimal()]


def _speed(metric: Mapping[str, Any], precision: str, size: str) -> str:
    cell = ((metric["timing"] or {}).get(precision) or {}).get(size)
    if not cell:
        return _NOTHING
    rate = cell["pairs_per_second"]
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _memory(metric: Mapping[str, Any]) -> str:
    cells = (metric["timing"] or {}).get("float32") or {}
    return f"{cells['memory_mb']:.0f}" if cells.get("memory_mb") is not None else _NOTHING


def _millions(parameters: int | None) -> str:
    return _NOTHING if parameters is None else "0" if parameters == 0 else f"{parameters / 1e6:.3g} M"


def as_csv(board: Board) -> str:
    """A line per metric, data set and column ("clean", a ball, "certified l2 ..."): numbers with 4 decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "label", "revision", "data", "column", "accuracy", "low", "high", "samples", "paper"])
    for metric in board["metrics"]:
        for data, result in metric["results"].items():
            cells = {"clean": result["clean"], **result["robust"]}
            for point in (result["certified"] or {"points": []})["points"]:
                cells[f"certified l2 {point['eps_text']}"] = point
            for column, found in cells.items():
                own = [metric["id"], metric["label"], metric["revision"], data, column]
                numbers = [found["accuracy"], *found["interval_95"], found["samples"], result["paper"].get(column)]
                writer.writerow([*own, *numbers])
    return text.getvalue().rstrip("\n")
