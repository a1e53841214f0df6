"""Two folders as tables, folders of folders, and rankings that leave the query out."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

import rclip_metric
from rclip_metric.cli.main import main

from support.images import save_noise

NAMES = ["0.png", 'a "quoted", 100%s.png', "in/0.png", "in/deeper/2.png"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("folders")
    for seed, name in enumerate(NAMES):
        save_noise(root / "a" / name, seed)
        save_noise(root / "b" / name, seed if name == "in/0.png" else seed + 10)
    (root / "b" / "in" / "notes.txt").touch()
    return root / "a", root / "b"


@pytest.fixture(scope="module")
def right(folders: tuple[Path, Path]) -> list[float]:
    a, b = folders
    return [rclip_metric.score(a / name, b / name, "tiny") for name in NAMES]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments), "--model", "tiny"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_table_of_two_folders(
    kind: str, run: Any, folders: tuple[Path, Path], right: list[float], tmp_path: Path
) -> None:
    a, b = folders
    out = tmp_path / f"pairs.{kind}"
    code, said, told = run("score", a, b, "--recursive", "-o", out)
    assert code == 0 and f"{b}: left out 1 file" in told
    if kind == "parquet":
        rows = pq.read_table(out).to_pylist()
    elif kind == "csv":
        rows = list(csv.DictReader(io.StringIO(out.read_text())))
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert rows.pop() == json.loads(said) and rows[0]["model"] == "tiny"
    assert [(row["a"], row["b"]) for row in rows] == [(str(a / name), str(b / name)) for name in NAMES]
    np.testing.assert_allclose([float(row["distance"]) for row in rows], right, atol=1e-6)
    summary = json.loads(said)["summary"]
    assert (summary["pairs"], summary["left_out"]) == (4, 1) and summary["mean"] == pytest.approx(np.mean(right))
    if kind != "jsonl":
        beside = json.loads(Path(f"{out}.json").read_text())
        assert beside["summary"] == summary and beside["folders"] == [str(a), str(b)]


def test_csv_is_text_alone_and_subfolders_are_asked_for(run: Any, folders: tuple[Path, Path]) -> None:
    a, b = folders
    code, said, told = run("score", a, b, "--csv")
    rows = list(csv.DictReader(io.StringIO(said)))
    assert code == 0 and [Path(row["a"]).name for row in rows] == NAMES[:2] and "2 pairs, mean" in told
    assert run("score", a, b, "--format", "csv")[1] == said
    code, said, _ = run("score", "--all-pairs", a, "--recursive", "--csv")
    pairs = [(row["a"], row["b"]) for row in csv.DictReader(io.StringIO(said))]
    assert code == 0 and pairs == [(x, y) for i, x in enumerate(NAMES) for y in NAMES[i + 1 :]]


def test_the_pairs_that_differ_most_and_the_summary_of_all(
    run: Any, folders: tuple[Path, Path], right: list[float]
) -> None:
    a, b = folders
    code, said, _ = run("score", a, b, "--recursive", "--top", 2)
    *rows, last = map(json.loads, said.splitlines())
    order = np.argsort(right)[::-1]
    assert code == 0 and [row["a"] for row in rows] == [str(a / NAMES[i]) for i in order[:2]]
    assert last["summary"]["pairs"] == 4 and last["summary"]["lowest"]["distance"] == 0.0
    below = right[order[1]] + 1e-4
    _, said, _ = run("score", a, b, "--recursive", "--below", below, "--csv", "--quiet")
    assert [row["b"] for row in csv.DictReader(io.StringIO(said))] == [
        str(b / name) for name, distance in zip(NAMES, right, strict=True) if distance < below
    ]


def test_a_broken_file_leaves_the_rest(run: Any, folders: tuple[Path, Path], tmp_path: Path) -> None:
    a, _ = folders
    for name in NAMES[:2]:
        save_noise(tmp_path / name, 3)
    (tmp_path / NAMES[1]).write_bytes(b"broken")
    code, said, told = run("score", a, tmp_path, "--csv")
    assert code == 2 and len(said.splitlines()) == 2 and f"cannot read {tmp_path / NAMES[1]}" in told


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--format", "npy"], "two folders have no matrix"),
        (["--format", "parquet"], "say which file to write"),
        (["-o", "{b}/0.png"], "is one of the images that are read"),
        (["--csv", "--top", "0"], "positive whole number"),
    ],
)
def test_refused_before_anything_is_computed(
    arguments: list[str], reason: str, run: Any, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("rclip_metric.retrieval.ModelSource.load")
    code, said, told = run("score", *folders, *(text.format(b=folders[1]) for text in arguments))
    assert (code, said) == (2, "") and reason in told


def test_a_ranking_leaves_the_query_out_and_says_so(
    run: Any, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = folders
    link = tmp_path / "link.png"
    link.symlink_to(a / "0.png")
    copy = tmp_path / "copy.png"
    copy.write_bytes((a / "0.png").read_bytes())
    monkeypatch.chdir(a)
    words = ("rank", "0.png", a, b, tmp_path, "--recursive", "--json")
    code, said, told = run(*words)
    record = json.loads(said)
    ranked = [item["candidate"] for item in record["ranking"]]
    files = [folder / name for folder in (a, b) for name in NAMES if (folder, name) != (a, "0.png")] + [copy]
    truth = {str(file): rclip_metric.score(a / "0.png", file, "tiny") for file in files}
    assert code == 0 and ranked[0] == str(copy)  # another file, though the same image
    assert sorted(ranked) == sorted(truth)
    np.testing.assert_allclose([item["distance"] for item in record["ranking"]], sorted(truth.values()), atol=1e-6)
    assert record["left_out"] == [str(a / "0.png"), str(link)]
    for file in record["left_out"]:
        assert f"{file} is the reference itself and left out of its ranking; --with-query keeps it" in told
    assert run(*words, "--quiet")[2] == ""
    kept = json.loads(run(*words, "--with-query", "--top", 4)[1])
    assert kept["left_out"] == [] and len(kept["ranking"]) == 4
    zeros = {item["candidate"] for item in kept["ranking"] if item["distance"] == 0.0}
    assert zeros == {str(a / "0.png"), str(copy), str(link)}
    top = [item["candidate"] for item in json.loads(run(*words, "--top", 2)[1])["ranking"]]
    assert top == ranked[:2]
    code, said, told = run("rank", link, os.path.join(a, "0.png"))
    assert (code, said) == (2, "") and "nothing else is to be ranked: add --with-query" in told
