"""Where the labels of a chart go, so that they neither overlap nor hide a point."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, top, right, bottom
Place = tuple[float, float]

MOVES, CANDIDATES = 150, 60  # of the search for places: moves per label, places per label


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


def anchored(middle: Place, box: Box) -> str:
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


def grown(bar: Box) -> Box:
    """A bar as wide as it is drawn."""
    return bar[0] - 1.5, bar[1] - 1.5, bar[2] + 1.5, bar[3] + 1.5
