"""The command as people run it: what it prints where, and the exit code it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rclip_metric
from rclip_metric import Encoder, RobustPerceptualDistance
from rclip_metric.__main__ import console_main
from rclip_metric.cli.main import main
from rclip_metric.distance import distance_between
from rclip_metric.images import Preprocessing
from rclip_metric.retrieval import FileEmbeddings, Summary, distances, pair_by_name
from rclip_metric.weights import (
    file_digest,
    load_encoder,
    load_manifest,
    model_names,
    save_encoder,
    short_digest,
    tensors_digest,
)

from support.encoders import VIT, small_encoder
from support.images import save_noise
from support.programs import PATIENCE

COMMAND = [sys.executable, "-c", "from rclip_metric.cli.main import console_main; console_main()"]
IDENTITY = ("model", "revision", "resize", "squared")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(code, captured.out, captured.err)

    return command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, in our own format."""
    encoder = small_encoder(VIT, Preprocessing("crop", 36, 32), spread=True, name="random")
    folder = tmp_path_factory.mktemp("models") / "small"
    save_encoder(encoder, folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of four images by the same names, and the files that folders collect."""
    a, b = tmp_path / "a", tmp_path / "b"
    for i in range(4):
        save_noise(a / f"{i}.png", i)
        save_noise(b / f"{i}.png", 10 + i, size=(64, 33))
    shutil.copy(a / "3.png", b / "3.png")
    (a / "notes.txt").write_text("not an image")
    (a / ".hidden.png").write_text("not an image")
    (a / "sub").mkdir()
    return a, b


def expected(model: Path, x: Path, y: Path, **settings: Any) -> float:
    """The distance by the Python interface, on its own route."""
    return rclip_metric.score(x, y, str(model), **settings)


def photograph(path: Path, seed: int = 0) -> Path:
    """Noise with the metadata of a camera."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x829A] = 1 / 60  # seconds of exposure
    Image.open(save_noise(path.with_suffix(".png"), seed)).save(path, exif=exif)
    return path


@pytest.fixture
def drawn_only(model: Path, tmp_path: Path) -> Path:
    """The small model, saved as one that knows drawn scenes only."""
    encoder = rclip_metric.RobustPerceptualDistance(str(model)).encoder
    encoder.domain = "drawn scenes"
    return save_encoder(encoder, tmp_path / "drawn-only")


# score, two files


def test_two_files_give_one_line_with_model_and_revision(run: Any, model: Path, tmp_path: Path) -> None:
    a, b = save_noise(tmp_path / "a.png", 0), save_noise(tmp_path / "b.png", 1)
    result = run("score", a, b, "--model", model)
    assert result.code == 0
    assert result.err == ""
    revision = short_digest(tensors_digest(load_encoder(model).state_dict()))
    assert result.out == (
        f"{expected(model, a, b):.4f}  random@{revision} "
        "(distance: sqrt(1 - cos), 0 = identical, max 1.414; resize published)\n"
    )


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("resize", ["published", "squash"])
def test_json_has_everything_it_takes_to_repeat(
    run: Any, model: Path, tmp_path: Path, squared: bool, resize: Any
) -> None:
    a, b = save_noise(tmp_path / "a.png", 0), save_noise(tmp_path / "b.png", 1, size=(90, 33))
    flags = ["--squared"] if squared else []
    result = run("score", a, b, "--model", model, "--json", "--resize", resize, *flags)
    record = json.loads(result.out)
    assert result.code == 0
    assert record["distance"] == pytest.approx(expected(model, a, b, squared=squared, resize=resize), abs=1e-6)
    assert (record["a"], record["b"]) == (str(a), str(b))
    assert (record["model"], record["resize"], record["squared"]) == ("random", resize, squared)
    assert record["settings"] | {"preprocessing": None, "pillow": None} == {
        "rclip_metric": rclip_metric.__version__,
        "torch": torch.__version__,
        "pillow": None,
        "source": str(model),
        "weights": tensors_digest(load_encoder(model).state_dict()),
        "preprocessing": None,
        "device": "cpu" if not torch.cuda.is_available() else "cuda:0",
        "dtype": "float32",
        "batch_size": record["settings"]["batch_size"],
    }


def test_identical_images_are_at_distance_zero(run: Any, model: Path, tmp_path: Path) -> None:
    a = save_noise(tmp_path / "a.png", 0)
    with Image.open(a) as image:
        image.save(tmp_path / "a.bmp")
    for other in (a, tmp_path / "a.bmp"):
        assert json.loads(run("score", a, other, "--model", model, "--json").out)["distance"] == 0.0
        assert run("score", a, other, "--model", model).out.startswith("0.0000  ")


def test_a_small_distance_is_not_shown_as_none(run: Any, model: Path, tmp_path: Path) -> None:
    a = save_noise(tmp_path / "a.png", 0, size=(32, 32))
    with Image.open(a) as image:
        nearly = np.array(image)
    nearly[9, 9, 0] ^= 1
    Image.fromarray(nearly).save(tmp_path / "b.png")
    shown = run("score", a, tmp_path / "b.png", "--model", model, "--squared", "--resize", "none").out.split()[0]
    assert 0 < float(shown) < 1e-3
    assert "e-" in shown


def test_bfloat16_is_said_and_close(run: Any, model: Path, tmp_path: Path) -> None:
    a, b = save_noise(tmp_path / "a.png", 0), save_noise(tmp_path / "b.png", 1)
    result = run("score", a, b, "--model", model, "--dtype", "bfloat16", "--device", "cpu")
    assert float(result.out.split()[0]) == pytest.approx(expected(model, a, b), abs=0.02)
    assert result.out.endswith("; resize published; bfloat16)\n")


def test_resize_none_refuses_another_size(run: Any, model: Path, tmp_path: Path) -> None:
    a, fits = save_noise(tmp_path / "a.png", 0), save_noise(tmp_path / "b.png", 1, size=(32, 32))
    result = run("score", a, fits, "--model", model, "--resize", "none")
    assert result.code == 2
    assert result.out == ""
    assert str(a) in result.err and "32x32" in result.err and str(fits) not in result.err
    assert json.loads(run("score", fits, fits, "--model", model, "--resize", "none", "--json").out)["resize"] is None


def test_the_model_that_ships(run: Any, tmp_path: Path) -> None:
    """Offline and without any preparation; a slightly changed picture is nearer than another one."""
    a, b = save_noise(tmp_path / "a.png", 0, size=(8, 8)), save_noise(tmp_path / "b.png", 1, size=(8, 8))
    for path in (a, b):
        with Image.open(path) as image:
            image.resize((96, 80), Image.Resampling.BICUBIC).save(path)
    with Image.open(a) as image:
        image.save(tmp_path / "a.jpg", quality=90)
    assert "tiny" in [record["name"] for record in json.loads(run("models", "--json").out) if record["cached"]]
    assert run("verify", "tiny").code == 0
    result = run("rank", a, b, tmp_path / "a.jpg", "--model", "tiny", "--json")
    assert (result.code, result.err) == (0, "")
    record = json.loads(result.out)
    assert record["model"] == "tiny" and record["revision"].startswith("sha256:")
    (near, far) = record["ranking"]
    assert Path(near["candidate"]).name == "a.jpg"
    assert near["distance"] < 0.5 * far["distance"]
    assert run("score", a, b, "--model", "tiny").out.startswith(f"{far['distance']:.4f}  tiny@sha256:")


# score, folders


def test_folders_give_a_line_per_pair_and_a_summary(run: Any, model: Path, folders: tuple[Path, Path]) -> None:
    a, b = folders
    result = run("score", a, b, "--model", model, "--batch-size", "3")
    assert result.code == 0
    *pairs, last = result.lines
    assert [(pair["a"], pair["b"]) for pair in pairs] == [(str(a / f"{i}.png"), str(b / f"{i}.png")) for i in range(4)]
    for pair in pairs:
        assert pair["distance"] == pytest.approx(expected(model, Path(pair["a"]), Path(pair["b"])), abs=1e-6)
        assert pair["model"] == "random" and pair["revision"].startswith("tensors:")
        assert set(pair) == {"a", "b", "distance", *IDENTITY}
    assert pairs[3]["distance"] == 0.0
    summary = last["summary"]
    values = [pair["distance"] for pair in pairs]
    assert summary["pairs"] == 4
    assert summary["mean"] == pytest.approx(sum(values) / 4, abs=1e-6)
    assert summary["lowest"] == {"distance": 0.0, "a": str(a / "3.png"), "b": str(b / "3.png")}
    assert summary["highest"]["distance"] == max(values)
    assert (summary["skipped"], summary["unpaired"], summary["left_out"]) == ([], [], 1)
    assert {key: summary[key] for key in IDENTITY} == {key: pairs[0][key] for key in IDENTITY}
    assert summary["settings"]["batch_size"] == 3
    assert "left out 1 file whose names" in result.err
    assert "4 pairs, mean" in result.err and "random@tensors:" in result.err


def test_broken_files_are_named_skipped_and_counted(run: Any, model: Path, folders: tuple[Path, Path]) -> None:
    a, b = folders
    (a / "0.png").write_bytes(b"not an image")
    (b / "2.png").write_bytes((b / "1.png").read_bytes()[:-300])
    result = run("score", a, b, "--model", model, "--quiet")
    assert result.code == 2
    *pairs, last = result.lines
    assert [Path(pair["a"]).name for pair in pairs] == ["1.png", "3.png"]
    assert [item["file"] for item in last["summary"]["skipped"]] == [str(a / "0.png"), str(b / "2.png")]
    assert last["summary"]["pairs"] == 2
    reported = result.err.splitlines()
    assert len(reported) == 2  # --quiet leaves the errors
    assert str(a / "0.png") in reported[0] and "not an image" in reported[0]
    assert str(b / "2.png") in reported[1] and "truncated" in reported[1]


def test_files_without_a_partner_are_named(run: Any, model: Path, folders: tuple[Path, Path]) -> None:
    a, b = folders
    save_noise(a / "left.png", 20)
    save_noise(b / "right.jpg", 21)
    result = run("score", a, b, "--model", model)
    assert result.code == 0
    assert result.lines[-1]["summary"]["unpaired"] == [str(a / "left.png"), str(b / "right.jpg")]
    assert f"without a partner: {a / 'left.png'}" in result.err
    assert f"without a partner: {b / 'right.jpg'}" in result.err


def test_pairs_by_name_then_by_stem(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for path in ("a/1.png", "a/2.png", "a/3.png", "a/4.png", "a/4.bmp", "a/5.png"):
        save_noise(tmp_path / path, 0, size=(1, 1))
    for path in ("b/1.png", "b/1.jpg", "b/2.jpg", "b/3.jpg", "b/3.bmp", "b/4.png", "b/4.jpg", "b/6.png"):
        save_noise(tmp_path / path, 0, size=(1, 1))
    pairing = pair_by_name(a, b)
    assert [(x.name, y.name) for x, y in pairing.pairs] == [
        ("1.png", "1.png"),
        ("2.png", "2.jpg"),
        ("4.bmp", "4.jpg"),  # what is left over after 4.png found its own
        ("4.png", "4.png"),
    ]
    names = [str(path.relative_to(tmp_path)) for path in pairing.unpaired]
    assert names == ["a/3.png", "a/5.png", "b/1.jpg", "b/3.bmp", "b/3.jpg", "b/6.png"]  # 3.jpg or 3.bmp?


def test_all_pairs(run: Any, model: Path, folders: tuple[Path, Path]) -> None:
    a, _ = folders
    result = run("score", "--all-pairs", a, "--model", model)
    first, *pairs, last = result.lines
    assert result.code == 0
    assert (first["header"]["folder"], first["header"]["images"]) == (str(a), 4)
    names = [f"{i}.png" for i in range(4)]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [(x, y) for i, x in enumerate(names) for y in names[i + 1 :]]
    for pair in pairs:
        assert pair["distance"] == pytest.approx(expected(model, a / pair["a"], a / pair["b"]), abs=1e-6)
        assert set(pair) == {"a", "b", "distance"}
    assert last["summary"]["pairs"] == 6
    assert last["summary"]["images"] == 4
    assert last["summary"]["mean"] == pytest.approx(np.mean([pair["distance"] for pair in pairs]), abs=1e-6)
    assert {first["header"][key] == last["summary"][key] for key in (*IDENTITY, "settings")} == {True}


def test_all_pairs_without_a_readable_pair(run: Any, model: Path, folders: tuple[Path, Path]) -> None:
    a, _ = folders
    for i in range(3):
        (a / f"{i}.png").write_bytes(b"")
    result = run("score", "--all-pairs", a, "--model", model)
    assert result.code == 2
    _, last = result.lines
    assert last["summary"]["pairs"] == 0
    assert last["summary"]["mean"] is None and last["summary"]["lowest"] is None
    assert result.err.count("it is empty") == 3


# rank


def test_rank_is_sorted_and_takes_folders(run: Any, model: Path, folders: tuple[Path, Path]) -> None:
    a, b = folders
    reference, candidates = a / "3.png", [a / "0.png", b, a / "0.png"]
    result = run("rank", reference, *candidates, "--model", model, "--json")
    assert result.code == 0
    record = json.loads(result.out)
    ranking = record["ranking"]
    files = [a / "0.png", *(b / f"{i}.png" for i in range(4))]  # given twice, ranked once
    right = sorted((expected(model, reference, file), str(file)) for file in files)
    assert [item["candidate"] for item in ranking] == [name for _, name in right]
    assert [item["distance"] for item in ranking] == pytest.approx([value for value, _ in right], abs=1e-6)
    assert [item["rank"] for item in ranking] == [1, 2, 3, 4, 5]
    assert ranking[0] == {"rank": 1, "candidate": str(b / "3.png"), "distance": 0.0}
    assert record["reference"] == str(reference)
    assert record["model"] == "random" and record["skipped"] == [] and "torch" in record["settings"]

    shown = run("rank", reference, *candidates, "--model", model).out.splitlines()
    assert shown[0].startswith(f"nearest to {reference}  random@tensors:")
    assert shown[1] == f"1  0.0000  {b / '3.png'}"
    assert [line.split()[2] for line in shown[1:]] == [name for _, name in right]


def test_rank_skips_broken_candidates_but_not_a_broken_reference(
    run: Any, model: Path, folders: tuple[Path, Path]
) -> None:
    a, b = folders
    (b / "1.png").write_bytes(b"not an image")
    result = run("rank", a / "0.png", b, b / "missing.png", "--model", model, "--json")
    assert result.code == 2
    assert len(json.loads(result.out)["ranking"]) == 3
    assert [Path(item["file"]).name for item in json.loads(result.out)["skipped"]] == ["1.png", "missing.png"]
    assert str(b / "1.png") in result.err and "no such file" in result.err
    result = run("rank", b / "1.png", a, "--model", model)
    assert (result.code, result.out) == (2, "")


# What is computed


class Counting(Encoder):
    """Notes the size of each batch that is embedded."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return super().forward(images)

    batches: list[int]


def test_every_distinct_image_is_embedded_once(model: Path, folders: tuple[Path, Path]) -> None:
    a, b = folders
    metric = RobustPerceptualDistance(str(model))
    metric.encoder.__class__ = Counting
    metric.encoder.batches = []  # type: ignore[assignment]
    shutil.copy(a / "0.png", a / "copy.png")
    (a / "link.png").symlink_to(a / "1.png")
    (a / "broken.png").write_bytes(b"")
    images = [
        a / "0.png",
        a / "copy.png",
        a / "link.png",
        a / "1.png",
        a / "broken.png",
        b / "0.png",
        a / "2.png",
    ]
    skipped: list[Path] = []
    done: list[int] = []
    with FileEmbeddings(
        metric,
        [*images, *images],
        batch_size=2,
        on_skip=lambda file, reason: skipped.append(file),
        on_done=lambda: done.append(1),
    ) as embeddings:
        assert len(embeddings) == 6  # the link is the file it leads to
        found = [embeddings[image] for image in images]
        assert [embeddings[image] is u for image, u in zip(images, found, strict=True)] == [True] * 7
        with pytest.raises(KeyError, match="other"):
            embeddings[a / "other.png"]
    assert metric.encoder.batches == [2, 2]  # 0 = copy, link = 1, b/0, 2
    assert skipped == [a / "broken.png"]
    assert len(done) == 6
    assert found[4] is None
    assert found[0] is found[1] and found[2] is found[3]
    for image, u in zip(images, found, strict=True):
        if u is not None:
            direct = metric.embed(metric.preprocess(image)[None])[0]
            torch.testing.assert_close(u, direct, rtol=0, atol=1e-6)


def test_files_are_read_no_further_ahead_than_two_batches(model: Path, tmp_path: Path) -> None:
    images = [save_noise(tmp_path / f"{i:02}.png", i, size=(8, 8)) for i in range(30)]
    metric = RobustPerceptualDistance(str(model))
    read: list[Path] = []

    def preprocess(image: Path) -> torch.Tensor:
        read.append(image)
        return metric.encoder.preprocess(image)

    metric.preprocess = preprocess  # type: ignore[method-assign, assignment]
    with FileEmbeddings(metric, images, batch_size=3, on_skip=lambda *_: None) as embeddings:
        assert embeddings[images[0]] is not None
        assert 3 <= len(read) <= 3 + 2 * 3 + 1
    assert len(read) < 30  # and nothing after the end


def test_as_many_files_are_read_at_a_time_as_there_are_workers(model: Path, tmp_path: Path) -> None:
    images = [save_noise(tmp_path / f"{i}.png", i, size=(8, 8)) for i in range(6)]
    metric = RobustPerceptualDistance(str(model))
    three = threading.Barrier(3)

    def preprocess(image: Path) -> torch.Tensor:
        three.wait(PATIENCE)  # raises unless three threads are here
        return metric.encoder.preprocess(image)

    metric.preprocess = preprocess  # type: ignore[method-assign, assignment]
    with FileEmbeddings(metric, images, batch_size=2, on_skip=lambda *_: None, workers=3) as embeddings:
        found = [embeddings[image] for image in images]
    for image, u in zip(images, found, strict=True):
        assert u is not None
        direct = metric.embed(metric.encoder.preprocess(image)[None])[0]
        torch.testing.assert_close(u, direct, rtol=0, atol=1e-6)


def test_weights_that_give_nan_are_an_error(run: Any, model: Path, tmp_path: Path) -> None:
    encoder = RobustPerceptualDistance(str(model)).encoder
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    save_encoder(encoder, tmp_path / "damaged")
    a = save_noise(tmp_path / "a.png", 0)
    result = run("score", a, a, "--model", tmp_path / "damaged")
    assert (result.code, result.out) == (2, "")
    assert "not finite" in result.err


def test_distances_come_from_differences_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(9, 16, dtype=torch.float64), dim=1).float()
    near = torch.nn.functional.normalize(u[0] + 1e-5 * torch.randn(16), dim=0)
    # 1 - cos would be 0 or 6e-8 here in float32: the difference has all its digits.
    right = float((u[0].double() - near.double()).norm() / 2**0.5)
    assert distances(u[0], near[None], False) == pytest.approx([right], rel=1e-3)
    monkeypatch.setattr("rclip_metric.retrieval.embeddings._CPU_BLOCK", 40)  # two rows of 16, and one left over
    for squared in (False, True):
        assert distances(u[0], u[1:], squared) == distance_between(u[0], u[1:], squared).tolist()


def test_summary() -> None:
    summary = Summary()
    assert summary.to_dict() == {"pairs": 0, "mean": None, "lowest": None, "highest": None}
    for distance, name in ((0.5, "x"), (0.25, "y"), (0.75, "z"), (0.75, "later")):
        summary.add(distance, name, "other")
    assert summary.to_dict() == {
        "pairs": 4,
        "mean": 0.5625,
        "lowest": {"distance": 0.25, "a": "y", "b": "other"},
        "highest": {"distance": 0.75, "a": "z", "b": "other"},
    }


# Usage


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["score", "{a}"], "got 1 paths, expected two files or two folders"),
        (["score", "{a}", "{a}", "{a}"], "got 3 paths"),
        (["score", "--all-pairs", "{a}", "{b}"], "got 2 paths"),
        (["score", "{a}", "{file}"], "use rank"),
        (["score", "{a}/nothing", "{a}"], "there is no"),
        (["score", "{a}", "{empty}"], "no image in"),
        (["score", "--all-pairs", "{empty}"], "has 0 images"),
        (["score", "--all-pairs", "{file}"], "cannot list"),
        (["score", "{file}", "{file}", "--model", "r-clip"], "r-clip"),
        (["score", "{file}", "{file}", "--device", "gpu"], "got --device gpu"),
        (["score", "{file}", "{file}", "--device", "cpu:1"], "got --device cpu:1"),
        (["score", "{file}", "{file}", "--batch-size", "0"], "positive whole number"),
        (["score", "{file}", "{file}", "--resize", "crop"], "invalid choice"),
        (["score", "{file}", "{file}", "--dtype", "float16"], "invalid choice"),
        (["score"], "required: PATH"),
        (["rank", "{file}"], "required: candidate"),
        (["rank", "{a}", "{b}"], "is a folder, expected an image"),
        (["rank", "{a}/nothing", "{b}"], "is no file, expected an image"),
        (["rank", "{file}", "{empty}"], "there are no images"),
        (["verify"], "or --all"),
        (["verify", "tiny", "--all"], "or --all"),
        (["download", "tiny", "tiny-clean", "--revision", "main"], "single model"),
        (["download", "--all-published", "--revision", "main"], "single model"),
        (["download"], "or --all-published"),
        (["download", "tiny", "--all-published"], "or --all-published"),
        (["manifest", "--write"], "--write goes with --refresh"),
        (["models", "--device", "cpu"], "unrecognized arguments"),
        (["compare"], "invalid choice"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_usage(run: Any, folders: tuple[Path, Path], arguments: list[str], reason: str) -> None:
    a, b = folders
    (a.parent / "empty").mkdir()
    places = {"a": a, "b": b, "file": a / "0.png", "empty": a.parent / "empty"}
    result = run(*(argument.format(**places) for argument in arguments))
    assert (result.code, result.out) == (2, "")
    assert reason in result.err


def test_a_device_that_is_not_there(run: Any, model: Path, tmp_path: Path) -> None:
    a = save_noise(tmp_path / "a.png", 0)
    result = run("score", a, a, "--model", model, "--device", "cuda:99")
    assert (result.code, result.out) == (2, "")
    assert "there is no cuda:99 device" in result.err


@pytest.mark.parametrize("command", [[], ["score"], ["rank"], ["models"], ["download"], ["verify"], ["manifest"]])
def test_help_names_the_exit_codes(run: Any, command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.code == 0
    assert "exit codes:" in result.out and "2    bad usage or input" in result.out
    if not command:
        for name in ("score", "rank", "models", "download", "verify", "manifest", "train", "eval", "invert", "imagine"):
            assert f"\n    {name} " in result.out


@pytest.mark.parametrize("command", ["train", "eval", "invert", "imagine"])
def test_train_and_eval_are_handed_over(run: Any, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"usage: rclip-metric {command}")
    assert "exit codes:" not in result.out  # the other parser's text
    assert run(command, "nothing-of-that-name").code == 2


# Models


# What a model knows


def test_a_model_of_drawn_scenes_says_so_once_of_photographs(
    run: Any, drawn_only: Path, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    drawing = save_noise(tmp_path / "drawing.png", 9)
    first, _ = (photograph(folder / f"{i}.jpg", i) for i in range(2))
    remark = (
        f"rclip-metric: random knows drawn scenes only, and {first} states a camera and its exposure: "
        "the distances say little about photographs\n"
    )
    for command in (["score", drawing, first], ["rank", drawing, folder], ["rank", drawing, first, folder / "1.jpg"]):
        result = run(*command, "--model", drawn_only)
        assert (result.code, result.err) == (0, remark)
        assert run(*command, "--model", drawn_only, "--quiet").err == ""
        plain = run(*command, "--model", model)
        assert plain.err == "" and plain.out.splitlines()[1:] == result.out.splitlines()[1:]
    assert run("score", "--all-pairs", folder, "--model", drawn_only).err.startswith(remark)
    assert run("score", drawing, folder / "0.png", "--model", drawn_only).err == ""
    assert run("score", drawing, first, "--model", "tiny").err == remark.replace("random", "tiny")


def test_models_table(run: Any) -> None:
    result = run("models")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["name", "clean", "l_inf", "l_2", "on", "size", "licence", "knows", "where"]
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(model_names())]}
    assert list(rows) == model_names()
    assert rows["r-clip-f"].split()[:5] == ["r-clip-f", "90.6", "74.3", "66.1", "nights"]
    assert rows["r-clip-f"].split()[-4:] == ["MIT", "on", "the", "Hub"]
    assert "  ~353 MB  " in rows["r-clip-f"]  # 88,221,824 float32 of the vision tower of a ConvNeXt-B
    assert "  6.9 MB  " in rows["r-lite-f"] and rows["r-lite-f"].endswith("in the package")
    assert rows["r-clip-f+mlp"].endswith("by path")
    assert "1,711 MB" in rows["r-clip-t-vit-l-14"]
    records = json.loads(run("models", "--json").out)
    assert [record["name"] for record in records] == model_names()
    by_name = {record["name"]: record for record in records}
    assert by_name["r-clip-t-vit-l-14"]["size"] == 1710635909
    assert (by_name["r-clip-f"]["clean"], by_name["r-clip-f"]["cached"]) == (90.6, False)
    assert [name for name, row in rows.items() if "  drawn scenes only  " in row] == ["tiny", "tiny-clean"]
    assert {name: record["domain"] for name, record in by_name.items() if record["domain"]} == dict.fromkeys(
        ("tiny", "tiny-clean"), "drawn scenes"
    )


def test_manifest_is_printed_as_it_is_committed(run: Any) -> None:
    assert json.loads(run("manifest").out) == load_manifest()
    assert json.loads(run("manifest", "--json").out) == load_manifest()


class OnHub:
    """A manifest with one small model on the loopback Hub."""

    def __init__(self, hub: Any, model: Path, folder: Path, revision: str | None = None) -> None:
        self.content = (model / "model.safetensors").read_bytes()
        self.commit = hub.commit("owner/small", {"model.safetensors": self.content})
        entry = json.loads((model / "config.json").read_text())
        unknown: dict[str, Any] = {
            "reported": {},
            "citation": None,
            "url_note": None,
            "repo": "owner/small",
            "revision": revision,
        }
        fields = (
            "architecture",
            "mlp_hidden",
            "preprocessing",
            "embedding_dim",
            "training",
            "license",
            "notes",
        )
        file = {"name": "model.safetensors", "sha256": None, "size": None}
        small = {key: entry[key] for key in fields} | unknown | {"layout": "rclip-metric", "source": "hub"}
        self.path = folder / "manifest.json"
        self.path.write_text(json.dumps({"schema_version": 1, "models": {"small": {**small, "files": [file]}}}))


@pytest.fixture
def on_hub(hub: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from rclip_metric.weights import manifest

    found = OnHub(hub, model, tmp_path)
    monkeypatch.setattr(manifest, "manifest_path", lambda: found.path)
    manifest._specs.cache_clear()
    yield found
    manifest._specs.cache_clear()


def test_download_score_and_verify(run: Any, hub: Any, on_hub: OnHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = ["--cache-dir", cache, "--quiet"]
    assert [r["cached"] for r in json.loads(run("models", "--json", *options).out)] == [False]
    assert run("verify", "--all", "--cache-dir", cache) == Result(0, "", "rclip-metric: no model is on this machine\n")
    result = run("download", "small", "--json", *options)
    assert result.code == 0
    record = json.loads(result.out)
    assert (record["name"], record["revision"]) == ("small", on_hub.commit)
    assert Path(record["path"]).read_bytes() == on_hub.content
    assert run("models", *options).out.splitlines()[1].endswith(f"  {record['path']}")
    (listed,) = json.loads(run("models", "--json", *options).out)
    assert (listed["path"], listed["size"]) == (record["path"], len(on_hub.content))

    hub.status = 500  # from here on, a request would be an error
    a = save_noise(tmp_path / "a.png", 0)
    result = run("score", a, a, "--model", "small", *options)
    assert result.out.startswith(f"0.0000  small@{on_hub.commit[:7]} (distance")
    record = json.loads(run("score", a, a, "--model", "small", "--json", *options).out)
    assert (record["model"], record["revision"]) == ("small", on_hub.commit)
    result = run("verify", "--all", *options)
    assert (result.code, result.out.split()[0]) == (0, "small")


def test_a_model_that_fails_does_not_keep_the_others_back(run: Any, hub: Any, on_hub: OnHub, tmp_path: Path) -> None:
    result = run("download", "missing/repo", "no-such-name", "small", "--cache-dir", tmp_path / "cache", "--quiet")
    assert result.code == 3  # the worst of 3, 2 and 0
    assert [line.split()[0] for line in result.out.splitlines()] == ["small"]
    assert len(result.err.splitlines()) == 2
    assert run("download", "no-such-name").code == 2


def test_all_published_models_are_fetched_and_one_that_fails_is_named(
    run: Any, hub: Any, on_hub: OnHub, tmp_path: Path
) -> None:
    from rclip_metric.weights import manifest

    models = json.loads(on_hub.path.read_text())["models"]
    gone = models["small"] | {"repo": "owner/gone"}
    by_path = models["small"] | {"source": "local", "repo": None}
    entries = {"gone": gone, "by-path": by_path, "tiny": load_manifest_entry("tiny"), "small": models["small"]}
    on_hub.path.write_text(json.dumps({"schema_version": 1, "models": entries}))
    manifest._specs.cache_clear()
    result = run("download", "--all-published", "--cache-dir", tmp_path / "cache", "--quiet")
    assert (result.code, [line.split()[0] for line in result.out.splitlines()]) == (3, ["small"])
    assert "owner/gone" in result.err and result.err.count("\n") == 1
    hub.commit("owner/gone", {"model.safetensors": on_hub.content})
    result = run("download", "--all-published", "--cache-dir", tmp_path / "cache", "--quiet")
    assert (result.code, [line.split()[0] for line in result.out.splitlines()]) == (0, ["gone", "small"])


def load_manifest_entry(name: str) -> Any:
    return json.loads((Path(__file__).parents[2] / "weights_manifest.json").read_text())["models"][name]


def test_the_hub_and_the_file_are_exit_code_3(run: Any, hub: Any, on_hub: OnHub, tmp_path: Path) -> None:
    a = save_noise(tmp_path / "a.png", 0)

    def score(name: str, cache: Path) -> str:
        result = run("score", a, a, "--model", name, "--cache-dir", cache, "--quiet")
        assert (result.code, result.out, len(result.err.splitlines())) == (3, "", 1), result.err
        return result.err

    cache = tmp_path / "cache"
    assert "no/such" in score("no/such", cache)
    hub.status = 401
    assert "401" in score("small", cache)
    hub.status = None
    hub.bodies[file_digest(_written(tmp_path / "copy", on_hub.content))] = b"\0" * len(on_hub.content)
    assert "not the published file" in score("small", cache)
    hub.bodies.clear()
    score("small", _written(tmp_path / "file", b"") / "cache")  # a cache that cannot be made
    result = run("verify", "small", "--cache-dir", cache)
    assert result.code == 3 and "not in the cache" in result.err and "`rclip-metric download small`" in result.err


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_manifest_refresh_shows_and_writes(run: Any, hub: Any, on_hub: OnHub) -> None:
    before = on_hub.path.read_text()
    result = run("manifest", "--refresh")
    assert result.code == 0
    assert f"small.revision: None -> {on_hub.commit}" in result.out
    assert "nothing was written: add --write" in result.err
    assert on_hub.path.read_text() == before
    record = json.loads(run("manifest", "--refresh", "--write", "--json").out)
    assert record["written"] and len(record["changes"]) == 3 and record["failed"] == []
    entry = json.loads(on_hub.path.read_text())["models"]["small"]
    assert entry["revision"] == on_hub.commit
    assert entry["files"][0]["size"] == len(on_hub.content)
    assert list(on_hub.path.parent.glob(".*tmp")) == []
    assert run("manifest", "--refresh", "--write").out == "nothing differs\n"
    hub.repos.clear()
    result = run("manifest", "--refresh", "--json")
    assert result.code == 3
    assert len(json.loads(result.out)["failed"]) == 1
    assert "not refreshed" in result.err


# As a process


def test_the_process_keeps_the_streams_and_the_code_apart(model: Path, folders: tuple[Path, Path]) -> None:
    a, _ = folders
    (a / "0.png").write_bytes(b"not an image")
    no_utf8 = a / os.fsdecode(b"\xff\xe4.png")
    shutil.copy(a / "1.png", no_utf8)
    arguments = ["rank", a / "1.png", a / "0.png", a / "2.png", no_utf8, "--model", model]
    result = subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=a.parent, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert result.returncode == 2
    _, nearest, _ = result.stdout.splitlines()
    assert nearest.split()[:2] == ["1", "0.0000"]
    (complaint,) = result.stderr.splitlines()  # no traceback, no warning, no progress bar
    assert str(a / "0.png") in complaint
    assert sorted(path.name for path in a.parent.iterdir()) == ["a", "b"]  # nothing left behind


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "100"}, None)],
)
def test_threads_of_the_process_sleep_while_they_wait_unless_the_user_says_otherwise(
    own: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
        if name in own:
            monkeypatch.setenv(name, own[name])
    assert main(["--version"]) == 0
    assert {name: os.environ[name] for name in WAITING if name in os.environ} == own  # called by others it sets nothing
    seen: list[str | None] = []
    monkeypatch.setattr("rclip_metric.cli.main.console_main", lambda: seen.append(os.environ.get("OMP_WAIT_POLICY")))
    monkeypatch.setenv("OMP_WAIT_POLICY", own.get("OMP_WAIT_POLICY", ""))  # so that it is put back
    if "OMP_WAIT_POLICY" not in own:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    console_main()
    assert seen == [expected]


def test_neither_the_command_nor_its_parts_import_torch_before_that() -> None:
    code = "import sys, rclip_metric.__main__; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert result.stdout == "False\n"


@pytest.fixture
def endless(model: Path, tmp_path: Path) -> list[str]:
    """A command with more output than a pipe holds: it waits for its reader."""
    for i in range(60):
        save_noise(tmp_path / "many" / f"{'x' * 100}{i}.png", i, size=(4, 4))
    run = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # also in a background job
    command = [sys.executable, "-c", run + COMMAND[-1]]
    return [*command, "score", "--all-pairs", str(tmp_path / "many"), "--model", str(model)]


def test_a_reader_that_leaves_is_no_error(endless: list[str]) -> None:
    with subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        json.loads(running.stdout.readline())
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(timeout=PATIENCE) == 141


def test_interrupting_is_quiet(endless: list[str]) -> None:
    with subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        header, first = running.stdout.readline(), running.stdout.readline()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, err) == (130, "rclip-metric: interrupted\n")
    assert "header" in json.loads(header) and json.loads(first)["distance"] > 0
    assert '"summary"' not in out


@pytest.mark.parametrize(("flags", "shown"), [([], True), (["--quiet"], False)])
def test_a_progress_bar_on_a_terminal_and_nowhere_else(
    run: Any,
    model: Path,
    folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    shown: bool,
) -> None:
    a, b = folders
    (a / "0.png").write_bytes(b"not an image")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for command in (["score", a, b], ["score", "--all-pairs", a], ["rank", a / "1.png", a]):
        result = run(*command, "--model", model, *flags)
        assert result.code == 2
        assert ("image/s" in result.err) == shown
        assert ("/8" in result.err or "/4" in result.err) == shown  # of how many
        assert f"cannot read {a / '0.png'}" in result.err
        assert "image/s" not in result.out
    # On a terminal the lines of the pairs come one by one already, and a bar would be torn apart by them.
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "image/s" not in run("score", a, b, "--model", model).err
