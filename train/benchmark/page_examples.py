"""The page's triplets: images, perturbations and verdicts, before and after the attack."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from html import escape
from typing import Any

from rclip_metric.train.benchmark.markup import (
    DASH,
    NO_BREAK,
    RIGHT,
    WRONG,
    ball_name,
    data_name,
    element,
    figure,
    judges_of,
    small,
    titled,
)
from rclip_metric.train.benchmark.reading import Entry, known, numbers_of, ranked

SMALL_IMAGE = 128  # pixels; an image with fewer is shown with its pixels


def example_section(board: Entry) -> str:
    """The triplets, one article each."""
    lede = (
        "Which of the two, left or right, is more like the reference? For each metric: the reference as attacked "
        "against it, the perturbation (amplified), and the distances to both images before and after. Bold is the one "
        "that it picks."
    )
    parts = [_example(board, example, n) for n, example in enumerate(board["examples"], 1)]
    return titled("A few triplets", lede, "".join(parts))


def _example(board: Entry, example: Entry, number: int) -> str:
    """A triplet, what was chosen, and what each metric makes of it."""
    share = known(example.get("share_right"))
    chosen = None if share is None or share == 0.5 else int(share > 0.5)
    found = {m["id"]: verdict for m in ranked(board) if (verdict := (example.get("metrics") or {}).get(m["id"]))}
    named = {metric["id"]: metric for metric in board["metrics"]}
    about, judges = [], judges_of({})
    for key, entries, words in (("data", board["data"], data_name), ("threat", board["threats"], ball_name)):
        if example.get(key):
            name = example[key]
            entry = next((entry for entry in entries if entry["id"] == name), {"id": name})
            about.append(words(entry))
            judges = judges_of(entry) if key == "data" else judges
    about.append(element("code", escape(str(example["key"]))))
    images = []
    for side in ("left", "reference", "right"):
        caption = side
        if share is not None and chosen is not None and side == ("left", "right")[chosen]:
            people = f"{RIGHT} {judges}: {100 * max(share, 1 - share):.0f}{NO_BREAK}%"
            caption += element("span", people, class_="pick")
        image = _image(example.get(side), f"{side} image of example {number}")
        images.append(element("figure", image + element("figcaption", caption)))
    told = ""
    if found and chosen is not None:
        before, after = (sum(_agrees(v.get(when), chosen) is True for v in found.values()) for when in _WHEN)
        told = f"{before} of {len(found)} metrics agree with {judges} before the attack, {after} after it."
    cards = [_card(named[name], verdict, chosen, number) for name, verdict in found.items()]
    return element(
        "article",
        element("h3", f"Example {number} {small(' &middot; '.join(about))}")
        + element("div", element("div", "".join(images), class_="images") + element("p", told), class_="triplet")
        + element("div", "".join(cards), class_="cards verdicts"),
    )


_WHEN = {"before": "clean", "after": "attacked"}
_VERDICTS = {
    True: element("td", f"{RIGHT} correct", class_="yes"),
    False: element("td", f"{WRONG} wrong", class_="no"),
    "tie": element("td", "= tie", class_="no"),
    None: element("td", DASH),
}


def _card(metric: Entry, found: Entry, chosen: int | None, number: int) -> str:
    """A metric's attacked reference, perturbation, distances and verdicts."""
    rows = []
    for when, words in _WHEN.items():
        distances = numbers_of(found.get(when))
        cells = [DASH, DASH]
        if len(distances) == 2:
            nearer = min(distances) if distances[0] != distances[1] else None
            cells = [element("b", figure(d)) if d == nearer else figure(d) for d in distances]
        verdict = _VERDICTS["tie" if len(set(distances)) == 1 < len(distances) else _agrees(distances, chosen)]
        rows.append(element("tr", element("th", words) + "".join(element("td", cell) for cell in cells) + verdict))
    images = _image(found.get("attacked"), f"reference {number} attacked: {metric['label']}")
    images += _image(found.get("perturbation"), "perturbation")
    return element(
        "div", element("h4", escape(metric["label"])) + images + element("table", "".join(rows)), class_="card"
    )


def _agrees(pair: Any, chosen: int | None) -> bool | None:
    """Whether the nearer of (left, right) is the chosen one; a tie is not, and without a choice there is no saying."""
    distances = numbers_of(pair)
    return None if chosen is None or len(distances) != 2 else distances[chosen] < distances[1 - chosen]


def _image(uri: Any, words: str) -> str:
    """An image, with its pixels where it has few of them.

    Raises:
        ValueError: where it is not in the URI itself.
    """
    if not uri:
        return element("span", "no image", class_="empty")
    if not str(uri).startswith("data:image/"):
        raise ValueError(f"the page loads nothing, and {str(uri)[:60]!r} is no data: URI of an image: embed the image")
    style = ' class="px"' if _png_width(str(uri)) < SMALL_IMAGE else ""
    return f'<img{style} src="{escape(str(uri))}" alt="{escape(words)}">'


def _png_width(uri: str) -> float:
    """The width that a PNG's header states, in pixels; infinite for anything else."""
    try:
        head = base64.b64decode(uri.partition("base64,")[2][:32], validate=True)
    except binascii.Error:
        return math.inf
    return struct.unpack(">I", head[16:20])[0] if head[1:4] == b"PNG" and len(head) >= 20 else math.inf
