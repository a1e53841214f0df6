"""The table of results: a row per model and data set, a column per threat model, the paper's numbers beside ours."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rclip_metric.printing import printable
from rclip_metric.train.evaluation.results.curves import plot, sweep_plot
from rclip_metric.train.evaluation.results.labels import (
    Record,
    Threat,
    data_label,
    interval_label,
    model_label,
    shared_words,
)
from rclip_metric.train.evaluation.results.record import short_revision
from rclip_metric.train.metrics.paper import reported

__all__ = ["STYLES", "Style", "plot", "sweep_plot", "table"]

Style = Literal["markdown", "csv", "html"]
STYLES = ("markdown", "csv", "html")


@dataclass(frozen=True)
class AccuracyCell:
    """A summary, the number of samples of its row, the paper's number, and the footnotes that belong to it."""

    summary: Mapping[str, Any] | None
    row_samples: int
    paper: float | None = None
    notes: tuple[int, ...] = ()

    @property
    def accuracy(self) -> str:
        """E.g. `58.8`; a dash where nothing was measured."""
        return "-" if self.summary is None else f"{self.summary['accuracy']:.1f}"

    @property
    def interval(self) -> str:
        """E.g. `(55.9 - 61.6)`, and the number of samples where it is not that of the row."""
        if self.summary is None or not self.summary.get("interval_95"):
            return ""
        low, high = self.summary["interval_95"]
        samples = self.summary.get("samples", self.row_samples)
        return f"({low:.1f} - {high:.1f}{'' if samples == self.row_samples else f'; {samples} samples'})"

    @property
    def beside(self) -> str:
        """E.g. `paper 74.3`; beside what people reach, the ceiling for any metric."""
        if self.summary is not None and "ceiling" in self.summary:
            return f"ceiling {self.summary['ceiling']:.1f}"
        return "" if self.paper is None else f"paper {self.paper:.1f}"

    @property
    def text(self) -> str:
        """E.g. `58.8 (55.9 - 61.6), paper 74.3`."""
        main = " ".join(part for part in (self.accuracy, self.interval) if part)
        return ", ".join(part for part in (main, self.beside) if part)


@dataclass
class TableRow:
    """A line of the table: the records of one run of a model over a data set, one per threat."""

    records: list[Record]
    robust: dict[Threat, Record] = field(default_factory=dict)
    notes: dict[Threat | None, list[int]] = field(default_factory=dict)

    def cell(self, threat: Threat | None) -> AccuracyCell:
        """Give the cell under a threat, or the clean one."""
        samples, notes = self.records[0]["data"]["samples"], tuple(self.notes.get(threat, ()))
        if threat is None:
            return AccuracyCell(self.records[0]["clean"], samples, reported(self.records[0], "clean"), notes)
        if threat not in self.robust:
            return AccuracyCell(None, samples)
        record = self.robust[threat]
        return AccuracyCell(record["robust"], samples, reported(record, "robust"), notes)

    @property
    def human(self) -> AccuracyCell:
        """What people reach, with the ceiling for any metric if it is known."""
        found = [record["human"] for record in self.records if record["human"] is not None]
        return AccuracyCell(found[0] if found else None, self.records[0]["data"]["samples"])


@dataclass(frozen=True)
class Leaderboard:
    """Rows and columns in order, and what is said below them."""

    rows: list[TableRow]
    threats: list[Threat]
    labels: dict[Threat, str]
    caption: str
    footnotes: list[str]
    human: bool


def table(records: Sequence[Record], style: Style = "markdown") -> str:
    """Lay out records as a table.

    A row is a model (with its revision) on a data set, a column a threat model: l_inf by eps, then l_2. Data sets
    stay together; within one, the first robust column decides the order. Cells are percent with 95 % intervals.

    Args:
        records: as `evaluate` gives them; one that comes twice counts once, two runs of the same thing are two rows.
        style: "markdown"; "csv", with a column per number and 4 decimals; or "html", a page that needs nothing else.

    Raises:
        ValueError: for no records or an unknown style.

    Example:
        >>> from rclip_metric.train.evaluation.results import Effort, Outcome
        >>> from rclip_metric.train.evaluation.results.record import record
        >>> rows = [Outcome("1", "a", 1.0, False, 0.2), Outcome("2", "b", 0.0, False, -0.1)]
        >>> about = {"task": "2afc", "model": {"name": "m"}, "data": {"name": "d"}, "threat": {"attack": "none"}}
        >>> print(table([record(rows, effort=Effort(1.0), **about)]).splitlines()[2])
        | m | d | 2 | 50.0 (0.0 - 100.0) |
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: use one of {', '.join(STYLES)}")
    if not records:
        raise ValueError("there are no results to make a table of: pass at least one")
    board = _arrange(records)
    return {"markdown": _markdown, "csv": _csv, "html": _html}[style](board)


def _arrange(records: Sequence[Record]) -> Leaderboard:
    rows = _rows(records)
    threats = sorted({threat for row in rows for threat in row.robust}, key=lambda threat: threat.order)

    def rank(row: TableRow) -> tuple[Any, ...]:
        first, robust, clean = row.records[0], row.cell(threats[0]).summary if threats else None, row.cell(None).summary
        return (
            data_label(first),
            -robust["accuracy"] if robust else 1.0,
            -clean["accuracy"] if clean else 1.0,
            model_label(first),
        )

    rows.sort(key=rank)
    shared = shared_words([threat.settings() for threat in threats])
    labels = {}
    for threat in threats:
        own = [word for key, word in threat.settings().items() if key not in shared]
        labels[threat] = " ".join([threat.ball, *own])
    caption = f"Percent, with {_intervals(rows)}."
    if shared:
        kind = "Certificate" if all(threat.proven for threat in threats) else "Attack"
        caption += f" {kind}: {', '.join(shared.values())}."
    footnotes = _number_warnings(rows, labels)
    return Leaderboard(rows, threats, labels, caption, footnotes, any(row.human.summary for row in rows))


def _intervals(rows: Sequence[TableRow]) -> str:
    """Name the kinds of intervals, each with its data sets where there are both."""
    kinds: dict[str, dict[str, None]] = {}
    for row in rows:
        kinds.setdefault(interval_label(row.records[0]), {})[data_label(row.records[0])] = None
    if len(kinds) == 1:
        return next(iter(kinds))
    return " and ".join(f"{kind} ({', '.join(names)})" for kind, names in kinds.items())


def _rows(records: Sequence[Record]) -> list[TableRow]:
    """Merge the records of one model on one data set.

    A threat that is there already, another number of samples, another clean accuracy or another kind of interval mean
    another run: another row.
    """
    rows: dict[tuple[Any, ...], list[TableRow]] = {}
    for index, record in enumerate(records):
        if record in records[:index]:
            continue
        clean = (record["data"]["samples"], record["clean"]["accuracy"], interval_label(record))
        identity = (data_label(record), model_label(record), *clean)
        runs, threat = rows.setdefault(identity, []), Threat.of(record)
        row = next((run for run in runs if threat not in run.robust), None)
        if row is None:
            row = TableRow([])
            runs.append(row)
        row.records.append(record)
        if threat is not None:
            row.robust[threat] = record
    return [run for runs in rows.values() for run in runs]


def _number_warnings(rows: Sequence[TableRow], labels: Mapping[Threat, str]) -> list[str]:
    """Number the warnings, once per row and sentence, and leave the numbers in the rows; returns the footnotes."""
    footnotes: list[str] = []
    for row in rows:
        known: dict[str, int] = {}
        for record in row.records:
            threat = Threat.of(record)
            for sentence in record["warnings"]:
                if sentence not in known:
                    footnotes.append(f"{model_label(record)}, {labels[threat] if threat else 'clean'}: {sentence}")
                    known[sentence] = len(footnotes)
                row.notes.setdefault(threat, []).append(known[sentence])
    return footnotes


def plain_markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is, in one line."""
    return re.sub(r"([\\`*|\[\]])", r"\\\1", html.escape(printable(text), quote=False))


def _markdown(board: Leaderboard) -> str:
    plain = plain_markdown

    def shown(cell: AccuracyCell) -> str:
        return cell.text + "".join(f" [{n}]" for n in cell.notes)

    head = ["model", "data", "samples", "clean", *(board.labels[threat] for threat in board.threats)]
    lines = ["| " + " | ".join(map(plain, head + ["human"] * board.human)) + " |"]
    lines.append("|---|---|" + "---:|" * (len(head) - 2 + board.human))
    for row in board.rows:
        first = row.records[0]
        cells = [plain(model_label(first)), plain(data_label(first)), str(first["data"]["samples"])]
        cells += [shown(row.cell(threat)) for threat in (None, *board.threats)]
        cells += [shown(row.human)] * board.human
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", plain(board.caption)]
    if board.footnotes:
        lines += ["", *(f"- [{number}] {plain(note)}" for number, note in enumerate(board.footnotes, 1))]
    return "\n".join(lines)


def _csv(board: Leaderboard) -> str:
    head = ["model", "revision", "resize", "data", "split", "protocol", "samples", "ties", "intervals"]
    for name in ("clean", *(", ".join([t.ball, *t.settings().values()]) for t in board.threats)):
        head += [name, f"{name}: low", f"{name}: high", f"{name}: samples", f"{name}: paper"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *["human", "human: ceiling"] * board.human, "warnings"])
    for row in board.rows:
        first = row.records[0]
        model, data = first["model"], first["data"]
        values = [model["name"], short_revision(model.get("revision")), model.get("resize")]
        values += [
            *(data.get(key) for key in ("name", "split", "protocol", "samples")),
            first["clean"]["ties"],
            interval_label(first),
        ]
        for threat in (None, *board.threats):
            cell = row.cell(threat)
            found = cell.summary or {}
            values += [found.get("accuracy"), *found.get("interval_95", (None, None)), found.get("samples"), cell.paper]
        people = row.human.summary or {}
        values += [people.get("accuracy"), people.get("ceiling")] * board.human
        warnings = dict.fromkeys(sentence for record in row.records for sentence in record["warnings"])
        writer.writerow([printable(v) if isinstance(v, str) else v for v in (*values, " ".join(warnings))])
    return text.getvalue().rstrip("\n")


def _html(board: Leaderboard) -> str:
    from rclip_metric.train.html import render

    threats = (None, *board.threats)
    head = ["model", "data", "samples", "clean", *(board.labels[threat] for threat in board.threats)]
    rows = []
    for row in board.rows:
        first, cells = row.records[0], [*map(row.cell, threats), *[row.human] * board.human]
        rows.append((model_label(first), data_label(first), first["data"]["samples"], cells))
    return render(
        "results.html",
        title="Accuracy on " + ", ".join(dict.fromkeys(data_label(row.records[0]) for row in board.rows)),
        head=head + ["human"] * board.human,
        rows=rows,
        caption=board.caption,
        footnotes=board.footnotes,
    )
