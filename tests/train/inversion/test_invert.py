"""Inversion against closed forms on linear encoders, its settings, and what it refuses."""

import itertools
import math

import pytest
import torch

from rclip_metric.distance import normalize
from rclip_metric.train.attacks.step_sizes import Halving
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.inversion import (
    InversionSettings,
    grey,
    high_frequency,
    invert,
    synthesise,
    total_variation,
)
from rclip_metric.train.inversion.multi_view import SHIFT, Views
from rclip_metric.train.runs.seeds import seeded

from support.encoders import VIT, small_encoder

SIDE, DIMENSION = 8, 6


@pytest.fixture(scope="module")
def rows():
    """Orthonormal rows (D, 3 * 8 * 8) of a linear encoder."""
    return torch.linalg.qr(torch.randn(3 * SIDE**2, DIMENSION, generator=seeded(1)))[0].T


@pytest.fixture(scope="module")
def linear(rows):
    return lambda images: images.flatten(1) @ rows.T


@pytest.fixture(scope="module")
def encoder():
    return small_encoder(VIT, spread=True)


@pytest.mark.parametrize("eps", [0.1, 0.4])
def test_a_linear_encoder_is_inverted_as_the_formula_says(rows, linear, eps):
    """The best point of a ball of radius eps around a = W z touches the ray that is asin(eps / |a|) nearer to t."""
    start = grey(SIDE, seeds=range(5))
    a, t = linear(start), torch.randn(5, DIMENSION, generator=seeded(2))
    length, t_unit, a_unit = a.norm(dim=1, keepdim=True), normalize(t), normalize(a)
    angle = (a_unit * t_unit).sum(1).acos()
    turn = torch.asin(eps / length[:, 0])
    assert (turn < angle).all()  # else the target itself is in reach
    across = normalize(t_unit - (a_unit * t_unit).sum(1, keepdim=True) * a_unit)
    ray = a_unit * turn.cos()[:, None] + across * turn.sin()[:, None]
    best = start + ((ray * (length**2 - eps**2).sqrt() - a) @ rows).view_as(start)

    found = invert(linear, t, start=start, ball=LpBall("l2", eps), steps=200)
    assert torch.allclose(found.similarities, (angle - turn).cos(), atol=1e-4)
    assert (found.images - best).abs().max() < 0.02 * eps
    assert LpBall("l2", eps).violation(found.images, start) < 1e-6


def test_a_target_in_reach_is_reached(linear):
    start = grey(SIDE, seeds=[0])
    target = torch.randn(1, DIMENSION, generator=seeded(3))
    found = invert(linear, target, start=start, ball=LpBall("l2", 3.0), steps=200)
    assert found.similarities.item() == pytest.approx(1, abs=1e-5)
    other = invert(linear, 7 * target, start=start, ball=LpBall("l2", 3.0), steps=200)  # length does not count
    assert other.similarities.item() == pytest.approx(1, abs=1e-5)


def test_the_settings_are_the_papers():
    settings = InversionSettings()
    assert (settings.method, settings.steps, settings.noise) == ("apgd", 500, 8 / 255)
    assert settings.ball(224) == LpBall("l2", 100.0) and settings.ball(112).eps == 50
    schedule = Halving(1, settings.steps, settings.ball(224).eps, 0.75, torch.device("cpu"))
    assert schedule.size.item() == 200  # the paper's first step
    start = grey(64, seeds=[5])
    assert (start - 0.5).abs().max() <= 8 / 255 and start.std().item() == pytest.approx(
        8 / 255 / math.sqrt(3), rel=0.02
    )
    assert "views" not in settings.describe() and "radius" not in InversionSettings("multi-view").describe()


def test_more_steps_are_never_worse(encoder):
    target = encoder(torch.rand(2, 3, 32, 32, generator=seeded(4)))
    found = [invert(encoder, target, start=grey(32, [0, 1]), steps=steps).similarities for steps in (1, 10, 40, 160)]
    for fewer, more in itertools.pairwise(found):
        assert (more >= fewer).all(), found
    assert (found[-1] > 0.95).all() and (found[-1] > found[0] + 0.01).all()


def test_seeds_differ_and_the_batch_does_not_matter(linear):
    targets = torch.randn(3, DIMENSION, generator=seeded(5))
    ball = LpBall("l2", 0.4)
    together = invert(linear, targets, start=grey(SIDE, [3, 4, 5]), ball=ball, steps=30)
    for chunk_size in (1, 2):
        chunks = invert(linear, targets, start=grey(SIDE, [3, 4, 5]), ball=ball, steps=30, chunk_size=chunk_size)
        assert torch.allclose(chunks.images, together.images, atol=2e-3)
    alone = invert(linear, targets[1:2], start=grey(SIDE, [4]), ball=ball, steps=30)
    assert torch.allclose(alone.images[0], together.images[1], atol=2e-3)
    seeds = invert(linear, targets[:1], start=grey(SIDE, [3, 4]), ball=ball, steps=30)  # one target, two starts
    assert torch.allclose(seeds.images[0], together.images[0], atol=2e-3)
    assert (seeds.images[0] - seeds.images[1]).abs().max() > 0.01


def test_every_step_is_told_of(linear):
    told = []
    target = torch.ones(1, DIMENSION)
    start = grey(SIDE, [0, 1, 2])
    invert(linear, target, start=start, steps=4, chunk_size=2, watch=lambda step, at: told.append((step, len(at))))
    assert told == [(step, 2) for step in range(5)] + [(step, 1) for step in range(5)]
    told.clear()
    few = {"steps": 3, "views": 2, "seeds": [0, 1, 2]}
    synthesise(linear, target, start=start, watch=lambda step, at: told.append((step, len(at))), **few)
    assert told == [(step, 3) for step in range(4)]


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        (torch.ones(1, 5), {}, "the target embedding has 5 numbers, and those of this model have 6"),
        (torch.tensor([[1.0, math.nan, 1, 1, 1, 1]]), {}, "holds NaN or infinity"),
        (torch.tensor([[1.0, math.inf, 1, 1, 1, 1]]), {}, "holds NaN or infinity"),
        (torch.zeros(1, 6), {}, "length zero has no direction"),
        (torch.ones(6), {}, r"must be \(N, D\)"),
        (torch.ones(2, 6), {}, "equally many, or one of them 1: got 2, 3"),
        (torch.ones(1, 6), {"steps": 0}, "at least 1 step, and has 0"),
        (torch.ones(1, 6), {"start": torch.zeros(3, 8, 8)}, r"start must be \(N, 3, S, S\)"),
    ],
)
@pytest.mark.parametrize("function", [invert, synthesise])
def test_bad_input_is_refused(linear, function, target, settings, message):
    own = {"seeds": [0, 1, 2]} if function is synthesise else {}
    with pytest.raises(ValueError, match=message):
        function(linear, target, **{"start": grey(SIDE, [0, 1, 2]), "steps": 2, **own, **settings})


def test_an_encoder_that_gives_nothing_finite_is_refused():
    with pytest.raises(ValueError, match="gave no finite embedding"):
        invert(lambda images: images.flatten(1)[:, :6] * math.nan, torch.ones(1, 6), start=grey(8, [0]), steps=2)


@pytest.mark.parametrize(
    "wrong", [{"method": "adam"}, {"steps": 0}, {"radius": 0.0}, {"radius": math.nan}, {"noise": 0.6}, {"views": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        InversionSettings(**wrong)


def neutral(count=1, **other):
    """Views that change nothing, but for what is given; the hole lies outside."""
    outside = torch.full((count, 2), 10 * SIDE)
    still = {"colour": torch.full((count, 3), 0.5), "shift": torch.zeros(count, 2, dtype=torch.long), "hole": outside}
    return Views(**{**still, **other})


def test_views_are_what_they_say():
    image = torch.rand(3, SIDE, SIDE, generator=seeded(6))
    assert torch.allclose(neutral().of(image)[0], image, atol=1e-6)
    shifted = neutral(shift=torch.tensor([[1, -1]])).of(image)[0]  # one down, one to the left; grey comes in
    assert torch.allclose(shifted[:, 1:, :-1], image[:, :-1, 1:], atol=1e-6)
    assert (shifted[:, 0] == 0.5).all() and (shifted[:, :, -1] == 0.5).all()
    cut = neutral(hole=torch.tensor([[-2, 3]])).of(image)[0]  # 4 x 4, of which two rows are outside
    assert (cut[:, :2, 3:7] == 0.5).all() and torch.allclose(cut[:, 2:], image[:, 2:], atol=1e-6)
    brighter = neutral(colour=torch.tensor([[1.0, 0.5, 0.5]])).of(image)[0]
    assert torch.allclose(brighter, image + 0.25, atol=1e-6)
    grey_one = neutral(colour=torch.tensor([[0.5, 0.0, 0.5]])).of(image)[0]
    assert torch.allclose(grey_one, image.mean(0, keepdim=True).expand(3, -1, -1), atol=1e-6)
    flat = neutral(colour=torch.tensor([[0.5, 0.5, 0.0]])).of(image)[0]
    assert torch.allclose(flat, (image + image.mean()) / 2, atol=1e-6)


def test_views_are_drawn_from_seed_and_step_and_within_their_ranges():
    drawn = Views.draw(500, 64, seed=3, step=9)
    again = Views.draw(500, 64, seed=3, step=9)
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
    assert not torch.equal(drawn.shift, Views.draw(500, 64, seed=3, step=10).shift)
    reach = round(64 * SHIFT)
    assert drawn.shift.min() == -reach and drawn.shift.max() == reach
    assert drawn.hole.min() == -16 and drawn.hole.max() == 48  # the hole is 32 wide, its centre anywhere


def test_gradients_of_views_are_right():
    image = torch.rand(3, SIDE, SIDE, generator=seeded(7), dtype=torch.float64).requires_grad_()
    drawn = Views.draw(3, SIDE, seed=0, step=0)
    assert torch.autograd.gradcheck(drawn.of, image)


def test_synthesis_finds_what_it_looks_for_and_depends_on_no_batch(encoder):
    targets = encoder(torch.rand(2, 3, 32, 32, generator=seeded(8)))
    few = {"steps": 30, "views": 4}
    start = grey(32, [0, 1])
    found = synthesise(encoder, targets, start=start, seeds=[0, 1], **few)
    views = Views.draw(64, 32, seed=99, step=0)  # others than it has seen
    for image, begun, target in zip(found.images, start, normalize(targets), strict=True):
        after, before = ((normalize(encoder(views.of(seen))) @ target).mean() for seen in (image, begun))
        assert after > before + 0.05, (after, before)
    assert found.images.min() >= 0 and found.images.max() <= 1
    one = {"start": start[1:], "seeds": [1], "steps": 3, "views": 4}
    alone = synthesise(encoder, targets[1:], **one)
    chunks = synthesise(encoder, targets[1:], chunk_size=3, **one)
    both = synthesise(encoder, targets, start=start, seeds=[0, 1], steps=3, views=4)
    assert torch.allclose(chunks.images, alone.images, atol=1e-3)
    assert torch.allclose(both.images[1:], alone.images, atol=1e-3)
    other = synthesise(encoder, targets[1:], **{**one, "seeds": [2]})  # other views
    assert (other.images - alone.images).abs().max() > 1e-3
    with pytest.raises(ValueError, match="one per image: got 1 for 2"):
        synthesise(encoder, targets, start=start, seeds=[0], **few)


def test_synthesis_starts_at_the_start(encoder):
    first = []
    start = grey(32, [0])
    few = {"start": start, "seeds": [0], "steps": 1, "views": 1}
    synthesise(encoder, encoder(start), watch=lambda step, images: first.append(images), **few)
    assert torch.allclose(first[0], start, atol=1e-6)


def test_statistics_are_their_definitions():
    image = torch.rand(1, 3, 6, 7, generator=seeded(9))
    steps_down = [abs(image[0, c, i + 1, j] - image[0, c, i, j]) for c in range(3) for i in range(5) for j in range(7)]
    steps_right = [abs(image[0, c, i, j + 1] - image[0, c, i, j]) for c in range(3) for i in range(6) for j in range(6)]
    expected = sum(steps_down) / len(steps_down) + sum(steps_right) / len(steps_right)
    assert total_variation(image).item() == pytest.approx(expected.item(), rel=1e-5)
    noise = torch.rand(4, 3, 128, 128, generator=seeded(10))
    assert torch.allclose(high_frequency(noise), torch.tensor(1 - math.pi / 16), atol=0.01)
    x = torch.arange(64.0)
    for period, share in ((8, 0.0), (3, 1.0)):  # 1/8 and 1/3 of a cycle per pixel
        wave = (0.5 + 0.4 * torch.cos(2 * math.pi * x / period)).expand(1, 3, 48, 64)[..., : 48 if period == 3 else 64]
        assert high_frequency(wave).item() == pytest.approx(share, abs=1e-6)
