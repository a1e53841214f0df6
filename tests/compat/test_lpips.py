"""The drop-in for LPIPS: its README's snippets with only the import changed, and the signature of the real one."""

import inspect
from pathlib import Path
from typing import Any

import lpips as real
import numpy as np
import pytest
import torch

import rclip_metric.compat.lpips as lpips
from rclip_metric import ImageError, RobustPerceptualDistance

from support.encoders import small_encoder
from support.images import noise, save_noise

# LPIPS's README, "Quick start", "(A.II) Python code" and the body of lpips_2imgs.py.
QUICK_START = """
import {module} as lpips
loss_fn_alex = lpips.LPIPS(net='alex'{more}) # best forward scores
loss_fn_vgg = lpips.LPIPS(net='vgg'{more}) # closer to "traditional" perceptual loss, when used for optimization

import torch
img0 = torch.zeros(1,3,64,64) # image should be RGB, IMPORTANT: normalized to [-1,1]
img1 = torch.zeros(1,3,64,64)
d = loss_fn_alex(img0, img1)
"""
TWO_IMAGES = """
import {module} as lpips
loss_fn = lpips.LPIPS(net='alex',version='0.1'{more})
img0 = lpips.im2tensor(lpips.load_image(p0)) # RGB image from [-1,1]
img1 = lpips.im2tensor(lpips.load_image(p1))
dist01 = loss_fn.forward(img0, img1)
"""


@pytest.fixture(scope="module")
def model() -> Any:
    return small_encoder(spread=True, layer_scale=0.5)


def test_the_snippets_run_with_the_import_changed(tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    exec(QUICK_START.format(module="rclip_metric.compat.lpips", more=', model="tiny"'), found)
    assert found["d"].shape == (1, 1, 1, 1) and found["d"].item() == 0
    paths = {f"p{i}": str(save_noise(tmp_path / f"{i}.png", seed=i)) for i in range(2)}
    found = dict(paths)
    exec(TWO_IMAGES.format(module="rclip_metric.compat.lpips", more=', model="tiny"'), found)
    pair = [lpips.load_image(path)[None].transpose(0, 3, 1, 2) for path in paths.values()]
    x, y = (torch.from_numpy(one.astype(np.float32) / 255) for one in pair)
    expected = RobustPerceptualDistance("tiny", squared=True, resize="squash")(x, y)
    torch.testing.assert_close(found["dist01"].view(-1), expected, atol=1e-6, rtol=1e-5)


def test_the_signatures_are_lpips_own_and_more() -> None:
    for name in ("__init__", "forward"):
        own, theirs = (inspect.signature(getattr(module.LPIPS, name)).parameters for module in (lpips, real))
        same = [(key, value.default) for key, value in own.items()][: len(theirs)]
        assert same == [(key, value.default) for key, value in theirs.items()]
        assert all(value.kind in (value.KEYWORD_ONLY, value.VAR_KEYWORD) for value in list(own.values())[len(theirs) :])


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
@pytest.mark.parametrize("spatial", [False, True])
def test_shapes_are_those_of_lpips_itself(model: Any, spatial: bool) -> None:
    x, y = noise(2, 3, 3, 64, 48).mul(2).sub(1)
    theirs = real.LPIPS(net="squeeze", pretrained=False, pnet_rand=True, spatial=spatial, verbose=False)
    ours = lpips.LPIPS(net="squeeze", spatial=spatial, verbose=False, model=model)
    with torch.no_grad():
        for pair in ((x, y), (x[:1], y[:1])):
            assert ours(*pair).shape == theirs(*pair).shape
            assert ours(*pair).dtype == torch.float32 and ours(*pair).min() >= 0
    assert ours(x, x).abs().max() == 0


def test_normalize_says_that_images_are_from_0_to_1(model: Any) -> None:
    x, y = noise(2, 2, 3, 64, 64)
    loss = lpips.LPIPS(model=model)
    expected = RobustPerceptualDistance(model, squared=True, resize="squash")(x, y)
    assert torch.equal(loss(x, y, normalize=True).view(-1), expected)
    torch.testing.assert_close(loss(2 * x - 1, 2 * y - 1).view(-1), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ImageError, match=r"from -0.[0-9]+ to [0-9.]+, expected \[0, 1\]"):
        loss(2 * x - 1, y, normalize=True)
    with pytest.raises(ImageError, match=r"expected \[-1, 1\]: they look like 0 to 255"):
        loss(255 * x, y)
    assert torch.isfinite(lpips.LPIPS(model=model, out_of_range="clamp")(3 * x, y)).all()


def test_a_map_is_the_package_s_own_and_has_gradients(model: Any) -> None:
    x, y = noise(2, 2, 3, 64, 64, seed=3)
    loss = lpips.LPIPS(model=model, spatial=True)
    found = loss(x.requires_grad_(), y, normalize=True)
    assert torch.equal(found.detach()[:, 0], loss.metric.difference_map(x, y))
    (gradient,) = torch.autograd.grad(found.mean(), x)
    step = 1e-2 * torch.sign(gradient)
    assert (loss((x - step).detach().clamp(0, 1), y, normalize=True).mean() < found.mean()).item()


def test_it_is_frozen_and_has_gradients_for_images(model: Any) -> None:
    loss = lpips.LPIPS(model=model)
    assert not list(loss.parameters()) and loss.train() is loss and not loss.training
    x, y = (2 * noise(2, 1, 3, 64, 64) - 1).requires_grad_().unbind()
    loss(x, y).sum().backward()
    same = torch.zeros(1, 3, 64, 64, requires_grad=True)
    loss(same, same.detach().clone()).sum().backward()
    assert same.grad is not None and same.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pretrained": False}, "pretrained=False is for LPIPS's own networks"),
        ({"pnet_tune": True}, "pnet_tune=True is for LPIPS's own networks"),
        ({"lpips": False}, "lpips=False"),
        ({"eval_mode": False}, "eval_mode=False"),
        ({"net": "resnet"}, "net must be one of alex, vgg, vgg16, squeeze, got 'resnet'"),
        ({"version": "1"}, 'version must be "0.1"'),
        ({"model_path": "alex.pth"}, "pass the path of a robust model as model="),
        ({"value_range": (0, 1)}, "normalize=True"),
    ],
)
def test_what_only_lpips_can_be_is_refused(model: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        lpips.LPIPS(model=model, **settings)


def test_layers_are_refused_in_one_sentence(model: Any) -> None:
    with pytest.raises(ValueError, match=r"retPerLayer: .* spatial=True"):
        lpips.LPIPS(model=model)(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), retPerLayer=True)


def test_arrays_and_tensors_are_converted_as_by_lpips(tmp_path: Path) -> None:
    image = lpips.load_image(str(save_noise(tmp_path / "a.png", seed=1)))
    assert image.dtype == np.uint8 and image.shape == (40, 50, 3)
    assert torch.equal(lpips.im2tensor(image), real.im2tensor(image))
    tensor = 2 * noise(2, 3, 5, 4) - 1
    assert np.array_equal(lpips.tensor2im(tensor), real.tensor2im(tensor))
    with pytest.raises(ImageError, match=r"no\.png"):
        lpips.load_image("no.png")
