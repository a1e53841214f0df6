"""Square Attack: closed-form optima, the feasible set, batches and judges, and a loss without gradients."""

import math
from itertools import pairwise

import pytest
import torch

from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.base import LossAndSuccess
from rclip_metric.train.attacks.square import BLOCK, square
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.runs.seeds import seeded

LINF, L2 = LpBall("linf", 8 / 255), LpBall("l2", 0.5)
both_balls = pytest.mark.parametrize("ball", [LINF, L2], ids=str)


def channel_weights(images):
    return torch.randn(*images.shape[:2], 1, 1, generator=seeded(1)).expand_as(images)


def smooth_weights(images):
    down, across = (torch.linspace(-1, 1, length) for length in images.shape[2:])
    return torch.exp(-2 * (down[:, None] ** 2 + across**2)) * channel_weights(images)


def linear_loss(images, weights):
    return lambda points, alive: ((points - images[alive]) * weights[alive]).flatten(1).sum(1)


def problem(count, ball, shape=(9, 12), weighted=smooth_weights):
    """Images away from the box, <w, delta>, and its maximum: eps * ||w||_1 in an l_inf ball, eps * ||w||_2 in l_2."""
    images = 0.3 + 0.4 * torch.rand(count, 3, *shape, generator=seeded(count, *shape))
    weights = weighted(images)
    dual = torch.linalg.vector_norm(weights.flatten(1), 1 if ball.norm == "linf" else 2, dim=1)
    return images, linear_loss(images, weights), ball.eps * dual


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (9, 12)], ids=str)
def test_linf_reaches_the_optimum_of_a_linear_loss(shape):
    images, value, best = problem(4, LINF, shape, channel_weights)
    found = square(value, images, LINF, 1500, seeds=range(4))
    assert (found.loss / best).min() > 0.97 and (found.loss / best).max() < 1 + 1e-5
    assert found.evaluations == 4 * 1500 and found.gradients == 0 and not found.success.any()


def test_l2_gets_a_good_share_of_the_optimum_of_a_smooth_linear_loss():
    images, value, best = problem(4, L2, (12, 12))
    start, share = (square(value, images, L2, queries, seeds=range(4)).loss / best for queries in (1, 1000))
    assert share.min() > 0.4 and share.mean() > 0.5 and share.max() <= 1 and (share > start + 0.3).all()


@pytest.mark.parametrize("ball", [LINF, L2, LpBall("linf", 0.3), LpBall("l2", 3.0), LpBall("l2", 0.0)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 7), (12, 4), (24, 24)], ids=str)
def test_no_query_leaves_ball_or_box(ball, shape):
    images = torch.rand(3, 3, *shape, generator=seeded(3, *shape)).mul(1.4).sub(0.2).clamp(0, 1)  # some are 0 or 1
    worst = []

    def loss(points, alive):
        assert points.isfinite().all()
        worst.append(ball.violation(points, images[alive]))
        return linear_loss(images, channel_weights(images))(points, alive)

    found = square(loss, images, ball, 40, seeds=range(3))
    assert len(worst) == 40 and max(worst) <= 1e-6
    assert ball.violation(found.images, images) <= 1e-6


@both_balls
def test_what_is_returned_is_the_best_point_queried(ball):
    images, value, _ = problem(3, ball)
    history = []

    def loss(points, alive):
        history.append(value(points, alive))
        return history[-1]

    found = square(loss, images, ball, 120, seeds=range(3))
    best_so_far = torch.stack(history).cummax(0).values
    assert torch.equal(found.loss, best_so_far[-1]) and torch.equal(value(found.images, torch.arange(3)), found.loss)
    assert (best_so_far[-1] > best_so_far[20]).all() and (best_so_far[20] > best_so_far[0]).all()


@both_balls
def test_a_sample_does_not_depend_on_its_batch(ball):
    images, value, best = problem(5, ball)
    bar = best * torch.tensor([0.2, math.inf, 0.3, 0.0, 0.4])  # fooled early, late and never

    def attacked(rows):
        kept = torch.tensor(rows)

        def loss(points, alive):
            found = value(points, kept[alive])
            return LossAndSuccess(found, found > bar[kept[alive]])

        return square(loss, images[kept], ball, BLOCK + 40, seeds=[10 * row + 5 for row in rows])

    together = attacked([0, 1, 2, 3, 4])
    assert together.success.tolist() == [True, False, True, True, True]
    for rows in ([0], [1], [2], [3], [4], [4, 2, 0, 1]):
        found = attacked(rows)
        assert torch.equal(found.images, together.images[rows]) and torch.equal(found.success, together.success[rows])
        torch.testing.assert_close(found.loss, together.loss[rows], rtol=1e-6, atol=1e-6)


@both_balls
def test_the_seeds_or_the_generator_decide_the_path(ball):
    images, value, _ = problem(3, ball)
    one, two, three = (
        square(value, images, ball, 9, seeds=seeds).images for seeds in ([1, 2, 3], [1, 2, 3], [1, 2, 4])
    )
    assert torch.equal(one, two) and [torch.equal(a, b) for a, b in zip(one, three, strict=True)] == [True, True, False]
    one, two, three = (square(value, images, ball, 9, generator=seeded(number)).images for number in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_fooled_samples_leave_at_once_with_the_point_that_fooled():
    images, _, _ = problem(3, L2)
    fooled_at = torch.tensor([2, 10**6, 5])
    seen = []

    def loss(points, alive):
        seen.append((points.clone(), alive.tolist()))
        ever_lower = torch.full((len(alive),), -float(len(seen)))
        return LossAndSuccess(ever_lower, fooled_at[alive] == len(seen) - 1)

    found = square(loss, images, L2, 8, seeds=range(3))
    assert [alive for _, alive in seen] == [[0, 1, 2]] * 3 + [[1, 2]] * 3 + [[1]] * 2
    assert found.evaluations == 9 + 6 + 2 and found.success.tolist() == [True, False, True]
    assert torch.equal(found.images[0], seen[2][0][0]) and torch.equal(found.images[2], seen[5][0][1])
    assert torch.equal(found.images[1], seen[0][0][1])  # no candidate was better than the start
    assert found.loss.tolist() == [-3.0, -1.0, -6.0]


def test_it_stops_when_all_are_fooled_and_takes_an_empty_batch():
    images, value, _ = problem(2, LINF)
    found = square(value, images, LINF, 50, seeds=[1, 2], succeeded=lambda loss, _: loss > -torch.inf)
    assert found.evaluations == 2 and found.success.all()
    nothing = square(value, images[:0], LINF, 50, seeds=[])
    assert nothing.images.shape == (0, 3, 9, 12) and nothing.loss.shape == nothing.success.shape == (0,)


@pytest.mark.parametrize(("ball", "enough"), [(LINF, 0.6), (L2, 0.35)], ids=str)
def test_only_confirmed_successes_count(ball, enough):
    images, value, best = problem(4, ball)
    asked = [[] for _ in images]

    def claimed(loss, alive):
        return loss > 0.05 * best[alive]

    def confirm(points, alive):
        loss = value(points, alive)
        assert claimed(loss, alive).all()  # candidate successes only
        for row, one in zip(alive.tolist(), loss.tolist(), strict=True):
            asked[row].append(one)
        return (loss > enough * best[alive]) & (alive != 3)

    found = square(value, images, ball, 300, seeds=range(4), succeeded=claimed, confirm=confirm)
    assert found.success.tolist() == [True, True, True, False]
    assert (found.loss[:3] > enough * best[:3]).all()
    for losses in asked:  # more than one each, and after a refusal only about what is better
        assert len(losses) > 1 and all(later > former for former, later in pairwise(losses))


@both_balls
def test_no_gradient_is_asked_for(ball):
    images, value, _ = problem(2, ball)

    def loss(points, alive):
        assert not torch.is_grad_enabled() and not points.requires_grad
        return value(points, alive)

    found = square(loss, images.clone().requires_grad_(), ball, 5, seeds=[1, 2])
    assert not found.images.requires_grad and not found.loss.requires_grad
    assert found.gradients == found.zero_gradients == 0


@both_balls
def test_it_fools_a_loss_with_masked_gradients_that_apgd_cannot(ball):
    images, value, best = problem(4, ball)

    def smooth(points, alive):
        return value(points, alive) / best[alive]

    def stairs(points, alive):
        return (200 * smooth(points, alive)).floor() / 200  # its gradient exists, and is zero everywhere

    def succeeded(loss, alive):
        return loss > 0.4

    seeds = range(4)
    masked, unmasked = (apgd(loss, images, ball, 30, seeds=seeds, succeeded=succeeded) for loss in (stairs, smooth))
    assert masked.zero_gradients == 4 and not masked.success.any() and unmasked.success.all()
    assert square(stairs, images, ball, 600, seeds=seeds, succeeded=succeeded).success.all()


def test_a_nan_is_never_kept():
    images, value, _ = problem(2, LINF)
    calls = []

    def loss(points, alive):
        calls.append(len(alive))
        found = value(points, alive)
        return torch.where(torch.tensor([len(calls) % 2 == 1, True]), torch.nan, found)

    found = square(loss, images, LINF, 30, seeds=[1, 2])
    assert found.loss[0].isfinite() and torch.equal(found.loss[:1], value(found.images, torch.arange(2))[:1])
    assert found.loss[1] == -math.inf and LINF.violation(found.images, images) <= 1e-6


def test_what_it_cannot_do_is_refused():
    images, value, _ = problem(2, LINF)
    with pytest.raises(ValueError, match="linf and l2 balls and this one is l1: use apgd"):
        square(value, images, LpBall("l1", 1.0), 10, seeds=[1, 2])
    with pytest.raises(ValueError, match="neither seeds nor a generator"):
        square(value, images, LINF, 10)
    with pytest.raises(ValueError, match="one per image: got 3 for 2 images"):
        square(value, images, LINF, 10, seeds=[1, 2, 3])
    with pytest.raises(ValueError, match="queries must be at least 1"):
        square(value, images, LINF, 0, seeds=[1, 2])
    with pytest.raises(ValueError, match="share in"):
        square(value, images, LINF, 10, seeds=[1, 2], share=1.5)
