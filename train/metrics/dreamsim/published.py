"""DreamSim's published files: their tensors in our names.

Fu et al. 2023 (arXiv 2306.09344). Each variant is a zip with its CLIP towers and one LoRA adapter; the towers of DINO
and DINOv2 need not be in it (the authors' package fetches them from torch.hub), see `read_published`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rclip_metric.encoder import ViTArchitecture, state_dicts
from rclip_metric.errors import CheckpointError, StorageError, WeightsError
from rclip_metric.train.metrics.dreamsim.model import BRANCHES, SIDE, VARIANTS, Branch, Variant
from rclip_metric.train.metrics.weight_files import Converted
from rclip_metric.train.models import peft_adapters as adapters
from rclip_metric.weights import locate, model_names, read_pickle
from rclip_metric.weights.loading import read_tensors

_FACTOR = re.compile(r"(?:base_model\.model\.)*extractor_list\.(\d+)\.model\.(.+)")


def read_published(name: str, source: Path, backbone: str | None = None) -> Converted:
    """Read a published variant: its towers in our layout under their names, the adapter merged.

    A DINO tower comes from `backbone` if given; else from its file in the zip, if that holds a tower or the teacher
    of DINO's training; else from `checkpoints/` beside the files, where torch.hub puts it; else it is the manifest's
    clean model.

    Args:
        name: of `VARIANTS`.
        source: the zip as published, or the folder that it unpacks to (the package's cache folder).
        backbone: a file of DINO's or DINOv2's tower (their release, or timm's), or a model in the manifest.

    Raises:
        CheckpointError: it is another variant or damaged, or a file in it holds something else: names the file and
            the keys or shapes.
        WeightsError: a DINO tower is nowhere to be had.
    """
    variant = VARIANTS[name]
    dino = [branch for branch in variant.branches if BRANCHES[branch].clean]
    if backbone is not None and not dino:
        raise CheckpointError(f"{name} has no DINO tower: leave the backbone {backbone!r} out.")
    _require(name, source)
    with _unpacked(source, variant) as folder:
        try:
            return _converted(name, source, folder, backbone)
        except WeightsError as error:
            raise type(error)(str(error).replace(str(folder), str(source))) from error


def _converted(name: str, source: Path, folder: Path, backbone: str | None) -> Converted:
    variant = VARIANTS[name]
    weights = adapters.adapter_weights(folder / variant.adapter)
    adapter = adapters.read_adapter(folder / variant.adapter, read_tensors(weights))
    parts = _split(adapter, variant)
    files = [source] if source.is_file() else [folder / variant.adapter / adapters.CONFIG_NAME, weights]
    tensors: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, part in zip(variant.branches, parts, strict=True):
        branch = BRANCHES[key]
        if branch.clean is None:
            path = folder / branch.file
            state = _clip_state(path, branch.architecture)
        else:
            path, found, origin[key] = _backbone(branch, source, folder, backbone)
            state = _dino_state(path, found, branch)
        if source.is_dir() or folder not in path.parents:
            files.append(path)
        merged = adapters.merge(part, state, branch.architecture)
        # Not mapped from the unpacked files, which go away.
        tensors |= {f"{key}.{inner}": tensor.detach().to(torch.float32, copy=True) for inner, tensor in merged.items()}
    config = {"variant": name, "branches": list(variant.branches), "backbone": origin}
    return Converted(tensors, config | {"adapter": {"rank": adapter.rank, "scale": adapter.scale}}, files)


def _require(name: str, source: Path) -> None:
    """Refuse what is not the variant, saying which one it is."""
    try:
        if source.is_dir():
            there = {path.name for path in source.iterdir()}
        else:
            with zipfile.ZipFile(source) as archive:
                there = {member.split("/")[0] for member in archive.namelist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{source} is neither a folder nor a whole zip file: {error}.") from error
    clip = [branch.file for key in VARIANTS[name].branches if not (branch := BRANCHES[key]).clean]
    missing = [file for file in (*clip, VARIANTS[name].adapter) if file not in there]
    if missing:
        others = [other for other, variant in VARIANTS.items() if variant.adapter in there]
        what = f"it is {others[0]}" if others else "it is none of DreamSim's"
        raise CheckpointError(f"{source} has no {', '.join(missing)} and cannot be {name}: {what}.")


@contextmanager
def _unpacked(source: Path, variant: Variant) -> Iterator[Path]:
    """Give the folder itself; of a zip, a temporary folder with the files that are read, under their known names."""
    if source.is_dir():
        yield source
        return
    wanted = [BRANCHES[key].file for key in variant.branches]
    wanted += [f"{variant.adapter}/{name}" for name in (adapters.CONFIG_NAME, *adapters.WEIGHTS_NAMES)]
    with tempfile.TemporaryDirectory(prefix="rclip-metric-") as temporary:
        folder = Path(temporary)
        (folder / variant.adapter).mkdir()
        try:
            with zipfile.ZipFile(source) as archive:
                for name in set(wanted) & set(archive.namelist()):
                    with archive.open(name) as member, (folder / name).open("wb") as file:
                        shutil.copyfileobj(member, file)
        except OSError as error:
            raise StorageError(f"{source} cannot be unpacked to {folder}: {error}.") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise CheckpointError(f"{source} is damaged, get it again: {error}.") from error
        yield folder


def _split(adapter: adapters.Adapter, variant: Variant) -> list[adapters.Adapter]:
    """Make one adapter per tower of one that was trained on all of them."""
    parts: list[dict[str, Tensor]] = [{} for _ in variant.branches]
    unexpected = []
    for key, tensor in adapter.tensors.items():
        match = _FACTOR.fullmatch(key)
        if match is None or int(match[1]) >= len(parts) or match[2] in parts[int(match[1])]:
            unexpected.append(key)
        else:
            parts[int(match[1])][match[2]] = tensor
    if unexpected:
        raise CheckpointError(f"{adapter.path} does not fit the towers: {state_dicts.key_report([], unexpected)}.")
    result = []
    for index, (key, tensors) in enumerate(zip(variant.branches, parts, strict=True)):
        targets = tuple(_targets(adapter, f"extractor_list.{index}.model", BRANCHES[key].architecture))
        if not targets:
            raise CheckpointError(f"{adapter.path} adapts no layer of {key}.")
        result.append(replace(adapter, targets=targets, tensors=tensors))
    return result


def _targets(adapter: adapters.Adapter, wrapper: str, architecture: ViTArchitecture) -> Iterator[str]:
    """List the layers of one tower that the adapter's configuration names, by PEFT's rule for their full names."""
    for key, shape in state_dicts.expected_shapes(architecture).items():
        layer = key.removeprefix("tower.trunk.").removesuffix(".weight")
        if len(shape) != 2 or not layer.startswith("blocks."):
            continue
        full = f"{wrapper}.{layer}"
        rule = adapter.targets
        if rule.fullmatch(full) if isinstance(rule, re.Pattern) else any(f".{full}".endswith(f".{t}") for t in rule):
            yield layer


def _clip_state(path: Path, architecture: ViTArchitecture) -> dict[str, Tensor]:
    """Read a CLIP tower in our layout; the file names the LayerNorm before the blocks after what it stands in for."""
    tensors = read_tensors(path)
    names = {}
    for key in state_dicts.expected_shapes(architecture):
        theirs = key.removeprefix("tower.trunk.").replace("norm_pre.", "pos_drop.")
        names["proj" if key == "tower.projection.weight" else theirs] = key
    missing, unexpected = (sorted(names.keys() - tensors.keys()), sorted(tensors.keys() - names.keys()))
    if missing or unexpected:
        raise CheckpointError(f"{path} is not the CLIP tower: {state_dicts.key_report(missing, unexpected)}.")
    state = {names[key]: tensor for key, tensor in tensors.items()}
    if tensors["proj"].dim() == 2:  # else the shape is refused below
        state["tower.projection.weight"] = tensors["proj"].t().contiguous()
    return _checked(path, state, "rclip-metric", architecture)


def _dino_state(path: Path, tensors: Mapping[str, Tensor], branch: Branch) -> dict[str, Tensor]:
    """Convert a DINO tower to our layout, DINOv2's position embeddings resampled."""
    try:
        layout = state_dicts.detect(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is no DINO tower: {error}") from error
    read = {key: tensor for key, tensor in tensors.items() if state_dicts.vision_keys(layout, key)}
    own = SIDE // branch.architecture.patch_size
    if branch.grid is not None or "pos_embed" in read:
        shape = (1, 1 + (branch.grid or own) ** 2, branch.architecture.width)
        found = read.get("pos_embed")
        if found is None or found.shape != shape:
            got = "is not there" if found is None else f"is {tuple(found.shape)}"
            raise CheckpointError(f"{path} is not the tower as published: pos_embed {got}, expected {shape}.")
        if branch.grid is not None:
            read["pos_embed"] = resampled(found, own)
    return _checked(path, read, layout, branch.architecture)


def resampled(embedding: Tensor, grid: int) -> Tensor:
    """Put position embeddings (1, 1 + G*G, width) on another grid by DINOv2's own rule: (1, 1 + grid*grid, width).

    Bicubic without antialiasing, the coordinates scaled by (grid + 0.1) / G. The 0.1 was there to round the size
    well, and shifts what every model of theirs sees; timm resamples to the exact size, antialiased.
    """
    side = round((embedding.shape[1] - 1) ** 0.5)
    patches = embedding[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, width, G, G)
    scale = (grid + 0.1) / side
    patches = F.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")  # (1, width, grid, grid)
    return torch.cat([embedding[:, :1].float(), patches.flatten(2).transpose(1, 2)], dim=1)


def _checked(path: Path, state: Mapping[str, Tensor], layout: str, architecture: ViTArchitecture) -> dict[str, Tensor]:
    try:
        return state_dicts.convert(state, layout, architecture)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _backbone(
    branch: Branch, source: Path, folder: Path, backbone: str | None
) -> tuple[Path, Mapping[str, Tensor], str]:
    """Find a DINO tower's file, its tensors in the file's names, and where it is from in words."""
    assert branch.clean is not None and branch.hub_file is not None
    if backbone is not None and backbone not in model_names():
        path = Path(backbone).expanduser()
        if not path.is_file():
            raise CheckpointError(f"The backbone {backbone!r} is neither a file nor a model in the manifest.")
        return path, _read_dino(path) or read_tensors(path), path.name
    if backbone is None:
        own = folder / branch.file
        if own.is_file() and (tensors := _read_dino(own)):
            return own, tensors, own.name
        beside = (source if source.is_dir() else source.parent) / "checkpoints" / branch.hub_file
        if beside.is_file():
            return beside, read_tensors(beside), f"checkpoints/{beside.name}"
    model = backbone or branch.clean
    try:
        found = locate(model)
    except WeightsError as error:
        raise type(error)(
            f"{source} does not hold the tower of {branch.file.removesuffix('_pretrain.pth')}, and {model} cannot be "
            f"had in its place ({str(error).rstrip('.')}): pass {branch.hub_file} as --backbone."
        ) from error
    return found.path, read_tensors(found.path), f"{model}@{found.revision}" if found.revision else model


def _read_dino(path: Path) -> Mapping[str, Tensor] | None:
    """Read the tower in a file: its tensors alone, or the teacher of a training checkpoint; None if it has neither.

    The student is another network than the one that was released.
    """
    if path.suffix == ".safetensors":
        return None
    content = read_pickle(path)
    if not isinstance(content, Mapping):
        return None
    if isinstance(teacher := content.get("teacher"), Mapping):
        keys = {key: re.sub(r"^(?:module\.)?backbone\.", "", key) for key in teacher if isinstance(key, str)}
        content = {short: teacher[key] for key, short in keys.items() if short != key}
    named = "cls_token" in content and all(isinstance(tensor, Tensor) for tensor in content.values())
    return content if named else None
