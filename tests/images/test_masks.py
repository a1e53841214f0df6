"""Masks: what is outside counts neither in value nor in gradient."""

import re

import pytest
import torch

from rclip_metric import RobustPerceptualDistance
from rclip_metric.images.masks import masked

from support.encoders import small_encoder


@pytest.fixture(scope="module")
def metric() -> RobustPerceptualDistance:
    return RobustPerceptualDistance(small_encoder(spread=True))


def images(count: int = 1, side: int = 48, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def left_half(side: int = 48) -> torch.Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., : side // 2] = 1
    return mask


def test_it_is_the_distance_of_the_pair_over_gray(metric):
    x, y, m = images(2), images(2, seed=1), images(2, seed=2)[:, :1]
    assert torch.equal(metric(x, y, mask=m), metric(m * x + (1 - m) * 0.5, m * y + (1 - m) * 0.5))
    similarity = metric.similarity(x, y, mask=m)
    assert torch.allclose(similarity, 1 - metric(x, y, mask=m).square(), atol=1e-6)
    assert torch.equal(metric(x, y, mask=torch.ones(1, 1, 48, 48)), metric(x, y))


def test_outside_neither_value_nor_gradient(metric):
    x, y, m = images(), images(seed=1), left_half()
    other = torch.where(m.bool(), y, images(seed=5))
    assert metric(x, y, mask=m).item() > 0.01
    assert torch.equal(metric(x, y, mask=m), metric(x, other, mask=m))
    assert metric(torch.where(m.bool(), y, x), y, mask=m).item() == 0
    x.requires_grad_()
    metric(x, y, mask=m).sum().backward()
    assert x.grad is not None
    assert (x.grad * (1 - m)).abs().max() == 0
    assert (x.grad * m).abs().max() > 0


def test_a_masked_loss_fills_the_hole_alone(metric):
    """Inpainting: the hole comes nearer to the picture, and the rest stays as it is."""
    target, m = images(seed=3), left_half()
    start = torch.where(m.bool(), torch.full_like(target, 0.5), target)
    picture = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([picture], lr=2.0)
    before = metric(start, target, mask=m).item()
    for _ in range(20):
        optimizer.zero_grad()
        metric(picture.clamp(0, 1), target, mask=m).sum().backward()
        optimizer.step()
    assert metric(picture.detach().clamp(0, 1), target, mask=m).item() < 0.9 * before
    assert torch.equal(picture.detach()[..., 24:], target[..., 24:])


@pytest.mark.parametrize("shape", [(48, 48), (1, 48, 48), (1, 1, 48, 48), (3, 1, 48, 48)])
def test_shapes_and_kinds(metric, shape):
    x, y = images(3), images(3, seed=1)
    m = torch.zeros(shape)
    m[..., 10:30] = 1
    wanted = metric(x, y, mask=m.expand(1, 1, 48, 48) if m.ndim < 4 else m)
    assert wanted.shape == (3,)
    assert torch.equal(metric(x, y, mask=m), wanted)
    assert torch.equal(metric(x, y, mask=m.bool()), wanted)
    assert torch.equal(metric(x.flip(3), y.flip(3), mask=m), metric(x.flip(3), y.flip(3), mask=m.double()))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 1, 48, 47), "mask must be (2, 1, 48, 48) or (1, 1, 48, 48), got (1, 1, 48, 47)"),
        (torch.ones(1, 3, 48, 48), "mask must be (2, 1, 48, 48) or (1, 1, 48, 48), got (1, 3, 48, 48)"),
        (torch.ones(3, 1, 48, 48), "mask must be (2, 1, 48, 48) or (1, 1, 48, 48), got (3, 1, 48, 48)"),
        (torch.ones(2, 48, 48), "mask must be (2, 1, 48, 48) or (1, 1, 48, 48), got (2, 48, 48)"),
        (torch.full((1, 1, 48, 48), 255.0), "mask must be in [0, 1], got values from 255 to 255"),
        (torch.full((1, 1, 48, 48), float("nan")), "mask must be in [0, 1], got values from nan to nan"),
        (torch.zeros(1, 1, 48, 48), "mask 0 is 0 everywhere: nothing of the image would count"),
        (
            torch.stack([torch.ones(1, 48, 48), torch.zeros(1, 48, 48)]),
            "mask 1 is 0 everywhere: nothing of the image would count",
        ),
    ],
)
def test_what_is_no_mask_is_refused(metric, mask, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        metric(images(2), images(2, seed=1), mask=mask)


def test_images_of_two_sizes_have_no_mask_in_common(metric):
    message = "with a mask images must have one size, got 48x48 and 32x32 (height x width)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        metric(images(), images(side=32), mask=torch.ones(1, 1, 48, 48))


def test_a_mask_may_be_learned():
    mask = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    masked(torch.ones(1, 3, 4, 4), mask).sum().backward()
    assert mask.grad is not None
    assert torch.equal(mask.grad, torch.full((1, 1, 4, 4), 1.5))  # three colours, each 1 - 0.5
