"""The state of a training run on disk: tensors as safetensors, everything else as JSON, written atomically."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.errors import CheckpointError, StorageError
from rclip_metric.json_files import OBJECT, Checker, parse_json
from rclip_metric.train.runs import tensor_file
from rclip_metric.train.runs.files import state_path, states, step_of, storing

VERSION = 2  # of the files written here; 1 had no checksum and kept the optimiser's tensors alone

# How an optimiser computes and not what: these follow the machine that goes on, not the one that stopped.
_MACHINE = ("params", "foreach", "fused", "capturable", "differentiable")


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands.

    Attributes:
        step: this many steps are done.
        config: the recipe, as JSON holds it.
        parts: "model" and "optimizer" as their `state_dict` gave them, and whatever else was saved beside them: nested
            dicts, lists and tuples of CPU tensors and plain values.
        facts: what the run wanted to remember, as JSON holds it: the position in the data, seconds so far.
        path: the file it was read from.

    Example:
        >>> TrainingState(step=100, config={"seed": 0}, parts={}).facts
        {}
    """

    step: int
    config: dict[str, Any]
    parts: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    path: Path = Path()


def write_state(
    path: Path,
    step: int,
    config: Any,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any] | None = None,
    **extra: Any,
) -> None:
    """Write everything that a restart needs after `step` steps to one file, over the state that was there.

    The file is written under another name, flushed to the disk and renamed. Whatever happens meanwhile, the last good
    state stays.

    Args:
        path: its folder is made if it does not exist.
        step: steps that are done.
        config: a dataclass or mapping: what a state must agree in to be continued.
        model: without DDP's or torch.compile's wrapper.
        optimizer: any of torch.optim.
        facts: what JSON holds: the position in the data, how the run was started.
        extra: more to restore: tensors and plain values, in dicts, lists and tuples (`scaler=scaler.state_dict()`,
            `dual=dual.state_dict()`).

    Raises:
        StorageError: the disk is full or the folder cannot be written; it names the state that is still good.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_state(Path(folder, "state.safetensors"), 7, {"seed": 0}, model=model, optimizer=optimizer)
        ...     read_state(Path(folder, "state.safetensors")).step
        7
    """
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **extra}
    metadata = {
        "version": str(VERSION),
        "step": str(step),
        "config": json.dumps(_plain(config)),
        "facts": json.dumps(dict(facts or {})),
    }
    tensor_file.write(path, parts, metadata, what=f"the state after step {step}")


def save_state(folder: Path, step: int, config: Any, *, keep: int = 2, **state: Any) -> Path:
    """Write `folder/state-STEP.safetensors` with `write_state`, and only then remove older ones.

    Args:
        folder: of the run.
        step: steps that are done.
        config: as for `write_state`.
        keep: states to keep, this one included; 0 for all. States of later steps do not count and stay.
        state: model, optimizer and the rest, as for `write_state`.

    Returns:
        The file.

    Raises:
        StorageError: the disk is full or the folder cannot be written; it names the state that is still good.
        ValueError: if `keep` is negative.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in (1, 2, 3):
        ...         path = save_state(Path(folder), step, {"seed": 0}, keep=2, model=model, optimizer=optimizer)
        ...     [path.name for path in states(Path(folder))]
        ['state-00000002.safetensors', 'state-00000003.safetensors']
    """
    if keep < 0:
        raise ValueError(f"--keep must be 0 (all states) or more, and it is {keep}")
    path = state_path(folder, step)
    write_state(path, step, config, **state)
    older = [other for other in states(folder) if step_of(other) <= step]
    with storing(f"the states before {path.name}, which are not needed any more,", folder, doing="removed from"):
        for other in older[:-keep] if keep else []:
            other.unlink(missing_ok=True)
    return path


def latest_state(
    folder: Path, config: Any = None, *, report: Callable[[str], None] | None = None
) -> TrainingState | None:
    """Read the newest state in a folder that is whole; None where there is none.

    Args:
        folder: of the run.
        config: what the state must have been written with; None for anything.
        report: gets one sentence per state that is damaged and passed over; by default they become warnings.

    Raises:
        ValueError: if the state was written with another config (it names the fields) or by a newer version, or if
            there are states and all are damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(latest_state(Path(folder)))
        None
    """
    damaged = []
    for path in reversed(states(folder)):
        try:
            state = read_state(path, config)
        except CheckpointError as error:
            damaged.append(f"{error} The state before it is used.")
            continue
        for sentence in damaged:
            if report is None:
                warnings.warn(sentence, RuntimeWarning, stacklevel=2)
            else:
                report(sentence)
        return state
    if damaged:
        raise ValueError(
            f"none of the states in {folder} can be read (files: {len(damaged)}): remove them to begin anew, or choose "
            f"another output folder; of the newest: {damaged[0].removesuffix(' The state before it is used.')}"
        )
    return None


def read_state(path: Path, config: Any = None) -> TrainingState:
    """Read one file of `write_state`.

    Args:
        path: the file.
        config: what the state must have been written with; None for anything.

    Raises:
        CheckpointError: if it is damaged, or no such file.
        ValueError: if a newer version wrote it, or it was written with another config (it names the fields).

    Example:
        >>> read_state(Path("nowhere.safetensors"))
        Traceback (most recent call last):
        rclip_metric.errors.CheckpointError: nowhere.safetensors cannot be read: No such file or directory...
    """
    parts, metadata = tensor_file.read(path)
    try:
        version, step = int(metadata["version"]), int(metadata["step"])
        check = Checker(str(path))
        stored, facts = (
            check.matches(part, parse_json(metadata[part], f"The {part} of {path}", finite=False), OBJECT)
            for part in ("config", "facts")
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not the state of a training run.") from error
    if version > VERSION:
        raise ValueError(
            f"{path} has version {version} of the format, and this rclip-metric reads {VERSION}: update it"
        )
    if config is not None:
        _check_config(path, stored, _plain(config))
    return TrainingState(step, stored, parts, facts, path)


def _plain(config: Any) -> dict[str, Any]:
    """Turn a config into what JSON gives back."""
    values = dict(config) if isinstance(config, Mapping) else dataclasses.asdict(config)
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _check_config(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    absent = object()
    differing = [name for name in sorted({*stored, *wanted}) if stored.get(name, absent) != wanted.get(name, absent)]
    if differing:
        told = ", ".join(f"{name} ({stored.get(name)!r}, and now {wanted.get(name)!r})" for name in differing)
        raise ValueError(
            f"{path} was written with another setting of {told}: continue with the same settings, or choose "
            "another output folder"
        )


def restore_training(state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a state back into a model and its optimiser, strictly: what follows is what would have followed.

    The learning rate and the other numbers of the optimiser's groups come back as well; whether it is fused, and on
    which device, stays as it is now. The state's tensors become the optimiser's: restore from one state once.

    Raises:
        ValueError: if the state is of another model or of another kind of optimiser.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> weights = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
        >>> state = TrainingState(5, {}, {"model": weights, "optimizer": optimizer.state_dict()})
        >>> restore_training(state, model, optimizer)
        >>> model(torch.tensor([[1.0, 2.0]])).item()
        3.0
    """
    try:
        model.load_state_dict(state.parts["model"], strict=True)
        stored, live = state.parts["optimizer"], optimizer.state_dict()["param_groups"]
        sizes = [[len(group["params"]) for group in groups] for groups in (stored["param_groups"], live)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"its optimiser has groups of {sizes[0]} parameters, and the run's groups of {sizes[1]}")
        groups = [
            {**now, **{name: value for name, value in then.items() if name not in _MACHINE}}
            for now, then in zip(live, stored["param_groups"], strict=True)
        ]
        optimizer.load_state_dict({"state": stored["state"], "param_groups": groups})
    except (RuntimeError, ValueError) as error:
        lines = " ".join(str(error).split())
        raise ValueError(f"{state.path} does not fit this run: {lines}") from error
    # The file has no memory formats: a channels_last parameter gets slots like it back, or its updates turn slow.
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                slots[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def save_batch(folder: Path, step: int, images: Tensor, *, rank: int = 0, **tensors: Tensor) -> str:
    """Keep a batch whose loss was not finite in `folder/failed-step-N.safetensors`, and say so in a sentence.

    Args:
        folder: of the run.
        step: the step that failed, counted from 1.
        images: (B, 3, S, S).
        rank: of the process; the others than the first put it into the name.
        tensors: more to look at, by name: the attacked images, embeddings, the loss per image.

    Returns:
        Where the batch is and what is in it, or why it could not be kept: this must not hide the failure itself.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(save_batch(Path(folder), 3, torch.zeros(2, 3, 8, 8)))
        the batch of step 3 is in ...failed-step-3.safetensors for inspection (images (2, 3, 8, 8))
    """
    path = folder / f"failed-step-{step}{f'-rank-{rank}' if rank else ''}.safetensors"
    values = {"images": images, **tensors}
    try:
        tensor_file.write(path, values, {"step": str(step)}, what=f"the batch of step {step}")
    except StorageError as error:
        return str(error).rstrip(".")
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in values.items())
    return f"the batch of step {step} is in {path} for inspection ({shapes})"
