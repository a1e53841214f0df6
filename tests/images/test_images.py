"""Every kind of image a user may hand over, and every kind that must be refused with a reason."""

from __future__ import annotations

import gc
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric.images import ImageError, as_batch, list_images, load_image, open_image, states_exposure

ORIENTATION = 0x0112


@pytest.fixture
def levels() -> np.ndarray[Any, Any]:
    """A photograph-like (5, 7, 3) uint8 array: no symmetry, so that every turn and channel swap shows."""
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def deep_png(array: np.ndarray[Any, Any]) -> bytes:
    """A 16-bit PNG (which Pillow cannot write) of (H, W, C) uint16, C = 1, 2, 3, 4."""
    height, width, channels = array.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


def huge_png(width: int, height: int) -> bytes:
    """The header of a PNG that claims to be large, and no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1000) + b"IDAT"


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    assert image.mode == "RGB"
    return np.array(image)


# Sources


def test_path_string_bytes_image_and_array_are_the_same(tmp_path: Path, levels: np.ndarray[Any, Any]) -> None:
    image = Image.fromarray(levels)
    path = tmp_path / "a.png"
    image.save(path)
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), memoryview(data), image, levels):
        np.testing.assert_array_equal(pixels(open_image(source)), levels)
        expected = torch.from_numpy(levels).permute(2, 0, 1) / 255.0
        assert torch.equal(load_image(source), expected)


def test_load_image_is_contiguous_float32(levels: np.ndarray[Any, Any]) -> None:
    image = load_image(levels)
    assert image.shape == (3, 5, 7)
    assert image.dtype == torch.float32
    assert image.is_contiguous()


def test_the_given_image_is_left_alone(levels: np.ndarray[Any, Any]) -> None:
    image = Image.open(io.BytesIO(encoded(Image.fromarray(levels), "JPEG", exif=exif(6))))
    before = dict(image.info)
    opened = open_image(image)
    assert image.size == (7, 5)
    assert image.info == before
    assert opened.size == (5, 7)
    opened.putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) != (1, 2, 3)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_no_file_stays_open(tmp_path: Path, levels: np.ndarray[Any, Any], file_format: str) -> None:
    path = tmp_path / "image"
    frames = [Image.fromarray(levels), Image.fromarray(levels[::-1].copy())]
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:]} if file_format == "GIF" else {}
    frames[0].save(path, file_format, **more)
    broken = tmp_path / "broken"
    broken.write_bytes(path.read_bytes()[:-20])
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    kept = [open_image(path) for _ in range(3)]
    for _ in range(3):
        try:
            kept.append(open_image(broken))
        except ImageError:
            continue  # a few formats can do without their last bytes
    if descriptors.exists():
        assert len(list(descriptors.iterdir())) == before
    del kept
    gc.collect()  # a handle left to the collector would be a ResourceWarning, which is an error here


# What a viewer shows


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


# EXIF 2.3, table of tag 274: what the first row and the first column of the stored picture are when shown.
UPRIGHT: dict[int, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(levels: np.ndarray[Any, Any], orientation: int, file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(Image.fromarray(levels), file_format, exif=exif(orientation), **options)
    shown = open_image(data)
    np.testing.assert_array_equal(pixels(shown), UPRIGHT[orientation](levels))
    np.testing.assert_array_equal(pixels(open_image(Image.open(io.BytesIO(data)))), pixels(shown))
    np.testing.assert_array_equal(pixels(open_image(shown)), pixels(shown))  # turned once, not twice
    assert not shown.getexif()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(levels: np.ndarray[Any, Any], orientation: int) -> None:
    data = encoded(Image.fromarray(levels), exif=exif(orientation))
    np.testing.assert_array_equal(pixels(open_image(data)), levels)


def test_jpeg_orientation(levels: np.ndarray[Any, Any]) -> None:
    plain = pixels(open_image(encoded(Image.fromarray(levels), "JPEG", quality=95)))
    turned = pixels(open_image(encoded(Image.fromarray(levels), "JPEG", quality=95, exif=exif(8))))
    np.testing.assert_array_equal(turned, np.rot90(plain))


@pytest.mark.parametrize("mode", ["1", "L"])
def test_gray(levels: np.ndarray[Any, Any], mode: str) -> None:
    gray = Image.fromarray(levels[..., 0]).convert(mode)
    shown = pixels(open_image(encoded(gray)))
    np.testing.assert_array_equal(shown, np.repeat(np.array(gray.convert("L"))[..., None], 3, axis=2))


def over_white(values: np.ndarray[Any, Any], alpha: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    share = alpha[..., None].astype(np.float64) / 255
    return values * share + 255 * (1 - share)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA"])
def test_alpha_is_composited_on_white(levels: np.ndarray[Any, Any], mode: str) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (5, 7), dtype=np.uint8)
    alpha[0, 0], alpha[0, 1] = 0, 255
    straight = Image.fromarray(np.dstack([levels if mode in ("RGBA", "RGBa") else levels[..., :1].repeat(3, 2), alpha]))
    gray = straight.convert("LA")
    paletted = Image.fromarray(levels[..., 0]).convert("P")  # a palette of all grays
    paletted.putalpha(Image.fromarray(alpha))
    image = {
        "RGBA": straight,
        "RGBa": straight.convert("RGBa"),
        "LA": gray,
        "La": gray.convert("La"),
        "PA": paletted,
    }[mode]
    shown = pixels(open_image(image)).astype(float)
    colours = levels if mode in ("RGBA", "RGBa") else levels[..., :1].repeat(3, 2)
    # Premultiplied modes lose colour where alpha is small, but the composite by no more than rounding.
    assert np.abs(shown - over_white(colours, alpha)).max() <= 2
    assert (shown[0, 0] == 255).all()
    np.testing.assert_array_equal(shown[0, 1], colours[0, 1])


def test_premultiplied_differs_from_straight(levels: np.ndarray[Any, Any]) -> None:
    """The test above would notice a mode whose alpha is dropped."""
    alpha = np.full((5, 7), 128, dtype=np.uint8)
    shown = pixels(open_image(Image.fromarray(np.dstack([levels, alpha])))).astype(float)
    assert np.abs(shown - levels).max() > 50


def test_palette_with_and_without_transparency(levels: np.ndarray[Any, Any]) -> None:
    palette = Image.fromarray(levels).quantize(8)
    np.testing.assert_array_equal(pixels(open_image(encoded(palette))), np.array(palette.convert("RGB")))
    index = int(np.array(palette)[2, 3])
    for file_format in ("PNG", "GIF"):
        shown = pixels(open_image(encoded(palette, file_format, transparency=index)))
        see_through = np.array(palette) == index
        assert (shown[see_through] == 255).all()
        np.testing.assert_array_equal(shown[~see_through], np.array(palette.convert("RGB"))[~see_through])
    # One alpha per palette entry, as pngquant writes it.
    entries = bytes([128] * 8)
    shown = pixels(open_image(encoded(palette, transparency=entries))).astype(float)
    expected = over_white(np.array(palette.convert("RGB")), np.full((5, 7), 128))
    assert np.abs(shown - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_transparent_colour(levels: np.ndarray[Any, Any], mode: str) -> None:
    image = Image.fromarray(levels).convert(mode)
    colour = image.getpixel((3, 2))
    shown = open_image(encoded(image, transparency=colour))
    assert shown.getpixel((3, 2)) == (255, 255, 255)
    assert shown.getpixel((0, 0)) == image.convert("RGB").getpixel((0, 0))


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk(file_format: str) -> None:
    """Adobe stores CMYK inverted in JPEG; a negative would show as a wrong colour here."""
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan: red
    shown = open_image(encoded(image, file_format)).getpixel((8, 8))
    assert isinstance(shown, tuple)
    assert shown[0] > 250 and shown[1] < 5 and shown[2] < 5


def test_ycbcr_and_hsv(levels: np.ndarray[Any, Any]) -> None:
    image = Image.fromarray(levels).convert("YCbCr")
    np.testing.assert_array_equal(pixels(open_image(image)), np.array(image.convert("RGB")))
    image = Image.fromarray(levels).convert("HSV")
    np.testing.assert_array_equal(pixels(open_image(image)), np.array(image.convert("RGB")))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_is_scaled_not_clipped(file_format: str) -> None:
    values = np.linspace(0, 65535, 35).round().astype(np.uint16).reshape(5, 7)
    shown = pixels(open_image(encoded(Image.fromarray(values), file_format)))
    np.testing.assert_array_equal(shown, np.rint(values / 257.0)[..., None].repeat(3, 2))


def test_sixteen_bit_big_endian_tiff() -> None:
    values = np.linspace(0, 65535, 35).round().astype(">u2").reshape(5, 7)
    image = Image.frombytes("I;16B", (7, 5), values.tobytes())
    np.testing.assert_array_equal(pixels(open_image(image))[..., 0], np.rint(values / 257.0))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_png(channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    if channels in (2, 4):
        values[..., -1] = 65535
    shown = pixels(open_image(deep_png(values))).astype(float)
    colours = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, 2)
    assert np.abs(shown - colours / 257).max() <= 1


def test_thirty_two_bit_images_need_a_range() -> None:
    unit = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(
        pixels(open_image(encoded(Image.fromarray(unit), "TIFF")))[..., 0], np.rint(unit * 255)
    )
    with pytest.raises(ImageError, match="from 0 to 7, which does not say what white is"):
        open_image(Image.fromarray(unit * 7))
    with pytest.raises(ImageError, match="integer pixels from 0 to 99999"):
        open_image(Image.fromarray(np.array([[0, 99999]], dtype=np.int32)))


def test_animations_give_their_first_frame(levels: np.ndarray[Any, Any]) -> None:
    first, second = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
    for file_format in ("GIF", "PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = encoded(first, file_format, save_all=True, append_images=[second], **options)
        assert open_image(data).getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_one_pixel_wide(size: tuple[int, int], mode: str) -> None:
    image = open_image(encoded(Image.new(mode, size)))
    assert image.size == size
    assert load_image(encoded(Image.new(mode, size))).shape == (3, size[1], size[0])


# What cannot be read


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.png", "no such file"),
        ("folder", "a folder, not an image"),
        ("empty.png", "it is empty"),
        ("text.png", "not an image"),
        ("truncated.png", "truncated"),
        ("truncated.jpg", "truncated"),
        ("header.png", "cannot read"),
        ("bomb.png", "raise PIL.Image.MAX_IMAGE_PIXELS"),
        ("null\0byte.png", "null"),
    ],
)
def test_unreadable_files_are_named_with_a_reason(
    tmp_path: Path, levels: np.ndarray[Any, Any], name: str, reason: str
) -> None:
    large = Image.fromarray(np.tile(levels, (20, 20, 1)))
    (tmp_path / "folder").mkdir()
    contents = {
        "empty.png": b"",
        "text.png": b"this is not an image, whatever its name says",
        "truncated.png": encoded(large)[:-500],
        "truncated.jpg": encoded(large, "JPEG")[:-500],
        "header.png": huge_png(20, 20),
        "bomb.png": huge_png(60000, 60000),
    }
    for file, data in contents.items():
        (tmp_path / file).write_bytes(data)
    path = os.path.join(tmp_path, name)
    for read in (open_image, load_image):
        with pytest.raises(ImageError) as caught:
            read(path)
        message = str(caught.value)
        assert path in message
        assert reason in message
        assert "\n" not in message


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM", "TGA"])
def test_damaged_data_is_an_image_or_an_image_error(levels: np.ndarray[Any, Any], file_format: str) -> None:
    """No decoder's own exception gets out, whatever bytes are damaged or missing."""
    data = encoded(Image.fromarray(np.tile(levels, (4, 4, 1))), file_format)
    random = np.random.default_rng(0)
    refused = 0
    for trial in range(60):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[random.integers(0, min(len(data), 200))] = random.integers(0, 256)
        if trial % 2:
            damaged = damaged[: random.integers(1, len(data))]
        try:
            assert open_image(bytes(damaged)).mode == "RGB"
        except ImageError:
            refused += 1
    assert refused > 0


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_does_not_lose_the_image(levels: np.ndarray[Any, Any]) -> None:
    for block in (b"", b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 40):
        data = encoded(Image.fromarray(levels), "PNG", exif=block)
        np.testing.assert_array_equal(pixels(open_image(data)), levels)


def test_large_photographs_are_read_and_bombs_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's two limits, scaled down: above the first it warns, above twice that it refuses."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (15, 10))))
    with pytest.warns(Image.DecompressionBombWarning):
        assert open_image(path).size == (15, 10)
    with pytest.raises(ImageError, match=r"a\.png.*MAX_IMAGE_PIXELS"):
        open_image(path)  # where the user made that warning an error, it is an ImageError
    path.write_bytes(encoded(Image.new("RGB", (21, 10))))
    with pytest.raises(ImageError, match=r"a\.png.*210 pixels.*MAX_IMAGE_PIXELS"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(path).size == (21, 10)


def test_other_sources_are_refused() -> None:
    for source in (3, None, [[0, 1]], object()):
        with pytest.raises(ImageError, match=f"got {type(source).__name__}"):
            open_image(source)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="use load_image"):
        open_image(torch.zeros(3, 4, 4))  # type: ignore[arg-type]
    closed = Image.open(io.BytesIO(encoded(Image.new("RGB", (3, 3)))))
    closed.close()
    with pytest.raises(ImageError, match="Pillow image"):
        open_image(closed)


# Arrays


def test_array_types_and_shapes(levels: np.ndarray[Any, Any]) -> None:
    exact = levels.astype(np.float64) / 255
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(pixels(open_image(exact.astype(dtype))), levels)
    np.testing.assert_array_equal(pixels(open_image(levels.astype(np.uint16) * 257)), levels)
    for gray in (levels[..., 0], levels[..., :1]):
        np.testing.assert_array_equal(pixels(open_image(gray)), levels[..., :1].repeat(3, 2))
    reversed_view = levels[..., ::-1]  # negative strides, as after OpenCV
    np.testing.assert_array_equal(pixels(open_image(reversed_view)), reversed_view)
    assert torch.equal(load_image(reversed_view), load_image(levels).flip(0))


def test_float_arrays_keep_their_precision_in_load_image() -> None:
    values = np.random.default_rng(0).random((4, 5, 3)).astype(np.float32)
    assert torch.equal(load_image(values), torch.from_numpy(values).permute(2, 0, 1))
    deep = np.array([[0, 1, 65535]], dtype=np.uint16)
    assert torch.equal(load_image(deep)[0], torch.tensor([[0.0, 1 / 65535, 1.0]]))


def test_array_alpha_on_white(levels: np.ndarray[Any, Any]) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, (5, 7), dtype=np.uint8)
    array = np.dstack([levels, alpha])
    expected = over_white(levels, alpha)
    assert np.abs(pixels(open_image(array)) - expected).max() <= 0.5 + 1e-3
    assert np.abs(load_image(array).permute(1, 2, 0).numpy() * 255 - expected).max() < 1e-3


def test_arrays_are_not_changed_or_shared(levels: np.ndarray[Any, Any]) -> None:
    for array in (levels, levels / 255.0, (levels / 255.0).astype(np.float32)):
        before = array.copy()
        loaded = load_image(array)
        loaded.zero_()
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 9)), r"\(3, 8, 9\), channels first.*array\.transpose\(1, 2, 0\)"),
        (np.zeros((1, 8, 9), dtype=np.uint8), r"channels first"),
        (np.zeros((2, 8, 9, 3)), r"\(2, 8, 9, 3\), expected one image"),
        (np.zeros((8, 9, 2)), r"\(8, 9, 2\), expected one image"),
        (np.zeros(8), r"\(8,\), expected one image"),
        (np.zeros((0, 9, 3)), r"\(0, 9, 3\), which has no pixels"),
        (
            np.full((8, 9, 3), 255.0),
            r"from 255 to 255, expected \[0, 1\]: it looks like 0 to 255: pass array / 255, or uint8",
        ),
        (np.linspace(-1, 1, 27).reshape(3, 3, 3), r"from -1 to 1.*\(array \+ 1\) / 2"),
        (np.linspace(-2, 2.5, 27).reshape(3, 3, 3), r"array \* std \+ mean"),
        (np.full((8, 9, 3), np.nan), r"NaN or infinity"),
        (np.full((8, 9, 3), np.inf), r"NaN or infinity"),
        (np.array([[0.5, -np.inf]]), r"NaN or infinity"),
        (np.zeros((8, 9, 3), dtype=np.int64), r"type int64.*astype\(np\.uint8\)"),
        (np.zeros((8, 9, 3), dtype=bool), r"type bool"),
        (np.zeros((8, 9), dtype=complex), r"type complex128"),
    ],
)
def test_arrays_that_are_refused(array: np.ndarray[Any, Any], message: str) -> None:
    for read in (open_image, load_image):
        with pytest.raises(ImageError, match=message):
            read(array)


def test_rounding_above_one_is_clipped() -> None:
    array = np.array([[-0.0005, 1.0005]])
    assert torch.equal(load_image(array)[0], torch.tensor([[0.0, 1.0]]))


# Tensors


def test_one_tensor() -> None:
    image = torch.rand(3, 4, 5)
    assert torch.equal(load_image(image), image)
    assert torch.equal(load_image(image[0]), image[:1].expand(3, 4, 5))
    assert torch.equal(load_image(image[:1]), image[:1].expand(3, 4, 5))
    assert torch.equal(load_image(torch.full((4, 5), 51, dtype=torch.uint8)), torch.full((3, 4, 5), 0.2))
    with pytest.raises(ImageError, match=r"expected one image \(3, H, W\)"):
        load_image(image[None])
    with pytest.raises(ImageError, match="channels last"):
        load_image(image.permute(1, 2, 0))


def test_batches_in_range_come_back_bit_for_bit() -> None:
    images = torch.rand(2, 3, 4, 5)
    assert as_batch(images) is images
    assert as_batch(torch.zeros(0, 3, 4, 5)).shape == (0, 3, 4, 5)


def test_batch_shapes() -> None:
    image = torch.rand(3, 4, 5)
    assert torch.equal(as_batch(image), image[None])
    assert torch.equal(as_batch(image[:1]), image[None, :1].expand(1, 3, 4, 5))
    gray = torch.rand(2, 1, 4, 5)
    assert torch.equal(as_batch(gray), gray.expand(2, 3, 4, 5))
    assert as_batch(torch.rand(2, 3, 1, 1)).shape == (2, 3, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 4, 5).to(dtype)
    assert torch.equal(as_batch(images), images.float())
    assert as_batch(images).dtype == torch.float32


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_uint8_is_always_zero_to_255(value_range: tuple[float, float]) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(as_batch(levels, value_range)[0, 0].flatten(), torch.arange(256) / 255.0)


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (-1, 1)])
def test_other_ranges_are_mapped_to_zero_and_one(value_range: tuple[float, float]) -> None:
    low, high = value_range
    unit = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(as_batch(unit * (high - low) + low, value_range), unit, rtol=0, atol=1e-6)
    ends = torch.tensor([low, high], dtype=torch.float32).reshape(1, 1, 1, 2)
    assert torch.equal(as_batch(ends, value_range)[0, 0], torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize(
    ("low", "high", "value_range", "message"),
    [
        (
            0,
            255,
            (0, 1),
            r"expected \[0, 1\]: they look like 0 to 255: pass images / 255, uint8, or value_range=\(0, 255\)",
        ),
        (-1, 1, (0, 1), r"from -1 to 1, expected \[0, 1\]: they look like \[-1, 1\]: pass value_range=\(-1, 1\)"),
        (-2.1, 2.6, (0, 1), r"from -2.1 to 2.6, expected \[0, 1\]: undo any normalisation"),
        (0, 1.01, (0, 1), r"from 0 to 1.01"),
        (0, 255, (-1, 1), r"expected \[-1, 1\]"),
        (-1, 1, (0, 255), r"expected \[0, 255\]: they look like \[-1, 1\]: pass value_range=\(-1, 1\)"),
    ],
)
def test_values_outside_say_what_to_pass(
    low: float, high: float, value_range: tuple[float, float], message: str
) -> None:
    images = torch.full((2, 3, 4, 5), float(low))
    images[1, 2, 3, 4] = high
    with pytest.raises(ImageError, match=message):
        as_batch(images, value_range)
    as_batch(images, value_range, check_range=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(dtype: torch.dtype, value: float) -> None:
    images = torch.rand(2, 3, 4, 5).to(dtype)
    images[1, 0, 2, 2] = value
    with pytest.raises(ImageError, match="NaN or infinity"):
        as_batch(images)


def test_rounding_outside_is_left_as_it_is() -> None:
    images = torch.tensor([-0.0009, 1.0009]).reshape(1, 1, 1, 2)
    assert torch.equal(as_batch(images)[0, 0], images[0, 0])
    with pytest.raises(ImageError):
        as_batch(images * 2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 5), r"\(4, 5\).*images\.unsqueeze\(-3\)"),
        (torch.zeros(7, 4, 6), r"\(7, 4, 6\).*images\.unsqueeze\(-3\)"),
        (torch.zeros(2, 4, 5, 3), r"channels last.*images\.permute\(0, 3, 1, 2\)$"),
        (torch.zeros(4, 5, 4), r"channels last.*images\.permute\(2, 0, 1\) without the alpha channel"),
        (torch.zeros(2, 4, 5, 6), r"composite the alpha channel"),
        (torch.zeros(2, 2, 5, 6), r"\(2, 2, 5, 6\), expected \(N, 3, H, W\)"),
        (torch.zeros(1, 1, 3, 5, 6), r"\(1, 1, 3, 5, 6\), expected"),
        (torch.zeros(2, 3, 0, 5), r"no pixels"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.int64), r"torch\.int64.*\.to\(torch\.uint8\)"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.bool), r"torch\.bool"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.complex64), r"torch\.complex64"),
        (np.zeros((4, 5, 3)), r"got ndarray.*use load_image"),
        ("a.png", r"got str.*use load_image"),
    ],
)
def test_tensors_that_are_refused(images: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        as_batch(images)


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0, float("inf")), (float("nan"), 1)])
def test_value_range_is_checked(value_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="value_range"):
        as_batch(torch.zeros(1, 3, 2, 2), value_range)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_pass(dtype: torch.dtype) -> None:
    images = torch.rand(2, 1, 4, 5, dtype=dtype, requires_grad=True)
    as_batch(images * 2 - 1, (-1.0, 1.0)).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, torch.full_like(images, 3.0))


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_compiles_in_one_graph(value_range: tuple[float, float]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda images: as_batch(images, value_range) * 2, fullgraph=True, backend="eager", dynamic=False
    )
    for images in (torch.rand(2, 3, 4, 5), torch.rand(1, 4, 5), torch.zeros(3, 4, 5, dtype=torch.uint8)):
        torch.testing.assert_close(compiled(images), as_batch(images, value_range) * 2)
    assert compiled(torch.full((2, 3, 4, 5), 9.0)).isfinite().all()  # the check is off while compiling


# Photographs


def exif_of(make: str = "", model: str = "", exposure: Any = None) -> Image.Exif:
    exif = Image.Exif()
    for tag, value in ((0x010F, make), (0x0110, model)):
        if value:
            exif[tag] = value
    if exposure is not None:
        exif.get_ifd(0x8769)[0x829A] = exposure
    return exif


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_camera_s_exposure_tells_a_photograph(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    image = Image.new("RGB", (8, 8), "red")
    image.save(path)
    assert not states_exposure(path)
    for exif, expected in (
        (exif_of(make="Maker", exposure=0.01), True),
        (exif_of(model="Model", exposure=30), True),
        (exif_of(make="Scanner", model="Flatbed"), False),
        (exif_of(exposure=0.01), False),
        (exif_of(make="Maker", exposure=0), False),
        (exif_of(make="Maker", exposure="unknown"), False),
    ):
        image.save(path, exif=exif)
        assert states_exposure(path) is expected


def test_what_cannot_be_read_states_no_exposure(tmp_path: Path) -> None:
    photograph = tmp_path / "photograph.jpg"
    Image.new("RGB", (8, 8)).save(photograph, exif=exif_of(make="Maker", exposure=0.01))
    content = photograph.read_bytes()
    assert states_exposure(photograph)
    for name, damaged in (
        ("empty", b""),
        ("text", b"no image"),
        ("cut", content[:40]),
        ("metadata", content.replace(b"II*\0", b"??*\0").replace(b"MM\0*", b"??\0*")),
    ):
        (tmp_path / name).write_bytes(damaged)
        assert not states_exposure(tmp_path / name)
    assert not states_exposure(tmp_path) and not states_exposure(tmp_path / "missing")


# Folders


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.txt", ".hidden.png", "._a.JPG", "noext", "d.webp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png", "d.webp"]
    assert list_images(str(tmp_path)) == list_images(tmp_path)
    assert list_images(tmp_path / "folder.png") == []
    with pytest.raises(ImageError, match=r"missing: no such file"):
        list_images(tmp_path / "missing")
    with pytest.raises(ImageError, match=r"b\.png: not a directory"):
        list_images(tmp_path / "b.png")
