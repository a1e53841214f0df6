"""Triplets to look at: the evaluation's own outcomes, and images that say what they should."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric import RobustPerceptualDistance
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.benchmark.examples import example_triplets
from rclip_metric.train.data.triplets import TripletFiles, read_nights
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, at_equal_steps, evaluate_two_afc
from rclip_metric.train.metrics.base import DistanceMetric, EncoderMetric

from support.scenes import small_scenes

LINF, L2 = LpBall("linf", 4 / 255), LpBall("l2", 1.0)
ATTACKS = (AttackSettings(LINF, steps=6), AttackSettings(L2, steps=6))
RUN = RunSettings(batch_size=12)


@pytest.fixture(scope="module")
def triplets(tmp_path_factory):
    return read_nights(small_scenes(tmp_path_factory.mktemp("scenes"), (0, 0, 24)) / "nights")


@pytest.fixture(scope="module")
def metric():
    return EncoderMetric(RobustPerceptualDistance("tiny-clean"))


@pytest.fixture(scope="module")
def examples(metric, triplets):
    return [example_triplets(metric, triplets, attack, RUN) for attack in ATTACKS]


def pixels(uri):
    """(H, W, 3) in 0 ... 255."""
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def test_chosen_are_at_equal_steps():
    assert at_equal_steps(list(range(10)), 3) == [0, 3, 6]
    assert at_equal_steps(list(range(10)), 10) == list(range(10))
    assert at_equal_steps([1, 2], 5) == [1, 2] and at_equal_steps([], 3) == [] and at_equal_steps([1, 2], 0) == []


def test_outcomes_are_those_of_the_evaluation(metric, triplets, examples):
    records = evaluate_two_afc(metric, TwoAfcData("scenes", "test", triplets), ATTACKS, RUN, quiet=True)
    for record, found in zip(records, examples, strict=True):
        rows = unpack(record)
        assert [row.key for row in rows] == [example["key"] for example in found]
        for row, triplet, example in zip(rows, triplets, found, strict=True):
            assert (example["right_before"], example["right_after"]) == (row.clean == 1.0, row.robust == 1.0)
            sign = 1 if triplet.label else -1  # the margin is by how much the wrong one is further away
            for distances, margin in ((example["before"], row.margin), (example["after"], row.robust_margin)):
                assert sign * (distances[0] - distances[1]) == pytest.approx(margin, abs=1e-5)
    outcomes = {(example["right_before"], example["right_after"]) for found in examples for example in found}
    assert outcomes == {(True, True), (True, False), (False, False)}


def test_a_few_have_the_outcome_that_they_have_among_all(metric, triplets, examples):
    few = at_equal_steps(triplets, 5)
    whole = {example["key"]: example for example in examples[1]}
    for example in example_triplets(metric, few, ATTACKS[1], RunSettings(chunk_size=2)):
        assert example["right_after"] == whole[example["key"]]["right_after"]
        assert example["after"] == pytest.approx(whole[example["key"]]["after"], abs=1e-4)


def test_distances_are_the_metrics_own(metric, triplets, examples):
    for triplet, example in zip(triplets[:4], examples[0], strict=False):
        reference, left, right = (metric.preprocess(p)[None] for p in (triplet.reference, triplet.left, triplet.right))
        distances = [metric.metric(reference, other).item() ** 2 for other in (left, right)]
        assert example["before"] == pytest.approx(distances, abs=1e-6)


def test_what_is_wrong_already_stays_as_it_is(metric, triplets, examples):
    wrong = [(t, e) for t, e in zip(triplets, examples[0], strict=True) if not e["right_before"]]
    assert wrong
    for triplet, example in wrong:
        assert example["was_attacked"] is False and example["after"] == example["before"]
        assert example["amplification"] is None and (pixels(example["perturbation"]) == 128).all()
        clean = (metric.preprocess(triplet.reference) * 255).round().permute(1, 2, 0).numpy()
        assert np.array_equal(pixels(example["attacked"]), clean)


def test_images_show_what_was_done(metric, triplets, examples):
    for attack, found in zip(ATTACKS, examples, strict=True):
        attacked = [pair for pair in zip(triplets, found, strict=True) if pair[1]["was_attacked"]]
        assert attacked
        for triplet, example in attacked:
            clean = (metric.preprocess(triplet.reference) * 255).permute(1, 2, 0).numpy()
            moved = (pixels(example["attacked"]) - clean) / 255
            shown = (pixels(example["perturbation"]) / 255 - 0.5) / example["amplification"]
            # Two roundings to 8 bits, of which the second is shrunk again.
            assert np.abs(moved - shown).max() <= (1 + 1 / example["amplification"]) * 0.5001 / 255
            if attack.ball.norm == "linf":
                assert example["amplification"] == pytest.approx(255 / 8)
            else:  # the largest entry is black or white
                assert {0, 255} & set(np.unique(pixels(example["perturbation"])).tolist())
                assert np.linalg.norm(shown) == pytest.approx(1.0, rel=0.02)
            for name in ("reference", "left", "right"):
                file = np.asarray(Image.open(getattr(triplet, name)).convert("RGB"))
                assert np.array_equal(pixels(example[name]), file)


def test_large_images_are_brought_down_and_noise_keeps_its_strength(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("reference", "left", "right"):
        Image.fromarray(generator.integers(102, 154, (400, 200, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in ("reference", "left", "right")]
    pixel = DistanceMetric(lambda x, y: (x - y).flatten(1).norm(dim=1), 320, name="l2")
    right = torch.stack([pixel.preprocess(file) for file in files])
    nearest = float(pixel.similarities(right[:1], right[None, 1:]).argmax())
    triplet = TripletFiles("one", *files, nearest, "test")
    [example] = example_triplets(pixel, [triplet], AttackSettings(LINF, steps=2), RUN)
    assert example["share_right"] == nearest and example["was_attacked"]
    assert pixels(example["reference"]).shape == (160, 80, 3) and pixels(example["attacked"]).shape == (160, 160, 3)
    # By area: the mean of each 2 x 2.5 pixels is grey. By leaving out: most values are at the corners of the ball.
    assert pixels(example["reference"]).std() < 10 < np.asarray(Image.open(files[0])).std()
    strength = np.abs(pixels(example["perturbation"]) / 255.0 - 0.5)
    assert (strength > 0.48).mean() > 0.5


def test_what_cannot_be_read_is_said(metric, triplets, tmp_path):
    broken = TripletFiles("broken", tmp_path / "no.png", triplets[0].left, triplets[0].right, 1.0, "test")
    found = example_triplets(metric, [broken, triplets[0]], ATTACKS[0], RUN)
    assert found[0]["key"] == "broken" and "no.png" in found[0]["failed"] and found[1]["key"] == triplets[0].key
    assert example_triplets(metric, [broken], ATTACKS[0], RUN) == found[:1]
    with pytest.raises(ValueError, match="the metric it is made on"):
        example_triplets(metric, triplets, AttackSettings(LINF, "transfer", 1), RUN)
