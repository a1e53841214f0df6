"""What charts are made of: a picture with axes, as SVG; colours, lines and letters are the style sheet's business."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
from markupsafe import Markup

from rclip_metric.train.benchmark.page.reading import Look
from rclip_metric.train.benchmark.page.words import short

try:
    import textalloc
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise ValueError(
        'the page needs matplotlib and textalloc, which are in an extra: pip install "rclip-metric[benchmark]"'
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

Place = tuple[float, float]
# Each from the middle of a point on; with the colours of the style sheet, 35 looks that differ.
SHAPES = (
    "m-3.5 0a3.5 3.5 0 1 0 7 0 3.5 3.5 0 1 0-7 0",
    "m-3-3h6v6h-6z",
    "m0-4l4 7h-8z",
    "m0-4.5l4.5 4.5-4.5 4.5-4.5-4.5z",
    "m0 4l4-7h-8z",
)
LETTER = 10.5  # font size of all charts, in units of their viewBox
DESCENT = 2.52  # from the bottom of a label to the line that its letters stand on
LONGEST = 21  # letters of a label
# Of labels, the best first.
DIRECTIONS = ["east", "southeast", "northeast", "west", "northwest", "southwest", "north", "south"]


class Labelled(Protocol):
    """What has a label and a look."""

    @property
    def label(self) -> str:
        """Its name."""

    @property
    def look(self) -> Look:
        """How it is drawn."""


def shortened(label: str) -> str:
    """Cut a label with an ellipsis where it is too long."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1].rstrip(" ,(-") + "\N{HORIZONTAL ELLIPSIS}"


class Picture:
    """A picture with axes in an area (left, top, right, bottom) of it, in units of its viewBox.

    Matplotlib says where numbers are; lines are drawn by their classes in the style sheet.
    """

    def __init__(self, size: Place, area: Sequence[float]) -> None:
        """Make an empty one of so many units, with axes from 0 to 1."""
        self.size, self.area = size, area
        self.figure = Figure((size[0] / 72, size[1] / 72), dpi=72)
        FigureCanvasAgg(self.figure)
        self.axes = self._axes(area)
        self.equal: list[Markup] = []
        self.members: list[Markup] = []

    def _axes(self, area: Sequence[float]) -> Axes:
        (width, height), (left, top, right, bottom) = self.size, area
        box = (left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height)
        return self.figure.add_axes(box, label=str(len(self.figure.axes)))

    def places(self, x: ArrayLike, y: ArrayLike) -> list[Place]:
        """Find where points are."""
        return [(across, self.size[1] - up) for across, up in self.axes.transData.transform(np.column_stack([x, y]))]

    def labels(self, points: Sequence[Labelled], middles: Sequence[Place]) -> list[tuple[Markup, Markup]]:
        """Place the labels of points, each with a line that leads to it unless it is right beside its point."""
        left, top, right, bottom = area = (36.0, 20.0, self.size[0] - 2, self.area[3])  # right of the axes too
        room = self._axes(area)
        room.set(xlim=(left, right), ylim=(bottom, top))
        x, y = np.array(middles).T
        _, leaders, _, _ = textalloc.allocate(
            room,
            x,
            y,
            [shortened(point.label) for point in points],
            x_scatter=x,
            y_scatter=y,
            textsize=LETTER,
            fontweight=["bold" if point.look.filled else "normal" for point in points],
            direction=DIRECTIONS,
            margin=0.007,
            min_distance=0.019,
            draw_lines=False,
            va="bottom",
            parse_math=False,
        )
        found = []
        for written, leader in zip(room.texts, leaders, strict=True):
            ends = list(zip(*leader[:2], strict=True)) if leader else []
            line = stroke("l", ends) if ends and math.dist(*ends) >= 13 else Markup("")
            across, down = written.get_position()
            label = text(across, down - DESCENT, written.get_text(), written.get_horizontalalignment())
            found.append((line, label))
        return found

    def member(self, look: Look, told: str, *drawn: Markup) -> None:
        """Add what is drawn together, told in words, and shown alone where the mouse is at it."""
        self.members.append(group(f"p {look.style}", Markup("<title>{}</title>").format(told), *drawn))

    def svg(self, x_words: str, y_words: str, *more: Markup, scale: str = "") -> Markup:
        """Draw the picture: the grid with its numbers, what the axes are, and the members."""
        left, top, right, bottom = self.area
        x, y = self.axes.get_xticks(), self.axes.get_yticks()
        across = [place for place, _ in self.places(x, [self.axes.get_ylim()[0]] * len(x))]
        down = [place for _, place in self.places([self.axes.get_xlim()[0]] * len(y), y)]
        grid = [stroke("", [(place, bottom), (place, top)]) for place in across]
        grid += [stroke("", [(left, place), (right, place)]) for place in down]
        words = [text(place, bottom + 14, f"{n:.3g}", "center") for place, n in zip(across, x, strict=True)]
        words += [text(left - 6, place + 3.99, f"{n:.3g}", "right") for place, n in zip(down, y, strict=True)]
        words += [text(2, 11, y_words), text(right, bottom + 30, x_words + scale, "right"), *more]
        shown = [group(style, *part) for style, part in (("gr", grid), ("q", words), ("eq", self.equal)) if part]
        told = f"{y_words} against {x_words}, {len(self.members)} metrics"
        box = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
        return box.format(*map(short, self.size), told, Markup("").join(shown + self.members))


def group(style: str, *drawn: Markup) -> Markup:
    """Put what is drawn into one element of a style."""
    return Markup('<g class="{}">{}</g>').format(style, Markup("").join(drawn))


def text(x: float, y: float, words: str, align: str = "left") -> Markup:
    """Write words that begin, end ("right") or have their middle ("center") at a place."""
    anchor = {"left": "", "center": ' text-anchor="middle"', "right": ' text-anchor="end"'}[align]
    return Markup('<text x="{}" y="{}"{}>{}</text>').format(short(x), short(y), Markup(anchor), words)


def marks(look: Look, places: Sequence[Place]) -> Markup:
    """Draw the shape of a look at each place."""
    steps = "".join(f"M{x:.0f} {y:.0f}{SHAPES[look.shape]}" for x, y in places)
    return Markup('<path class="g" d="{}"/>').format(steps)


def stroke(style: str, places: Sequence[Place]) -> Markup:
    """Draw a line from place to place, each rounded, in as few characters as possible."""
    rounded = [(round(x), round(y)) for x, y in places]
    steps = "M{} {}".format(*rounded[0])
    for (x, y), (next_x, next_y) in pairwise(rounded):
        across, down = next_x - x, next_y - y
        steps += f"h{across}" if not down else f"l{across} {down}" if across else f"v{down}"
    return Markup('<path{} d="{}"/>').format(Markup(' class="{}"').format(style) if style else "", steps)
