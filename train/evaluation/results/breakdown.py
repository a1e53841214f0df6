"""Results part by part: both halves of NIGHTS' test set, the six splits of BAPPS, the kinds of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rclip_metric.train.evaluation.results.labels import Record, Threat, data_label, model_label
from rclip_metric.train.evaluation.results.leaderboard import plain_markdown

PARTS = {"split": "splits", "kind": "by_kind"}
"""What a table can be broken down by -> where records hold it."""


def breakdown(records: Sequence[Record], by: str = "split") -> str:
    """Draw a Markdown table of every record's splits or kinds, in percent; empty when none has several.

    A row is a model, a data set and a split; a column the clean accuracy, then a threat. A number in brackets counts
    the attacked samples, where these are not all.

    Args:
        records: as `evaluate` gives them.
        by: of `PARTS`.

    Example:
        >>> from rclip_metric.train.evaluation.results import Effort, Outcome
        >>> from rclip_metric.train.evaluation.results.record import record
        >>> rows = [Outcome("1", "a", 1.0, False, 0.2), Outcome("2", "b", 0.0, False, -0.1)]
        >>> about = {"task": "2afc", "model": {"name": "m"}, "data": {"name": "d"}, "threat": {"attack": "none"}}
        >>> print(breakdown([record(rows, effort=Effort(1.0), **about)]))
        | model | data | split | samples | clean |
        |---|---|---|---:|---:|
        | m | d | a | 1 | 100.0 |
        | m | d | b | 1 | 0.0 |
    """
    several = [record for record in records if len(record.get(PARTS[by], ())) > 1]
    if not several:
        return ""
    threats = sorted({threat for record in several if (threat := Threat.of(record))}, key=lambda threat: threat.order)
    settings = {threat.ball for threat in threats}
    rows: dict[tuple[str, str, str], dict[Threat | None, Any]] = {}
    for record in several:
        for split, parts in record[PARTS[by]].items():
            row = rows.setdefault((model_label(record), data_label(record), split), {})
            row[None] = parts["clean"]
            if threat := Threat.of(record):
                row[threat] = parts["robust"]
    names = [threat.ball if len(settings) == len(threats) else _named(threat) for threat in threats]
    lines = ["| " + " | ".join(["model", "data", by, "samples", "clean", *names]) + " |"]
    lines.append("|---|---|---" + "|---:" * (2 + len(threats)) + "|")
    for (model, data, split), row in rows.items():
        samples = row[None]["samples"]
        cells = [*map(plain_markdown, (model, data, split)), str(samples), f"{row[None]['accuracy']:.1f}"]
        for threat in threats:
            part = row.get(threat)
            count = "" if part is None or part["samples"] == samples else f" [{part['samples']}]"
            cells.append("" if part is None else f"{part['accuracy']:.1f}{count}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _named(threat: Threat) -> str:
    if threat.proven:
        return ", ".join([threat.ball, *threat.settings().values()])
    return f"{threat.ball}, {threat.attack} {threat.steps}"
