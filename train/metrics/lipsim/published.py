"""LipSim's published files: the tensors of the network, with the constraint folded in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.encoder import key_report
from rclip_metric.errors import CheckpointError
from rclip_metric.train.metrics.lipsim import sll
from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture
from rclip_metric.train.metrics.weight_files import Converted
from rclip_metric.train.runs.seeds import temporary_seed
from rclip_metric.weights import read_pickle


def convert(
    name: str, source: Path, *, backbone: str | None = None, architecture: LipSimArchitecture | None = None
) -> Converted:
    """Read a published checkpoint, {"model_state_dict": ...}, and fold the constraint into its weights.

    Its module holds every layer twice, as base.1 and convs and as base.2 and linear: both, or either, may be there.

    Args:
        name: as for `build`.
        source: the .pth file.
        backbone: for other metrics; must be None.
        architecture: the sizes that it must have (default: as published).

    Raises:
        CheckpointError: it cannot be read, or holds something else: names the keys, or the tensor.

    Example:
        >>> import tempfile
        >>> small = LipSimArchitecture(image_size=16, channels=4, depth=1, linear_depth=1, linear_inner=8, embedding=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model_state_dict": random_tensors(small)}, Path(folder, "small.pth"))
        ...     converted = convert("lipsim-0.5", Path(folder, "small.pth"), architecture=small)
        >>> converted.tensors["weights"].shape
        torch.Size([1, 8, 4])
    """
    if backbone is not None:
        raise CheckpointError(f"{name} has no backbone of its own: leave the backbone {backbone!r} out.")
    architecture = architecture or LipSimArchitecture()
    content = read_pickle(source)
    if isinstance(content, Mapping) and isinstance(content.get("model_state_dict"), Mapping):
        content = content["model_state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{source} is not a checkpoint of LipSim: it holds no model_state_dict.")
    try:
        tensors = _named(content)
        check(tensors, architecture.published_shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{source} is not {name}: {error}") from error
    return Converted(folded(architecture, tensors), {"architecture": asdict(architecture)}, [source])


# The module that holds all layers, and the two others that share them with it.
_LAYER = re.compile(r"(?:(?:module|model)\.)*(base\.1|convs|base\.2|linear)\.(\d+\.(?:kernel|weight|bias|q))")
_SHARED = {"convs": "base.1", "linear": "base.2"}


def _named(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the tensors of a state dict the names of `LipSimArchitecture.published_shapes`."""
    tensors: dict[str, Tensor] = {}
    unexpected = []
    for key, tensor in state.items():
        if "alpha" in key:  # of an earlier version of the module; the authors' loader drops them too
            continue
        match = _LAYER.fullmatch(key)
        if match is None or not isinstance(tensor, Tensor):
            unexpected.append(key)
            continue
        short = f"{_SHARED.get(match[1], match[1])}.{match[2]}"
        if short in tensors and not torch.equal(tensors[short], tensor):
            raise CheckpointError(f"the tensor {key} is there twice, with different values.")
        tensors[short] = tensor
    if unexpected:
        raise CheckpointError(f"{key_report([], unexpected)}.")
    return tensors


def check(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the tensors have exactly these names and shapes, and finite numbers."""
    missing = [key for key in shapes if key not in tensors]
    unexpected = [key for key in tensors if key not in shapes]
    if missing or unexpected:
        raise CheckpointError(f"{key_report(missing, unexpected)}.")
    for key, shape in shapes.items():
        if tuple(tensors[key].shape) != shape:
            raise CheckpointError(f"the shape of {key} is {tuple(tensors[key].shape)}, expected {shape}.")
        if not (tensors[key].is_floating_point() and bool(tensors[key].isfinite().all())):
            raise CheckpointError(f"the tensor {key} is not all finite floating point numbers.")


def folded(architecture: LipSimArchitecture, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold the constraint in: the tensors of `LipSimArchitecture.shapes` from those of `published_shapes`.

    Example:
        >>> small = LipSimArchitecture(image_size=16, channels=4, depth=1, linear_depth=1, linear_inner=8, embedding=4)
        >>> {key: tuple(tensor.shape) for key, tensor in folded(small, random_tensors(small)).items()} == small.shapes
        True
    """
    result = {key: torch.empty(shape) for key, shape in architecture.shapes.items()}
    for index in range(architecture.depth):
        kernel, bias = (published[f"base.1.{index}.{part}"] for part in ("kernel", "bias"))
        result["kernels"][index], result["kernel_biases"][index] = sll.folded_kernel(kernel, bias.flatten())
    for index in range(architecture.linear_depth):
        weight, bias, q = (published[f"base.2.{index + 1}.{part}"] for part in ("weight", "bias", "q"))
        result["weights"][index], result["weight_biases"][index] = sll.folded_weight(weight, bias.flatten(), q)
    return result


def random_tensors(architecture: LipSimArchitecture, seed: int = 0) -> dict[str, Tensor]:
    """Draw the tensors of `LipSimArchitecture.published_shapes` as an untrained network of the authors has them.

    Example:
        >>> small = LipSimArchitecture(image_size=16, channels=4, depth=1, linear_depth=1, linear_inner=8, embedding=4)
        >>> torch.equal(random_tensors(small)["base.2.1.q"], random_tensors(small, seed=0)["base.2.1.q"])
        True
    """
    tensors: dict[str, Tensor] = {}
    with temporary_seed(seed):
        for key, shape in architecture.published_shapes.items():
            if key.endswith(".q"):
                tensors[key] = torch.randn(shape)
            elif key.endswith(".bias"):
                inputs = 9 * architecture.channels if key.startswith("base.1.") else architecture.features
                tensors[key] = (2 * torch.rand(shape) - 1) / math.sqrt(inputs)
            else:
                tensors[key] = nn.init.xavier_normal_(torch.empty(shape))
    return tensors
