"""Tables of content filters as the paper has them: where the queries of each direction land, clean and attacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rclip_metric.train.evaluation.results.labels import Threat, data_label, model_label
from rclip_metric.train.evaluation.results.leaderboard import plain_markdown
from rclip_metric.train.metrics.paper_filter import reported_landed

INFORMED = ("adaptive", "white-box", "joint")
"""Attacks of somebody who knows more than the paper's attacker does."""


def filter_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Write records of `rclip-metric eval filter` as a table in Markdown, in percent of the queries.

    A row is a filter, a detector or both on a set, in a ball. For each direction there are three columns: clean,
    attacked as in the paper (grey box, or filter and detector separately) and by an attacker who knows more (adaptive,
    white box, or jointly); each cell has the share of every role, and the paper's where it is known.

    Args:
        records: as `evaluate_filter` gives them; others are passed over, and what a smoothing proves, of which a table
            of accuracies tells more. Intervals are in them.

    Example:
        >>> filter_table([])
        ''
    """
    rows: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        if "landed" in record and "smoothing" not in record:
            threat = Threat.of(record)
            identity = (model_label(record), data_label(record), "" if threat is None else f"{threat.ball}")
            rows.setdefault(identity, []).append(record)
    directions = list(dict.fromkeys(part for several in rows.values() for part in several[0]["landed"]["clean"]))
    kinds = ["clean"]
    kinds += ["attacked"] * any(_of(several, "attacked") for several in rows.values())
    kinds += ["informed"] * any(_of(several, "informed") for several in rows.values())
    if not rows:
        return ""
    head = ["filter", "data", "ball", *(f"{part}: {kind}" for part in directions for kind in kinds)]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|" + "---:|" * (len(head) - 3)]
    for (model, data, ball), several in rows.items():
        cells = [_cell(_of(several, kind), kind, part) for part in directions for kind in kinds]
        lines.append("| " + " | ".join([plain_markdown(model), plain_markdown(data), ball or "-", *cells]) + " |")
    roles = list(dict.fromkeys(role for several in rows.values() for role in _landed(several[0], directions)))
    queries = sorted({record["data"]["samples"] for several in rows.values() for record in several})
    lines += ["", f"Percent of the queries ({', '.join(map(str, queries))} in all) that land in {' / '.join(roles)}."]
    if names := list(dict.fromkeys(_words(r) for several in rows.values() for r in several if _words(r))):
        lines[-1] += f" Attacks: {'; '.join(names)}."
    told = [(record, text) for several in rows.values() for record in several for text in record["warnings"]]
    warnings = dict.fromkeys(f"{model_label(record)}: {text}" for record, text in told)
    return "\n".join([*lines, *([""] if warnings else []), *(f"- {plain_markdown(warning)}" for warning in warnings)])


def _of(records: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """Find the record of a column; the first one has the clean decisions of all."""
    if kind == "clean":
        return records[0]
    for record in records:
        attack = record["threat"]["attack"]
        if attack != "none" and (attack in INFORMED) == (kind == "informed"):
            return record
    return None


def _landed(record: Mapping[str, Any], directions: Sequence[str]) -> list[str]:
    return [role for part in directions for role in record["landed"]["clean"].get(part, ())]


def _cell(record: Mapping[str, Any] | None, kind: str, part: str) -> str:
    phase = "clean" if kind == "clean" else "attacked"
    shares = None if record is None else record["landed"][phase].get(part)
    if record is None or shares is None:
        return "-"
    own = " / ".join(f"{share['accuracy']:.1f}" for share in shares.values())
    paper = {} if kind == "informed" else reported_landed(record, phase).get(part, {})
    beside = " / ".join(f"{paper[role]:.1f}" if role in paper else "-" for role in shares)
    return f"{own} (paper {beside})" if paper else own


def _words(record: Mapping[str, Any]) -> str:
    threat = record["threat"]
    if threat["attack"] == "none":
        return ""
    column = "informed" if threat["attack"] in INFORMED else "attacked"
    return f"{column}: {threat['attack']} on {threat['loss']}, {threat['steps']} steps"
