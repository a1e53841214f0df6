"""What an architecture may ask for, told before anything is built: how large it is, and what it says to a library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclip_metric.json_files import (
    ANYTHING,
    COUNT,
    NATURAL,
    NUMBER,
    TRUTH,
    Checker,
    Kind,
    OrNull,
    Schema,
    at_most,
    is_number,
    matching,
    one_of,
    or_null,
    shown,
)

MOST = {
    **{"image_size": 2048, "heads": 512, "mlp_ratio": 64, "norm_eps": 1, "pre_norm_eps": 1},
    **dict.fromkeys(("depth", "depths", "layers"), 512),
    **dict.fromkeys(("width", "widths", "features", "projection", "embed_dim"), 32_768),
}
"""Of an architecture's fields: what a file asks for is refused above it, before anything is built."""

MOST_PARAMETERS = 10_000_000_000
"""Of a tower; the largest that OpenCLIP has takes 4.4 billion."""


def require_positive_int(name: str, value: object) -> None:
    """Raise ValueError unless the field is a positive integer, not above the limit that it may have in `MOST`."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {shown(value)}.")
    if value > MOST.get(name, value):
        raise ValueError(f"{name} must be at most {MOST[name]}, got {shown(value)}.")


def require_positive_number(name: str, value: object) -> None:
    """Raise ValueError unless the field is a positive number, not above its limit in `MOST`."""
    if not is_number(value) or not 0 < value <= MOST[name]:  # type: ignore[operator]
        raise ValueError(f"{name} must be a positive number up to {MOST[name]}, got {shown(value)}.")


def require_size(what: str, parameters: int) -> None:
    """Raise ValueError for a tower of more than `MOST_PARAMETERS`."""
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"{what} would have {parameters} parameters, and {MOST_PARAMETERS} are the most.")


def _one_or_several(kind: Kind, most: int = 8) -> Kind:
    """Ask for a value of that kind, or a list of a few."""
    words, holds = kind

    def all_hold(value: Any) -> bool:
        return all(map(holds, value)) and 0 < len(value) <= most if isinstance(value, list | tuple) else holds(value)

    return f"{words}, or a list of up to {most}", all_hold


_NAME = matching("a name in the library's registry", r"[\w.-]{0,64}")
_RATE: Kind = ("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
_RATIO: Kind = ("a positive number up to 64", lambda value: is_number(value) and 0 < value <= MOST["mlp_ratio"])
_WIDTH, _LAYERS, _HEADS = (at_most(COUNT, MOST[name]) for name in ("width", "layers", "heads"))

# What a config may say to timm and OpenCLIP: numbers, flags and names in their registries, nothing that has them open
# or fetch a file.
TIMM_OPTIONS: dict[str, Any] = {
    **dict.fromkeys(("act_layer?", "norm_layer?", "global_pool?", "pos_embed?", "stem_type?"), or_null(_NAME)),
    **dict.fromkeys(("class_token?", "no_embed_class?", "pre_norm?", "final_norm?", "fc_norm?"), or_null(TRUTH)),
    **dict.fromkeys(("qkv_bias?", "qk_norm?", "dynamic_img_size?", "dynamic_img_pad?", "strict_img_size?"), TRUTH),
    **dict.fromkeys(("always_partition?", "conv_mlp?", "use_grn?", "use_abs_pos_emb?", "use_rel_pos_bias?"), TRUTH),
    **dict.fromkeys(("drop_rate?", "drop_path_rate?", "proj_drop_rate?", "attn_drop_rate?"), _RATE),
    **dict.fromkeys(("pos_drop_rate?", "patch_drop_rate?", "drop_block_rate?"), _RATE),
    **dict.fromkeys(("init_values?", "ls_init_value?", "layer_scale_init_value?"), or_null(_RATE)),
    **dict.fromkeys(("embed_dim?", "embed_dims?", "dims?", "channels?", "stem_width?"), _one_or_several(_WIDTH)),
    **dict.fromkeys(("depth?", "depths?", "layers?", "serial_depths?"), _one_or_several(_LAYERS)),
    **dict.fromkeys(("num_heads?", "ref_feat_shape?"), _one_or_several(_HEADS)),
    **dict.fromkeys(("mlp_ratio?", "mlp_ratios?"), _one_or_several(_RATIO)),
    **dict.fromkeys(("patch_size?", "window_size?"), _one_or_several(at_most(COUNT, 64))),
    "reg_tokens?": at_most(NATURAL, 64),
    "output_stride?": one_of((8, 16, 32)),
}
_OPEN_CLIP_VISION: Schema = {
    "image_size?": at_most(COUNT, MOST["image_size"]),
    "layers?": _one_or_several(_LAYERS, 4),
    **dict.fromkeys(("width?", "head_width?"), _WIDTH),
    "mlp_ratio?": _RATIO,
    "patch_size?": or_null(at_most(COUNT, MOST["image_size"])),
    **dict.fromkeys(("ls_init_value?", "patch_dropout?", "timm_drop?", "timm_drop_path?"), or_null(_RATE)),
    **dict.fromkeys(("no_ln_pre?", "final_ln_after_pool?", "output_tokens?", "timm_proj_bias?"), TRUTH),
    **dict.fromkeys(("qk_norm?", "scaled_cosine_attn?", "scale_heads?", "scale_attn_inner?"), or_null(TRUTH)),
    **dict.fromkeys(("scale_attn?", "scale_fc?"), or_null(TRUTH)),
    **dict.fromkeys(("pos_embed_type?", "pool_type?", "block_type?"), or_null(_NAME)),
    **dict.fromkeys(("timm_model_name?", "timm_pool?", "timm_proj?"), or_null(_NAME)),
    **dict.fromkeys(("act_kwargs?", "norm_kwargs?"), OrNull({"eps?": _RATE, "approximate?": _NAME})),
    "attentional_pool?": one_of((False, True, "parallel", "cascade")),
    **dict.fromkeys(("attn_pooler_queries?", "attn_pooler_heads?"), _HEADS),
    "timm_model_pretrained?": or_null(TRUTH),  # left out of what is built
}
_OPEN_CLIP: dict[str, Any] = {
    "embed_dim": at_most(COUNT, MOST["embed_dim"]),
    "vision_cfg": _OPEN_CLIP_VISION,
    "quick_gelu?": ANYTHING,  # `open_clip_flag` reads it
}
_NOTHING: Kind = ("nothing: a config names no file or address", lambda value: not value)
_TIMM_CONFIG: Schema = {
    **dict.fromkeys(("url?", "file?", "state_dict?", "custom_load?"), _NOTHING),
    **dict.fromkeys(("interpolation?", "crop_mode?", "global_pool?"), or_null(_NAME)),
    **dict.fromkeys(("mean?", "std?"), OrNull([NUMBER])),
    "input_size?": OrNull([at_most(COUNT, MOST["image_size"])]),
    "crop_pct?": or_null(("a share from 0.01 to 1", lambda value: is_number(value) and 0.01 <= value <= 1)),
    "*": ANYTHING,
}
PREPROCESSING: Schema = {"mean?": [NUMBER], "std?": [NUMBER], "*": ANYTHING}  # `Preprocessing` checks the rest


def check_timm_config(config: Any, options: Any, what: str) -> None:
    """Check what a repository in timm's layout says: the config of its weights, and arguments of timm's constructor.

    Raises:
        ManifestError: Names the entry that is wrong, not known, or would have timm open or fetch something.
    """
    check = Checker(what)
    check.matches("", config, _TIMM_CONFIG)
    side = ("a positive integer", lambda value: value is None or COUNT[1](value))
    check.matches("model_args", options, {**TIMM_OPTIONS, "img_size?": side})


def check_open_clip_config(config: Any, what: str) -> Mapping[str, Any]:
    """Check an OpenCLIP config and return its model config, of which other parts than the vision tower are let be.

    Args:
        config: The contents of open_clip_config.json, or of its "model_cfg".
        what: Its name, as the subject of a sentence.

    Raises:
        ManifestError: Names the entry that is missing, wrong or not known.
    """
    check = Checker(what)
    whole = check.matches("", config, {"preprocess_cfg?": PREPROCESSING, "*": ANYTHING})
    found: Mapping[str, Any] = check.matches("", whole.get("model_cfg", whole), {**_OPEN_CLIP, "*": ANYTHING})
    return found


def check_foreign_open_clip_config(config: Any, what: str) -> None:
    """Check the OpenCLIP config of a repository or folder, which OpenCLIP builds as a whole, text tower and all.

    Raises:
        ManifestError: As for `check_open_clip_config`, or the config would have OpenCLIP fetch other models.
    """
    found = check_open_clip_config(config, what)
    check = Checker(what)
    check.matches("vision_cfg", found["vision_cfg"], {"timm_model_pretrained?": _NOTHING, "*": ANYTHING})
    fetched = dict.fromkeys(("hf_model_name?", "hf_model_pretrained?"), _NOTHING)
    check.matches("text_cfg", found.get("text_cfg"), OrNull({**fetched, "*": ANYTHING}))
