"""A contact sheet: what was looked for at the left, a column for each model, a row for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE = 168  # pixels of a picture
_GAP, _LINE, _LETTERS = 8, 18, 13
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_INK, _PAPER, _FAINT = "#1a1a1a", "#ffffff", "#eeeeee"


@dataclass(frozen=True)
class Cell:
    """A picture with a line below it, or a text in its place.

    Example:
        >>> Cell(None, "a red circle").picture is None
        True
    """

    picture: Image.Image | None
    caption: str


def contact_sheet(headings: Sequence[str], rows: Sequence[Sequence[Cell | None]], side: int = SIDE) -> Image.Image:
    """Lay cells out below headings.

    Args:
        headings: one per column.
        rows: of as many cells; None leaves a place empty.
        side: of a picture, in pixels.

    Example:
        >>> red = Cell(Image.new("RGB", (8, 8), "red"), "cosine 0.99")
        >>> contact_sheet(["original", "tiny"], [[Cell(None, "a red square"), red], [None, red]]).size
        (360, 432)
    """
    width = _GAP + len(headings) * (side + _GAP)
    top, height = _GAP + 2 * _LINE, side + _LINE + _GAP
    sheet = Image.new("RGB", (width, top + len(rows) * height - _GAP + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_LETTERS)
    lefts = [_GAP + column * (side + _GAP) for column in range(len(headings))]
    for left, heading in zip(lefts, headings, strict=True):
        for number, line in enumerate(_lines(draw, heading, font, side)[:2]):
            draw.text((left, _GAP // 2 + number * _LINE), line, _INK, font)
    for number, row in enumerate(rows):
        for left, cell in zip(lefts, row, strict=True):
            if cell is not None:
                _place(sheet, draw, (left, top + number * height), cell, font, side)
    return sheet


def _place(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], cell: Cell, font: Font, side: int
) -> None:
    left, top = at
    if cell.picture is None:
        draw.rectangle((left, top, left + side - 1, top + side - 1), _FAINT)
        for number, line in enumerate(_lines(draw, cell.caption, font, side - 2 * _GAP)[: side // _LINE]):
            draw.text((left + _GAP, top + _GAP + number * _LINE), line, _INK, font)
        return
    # Enlarged pictures keep the edges of their pixels: what is there is what one sees.
    larger = cell.picture.width < side
    filtered = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
    sheet.paste(cell.picture.convert("RGB").resize((side, side), filtered), at)
    for line in _lines(draw, cell.caption, font, side)[:1]:
        draw.text((left, top + side + 1), line, _INK, font)


def _lines(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels, between words where that is possible."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest:
        end = len(rest)
        while end > 1 and draw.textlength(rest[:end], font) > width:
            end -= 1
        space = rest.rfind(" ", 0, end + 1)
        end = space if end < len(rest) and space > 0 else end
        lines.append(rest[:end].strip())
        rest = rest[end:].strip()
    return lines
