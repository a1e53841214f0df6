"""Tables, lists, numbers and shards that are no files, are no text, or promise what they do not hold."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from rclip_metric.errors import CheckpointError
from rclip_metric.images.shards import index_shard
from rclip_metric.json_files import read_json
from rclip_metric.train.data.class_table import read_class_table
from rclip_metric.train.data.things import read_things
from rclip_metric.train.data.triplets import read_bapps, read_nights
from rclip_metric.train.finetuning.clip import read_captions
from rclip_metric.train.runs.config import read_settings
from rclip_metric.weights import load_encoder
from rclip_metric.weights.loading import read_tensors

LATIN = "größe,père\n".encode("latin-1")


def share_file(folder: Path, header: dict[str, object], content: bytes = b"\0\0\0\0") -> None:
    """A BAPPS split with one triplet, whose judgement is a .npy file with this header."""
    for part, name in (("ref", "0.png"), ("p0", "0.png"), ("p1", "0.png"), ("judge", "0.npy")):
        (folder / "cnn" / part).mkdir(parents=True)
        (folder / "cnn" / part / name).touch()
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"fortran_order": False, **header})
    (folder / "cnn" / "judge" / "0.npy").write_bytes(written.getvalue() + content)


@pytest.mark.parametrize(
    "header",
    [
        {"shape": (10**15,), "descr": "<f4"},
        {"shape": (10**30,), "descr": "<f4"},
        {"shape": (2**32, 2**32), "descr": "<f4"},
        {"shape": (-1,), "descr": "<f4"},
        {"shape": (1,), "descr": "|V2000000000"},
        {"shape": (1,), "descr": "|O"},
    ],
    ids=lambda header: f"{header['shape']} {header['descr']}",
)
def test_a_share_with_an_absurd_header_is_named(tmp_path, header):
    share_file(tmp_path, header)
    with pytest.raises(ValueError, match=r"judge/0\.npy") as caught:
        read_bapps(tmp_path, ["cnn"])
    assert "\n" not in str(caught.value)


def test_a_text_that_is_not_utf8_is_named(tmp_path):
    for name in ("data.csv", "list.txt", "table.csv", "settings.json", "images/captions.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LATIN)
    for read, name in (
        (lambda: read_nights(tmp_path), "data.csv"),
        (lambda: read_things(tmp_path / "table.csv", tmp_path / "list.txt"), "list.txt"),
        (lambda: read_class_table(tmp_path / "table.csv"), "table.csv"),
        (lambda: read_settings(tmp_path / "settings.json"), "settings.json"),
        (lambda: read_captions(tmp_path), "captions.csv"),
    ):
        with pytest.raises(ValueError, match=name):
            read()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    for name in ("a.csv", "a.json", "a.tar", "a.safetensors", "a.pt"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="it is a pipe"):
        read_class_table(tmp_path / "a.csv")
    for read in (read_settings, read_json):
        with pytest.raises(ValueError, match="is no file with JSON in it"):
            read(tmp_path / "a.json")
    assert index_shard(str(tmp_path / "a.tar")) == ([], False)
    for name in ("a.safetensors", "a.pt"):
        with pytest.raises(CheckpointError, match="it is a pipe"):
            read_tensors(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_weights_that_are_a_pipe_are_refused(tmp_path):
    from rclip_metric.weights import save_encoder

    folder = Path(save_encoder(load_encoder("tiny"), tmp_path / "saved"))
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="it is a pipe"):
        load_encoder(str(folder))
