"""Numbers and devices as they are typed: what cannot be meant is refused before anything runs."""

from __future__ import annotations

import argparse

import pytest

from rclip_metric.cli.main import main
from rclip_metric.train.runs.config import radius
from rclip_metric.train.runs.distributed import chosen_device


@pytest.mark.parametrize(
    "text", ["1e400", "1e999999999999", "-1e400", "inf", "nan", "1/0", f"{'9' * 400}/1", "4/", "1.5/2"]
)
def test_a_radius_that_is_no_finite_number_is_refused_in_one_sentence(text, tmp_path, capsys):
    with pytest.raises(argparse.ArgumentTypeError, match="radius"):
        radius(text)
    assert main(["eval", "nights", "--data", "d", "--model", "l2", "--norm", "linf", f"--eps={text}"]) == 2
    board = ["benchmark", "--metrics", "l2", "--data", f"nights:{tmp_path}", "--out", "o"]
    assert main([*board, "--norms", f"linf:{text}"]) == 2
    assert main(["train", "fare", "--images", "i", "--out", "o", f"--eps={text}"]) == 2
    assert capsys.readouterr().err.replace("--radius", "").count("radius") == 3


def test_radii_are_rounded_once():
    assert radius("4/255") == 4 / 255 and radius(" 0.857 ") == 0.857 and radius("1e-3") == 0.001


@pytest.mark.parametrize("text", ["1e400", "nan", "-inf"])
def test_settings_that_are_not_finite_are_refused(text, capsys):
    assert main(["train", "fare", "--images", "i", "--out", "o", f"--learning-rate={text}"]) == 2
    assert f"expected a finite number, got '{text}'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["xyz", "meta", "cpu:7", "cuda:99", "cuda:-1", "vulkan", "", "cpu\n"])
def test_a_device_that_is_not_there_is_named(name, tmp_path, capsys):
    with pytest.raises(ValueError, match="device"):
        chosen_device(name)
    (tmp_path / "a.png").touch()
    assert main(["score", f"{tmp_path}/a.png", f"{tmp_path}/a.png", "--model", "tiny", "--device", name]) == 2
    err = capsys.readouterr().err
    assert "device" in err and err.count("\n") == 1
