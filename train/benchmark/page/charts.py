"""Charts as SVG, laid out by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from rclip_metric.train.benchmark.page.picture import LETTER, Picture, marks, shortened, stroke, text
from rclip_metric.train.benchmark.page.reading import Look
from rclip_metric.train.evaluation.results.curves import radius_axis

PANEL = (400.0, 340.0)
BINS, TALL = 32, 56  # of a histogram: bins, and units of its peak
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
    points: Sequence[Sequence[float]]
    certified: Sequence[Sequence[float]] = ()


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
    chart = Picture(PANEL, (34.0, 20.0, PANEL[0] - 104, PANEL[1] - 36))
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
        chart.equal.append(stroke("", chart.places(equal, equal)))
    middles = chart.places([point.x for point in points], [point.y for point in points])
    for point, middle, (leader, label) in zip(points, middles, chart.labels(points, middles), strict=True):
        drawn = []
        if point.x_interval:
            drawn.append(stroke("w", chart.places(point.x_interval, [point.y] * 2)))
        if point.y_interval:
            drawn.append(stroke("w", chart.places([point.x] * 2, point.y_interval)))
        told = f"{point.label}: {point.x:.1f} {x_words.split()[0]}, {point.y:.1f} {y_words.split()[0]}"
        chart.member(point.look, told, *drawn, marks(point.look, [middle]), leader, label)
    better = text(PANEL[0] - 104, 11, "better \N{NORTH EAST ARROW}", "right")
    return chart.svg(x_words, y_words, better)


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
    chart = Picture((width, height), (38.0, 20.0, right, bottom))
    bent = radius_axis(chart.axes, radii, WIDE)
    chart.axes.set(xlim=(0, radii[-1]), ylim=(0, 100), yticks=range(0, 101, 20))
    chart.axes.set_xticks([radii[n] for n in _apart([x for x, _ in chart.places(radii, [0] * len(radii))], 24.0)])
    if chance is not None:
        chart.equal.append(stroke("", chart.places([0, radii[-1]], [chance] * 2)))
    dashes = [[place for place in line.certified if place[0] <= radii[-1]] for line in lines]
    lasts = [line.points[-1][:2] if line.points else dash[-1] for line, dash in zip(lines, dashes, strict=True)]
    ends = chart.places(*zip(*lasts, strict=True))
    levels = spread([end[1] for end in ends], LETTER + 2, (20.0, height - 6))
    for line, label, dash, end, level in zip(lines, labels, dashes, ends, levels, strict=True):
        drawn = []
        if line.points:
            x, y, low, high = zip(*line.points, strict=True)
            drawn.append(stroke("b", chart.places([*x, *x[::-1]], [*low, *high[::-1]])))
            drawn += [stroke("c", chart.places(x, y)), marks(line.look, chart.places(x, y))]
        if len(dash) > 1:
            drawn.append(stroke("c d", chart.places(*zip(*dash, strict=True))))
        if abs(level - end[1]) > 3 or end[0] < right - 1:
            drawn.append(stroke("l", [end, (right + 6, end[1]), (right + 14, level)]))
        told = ", ".join(f"{point[1]:.1f} at {point[0]:.3g}" for point in line.points)
        told = ": ".join(filter(None, [line.label, told]))
        chart.member(line.look, told, *drawn, text(right + 17, level + 3.6, label))
    return chart.svg(x_words, y_words, scale=", log scale" if bent else "")


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


def _apart(places: Sequence[float], gap: float) -> Iterator[int]:
    """Find which of rising places are far enough apart: the last, the first, and what fits between, from the right."""
    kept = len(places) - 1
    for n in range(len(places) - 1, -1, -1):
        if n in (0, len(places) - 1) or (places[kept] - places[n] >= gap and places[n] - places[0] >= gap):
            kept = n
            yield n
