"""Results of retrieval as a table: average precision and precision at k, clean and under attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rclip_metric.train.evaluation.results.labels import Record, Threat, data_label, model_label
from rclip_metric.train.evaluation.results.leaderboard import plain_markdown
from rclip_metric.train.metrics.paper import reported_retrieval

NAMES = {"E": "Easy", "M": "Medium", "H": "Hard"}
_REPORTED = {"M": "medium", "H": "hard"}


def retrieval_table(records: Sequence[Record]) -> str:
    """Write records of retrieval as tables in Markdown, in percent, one for each data set.

    A row is a model under a threat. Mean average precisions have their 95 % intervals over queries, and the paper's
    number where there is one; precisions at k are those of all that belongs to a query (Medium). Below stands what a
    random order would reach.

    Args:
        records: as `evaluate` gives them for `RetrievalData`.

    Example:
        >>> retrieval_table([])
        ''
    """
    sets: dict[str, list[Record]] = {}
    for record in records:
        data = record["data"]
        about = f"{data_label(record)}: {record['retrieval']['difficulties']} {data['database']} {data['digest']}"
        sets.setdefault(about, []).append(record)
    return "\n\n".join(_table(group) for group in sets.values())


def _table(records: Sequence[Record]) -> str:
    first = records[0]
    names, at = first["retrieval"]["difficulties"], first["retrieval"]["precision_at"]
    whole = [f"mAP {NAMES[name]}" if len(names) > 1 else "mAP" for name in names]
    attacked = any(record["retrieval"]["robust"] for record in records)
    columns = [*whole, *(f"P@{k}" for k in at)]
    heads = ["model", "attack", *columns, *(f"{column}, attacked" for column in columns if attacked)]
    lines = ["| " + " | ".join(heads) + " |", "|---|---" + "|---:" * (len(heads) - 2) + "|"]
    for record in records:
        found, paper = record["retrieval"], reported_retrieval(record)
        cells = [plain_markdown(model_label(record)), _threat(record)]
        for column, suffix in (("clean", ""), ("robust", "_linf")):
            if column == "clean" or attacked:
                part = found[column] or {}
                cells += [_precision(part.get(name), paper.get(f"{_REPORTED.get(name)}{suffix}")) for name in names]
                cells += [_share(part.get("M"), k) for k in at]
        lines.append("| " + " | ".join(cells) + " |")
    chance = ", ".join(f"{NAMES[name]} {value:.1f}" for name, value in first["retrieval"]["chance"].items())
    counts = f"{first['data']['samples']} queries, {first['data']['database']} images in the database"
    by_chance = chance if len(names) > 1 else chance.rpartition(" ")[2]
    return "\n".join(
        [*lines, "", f"{plain_markdown(data_label(first))}: {counts}; mAP of a random order: {by_chance}."]
    )


def _threat(record: Record) -> str:
    threat = Threat.of(record)
    if threat is None:
        return "-"
    knows = ", knows the database" if record["threat"].get("loss") == "neighbours" else ""
    return f"{threat.ball}, {threat.attack} {threat.steps}{knows}"


def _precision(part: Mapping[str, Any] | None, paper: float | None) -> str:
    if part is None:
        return "-"
    low, high = part["map"]["interval_95"]
    return f"{part['map']['accuracy']:.1f} ({low:.1f} - {high:.1f})" + ("" if paper is None else f", paper {paper:.1f}")


def _share(part: Mapping[str, Any] | None, k: int) -> str:
    return "-" if part is None else f"{part['precision_at'][str(k)]['accuracy']:.1f}"
