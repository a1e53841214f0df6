"""Distinct images go through a metric once, and a number does not depend on the order of the work."""

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.triplets import TripletFiles
from rclip_metric.train.evaluation import image_set
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, evaluate_two_afc
from rclip_metric.train.metrics.base import DistanceMetric, EmbeddingMetric

CPU = torch.device("cpu")
APGD = (AttackSettings(LpBall("linf", 2 / 255), steps=2), AttackSettings(LpBall("l2", 0.1), steps=2))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(10):
        Image.fromarray(generator.integers(0, 256, (9 + index, 20, 3), np.uint8)).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


def triplets(paths, count=40):
    generator = np.random.default_rng(1)
    rows = [generator.choice(len(paths), 3, replace=False) for _ in range(count)]
    return [TripletFiles(str(n), *(paths[i] for i in row), n % 2, "test") for n, row in enumerate(rows)]


class Counted:
    """A projection of the pixels that keeps how many images it was given at a time."""

    def __init__(self):
        self.seen = []
        self.weights = torch.randn(3 * 8 * 8, 6, generator=torch.Generator().manual_seed(0))

    def __call__(self, images):
        self.seen.append(len(images))
        return images.flatten(1) @ self.weights


def evaluate(metric, rows, attacks=(), **settings):
    return evaluate_two_afc(metric, TwoAfcData("few", "test", rows), attacks, RunSettings(**settings), quiet=True)


@pytest.mark.parametrize("settings", [{"batch_size": 7}, {"batch_size": 40, "chunk_size": 3}], ids=str)
def test_forty_triplets_over_ten_images_are_ten_passes(paths, settings):
    counted = Counted()
    [record] = evaluate(EmbeddingMetric(counted, 8, name="counted"), triplets(paths), **settings)
    assert sum(counted.seen) == record["passes"] == 10 and record["data"]["images"] == 10
    assert max(counted.seen) <= settings.get("chunk_size", 10)
    images = [[Counted()(torch.stack([metric_pixels(path)]))[0] for path in files] for files in files_of(paths)]
    for row, (reference, left, right), triplet in zip(unpack(record), images, triplets(paths), strict=True):
        near = [torch.cosine_similarity(reference, other, dim=0) for other in (left, right)]
        sign = 1 if triplet.label else -1
        assert row.margin == pytest.approx(float(sign * (near[1] - near[0])), abs=1e-5)


def metric_pixels(path):
    return EmbeddingMetric(Counted(), 8, name="any").preprocess(path)


def files_of(paths):
    return [(row.reference, row.left, row.right) for row in triplets(paths)]


def test_under_attack_the_options_are_those_of_the_clean_pass(paths):
    counted = Counted()
    records = evaluate(EmbeddingMetric(counted, 8, name="counted"), triplets(paths), APGD, batch_size=11)
    clean = evaluate(EmbeddingMetric(Counted(), 8, name="counted"), triplets(paths))[0]
    assert all(record["clean"] == clean["clean"] for record in records)
    right = sum(row.clean for row in unpack(clean))
    # Every loss needs the reference alone: one pass per image, the start and each step at most, and the last look.
    assert 10 + 2 * right <= sum(counted.seen) <= 10 + 2 * right * (1 + 2 + 1)
    assert all(record["passes"] > 10 for record in records)


def test_a_number_does_not_depend_on_the_order_of_the_work(paths):
    rows = triplets(paths)
    blocks = [[path for row in rows[i : i + 8] for path in (row.reference, row.left, row.right)] for i in (0, 8, 16)]
    metric = EmbeddingMetric(Counted(), 8, name="counted")

    def made():
        return ImageSet(blocks, metric.preprocess, CPU, RunSettings(chunk_size=4))

    forwards, backwards = made(), made()
    first = [forwards.kept(metric, [block]) for block in blocks]
    last = [backwards.kept(metric, [block]) for block in reversed(blocks)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(last), strict=True))  # to the last bit
    assert forwards.passes == backwards.passes == len({path for block in blocks for path in block})


def test_memory_is_bounded_and_what_was_dropped_is_made_again(paths, monkeypatch):
    metric = EmbeddingMetric(Counted(), 8, name="counted")
    images = ImageSet([paths], metric.preprocess, CPU, RunSettings(chunk_size=2))
    before = images.kept(metric, [paths])
    monkeypatch.setattr(image_set, "BUDGET", 4 * 6 * 4)  # two groups of two embeddings of six numbers
    small = ImageSet([paths], metric.preprocess, CPU, RunSettings(chunk_size=2))
    assert torch.equal(small.kept(metric, [paths]), before) and small.passes == 10
    assert sorted(len(groups) for groups in small._held.values()) == [1, 2]  # a group of pixels, two of embeddings
    small.kept(metric, [paths[-4:]])
    assert small.passes == 10  # the last two groups are there
    assert torch.equal(small.kept(metric, [paths]), before) and small.passes > 10


def test_a_distance_compares_the_images_of_every_triplet(paths):
    seen = []

    def distance(x, y):
        seen.append(len(x))
        return (x - y).square().flatten(1).mean(1)

    metric = DistanceMetric(distance, 8, name="mse")
    [record] = evaluate(metric, triplets(paths), chunk_size=6)
    assert sum(seen) == 2 * 40 and record["passes"] == 3 * 40
    for row, files, triplet in zip(unpack(record), files_of(paths), triplets(paths), strict=True):
        reference, left, right = (metric.preprocess(path) for path in files)
        nearer = int((reference - right).square().mean() < (reference - left).square().mean())
        assert row.clean == float(nearer == triplet.label)


def test_what_cannot_be_read_is_said_once_and_left_out(paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    metric, calls = EmbeddingMetric(Counted(), 8, name="counted"), []

    def load(path):
        calls.append(path)
        return metric.preprocess(path)

    images = ImageSet([[*paths, broken], [broken]], load, CPU, RunSettings(chunk_size=4))
    for _ in range(2):
        problems = images.problems(metric, [*paths, broken])
        assert list(problems) == [broken] and str(broken) in problems[broken]
    assert calls.count(broken) == 1 and len(calls) == 11 and images.passes == 10
    assert not images.kept(metric, [paths[:2]]).requires_grad
