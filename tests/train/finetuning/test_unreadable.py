"""Training on files that cannot be read: a run that used none, or lost too many, stops and says so."""

import json
import shutil
from pathlib import Path

import pytest

from rclip_metric.cli.main import main
from rclip_metric.train.data.unreadable import Losses

from support.images import save_noise
from support.scenes import small_scenes

SHORT = ["--steps", "4", "--batch-size", "4", "--warmup-steps", "0", "--quiet"]
FARE = ["train", "fare", "--base", "tiny-clean@random", "--inner-steps", "1", "--device", "cpu", *SHORT]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_scenes(tmp_path_factory.mktemp("scenes"), (8, 4, 1), images=8)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def photographs(folder: Path, good: int, bad: int) -> Path:
    """Noise in `good` files, and `bad` ones that are cut off."""
    for number in range(good + bad):
        path = save_noise(folder / f"{number:02d}.png", number, (64, 64))
        if number >= good:
            damage(path)
    return folder


@pytest.mark.parametrize("share", ["0.05", "1"])
def test_fare_on_files_of_which_none_can_be_read_fails(
    share: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = photographs(tmp_path / "images", good=0, bad=8)
    command = [*FARE, "--images", str(images), "--out", str(tmp_path / "run"), "--max-unreadable", share]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "could not be read" in said.err and str(images) in said.err and "load it" not in said.out
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_fare_that_lost_more_than_its_share_stops_and_with_a_larger_share_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = photographs(tmp_path / "images", good=6, bad=2)
    command = [*FARE, "--images", str(images), "--out", str(tmp_path / "run")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "images could not be read and at most 5 % may be, the first: " in said and "--max-unreadable" in said
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert main([*command, "--max-unreadable", "0.25"]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["unreadable"] == 4  # two epochs of eight


def test_a_link_to_nothing_is_one_of_them(tmp_path: Path) -> None:
    images = photographs(tmp_path / "images", good=7, bad=0)
    (images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    command = [*FARE, "--images", str(images), "--out", str(tmp_path / "run"), "--max-unreadable", "0.25"]
    assert main(command) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["unreadable"] == 2  # two epochs of eight


@pytest.mark.parametrize(
    ("share", "told"),
    [
        ("-0.1", "max_unreadable must be a share in [0, 1]"),
        ("1.5", "max_unreadable must be a share in [0, 1]"),
        ("nan", "argument --max-unreadable: "),
    ],
)
def test_a_share_is_one(share: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = photographs(tmp_path / "images", good=4, bad=0)
    assert main([*FARE, "--images", str(images), "--out", str(tmp_path / "run"), f"--max-unreadable={share}"]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("head", ["lora", "mlp"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_nights_that_lost_more_than_its_share_of_a_split_stops(
    split: str, head: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "nights"
    shutil.copytree(scenes / "nights", data)
    rows = [row.split(",") for row in (data / "data.csv").read_text().splitlines()]
    place, name = rows[0].index("split"), rows[0].index("ref_path")
    damage(data / next(row[name] for row in rows[1:] if row[place] == split))
    command = ["train", "nights", "--base", "tiny", "--data", str(data), "--out", str(tmp_path / "run"), "--head", head]
    command += ["--epochs", "1", "--batch-size", "4", "--hidden", "4", "--rank", "2", "--device", "cpu", "--quiet"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"triplets of {split} could not be read and at most 5 % may be, the first: triplet" in said
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert main([*command, "--max-unreadable", "0.5"]) == 0


def test_clip_needs_every_scene(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = tmp_path / "scenes"
    shutil.copytree(scenes, copied)
    broken = sorted((copied / "images").rglob("*.png"))[0]
    damage(broken)
    command = ["train", "clip", "--scenes", str(copied), "--out", str(tmp_path / "run"), "--text-layers", "1"]
    assert main([*command, "--steps", "2", "--warmup-steps", "0", "--batch-size", "8", "--quiet"]) == 2
    assert f"{broken} cannot be read" in capsys.readouterr().err


def test_photos_of_files_that_cannot_be_read_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = photographs(tmp_path / "images", good=0, bad=3)
    assert main(["train", "photos", "--images", str(images), "--out", str(tmp_path / "set"), "--count", "2"]) == 2
    assert "0 photographs can be used" in capsys.readouterr().err and not (tmp_path / "set").exists()


def test_a_share_is_judged_when_enough_has_been_tried() -> None:
    losses = Losses(allowed=0.1)
    losses.add(3, 1, "a.png")
    losses.check(expected=100)
    losses.add(0, 9, "b.png")
    losses.check(expected=100)
    losses.add(0, 1)
    with pytest.raises(ValueError, match=r"11 of 14 images .* at most 10 % may be, the first: a\.png"):
        losses.check(expected=100)
    nothing = Losses(allowed=1.0)
    nothing.check()
    nothing.add(0, 4, "a.png")
    nothing.check(expected=5)
    with pytest.raises(ValueError, match="4 of 4 images"):
        nothing.check(expected=4)
