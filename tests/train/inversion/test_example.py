"""The example that measures what robust models keep of an image: what it writes, and that it goes on."""

import json

import pytest
from PIL import Image

from rclip_metric.train.evaluation.tasks.inversion import InversionData, inversion_images
from rclip_metric.train.inversion import InversionSettings
from rclip_metric.train.metrics import load_metric

from support.images import save_noise
from support.programs import EXAMPLES, load_example


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return load_example("inversion")


def test_scenes_and_texts(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(example, "TEXTS", example.TEXTS[:2])
    out = tmp_path / "out"
    words = ["--only", "scenes", "texts", "--scenes", "2", "--steps", "2", "--out", str(out)]
    margins = example.main(words)
    page = capsys.readouterr().out
    assert page.startswith((out / "summary.md").read_text()) and page.count("| scenes |") == 5
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*__scenes-inversion__*.json"))]
    clean, robust = records  # tiny-clean, tiny
    differences = [x - y for x, y in zip(robust["judged"]["tiny-clean"], clean["judged"]["tiny"], strict=True)]
    found = margins["scenes"]["cosine, each judged by the other model"]
    assert found["mean"] == pytest.approx(sum(differences) / 2, abs=1e-5)
    assert found["interval_95"][0] <= found["mean"] <= found["interval_95"][1]
    texts = json.loads((out / "texts.json").read_text())
    assert len(texts["found"][0]["judged"]["tiny"]) == 2 and "less total variation" in margins["texts"]
    assert example.main(words) == margins  # from what is there


def test_the_sheet_shows_what_was_made(example, tmp_path):
    images = tmp_path / "images"
    for number in range(2):
        save_noise(images / f"{number}.png", number, (70, 90))
    pair = [load_metric(name) for name in ("tiny", "tiny-clean")]
    few = InversionSettings(steps=2)
    data = InversionData("two", inversion_images(images), example.with_ssim(pair), few, pictures=tmp_path / "made")
    table, margins = example.judged(data, tmp_path / "out")
    assert table.count("\n") == 4 and set(margins) > {"SSIM to the original", "less high frequency"}
    example.draw(data, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet, Image.open(data.picture(pair[0], data.images[1])) as made:
        assert sheet.mode == "P" and sheet.width == 8 + 3 * (example.SIDE + 8)
        left, top = 8 + example.SIDE + 8, 8 + 36 + example.SIDE + 26
        shown = sheet.convert("RGB").crop((left, top, left + example.SIDE, top + example.SIDE)).resize(made.size)
        apart = [abs(a - b) for a, b in zip(shown.tobytes(), made.convert("RGB").tobytes(), strict=True)]
    assert sum(apart) / len(apart) < 25  # of 255: there are 256 colours, and a resize


def test_the_scale_of_a_judge(example, tmp_path):
    for number in range(3):
        save_noise(tmp_path / f"{number}.png", number)
    tiny = load_metric("tiny")
    data = InversionData("three", inversion_images(tmp_path), [tiny])
    unit = [tiny.fix(data.reader(tiny)(image.path)[None])[0] for image in data.images]
    expected = sum((unit[i] @ unit[j]).item() for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    assert example.level(tiny, data) == pytest.approx(expected, abs=1e-5)
    assert example.scaled([0.6, 1.0, 0.2], 0.6) == pytest.approx([0, 1, -1])
