"""A page of pictures in one file: queries with what was found, images with their near-duplicates, or a filter's."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from rclip_metric.errors import ImageError
from rclip_metric.files import written_whole
from rclip_metric.images.reading import open_image

if TYPE_CHECKING:
    from PIL import Image

SIDE = 320
"""Pixels of a picture, at most."""
LARGEST = 100_000_000
"""Bytes of a page, about: browsers, above all those of phones, give up on much larger ones."""


@dataclass(frozen=True)
class Tile:
    """A picture and what stands below it.

    Attributes:
        name: Of the image.
        number: Its distance, or what it is.
        label: Its class.
        path: The file that is shown, or its bytes; None, or one that cannot be read, leaves the place empty.
        blurred: Whether the picture is blurred until somebody asks to see it.
        map: Lays a map over the picture.
    """

    name: str
    number: str
    label: str | None = None
    path: str | bytes | None = None
    blurred: bool = False
    map: Callable[[Image.Image], Image.Image] | None = None

    @property
    def picture(self) -> Image.Image | None:
        """The picture, at most 320 pixels wide and high."""
        if self.path is None:
            return None
        try:
            picture = open_image(self.path)
        except ImageError:
            return None
        picture.thumbnail((SIDE, SIDE))
        return picture

    @property
    def shown(self) -> tuple[str | None, str | None]:
        """The picture, and the picture with the map over it if there is one: JPEG, base64."""
        picture = self.picture
        overlaid = self.map(picture) if self.map and picture and not self.blurred else None
        return _encoded(picture), _encoded(overlaid)


def _encoded(picture: Image.Image | None) -> str | None:
    if picture is None:
        return None
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=85)
    return base64.b64encode(encoded.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Group:
    """A row of the page: the first tile is shown large, unless all are alike."""

    title: str
    tiles: Sequence[Tile] = field(default_factory=list)
    alike: bool = False


def write_gallery(
    path: Path, title: str, about: str, groups: Iterable[Group], legend: tuple[str, str] | None = None
) -> int:
    """Write a page that needs nothing but itself, as a whole or not at all.

    Args:
        path: The HTML file.
        title: What the page shows.
        about: A line on how the numbers were made.
        groups: Its rows, drawn one by one.
        legend: The numbers at both ends of the maps' colours, if there are maps.

    Returns:
        How many pictures were left out, because the page had `LARGEST` bytes; the page says so too.
    """
    from jinja2 import Environment

    from rclip_metric.images.heat import COLOURS

    template = files("rclip_metric.cli") / "templates" / "gallery.html"
    page = Environment(autoescape=True).from_string(template.read_text(encoding="utf-8"))
    size = left_out = 0

    def bounded(groups: Iterable[Group]) -> Iterator[tuple[Group, Iterator[Tile]]]:
        nonlocal left_out
        for group in groups:
            if size < LARGEST:
                yield group, fitting(group.tiles)
            else:
                left_out += len(group.tiles)

    def fitting(tiles: Iterable[Tile]) -> Iterator[Tile]:
        nonlocal left_out
        for tile in tiles:
            if size < LARGEST:
                yield tile
            else:
                left_out += 1

    shown = {"title": title, "about": about, "groups": bounded(groups), "left_out": lambda: left_out}
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        for part in page.generate(**shown, legend=legend, colours=COLOURS):
            file.write(part)
            size += len(part)
    return left_out
