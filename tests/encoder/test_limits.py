"""How large an architecture may be: told from its record alone, before anything is built."""

import json
import time
import tracemalloc
from typing import Any

import pytest
import torch

from rclip_metric.encoder import (
    Architecture,
    ConvNeXtArchitecture,
    OpenClipArchitecture,
    ViTArchitecture,
    build_tower,
    open_clip_architecture,
)
from rclip_metric.encoder.architectures import NAMED, architecture_from_dict, architecture_to_dict
from rclip_metric.encoder.library_towers import timm_architecture

VIT = architecture_to_dict(NAMED["vit_b_32"])
CONVNEXT = architecture_to_dict(NAMED["convnext_base_w"])
RESNET = {"embed_dim": 24, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}}


@pytest.mark.parametrize(
    "architecture",
    [
        *NAMED.values(),
        ViTArchitecture(image_size=32, patch_size=8, width=48, depth=2, heads=4, mlp_ratio=2.7, pre_norm=False),
        ConvNeXtArchitecture(image_size=32, depths=(1, 2, 3, 4), widths=(4, 12, 20, 8)),
    ],
)
def test_parameters_are_those_of_the_tower(architecture: ViTArchitecture | ConvNeXtArchitecture) -> None:
    with torch.device("meta"):
        tower = build_tower(architecture)
    assert architecture.parameters == sum(parameter.numel() for parameter in tower.parameters())


@pytest.mark.parametrize(
    ("fields", "change", "complaint"),
    [
        (VIT, {"image_size": 20_000}, "image_size must be at most 2048, got 20000"),
        (VIT, {"depth": 10**7}, "depth must be at most 512, got 10000000"),
        (VIT, {"width": 10**6}, "width must be at most 32768"),
        (VIT, {"heads": 768}, "heads must be at most 512"),
        (VIT, {"projection": 10**9}, "projection must be at most 32768"),
        (VIT, {"mlp_ratio": 1e9}, "mlp_ratio must be a positive number up to 64"),
        (
            VIT,
            {"width": 12288, "depth": 100},
            "the tower would have 181254623232 parameters, and 10+ are",
        ),
        (CONVNEXT, {"depths": [10**7, 1, 1, 1]}, "depths must be at most 512"),
        (CONVNEXT, {"widths": [10**5] * 4}, "widths must be at most 32768"),
        (CONVNEXT, {"image_size": 20_000}, "image_size must be at most 2048"),
        (CONVNEXT, {"widths": [32_000] * 4}, "the tower would have"),
        ({"kind": "timm", "model": "resnet18", "features": 512}, {"image_size": 20_000}, "image_size must be at most"),
    ],
)
def test_an_architecture_above_a_limit_is_refused_at_once(
    fields: dict[str, Any], change: dict[str, Any], complaint: str
) -> None:
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ValueError, match=complaint):
        architecture_from_dict(fields | change)
    took, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 1
    assert peak < 1e6


@pytest.mark.parametrize("fields", [None, [], [["kind", "vit"]], "vit", {"kind": []}, {"kind": {}}])
def test_what_is_no_record_is_refused(fields: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        architecture_from_dict(fields)


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "/etc/passwd"},
        {"pretrained": True},
        {"pretrained_cfg": {"url": "http://somewhere"}},
        {"pretrained_cfg_overlay": {"file": "weights.bin"}},
        {"cache_dir": "/tmp"},
        {"features_only": True},
        {"norm_layer": "../x"},
        {"act_layer": {"a": 1}},
        {"embed_dim": 10**9},
        {"depth": 10**7},
        {"depths": [10**7]},
        {"window_size": 10**6},
    ],
)
def test_options_of_timm_are_those_of_a_list(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^options, field .*(is not known|expected .*)\.$"):
        timm_architecture("test_vit", image_size=64, options=options)


def test_a_library_s_tower_is_counted_before_it_takes_memory() -> None:
    # 300 billion parameters: it could not be built on any machine that runs this test.
    options = {"embed_dim": 16_384, "depth": 100, "num_heads": 128}
    with pytest.raises(
        ValueError, match=r"^timm's test_vit would have \d{12} parameters, and 10000000000 are the most"
    ):
        timm_architecture("test_vit", image_size=64, options=options)
    vision = {"layers": 100, "width": 16_384, "head_width": 128, "patch_size": 32, "image_size": 64, "no_ln_pre": True}
    architecture = open_clip_architecture("huge", {"embed_dim": 24, "vision_cfg": vision})
    with pytest.raises(ValueError, match=r"^OpenCLIP's huge would have \d{12} parameters"):
        build_tower(architecture)


@pytest.mark.parametrize(
    ("vision", "complaint"),
    [
        ({"timm_model_name": "hf-hub:me/tiny"}, "timm_model_name': expected a name"),
        ({"timm_model_name": ["x"]}, "timm_model_name': expected a name"),
        ({"timm_model_pretrained": "/weights.pt"}, "vision_cfg and quick_gelu alone"),
        ({"weights": "/weights.pt"}, "weights': is not known"),
        ({"layers": [10**7, 1, 1, 1]}, "layers': expected"),
        ({"image_size": 20_000}, "image_size': expected a positive integer up to 2048"),
        ({"act_kwargs": {"inplace": "x"}}, "act_kwargs.inplace': is not known"),
    ],
)
def test_the_vision_config_of_open_clip_is_a_list(vision: dict[str, Any], complaint: str) -> None:
    config = {**RESNET, "vision_cfg": {**RESNET["vision_cfg"], **vision}, "quick_gelu": False}  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=complaint):
        OpenClipArchitecture(model="x", image_size=64, projection=24, config=json.dumps(config))


@pytest.mark.parametrize(
    "config", [None, [], {"model_cfg": 1}, {"embed_dim": 2**40, "vision_cfg": {}}, {"embed_dim": 24, "vision_cfg": []}]
)
def test_what_is_no_open_clip_config_is_refused(config: Any) -> None:
    with pytest.raises(ValueError, match="OpenCLIP config"):
        open_clip_architecture("x", config)


def test_every_config_of_open_clip_is_within_the_limits() -> None:
    import open_clip

    found: list[Architecture] = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        assert config is not None
        found.append(open_clip_architecture(name, config))
    assert len(found) > 100
    assert {"vit", "convnext", "open_clip"} == {architecture.kind for architecture in found}
