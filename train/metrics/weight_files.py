"""Where the weights of other metrics lie once converted: one safetensors file each, with its settings inside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.json_files import OBJECT, Checker, parse_json
from rclip_metric.train.runs import tensor_file
from rclip_metric.weights import file_digest

FOLDER_VARIABLE = "RCLIP_METRIC_BASELINES"
METRIC_FILE = "metric.safetensors"  # what a run that trains such a metric leaves in its folder
_FORMAT = "rclip-metric-baseline 1"


@dataclass(frozen=True)
class Request:
    """How a baseline is to be built.

    Attributes:
        device: cpu, cuda, cuda:1, ...
        image_size: side of the square that images are squashed to, in pixels; for metrics that leave it open.
        weights: the converted file; None for its place in `weights_folder`.
        random: seeded random weights instead of a file, for tests and for what a metric costs.
        published: where its published file is from, in words, for who has not got it.
    """

    device: str = "cpu"
    image_size: int = 224
    weights: Path | None = None
    random: bool = False
    published: str | None = None


@dataclass(frozen=True)
class Converted:
    """What `convert` of a family makes of published files: tensors, settings (JSON), and the files that were read.

    Example:
        >>> import torch
        >>> Converted({"weight": torch.zeros(3)}, {"version": "0.1"}, [Path("published.pth")]).config
        {'version': '0.1'}
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    files: list[Path]


@dataclass(frozen=True)
class Stored:
    """What a converted file holds.

    Attributes:
        name: of the metric, as the file says it.
        tensors: its weights.
        config: its settings.
        revision: `sha256:` and 12 digits of the file's own digest.
        path: the file.
    """

    name: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    revision: str
    path: Path


def weights_folder() -> Path:
    """Find the folder of converted files: $RCLIP_METRIC_BASELINES, else rclip-metric/baselines in the user's cache.

    Example:
        >>> FOLDER_VARIABLE in os.environ or weights_folder().parts[-2:] == ("rclip-metric", "baselines")
        True
    """
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "rclip-metric" / "baselines"


def weights_path(name: str, request: Request) -> Path:
    """Find the converted file of a metric.

    Raises:
        UnknownModelError: it is not there; one sentence says where to get it and which command converts it.
    """
    path = request.weights or weights_folder() / f"{name}.safetensors"
    if not path.is_file():
        raise UnknownModelError(
            f"{name} needs its published weights, and {path} is not there: get {request.published}, then run: "
            f"rclip-metric train baseline {name} FILE"
        )
    return path


def write_stored(name: str, converted: Converted, path: Path) -> None:
    """Write a converted file, as a whole or not at all.

    Raises:
        CheckpointError: a weight is NaN or infinite.
        StorageError: the disk is full or the folder cannot be written.

    Example:
        >>> import tempfile, torch
        >>> converted = Converted({"weight": torch.arange(3.0)}, {"version": "0.1"}, files=[])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_stored("r-lpips", converted, Path(folder, "r-lpips.safetensors"))
        ...     stored = read_stored("r-lpips", Path(folder, "r-lpips.safetensors"))
        >>> stored.config, stored.tensors["weight"]
        ({'version': '0.1'}, tensor([0., 1., 2.]))
    """
    for key, tensor in converted.tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name}: {key} holds values that are NaN or infinite: download its file again.")
    sources = {file.name: file_digest(file) for file in converted.files if file.is_file()}
    metadata = {
        "format": _FORMAT,
        "baseline": name,
        "config": json.dumps(dict(converted.config)),
        "sources": json.dumps(sources),
    }
    tensor_file.write(path, {"tensors": dict(converted.tensors)}, metadata)


def read_stored(name: str | None, path: Path) -> Stored:
    """Read a converted file; with None, of whatever metric.

    Raises:
        CheckpointError: it is damaged, no converted baseline, or one of another name.
    """
    values, metadata = tensor_file.read(path)
    if metadata.get("format") != _FORMAT:
        which = name or "NAME"
        raise CheckpointError(f"{path} is no converted metric: make it with rclip-metric train baseline {which} FILE")
    held = metadata.get("baseline", "")
    if name not in (None, held):
        raise CheckpointError(f"{path} holds {held}, and {name} was asked for: pass its own file")
    where = f"The metadata of {path}"
    config = Checker(where).matches("config", parse_json(metadata.get("config", ""), where), OBJECT)
    return Stored(held, values["tensors"], config, f"sha256:{file_digest(path)[:12]}", path)


def find_stored(path: Path, names: Iterable[str]) -> Path | None:
    """Find a metric's file by its header: the path itself, or one of `names` in that folder; None where there is none.

    Raises:
        CheckpointError: a file of such a name cannot be read.

    Example:
        >>> find_stored(Path("nowhere"), [METRIC_FILE]) is None
        True
    """
    names = list(names)
    for candidate in (path / name for name in names) if path.is_dir() else (path,):
        if candidate.suffix != ".safetensors" or not candidate.is_file():
            continue
        try:
            with safe_open(candidate, framework="pt") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError):
            if candidate.name not in names:
                return None  # whoever else reads files of this kind says what is wrong with it
            raise CheckpointError(f"{candidate} is damaged: train it again, or copy it anew.") from None
        if metadata.get("format") == _FORMAT:
            return candidate
    return None


def stored_family(path: Path) -> tuple[str, str | None]:
    """Read a file's metric and its family, the module of `rclip_metric.train.metrics` that builds it, from its header.

    The family is None where the file leaves it to the metric's name, as converted files do.

    Raises:
        CheckpointError: its settings are damaged.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    where = f"The metadata of {path}"
    config = Checker(where).matches("config", parse_json(metadata.get("config", ""), where), OBJECT)
    return metadata.get("baseline", ""), config.get("family")
