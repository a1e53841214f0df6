"""What published numbers do to an image before an encoder looks: `Preprocessing`, which `resizing` carries out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from rclip_metric.json_files import shown

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Resize = Literal["published", "squash"] | None
RESIZES: tuple[Resize, ...] = ("published", "squash", None)
Reading = Literal["published", "fast"]
READINGS: tuple[Reading, ...] = ("published", "fast")

MOST_PIXELS = 4096
"""Of a side that images are brought to."""


@dataclass(frozen=True)
class Preprocessing:
    """How published numbers prepare an image for an encoder.

    Attributes:
        mode: "crop" resizes the shorter side to `resize` and keeps the centre; "squash" ignores the aspect
            ratio.
        resize: Length of the shorter side before the crop, in pixels; equal to `crop` for "squash".
        crop: Side of the square that the encoder sees, in pixels.
        interpolation: "bicubic", always with antialiasing.
        mean: Per-channel mean that the encoder subtracts, in [0, 1] units.
        std: Per-channel standard deviation that the encoder divides by, in [0, 1] units.

    Example:
        >>> published = Preprocessing(mode="crop", resize=256, crop=224)
        >>> half = published.at(112)
        >>> half.resize, half.crop
        (128, 112)
        >>> Preprocessing.from_dict(half.to_dict()) == half
        True
    """

    mode: Literal["crop", "squash"]
    resize: int
    crop: int
    interpolation: Literal["bicubic"] = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        """Raise ValueError naming the field that is wrong."""
        if self.mode not in ("crop", "squash"):
            raise ValueError(f'mode must be "crop" or "squash", got {shown(self.mode)}.')
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MOST_PIXELS:
                raise ValueError(f"{name} must be a positive integer (pixels) up to {MOST_PIXELS}, got {shown(value)}.")
        if self.mode == "crop" and self.resize < self.crop:
            raise ValueError(f"resize must be at least crop ({self.crop}), got {self.resize}.")
        if self.mode == "squash" and self.resize != self.crop:
            raise ValueError(f'resize must equal crop ({self.crop}) in mode "squash", got {self.resize}.')
        if self.interpolation != "bicubic":
            raise ValueError(f'interpolation must be "bicubic", got {shown(self.interpolation)}.')
        for name in ("mean", "std"):
            values = getattr(self, name)
            if (
                not isinstance(values, tuple)
                or len(values) != 3
                or not all(isinstance(v, float) and math.isfinite(v) for v in values)
            ):
                raise ValueError(f"{name} must be a tuple of three finite floats, got {shown(values)}.")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std!r}.")

    def at(self, size: int) -> Preprocessing:
        """Return the same for another side of the square, in pixels: what is cropped away stays the same share."""
        return replace(self, crop=size, resize=self.resize * size // self.crop)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that json can write and `from_dict` reads."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_dict` wrote; every field must be there, and no other."""
        names = [f.name for f in fields(cls)]
        if unknown := sorted(set(mapping) - set(names)):
            known = ", ".join(names)
            raise ValueError(f"Unknown preprocessing field {', '.join(unknown)}; the fields are {known}.")
        if missing := [name for name in names if name not in mapping]:
            raise ValueError(f"Missing preprocessing field {', '.join(missing)}.")
        values = dict(mapping)
        for name in ("mean", "std"):
            if not isinstance(values[name], list | tuple):
                raise ValueError(f"{name} must be a list of three numbers, got {shown(values[name])}.")
            # JSON writers may drop the ".0" of a whole number.
            values[name] = tuple(float(v) if type(v) is int else v for v in values[name])
        return cls(**values)


def check_reading(reading: str) -> None:
    """Raise ValueError unless it is one of `READINGS`.

    Example:
        >>> check_reading("fast")
    """
    if reading not in READINGS:
        raise ValueError(f'reading must be "published" or "fast", got {reading!r}.')
