"""What a distance means: where it lies among the distances that were measured between images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rclip_metric.train

_FILES = ("typical_distances_photographs.json", "typical_distances.json")


@dataclass(frozen=True)
class Typical:
    """What is usual for one kind of change.

    Attributes:
        kind: What was done to the image, or what the other one is.
        low: Distance that the smallest few remain below.
        middle: Median.
        high: Distance that the largest few exceed.
        share: Percent of the pairs between low and high.

    Example:
        >>> Typical("blur", low=0.07, middle=0.13, high=0.23, share=90).middle
        0.13
    """

    kind: str
    low: float
    middle: float
    high: float
    share: int


def typical_distances(model: str, revision: str | None = None) -> list[Typical]:
    """Look up what `examples/typical_distances.py` measured for a model.

    Args:
        model: Name of a shipped model.
        revision: Of its weights; figures that were measured with others do not count.

    Returns:
        The kinds of change by their medians, smallest first; none for a model that was not measured.

    Example:
        >>> [row.kind for row in typical_distances("r-lite-f")][:2]
        ['identical', 'JPEG, quality 90']
    """
    folder = Path(rclip_metric.train.__file__).parents[1] / "results"
    found = []
    for name in _FILES:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
        measured = record.get("models", {}).get(model, {}).get("revision")
        if None not in (measured, revision) and measured != revision:
            continue
        for kind, by_model in record["distances"].items():
            if (values := by_model.get(model)) is None:
                continue
            if isinstance(values, list):  # quartiles
                low, middle, high = values
                found.append(Typical(kind, low, middle, high, share=50))
            else:
                found.append(Typical(kind, values["5 %"], values["50 %"], values["95 %"], share=90))
    return sorted(found, key=lambda row: row.middle)


def place(distance: float, rows: Sequence[Typical]) -> str:
    """Say in a sentence where a distance lies among typical ones.

    Args:
        distance: Of two images, not squared.
        rows: From `typical_distances`.

    Example:
        >>> rows = [Typical("blur", 0.1, 0.15, 0.2, 90), Typical("other class", 0.5, 0.7, 0.9, 90)]
        >>> place(0.3, rows)
        '0.3000 is more than is usual for "blur" (0.10 to 0.20) and less than for "other class" (0.50 to 0.90).'
        >>> place(0.12, rows)
        '0.1200 is usual for "blur" (0.10 to 0.20).'
    """
    if not rows:
        return f"{distance:.4f}; what is usual for this model has not been measured."
    usual = [row for row in rows if row.low <= distance <= row.high]
    if usual:
        return f"{distance:.4f} is usual for {', '.join(map(_range, usual))}."
    less = max((row for row in rows if row.high < distance), key=lambda row: row.high, default=None)
    more = min((row for row in rows if row.low > distance), key=lambda row: row.low, default=None)
    if less is None or more is None:
        side, row = ("more", less) if less else ("less", more)
        assert row is not None
        return f"{distance:.4f} is {side} than is usual for anything that was measured, even {_range(row)}."
    return f"{distance:.4f} is more than is usual for {_range(less)} and less than for {_range(more)}."


def _range(row: Typical) -> str:
    return f'"{row.kind}" ({row.low:.2f} to {row.high:.2f})'
