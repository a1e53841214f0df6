"""Vision towers: what an architecture is, and the module that computes it, built from timm's parts.

Every ViT is timm's `VisionTransformer`, whatever library trained it. Its attention is F.linear and
scaled_dot_product_attention; nn.MultiheadAttention, on which OpenCLIP's own ViT is built, takes a path that
is 15 times slower on a CPU with AMX when its weights are frozen bfloat16, and ours always are frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def _require_positive_int(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def _require_positive_number(name: str, value: object) -> None:
    if type(value) not in (int, float) or not 0 < value < float("inf"):  # type: ignore[operator]
        raise ValueError(f"{name} must be a positive number, got {value!r}.")


def _require_projection(value: object) -> None:
    if value is not None:
        _require_positive_int("projection", value)


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
        patch_bias: The patch embedding has a bias (not in CLIP).
        layer_scale: Each branch is scaled per channel (DINOv2).
        projection: Size of the embedding after a linear map without bias; None embeds as the normed class
            token.
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
    patch_bias: bool = False
    layer_scale: bool = False
    projection: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError naming the field that is wrong."""
        for name in ("image_size", "patch_size", "width", "depth", "heads"):
            _require_positive_int(name, getattr(self, name))
        _require_projection(self.projection)
        _require_positive_number("norm_eps", self.norm_eps)
        _require_positive_number("mlp_ratio", self.mlp_ratio)
        for name in ("pre_norm", "patch_bias", "layer_scale"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        if self.activation not in ("gelu", "quick_gelu"):
            raise ValueError(f'activation must be "gelu" or "quick_gelu", got {self.activation!r}.')
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size ({self.patch_size}), got {self.image_size}.")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width ({self.width}), got {self.heads}.")


@dataclass(frozen=True, kw_only=True)
class ConvNeXtArchitecture:
    """A ConvNeXt that embeds an image as its normed average feature.

    Attributes:
        image_size: Side of the square input, in pixels, at least 32. The weights do not depend on it.
        depths: Blocks in each of the four stages.
        widths: Channels of each of the four stages.
        norm_eps: eps of every LayerNorm.
        projection: Size of the embedding after a linear map without bias; None embeds as the normed feature.
    """

    kind: ClassVar[str] = "convnext"
    image_size: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    norm_eps: float = 1e-6
    projection: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError naming the field that is wrong."""
        _require_positive_int("image_size", self.image_size)
        if self.image_size < 32:
            raise ValueError(f"image_size must be at least 32 (four stages halve it), got {self.image_size}.")
        for name in ("depths", "widths"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or len(values) != 4:
                raise ValueError(f"{name} must be four integers, one per stage, got {values!r}.")
            for value in values:
                _require_positive_int(name, value)
        _require_positive_number("norm_eps", self.norm_eps)
        _require_projection(self.projection)


Architecture = ViTArchitecture | ConvNeXtArchitecture

_KINDS: dict[str, type[ViTArchitecture] | type[ConvNeXtArchitecture]] = {
    "vit": ViTArchitecture,
    "convnext": ConvNeXtArchitecture,
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
    """Return a dict that json can write and `architecture_from_dict` reads."""
    values: dict[str, Any] = {"kind": architecture.kind}
    for field in fields(architecture):
        value = getattr(architecture, field.name)
        values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def architecture_from_dict(mapping: Mapping[str, Any]) -> Architecture:
    """Read an architecture from its dict; ValueError names a field that is unknown, missing or wrong."""
    values = dict(mapping)
    kind = values.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}.")
    cls = _KINDS[kind]
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"Unknown {kind} field {', '.join(unknown)}; the fields are {', '.join(known)}.")
    if missing := [n for n, f in known.items() if n not in values and f.default is MISSING]:
        raise ValueError(f"Missing {kind} field {', '.join(missing)}.")
    for name in ("depths", "widths"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return cls(**values)


def embedding_dim(architecture: Architecture) -> int:
    """Return the size D of the embeddings."""
    if architecture.projection is not None:
        return architecture.projection
    return architecture.width if isinstance(architecture, ViTArchitecture) else architecture.widths[-1]


def import_timm() -> None:
    """Import the modules that `build_tower` takes, while no default device is set.

    Importing timm computes tensors (in torchvision and torch.compile), which fails under `torch.device("meta")`.
    """
    import timm.layers
    import timm.models.convnext
    import timm.models.vision_transformer  # noqa: F401


def build_tower(architecture: Architecture) -> ViTTower | ConvNeXtTower:
    """Build the module: normalised pixels (N, 3, S, S) -> unnormalised embeddings (N, D).

    Weights are random; under `with torch.device("meta")` there are none, and nothing is spent on drawing
    them.
    """
    skip = torch.empty(0).is_meta
    with _SkipMetaInitialisation() if skip else contextlib.nullcontext():
        if isinstance(architecture, ViTArchitecture):
            return ViTTower(architecture)
        return ConvNeXtTower(architecture)


class ViTTower(nn.Module):
    """timm's ViT (`trunk`) and a linear map without bias (`projection`; None if there is none).

    The last block computes only the class token, the one token that is read: 7 % less work for a ViT-B/16.
    """

    def __init__(self, architecture: ViTArchitecture) -> None:
        """Build with random weights."""
        super().__init__()
        from timm.layers import get_act_layer
        from timm.models.vision_transformer import VisionTransformer

        self.embedding_dim = embedding_dim(architecture)
        width = architecture.width
        self.trunk = VisionTransformer(
            img_size=architecture.image_size,
            patch_size=architecture.patch_size,
            num_classes=0,
            embed_dim=width,
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
            self.trunk.patch_embed.proj = nn.Conv2d(3, width, patch, stride=patch, bias=architecture.patch_bias)
        self.projection = _projection(width, architecture.projection)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels (N, 3, S, S), S = image_size, as (N, D)."""
        trunk: Any = self.trunk  # timm's types make room for towers without class token or position embedding
        patches = trunk.patch_embed(pixels)  # (N, T, width)
        tokens = torch.cat([trunk.cls_token.expand(len(patches), -1, -1), patches], dim=1)  # (N, 1 + T, width)
        tokens = trunk.norm_pre(tokens + trunk.pos_embed)
        *blocks, last = trunk.blocks
        for block in blocks:
            tokens = block(tokens)
        embedding = trunk.norm(_class_token(last, tokens))  # (N, width)
        return embedding if self.projection is None else self.projection(embedding)


class ConvNeXtTower(nn.Module):
    """timm's ConvNeXt (`trunk`) and a linear map without bias (`projection`; None if there is none)."""

    def __init__(self, architecture: ConvNeXtArchitecture) -> None:
        """Build with random weights."""
        super().__init__()
        from timm.models.convnext import ConvNeXt

        self.embedding_dim = embedding_dim(architecture)
        self.trunk = ConvNeXt(
            num_classes=0,
            depths=architecture.depths,
            dims=architecture.widths,
            norm_eps=architecture.norm_eps,
        )
        self.projection = _projection(architecture.widths[-1], architecture.projection)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels (N, 3, S, S), S >= 32, as (N, D)."""
        embedding = self.trunk(pixels)  # (N, widths[-1])
        return embedding if self.projection is None else self.projection(embedding)


def open_clip_vision_architecture(config: Mapping[str, Any]) -> Architecture:
    """Read the vision tower out of an OpenCLIP model config.

    Args:
        config: The contents of open_clip_config.json, or of its "model_cfg".

    Returns:
        The architecture. A ConvNeXt's image_size is what the config says; the published evaluation may
        differ.

    Raises:
        ValueError: Names the entry that is missing, or that no tower here computes.
    """
    config = config.get("model_cfg", config)
    for name in ("embed_dim", "vision_cfg"):
        if name not in config:
            raise ValueError(f"The OpenCLIP config has no {name}.")
    vision = dict(config["vision_cfg"])
    projection = config["embed_dim"]
    _require_positive_int("embed_dim", projection)
    quick_gelu = _open_clip_flag("quick_gelu", config.get("quick_gelu", False))
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
    _require_positive_int("head_width", head_width)
    _require_positive_int("width", width)
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


class _SkipMetaInitialisation(TorchFunctionMode):
    """Leave out random initialisation on the meta device.

    There it writes nothing, yet each call runs through Python reference kernels: 0.25 s for a ConvNeXt-B.
    """

    _NAMES = frozenset(
        [
            *("normal_", "uniform_", "kaiming_uniform_", "trunc_normal_", "zeros_", "ones_", "constant_"),  # nn.init
            *("erfinv_", "mul_", "div_", "add_", "clamp_", "zero_", "fill_"),  # tensor methods
        ]
    )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in self._NAMES:
            target = args[0] if args else kwargs["tensor"]  # torch.nn.init passes it by name
            if target.is_meta:
                return target
        if func is torch.linspace:  # timm before 1.0.20 reads its rates of stochastic depth back from a tensor
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def _class_token(block: Any, tokens: Tensor) -> Tensor:
    """Run a timm block for the first token alone: (N, T, width) -> (N, width)."""
    attention = block.attn
    normed = block.norm1(tokens)
    count, _, width = tokens.shape
    heads = attention.num_heads
    if type(attention.qkv) is nn.Linear:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        query = F.linear(normed[:, :1], weight[:width], bias[:width])  # (N, 1, width)
        key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)  # (N, T, width) each
    else:  # an adapter in its place
        query, key, value = attention.qkv(normed).chunk(3, dim=-1)
        query = query[:, :1]
    query, key, value = (
        t.reshape(count, t.shape[1], heads, width // heads).transpose(1, 2) for t in (query, key, value)
    )  # (N, heads, 1 or T, width / heads)
    attended = F.scaled_dot_product_attention(query, key, value)  # (N, heads, 1, width / heads)
    token = tokens[:, 0] + block.ls1(attention.proj(attended.reshape(count, width)))
    return token + block.ls2(block.mlp(block.norm2(token)))


def _projection(width: int, size: int | None) -> nn.Linear | None:
    if size is None:
        return None
    projection = nn.Linear(width, size, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)  # as OpenCLIP does
    return projection


def _open_clip_flag(name: str, value: Any) -> bool:
    """Read a flag that published configs also spell as the string "TRUE"."""
    if isinstance(value, str) and value.lower() == "true":
        return True
    if type(value) is bool:
        return value
    # OpenCLIP itself takes any text as true, "FALSE" included: refuse to guess which was meant.
    raise ValueError(f'{name} must be true, false or the string "TRUE", got {value!r}.')


def _require_defaults(config: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for name, value in config.items():
        if name not in allowed:
            raise ValueError(f"Unknown entry {name} in the OpenCLIP vision_cfg.")
        if value not in allowed[name]:
            raise ValueError(
                f"{name} = {value!r} in the OpenCLIP vision_cfg is not a tower that this package computes."
            )
