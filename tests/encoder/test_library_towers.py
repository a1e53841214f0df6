"""Towers that timm or OpenCLIP compute, against the libraries themselves, from building to the Hub and back."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor

from rclip_metric import RobustPerceptualDistance
from rclip_metric.encoder import (
    NAMED,
    Architecture,
    Encoder,
    OpenClipArchitecture,
    TimmArchitecture,
    architecture_from_dict,
    architecture_to_dict,
    build_tower,
    convert,
    embedding_dim,
    expected_shapes,
    open_clip_architecture,
)
from rclip_metric.encoder.library_towers import timm_architecture
from rclip_metric.encoder.state_dicts import expected_tensors
from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.images import Preprocessing
from rclip_metric.weights import WeightSpec, load_encoder, push_encoder, save_encoder

from support.images import noise

SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 2}
RESNET_CONFIG = {"embed_dim": 24, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}}
COCA_CONFIG = {
    "embed_dim": 24,
    "quick_gelu": "TRUE",
    "vision_cfg": {
        **{"layers": 2, "width": 64, "patch_size": 8, "image_size": 32, "attentional_pool": True},
        **{"output_tokens": True, "attn_pooler_heads": 8},
    },
}
MAKERS: dict[str, Callable[[], Architecture]] = {
    "timm vit": lambda: timm_architecture("test_vit", image_size=64),
    "timm resnet": lambda: timm_architecture("test_resnet", image_size=64),
    "timm swin": lambda: timm_architecture("swin_tiny_patch4_window7_224", image_size=64, options=SWIN, projection=12),
    "open_clip resnet": lambda: open_clip_architecture("RN-small", RESNET_CONFIG),
    "open_clip coca": lambda: open_clip_architecture("coca-small", COCA_CONFIG),
}


def randomised(architecture: Architecture, mlp_hidden: int | None = None) -> Encoder:
    """Parameters and the statistics of every BatchNorm at values that show when they are lost."""
    side = architecture.image_size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(architecture, Preprocessing("crop", side, side), mlp_hidden=mlp_hidden, name="small")
        for key, value in encoder.state_dict().items():
            if key.endswith("num_batches_tracked"):
                value.fill_(7)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.dim() <= 1:
                value.add_(torch.randn_like(value), alpha=0.1)
    return encoder.eval().requires_grad_(False)


def batch(side: int, count: int = 3) -> Tensor:
    return noise(count, 3, side, side, seed=1)


@pytest.fixture(scope="module", params=MAKERS)
def encoder(request: pytest.FixtureRequest) -> Iterator[Encoder]:
    """One small tower of each kind; tests do not write into it."""
    yield randomised(MAKERS[request.param]())


def librarys_own(encoder: Encoder) -> Callable[[Tensor], Any]:
    """The model that the library itself builds, with the encoder's weights."""
    architecture = encoder.architecture
    state = {key.removeprefix("tower.trunk."): value for key, value in encoder.state_dict().items()}
    if isinstance(architecture, TimmArchitecture):
        arguments: dict[str, Any] = {"img_size": architecture.image_size} if "resnet" not in architecture.model else {}
        model = timm.create_model(architecture.model, num_classes=0, **arguments, **json.loads(architecture.options))
        projection = state.pop("tower.projection.weight", None)
        model.load_state_dict(state)
        model.eval()
        return lambda x: model(x) if projection is None else model(x) @ projection.T
    assert isinstance(architecture, OpenClipArchitecture)
    config = RESNET_CONFIG if architecture.model == "RN-small" else COCA_CONFIG
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    if config is RESNET_CONFIG:
        whole: Any = open_clip.CLIP(**config, text_cfg=text)
    else:
        whole = open_clip.CoCa(**{**config, "quick_gelu": True}, text_cfg=text, multimodal_cfg=text)
    whole.visual.load_state_dict(state)
    whole.eval()
    return lambda x: whole.encode_image(x, normalize=False)


def test_the_librarys_own_embedding(encoder: Encoder) -> None:
    images = batch(encoder.image_size)
    with torch.no_grad():
        expected = librarys_own(encoder)((images - encoder.mean) / encoder.std)
        result = encoder(images)
    assert result.shape == (3, embedding_dim(encoder.architecture))
    assert result.std() > 0.01
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_bit_for_bit(encoder: Encoder, tmp_path: Path) -> None:
    images = batch(encoder.image_size)
    state = torch.get_rng_state()
    loaded = load_encoder(save_encoder(encoder, tmp_path / "run"))
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    assert loaded.architecture == encoder.architecture
    assert not any(t.is_meta for t in [*loaded.parameters(), *loaded.buffers()])
    own, theirs = dict(encoder.named_buffers()), dict(loaded.named_buffers())
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    weights = encoder.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())
    # Close, since kernels depend on where in memory the weights begin.
    torch.testing.assert_close(loaded.requires_grad_(False)(images), encoder(images), atol=1e-6, rtol=1e-5)
    metric = RobustPerceptualDistance(tmp_path / "run")
    torch.testing.assert_close(metric.embed(images), torch.nn.functional.normalize(encoder(images)))


def test_a_layer_that_is_used_twice_is_saved_and_stays_one_layer(tmp_path: Path) -> None:
    small = {"embed_dims": [16, 16, 16, 16], "serial_depths": [2, 1, 1, 1]}
    encoder = randomised(timm_architecture("coat_tiny", image_size=64, options=small))
    loaded = load_encoder(save_encoder(encoder, tmp_path)).requires_grad_(False)
    assert (
        len(list(loaded.parameters())) == len(list(encoder.parameters())) < len(expected_shapes(encoder.architecture))
    )
    torch.testing.assert_close(loaded(batch(64)), encoder(batch(64)), atol=1e-6, rtol=1e-5)


def test_batchnorm_is_saved(tmp_path: Path) -> None:
    saved = load_encoder(save_encoder(randomised(MAKERS["open_clip resnet"]()), tmp_path)).state_dict()
    counters = [value for key, value in saved.items() if key.endswith("num_batches_tracked")]
    assert len(counters) > 10
    assert {(value.dtype, value.item()) for value in counters} == {(torch.int64, 7)}


def test_half_precision_leaves_counters_alone() -> None:
    encoder = randomised(MAKERS["timm resnet"]())
    images = batch(64)
    expected = encoder(images)
    half = copy.deepcopy(encoder).to(torch.bfloat16)
    restored = Encoder.from_weights(half.state_dict(), encoder.architecture, encoder.preprocessing)
    assert {value.dtype for value in restored.state_dict().values()} == {torch.float32, torch.int64}
    for result in (half(images), restored(images)):
        assert (result - expected).norm() < 0.05 * expected.norm()


def test_large_batches_go_in_chunks_with_the_same_result(encoder: Encoder) -> None:
    images = batch(encoder.image_size, 5)
    model = copy.copy(encoder)
    model.chunk_size = 2
    with torch.no_grad():
        torch.testing.assert_close(model(images), encoder(images), atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_images_and_every_weight(encoder: Encoder) -> None:
    model = copy.deepcopy(encoder).requires_grad_(True)
    images = batch(encoder.image_size).requires_grad_()
    model(images).square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    lost = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not lost


def test_with_an_mlp_head_on_the_hub_and_back(hub: Any, encoder: Encoder) -> None:
    model = randomised(encoder.architecture, mlp_hidden=8)
    push_encoder(model, "me/small", token=hub.token)
    loaded = load_encoder("me/small")
    images = batch(encoder.image_size)
    assert loaded.mlp_hidden == 8
    torch.testing.assert_close(loaded.requires_grad_(False)(images), model(images), atol=1e-6, rtol=1e-5)


def test_architecture_survives_json_and_the_manifest(encoder: Encoder) -> None:
    architecture = encoder.architecture
    assert architecture_from_dict(json.loads(json.dumps(architecture_to_dict(architecture)))) == architecture
    entry = {
        "architecture": architecture_to_dict(architecture),
        **{"mlp_hidden": None, "layout": "rclip-metric", "source": "hub", "repo": "me/small", "revision": None},
        **{"files": None, "preprocessing": encoder.preprocessing.to_dict(), "embedding_dim": encoder.embedding_dim},
        **{"training": None, "license": None, "reported": {}, "citation": None, "url_note": None, "notes": None},
    }
    assert WeightSpec.from_dict("small", entry).to_dict() == entry


def test_keys_are_checked(encoder: Encoder) -> None:
    state = encoder.state_dict()
    architecture = encoder.architecture
    assert expected_shapes(architecture) == {key: tuple(value.shape) for key, value in state.items()}
    for key, value in list(state.items())[:: max(1, len(state) // 8)]:
        with pytest.raises(CheckpointError, match=rf"does not fit the .* tower .*missing {key}\."):
            Encoder.from_weights({k: v for k, v in state.items() if k != key}, architecture, encoder.preprocessing)
        with pytest.raises(CheckpointError, match=f"shape of {key} is"):
            Encoder.from_weights(state | {key: value.new_zeros(3, 1, 4, 1, 5)}, architecture, encoder.preprocessing)
        wrong = value.float() if value.dtype == torch.int64 else value.long()
        with pytest.raises(CheckpointError, match=f"tensor {key} is {wrong.dtype}, expected"):
            Encoder.from_weights(state | {key: wrong}, architecture, encoder.preprocessing)


def test_open_clip_checkpoints_fit_its_towers() -> None:
    encoder = randomised(MAKERS["open_clip resnet"]())
    whole = {"visual." + key.removeprefix("tower.trunk."): value for key, value in encoder.state_dict().items()}
    for layout, published in {
        "open-clip": whole | {"logit_scale": torch.zeros(())},
        "open-clip-visual": {key.removeprefix("visual."): value for key, value in whole.items()},
    }.items():
        state = convert(published, layout, encoder.architecture)
        assert state.keys() == encoder.state_dict().keys()
        with pytest.raises(CheckpointError, match=r"cannot hold|missing"):
            convert(published, "timm-vit", encoder.architecture)


def test_every_open_clip_config_is_an_architecture() -> None:
    """Native where it can be, and what the tower's own weights are called and shaped in any case."""
    kinds: dict[str, int] = {}
    for name in open_clip.list_models():
        architecture = open_clip_architecture(name, open_clip.get_model_config(name))
        kinds[architecture.kind] = kinds.get(architecture.kind, 0) + 1
        assert embedding_dim(architecture) == open_clip.get_model_config(name)["embed_dim"]
    assert set(kinds) == {"vit", "convnext", "open_clip"}
    for name in ("RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32", "EVA02-B-16"):
        assert open_clip_architecture(name, open_clip.get_model_config(name)).kind == "open_clip"
    vit_b_16 = open_clip_architecture("ViT-B-16", open_clip.get_model_config("ViT-B-16"))
    assert vit_b_16 == NAMED["vit_b_16"]


def test_a_config_is_found_by_its_name() -> None:
    """Millions of parameters as timm and OpenAI publish them, the attention pool of CLIP's ResNet included."""
    sizes = {
        OpenClipArchitecture(model="RN50", image_size=224, projection=1024): 38.3,
        TimmArchitecture(model="resnet50.a1_in1k", image_size=224, features=2048): 23.5,
    }
    for architecture, millions in sizes.items():
        tensors = expected_tensors(architecture)
        floats = sum(t.numel() for t in tensors.values() if t.dtype.is_floating_point)
        buffers = sum(t.numel() for key, t in tensors.items() if "running" in key)
        assert (floats - buffers) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (TimmArchitecture(model="resnet500", image_size=64, features=8), "timm has no model 'resnet500': did you mean"),
        (TimmArchitecture(model="test_vit.r160", image_size=64, features=64), "with weights it has test_vit.r160_in1k"),
        (
            TimmArchitecture(model="test_vit", image_size=64, features=8),
            "features must be 64 for timm's test_vit, got 8",
        ),
        (
            TimmArchitecture(model="test_resnet", image_size=64, features=64, options='{"class_token": true}'),
            "timm cannot build test_resnet: .*class_token",
        ),
        (
            OpenClipArchitecture(model="RN5O", image_size=64, projection=8),
            "OpenCLIP has no model 'RN5O': did you mean RN50",
        ),
        (
            OpenClipArchitecture(model="RN50", image_size=224, projection=8),
            "projection must be 1024 for OpenCLIP's RN50",
        ),
    ],
)
def test_what_the_library_does_not_have(architecture: Architecture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tower(architecture)
    with pytest.raises(ValueError, match=message):
        expected_shapes(architecture)


def test_unpooled_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"timm's .* gives features of shape .* no pooled"):
        timm_architecture("test_vit", options={"global_pool": ""})
    with pytest.raises(UnknownModelError, match="timm has no model"):
        timm_architecture("hal_9000")
    with pytest.raises(ValueError, match="does not take 63 pixels"):
        timm_architecture("test_vit", image_size=63, options={"dynamic_img_size": True})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("timm vit", {"model": "hf-hub:me/tiny"}, "model must be a name in the library's registry"),
        ("timm vit", {"features": 0}, "features must"),
        ("timm vit", {"projection": 1.5}, "projection must"),
        ("timm vit", {"options": []}, "options must be a JSON object"),
        ("timm vit", {"options": {"checkpoint_path": "x"}}, "options, field 'checkpoint_path': is not known"),
        ("timm vit", {"width": 3}, "Unknown timm field width"),
        ("open_clip resnet", {"config": {"embed_dim": 24}}, "config must have embed_dim, vision_cfg and quick_gelu"),
        ("open_clip resnet", {"projection": 25}, r"projection must be the config's embed_dim \(24\), got 25"),
        ("open_clip resnet", {"config": None, "model": "local-dir:x"}, "model must be a name"),
    ],
)
def test_wrong_records_name_the_field(name: str, change: dict[str, Any], message: str) -> None:
    written = architecture_to_dict(MAKERS[name]())
    with pytest.raises(ValueError, match=message):
        architecture_from_dict(written | change)
    if name.startswith("open_clip") and "config" not in change:
        written["config"]["vision_cfg"]["timm_model_name"] = "hf-hub:me/tiny"
        with pytest.raises(ValueError, match="timm_model_name': expected a name in the library's registry"):
            architecture_from_dict(written)


def test_configs_equal_in_meaning_are_equal() -> None:
    architecture = timm_architecture("test_vit", image_size=64, options={"depth": 2, "class_token": True})
    other = replace(architecture, options='{"depth":2, "class_token":true}')  # type: ignore[type-var]
    assert other == architecture
    assert hash(other) == hash(architecture)


@pytest.mark.parametrize("name", ["timm vit", "timm resnet", "timm swin", "open_clip coca"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    plain = randomised(MAKERS[name]()).requires_grad_(True)
    images = batch(plain.image_size, 2).requires_grad_()
    sought = [images, *plain.parameters()]
    expected = torch.autograd.grad(plain(images).square().sum(), sought)
    plain.checkpointing = True
    assert plain.checkpointing
    for ours, theirs in zip(torch.autograd.grad(plain(images).square().sum(), sought), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_checkpointing_is_refused_where_the_library_cannot() -> None:
    encoder = randomised(MAKERS["open_clip resnet"]())
    with pytest.raises(ValueError, match="RN-small cannot compute activations again"):
        encoder.checkpointing = True
    assert not encoder.checkpointing
    encoder.checkpointing = False
