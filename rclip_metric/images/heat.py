"""Numbers per pixel as colours, laid over a picture, with Pillow alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

COLOURS = ("#000004", "#210c4a", "#57106e", "#8a226a", "#bc3754", "#e45a31", "#f98e09", "#f9cb35", "#fcffa4")
"""Equal steps of the map "inferno", from 0 to 1: each looks as much brighter than the one before (also in gray)."""
_FAINT, _STRONG = 0.45, 0.95


def colours(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Turn numbers in [0, 1], others are clipped, into colours between those of `COLOURS`.

    Args:
        values: Of any shape.

    Returns:
        uint8, the same shape and 3 for red, green and blue.

    Example:
        >>> import numpy as np
        >>> colours(np.array([0.0, 0.5, 2.0])).tolist()
        [[0, 0, 4], [188, 55, 84], [252, 255, 164]]
    """
    import numpy as np

    anchors = np.array([list(bytes.fromhex(colour[1:])) for colour in COLOURS], dtype=float)  # (9, 3)
    places = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(values, places, anchors[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def overlay(picture: Image.Image, values: np.ndarray[Any, Any], top: float) -> Image.Image:
    """Lay a map over a picture in gray: the higher the number, the brighter and the less of the picture is seen.

    Args:
        picture: RGB, of any size.
        values: (h, w), not negative; stretched over the whole picture.
        top: The number that gets the brightest colour; where it is 0, so are all numbers.

    Returns:
        RGB, of the picture's size.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> white = Image.new("RGB", (8, 4), "white")
        >>> dark, bright = (overlay(white, np.full((1, 2), value), 1.0).getpixel((0, 0)) for value in (0, 1))
        >>> sum(dark) < sum(bright)
        True
    """
    import numpy as np
    from PIL import Image

    share = np.asarray(values, dtype=np.float32) / (top if top > 0 else 1)
    stretched = Image.fromarray(share.clip(0, 1)).resize(picture.size, Image.Resampling.BILINEAR)
    strength = np.asarray(stretched)[..., None]  # (H, W, 1)
    gray = np.asarray(picture.convert("L"), dtype=np.float32)[..., None]
    covered = _FAINT + (_STRONG - _FAINT) * strength
    mixed = (1 - covered) * gray + covered * colours(strength[..., 0])
    return Image.fromarray(mixed.round().astype(np.uint8))
