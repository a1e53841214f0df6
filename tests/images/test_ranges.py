"""Values outside the range: the likely cause is said, and clamping leaves the gradients that lead back."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rclip_metric import ImageError, RobustPerceptualDistance, score
from rclip_metric.images import IMAGENET_MEAN, IMAGENET_STD, as_batch, load_image
from rclip_metric.images.preprocessing import CLIP_MEAN, CLIP_STD
from rclip_metric.images.ranges import clamp

from support.encoders import small_encoder
from support.images import noise


@pytest.fixture(scope="module")
def encoder() -> Any:
    return small_encoder(spread=True, layer_scale=0.5)


def normalised(images: Tensor, mean: Any, std: Any) -> Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


X = noise(2, 3, 16, 16)
CASES = [
    (1.1 * X - 0.05, 'a slight overshoot: pass out_of_range="clamp", or clamp'),
    (2 * X - 1, r"like [-1, 1]: pass"),
    (255 * X, "like 0 to 255: pass"),
    (normalised(X, IMAGENET_MEAN, IMAGENET_STD), "normalised with ImageNet's mean and std: pass"),
    (normalised(X, CLIP_MEAN, CLIP_STD), "normalised with CLIP's mean and std: pass"),
    (20 * X - 10, "undo any normalisation"),
]


@pytest.mark.parametrize(("images", "cause"), CASES)
def test_the_likely_cause_is_said_of_tensors_and_arrays(images: Tensor, cause: str) -> None:
    with pytest.raises(ImageError, match=re.escape(cause)) as of_batch:
        as_batch(images)
    low, high = images.aminmax()
    assert f"from {low:.6g} to {high:.6g}, expected [0, 1]" in str(of_batch.value) and "\n" not in str(of_batch.value)
    with pytest.raises(ImageError, match=re.escape(cause)):
        as_batch(images[0])
    with pytest.raises(ImageError, match=re.escape(cause)):
        load_image(images[0].permute(1, 2, 0).numpy())


def test_gray_images_are_not_taken_for_normalised_ones() -> None:
    with pytest.raises(ImageError, match="undo any normalisation"):
        as_batch(4.4 * X[:, :1] - 2)


def test_the_gradient_of_a_clamp_is_kept_where_a_descent_step_leads_back() -> None:
    values = torch.tensor([-0.5, -1e-3, 0.0, 0.5, 1.0, 1.001, 7.0])
    for sign in (1.0, -1.0):
        x = values.clone().requires_grad_()
        (sign * clamp(x)).sum().backward()
        assert x.grad is not None
        moved = values - 1e-2 * x.grad  # a descent step: outside, either nothing or closer
        outside = (values < 0) | (values > 1)
        apart, before = ((v - v.clamp(0, 1)).abs() for v in (moved, values))
        assert (x.grad[~outside] == sign).all() and ((apart < before) | (x.grad == 0))[outside].all()
        assert x.grad.tolist() == [min(sign, 0), min(sign, 0), sign, sign, sign, max(sign, 0), max(sign, 0)]
    assert torch.equal(clamp(values), values.clamp(0, 1)) and clamp(torch.tensor(torch.nan)).isnan()


def test_clamping_works_in_transforms() -> None:
    x = 3 * noise(4, 5) - 1
    expected = torch.autograd.grad(clamp(x.requires_grad_()).square().sum(), x)[0]
    found = torch.func.vmap(torch.func.grad(lambda one: clamp(one).square().sum()))(x.detach())
    assert torch.equal(found, expected) and (found != 0).any() and (found == 0).any()


def test_the_metric_clamps_if_it_is_told_to(encoder: Any) -> None:
    x, y = 1.4 * noise(2, 2, 3, 64, 64) - 0.2
    with pytest.raises(ImageError, match="slight overshoot"):
        RobustPerceptualDistance(encoder)(x, y)
    metric = RobustPerceptualDistance(encoder, out_of_range="clamp")
    assert torch.equal(metric(x, y), RobustPerceptualDistance(encoder)(x.clamp(0, 1), y.clamp(0, 1)))
    signed = RobustPerceptualDistance(encoder, out_of_range="clamp", value_range=(-1, 1))
    torch.testing.assert_close(signed(2 * x - 1, 2 * y - 1), metric(x, y), atol=1e-6, rtol=1e-5)
    ignoring = RobustPerceptualDistance(encoder, out_of_range="ignore")
    assert torch.equal(ignoring(x, y), RobustPerceptualDistance(encoder, check_range=False)(x, y))
    assert not torch.equal(ignoring(x, y), metric(x, y))
    unchecked = RobustPerceptualDistance(encoder, out_of_range="clamp", check_range=False)
    assert torch.equal(unchecked(x, y), metric(x, y))


def test_a_pixel_that_left_the_range_returns_with_the_loss(encoder: Any) -> None:
    target = noise(1, 3, 64, 64)
    start = target.clone()
    start[:, :, :8] = -0.2
    found = {}
    for how in ("the metric's", "an ordinary clamp"):
        metric = RobustPerceptualDistance(encoder, squared=True, out_of_range="clamp")
        x = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([x], lr=20.0)
        for _ in range(20):
            optimizer.zero_grad()
            metric(x if how == "the metric's" else x.clamp(0, 1), target).sum().backward()
            optimizer.step()
        found[how] = (x.detach()[:, :, :8] > -0.19).float().mean().item()
    assert found["an ordinary clamp"] == 0 and found["the metric's"] > 0.3


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_are_never_clamped(encoder: Any, value: float) -> None:
    x = noise(2, 3, 64, 64)
    x[1, 0, 0, 0] = value
    with pytest.raises(ImageError, match="NaN or infinity"):
        RobustPerceptualDistance(encoder, out_of_range="clamp")(x, x)
    unchecked = RobustPerceptualDistance(encoder, out_of_range="clamp", check_range=False)(x, noise(1, 3, 64, 64))
    assert unchecked.isnan().tolist() == [False, True]


def test_score_takes_it_for_tensors_and_arrays(encoder: Any) -> None:
    x, y = 1.2 * noise(2, 3, 64, 64) - 0.1
    arrays = [image.permute(1, 2, 0).numpy() for image in (x, y)]
    for one, other in ((x, y), arrays):
        with pytest.raises(ImageError, match="slight overshoot"):
            score(one, other, model=encoder)
        found = score(one, other, model=encoder, out_of_range="clamp")
        assert found == score(x.clamp(0, 1), y.clamp(0, 1), model=encoder)
        assert score(one, other, model=encoder, out_of_range="ignore") != found
    assert np.array_equal(load_image(arrays[0], "ignore").numpy(), x.numpy())


def test_any_other_word_is_refused(encoder: Any) -> None:
    for call in (
        lambda: RobustPerceptualDistance(encoder, out_of_range="clip"),  # type: ignore[arg-type]
        lambda: as_batch(X, out_of_range="clip"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="out_of_range must be raise, clamp or ignore, got 'clip'"):
            call()
