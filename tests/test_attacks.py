"""Threat models and attacks, against optima that are formulas."""

import math

import pytest
import torch

from rclip_metric.train.apgd import apgd, checkpoints, pgd
from rclip_metric.train.data.images import seeded
from rclip_metric.train.threat import LpBall

ULP = 2.0**-24  # the spacing of float32 just below 1
BALLS = [LpBall("linf", 4 / 255), LpBall("l2", 0.5)]


def interior_images(count):
    return 0.3 + 0.4 * torch.rand(count, 3, 6, 5, generator=seeded(count))


def linear_loss(weights):
    return lambda images, alive: (images * weights[alive]).flatten(1).sum(1)


def linear_optimum(ball, weights, images):
    """max <w, x + delta>: eps * ||w||_1 for l_inf and eps * ||w||_2 for l_2 above the clean value (box inactive)."""
    flat = weights.flatten(1)
    gain = flat.abs().sum(1) if ball.norm == "linf" else flat.norm(dim=1)
    return (images * weights).flatten(1).sum(1) + ball.eps * gain


@pytest.mark.parametrize("ball", BALLS, ids=str)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_apgd_reaches_the_optimum_of_a_linear_loss(ball, count):
    images = interior_images(count)
    weights = torch.randn(images.shape, generator=seeded(7, count))
    found = apgd(linear_loss(weights), images, ball, 30, start=ball.start(images, list(range(count))))
    torch.testing.assert_close(found.loss, linear_optimum(ball, weights, images), rtol=1e-4, atol=1e-4)
    assert ball.violation(found.images, images) <= 2 * ULP
    assert found.stalled == 0


def test_apgd_stays_in_the_box_and_finds_the_corner():
    images = torch.rand(4, 3, 5, 5, generator=seeded(1)).round()  # every value is 0 or 1
    weights = torch.randn(images.shape, generator=seeded(2))
    ball = LpBall("linf", 0.25)
    found = apgd(linear_loss(weights), images, ball, 20)
    expected = (images + 0.25 * weights.sign()).clamp(0, 1)
    torch.testing.assert_close(found.images, expected)


def test_a_success_leaves_the_batch_at_its_first_point_and_the_others_go_on():
    images = interior_images(3)
    weights = torch.ones_like(images)
    base = (images * weights).flatten(1).sum(1)
    bar = torch.tensor([-math.inf, 0.5, math.inf])  # at once, on the way, never
    seen = []

    def loss(points, alive):
        seen.append(alive.tolist())
        return linear_loss(weights)(points, alive)

    found = apgd(
        loss,
        images,
        LpBall("linf", 4 / 255),
        10,
        succeeded=lambda value, alive: value - base[alive] > bar[alive],
    )
    assert found.success.tolist() == [True, True, False]
    assert seen[0] == [0, 1, 2] and seen[1] == [1, 2] and seen[-1] == [2] and len(seen) == 11
    torch.testing.assert_close(found.images[0], images[0])
    assert found.gradients == sum(len(alive) for alive in seen) - 1  # the last point is judged without a gradient


def test_the_path_of_a_sample_does_not_depend_on_its_batch():
    images = interior_images(8)
    weights = torch.randn(images.shape, generator=seeded(5))
    ball = LpBall("l2", 0.5)

    def bumpy(points, alive):
        return torch.sin(20 * points * weights[alive]).flatten(1).sum(1)

    together = apgd(bumpy, images, ball, 25, start=ball.start(images, list(range(8))))
    for i in (0, 5):
        one = apgd(
            lambda points, alive, i=i: bumpy(points, alive + i),
            images[i : i + 1], ball, 25, start=ball.start(images[i : i + 1], [i]),
        )  # fmt: skip
        torch.testing.assert_close(one.images[0], together.images[i])


def test_best_loss_never_falls_and_starts_above_the_start():
    images = interior_images(4)
    weights = torch.randn(images.shape, generator=seeded(9))

    def bumpy(points, alive):
        return torch.cos(60 * points * weights[alive]).flatten(1).sum(1)

    ball = BALLS[0]
    losses = [apgd(bumpy, images, ball, steps, start=ball.start(images, [0, 1, 2, 3])).loss for steps in (0, 3, 6)]
    # The first steps (before any review) are the same path, so a longer run cannot end lower.
    assert (losses[1] >= losses[0]).all() and (losses[2] >= losses[1]).all()
    assert (losses[2] > losses[0]).all()


def test_flat_and_broken_gradients_are_counted():
    images = interior_images(3)
    scale = torch.tensor([0.0, 1.0, math.nan])
    found = apgd(lambda points, alive: points.flatten(1).sum(1) * scale[alive], images, BALLS[0], 5)
    assert found.stalled == 2
    assert found.images.isfinite().all()


def test_review_points_are_those_of_the_paper():
    # Croce & Hein 2020: p = 0.22, then periods 0.03 shorter down to 0.06.
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_pgd_with_enough_steps_reaches_the_linear_optimum():
    images = interior_images(3)
    weights = torch.randn(images.shape, generator=seeded(3))
    ball = LpBall("linf", 4 / 255)
    noise = torch.rand(images.shape, generator=seeded(4)) * 2 - 1
    found = pgd(lambda z: (z * weights).flatten(1).sum(1), images, ball, 10, 1 / 255, noise=noise)
    torch.testing.assert_close(found, images + ball.eps * weights.sign())
    still = pgd(lambda z: (z * weights).flatten(1).sum(1), images, ball, 0, 1 / 255, noise=noise)
    torch.testing.assert_close(still, images + ball.eps * noise)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_projection_is_idempotent_and_inside(ball):
    centre = torch.rand(6, 3, 4, 4, generator=seeded(1))
    far = centre + torch.randn(centre.shape, generator=seeded(2))
    inside = ball.project(far, centre)
    assert ball.violation(inside, centre) <= 2 * ULP
    torch.testing.assert_close(ball.project(inside, centre), inside)
    assert ball.violation(far, centre) > 0.1


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_a_start_is_random_per_seed_and_fills_the_ball(ball):
    centre = torch.full((3, 3, 8, 8), 0.5)
    start = ball.start(centre, [1, 2, 1])
    assert torch.equal(start[0], start[2]) and not torch.equal(start[0], start[1])
    delta = (start - centre).flatten(1)
    if ball.norm == "l2":
        torch.testing.assert_close(delta.norm(dim=1), torch.full((3,), ball.eps))
    else:
        assert (delta.abs() <= ball.eps + ULP).all() and delta.abs().max() > 0.95 * ball.eps


def test_bad_balls_are_refused():
    with pytest.raises(ValueError, match="'l3'"):
        LpBall("l3", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        LpBall("l2", -1)
    assert str(LpBall("linf", 4 / 255)) == "linf 4/255" and str(LpBall("l2", 0.857)) == "l2 0.857"
