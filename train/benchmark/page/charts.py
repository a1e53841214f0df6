"""Charts as SVG: functions from numbers to strings, whose colours, lines and letters are the style sheet's business."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from markupsafe import Markup

from rclip_metric.train.benchmark.page.label_places import Box, Place, anchored, grown, leader, place_labels, spread
from rclip_metric.train.benchmark.page.reading import Look

# Where each starts from the middle of a point, and how it goes on; with the colours 35 looks that differ.
SHAPES = (
    (-3.5, 0, "a3.5 3.5 0 1 0 7 0 3.5 3.5 0 1 0-7 0"),
    (-3, -3, "h6v6h-6z"),
    (0, -4, "l4 7h-8z"),
    (0, -4.5, "l4.5 4.5-4.5 4.5-4.5-4.5z"),
    (0, 4, "l4-7h-8z"),
)
LETTER = 10.5  # font size of all charts, in units of their viewBox
PANEL = (400.0, 340.0)
SMALL = (170.0, 82.0)
EDGE, FLOOR, TALL, BIN, BINS = 5, 64, 56, 5, 32  # of a histogram: its left, bottom, height, width of a bin, bins
SYMLOG = 6  # a ratio of the largest to the smallest radius beyond which the axis is logarithmic

_NARROW, _WIDE = frozenset("iljtfrI.,:;'|!()[] -"), frozenset("mwMW@%")


def marked(look: Look, middle: Place) -> str:
    """The shape of a metric around a point, as a path."""
    across, down, rest = SHAPES[look.shape]
    return f"M{_pair((middle[0] + across, middle[1] + down))}{rest}"


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


@dataclass(frozen=True)
class Scale:
    """A linear map of numbers to units of the picture, after ``bend`` where it is not linear."""

    domain: tuple[float, float]
    span: tuple[float, float]
    bend: Callable[[float], float] = float

    def __call__(self, value: float) -> float:
        """Where a number is drawn."""
        start, end = (self.bend(edge) for edge in self.domain)
        share = (self.bend(value) - start) / (end - start)
        return self.span[0] + share * (self.span[1] - self.span[0])


def short(value: float) -> str:
    """A coordinate with one decimal, in as few characters as possible."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def text_width(text: str, size: float = LETTER) -> float:
    """About how wide a text is, whatever the font: rather too wide."""
    return size * sum(0.35 if c in _NARROW else 0.86 if c in _WIDE else 0.65 if c.isupper() else 0.55 for c in text)


def elided(text: str, width: float) -> str:
    """The text, cut with an ellipsis where it is wider than ``width``."""
    if text_width(text) <= width:
        return text
    while text and text_width(text + "\N{HORIZONTAL ELLIPSIS}") > width:
        text = text[:-1]
    return text.rstrip(" ,(-") + "\N{HORIZONTAL ELLIPSIS}"


def symbols() -> Markup:
    """The shapes, once per page, for `glyph`."""
    shapes = (
        f'<symbol id="s{n}" viewBox="-6 -6 12 12"><path d="{marked(Look(n), (0, 0))}"/></symbol>'
        for n in range(len(SHAPES))
    )
    return Markup(f'<svg class="say" aria-hidden="true">{"".join(shapes)}</svg>')


def percent_domain(values: Sequence[float], margin: float = 2.0) -> tuple[float, float]:
    """Tens around all values, within 0 and 100 and at least 20 wide."""
    low = max(0.0, math.floor((min(values) - margin) / 10) * 10.0)
    high = min(100.0, math.ceil((max(values) + margin) / 10) * 10.0)
    if high - low < 20:
        low, high = (max(0.0, high - 20), high) if high > 50 else (low, low + 20)
    return low, high


def scatter(points: Sequence[Point], x_words: str, y_words: str) -> Markup:
    """Points with whiskers, each with its label beside it: no label covers another or a point while there is room.

    Args:
        points: one or more.
        x_words, y_words: what the axes are, the word that tells them apart first; where they are equal is dotted.
    """
    width, height = PANEL
    area = (34.0, 20.0, width - 104, height - 36)
    x_values = [value for point in points for value in (point.x, *(point.x_interval or ()))]
    y_values = [value for point in points for value in (point.y, *(point.y_interval or ()))]
    x = Scale(percent_domain(x_values), (area[0] + 6, area[2] - 6))
    y = Scale(percent_domain(y_values), (area[3] - 6, area[1] + 6))
    parts = [_grid(area, [(tick, x(tick)) for tick in _tens(x.domain)], [(tick, y(tick)) for tick in _tens(y.domain)])]
    parts.append(_axis_words(area, x_words, y_words))
    parts.append(f'<text class="q" x="{short(area[2])}" y="11" text-anchor="end">better \N{NORTH EAST ARROW}</text>')
    equal = max(x.domain[0], y.domain[0]), min(x.domain[1], y.domain[1])
    if equal[0] < equal[1]:
        parts.append(f'<path class="eq" d="{_path([(x(at), y(at)) for at in equal])}"/>')
    labels = [elided(point.label, 128) for point in points]
    sizes = [(text_width(label), LETTER + 1) for label in labels]
    middles = [(round(x(point.x)), round(y(point.y))) for point in points]
    whiskers = [_whiskers(point, x, y) for point in points]
    room = (area[0] + 2, area[1], width - 2, area[3])  # labels may leave the area at the right, where most points are
    boxes = place_labels(middles, sizes, room, [grown(bar) for bars in whiskers for bar in bars])
    for point, label, middle, box, lines in zip(points, labels, middles, boxes, whiskers, strict=True):
        cross = "".join(f"M{short(a)} {short(b)}{f'H{short(c)}' if b == d else f'V{short(d)}'}" for a, b, c, d in lines)
        start = leader(middle, box)
        line = f'<path class="l" d="{_path(start)}"/>' if start else ""
        told = f"{point.label}: {point.x:.1f} {x_words.split()[0]}, {point.y:.1f} {y_words.split()[0]}"
        parts.append(
            f'<g class="p {point.look.style}"><title>{html.escape(told)}</title>{line}'
            f'<path class="w" d="{cross}"/><path class="g" d="{marked(point.look, middle)}"/>'
            f'<text {anchored(middle, box)} y="{box[3] - 2.5:.0f}">{html.escape(label)}</text></g>'
        )
    return _svg(PANEL, f"{y_words} against {x_words}, {len(points)} metrics", parts)


def curves(lines: Sequence[Line], x_words: str, y_words: str, chance: float | None = None) -> Markup:
    """Percent against the radius: a line with its band per metric, dashes for what is certified, labels at the right.

    Args:
        lines: one or more, with radii that are 0 or more, in the unit of the axis.
        x_words, y_words: what the axes are.
        chance: percent at which to draw what guessing gets.
    """
    width, height = PANEL[0], max(PANEL[1], 56 + (LETTER + 2) * len(lines))
    labels = [elided(line.label, 118) for line in lines]
    gutter = max(text_width(label) for label in labels) + 22
    area = (34.0, 20.0, width - gutter, height - 36)
    x = radius_scale(lines, (area[0] + 4, area[2]))
    y = Scale((0.0, 100.0), (area[3], area[1]))
    x_words += ", log scale" if x.bend is not float else ""
    radii = sorted({point[0] for line in lines for point in line.points}) or list(x.domain)
    ticks = _thinned([(radius, x(radius)) for radius in radii])
    parts = [_grid(area, ticks, [(tick, y(tick)) for tick in range(0, 101, 20)]), _axis_words(area, x_words, y_words)]
    if chance is not None:
        parts.append(f'<path class="eq" d="M{short(area[0])} {short(y(chance))}H{short(area[2])}"/>')
    drawn = [[(round(x(r)), *(round(y(at)) for at in numbers)) for r, *numbers in line.points] for line in lines]
    certified = [_thinned_curve([(x(r), y(at)) for r, at in line.certified if r <= x.domain[1]]) for line in lines]
    ends = [points[-1][:2] if points else dashes[-1] for points, dashes in zip(drawn, certified, strict=True)]
    levels = spread([end[1] for end in ends], LETTER + 2, (area[1], height - 6))
    for line, label, points, dashes, end, level in zip(lines, labels, drawn, certified, ends, levels, strict=True):
        told = ", ".join(f"{point[1]:.1f} at {point[0]:.3g}" for point in line.points)
        parts.append(
            f'<g class="p {line.look.style}"><title>{html.escape(": ".join(filter(None, [line.label, told])))}</title>'
        )
        if len(points) > 1:
            edges = [(a, low) for a, _, low, _ in points] + [(a, high) for a, _, _, high in reversed(points)]
            parts.append(f'<path class="b" d="{_path(edges)}z"/><path class="c" d="{_path(points)}"/>')
        if len(dashes) > 1:
            parts.append(f'<path class="c d" d="{_path(dashes)}"/>')
        parts.append(f'<path class="g" d="{"".join(marked(line.look, point) for point in points)}"/>')
        bend = (area[2] + 6, end[1]), (area[2] + 14, level)
        if abs(level - end[1]) > 3 or end[0] < area[2] - 1:
            parts.append(f'<path class="l" d="{_path((end, *bend))}"/>')
        parts.append(f'<text x="{area[2] + 17:.0f}" y="{level + 3.6:.0f}">{html.escape(label)}</text></g>')
    return _svg((width, height), f"{y_words} against {x_words}, {len(lines)} metrics", parts)


def radius_scale(lines: Sequence[Line], span: tuple[float, float]) -> Scale:
    """From 0 to the largest radius of the lines (of the certified curves if there is no other).

    Linear, but from the smallest radius on logarithmic where the largest is more than `SYMLOG` times that.
    """
    radii = sorted({point[0] for line in lines for point in line.points if point[0] > 0})
    if not radii:
        certified = [radius for line in lines for radius, percent in line.certified if percent > 0]
        return Scale((0.0, max(certified, default=0.0) or 1.0), span)
    first = radii[0]
    if radii[-1] <= SYMLOG * first:
        return Scale((0.0, radii[-1]), span)
    return Scale((0.0, radii[-1]), span, lambda r: r / first if r < first else 1 + math.log(r / first))


def histogram(values: Sequence[float], others: Sequence[float], top: float) -> Markup:
    """How often each value comes, filled, and each of ``others``, as an outline; each as high as its own peak.

    Args:
        values, others: 0 or more, in the unit in which 1 is marked; what is beyond ``top`` counts in the last bin.
        top: the end of the axis, which is drawn by `histogram_axis`.
    """
    parts = []
    for numbers, style in ((values, "h"), (others, "ho")):
        counts = bin_counts(numbers, top, BINS)
        peak = max(counts)
        if peak:
            levels = [round(TALL * count / peak) for count in counts]
            runs = [(level, BIN * len(list(run))) for level, run in groupby(levels)]
            outline = "".join(f"v{before - level}h{wide}" for (before, _), (level, wide) in pairwise([(0, 0), *runs]))
            parts.append(f'<path class="{style}" d="M{EDGE} {FLOOR}{outline}V{FLOOR}"/>')
    return _svg(SMALL, "", [*parts, '<use href="#axis"/>'])


def histogram_axis(top: float, more: bool) -> Markup:
    """The axis of all histograms, once per page, with a mark at 1; ``more``: the last bin holds what is beyond."""
    end = EDGE + BIN * BINS
    one = short(EDGE + BIN * BINS / top)
    texts = ((f"{EDGE}", "start", "0"), (one, "middle", "1"), (f"{end}", "end", f"{top:g}{'+' * more}"))
    numbers = "".join(
        f'<text x="{x}" y="{FLOOR + 14}" text-anchor="{anchor}">{words}</text>' for x, anchor, words in texts
    )
    lines = f'<path class="ax" d="M{EDGE} {FLOOR}H{end}"/><path class="one" d="M{one} 4V{FLOOR + 4}"/>'
    return Markup(f'<svg class="say" aria-hidden="true"><g id="axis">{lines}{numbers}</g></svg>')


def bin_counts(values: Sequence[float], top: float, bins: int) -> list[int]:
    """How many values are in each of equal bins from 0 to ``top``; what is beyond either end is in the last there."""
    counts = [0] * bins
    for value in values:
        counts[max(0, min(bins - 1, int(value / top * bins)))] += 1
    return counts


def _whiskers(point: Point, x: Scale, y: Scale) -> list[Box]:
    """The horizontal and the vertical interval of a point, as boxes without height or width."""
    across, up = round(x(point.x)), round(y(point.y))
    boxes: list[Box] = []
    if point.x_interval:
        boxes.append((round(x(point.x_interval[0])), up, round(x(point.x_interval[1])), up))
    if point.y_interval:
        boxes.append((across, round(y(point.y_interval[1])), across, round(y(point.y_interval[0]))))
    return boxes


def _thinned(ticks: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The ticks that have room for their numbers: the last, the first, and what fits between, from the right."""

    def apart(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return abs(a[1] - b[1]) >= 6 + sum(text_width(f"{tick[0]:.3g}") for tick in (a, b)) / 2

    kept = [ticks[-1]]
    for tick in reversed(ticks[:-1]):
        if apart(tick, kept[-1]) and (tick == ticks[0] or apart(tick, ticks[0])):
            kept.append(tick)
    return kept[::-1]


def _thinned_curve(points: Sequence[Place]) -> list[Place]:
    """A curve without the points that are less than a unit from the one before: as it looks, in fewer characters."""
    kept = list(points[:1])
    for point in points[1:]:
        if math.dist(kept[-1], point) >= 1.5 or point == points[-1]:
            kept.append(point)
    return kept


def _tens(domain: tuple[float, float]) -> range:
    """Ticks of a percent axis: every 10, every 20 from 60 on."""
    low, high = (round(edge) for edge in domain)
    step = 10 if high - low <= 60 else 20
    return range(math.ceil(low / step) * step, high + 1, step)


def _grid(area: Box, across: Sequence[tuple[float, float]], up: Sequence[tuple[float, float]]) -> str:
    """Lines at the ticks of both axes, (number, place), and the numbers."""
    left, top, right, bottom = map(short, area)
    lines = "".join(f"M{short(at)} {top}V{bottom}" for _, at in across)
    lines += "".join(f"M{left} {short(at)}H{right}" for _, at in up)
    numbers = [
        f'<text x="{short(at)}" y="{short(area[3] + 14)}" text-anchor="middle">{tick:.3g}</text>' for tick, at in across
    ]
    numbers += [
        f'<text x="{short(area[0] - 6)}" y="{short(at + 3.6)}" text-anchor="end">{tick:.3g}</text>' for tick, at in up
    ]
    return f'<path class="gr" d="{lines}"/><g class="t">{"".join(numbers)}</g>'


def _axis_words(area: Box, x_words: str, y_words: str) -> str:
    """The names of the axes: above the vertical one, below the end of the horizontal one."""
    words = html.escape(x_words)
    across = f'<text class="q" x="{short(area[2])}" y="{short(area[3] + 30)}" text-anchor="end">{words}</text>'
    return f'<text class="q" x="2" y="11">{html.escape(y_words)}</text>{across}'


def _pair(place: Sequence[float]) -> str:
    return f"{short(place[0])} {short(place[1])}"


def _path(places: Sequence[Sequence[float]]) -> str:
    """A line through places, as steps between whole units."""
    whole = [(round(place[0]), round(place[1])) for place in places]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(whole)]
    return f"M{whole[0][0]} {whole[0][1]}l" + " ".join(f"{a} {b}" for a, b in steps).replace(" -", "-")


def _svg(size: Place, words: str, parts: Sequence[str]) -> Markup:
    """The picture, with what it shows in words; without any where the text beside it says it all."""
    label = f' role="img" aria-label="{html.escape(words)}"' if words else ""
    box = f"0 0 {short(size[0])} {short(size[1])}"
    return Markup(f'<svg class="chart" viewBox="{box}"{label}>{"".join(parts)}</svg>')
