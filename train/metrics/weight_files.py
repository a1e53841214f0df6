"""Where the weights of other metrics lie once converted: one safetensors file each, with its settings inside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.train.runs import tensor_file
from rclip_metric.weights import file_digest

FOLDER_VARIABLE = "RCLIP_METRIC_BASELINES"
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
    """What `convert` of a family makes of published files: tensors, settings (JSON), and the files that were read."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    files: list[Path]


@dataclass(frozen=True)
class Stored:
    """What a converted file holds; ``revision`` is ``sha256:`` and 12 digits of the file's own digest."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    revision: str


def weights_folder() -> Path:
    """Where converted files are: $RCLIP_METRIC_BASELINES, else rclip-metric/baselines in the user's cache."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "rclip-metric" / "baselines"


def weights_path(name: str, request: Request) -> Path:
    """The converted file of a metric.

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
        StorageError: the disk is full or the folder cannot be written.
    """
    sources = {file.name: file_digest(file) for file in converted.files if file.is_file()}
    metadata = {
        "format": _FORMAT,
        "baseline": name,
        "config": json.dumps(dict(converted.config)),
        "sources": json.dumps(sources),
    }
    tensor_file.write(path, {"tensors": dict(converted.tensors)}, metadata)


def read_stored(name: str, path: Path) -> Stored:
    """Read a converted file.

    Raises:
        CheckpointError: it is damaged, no converted baseline, or one of another name.
    """
    values, metadata = tensor_file.read(path)
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is no converted metric: make it with rclip-metric train baseline {name} FILE")
    if metadata.get("baseline") != name:
        raise CheckpointError(f"{path} holds {metadata.get('baseline')}, and {name} was asked for: pass its own file")
    return Stored(values["tensors"], json.loads(metadata["config"]), f"sha256:{file_digest(path)[:12]}")
