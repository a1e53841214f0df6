"""2AFC evaluation: the rule, the attack and the record."""

import pytest
import torch

from rclip_metric import RobustPerceptualDistance
from rclip_metric.encoder import Encoder
from rclip_metric.towers import ConvNeXtArchitecture
from rclip_metric.train.clip import TINY_PREPROCESSING
from rclip_metric.train.data.scenes import ScenesConfig, write_scenes
from rclip_metric.train.data.two_afc import read_nights
from rclip_metric.train.evaluation.two_afc import (
    EvaluationConfig,
    correct,
    evaluate_two_afc,
    interval,
    markdown_table,
)
from rclip_metric.train.objectives import two_afc_cross_entropy, two_afc_margin
from rclip_metric.train.threat import LpBall

ARCHITECTURE = ConvNeXtArchitecture(image_size=64, depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), projection=16)
CONFIG = EvaluationConfig(balls=(LpBall("linf", 4 / 255), LpBall("l2", 0.857)), steps=5, batch_size=7)


@pytest.fixture(scope="module")
def triplets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, ScenesConfig(images=1, triplets=(0, 0, 24), pool=1, queries=1), quiet=True)
    return read_nights(folder / "nights")


@pytest.fixture(scope="module")
def metric():
    torch.manual_seed(1)
    encoder = Encoder(ARCHITECTURE, TINY_PREPROCESSING, name="small")
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    return RobustPerceptualDistance(encoder)


@pytest.fixture(scope="module")
def record(metric, triplets):
    return evaluate_two_afc(metric, triplets, CONFIG, quiet=True)


def test_right_wins_only_if_strictly_more_similar():
    similarities = torch.tensor([[0.5, 0.6], [0.6, 0.5], [0.5, 0.5], [0.5, 0.5]])
    assert correct(similarities, torch.tensor([1, 0, 0, 1])).tolist() == [True, True, True, False]


def test_objectives_are_their_formulas():
    similarities, label = torch.tensor([[0.2, 0.7]]), torch.tensor([1])
    expected = -torch.log(torch.exp(torch.tensor(0.7)) / (torch.exp(torch.tensor(0.2)) + torch.exp(torch.tensor(0.7))))
    torch.testing.assert_close(two_afc_cross_entropy(similarities, label)[0], expected)
    torch.testing.assert_close(two_afc_margin(similarities, label), torch.tensor([0.5]))


def test_clean_accuracy_is_that_of_the_metrics_own_choice(metric, triplets, record):
    right = 0
    for row in triplets:
        images = [metric.preprocess(path)[None] for path in (row.reference, row.left, row.right)]
        right += int(metric(images[0], images[2]) < metric(images[0], images[1])) == row.label
    assert record["clean"]["accuracy"] == pytest.approx(100 * right / len(triplets), abs=0.01)


def test_robust_is_a_subset_of_clean_and_the_record_is_complete(record, triplets):
    assert record["triplets"] == len(triplets) and [row["id"] for row in record["outcomes"]] == [t.id for t in triplets]
    for index, attack in enumerate(record["attacks"]):
        kept = [row for row in record["outcomes"] if row["robust"][index]]
        assert all(row["clean"] for row in kept)
        assert attack["accuracy"] == pytest.approx(100 * len(kept) / len(triplets), abs=0.01)
        assert attack["largest_violation"] < 1e-6
    assert record["attacks"][0]["accuracy"] < record["clean"]["accuracy"]
    assert record["settings"]["steps"] == 5 and record["versions"]["torch"] == torch.__version__
    assert "| small | " in markdown_table([record])


def test_outcomes_do_not_depend_on_the_batch_size(metric, triplets, record):
    other = evaluate_two_afc(metric, triplets, EvaluationConfig(CONFIG.balls, steps=5, batch_size=24), quiet=True)
    same = [a["robust"] == b["robust"] for a, b in zip(record["outcomes"], other["outcomes"], strict=True)]
    assert all(same)


def test_an_unreadable_image_is_counted_and_named(metric, triplets, tmp_path):
    import dataclasses

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    rows = [dataclasses.replace(triplets[0], left=broken), *triplets[1:3]]
    config = EvaluationConfig(balls=(), batch_size=2)
    record = evaluate_two_afc(metric, rows, config, quiet=True)
    assert record["triplets"] == 2 and len(record["unreadable"]) == 1 and str(broken) in record["unreadable"][0]
    with pytest.raises(ValueError, match="none of the 1 triplets"):
        evaluate_two_afc(metric, rows[:1], config, quiet=True)


def test_wilson_interval():
    # 50 of 100, from the formula by hand: centre 0.5, half width 0.0962.
    low, high = interval(50, 100)
    assert (low, high) == pytest.approx((40.38, 59.62), abs=0.01)
    assert interval(0, 10)[0] == 0.0 and interval(10, 10)[1] == 100.0
