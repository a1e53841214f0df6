"""2AFC evaluation: the rule, the attack, the protocols and the records."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, resize

from rclip_metric import RobustPerceptualDistance
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.scenes import write_bapps
from rclip_metric.train.data.triplets import TripletFiles, read_nights
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings, default_chunk_size
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.run import evaluate as evaluate_task
from rclip_metric.train.evaluation.tasks import bapps_data
from rclip_metric.train.evaluation.tasks.two_afc import (
    TwoAfcData,
    decision,
    evaluate_two_afc,
    first_of_each_split,
    loader_at,
)
from rclip_metric.train.metrics.base import EmbeddingMetric, EncoderMetric
from rclip_metric.train.runs.precision import bfloat16_is_fast, resolved_precision

from support.encoders import small_encoder
from support.scenes import small_scenes

LINF, L2 = LpBall("linf", 4 / 255), LpBall("l2", 0.857)
ATTACKS = (AttackSettings(LINF, steps=5), AttackSettings(L2, steps=5))


@pytest.fixture(scope="module")
def triplets(tmp_path_factory):
    return read_nights(small_scenes(tmp_path_factory.mktemp("scenes"), (0, 0, 24)) / "nights")


@pytest.fixture(scope="module")
def metric():
    return EncoderMetric(RobustPerceptualDistance(small_encoder(seed=1, layer_scale=0.5)))


def evaluate(metric, triplets, attacks=ATTACKS, **settings):
    data = {
        "protocol": "majority",
        **{k: settings.pop(k) for k in ("protocol", "macro", "attacked", "load") if k in settings},
    }
    source = settings.pop("source", None)
    run = RunSettings(**{"batch_size": 7, **settings})
    return evaluate_two_afc(
        metric, TwoAfcData("scenes", "test", triplets, **data), attacks, run, source=source, quiet=True
    )


@pytest.fixture(scope="module")
def records(metric, triplets):
    return evaluate(metric, triplets)


def test_right_wins_only_if_strictly_more_similar():
    similarities = torch.tensor([[0.5, 0.6], [0.6, 0.5], [0.5, 0.5], [0.5, 0.5]])
    decided = decision(torch.tensor([1, 0, 0, 1]))(similarities, torch.arange(4))
    assert decided.wrong.tolist() == [False, False, False, True]
    torch.testing.assert_close(decided.margin, torch.tensor([0.1, 0.1, 0.0, 0.0]))
    # Cross-entropy of two logits whose difference is m: log(1 + exp(-m)).
    torch.testing.assert_close(decided.loss, torch.log1p(torch.exp(-decided.margin)))
    margin = decision(torch.tensor([1, 0, 0, 1]), "margin")(similarities, torch.arange(4))
    torch.testing.assert_close(margin.loss, -decided.margin)


def test_clean_accuracy_is_that_of_the_metrics_own_choice(metric, triplets, records):
    right = 0
    for row in triplets:
        images = [metric.preprocess(path)[None] for path in (row.reference, row.left, row.right)]
        right += int(metric.metric.two_afc(*images).choice) == row.label
    assert records[0]["clean"]["accuracy"] == pytest.approx(100 * right / len(triplets), abs=0.01)
    assert 0 < right < len(triplets)


def test_robust_is_a_subset_of_clean_and_the_margins_say_so(records, triplets):
    for record, attack in zip(records, ATTACKS, strict=True):
        rows = unpack(record)
        assert [row.key for row in rows] == [triplet.key for triplet in triplets]
        for row in rows:
            assert row.robust is not None and row.robust <= row.clean
            assert (row.margin >= 0) == (row.clean == 1.0)
            assert (row.robust_margin > 0) == (row.robust == 1.0)
        share = 100 * sum(row.robust for row in rows) / len(rows)
        assert record["robust"]["accuracy"] == pytest.approx(share, abs=0.01)
        assert record["largest_violation"] <= np.spacing(np.float32(attack.ball.eps))
        assert record["threat"]["steps"] == 5 and record["settings"]["precision"] == "float32"
        assert record["warnings"] == [] and record["images_per_second"] > 0
    assert records[0]["robust"]["accuracy"] < records[0]["clean"]["accuracy"]
    assert set(records[0]["splits"]) == {"test_imagenet", "test_no_imagenet"}


@pytest.mark.parametrize("settings", [{"batch_size": 24}, {"batch_size": 1}, {"chunk_size": 2}], ids=str)
def test_outcomes_do_not_depend_on_how_samples_are_batched(metric, triplets, records, settings):
    for record, other in zip(records, evaluate(metric, triplets, **settings), strict=True):
        assert [row.robust for row in unpack(record)] == [row.robust for row in unpack(other)]


def test_the_seed_and_the_order_are_those_of_the_sample(metric, triplets, records):
    rows = {row.key: row for row in unpack(records[1])}
    back = unpack(evaluate(metric, triplets[::-1])[1])
    assert all(abs(row.robust_margin - rows[row.key].robust_margin) < 1e-5 for row in back)
    other = unpack(evaluate(metric, triplets, seed=1)[1])
    assert any(abs(row.robust_margin - rows[row.key].robust_margin) > 1e-5 for row in other)


def test_square_noise_and_transfer_run_on_the_same_path(metric, triplets, records):
    other = EncoderMetric(RobustPerceptualDistance(small_encoder(seed=2, name="other")))
    attacks = (
        AttackSettings(LINF, "square", 60, loss="margin"),
        AttackSettings(LINF, "noise", 5),
        AttackSettings(LINF, "transfer", 5),
    )
    square, noise, transfer = evaluate(metric, triplets, attacks, source=other)
    apgd = records[0]["robust"]["accuracy"]
    assert square["robust"]["accuracy"] < square["clean"]["accuracy"]
    assert apgd <= noise["robust"]["accuracy"] <= noise["clean"]["accuracy"]
    assert apgd <= transfer["robust"]["accuracy"] <= transfer["clean"]["accuracy"]
    assert transfer["threat"]["source"]["name"] == "other" and "source" not in noise["threat"]
    itself = evaluate(metric, triplets, attacks[2:], source=metric)[0]
    assert itself["robust"]["accuracy"] == apgd
    with pytest.raises(ValueError, match="the metric it is made on"):
        evaluate(metric, triplets, attacks[2:])


def test_bfloat16_attacks_are_confirmed_in_float32(metric, triplets, records):
    for record, half in zip(records, evaluate(metric, triplets, precision="bfloat16"), strict=True):
        assert half["settings"]["precision"] == "bfloat16" and half["clean"] == record["clean"]
        assert abs(half["robust"]["accuracy"] - record["robust"]["accuracy"]) <= 100 / len(triplets) + 0.01
        for row in unpack(half):  # margins are those of the float32 metric
            assert (row.robust_margin > 0) == (row.robust == 1.0)
    with pytest.raises(ValueError, match="precision must be one of"):
        evaluate(metric, triplets, precision="float16")


def test_a_bfloat16_success_that_float32_refuses_does_not_count(triplets, metric):
    class Flattering(EmbeddingMetric):
        """In its half-precision form it claims to be fooled by everything."""

        def in_bfloat16(self):
            other = EmbeddingMetric(lambda images: -self.function(images), 64, name="liar")
            return other

    liar = Flattering(metric.metric.encoder, 64, name="liar")
    noise = AttackSettings(LpBall("linf", 1e-6), steps=3)
    half = evaluate(liar, triplets, (noise,), precision="bfloat16")[0]
    assert half["robust"]["accuracy"] == half["clean"]["accuracy"]


def test_only_some_samples_are_attacked_where_the_protocol_says_so(metric, triplets, records):
    attacked = frozenset(triplet.key for triplet in triplets[::3])
    record = evaluate(metric, triplets, attacked=attacked)[0]
    rows = unpack(record)
    assert {row.key for row in rows if row.robust is not None} == attacked
    assert record["robust"]["samples"] == len(attacked) and record["clean"]["samples"] == len(triplets)
    whole = {row.key: row.robust for row in unpack(records[0])}
    assert all(row.robust == whole[row.key] for row in rows if row.robust is not None)


@pytest.fixture
def judged(tmp_path):
    """Four triplets in two splits: the reference, itself (or a black image) against a white one, with known shares."""
    for name, value in (("ref", 120), ("same", 121), ("white", 255), ("black", 0)):
        Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(tmp_path / f"{name}.png")

    def triplet(key, split, left, right, share):
        paths = [tmp_path / f"{name}.png" for name in ("ref", left, right)]
        return TripletFiles(key, *paths, share, split)

    return [
        triplet("a/1", "a", "same", "white", 0.2),  # the metric and 80 % say left
        triplet("a/2", "a", "white", "same", 0.6),  # right: 60 %
        triplet("a/3", "a", "same", "white", 1.0),  # the metric says left, nobody does
        triplet("b/1", "b", "same", "same", 0.4),  # a tie
    ]


def brightness(images):
    """An embedding that tells how bright an image is: unit vectors at an angle of the mean value."""
    mean = images.mean((1, 2, 3))
    return torch.stack([torch.cos(mean), torch.sin(mean)], 1)


def test_soft_scores_are_the_share_of_people_agreed_with(judged):
    metric = EmbeddingMetric(brightness, 64, name="brightness")
    [record] = evaluate(metric, judged, (), protocol="soft", macro=True)
    rows = {row.key: row for row in unpack(record)}
    assert [rows[key].clean for key in ("a/1", "a/2", "a/3", "b/1")] == pytest.approx([0.8, 0.6, 0.0, 0.5])
    assert rows["b/1"].tie and record["clean"]["ties"] == 1
    assert record["clean"]["accuracy"] == pytest.approx(100 * ((0.8 + 0.6 + 0.0) / 3 + 0.5) / 2, abs=0.01)
    # One more person agrees with p^2 + (1 - p)^2: 0.68, 0.52, 1 in split a, 0.52 in split b.
    assert record["human"]["accuracy"] == pytest.approx(100 * ((0.68 + 0.52 + 1) / 3 + 0.52) / 2, abs=0.01)
    assert record["human"]["ceiling"] == pytest.approx(100 * ((0.8 + 0.6 + 1) / 3 + 0.6) / 2, abs=0.01)


def test_majority_scores_follow_the_label_and_fooling_flips_a_soft_score(judged):
    metric = EmbeddingMetric(brightness, 64, name="brightness")
    [record] = evaluate(metric, judged, (), protocol="majority", macro=True)
    assert [row.clean for row in unpack(record)] == [1.0, 1.0, 0.0, 1.0]  # the tie goes left, as 60 % do
    # A ball that reaches white and black: everything that was right is fooled.
    attack = AttackSettings(LpBall("linf", 0.6), steps=20)
    [soft] = evaluate(metric, judged[:3], (attack,), protocol="soft", macro=True)
    assert [row.robust for row in unpack(soft)] == pytest.approx([0.2, 0.4, 0.0])


def test_the_first_of_each_split():
    rows = [TripletFiles(f"{s}/{i}", Path(), Path(), Path(), 1.0, s) for i in range(3) for s in ("a", "b")]
    assert [row.key for row in first_of_each_split(rows, 2)] == ["a/0", "b/0", "a/1", "b/1"]


def test_images_can_be_judged_at_a_size_of_their_own(judged):
    assert loader_at(32)(judged[0].reference).shape == (3, 32, 32)
    seen = []

    def recorded(images):
        seen.append(tuple(images.shape[1:]))
        return brightness(images)

    evaluate(EmbeddingMetric(recorded, 64, name="any"), judged[:2], (), load=loader_at(32))
    assert set(seen) == {(3, 32, 32)}


def test_an_unreadable_image_is_counted_and_named(metric, triplets, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    rows = [dataclasses.replace(triplets[0], left=broken), *triplets[1:3]]
    [record] = evaluate(metric, rows, (), batch_size=1)
    assert record["data"]["samples"] == 2
    [sentence] = record["data"]["unreadable"]
    assert str(broken) in sentence and f"triplet {triplets[0].key}" in sentence
    assert "1 of 3 samples could not be read" in record["warnings"][0]
    with pytest.raises(ValueError, match="none of the 1 samples of scenes"):
        evaluate(metric, rows[:1], ATTACKS)


def test_masked_gradients_are_reported(triplets):
    """A metric that rounds its embedding has no gradient: APGD finds nothing, and the record says why."""
    rounded = EmbeddingMetric(lambda images: (images * 8).round().flatten(1), 64, name="rounded")
    apgd, square = evaluate(
        rounded,
        triplets,
        (AttackSettings(LpBall("linf", 0.1), steps=4), AttackSettings(LpBall("linf", 0.1), "square", 80)),
    )
    attacked = sum(row.clean == 1.0 for row in unpack(apgd))
    assert apgd["masking"]["zero_gradients"] == attacked and "all-zero gradient" in apgd["warnings"][0]
    assert square["masking"] == {"zero_gradients": 0, "nonfinite_gradients": 0}


def test_settings_are_checked():
    with pytest.raises(ValueError, match="attack must be one of"):
        AttackSettings(LINF, "fgsm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="l_1 ball with apgd"):
        AttackSettings(LpBall("l1", 1.0), "square")
    with pytest.raises(ValueError, match="at least 1 steps"):
        AttackSettings(LINF, "noise", 0)
    with pytest.raises(ValueError, match="protocol must be one of"):
        TwoAfcData("x", None, [TripletFiles("1", Path(), Path(), Path(), 1.0, "a")], "hard")
    with pytest.raises(ValueError, match="no triplet"):
        TwoAfcData("x", None, [])
    assert default_chunk_size(torch.device("cpu"), 224) == 8 and default_chunk_size(torch.device("cuda"), 224) == 64
    here = torch.device("cpu")
    assert resolved_precision("auto", here) == ("bfloat16" if bfloat16_is_fast(here) else "float32")


@pytest.fixture(scope="module")
def bapps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bapps")
    write_bapps(folder, per_split=2, quiet=True)
    shutil.rmtree(folder / "2afc" / "val" / "cnn" / "judge")  # one triplet of cnn, two of every other split
    (folder / "2afc" / "val" / "cnn" / "judge").mkdir()
    np.save(folder / "2afc" / "val" / "cnn" / "judge" / "000000.npy", np.array([0.8]))
    for part in ("ref", "p0", "p1"):
        (folder / "2afc" / "val" / "cnn" / part / "000001.png").unlink()
    return folder


@pytest.mark.parametrize(("protocol", "side"), [("majority", 32), ("lpips", 64), ("dreamsim", 224)])
def test_bapps_is_resized_as_published(bapps, protocol, side):
    """torchvision's Resize, bilinear by default (LPIPS 082bb24, perceptual-metrics 962995f), bicubic in DreamSim."""
    mode = InterpolationMode.BICUBIC if protocol == "dreamsim" else InterpolationMode.BILINEAR
    data = bapps_data(bapps, protocol=protocol)
    image = Image.open(data.triplets[0].reference)
    expected = pil_to_tensor(resize(image, [side, side], interpolation=mode)) / 255
    found = data.reader(EmbeddingMetric(brightness, 32, name="brightness"))(data.triplets[0].reference)
    torch.testing.assert_close(found, expected)


def test_bapps_averages_over_splits_for_lpips_and_over_triplets_for_dreamsim(bapps):
    metric = EmbeddingMetric(brightness, 32, name="brightness")
    for protocol in ("lpips", "dreamsim"):
        [record] = evaluate_task(metric, bapps_data(bapps, protocol=protocol), quiet=True)
        scores: dict[str, list[float]] = {}
        for row in unpack(record):
            scores.setdefault(row.split, []).append(row.clean)
        assert [len(part) for part in scores.values()] == [1, 2, 2, 2, 2, 2]
        means = [sum(part) / len(part) for part in scores.values()]
        everyone = [score for part in scores.values() for score in part]
        expected = sum(means) / 6 if protocol == "lpips" else sum(everyone) / 11
        assert record["clean"]["accuracy"] == pytest.approx(100 * expected, abs=1e-3)
        assert record["data"]["protocol"] == protocol


def test_what_was_computed_before_is_found_by_its_name(bapps):
    """Records of majority and soft votes with bicubic resizing keep their settings, and so their fingerprints."""
    old = bapps_data(bapps, protocol="majority-bicubic")
    assert "interpolation" not in old.settings() and old.protocol == "majority"
    assert old.settings() | {"interpolation": "bilinear"} == bapps_data(bapps).settings()
    assert bapps_data(bapps, protocol="soft").settings()["protocol"] == "soft"
    metric = EmbeddingMetric(brightness, 32, name="brightness")
    assert old.reader(metric) == metric.preprocess
    with pytest.raises(ValueError, match="protocol must be one of majority, lpips"):
        bapps_data(bapps, protocol="mos")
    del metric.image_size
    with pytest.raises(ValueError, match="brightness does not say which images it takes"):
        bapps_data(bapps).reader(metric)
