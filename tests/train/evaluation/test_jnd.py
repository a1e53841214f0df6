"""Just noticeable differences: average precision by its definition, the format, and the command."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize

from rclip_metric.cli.main import main
from rclip_metric.train.data.jnd import JND_SPLITS, read_jnd
from rclip_metric.train.data.scenes import write_jnd
from rclip_metric.train.evaluation.run import evaluate
from rclip_metric.train.evaluation.tasks.jnd import average_precision, jnd_data, mean_precision
from rclip_metric.train.metrics import load_metric
from rclip_metric.train.metrics.base import DistanceMetric


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bapps")
    write_jnd(folder, per_split=40, quiet=True)
    return folder


def plain(distances, same):
    """The area under the best precision at each recall or beyond, point by point."""
    points = []
    for bar in sorted(set(distances)):
        taken = [share for distance, share in zip(distances, same, strict=True) if distance <= bar]
        points.append((sum(taken) / sum(same), sum(taken) / len(taken)))  # recall, precision
    area, before = 0.0, 0.0
    for recall, _ in points:
        area += (recall - before) * max(precision for other, precision in points if other >= recall)
        before = recall
    return area


@pytest.mark.parametrize("distinct", [1000, 7])
@pytest.mark.parametrize("binary", [True, False])
def test_average_precision_is_its_definition(distinct, binary):
    rng = np.random.default_rng(distinct)
    for _ in range(20):
        distances = (rng.integers(0, distinct, 60) / distinct).tolist()
        same = (rng.integers(0, 2, 60) if binary else rng.integers(0, 4, 60) / 3).tolist()
        assert average_precision(distances, same) == pytest.approx(plain(distances, same), abs=1e-12)


def test_average_precision_is_the_published_number():
    """`score_jnd_dataset` of PerceptualSimilarity (43da2a5, lpips/trainer.py) gives 0.6371592479550482 on these."""
    distances, same = [(37 * i % 50) / 50 for i in range(50)], [(7 * i % 4) / 3 for i in range(50)]
    assert average_precision(distances, same) == pytest.approx(0.6371592479550482, abs=1e-14)


def test_the_ends_of_average_precision():
    assert average_precision([0.1, 0.2, 0.3, 0.4], [1, 1, 0, 0]) == 1
    assert average_precision([0.4, 0.3, 0.2, 0.1], [1, 0, 0, 0]) == 0.25
    assert average_precision([1.0] * 4, [1, 0, 0, 0]) == average_precision([1.0] * 4, [0, 0, 0, 1]) == 0.25  # ties
    with pytest.raises(ValueError, match="nobody calls any of the 2 pairs the same"):
        average_precision([0.1, 0.2], [0.0, 0.0])
    found = mean_precision({"a": ([0.1, 0.2], [1.0, 0.0]), "b": ([0.2, 0.1], [1.0, 0.0])})
    assert found["mean"] == 75 and found["splits"] == {"a": 100, "b": 50}
    assert found["interval_95"][0] < 75 < found["interval_95"][1]


def test_a_distance_that_knows_the_strength_beats_one_that_does_not(scenes):
    def noise(x, y):
        return (x * 1e4).sin().mean((1, 2, 3)) + (y * 1e4).cos().mean((1, 2, 3))

    [known] = evaluate(load_metric("l2", image_size=64), jnd_data(scenes), quiet=True)
    [blind] = evaluate(DistanceMetric(noise, 64, name="noise"), jnd_data(scenes), quiet=True)
    share = 100 * np.mean([pair.same for pair in read_jnd(scenes)])
    assert known["precision"]["mean"] > blind["precision"]["mean"] + 15
    assert blind["precision"]["mean"] == pytest.approx(share, abs=15)  # chance
    assert known["precision"]["mean"] == pytest.approx(
        100 * np.mean([plain(*columns(known, split)) for split in JND_SPLITS]), abs=1e-3
    )
    assert known["data"]["samples"] == 80 and list(known["precision"]["splits"]) == list(JND_SPLITS)


def columns(record, split):
    rows = [row for row in zip(record["keys"], record["distances"], record["same"], strict=True)]
    own = [row for row in rows if row[0].startswith(f"{split}/")]
    return [row[1] for row in own], [row[2] for row in own]


def test_images_are_read_as_the_published_loader_does(scenes):
    data = jnd_data(scenes)
    path = data.pairs[0].files[1]
    expected = pil_to_tensor(resize(Image.open(path), [64, 64], interpolation=InterpolationMode.BILINEAR)) / 255
    torch.testing.assert_close(data.reader(load_metric("l2", image_size=32))(path), expected)


def test_what_is_on_disk_is_checked(scenes, tmp_path):
    pairs = read_jnd(scenes, ["cnn"])
    assert [pair.key for pair in pairs] == [f"cnn/{index:06d}" for index in range(40)]
    assert pairs[3].files[0] == scenes / "jnd" / "val" / "cnn" / "p0" / "000003.png"
    assert {round(3 * pair.same) for pair in pairs} == {0, 1, 2, 3}
    assert read_jnd(scenes / "jnd", ["cnn"]) == read_jnd(scenes / "jnd" / "val", ["cnn"]) == pairs
    broken = tmp_path / "broken"
    shutil.copytree(scenes, broken)
    (broken / "jnd" / "val" / "cnn" / "p1" / "000007.png").unlink()
    with pytest.raises(ValueError, match="none for '000007'"):
        read_jnd(broken)
    np.save(broken / "jnd" / "val" / "traditional" / "same" / "000000.npy", np.array([1.5]))
    with pytest.raises(ValueError, match=r"holds 1\.5, expected the share of people who call the two the same"):
        read_jnd(broken, ["traditional"])
    for splits, said in ((["color"], "unknown split 'color'"), (["cnn", "cnn"], "each once")):
        with pytest.raises(ValueError, match=said):
            read_jnd(scenes, splits)
    with pytest.raises(ValueError, match="holds no JND part of BAPPS"):
        read_jnd(tmp_path)


def test_the_command_prints_writes_and_finds_its_record(scenes, tmp_path, capsys):
    command = ["eval", "jnd", "--data", str(scenes), "--model", "l2", "tiny", "--out", str(tmp_path), "--quiet"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "| model | data | pairs | traditional | cnn | mAP |" in printed and "| l2 | scenes-jnd | 80 |" in printed
    names = sorted(path.name for path in tmp_path.glob("*.json"))
    assert names == ["l2__scenes-jnd-jnd__clean.json", "tiny-squash__scenes-jnd-jnd__clean.json"]
    written = [(tmp_path / name).stat().st_mtime_ns for name in names]
    assert main(command) == 0 and capsys.readouterr().out == printed
    assert [(tmp_path / name).stat().st_mtime_ns for name in names] == written
    record = json.loads((tmp_path / names[0]).read_text())
    assert record["data"]["judges"] == "the scenes' own rule" and record["data"]["interpolation"] == "bilinear"
    assert main(["eval", "jnd", "--data", str(scenes), "--check", "--quiet"]) == 0
    assert "all 160 images can be read" in capsys.readouterr().out
    assert main(["eval", "jnd", "--data", str(tmp_path / "nowhere"), "--model", "l2"]) == 2
    assert "holds no JND part" in capsys.readouterr().err


def test_scenes_can_be_drawn_by_the_command(tmp_path, capsys):
    few = ["--images", "1", "--triplets", "0,0,1", "--pool", "1", "--queries", "1", "--quiet"]
    assert main(["train", "scenes", "--out", str(tmp_path), *few, "--bapps", "1", "--jnd", "2"]) == 0
    assert "2 pairs in each of two splits" in capsys.readouterr().out
    assert len(read_jnd(tmp_path / "bapps")) == 4 and (tmp_path / "bapps" / "2afc").is_dir()
