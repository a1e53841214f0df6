"""Pickles of strangers that hold lists, dicts, texts, numbers and numpy arrays: read without running anything in them.

A pickle is a program. Here its steps are looked through first; then what it may call are stand-ins of ours, which keep
an array's bytes, shape and type, and numpy sees those only once they fit each other. No name that a pickle gives is
looked up anywhere else.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from rclip_metric.files import regular_file
from rclip_metric.json_files import shown

MOST_BYTES = 16 << 20
MOST_LEVELS = 32
_KINDS = "biufUS"  # truth, integers, floats, texts: nothing that refers to objects

# Steps that build plain values, or call what `_STAND_INS` has; not those that make objects of classes in other ways.
_STEPS = frozenset([
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1",
    "BININT2", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "NONE", "NEWTRUE",
    "NEWFALSE", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT",
    "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
])  # fmt: skip


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of lists, tuples, dicts, texts, numbers, None and numpy arrays of numbers or texts.

    Args:
        path: of any protocol, written by Python 2 or 3 and any numpy.

    Returns:
        The value, with arrays as `np.ndarray`.

    Raises:
        ValueError: if it asks for anything else (of which nothing is run), is cut off or damaged, or has more than
            16 MB.
        OSError: if it cannot be opened.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "gnd.pkl")
        ...     _ = path.write_bytes(pickle.dumps({"easy": np.array([1, 2])}))
        ...     read_plain_pickle(path)
        {'easy': array([1, 2])}
    """
    with regular_file(path).open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES >> 20} MB, the most that is read of a pickle")
    try:
        _look_through(data)
        return _plain(_Reader(BytesIO(data), encoding="latin1").load(), {}, MOST_LEVELS)
    except _Refused as error:
        raise ValueError(
            f"{path} {error}, expected lists, dicts, texts, numbers and numpy arrays alone: nothing of it was run; "
            "get the file from its authors"
        ) from None
    except Exception as error:  # steps that do not fit each other may raise anything, as the pickle module says
        told = str(error).rstrip(".") or type(error).__name__
        raise ValueError(f"{path} is no pickle, or cut off or damaged ({told}): get it again") from error


class _Refused(Exception):
    """What a pickle asks for and does not get, as the rest of a sentence about it."""


def _look_through(data: bytes) -> None:
    """Go through the steps without taking them, and refuse what is not plain."""
    puts = 0
    for step, argument, _ in pickletools.genops(data):
        if step.name not in _STEPS:
            raise _Refused(f"has a step {step.name}, which makes other objects")
        if step.name == "GLOBAL":
            _stand_in(*str(argument).split(" ", 1))
        if "PUT" in step.name or step.name == "MEMOIZE":
            puts += 1
            # They are numbered one after the other: the unpickler makes room for as many as the number says.
            if isinstance(argument, int) and argument > puts:
                raise _Refused(f"asks for room for {argument} values at its value {puts}")


class _Dtype:
    """An array's type of numbers: a letter and a size, and the order of bytes."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in parts[:3]):
            raise _Refused("has an array of records")
        self.order = order

    def numpy(self) -> np.dtype[Any]:
        """Give numpy's own."""
        if not isinstance(self.code, str) or self.code[:1] not in _KINDS or not self.code[1:].isdecimal():
            raise _Refused(f"has an array of {shown(self.code)}")
        found = np.dtype(self.code if self.order == "=" else self.order + self.code)
        if not found.itemsize:
            raise _Refused("has an array of texts without letters")
        return found


class _Array:
    """An array: its shape, type and bytes, which come after it was made."""

    __slots__ = ("fortran", "kind", "shape", "store")

    def __init__(self) -> None:
        self.shape, self.kind, self.fortran, self.store = (0,), _Dtype("i8"), False, b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.fortran, self.store = state

    def numpy(self) -> np.ndarray:
        """Give numpy's own, if the bytes are as many as shape and type say."""
        kind = self.kind.numpy()
        store = self.store.encode("latin1") if isinstance(self.store, str) else self.store  # of Python 2
        if not isinstance(store, bytes | bytearray):
            raise _Refused("has an array of objects")
        shape = tuple(self.shape)
        if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8:
            raise _Refused(f"has an array of shape {shown(shape)}")
        if math.prod(shape) * kind.itemsize != len(store):
            raise _Refused(f"has an array of shape {shown(shape)} and type {self.kind.code} in {len(store)} bytes")
        return np.frombuffer(bytes(store), kind).reshape(shape, order="F" if self.fortran else "C")


class _Named:
    """A stand-in for something with a name: without attributes, so that no step of a pickle can change it."""

    __slots__ = ()


class _NdArray(_Named):
    """`numpy.ndarray`, which is only named."""


class _MakeDtype(_Named):
    """`numpy.dtype`."""

    def __call__(self, code: str, *flags: object) -> _Dtype:
        return _Dtype(code)


class _MakeArray(_Named):
    """numpy's `_reconstruct`: an array before its state."""

    def __call__(self, *_: object) -> _Array:
        return _Array()


class _FromBuffer(_Named):
    """numpy's `_frombuffer`, of protocol 5."""

    def __call__(self, store: bytes, kind: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
        found = _Array()
        found.__setstate__((1, shape, kind, order == "F", store))
        return found


class _Scalar(_Named):
    """numpy's `scalar`: a number."""

    def __call__(self, kind: _Dtype, store: bytes) -> Any:
        found = _Array()
        found.__setstate__((1, (), kind, False, store))
        return found.numpy().item()


class _Encode(_Named):
    """`codecs.encode`, which is how older protocols write bytes."""

    def __call__(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise _Refused(f"wants a text in {shown(encoding)}")
        return text.encode("latin1")


class _Bytes(_Named):
    """`bytes()`, likewise, where there are none."""

    def __call__(self) -> bytes:
        return b""


_STAND_INS: dict[tuple[str, str], _Named] = {
    ("numpy", "ndarray"): _NdArray(),
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _Encode(),
    **{(module, "bytes"): _Bytes() for module in ("builtins", "__builtin__")},
    **{
        (f"numpy.{core}.{module}", name): made
        for core in ("core", "_core")
        for module, name, made in (
            ("multiarray", "_reconstruct", _MakeArray()),
            ("multiarray", "scalar", _Scalar()),
            ("numeric", "_frombuffer", _FromBuffer()),
        )
    },
}


def _stand_in(module: str, name: str) -> _Named:
    if (module, name) not in _STAND_INS:
        raise _Refused(f"wants to import {shown(f'{module}.{name}')}")
    return _STAND_INS[module, name]


class _Reader(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """Give a stand-in."""
        return _stand_in(module, name)


def _plain(value: Any, seen: dict[int, Any], levels: int) -> Any:
    """Turn stand-ins into arrays; what is there in several places is turned once, and nothing holds itself."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if type(value) not in (_Array, list, tuple, dict):
        raise _Refused(f"holds {type(value).__name__.strip('_')}")
    if id(value) not in seen:
        if not levels:
            raise _Refused(f"nests more than {MOST_LEVELS} levels deep")
        if isinstance(value, _Array):
            found: Any = value.numpy()
        elif isinstance(value, dict):
            found = {_key(key): _plain(item, seen, levels - 1) for key, item in value.items()}
        else:
            found = type(value)([_plain(item, seen, levels - 1) for item in value])
        seen[id(value)] = found
    return seen[id(value)]


def _key(key: Any) -> Any:
    if type(key) not in (str, int):
        raise _Refused(f"has {type(key).__name__.strip('_')} as a key")
    return key
