"""Recipes for triplets of photographs: how the closer and the farther image of each kind are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rclip_metric.train.data.photo_changes import (
    Blur,
    Box,
    Change,
    Jpeg,
    Light,
    Noise,
    Removed,
    Replaced,
    View,
    busiest,
)
from rclip_metric.train.data.photographs import Others


class PhotoCandidate(NamedTuple):
    """One image of a triplet: a photograph (by its index), from a view, changed in order."""

    photograph: int
    view: View = View()
    changes: tuple[Change, ...] = ()


def _either(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw uniformly from [low, high], with either sign."""
    return float(rng.uniform(low, high) * rng.choice((-1, 1)))


def _direction(rng: np.random.Generator, low: float, high: float) -> tuple[float, float]:
    """Draw a vector of a length in [low, high]."""
    angle, length = rng.uniform(-math.pi, math.pi), rng.uniform(low, high)
    return float(length * math.cos(angle)), float(length * math.sin(angle))


def _corners(rng: np.random.Generator, low: float, high: float) -> Any:
    return tuple(_direction(rng, low, high) for _ in range(4))


def _waves(rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0, 2 * math.pi))


def _moved(rng: np.random.Generator) -> View:
    """Draw the same scene moved aside."""
    return View(shift=_direction(rng, 0.08, 0.11))


def _another_view(rng: np.random.Generator) -> View:
    """Draw the same scene from a step aside: moved, nearer, or from a slightly other point."""
    kind = rng.integers(3)
    if kind == 0:
        return _moved(rng)
    if kind == 1:
        return View(zoom=float(rng.uniform(0.76, 0.86)), shift=_direction(rng, 0.05, 0.08))
    return View(zoom=0.9, shift=_direction(rng, 0.04, 0.07), corners=_corners(rng, 0.05, 0.08))


def _mild_light(rng: np.random.Generator) -> Light:
    return Light(stops=_either(rng, 0.1, 0.2), warmth=_either(rng, 0.02, 0.05))


Pair = tuple[PhotoCandidate, PhotoCandidate]
"""The closer image and the farther one."""

Recipe = Callable[[np.random.Generator, int, Others, Callable[[int], Image.Image]], Pair]
"""Random numbers, the reference's index, all photographs, and what shows one of them by index -> the two images."""


def _crop(rng: np.random.Generator, one: int, others: Others, look: Any) -> Pair:
    near = View(zoom=float(rng.uniform(0.8, 0.9)), shift=_direction(rng, 0.06, 0.1))
    far = View(zoom=float(rng.uniform(0.45, 0.52)), shift=_direction(rng, 0.0, 0.1))
    return PhotoCandidate(one, near), PhotoCandidate(one, far)


def _warp(rng: np.random.Generator, one: int, others: Others, look: Any) -> Pair:
    near = View(zoom=0.9, shift=_direction(rng, 0.05, 0.08), corners=_corners(rng, 0.03, 0.05))
    low, high = rng.uniform(0.18, 0.25, 2)
    still = (0.0, 0.0)
    slanted = [
        ((low, 0.0), (-high, 0.0), still, still),
        ((0.0, low), still, still, (0.0, -high)),
        (still, (0.0, low), (0.0, -high), still),
        (still, still, (-high, 0.0), (low, 0.0)),
    ]
    far = View(zoom=1.1, corners=slanted[rng.integers(4)], bend=float(rng.uniform(0.035, 0.045)), waves=_waves(rng))
    return PhotoCandidate(one, near), PhotoCandidate(one, far)


def _light(rng: np.random.Generator, one: int, others: Others, look: Any) -> Pair:
    far = Light(stops=_either(rng, 0.7, 1.0), warmth=_either(rng, 0.2, 0.3), saturation=1.3, hue=_either(rng, 60, 120))
    return PhotoCandidate(one, _another_view(rng), (_mild_light(rng),)), PhotoCandidate(one, changes=(far,))


def _graded(mild: Callable[[np.random.Generator], Change], strong: Callable[[np.random.Generator], Change]) -> Recipe:
    def recipe(rng: np.random.Generator, one: int, others: Others, look: Any) -> Pair:
        return PhotoCandidate(one, _another_view(rng), (mild(rng),)), PhotoCandidate(one, changes=(strong(rng),))

    return recipe


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


_blur = _graded(lambda rng: Blur(float(rng.uniform(0.003, 0.005))), lambda rng: Blur(float(rng.uniform(0.014, 0.02))))
_noise = _graded(
    lambda rng: Noise(float(rng.uniform(0.015, 0.03)), _seed(rng)),
    lambda rng: Noise(float(rng.uniform(0.15, 0.2)), _seed(rng)),
)
_jpeg = _graded(lambda rng: Jpeg(int(rng.integers(60, 80))), lambda rng: Jpeg(int(rng.integers(2, 6))))


def _box(rng: np.random.Generator, image: Image.Image, low: float, high: float) -> Box:
    side = float(rng.uniform(low, high))
    places = rng.uniform(0.36, 0.64, (12, 2))  # near the middle, where people look and photographs have their object
    return busiest(image, [Box(float(x), float(y), side) for x, y in places])


def _removed(rng: np.random.Generator, one: int, others: Others, look: Any) -> Pair:
    edit = Removed(_box(rng, look(one), 0.4, 0.48))
    return PhotoCandidate(one, _moved(rng), (_mild_light(rng),)), PhotoCandidate(one, changes=(edit,))


def _replaced(rng: np.random.Generator, one: int, others: Others, look: Any) -> Pair:
    other = others.of_other_classes(one, rng, 1)[0]
    edit = Replaced(_box(rng, look(one), 0.4, 0.48), look(other))
    return PhotoCandidate(one, _moved(rng), (_mild_light(rng),)), PhotoCandidate(one, changes=(edit,))


def _part(rng: np.random.Generator, one: int) -> PhotoCandidate:
    """Draw part of a photograph, mirrored or not, in other light: another picture of the same thing."""
    view = View(
        zoom=float(rng.uniform(0.55, 0.7)),
        shift=_direction(rng, 0.02, 0.08),
        corners=_corners(rng, 0.02, 0.05),
        mirrored=bool(rng.random() < 0.5),
    )
    return PhotoCandidate(one, view, (Light(stops=_either(rng, 0.2, 0.4), warmth=_either(rng, 0.03, 0.08)),))


def _stranger(rng: np.random.Generator, one: int, others: Others, look: Any) -> Pair:
    return _part(rng, one), PhotoCandidate(others.nearest(one, others.of_other_classes(one, rng, 100)))


def _photo(rng: np.random.Generator, one: int, others: Others, look: Any) -> Pair:
    return _part(rng, one), PhotoCandidate(others.nearest(one, others.of_class(one)))


def _class(rng: np.random.Generator, one: int, others: Others, look: Any) -> Pair:
    relative = int(rng.choice(others.of_class(one)))
    return PhotoCandidate(relative), PhotoCandidate(others.nearest(one, others.of_other_classes(one, rng, 100)))


PHOTO_KINDS: dict[str, Recipe] = {
    "crop": _crop,
    "warp": _warp,
    "light": _light,
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "removed": _removed,
    "replaced": _replaced,
    "stranger": _stranger,
    "photo": _photo,
    "class": _class,
}
EDITS = ("removed", "replaced")
