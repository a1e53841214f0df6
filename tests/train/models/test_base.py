"""Bases of fine-tuning by name: from files and a loopback Hub, against the libraries' own embeddings."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip import factory
from safetensors.torch import save, save_file
from torch import Tensor

from rclip_metric.encoder import Encoder
from rclip_metric.errors import CheckpointError, HubError, ManifestError, UnknownModelError
from rclip_metric.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from rclip_metric.train.models.base import load_base, load_base_text, resized
from rclip_metric.train.models.text_weights import load_text
from rclip_metric.weights import load_encoder, save_encoder

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit-for-tests": {
        "embed_dim": 24,
        "vision_cfg": {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32},
        "text_cfg": TEXT,
    },
    "resnet-for-tests": {
        "embed_dim": 24,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64},
        "text_cfg": TEXT,
    },
    "siglip-for-tests": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32, "pool_type": "avg"},
        "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True},
    },
}
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small configs in OpenCLIP's registry, for this module alone."""
    folder = tmp_path_factory.mktemp("configs")
    paths, known = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIG_PATHS[:] = paths
    factory._MODEL_CONFIGS = known


def clip(name: str, **settings: Any) -> Any:
    """OpenCLIP's own model with seeded weights, nowhere at their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name, **settings).eval()
        for key, value in model.state_dict().items():
            if value.is_floating_point() and key != "logit_scale":
                value.add_(torch.randn_like(value), alpha=0.1).abs_() if "running" in key else value.add_(
                    torch.randn_like(value), alpha=0.05
                )
    return model


def normalised(encoder: Encoder, images: Tensor) -> Tensor:
    return (images - encoder.mean) / encoder.std


def assert_same_embedding(encoder: Encoder, own: Any) -> None:
    side = encoder.image_size
    images = IMAGES[..., :side, :side] if side <= 64 else torch.nn.functional.interpolate(IMAGES, (side, side))
    with torch.no_grad():
        expected, result = own(normalised(encoder, images)), encoder(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"), [("vit-for-tests", "vit"), ("resnet-for-tests", "open_clip"), ("siglip-for-tests", "open_clip")]
)
def test_open_clip_with_a_file_of_weights(tmp_path: Path, name: str, kind: str) -> None:
    model = clip(name)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    encoder = load_base(f"open_clip:{name}@{tmp_path / 'weights.safetensors'}")
    assert encoder.architecture.kind == kind
    assert not encoder.training
    assert (encoder.revision or "").startswith("sha256:")
    side = encoder.image_size
    assert encoder.preprocessing == Preprocessing("crop", side, side)
    assert_same_embedding(encoder, model.visual)
    with torch.no_grad():
        reloaded = load_encoder(save_encoder(encoder, tmp_path / "run"))
        torch.testing.assert_close(reloaded(IMAGES), encoder(IMAGES), atol=1e-6, rtol=1e-6)


def test_a_saved_open_clip_base_needs_no_config_in_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_base("open_clip:resnet-for-tests@random")
    save_encoder(encoder, tmp_path)
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", {})
    torch.testing.assert_close(load_encoder(tmp_path)(IMAGES), encoder(IMAGES), atol=1e-6, rtol=1e-5)


def test_a_tag_says_quick_gelu_and_how_images_are_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the published ones of OpenAI do for configs that do not; the file is found as a tag's is."""
    model = clip("vit-for-tests", force_quick_gelu=True)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    stated = {
        **{"file": str(tmp_path / "weights.safetensors"), "quick_gelu": True, "resize_mode": "squash"},
        **{"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic"},
    }
    published = {
        "openai": stated,
        "other": {**stated, "interpolation": "bilinear"},
        "more": {**stated, "resize_mode": "longest"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "vit-for-tests", published)
    encoder = load_base("open_clip:vit-for-tests@openai")
    assert encoder.preprocessing == Preprocessing("squash", 32, 32, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert encoder.architecture.activation == "quick_gelu"  # type: ignore[union-attr]
    assert_same_embedding(encoder, model.visual)
    text = load_base_text("open_clip:vit-for-tests@openai")
    assert text.tower.config.quick_gelu
    with pytest.raises(ValueError, match="resized by bilinear"):
        load_base("open_clip:vit-for-tests@other")
    with pytest.raises(ValueError, match="resizes images by 'longest'"):
        load_base("open_clip:vit-for-tests@more")
    with pytest.raises(
        UnknownModelError, match=r"add @ and a tag, a file or random \(weights .* are openai, other, more\)"
    ):
        load_base("open_clip:vit-for-tests")
    with pytest.raises(UnknownModelError, match=r"no weights 'openal' of vit-for-tests.* did you mean openai\?"):
        load_base("open_clip:vit-for-tests@openal")


def test_open_clip_from_the_hub(hub: Any) -> None:
    model = clip("resnet-for-tests")
    config = {"model_cfg": CONFIGS["resnet-for-tests"], "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    files = {
        "open_clip_model.safetensors": save(model.state_dict()),
        "open_clip_config.json": json.dumps(config).encode(),
    }
    hub.commit("me/clip", files)
    encoder = load_base("open_clip:hf-hub:me/clip")
    assert encoder.preprocessing.mean == (0.5, 0.5, 0.5)
    assert_same_embedding(encoder, model.visual)
    hub.commit("me/bare", {"open_clip_config.json": json.dumps(config).encode()})
    with pytest.raises(HubError, match="The model open_clip:hf-hub:me/bare could not be transferred"):
        load_base("open_clip:hf-hub:me/bare")  # and never random weights in their place
    with pytest.raises(HubError, match="The config of OpenCLIP's hf-hub:me/none"):
        load_base("open_clip:hf-hub:me/none")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(clip("vit-for-tests").state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match="do not fit OpenCLIP's resnet-for-tests"):
        load_base(f"open_clip:resnet-for-tests@{tmp_path / 'vit.safetensors'}")


def timm_repository(name: str, **settings: Any) -> tuple[Any, dict[str, bytes]]:
    """A timm model with seeded weights, and the files of its repository on the Hub."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = timm.create_model(name, num_classes=5, **settings).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    config: dict[str, Any] = {
        **{"architecture": name, "num_classes": 5, "num_features": model.num_features, "model_args": settings},
        "pretrained_cfg": {
            **{
                "input_size": [3, 64, 64],
                "fixed_input_size": "img_size" in settings,
                "interpolation": "bicubic",
                "crop_pct": 0.875,
            },
            **{"crop_mode": "center", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "num_classes": 5},
            **{"first_conv": model.default_cfg["first_conv"], "classifier": model.default_cfg["classifier"]},
        },
    }
    return model, {"model.safetensors": save(model.state_dict()), "config.json": json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("test_vit", {"img_size": 64, "global_pool": "avg", "class_token": False}), ("test_efficientnet", {})],
)
def test_timm_from_the_hub(hub: Any, tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    model, files = timm_repository(name, **settings)
    hub.commit("me/tiny", files)
    encoder = load_base("timm:hf-hub:me/tiny")
    assert not encoder.training
    assert encoder.preprocessing == Preprocessing("crop", 73, 64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    model.reset_classifier(0)
    assert_same_embedding(encoder, model)
    hub.reset()  # the result does not need it any more
    with torch.no_grad():
        loaded = load_encoder(save_encoder(encoder, tmp_path / "run"))
        state = encoder.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        torch.testing.assert_close(loaded(IMAGES), encoder(IMAGES), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("pretrained_cfg", {"file": "/etc/passwd"}, "field 'file': expected nothing"),
        ("pretrained_cfg", {"url": "http://somewhere/w.pth"}, "field 'url': expected nothing"),
        ("pretrained_cfg", {"custom_load": True}, "field 'custom_load': expected nothing"),
        ("pretrained_cfg", {"crop_pct": 0}, "field 'crop_pct': expected a share"),
        ("pretrained_cfg", {"mean": ["x"]}, r"field 'mean\[0\]': expected a number"),
        ("model_args", {"checkpoint_path": "/etc/passwd"}, "field 'model_args.checkpoint_path': is not known"),
        ("model_args", {"img_size": [64, 64]}, "field 'model_args.img_size': expected a positive integer"),
        ("model_args", {"depth": 10**7}, "field 'model_args.depth': expected a positive integer up to 512"),
    ],
)
def test_a_repository_has_timm_open_fetch_and_allocate_nothing(
    hub: Any, part: str, change: dict[str, Any], message: str
) -> None:
    _, files = timm_repository("test_vit", img_size=64)
    config = json.loads(files["config.json"])
    config[part] |= change
    hub.commit("me/hostile", {**files, "config.json": json.dumps(config).encode()})
    with pytest.raises(ManifestError, match=rf"^The config of timm:hf-hub:me/hostile, {message}"):
        load_base("timm:hf-hub:me/hostile")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_cfg", {"hf_model_name": "somebody/else"}, "field 'text_cfg.hf_model_name': expected nothing"),
        (
            "vision_cfg",
            {"timm_model_name": "hf-hub:somebody/else"},
            "field .*timm_model_name': expected a name",
        ),
        ("vision_cfg", {"timm_model_pretrained": True}, "field 'vision_cfg.timm_model_pretrained': expected nothing"),
        (
            "vision_cfg",
            {"layers": [10**7, 1, 1, 1]},
            "field .*layers': expected a positive integer up to 512",
        ),
        ("vision_cfg", {"image_size": 20_000}, "field 'vision_cfg.image_size': expected a positive integer up to 2048"),
    ],
)
def test_a_repository_has_open_clip_fetch_and_allocate_nothing(
    hub: Any, part: str, change: dict[str, Any], message: str
) -> None:
    config = json.loads(json.dumps(CONFIGS["resnet-for-tests"]))
    config[part] |= change
    hub.commit("me/hostile", {"open_clip_config.json": json.dumps({"model_cfg": config}).encode()})
    with pytest.raises(ManifestError, match=f"^The config of hf-hub:me/hostile, {message}"):
        load_base("open_clip:hf-hub:me/hostile")


@pytest.mark.parametrize("name", ["timm:hf-hub:a/..", "open_clip:hf-hub:models--x/y", "timm:hf-hub:../../x"])
def test_what_is_no_hub_id_reaches_no_library(hub: Any, name: str) -> None:
    with pytest.raises(UnknownModelError, match="is no Hub id: that is owner/repo"):
        load_base(name)
    assert not hub.requests


def test_timm_tags_come_from_the_hub_with_their_preprocessing(hub: Any) -> None:
    _, files = timm_repository("test_convnext")
    model: Any = timm.create_model("test_convnext", num_classes=1000).eval()
    hub.commit("timm/test_convnext.r160_in1k", {**files, "model.safetensors": save(model.state_dict())})
    for name in ("timm:test_convnext", "timm:test_convnext.r160_in1k"):
        encoder = load_base(name)
        assert encoder.name == "timm:test_convnext.r160_in1k"  # which weights, also where the name left it open
        assert encoder.preprocessing == Preprocessing("crop", 168, 160, mean=(0.5,) * 3, std=(0.5,) * 3)
        model.reset_classifier(0)
        assert_same_embedding(encoder, model)
    with pytest.raises(HubError, match="The model timm:test_vit"):
        load_base("timm:test_vit")


def timm_file(name: str, folder: Path, suffix: str, **settings: Any) -> tuple[Any, Path]:
    """A timm model of 5 classes with seeded weights, and a file of them."""
    model, _ = timm_repository(name, **settings)
    state = model.state_dict()
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if suffix == ".bin" else state, path)
    return model, path


@pytest.mark.parametrize(
    ("name", "suffix"), [("test_vit", ".safetensors"), ("test_efficientnet", ".pth"), ("test_convnext", ".bin")]
)
def test_timm_with_a_file_of_weights(tmp_path: Path, name: str, suffix: str) -> None:
    model, path = timm_file(name, tmp_path, suffix)
    encoder = load_base(f"timm:{name}@{path}")
    assert not encoder.training
    assert encoder.name == f"timm:{name}@{path.name}" and (encoder.revision or "").startswith("sha256:")
    assert encoder.preprocessing.crop == 160 and encoder.preprocessing.mode == "crop"
    model.reset_classifier(0)
    assert_same_embedding(encoder, model)
    small = load_base(f"timm:{name}@{path}", image_size=64, squash=True)
    assert small.preprocessing == replace(encoder.preprocessing, mode="squash", resize=64, crop=64)
    if name == "test_vit":  # by timm's own means
        model.set_input_size(img_size=64)
    assert_same_embedding(small, model)


def test_a_file_for_timm_is_read_strictly(tmp_path: Path) -> None:
    model, path = timm_file("test_vit", tmp_path, ".pth")
    state = model.state_dict()
    for changed, complaint in (
        ({key: value for key, value in state.items() if key != "norm.bias"}, r"missing norm\.bias\.$"),
        (state | {"mask_token": torch.zeros(1)}, r"unexpected mask_token\.$"),
        (state | {"pos_embed": torch.zeros(1, 17, 64)}, r"shape of pos_embed is \(1, 17, 64\)"),
    ):
        torch.save(changed, path)
        for size in (None, 64):
            with pytest.raises(CheckpointError, match=rf"weights\.pth: The .*{complaint}"):
                load_base(f"timm:test_vit@{path}", image_size=size)
    torch.save({"model": tmp_path}, path)
    with pytest.raises(CheckpointError, match="is not a file of plain tensors"):
        load_base(f"timm:test_vit@{path}")


def test_position_embeddings_of_a_timm_tag_are_resampled(hub: Any) -> None:
    model: Any = timm.create_model("test_vit").eval()
    _, files = timm_repository("test_vit")
    hub.commit("timm/test_vit.r160_in1k", {**files, "model.safetensors": save(model.state_dict())})
    encoder = load_base("timm:test_vit", image_size=96)
    assert encoder.preprocessing == Preprocessing("crop", 101, 96, mean=(0.5,) * 3, std=(0.5,) * 3)
    model.reset_classifier(0)
    model.set_input_size(img_size=96)
    assert_same_embedding(encoder, model)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("timm:test_vit@random", 100, r"timm's test_vit\S* does not take 100 pixels: Input height \(100\) should be"),
        ("timm:test_convnext@random", 16, r"timm's test_convnext\S* does not take 16 pixels: .*Kernel size"),
        ("tiny-clean", 16, "image_size must be at least 32"),
        (
            "dino-vit-b-16@random",
            112,
            "weights of this vit tower are for images of 224 pixels, not of 112: another size",
        ),
        ("open_clip:resnet-for-tests@random", 96, "weights of this open_clip tower are for images of 64 pixels"),
    ],
)
def test_sizes_that_a_model_does_not_take(name: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_base(name, image_size=size)
    assert "\n" not in str(error.value)


def test_towers_of_convolutions_take_other_sizes_with_the_same_weights() -> None:
    for name in ("tiny-clean", "timm:test_efficientnet.r160_in1k@random"):
        encoder = load_base(name)
        mode, share = encoder.preprocessing.mode, encoder.preprocessing.resize / encoder.preprocessing.crop
        small = resized(encoder, 96)
        images = torch.nn.functional.interpolate(IMAGES, (96, 96))
        with torch.no_grad():
            # Not equal to the last digit: an encoder folds its BatchNorms.
            torch.testing.assert_close(small(images), encoder.tower(normalised(encoder, images)), rtol=1e-4, atol=1e-4)
        assert (small.name, small.revision, small.training) == (encoder.name, encoder.revision, encoder.training)
        assert small.preprocessing == replace(encoder.preprocessing, mode=mode, crop=96, resize=int(96 * share))
        squashed = resized(small, squash=True)
        assert squashed.preprocessing == replace(small.preprocessing, mode="squash", resize=96)
        assert load_base(name, image_size=96, squash=True).preprocessing == squashed.preprocessing
        assert resized(encoder) is encoder and resized(squashed, 96, squash=True) is squashed
    vit = load_base("open_clip:vit-for-tests@random")
    assert resized(vit, squash=True).preprocessing == replace(vit.preprocessing, mode="squash")


@pytest.mark.parametrize("name", ["timm:test_resnet.r160_in1k@random", "open_clip:vit-for-tests@random"])
def test_random_weights_follow_the_seed(name: str) -> None:
    state = torch.get_rng_state()
    one, same, other = load_base(name), load_base(name, seed=0), load_base(name, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (one.name, one.revision, other.revision) == (name, "seed 0", "seed 1")
    assert not one.training
    with torch.no_grad():
        assert torch.equal(one(IMAGES), same(IMAGES))
        assert (one(IMAGES) - other(IMAGES)).norm() > 0.1 * one(IMAGES).norm()


def test_names_of_our_own_are_loaded_as_ever(tmp_path: Path) -> None:
    encoder = load_base("tiny-clean")
    assert encoder.name == "tiny-clean"
    assert torch.equal(load_base(str(save_encoder(encoder, tmp_path)))(IMAGES), encoder(IMAGES))
    with pytest.raises(UnknownModelError, match="There is no model 'tiny-cleen'"):
        load_base("tiny-cleen")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-61@openai", r"OpenCLIP has no model 'ViT-B-61': did you mean ViT-B-16"),
        ("open_clip:ViT-B-32", r"add @ and a tag, a file or random \(weights that exist are openai, laion400m_e31"),
        ("open_clip:vit-for-tests", r"\(OpenCLIP publishes no weights of it\)"),
        ("timm:rexnet50", "timm has no model 'rexnet50': did you mean .*resnet50"),
        ("timm:resnet50.a9_in1k", "timm has no resnet50.a9_in1k; with weights it has .*resnet50.a1_in1k"),
        (
            "timm:resnet50@a1_in1k",
            "one of these with @random or @FILE, and there is no file a1_in1k",
        ),
        ("timm:test_resnet", "resized by bilinear"),
        ("timm:vit_base_patch18_224", "no model"),
    ],
)
def test_names_that_lead_nowhere(hub: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_base(name)


def test_text_of_an_open_clip_model(tmp_path: Path) -> None:
    model = clip("vit-for-tests")
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    (tmp_path / "weights.pt").write_bytes(buffer.getvalue())
    text = load_base_text(f"open_clip:vit-for-tests@{tmp_path / 'weights.pt'}")
    words = ["a photo of a dog", "two cats"]
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer("vit-for-tests")(words), normalize=True)
    torch.testing.assert_close(text.embed(words), expected, atol=1e-5, rtol=1e-5)
    assert text.scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    random = load_base_text("open_clip:vit-for-tests@random", seed=3)
    again = load_base_text("open_clip:vit-for-tests@random", seed=3)
    assert torch.equal(random.embed(words), again.embed(words))


def test_text_of_other_models() -> None:
    ours, theirs = load_base_text("tiny-clean"), load_text("tiny-clean")
    assert torch.equal(ours.embed(["a red circle"]), theirs.embed(["a red circle"]))
    with pytest.raises(CheckpointError, match=r"not built as CLIP's own \(pool_type, no_causal_mask\)"):
        load_base_text("open_clip:siglip-for-tests@random")
    with pytest.raises(CheckpointError, match=r"not built as CLIP's own \(hf_model_name"):
        load_base_text("open_clip:roberta-ViT-B-32@laion2b_s12b_b32k")
    with pytest.raises(CheckpointError, match="timm:test_vit has no text tower"):
        load_base_text("timm:test_vit")
