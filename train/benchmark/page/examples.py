"""The page's triplets: what was chosen, and who agrees with it before and after the attack."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Any

from rclip_metric.train.benchmark.page.reading import Board, Found, at, numbers
from rclip_metric.train.evaluation.results.labels import PEOPLE

SMALL_IMAGE = 128  # pixels; an image with fewer is shown with its pixels
WHEN = {"before": "clean", "after": "attacked"}


def is_coarse(uri: str) -> bool:
    """Say whether an image is a PNG whose header states that it is small.

    Raises:
        ValueError: where it is not in the URI itself, and would have to be loaded.
    """
    if not str(uri).startswith("data:image/"):
        raise ValueError(f"the page loads nothing, and {str(uri)[:60]!r} is no data: URI of an image: embed the image")
    try:
        head = base64.b64decode(uri.partition("base64,")[2][:32], validate=True)
    except binascii.Error:
        return False
    width = struct.unpack(">I", head[16:20])[0] if head[1:4] == b"PNG" and len(head) >= 20 else math.inf
    return width < SMALL_IMAGE


def example_section(board: Board) -> list[dict[str, Any]]:
    """Lay out the triplets: each with its data and threat, the chosen side, and a card per metric."""
    sets, threats = ({entry["id"]: entry for entry in entries} for entries in (board.data, board.threats))
    shown = []
    for example in board.examples:
        name, ball = example["data"], example["threat"]
        share = example["share_right"]
        chosen = None if share is None or share == 0.5 else int(share > 0.5)
        cards = []
        for metric in board.ranked():
            if found := at(example["metrics"], metric["id"]):
                rows = [_row(found[when], chosen, words) for when, words in WHEN.items()]
                cards.append((metric["label"], found, rows))
        shown.append(
            {
                **{key: example[key] for key in ("key", "left", "reference", "right")},
                "data": sets.get(name) or (name and Found(label=name, judges=PEOPLE)),
                "threat": threats.get(ball) or (ball and Found(ball=ball)),
                "chosen": None if chosen is None else ("left", "right")[chosen],
                "share": None if share is None else max(share, 1 - share),
                "agree": [sum(rows[when][2] is True for _, _, rows in cards) for when in range(len(WHEN))],
                "cards": cards,
            }
        )
    return shown


def _row(distances: Any, chosen: int | None, words: str) -> tuple[str, list[float], bool | str | None]:
    """Give the distances to left and right, and whether the nearer is the chosen one; None where nobody can say."""
    pair = numbers(distances)
    if len(pair) != 2:
        return words, [], None
    if pair[0] == pair[1]:
        return words, pair, "tie"
    return words, pair, None if chosen is None else pair[chosen] < pair[1 - chosen]
