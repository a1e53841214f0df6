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
from rclip_metric.json_files import OBJECT, Checker, parse_json
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
    """What a converted file holds; `revision` is `sha256:` and 12 digits of the file's own digest."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    revision: str


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
    where = f"The metadata of {path}"
    config = Checker(where).matches("config", parse_json(metadata.get("config", ""), where), OBJECT)
    return Stored(values["tensors"], config, f"sha256:{file_digest(path)[:12]}")
