"""The page's triplets: images, perturbations and verdicts, before and after the attack."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from dataclasses import dataclass
from typing import Any

from rclip_metric.train.benchmark.page.reading import JsonObject, data_name, known, numbers_of, ranked
from rclip_metric.train.benchmark.page.words import DASH, NO_BREAK, ball_name, figure, judges_of

SMALL_IMAGE = 128  # pixels; an image with fewer is shown with its pixels
WHEN = {"before": "clean", "after": "attacked"}


@dataclass(frozen=True)
class Picture:
    """An image as a data: URI, and whether it is to be shown with its pixels; what it is of in words."""

    uri: str
    words: str

    @classmethod
    def of(cls, uri: Any, words: str) -> Picture:
        """Check that there is nothing to load.

        Raises:
            ValueError: where it is not in the URI itself.
        """
        if uri and not str(uri).startswith("data:image/"):
            raise ValueError(
                f"the page loads nothing, and {str(uri)[:60]!r} is no data: URI of an image: embed the image"
            )
        return cls(str(uri or ""), words)

    @property
    def coarse(self) -> bool:
        """Whether a PNG's header states that it is small."""
        try:
            head = base64.b64decode(self.uri.partition("base64,")[2][:32], validate=True)
        except binascii.Error:
            return False
        width = struct.unpack(">I", head[16:20])[0] if head[1:4] == b"PNG" and len(head) >= 20 else math.inf
        return width < SMALL_IMAGE


def example_section(board: JsonObject) -> list[dict[str, Any]]:
    """Lay out the triplets, one article each."""
    return [_example(board, example, n) for n, example in enumerate(board["examples"], 1)]


def _example(board: JsonObject, example: JsonObject, number: int) -> dict[str, Any]:
    """Lay out a triplet, what was chosen, and what each metric makes of it."""
    share = known(example.get("share_right"))
    chosen = None if share is None or share == 0.5 else int(share > 0.5)
    verdicts = example.get("metrics") or {}
    found = [(metric, verdict) for metric in ranked(board) if (verdict := verdicts.get(metric["id"]))]

    def entry(key: str, entries: str) -> JsonObject | None:
        name = example.get(key)
        return next((one for one in board[entries] if one["id"] == name), {"id": name}) if name else None

    data, threat = entry("data", "data"), entry("threat", "threats")
    sides = [
        (side, Picture.of(example.get(side), f"{side} image of example {number}"), place)
        for side, place in (("left", 0), ("reference", None), ("right", 1))
    ]
    return {
        "data": data and data_name(data),
        "threat": threat and ball_name(threat),
        "judges": judges_of(data or {}),
        "key": str(example["key"]),
        "share": share is not None and f"{100 * max(share, 1 - share):.0f}{NO_BREAK}%",
        "sides": [(side, picture, chosen is not None and place == chosen) for side, picture, place in sides],
        "agree": [sum(_agrees(verdict.get(when), chosen) is True for _, verdict in found) for when in WHEN]
        if chosen is not None
        else None,
        "cards": [_card(metric, verdict, chosen, number) for metric, verdict in found],
    }


def _card(metric: JsonObject, found: JsonObject, chosen: int | None, number: int) -> dict[str, Any]:
    """Lay out a metric's attacked reference, perturbation, distances and verdicts."""
    rows = []
    for when, words in WHEN.items():
        distances = numbers_of(found.get(when))
        tied, whole = len(set(distances)) == 1 < len(distances), len(distances) == 2
        cells = [(figure(d), not tied and d == min(distances)) for d in distances] if whole else [(DASH, False)] * 2
        rows.append((words, cells, "tie" if tied else _agrees(distances, chosen)))
    images = [
        Picture.of(found.get("attacked"), f"reference {number} attacked: {metric['label']}"),
        Picture.of(found.get("perturbation"), "perturbation"),
    ]
    return {"label": metric["label"], "images": images, "rows": rows}


def _agrees(pair: Any, chosen: int | None) -> bool | None:
    """Say whether the nearer of (left, right) is the chosen one; a tie is not, and without a choice nobody can say."""
    distances = numbers_of(pair)
    return None if chosen is None or len(distances) != 2 else distances[chosen] < distances[1 - chosen]
