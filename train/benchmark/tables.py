"""A board as Markdown, CSV and JSON, written with the page as files that are there as a whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from rclip_metric.train.benchmark.page.reading import SHARE, JsonObject, is_judged, ranked, timed
from rclip_metric.train.evaluation.results.leaderboard import AccuracyCell, plain_markdown
from rclip_metric.train.runs.files import write_json, write_text

TextColumn = tuple[str, Callable[[JsonObject], str]]
_NOTHING = "-"


def write_board(board: JsonObject, out: Path, *, page: bool) -> None:
    """Write benchmark.json, .md, .csv and, if asked for, .html into a folder.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    write_json(out / "benchmark.json", dict(board))
    write_text(out / "benchmark.md", markdown(board))
    write_text(out / "benchmark.csv", as_csv(board))
    if page:
        from rclip_metric.train.benchmark.page.page import page as html

        write_text(out / "benchmark.html", html(board))


def markdown(board: JsonObject) -> str:
    """Draw a table of all data sets where there are several, one of each, best first, and list what failed.

    Example:
        >>> board = {"data": [], "threats": [], "metrics": [{"label": "ssim", "failures": ["there is no GPU"]}]}
        >>> print(markdown(board))
        Not measured:
        <BLANKLINE>
        - ssim: there is no GPU
    """
    parts = [_glance(board)] if len(board["data"]) > 1 else []
    for data in board["data"]:
        rows = [metric for metric in ranked(board, data) if data["id"] in metric["results"]]
        attacks = sorted({threat["words"] for threat in board["threats"]})
        told = data.get("intervals") or "95 % bootstrap intervals"  # a board of before they could differ has none
        caption = f"{data['label']}, {data['samples']} samples; percent, with {told}."
        caption += f" Attack: {'; '.join(attacks)}." if attacks and data["task"] == "2afc" else ""
        caption += f" {data['note']}" if data.get("note") and not is_judged(data) else ""
        parts.append(_drawn(rows, _columns(board, data), caption))
    failed = [f"- {metric['label']}: {sentence}" for metric in board["metrics"] for sentence in metric["failures"]]
    if failed:
        parts.append("\n".join(["Not measured:", "", *failed]))
    return "\n\n".join(parts)


def _glance(board: JsonObject) -> str:
    """Draw what every metric reached on every data set, in the order of the first one's table; numbers alone."""
    columns: list[TextColumn] = []
    for data in board["data"]:
        columns += [(f"{data['id']} {title}", show) for title, show in _scores(board, data, attrgetter("accuracy"))]
    caption = "All sets at a glance, in the order of the first: percent; intervals and numbers of samples are below."
    return _drawn(ranked(board, board["data"][0]), columns + _speeds(board), caption)


def _drawn(rows: Sequence[JsonObject], columns: Sequence[TextColumn], caption: str) -> str:
    """Draw a table of the columns in which any row has something to show, and what is said below it."""
    columns = [column for column in columns if any(column[1](metric) != _NOTHING for metric in rows)]
    head = ["metric", *(title for title, _ in columns)]
    lines = ["| " + " | ".join(map(plain_markdown, head)) + " |", "|---|" + "---:|" * len(columns)]
    for metric in rows:
        cells = [show(metric) for _, show in columns]
        lines.append("| " + " | ".join(map(plain_markdown, [_name(metric), *cells])) + " |")
    return "\n".join([*lines, "", plain_markdown(caption)])


def _name(metric: JsonObject) -> str:
    return metric["label"] + (f" @ {metric['revision']}" if metric["revision"] else "")


def _columns(board: JsonObject, data: JsonObject) -> list[TextColumn]:
    """List heading and cell of every column in which a metric may have something to show."""
    columns = _scores(board, data)
    proven = [m["results"][data["id"]]["certified"] for m in board["metrics"] if data["id"] in m["results"]]
    if points := next((found["points"] for found in proven if found), None):  # the others are in the CSV
        title = f"certified l2 {points[0]['eps_text']}"
        columns.append(_score(title, data, "certified", _first_proven))
    columns += _speeds(board)
    if timed(board):
        columns.append(("MB", lambda metric: _memory(metric)))
    columns.append(("parameters", lambda metric: _millions(metric["parameters"])))
    columns.append(("licence", lambda metric: metric["licence"] or "?"))
    return columns


def _first_proven(result: JsonObject) -> Any:
    return result["certified"] and result["certified"]["points"][0]


def _scores(
    board: JsonObject, data: JsonObject, text: Callable[[AccuracyCell], str] = attrgetter("text")
) -> list[TextColumn]:
    """List the columns of scores: clean, or the share for shape, and under every threat."""
    columns = [_score("clean" if is_judged(data) else SHARE, data, "clean", itemgetter("clean"), text)]
    for threat in board["threats"]:
        name = threat["id"]
        columns.append(_score(name, data, name, lambda result, name=name: result["robust"].get(name), text))  # type: ignore[misc]
    return columns


def _score(
    title: str,
    data: JsonObject,
    name: str,
    find: Callable[[JsonObject], Any],
    text: Callable[[AccuracyCell], str] = attrgetter("text"),
) -> TextColumn:
    """Make a column of what `find` takes out of a metric's result; `name` is that of the paper's number."""

    def show(metric: JsonObject) -> str:
        result = metric["results"].get(data["id"])
        return text(AccuracyCell(find(result), result["samples"], result["paper"].get(name))) if result else _NOTHING

    return title, show


def _speeds(board: JsonObject) -> list[TextColumn]:
    """List the columns of pairs per second, of every type of number and batch size that was timed."""
    columns: list[TextColumn] = []
    for precision, size in timed(board):
        short = {"float32": "fp32", "bfloat16": "bf16"}[precision]
        columns.append((f"pairs/s {short}, batch {size}", lambda m, p=precision, b=size: _speed(m, p, b)))  # type: ignore[misc]
    return columns


def _speed(metric: JsonObject, precision: str, size: str) -> str:
    cell = ((metric["timing"] or {}).get(precision) or {}).get(size)
    if not cell:
        return _NOTHING
    rate = cell["pairs_per_second"]
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _memory(metric: JsonObject) -> str:
    cells = (metric["timing"] or {}).get("float32") or {}
    return f"{cells['memory_mb']:.0f}" if cells.get("memory_mb") is not None else _NOTHING


def _millions(parameters: int | None) -> str:
    return _NOTHING if parameters is None else "0" if parameters == 0 else f"{parameters / 1e6:.3g} M"


def as_csv(board: JsonObject) -> str:
    """Write a line per metric, data set and column: percent, with 4 decimals.

    Columns are "clean", a ball, "certified l2 ...", and "share for shape, %".
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "label", "revision", "data", "column", "percent", "low", "high", "samples", "paper"])
    first = {data["id"]: "clean" if is_judged(data) else SHARE for data in board["data"]}
    for metric in board["metrics"]:
        for data, result in metric["results"].items():
            cells = {first[data]: result["clean"], **result["robust"]}
            for point in (result["certified"] or {"points": []})["points"]:
                cells[f"certified l2 {point['eps_text']}"] = point
            for column, found in cells.items():
                own = [metric["id"], metric["label"], metric["revision"], data, column]
                numbers = [found["accuracy"], *found["interval_95"], found["samples"], result["paper"].get(column)]
                writer.writerow([*own, *numbers])
    return text.getvalue().rstrip("\n")
