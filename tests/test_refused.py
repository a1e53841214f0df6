"""What is not done in silence: weights that are not finite, links to nothing, exits, counts, tensors of other kinds."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rclip_metric import Encoder, ImageError, RobustPerceptualDistance, score
from rclip_metric.cli.main import main
from rclip_metric.errors import CheckpointError
from rclip_metric.images import list_images
from rclip_metric.train.data.images import walk_images
from rclip_metric.train.data.photos import PhotosConfig
from rclip_metric.train.data.scenes.draw import ScenesConfig
from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig, RunConfig
from rclip_metric.train.finetuning.lpips import LpipsConfig
from rclip_metric.train.finetuning.nights import NightsConfig
from rclip_metric.train.metrics.weight_files import Converted, write_stored
from rclip_metric.train.models.base import load_base
from rclip_metric.train.models.clip import ClipConfig
from rclip_metric.weights import load_encoder

from support.encoders import VIT, small_encoder
from support.images import noise, save_noise
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

CONFIGS = (ScenesConfig, PhotosConfig, ClipConfig, FinetuneConfig, RunConfig, NightsConfig, LpipsConfig)
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
        ["lpips", "--data", ".", "--attack-steps", "-1"],
    ],
    ids=" ".join,
)
def test_nor_of_a_command(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rclip-metric: ") and said.count("\n") == 1
    assert options[-2 if "=" not in options[-1] else -1].removeprefix("--").partition("=")[0].replace("-", "_") in said
    assert not (tmp_path / "out").exists()


# Tensors of other kinds

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "meta tensor": lambda tensor: tensor.to("meta"),
    "sparse_coo": lambda tensor: tensor.to_sparse(),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.01, 0, torch.qint8),
    "float8_e4m3fn": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor, tensor]),
}
quiet = pytest.mark.filterwarnings("ignore")  # torch's, that such tensors are new or going away


@quiet
@pytest.mark.parametrize("check_range", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_other_kinds_are_refused_in_one_sentence(kind: str, check_range: bool) -> None:
    metric = RobustPerceptualDistance(small_encoder(VIT), check_range=check_range)
    images = noise(1, 3, 32, 32)
    other = KINDS[kind](images)
    for call in (metric.embed, lambda x: metric(images, x), lambda x: metric.two_afc(images, x, images)):
        with pytest.raises(ImageError, match=f"^got a.*{kind}.*expected an ordinary tensor"):
            call(other)
    with pytest.raises(ImageError, match=kind):
        score(KINDS[kind](images[0]), images[0], metric.encoder)
    with pytest.raises(ValueError, match=f"embedding is a.*{kind}"):
        metric.distance_to(KINDS[kind](metric.embed(images)), images)


def damaged_files(folder: Path, weights: dict[str, Tensor]) -> dict[str, Path]:
    """Files that are no weights, by what a message must say."""
    contents: dict[str, Any] = {"key": {0: torch.zeros(2)}, "state dict": [torch.zeros(2)], "names": torch.zeros(2)}
    contents |= {
        kind: {key: make(tensor) for key, tensor in weights.items()} for kind, make in KINDS.items() if kind != "nested"
    }
    files = {}
    for number, (says, content) in enumerate(contents.items()):
        files[says] = folder / f"{number}.pt"
        torch.save(content, files[says])
    files["torch.save"] = folder / "text.pt"
    files["torch.save"].write_text("hello, I am a text")
    files["safetensors file"] = folder / "text.safetensors"
    files["safetensors file"].write_text("hello, I am a text")
    return files


@quiet
def test_files_that_hold_no_weights_are_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = dict(load_encoder("tiny").state_dict())
    image = save_noise(tmp_path / "image.png", 0)
    for says, file in damaged_files(tmp_path, weights).items():
        with pytest.raises(CheckpointError):
            load_encoder(file, base="tiny")
        convert = ["train", "convert", str(file), "--base", "tiny", "--out", str(tmp_path / "out")]
        for command in (["score", str(image), str(image), "--model", str(file), "--base", "tiny"], convert):
            assert main(command) == 2, says
            said = capsys.readouterr().err
            assert said.startswith(f"rclip-metric: {file}") and said.count("\n") == 1
            if says != "key":
                assert says in said, (says, said)
    assert not (tmp_path / "out").exists()


@quiet
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nested"])
def test_nor_is_an_encoder_made_of_them(kind: str) -> None:
    encoder = small_encoder(VIT)
    weights = {key: KINDS[kind](tensor) for key, tensor in encoder.state_dict().items()}
    with pytest.raises(CheckpointError, match=kind):
        Encoder.from_weights(weights, VIT, encoder.preprocessing)
    for wrong in ({0: torch.zeros(2)}, dict.fromkeys(weights, "text")):
        with pytest.raises(CheckpointError, match=r"has the key 0|of type str"):
            Encoder.from_weights(wrong, VIT, encoder.preprocessing)  # type: ignore[arg-type]
