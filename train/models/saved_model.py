"""A TensorFlow SavedModel read without TensorFlow: its variables, and the lookup tables in its graph.

Variables are a table of names sorted in blocks, as LevelDB writes it (`variables.index`: the last 48 bytes lead to a
block of blocks, names share what they begin with, every block has a checksum), whose values are messages that say
where in `variables.data-00000-of-00001` the numbers of a variable are. The graph is messages all through. Everything
is bounded and checked; what is not known here is refused. No code of the model is run, and nothing is unpacked.
"""

from __future__ import annotations

import functools
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from rclip_metric.errors import CheckpointError
from rclip_metric.files import regular_file
from rclip_metric.weights.wire_format import (
    Fields,
    integer,
    integers,
    message,
    messages,
    read_fields,
    read_varint,
    text,
    texts,
)

INDEX, DATA = "variables/variables.index", "variables/variables.data-00000-of-00001"
GRAPH, LAYERS = "saved_model.pb", "keras_metadata.pb"
_MOST_BYTES, _MOST_MEMBERS, _MOST_ENTRIES = 64 << 20, 10_000, 100_000
_FOOTER, _TRAILER, _MAGIC = 48, 5, 0xDB4775248B80FB57
_FLOAT, _STRING, _INT64 = 1, 7, 9  # DataType
_KINDS = {_FLOAT: torch.float32, 2: torch.float64, 3: torch.int32, _INT64: torch.int64}


@dataclass(frozen=True)
class SavedModel:
    """What a SavedModel holds.

    Attributes:
        variables: Tensors by the names of the checkpoint, without `/.ATTRIBUTES/VARIABLE_VALUE`.
        others: Shapes of what is not read, which is texts and tables of the checkpoint.
        tables: Tables of the graph from texts to integers, in the order in which the model takes them.
        layers: The configurations of Keras' layers; None where they are not stored.
    """

    variables: dict[str, Tensor]
    others: dict[str, tuple[int, ...]]
    tables: list[dict[str, int]]
    layers: list[dict[str, Any]] | None


def read_saved_model(source: Path) -> SavedModel:
    """Read a SavedModel.

    Args:
        source: Its folder, or a zip file with one such folder.

    Raises:
        CheckpointError: It is damaged, cut off, too large, or of a kind that is not read here.

    Example:
        >>> read_saved_model(Path("no-such-model.zip"))
        Traceback (most recent call last):
            ...
        rclip_metric.errors.CheckpointError: There is no no-such-model.zip.
    """
    if not source.exists():
        raise CheckpointError(f"There is no {source}.")
    files = _folder(source) if source.is_dir() else _zip(source)
    for name in (INDEX, DATA, GRAPH):
        if name not in files:
            raise CheckpointError(f"{source} is no SavedModel of TensorFlow: it has no {name}.")
    variables, others = _read_variables(files[INDEX], files[DATA], f"{INDEX} in {source}")
    layers = _read_layers(files[LAYERS], f"{LAYERS} in {source}") if LAYERS in files else None
    return SavedModel(variables, others, _read_tables(files[GRAPH], f"{GRAPH} in {source}"), layers)


# Files


def _folder(source: Path) -> dict[str, memoryview]:
    found = {}
    for name in (INDEX, DATA, GRAPH, LAYERS):
        path = source / name
        if not path.is_file():
            continue
        _check_size(path.stat().st_size, f"{name} in {source}")
        found[name] = memoryview(regular_file(path).read_bytes())
    return found


def _zip(source: Path) -> dict[str, memoryview]:
    """Read what is needed of a zip into memory; nothing is written anywhere, and still no member may lead out."""
    found = {}
    try:
        with zipfile.ZipFile(regular_file(source)) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if len(members) > _MOST_MEMBERS:
                raise CheckpointError(f"{source} has {len(members)} members, and at most {_MOST_MEMBERS} are read.")
            for name in members:
                if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
                    raise CheckpointError(f"{source} is refused: its member {name!r} leads out of the folder.")
            models = [name.removesuffix(INDEX) for name in members if f"/{name}".endswith(f"/{INDEX}")]
            if len(models) != 1:
                raise CheckpointError(f"{source} holds {len(models)} SavedModels of TensorFlow, expected one.")
            for name in (INDEX, DATA, GRAPH, LAYERS):
                if (member := members.get(models[0] + name)) is not None:
                    _check_size(member.file_size, f"{name} in {source}")
                    with archive.open(member) as file:
                        found[name] = memoryview(file.read(member.file_size))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        if isinstance(error, CheckpointError):  # which is a RuntimeError
            raise
        raise CheckpointError(f"{source} is neither a folder nor a whole zip file: {error}.") from error
    return found


def _check_size(size: int, where: str) -> None:
    if size > _MOST_BYTES:
        raise CheckpointError(f"{where} has {size} bytes, and at most {_MOST_BYTES} are read.")


# Variables


def _read_variables(
    index: memoryview, data: memoryview, where: str
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    entries = _read_table(index, where)
    header = read_fields(entries.pop("", memoryview(b"")), where)
    if integer(header, 1, where) != 1 or integer(header, 2, where) != 0:
        raise CheckpointError(f"{where} is of several data files, or not little-endian, which is not read here.")
    variables, others = {}, {}
    for name, value in entries.items():
        fields = read_fields(value, f"{name} of {where}")
        kind, shape = integer(fields, 1, where), _shape(message(fields, 2, where), where)
        short = name.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
        if kind in _KINDS:
            variables[short] = _variable(fields, _KINDS[kind], shape, data, f"{name} of {where}")
        else:
            others[short] = shape
    return variables, others


def _variable(fields: Fields, kind: torch.dtype, shape: tuple[int, ...], data: memoryview, where: str) -> Tensor:
    if integer(fields, 3, where) != 0 or 7 in fields:
        raise CheckpointError(f"{where} is in another data file or in slices, which is not read here.")
    offset, size = integer(fields, 4, where), integer(fields, 5, where)
    expected = kind.itemsize
    for length in shape:
        expected *= length
    if size != expected:
        raise CheckpointError(f"{where} is damaged: it takes {size} bytes, and its shape {shape} makes {expected}.")
    if offset + size > len(data):
        raise CheckpointError(f"{where} is cut off: {DATA} has {len(data)} bytes, expected {offset + size} or more.")
    stored = data[offset : offset + size]
    _check(stored, message(fields, 6, where), where)
    return torch.frombuffer(bytearray(stored), dtype=kind).view(shape) if size else torch.empty(shape, dtype=kind)


def _shape(found: memoryview, where: str) -> tuple[int, ...]:
    fields = read_fields(found, where)
    if integer(fields, 3, where):
        raise CheckpointError(f"{where} has a variable of unknown shape.")
    return tuple(integer(read_fields(size, where), 1, where) for size in messages(fields, 2, where))


# The sorted table


def _read_table(table: memoryview, where: str) -> dict[str, memoryview]:
    """Read all entries of a table by their keys."""
    if len(table) < _FOOTER or int.from_bytes(table[-8:], "little") != _MAGIC:
        raise CheckpointError(f"{where} is damaged or cut off: it does not end as a table of TensorFlow does.")
    footer = table[-_FOOTER:]
    _, at = _handle(footer, 0, where)  # of metadata, which are empty
    place, _ = _handle(footer, at, where)
    found: dict[str, memoryview] = {}
    last = None
    for _, handle in _entries(_block(table, place, where), where):
        for key, value in _entries(_block(table, _handle(handle, 0, where)[0], where), where):
            if last is not None and key <= last:
                raise CheckpointError(f"{where} is damaged: its names are not in order.")
            last = key
            try:
                found[key.decode()] = value
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{where} is damaged: a name in it is no text.") from error
            if len(found) > _MOST_ENTRIES:
                raise CheckpointError(f"{where} has more than {_MOST_ENTRIES} entries.")
    return found


def _handle(data: memoryview, at: int, where: str) -> tuple[tuple[int, int], int]:
    """Read where a block is, its offset and size; return that and the place behind."""
    offset, at = read_varint(data, at, where)
    size, at = read_varint(data, at, where)
    return (offset, size), at


def _block(table: memoryview, place: tuple[int, int], where: str) -> memoryview:
    offset, size = place
    if offset + size + _TRAILER > len(table) - _FOOTER:
        raise CheckpointError(f"{where} is damaged or cut off: a block of it ends behind its end.")
    block = table[offset : offset + size + _TRAILER]
    _check(block[: size + 1], block[size + 1 :], where)
    if block[size]:
        raise CheckpointError(f"{where} is compressed (kind {block[size]}), which is not read here.")
    return block[:size]


def _entries(block: memoryview, where: str) -> Iterator[tuple[bytes, memoryview]]:
    """Yield keys and values of a block: of each key only what the one before does not begin with is stored."""
    count = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * count
    if len(block) < 8 or not count or end < 0:
        raise CheckpointError(f"{where} is damaged: a block of it has no beginning.")
    restarts = [int.from_bytes(block[place : place + 4], "little") for place in range(end, len(block) - 4, 4)]
    whole = set()  # where keys are stored in full
    key, at = b"", 0
    while at < end:
        start = at
        shared, at = read_varint(block[:end], at, where)
        own, at = read_varint(block[:end], at, where)
        length, at = read_varint(block[:end], at, where)
        if shared > len(key) or own + length > end - at:
            raise CheckpointError(f"{where} is damaged or cut off: an entry of it ends behind its block.")
        if not shared:
            whole.add(start)
        key = key[:shared] + bytes(block[at : at + own])
        yield key, block[at + own : at + own + length]
        at += own + length
    if end and not whole.issuperset(restarts):
        raise CheckpointError(f"{where} is damaged: a block of it begins again where no entry does.")


# Checksums


@functools.cache
def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli) of each byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


def masked_crc(data: bytes | memoryview) -> int:
    """Compute a CRC-32C as LevelDB and TensorFlow store it: turned by 15 bits, and a constant added.

    Example:
        >>> hex(masked_crc(b"123456789"))  # of 0xe3069283
        '0xc78ab0e5'
    """
    crc, table = 0xFFFFFFFF, _crc_table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _check(data: memoryview, stored: memoryview, where: str) -> None:
    if len(stored) != 4 or int.from_bytes(stored, "little") != masked_crc(data):
        raise CheckpointError(f"{where} is damaged: its checksum is another.")


# The graph


def _read_tables(data: memoryview, where: str) -> list[dict[str, int]]:
    """Read the tables that the served model takes after its input, with what the graph fills them.

    A table is a node without inputs; one node is given it with all texts and all integers, two constants, and the one
    that is given the model's input is given the tables, in the order of their columns.
    """
    models = messages(read_fields(data, where), 2, where)
    if len(models) != 1:
        raise CheckpointError(f"{where} holds {len(models)} graphs, expected one.")
    graph = message(read_fields(models[0], where), 2, where)
    inputs: dict[str, list[str]] = {}
    constants: dict[str, Fields] = {}
    for part in messages(read_fields(graph, where), 1, where):
        node = read_fields(part, where)
        name = text(node, 1, where)
        inputs[name] = texts(node, 3, where)
        if text(node, 2, where) == "Const":
            constants[name] = _constant(node, where)
    filled = {given[0]: given[1:] for given in inputs.values() if len(given) == 3 and set(given[1:]) <= set(constants)}
    served = [given for given in inputs.values() if given and given[0].startswith("serving_default_")]
    if len(served) != 1:
        raise CheckpointError(f"{where} serves {len(served)} models, expected one of one input.")
    pairs = [filled[table] for table in served[0][1:] if table in filled]
    return [_table(constants[keys], constants[values], where) for keys, values in pairs]


def _constant(node: Fields, where: str) -> Fields:
    """Return the tensor of a constant's attribute "value"."""
    for part in messages(node, 5, where):
        attribute = read_fields(part, where)
        if text(attribute, 1, where) == "value":
            value = read_fields(message(attribute, 2, where), where)
            return read_fields(message(value, 8, where), where)
    raise CheckpointError(f"{where} is damaged: it has a constant without a value.")


def _table(keys: Fields, values: Fields, where: str) -> dict[str, int]:
    names, numbers = texts(keys, 8, where), integers(values, 10, where)
    for content in messages(values, 4, where):
        numbers += [int.from_bytes(content[at : at + 8], "little", signed=True) for at in range(0, len(content), 8)]
    kinds = (integer(keys, 1, where), integer(values, 1, where))
    if kinds != (_STRING, _INT64) or len(names) != len(numbers) or len(set(names)) != len(names):
        raise CheckpointError(f"{where} has a lookup table that is not one of {len(names)} texts to integers.")
    return dict(zip(names, numbers, strict=True))


def _read_layers(data: memoryview, where: str) -> list[dict[str, Any]]:
    """Read the configurations of the layers of the model itself, in order."""
    for part in messages(read_fields(data, where), 1, where):
        node = read_fields(part, where)
        if text(node, 3, where) != "root":
            continue
        try:
            layers = json.loads(text(node, 5, where))["config"]["layers"]
            return [dict(layer) for layer in layers]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{where} is damaged: it does not list the model's layers.") from error
    raise CheckpointError(f"{where} describes no model.")
