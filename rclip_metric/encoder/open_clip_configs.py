"""OpenCLIP's model configs, read as architectures: native where one of ours computes the same, else its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rclip_metric.encoder.architectures import (
    Architecture,
    ConvNeXtArchitecture,
    OpenClipArchitecture,
    ViTArchitecture,
)
from rclip_metric.encoder.limits import check_open_clip_config
from rclip_metric.json_files import shown


def open_clip_architecture(model: str, config: Mapping[str, Any]) -> Architecture:
    """Read the vision tower out of any OpenCLIP model config.

    Args:
        model: The name of the config, for messages.
        config: As for `open_clip_vision_architecture`.

    Returns:
        A native architecture where one computes the same, which is faster; else OpenCLIP's own tower.

    Raises:
        ValueError: Names the entry that is missing or wrong.

    Example:
        >>> resnet = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 32, "patch_size": None}
        >>> open_clip_architecture("my ResNet", {"embed_dim": 16, "vision_cfg": resnet}).kind
        'open_clip'
        >>> vit = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 8}
        >>> open_clip_architecture("my ViT", {"embed_dim": 16, "vision_cfg": vit}).kind
        'vit'
    """
    try:
        return open_clip_vision_architecture(config)
    except ValueError:
        return _own_tower(model, check_open_clip_config(config, f"The OpenCLIP config {model}"))


def _own_tower(model: str, config: Mapping[str, Any]) -> OpenClipArchitecture:
    """Keep the part of a config that the vision tower is built from, without what names a file to start from."""
    quick_gelu = open_clip_flag("quick_gelu", config.get("quick_gelu", False))
    vision = {key: value for key, value in config["vision_cfg"].items() if key != "timm_model_pretrained"}
    kept = {"embed_dim": config["embed_dim"], "vision_cfg": vision, "quick_gelu": quick_gelu}
    return OpenClipArchitecture(
        model=model,
        image_size=vision.get("image_size", 224),
        projection=config["embed_dim"],
        config=json.dumps(kept, sort_keys=True),
    )


def open_clip_vision_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the vision tower out of an OpenCLIP model config.

    Args:
        config: The contents of open_clip_config.json, or of its "model_cfg".

    Returns:
        The architecture. A ConvNeXt's image_size is what the config says; the published evaluation may
        differ.

    Raises:
        ValueError: Names the entry that is missing, or that no tower here computes.

    Example:
        >>> vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 8}
        >>> found = open_clip_vision_architecture({"embed_dim": 16, "vision_cfg": vision})
        >>> found.depth, found.heads, found.projection
        (2, 1, 16)
    """
    config = check_open_clip_config(config, "The OpenCLIP config")
    vision = dict(config["vision_cfg"])
    projection = config["embed_dim"]
    quick_gelu = open_clip_flag("quick_gelu", config.get("quick_gelu", False))
    image_size = vision.pop("image_size", 224)
    # They act in training only, or name a file to start from.
    for name in ("patch_dropout", "timm_drop", "timm_drop_path", "timm_model_pretrained"):
        vision.pop(name, None)
    timm_name = vision.pop("timm_model_name", None)
    if timm_name is not None:
        if timm_name not in _TIMM_CONVNEXTS:
            known = ", ".join(_TIMM_CONVNEXTS)
            raise ValueError(f"timm_model_name must be one of {known}, got {timm_name!r}.")
        depths, widths = _TIMM_CONVNEXTS[timm_name]
        _require_defaults(vision, {"timm_pool": ("", "avg"), "timm_proj": ("linear",), "timm_proj_bias": (False,)})
        if vision.get("timm_proj") != "linear":
            raise ValueError('timm_proj must be "linear" in the OpenCLIP config, and is missing.')
        return ConvNeXtArchitecture(image_size=image_size, depths=depths, widths=widths, projection=projection)
    for name in ("layers", "width", "patch_size"):
        if name not in vision:
            raise ValueError(f"The OpenCLIP vision_cfg has no {name}.")
    depth, width, patch_size = vision.pop("layers"), vision.pop("width"), vision.pop("patch_size")
    head_width, mlp_ratio = vision.pop("head_width", 64), vision.pop("mlp_ratio", 4.0)
    _require_defaults(vision, _OPEN_CLIP_VIT_DEFAULTS)
    return ViTArchitecture(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=width // head_width,
        mlp_ratio=mlp_ratio,
        activation="quick_gelu" if quick_gelu else "gelu",
        projection=projection,
    )


def open_clip_config_of(architecture: Architecture) -> dict[str, Any]:
    """Write an architecture as an OpenCLIP config without a text tower: embed_dim, vision_cfg and quick_gelu.

    Raises:
        ValueError: OpenCLIP has no such tower.

    Example:
        >>> vit = ViTArchitecture(image_size=64, patch_size=8, width=64, depth=2, heads=1, projection=16)
        >>> open_clip_config_of(vit)["vision_cfg"]["layers"]
        2
    """
    vision: dict[str, Any] = {"image_size": architecture.image_size}
    if isinstance(architecture, OpenClipArchitecture):
        if architecture.config is not None:
            own: dict[str, Any] = json.loads(architecture.config)
        else:
            import open_clip

            own = open_clip.get_model_config(architecture.model)
        kept = {key: value for key, value in own["vision_cfg"].items() if key != "timm_model_pretrained"}
        quick_gelu = open_clip_flag("quick_gelu", own.get("quick_gelu", False))
        return {"embed_dim": architecture.projection, "vision_cfg": {**kept, **vision}, "quick_gelu": quick_gelu}
    if isinstance(architecture, ViTArchitecture):
        names = {"layers": architecture.depth, "width": architecture.width, "patch_size": architecture.patch_size}
        vision |= {**names, "head_width": architecture.width // architecture.heads, "mlp_ratio": architecture.mlp_ratio}
    elif isinstance(architecture, ConvNeXtArchitecture):
        sizes = {value: key for key, value in _TIMM_CONVNEXTS.items()}
        timm_name = sizes.get((architecture.depths, architecture.widths))
        vision |= {"timm_model_name": timm_name, "timm_pool": "", "timm_proj": "linear"}
    quick_gelu = isinstance(architecture, ViTArchitecture) and architecture.activation == "quick_gelu"
    config = {"embed_dim": architecture.projection, "vision_cfg": vision, "quick_gelu": quick_gelu}
    try:
        same = open_clip_vision_architecture(config) == architecture
    except ValueError:
        same = False
    if not same:
        raise ValueError(f"OpenCLIP has no tower that computes this {architecture.kind}: save it in another format.")
    return config


_TIMM_CONVNEXTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}

# Entries of an OpenCLIP vision_cfg that change what a ViT computes, and the values that ours computes.
_OPEN_CLIP_VIT_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "ls_init_value": (None,),
    "attentional_pool": (False,),
    "no_ln_pre": (False,),
    "pos_embed_type": ("learnable",),
    "pool_type": ("tok",),
    "final_ln_after_pool": (False,),
    "output_tokens": (False,),
    "act_kwargs": (None, {}),
    "norm_kwargs": (None, {}),
    "block_type": (None, "default"),
    "qk_norm": (None, False),
    "scaled_cosine_attn": (None, False),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    # Read only together with attentional_pool.
    "attn_pooler_queries": (256,),
    "attn_pooler_heads": (8,),
}


def open_clip_flag(name: str, value: Any) -> bool:
    """Read a flag that published configs also spell as the string "TRUE"."""
    if isinstance(value, str) and value.lower() == "true":
        return True
    if type(value) is bool:
        return value
    # OpenCLIP itself takes any text as true, "FALSE" included: refuse to guess which was meant.
    raise ValueError(f'{name} must be true, false or the string "TRUE", got {shown(value)}.')


def _require_defaults(config: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for name, value in config.items():
        if name not in allowed:
            raise ValueError(f"Unknown entry {name} in the OpenCLIP vision_cfg.")
        if value not in allowed[name]:
            raise ValueError(
                f"{name} = {shown(value)} in the OpenCLIP vision_cfg is not a tower that this package computes."
            )
