"""Randomised smoothing: its bound against scipy's, its radii against planes, and what its records say."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import beta, binom, norm

from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.scenes.formats import write_things
from rclip_metric.train.data.things import read_things
from rclip_metric.train.evaluation import evaluate
from rclip_metric.train.evaluation.attack import SLACK, AttackSettings, Decisions, RunSettings
from rclip_metric.train.evaluation.certificates import (
    Certificate,
    certified_curve,
    certified_radii,
    clopper_pearson_lower,
)
from rclip_metric.train.evaluation.results.curves import figure
from rclip_metric.train.evaluation.results.leaderboard import table
from rclip_metric.train.evaluation.results.outcome import Outcome, unpack
from rclip_metric.train.evaluation.results.record import Effort, load_results
from rclip_metric.train.evaluation.results.record import record as result
from rclip_metric.train.evaluation.session import Session
from rclip_metric.train.evaluation.smoothing import GROUP, Smoothing, _noise, smooth, smoothed_radii
from rclip_metric.train.evaluation.tasks import nights_data
from rclip_metric.train.evaluation.tasks.odd_one_out import OddOneOutData
from rclip_metric.train.evaluation.tasks.two_afc import decision
from rclip_metric.train.metrics import DistanceMetric, EmbeddingMetric, load_metric

from support.scenes import small_scenes

BALL = LpBall("l2", 0.1)
SIGMA = 0.25
RUN = RunSettings(chunk_size=1000)
SIDE = 2  # 12 numbers in an image


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = small_scenes(tmp_path_factory.mktemp("scenes"), (0, 0, 6))
    write_things(folder / "things", concepts=24, triplets=6, quiet=True)
    return folder


def plane(seed=0):
    """A metric whose right option wins where <a, x> + b > 0, and how far images are from there."""
    a = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))

    def similarities(images, fixed):
        height = (images * a).flatten(1).sum(1) - 0.5 * a.sum()
        return torch.stack([torch.zeros_like(height), height], 1)

    def at(distance):  # an image at this distance on the right option's side
        return 0.5 + distance * a / a.norm()

    return SimpleNamespace(name="plane", similarities=similarities, device=torch.device("cpu"), image_size=SIDE), at


def certified(metric, images, smoothing, *, label=1, run=RUN, keys=None, half=None):
    labels = torch.full((len(images),), label)
    keys = keys or [str(number) for number in range(len(images))]
    fixed = torch.zeros(len(images), 2)
    return smoothed_radii(metric, images, lambda judging: fixed, decision(labels), smoothing, run, keys, half=half)


# The bound


@pytest.mark.parametrize("n", [1, 7, 100, 1000, 10_000, 100_000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999, 1 - 1e-9])
def test_the_bound_is_the_beta_quantile(n, confidence):
    for k in sorted({0, 1, n // 3, n // 2, round(0.51 * n), round(0.9 * n), n - 1, n}):
        expected = beta.ppf(1 - confidence, k, n - k + 1) if k else 0.0
        assert clopper_pearson_lower(k, n, confidence) == pytest.approx(expected, abs=1e-9)


def test_the_bound_is_above_the_truth_as_rarely_as_stated():
    for p in (0.55, 0.8, 0.97):
        wrong = sum(binom.pmf(k, 200, p) for k in range(90, 201) if clopper_pearson_lower(k, 200, 0.95) > p)
        assert 0.01 < wrong <= 0.05


def test_the_radius_is_that_of_cohen():
    smoothing = Smoothing(BALL, SIGMA, n=1000)
    for votes in (560, 900, 1000):
        assert smoothing.radius(votes) == pytest.approx(
            SIGMA * norm.ppf(beta.ppf(0.001, votes, 1001 - votes)), abs=1e-9
        )
    assert smoothing.radius(540) == 0 < smoothing.radius(560)  # 0.001 quantiles of 0.491 and 0.511
    assert smoothing.largest == smoothing.radius(1000)


# Planes: the smoothed decision changes where the plain one does, so that the exact radius is known


def test_the_radius_of_a_plane_is_exceeded_at_most_as_often_as_stated():
    metric, at = plane()
    for distance, runs in ((0.2, 1000), (0.05, 100)):
        images = at(distance).expand(runs, -1, -1, -1)
        found = certified(
            metric, images, Smoothing(BALL, SIGMA, n0=20, n=1000), keys=[f"{distance} {i}" for i in range(runs)]
        )
        exceeded = int((found.radius > distance).sum())
        assert exceeded <= binom.ppf(0.999, runs, 0.001)  # 5 of 1000
        assert found.radius.min() >= 0 and len(found.radius.unique()) > 20
        assert (found.radius > 0).float().mean() > (0.35 if distance == 0.05 else 0.99)


def test_the_bound_would_not_hold_at_a_lower_confidence():
    metric, at = plane()
    images = at(0.2).expand(300, -1, -1, -1)
    found = certified(metric, images, Smoothing(BALL, SIGMA, n0=20, n=500, confidence=0.6))
    assert binom.ppf(0.001, 300, 0.3) < int((found.radius > 0.2).sum()) <= binom.ppf(0.999, 300, 0.4)


def test_ten_thousand_draws_are_tight():
    metric, at = plane()
    distances = torch.linspace(0.16, 0.5, 5)
    smoothing = Smoothing(BALL, SIGMA, n=10_000)
    found = certified(metric, torch.stack([at(d) for d in distances.tolist()]), smoothing)
    # As many votes as the binomial distribution has, and so the radii: within 5 % of the distance on average.
    share = norm.cdf(distances.numpy() / SIGMA)
    expected = [sum(binom.pmf(k, 10_000, p) * smoothing.radius(k) for k in likely(10_000, p)) for p in share.tolist()]
    assert found.radius.numpy() == pytest.approx(expected, rel=0.06)
    assert 0.95 < (found.radius / distances).mean() < 1 and (found.radius > distances).sum() <= 1
    assert found.radius.mean().item() == pytest.approx(sum(expected) / 5, rel=0.015)
    assert found.draws == 5 * 10_100 + 2 * 8


def likely(n, p):
    spread = 6 * math.sqrt(n * p * (1 - p))
    return range(max(0, round(n * p - spread)), min(n, round(n * p + spread)) + 1)


def test_a_wrong_decision_has_a_negative_radius_and_one_on_the_plane_none():
    metric, at = plane()
    images = torch.stack([at(0.3), at(0.0), at(-0.3)])
    right, undecided, wrong = certified(metric, images, Smoothing(BALL, SIGMA)).radius.tolist()
    assert 0.2 < right < 0.3 and undecided == 0 and -0.3 < wrong < -0.2
    # Which option is called right says nothing of the draws: the signs alone change.
    assert certified(metric, images, Smoothing(BALL, SIGMA), label=0).radius.tolist() == [-right, 0, -wrong]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_constant_metric_abstains(value):
    constant = DistanceMetric(lambda x, y: 0 * x.sum((1, 2, 3)) + value, SIDE, name="constant")
    fixed = torch.zeros(3, 2, 3, SIDE, SIDE)
    smoothing, keys = Smoothing(BALL, SIGMA), ["a", "b", "c"]
    for label in (0, 1):
        rule = decision(torch.full((3,), label))
        found = smoothed_radii(
            constant, torch.rand(3, 3, SIDE, SIDE), lambda m: fixed, rule, smoothing, RunSettings(), keys
        )
        assert found.radius.tolist() == [0, 0, 0]


def test_ties_are_votes_for_nobody():
    # Right in 45 % of draws, a tie in 45 %, wrong in 10 %: right is the most frequent answer, and no majority.
    low, high = norm.ppf(0.1), norm.ppf(0.55)

    def judge(points, numbers):
        value = points[:, 0, 0, 0] / SIGMA
        return (value > high).float() - (value < low).float()

    found = smooth(judge, torch.zeros(1, 3, SIDE, SIDE), Smoothing(BALL, SIGMA, n=4000), 0, ["x"], 500)
    assert found.radius.item() == 0


def test_no_attack_within_the_radius_changes_the_smoothed_decision_of_a_network():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3 * 16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)
    ).requires_grad_(False)

    def judge(points, numbers):
        scores = network(points * 4)
        return scores[:, 1] - scores[:, 0]

    images = torch.rand(40, 3, 4, 4)
    keys = [str(number) for number in range(len(images))]
    smoothing = Smoothing(BALL, SIGMA, n=2000)
    found = smooth(judge, images, smoothing, 0, keys, 1000)
    sure = (found.radius.abs() > 0.05).nonzero()[:, 0]
    assert len(sure) > 20
    noise = SIGMA * torch.randn(200, 3, 4, 4)
    plain = changed = 0
    for number in sure.tolist():
        side, radius = found.radius[number].sign().item(), found.radius[number].abs().item()

        def against(points, indices, side=side):  # the smoothed margin, which the attack lowers
            shown = (points[:, None] + noise).flatten(0, 1)
            return -side * judge(shown, indices).tanh().view(len(points), -1).mean(1)

        moved = apgd(against, images[number : number + 1], LpBall("l2", radius), 20).images
        again = smooth(judge, moved, replace(smoothing, n=4000), 1, ["anew"], 1000).radius.item()
        changed += side * again < 0
        wide = apgd(against, images[number : number + 1], LpBall("l2", 4 * radius), 20).images
        plain += side * smooth(judge, wide, replace(smoothing, n=4000), 1, ["anew"], 1000).radius.item() < 0
    # Of 40 statements at 99.9 % none is expected to fail: more than one has a probability below 0.001.
    assert changed <= 1 < plain  # and the attack is one that finds something beyond the radius


# Draws


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("chunk", [1, 7, 64, 5000])
def test_radii_depend_neither_on_batches_nor_on_chunks(batch, chunk):
    metric, at = plane()
    images = torch.stack([at(d) for d in torch.linspace(-0.3, 0.4, 8).tolist()])
    keys, smoothing = [f"image {number}" for number in range(8)], Smoothing(BALL, SIGMA, n0=GROUP + 5, n=70)
    whole = certified(metric, images, smoothing, keys=keys).radius
    run = RunSettings(chunk_size=chunk)
    parts = [
        certified(metric, images[first : first + batch], smoothing, run=run, keys=keys[first : first + batch]).radius
        for first in range(0, 8, batch)
    ]
    assert torch.equal(torch.cat(parts), whole) and len(whole.unique()) > 4
    backwards = certified(metric, images.flip(0), smoothing, run=run, keys=keys[::-1]).radius
    assert torch.equal(backwards.flip(0), whole)


def test_the_draws_are_standard_normal_and_those_that_choose_are_others_than_those_that_estimate():
    seen = []

    def judge(points, numbers):
        seen.append(points)
        return points[:, 0, 0, 0]

    image = torch.full((1, 3, SIDE, SIDE), 0.5)
    smooth(judge, image, Smoothing(BALL, SIGMA, n0=100, n=1900), 3, ["x"], 64)
    draws = (torch.cat(seen[2:]) - 0.5) / SIGMA  # after those that are judged twice
    assert draws.shape == (2000, 3, SIDE, SIDE) and len(draws.unique(dim=0)) == 2000
    values = draws.flatten().double()
    assert abs(values.mean()) < 4 / math.sqrt(24_000) and abs(values.std() - 1) < 0.02
    assert torch.cat(seen).min() < -0.2 and torch.cat(seen).max() > 1.2  # not clamped
    covariance = torch.cov(draws.flatten(1).T)
    assert (covariance - torch.eye(12)).abs().max() < 0.12


def test_draws_made_ahead_by_threads_are_the_same_ones():
    plain, threaded = (torch.cat(list(_noise(torch.Size([3, SIDE, SIDE]), 7, 45, 400, ahead))) for ahead in (0, 3))
    assert len(plain) == 400 and torch.equal(plain, threaded)


def test_seeds_keys_and_sigmas():
    metric, at = plane()
    images, smoothing = at(0.2).expand(1, -1, -1, -1), Smoothing(BALL, SIGMA)

    def radius(seed, key, sigma=SIGMA):
        return certified(metric, images, replace(smoothing, sigma=sigma), run=RunSettings(seed=seed), keys=[key]).radius

    assert torch.equal(radius(0, "a"), radius(0, "a"))
    assert len({radius(seed, key).item() for seed, key in ((0, "a"), (1, "a"), (0, "b"))}) == 3
    # At twice the distance with twice the noise it is the same question, of the same draws.
    twice = certified(metric, at(0.4)[None], Smoothing(BALL, 2 * SIGMA), keys=["a"]).radius
    assert twice.item() == pytest.approx(2 * radius(0, "a").item(), rel=1e-9)


# Precision


def test_close_votes_are_judged_again_in_float32():
    a = 0.02
    asked = []

    def exact(points, numbers):
        asked.append(len(points))
        return a * points[:, 0, 0, 0]

    def rough(points, numbers):  # wrong where it is close, by less than SLACK, and very wrong nowhere else
        margin = a * points[:, 0, 0, 0]
        return torch.where(margin.abs() < 0.001, -margin, margin)

    image, smoothing = torch.full((1, 3, SIDE, SIDE), 0.02), Smoothing(BALL, 0.2, n=2000)
    plain = smooth(exact, image, smoothing, 0, ["x"], 128)
    asked.clear()
    mixed = smooth(exact, image, smoothing, 0, ["x"], 128, half=rough)
    assert mixed.radius.item() == plain.radius.item()
    again = sum(asked) - 100 - 16
    share = norm.cdf((SLACK / a - 0.02) / 0.2) - norm.cdf((-SLACK / a - 0.02) / 0.2)
    assert again == pytest.approx(2000 * share, rel=0.1)
    assert mixed.draws == plain.draws + 100 + 16 + again and max(asked) < 2 * 128


def test_the_slack_grows_with_what_half_precision_gets_wrong():
    def exact(points, numbers):
        return 30 * points[:, 0, 0, 0]  # such as decibels

    def rough(points, numbers):
        margin = exact(points, numbers)
        return margin + 0.5 * torch.sign(points[:, 1, 0, 0])

    image, smoothing = torch.full((1, 3, SIDE, SIDE), 0.05), Smoothing(BALL, SIGMA, n=2000)
    plain, mixed = (smooth(exact, image, smoothing, 0, ["x"], 128, half=half) for half in (None, rough))
    assert plain.radius.item() == mixed.radius.item() > 0
    assert smooth(rough, image, smoothing, 0, ["x"], 128).radius.item() != plain.radius.item()


def test_a_real_metric_in_bfloat16_has_the_radii_of_float32(scenes):
    metric, data = load_metric("tiny-clean"), nights_data(scenes / "nights", limit=2)
    smoothing = Smoothing(BALL, SIGMA, n0=16, n=48)
    [full], [half] = (
        evaluate(metric, data, [smoothing], RunSettings(chunk_size=64, precision=precision), quiet=True)
        for precision in ("float32", "bfloat16")
    )
    assert certified_radii(full) == certified_radii(half)
    assert half["settings"]["precision"] == "bfloat16"
    assert half["smoothing"]["draws"] >= full["smoothing"]["draws"] + 2 * 16 + 16


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma must be a finite number above 0, and it is 0"),
        ({"sigma": -0.1}, "sigma must be a finite number above 0"),
        ({"sigma": math.nan}, "sigma must be a finite number above 0, and it is nan"),
        ({"sigma": math.inf}, "sigma must be a finite number above 0, and it is inf"),
        ({"n0": 0}, "at least 1 draw has to choose, and n0 is 0"),
        ({"n": 99}, "n is 99 with n0 100"),
        ({"confidence": 1.0}, "a confidence is a share between 0 and 1, such as 0.999, and not 1"),
        ({"confidence": 0.0}, "a confidence is a share"),
        ({"confidence": math.nan}, "a confidence is a share"),
        ({"ball": LpBall("linf", 0.1)}, "certified radii are l_2 radii"),
    ],
)
def test_what_cannot_be_smoothed_is_refused_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=message) as refused:
        Smoothing(**{"ball": BALL, "sigma": SIGMA} | change)
    assert "\n" not in str(refused.value)


def test_a_count_outside_its_range_is_refused():
    for k, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match=f"{k} of {n} draws"):
            clopper_pearson_lower(k, n, 0.999)


def test_a_metric_that_rolls_dice_is_refused():
    torch.manual_seed(0)
    loose = EmbeddingMetric(lambda x: torch.dropout(x.flatten(1), 0.5, True), SIDE, name="dropout")
    images = torch.rand(1, 3, SIDE, SIDE)
    fixed = loose.fix(torch.rand(2, 3, SIDE, SIDE))[None]
    rule = decision(torch.ones(1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"dropout gives the same images two margins .* deterministic"):
        smoothed_radii(loose, images, lambda metric: fixed, rule, Smoothing(BALL, SIGMA), RunSettings(), ["x"])


def test_a_margin_that_is_nan_is_told_with_its_sample():
    metric, at = plane()
    images = torch.stack([at(0.2), at(0.2) * torch.nan])
    with pytest.raises(ValueError, match="plane's margin under noise is NaN for second"):
        certified(metric, images, Smoothing(BALL, SIGMA), keys=["first", "second"])


# Evaluations


def pixels(side=16):
    return load_metric("l2", image_size=side)


def test_records_hold_what_was_proven(scenes):
    data = nights_data(scenes / "nights")
    attacks = [Smoothing(LpBall("l2", eps), sigma, n0=10, n=60) for sigma in (0.1, 0.4) for eps in (0.05, 1.0)]
    apgd_too = AttackSettings(LpBall("l2", 0.05), steps=2)
    records = evaluate(pixels(), data, [attacks[0], apgd_too, *attacks[1:]], RunSettings(chunk_size=64), quiet=True)
    [attacked] = [record for record in records if record["threat"]["attack"] == "apgd"]
    assert "smoothing" not in attacked and attacked["robust"]["samples"] == 6
    proven = [record for record in records if record["threat"]["attack"] == "smoothing"]
    assert [record["threat"]["sigma"] for record in proven] == [0.1, 0.1, 0.4, 0.4]
    for asked, record in zip(attacks, proven, strict=True):
        assert {key: record["threat"][key] for key in asked.describe()} == asked.describe()
        radii = certified_radii(record)
        assert record["robust"]["accuracy"] == pytest.approx(100 * sum(r > asked.ball.eps for r in radii) / 6, abs=1e-3)
        assert record["smoothing"]["right"]["accuracy"] == pytest.approx(100 * sum(r > 0 for r in radii) / 6, abs=1e-3)
        assert record["smoothing"]["draws"] == 6 * 70 + 16 and record["passes"] == 6 * 70 + 16 + 6 * 3
        assert record["smoothing"]["abstained"] == sum(
            abs(row.robust_margin + asked.ball.eps) < 1e-9 for row in unpack(record)
        )
        assert (
            "hold with confidence 99.9 % for each sample by itself, from 60 draws"
            in record["warnings"][-1 - (asked.ball.eps > asked.largest)]
        )
        assert any("prove no radius above" in text for text in record["warnings"]) == (asked.ball.eps > asked.largest)
        assert json.loads(json.dumps(record)) == record
        curve = certified_curve(record)
        assert curve["curve"][0] == [0.0, record["smoothing"]["right"]["accuracy"]] or max(radii) == 0
    # Both balls of a sigma are answered by the same draws.
    for one, other in (proven[:2], proven[2:]):
        assert certified_radii(one) == pytest.approx(certified_radii(other), abs=1e-5)


def test_samples_that_are_wrong_without_noise_take_part(scenes):
    def twisted(x, y):  # farther is more alike, unless the image is rough, as one with noise is
        rough = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)) > 0.3
        return torch.where(rough, 1, -1) * (x - y).flatten(1).norm(dim=1)

    metric, data = DistanceMetric(twisted, 16, name="twisted"), nights_data(scenes / "nights")
    strong, weak = Smoothing(LpBall("l2", 0.1), 0.5, n0=10, n=200), Smoothing(LpBall("l2", 0.01), 0.02, n0=10, n=60)
    records = evaluate(metric, data, [strong, weak], quiet=True)
    for record, right in zip(records, (True, False), strict=True):
        rows = unpack(record)
        assert record["clean"]["accuracy"] == 0 and record["robust"]["samples"] == len(rows) == 6
        assert record["robust"]["accuracy"] == record["smoothing"]["right"]["accuracy"] == 100 * right
        assert record["splits"]["test_imagenet"]["robust"]["accuracy"] == 100 * right
        signed = [row.robust_margin + record["threat"]["eps"] for row in rows]
        assert all(radius > 0.1 for radius in signed) if right else all(radius < -0.01 for radius in signed)
        assert certified_radii(record) == pytest.approx([max(0.0, radius) for radius in signed])


def test_results_do_not_depend_on_blocks_and_go_on_where_they_stopped(scenes, tmp_path):
    data, asked = nights_data(scenes / "nights"), [Smoothing(LpBall("l2", 0.05), 0.1, n0=10, n=60)]
    calls = []

    def counted(x, y):
        calls.append(len(x))
        if len(calls) == 20:
            raise KeyboardInterrupt
        return (x - y).flatten(1).norm(dim=1)

    metric = DistanceMetric(counted, 16, name="counted")
    one = RunSettings(batch_size=1, chunk_size=64)
    session = Session(tmp_path, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        session.records(data, metric, asked, one)
    stopped = len(calls)
    [journal] = (tmp_path / ".journal").rglob("*.jsonl")
    finished = len(journal.read_text().splitlines())
    assert 0 < finished < 6
    [resumed] = session.records(data, metric, asked, one)
    resumed_calls = len(calls) - stopped
    [whole] = evaluate(metric, data, asked, RunSettings(batch_size=6, chunk_size=64), quiet=True)
    assert [row.robust_margin for row in unpack(resumed)] == [row.robust_margin for row in unpack(whole)]
    [fresh] = evaluate(metric, data, asked, one, quiet=True)
    assert resumed_calls < len(calls) - stopped - resumed_calls  # less than whole and fresh together
    assert resumed["smoothing"]["draws"] == fresh["smoothing"]["draws"] == 6 * (70 + 16)
    assert load_results([tmp_path]) == [resumed]
    before = len(calls)
    assert session.records(data, metric, asked, one) == [resumed] and len(calls) == before
    for path in tmp_path.glob("*.json"):
        assert path.name == "counted@" + path.name.partition("@")[2] or path.name.startswith("counted__")
        assert path.stem.endswith("smoothing-l2-0.05-0.1sigma-10n0-60n")


def test_tables_and_plots_tell_sigmas_apart(scenes):
    data = nights_data(scenes / "nights")
    asked = [Smoothing(LpBall("l2", eps), sigma, n0=10, n=60) for sigma in (0.1, 0.4) for eps in (0.05, 0.1)]
    records = evaluate(pixels(), data, asked, RunSettings(chunk_size=64), quiet=True)
    head, _, _, *rest = table(records).splitlines()
    assert head.endswith("| l2 0.05 sigma 0.1 | l2 0.05 sigma 0.4 | l2 0.1 sigma 0.1 | l2 0.1 sigma 0.4 |")
    assert "Certificate: smoothing, n 60, n0 10, 99.9 % confidence." in rest[1]
    assert (
        "[1] l2, l2 0.05 sigma 0.1: The radii are those of the metric smoothed with sigma 0.1 on the reference"
        in rest[3]
    )
    assert "of 6 samples" in rest[3]
    lines = {line.get_label(): line for line in figure(records).axes[0].get_lines()}
    assert list(lines) == ["l2, sigma 0.1", "l2, sigma 0.4"]
    for line, record in zip(lines.values(), (records[0], records[2]), strict=True):
        assert (
            list(line.get_xdata()) == [0, 0.05, 0.1] and line.get_ydata()[0] == record["smoothing"]["right"]["accuracy"]
        )


def test_odd_one_out_has_noise_on_all_three_images(scenes):
    things = read_things(scenes / "things", scenes / "things" / "images")
    data, metric = OddOneOutData("things", things), pixels()
    [record] = evaluate(metric, data, [Smoothing(BALL, 0.25, n0=20, n=60)], RunSettings(chunk_size=60), quiet=True)
    assert record["smoothing"]["draws"] == 6 * 3 * 80 + 3 * 16 and record["smoothing"]["noise_on"] == "all three images"
    assert "on all three images" in record["warnings"][-1]
    # The answer is no secret that noise tells: another odd image is certified wrong where this one is right.
    radii = [row.robust_margin + BALL.eps for row in unpack(record)]
    others = OddOneOutData("things", replace(things, odd=(things.odd + 1) % 3))
    [other] = evaluate(metric, others, [Smoothing(BALL, 0.25, n0=20, n=60)], RunSettings(chunk_size=60), quiet=True)
    assert any(radius > 0 for radius in radii) or any(row.robust_margin + BALL.eps > 0 for row in unpack(other))
    for one, row in zip(radii, unpack(other), strict=True):
        assert not (one > 0 and row.robust_margin + BALL.eps > 1e-9)
    # With embeddings each image is embedded, and the decisions are those of the same pixels' cosines.
    flat = EmbeddingMetric(lambda images: images.flatten(1), 16, name="cosine of pixels")
    plain = DistanceMetric(lambda x, y: 1 - torch.cosine_similarity(x.flatten(1), y.flatten(1)), 16, name="cosine")
    [a], [b] = (evaluate(m, data, [Smoothing(BALL, 0.1, n0=20, n=60)], RunSettings(chunk_size=60), quiet=True)
                for m in (flat, plain))  # fmt: skip
    assert certified_radii(a) == certified_radii(b) and any(certified_radii(a))


def test_a_metrics_own_certificate_is_refused_for_three_pairs(scenes):
    things = read_things(scenes / "things", scenes / "things" / "images")
    with pytest.raises(ValueError, match="about two options, not three pairs: use smoothing"):
        evaluate(pixels(), OddOneOutData("things", things), [Certificate(BALL)], quiet=True)


def test_radii_of_a_metrics_own_certificate_are_read_as_before(scenes):
    [record] = evaluate(pixels(), nights_data(scenes / "nights"), [Certificate(BALL)], quiet=True)
    radii = certified_radii(record)
    for radius, row in zip(radii, unpack(record), strict=True):
        assert radius == (row.robust_margin + 0.1 if row.clean else 0.0)
    # Of a metric with an exact radius the smoothed one proves less, on the same side.
    [smoothed] = evaluate(pixels(), nights_data(scenes / "nights"), [Smoothing(BALL, 0.25)], quiet=True)
    for exact, proven in zip(radii, certified_radii(smoothed), strict=True):
        assert proven <= exact + 1e-6


def test_decisions_are_those_of_the_rule():
    # A task of its own rule: right where the first similarity is below the second.
    def decide(similarities, indices):
        margin = similarities[:, 1] - similarities[:, 0] - 0.2
        return Decisions(-margin, margin, margin <= 0)

    metric, at = plane()
    image = at(0.3)[None]
    found = smoothed_radii(
        metric, image, lambda m: torch.zeros(1, 2), decide, Smoothing(BALL, SIGMA), RunSettings(), ["x"]
    )
    slope = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).norm().item()
    assert 0.75 * (0.3 - 0.2 / slope) < found.radius.item() < 0.3 - 0.2 / slope


def test_of_a_decision_against_the_majority_nothing_is_certified_by_a_soft_protocol_either():
    # 80 % of people chose what the metric did, or 20 %, and then what is certified is a wrong answer.
    rows = [Outcome("1", "all", 0.8, False, 0.2, 0.8, 0.25), Outcome("2", "all", 0.2, False, -0.2, 0.0, -0.75)]
    rows += [Outcome("3", "all", 0.2, False, -0.2, 0.2, 0.25), Outcome("4", "all", 0.5, True, 0.0, 0.5, -0.5)]
    about = {"task": "2afc", "model": {"name": "m"}, "data": {"name": "d", "protocol": "soft"}, "effort": Effort(1.0)}
    proven = result(rows, threat=Certificate(LpBall("l2", 0.5)).describe(), **about)
    assert certified_radii(proven) == [0.75, 0.0, 0.0, 0.0]
