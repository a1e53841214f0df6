"""Published checkpoint layouts -> our state dicts.

Our layout is the one of `Encoder.state_dict()`: `tower.trunk.*` with timm's own key names,
`tower.projection.weight`, and `head.{fc1,fc2}.{weight,bias}` where the encoder has an MLP head. Conversion is
strict both ways and works from what the architecture needs: every tensor of ours has its source in the
published layout, and every published tensor is used, or known by name to belong to a part that is not read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from rclip_metric.encoder.architectures import (
    Architecture,
    ConvNeXtArchitecture,
    TimmArchitecture,
    ViTArchitecture,
    embedding_dim,
)
from rclip_metric.encoder.towers import build_tower
from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.images.wrapped import special_kind

_Shape = tuple[int, ...]
_Transform = Callable[[list[Tensor], _Shape], Tensor]

_HEAD = ("head.fc1.weight", "head.fc1.bias", "head.fc2.weight", "head.fc2.bias")


@dataclass(frozen=True)
class Layout:
    """How one published kind of checkpoint names its tensors.

    Attributes:
        summary: What the checkpoint is, for messages and tables.
        signature: Some key contains a match of this pattern in this layout, and in no other listed after it; None
            where keys do not tell.
        ignored: Keys that match belong to parts that this package does not read (text tower, pooler, classifier).
        source: From our key (without `tower.`) and the architecture to the published keys and how to make our tensor
            from them; None where the layout has no such tensor.
    """

    summary: str
    signature: re.Pattern[str] | None
    ignored: re.Pattern[str] | None
    source: Callable[[str, Architecture], tuple[tuple[str, ...], _Transform] | None]


@functools.cache
def expected_tensors(architecture: Architecture, mlp_hidden: int | None = None) -> Mapping[str, Tensor]:
    """Return an encoder's state dict without its values, on the meta device."""
    try:
        with torch.device("meta"):
            tower = build_tower(architecture)
    except UnknownModelError:
        raise
    except (NotImplementedError, RuntimeError):  # some models read values back while they are built
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            tower = build_tower(architecture)
    state = {f"tower.{key}": value.to("meta") for key, value in tower.state_dict().items()}
    if mlp_hidden is not None:
        dim = embedding_dim(architecture)
        head = ((mlp_hidden, dim), (mlp_hidden,), (dim, mlp_hidden), (dim,))
        state |= {key: torch.empty(shape, device="meta") for key, shape in zip(_HEAD, head, strict=True)}
    return MappingProxyType(state)


def expected_shapes(architecture: Architecture, mlp_hidden: int | None = None) -> dict[str, _Shape]:
    """Return the keys of an encoder's state dict and the shapes of their tensors.

    Example:
        >>> tiny = ConvNeXtArchitecture(image_size=32, depths=(1, 1, 1, 1), widths=(8, 16, 32, 64), projection=16)
        >>> expected_shapes(tiny)["tower.projection.weight"]
        (16, 64)
    """
    return {key: tuple(tensor.shape) for key, tensor in expected_tensors(architecture, mlp_hidden).items()}


def detect(keys: Iterable[str]) -> str:
    """Return the name of the layout that the keys follow; CheckpointError when it is none of ours.

    Example:
        >>> detect(["logit_scale", "visual.conv1.weight"])
        'open-clip'
    """
    keys = list(keys)
    signatures = {name: layout.signature for name, layout in LAYOUTS.items() if layout.signature is not None}
    for name, signature in signatures.items():
        if any(signature.search(key) for key in keys):
            return name
    shown = ", ".join(sorted(keys)[:3]) or "none at all"
    raise CheckpointError(
        f"The checkpoint follows none of the layouts {', '.join(signatures)}; its first keys: {shown}."
    )


def vision_keys(layout: str, key: str) -> bool:
    """Tell whether a tensor has to be read from the file: everything that is not known to be left out.

    What is neither known nor left out is read as well, so that `convert` can name it as unexpected.

    Example:
        >>> vision_keys("open-clip", "visual.conv1.weight"), vision_keys("open-clip", "logit_scale")
        (True, False)
    """
    ignored = _layout(layout).ignored
    return ignored is None or ignored.fullmatch(key) is None


def convert(
    state: Mapping[str, Tensor], layout: str, architecture: Architecture, mlp_hidden: int | None = None
) -> dict[str, Tensor]:
    """Rename, and where needed reshape, a published checkpoint's tensors into an encoder's state dict.

    Tensors are passed on as they are or as views, so that mapped files stay mapped; only q, k, v that are
    stored apart, OpenCLIP's transposed ViT projection, and resampled position embeddings are written anew.

    Args:
        state: The checkpoint; tensors that `vision_keys` leaves out may be there and are not looked at.
        layout: A name in `LAYOUTS`.
        architecture: What the checkpoint must hold.
        mlp_hidden: Hidden size of the MLP head, whose keys are the same in every layout; None for no head.

    Raises:
        CheckpointError: Names the keys that are missing or unexpected, or the key whose shape is wrong.

    Example:
        >>> tiny = ConvNeXtArchitecture(image_size=32, depths=(1, 1, 1, 1), widths=(8, 16, 32, 64), projection=16)
        >>> published = build_tower(tiny).state_dict()
        >>> published["head.proj.weight"] = published.pop("projection.weight")
        >>> convert(published, "open-clip-visual", tiny).keys() == expected_shapes(tiny).keys()
        True
    """
    return fit(expected_tensors(architecture, mlp_hidden), state, layout, architecture)


def fit(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], layout: str, architecture: Architecture
) -> dict[str, Tensor]:
    """Do as `convert` does, for an encoder that is built: `expected` is its state dict, with or without values."""
    _check_kinds(state)
    source = _layout(layout).source
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    missing: list[str] = []
    for key, own in expected.items():
        found = ((key,), _as_is) if key in _HEAD else source(key.removeprefix("tower."), architecture)
        if found is None:
            raise CheckpointError(f"A checkpoint in the layout {layout} cannot hold the tensor {key}.")
        names, transform = found
        used.update(names)
        if absent := [name for name in names if name not in state]:
            missing += absent
            continue
        result[key] = _transformed([state[name] for name in names], names, transform, own)
    unexpected = [key for key in state if key not in used and vision_keys(layout, key)]
    if missing or unexpected:
        raise CheckpointError(
            f"The checkpoint does not fit {_describe(architecture)} in the layout {layout}: "
            f"{key_report(missing, unexpected)}."
        )
    return result


def published(state: Mapping[str, Tensor], layout: str, architecture: Architecture) -> dict[str, Tensor]:
    """Rename an encoder's tensors as a published layout does: `convert` the other way round.

    Args:
        state: `Encoder.state_dict()`, without an MLP head.
        layout: A name in `LAYOUTS` that keeps every tensor of ours in one of its own.
        architecture: What the state is of.

    Raises:
        CheckpointError: The layout has no place for a tensor, or keeps it in several.

    Example:
        >>> tiny = ConvNeXtArchitecture(image_size=32, depths=(1, 1, 1, 1), widths=(8, 16, 32, 64), projection=16)
        >>> state = {f"tower.{key}": value for key, value in build_tower(tiny).state_dict().items()}
        >>> convert(published(state, "open-clip", tiny), "open-clip", tiny).keys() == state.keys()
        True
    """
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        found = _layout(layout).source(key.removeprefix("tower."), architecture)
        if found is None or len(found[0]) != 1:
            raise CheckpointError(f"A checkpoint in the layout {layout} cannot hold the tensor {key} as it is.")
        (name,), transform = found
        if transform is _transposed:
            tensor = tensor.t()
        elif transform is _viewed:  # the class token and the positions, which have leading dimensions of 1 here alone
            tensor = tensor.reshape(tensor.shape[2:] if tensor.shape[1] == 1 else tensor.shape[1:])
        result[name] = tensor
    return result


def _check_kinds(state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise CheckpointError(f"The checkpoint has the key {key!r}, expected the names of tensors.")
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{key} is of type {type(tensor).__name__}, expected a tensor.")
        kind = special_kind(tensor)
        if kind and not tensor.is_meta:  # of a meta tensor the shape can be fitted; `Encoder.from_weights` wants more
            raise CheckpointError(f"{key} is {kind}, expected ordinary numbers: convert it, as by dequantize or float.")


def key_report(missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """Say which keys are missing and unexpected, the first few of each by name.

    Example:
        >>> key_report(missing=["head.fc1.bias"], unexpected=["fc.weight", "fc.bias"])
        'missing head.fc1.bias; unexpected fc.weight, fc.bias'
    """
    parts = []
    for word, keys in (("missing", list(missing)), ("unexpected", list(unexpected))):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            parts.append(f"{word} {', '.join(keys[:5])}{more}")
    return "; ".join(parts)


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}.")
    return LAYOUTS[name]


def _describe(architecture: Architecture) -> str:
    if isinstance(architecture, ViTArchitecture):
        return f"a ViT/{architecture.patch_size} of width {architecture.width} and depth {architecture.depth}"
    if not isinstance(architecture, ConvNeXtArchitecture):
        return f"the {architecture.kind} tower {architecture.model}"
    return f"a ConvNeXt of widths {architecture.widths} and depths {architecture.depths}"


def _transformed(tensors: list[Tensor], names: tuple[str, ...], transform: _Transform, own: Tensor) -> Tensor:
    label, shape = ", ".join(names), tuple(own.shape)
    try:
        tensor = transform(tensors, shape)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"The shape of {label} is {_shapes(tensors)}, which cannot give {shape}.") from error
    if tensor.shape != shape:
        raise CheckpointError(
            f"The shape of {label} is {_shapes(tensors)}, which gives {tuple(tensor.shape)}, expected {shape}."
        )
    # In a library's tower the counters of a BatchNorm, and the like, are integers.
    floating = own.is_floating_point()
    if not (tensor.is_floating_point() if floating else tensor.dtype == own.dtype):
        kind = "floating point" if floating else own.dtype
        raise CheckpointError(f"The tensor {label} is {tensor.dtype}, expected {kind}.")
    return tensor


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


# What our tensors are made of: functions of the published tensors and of our shape.


def _as_is(tensors: list[Tensor], shape: _Shape) -> Tensor:
    return tensors[0]


def _viewed(tensors: list[Tensor], shape: _Shape) -> Tensor:
    return tensors[0].view(shape)


def _transposed(tensors: list[Tensor], shape: _Shape) -> Tensor:
    return tensors[0].t().contiguous()


def _concatenated(tensors: list[Tensor], shape: _Shape) -> Tensor:
    return torch.cat(tensors)


def _resampled(tensors: list[Tensor], shape: _Shape) -> Tensor:
    """Bring position embeddings (1, 1 + G*G, width) to another grid as timm does: DINOv2's 37 to 16."""
    (embedding,) = tensors
    if embedding.shape == shape or embedding.dim() != 3 or embedding.shape[::2] != shape[::2]:
        return embedding
    old, new = (round((length - 1) ** 0.5) for length in (embedding.shape[1], shape[1]))
    if old * old + 1 != embedding.shape[1]:
        return embedding
    grid = embedding[:, 1:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, width, G, G)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    return torch.cat([embedding[:, :1], grid.flatten(2).mT.to(embedding.dtype)], dim=1)


# Sources, one function per layout. Keys come without "tower.".

_Source = tuple[tuple[str, ...], _Transform] | None


def _ours(key: str, architecture: Architecture) -> _Source:
    return (f"tower.{key}",), _as_is


def _timm_vit(key: str, architecture: Architecture) -> _Source:
    if architecture.kind != "vit" or not key.startswith("trunk."):
        return None
    name = key.removeprefix("trunk.")
    return (name,), _resampled if name == "pos_embed" else _as_is


def _timm(key: str, architecture: Architecture) -> _Source:
    return ((key.removeprefix("trunk."),), _as_is) if key.startswith("trunk.") else None


_OPEN_CLIP_VIT = {
    "trunk.cls_token": ("class_embedding", _viewed),
    "trunk.pos_embed": ("positional_embedding", _viewed),
    "trunk.patch_embed.proj.weight": ("conv1.weight", _as_is),
    "projection.weight": ("proj", _transposed),
}
_OPEN_CLIP_MODULES = {
    "norm_pre": "ln_pre",
    "norm": "ln_post",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.qkv": "attn.in_proj_",  # nn.MultiheadAttention: in_proj_weight, in_proj_bias
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _open_clip_visual(key: str, architecture: Architecture) -> _Source:
    if architecture.kind == "open_clip":
        return (key.removeprefix("trunk."),), _as_is
    if architecture.kind == "convnext":
        return ("head.proj.weight" if key == "projection.weight" else key,), _as_is
    if key in _OPEN_CLIP_VIT:
        name, transform = _OPEN_CLIP_VIT[key]
        return (name,), transform
    block, module, parameter = _split(key)
    if module not in _OPEN_CLIP_MODULES:
        return None
    renamed = _OPEN_CLIP_MODULES[module]
    prefix = "" if block is None else f"transformer.resblocks.{block}."
    return (f"{prefix}{renamed}{'' if renamed.endswith('_') else '.'}{parameter}",), _as_is


def _open_clip(key: str, architecture: Architecture) -> _Source:
    found = _open_clip_visual(key, architecture)
    return found and (tuple(f"visual.{name}" for name in found[0]), found[1])


_TRANSFORMERS_VIT = {
    "trunk.cls_token": "embeddings.cls_token",
    "trunk.pos_embed": "embeddings.position_embeddings",
    "trunk.patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "trunk.patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "trunk.norm.weight": "layernorm.weight",
    "trunk.norm.bias": "layernorm.bias",
}
_TRANSFORMERS_MODULES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def _transformers_vit(key: str, architecture: Architecture) -> _Source:
    if architecture.kind != "vit":
        return None
    if key in _TRANSFORMERS_VIT:
        return (_TRANSFORMERS_VIT[key],), _as_is
    block, module, parameter = _split(key)
    prefix = f"encoder.layer.{block}"
    if module == "attn.qkv":
        names = (f"{prefix}.attention.attention.{part}.{parameter}" for part in ("query", "key", "value"))
        return tuple(names), _concatenated
    if block is None or module not in _TRANSFORMERS_MODULES:
        return None
    return (f"{prefix}.{_TRANSFORMERS_MODULES[module]}.{parameter}",), _as_is


# Convolutions and BatchNorms of timm's blocks; the first stage's do not expand.
_LITE_EXPANDED = {
    **{"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"},
    **{"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"},
}
_LITE_SEPARABLE = {"conv_dw": "_depthwise_conv", "conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
_LITE_ENDS = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}


def _efficientnet_lite(key: str, architecture: Architecture) -> _Source:
    # timm's efficientnet_lite has the same tensors, and pads and norms in another way.
    if not isinstance(architecture, TimmArchitecture) or not architecture.model.startswith("tf_efficientnet_lite"):
        raise CheckpointError(
            f"The layout efficientnet-lite holds the weights of timm's tf_efficientnet_lite models, not of "
            f"{_describe(architecture)}."
        )
    match = re.fullmatch(r"trunk\.(?:blocks\.(\d+)\.(\d+)\.)?(\w+)\.(\w+)", key)
    if match is None:
        return None
    stage, place, module, parameter = match.groups()
    if stage is None:
        return ((f"{_LITE_ENDS[module]}.{parameter}",), _as_is) if module in _LITE_ENDS else None
    blocks = _blocks(architecture)
    names = _LITE_EXPANDED if "conv_pwl" in blocks[int(stage), int(place)] else _LITE_SEPARABLE
    if module not in names:
        return None
    return (f"_blocks.{list(blocks).index((int(stage), int(place)))}.{names[module]}.{parameter}",), _as_is


@functools.cache
def _blocks(architecture: TimmArchitecture) -> dict[tuple[int, int], set[str]]:
    """List the modules in each block of a timm model, numbered by stage and place, in the order of computation."""
    blocks: dict[tuple[int, int], set[str]] = {}
    for key in expected_tensors(architecture):
        if match := re.match(r"tower\.trunk\.blocks\.(\d+)\.(\d+)\.(\w+)\.", key):
            blocks.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
    return dict(sorted(blocks.items()))


def _split(key: str) -> tuple[str | None, str, str]:
    """Split "trunk.blocks.3.attn.qkv.weight" into ("3", "attn.qkv", "weight"); no block gives None."""
    match = re.fullmatch(r"trunk\.(?:blocks\.(\d+)\.)?(.+)\.(\w+)", key)
    return (match[1], match[2], match[3]) if match else (None, key, "")


# The order is the order in which `detect` tries them.
LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "rclip-metric": Layout("our own: Encoder.state_dict()", re.compile(r"^tower\.trunk\."), None, _ours),
        "open-clip": Layout(
            "OpenCLIP's whole CLIP; the text tower is not read",
            re.compile(r"^visual\."),
            re.compile(
                r"transformer\.resblocks\.\d+\..+|token_embedding\.weight|positional_embedding|ln_final\.(weight|bias)"
                r"|text_projection|logit_scale|logit_bias|attn_mask|text\..+|input_resolution|context_length|vocab_size"
            ),
            _open_clip,
        ),
        "open-clip-visual": Layout(
            "OpenCLIP's visual tower alone",
            re.compile(r"^(class_embedding$|trunk\.stem\.)"),
            None,
            _open_clip_visual,
        ),
        "transformers-vit": Layout(
            "transformers' ViTModel; the pooler is not read",
            re.compile(r"^embeddings\.cls_token$"),
            re.compile(r"pooler\.dense\.(weight|bias)"),
            _transformers_vit,
        ),
        "timm-vit": Layout(
            "timm's VisionTransformer without a classifier",
            re.compile(r"^(cls_token|blocks\.0\.attn\.qkv\.weight)$"),
            re.compile(r"mask_token"),  # DINOv2's training objective
            _timm_vit,
        ),
        "efficientnet-lite": Layout(
            "EfficientNet-Lite as ported from TensorFlow; the classifier is not read",
            re.compile(r"^_conv_stem\.weight$"),
            re.compile(r"_fc\.(weight|bias)"),
            _efficientnet_lite,
        ),
        "timm": Layout("any model of timm without its classifier", None, None, _timm),
    }
)
