"""What the triplets of `photos` do to a photograph: another view of it, other light, damage, and local edits.

Lengths are shares of the side of the picture, levels are in [0, 1], so that a change means the same at any size.
Every change is a record of its numbers: it does the same whenever it is applied, and it can be written down.
"""

from __future__ import annotations

import dataclasses
import io
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageFilter

from rclip_metric.images import open_image

WINDOW = 0.82  # of the photograph's side is what the reference shows: views that move find real pixels beyond it
_CELLS = 24  # cells of the mesh along each side, within which a view is taken for bilinear
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)

Pair = tuple[float, float]


class Change(Protocol):
    """A frozen dataclass that is called with a picture and gives the changed one, of the same size."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Apply it; the given picture stays as it is."""


@dataclass(frozen=True)
class View:
    """From where a photograph is looked at; the default is the reference's own view.

    Attributes:
        zoom: side of what is seen, as a share of the reference's: below 1 is nearer.
        shift: of the centre, to the right and down.
        corners: how far each corner of what is seen moves, as (x, y) from the top left one clockwise.
        bend: amplitude of a smooth deformation.
        waves: where the bend is, two phases in radians.
        mirrored: left and right exchanged.
    """

    zoom: float = 1.0
    shift: Pair = (0.0, 0.0)
    corners: tuple[Pair, Pair, Pair, Pair] = ((0.0, 0.0),) * 4
    bend: float = 0.0
    waves: Pair = (0.0, 0.0)
    mirrored: bool = False

    def places(self, points: np.ndarray) -> np.ndarray:
        """Map points (..., 2) of the picture, in [0, 1], to those of the reference's window that are seen there."""
        across = 1 - points[..., 0] if self.mirrored else points[..., 0]
        flat = _projected(np.stack([across, points[..., 1]], -1), self.corners)
        # What moves x depends on y, and the other way round.
        along = 2 * math.pi * flat[..., ::-1] + np.array(self.waves)
        bent = flat + self.bend * (np.sin(along) + 0.5 * np.sin(2 * along + 1.0))
        return 0.5 + self.zoom * (bent - 0.5) + np.array(self.shift)


def _projected(points: np.ndarray, corners: tuple[Pair, Pair, Pair, Pair]) -> np.ndarray:
    """See the plane as from elsewhere: by the homography that moves the unit square's corners by `corners`."""
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    target = square + np.array(corners)
    rows = []
    for (x, y), (u, v) in zip(square, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    matrix = np.append(np.linalg.solve(np.array(rows), target.reshape(-1)), 1.0).reshape(3, 3)
    whole = np.concatenate([points, np.ones_like(points[..., :1])], -1) @ matrix.T
    projected: np.ndarray = whole[..., :2] / whole[..., 2:]
    return projected


def seen(photo: Image.Image, view: View, side: int) -> Image.Image:
    """Draw a square photograph from a view: RGB, `side` pixels along each side.

    What a view shows beyond the photograph repeats its border. The photograph should be about `side / WINDOW` pixels
    large: nothing is averaged where pixels become fewer.
    """
    edges = [round(side * number / _CELLS) for number in range(_CELLS + 1)]
    axis = np.array(edges) / side
    points = np.stack(np.meshgrid(axis, axis), -1)  # (rows, columns, 2)
    places = (0.5 + WINDOW * (view.places(points) - 0.5)) * np.array(photo.size)
    places = places.clip(0, np.array(photo.size))
    mesh = []
    for row in range(_CELLS):
        for column in range(_CELLS):
            box = (edges[column], edges[row], edges[column + 1], edges[row + 1])
            if box[0] == box[2] or box[1] == box[3]:
                continue
            around = [
                places[row, column],
                places[row + 1, column],
                places[row + 1, column + 1],
                places[row, column + 1],
            ]
            mesh.append((box, tuple(float(value) for place in around for value in place)))
    return photo.transform((side, side), Image.Transform.MESH, mesh, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Light:
    """Other light: exposure in stops, warmth (red against blue), saturation (1 as it is), the hue turned in degrees."""

    stops: float = 0.0
    warmth: float = 0.0
    saturation: float = 1.0
    hue: float = 0.0

    def __call__(self, image: Image.Image) -> Image.Image:
        """Apply it."""
        levels = _levels(image)
        gray = (levels @ _LUMINANCE)[..., None]
        levels = gray + (levels - gray) * self.saturation @ _turn(self.hue).T
        levels = levels * 2.0**self.stops * np.array([1 + self.warmth, 1, 1 - self.warmth], np.float32)
        return _picture(levels)


def _turn(degrees: float) -> np.ndarray:
    """Build the rotation about the gray axis."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)) / math.sqrt(3)
    off = (1 - cos) / 3
    matrix = np.full((3, 3), off) + np.eye(3) * cos + sin * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return matrix.astype(np.float32)


@dataclass(frozen=True)
class Blur:
    """Out of focus: a Gaussian of this standard deviation."""

    radius: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """Apply it."""
        return image.filter(ImageFilter.GaussianBlur(self.radius * image.width))


@dataclass(frozen=True)
class Noise:
    """A sensor's noise, of this standard deviation in every value."""

    deviation: float
    seed: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """Apply it."""
        rng = np.random.default_rng(self.seed)
        return _picture(_levels(image) + rng.normal(0, self.deviation, (image.height, image.width, 3)))


@dataclass(frozen=True)
class Jpeg:
    """Saved as JPEG, with colours at half the resolution."""

    quality: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """Apply it."""
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=self.quality, subsampling="4:2:0")
        return open_image(stream.getvalue())


@dataclass(frozen=True)
class Box:
    """Where a local edit is: a square with round corners and a soft edge."""

    x: float
    y: float
    side: float

    def cover(self, size: int) -> np.ndarray:
        """Draw the box: 1 inside and 0 outside, (size, size, 1)."""
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        u, v = abs(axis - self.x) * 2 / self.side, abs(axis - self.y) * 2 / self.side
        distance = (u[None, :] ** 4 + v[:, None] ** 4) ** 0.25  # 1 at the edge
        return np.clip((1.08 - distance) / 0.16, 0, 1)[..., None]


@dataclass(frozen=True)
class Removed:
    """What is in the box is gone: its surroundings are drawn together over it."""

    box: Box

    def __call__(self, image: Image.Image) -> Image.Image:
        """Apply it."""
        levels, cover = _levels(image), self.box.cover(image.width)
        outside = (cover == 0).astype(np.float32)
        filled, weight = np.zeros_like(levels), np.zeros_like(outside)
        for spread in (0.03, 0.06, 0.12, 0.24):  # from the nearest surroundings that there are to the farther ones
            here = _smooth(outside, spread)
            there = _smooth(levels * outside, spread) / np.maximum(here, 1e-3)
            share = (1 - weight) * np.clip(here * 4, 0, 1)
            filled, weight = filled + share * there, weight + share
        filled /= np.maximum(weight, 1e-3)
        return _picture(levels + cover * (filled - levels))


@dataclass(frozen=True)
class Replaced:
    """Another photograph is in the box, in the colours that were there: means and deviations of each channel agree."""

    box: Box
    other: Image.Image = dataclasses.field(repr=False)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Apply it."""
        size = image.width
        levels, cover = _levels(image), self.box.cover(size)
        side = max(1, round(self.box.side * 1.08 * size))
        left, top = round(self.box.x * size - side / 2), round(self.box.y * size - side / 2)
        canvas = image.copy()
        canvas.paste(self.other.resize((side, side), Image.Resampling.BICUBIC), (left, top))
        new, inside = _levels(canvas), cover[..., 0] > 0
        for channel in range(3):
            old, now = levels[inside, channel], new[inside, channel]
            new[inside, channel] = (now - now.mean()) * (old.std() / max(float(now.std()), 1e-3)) + old.mean()
        return _picture(levels + cover * (new - levels))


def busiest(image: Image.Image, boxes: list[Box]) -> Box:
    """Find the box in which there is most to see, by the contrast of its details: where the object is, as a rule."""
    gray = _levels(image) @ _LUMINANCE
    detail = abs(gray - _smooth(gray[..., None], 0.05)[..., 0])[..., None]
    return max(boxes, key=lambda box: float((detail * box.cover(image.width)).sum()) / box.side**2)


def visible(image: Image.Image, other: Image.Image, box: Box) -> float:
    """Measure how much two pictures differ in a box: root of the mean square, in levels."""
    cover = box.cover(image.width)
    squared = ((_levels(image) - _levels(other)) ** 2 * cover).sum() / (3 * cover.sum())
    return math.sqrt(float(squared))


def _smooth(levels: np.ndarray, spread: float) -> np.ndarray:
    """Blur by a Gaussian every channel of floats (S, S, C)."""
    radius = spread * len(levels)
    reach = math.ceil(3 * radius)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2).astype(np.float32)
    weights /= weights.sum()
    for axis in (0, 1):
        pad = [(reach, reach) if at == axis else (0, 0) for at in range(3)]
        padded = np.pad(levels, pad, mode="edge")
        parts = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis)
        levels = parts @ weights
    return levels


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32) / 255


def _picture(levels: np.ndarray) -> Image.Image:
    return Image.fromarray((levels.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def described(*parts: Change | View) -> str:
    """Describe changes for a table, such as `view zoom=0.9; blur radius=0.03`; "none" where nothing changes."""
    words = []
    for part in parts:
        fields = [field for field in dataclasses.fields(part) if field.repr]  # type: ignore[arg-type]
        values = {field.name: getattr(part, field.name) for field in fields}
        told = [f"{name}={_told(value)}" for name, value in values.items() if value != _default(part, name)]
        if told or not isinstance(part, View):
            words.append(" ".join([type(part).__name__.lower(), *told]))
    return "; ".join(words) or "none"


def _default(part: Change | View, name: str) -> object:
    return type(part).__dataclass_fields__[name].default  # type: ignore[union-attr]


def _told(value: object) -> str:
    if isinstance(value, Box):
        return f"{value.x:.3f},{value.y:.3f},{value.side:.3f}"
    if isinstance(value, tuple):
        return ",".join(_told(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
