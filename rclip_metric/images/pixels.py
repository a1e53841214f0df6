"""From a file to the encoder's square: as published numbers were made, or faster and nearly so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rclip_metric.images.preprocessing import Preprocessing, Reading, Resize, check_reading
from rclip_metric.images.reading import Seen, look_at, open_image
from rclip_metric.images.resizing import Placement, from_levels, placement, preprocess_pil

if TYPE_CHECKING:
    from rclip_metric.images.reading import ImageSource

# A JPEG is decoded smaller as long as its sides stay so many times what the resize makes of them. Once instead of twice
# would save a fifth of the time, and changes distances of photographs three to five times as much.
_SPARE = 2


def read_pixels(
    source: ImageSource, preprocessing: Preprocessing, resize: Resize = "published", reading: Reading = "published"
) -> Tensor:
    """Read one image and prepare it for an encoder.

    "published" is `open_image` and `preprocess_pil`. "fast" has the same geometry and takes a third to a sixth of the
    time: a JPEG file is decoded at a half, a quarter or an eighth of its size as long as its sides stay twice what the
    resize makes of them, and torch resizes, in whole grey levels. What is not a JPEG file is resized so and decoded as
    ever, and so are an array and a Pillow image; more than eight times as long as wide, an image is read as published.

    The two differ as follows (`examples/fast_reading.py`, `results/fast_reading.json`; mean and largest, beside what
    bfloat16 does to the same distances):

    ===============================  ==========  ===============  ===============  ===============
    JPEG files                       model       levels of 255    change of d      by bfloat16
    ===============================  ==========  ===============  ===============  ===============
    photographs of 192 px            `tiny`      0.001, 1         0.00002, 0.0001  0.0008, 0.0034
    (decoded whole)                  `r-lite-f`  0.004, 2         0.00001, 0.0001  0.0012, 0.0047
    nine photographs on 600 px       `tiny`      0.78, 14         0.0014, 0.0066   0.0012, 0.0039
    (at a quarter; at a half)        `r-lite-f`  0.45, 16         0.0007, 0.0026   0.0014, 0.0056
    drawn, 500 px                    `tiny`      0.20, 3          0.0006, 0.0012   0.0014, 0.0033
    (at a half)                      `r-lite-f`  0.38, 4          0.0001, 0.0005   0.0012, 0.0038
    drawn, 12 megapixels             `tiny`      0.13, 2          0.0002, 0.0002   0.0021, 0.0025
    (at an eighth)                   `r-lite-f`  0.18, 2          0.0001, 0.0002   0.0011, 0.0024
    ===============================  ==========  ===============  ===============  ===============

    Args:
        source: As for `open_image`.
        preprocessing: The encoder's published preprocessing.
        resize: As for `resize_images`.
        reading: "published" or "fast".

    Returns:
        float32 (3, S, S) in [0, 1], S = preprocessing.crop.

    Raises:
        ImageError: As for `open_image`.
        ValueError: For resize=None and an image of another size, or another reading.

    Example:
        >>> from PIL import Image
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.linear_gradient("L").resize((600, 400)).save(file, "JPEG")
        >>> square = Preprocessing(mode="squash", resize=64, crop=64)
        >>> published, fast = (read_pixels(file.getvalue(), square, reading=how) for how in ("published", "fast"))
        >>> fast.shape, (fast - published).abs().max() < 3 / 255
        (torch.Size([3, 64, 64]), tensor(True))
    """
    check_reading(reading)
    if reading == "published":
        return preprocess_pil(look_at(source).image, preprocessing, resize)
    shorter = preprocessing.crop if resize == "squash" else preprocessing.resize
    seen = look_at(source, shortest=0 if resize is None else _SPARE * shorter)
    place = placement(preprocessing, resize, seen.size)
    if place is None or place.extreme(preprocessing.crop):
        return preprocess_pil(seen.image if seen.scale == 1 else open_image(source), preprocessing, resize)
    return _resized(seen, place, preprocessing.crop)


def _resized(seen: Seen, place: Placement, side: int) -> Tensor:
    """Resize in whole grey levels, and keep the encoder's square: (3, S, S) in [0, 1]."""
    width, height = seen.image.size
    # Pillow gives (H, W, 3), which is what torch's channels_last has in memory: nothing is moved, here or there.
    levels = torch.frombuffer(bytearray(seen.image.tobytes()), dtype=torch.uint8).view(1, height, width, 3)
    levels = levels.permute(0, 3, 1, 2)
    # Of a side that the scale does not divide, the last pixel is part of one; less than half of one is left out, as it
    # would weigh as much as a whole. All others lie where the file's size says: `F.interpolate` cannot be told both.
    across, down = (length / seen.scale for length in seen.size)
    levels = levels[:, :, : math.floor(down + 0.5), : math.floor(across + 0.5)]
    scales = place.height / down, place.width / across
    resized = torch.ops.aten._upsample_bicubic2d_aa(levels, [place.height, place.width], False, *scales)
    square = resized[0, :, place.top : place.top + side, place.left : place.left + side]
    return from_levels(square.numpy())
