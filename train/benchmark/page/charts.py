"""Charts drawn by matplotlib as SVG whose colours, lines and letters are the style sheet's business."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from rclip_metric.train.benchmark.page.reading import Look
from rclip_metric.train.benchmark.page.words import short
from rclip_metric.train.evaluation.results.curves import radius_axis

try:
    import textalloc
    from matplotlib.backend_bases import RendererBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.path import Path
    from matplotlib.transforms import Affine2D
except ImportError as error:
    raise ValueError(
        'the page needs matplotlib and textalloc, which are in an extra: pip install "rclip-metric[benchmark]"'
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
LONGEST = 21  # letters of a label
PANEL = (400.0, 340.0)
BINS, TALL = 32, 56  # of a histogram: bins, and units of its peak
# Of labels, the best first.
DIRECTIONS = ["east", "southeast", "northeast", "west", "northwest", "southwest", "north", "south"]
WIDE = 6  # a ratio of the largest to the smallest radius beyond which the axis is logarithmic


@dataclass(frozen=True)
class Point:
    """A metric in the scatter: percent, and the intervals of both if known."""

    label: str
    look: Look
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """A metric against the radius: (radius, percent, low, high), rising; and what is certified, (radius, percent)."""

    label: str
    look: Look
    points: Sequence[tuple[float, float, float, float]]
    certified: Sequence[tuple[float, float]] = ()


def percent_domain(values: Sequence[float], margin: float = 2.0) -> tuple[float, float]:
    """Choose tens around all values, within 0 and 100 and at least 20 wide."""
    low = max(0.0, math.floor((min(values) - margin) / 10) * 10.0)
    high = min(100.0, math.ceil((max(values) + margin) / 10) * 10.0)
    if high - low < 20:
        low, high = (max(0.0, high - 20), high) if high > 50 else (low, low + 20)
    return low, high


def scatter(points: Sequence[Point], x_words: str, y_words: str) -> Markup:
    """Draw points with whiskers and labels: no label covers another or a point while there is room.

    Args:
        points: one or more.
        x_words, y_words: what the axes are, the word that tells them apart first; where they are equal is dotted.
    """
    points = sorted(points, key=lambda point: point.y)  # the lower labels, with the least room, are placed first
    chart = _Chart(PANEL, (34.0, 20.0, PANEL[0] - 104, PANEL[1] - 36), x_words, y_words)
    chart.figure.text(
        (PANEL[0] - 104) / PANEL[0], 1 - 11 / PANEL[1], "better \N{NORTH EAST ARROW}", ha="right", gid="q"
    )
    domains = []
    for axis in ("x", "y"):
        values = [v for p in points for v in (getattr(p, axis), *(getattr(p, f"{axis}_interval") or ()))]
        low, high = percent_domain(values)
        step = 10 if high - low <= 60 else 20
        chart.axes.set(**{f"{axis}ticks": range(math.ceil(low / step) * step, round(high) + 1, step)})
        chart.axes.set(**{f"{axis}lim": (low - 0.024 * (high - low), high + 0.024 * (high - low))})
        domains.append((low, high))
    equal = max(low for low, _ in domains), min(high for _, high in domains)
    if equal[0] < equal[1]:
        chart.axes.plot(equal, equal, gid="eq")
    for n, point in enumerate(points):
        told = f"{point.label}: {point.x:.1f} {x_words.split()[0]}, {point.y:.1f} {y_words.split()[0]}"
        chart.member(n, point.look, told)
        for interval in (point.x_interval, point.y_interval):
            if interval:
                across = interval if interval is point.x_interval else (point.x, point.x)
                up = interval if interval is point.y_interval else (point.y, point.y)
                chart.axes.plot(across, up, gid=f"{n} w")
        chart.axes.plot([point.x], [point.y], "o", gid=f"{n} g")
    middles = chart.axes.transData.transform([(point.x, point.y) for point in points])
    room = chart.layer((36.0, 20.0, PANEL[0] - 2, PANEL[1] - 36))  # right of the area too, where most points are
    _, leaders, _, _ = textalloc.allocate(
        room,
        x := middles[:, 0],
        y := middles[:, 1],
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
    for n, (text, leader) in enumerate(zip(room.texts, leaders, strict=True)):
        text.set_gid(f"{n}")
        if leader and math.dist(*zip(*leader[:2], strict=True)) >= 13:  # else it is right beside it
            room.plot(*leader[:2], gid=f"{n} l")
    return chart.svg(f"{y_words} against {x_words}, {len(points)} metrics")


def curves(lines: Sequence[Line], x_words: str, y_words: str, chance: float | None = None) -> Markup:
    """Draw percent against the radius: lines with bands, dashes for what is certified, labels at the right.

    Args:
        lines: one or more, with radii that are 0 or more, in the unit of the axis.
        x_words, y_words: what the axes are.
        chance: percent at which to draw what guessing gets.
    """
    width, height = PANEL[0], max(PANEL[1], 56 + (LETTER + 2) * len(lines))
    labels = [shortened(line.label) for line in lines]
    right, bottom = width - 22 - 0.54 * LETTER * max(map(len, labels)), height - 36
    radii = sorted({point[0] for line in lines for point in line.points})
    proven = [radius for line in lines for radius, percent in line.certified if percent > 0]
    radii = radii if any(radii) else [0.0, max(proven, default=0.0) or 1.0]
    chart = _Chart((width, height), (38.0, 20.0, right, bottom), x_words, y_words)
    if radius_axis(chart.axes, radii, WIDE):
        chart.x_words.set_text(f"{x_words}, log scale")
    chart.axes.set(xlim=(0, radii[-1]), ylim=(0, 100), yticks=range(0, 101, 20))
    places = [float(x) for x, _ in chart.axes.transData.transform([(radius, 0) for radius in radii])]
    shown = list(_apart(places, 24.0))
    chart.axes.set_xticks([radii[n] for n in shown], [f"{radii[n]:.3g}" for n in shown])
    if chance is not None:
        chart.axes.axhline(chance, gid="eq")
    layer, ends = chart.layer((0.0, 0.0, width, height)), []
    for n, line in enumerate(lines):
        told = ", ".join(f"{point[1]:.1f} at {point[0]:.3g}" for point in line.points)
        chart.member(n, line.look, ": ".join(filter(None, [line.label, told])))
        dashes = [place for place in line.certified if place[0] <= radii[-1]]
        if line.points:
            x, y, low, high = zip(*line.points, strict=True)
            chart.axes.fill_between(x, low, high, gid=f"{n} b")
            chart.axes.plot(x, y, "o-", gid=f"{n} c")
        if len(dashes) > 1:
            chart.axes.plot(*zip(*dashes, strict=True), gid=f"{n} c d")
        ends.append(chart.axes.transData.transform(line.points[-1][:2] if line.points else dashes[-1]))
    levels = spread([height - end[1] for end in ends], LETTER + 2, (20.0, height - 6))
    for n, (label, end, level) in enumerate(zip(labels, ends, levels, strict=True)):
        if abs(height - level - end[1]) > 3 or end[0] < right - 1:
            layer.plot((end[0], right + 6, right + 14), (end[1], end[1], height - level), gid=f"{n} l")
        layer.text(right + 17, height - level - 3.6, label, gid=f"{n}", parse_math=False)
    return chart.svg(f"{y_words} against {x_words}, {len(lines)} metrics")


def histogram(values: Sequence[float], others: Sequence[float], top: float) -> Markup:
    """Draw how often each value comes, filled, and each of `others`, as an outline; each as high as its own peak.

    Args:
        values, others: 0 or more, in the unit in which 1 is marked; what is beyond `top` counts in the last bin.
        top: the end of the axis, which all histograms of a page share.
    """
    parts = []
    for numbers, style in ((values, "h"), (others, "ho")):
        counts, _ = np.histogram(np.clip(numbers, 0, top), BINS, (0, top))
        if counts.any():
            levels = [0, *(round(TALL * count / counts.max()) for count in counts)]
            steps = "".join(f"v{before - level}h5" for before, level in pairwise(levels))
            parts.append(Markup('<path class="{}" d="M5 64{}V64"/>').format(style, steps))
    box = Markup('<svg class="chart" viewBox="0 0 170 82">{}<use href="#axis"/></svg>')
    return box.format(Markup("").join(parts))


def spread(wanted: Sequence[float], gap: float, bounds: tuple[float, float]) -> list[float]:
    """Find levels as near as possible to the wanted ones, `gap` apart and within bounds, in the same order.

    Where the bounds are too narrow for all, the gap shrinks.
    """
    if not wanted:
        return []
    gap = min(gap, (bounds[1] - bounds[0]) / max(1, len(wanted) - 1))
    order, steps = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted))
    blocks: list[tuple[float, int]] = []  # levels without their gaps, which neighbours share where they would cross
    for level in np.asarray(wanted, dtype=float)[order] - steps:
        blocks.append((level, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (high, many), (low, few) = blocks[-2:]
            blocks[-2:] = [((high * many + low * few) / (many + few), many + few)]
    placed = np.empty(len(wanted))
    means, counts = zip(*blocks, strict=True)
    placed[order] = np.repeat(means, counts).clip(bounds[0], bounds[1] - steps[-1]) + steps
    return placed.tolist()


def shortened(label: str) -> str:
    """Cut a label with an ellipsis where it is too long."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1].rstrip(" ,(-") + "\N{HORIZONTAL ELLIPSIS}"


def _apart(places: Sequence[float], gap: float) -> Iterator[int]:
    """Find which of rising places are far enough apart: the last, the first, and what fits between, from the right."""
    kept = len(places) - 1
    for n in range(len(places) - 1, -1, -1):
        if n in (0, len(places) - 1) or (places[kept] - places[n] >= gap and places[n] - places[0] >= gap):
            kept = n
            yield n


class _Chart:
    """A figure with axes in an area (left, top, right, bottom) of it, in units of the viewBox.

    A gid tells what an artist is: "c" is drawn with that class of the style sheet, "3 c" in the group of the member 3.
    What has none is left out.
    """

    def __init__(self, size: Place, area: Sequence[float], x_words: str, y_words: str) -> None:
        self.size = size
        self.members: dict[int, tuple[Look, str]] = {}
        self.figure = Figure((size[0] / 72, size[1] / 72), dpi=72)
        FigureCanvasAgg(self.figure)
        self.axes = self._axes(area)
        self.axes.grid(True)
        self.axes.tick_params(length=0, pad=6, labelsize=LETTER)
        self.axes.xaxis.set_gid("gr")
        self.axes.yaxis.set_gid("gr")
        self.figure.text(2 / size[0], 1 - 11 / size[1], y_words, gid="q")
        self.x_words = self.figure.text(area[2] / size[0], 1 - (area[3] + 30) / size[1], x_words, ha="right", gid="q")

    def _axes(self, area: Sequence[float]) -> Axes:
        (width, height), (left, top, right, bottom) = self.size, area
        box = (left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height)
        return self.figure.add_axes(box, label=str(len(self.figure.axes)), frameon=False)

    def layer(self, area: Sequence[float]) -> Axes:
        """Add axes above the others, in which a place is told as it is displayed: in units, from the bottom left."""
        axes = self._axes(area)
        axes.set(xlim=(area[0], area[2]), ylim=(self.size[1] - area[3], self.size[1] - area[1]))
        axes.set_axis_off()
        return axes

    def member(self, number: int, look: Look, words: str) -> None:
        """Add what is drawn together, and shown alone where the mouse is at it."""
        self.members[number] = look, words

    def svg(self, words: str) -> Markup:
        """Draw the picture, with what it shows in words."""
        drawn = _Svg(self)
        self.figure.draw(drawn)
        parts = []
        for style, elements in drawn.parts.items():
            if isinstance(style, str):
                parts.append(Markup('<g class="{}">{}</g>').format(style, Markup("").join(elements)))
        for number, (look, told) in self.members.items():
            inner = Markup("").join(drawn.parts.get(number, []))
            parts.append(Markup('<g class="p {}"><title>{}</title>{}</g>').format(look.style, told, inner))
        box = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
        return box.format(*map(short, self.size), words, Markup("").join(parts))


class _Svg(RendererBase):
    """Collects what matplotlib draws as elements, by the member that they are of."""

    def __init__(self, chart: _Chart) -> None:
        super().__init__()
        self.chart = chart
        self.parts: dict[int | str, list[Markup]] = {}
        self.gids: list[str | None] = []
        self.down = Affine2D().scale(1, -1).translate(0, chart.size[1])

    def get_canvas_width_height(self) -> Place:
        return self.chart.size

    def open_group(self, s: str, gid: str | None = None) -> None:
        self.gids.append(gid or (self.gids[-1] if self.gids else None))

    def close_group(self, s: str) -> None:
        self.gids.pop()

    def _add(self, gid: str | None, markup: str, **values: Any) -> None:
        """Keep an element: of a member, with its class, or among those of a class."""
        number, _, style = (gid or "").partition(" ")
        if gid:
            values["style"] = Markup(' class="{}"').format(style) if style else ""
            self.parts.setdefault(int(number) if number.isdigit() else gid, []).append(Markup(markup).format(**values))

    def draw_path(self, gc: Any, path: Path, transform: Any, rgbFace: Any = None) -> None:
        steps, last = [], (0, 0)
        for place, code in path.transformed(transform + self.down).iter_segments(simplify=False, curves=False):
            if code != Path.CLOSEPOLY:
                here = round(place[0]), round(place[1])
                across, down = here[0] - last[0], here[1] - last[1]
                if code == Path.MOVETO:
                    steps.append(f"M{here[0]} {here[1]}")
                else:
                    steps.append(f"h{across}" if not down else f"l{across} {down}" if across else f"v{down}")
                last = here
        self._add(self.gids[-1], '<path{style} d="{d}"/>', d="".join(steps))

    def draw_markers(
        self, gc: Any, marker_path: Path, marker_trans: Any, path: Path, trans: Any, rgbFace: Any = None
    ) -> None:
        gid = self.gids[-1] or ""
        if gid.endswith(" b"):  # a band is the one marker of its collection
            super().draw_markers(gc, marker_path, marker_trans, path, trans, rgbFace)
        elif gid:
            shape = SHAPES[self.chart.members[int(gid.split()[0])][0].shape]
            places = np.asarray(path.transformed(trans + self.down).vertices)
            self._add(gid, '<path class="g" d="{d}"/>', d="".join(f"M{x:.0f} {y:.0f}{shape}" for x, y in places))

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, ismath: Any = False, mtext: Any = None
    ) -> None:
        anchor = {"left": "", "center": ' text-anchor="middle"', "right": ' text-anchor="end"'}[mtext.get_ha()]
        at = mtext.get_transform().transform(mtext.get_unitless_position())[0]
        gid = "q" if self.gids[-1] == "gr" else self.gids[-1]
        text = '<text x="{x}" y="{y}"{anchor}>{s}</text>'
        self._add(gid, text, x=short(at), y=short(y), anchor=Markup(anchor), s=s)
