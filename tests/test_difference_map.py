"""Where images differ: against towers run by hand, formulas, and edits of known place."""

import re
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rclip_metric import RobustPerceptualDistance
from rclip_metric.difference_map import METHODS, difference_map, integrated_gradients
from rclip_metric.distance import normalize
from rclip_metric.encoder import Encoder, TimmArchitecture, ViTArchitecture, open_clip_architecture, timm_architecture
from rclip_metric.encoder.local_features import local_features
from rclip_metric.images import Preprocessing
from rclip_metric.images.resizing import resize_images, seen_by

from support.encoders import randomised, small_encoder

VIT = ViTArchitecture(image_size=32, patch_size=8, width=32, depth=6, heads=2, projection=16)


def images(count: int = 1, side: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def encoder_of(kind: str) -> Encoder:
    if kind == "convnext":
        return small_encoder(spread=True, layer_scale=0.5)
    if kind == "vit":
        return small_encoder(VIT, spread=True)
    if kind == "efficientnet-lite":
        architecture: Any = TimmArchitecture(model="tf_efficientnet_lite0", image_size=64, features=1280)
    elif kind == "open_clip":
        architecture = open_clip_architecture("coca_ViT-B-32", open_clip.get_model_config("coca_ViT-B-32"))
    elif kind == "resnet":
        architecture = timm_architecture("resnet18", image_size=64)
    else:
        small = {"window_size": 4, "depths": (2, 2, 2, 2), "embed_dim": 32, "num_heads": (1, 2, 4, 8)}
        architecture = timm_architecture("swin_tiny_patch4_window7_224", image_size=128, options=small)
    side = architecture.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(Encoder(architecture, Preprocessing("squash", side, side), name=kind), only="weight")


@pytest.fixture(scope="module")
def metric() -> RobustPerceptualDistance:
    return RobustPerceptualDistance(encoder_of("convnext"), squared=True)


@pytest.fixture(scope="module", params=["convnext", "vit", "efficientnet-lite", "resnet", "swin"])
def any_metric(request: pytest.FixtureRequest) -> RobustPerceptualDistance:
    return RobustPerceptualDistance(encoder_of(request.param), squared=True)


def test_levels_of_a_convnext_are_its_stages(metric):
    encoder, x = metric.encoder, images(2)
    trunk = encoder.tower.trunk
    features, wanted = trunk.stem((x - encoder.mean) / encoder.std), []
    for number, stage in enumerate(trunk.stages):
        if number:
            features = stage.downsample[0](features)
            wanted.append(features)  # the last that is computed before the resolution is halved
            features = stage.downsample[1](features)
        features = stage.blocks(features)
    levels = local_features(encoder, x)
    assert [level.shape[2] for level in levels] == [16, 8, 4]
    assert all(torch.allclose(level, own, atol=1e-6) for level, own in zip(levels, wanted, strict=True))


def test_levels_of_a_vit_are_its_patches(monkeypatch):
    encoder, x = encoder_of("vit"), images(2, side=32)
    trunk = encoder.tower.trunk
    patches = trunk.patch_embed((x - encoder.mean) / encoder.std).transpose(1, 2)
    tokens = torch.cat([trunk.cls_token.expand(2, -1, -1), patches], 1) + trunk.pos_embed
    tokens, after = trunk.norm_pre(tokens), []
    for block in trunk.blocks:
        tokens = block(tokens)
        after.append(tokens[:, 1:].transpose(1, 2).reshape(2, 32, 4, 4))
    # The last of the six blocks computes no patches: a third, two thirds and all of five are the 2nd, 4th and 5th.
    levels = local_features(encoder, x)
    assert all(torch.allclose(level, after[n], atol=1e-5) for level, n in zip(levels, (1, 3, 4), strict=True))


@pytest.mark.parametrize(("kind", "sides"), [("resnet", [16, 8, 4]), ("swin", [32, 16, 8])])
def test_levels_of_other_towers(kind, sides):
    encoder = encoder_of(kind)
    assert [level.shape[2] for level in local_features(encoder, images(1, encoder.image_size))] == sides


def test_open_clips_own_vit_has_patches():
    """CoCa's, which no native tower computes."""
    encoder = encoder_of("open_clip")
    assert [tuple(level.shape) for level in local_features(encoder, images(1, 224))] == [(1, 768, 7, 7)] * 3


def test_the_map_is_the_mean_over_the_levels(metric):
    x, y = images(2), images(2, seed=1)
    wanted = torch.zeros(2, 64, 64)
    for one, other in zip(*(local_features(metric.encoder, z) for z in (x, y)), strict=True):
        cosine = F.cosine_similarity(one, other, dim=1)
        wanted += F.interpolate(1 - cosine[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0] / 3
    assert torch.allclose(metric.difference_map(x, y), wanted, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_of_every_tower_finite_not_negative_and_zero_for_the_same(any_metric, method):
    side = any_metric.encoder.image_size + 10
    x, y = images(2, side), images(2, side, seed=1)
    found = any_metric.difference_map(x, y, method, steps=2)
    assert found.shape == (2, side, side) and found.dtype == torch.float32 and not found.requires_grad
    assert found.isfinite().all() and found.min() >= 0 and found.max() > 0
    assert any_metric.difference_map(x, x, method, steps=2).abs().max() == 0
    black = torch.zeros(1, 3, side, side)
    assert any_metric.difference_map(black, y, method, steps=2).isfinite().all()
    alone = any_metric.difference_map(x[1:], y[1:], method, steps=2)
    rounding = 1e-4 if method == "features" else 1e-3  # gradients round more, and otherwise in one thread
    assert torch.allclose(found[1:], alone, atol=rounding * found.max().item())


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_is_found_where_it_is(metric, method):
    x = images(4, seed=3).expand(4, 3, 64, 64).clone()
    y = x.clone()
    places = [(8, 8), (40, 8), (8, 40), (40, 40)]
    for number, (top, left) in enumerate(places):
        y[number, :, top : top + 16, left : left + 16] = 0
    found = metric.difference_map(x, y, method)
    for number, (top, left) in enumerate(places):
        place = divmod(int(found[number].argmax()), 64)
        assert top - 4 <= place[0] < top + 20 and left - 4 <= place[1] < left + 20


def test_integrated_shares_sum_up_to_the_distance(any_metric):
    side = any_metric.encoder.image_size
    x = images(2, side)
    y = (0.8 * x + 0.2 * images(2, side, seed=1)).clamp(0, 1)
    distance = any_metric(x, y)
    gaps = [
        ((integrated_gradients(any_metric.encoder, x, y, steps).sum((1, 2)) - distance).abs() / distance).max().item()
        for steps in (2, 24)
    ]
    assert gaps[1] < 0.05
    assert gaps[1] < gaps[0]


def test_the_gradients_share_is_the_derivative():
    encoder = encoder_of("convnext").double()
    metric = RobustPerceptualDistance(encoder, squared=True)
    x, y = images(1), images(1, seed=1)
    found = metric.difference_map(x, y, "gradient")
    step = 0.03  # float32 is exact to 6e-8: a slope of 5e-4 to half a percent
    for row, column in ((10, 20), (33, 5), (60, 60)):
        move = torch.zeros_like(x)
        move[0, :, row, column] = (x - y)[0, :, row, column]
        slope = (metric(x + step * move, y) - metric(x - step * move, y)) / (2 * step)
        assert found[0, row, column] == pytest.approx(abs(slope.item()), rel=0.05)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (100, 70), (200, 210)])
@pytest.mark.parametrize("mode", ["crop", "squash"])
def test_pixels_are_followed_into_the_square(mode, height, width):
    """An image whose values are its own coordinates, resized and read back at the places, gives them again."""
    preprocessing = Preprocessing(mode, 40 if mode == "crop" else 32, 32)
    across = ((torch.arange(width) + 0.5) / width).expand(height, width)
    down = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    square = resize_images(torch.stack([across, down, down])[None], preprocessing, "published")
    place = seen_by(preprocessing, "published", height, width)
    inside = (place.abs() < 1 - 4 / 32).all(2)  # the filter is cut at the border
    back = F.grid_sample(square, place[None], align_corners=False)[0]
    assert inside.float().mean() > 0.3
    assert (back[0] - across)[inside].abs().max() < 0.01
    assert (back[1] - down)[inside].abs().max() < 0.01


def test_what_a_crop_leaves_out_is_not_seen():
    encoder = small_encoder(preprocessing=Preprocessing("crop", 64, 64), spread=True, layer_scale=0.5)
    x, y = torch.rand(2, 1, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    for method in METHODS:
        found = RobustPerceptualDistance(encoder).difference_map(x, y, method, steps=2)[0]
        assert found[:, 48:80].max() > 0
        # The resize leaves this image as it is, and the crop takes columns 32 to 95; "smoothed" looks 1 pixel further.
        assert found[:, :31].max() == found[:, 97:].max() == 0


def test_sizes_may_differ_for_features_alone(metric):
    x, y = images(1, 80), images(1, 50)
    assert metric.difference_map(x, y).shape == (1, 80, 80)
    for method in METHODS[1:]:
        message = f'the images must have one size for method {method!r}, got 80x80 and 50x50: use "features"'
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            metric.difference_map(x, y, method)


def test_one_with_many_large_batches_and_half_precision(metric):
    x, y = images(1), images(70, seed=1)
    found = metric.difference_map(x, y)
    assert found.shape == (70, 64, 64)
    assert torch.allclose(found[-1:], metric.difference_map(y[-1:], x), atol=1e-5)
    half = RobustPerceptualDistance(encoder_of("convnext"), squared=True).to(torch.bfloat16)
    assert (half.difference_map(x, y[:3]) - found[:3]).abs().max() < 0.05


def test_the_graph_is_left_alone(metric):
    x = images(1).requires_grad_()
    with torch.no_grad():
        assert metric.difference_map(x, images(1, seed=1), "gradient").max() > 0
    assert x.grad is None


def test_what_makes_no_sense_is_refused(metric):
    x, y = images(), images(seed=1)
    wrong: Any = "heat"
    with pytest.raises(
        ValueError, match=r"^method must be one of features, gradient, smoothed, integrated, got 'heat'$"
    ):
        metric.difference_map(x, y, wrong)
    with pytest.raises(ValueError, match=r"^steps must be at least 1, got 0$"):
        metric.difference_map(x, y, "smoothed", steps=0)
    with pytest.raises(ValueError, match="batches must have the same number of images"):
        metric.difference_map(images(2), images(3))


def test_a_tower_without_cells_says_so():
    one_cell = small_encoder(ViTArchitecture(image_size=32, patch_size=32, width=32, depth=3, heads=2, projection=16))
    message = "small computes nothing cell by cell that could be compared: use another method"
    with pytest.raises(ValueError, match=f"^{message}$"):
        difference_map(one_cell, images(1, 32), images(1, 32, seed=1))
    assert difference_map(one_cell, images(1, 32), images(1, 32, seed=1), "gradient").max() > 0
    assert torch.equal(normalize(torch.zeros(1, 4)), torch.zeros(1, 4))
