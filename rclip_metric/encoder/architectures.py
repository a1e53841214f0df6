"""What an architecture is: frozen records of vision towers, written to JSON and read from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeGuard

from rclip_metric.encoder.limits import (
    TIMM_OPTIONS,
    check_open_clip_config,
    require_positive_int,
    require_positive_number,
    require_size,
)
from rclip_metric.json_files import Checker, parse_json, shown


def _require_projection(value: object) -> None:
    if value is not None:
        require_positive_int("projection", value)


@dataclass(frozen=True, kw_only=True)
class ViTArchitecture:
    """A Vision Transformer that embeds an image as its class token.

    Attributes:
        image_size: Side of the square input, in pixels; a multiple of `patch_size`.
        patch_size: Side of a patch, in pixels.
        width: Size of a token.
        depth: Number of blocks.
        heads: Attention heads; divides `width`.
        mlp_ratio: Hidden size of a block's MLP, in widths.
        activation: "gelu", or "quick_gelu" (x * sigmoid(1.702 x)), with which OpenAI's weights were trained.
        norm_eps: eps of every LayerNorm: 1e-5 in OpenCLIP, 1e-6 in DINO and DINOv2.
        pre_norm: A LayerNorm before the first block (CLIP).
        pre_norm_eps: eps of that one; None, the default, for `norm_eps`.
        patch_bias: The patch embedding has a bias (not in CLIP).
        layer_scale: Each branch is scaled per channel (DINOv2).
        projection: Size of the embedding after a linear map without bias; None embeds as the normed class
            token.

    Example:
        >>> small = ViTArchitecture(image_size=32, patch_size=8, width=64, depth=2, heads=4)
        >>> small.activation, small.projection
        ('gelu', None)
    """

    kind: ClassVar[str] = "vit"
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    norm_eps: float = 1e-5
    pre_norm: bool = True
    pre_norm_eps: float | None = field(default=None, metadata={"left_out": True})
    patch_bias: bool = False
    layer_scale: bool = False
    projection: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError naming the field that is wrong."""
        for name in ("image_size", "patch_size", "width", "depth", "heads"):
            require_positive_int(name, getattr(self, name))
        _require_projection(self.projection)
        require_positive_number("norm_eps", self.norm_eps)
        if self.pre_norm_eps is not None:
            require_positive_number("pre_norm_eps", self.pre_norm_eps)
            if not self.pre_norm:
                raise ValueError(f"pre_norm_eps needs pre_norm, got {shown(self.pre_norm_eps)} without it.")
        require_positive_number("mlp_ratio", self.mlp_ratio)
        for name in ("pre_norm", "patch_bias", "layer_scale"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {shown(getattr(self, name))}.")
        if self.activation not in ("gelu", "quick_gelu"):
            raise ValueError(f'activation must be "gelu" or "quick_gelu", got {shown(self.activation)}.')
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size ({self.patch_size}), got {self.image_size}.")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width ({self.width}), got {self.heads}.")
        require_size("the tower", self.parameters)

    @property
    def parameters(self) -> int:
        """The number of parameters of the tower."""
        width, hidden = self.width, int(self.width * self.mlp_ratio)
        tokens = 1 + (self.image_size // self.patch_size) ** 2
        block = 4 * width * width + 2 * width * hidden + hidden + (9 + 2 * self.layer_scale) * width
        ends = (3 * self.patch_size**2 + self.patch_bias + tokens + 1 + 2 * self.pre_norm + 2) * width
        return self.depth * block + ends + width * (self.projection or 0)


@dataclass(frozen=True, kw_only=True)
class ConvNeXtArchitecture:
    """A ConvNeXt that embeds an image as its normed average feature.

    Attributes:
        image_size: Side of the square input, in pixels, at least 32. The weights do not depend on it.
        depths: Blocks in each of the four stages.
        widths: Channels of each of the four stages.
        norm_eps: eps of every LayerNorm.
        projection: Size of the embedding after a linear map without bias; None embeds as the normed feature.

    Example:
        >>> ConvNeXtArchitecture(image_size=30, depths=(2, 2, 4, 2), widths=(32, 64, 128, 256))
        Traceback (most recent call last):
            ...
        ValueError: image_size must be at least 32 (four stages halve it), got 30.
    """

    kind: ClassVar[str] = "convnext"
    image_size: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    norm_eps: float = 1e-6
    projection: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError naming the field that is wrong."""
        require_positive_int("image_size", self.image_size)
        if self.image_size < 32:
            raise ValueError(f"image_size must be at least 32 (four stages halve it), got {self.image_size}.")
        for name in ("depths", "widths"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) != 4:
                raise ValueError(f"{name} must be four integers, one per stage, got {shown(values)}.")
            for value in values:
                require_positive_int(name, value)
        require_positive_number("norm_eps", self.norm_eps)
        _require_projection(self.projection)
        require_size("the tower", self.parameters)

    @property
    def parameters(self) -> int:
        """The number of parameters of the tower."""
        first, last = self.widths[0], self.widths[-1]
        blocks = sum(depth * (8 * width + 58) * width for depth, width in zip(self.depths, self.widths, strict=True))
        downsampling = sum(2 * before + (4 * before + 1) * after for before, after in pairwise(self.widths))
        return 51 * first + blocks + downsampling + 2 * last + last * (self.projection or 0)


_LIBRARY_NAME = re.compile(r"[\w.-]+")  # of a registry: nothing that the library would fetch or open


@dataclass(frozen=True, kw_only=True)
class TimmArchitecture:
    """Any model of timm without its classifier: it embeds an image as its pooled features.

    Attributes:
        model: timm's name, with the tag of its configuration where it has one ("resnet50.a1_in1k"): the tag decides
            what timm builds, and no weights come with it.
        image_size: Side of the square input, in pixels.
        features: Size of the pooled features, checked when the tower is built.
        options: JSON text of an object: further arguments of timm's constructor, as a Hub repository of timm's
            states them in its `model_args`.
        projection: Size of the embedding after a linear map without bias; None embeds as the pooled features.

    Example:
        >>> TimmArchitecture(model="resnet18", image_size=224, features=512, options='{"output_stride": 16}').options
        '{"output_stride": 16}'
    """

    kind: ClassVar[str] = "timm"
    model: str
    image_size: int
    features: int
    options: str = field(default="{}", metadata={"json": True})
    projection: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError naming the field that is wrong."""
        _require_library_name("model", self.model)
        for name in ("image_size", "features"):
            require_positive_int(name, getattr(self, name))
        _require_projection(self.projection)
        options = _json_object("options", self.options)
        Checker("options").matches("", options, TIMM_OPTIONS)
        object.__setattr__(self, "options", json.dumps(options, sort_keys=True))


@dataclass(frozen=True, kw_only=True)
class OpenClipArchitecture:
    """The image tower of any OpenCLIP config, as OpenCLIP computes it: ResNets, EVA, SigLIP, CoCa and others.

    Attributes:
        model: OpenCLIP's name of the config.
        image_size: Side of the square input, in pixels.
        projection: Size of the embedding, the config's embed_dim.
        config: JSON text of an object with the config's embed_dim, vision_cfg and quick_gelu; None for the config that
            OpenCLIP has under that name.

    Example:
        >>> OpenClipArchitecture(model="RN50", image_size=224, projection=1024).config is None
        True
    """

    kind: ClassVar[str] = "open_clip"
    model: str
    image_size: int
    projection: int
    config: str | None = field(default=None, metadata={"json": True})

    def __post_init__(self) -> None:
        """Raise ValueError naming the field that is wrong."""
        if self.config is None:
            _require_library_name("model", self.model)
        elif type(self.model) is not str or not self.model:
            raise ValueError(f"model must be a text, got {shown(self.model)}.")
        for name in ("image_size", "projection"):
            require_positive_int(name, getattr(self, name))
        if self.config is None:
            return
        config = _json_object("config", self.config)
        if set(config) != {"embed_dim", "vision_cfg", "quick_gelu"} or "timm_model_pretrained" in config["vision_cfg"]:
            raise ValueError(f"config must have embed_dim, vision_cfg and quick_gelu alone, got {shown(config)}.")
        check_open_clip_config(config, "config")
        if config["embed_dim"] != self.projection:
            raise ValueError(
                f"projection must be the config's embed_dim ({config['embed_dim']}), got {self.projection}."
            )
        object.__setattr__(self, "config", json.dumps(config, sort_keys=True))


@dataclass(frozen=True, kw_only=True)
class ModuleArchitecture:
    """A tower that only its module describes: it computes, and cannot be built again from a configuration.

    Example:
        >>> ModuleArchitecture(model="mine", image_size=32, projection=8).kind
        'module'
    """

    kind: ClassVar[str] = "module"
    model: str
    image_size: int
    projection: int


def _require_library_name(name: str, value: object) -> None:
    if not isinstance(value, str) or not _LIBRARY_NAME.fullmatch(value):
        raise ValueError(f"{name} must be a name in the library's registry, got {shown(value)}.")


def _json_object(name: str, text: object) -> dict[str, Any]:
    value = parse_json(text, name) if isinstance(text, str) else None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {shown(text)}.")
    return value


Architecture = ViTArchitecture | ConvNeXtArchitecture | TimmArchitecture | OpenClipArchitecture | ModuleArchitecture
LIBRARY_KINDS = (TimmArchitecture, OpenClipArchitecture)

EFFICIENTNET_LITE = {
    "tf_efficientnet_lite0": (1.0, 1.0),
    "tf_efficientnet_lite1": (1.0, 1.1),
    "tf_efficientnet_lite2": (1.1, 1.2),
    "tf_efficientnet_lite3": (1.2, 1.4),
    "tf_efficientnet_lite4": (1.4, 1.8),
}
"""Of timm's models those that a native tower computes, and how much wider and deeper each is than the first."""
_EFFICIENTNET_LITE_VALUES = {
    "tf_efficientnet_lite0": 3_413_073,
    "tf_efficientnet_lite1": 4_189_408,
    "tf_efficientnet_lite2": 4_869_232,
    "tf_efficientnet_lite3": 6_992_841,
    "tf_efficientnet_lite4": 11_838_027,
}


def is_efficientnet_lite(architecture: Architecture) -> TypeGuard[TimmArchitecture]:
    """Return whether an architecture is an EfficientNet-Lite as timm builds it without further options.

    Example:
        >>> is_efficientnet_lite(TimmArchitecture(model="tf_efficientnet_lite0", image_size=224, features=1280))
        True
    """
    if not isinstance(architecture, TimmArchitecture) or architecture.options != "{}":
        return False
    name, _, tag = architecture.model.partition(".")
    return name in EFFICIENTNET_LITE and tag in ("", "in1k")


_KINDS: dict[str, type[Architecture]] = {
    cls.kind: cls for cls in (ViTArchitecture, ConvNeXtArchitecture, TimmArchitecture, OpenClipArchitecture)
}

_VIT_B = partial(ViTArchitecture, image_size=224, width=768, depth=12, heads=12)

NAMED: dict[str, Architecture] = {
    # OpenCLIP's convnext_base_w at the 224 pixels of the published evaluation (its own config says 256).
    "convnext_base_w": ConvNeXtArchitecture(
        image_size=224, depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024), projection=640
    ),
    "vit_b_16": _VIT_B(patch_size=16, projection=512),
    "vit_b_32": _VIT_B(patch_size=32, projection=512),
    "vit_l_14": ViTArchitecture(
        image_size=224, patch_size=14, width=1024, depth=24, heads=16, activation="quick_gelu", projection=768
    ),
    "dino_vit_b_16": _VIT_B(patch_size=16, norm_eps=1e-6, pre_norm=False, patch_bias=True),
    "dinov2_vit_b_14": _VIT_B(patch_size=14, norm_eps=1e-6, pre_norm=False, patch_bias=True, layer_scale=True),
    # The small model that is shipped, at 64 pixels.
    "tiny_convnext": ConvNeXtArchitecture(
        image_size=64, depths=(2, 2, 4, 2), widths=(32, 64, 128, 256), projection=128
    ),
}


def architecture_to_dict(architecture: Architecture) -> dict[str, Any]:
    """Return a dict that json can write and `architecture_from_dict` reads.

    Raises:
        ValueError: The architecture is a `ModuleArchitecture`.

    Example:
        >>> architecture_to_dict(NAMED["tiny_convnext"])["widths"]
        [32, 64, 128, 256]
    """
    if isinstance(architecture, ModuleArchitecture):
        raise ValueError(
            f"{architecture.model} is a module that no configuration describes, so that it cannot be saved: load the "
            "model by its name (open_clip:MODEL@TAG, timm:NAME)."
        )
    values: dict[str, Any] = {"kind": architecture.kind}
    for entry in fields(architecture):
        value = getattr(architecture, entry.name)
        if value is None and entry.metadata.get("left_out"):  # earlier versions do not know the field
            continue
        if value is not None and entry.metadata.get("json"):
            value = json.loads(value)
        values[entry.name] = list(value) if isinstance(value, tuple) else value
    return values


def architecture_from_dict(mapping: Mapping[str, Any]) -> Architecture:
    """Read an architecture from its dict; ValueError names a field that is unknown, missing or wrong.

    Example:
        >>> tiny = NAMED["tiny_convnext"]
        >>> architecture_from_dict(architecture_to_dict(tiny)) == tiny
        True
    """
    if not isinstance(mapping, Mapping):
        raise ValueError(f"an architecture must be an object, got {shown(mapping)}.")
    values = dict(mapping)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {shown(kind)}.")
    cls = _KINDS[kind]
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"Unknown {kind} field {', '.join(unknown)}; the fields are {', '.join(known)}.")
    if missing := [n for n, f in known.items() if n not in values and f.default is MISSING]:
        raise ValueError(f"Missing {kind} field {', '.join(missing)}.")
    for name in ("depths", "widths"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    for name, entry in known.items():
        if entry.metadata.get("json") and isinstance(values.get(name), Mapping):
            values[name] = json.dumps(values[name])
    return cls(**values)


def tower_values(architecture: Architecture) -> int | None:
    """Count the values of a tower's state dict without building it; None where another library has to do that.

    Example:
        >>> tower_values(NAMED["tiny_convnext"])
        1933152
    """
    if isinstance(architecture, ViTArchitecture | ConvNeXtArchitecture):
        return architecture.parameters
    if is_efficientnet_lite(architecture):
        trunk = _EFFICIENTNET_LITE_VALUES[architecture.model.partition(".")[0]]
        return trunk + architecture.features * (architecture.projection or 0)
    return None


def embedding_dim(architecture: Architecture) -> int:
    """Return the size D of the embeddings.

    Example:
        >>> embedding_dim(NAMED["convnext_base_w"]), embedding_dim(NAMED["dino_vit_b_16"])
        (640, 768)
    """
    if architecture.projection is not None:
        return architecture.projection
    if isinstance(architecture, ViTArchitecture):
        return architecture.width
    return architecture.widths[-1] if isinstance(architecture, ConvNeXtArchitecture) else architecture.features
