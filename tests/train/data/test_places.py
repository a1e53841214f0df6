"""What the tables of a set may name: files of its own folder, and others only if one says so."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rclip_metric.cli.main import main
from rclip_metric.train.data.cue_conflict import read_conflicts
from rclip_metric.train.data.table import place_in
from rclip_metric.train.data.things import read_things
from rclip_metric.train.data.triplets import COLUMNS, read_nights
from rclip_metric.train.finetuning.clip import read_captions

from support.images import save_noise

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="paths are written as on POSIX")


def nights(folder: Path, reference: object) -> Path:
    """A NIGHTS-format set of one triplet, whose reference is called so."""
    for name in ("ref.png", "left.png", "right.png"):
        save_noise(folder / name, len(name))
    rows = [",".join(COLUMNS), f"1,1,0,6,{reference},left.png,right.png,test,False"]
    rows.append(f"2,1,0,6,{reference},left.png,right.png,val,False")
    (folder / "data.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("name", ["../private.png", "ref/../../private.png", "/etc/passwd", "{private}", "a/../.."])
def test_a_table_does_not_lead_out_of_its_folder(tmp_path, name):
    private = save_noise(tmp_path / "private.png", 9)
    folder, name = nights(tmp_path / "set", name.format(private=private)), name.format(private=private)
    with pytest.raises(ValueError, match=r"leads out of the folder .*--allow-outside"):
        read_nights(folder)
    assert read_nights(folder, allow_outside=True)[0].reference == folder / name
    (tmp_path / "list.txt").write_text("a.png\n")
    (folder / "list.txt").write_text(f"{name}\n")
    with pytest.raises(ValueError, match=r"list\.txt, row 1: .* leads out of the folder"):
        read_things(folder, folder / "list.txt")
    (folder / "images").mkdir()
    (folder / "images" / "captions.csv").write_text(f"path,caption\n{name},a cat\n")
    with pytest.raises(ValueError, match="leads out of the folder"):
        read_captions(folder)


def test_other_ways_to_a_file_of_the_folder_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = nights(Path("set"), "ref.png")
    assert place_in(folder, "ref.png") == folder / "ref.png"
    assert place_in(folder, "x/../ref.png") == folder / "ref.png"
    assert place_in(folder, str(tmp_path / "set" / "ref.png")) == folder / "ref.png"
    assert place_in(folder, "..ref.png") == folder / "..ref.png"
    assert place_in(Path("."), "set/../set/ref.png") == Path("set/ref.png")


def test_links_are_followed(tmp_path):
    os.symlink(nights(tmp_path / "real", "linked.png"), tmp_path / "set")
    os.symlink(save_noise(tmp_path / "elsewhere.png", 3), tmp_path / "real" / "linked.png")
    [triplet] = read_nights(tmp_path / "set")
    assert triplet.reference.resolve() == (tmp_path / "elsewhere.png").resolve()


def test_a_table_of_classes_opens_nothing_outside(tmp_path):
    save_noise(tmp_path / "private.png", 1)
    save_noise(tmp_path / "set" / "a.png", 2)
    table = tmp_path / "set" / "classes.csv"
    table.write_text("class,file\ncat1-dog1,a.png\ncat2-dog2,../private.png\ncat3-dog3,/etc/passwd\n")
    assert [image.key for image in read_conflicts(tmp_path / "set", table)] == ["a.png"]


def test_the_commands_refuse_and_allow(tmp_path, capsys):
    save_noise(tmp_path / "private.png", 9)
    folder = nights(tmp_path / "set", "../private.png")
    out = ["--out", tmp_path / "out", "--quiet"]
    for words in (
        ["eval", "nights", "--data", folder, "--model", "l2", "--attack", "none", "--quiet"],
        ["benchmark", "--metrics", "l2", "--data", f"nights:{folder}", "--norms", "none", *out],
    ):
        assert main([*map(str, words)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "'../private.png' leads out of the folder" in err
        assert main([*map(str, words), "--allow-outside"]) == 0
        capsys.readouterr()
