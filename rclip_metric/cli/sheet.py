"""A contact sheet: a picture of pictures, drawn by Pillow alone, or the page of `gallery`, as the file's name says."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.cli.gallery import Group, Tile, write_gallery
from rclip_metric.cli.maps import with_maps
from rclip_metric.cli.run import PICTURES, Run, UsageError
from rclip_metric.files import written_whole
from rclip_metric.printing import printable

if TYPE_CHECKING:
    from PIL import Image, ImageFont

MOST = 200
"""Tiles of a sheet that is a picture: more would make it taller than viewers like."""
_WIDTH, _MARGIN, _GAP = 1280, 24, 12
_FIRST, _CELL, _LINE = 300, 168, 19
_COLUMNS = (_WIDTH - 2 * _MARGIN - _FIRST) // (_CELL + _GAP)
_PAPER, _BOX, _INK, _QUIET = "#ffffff", "#eeeeee", "#111111", "#666666"


def show_pictures(path: str, title: str, groups: Sequence[Group], run: Run, *, maps: bool = False) -> None:
    """Write groups of pictures to the file that a user asked for, and remark on what found no room in it.

    Args:
        path: As for `write_sheet`.
        title: What is shown.
        groups: The first tile of each is what the others are compared with.
        run: Made the numbers.
        maps: Whether to lay over the others where they differ from the first.

    Raises:
        UsageError: As `write_sheet`.
    """
    legend = None
    if maps:
        groups, legend = with_maps(groups, run)
    with run.working(progress=False):
        left_out = write_sheet(Path(path), title, run.label, groups, legend)
    if left_out:
        run.remark(f"{path}: {left_out} more pictures are left out, as it would be too large to look at")


def write_sheet(
    path: Path, title: str, about: str, groups: Iterable[Group], legend: tuple[str, str] | None = None
) -> int:
    """Write groups of pictures as a page or as a picture, as a whole or not at all.

    Args:
        path: Ends in .html, or in one of `PICTURES`.
        title: What is shown.
        about: A line on how the numbers were made.
        groups: The first tile of each is shown large, the others in order.
        legend: The numbers at both ends of the maps' colours, if there are maps.

    Returns:
        How many pictures were left out, as there were too many; the sheet says so too.

    Raises:
        UsageError: Pillow cannot write text of any size.
    """
    if path.suffix.lower() == ".html":
        return write_gallery(path, title, about, groups, legend)
    rows, left_out = _bounded(groups)
    drawn = _draw(title, about, rows, legend, left_out)
    with written_whole(path) as partial:
        drawn.save(partial, PICTURES[path.suffix.lower()], quality=90)  # of a JPEG; PNG has none
    return left_out


def _bounded(groups: Iterable[Group]) -> tuple[list[Group], int]:
    rows, room, left_out = [], MOST, 0
    for group in groups:
        kept = group.tiles[:room]
        room -= len(kept)
        left_out += len(group.tiles) - len(kept)
        if kept:
            rows.append(Group(group.title, kept))
    return rows, left_out


class _Page:
    """What is written to a canvas whose height is known."""

    def __init__(self, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (_WIDTH, height), _PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, place: tuple[int, int], words: str, size: int = 15, colour: str = _INK) -> None:
        self._draw.text(place, printable(words), fill=colour, font=_font(size))

    def picture(self, place: tuple[int, int], side: int, shown: Image.Image | None) -> None:
        """Put a picture in the middle of a square, or say that there is none."""
        x, y = place
        self._draw.rectangle((x, y, x + side - 1, y + side - 1), fill=_BOX)
        if shown is None:
            self.text((x + 8, y + side // 2 - 8), "not there", colour=_QUIET)
            return
        scale = min(side / shown.width, side / shown.height)
        fitted = shown.resize((max(1, round(shown.width * scale)), max(1, round(shown.height * scale))))
        self.image.paste(fitted, (x + (side - fitted.width) // 2, y + (side - fitted.height) // 2))

    def scale(self, place: tuple[int, int], legend: tuple[str, str]) -> None:
        """Draw the colours of the maps from the smallest number to the largest."""
        import numpy as np
        from PIL import Image

        from rclip_metric.images.heat import colours

        x, y = place
        bar = np.broadcast_to(colours(np.linspace(0, 1, 200)), (14, 200, 3))
        self.text((x, y), legend[0])
        self.image.paste(Image.fromarray(np.ascontiguousarray(bar)), (x + 16, y + 2))
        words = "where an image differs: mean of 1 - cos over the local features, one scale for all"
        self.text((x + 226, y), f"{legend[1]}   {words}")


def _draw(
    title: str, about: str, groups: Sequence[Group], legend: tuple[str, str] | None, left_out: int
) -> Image.Image:
    lines = list(_wrapped(about, _WIDTH - 2 * _MARGIN))
    top = _MARGIN + 36 + _LINE * (len(lines) + bool(legend)) + _GAP
    cell = _CELL * (2 if legend else 1) + 3 * _LINE + _GAP
    heights = [
        _LINE + _GAP + max(_FIRST + 3 * _LINE, -(-(len(group.tiles) - 1) // _COLUMNS) * cell) + _GAP for group in groups
    ]
    page = _Page(top + sum(heights) + _LINE * bool(left_out) + _MARGIN)
    page.text((_MARGIN, _MARGIN), title, 24)
    for number, line in enumerate(lines):
        page.text((_MARGIN, _MARGIN + 36 + number * _LINE), line, colour=_QUIET)
    if legend:
        page.scale((_MARGIN, _MARGIN + 36 + len(lines) * _LINE), legend)
    for group, y in zip(groups, itertools.accumulate(heights, initial=top), strict=False):
        _draw_group(page, group, y, cell)
    if left_out:
        page.text((_MARGIN, top + sum(heights)), f"{left_out} more are left out: write a page (.html) to see them")
    return page.image


def _draw_group(page: _Page, group: Group, y: int, cell: int) -> None:
    page.text((_MARGIN, y), _shortened(group.title, _WIDTH - 2 * _MARGIN))
    y += _LINE + _GAP
    first, *others = group.tiles
    page.picture((_MARGIN, y), _FIRST, first.picture)
    _caption(page, first, (_MARGIN, y + _FIRST + 2), _FIRST)
    for place, tile in enumerate(others):
        row, column = divmod(place, _COLUMNS)
        x, upper = _MARGIN + _FIRST + 2 * _GAP + column * (_CELL + _GAP), y + row * cell
        picture = tile.picture
        page.picture((x, upper), _CELL, picture)
        below = upper + _CELL
        if cell > 2 * _CELL:
            page.picture((x, below), _CELL, tile.map(picture) if tile.map and picture else None)
            below += _CELL
        _caption(page, tile, (x, below + 2), _CELL)


def _caption(page: _Page, tile: Tile, place: tuple[int, int], width: int) -> None:
    x, y = place
    page.text((x, y), tile.number)
    page.text((x, y + _LINE), _shortened(tile.name, width, 13), 13, _QUIET)
    if tile.label:
        page.text((x, y + 2 * _LINE), _shortened(tile.label, width, 13), 13, _QUIET)


def _shortened(text: str, width: int, size: int = 15) -> str:
    """Keep the end of a text that is wider than so many pixels: of a path, the file's name."""
    text, font = printable(text), _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"


def _wrapped(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in printable(text).split():
        longer = f"{line} {word}".strip()
        if line and _font(15).getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _font(size: int) -> Any:
    from PIL import ImageFont

    found: ImageFont.FreeTypeFont | ImageFont.ImageFont
    try:
        found = ImageFont.load_default(size)
    except (ImportError, TypeError) as error:
        raise UsageError(
            "a picture with text needs Pillow 10.1 or later, with FreeType: write a page (.html)"
        ) from error
    return found
