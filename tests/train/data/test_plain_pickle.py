"""Pickles of strangers: what is plain comes through whatever wrote it, and nothing else runs."""

import collections
import os
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rclip_metric.train.data.plain_pickle import read_plain_pickle

VALUES = {
    "imlist": ["all_souls_000013", "früh", ""],
    "gnd": [
        {
            "easy": np.array([3, 1, 2]),
            "hard": np.array([], np.float64),
            "junk": np.arange(6, dtype=">u2").reshape(2, 3),
            "bbx": (136.5, 34.1, np.float32(0.5), np.int64(7)),
        },
        {"easy": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "hard": [], "junk": None, "bbx": [True, 2**70, b"x"]},
    ],
    "names": np.array(["a", "bcd"]),
    4: np.array([True, False]),
    "scalar": np.array(2.5),
}


def same(one, other):
    if isinstance(other, np.ndarray):
        assert (
            one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")
            and one.shape == other.shape
            and np.array_equal(one, other)
        )
    elif isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in other:
            same(one[key], other[key])
    elif isinstance(other, list | tuple):
        assert type(one) is type(other) and len(one) == len(other)
        for pair in zip(one, other, strict=True):
            same(*pair)
    else:
        assert one == other


def written(folder, data):
    path = folder / "gnd.pkl"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_through(protocol, tmp_path):
    data = pickle.dumps(VALUES, protocol)
    same(read_plain_pickle(written(tmp_path, data)), pickle.loads(data))
    older = data.replace(b"numpy._core", b"numpy.core")  # as numpy 1 wrote it; in protocol 4 a text has its length
    if protocol < 4:
        same(read_plain_pickle(written(tmp_path, older)), VALUES)


def test_names_of_numpy_1_in_new_protocols(tmp_path):
    data = pickle.dumps(np.array([3, 1]), 4)
    name = b"\x8c\x16numpy._core.multiarray"
    assert data.count(name) == 1
    frame = struct.pack("<Q", struct.unpack("<Q", data[3:11])[0] - 1)
    older = data[:3] + frame + data[11:].replace(name, b"\x8c\x15numpy.core.multiarray")
    same(read_plain_pickle(written(tmp_path, older)), np.array([3, 1]))


def test_an_array_of_python_2_comes_through(tmp_path):
    """Python 2 writes the bytes of an array as a text (protocol 2, U: up to 255 bytes)."""
    store = np.array([200, -1], "<i4").tobytes()
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02\x85"
        b"cnumpy\ndtype\nq\x04U\x02i4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(store)])
        + store
        + b"tb."
    )
    same(read_plain_pickle(written(tmp_path, data)), np.array([200, -1], "<i4"))


class Payload:
    """Runs a command where it is unpickled in the usual way."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Only what can be called is pickled as what a chain calls."""


def hostile(mark):
    command = f"touch {mark}"
    nested = Payload(getattr, (Payload(__import__, ("os",)), "system"))
    array = np.array([Payload(os.system, (command,))], object)
    return {
        "os.system": Payload(os.system, (command,)),
        "eval": Payload(eval, (f"__import__('os').system({command!r})",)),
        "a chain": Payload(nested, (command,)),
        "a subprocess": {"gnd": [Payload(subprocess.getoutput, (command,))]},
        "an array of objects": {"easy": array},
        "a class": {"easy": collections.OrderedDict(a=1)},
        "a path": {"imlist": [Path("x")]},
        "numpy's own": Payload(np.load, ("x.npy",)),
        "a set": {"easy": {1, 2}},
        "records": np.zeros(2, [("a", "i4")]),
        "dates": np.zeros(2, "M8[s]"),
        "complex": 1j,
    }


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(protocol, tmp_path):
    mark = tmp_path / "run"
    for name, value in hostile(mark).items():
        path = written(tmp_path, pickle.dumps(value, protocol))
        with pytest.raises(ValueError, match="nothing of it was run") as caught:
            read_plain_pickle(path)
        assert not mark.exists(), name
        assert "\n" not in str(caught.value) and "expected lists, dicts, texts" in str(caught.value)
    pickle.loads(pickle.dumps(Payload(os.system, (f"touch {mark}",)), protocol))
    assert mark.exists()  # the usual reader does run it


def steps(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def built(target, state):
    return steps(target, pickle.dumps(state, 2)[2:-1], b"b")


DTYPE = b"cnumpy\ndtype\n"
CRAFTED = {
    "room for 4 billion values": steps(b"Nr\xff\xff\xff\xff"),
    "room, as text": steps(b"Np99999999999\n"),
    "a text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
    "a frame of 2^60 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "bytes of 2^62": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.",
    "attributes of a stand-in": built(b"cnumpy\nndarray\n", {"x": 1}),
    "slots of a stand-in": built(DTYPE, (None, {"__call__": 1, "__class__": 2})),
    "another class of a value": built(DTYPE + b"U\x02i4\x85R", (None, {"__class__": 1})),
    "a persistent id": steps(b"Nq\x00Q"),
    "an instance": steps(b"(cos\nsystem\nU\x02lso"),
    "an old instance": steps(b"(U\x02lsios\nsystem\n"),
    "a new instance": steps(DTYPE + b")\x81"),
    "an extension": steps(b"\x82\x01"),
    "a shape of 2^62": steps(
        b"cnumpy.core.multiarray\n_reconstruct\n)Rq\x00(K\x01\x8a\x08" + struct.pack("<q", 2**62) + b"\x85" + DTYPE
        + b"U\x02i4\x85R\x89U\x04abcdtb"
    ),
    "texts without letters": steps(
        b"cnumpy.core.multiarray\n_reconstruct\n)Rq\x00(K\x01\x8a\x08" + struct.pack("<q", 2**62) + b"\x85" + DTYPE
        + b"U\x02U0\x85R\x89U\x00tb"
    ),
    "a negative shape": steps(
        b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86" + DTYPE
        + b"U\x02u1\x85R\x89U\x01atb"
    ),
    "a list in itself": steps(b"]q\x00h\x00a"),
    "levels": steps(b"]" * 5000, b"a" * 4999),
    "a type that is none": steps(DTYPE + b"]\x85R"),
    "an array without its bytes": steps(b"cnumpy.core.multiarray\n_reconstruct\n)RK\x07b"),
    "an encoding that runs": steps(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R"),
    "nothing": b"",
    "a text": b"this is no pickle",
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_steps_are_one_sentence(name, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"gnd\.pkl (wants|has|holds|nests|asks|is no pickle)") as caught:
        read_plain_pickle(written(tmp_path, CRAFTED[name]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_an_array_in_many_places_is_there_once(tmp_path):
    """A reference takes two bytes: a million of them to an array of 1 MB must not take a million MB."""
    array = np.arange(1 << 17)
    found = read_plain_pickle(written(tmp_path, pickle.dumps([array] * 1000, 5)))
    assert len(found) == 1000 and all(one is found[0] for one in found)
    same(found[0], array)


def test_sizes_are_limited(tmp_path):
    path = tmp_path / "gnd.pkl"
    with path.open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(ValueError, match="more than 16 MB"):
        read_plain_pickle(path)
    with pytest.raises(OSError, match="a device, not a file"):
        read_plain_pickle(Path("/dev/zero"))


def test_cut_or_changed_bytes_are_one_sentence_or_plain(tmp_path):
    """Every beginning of a pickle, and one byte changed at every place: never another error, never an import."""
    modules = set(sys.modules)
    rng = np.random.default_rng(0)
    for protocol in (0, 2, 5):
        data = pickle.dumps(VALUES, protocol)
        cut = [data[:length] for length in range(len(data))]
        for path in (written(tmp_path, part) for part in cut):
            with pytest.raises(ValueError, match=r"gnd\.pkl "):
                read_plain_pickle(path)
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] = rng.integers(256)
            try:
                read_plain_pickle(written(tmp_path, bytes(changed)))
            except ValueError as error:
                assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)
    assert set(sys.modules) == modules


def test_every_step_that_is_allowed_is_plain():
    """New opcodes of later Pythons are not allowed by themselves."""
    from rclip_metric.train.data.plain_pickle import _STEPS

    known = {step.name for step in pickletools.opcodes}
    assert known >= _STEPS
    refused = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "EMPTY_SET",
               "ADDITEMS", "FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER"}  # fmt: skip
    assert known - _STEPS >= refused
