"""The command diff as people run it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric import RobustPerceptualDistance, load_image
from rclip_metric.weights import save_encoder

from support.encoders import small_encoder
from support.images import save_noise


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "small"
    save_encoder(small_encoder(spread=True, layer_scale=0.5, name="small"), folder)
    return str(folder)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Noise, and the same with a black square in columns 60 to 79, rows 16 to 35 of 96x64."""
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    pixels = np.random.default_rng(0).integers(100, 156, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(one)
    pixels[16:36, 60:80] = 0
    Image.fromarray(pixels).save(other)
    return one, other


def test_distance_and_place(pair, model, run):
    code, out, err = run("diff", *pair, "--model", model)
    assert (code, err) == (0, "")
    score = run("score", *pair, "--model", model)[1]
    first, second = out.splitlines()
    assert first == score.strip()
    words = second.replace(",", "").replace(":", "").split()
    column, row = int(words[4]), int(words[6])
    assert second.startswith("differs most at column ") and second.endswith(" on average") and "of 96x64" in second
    assert 55 <= column < 85 and 10 <= row < 42


def test_the_numbers_are_the_metrics(pair, model, run, tmp_path):
    numbers = tmp_path / "map.npy"
    code, out, _ = run("diff", *pair, "--model", model, "--out", numbers, "--json", "--method", "gradient")
    record = json.loads(out)
    metric = RobustPerceptualDistance(model)
    wanted = metric.difference_map(*(load_image(path)[None] for path in pair), method="gradient")[0]
    assert code == 0 and torch.allclose(torch.from_numpy(np.load(numbers)), wanted, atol=1e-6)
    assert (record["height"], record["width"], record["method"]) == (64, 96, "gradient")
    assert record["peak"]["value"] == pytest.approx(wanted.max().item(), rel=1e-4)
    assert record["mean"] == pytest.approx(wanted.mean().item(), rel=1e-4)
    assert record["model"].startswith("small") and "settings" in record


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture(pair, model, run, tmp_path, suffix):
    alone, beside = tmp_path / f"alone{suffix}", tmp_path / f"beside{suffix}"
    assert run("diff", *pair, "--model", model, "--out", alone, "--scale", "0.5")[0] == 0
    assert run("diff", *pair, "--model", model, "--out", beside, "--side-by-side")[0] == 0
    if suffix == ".png":
        with Image.open(beside) as large, Image.open(alone) as small:
            assert large.width > 2 * small.width and large.height > 200
            colours = np.asarray(small.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 500
    else:
        assert beside.read_text().startswith("<?xml")
    before = beside.read_bytes()
    assert run("diff", *pair, "--model", model, "--out", beside, "--side-by-side")[0] == 0
    if suffix == ".png":
        assert beside.read_bytes() == before


def test_the_same_image_and_two_sizes(pair, model, run, tmp_path):
    assert run("diff", pair[0], pair[0], "--model", model)[1].splitlines()[1] == "differs nowhere"
    small = save_noise(tmp_path / "small.png", 3)
    assert run("diff", pair[0], small, "--model", model)[0] == 0
    code, out, err = run("diff", pair[0], small, "--model", model, "--method", "gradient")
    assert (code, out) == (2, "")
    assert err.startswith("rclip-metric: the images must have one size for method 'gradient', got 64x96 and ")


def test_large_images_are_compared_smaller(model, run, tmp_path):
    large = tmp_path / "large.jpg"
    Image.new("RGB", (3000, 1500), "gray").save(large)
    code, out, err = run("diff", large, large, "--model", model, "--json")
    assert code == 0 and (json.loads(out)["width"], json.loads(out)["height"]) == (1536, 768)
    assert f"{large} is compared at 1536x768 pixels" in err


def test_bad_input_is_one_sentence(pair, model, run, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    before = pair[0].read_bytes()
    for words, message in (
        ((tmp_path, pair[1]), f"{tmp_path} is a folder, expected an image"),
        ((pair[0], tmp_path / "none.png"), f"{tmp_path / 'none.png'} is no file, expected an image"),
        ((*pair, "--out", tmp_path / "map.bmp"), "map.bmp must end in .jpg, .pdf, .png, .svg (a picture) or .npy"),
        ((*pair, "--out", tmp_path / "none" / "map.png"), f"there is no folder {tmp_path / 'none'} for map.png"),
        ((*pair, "--out", pair[0]), f"{pair[0]} is one of the images that are read: write to another file"),
        ((*pair, "--side-by-side"), "--side-by-side is about the picture: say where it goes with --out map.png"),
        ((pair[0], broken), "broken.png"),
    ):
        code, out, err = run("diff", *words, "--model", model)
        assert code == 2 and message in err and out == "" and len(err.splitlines()) == 1
    assert pair[0].read_bytes() == before
