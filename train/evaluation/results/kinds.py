"""Accuracy by kind: sets whose table says of which kind every triplet is are reported kind by kind as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.outcome import unpack


def with_kinds(records: Sequence[dict[str, Any]], kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Add `by_kind` to records: for every kind what `splits` holds for every split.

    Args:
        records: as `evaluate` gives them.
        kinds: key of a sample -> its kind; empty for samples of no kind, and where there is no other the records stay
            as they are.
    """
    names = [name for name in dict.fromkeys(kinds.values()) if name]
    if not names:
        return list(records)
    found = []
    for record in records:
        outcomes = unpack(record)
        parts: dict[str, Any] = {}
        for name in names:
            rows = [row for row in outcomes if kinds[row.key] == name]
            attacked = [row.robust for row in rows if row.robust is not None]
            if rows:
                parts[name] = {"clean": _mean([row.clean for row in rows]), "robust": _mean(attacked)}
        found.append({**record, "by_kind": parts})
    return found


def _mean(scores: Sequence[float]) -> dict[str, Any] | None:
    return summary(scores, [""] * len(scores), macro=False) if scores else None
