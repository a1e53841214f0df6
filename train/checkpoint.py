"""The state of a training run on disk: tensors as safetensors, everything else as JSON, written atomically."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands: ``step`` steps are done; ``tensors`` holds ``model.*`` and ``optimizer.N.*``."""

    step: int
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write JSON so that a reader sees either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, path)


def provenance(
    method: str, data: str, norm: str | None = None, eps: str | None = None, base: str | None = None
) -> dict[str, str | None]:
    """The ``training`` record of a saved encoder, in the manifest's fields."""
    return {"method": method, "norm": norm, "eps": eps, "data": data, "base": base}


def save_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, config: Any) -> None:
    """Write the state of a run after ``step`` steps into one safetensors file (its metadata holds the JSON).

    One file, renamed into place: a crash while writing leaves the last good checkpoint.
    """
    tensors = {f"model.{name}": value.detach().contiguous() for name, value in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            tensors[f"optimizer.{index}.{slot}"] = torch.as_tensor(value).detach().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, {"step": str(step), "config": json.dumps(asdict(config))})
    os.replace(partial, path)


def load_training(path: Path, config: Any) -> TrainingState | None:
    """Read a state, or None when there is none.

    Raises:
        ValueError: if the state was written under another config, with the fields that differ.
    """
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    stored, wanted = json.loads(metadata["config"]), json.loads(json.dumps(asdict(config)))
    differing = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    if differing:
        raise ValueError(
            f"{path} was written with another setting of {', '.join(differing)}: "
            "continue with the same settings, or choose another output folder"
        )
    return TrainingState(int(metadata["step"]), stored, tensors)


def restore_training(state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a state back into a model and its optimiser, strictly."""
    weights = {name[6:]: value for name, value in state.tensors.items() if name.startswith("model.")}
    model.load_state_dict(weights, strict=True)
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            slots.setdefault(int(index), {})[slot] = value
    whole = optimizer.state_dict()
    whole["state"] = slots
    optimizer.load_state_dict(whole)
