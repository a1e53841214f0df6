"""The fast reading: the published geometry, within a few grey levels, and said wherever it is used."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile
from torch import Tensor

from rclip_metric import RobustPerceptualDistance
from rclip_metric.errors import ImageIndexError
from rclip_metric.images import READINGS, ImageError, Preprocessing, open_image, preprocess_pil, read_pixels
from rclip_metric.images.reading import look_at
from rclip_metric.images.resizing import from_levels
from rclip_metric.retrieval import ImageIndex, ModelSource, identity, identity_of
from rclip_metric.weights import load_encoder, save_encoder

from support.encoders import small_encoder
from support.images import save_noise

CROP, SMALL, SQUASH = Preprocessing("crop", 73, 64), Preprocessing("crop", 37, 32), Preprocessing("squash", 32, 32)
# (width, height): down, up, one axis each way, odd margins, the encoder's own size, one pixel, long (8 is the limit).
SIZES = [(300, 211), (20, 13), (100, 37), (91, 90), (64, 64), (1, 1), (290, 37), (300, 37), (37, 301), (3, 900)]
ORIENTATION = 0x0112


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def waves(width: int, height: int, period: float = 40.0) -> Image.Image:
    """Smooth enough to survive a JPEG and a reduced scale, and steep enough to show a shift of half a pixel."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    channels = [np.sin(2 * np.pi * x / period), np.sin(2 * np.pi * y / period), np.cos(2 * np.pi * (x + y) / period)]
    return Image.fromarray(np.rint(127.5 + 100 * np.stack(channels, axis=2)).astype(np.uint8))


def saved(image: Image.Image, kind: str = "JPEG", **settings: Any) -> bytes:
    stream = io.BytesIO()
    if "orientation" in settings:
        exif = Image.Exif()
        exif[ORIENTATION] = settings.pop("orientation")
        settings["exif"] = exif
    image.save(stream, kind, **settings)
    return stream.getvalue()


def levels_apart(source: Any, preprocessing: Preprocessing, resize: Any = "published") -> Tensor:
    """By how many levels each value of the two readings differs."""
    published, fast = (read_pixels(source, preprocessing, resize, reading=reading) for reading in READINGS)
    assert fast.shape == published.shape and fast.dtype == torch.float32 and fast.is_contiguous()
    assert fast.min() >= 0 and fast.max() <= 1
    return 255 * (fast - published).abs()


@pytest.mark.parametrize("resize", ["published", "squash"])
@pytest.mark.parametrize("preprocessing", [CROP, SMALL, SQUASH])
@pytest.mark.parametrize("size", SIZES)
def test_the_geometry_is_the_published_one(size, preprocessing, resize):
    # White noise is the worst case: a pixel's shift changes it by 85 levels on average.
    apart = levels_apart(saved(noise(*size), "PNG"), preprocessing, resize)
    assert apart.max() < 3.01 and apart.mean() < 0.1


def test_what_is_published_is_what_pillow_makes():
    file = saved(noise(90, 70))
    for preprocessing in (CROP, SQUASH):
        assert torch.equal(read_pixels(file, preprocessing), preprocess_pil(open_image(file), preprocessing))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "1", "CMYK"])
def test_other_modes_are_read_alike(mode):
    deep = np.random.default_rng(1).integers(0, 65536, (70, 90)).astype(np.uint16)
    image = Image.fromarray(deep) if mode == "I;16" else noise(90, 70).convert(mode)
    file = saved(image, "TIFF" if mode == "CMYK" else "PNG")
    assert levels_apart(file, SQUASH).max() < 3.01
    assert levels_apart(image, CROP).max() < 3.01


def test_arrays_and_pillow_images_are_read_at_their_own_scale(tmp_path):
    image = waves(640, 480)
    (tmp_path / "a.jpg").write_bytes(saved(image))
    opened = Image.open(tmp_path / "a.jpg")
    fast = read_pixels(opened, SQUASH, reading="fast")
    assert opened.size == (640, 480)
    assert torch.equal(fast, read_pixels(np.asarray(opened), SQUASH, reading="fast"))
    assert (fast - read_pixels(tmp_path / "a.jpg", SQUASH)).abs().max() < 3.01 / 255


@pytest.mark.parametrize(
    "size, shortest, scale",
    [
        ((640, 480), 0, 1),
        ((640, 480), 241, 1),
        ((640, 480), 240, 2),
        ((480, 640), 121, 2),
        ((640, 480), 120, 4),
        ((640, 480), 60, 8),
        ((640, 480), 1, 8),
        ((403, 301), 75, 4),
        ((7, 5), 1, 4),
        ((1, 900), 1, 1),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_keeps_its_sides(size, shortest, scale):
    for settings in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}):
        seen = look_at(saved(waves(*size), **settings), shortest)
        assert (seen.scale, seen.size) == (scale, size)
        assert seen.image.size == tuple(-(-side // scale) for side in size)
    for mode, kind in (("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "MPO")):
        seen = look_at(saved(waves(*size).convert(mode), kind), shortest)
        assert (seen.scale, seen.size, seen.image.mode) == (scale, size, "RGB")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_files_are_decoded_whole(kind):
    seen = look_at(saved(waves(640, 480), kind), shortest=10)
    assert (seen.scale, seen.size, seen.image.size) == (1, (640, 480), (640, 480))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size, scale", [((640, 480), 4), ((636, 478), 2), ((637, 479), 1)])
def test_a_turned_jpeg_is_reduced_where_no_part_of_a_pixel_is_left(size, scale, orientation):
    file = saved(waves(*size, period=90), orientation=orientation, quality=95)
    seen = look_at(file, shortest=100)
    upright = size if orientation < 5 else size[::-1]
    assert seen.size == upright == open_image(file).size
    assert seen.scale == (4 if orientation == 1 else scale)
    assert levels_apart(file, SMALL).max() < 4


@pytest.mark.parametrize("size", [(1027, 771), (513, 1030), (640, 487), (517, 523)])
def test_a_reduced_side_that_the_scale_does_not_divide_is_not_shifted(size):
    file = saved(waves(*size, period=100), quality=98)
    assert look_at(file, 64).scale >= 4
    for preprocessing, resize in ((SMALL, "published"), (SQUASH, "published"), (SMALL, "squash")):
        apart = levels_apart(file, preprocessing, resize)
        assert apart[:, 1:-1, 1:-1].max() < 4  # at the border parts of pixels count as none or as whole ones
        assert apart.max() < 15 and apart.mean() < 1.2


def test_taking_the_last_part_of_a_pixel_for_a_whole_one_would_be_seen():
    file = saved(waves(513, 521, period=100), quality=98)
    reduced = look_at(file, 64)
    assert reduced.image.size == (65, 66)  # of 64.1 and 65.1
    levels = torch.from_numpy(np.array(reduced.image)).permute(2, 0, 1)[None]
    careless = F.interpolate(levels, (32, 32), mode="bicubic", antialias=True)[0] / 255
    apart = 255 * (careless - read_pixels(file, SQUASH)).abs()
    assert apart[:, 1:-1, 1:-1].max() > 2 * levels_apart(file, SQUASH)[:, 1:-1, 1:-1].max()


def test_a_long_image_is_read_as_published():
    file = saved(waves(900, 60))
    assert look_at(file, 2 * 37).scale == 1
    assert levels_apart(file, SMALL).max() == 0
    tall = saved(waves(300, 3000))  # its shorter side would do at an eighth
    assert look_at(tall, 64).scale == 4
    assert levels_apart(tall, Preprocessing("crop", 32, 32)).max() == 0


def test_no_rounding_adds_or_takes_a_pixel_away():
    # Sides that the scale divides, and sides that it does not, to squares of many sizes.
    for width in range(160, 176):
        file = saved(waves(width, 168))
        for side in (5, 7, 9, 10):
            assert look_at(file, 2 * side).scale == 8
            for preprocessing in (Preprocessing("squash", side, side), Preprocessing("crop", side, side)):
                assert read_pixels(file, preprocessing, reading="fast").shape == (3, side, side)


def test_levels_become_floats_as_torch_divides():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for one in (levels, levels.T):
        made = from_levels(one)
        assert torch.equal(made, torch.from_numpy(one.copy()).float().div(255)) and made.is_contiguous()


def test_files_that_cannot_be_read_are_refused_in_the_same_words(tmp_path):
    whole = saved(waves(640, 480))
    Path(tmp_path, "folder.jpg").mkdir()
    sources = {
        "truncated": whole[: len(whole) // 2],
        "headless": whole[100:],
        "head": whole[:30],
        "empty": b"",
        "no image": b"no image at all",
        "png": saved(noise(60, 40), "PNG")[:2000],
    }
    for name, content in sources.items():
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / name for name in (*sources, "missing", "folder.jpg")]
    for source in (*sources.values(), *files):
        said = []
        for reading in READINGS:
            with pytest.raises(ImageError) as error:
                read_pixels(source, SQUASH, reading=reading)
            said.append(str(error.value))
        assert said[0] == said[1]


def test_another_size_is_refused_where_it_is_to_be():
    for reading in READINGS:
        with pytest.raises(ValueError, match="With resize=None images must be 32x32"):
            read_pixels(saved(waves(640, 480)), SQUASH, None, reading)
    assert levels_apart(saved(noise(32, 32)), SQUASH, None).max() == 0


def test_another_reading_is_refused():
    sentence = 'reading must be "published" or "fast", got \'quick\''
    with pytest.raises(ValueError, match=sentence):
        read_pixels(saved(waves(40, 40)), SQUASH, reading="quick")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=sentence):
        small_encoder(reading="quick")
    with pytest.raises(ValueError, match=sentence):
        RobustPerceptualDistance("tiny", reading="quick")  # type: ignore[arg-type]


def test_what_was_opened_belongs_to_the_caller(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(waves(40, 30), orientation=6, comment=b"kept out"))
    for source in (tmp_path / "a.jpg", Image.open(tmp_path / "a.jpg"), waves(40, 30), saved(waves(40, 30), "PNG")):
        image = open_image(source)
        assert not isinstance(image, ImageFile.ImageFile) and image.info == {} and image is not source
        before = image.getpixel((0, 0))
        image.putpixel((0, 0), (1, 2, 3))
        assert open_image(source).getpixel((0, 0)) == before


class TestOfAMetric:
    def test_it_is_the_metrics_and_stays_with_it(self, tmp_path):
        metric = RobustPerceptualDistance("tiny", reading="fast")
        (tmp_path / "a.jpg").write_bytes(saved(waves(640, 480, period=9)))
        fast = read_pixels(tmp_path / "a.jpg", metric.encoder.preprocessing, reading="fast")
        assert not torch.equal(fast, RobustPerceptualDistance("tiny").preprocess(tmp_path / "a.jpg"))
        shared = RobustPerceptualDistance(metric.encoder)
        half = RobustPerceptualDistance("tiny", reading="fast").to(torch.bfloat16).in_float32()
        for one in (metric, shared, half, ModelSource("tiny", reading="fast").load()):
            assert torch.equal(one.preprocess(tmp_path / "a.jpg"), fast)
            assert torch.equal(one.gather(tmp_path / "a.jpg")[0], fast)
        assert repr(metric.encoder).splitlines()[1].endswith("resize='published', reading='fast'")
        assert RobustPerceptualDistance(metric.encoder, reading="published").encoder.reading == "published"

    def test_it_is_said_where_it_is_not_the_published_one(self):
        published, fast = (RobustPerceptualDistance("tiny", reading=reading) for reading in READINGS)
        for say in (identity, identity_of):
            assert "reading" not in say(published)
            assert say(fast) == say(published) | {"reading": "fast"}

    def test_it_is_saved_with_the_model(self, tmp_path):
        usual, fast = small_encoder(), small_encoder(reading="fast")
        assert "reading" not in (save_encoder(usual, tmp_path / "usual") / "config.json").read_text()
        folder = save_encoder(fast, tmp_path / "fast")
        for path in (folder, folder / "model.safetensors"):
            assert load_encoder(path).reading == "fast"
            assert load_encoder(path, reading="published").reading == "published"
        assert load_encoder(tmp_path / "usual").reading == "published"
        assert load_encoder(tmp_path / "usual", reading="fast").reading == "fast"
        (tmp_path / "usual" / "config.json").replace(folder / "config.json")
        with pytest.raises(ValueError, match=r"says reading None, and .* 'fast': they do not belong together"):
            load_encoder(folder)

    def test_an_index_of_another_reading_is_refused(self, tmp_path):
        save_noise(tmp_path / "photos" / "a.png", 0)
        published, fast = (RobustPerceptualDistance("tiny", reading=reading) for reading in READINGS)
        for own, other in ((published, fast), (fast, published)):
            place = tmp_path / own.encoder.reading
            ImageIndex.build(tmp_path / "photos", own).save(place, format="safetensors")
            assert len(ImageIndex.open(place, own)) == 1
            with pytest.raises(ImageIndexError, match=r"with reading 'fast'"):
                ImageIndex.open(place, other)


def test_the_command_reads_fast_where_it_is_asked_to(run, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(saved(waves(640, 480, period=7 + number)))
    a, b = folder / "0.jpg", folder / "1.jpg"
    found = {}
    for reading in READINGS:
        code, out, _ = run("score", a, b, "--model", "tiny", "--reading", reading, "--json")
        assert code == 0
        found[reading] = json.loads(out)
        metric = RobustPerceptualDistance("tiny", reading=reading)
        assert found[reading]["distance"] == pytest.approx(metric(a, b).item(), abs=1e-6)
    assert found["fast"]["reading"] == "fast" and "reading" not in found["published"]
    assert 0 < abs(found["fast"]["distance"] - found["published"]["distance"]) < 0.05
    _, out, _ = run("score", a, b, "--model", "tiny", "--reading", "fast")
    assert out.rstrip().endswith("resize published, fast reading)")

    index = tmp_path / "photos.index"
    made = ("--reading", "fast", "--resize", "squash")
    assert run("index", "build", folder, index, "--model", "tiny", *made)[0] == 0
    for words in (("search", index, a, "-k", 1, "--json"), ("search", index, a, *made, "-k", 1, "--json")):
        code, out, _ = run(*words)
        told = json.loads(out)
        assert code == 0 and told["hits"][0]["distance"] < 1e-6
        assert (told["reading"], told["resize"]) == ("fast", "squash")  # as the index was made, unless another is named
    code, _, err = run("search", index, a, "--reading", "published")
    assert code == 2 and "with reading 'fast', and this is tiny@" in err and "with reading 'published': open it" in err
    code, _, err = run("search", index, a, "--model", "tiny")
    assert code == 2 and "with resize 'squash', reading 'fast'" in err and "weights" not in err

    code, _, err = run("score", a, b, "--model", "tiny", "--reading", "quick")
    assert code == 2 and "--reading" in err and "published" in err
