"""From an image of any size to the encoder's square: in the graph for tensors, in Pillow for files.

Both paths have torchvision's geometry (`Resize` by the shorter side, then `CenterCrop`; or a squash), bicubic
with antialiasing, columns first, then rows, and clamp to [0, 1] after each. They differ by rounding alone:
the Pillow path, which published numbers used, rounds to whole grey levels twice, the tensor path is float32
throughout. Measured over photographs and textured images of 3 to 1024 pixels, up- and downscaled: at most
1.1/255 for any pixel (a bound is 1.2/255), 0.3/255 on average.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rclip_metric.images.preprocessing import Preprocessing, Resize
from rclip_metric.images.wrapped import requires_grad

if TYPE_CHECKING:
    from PIL import Image

# A resized side of more than so many crops is never computed whole: a 1x5000 image with its shorter side
# brought to 256 pixels would be 256 x 1,280,000.
_EXTREME = 8
_ROUNDING = 1e-5


def resize_images(images: Tensor, preprocessing: Preprocessing, resize: Resize = "published") -> Tensor:
    """Bring a batch to the encoder's square, differentiably and in float32.

    Images that already have the encoder's size count as preprocessed and come back bit for bit: attacks live
    there. Everything else is resized (bicubic, antialiased, also under autocast) and clamped to [0, 1], which
    bicubic overshoots at sharp edges.

    Args:
        images: (N, 3, H, W) floats in [0, 1], any H and W from 1.
        preprocessing: The encoder's published preprocessing.
        resize: "published" for what published numbers did (a crop loses the border, which then gets no
            gradient), "squash" for the whole image, None to accept nothing but the encoder's size.

    Returns:
        (N, 3, S, S) in [0, 1], S = preprocessing.crop.

    Raises:
        ValueError: For resize=None and images of another size.

    Example:
        >>> images = torch.zeros(2, 3, 100, 50)
        >>> images[:, :, 45:55] = 1.0  # a white bar across the middle
        >>> square = resize_images(images, Preprocessing(mode="squash", resize=32, crop=32))
        >>> square.shape, square[0, 0, 15:17].min() > 0.9
        (torch.Size([2, 3, 32, 32]), tensor(True))
    """
    side = preprocessing.crop
    height, width = images.shape[-2:]
    place = placement(preprocessing, resize, (width, height))
    if place is None or (height == side and width == side):
        return images
    new_width, new_height, left, top = place
    first, last = _seen(height, new_height, top, side)
    images = images.float()[..., first:last, :]
    images = _resampled(images, 0, width, new_width, left, side)  # (N, 3, last - first, S)
    return _resampled(images.mT, first, height, new_height, top, side).mT.contiguous()  # (N, 3, S, S)


def seen_by(preprocessing: Preprocessing, resize: Resize, height: int, width: int) -> Tensor:
    """Say where the pixels of an image come to lie in the encoder's square, as `F.grid_sample` counts.

    Args:
        preprocessing: The encoder's published preprocessing.
        resize: As for `resize_images`.
        height: Of the image.
        width: Of the image.

    Returns:
        (H, W, 2) on the CPU: x and y of every pixel's centre, -1 and 1 being the square's borders; what a crop leaves
        out is beyond them.

    Example:
        >>> place = seen_by(Preprocessing(mode="crop", resize=32, crop=32), "published", height=32, width=64)
        >>> place[0, 16], place[0, 0]  # the crop begins with pixel 16 of 64
        (tensor([-0.9688, -0.9688]), tensor([-1.9688, -0.9688]))
    """
    side = preprocessing.crop
    place = placement(preprocessing, resize, (width, height))
    if place is None or (height == side and width == side):
        place = Placement(side, side, 0, 0)
    axes = []
    for length, new_length, start in ((width, place.width, place.left), (height, place.height, place.top)):
        centre = (torch.arange(length) + 0.5) * new_length / length - start
        axes.append(2 * centre / side - 1)
    across, down = axes
    return torch.stack([across.expand(height, width), down[:, None].expand(height, width)], dim=2)


def preprocess_pil(image: Image.Image, preprocessing: Preprocessing, resize: Resize = "published") -> Tensor:
    """Prepare one image as published numbers were: by Pillow, rounded to whole grey levels.

    The source size does not matter: a 224x224 image is resized to 256 and cropped, if that is what the
    preprocessing says, whereas `resize_images` would take it as already preprocessed. Otherwise the two
    agree within 1.2/255.

    Args:
        image: A Pillow image in mode RGB.
        preprocessing: The encoder's published preprocessing.
        resize: As for `resize_images`.

    Returns:
        float32 (3, S, S) in [0, 1], S = preprocessing.crop.

    Raises:
        ValueError: For another mode than RGB, or resize=None and an image of another size.

    Example:
        >>> from PIL import Image
        >>> image = Image.new("RGB", (300, 200), "white")
        >>> pixels = preprocess_pil(image, Preprocessing(mode="crop", resize=64, crop=56))
        >>> pixels.shape, pixels.min()
        (torch.Size([3, 56, 56]), tensor(1.))
    """
    if image.mode != "RGB":
        raise ValueError(f"Expected a Pillow image in mode RGB, got {image.mode}; use open_image.")
    side = preprocessing.crop
    width, height = image.size
    place = placement(preprocessing, resize, image.size)
    if place is not None:
        new_width, new_height, left, top = place
        first, last = _seen(height, new_height, top, side)
        if last - first < height:
            image = image.crop((0, first, width, last))
        # In two calls: a single one takes the rows of a tall image first from some version of Pillow on,
        # which published numbers did not, and which differs by up to 16/255.
        image = _resampled_columns(image, 0, width, new_width, left, side)
        image = _resampled_rows(image, first, height, new_height, top, side)
    return from_levels(np.frombuffer(image.tobytes(), np.uint8).reshape(side, side, 3).transpose(2, 0, 1))


def from_levels(levels: np.ndarray[Any, Any]) -> Tensor:
    """Bring whole grey levels to float32 in [0, 1], in one thread: readers are several, and torch would share it out.

    Example:
        >>> from_levels(np.array([[0, 51, 255]], dtype=np.uint8))
        tensor([[0.0000, 0.2000, 1.0000]])
    """
    return torch.from_numpy(np.divide(levels, np.float32(255), dtype=np.float32, order="C"))


def _resampled_columns(
    image: Image.Image, first: int, length: int, new_length: int, start: int, count: int
) -> Image.Image:
    """Do as `_resampled` does, in Pillow."""
    from PIL import Image

    bicubic = Image.Resampling.BICUBIC
    height = image.height
    if new_length <= _EXTREME * count:
        return image.resize((new_length, height), bicubic).crop((start, 0, start + count, height))
    scale = length / new_length
    box = (start * scale - first, 0, (start + count) * scale - first, height)
    return image.resize((count, height), bicubic, box=box)


def _resampled_rows(
    image: Image.Image, first: int, length: int, new_length: int, start: int, count: int
) -> Image.Image:
    """Do so for the other axis."""
    from PIL import Image

    bicubic = Image.Resampling.BICUBIC
    width = image.width
    if new_length <= _EXTREME * count:
        return image.resize((width, new_length), bicubic).crop((0, start, width, start + count))
    scale = length / new_length
    box = (0, start * scale - first, width, (start + count) * scale - first)
    return image.resize((width, count), bicubic, box=box)


class Placement(NamedTuple):
    """The size that an image is brought to, and where in it the encoder's square begins, in pixels."""

    width: int
    height: int
    left: int
    top: int

    def extreme(self, side: int) -> bool:
        """Tell whether a side is too long to be computed whole for a square of this side."""
        return max(self.width, self.height) > _EXTREME * side


def placement(preprocessing: Preprocessing, resize: Resize, size: tuple[int, int]) -> Placement | None:
    """Say what the published geometry does to an image of `size` (width, height); None for nothing.

    Raises:
        ValueError: For resize=None and another size than the encoder's.

    Example:
        >>> placement(Preprocessing(mode="crop", resize=64, crop=56), "published", (300, 200))
        Placement(width=96, height=64, left=20, top=4)
    """
    side = preprocessing.crop
    mode = _mode(preprocessing, resize, size)
    if mode is None:
        return None
    width, height = (side, side) if mode == "squash" else _resized(*size, preprocessing.resize)
    return Placement(width, height, _offset(width, side), _offset(height, side))


def _mode(preprocessing: Preprocessing, resize: Resize, size: tuple[int, int]) -> Literal["crop", "squash"] | None:
    """Return what to do to an image of `size` (width, height); None for resize=None and the right size."""
    if resize == "published":
        return preprocessing.mode
    if resize == "squash":
        return "squash"
    if resize is not None:
        raise ValueError(f'resize must be "published", "squash" or None, got {resize!r}.')
    side = preprocessing.crop
    if size != (side, side):
        raise ValueError(
            f"With resize=None images must be {side}x{side} (height x width), got {size[1]}x{size[0]}; "
            'resize them first or pass resize="published" or "squash".'
        )
    return None


def _resized(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Return (width, height) after torchvision's Resize(shorter): the longer side is truncated, not rounded."""
    short = min(width, height)  # and no branch on which it is: torch.compile would make a graph for each
    return int(shorter * width / short), int(shorter * height / short)


def _offset(length: int, crop: int) -> int:
    """Return the first row or column of torchvision's CenterCrop (Python's rounding to even)."""
    return round((length - crop) / 2.0)


def _seen(length: int, new_length: int, start: int, count: int) -> tuple[int, int]:
    """Find which pixels of an axis (first, last + 1) matter for `count` pixels from `start` on after resizing.

    All of them in the ordinary case, where looking closer would not pay.
    """
    if new_length <= _EXTREME * count:
        return 0, length
    scale = length / new_length
    reach = 2 * max(scale, 1.0) + 1
    return (
        max(0, math.floor((start + 0.5) * scale - reach)),
        min(length, math.ceil((start + count - 0.5) * scale + reach)),
    )


def _resampled(images: Tensor, first: int, length: int, new_length: int, start: int, count: int) -> Tensor:
    """Resize the last axis from `length` to `new_length`, and keep `count` pixels from `start` on.

    One axis at a time and clamped after each, since Pillow clips between its two passes: where bicubic
    overshoots in both directions, a single clamp at the end can differ from Pillow by 15/255.

    Args:
        images: (N, 3, H, L) in [0, 1]: all of the axis, or what of it is `_seen`.
        first: Where on the axis the images begin.
        length: Of the whole axis.
        new_length: Of the whole axis after resizing.
        start: First pixel to keep.
        count: Number of pixels to keep.

    Returns:
        (N, 3, H, count) in [0, 1].
    """
    if new_length == length:
        return images[..., start - first : start - first + count]
    # While compiling the explicit kernel serves all sizes: the gradient of torch's own resize does not
    # compile where sizes vary (its meta function fails with "Expected IntList but got GenericList").
    if not torch.compiler.is_compiling() and new_length <= _EXTREME * count:
        size = (images.shape[-2], new_length)
        resized = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        return _clamp(resized[..., start : start + count])
    low, high = _seen(length, new_length, start, count)
    kernel = _bicubic_kernel(low, high, length, new_length, start, count).to(images.device)
    with _no_autocast(images.device.type):
        return _clamp(images[..., low - first : high - first] @ kernel.mT)


def _bicubic_kernel(low: int, high: int, length: int, new_length: int, start: int, count: int) -> Tensor:
    """Compute the weights (count, high - low) of the pixels low .. high in the resized pixels start .. start + count.

    The filter of `F.interpolate(mode="bicubic", antialias=True)` and of Pillow: Keys' cubic with a = -0.5,
    stretched by the scale when shrinking, its taps cut at the image's border and normalised.
    """
    scale = length / new_length
    stretch = max(scale, 1.0)
    # float64 on the CPU (MPS has none): far along a long side float32 coordinates are off by a hundredth.
    cpu = torch.device("cpu")
    centre = (torch.arange(start, start + count, dtype=torch.float64, device=cpu)[:, None] + 0.5) * scale
    taps = torch.arange(low, high, dtype=torch.float64, device=cpu) + 0.5
    # Which taps take part is decided in whole pixels.
    begin = (centre - 2 * stretch + 0.5).floor()
    end = (centre + 2 * stretch + 0.5).floor()
    distance = ((taps - centre) / stretch).abs()
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = torch.where((taps > begin) & (taps < end), weights, 0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _no_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Keep a matrix product in float32; elementwise work and F.interpolate stay there by themselves."""
    if device_type in ("cpu", "cuda"):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _clamp(images: Tensor) -> Tensor:
    """Clamp to [0, 1]; what float rounding alone pushed out keeps its gradient.

    The filter's weights sum to 1 up to rounding, so up to half the pixels of a white area come out as 1 +
    1e-7: a plain clamp would stop their gradient, and a loss could not darken them.
    """
    clamped = images.clamp(0, 1)
    if not requires_grad(images):
        return clamped
    excess = (images - clamped).detach()
    return torch.where(excess.abs() >= _ROUNDING, clamped, images - excess)  # NaN keeps its gradient as well
