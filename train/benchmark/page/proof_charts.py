"""Charts of what is proven against the l_2 radius: all metrics in one, and each beside what attacks found of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from rclip_metric.train.benchmark.page.picture import LETTER, Picture, Place, marks, shortened, stroke, text
from rclip_metric.train.benchmark.page.proof import SIGMA
from rclip_metric.train.benchmark.page.reading import Look
from rclip_metric.train.benchmark.page.words import NORMS

WIDTH, SMALL = 440.0, (260.0, 190.0)
Y_WORDS, X_WORDS = "accuracy, %", f"{NORMS['l2'].striptags()} radius"
POINTS = 65  # of a curve
Curve = Sequence[Sequence[float]]  # (radius, percent), rising


@dataclass(frozen=True)
class Proof:
    """A metric against the l_2 radius: what attacks left, and what is certified.

    Attributes:
        label: its name.
        look: how it is drawn.
        attacked: (radius, percent, low, high), rising.
        lipschitz: (radius, percent), of the metric itself; empty where it certifies nothing.
        smoothed: by sigma, (radius, percent) of the smoothed metric.
    """

    label: str
    look: Look
    attacked: Sequence[Sequence[float]]
    lipschitz: Curve
    smoothed: Mapping[float, Curve]

    @property
    def envelope(self) -> Curve:
        """What is certified under the noise that is best at each radius."""
        if not self.smoothed:
            return []
        last = max(curve[-1][0] for curve in self.smoothed.values())
        radii = np.linspace(0, last, POINTS).tolist() if last > 0 else [0.0]
        return [(radius, max(_at(curve, radius) for curve in self.smoothed.values())) for radius in radii]

    @property
    def reach(self) -> float:
        """The radius from which on nothing is certified."""
        steps = (step for curve in (self.lipschitz, *self.smoothed.values()) for step in pairwise(curve))
        return max((radius for (_, percent), (radius, _) in steps if percent > 0), default=0.0)

    @property
    def area(self) -> float:
        """How much is certified over all radii: of certificate or noise, whichever has more."""
        return max(_area(self.lipschitz), _area(self.envelope))


def _at(curve: Curve, radius: float) -> float:
    """Find percent at a radius: beyond the end of what is known nothing is certified."""
    x, y = np.array(curve, dtype=float).T
    return float(np.interp(radius, x, y, right=0.0))


def _area(curve: Curve) -> float:
    """Integrate percent over the radius."""
    return sum((x - at) * (percent + level) / 2 for (at, percent), (x, level) in pairwise(curve))


def top_radius(proofs: Sequence[Proof]) -> float:
    """Choose where the axis of all charts ends: where nothing is certified any more of any metric.

    One that reaches far would leave the others no room: so a quarter beyond the last but one at most.
    """
    *others, last = sorted(proof.reach for proof in proofs)
    return min(last, 1.25 * others[-1]) if others and others[-1] > 0 else last or 1.0


def together(proofs: Sequence[Proof], top: float) -> Markup:
    """Draw what all metrics certify: dashes by themselves, dots under the noise that is best at each radius.

    The names at the right stand in the order of what is certified over all radii.
    """
    proofs = sorted(proofs, key=lambda proof: (-proof.area, proof.label))
    gap = LETTER + 4
    height, right = max(340.0, 64 + gap * len(proofs)), WIDTH - 30 - 0.56 * LETTER * _longest(proofs)
    picture = _picture((WIDTH, height), right, top)
    for n, proof in enumerate(proofs):
        level = 28 + gap * n
        drawn, shapes = [], []
        share = 0.2 + 0.1 * (n % 6)  # of the way to where nothing is left: shapes of curves that meet stand apart
        for style, curve in (("c d", proof.lipschitz), ("c r", proof.envelope)):
            if inside := _inside(curve, top):
                drawn.append(stroke(style, picture.places(*zip(*inside, strict=True))))
                x = share * max((radius for radius, percent in inside if percent > 0), default=0.0)
                shapes += picture.places([x], [_at(inside, x)])
        label = text(right + 24, level + 3.6, shortened(proof.label))
        picture.member(proof.look, _told(proof), *drawn, marks(proof.look, [*shapes, (right + 15, level)]), label)
    return picture.svg(X_WORDS, f"certified {Y_WORDS}")


def alone(proof: Proof, top: float) -> Markup:
    """Draw one metric: a line with its band for what attacks left, dashes for its certificate, dots for each sigma."""
    picture = _picture(SMALL, SMALL[0] - 40, top)
    drawn = []
    if attacked := _inside(proof.attacked, top):
        x, y, low, high = zip(*attacked, strict=True)
        drawn.append(stroke("b", picture.places([*x, *x[::-1]], [*low, *high[::-1]])))
        drawn.append(stroke("c", picture.places(x, y)))
        known = [point[:2] for point in proof.attacked if point[0] <= top]
        drawn.append(marks(proof.look, picture.places(*zip(*known, strict=True))))
    if dashes := _inside(proof.lipschitz, top):
        drawn.append(stroke("c d", picture.places(*zip(*dashes, strict=True))))
    for sigma, curve in sorted(proof.smoothed.items()):
        if dots := _inside(curve, top):
            drawn.append(stroke("c r", picture.places(*zip(*dots, strict=True))))
            drawn.append(_sigma(picture, sigma, dots))
    picture.member(proof.look, _told(proof), *drawn)
    return picture.svg(X_WORDS, Y_WORDS)


def _sigma(picture: Picture, sigma: float, dots: Curve) -> Markup:
    """Write sigma to the right of where its curve ends."""
    radius, percent, *_ = max((tuple(point) for point in dots if point[1] > 0), default=tuple(dots[0]))
    [(x, y)] = picture.places([radius], [percent])
    return text(x + 4, min(y + 3.6, picture.area[3] - 2), f"{SIGMA} {sigma:g}")


def _picture(size: Place, right: float, top: float) -> Picture:
    picture = Picture(size, (34.0, 20.0, right, size[1] - 36))
    picture.axes.set(xlim=(0, top), ylim=(0, 100), yticks=range(0, 101, 20))
    ticks = MaxNLocator(5).tick_values(0, top)
    picture.axes.set_xticks([tick for tick in ticks if 0 <= tick <= top])
    return picture


def _inside(curve: Sequence[Sequence[float]], top: float) -> list[list[float]]:
    """Cut a curve where the axis ends, with a last point between two that are known; empty for less than a line."""
    if len(curve) < 2:
        return []
    kept = [list(point) for point in curve if point[0] <= top]
    if kept and curve[-1][0] > top > kept[-1][0]:
        x, *others = np.array(curve, dtype=float).T
        kept.append([top, *(float(np.interp(top, x, y)) for y in others)])
    return kept if len(kept) > 1 else []


def _longest(proofs: Sequence[Proof]) -> int:
    return max(len(shortened(proof.label)) for proof in proofs)


def _told(proof: Proof) -> str:
    """Tell what is certified at radius 0: right, and sure of it."""
    parts = [("certified", proof.lipschitz)]
    parts += [(f"smoothed, sigma {sigma:g},", curve) for sigma, curve in sorted(proof.smoothed.items())]
    said = [f"{name} {curve[0][1]:.1f} at 0" for name, curve in parts if curve]
    return ": ".join(filter(None, [proof.label, ", ".join(said)]))
