"""Write SavedModels as TensorFlow does: tables in the format of LevelDB, messages with TensorBoard's copies."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto import graph_pb2, meta_graph_pb2, tensor_shape_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

Arrays = Mapping[str, np.ndarray]
KINDS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def varint(value: int) -> bytes:
    data = b""
    while value >= 0x80:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value) if value else b""  # a value of 0 is left out, as proto3 does


def content(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def block(entries: Sequence[tuple[bytes, bytes]], interval: int, kind: int = 0) -> bytes:
    """One block with its trailer: keys without what they share with the one before, in full every so many entries."""
    data, restarts, before = b"", [], b""
    for place, (key, value) in enumerate(entries):
        shared = 0
        if place % interval == 0:
            restarts.append(len(data))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        data += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    data += b"".join(place.to_bytes(4, "little") for place in (*restarts, len(restarts))) + bytes([kind])
    return data + masked_crc32c(data).to_bytes(4, "little")


def table(entries: Mapping[bytes, bytes], per_block: int = 6, interval: int = 4, kind: int = 0) -> bytes:
    """A whole table: blocks of entries, an empty block of metadata, a block of where the others are, the footer."""
    ordered, data, handles = sorted(entries.items()), b"", []
    for first in range(0, len(ordered), per_block):
        part = ordered[first : first + per_block]
        written = block(part, interval, kind)
        # LevelDB shortens the key that stands for a block; any between its last key and the next one's first will do.
        handles.append((part[-1][0], varint(len(data)) + varint(len(written) - 5)))
        data += written
    footer = b""
    for written in (block([], interval), block(handles, 1)):
        footer += varint(len(data)) + varint(len(written) - 5)
        data += written
    return data + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def bundle(arrays: Arrays, texts: Mapping[str, tuple[int, ...]] | None = None, **form: int) -> tuple[bytes, bytes]:
    """Index and data of variables; of texts only the shapes are written."""
    data, entries = b"", {b"": number(1, 1) + content(3, number(1, 1))}
    for name, array in sorted(arrays.items()):
        raw = array.tobytes()
        entries[name.encode()] = (
            number(1, KINDS[str(array.dtype)]) + content(2, shape(array.shape)) + number(4, len(data))
            + number(5, len(raw)) + varint(6 << 3 | 5) + masked_crc32c(raw).to_bytes(4, "little")
        )  # fmt: skip
        data += raw
    for name, sizes in (texts or {}).items():
        entries[name.encode()] = number(1, 7) + content(2, shape(sizes)) + number(4, len(data))
    return table(entries, **form), data


def shape(sizes: Sequence[int]) -> bytes:
    message = tensor_shape_pb2.TensorShapeProto(
        dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in sizes]
    )
    return bytes(message.SerializeToString())


def saved_graph(tables: Sequence[Mapping[str, int]]) -> bytes:
    """A graph that is served after tables are filled, with nothing of what it computes."""
    graph = graph_pb2.GraphDef()
    served = graph.node.add(name="Served", op="StatefulPartitionedCall", input=["serving_default_input_1"])
    for place, entries in enumerate(tables):
        graph.node.add(name=f"Table_{place}", op="StatefulPartitionedCall")
        keys = graph.node.add(name=f"Keys_{place}", op="Const").attr["value"].tensor
        keys.dtype, keys.string_val[:] = 7, [key.encode() for key in entries]
        ranks = graph.node.add(name=f"Ranks_{place}", op="Const").attr["value"].tensor
        ranks.dtype = 9
        if place % 2:
            ranks.int64_val[:] = entries.values()
        else:
            ranks.tensor_content = np.array([*entries.values()], dtype="<i8").tobytes()
        graph.node.add(name=f"Missing_{place}", op="Const").attr["value"].tensor.dtype = 9
        names = [f"Table_{place}", f"Keys_{place}", f"Ranks_{place}"]
        graph.node.add(name=f"Filled_{place}", op="StatefulPartitionedCall", input=names)
        served.input.extend([f"Table_{place}", f"Missing_{place}"])
    return number(1, 1) + content(2, meta_graph_pb2.MetaGraphDef(graph_def=graph).SerializeToString())


def keras_layers(layers: Sequence[Mapping[str, object]]) -> bytes:
    text = json.dumps({"class_name": "Functional", "config": {"layers": layers}}).encode()
    return content(1, number(2, 1) + content(3, b"root.layer-0")) + content(1, content(3, b"root") + content(5, text))


def write(folder: Path, index: bytes, data: bytes, graph: bytes, layers: bytes | None = None) -> Path:
    """Lay the files out as a SavedModel."""
    (folder / "variables").mkdir(parents=True)
    (folder / "variables" / "variables.index").write_bytes(index)
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(data)
    (folder / "saved_model.pb").write_bytes(graph)
    if layers is not None:
        (folder / "keras_metadata.pb").write_bytes(layers)
    return folder


def zipped(folder: Path) -> Path:
    """Zip a folder, under its own name and with entries for the folders, as LAION does."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted([folder, *folder.rglob("*")]):
            archive.write(file, file.relative_to(folder.parent))
    return path
