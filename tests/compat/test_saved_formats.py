"""Encoders that OpenCLIP and timm load with their own functions, and compute the same with."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from PIL import Image

from rclip_metric import Encoder, RobustPerceptualDistance
from rclip_metric.encoder import Architecture, ConvNeXtArchitecture, ViTArchitecture, open_clip_architecture
from rclip_metric.encoder.library_towers import timm_architecture
from rclip_metric.images import CLIP_MEAN, CLIP_STD, Preprocessing
from rclip_metric.weights import load_encoder
from rclip_metric.weights.formats import save_as

from support.encoders import randomised, small_encoder
from support.images import noise

VIT = ViTArchitecture(image_size=32, patch_size=8, width=32, depth=2, heads=2, projection=16)
QUICK = ViTArchitecture(
    image_size=32,
    patch_size=8,
    width=64,
    depth=1,
    heads=2,
    mlp_ratio=2.0,
    activation="quick_gelu",
    projection=8,
)
CONVNEXT = ConvNeXtArchitecture(image_size=32, depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), projection=16)
RESNET = open_clip_architecture(
    "my ResNet",
    {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    },
)


def encoder_of(architecture: Architecture, **settings: Any) -> Encoder:
    side = architecture.image_size
    how = Preprocessing("squash", side, side, mean=CLIP_MEAN, std=CLIP_STD)
    return randomised(Encoder(architecture, how, name="mine", **settings))  # type: ignore[no-any-return]


@pytest.mark.parametrize("architecture", [VIT, QUICK, CONVNEXT, RESNET], ids=["vit", "quick", "convnext", "resnet"])
def test_open_clip_loads_it_and_computes_the_same(architecture: Architecture, tmp_path: Path) -> None:
    encoder = encoder_of(architecture)
    encoder.folding = False
    metric = RobustPerceptualDistance(encoder)
    assert metric.save_pretrained(tmp_path, format="open_clip") is None
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    images = noise(2, 3, architecture.image_size, architecture.image_size)
    with torch.no_grad():
        own, theirs = encoder(images), model.eval().encode_image((images - encoder.mean) / encoder.std)
    torch.testing.assert_close(theirs, own, atol=1e-6 * own.abs().max().item(), rtol=0)
    assert own.std() > 0.1
    picture = Image.new("RGB", (90, 40), (200, 30, 90))
    expected = (encoder.preprocess(picture) - encoder.mean[0]) / encoder.std[0]
    torch.testing.assert_close(transform(picture), expected, atol=1e-5, rtol=0)
    assert model.encode_text(torch.zeros(1, 1, dtype=torch.long)).isnan().all()  # no meaning that is not there
    with torch.no_grad():  # and our own loader reads back what a native tower computes
        if architecture is RESNET:
            return
        torch.testing.assert_close(load_encoder(tmp_path)(images), own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext", "tf_efficientnet_lite0"])
def test_timm_loads_it_and_computes_the_same(name: str, tmp_path: Path) -> None:
    encoder = encoder_of(timm_architecture(name, image_size=64))
    encoder.folding = False
    save_as(encoder, tmp_path, "timm")
    config = json.loads((tmp_path / "config.json").read_text())
    images = noise(2, 3, 64, 64)
    size: dict[str, Any] = {"img_size": 64} if "vit" in name else {}
    made = [
        timm.create_model(
            config["architecture"], num_classes=0, checkpoint_path=str(tmp_path / "model.safetensors"), **size
        ),
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **size),
    ]
    with torch.no_grad():
        own = encoder(images)
        for model in made:
            theirs = model.eval()((images - encoder.mean) / encoder.std)
            torch.testing.assert_close(theirs, own, atol=1e-6 * own.abs().max().item(), rtol=0)
    assert tuple(timm.data.resolve_model_data_config(made[1])["mean"]) == CLIP_MEAN
    assert tuple(timm.data.resolve_model_data_config(made[1])["input_size"]) == (3, 64, 64)


def test_what_the_library_does_not_have_is_refused(tmp_path: Path) -> None:
    small = small_encoder()
    with pytest.raises(ValueError, match="OpenCLIP has no tower that computes this convnext"):
        save_as(small, tmp_path, "open_clip")
    dino = ViTArchitecture(image_size=32, patch_size=8, width=32, depth=1, heads=2, pre_norm=False, patch_bias=True)
    with pytest.raises(ValueError, match="OpenCLIP has no tower that computes this vit"):
        save_as(encoder_of(dino), tmp_path, "open_clip")
    with pytest.raises(ValueError, match="mine has a vit tower, which no model of timm's has"):
        save_as(encoder_of(VIT), tmp_path, "timm")
    with pytest.raises(ValueError, match="mine has an MLP head, for which open_clip has no place"):
        save_as(encoder_of(VIT, mlp_hidden=8), tmp_path, "open_clip")
    with pytest.raises(ValueError, match="format must be one of rclip-metric, open_clip, timm, got 'onnx'"):
        save_as(small, tmp_path, "onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="push_to_hub uploads the format rclip-metric"):
        RobustPerceptualDistance(encoder_of(VIT)).save_pretrained(tmp_path, format="open_clip", push_to_hub=True)
    assert not list(tmp_path.iterdir())
