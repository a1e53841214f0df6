"""Published layouts: the checkpoint comes from the library that publishes it, and so does the expected embedding."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rclip_metric.encoder import (
    LAYOUTS,
    NAMED,
    Architecture,
    ConvNeXtArchitecture,
    Encoder,
    ViTArchitecture,
    build_tower,
    convert,
    detect,
    expected_shapes,
    vision_keys,
)
from rclip_metric.errors import CheckpointError
from rclip_metric.images import Preprocessing
from rclip_metric.weights.manifest import LAYOUT_NAMES

from support.encoders import randomised

SIDE = 32
VIT = ViTArchitecture(image_size=SIDE, patch_size=8, width=128, depth=3, heads=2, projection=24)
DINO = replace(VIT, norm_eps=1e-6, pre_norm=False, patch_bias=True, projection=None)
CONVNEXT = ConvNeXtArchitecture(image_size=SIDE, depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), projection=24)
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}


@dataclass
class Published:
    """A checkpoint as its library writes it, and the library's own embedding of normalised pixels."""

    layout: str
    architecture: Architecture
    state: dict[str, Tensor]
    embed: Callable[[Tensor], Tensor]


@functools.cache
def open_clip_model(cls: str, architecture: Architecture) -> Any:
    import open_clip.model

    if isinstance(architecture, ViTArchitecture):
        vision: dict[str, Any] = {"layers": 3, "width": 128, "patch_size": 8, "image_size": SIDE}
        quick = architecture.activation == "quick_gelu"
    else:
        vision = {"timm_model_name": "convnext_tiny", "timm_pool": "", "timm_proj": "linear", "image_size": SIDE}
        quick = False
    return randomised(getattr(open_clip.model, cls)(24, vision, TEXT, quick_gelu=quick))


def open_clip_vit(cls: str = "CLIP", **changes: Any) -> Published:
    architecture = replace(VIT, **changes)
    model = open_clip_model(cls, architecture)
    return Published("open-clip", architecture, model.state_dict(), model.visual)


def open_clip_convnext() -> Published:
    model = open_clip_model("CLIP", CONVNEXT)
    return Published("open-clip", CONVNEXT, model.state_dict(), model.visual)


def bare(published: Published) -> Published:
    state = {k.removeprefix("visual."): v for k, v in published.state.items() if k.startswith("visual.")}
    return replace(published, layout="open-clip-visual", state=state)


def transformers_vit(folder: Path, eps: float = 1e-6, scale: float = 1.0) -> Published:
    """The published file has transformers' older key names, which save_pretrained still writes.

    With `scale`, all that is added to the residual stream is scaled.
    """
    from safetensors.torch import load_file
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=SIDE,
        patch_size=8,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=512,
        layer_norm_eps=eps,
    )
    model = randomised(ViTModel(config))
    for name, parameter in model.named_parameters():
        if re.search(r"^embeddings|o_proj|fc2|output\.dense", name):  # transformers 5 or 4
            parameter.data.mul_(scale)
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    return Published("transformers-vit", DINO, state, lambda x: model(x).last_hidden_state[:, 0])


def timm_dino() -> Published:
    import timm

    model = timm.create_model(
        "vit_small_patch8_224.dino", num_classes=0, img_size=SIDE, embed_dim=128, depth=3, num_heads=2
    )
    return Published("timm-vit", DINO, randomised(model).state_dict(), model)


def timm_dinov2() -> Published:
    """Weights of a larger grid, which timm itself brings to the smaller one while loading."""
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    def model(side: int) -> Any:
        return timm.create_model("vit_small_patch14_dinov2.lvd142m", img_size=side, embed_dim=128, depth=3, num_heads=2)

    state = randomised(model(14 * 9)).state_dict()
    reference = model(14 * 4).eval()
    reference.load_state_dict(checkpoint_filter_fn(dict(state), reference))
    architecture = replace(DINO, image_size=56, patch_size=14, layer_scale=True)
    return Published("timm-vit", architecture, state | {"mask_token": torch.zeros(1, 128)}, reference)


@pytest.fixture(
    scope="module",
    params=[
        "open-clip ViT",
        "open-clip ViT with QuickGELU",
        "open-clip ViT in CustomTextCLIP",
        "open-clip ConvNeXt",
        "open-clip-visual ViT",
        "open-clip-visual ConvNeXt",
        "transformers-vit",
        "timm-vit DINO",
        "timm-vit DINOv2",
    ],
)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """One published checkpoint after the other; tests do not write into it."""
    makers: dict[str, Callable[[], Published]] = {
        "open-clip ViT": open_clip_vit,
        "open-clip ViT with QuickGELU": lambda: open_clip_vit(activation="quick_gelu"),
        "open-clip ViT in CustomTextCLIP": lambda: open_clip_vit("CustomTextCLIP"),
        "open-clip ConvNeXt": open_clip_convnext,
        "open-clip-visual ViT": lambda: bare(open_clip_vit()),
        "open-clip-visual ConvNeXt": lambda: bare(open_clip_convnext()),
        "transformers-vit": lambda: transformers_vit(tmp_path_factory.mktemp("vit")),
        "timm-vit DINO": timm_dino,
        "timm-vit DINOv2": timm_dinov2,
    }
    return makers[request.param]()


def encoder_of(published: Published) -> Encoder:
    read = {k: v for k, v in published.state.items() if vision_keys(published.layout, k)}
    state = convert(read, published.layout, published.architecture)
    side = published.architecture.image_size
    return Encoder.from_weights(state, published.architecture, Preprocessing("crop", side, side)).eval()


def test_layout_is_detected_and_gives_the_librarys_own_embedding(published: Published) -> None:
    assert detect(published.state) == published.layout
    encoder = encoder_of(published)
    side = encoder.image_size
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = published.embed((images - encoder.mean) / encoder.std)
        result = encoder(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_parts_that_are_not_read_need_not_be_there(published: Published) -> None:
    read = {k: v for k, v in published.state.items() if vision_keys(published.layout, k)}
    whole = convert(published.state, published.layout, published.architecture)
    assert whole.keys() == convert(read, published.layout, published.architecture).keys()
    left_out = set(published.state) - set(read)
    if published.layout == "open-clip":
        assert left_out == {k for k in published.state if not k.startswith("visual.")}
        assert len(left_out) > 10
    else:
        known = {"transformers-vit": {"pooler.dense.weight", "pooler.dense.bias"}, "timm-vit": {"mask_token"}}
        assert left_out <= known.get(published.layout, set())


def test_tensors_are_passed_on_and_not_copied(published: Published) -> None:
    converted = convert(published.state, published.layout, published.architecture)
    storages = {t.untyped_storage().data_ptr() for t in published.state.values()}
    copied = {k for k, t in converted.items() if t.untyped_storage().data_ptr() not in storages}
    allowed = {
        "transformers-vit": re.compile(r".+\.attn\.qkv\.(weight|bias)"),
        "timm-vit": re.compile(r"tower\.trunk\.pos_embed"),
    }.get(published.layout, re.compile(r"tower\.projection\.weight"))
    assert all(allowed.fullmatch(key) for key in copied)
    assert all(t.is_contiguous() for t in converted.values())


def test_every_missing_or_added_key_is_named(published: Published) -> None:
    needed = [k for k in published.state if vision_keys(published.layout, k)]
    for key in needed:
        state = {k: v for k, v in published.state.items() if k != key}
        with pytest.raises(CheckpointError, match=rf"missing {re.escape(key)}\."):
            convert(state, published.layout, published.architecture)
    for key in ("visual.extra", "head.weight", "blocks.3.norm1.weight", "transformer.extra"):
        with pytest.raises(CheckpointError, match=rf"unexpected {re.escape(key)}\."):
            convert(published.state | {key: torch.zeros(1)}, published.layout, published.architecture)


def test_every_wrong_shape_is_named(published: Published) -> None:
    for key in (k for k in published.state if vision_keys(published.layout, k)):
        state = published.state | {key: torch.zeros(7, 5)}
        with pytest.raises(CheckpointError, match=rf"shape of (.+, )?{re.escape(key)}(, .+)? is .*\(7, 5\)"):
            convert(state, published.layout, published.architecture)


def test_another_depth_or_projection_is_refused(published: Published) -> None:
    architecture = published.architecture
    if isinstance(architecture, ViTArchitecture):
        deeper: Architecture = replace(architecture, depth=4)
    else:
        deeper = replace(architecture, depths=(3, 3, 9, 4))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"missing .*\.3\..* and \d+ more"):
        convert(published.state, published.layout, deeper)
    shallower = replace(deeper, **({"depth": 2} if deeper.kind == "vit" else {"depths": (3, 3, 9, 2)}))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"unexpected .*\.2\..* and \d+ more"):
        convert(published.state, published.layout, shallower)
    if architecture.projection is None:
        with pytest.raises(CheckpointError, match=r"cannot hold the tensor tower\.projection\.weight|missing"):
            convert(published.state, published.layout, replace(architecture, projection=24))
    else:
        with pytest.raises(CheckpointError, match=r"unexpected (visual\.)?(proj|head\.proj\.weight)\."):
            convert(published.state, published.layout, replace(architecture, projection=None))  # type: ignore[arg-type]


def test_other_dtypes() -> None:
    published = open_clip_vit()
    halves = {k: v.half() for k, v in published.state.items()}
    converted = convert(halves, "open-clip", VIT)
    assert {t.dtype for t in converted.values()} == {torch.float16}
    with pytest.raises(CheckpointError, match=r"visual\.ln_post\.weight is torch\.int64, expected floating point"):
        convert(published.state | {"visual.ln_post.weight": torch.ones(128).long()}, "open-clip", VIT)


@pytest.mark.parametrize(("eps", "same"), [(1e-6, True), (1e-12, False)])
def test_transformers_configs_state_the_wrong_eps(tmp_path: Path, eps: float, same: bool) -> None:
    """DINO was trained with 1e-6, its transformers configs say 1e-12: small activations tell them apart."""
    published = transformers_vit(tmp_path, eps, scale=1e-3)
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    encoder = encoder_of(published)
    with torch.inference_mode():
        expected = published.embed((images - encoder.mean) / encoder.std)
        result = encoder(images)
    assert torch.allclose(result, expected, atol=1e-4, rtol=1e-4) is same


@pytest.mark.parametrize("mlp_hidden", [None, 40])
def test_our_own_layout(mlp_hidden: int | None) -> None:
    encoder = Encoder(VIT, Preprocessing("crop", SIDE, SIDE), mlp_hidden=mlp_hidden)
    state = encoder.state_dict()
    assert detect(state) == "rclip-metric"
    converted = convert(state, "rclip-metric", VIT, mlp_hidden)
    assert converted.keys() == state.keys()
    assert all(converted[k] is state[k] for k in state)
    with pytest.raises(CheckpointError, match=r"missing head\.fc1\.weight" if mlp_hidden is None else "unexpected"):
        convert(state, "rclip-metric", VIT, None if mlp_hidden else 40)


def test_published_tower_with_a_head_of_ours() -> None:
    published = open_clip_vit()
    head = {"head.fc1.weight": (40, 24), "head.fc1.bias": (40,), "head.fc2.weight": (24, 40), "head.fc2.bias": (24,)}
    tensors = {key: torch.randn(shape) for key, shape in head.items()}
    converted = convert(published.state | tensors, "open-clip", VIT, mlp_hidden=40)
    assert all(converted[key] is tensor for key, tensor in tensors.items())
    with pytest.raises(CheckpointError, match=r"missing head\.fc1\.weight, head\.fc1\.bias"):
        convert(published.state, "open-clip", VIT, mlp_hidden=40)


@pytest.mark.parametrize("mlp_hidden", [None, 512])
@pytest.mark.parametrize("name", NAMED)
def test_expected_shapes_are_those_of_the_encoder(name: str, mlp_hidden: int | None) -> None:
    architecture = NAMED[name]
    side = architecture.image_size
    with torch.device("meta"):
        encoder = Encoder(architecture, Preprocessing("crop", side, side), mlp_hidden=mlp_hidden)
    shapes = {key: tuple(tensor.shape) for key, tensor in encoder.state_dict().items()}
    assert expected_shapes(architecture, mlp_hidden) == shapes


def test_unequal_stage_widths_and_bare_features() -> None:
    for architecture in (
        ConvNeXtArchitecture(image_size=32, depths=(1, 2, 1, 1), widths=(8, 8, 16, 24)),
        replace(VIT, layer_scale=True, patch_bias=True, mlp_ratio=2.5),
    ):
        with torch.device("meta"):
            encoder = Encoder(architecture, Preprocessing("crop", 32, 32))
        shapes = {key: tuple(tensor.shape) for key, tensor in encoder.state_dict().items()}
        assert expected_shapes(architecture) == shapes


def test_layouts_do_not_mix() -> None:
    state = open_clip_vit().state
    with pytest.raises(CheckpointError, match=r"transformers-vit cannot hold the tensor tower\.trunk\.norm_pre"):
        convert(state, "transformers-vit", VIT)
    with pytest.raises(CheckpointError, match="timm-vit cannot hold the tensor"):
        convert(state, "timm-vit", CONVNEXT)
    with pytest.raises(CheckpointError, match=r"does not fit a ViT/8 of width 128 and depth 3 in the layout timm-vit"):
        convert(state, "timm-vit", replace(VIT, projection=None))
    with pytest.raises(CheckpointError, match=r"none of the layouts rclip-metric, open-clip.*first keys: a, b, c"):
        detect(["d", "c", "b", "a"])
    with pytest.raises(CheckpointError, match="none at all"):
        detect([])
    with pytest.raises(ValueError, match="layout must be one of rclip-metric, open-clip"):
        convert(state, "open_clip", VIT)
    vits = ["rclip-metric", "open-clip", "open-clip-visual", "transformers-vit", "timm-vit"]
    assert list(LAYOUTS) == [*vits, "efficientnet-lite", "timm"] == list(LAYOUT_NAMES)


@pytest.mark.parametrize("side", [16, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_come_to_another_grid_as_timm_brings_them(side: int, dtype: torch.dtype) -> None:
    from timm.layers import resample_abs_pos_embed

    architecture = replace(DINO, image_size=8 * side)
    positions = torch.randn(1, 1 + 9**2, 128, generator=torch.Generator().manual_seed(6)).to(dtype)
    state = {**build_tower(architecture).trunk.state_dict(), "pos_embed": positions}  # type: ignore[union-attr]
    ours = convert(state, "timm-vit", architecture)["tower.trunk.pos_embed"]
    expected = resample_abs_pos_embed(positions, new_size=[side, side], num_prefix_tokens=1)
    assert ours.dtype == dtype and torch.equal(ours, expected)
