"""The table of images made from embeddings: who made them, who judged them, and how sure the means are."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric.cli.main import main
from rclip_metric.images import load_image
from rclip_metric.train.evaluation import RunSettings, Session
from rclip_metric.train.evaluation.results.bootstrap import mean_interval, summary
from rclip_metric.train.evaluation.results.heat_map import heat_map
from rclip_metric.train.evaluation.tasks.inversion import InversionData, inversion_images, inversion_table, verdicts
from rclip_metric.train.inversion import InversionSettings, grey, high_frequency, invert, total_variation
from rclip_metric.train.metrics import load_metric
from rclip_metric.train.runs.seeds import sample_seed
from rclip_metric.weights import save_encoder

from support.encoders import VIT, small_encoder
from support.images import blotches, save_noise

FEW = InversionSettings(steps=3)
RUN = RunSettings(batch_size=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        save_encoder(small_encoder(VIT, name=name, seed=seed, spread=True), folder / name)
    return [str(folder / name) for name in ("one", "two")]


@pytest.fixture(scope="module")
def metrics(models):
    return [*map(load_metric, models), load_metric("ssim", image_size=32)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number, pixels in enumerate(blotches(3, (32, 32))):
        levels = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(folder / f"{number}.png")
    return folder


def test_each_number_is_what_one_image_gives(metrics, photographs, tmp_path):
    data = InversionData("few", inversion_images(photographs), metrics, FEW, pictures=tmp_path / "pictures")
    record = data.record(Session(tmp_path / "out", quiet=True), metrics[0], RUN)
    assert record["keys"] == ["0.png", "1.png", "2.png"] and list(record["judged"]) == ["one", "two", "ssim"]
    for place, image in enumerate(data.images):
        original = load_image(image.path)[None]
        start = grey(32, [sample_seed(0, image.key)])
        found = invert(metrics[0].embed, metrics[0].fix(original), start=start, ball=FEW.ball(32), steps=3)
        assert record["judged"]["one"][place] == pytest.approx(found.similarities.item(), abs=1e-3)
        for metric in metrics[1:]:
            apart = metric.similarities(found.images, metric.fix(original)[:, None]).item()
            expected = apart if metric.name == "two" else 1 + apart
            assert record["judged"][metric.name][place] == pytest.approx(expected, abs=2e-3)
        assert record["made"]["total_variation"][place] == pytest.approx(total_variation(found.images).item(), abs=1e-3)
        assert record["original"]["high_frequency"][place] == pytest.approx(high_frequency(original).item(), abs=1e-5)
        shown = load_image(data.picture(metrics[0], image))
        assert (shown - found.images[0]).abs().max() < 0.02
    found = record["means"]["judged"]["two"]
    assert found["mean"] == pytest.approx(np.mean(record["judged"]["two"]), abs=1e-6)
    assert found["interval_95"][0] <= found["mean"] <= found["interval_95"][1]


def test_results_are_taken_up_and_others_are_not(metrics, photographs, tmp_path):
    data = InversionData("few", inversion_images(photographs), metrics, FEW)
    session = Session(tmp_path, quiet=True)
    first = data.record(session, metrics[0], RUN)
    [file] = tmp_path.glob("*.json")
    before = file.stat().st_mtime_ns
    again = data.record(session, metrics[0], RunSettings(batch_size=1))  # other sizes make no other result
    assert {**again, "checksum": ""} == {**first, "checksum": ""} and file.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds a result of other data or settings"):
        InversionData("few", data.images, metrics[:2], FEW).record(session, metrics[0], RUN)
    data.record(session, metrics[1], RUN)
    InversionData("few", data.images, metrics, InversionSettings(steps=4)).record(session, metrics[0], RUN)
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_the_table_and_the_picture(metrics, photographs, tmp_path):
    data = InversionData("few", inversion_images(photographs), metrics, FEW)
    records = [data.record(Session(quiet=True), metric, RUN) for metric in metrics[:2]]
    head, _, one, two, originals = inversion_table(records).splitlines()
    assert head == "| made by | one | two | ssim | total variation | high frequency |"
    assert one.startswith("| one") and two.startswith("| two") and originals.startswith("| originals, as one sees them")
    found = records[1]["means"]["judged"]["one"]
    assert f"| {found['mean']:.2f} ({found['interval_95'][0]:.2f} - {found['interval_95'][1]:.2f}) |" in two
    heat_map(records, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 300 and len(picture.convert("RGB").getcolors(1 << 20)) > 100
    with pytest.raises(ValueError, match="names no format for a plot"):
        heat_map(records, tmp_path / "map.jpeg")


def test_a_judge_sees_its_own_size():
    black, white = torch.zeros(2, 3, 24, 24), torch.ones(2, 3, 24, 24)
    for side in (16, 24, 48):
        found = verdicts(load_metric("l1", image_size=side), black, 0.25 * white)
        assert torch.allclose(found, torch.tensor(0.75, dtype=torch.float64), atol=1e-6)


def test_an_interval_over_values_of_any_range():
    values = np.random.default_rng(0).random(40)
    low, high = summary(values.tolist(), ["test"] * 40, macro=False)["interval_95"]
    assert mean_interval(values.tolist()) == pytest.approx((low / 100, high / 100), abs=1e-4)
    shifted = mean_interval((3 * values - 2).tolist())
    assert shifted == pytest.approx((3 * low / 100 - 2, 3 * high / 100 - 2), abs=0.01)


def test_the_command(models, photographs, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["eval", "inversion", "--data", str(photographs), "--model", *models, "--judge", "ssim"]
    words += ["--steps", "2", "--out", str(out), "--plot", str(tmp_path / "map.png"), "--quiet"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "| made by | one | two | ssim | total variation | high frequency |"
    assert len(list(out.glob("*.json"))) == 2 and (tmp_path / "map.png").exists()
    record = json.loads(next(out.glob("*.json")).read_text())
    assert record["judges"][2]["preprocessing"]["crop"] == 32  # SSIM at the size of the images
    assert main(words) == 0 and capsys.readouterr().out == said

    def refused(*changed):
        assert main(["eval", "inversion", *map(str, changed), "--quiet"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    one = ["--data", photographs, "--model", models[0]]
    assert "steps must be at least 1, and it is 0" in refused(*one, "--steps", "0")
    assert "ssim has no embeddings to make images from: let it judge" in refused(
        "--data", photographs, "--model", "ssim"
    )
    assert "two of the metrics are called one" in refused(*one, f"{models[0]}/.")
    (tmp_path / "empty").mkdir()
    assert "empty holds no images" in refused("--data", tmp_path / "empty", "--model", models[0])
    assert "needs --model" in refused("--data", photographs)


def test_an_image_that_cannot_be_read_is_named(models, tmp_path, capsys):
    folder = tmp_path / "pictures"
    save_noise(folder / "a.png", 0)
    (folder / "b.png").write_bytes(b"no picture")
    words = ["eval", "inversion", "--data", str(folder), "--model", models[0], "--steps", "2", "--quiet"]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "1 images could not be read and were left out; the first: image b.png" in said.err and "| one" in said.out
    (folder / "a.png").write_bytes(b"no picture")
    assert main(words) == 2
    assert "none of the 2 images of pictures could be read" in capsys.readouterr().err
