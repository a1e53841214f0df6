"""Encoders of OpenCLIP's and timm's models, by their names there.

open_clip:MODEL@TAG      OpenCLIP's model with the weights that OpenCLIP calls TAG, or those of the file TAG
open_clip:hf-hub:ID      an OpenCLIP model on the Hub, with its own config (also open_clip:local-dir:FOLDER)
timm:NAME.TAG            timm's model with the weights that timm calls TAG; timm:NAME for its default ones
timm:NAME@FILE           timm's model with the weights in a file (.pth, .bin, .safetensors) of timm's own names
timm:hf-hub:ID           a timm model on the Hub, with its own config
hf-hub:ID                whichever of the two, or of our own format, the repository's config is of
...@random               any but the last, with random weights, for tests and benchmarks
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.encoder import Architecture, Encoder, TimmArchitecture, convert, expected_shapes
from rclip_metric.encoder.library_towers import require_known, timm_architecture, timm_config, timm_module
from rclip_metric.encoder.limits import check_foreign_open_clip_config, check_timm_config
from rclip_metric.encoder.open_clip_configs import open_clip_architecture, open_clip_flag
from rclip_metric.errors import CheckpointError, UnknownModelError, WeightsError
from rclip_metric.images.preprocessing import Preprocessing
from rclip_metric.json_files import read_json
from rclip_metric.weights.digest import file_digest
from rclip_metric.weights.hub import HubSource, explained, fetch, require_hub_id
from rclip_metric.weights.loading import read_tensors
from rclip_metric.weights.manifest import WeightFile
from rclip_metric.weights.saving import CONFIG_NAME, FORMAT

OPEN_CLIP, TIMM = "open_clip:", "timm:"  # what names of the libraries' models begin with
RANDOM = "random"
_HUB, _FOLDER = "hf-hub:", "local-dir:"  # a repository or folder that brings its own config
PREFIXES = (OPEN_CLIP, TIMM, _HUB)
_OPEN_CLIP_CONFIG = "open_clip_config.json"


def load_library(name: str, *, seed: int = 0, image_size: int | None = None, squash: bool = False) -> Encoder:
    """Load the image tower of a library's model, float32 on the CPU and in eval mode.

    It is in a native architecture where one computes the same, and prepares images as the library states for these
    weights.

    Args:
        name: See the head of this file.
        seed: Of random weights.
        image_size: Of timm's models: side of the square input in pixels instead of the model's own.
        squash: Of timm's models: bring images to the square whatever their aspect ratio.

    Raises:
        UnknownModelError: No such name, model or tag; with those that there are.
        HubError: The network or the Hub.
        ValueError: The preprocessing, or the model itself, is none that an `Encoder` can have.

    Example:
        >>> load_library("timm:resnet18@random", image_size=64).embedding_dim
        512
    """
    if name.startswith(TIMM):
        return _timm_encoder(name, seed, image_size, squash).eval()
    return _open_clip_encoder(name, seed).eval()


def library_name(name: str) -> str:
    """Resolve hf-hub:ID to the name with the library whose config the repository has; ID alone for our own format.

    Raises:
        CheckpointError: Its config is of none of them.
        HubError: The network or the Hub; also a repository without a config.
    """
    if not name.startswith(_HUB):
        return name
    repo = name.removeprefix(_HUB)
    found = fetch(HubSource(repo, newest=True), [WeightFile(_OPEN_CLIP_CONFIG), WeightFile(CONFIG_NAME)])
    if found.name == _OPEN_CLIP_CONFIG:
        return OPEN_CLIP + name
    config = read_json(found.path)
    if config.get("format") == FORMAT:
        return repo
    if "architecture" in config:
        return TIMM + name
    raise CheckpointError(f"{repo} has a {CONFIG_NAME}, and it is neither timm's, OpenCLIP's nor of this project.")


def split_name(name: str, prefix: str) -> tuple[str, str]:
    """Split a name into model and tag, "" without one."""
    model, _, tag = name.removeprefix(prefix).partition("@")
    return model, tag


# OpenCLIP


def _open_clip_encoder(name: str, seed: int) -> Encoder:
    model, tag = split_name(name, OPEN_CLIP)
    config = open_clip_config(model)
    if tag == RANDOM:
        architecture = open_clip_architecture(model, config)
        stated = _first_preprocessing(model)
        return random_encoder(name, architecture, _open_clip_preprocessing(name, stated, architecture), seed)
    whole, quick_gelu = open_clip_model(name, model, tag, config, seed)
    architecture = open_clip_architecture(model, {**config, "quick_gelu": quick_gelu})
    visual: Any = whole.visual
    revision = f"sha256:{file_digest(Path(tag))[:12]}" if tag and Path(tag).is_file() else None
    return Encoder.from_weights(
        convert(visual.state_dict(), "open-clip-visual", architecture),
        architecture,
        _open_clip_preprocessing(name, visual.preprocess_cfg, architecture),
        name=name,
        revision=revision,
    )


def open_clip_config(model: str) -> dict[str, Any]:
    """Return OpenCLIP's config of a model, checked where it is not OpenCLIP's own."""
    import open_clip

    foreign = model.startswith((_HUB, _FOLDER))
    if not foreign:
        require_known("OpenCLIP", model, open_clip.list_models())
    elif model.startswith(_HUB):
        require_hub_id(model.removeprefix(_HUB))
    with explained(f"The config of OpenCLIP's {model}"):
        config: dict[str, Any] | None = open_clip.get_model_config(model)
    if config is None:
        raise UnknownModelError(f"OpenCLIP {open_clip.__version__} does not read {model}: update open_clip_torch.")
    if foreign:
        check_foreign_open_clip_config(config, f"The config of {model}")
    return config


def open_clip_model(name: str, model: str, tag: str, config: Mapping[str, Any], seed: int) -> tuple[Any, bool]:
    """Load the whole model as OpenCLIP builds it, and say whether its activation is QuickGELU."""
    import open_clip

    quick_gelu = open_clip_flag("quick_gelu", config.get("quick_gelu", False))
    if tag == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            none: dict[str, Any] = {"load_weights": False} if model.startswith((_HUB, _FOLDER)) else {}
            return open_clip.create_model(model, force_quick_gelu=quick_gelu, **none), quick_gelu
    if not model.startswith((_HUB, _FOLDER)):
        tags = open_clip.list_pretrained_tags_by_model(model)
        if not Path(tag).is_file() and open_clip.get_pretrained_cfg(model, tag) == {}:
            raise UnknownModelError(_about_tags(name, model, tag, tags))
        # OpenAI's weights were trained with it, also where the model's config does not say so.
        quick_gelu = quick_gelu or bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False))
    try:
        with explained(f"The model {name}"):
            whole = open_clip.create_model(
                model, pretrained=tag or None, force_quick_gelu=quick_gelu, require_pretrained=True
            )
    except WeightsError as error:
        if "state_dict" in str(error.__cause__):
            raise CheckpointError(f"The weights of {name} do not fit OpenCLIP's {model}.") from error
        raise
    return whole, quick_gelu


def _about_tags(name: str, model: str, tag: str, tags: list[str]) -> str:
    having = f"weights that exist are {', '.join(tags)}" if tags else "OpenCLIP publishes no weights of it"
    if not tag:
        return f"{name} does not say which weights: add @ and a tag, a file or random ({having})."
    close = difflib.get_close_matches(tag, tags, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"OpenCLIP has no weights {tag!r} of {model}, nor is that a file: {having}{hint}"


def _first_preprocessing(model: str) -> Mapping[str, Any]:
    """Find the preprocessing of the first weights that OpenCLIP publishes of a model; {} is its default."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    return open_clip.get_pretrained_cfg(model, tags[0]) if tags else {}


def _open_clip_preprocessing(name: str, stated: Mapping[str, Any], architecture: Architecture) -> Preprocessing:
    found = open_clip_preprocessing(name, stated, architecture.image_size)
    _require_bicubic(name, stated.get("interpolation") or "bicubic")
    return found


def open_clip_preprocessing(name: str, stated: Mapping[str, Any], size: int) -> Preprocessing:
    """Return how OpenCLIP prepares images of a model, by bicubic interpolation whatever it says of that.

    Args:
        name: Of the model, for messages.
        stated: OpenCLIP's `preprocess_cfg`.
        size: Side of the model's images in pixels.

    Raises:
        ValueError: It resizes in a way that an encoder does not have.

    Example:
        >>> open_clip_preprocessing("mine", {"resize_mode": "squash"}, 32).mode
        'squash'
    """
    mode = stated.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise ValueError(f"{name} resizes images by {mode!r}, and an encoder by the shorter side or as a squash.")
    statistics = {key: tuple(map(float, stated[key])) for key in ("mean", "std") if stated.get(key)}
    return Preprocessing("squash" if mode == "squash" else "crop", size, size, **statistics)  # type: ignore[arg-type]


# timm


@dataclass(frozen=True)
class _TimmModel:
    """What timm states about a model that is to be built for a size."""

    name: str  # as timm knows it
    architecture: TimmArchitecture
    preprocessing: Preprocessing
    config: Mapping[str, Any]


def timm_base(name: str, image_size: int | None = None, squash: bool = False) -> tuple[TimmArchitecture, Preprocessing]:
    """Return the architecture and preprocessing of a base of timm's; reads no weights.

    Args:
        name: As for `load_base`, beginning with `timm:`.
        image_size: As for `load_base`.
        squash: As for `load_base`.

    Raises:
        WeightsError: As for `load_base`.
        ValueError: As for `load_base`.
    """
    stated = _timm_model(name, image_size, squash)
    return stated.architecture, stated.preprocessing


def _timm_model(name: str, image_size: int | None, squash: bool) -> _TimmModel:
    model, tag = split_name(name, TIMM)
    if model.startswith(_HUB):
        architecture, config = _timm_hub_architecture(name, model, image_size)
    else:
        architecture = timm_architecture(model, image_size=image_size)
        config = timm_config(model).to_dict()
        # Which weights are the default ones may change; those of a file are its own.
        if "." not in model and config.get("tag") and tag in ("", RANDOM):
            architecture = replace(architecture, model=f"{model}.{config['tag']}")
    preprocessing = _timm_preprocessing(name, config, architecture, squash=squash, random=tag == RANDOM)
    return _TimmModel(model, architecture, preprocessing, config)


def _timm_encoder(name: str, seed: int, image_size: int | None, squash: bool) -> Encoder:
    import timm

    tag = split_name(name, TIMM)[1]
    if tag not in ("", RANDOM) and not Path(tag).is_file():
        raise UnknownModelError(
            f"{name} must be timm:NAME, timm:NAME.TAG, or one of these with @random or @FILE, and there is no file "
            f"{tag}."
        )
    stated = _timm_model(name, image_size, squash)
    architecture, preprocessing = stated.architecture, stated.preprocessing
    if tag == RANDOM:
        return random_encoder(name, architecture, preprocessing, seed)
    on_hub = stated.name.startswith(_HUB)
    if tag:
        path = Path(tag)
        return Encoder.from_weights(
            _timm_file(path, stated),
            architecture,
            preprocessing,
            name=f"{TIMM}{architecture.model}@{path.name}",
            revision=f"sha256:{file_digest(path)[:12]}",
        )
    if not on_hub and not timm_config(stated.name).has_weights:
        tags = timm.list_pretrained(f"{stated.name.partition('.')[0]}.*")
        raise UnknownModelError(
            f"timm has no weights {stated.name}: pass {', '.join(f'timm:{known}' for known in tags) or 'another model'}"
            f", or timm:{stated.name}@random."
        )
    try:
        with explained(f"The model {name}"):
            trunk = timm_module(architecture, stated.name, pretrained=True)
    except WeightsError as error:
        if "state_dict" in str(error.__cause__):
            raise CheckpointError(f"The weights of {name} do not fit timm's {architecture.model}.") from error
        raise
    state = {f"tower.trunk.{key}": value for key, value in trunk.state_dict().items()}
    label = name if on_hub else f"{TIMM}{architecture.model}"
    return Encoder.from_weights(state, architecture, preprocessing, name=label)


def _timm_file(path: Path, stated: _TimmModel) -> dict[str, Tensor]:
    """Read a file of timm's own names into ours; what depends on the size of images is resampled."""
    tensors = read_tensors(path)
    classifiers = stated.config.get("classifier") or ()
    for classifier in (classifiers,) if isinstance(classifiers, str) else classifiers:
        for parameter in ("weight", "bias"):
            tensors.pop(f"{classifier}.{parameter}", None)
    architecture = stated.architecture
    own_size = _timm_model(f"{TIMM}{stated.name}@{path}", None, True).architecture
    try:
        state = convert(tensors, "timm", own_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if expected_shapes(architecture) == expected_shapes(own_size):
        return state
    trunk = timm_module(
        architecture, stated.name, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors, "custom_load": False}
    )
    return {f"tower.trunk.{key}": value for key, value in trunk.state_dict().items()}


def _timm_hub_architecture(name: str, model: str, image_size: int | None) -> tuple[TimmArchitecture, dict[str, Any]]:
    """Read what the config.json of a repository says."""
    from timm.models import load_model_config_from_hf

    require_hub_id(model.removeprefix(_HUB))
    with explained(f"The config of {name}"):
        config, registered, arguments = load_model_config_from_hf(model.removeprefix(_HUB))
    check_timm_config(config, arguments or {}, f"The config of {name}")
    options = {**(arguments or {})}
    if config.get("global_pool") is not None:
        options.setdefault("global_pool", config["global_pool"])
    stated_size = options.pop("img_size", None)
    side = image_size or stated_size or _timm_data_config(config)["input_size"][-1]
    return timm_architecture(registered, image_size=side, options=options), config


def _timm_data_config(config: Mapping[str, Any]) -> dict[str, Any]:
    from timm.data import resolve_data_config

    resolved: dict[str, Any] = resolve_data_config({}, pretrained_cfg=dict(config))
    return resolved


def _timm_preprocessing(
    name: str, config: Mapping[str, Any], architecture: TimmArchitecture, *, squash: bool, random: bool
) -> Preprocessing:
    stated = _timm_data_config(config)
    if not random:  # random weights were trained with none
        _require_bicubic(name, stated["interpolation"])
    return timm_preprocessing(name, stated, architecture.image_size, squash=squash)


def timm_preprocessing(name: str, stated: Mapping[str, Any], size: int, *, squash: bool = False) -> Preprocessing:
    """Translate how timm prepares images (`timm.data.resolve_data_config`) for an encoder of this size.

    Raises:
        ValueError: An encoder cannot prepare images so.

    Example:
        >>> stated = {"crop_pct": 0.875, "crop_mode": "center", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        >>> timm_preprocessing("mine", stated, 224).resize
        256
    """
    resize, mode = math.floor(size / stated["crop_pct"]), stated["crop_mode"]
    if squash:
        resize, mode = size, "squash"
    if mode not in ("center", "squash") or (mode == "squash" and resize != size):
        raise ValueError(
            f"{name} prepares images by {mode!r} with a share of {stated['crop_pct']}, which the preprocessing of an "
            "encoder cannot express."
        )
    mean, std = (tuple(map(float, stated[key])) for key in ("mean", "std"))
    return Preprocessing(
        mode="squash" if mode == "squash" else "crop",
        resize=resize,
        crop=size,
        mean=mean,  # type: ignore[arg-type]
        std=std,  # type: ignore[arg-type]
    )


def _require_bicubic(name: str, interpolation: str) -> None:
    if interpolation != "bicubic":
        raise ValueError(f"{name} was trained on images resized by {interpolation}, and an encoder resizes by bicubic.")


def random_encoder(
    name: str, architecture: Architecture, preprocessing: Preprocessing, seed: int, mlp_hidden: int | None = None
) -> Encoder:
    """Build an encoder with the random weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Encoder(architecture, preprocessing, mlp_hidden=mlp_hidden, name=name, revision=f"seed {seed}")
