"""A board as Markdown, CSV and JSON, written with the page as files that are there as a whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from rclip_metric.printing import printable
from rclip_metric.train.benchmark.page.proof import ProofTable, proof_table
from rclip_metric.train.benchmark.page.reading import Board, JsonObject, at, compared, interval
from rclip_metric.train.benchmark.page.searches import SearchTable, search_tables
from rclip_metric.train.benchmark.page.table import (
    Column,
    certified_columns,
    columns,
    score_columns,
    smoothed_columns,
    speed_columns,
)
from rclip_metric.train.benchmark.page.words import DASH, figure
from rclip_metric.train.evaluation.results.leaderboard import plain_markdown
from rclip_metric.train.runs.files import write_json, write_text

_NOTHING = "-"
# How a cell of a kind of column is written.
_TEXTS: dict[str, Callable[[Any], str]] = {
    "accuracy": attrgetter("text"),
    "accuracy alone": attrgetter("accuracy"),
    "certified": attrgetter("text"),
    "speed": lambda cell: _rate(cell),
    "memory": lambda found: f"{found['float32']:.0f}" if "float32" in found else _NOTHING,
    "count": lambda number: f"{number / 1e6:.3g} M" if number else "0",
    "words": str,
}


def _rate(cell: JsonObject) -> str:
    """Write pairs per second, and in brackets the ratio to the reference."""
    rate, times = cell["pairs_per_second"], at(cell, "ratio", "times")
    return (f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}") + (f" ({figure(times)})" if times is not None else "")


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
    read = Board(board)
    parts = [_glance(read)] if len(read.data) > 1 else []
    for data in read.data:
        rows = [metric for metric in read.ranked(data) if data["id"] in metric["results"]]
        attacks = sorted({threat["words"] for threat in read.threats if threat["words"]})
        told = data["intervals"] or "95 % bootstrap intervals"  # a board of before they could differ has none
        caption = f"{data['label']}, {data['samples']} samples; percent, with {told}."
        caption += f" Attack: {'; '.join(attacks)}." if attacks and data["task"] == "2afc" else ""
        caption += f" {data['note']}" if data["note"] and not data["judged"] else ""
        parts.append(_drawn(rows, columns(read, data), caption))
        if proven := proof_table(read, data):
            parts.append(_proven(data, proven))
    parts += [_searched(table) for task in read.searches for table in search_tables(read, task)]
    failed = [f"{metric['label']}: {said}" for metric in read.metrics for said in metric["failures"] or ()]
    if failed:
        parts.append("\n".join(["Not measured:", "", *(f"- {printable(line)}" for line in failed)]))
    return "\n\n".join(parts)


def _searched(table: SearchTable) -> str:
    """Draw what was retrieved, or where queries of a filter landed, and what is said below it."""
    columns = [(group, name) for group, names in table.groups.items() for name in names]
    lines = [["metric", "attack", *(f"{group}: {name}" for group, name in columns)]]
    for row in table.rows:
        revision = f" @ {row['revision']}" if row["revision"] else ""
        attack = f"{row['threat']['id']}, {row['words']}" if row["threat"] else _NOTHING
        cells = [cell.text if (cell := table.cell(row, *column)) else _NOTHING for column in columns]
        lines.append([row["label"] + revision, attack, *cells])
    head, *drawn = ["| " + " | ".join(map(plain_markdown, line)) + " |" for line in lines]
    told = f"{table.name}; percent, with 95 % intervals."
    told += "".join(f" {note} ({', '.join(labels)})" for note, labels in table.notes.items())
    return "\n".join([head, "|---|---|" + "---:|" * len(columns), *drawn, "", plain_markdown(told)])


def _proven(data: JsonObject, table: ProofTable) -> str:
    """Draw what is proven beside what was found, a line for each sigma, and how far it can be trusted."""
    lines = [["metric", *(column.title for column in table.columns)]]
    for row in table.rows:
        cells = [column.cell(row)[0] for column in table.columns]
        lines.append([row.metric["label"], *(_NOTHING if cell == DASH else cell for cell in cells)])
    head, *drawn = ["| " + " | ".join(map(plain_markdown, line)) + " |" for line in lines]
    told = f"{data['label']}, what is proven beside what was found; percent, radii and counts. {table.said}".strip()
    return "\n".join([head, "|---|" + "---:|" * len(table.columns), *drawn, "", plain_markdown(told)])


def _glance(board: Board) -> str:
    """Draw what every metric reached on every data set, in the order of the first one's table; numbers alone."""
    shown: list[Column] = []
    for data in board.data:
        for column in score_columns(board, data):
            shown.append(replace(column, kind="accuracy alone", title=f"{data['id']} {column.title}"))
    caption = "All sets at a glance, in the order of the first: percent; intervals and numbers of samples are below."
    return _drawn(board.ranked(board.data[0]), shown + speed_columns(board), caption)


def _drawn(rows: Sequence[JsonObject], columns: Sequence[Column], caption: str) -> str:
    """Draw a table of the columns in which any row has something to show, and what is said below it."""
    cells = {column.title: [_text(column, metric) for metric in rows] for column in columns}
    cells = {title: texts for title, texts in cells.items() if set(texts) - {_NOTHING}}
    names = [metric["label"] + (f" @ {metric['revision']}" if metric["revision"] else "") for metric in rows]
    lines = [["metric", *cells], *map(list, zip(names, *cells.values(), strict=True))]
    caption += "".join(f" {sentence}" for sentence in compared(rows, "In brackets beside pairs per second"))
    head, *drawn = ["| " + " | ".join(map(plain_markdown, line)) + " |" for line in lines]
    return "\n".join([head, "|---|" + "---:|" * len(cells), *drawn, "", plain_markdown(caption)])


def _text(column: Column, metric: JsonObject) -> str:
    found = column.find(metric)
    return _TEXTS[column.kind](found) if found is not None else "?" if column.kind == "words" else _NOTHING


def as_csv(board: JsonObject) -> str:
    """Write a line per metric, data set and column: percent, with 4 decimals.

    Columns are "clean", a ball, "certified l2 ...", "share for shape, %", and under noise "smoothed l2 ..., sigma ...",
    "smoothed, sigma ..." (the decision under noise is right) and "abstained, sigma ..." (there is none).
    """
    read = Board(board)
    shown = {
        data["id"]: [*score_columns(read, data), *certified_columns(read, data), *chain(*smoothed_columns(read, data))]
        for data in read.data
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "label", "revision", "data", "column", "percent", "low", "high", "samples", "paper"])
    for metric in read.metrics:
        for data in metric["results"]:
            for column in shown[data]:
                if cell := column.find(metric):
                    own = [metric["id"], metric["label"], metric["revision"], data, column.title]
                    bounds = interval(cell.summary) or ("", "")
                    numbers = [cell.summary["accuracy"], *bounds, cell.summary["samples"]]
                    writer.writerow(
                        [*(None if text is None else printable(text) for text in own), *numbers, cell.paper]
                    )
    return text.getvalue().rstrip("\n")
