"""Charts as SVG: functions from numbers to strings, whose colours, lines and letters are the style sheet's business."""

from __future__ import annotations

import html
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

Box = tuple[float, float, float, float]  # left, top, right, bottom
Place = tuple[float, float]

COLOURS = 7  # --k0 to --k6 of the style sheet
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
METER = (0.0, 54.0)
SMALL = (170.0, 82.0)
EDGE, FLOOR, TALL, BIN, BINS = 5, 64, 56, 5, 32  # of a histogram: its left, bottom, height, width of a bin, bins
MOVES, CANDIDATES = 150, 60  # of the search for places: moves per label, places per label
SYMLOG = 6  # a ratio of the largest to the smallest radius beyond which the axis is logarithmic

_NARROW, _WIDE = frozenset("iljtfrI.,:;'|!()[] -"), frozenset("mwMW@%")


@dataclass(frozen=True)
class Look:
    """How a metric is drawn on the whole page: a colour, a shape, filled where it is not a baseline."""

    index: int
    filled: bool = True

    @property
    def style(self) -> str:
        """Classes of the style sheet."""
        return f"k{self.index % COLOURS}" + ("" if self.filled else " o")

    def drawn(self, middle: Place) -> str:
        """The shape around a point, as a path."""
        across, down, rest = SHAPES[self.index % len(SHAPES)]
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


def meter(value: float, interval: tuple[float, float] | None = None) -> str:
    """A bar from 0 to 100 with the interval at its end, for a cell of the table; in pixels, `METER` for the 100."""
    x, middle = Scale((0.0, 100.0), METER), 4
    end = f'<path d="M{short(x(interval[0]))} {middle}H{short(x(interval[1]))}"/>' if interval else ""
    return f'<svg class="m"><path d="M0 {middle}H{short(x(value))}"/>{end}</svg>'


def symbols() -> str:
    """The shapes, once per page, for `glyph`."""
    shapes = (
        f'<symbol id="s{n}" viewBox="-6 -6 12 12"><path d="{Look(n).drawn((0, 0))}"/></symbol>'
        for n in range(len(SHAPES))
    )
    return f'<svg class="say" aria-hidden="true">{"".join(shapes)}</svg>'


def glyph(look: Look) -> str:
    """A metric's mark, in a line of text."""
    return f'<svg class="g {look.style}"><use href="#s{look.index % len(SHAPES)}"/></svg>'


def percent_domain(values: Sequence[float], margin: float = 2.0) -> tuple[float, float]:
    """Tens around all values, within 0 and 100 and at least 20 wide."""
    low = max(0.0, math.floor((min(values) - margin) / 10) * 10.0)
    high = min(100.0, math.ceil((max(values) + margin) / 10) * 10.0)
    if high - low < 20:
        low, high = (max(0.0, high - 20), high) if high > 50 else (low, low + 20)
    return low, high


def scatter(points: Sequence[Point], x_words: str, y_words: str) -> str:
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
    boxes = place_labels(middles, sizes, room, [_grown(bar) for bars in whiskers for bar in bars])
    for point, label, middle, box, lines in zip(points, labels, middles, boxes, whiskers, strict=True):
        cross = "".join(f"M{short(a)} {short(b)}{f'H{short(c)}' if b == d else f'V{short(d)}'}" for a, b, c, d in lines)
        start = leader(middle, box)
        line = f'<path class="l" d="{_path(start)}"/>' if start else ""
        told = f"{point.label}: {point.x:.1f} {x_words.split()[0]}, {point.y:.1f} {y_words.split()[0]}"
        parts.append(
            f'<g class="p {point.look.style}"><title>{html.escape(told)}</title>{line}'
            f'<path class="w" d="{cross}"/><path class="g" d="{point.look.drawn(middle)}"/>'
            f'<text {_anchored(middle, box)} y="{box[3] - 2.5:.0f}">{html.escape(label)}</text></g>'
        )
    return _svg(PANEL, f"{y_words} against {x_words}, {len(points)} metrics", parts)


def curves(lines: Sequence[Line], x_words: str, y_words: str, chance: float | None = None) -> str:
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
        parts.append(f'<path class="g" d="{"".join(line.look.drawn(point) for point in points)}"/>')
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


def histogram(values: Sequence[float], others: Sequence[float], top: float) -> str:
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


def histogram_axis(top: float, more: bool) -> str:
    """The axis of all histograms, once per page, with a mark at 1; ``more``: the last bin holds what is beyond."""
    end = EDGE + BIN * BINS
    one = short(EDGE + BIN * BINS / top)
    texts = ((f"{EDGE}", "start", "0"), (one, "middle", "1"), (f"{end}", "end", f"{top:g}{'+' * more}"))
    numbers = "".join(
        f'<text x="{x}" y="{FLOOR + 14}" text-anchor="{anchor}">{words}</text>' for x, anchor, words in texts
    )
    lines = f'<path class="ax" d="M{EDGE} {FLOOR}H{end}"/><path class="one" d="M{one} 4V{FLOOR + 4}"/>'
    return f'<svg class="say" aria-hidden="true"><g id="axis">{lines}{numbers}</g></svg>'


def bin_counts(values: Sequence[float], top: float, bins: int) -> list[int]:
    """How many values are in each of equal bins from 0 to ``top``; what is beyond either end is in the last there."""
    counts = [0] * bins
    for value in values:
        counts[max(0, min(bins - 1, int(value / top * bins)))] += 1
    return counts


def spread(wanted: Sequence[float], gap: float, bounds: tuple[float, float]) -> list[float]:
    """Levels as near as possible to the wanted ones, ``gap`` apart and within bounds, in the same order.

    Neighbours that are too close merge into blocks around their mean. Where the bounds are too narrow for all, the
    gap shrinks.
    """
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    if len(wanted) > 1:
        gap = min(gap, (bounds[1] - bounds[0]) / (len(wanted) - 1))
    blocks: list[list[int]] = []
    starts: list[float] = []
    for n in order:
        blocks.append([n])
        starts.append(_block_start([wanted[n]], gap, bounds))
        while len(blocks) > 1 and starts[-2] + gap * len(blocks[-2]) > starts[-1]:
            merged = blocks.pop(-2) + blocks.pop()
            starts = [*starts[:-2], _block_start([wanted[m] for m in merged], gap, bounds)]
            blocks.append(merged)
    placed = [0.0] * len(wanted)
    for block, start in zip(blocks, starts, strict=True):
        for place, n in enumerate(block):
            placed[n] = start + place * gap
    return placed


def place_labels(
    middles: Sequence[Place], sizes: Sequence[Place], area: Box, obstacles: Sequence[Box] = ()
) -> list[Box]:
    """A box for each label: near its point, within the area, off the other labels, the points and the obstacles.

    Simulated annealing over the places around each point, the same for the same points, then each label in turn takes
    the cheapest place given those of the others.
    """
    choices = [_candidates(n, middles, size, area, obstacles) for n, size in enumerate(sizes)]
    numbers, chance = range(len(middles)), random.Random(0)
    places = [0] * len(middles)
    known: dict[tuple[int, int, int, int], float] = {}

    def conflict(n: int, place: int, m: int) -> float:
        key = (n, place, m, places[m]) if n < m else (m, places[m], n, place)
        if key not in known:
            known[key] = _conflict(choices[n][place], choices[m][places[m]])
        return known[key]

    def cost(n: int, place: int) -> float:
        return choices[n][place].cost + sum(conflict(n, place, m) for m in numbers if m != n)

    moves = MOVES * len(middles) if len(middles) > 1 else 0
    for move in range(moves):
        n = chance.randrange(len(middles))
        place = int(len(choices[n]) * chance.random() ** 2)  # rather one of the cheap ones
        worse = cost(n, place) - cost(n, places[n])
        if worse <= 0 or chance.random() < math.exp(-worse / (30 * (1 - move / moves))):
            places[n] = place
    for n in [*numbers, *numbers]:
        places[n] = min(range(len(choices[n])), key=lambda place, n=n: cost(n, place))  # type: ignore[misc]
    return [choices[n][place].box for n, place in enumerate(places)]


def leader(middle: Place, box: Box) -> tuple[Place, Place] | None:
    """The line from a point to its label, None where the label is right beside it."""
    near = min(max(middle[0], box[0]), box[2]), min(max(middle[1], box[1] + 2), box[3] - 2)
    length = math.dist(middle, near)
    if length < 13:
        return None
    at = 6 / length, 1 - 2 / length
    start, end = ((middle[0] + (near[0] - middle[0]) * t, middle[1] + (near[1] - middle[1]) * t) for t in at)
    return start, end


def _anchored(middle: Place, box: Box) -> str:
    """Where a text starts, so that it keeps to its point although its width is only about known."""
    if box[0] >= middle[0]:
        return f'x="{box[0]:.0f}"'
    if box[2] <= middle[0]:
        return f'x="{box[2]:.0f}" text-anchor="end"'
    return f'x="{(box[0] + box[2]) / 2:.0f}" text-anchor="middle"'


@dataclass(frozen=True)
class Candidate:
    """A place for a label, its line to the point, and what it costs whatever the other labels do."""

    cost: float
    box: Box
    line: tuple[Place, Place] | None


def _candidates(n: int, middles: Sequence[Place], size: Place, area: Box, obstacles: Sequence[Box]) -> list[Candidate]:
    """Places for the label of the n-th point, the cheapest first: near, on no point, nearest to its own."""
    found, middle = [], middles[n]
    for reach in (7, 11, 16, 23, 32, 44, 58, 75, 95, 120, 150):
        for turn in range(16):
            cosine, sine = math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)
            # The side or corner of the label that looks to the point is that far from it, however wide the label is.
            x = middle[0] + reach * cosine - size[0] * (0.5 - 0.5 * (abs(cosine) > 0.3) * math.copysign(1, cosine))
            y = middle[1] + reach * sine - size[1] * (0.5 - 0.5 * (abs(sine) > 0.3) * math.copysign(1, sine))
            x, y = max(area[0], min(x, area[2] - size[0])), max(area[1], min(y, area[3] - size[1]))
            box = (x, y, x + size[0], y + size[1])
            line, own = leader(middle, box), math.dist(middle, _nearest(middle, box))
            cost = 1.5 * max(own, reach) + 2 * (1 - cosine) + 3 * abs(sine)
            cost += sum(1.5 * _overlap(box, bar) for bar in obstacles)
            for other in middles:
                glyph = (other[0] - 5, other[1] - 5, other[0] + 5, other[1] + 5)
                cost += 8 * _overlap(box, glyph)
                if math.dist(middle, other) > 9:  # else it is all but the same point, and nothing can tell them apart
                    cost += 40 * (math.dist(other, _nearest(other, box)) < min(own, 16))
                    cost += 40 * (line is not None and _hits(line, glyph))
            found.append(Candidate(cost, box, line))
    return sorted(found, key=lambda candidate: candidate.cost)[:CANDIDATES]


def _conflict(a: Candidate, b: Candidate) -> float:
    """What two labels cost each other: where they overlap, and where a line crosses a label or a line."""
    cost = 40 * _overlap(a.box, b.box, 1.5)
    cost += 80 * (a.line is not None and _hits(a.line, b.box))
    cost += 80 * (b.line is not None and _hits(b.line, a.box))
    return cost + 25 * (a.line is not None and b.line is not None and _cross(a.line, b.line))


def _nearest(place: Place, box: Box) -> Place:
    """The place of a box that is nearest to another one."""
    return min(max(place[0], box[0]), box[2]), min(max(place[1], box[1]), box[3])


def _overlap(a: Box, b: Box, margin: float = 0.0) -> float:
    """The square root of the area that two boxes share."""
    if a[0] - margin >= b[2] or b[0] - margin >= a[2] or a[1] - margin >= b[3] or b[1] - margin >= a[3]:
        return 0.0
    return math.sqrt((min(a[2], b[2]) - max(a[0], b[0]) + margin) * (min(a[3], b[3]) - max(a[1], b[1]) + margin))


def _hits(line: tuple[Place, Place], box: Box) -> bool:
    """Whether a line goes through a box: its parts between the sides, and between top and bottom, meet."""
    start, end = 0.0, 1.0
    for axis in (0, 1):
        low, high, at, step = box[axis], box[axis + 2], line[0][axis], line[1][axis] - line[0][axis]
        if step == 0:
            if not low < at < high:
                return False
            continue
        first, last = sorted(((low - at) / step, (high - at) / step))
        start, end = max(start, first), min(end, last)
        if start >= end:
            return False
    return True


def _cross(a: tuple[Place, Place], b: tuple[Place, Place]) -> bool:
    """Whether two lines cross."""

    def side(p: Place, q: Place, r: Place) -> bool:
        return (q[0] - p[0]) * (r[1] - p[1]) > (q[1] - p[1]) * (r[0] - p[0])

    return side(a[0], a[1], b[0]) != side(a[0], a[1], b[1]) and side(b[0], b[1], a[0]) != side(b[0], b[1], a[1])


def _block_start(wanted: Sequence[float], gap: float, bounds: tuple[float, float]) -> float:
    """Where a block of levels starts: around the mean of what its members want, within bounds."""
    start = sum(level - n * gap for n, level in enumerate(wanted)) / len(wanted)
    return max(bounds[0], min(start, bounds[1] - gap * (len(wanted) - 1)))


def _grown(bar: Box) -> Box:
    """A bar as wide as it is drawn."""
    return bar[0] - 1.5, bar[1] - 1.5, bar[2] + 1.5, bar[3] + 1.5


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


def _svg(size: Place, words: str, parts: Sequence[str]) -> str:
    """The picture, with what it shows in words; without any where the text beside it says it all."""
    label = f' role="img" aria-label="{html.escape(words)}"' if words else ""
    return f'<svg class="chart" viewBox="0 0 {short(size[0])} {short(size[1])}"{label}>{"".join(parts)}</svg>'
