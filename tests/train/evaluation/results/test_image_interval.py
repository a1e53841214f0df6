"""Intervals over images: against the sum over pairs, Student's t, and how often they hold the truth."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest

from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.image_interval import image_interval
from rclip_metric.train.evaluation.results.outcome import Outcome
from rclip_metric.train.evaluation.results.record import Averaging, Effort, record

T_975 = {5: 2.5706, 8: 2.3060, 29: 2.0452, 91: 1.9864, 3999: 1.9606}  # tables of Student's t


def random_triplets(generator, images, count):
    return np.stack([generator.choice(images, 3, replace=False) for _ in range(count)])


def by_pairs(scores, triplets):
    """The variance from every pair of samples that shares an image, divided by one less the share of such pairs."""
    apart, count = scores - scores.mean(), len(scores)
    pairs = [
        (i, j) for i, j in itertools.product(range(count), repeat=2) if set(triplets[i].tolist()) & set(triplets[j])
    ]
    total = sum(apart[i] * apart[j] for i, j in pairs)
    return total / count**2 / (1 - len(pairs) / count**2)


@pytest.mark.parametrize(("images", "count"), [(9, 40), (30, 60)])
def test_the_variance_is_the_sum_over_pairs_that_share_an_image(images, count):
    generator = np.random.default_rng(images)
    triplets = random_triplets(generator, images, count)
    effect = generator.normal(0, 0.2, images)
    scores = (0.5 + effect[triplets].sum(1) / 3 + generator.normal(0, 0.05, count)).clip(0, 1)
    variance = by_pairs(scores, triplets)
    assert variance > 2 * scores.var() / count  # the case is one where images matter
    low, high = image_interval(scores, [np.arange(count)], triplets.tolist())
    degrees = len(np.unique(triplets)) - 1
    assert (low + high) / 2 == pytest.approx(scores.mean())
    assert (high - low) / 2 == pytest.approx(T_975[degrees] * variance**0.5, rel=2e-3)


def test_samples_with_images_of_their_own_have_the_usual_interval():
    scores = np.random.default_rng(0).integers(0, 2, 1000).astype(float)
    own = [[f"{i}-{k}" for k in range(4)] for i in range(1000)]
    low, high = image_interval(scores, [np.arange(1000)], own)
    assert (high - low) / 2 == pytest.approx(T_975[3999] * scores.std(ddof=1) / 1000**0.5, rel=1e-4)
    # An image that a sample shows twice is shared with no other sample, nor counted twice.
    twice = [[*names[:3], names[0]] for names in own]
    assert image_interval(scores, [np.arange(1000)], twice) == pytest.approx((low, high), abs=1e-4)


def test_samples_that_are_copies_count_once():
    generator = np.random.default_rng(1)
    scores, images = generator.random(200), [[i, i + 1000, i + 2000] for i in range(200)]
    once = image_interval(scores, [np.arange(200)], images)
    copied = image_interval(np.tile(scores, 9), [np.arange(1800)], images * 9)
    assert copied == pytest.approx(once)
    narrow = summary(np.tile(scores, 9).tolist(), [""] * 1800, macro=False)["interval_95"]
    assert (copied[1] - copied[0]) / (narrow[1] - narrow[0]) == pytest.approx(3 / 100, rel=0.1)  # sqrt(9), percent


def test_groups_are_averaged_and_taken_from_their_own_means():
    scores = np.array([1.0] * 30 + [0.0] * 30)
    images, halves = [[i, i + 100] for i in range(60)], [np.arange(30), np.arange(30, 60)]
    assert image_interval(scores, halves, images) == (0.5, 0.5)
    low, high = image_interval(scores, [np.arange(60)], images)
    assert high - low == pytest.approx(2 * 1.98 * (0.25 / 59) ** 0.5, rel=0.01)


def test_what_cannot_be_told_is_everything_and_bad_input_is_refused():
    anchored = [["anchor", str(i)] for i in range(20)]  # every two samples share an image
    assert image_interval(np.arange(20) / 20, [np.arange(20)], anchored) == (0.0, 1.0)
    assert image_interval(np.ones(20), [np.arange(20)], [[i] for i in range(20)]) == (1.0, 1.0)
    for images in ([["a"]], [["a"], ["b", "c"]]):
        with pytest.raises(ValueError, match="equally many images for each of 2 samples"):
            image_interval(np.ones(2), [np.arange(2)], images)


@pytest.mark.parametrize(("effect", "least", "samples_below"), [(0.0, 0.92, 1.0), (0.35, 0.9, 0.7)])
def test_the_interval_holds_the_truth_where_that_over_samples_does_not(effect, least, samples_below):
    """Twenty triplets per reference over 60 images, each with an effect of its own on the triplets that it is in.

    The share right is 60 % in the long run, over all images that could have been drawn. A rate of 0.95 over 200
    repetitions has a standard error of 0.015.
    """
    generator, threshold, hits = np.random.default_rng(7), NormalDist().inv_cdf(0.6), np.zeros(2)
    for _ in range(200):
        rest = (generator.random((60, 20, 59)).argsort(2)[:, :, :2] + np.arange(60)[:, None, None] + 1) % 60
        triplets = np.concatenate([np.broadcast_to(np.arange(60)[:, None, None], (60, 20, 1)), rest], 2).reshape(-1, 3)
        drawn = generator.normal(0, effect, 60)[triplets].sum(1)
        scores = (drawn + generator.normal(0, (1 - 3 * effect**2) ** 0.5, len(triplets)) < threshold).astype(float)
        low, high = image_interval(scores, [np.arange(len(scores))], triplets.tolist())
        half = 1.96 * scores.std() / len(scores) ** 0.5
        hits += [low <= 0.6 <= high, abs(scores.mean() - 0.6) <= half]
    over_images, over_samples = hits / 200
    assert least <= over_images < 1.0
    assert over_samples <= samples_below


def test_a_record_says_what_its_intervals_are_about():
    generator = np.random.default_rng(0)
    triplets = random_triplets(generator, 12, 60)
    right = generator.integers(0, 2, 60).astype(float)
    rows = [Outcome(str(i), "test", float(right[i]), False, 0.1) for i in range(60)]
    settings = {"task": "2afc", "model": {"name": "x"}, "threat": {"attack": "none"}, "effort": Effort(1.0)}
    data = {"name": "few", "images": 12}
    few = record(rows, data=data, averaging=Averaging(images_of=lambda key: triplets[int(key)].tolist()), **settings)
    low, high = image_interval(right, [np.arange(60)], triplets.tolist())
    assert few["clean"]["interval_95"] == pytest.approx([100 * low, 100 * high], abs=1e-4)
    assert few["settings"]["bootstrap"] is None and few["warnings"] == []
    many = record(rows, data=data, **settings)
    assert many["settings"]["bootstrap"]["resamples"] == 10_000
    assert many["warnings"] == [
        "60 samples share 12 images, and the interval takes them for independent: it is too narrow, "
        "ask for --resample images."
    ]
