"""Nested dicts of tensors and plain values in one safetensors file, which is written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rclip_metric.errors import CheckpointError

_STRUCTURE, _CHECKSUM = "structure", "crc32"  # keys of the metadata


@dataclass(frozen=True)
class Packed:
    """Values on their way into a file: ``tensors`` under the path of their keys, and JSON that says where they go."""

    tensors: dict[str, Tensor]
    structure: Any

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def pack(values: Mapping[str, Any]) -> Packed:
    """Take values apart; tensors come to the CPU, and each gets memory of its own if it shares some.

    Args:
        values: dicts, lists and tuples of tensors, numbers, texts, booleans and None; a tensor at
            ``values["model"]["conv.weight"]`` gets the name ``model.conv.weight``.

    Raises:
        ValueError: for anything else, with its place.
    """
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
    return Packed(tensors, structure)


def _unpacked(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(structure, dict):
        return structure
    ((kind, held),) = structure.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {key: _unpacked(item, tensors) for key, item in held}
    items = [_unpacked(item, tensors) for item in held]
    return items if kind == "list" else tuple(items)


def write(path: Path, packed: Packed, metadata: Mapping[str, str]) -> None:
    """Write a file that is on the disk, under its name, as a whole when this returns.

    It is made in a hidden folder beside its place (safetensors may use further names on its way), flushed, and renamed.
    What an earlier process left there when it was killed is removed.

    Raises:
        OSError: or SafetensorError, as the disk and safetensors have it; nothing is left behind.
    """
    about = {**metadata, _STRUCTURE: json.dumps(packed.structure), _CHECKSUM: _checksum(packed.tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = path.with_name(f".{path.name}.partial")
    shutil.rmtree(workshop, ignore_errors=True)
    try:
        workshop.mkdir()
        save_file(packed.tensors, workshop / path.name, about)
        # safetensors hides its files from everybody else; these are as readable as any new file of this user.
        (workshop / "plain").touch()
        os.chmod(workshop / path.name, (workshop / "plain").stat().st_mode & 0o777)
        _flush(workshop / path.name)
        os.replace(workshop / path.name, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)  # if this fails too, the first error is the one to tell


def _flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise  # some network file systems have nothing to flush for a folder
    finally:
        os.close(handle)


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a file, with tensors on the CPU in memory of their own, and its metadata.

    Raises:
        CheckpointError: if it is damaged: truncated, overwritten, or other bytes than were written.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = dict(handle.metadata() or {})
            # Copied out of the mapped file, which may be removed while the tensors live.
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise CheckpointError(f"{path} cannot be read: {reason.rstrip('.')}.") from error
    if _CHECKSUM not in metadata or _STRUCTURE not in metadata:
        raise CheckpointError(f"{path} is not a file that this version of rclip-metric wrote.")
    if metadata.pop(_CHECKSUM) != _checksum(tensors):
        raise CheckpointError(f"{path} is damaged: its bytes are not those that were written.")
    return _unpacked(json.loads(metadata.pop(_STRUCTURE)), tensors), metadata


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of all bytes, by name: 2 GB/s, and enough to notice a page that never reached the disk."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
