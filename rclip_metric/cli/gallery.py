"""A page of pictures in one file: queries with what was found, images with their near-duplicates, or a filter's."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from rclip_metric.errors import ImageError
from rclip_metric.files import written_whole
from rclip_metric.images.reading import open_image

_SIDE = 320


@dataclass(frozen=True)
class Tile:
    """A picture and what stands below it.

    Attributes:
        name: Of the image.
        number: Its distance, or what it is.
        label: Its class.
        path: The file that is shown, or its bytes; None, or one that cannot be read, leaves the place empty.
        blurred: Whether the picture is blurred until somebody asks to see it.
    """

    name: str
    number: str
    label: str | None = None
    path: str | bytes | None = None
    blurred: bool = False

    @property
    def image(self) -> str | None:
        """The picture, at most 320 pixels wide and high: JPEG, base64."""
        if self.path is None:
            return None
        try:
            picture = open_image(self.path)
        except ImageError:
            return None
        picture.thumbnail((_SIDE, _SIDE))
        encoded = io.BytesIO()
        picture.save(encoded, "JPEG", quality=85)
        return base64.b64encode(encoded.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Group:
    """A row of the page: the first tile is shown large, unless all are alike."""

    title: str
    tiles: Sequence[Tile] = field(default_factory=list)
    alike: bool = False


def write_gallery(path: Path, title: str, about: str, groups: Iterable[Group]) -> None:
    """Write a page that needs nothing but itself, as a whole or not at all.

    Args:
        path: The HTML file.
        title: What the page shows.
        about: A line on how the numbers were made.
        groups: Its rows, drawn one by one.
    """
    from jinja2 import Environment

    template = files("rclip_metric.cli") / "templates" / "gallery.html"
    page = Environment(autoescape=True).from_string(template.read_text(encoding="utf-8"))
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(page.generate(title=title, about=about, groups=groups))
