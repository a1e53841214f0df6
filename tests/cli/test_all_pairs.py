"""All pairs of a folder, in every format, against the distances of Python."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

import rclip_metric
from rclip_metric.cli.main import main

from support.images import save_noise

NAMES = ["0.png", "1.png", 'a "quoted", 100%s.png', "z.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "images"
    for seed, name in enumerate(NAMES):
        save_noise(folder / name, min(seed, 2))  # the last two are the same
    return folder


@pytest.fixture(scope="module")
def right(folder: Path) -> np.ndarray:
    return np.array([[rclip_metric.score(folder / a, folder / b, "tiny") for b in NAMES] for a in NAMES])


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["score", "--all-pairs", "--model", "tiny", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def rows_of(path: Path) -> list[tuple[str, str, float]]:
    if path.suffix == ".parquet":
        table = pq.read_table(path).to_pylist()
    elif path.suffix == ".csv":
        table = list(csv.DictReader(io.StringIO(path.read_text())))
    else:
        table = [json.loads(line) for line in path.read_text().splitlines()][1:-1]
    return [(row["a"], row["b"], float(row["distance"])) for row in table]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_file_of_rows(
    kind: str, folder: Path, right: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"pairs.{kind}"
    code, said, _ = run(capsys, folder, "-o", out)
    assert code == 0
    rows = rows_of(out)
    assert [row[:2] for row in rows] == [(a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]]
    np.testing.assert_allclose([row[2] for row in rows], right[np.triu_indices(4, 1)], atol=1e-6)
    summary = json.loads(said)["summary"]
    assert summary["pairs"] == 6 and summary["lowest"] == {"distance": 0.0, "a": NAMES[2], "b": NAMES[3]}
    if kind == "jsonl":
        assert json.loads(out.read_text().splitlines()[-1])["summary"] == summary
    else:
        beside = json.loads(Path(f"{out}.json").read_text())
        assert beside["images"] == NAMES and beside["summary"] == summary and beside["model"] == "tiny"
        assert beside["settings"]["batch_size"] == 8
    assert len(list(tmp_path.iterdir())) == (1 if kind == "jsonl" else 2)  # nothing unfinished


def test_a_matrix_is_symmetric_and_mapped(
    folder: Path, right: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs.npy"
    code, said, _ = run(capsys, folder, "--output", out, "--squared")
    matrix = np.load(out, mmap_mode="r")
    assert code == 0 and matrix.dtype == np.float32 and matrix.shape == (4, 4)
    np.testing.assert_allclose(matrix, right**2, atol=1e-6)
    assert (matrix == matrix.T).all()
    assert json.loads(Path(f"{out}.json").read_text())["images"] == NAMES
    summary = json.loads(said)["summary"]
    assert summary["pairs"] == 6
    assert summary["mean"] == pytest.approx((right**2)[np.triu_indices(4, 1)].mean(), abs=1e-6)


def test_the_nearest_and_those_below(folder: Path, right: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    below = float(np.sort(right[np.triu_indices(4, 1)])[3])  # three pairs are nearer
    code, said, _ = run(capsys, folder, "--below", below)
    header, *rows, last = map(json.loads, said.splitlines())
    near = [(i, j) for i in range(4) for j in range(i + 1, 4) if right[i, j] < below]
    assert code == 0 and header["header"]["below"] == below
    assert [(row["a"], row["b"]) for row in rows] == [(NAMES[i], NAMES[j]) for i, j in near]
    assert last["summary"]["pairs"] == len(near)

    code, said, told = run(capsys, folder, "--top", 2, "--format", "csv")
    table = list(csv.DictReader(io.StringIO(said)))  # text alone: the summary is in words, on stderr
    order = np.argsort(right + 9 * np.eye(4), axis=1, kind="stable")[:, :2]
    assert code == 0 and "8 pairs" in told
    assert [(row["a"], row["b"]) for row in table] == [(NAMES[i], NAMES[j]) for i in range(4) for j in order[i]]
    _, said, _ = run(capsys, folder, "--top", 2, "--below", 1e-3, "--format", "csv", "--quiet")
    assert said == f'a,b,distance\n"{NAMES[2]}",z.png,0\nz.png,"{NAMES[2]}",0\n'.replace('a "quoted"', 'a ""quoted""')


def test_what_fails_leaves_the_old_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "pairs.csv"
    out.write_text("as it was")

    def broken(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rclip_metric.retrieval.Summary.add_row", broken)
    assert main(["score", "--all-pairs", str(folder), "--model", "tiny", "-o", str(out), "--quiet"]) == 130
    assert out.read_text() == "as it was" and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--format", "npy"], "say which file to write"),
        (["-o", "{out}.npy", "--top", "3"], "a matrix holds all pairs"),
        (["-o", "{folder}/0.png"], "is one of the images that are read"),
        (["-o", "{folder}"], "is a folder"),
        (["--below", "0"], "expected a distance above 0"),
        (["-o", "{out}.parquet"], 'pip install "rclip-metric[parquet]"'),
    ],
)
def test_refused_before_anything_is_computed(
    arguments: list[str],
    reason: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delattr("rclip_metric.retrieval.ModelSource.load")
    code, said, told = run(capsys, folder, *(text.format(folder=folder, out=tmp_path / "out") for text in arguments))
    assert (code, said) == (2, "") and reason in told
    assert list(tmp_path.iterdir()) == []


def test_they_go_with_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(folder / NAMES[0])
    assert main(["score", image, image, "--top", "3"]) == 2
    assert "--top and --recursive go with folders" in capsys.readouterr().err
