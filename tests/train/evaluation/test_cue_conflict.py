"""Shape or texture: images whose two cues are two numbers, and metrics that read one of them or both."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric.train.commands.evaluate.main import main
from rclip_metric.train.data.cue_conflict import conflict_triplets, read_conflicts
from rclip_metric.train.evaluation.attack import RunSettings
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.tasks.cue_conflict import CueConflictData, evaluate_cue_conflict
from rclip_metric.train.metrics.base import DistanceMetric, EmbeddingMetric

CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shapes and two textures of each of four classes: the upper half's level says the shape, the lower's the
    texture."""
    place = tmp_path_factory.mktemp("cues")
    for (a, one), (b, other) in itertools.product(itertools.product(range(4), (1, 2)), repeat=2):
        values = np.full((8, 8, 3), 128, np.uint8)
        values[:4] = 20 + 60 * a + one
        values[4:] = 20 + 60 * b + other
        (place / CLASSES[a]).mkdir(exist_ok=True)
        Image.fromarray(values).save(place / CLASSES[a] / f"{CLASSES[a]}{one}-{CLASSES[b]}{other}.png")
    return place


def one_hot(level):
    """The class of a level: (N,) -> (N, 4)."""
    return torch.nn.functional.one_hot(((level * 255 - 20) / 60).long(), 4).float()


def cues(shape, texture):
    """Embeds the two classes with these weights."""
    return lambda images: torch.cat(
        [shape * one_hot(images[:, 0, 0, 0]), texture * one_hot(images[:, 0, 7, 0]), 1e-3 * images[:, 0, :1, 0]], 1
    )


def data_of(folder, draws=3, seed=0, limit=None):
    images = read_conflicts(folder)
    triplets, left_out = conflict_triplets(images, draws, seed)
    assert not left_out
    return CueConflictData("cues", triplets[:limit], limit)


def share(metric, data, **run):
    (record,) = evaluate_cue_conflict(metric, data, RunSettings(resample="images", **run), quiet=True)
    return record


def test_names_are_read_wherever_they_stand(folder, tmp_path):
    images = read_conflicts(folder)
    assert len(images) == 64
    first = images[0]
    assert (first.key, first.shape, first.texture) == ("ant/ant1-ant1.png", ("ant", "1"), ("ant", "1"))
    rows = ["class,file", "ant1-bee12,a.png", "traffic_light3-bee1,b.png", "plain,c.png"]
    for row in rows[1:]:
        Image.new("RGB", (8, 8)).save(tmp_path / row.split(",")[1])
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    named = read_conflicts(tmp_path, tmp_path / "index.csv")
    assert [(i.key, *i.shape, *i.texture) for i in named] == [
        ("a.png", "ant", "1", "bee", "12"), ("b.png", "traffic_light", "3", "bee", "1"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"no image below .* has a file called like airplane1-bicycle2"):
        read_conflicts(tmp_path)


def test_the_options_share_one_cue_each_and_are_of_one_class_in_the_other(folder):
    images = read_conflicts(folder)
    triplets, _ = conflict_triplets(images, draws=20, seed=1)
    assert len(triplets) == 48 * 20 == len({t.key for t in triplets})  # 16 of the 64 images are of one class
    assert len({t.files for t in triplets if t.reference == triplets[0].reference}) > 5
    for t in triplets:
        assert t.shape.shape.name == t.reference.shape.name != t.reference.texture.name == t.texture.texture.name
        third = t.shape.texture.name
        assert third == t.texture.shape.name not in (t.reference.shape.name, t.reference.texture.name)
        assert t.shape.shape.number != t.reference.shape.number
        assert t.texture.texture.number != t.reference.texture.number
    again, other = conflict_triplets(images, 20, 1)[0], conflict_triplets(images, 20, 2)[0]
    assert again == triplets != other
    three = [image for image in images if "dog" not in image.key]
    assert conflict_triplets(three, 1)[1] == [] and len(conflict_triplets(three, 1)[0]) == 24
    lonely = [image for image in three if "cat" not in image.key]
    with pytest.raises(ValueError, match="none of the 16 images can be compared"):
        conflict_triplets(lonely, 1)
    with pytest.raises(ValueError, match="expected 1 or more"):
        conflict_triplets(images, 0)


@pytest.mark.parametrize(("weights", "expected"), [((1.0, 0.5), 100), ((0.5, 1.0), 0)])
def test_a_metric_of_one_cue_decides_for_it(folder, weights, expected):
    record = share(EmbeddingMetric(cues(*weights), 8, name="cues"), data_of(folder), batch_size=10)
    assert record["clean"]["accuracy"] == expected and record["clean"]["ties"] == 0
    assert record["clean"]["interval_95"] == [expected, expected]
    assert record["task"] == "cue-conflict" and (record["data"]["images"], record["data"]["samples"]) == (48, 144)
    assert {name: part["clean"]["samples"] for name, part in record["splits"].items()} == dict.fromkeys(CLASSES, 36)


def test_ties_count_one_half_and_are_told(folder):
    def distance(one, other):
        return (one_hot(one[:, 0, 0, 0]) != one_hot(other[:, 0, 0, 0])).any(1) * 0.5 + 0.0 * one.sum((1, 2, 3))

    def nothing(one, other):
        return 0.0 * (one - other).sum((1, 2, 3))

    assert share(DistanceMetric(distance, 8, name="shape"), data_of(folder))["clean"]["accuracy"] == 100
    record = share(DistanceMetric(nothing, 8, name="nothing"), data_of(folder))
    assert (record["clean"]["accuracy"], record["clean"]["ties"]) == (50, 144)
    assert record["warnings"] == ["144 of 144 samples are ties: the metric preferred neither option."]


def test_every_image_is_embedded_once_and_pairs_give_the_same(folder):
    seen = []

    def embed(images):
        seen.append(len(images))
        return torch.cat([images[:, 0, :1, 0], 0.8 * images[:, 0, 7:, 0], torch.ones(len(images), 1)], 1)

    def distance(one, other):
        return 1 - torch.nn.functional.cosine_similarity(embed(one), embed(other))

    data = data_of(folder, draws=8)
    record = share(EmbeddingMetric(embed, 8, name="levels"), data, batch_size=7)
    shown = {path for triplet in data.triplets for path in triplet.files}
    assert sum(seen) == len(shown)
    pairs = share(DistanceMetric(distance, 8, name="levels"), data, batch_size=7)
    assert 0 < record["clean"]["accuracy"] < 100
    assert pairs["clean"]["accuracy"] == pytest.approx(record["clean"]["accuracy"], abs=1.0)  # rounding of near ties
    assert share(EmbeddingMetric(embed, 8, name="levels"), data, batch_size=48)["clean"] == record["clean"]


def test_a_broken_image_takes_its_triplets_with_it(folder, tmp_path):
    for path in folder.rglob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "ant1-bee1.png").write_bytes(b"nothing")
    record = share(EmbeddingMetric(cues(1.0, 0.5), 8, name="cues"), data_of(tmp_path))
    told = record["data"]["unreadable"]
    assert len(told) + record["data"]["samples"] == 144 and record["clean"]["accuracy"] == 100
    assert len(told) >= 3 and told[0].startswith("triplet ant1-bee1.png#0: cannot read")
    assert not any("ant1-bee1" in row.key for row in unpack(record))


def test_the_command_and_its_table(folder, tmp_path, capsys):
    command = ["eval", "cue-conflict", "--data", str(folder), "--model", "psnr", "--draws", "2", "--quiet"]
    assert main([*command, "--out", str(tmp_path), "--name", "drawn"]) == 0
    shown = capsys.readouterr().out
    assert (
        "| psnr | drawn share for shape | 96 |" in shown
        and "intervals over images" in shown
        and "| split | samples |" in shown
    )
    (file,) = tmp_path.glob("*.json")
    assert file.name == "psnr__drawn-share_for_shape__clean-images.json"
    assert main(["eval", "table", str(tmp_path)]) == 0
    assert f"{json.loads(file.read_text())['clean']['accuracy']:.1f} (" in capsys.readouterr().out
    assert main([*command, "--limit", "5"]) == 0
    assert "| drawn" not in capsys.readouterr().out
    assert main([*command[:2], "--data", str(tmp_path), "--model", "psnr"]) == 2
    assert "no image files" in capsys.readouterr().err
