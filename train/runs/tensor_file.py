"""Nested dicts of tensors and plain values in one safetensors file, which is written whole or not at all."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rclip_metric.errors import CheckpointError
from rclip_metric.files import regular_file, remove_unfinished, written_whole
from rclip_metric.json_files import parse_json
from rclip_metric.train.runs.files import storing

# Keys of the metadata; the checksum of the rest of it is missing in files of earlier versions.
_STRUCTURE, _CHECKSUM, _ABOUT = "structure", "crc32", "crc32_of_the_rest"


def write(path: Path, values: Mapping[str, Any], metadata: Mapping[str, str], what: str | None = None) -> None:
    """Write a file that is on the disk, under its name, as a whole when this returns.

    What an earlier process left there when it was killed is removed.

    Args:
        path: its folder is made if it does not exist.
        values: dicts, lists and tuples of tensors, numbers, texts, booleans and None; a tensor at
            `values["model"]["conv.weight"]` gets the name `model.conv.weight`. Tensors come from any device, and
            may share memory.
        metadata: more texts to go with them.
        what: is written, as the subject of a sentence; the file's name by default.

    Raises:
        ValueError: for values of any other kind, with their place.
        StorageError: the disk is full or the folder cannot be written; nothing is left behind.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "values.safetensors")
        ...     write(path, {"mean": torch.ones(3), "count": 5}, {"seed": "0"})
        ...     read(path)
        ({'mean': tensor([1., 1., 1.]), 'count': 5}, {'seed': '0'})
    """
    tensors, structure = _taken_apart(values)
    about = {**metadata, _STRUCTURE: json.dumps(structure), _CHECKSUM: _checksum(tensors)}
    about[_ABOUT] = _checksum_of_texts(about)
    with storing(what or path.name, path.parent, sum(tensor.nbytes for tensor in tensors.values())):
        remove_unfinished(path)
        with written_whole(path, flush=True) as partial:
            save_file(tensors, partial, about)


def _taken_apart(values: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """Part tensors, under the path of their keys and with memory of their own, from JSON that says where they go."""
    tensors: dict[str, Tensor] = {}
    owners: set[int] = set()

    def taken(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            kept = value.detach().cpu().contiguous()
            memory = kept.untyped_storage()
            if memory.data_ptr() in owners or memory.nbytes() != kept.nbytes:
                kept = kept.clone()
            owners.add(kept.untyped_storage().data_ptr())
            while name in tensors:  # as the keys 1 and "1" would have it
                name += "'"
            tensors[name] = kept
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[plain(key, name), taken(item, f"{name}.{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [taken(item, f"{name}.{place}") for place, item in enumerate(value)]}
        return plain(value, name)

    def plain(value: Any, name: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ValueError(f"a state holds tensors and plain values, and {name} is a {type(value).__name__}")

    structure = {"dict": [[key, taken(value, key)] for key, value in values.items()]}
    return tensors, structure


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the values of a file, with tensors on the CPU in memory of their own, and its metadata.

    Raises:
        CheckpointError: if it is damaged: truncated, overwritten, or other bytes than were written.
    """
    try:
        with safe_open(regular_file(path), framework="pt") as handle:
            metadata = dict(handle.metadata() or {})
            # Copied out of the mapped file, which may be removed while the tensors live.
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise CheckpointError(f"{path} cannot be read: {reason.rstrip('.')}.") from error
    if _CHECKSUM not in metadata or _STRUCTURE not in metadata:
        raise CheckpointError(f"{path} is not a file that this version of rclip-metric wrote.")
    rest = metadata.pop(_ABOUT, None)
    whole = rest is None or rest == _checksum_of_texts(metadata)
    if metadata.pop(_CHECKSUM) != _checksum(tensors) or not whole:
        raise CheckpointError(f"{path} is damaged: its bytes are not those that were written.")
    structure = parse_json(metadata.pop(_STRUCTURE), f"The structure of {path}", finite=False)
    try:
        values = _put_together(structure, tensors)
        if not isinstance(values, dict):
            raise ValueError(structure)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its parts cannot be put together.") from error
    return values, metadata


def _put_together(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(structure, dict):
        return structure
    ((kind, held),) = structure.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {key: _put_together(item, tensors) for key, item in held}
    return {"list": list, "tuple": tuple}[kind](_put_together(item, tensors) for item in held)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Compute the CRC-32 of all bytes, by name: 2 GB/s, and enough to notice a page that never reached the disk."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _checksum_of_texts(metadata: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode()):08x}"
