"""What is not done in silence: weights that are not finite, links to nothing, a metric that exits, negative counts."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rclip_metric.cli.main import main
from rclip_metric.errors import CheckpointError
from rclip_metric.images import list_images
from rclip_metric.train.data.images import walk_images
from rclip_metric.train.data.photos import PhotosConfig
from rclip_metric.train.data.scenes.draw import ScenesConfig
from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig, RunConfig
from rclip_metric.train.finetuning.nights import NightsConfig
from rclip_metric.train.metrics.weight_files import Converted, write_stored
from rclip_metric.train.models.base import load_base
from rclip_metric.train.models.clip import ClipConfig

from support.images import save_noise
from support.scenes import small_scenes

# Weights that are not finite


def tower_file(path: Path, value: float) -> Path:
    """A tower of `tiny-clean` as OpenCLIP names it, with one value replaced."""
    state = dict(load_base("tiny-clean@random").tower.state_dict())
    state["head.proj.weight"] = state.pop("projection.weight").clone()
    state["head.proj.weight"][0, 0] = value
    torch.save(state, path)
    return path


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_convert_writes_no_weights_that_are_not_finite(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tower_file(tmp_path / "tower.pt", value)
    assert main(["train", "convert", str(source), "--base", "tiny-clean", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{source} gives tower.projection.weight values that are NaN or infinite" in said and said.count("\n") == 1
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_nor_of_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dim = load_base("tiny-clean@random").embedding_dim
    head = {"fc1.weight": torch.ones(8, dim), "fc1.bias": torch.full((8,), math.nan)}
    torch.save(head | {"fc2.weight": torch.ones(dim, 8), "fc2.bias": torch.ones(dim)}, tmp_path / "head.pt")
    command = ["train", "convert", str(tmp_path / "head.pt"), "--base", "tiny-clean", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "gives head.fc1.bias values that are NaN or infinite" in capsys.readouterr().err


def test_nor_of_a_metric_of_others(tmp_path: Path) -> None:
    converted = Converted({"weight": torch.tensor([1.0, math.nan])}, {}, files=[])
    with pytest.raises(CheckpointError, match="weight holds values that are NaN or infinite"):
        write_stored("r-lpips", converted, tmp_path / "r-lpips.safetensors")
    assert not list(tmp_path.iterdir())


# Links to nothing


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number in range(2):
        save_noise(folder / f"{number}.png", number)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    return folder


def test_a_link_to_nothing_is_listed_as_an_image_that_is_missing(linked: Path) -> None:
    assert [path.name for path in list_images(linked)] == ["0.png", "1.png", "gone.png"]
    assert [Path(path).name for path in walk_images(linked)] == ["0.png", "1.png", "gone.png"]


@pytest.mark.parametrize("command", ["score", "rank"])
def test_it_is_skipped_aloud_and_counted(command: str, linked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(linked), "--all-pairs"] if command == "score" else [str(linked / "0.png"), str(linked), "--json"]
    assert main([command, *arguments, "--model", "tiny"]) == 2
    said = capsys.readouterr()
    assert f"cannot read {linked / 'gone.png'}: no such file" in said.err
    last = json.loads(said.out.splitlines()[-1])
    skipped = (last["summary"] if command == "score" else last)["skipped"]
    assert [entry["file"] for entry in skipped] == [str(linked / "gone.png")]


# A metric that ends the program

FACTORIES = """
import sys

import torch
from rclip_metric.train.metrics import DistanceMetric


def at_once(device):
    sys.exit(0)


def later(device):
    return DistanceMetric(lambda x, y: sys.exit(0), 64, name="later")
"""


@pytest.mark.parametrize("factory", ["at_once", "later"])
def test_a_metric_that_exits_with_zero_does_not_end_a_job_with_zero(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exiting_metrics.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    data = small_scenes(tmp_path / "scenes", (0, 0, 2)) / "nights"
    name, out = f"exiting_metrics:{factory}", str(tmp_path / "out")
    board = ["benchmark", "--metrics", f"{name},l2", "--data", f"nights:{data}", "--norms", "none", "--out", out]
    assert main([*board, "--image-size", "16", "--quiet"]) == 2
    capsys.readouterr()
    exited, fine = json.loads((tmp_path / "out" / "benchmark.json").read_text())["metrics"]
    assert "ended the program (exit 0)" in exited["failures"][0] and fine["failures"] == []
    evaluation = ["eval", "nights", "--data", str(data), "--model", name, "--attack", "none", "--quiet"]
    assert main([*evaluation, "--out", str(tmp_path / "eval")]) == 2
    assert "ended the program (exit 0)" in capsys.readouterr().err


# Counts

CONFIGS = (ScenesConfig, PhotosConfig, ClipConfig, FinetuneConfig, RunConfig, NightsConfig)
COUNTS = [
    (config, field.name)
    for config in CONFIGS
    for field in dataclasses.fields(config)
    if type(field.default) is int or field.name == "triplets"
]


@pytest.mark.parametrize(("config", "name"), COUNTS, ids=lambda part: getattr(part, "__name__", part))
def test_no_count_of_a_config_may_be_negative(config: Any, name: str) -> None:
    value = (1, -2, 1) if name == "triplets" else -2
    with pytest.raises(ValueError, match=name):
        config(**{name: value})


@pytest.mark.parametrize(
    "options",
    [
        ["scenes", "--images", "-1"],
        ["scenes", "--queries", "-1"],
        ["scenes", "--pool=-3"],
        ["scenes", "--seed", "-1"],
        ["photos", "--images", ".", "--count", "-1"],
        ["photos", "--images", ".", "--seed", "-1"],
        ["clip", "--scenes", ".", "--steps", "-1"],
        ["clip", "--scenes", ".", "--save-every", "0"],
        ["fare", "--base", "tiny", "--images", ".", "--steps", "-1"],
        ["fare", "--base", "tiny", "--images", ".", "--keep", "-1"],
        ["nights", "--base", "tiny", "--data", ".", "--epochs", "-1"],
        ["nights", "--base", "tiny", "--data", ".", "--seed", "-1"],
    ],
    ids=" ".join,
)
def test_nor_of_a_command(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rclip-metric: ") and said.count("\n") == 1
    assert options[-2 if "=" not in options[-1] else -1].removeprefix("--").partition("=")[0].replace("-", "_") in said
    assert not (tmp_path / "out").exists()
