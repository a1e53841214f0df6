"""Queries and their nearest neighbours, clean and under attack, in pictures: one figure, and one page."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from rclip_metric.errors import ImageError
from rclip_metric.images import open_image
from rclip_metric.train.evaluation.results.curves import literal, new_figure, write_plot
from rclip_metric.train.evaluation.results.labels import Record, named
from rclip_metric.train.html import render
from rclip_metric.train.runs.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 160  # pixels of a picture
# Inches of the figure: a picture, between pictures, between metrics, between rows, between queries, and margins.
_CELL, _GAP, _GROUP, _ROW, _BLOCK, _MARGIN = 0.8, 0.04, 0.22, 0.19, 0.14, 0.12
_LABEL, _HEAD, _LINE = 0.5, 0.62, 0.13  # of the words beside rows and above, and of a line below
_KEPT, _INK, _QUIET = "#00704f", "#1d2025", "#656970"
_WHEN = (("clean", "Clean"), ("attacked", "Adv."))


@dataclass(frozen=True)
class Pictures:
    """Where the pictures are.

    Attributes:
        query: from a query's key to its file.
        found: from a database image's name to its file, None for one without.
    """

    query: Callable[[str], Path | None]
    found: Callable[[str], Path | None]


def write_figure(records: Sequence[Record], pictures: Pictures, path: Path) -> None:
    """Draw the paper's Figure 3: queries in the first column, below each metric's name the neighbours it finds.

    Each query has two rows, clean and attacked on that metric; what stays among the neighbours is framed.

    Args:
        records: of `Neighbours`, one per metric, of the same queries.
        pictures: where they are.
        path: ends in .png, .svg or .pdf.

    Raises:
        ValueError: matplotlib is not installed, the records are of different queries, or the suffix is another.
    """
    write_plot(figure(records, pictures), path)


def figure(records: Sequence[Record], pictures: Pictures) -> Figure:
    """Draw what `write_figure` writes."""
    keys, k = _shared(records)
    wide = k * _CELL + (k - 1) * _GAP  # of a metric
    left = 2 * _MARGIN + _CELL + _LABEL
    high = 2 * (_CELL + _ROW)  # of a query
    width = left + len(records) * (wide + _GROUP) - _GROUP + _MARGIN
    caption = textwrap.wrap(_caption(records), int((width - 2 * _MARGIN) / 0.05))
    foot = _MARGIN + _LINE * len(caption)
    height = _HEAD + len(keys) * (high + _BLOCK) + foot
    drawn = new_figure(width, height)

    def place(path: Path | None, x: float, y: float, kept: bool = False) -> None:
        """Put a picture, its upper left corner so many inches from that of the figure."""
        axes = drawn.add_axes((x / width, 1 - (y + _CELL) / height, _CELL / width, _CELL / height))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=_KEPT if kept else "#d0d0d0", linewidth=2.2 if kept else 0.4)
        shown = None if path is None else _thumbnail(path)
        if shown is None:
            axes.text(0.5, 0.5, "not there", ha="center", va="center", fontsize=6, color=_QUIET)
        else:
            axes.imshow(shown, interpolation="antialiased", aspect="auto")

    def say(words: str, x: float, y: float, size: float, **how: Any) -> None:
        drawn.text(x / width, 1 - y / height, words, fontsize=size, **{"color": _INK, "va": "center", **how})

    say("Query", _MARGIN + _CELL / 2, _HEAD - 0.22, 9, ha="center")
    for column, record in enumerate(records):
        x = left + column * (wide + _GROUP)
        stay = f"{record['overlap']['mean']:.0f} % stay"
        letters = max(4, int(wide / 0.085))  # that there is room for
        say(_cut(str(record["model"]["name"]), letters), x + wide / 2, _HEAD - 0.36, 9, ha="center", weight="bold")
        say(stay, x + wide / 2, _HEAD - 0.15, 7, ha="center", color=_QUIET)
    for number, key in enumerate(keys):
        top = _HEAD + number * (high + _BLOCK)
        place(pictures.query(key), _MARGIN, top + (high - _ROW - _CELL) / 2)
        for row, (when, words) in enumerate(_WHEN):
            y = top + row * (_CELL + _ROW)
            say(words, left - _MARGIN, y + _CELL / 2, 8, ha="right")
            for column, record in enumerate(records):
                for rank, tile in enumerate(_tiles(record, number, when)):
                    x = left + column * (wide + _GROUP) + rank * (_CELL + _GAP)
                    place(pictures.found(tile["image"]), x, y, tile["kept"])
                    say(_number(tile["similarity"]), x + _CELL / 2, y + _CELL + _ROW / 2, 6, ha="center", color=_QUIET)
    for line, words in enumerate(caption):
        say(words, _MARGIN, height - foot + _LINE * (line + 0.5), 6.5, ha="left", color=_QUIET)
    return drawn


def write_page(records: Sequence[Record], pictures: Pictures, path: Path) -> None:
    """Write the same as a page of HTML that holds its pictures.

    Raises:
        ValueError: the records are of different queries.
        StorageError: the disk is full or the folder cannot be written.
    """
    keys, k = _shared(records)
    held: dict[Path, str | None] = {}

    def uri(file: Path | None) -> str | None:
        if file is not None and file not in held:
            held[file] = _uri(file)
        return None if file is None else held[file]

    def told(record: Record, number: int) -> dict[str, Any]:
        rows = []
        for when, words in _WHEN:
            tiles = [
                {"name": tile["image"], "number": _number(tile["similarity"]), "kept": tile["kept"]}
                | {"image": uri(pictures.found(tile["image"]))}
                for tile in _tiles(record, number, when)
            ]
            rows.append((words, tiles))
        return {"label": named(record["model"]), "kept": sum(tile["kept"] for tile in rows[1][1]), "rows": rows}

    queries = [
        {"name": key, "image": uri(pictures.query(key)), "metrics": [told(record, number) for record in records]}
        for number, key in enumerate(keys)
    ]
    overlaps = []
    for record in records:
        found = record["overlap"]
        low, high = found["interval_95"]
        overlaps.append((named(record["model"]), f"{found['mean']:.1f}", f"{low:.1f} - {high:.1f}", found["queries"]))
    about = f"{len(keys)} queries, their {k} nearest among the {records[0]['data']['database']['images']} images of "
    about += f"{records[0]['data']['name']}, clean and after an attack on each metric."
    caption, title = _caption(records), "Nearest neighbours under attack"
    write_text(
        path,
        render("neighbours.html", title=title, about=about, queries=queries, overlaps=overlaps, k=k, caption=caption),
    )


def _shared(records: Sequence[Record]) -> tuple[list[str], int]:
    """Find the queries and k that all records are of; a query that one metric could not read is in none of them."""
    if not records:
        raise ValueError("there is no result to draw neighbours of")
    asked = [([row["query"] for row in record["neighbours"]], record["overlap"]["k"]) for record in records]
    if any(other != asked[0] for other in asked):
        raise ValueError("the results are of different queries or numbers of neighbours: draw each in its own figure")
    return asked[0]


def _tiles(record: Record, number: int, when: str) -> list[dict[str, Any]]:
    """List a query's neighbours; under attack, those that stay are kept."""
    row = record["neighbours"][number]
    before = {tile["image"] for tile in row["clean"]} if when == "attacked" else set()
    return [{**tile, "kept": tile["image"] in before} for tile in row[when]]


def _caption(records: Sequence[Record]) -> str:
    threat = records[0]["threat"]
    norm = {"linf": "l_inf", "l2": "l_2", "l1": "l_1"}.get(threat["norm"], threat["norm"])
    attack = f"{norm} {threat['eps_text']}, APGD, {threat['steps']} iterations, untargeted"
    kinds = dict.fromkeys(str(record["model"].get("similarity") or "similarity") for record in records)
    numbers = f"Numbers: {', '.join(kinds)}. Adv.: query attacked on the metric ({attack})."
    return f"{numbers} Framed: a clean neighbour that stays."


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def _cut(text: str, letters: int) -> str:
    return literal(text if len(text) <= letters else text[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}")


def _thumbnail(path: Path) -> Image.Image | None:
    """Read the middle square of a picture; None where it cannot be read any more."""
    try:
        return ImageOps.fit(open_image(path).convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
    except ImageError:
        return None


def _uri(path: Path) -> str | None:
    shown = _thumbnail(path)
    if shown is None:
        return None
    held = io.BytesIO()
    shown.save(held, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
