"""Towers against the libraries whose weights they carry, on seeded random weights that leave nothing at its default."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rclip_metric.encoder.architectures import (
    EFFICIENTNET_LITE,
    NAMED,
    Architecture,
    ConvNeXtArchitecture,
    TimmArchitecture,
    ViTArchitecture,
    architecture_from_dict,
    architecture_to_dict,
    embedding_dim,
    tower_values,
)
from rclip_metric.encoder.library_towers import LibraryTower
from rclip_metric.encoder.open_clip_configs import open_clip_vision_architecture
from rclip_metric.encoder.state_dicts import expected_tensors
from rclip_metric.encoder.towers import EfficientNetLiteTower, ViTTower, build_tower
from rclip_metric.errors import UnknownModelError

from support.encoders import randomised

CLIP_VIT = ViTArchitecture(image_size=32, patch_size=8, width=64, depth=3, heads=4, projection=24)
DINO_VIT = replace(CLIP_VIT, norm_eps=1e-6, pre_norm=False, patch_bias=True, projection=None)
CONVNEXT = ConvNeXtArchitecture(image_size=32, depths=(1, 1, 2, 1), widths=(8, 16, 24, 32), projection=12)
ARCHITECTURES: dict[str, Architecture] = {
    "clip": CLIP_VIT,
    "quick-gelu": replace(CLIP_VIT, activation="quick_gelu"),
    "dino": DINO_VIT,
    "dinov2": replace(DINO_VIT, layer_scale=True),
    "patch-bias-and-pre-norm": replace(CLIP_VIT, patch_bias=True),
    "neither": replace(DINO_VIT, patch_bias=False),
    "convnext": CONVNEXT,
}


def pixels(side: int = 32) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def timms(architecture: Architecture) -> Any:
    """The trunk as timm builds it, with random weights."""
    if isinstance(architecture, ConvNeXtArchitecture):
        from timm.models.convnext import ConvNeXt

        shape: Any = {"depths": architecture.depths, "dims": architecture.widths}
        return ConvNeXt(num_classes=0, norm_eps=architecture.norm_eps, **shape)
    assert isinstance(architecture, ViTArchitecture)
    from timm.layers import get_act_layer
    from timm.models.vision_transformer import VisionTransformer

    trunk = VisionTransformer(
        img_size=architecture.image_size,
        patch_size=architecture.patch_size,
        num_classes=0,
        embed_dim=architecture.width,
        depth=architecture.depth,
        num_heads=architecture.heads,
        mlp_ratio=architecture.mlp_ratio,
        init_values=1e-5 if architecture.layer_scale else None,
        pre_norm=architecture.pre_norm,
        norm_layer=partial(nn.LayerNorm, eps=architecture.norm_eps),
        act_layer=get_act_layer(architecture.activation),
    )
    if architecture.patch_bias is architecture.pre_norm:  # timm ties the bias to the lack of a pre-norm
        patch = architecture.patch_size
        convolution = nn.Conv2d(3, architecture.width, patch, stride=patch, bias=architecture.patch_bias)
        trunk.patch_embed.proj = convolution
    return trunk


def timms_with_the_weights_of(tower: Any, architecture: Architecture) -> Any:
    trunk = timms(architecture).eval()
    trunk.load_state_dict(tower.trunk.state_dict())
    return trunk


@pytest.mark.parametrize("name", ["clip", "quick-gelu", "dino", "dinov2", "convnext"])
def test_the_same_seed_draws_timms_weights_under_timms_keys(name: str) -> None:
    torch.manual_seed(3)
    expected = timms(ARCHITECTURES[name]).state_dict()
    after = torch.rand(1)
    torch.manual_seed(3)
    ours = build_tower(replace(ARCHITECTURES[name], projection=None)).trunk.state_dict()  # type: ignore[arg-type, union-attr]
    assert torch.equal(torch.rand(1), after)
    assert list(ours) == list(expected)
    assert all(torch.equal(value, ours[key]) for key, value in expected.items())


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convnext_is_timms_to_the_bit(dtype: torch.dtype, memory: torch.memory_format) -> None:
    tower: Any = randomised(build_tower(replace(CONVNEXT, projection=None))).to(dtype=dtype)
    trunk = timms_with_the_weights_of(tower, CONVNEXT).to(dtype=dtype)
    weights, outputs, gradients = torch.randn(3, 32), [], []
    for model in (tower, trunk):
        images = pixels(64).to(dtype, memory_format=memory).requires_grad_()
        outputs.append(model(images))
        gradients.append(torch.autograd.grad((outputs[-1] * weights).sum(), [images, *model.parameters()]))
    assert torch.equal(*outputs)
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def lite(size: int) -> TimmArchitecture:
    return TimmArchitecture(model=f"tf_efficientnet_lite{size}", image_size=64, features=1280)


def timms_lite(size: int) -> Any:
    import timm

    return timm.create_model(lite(size).model, num_classes=0)


@pytest.mark.parametrize("size", range(5))
def test_an_efficientnet_lite_has_timms_tensors_and_statistics(size: int) -> None:
    with torch.device("meta"):
        tower, trunk = build_tower(lite(size)), timms_lite(size)
    assert isinstance(tower, EfficientNetLiteTower)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (tower.trunk, trunk)]
    assert shapes[0] == shapes[1]
    norms = [[m for m in model.modules() if isinstance(m, nn.BatchNorm2d)] for model in (tower.trunk, trunk)]
    assert [(m.eps, m.momentum) for m in norms[0]] == [(m.eps, m.momentum) for m in norms[1]]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "side"), [(torch.float32, 64), (torch.float32, 75), (torch.bfloat16, 75)])
def test_an_efficientnet_lite_is_timms_to_the_bit(
    dtype: torch.dtype, side: int, memory: torch.memory_format, train: bool
) -> None:
    tower: Any = randomised(build_tower(lite(1))).to(dtype).train(train)
    trunk = timms_lite(1).to(dtype).train(train)
    trunk.load_state_dict(tower.trunk.state_dict())
    outputs, gradients = [], []
    for model in (tower, trunk):
        images = pixels(side).to(dtype, memory_format=memory).requires_grad_()
        outputs.append(model(images))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), [images, *model.parameters()]))
    assert outputs[0].count_nonzero() > outputs[0].numel() / 2
    assert torch.equal(*outputs)
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(tower.trunk.state_dict().values(), trunk.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)  # what training counted among them


def test_the_random_weights_of_an_efficientnet_lite_are_spread_as_timms() -> None:
    torch.manual_seed(5)
    ours, theirs = build_tower(lite(0)).trunk.state_dict(), timms_lite(0).state_dict()  # type: ignore[union-attr]
    for key, value in theirs.items():
        if value.dim() < 4:
            assert torch.equal(ours[key], value)
        else:  # six standard errors of a standard deviation
            torch.testing.assert_close(
                ours[key].std() / value.std(), torch.ones(()), atol=6 / value.numel() ** 0.5, rtol=0
            )


def test_what_is_no_plain_efficientnet_lite_is_built_by_timm() -> None:
    for other in (
        replace(lite(0), options='{"output_stride": 16}'),
        TimmArchitecture(model="efficientnet_lite0", image_size=64, features=1280),  # another network
    ):
        assert isinstance(build_tower(other), LibraryTower)
    with pytest.raises(ValueError, match="features must be 1280 for timm's tf_efficientnet_lite0, got 5"):
        build_tower(replace(lite(0), features=5))
    with pytest.raises(UnknownModelError):
        build_tower(replace(lite(0), model="tf_efficientnet_lite0.no_such_tag"))


@pytest.mark.parametrize("name", ["clip", "quick-gelu", "dino", "dinov2", "patch-bias-and-pre-norm", "neither"])
def test_the_blocks_of_a_vit_are_timms_to_the_bit(name: str) -> None:
    tower: Any = randomised(build_tower(ARCHITECTURES[name]))
    trunk = timms_with_the_weights_of(tower, ARCHITECTURES[name])
    tokens = torch.randn(3, 17, 64, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        for ours, theirs in zip(tower.trunk.blocks, trunk.blocks, strict=True):
            assert torch.equal(ours(tokens), theirs(tokens))


@pytest.mark.parametrize("name", ["clip", "quick-gelu", "dino", "dinov2", "patch-bias-and-pre-norm", "neither"])
def test_class_token_alone_equals_timms_whole_forward(name: str) -> None:
    tower = randomised(build_tower(ARCHITECTURES[name]))
    assert isinstance(tower, ViTTower)
    with torch.inference_mode():
        expected = timms_with_the_weights_of(tower, ARCHITECTURES[name])(pixels())
        if tower.projection is not None:
            expected = expected @ tower.projection.weight.T
        result = tower(pixels())
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_last_block_computes_one_token_and_all_gradients() -> None:
    tower: Any = randomised(build_tower(CLIP_VIT))
    lengths: list[int] = []
    hooks = [
        block.mlp.fc1.register_forward_hook(lambda _m, args, _o: lengths.append(args[0].numel() // 3 // 64))
        for block in tower.trunk.blocks
    ]
    images = pixels().requires_grad_()
    result = tower(images)
    assert lengths == [17, 17, 1]
    for hook in hooks:
        hook.remove()
    trunk = timms_with_the_weights_of(tower, CLIP_VIT)
    weights = torch.randn(3, 24, generator=torch.Generator().manual_seed(2))
    parameters = [images, *tower.trunk.parameters(), tower.projection.weight]
    gradients = torch.autograd.grad((result * weights).sum(), parameters)
    whole = torch.nn.functional.linear(trunk(images), tower.projection.weight)
    parameters = [images, *trunk.parameters(), tower.projection.weight]
    for ours, theirs in zip(gradients, torch.autograd.grad((whole * weights).sum(), parameters), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_adapter_in_place_of_the_last_qkv_is_used() -> None:
    class Doubled(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.linear(x)

    tower: Any = randomised(build_tower(CLIP_VIT))
    attention = tower.trunk.blocks[-1].attn
    adapted = Doubled(attention.qkv)
    attention.qkv = adapted
    with torch.inference_mode():
        result = tower(pixels())
        attention.qkv = adapted.linear
        for parameter in adapted.linear.parameters():
            parameter.mul_(2)
        torch.testing.assert_close(result, tower(pixels()), atol=1e-5, rtol=1e-5)


def test_the_norm_before_the_blocks_may_have_an_eps_of_its_own() -> None:
    architecture = replace(CLIP_VIT, norm_eps=0.25, pre_norm_eps=0.5)
    norms = {n: m.eps for n, m in build_tower(architecture).named_modules() if isinstance(m, nn.LayerNorm)}
    assert norms.pop("trunk.norm_pre") == 0.5 and set(norms.values()) == {0.25}
    assert architecture_from_dict(architecture_to_dict(architecture)) == architecture
    assert "pre_norm_eps" not in architecture_to_dict(CLIP_VIT)  # what earlier versions read stays as it was


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norm_eps_and_activation_reach_every_layer(name: str) -> None:
    architecture = replace(ARCHITECTURES[name], norm_eps=0.25)  # type: ignore[arg-type]
    tower = build_tower(architecture)
    norms = [m for m in tower.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) >= 7
    assert {norm.eps for norm in norms} == {0.25}
    activations = {type(m).__name__ for m in tower.modules() if "GELU" in type(m).__name__}
    assert activations == {"QuickGELU" if name == "quick-gelu" else "GELU"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_multihead_attention_module(name: str) -> None:
    """Frozen in bfloat16, it is 15 times slower than F.linear and scaled_dot_product_attention on an AMX CPU."""
    assert not any(isinstance(m, nn.MultiheadAttention) for m in build_tower(ARCHITECTURES[name]).modules())


# Millions of parameters of the image towers, as OpenCLIP publishes them; DINO's and DINOv2's from their papers.
PUBLISHED_SIZES = {
    "convnext_base_w": 88.2,
    "vit_b_16": 86.2,
    "vit_b_32": 87.9,
    "vit_l_14": 304.0,
    "dino_vit_b_16": 85.8,
    "dinov2_vit_b_14": 85.7,
}


@pytest.mark.parametrize("name", NAMED)
def test_meta_device_draws_nothing(name: str) -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        tower = build_tower(NAMED[name])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(t.is_meta for t in [*tower.parameters(), *tower.buffers()])
    assert tower.embedding_dim == embedding_dim(NAMED[name])
    if name in PUBLISHED_SIZES:
        count = sum(p.numel() for p in tower.parameters()) / 1e6
        assert count == pytest.approx(PUBLISHED_SIZES[name], abs=0.1)


def test_without_meta_device_weights_are_drawn() -> None:
    for architecture in (CLIP_VIT, CONVNEXT):
        tower = build_tower(architecture)
        assert all(p.isfinite().all() for p in tower.parameters())
        assert all(p.std() > 0 for p in tower.parameters() if p.dim() > 1 and p.numel() > 100)
        assert tower(pixels()).std() > 0


def test_open_clip_configs_give_the_named_architectures() -> None:
    """The library's own configs, which published open_clip_config.json files repeat."""
    import open_clip

    configs = {
        "vit_b_16": open_clip.get_model_config("ViT-B-16"),
        "vit_b_32": open_clip.get_model_config("ViT-B-32"),
        "vit_l_14": open_clip.get_model_config("ViT-L-14-quickgelu"),
    }
    for name, config in configs.items():
        assert open_clip_vision_architecture({"model_cfg": config, "preprocess_cfg": {}}) == NAMED[name]
    convnext = open_clip_vision_architecture(open_clip.get_model_config("convnext_base_w"))
    assert convnext.image_size == 256
    assert replace(convnext, image_size=224) == NAMED["convnext_base_w"]
    plain_l_14 = open_clip_vision_architecture(open_clip.get_model_config("ViT-L-14"))
    assert plain_l_14 == replace(NAMED["vit_l_14"], activation="gelu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flag", "activation"), [("TRUE", "quick_gelu"), (True, "quick_gelu"), (False, "gelu"), (None, "gelu")]
)
def test_quick_gelu_may_be_the_string_true(flag: object, activation: str) -> None:
    config: dict[str, Any] = {"embed_dim": 8, "vision_cfg": {"layers": 2, "width": 64, "patch_size": 8}}
    if flag is not None:
        config["quick_gelu"] = flag
    architecture = open_clip_vision_architecture(json.loads(json.dumps(config)))
    assert isinstance(architecture, ViTArchitecture)
    assert architecture.activation == activation


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quick_gelu": "FALSE"}, "quick_gelu must be"),
        ({"quick_gelu": 1}, "quick_gelu must be"),
        ({"embed_dim": None}, "'embed_dim': expected a positive integer"),
        ({"vision_cfg": {"layers": 2, "width": 64}}, "no patch_size"),
        ({"vision_cfg": {"layers": [2, 2], "width": 64, "patch_size": 8}}, "depth must"),
        ({"vision_cfg": {"layers": 2, "width": 64, "patch_size": 8, "pool_type": "avg"}}, "pool_type = 'avg'"),
        ({"vision_cfg": {"layers": 2, "width": 64, "patch_size": 8, "qk_norm": True}}, "qk_norm = True"),
        ({"vision_cfg": {"layers": 2, "width": 64, "patch_size": 8, "new": 1}}, r"'vision_cfg\.new': is not known"),
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16_224", "timm_proj": "linear"}}, "timm_model_name"),
        ({"vision_cfg": {"timm_model_name": "convnext_base", "timm_proj": "mlp"}}, "timm_proj = 'mlp'"),
        ({"vision_cfg": {"timm_model_name": "convnext_base"}}, 'timm_proj must be "linear"'),
        ({"vision_cfg": {"timm_model_name": "convnext_base", "timm_pool": "abs_attn"}}, "timm_pool = 'abs_attn'"),
    ],
)
def test_open_clip_configs_that_no_tower_computes(config: dict[str, Any], message: str) -> None:
    good = {"embed_dim": 8, "vision_cfg": {"layers": 2, "width": 64, "patch_size": 8}}
    with pytest.raises(ValueError, match=message):
        open_clip_vision_architecture(good | config)
    for name in good:
        with pytest.raises(ValueError, match=f"'{name}': is missing"):
            open_clip_vision_architecture({k: v for k, v in good.items() if k != name})


@pytest.mark.parametrize("architecture", [*NAMED.values(), *ARCHITECTURES.values()])
def test_architecture_survives_json(architecture: Architecture) -> None:
    written = json.loads(json.dumps(architecture_to_dict(architecture)))
    assert architecture_from_dict(written) == architecture


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("clip", {"kind": "resnet"}, "kind must be one of vit, convnext, timm, open_clip, got 'resnet'"),
        ("clip", {"registers": 4}, "Unknown vit field registers"),
        ("clip", {"width": 0}, "width must"),
        ("clip", {"depth": True}, "depth must"),
        ("clip", {"heads": 5}, "heads must divide width"),
        ("clip", {"patch_size": 5}, "image_size must be a multiple"),
        ("clip", {"pre_norm": "TRUE"}, "pre_norm must"),
        ("clip", {"layer_scale": 1}, "layer_scale must"),
        ("clip", {"activation": "relu"}, "activation must"),
        ("clip", {"norm_eps": "1e-5"}, "norm_eps must"),
        ("clip", {"pre_norm_eps": 0}, "pre_norm_eps must"),
        ("clip", {"pre_norm_eps": 1e-5, "pre_norm": False}, "pre_norm_eps needs pre_norm"),
        ("clip", {"mlp_ratio": -1.0}, "mlp_ratio must"),
        ("clip", {"projection": 0}, "projection must"),
        ("convnext", {"patch_size": 4}, "Unknown convnext field patch_size"),
        ("convnext", {"depths": [3, 3, 9]}, "depths must be four"),
        ("convnext", {"widths": [8, 16, 24, 0]}, "widths must"),
        ("convnext", {"image_size": 31}, "image_size must be at least 32"),
        ("convnext", {"norm_eps": 0}, "norm_eps must"),
        ("convnext", {"projection": 1.5}, "projection must"),
    ],
)
def test_wrong_architecture_names_the_field(name: str, change: dict[str, Any], message: str) -> None:
    written = architecture_to_dict(ARCHITECTURES[name])
    with pytest.raises(ValueError, match=message):
        architecture_from_dict(written | change)


def test_missing_field_is_named() -> None:
    written = architecture_to_dict(CLIP_VIT)
    with pytest.raises(ValueError, match="Missing vit field heads"):
        architecture_from_dict({k: v for k, v in written.items() if k != "heads"})
    assert architecture_from_dict({k: v for k, v in written.items() if k != "mlp_ratio"}) == CLIP_VIT


LITES = [TimmArchitecture(model=name, image_size=224, features=1280) for name in EFFICIENTNET_LITE]


@pytest.mark.parametrize(
    "architecture", [*ARCHITECTURES.values(), *NAMED.values(), *LITES, replace(LITES[0], projection=24)]
)
def test_the_values_of_a_tower_are_counted_without_building_it(architecture):
    built = sum(tensor.numel() for tensor in expected_tensors(architecture).values())
    assert tower_values(architecture) == built


def test_the_values_of_another_librarys_tower_are_not_guessed():
    assert tower_values(TimmArchitecture(model="resnet18", image_size=64, features=512)) is None
    assert tower_values(replace(LITES[0], options='{"act_layer": "gelu"}')) is None
