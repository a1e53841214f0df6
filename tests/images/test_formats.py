"""Which files are opened at all: images of the usual formats, whatever they are called, and nothing that has no end."""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image, features

from rclip_metric.files import regular_file
from rclip_metric.images import ImageError, open_image, states_exposure

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
def test_no_format_starts_a_program(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch '{ran}'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it has not been looked for yet
    for name in ("drawing.png", "drawing.eps"):
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(ImageError, match=rf"{name}: not an image, or not in a format that is read here"):
            open_image(tmp_path / name)
        assert not states_exposure(tmp_path / name)
    with pytest.raises(ImageError, match="not in a format that is read here"):
        open_image(EPS)
    assert not ran.exists()


@pytest.mark.parametrize(
    "kind", ["AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"]
)
def test_the_usual_formats_are_read_under_any_name(tmp_path, kind):
    feature = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}.get(kind)
    if feature and not features.check(feature):
        pytest.skip(f"this Pillow has no {kind}")
    path = tmp_path / "image.without-a-known-suffix"
    Image.new("RGB", (16, 12), (200, 40, 40)).save(path, kind)
    image = open_image(path)
    assert image.size == (16, 12)
    assert max(abs(a - b) for a, b in zip(image.getpixel((8, 6)), (200, 40, 40), strict=True)) < 12


@pytest.mark.parametrize("kind", ["PCX", "ICO", "SGI", "DDS", "ICNS", "MSP"])
def test_other_formats_are_refused(tmp_path, kind):
    Image.new("1" if kind == "MSP" else "RGB", (32, 32)).save(tmp_path / "a.png", kind)
    with pytest.raises(ImageError, match="not in a format that is read here"):
        open_image(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_has_no_end_is_refused_and_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    os.mkfifo("pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        os.symlink("pipe.png", "link.png")
        expected = {"pipe.png": "a pipe", "link.png": "a pipe", "socket.png": "a socket", "/dev/zero": "a device"}

        def refuse() -> None:
            for name, what in expected.items():
                with pytest.raises(ImageError, match=rf"cannot read {name}: it is {what}, not a file"):
                    open_image(name)
                assert not states_exposure(name)
            done.set()

        done = threading.Event()
        thread = threading.Thread(target=refuse, daemon=True)  # one that waits must not stop the tests
        thread.start()
        thread.join(20)
        assert done.is_set()


def test_a_file_a_folder_and_nothing_are_left_to_who_opens_them(tmp_path):
    for path in (tmp_path, tmp_path / "missing", Path("null\0byte")):
        assert regular_file(path) == path
    (tmp_path / "file").touch()
    assert stat.S_ISREG(regular_file(tmp_path / "file").stat().st_mode)
