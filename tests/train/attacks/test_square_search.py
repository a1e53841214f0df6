"""Square Attack, query by query, against the same search written out for one sample in numpy float64."""

import math

import numpy as np
import pytest
import torch

from rclip_metric.train.attacks.square import BLOCK, bumps, square, window_side
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.runs.seeds import seeded

LINF, L2 = LpBall("linf", 8 / 255), LpBall("l2", 0.5)


def eta_by_nesting(side):
    """The authors' way: pile up nested rectangles around the middle, the j-th of weight 1 / j^2."""

    def pile(height, width):
        found = np.zeros((height, width))
        for j in range(1, max(height, width) // 2 + 2):
            top, left = height // 2 - j + 1, width // 2 - j + 1
            found[max(0, top) : top + 2 * j - 1, max(0, left) : left + 2 * j - 1] += 1 / j**2
        return found / np.linalg.norm(found)

    found = np.concatenate([pile(side // 2, side), -pile(side - side // 2, side)])
    return found / np.linalg.norm(found)


def sign(uniform):
    return np.where(uniform < 0.5, -1.0, 1.0)


def started(image, ball, generator):
    (channels, height, width), delta = image.shape, np.zeros_like(image)
    if ball.norm == "linf":
        return image + ball.eps * sign(torch.rand(channels, width, generator=generator).numpy())[:, None]
    cell = min(height, width) // 5
    down, across = height // cell, width // cell
    drawn = torch.rand(1 + channels, down, across, generator=generator).numpy()
    for row, column in np.ndindex(down, across):
        top, left = (height - down * cell) // 2 + row * cell, (width - across * cell) // 2 + column * cell
        eta = eta_by_nesting(cell).T if drawn[0, row, column] < 0.5 else eta_by_nesting(cell)
        delta[:, top : top + cell, left : left + cell] = sign(drawn[1:, row, column])[:, None, None] * eta
    return image + ball.eps * delta / np.linalg.norm(delta)


def searched(loss, image, ball, queries, seed):
    """The same search for one sample, in float64 with slices: every candidate (queries, C, H, W), and the best loss."""
    generator, eps = torch.Generator().manual_seed(seed), ball.eps
    channels, *size = image.shape
    best = np.clip(started(image, ball, generator), 0, 1)
    path, best_loss = [best], loss(best)
    stream = torch.rand(BLOCK, channels + (2 if ball.norm == "linf" else 5), generator=generator).double().numpy()
    for query in range(1, queries):
        u, side, delta = stream[query], window_side(query - 1, queries, 0.8, ball, *size), best - image
        top, left, top2, left2 = (math.floor(u[i] * (size[i % 2] - side + 1)) for i in range(4))
        first = (slice(top, top + side), slice(left, left + side))
        if ball.norm == "linf":
            for c in range(channels):
                delta[c][first] = np.clip(delta[c][first] + 2 * eps * sign(u[2 + c]), -eps, eps)
        else:
            second = (slice(top2, top2 + side), slice(left2, left2 + side))
            eta = eta_by_nesting(side).T if u[4] < 0.5 else eta_by_nesting(side)
            union = np.zeros(size, dtype=bool)
            union[first] = union[second] = True
            unused = max(0.0, eps**2 - (delta**2).sum())
            for c in range(channels):
                budget, held = (
                    math.sqrt((delta[c][union] ** 2).sum() + unused / channels),
                    np.linalg.norm(delta[c][first]),
                )
                new = sign(u[5 + c]) * eta + (delta[c][first] / held if held > 0 else 0)
                delta[c][second] = 0
                delta[c][first] = new / np.linalg.norm(new) * budget
        path.append(np.clip(image + delta, 0, 1))
        if loss(path[-1]) > best_loss:
            best, best_loss = path[-1], loss(path[-1])
    return np.stack(path), best_loss


@pytest.mark.parametrize("ball", [LINF, L2], ids=str)
@pytest.mark.parametrize("shape", [(10, 10), (9, 12), (26, 13)], ids=str)
def test_every_query_is_the_one_of_the_written_out_search(ball, shape):
    """In float64: where eta and the old direction nearly cancel, Algorithm 3 magnifies rounding a million times."""
    images = torch.rand(3, 3, *shape, generator=seeded(5, *shape)).double()  # near the edge of the box as well
    down, across = (torch.linspace(-1, 1, length) for length in shape)
    weights = torch.exp(-2 * (down[:, None] ** 2 + across**2)) * torch.randn(3, 3, 1, 1, generator=seeded(1)).double()
    seeds, queries, seen = [11, 12, 13], 60, []

    def loss(points, alive):
        seen.append(points.clone())
        return ((points - images[alive]) * weights[alive]).flatten(1).sum(1)

    found = square(loss, images, ball, queries, seeds=seeds)
    paths = torch.stack(seen, 1).numpy()  # (N, queries, 3, H, W)
    for path, image, weight, seed, best in zip(paths, images, weights, seeds, found.loss, strict=True):
        image, weight = image.numpy(), weight.numpy()
        expected, expected_loss = searched(lambda x, w=weight, o=image: (w * (x - o)).sum(), image, ball, queries, seed)
        np.testing.assert_allclose(path, expected, rtol=0, atol=1e-6)  # the patches themselves are float32
        assert best.item() == pytest.approx(expected_loss, abs=1e-5)


@pytest.mark.parametrize("side", [2, 3, 4, 9, 44, 45])
def test_the_bump_is_the_pile_of_rectangles(side):
    np.testing.assert_allclose(bumps(side)[0].numpy(), eta_by_nesting(side), atol=1e-6)
    assert torch.equal(bumps(side)[1], bumps(side)[0].T)
    assert bumps(side)[0].norm().item() == pytest.approx(1, abs=1e-6)


def test_the_schedule_at_the_papers_numbers():
    """Areas of 0.8 / 2^k of 224 x 224, at 10,000 queries and, rescaled, at 5,000."""
    moves = [0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 9999]
    halvings = [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    expected = [round(math.sqrt(0.8 / 2**k * 224 * 224)) for k in halvings]
    assert [window_side(move, 10_000, 0.8, LINF, 224, 224) for move in moves] == expected
    assert [window_side(2 * move, 20_000, 0.8, LINF, 224, 224) for move in moves] == expected
    assert [window_side(4000, 5_000, 0.8, LINF, 224, 224), window_side(4001, 5_000, 0.8, LINF, 224, 224)] == [13, 9]
    odd = [window_side(move, 10_000, 0.8, L2, 224, 224) for move in moves]
    assert all(side % 2 and 0 <= side - other <= 1 for side, other in zip(odd, expected, strict=True))
    assert window_side(9999, 10_000, 0.8, L2, 20, 20) == 3 and window_side(0, 10, 0.8, L2, 2, 50) == 2
