"""What other projects' checkpoint files hold: told by their keys, and read strictly into tensors in our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rclip_metric.encoder import Architecture, ViTArchitecture, state_dicts
from rclip_metric.errors import CheckpointError
from rclip_metric.json_files import read_json
from rclip_metric.train.models import peft_adapters as adapters
from rclip_metric.weights import CONFIG_NAME, FORMAT, WeightSpec, find_weights, read_metadata
from rclip_metric.weights.loading import read_tensors

_TOWERS = [name for name, layout in state_dicts.LAYOUTS.items() if name != FORMAT and layout.signature is not None]
_KNOWN = (
    f"known are a vision tower ({', '.join(_TOWERS)}), an MLP head "
    f"(fc1, fc2) and a PEFT LoRA folder ({adapters.CONFIG_NAME})"
)
_HEAD = re.compile(r"(?:(?:module|perceptual_model|mlp)\.)*(fc[12]\.(?:weight|bias))")
_OUTER = ("module.", "model.")
_OPEN_CLIP_CONFIG = "open_clip_config.json"

# What a transformers ViT's config states, some of which no shape shows: its fields and ours.
_TRANSFORMERS_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "hidden_act": "activation",
}


def kind_of(source: Path) -> str:
    """Tell what a file or folder holds: "tower", "mlp" or "lora".

    Raises:
        CheckpointError: It holds none of them, or several.
    """
    if source.is_dir():
        adapter = (source / adapters.CONFIG_NAME).exists()
        if adapter and any((source / name).exists() for name in (CONFIG_NAME, _OPEN_CLIP_CONFIG)):
            raise CheckpointError(f"{source} holds both an adapter and a whole model: say which with kind; {_KNOWN}.")
        return "lora" if adapter else "tower"
    tensors = _unwrapped(read_tensors(source))
    found = {"mlp": "an MLP head"} if any(_HEAD.fullmatch(key) for key in tensors) else {}
    if any(".lora_" in key for key in tensors):
        found["lora"] = "LoRA factors"
    try:
        found["tower"] = f"a vision tower in the layout {state_dicts.detect(tensors)}"
    except CheckpointError as error:
        if not found:
            shown = ", ".join(sorted(tensors)[:3]) or "none at all"
            raise CheckpointError(f"{source} is none of what can be converted: {_KNOWN}; its keys: {shown}.") from error
    if len(found) > 1:
        raise CheckpointError(f"{source} mixes {' and '.join(found.values())}, and a file holds one of them; {_KNOWN}.")
    return next(iter(found))


def read_tower(source: Path, base: WeightSpec) -> tuple[str, dict[str, Tensor], list[Path]]:
    """Read a vision tower: a file in one of `rclip_metric.encoder.state_dicts`, or an OpenCLIP or transformers folder.

    Args:
        source: The file or folder.
        base: Says which architecture it must be.

    Returns:
        The layout, the tensors in our names, and the files that were read, the weights last.

    Raises:
        CheckpointError: It is another tower: names the keys, the shape or the setting that differs.
    """
    path, layout, files = source, None, []
    if source.is_dir():
        config = source / CONFIG_NAME
        values = read_json(config) if config.exists() else {}
        _refuse_ours(source, values.get("format") == FORMAT)
        found = find_weights(source, base)
        path, layout = found.path, found.layout
        files = [config if layout == "transformers-vit" else source / _OPEN_CLIP_CONFIG]
        if layout == "transformers-vit":
            _check_transformers(config, values, base.architecture)
    elif path.suffix == ".safetensors":
        _refuse_ours(source, read_metadata(path) is not None)
    tensors = read_tensors(path)
    try:
        if layout is None:
            tensors = _unwrapped(tensors)
        layout = layout or state_dicts.detect(tensors)
        read = {key: tensor for key, tensor in tensors.items() if state_dicts.vision_keys(layout, key)}
        return layout, state_dicts.convert(read, layout, base.architecture), [*files, path]
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _refuse_ours(source: Path, ours: bool) -> None:
    if ours:
        raise CheckpointError(f"{source} is in this project's format already: it loads by its path.")


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DataParallel and wrappers put before every key."""
    while tensors:
        outer = next((prefix for prefix in _OUTER if all(key.startswith(prefix) for key in tensors)), None)
        if outer is None:
            break
        tensors = {key.removeprefix(outer): tensor for key, tensor in tensors.items()}
    if tensors and all(key.startswith("visual.") for key in tensors):  # a tower alone
        return {key.removeprefix("visual."): tensor for key, tensor in tensors.items()}
    return tensors


def _check_transformers(path: Path, config: Mapping[str, Any], architecture: Architecture) -> None:
    """Refuse another ViT than the base's; layer_norm_eps is not looked at: 1e-12 in DINO's conversions is wrong."""
    if not isinstance(architecture, ViTArchitecture):
        raise CheckpointError(f"{path} describes a ViT, and the base is a {architecture.kind}.")
    for theirs, ours in _TRANSFORMERS_FIELDS.items():
        expected = getattr(architecture, ours)
        if config.get(theirs, expected) != expected:
            raise CheckpointError(f"{path} says {theirs} {config[theirs]!r}, and the base has {expected!r}.")


def read_head(path: Path, dim: int) -> dict[str, Tensor]:
    """Read a residual head e + fc2(relu(fc1(e))), DreamSim's MLP, into tensors in our names.

    Args:
        path: A state dict of fc1 and fc2, which may be within "mlp", "perceptual_model" and "module".
        dim: Size of the embeddings that it must be for.

    Raises:
        CheckpointError: Names the keys that are missing or unexpected, or the tensor whose shape is wrong.
    """
    if not path.is_file():
        raise CheckpointError(f"An MLP head is one file, and {str(path)!r} is none.")
    names: dict[str, str] = {}
    unexpected = []
    tensors = read_tensors(path)
    for key in tensors:
        match = _HEAD.fullmatch(key)
        if match is None or match[1] in names:
            unexpected.append(key)
        else:
            names[match[1]] = key
    missing = [f"{fc}.{part}" for fc in ("fc1", "fc2") for part in ("weight", "bias") if f"{fc}.{part}" not in names]
    if missing or unexpected:
        raise CheckpointError(f"{path} is not an MLP head: {state_dicts.key_report(missing, unexpected)}.")
    hidden = tensors[names["fc1.bias"]].numel()
    shapes = {"fc1.weight": (hidden, dim), "fc1.bias": (hidden,), "fc2.weight": (dim, hidden), "fc2.bias": (dim,)}
    for short, shape in shapes.items():
        tensor = tensors[names[short]]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{path}: the shape of {names[short]} is {tuple(tensor.shape)}, expected {shape} for embeddings of "
                f"size {dim}."
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: the tensor {names[short]} is {tensor.dtype}, expected floating point.")
    return {f"head.{short}": tensors[key] for short, key in names.items()}
