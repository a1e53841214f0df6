"""Every long job, killed at random moments and started again, ends with what an undisturbed one gives."""

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from rclip_metric.weights import save_encoder

from support.encoders import small_encoder
from support.forked import Forks
from support.images import save_noise
from support.scenes import small_scenes

KILLS = 2  # of each job, before it may end


class Job(NamedTuple):
    """A command, without its `--out`, and what of its folder has to be equal."""

    words: list[str]
    result: Callable[[Path], Any]


def records(out: Path) -> dict[str, Any]:
    """What the records say, but for when and how fast."""
    left_out = ("seconds", "images_per_second", "made", "command", "checksum")

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key not in left_out}
        return [plain(item) for item in value] if isinstance(value, list) else value

    found = {path.name: plain(json.loads(path.read_text())) for path in sorted(out.glob("*.json"))}
    assert found
    return found


def weights(out: Path) -> dict[str, list[float]]:
    """The tensors of the finished model."""
    return {key: tensor.flatten().tolist() for key, tensor in load_file(out / "model.safetensors").items()}


def tree(out: Path) -> dict[str, str]:
    """Every file by its digest."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_scenes(tmp_path_factory.mktemp("data"), (8, 4, 12), images=24)
    save_encoder(small_encoder(spread=True), folder / "base")
    for number in range(12):
        save_noise(folder / "photographs" / f"class{number % 2}" / f"{number}.png", number, (80, 90))
    return folder


def jobs(data: Path) -> dict[str, Job]:
    """The jobs, on the smallest data that takes each more than one step."""
    tuned = ["--base", data / "base", "--batch-size", "8", "--device", "cpu", "--quiet"]
    attacked = ["--norm", "linf", "--eps", "4/255", "--steps", "4", "--batch-size", "3", "--device", "cpu", "--quiet"]
    nights = f"nights:{data / 'nights'}"
    found: dict[str, tuple[list[Any], Callable[[Path], Any]]] = {
        "eval nights": (["--data", data / "nights", "--model", "tiny", *attacked], records),
        "benchmark": (["--metrics", "tiny,l2", "--data", nights, "--norms", "linf:4/255", "--steps", "4",
                       "--batch-size", "3", "--device", "cpu", "--quiet"], records),
        "train fare": (["--images", data / "images", "--steps", "8", "--inner-steps", "2", "--save-every", "1",
                        "--precision", "float32", *tuned], weights),
        "train nights": (["--data", data / "nights", "--epochs", "2", "--save-every", "1", "--precision", "float32",
                          *tuned], weights),
        "train scenes": (["--images", "30", "--triplets", "4,2,2", "--quiet"], tree),
        "train photos": (["--images", data / "photographs", "--count", "11", "--workers", "1", "--quiet"], tree),
    }  # fmt: skip
    return {name: Job([*name.split(), *map(str, words)], result) for name, (words, result) in found.items()}


@pytest.mark.parametrize(
    "name", ["eval nights", "benchmark", "train fare", "train nights", "train scenes", "train photos"]
)
def test_it_ends_as_if_nothing_had_happened(name: str, data: Path, forks: Forks, tmp_path: Path) -> None:
    job = jobs(data)[name]
    begun = time.monotonic()
    assert forks.run([*job.words, "--out", tmp_path / "whole"]) == 0, forks.errors
    took = time.monotonic() - begun
    moments = random.Random(name)
    killed, out = 0, tmp_path / "killed"
    while killed < KILLS:
        if forks.run([*job.words, "--out", out], kill_after=moments.uniform(0.05, 0.9) * took) == 0:
            shutil.rmtree(out)  # it was done before: once more, and sooner
            killed, took = 0, took / 2
        else:
            killed += 1
    assert forks.run([*job.words, "--out", out]) == 0, forks.errors
    assert job.result(out) == job.result(tmp_path / "whole")
    left = [path.name for path in out.rglob("*") if ".partial" in path.name]
    assert left == [], "what a killed process left unfinished stays"
