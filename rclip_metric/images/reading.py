"""Images of any kind to RGB: files, bytes, Pillow images, arrays and tensors."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from rclip_metric.errors import ImageError as ImageError
from rclip_metric.files import regular_file
from rclip_metric.images.ranges import TOLERANCE, OutOfRange, check_choice, clamp, likely_cause
from rclip_metric.images.wrapped import special_kind, values_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray[Any, Any]

_NAMES = "avif bmp dib gif j2k jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
"""File names that `list_images` takes for images (compared in lower case)."""

# The formats that these are, as Pillow names them, first those that it has at hand. No others are opened, whatever a
# file is called: some of Pillow's readers hand the file to another program (EPS to Ghostscript).
_FORMATS = (("JPEG", "PNG", "BMP", "GIF", "PPM"), ("WEBP", "TIFF", "AVIF", "JPEG2000", "DIB", "TGA"))

# The squares of an encoder's activations stay within float32 up to here; past 1e15 or so a LayerNorm divides by
# infinity and answers with its bias, whatever the image.
LARGEST = 1e9

_ORIENTATION = 0x0112  # EXIF tags
_MAKE, _MODEL, _CAMERA_SETTINGS, _EXPOSURE_TIME = 0x010F, 0x0110, 0x8769, 0x829A


def open_image(source: ImageSource) -> Image.Image:
    """Read one image as 8-bit RGB, upright, on white: what a viewer shows.

    EXIF rotation is applied. Gray, palette, CMYK and YCbCr images become RGB as Pillow converts them, alpha
    (also a palette's, or one transparent colour) is composited on white, and 16-bit gray is rounded to 8
    bits; of 16-bit RGB, Pillow itself keeps the upper byte. The first frame of an animation is read; a Pillow
    image is read at the frame where it stands. ICC profiles are not applied, as in the published evaluations.

    A file is read if it holds AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PNM, TGA, TIFF or WebP, whatever it is called. For
    another format that Pillow knows, and a source you trust, open it with Pillow and pass the Pillow image.

    A file above Pillow's own limits is treated as Pillow treats it: from `PIL.Image.MAX_IMAGE_PIXELS` (89
    million pixels) on, its `DecompressionBombWarning` is issued and the image is read, so that a photograph
    of 100 megapixels works; from twice that on it is refused, here with an `ImageError`. For larger images
    from a source you trust, raise `PIL.Image.MAX_IMAGE_PIXELS`.

    Args:
        source: A path, the bytes of a file, a Pillow image, or an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) of uint8, of uint16, or of floats in [0, 1] (rounded to 8 bits here; `load_image` keeps
            them). Arrays are taken as RGB(A): nothing in the values tells BGR, so what OpenCV reads must be
            reversed first (`array[..., ::-1]`).

    Returns:
        A new Pillow image of mode RGB that holds no file open and carries no metadata.

    Raises:
        ImageError: The file is missing, a folder, a pipe or a device, empty, truncated, too large or not an image, or
            the array's shape, type or range is not one of the above.

    Example:
        >>> from PIL import Image
        >>> half_clear = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
        >>> open_image(half_clear).getpixel((0, 0))  # composited on white
        (255, 127, 127)
    """
    import numpy as np
    from PIL import Image, ImageFile

    if isinstance(source, Image.Image):
        with _decoding("the Pillow image"):
            source.load()
            turn = _turn(source)
            upright = source if turn is None else source.transpose(turn)
            return _kept(_rgb(upright, source.format, "the Pillow image"), shared=source)
    if isinstance(source, np.ndarray):
        levels = np.rint(_float_rgb(source) * 255.0).astype(np.uint8)  # (H, W, 3)
        return Image.fromarray(levels)
    if isinstance(source, bytes | bytearray | memoryview | str | os.PathLike):
        seen = _read(source, shortest=0)
        return _kept(seen.image, shared=seen.image if isinstance(seen.image, ImageFile.ImageFile) else None)
    if isinstance(source, Tensor):
        raise ImageError("got a tensor where a path, bytes, a Pillow image or an array is expected: use load_image")
    raise ImageError(
        f"got {type(source).__name__} where a path, bytes, a Pillow image or an array (H, W, 3) is expected"
    )


class Seen(NamedTuple):
    """An image to look at and not to keep.

    Attributes:
        image: Upright RGB; it may carry what the file says beside its pixels.
        scale: A pixel of it is so many of the file's across and down: 1, or for a JPEG also 2, 4 or 8.
        size: Width and height of the whole, upright, in pixels of the file.
    """

    image: Image.Image
    scale: int
    size: tuple[int, int]


def look_at(source: ImageSource, shortest: int = 0) -> Seen:
    """Read one image as `open_image` does, without the copy that could be changed, and a JPEG no larger than needed.

    Args:
        source: As for `open_image`.
        shortest: What both sides of a JPEG file keep at least, in pixels, when libjpeg decodes it at a half, a quarter
            or an eighth of its size, which is faster; 0 for its own size. What is not a file is not reduced.

    Raises:
        ImageError: As `open_image`.

    Example:
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (403, 300)).save(file, "JPEG")
        >>> seen = look_at(file.getvalue(), shortest=128)
        >>> seen.image.size, seen.scale, seen.size
        ((202, 150), 2, (403, 300))
    """
    if isinstance(source, bytes | bytearray | memoryview | str | os.PathLike):
        return _read(source, shortest)
    image = open_image(source)
    return Seen(image, 1, image.size)


def load_image(source: ImageSource | Tensor, out_of_range: OutOfRange = "raise") -> Tensor:
    """Read one image as a float32 tensor (3, H, W) in [0, 1], at its own size.

    Everything that `open_image` reads, and tensors (3, H, W), (1, H, W) or (H, W), uint8 or floats in [0, 1].
    Floats and 16-bit arrays keep their precision. A tensor stays on its device and in its graph.

    Args:
        source: What to read.
        out_of_range: What to do with floats outside [0, 1], see `as_batch`.

    Raises:
        ImageError: As `open_image`; also a tensor of another shape, type or range.

    Example:
        >>> from PIL import Image
        >>> image = load_image(Image.new("RGB", (3, 2), "red"))
        >>> image.shape, image.mean((1, 2))
        (torch.Size([3, 2, 3]), tensor([1., 0., 0.]))
    """
    import numpy as np

    if isinstance(source, Tensor):
        if not special_kind(source) and source.ndim not in (2, 3):
            raise ImageError(
                f"got a tensor of shape {tuple(source.shape)}, expected one image (3, H, W), (1, H, W) or (H, W)"
            )
        gray = not special_kind(source) and source.ndim == 2
        return as_batch(source[None] if gray else source, out_of_range=out_of_range)[0]
    if isinstance(source, np.ndarray):
        pixels = _float_rgb(source, out_of_range)  # (H, W, 3)
    else:
        # A copy, because what Pillow lends to numpy is read-only and torch warns of that.
        pixels = np.array(open_image(source), dtype=np.float32) / np.float32(255.0)
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def as_batch(
    images: Tensor,
    value_range: tuple[float, float] = (0.0, 1.0),
    check_range: bool = True,
    out_of_range: OutOfRange = "raise",
) -> Tensor:
    """Bring image tensors to float32 (N, 3, H, W) in [0, 1].

    float32 (N, 3, H, W) in [0, 1] is returned as it came, bit for bit. uint8 always means 0..255. float16,
    bfloat16 and float64 become float32. Gradients pass.

    Args:
        images: (N, 3, H, W), (N, 1, H, W), (3, H, W) or (1, H, W); one channel is repeated. RGB: nothing in
            the values tells BGR. Any height and width from 1 pixel, and N may be 0.
        value_range: What black and white are in a float tensor; mapped to 0 and 1.
        check_range: Look for NaN, infinity, and values that leave value_range by more than rounding (1e-3 of
            its width; smaller excesses stay as they are). One pass over the values, and on a GPU one
            synchronisation; never done while compiling or tracing. Where it is not done, an image that holds NaN,
            infinity or a value too large to compute with (`LARGEST` times the range) becomes NaN as a whole, and so
            does its gradient: clamps and saturated activations on the way would make a plausible number of it.
        out_of_range: What to do with finite floats outside value_range: "raise", "clamp" (to the nearer end, passing on
            gradients along which a descent step leads back into the range) or "ignore" (which looks at no value).

    Raises:
        ImageError: The values, the shape or the type do not fit; the message says what came and what to pass.
        ValueError: `value_range` is not two finite numbers, the lower one first.

    Example:
        >>> as_batch(torch.tensor([[[0, 255]]], dtype=torch.uint8))[0, 0]
        tensor([[0., 1.]])
        >>> as_batch(torch.zeros(2, 1, 4, 5), value_range=(-1, 1)).shape  # gray
        torch.Size([2, 3, 4, 5])
    """
    if not isinstance(images, Tensor):
        raise ImageError(
            f"got {type(images).__name__} where an image tensor (N, 3, H, W) is expected: "
            "use load_image or metric.preprocess for files, Pillow images and arrays"
        )
    if not torch.compiler.is_compiling() and (kind := special_kind(images)):
        raise ImageError(f"got {kind}, expected an ordinary tensor of floats in [0, 1] or uint8: convert it first")
    low, high = value_range
    # Written so that NaN fails as well; infinity minus anything is not below infinity.
    if not 0.0 < high - low < float("inf"):
        raise ValueError(f"value_range is {value_range}, expected two finite numbers, black's first: (0, 1)")
    check_choice(out_of_range)
    _check_shape(images)
    if images.dtype == torch.uint8:
        batch = images.float() / 255.0
    elif images.dtype.is_floating_point:
        checked = check_range and out_of_range != "ignore"
        checked = checked and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
        if checked:
            _check_values(images, low, high, out_of_range)
        batch = images.float()
        if (low, high) != (0.0, 1.0):
            batch = (batch - low) / (high - low)
        if not checked:
            largest = batch.detach().abs().amax((-3, -2, -1), keepdim=True)
            batch = batch * torch.where(largest <= LARGEST, 1.0, torch.nan)
        if out_of_range == "clamp":
            batch = clamp(batch)
    else:
        raise ImageError(
            f"got images of type {images.dtype}, expected floats in [0, 1] or uint8: convert them "
            "with .to(torch.uint8) if they hold 0..255, otherwise with .float() and a value_range"
        )
    if batch.ndim == 3:
        batch = batch[None]
    return batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch  # (N, 3, H, W)


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the images directly in a folder, sorted by name.

    Files count by their suffix (`SUFFIXES`); subfolders and hidden files (`.name`) do not. A link to nothing counts,
    so that who reads the list says that this image is missing.

    Raises:
        ImageError: The folder is missing, not a folder, or cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in list_images(folder)]
        ['a.JPG', 'b.png']
    """
    folder = Path(folder)
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise ImageError(f"cannot list {folder}: {_reason(error)}") from error
    return [
        entry
        for entry in entries
        if entry.suffix.lower() in SUFFIXES
        and not entry.name.startswith(".")
        and (entry.is_file() or (entry.is_symlink() and not entry.exists()))
    ]


def list_images_below(folder: str | os.PathLike[str]) -> list[Path]:
    """List the images in a folder and in those below it, sorted by path, part by part.

    As `list_images`; hidden folders are left out as well. Links to folders are followed, unless they lead back to a
    folder that holds them. A link to nothing is an image that cannot be read.

    Raises:
        ImageError: A folder is missing, not a folder, or cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "dogs/a.jpg", "dogs/notes.txt"):
        ...         Path(folder, name).parent.mkdir(exist_ok=True)
        ...         Path(folder, name).touch()
        ...     [path.relative_to(folder).as_posix() for path in list_images_below(folder)]
        ['b.png', 'dogs/a.jpg']
    """
    root = Path(folder)
    found: list[Path] = []
    waiting = [(root, frozenset([os.path.realpath(root)]))]
    while waiting:
        here, holders = waiting.pop()
        try:
            with os.scandir(here) as listing:  # its entries know what they are: no file is asked one by one
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            raise ImageError(f"cannot list {here}: {_reason(error)}") from error
        for entry in entries:
            named_so = os.path.splitext(entry.name)[1].lower() in SUFFIXES
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in holders:
                    waiting.append((Path(entry.path), holders | {real}))
            elif named_so and (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))):
                found.append(Path(entry.path))
    return sorted(found, key=lambda path: path.parts)


def states_exposure(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file states the camera and the exposure time that its picture was taken with (EXIF).

    Only the head of the file is read. Programs that draw, scanners and screenshots state no exposure time, so that
    True is a photograph, or was one before somebody painted over it; most photographs on the web have lost the data and
    give False, and so does a file that cannot be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (4, 4)).save(f"{folder}/drawn.png")
        ...     states_exposure(f"{folder}/drawn.png")
        False
    """
    try:
        with regular_file(Path(path)).open("rb") as handle, _identified(handle) as image:
            if "exif" not in image.info:  # getexif() would decode a whole PNG to look for it
                return False
            exif = image.getexif()
            exposure = exif.get_ifd(_CAMERA_SETTINGS).get(_EXPOSURE_TIME, 0)
            return bool(exif.get(_MAKE) or exif.get(_MODEL)) and float(exposure) > 0
    except Exception:  # each decoder has its own kind on damaged data, and metadata holds anything
        return False


def _reason(error: BaseException) -> str:
    """Return one line that says why, for the end of a message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on a bad image into an ImageError that names it."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"cannot read {name}: not an image, or not in a format that is read here") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"cannot read {name}: {' '.join(str(error).split())} (if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS)"
        ) from error
    except Exception as error:
        # Each decoder has its own kind on damaged data: OSError, SyntaxError, struct.error, ValueError, ...
        raise ImageError(f"cannot read {name}: {_reason(error)}") from error


def _read(source: str | os.PathLike[str] | bytes | bytearray | memoryview, shortest: int) -> Seen:
    handle: io.BufferedReader
    if isinstance(source, bytes | bytearray | memoryview):
        handle, name = io.BufferedReader(io.BytesIO(source)), "the image"  # type: ignore[arg-type,assignment]
    else:
        path = Path(source)
        name = str(path)
        if path.is_dir():  # some systems only say "permission denied" when a folder is opened
            raise ImageError(f"cannot read {path}: it is a folder, not an image")
        try:
            handle = regular_file(path).open("rb")
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise ImageError(f"cannot read {path}: {_reason(error)}") from error
    with handle, _decoding(name):
        if not handle.peek(1):
            raise ImageError(f"cannot read {name}: it is empty")
        with _identified(handle) as image:
            whole = image.size
            scale = _reduce(image, shortest)
            image.load()
            turn = _turn(image)
            upright = image if turn is None else image.transpose(turn)
            if scale == 1:
                whole = upright.size
            elif upright.size != image.size:
                whole = whole[::-1]
            return Seen(_rgb(upright, image.format, name), scale, whole)


def _reduce(image: Image.Image, shortest: int) -> int:
    """Let a JPEG that is open be decoded at the smallest scale that keeps both sides; return 1, 2, 4 or 8."""
    if not shortest or image.format not in ("JPEG", "MPO"):  # an MPO is several JPEGs, of which the first is read
        return 1
    width, height = image.size
    turned = _turn(image) is not None
    for scale in (8, 4, 2):
        # The last column and row of a side that does not divide are parts of pixels, and after a turn the first ones.
        if scale * shortest > min(width, height) or (turned and (width % scale or height % scale)):
            continue
        return 1 if image.draft(None, (width // scale, height // scale)) is None else scale
    return 1


def _identified(handle: BinaryIO) -> Image.Image:
    """Open a file as what its bytes say, if that is one of `_FORMATS`; UnidentifiedImageError if not."""
    from PIL import Image, UnidentifiedImageError

    usual, others = _FORMATS
    try:
        return Image.open(handle, formats=usual)
    except UnidentifiedImageError:
        Image.init()  # 0.1 s, once
        return Image.open(handle, formats=[name for name in others if name in Image.OPEN])  # builds may lack some


def _rgb(upright: Image.Image, file_format: str | None, name: str) -> Image.Image:
    """Bring an image to RGB on white: a new one, or the given one where it is that already."""
    from PIL import Image

    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        upright = _from_deep(upright, file_format, name)
    if upright.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in upright.info:
        rgba = upright.convert("LA").convert("RGBA") if upright.mode == "La" else upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _kept(rgb: Image.Image, shared: Image.Image | None) -> Image.Image:
    """Make an image that belongs to nobody else, without metadata."""
    kept = rgb.copy() if rgb is shared else rgb
    kept.info = {}  # an orientation tag that stayed behind would turn the image again
    return kept


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Say how an image is brought upright, None if it is."""
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        return turns.get(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, struct.error):  # damaged metadata around a good picture: viewers show it as it is stored
        return None


def _from_deep(image: Image.Image, file_format: str | None, name: str) -> Image.Image:
    """Bring gray of more than 8 bits to 8, where the file says what white is."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    # Pillow opens 16-bit gray as mode I;16, and older versions (and its PNM reader) as mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        levels = (values.astype(np.uint32) + 128) // 257  # 65535 -> 255, to the nearest
    elif image.mode == "F" and values.size and values.min() >= 0.0 and values.max() <= 1.0:
        levels = np.rint(values * 255.0)
    else:
        kind = "float" if image.mode == "F" else "integer"
        raise ImageError(
            f"cannot read {name}: it has 32-bit {kind} pixels from {values.min():g} to {values.max():g}, "
            "which does not say what white is: scale them to [0, 1] and pass the array"
        )
    gray = Image.fromarray(levels.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray


def _float_rgb(array: np.ndarray[Any, Any], out_of_range: OutOfRange = "raise") -> np.ndarray[Any, Any]:
    """Bring an array to float32 (H, W, 3) in [0, 1], alpha composited on white."""
    import numpy as np

    shape = tuple(array.shape)
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        raise ImageError(
            f"got an array of shape {shape}, channels first, expected (H, W, 3): pass array.transpose(1, 2, 0)"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"got an array of shape {shape}, expected one image (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if 0 in shape:
        raise ImageError(f"got an array of shape {shape}, which has no pixels")
    if array.dtype.name == "uint8":
        values = np.asarray(array, dtype=np.float32) / np.float32(255.0)
    elif array.dtype.name == "uint16":
        values = np.asarray(array, dtype=np.float32) / np.float32(65535.0)
    elif array.dtype.kind == "f":
        check_choice(out_of_range)
        low, high = float(array.min()), float(array.max())
        finite = low > float("-inf") and high < float("inf")  # NaN is neither
        if (out_of_range == "raise" and not (low >= -TOLERANCE and high <= 1.0 + TOLERANCE)) or not finite:
            planes = torch.from_numpy(np.array(array, dtype=np.float32)).movedim(-1, 0) if array.ndim == 3 else None
            raise ImageError(_range_message("an array", low, high, 0.0, 1.0, planes))
        values = np.array(array, dtype=np.float32)
        values = values if out_of_range == "ignore" else values.clip(0.0, 1.0)
    else:
        raise ImageError(
            f"got an array of type {array.dtype}, expected uint8, uint16 or floats in [0, 1]: "
            "pass array.astype(np.uint8) if it holds 0..255"
        )
    if values.ndim == 2:
        values = values[..., None]
    if values.shape[2] == 4:
        alpha = values[..., 3:]
        values = values[..., :3] * alpha + (1.0 - alpha)
    return np.broadcast_to(values, (*values.shape[:2], 3))


def _range_message(what: str, low: float, high: float, lowest: float, highest: float, planes: Tensor | None) -> str:
    if not (low > float("-inf") and high < float("inf")):  # NaN is neither
        return f"got {what} with NaN or infinity in it, expected values in [{lowest:g}, {highest:g}]"
    fix = likely_cause(low, high, lowest, highest, planes, what.split()[-1])
    return f"got {what} with values from {low:.6g} to {high:.6g}, expected [{lowest:g}, {highest:g}]: {fix}"


def _check_shape(images: Tensor) -> None:
    shape = tuple(images.shape)
    if images.ndim in (3, 4) and shape[-3] in (1, 3):
        if 0 in shape[-2:]:
            raise ImageError(f"got images of shape {shape}, which have no pixels")
        return
    expected = "expected (N, 3, H, W), (N, 1, H, W), (3, H, W) or (1, H, W)"
    if images.ndim in (3, 4) and shape[-1] in (1, 3, 4):
        order = "(0, 3, 1, 2)" if images.ndim == 4 else "(2, 0, 1)"
        raise ImageError(
            f"got images of shape {shape}, channels last, {expected}: pass images.permute{order}"
            + (" without the alpha channel" if shape[-1] == 4 else "")
        )
    if images.ndim in (3, 4) and shape[-3] == 4:
        raise ImageError(f"got images of shape {shape}, {expected}: composite the alpha channel on a background")
    if images.ndim in (2, 3):
        raise ImageError(f"got images of shape {shape}, {expected}: gray needs its channel, images.unsqueeze(-3)")
    raise ImageError(f"got images of shape {shape}, {expected}")


def _check_values(images: Tensor, low: float, high: float, out_of_range: OutOfRange) -> None:
    if images.numel() == 0:
        return
    # One fused pass, and one transfer for both; NaN comes out as both.
    plain = values_of(images)
    least, most = torch.stack(torch.aminmax(plain)).tolist()
    margin = TOLERANCE * (high - low) if out_of_range == "raise" else LARGEST * (high - low)
    if not (least >= low - margin and most <= high + margin):
        planes = plain.movedim(-3, 0) if plain.ndim in (3, 4) else None  # more dimensions: vmap's
        raise ImageError(_range_message("images", least, most, low, high, planes))
