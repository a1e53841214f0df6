"""Retrieval and filters on the board: a table and charts for each set of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rclip_metric.train.benchmark.page.reading import Board, Found, Look, at, interval
from rclip_metric.train.benchmark.page.words import ball_name
from rclip_metric.train.evaluation.results.leaderboard import AccuracyCell

_STAYS = " that stays "


@dataclass(frozen=True)
class SearchTable:
    """What metrics reached on one set of images.

    Attributes:
        name: of the set, and how many queries there are.
        rows: the most robust first, each with a `label`, a `look` and its `attack` in words, as HTML.
        groups: of columns, with the columns of each.
        notes: sentences, with the labels of the rows that each is about.
    """

    name: str
    rows: Sequence[Found]
    groups: dict[str, list[str]]
    notes: dict[str, list[str]]

    def cell(self, row: Found, group: str, column: str) -> AccuracyCell | None:
        """Find what a row has in a column."""
        found: Found | None = at(row["cells"], group, column)
        if not found or found["accuracy"] is None:
            return None
        summary = {key: found[key] for key in ("accuracy", "interval_95", "samples")}
        return AccuracyCell(summary, found["samples"], found["paper"])

    def panels(self) -> list[tuple[str, Markup]]:
        """Draw clean against attacked: a chart for each number that is compared, and its name."""
        from rclip_metric.train.benchmark.page import charts  # tables do without what it needs

        points: dict[str, list[charts.Point]] = {}
        labels = [row["label"] for row in self.rows if _pairs(row)]
        for row in self.rows:
            kind = str(row["words"] or "").partition(",")[0]
            label = f"{row['label']}, {kind}" if labels.count(row["label"]) > 1 and kind else row["label"]
            for name, (clean, attacked) in _pairs(row).items():
                place = (clean["accuracy"], attacked["accuracy"], interval(clean), interval(attacked))
                points.setdefault(name, []).append(charts.Point(label, row["look"], *place))
        drawn = []
        for name, some in points.items():
            axis = "share, %" if _STAYS in name else "mAP, %"
            drawn.append((name, charts.scatter(some, f"clean {axis}", f"attacked {axis}")))
        return drawn


def search_tables(board: Board, task: str) -> list[SearchTable]:
    """Lay out a table for each set that there are results of; `task` is "retrieval" or "filter"."""
    sets: dict[tuple[Any, ...], list[Found]] = {}
    for row in board.searches[task]:
        sets.setdefault((row["data"], row["digest"]), []).append(row)
    return [_table(board, rows) for rows in sets.values()]


def _table(board: Board, rows: list[Found]) -> SearchTable:
    looks = _looks(board, rows)
    shown = []
    for row in sorted(rows, key=_order):
        attack = ball_name(row["threat"]) + f", {row['words']}" if row["threat"] else None
        own = {"label": str(row["label"] or row["id"]), "look": looks[_key(row)], "attack": attack}
        shown.append(Found({**row, **own}))
    groups: dict[str, list[str]] = {}
    for row in sorted(shown, key=lambda row: -len(row["cells"] or {})):
        for group, cells in (row["cells"] or {}).items():
            columns = groups.setdefault(group, [])
            columns += [column for column in cells if column not in columns]
    notes: dict[str, list[str]] = {}
    for row in shown:
        for sentence in row["warnings"] or ():
            notes.setdefault(str(sentence), []).append(row["label"])
    samples = sorted({row["samples"] for row in rows if row["samples"] is not None})
    count = f", {' or '.join(f'{number:,}' for number in samples)} queries" if samples else ""
    return SearchTable(f"{rows[0]['data']}{count}", shown, groups, notes)


def _looks(board: Board, rows: Sequence[Found]) -> dict[tuple[Any, ...], Look]:
    """Give every row the look of its metric on the board; who is not there gets one of its own, as a baseline has."""
    known = {(metric[name], metric["revision"]): metric["look"] for metric in board.metrics for name in ("label", "id")}
    looks: dict[tuple[Any, ...], Look] = {}
    for row in rows:
        found = known.get(_key(row)) or known.get((row["label"], row["revision"]))
        new = Look(len(board.metrics) + len(looks), filled=False)
        looks.setdefault(_key(row), found or new)
    return looks


def _key(row: Found) -> tuple[Any, ...]:
    return (row["id"], row["revision"])


def _pairs(row: Found) -> dict[str, tuple[Found, Found]]:
    """Find what was measured both clean and under attack."""
    whole = {name: [cell for cell in cells if cell and cell["accuracy"] is not None] for name, cells in _compared(row)}
    return {name: (cells[0], cells[1]) for name, cells in whole.items() if len(cells) == 2}


def _compared(row: Found) -> list[tuple[str, list[Found]]]:
    return [(name, cells or []) for name, cells in (row["points"] or {}).items()]


def _order(row: Found) -> tuple[float, ...]:
    """Sort by what is left under attack, on average, then by the clean numbers."""
    attacked = [pair[1]["accuracy"] for pair in _pairs(row).values()]
    clean = [cells[0]["accuracy"] or 0.0 for _, cells in _compared(row) if cells and cells[0]]
    return tuple(-sum(values) / len(values) if values else 1.0 for values in (attacked, clean))
