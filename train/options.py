"""Values on the command line that are more than a number or a word."""

from __future__ import annotations

import argparse
import math
from fractions import Fraction


def radius(text: str) -> float:
    """Parse a radius: ``4/255`` or ``0.857``, in the scale of [0, 1] images."""
    try:
        value = float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a radius: write it like 4/255 or 0.857") from None
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"a radius must be finite and not negative, and {text!r} is not")
    return value


def positive(text: str) -> int:
    """Parse a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """Parse a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def add_size(parser: argparse.ArgumentParser) -> None:
    """Add ``--image-size`` and ``--squash``: what `rclip_metric.train.base.load_base` does to a base."""
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="N",
        help="side of the square input in pixels, for towers of convolutions and bases timm:NAME (default: the base's)",
    )
    parser.add_argument(
        "--squash",
        action="store_true",
        help="bring whole images to the square, whatever their aspect ratio (default: as the base does)",
    )
