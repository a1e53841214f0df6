"""Weights on this machine: what a file or folder holds, and how its images are to be prepared."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rclip_metric.encoder.towers import Architecture, open_clip_vision_architecture
from rclip_metric.errors import CheckpointError
from rclip_metric.images.preprocessing import Preprocessing, Resize
from rclip_metric.weights.manifest import WeightFile, WeightSpec, get_spec, model_names
from rclip_metric.weights.saving import (
    CONFIG_NAME,
    FORMAT,
    WEIGHTS_NAME,
    SavedConfig,
    check_pair,
    read_json,
    read_metadata,
)

_OPEN_CLIP_CONFIG_NAME = "open_clip_config.json"
USUAL_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", WEIGHTS_NAME)
_PICKLES = ("open_clip_pytorch_model.bin", "pytorch_model.bin")


@dataclass(frozen=True)
class SavedWeights:
    """Weights found on this machine and all that is needed to load them; layout None: tell by the keys."""

    path: Path
    spec: WeightSpec
    layout: str | None
    revision: str | None = None
    resize: Resize = "published"


def find_weights(path: Path, base: WeightSpec | None = None) -> SavedWeights:
    """Finds out what a local file or folder holds; reads configurations and headers, no tensors.

    Args:
        path: A folder in our format, in OpenCLIP's or in transformers' ViT layout, or a single file.
        base: The manifest entry whose architecture and preprocessing apply to weights without their own.

    Raises:
        CheckpointError: It is none of these, or does not say how its images are to be prepared.
        ManifestError: Its config.json is malformed.
    """
    if path.is_file():
        config = read_metadata(path) if path.suffix == ".safetensors" else None
        if config is None:
            return SavedWeights(path, _of_base(path, base), None)
        _refuse_base(path, base)
        return SavedWeights(path, config.spec, FORMAT, config.revision, config.resize)
    config_path, open_clip_path = path / CONFIG_NAME, path / _OPEN_CLIP_CONFIG_NAME
    values = read_json(config_path) if config_path.exists() else {}
    if values.get("format") == FORMAT:
        _refuse_base(path, base)
        config = SavedConfig.read(values, str(config_path))
        check_pair(config, path / WEIGHTS_NAME)
        return SavedWeights(path / WEIGHTS_NAME, config.spec, FORMAT, config.revision, config.resize)
    if open_clip_path.exists():
        return SavedWeights(_published_file(path), _open_clip_spec(open_clip_path, base), "open-clip")
    if values.get("model_type") == "vit":
        # Its preprocessor file and layer_norm_eps are another model's often enough to be of no use.
        return SavedWeights(_published_file(path), _of_base(path, base), "transformers-vit")
    raise CheckpointError(
        f"{path} has neither a {CONFIG_NAME} of this project's format or of a transformers ViT, nor an "
        f"{_OPEN_CLIP_CONFIG_NAME}."
    )


def _of_base(path: Path, base: WeightSpec | None) -> WeightSpec:
    """The base entry's architecture and preprocessing under the name of the path."""
    if base is None:
        raise CheckpointError(
            f"{path} does not say how its images are to be prepared: pass the model it was made from, as in "
            'base="r-clip-f".'
        )
    fields: dict[str, Any] = {"source": "local", "repo": None, "revision": None, "reported": {}}
    fields |= {"training": None, "domain": None}  # it says how the weights are read, not what they learned
    return replace(base, name=path.name, files=(WeightFile(path.name),), **fields)


def _refuse_base(path: Path, base: WeightSpec | None) -> None:
    if base is not None:
        raise CheckpointError(f"{path} carries its own architecture and preprocessing: leave base={base.name!r} out.")


def _open_clip_spec(config_path: Path, base: WeightSpec | None) -> WeightSpec:
    """What an open_clip_config.json says, unless the same tower is published with another preprocessing."""
    folder = config_path.parent
    values = read_json(config_path)
    try:
        architecture = open_clip_vision_architecture(values)
        stated = values.get("preprocess_cfg", {})
        size = architecture.image_size
        if stated.get("resize_mode", "shortest") not in ("shortest", "squash"):
            raise ValueError(f"resize_mode must be shortest or squash, got {stated['resize_mode']!r}")
        preprocessing = Preprocessing(
            mode="squash" if stated.get("resize_mode") == "squash" else "crop",
            resize=size,
            crop=size,
            interpolation=stated.get("interpolation", "bicubic"),
            **{field: tuple(stated[field]) for field in ("mean", "std") if field in stated},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{config_path} cannot be used: {str(error).rstrip('.')}.") from error
    if base is not None:
        if not _same_tower(architecture, base.architecture):
            raise CheckpointError(f"{config_path} describes another tower than base={base.name!r}.")
        return _of_base(folder, base)
    for name in model_names():
        spec = get_spec(name)
        if spec.layout == "open-clip" and _same_tower(architecture, spec.architecture):
            if spec.preprocessing != preprocessing:
                raise CheckpointError(
                    f"{config_path} gives another preprocessing than the one that the published numbers of this "
                    f'tower were made with: pass base="{name}" for that one.'
                )
            return replace(_of_base(folder, spec), license=None, citation=None, notes=None)
    return WeightSpec(
        name=folder.name,
        architecture=architecture,
        mlp_hidden=None,
        layout="open-clip",
        source="local",
        repo=None,
        revision=None,
        files=(),
        preprocessing=preprocessing,
        embedding_dim=values.get("model_cfg", values)["embed_dim"],
        training=None,
        license=None,
        reported={},
        citation=None,
        url_note=None,
        notes=None,
    )


def _same_tower(one: Architecture, other: Architecture) -> bool:
    """Whether two architectures take the same weights; a ConvNeXt does at any image size."""
    if one.kind != other.kind:
        return False
    return one == (replace(other, image_size=one.image_size) if one.kind == "convnext" else other)


def _published_file(folder: Path) -> Path:
    """The weights in a published folder: safetensors, or a pickle where there is nothing else."""
    for name in USUAL_NAMES + _PICKLES:
        if (folder / name).exists():
            return folder / name
    raise CheckpointError(f"{folder} has none of {', '.join(USUAL_NAMES + _PICKLES)}.")
