"""LoRA adapter folders as PEFT writes them: read strictly, and merged into the layers that they adapt.

Hu et al. 2021, equation 3: an adapted layer computes W x + s B A x, which is the plain layer W + s B A. Every
tensor of the adapter is used, and every layer of the tower that its configuration targets is adapted; whatever
else PEFT can do to a layer is refused by the name of its setting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.encoder import Architecture, ConvNeXtArchitecture, ViTArchitecture, expected_shapes, key_report
from rclip_metric.errors import CheckpointError
from rclip_metric.json_files import read_json, shown

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAMES = ("adapter_model.safetensors", "adapter_model.bin")

# Settings that make no difference to a trained adapter's weights or to what it computes when it is evaluated.
_NO_MATTER = frozenset(
    [
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
        *("lora_dropout", "merge_weights"),
        *("megatron_core", "qalora_group_size"),  # read only together with megatron_config and use_qalora
    ]
)
_READ = frozenset(["peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "bias", "init_lora_weights"])
# The others (PiSSA, OLoRA, CorDA, ...) also change the layers that the adapter is added to.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")

_WRAPPERS = r"(?:(?:base_model|model|module|visual)\.)*"
_FACTOR = re.compile(rf"{_WRAPPERS}(?P<layer>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        rank: r, of the factors B (out, r) and A (r, in).
        scale: What B A is multiplied by: lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora.
        targets: The layers that were adapted: ends of their names, or one regular expression.
        tensors: The factors, under the names that the file gives them.
        path: The folder, for messages.
    """

    rank: int
    scale: float
    targets: tuple[str, ...] | re.Pattern[str]
    tensors: Mapping[str, Tensor]
    path: Path


def adapter_weights(folder: Path) -> Path:
    """Return the weights file of an adapter folder: safetensors, or a pickle where there is nothing else."""
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} has none of {', '.join(WEIGHTS_NAMES)}.")


def read_adapter(folder: Path, tensors: Mapping[str, Tensor]) -> Adapter:
    """Read an adapter's configuration.

    Args:
        folder: Holds adapter_config.json.
        tensors: The contents of its `adapter_weights`.

    Raises:
        CheckpointError: Names the setting that is missing, wrong, or not merged here.
        ManifestError: The configuration is not JSON.
    """
    path = folder / CONFIG_NAME
    config = read_json(path)

    def refuse(name: str, expected: str) -> CheckpointError:
        said = ascii(name)[1:-1]  # a damaged file may have any name, of any length
        said = said if len(said) <= 80 else f"{said[:77]}..."
        return CheckpointError(f"{path} says {said} {shown(config.get(name))}, and only {expected} can be converted.")

    if config.get("peft_type") != "LORA":
        raise refuse("peft_type", "'LORA'")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise refuse("r", "a positive integer")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise refuse("lora_alpha", "a number")
    if type(config.get("use_rslora", False)) is not bool:
        raise refuse("use_rslora", "true or false")
    if config.get("bias", "none") != "none":
        raise refuse("bias", "'none'")
    if config.get("init_lora_weights", True) not in _STARTS:
        raise refuse("init_lora_weights", f"one of {', '.join(map(repr, _STARTS))}")
    for name in sorted(set(config) - _READ - _NO_MATTER):
        if config[name] not in (None, False, {}, [], ""):
            raise refuse(name, "an adapter without that")
    targets = config.get("target_modules")
    if isinstance(targets, str):
        try:
            pattern: tuple[str, ...] | re.Pattern[str] = re.compile(targets)
        except re.error as error:
            raise refuse("target_modules", "a regular expression or a list of names") from error
    elif isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets):
        pattern = tuple(re.sub(f"^{_WRAPPERS}", "", name) for name in targets)
    else:
        raise refuse("target_modules", "a regular expression or a list of names")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora", False) else rank)
    return Adapter(rank, scale, pattern, tensors, folder)


def adapted_architecture(architecture: Architecture) -> Architecture:
    """Return what computes a base's weights after tuning with LoRA.

    ViTs were tuned inside a DINO-style ViT, whose LayerNorms have eps 1e-6 and whose activation is GELU; its
    patch bias is zero for a base that has none. The LayerNorm before the first block, which DINO's ViTs lack, is put
    in apart from the others and has eps 1e-5 (perceptual-metrics 962995f, utils_lora.py). ConvNeXts were tuned as
    they are.

    Raises:
        CheckpointError: The base is no ConvNeXt or ViT, or has QuickGELU.
    """
    if isinstance(architecture, ConvNeXtArchitecture):
        return architecture
    if not isinstance(architecture, ViTArchitecture):
        raise CheckpointError(f"LoRA adapters are known for ConvNeXt and ViT bases, and the base is {architecture}.")
    if architecture.activation != "gelu":
        raise CheckpointError(
            "LoRA adapters of ViTs were trained with GELU, and the base computes QuickGELU: they do not fit together."
        )
    return replace(architecture, norm_eps=1e-6, pre_norm_eps=1e-5 if architecture.pre_norm else None)


def merge(adapter: Adapter, state: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Add an adapter to its base: W + scale * B A, in float32.

    Args:
        adapter: As `read_adapter` gives it.
        state: The base without a head, in our layout.
        architecture: Of the base.

    Returns:
        The merged state: new tensors for the adapted layers, the base's own for all else.

    Raises:
        CheckpointError: Names tensors that do not belong to an adapted layer, layers that the adapter should
            cover and does not, or the tensor whose shape is wrong.
    """
    layers = _layers(architecture)
    factors = _factors(adapter, layers)
    merged = dict(state)
    for name, (first, second) in factors.items():
        key = layers[name]
        weight = state[key].float()  # (out, in)
        for label, factor, shape in (
            ("A", first, (adapter.rank, weight.shape[1])),
            ("B", second, (weight.shape[0], adapter.rank)),
        ):
            if factor.shape != shape:
                raise CheckpointError(
                    f"The shape of lora_{label} of {name} in {adapter.path} is {tuple(factor.shape)}, expected {shape}."
                )
        merged[key] = weight + (second.float() @ first.float()) * adapter.scale
    return merged


def _layers(architecture: Architecture) -> dict[str, str]:
    """List the linear layers of a tower: their names in the tree that PEFT wrapped, and the keys of their weights."""
    layers = {}
    for key, shape in expected_shapes(architecture).items():
        name = key.removeprefix("tower.").removesuffix(".weight")
        if len(shape) != 2 or name == key.removeprefix("tower."):
            continue
        if isinstance(architecture, ConvNeXtArchitecture):
            layers["head.proj" if name == "projection" else name] = key
        elif name != "projection":  # the DINO-style ViT has none; it was applied to what the adapted ViT gave
            layers[name.removeprefix("trunk.")] = key
    return layers


def _factors(adapter: Adapter, layers: Mapping[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Find the pair A, B of every adapted layer."""
    found: dict[str, dict[str, Tensor]] = {}
    unexpected = []
    for key, tensor in adapter.tensors.items():
        match = _FACTOR.fullmatch(key)
        name = match and _layer(match["layer"], layers)
        if match is None or name is None:
            unexpected.append(key)
            continue
        if not tensor.is_floating_point():
            raise CheckpointError(f"The tensor {key} in {adapter.path} is {tensor.dtype}, expected floating point.")
        known = found.setdefault(name, {}).setdefault(match["factor"], tensor)
        if known is not tensor and not torch.equal(known, tensor):
            raise CheckpointError(f"{adapter.path} has two different tensors lora_{match['factor']} for {name}.")
    targets = [name for name in layers if _targeted(name, adapter.targets)]
    if not targets:
        shown = adapter.targets.pattern if isinstance(adapter.targets, re.Pattern) else ", ".join(adapter.targets)
        raise CheckpointError(f"No layer of the base has a name that {adapter.path} targets ({shown}).")
    missing = [f"{name}.lora_{factor}" for name in targets for factor in "AB" if factor not in found.get(name, {})]
    unexpected += [name for name in found if name not in targets]
    if missing or unexpected:
        raise CheckpointError(f"{adapter.path} does not fit the base: {key_report(missing, unexpected)}.")
    return {name: (found[name]["A"], found[name]["B"]) for name in targets}


def _layer(name: str, layers: Mapping[str, str]) -> str | None:
    """Find the layer of that name, which DreamSim's wrapper also lists as its own `blocks`: a ViT's, or stages."""
    for candidate in (name, re.sub(r"^blocks\.", "trunk.stages.", name)):
        if candidate in layers:
            return candidate
    return None


def _targeted(name: str, targets: tuple[str, ...] | re.Pattern[str]) -> bool:
    """Say whether PEFT's rule takes a layer: the end of its name for a list, all of it for a regular expression."""
    if isinstance(targets, re.Pattern):
        return any(targets.fullmatch(spelled) for spelled in (name, f"model.{name}"))
    return any(name == target or name.endswith(f".{target}") for target in targets)
