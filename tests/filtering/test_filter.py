"""The command filter: what it decides, from every kind of source, and what it says of bad input."""

import csv
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rclip_metric.filtering.job
from rclip_metric import ContentFilter, ImageIndex, RobustPerceptualDistance
from rclip_metric.cli.main import main
from rclip_metric.images import load_image
from rclip_metric.retrieval import significant

from support.filtering import contents, make_images, make_pools, write_parquet, write_tars
from support.images import save_noise

Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_pools(folder / "pools")
    make_images(folder / "images", 23)
    write_tars(folder / "tars", contents(folder / "images"), 10)
    write_parquet(folder / "parquet", contents(folder / "images"), 10)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["filter", *map(str, words), "--quiet", "--device", "cpu"])
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


def table(out: Path) -> Rows:
    with (out / "decisions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def decided(rows: Rows) -> list[tuple[str, ...]]:
    """What does not depend on how an image is called."""
    return [tuple(text for name, text in row.items() if name not in ("file", "identical")) for row in rows]


def test_it_says_what_the_filter_says(data, run, tmp_path):
    code, out, err = run("--pools", data / "pools", "--images", data / "images", "--out", tmp_path / "out",
                         "--model", "tiny", "--k", "3")  # fmt: skip
    assert (code, err) == (0, "") and out.startswith("23 images: ")
    rows = table(tmp_path / "out")
    metric = RobustPerceptualDistance("tiny")
    index = ImageIndex.build(data / "pools", metric)
    files = sorted((data / "images").rglob("*.jpg"))
    expected = ContentFilter(index, metric, k=3).decide([str(file) for file in files])
    assert [row["file"] for row in rows] == [file.relative_to(data / "images").as_posix() for file in files]
    assert {decision.label for decision in expected} == {"safe", "buffer", "unsafe"}
    for row, decision in zip(rows, expected, strict=True):
        assert (row["decision"], row["class"], row["neighbour"]) == (decision.label, decision.label, decision.neighbour)
        assert float(row["similarity"]) == pytest.approx(decision.similarity, abs=1e-6)
        assert float(row["other"]) == pytest.approx(decision.other, abs=1e-6)
        assert float(row["margin"]) == significant(float(row["similarity"]) - float(row["other"]))
        assert (row["identical"], row["error"]) == ("false", "")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    counts = {label: [d.label for d in expected].count(label) for label in {d.label for d in expected}}
    assert (summary["images"], summary["decisions"], summary["job"]["k"]) == (23, counts, 3)
    assert summary["job"]["model"]["name"] == "tiny" and summary["this_run"]["images"] == 23


def test_every_source_gives_the_same(data, run, tmp_path):
    index = ImageIndex.build(data / "images", RobustPerceptualDistance("tiny"), path=tmp_path / "index", source="tiny")
    assert len(index) == 23
    pools = ImageIndex.build(data / "pools", index.metric, path=tmp_path / "pools", source="tiny")
    assert len(pools) == 8
    found = {}
    sources = {
        "files": data / "images",
        "tars": data / "tars",
        "parquet": data / "parquet",
        "index": tmp_path / "index",
    }
    sources |= {"one tar": data / "tars" / "s-001.tar", "pattern": data / "tars" / "s-{001..001}.tar"}
    for name, source in sources.items():
        given = tmp_path / "pools" if name == "pattern" else data / "pools"
        model = () if name == "pattern" else ("--model", "tiny")  # the index of the examples knows its own
        code, _, err = run("--pools", given, "--images", source, "--out", tmp_path / "out" / name, *model)
        assert (code, err) == (0, "")
        found[name] = table(tmp_path / "out" / name)
    kept = ("decision", "class", "neighbour")
    for name in ("tars", "parquet", "index"):  # batches end elsewhere: the last digit may be another
        for row, same in zip(found[name], found["files"], strict=True):
            assert [row[column] for column in kept] == [same[column] for column in kept]
            assert float(row["margin"]) == pytest.approx(float(same["margin"]), abs=1e-6)
    assert [row["file"] for row in found["tars"]][9:11] == ["s-000.tar:0009", "s-001.tar:0010"]
    assert [row["file"] for row in found["parquet"]][9:11] == ["p-000.parquet:9", "p-001.parquet:0"]
    assert decided(found["one tar"]) == decided(found["pattern"]) == decided(found["tars"])[10:20]


def test_shards_are_parts_and_parquet_is_the_same_table(data, run, tmp_path):
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    run("--pools", data / "pools", "--images", data / "tars", "--out", tmp_path, "--model", "tiny")
    names = sorted(path.name for path in (tmp_path / "decisions").iterdir())
    assert names == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    rows = table(tmp_path)
    for source in (tmp_path / "decisions.parquet", tmp_path / "decisions"):
        whole = pq.read_table(source).to_pylist()
        assert [row["file"] for row in whole] == [row["file"] for row in rows]
        assert [row["margin"] for row in whole] == [float(row["margin"]) for row in rows]
        assert {row["error"] for row in whole} == {None}


def test_without_pyarrow_it_is_csv_alone(data, run, tmp_path, monkeypatch):
    run("--pools", data / "pools", "--images", data / "tars", "--out", tmp_path / "both", "--model", "tiny")
    monkeypatch.setattr(rclip_metric.filtering.job, "best_format", lambda: "csv")
    (tmp_path / "tar").symlink_to(data / "tars")
    words = ["filter", "--pools", str(data / "pools"), "--images", str(data / "tars"), "--model", "tiny"]
    assert main([*words, "--out", str(tmp_path / "csv"), "--device", "cpu"]) == 0
    assert table(tmp_path / "csv") == table(tmp_path / "both")
    assert not (tmp_path / "csv" / "decisions.parquet").exists()
    monkeypatch.undo()  # a job that was begun keeps its format
    (tmp_path / "csv" / "decisions" / "part-00001.csv").unlink()
    assert run(*words[1:], "--out", tmp_path / "csv")[0] == 0
    assert table(tmp_path / "csv") == table(tmp_path / "both")


def test_what_cannot_be_read_is_named_and_the_rest_is_decided(data, run, tmp_path):
    shutil.copytree(data / "images", tmp_path / "images")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    shutil.copy(data / "pools" / "unsafe" / "1.png", tmp_path / "images" / "same.png")
    code, _, err = run("--pools", data / "pools", "--images", tmp_path / "images", "--out", tmp_path / "out",
                       "--model", "tiny")  # fmt: skip
    assert code == 2 and err == (
        "rclip-metric: broken.jpg: cannot read the image: not an image, or not in a format that is read here\n"
    )
    rows = {row["file"]: row for row in table(tmp_path / "out")}
    assert len(rows) == 25 and rows["broken.jpg"]["decision"] == rows["broken.jpg"]["margin"] == ""
    assert (rows["same.png"]["decision"], rows["same.png"]["identical"]) == ("unsafe", "true")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["unreadable"], summary["identical_to_an_example"]) == (1, 1)


@pytest.mark.parametrize("kind", ["tars", "parquet"])
def test_a_shard_that_is_cut_off_is_named(data, run, tmp_path, kind):
    shutil.copytree(data / kind, tmp_path / kind)
    shard = sorted((tmp_path / kind).iterdir())[1]
    os.truncate(shard, shard.stat().st_size // 2)
    code, _, err = run("--pools", data / "pools", "--images", tmp_path / kind, "--out", tmp_path / "out",
                       "--model", "tiny")  # fmt: skip
    assert code == 2 and re.search(rf"{shard.name}.* is damaged, .*what follows is left out", err)
    assert err.count("\n") == 1
    rows = table(tmp_path / "out")
    good = [row for row in rows if not row["error"]]
    whole = 13 if kind == "parquet" else len(rows) - 1  # a Parquet file has its list of contents at the end
    assert len(good) == whole and 13 <= whole < 22 and [row["file"] for row in rows if row["error"]] == [shard.name]


def test_nothing_is_near_enough(data, run, tmp_path):
    code, out, _ = run("--pools", data / "pools", "--images", data / "images", "--out", tmp_path, "--model", "tiny",
                       "--threshold", "0.01")  # fmt: skip
    assert code == 0 and "23 near to no example" in out
    assert {(row["decision"], row["class"]) for row in table(tmp_path)} == {("", "")}


class Redness:
    """A detector whose score is known by hand: the log-odds of an image are the first channel's mean."""

    name, threshold = "redness", 0.5

    def __init__(self, spec: str, device: str) -> None:
        self.device = torch.device(device)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "offset": 0.5}

    def preprocess(self, image: Any) -> torch.Tensor:
        return load_image(image)[:, :8, :8]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return 10 * (images[:, 0].mean((1, 2)) - 0.5)


@pytest.fixture
def redness(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("rclip_metric.detectors.loading")
    module.load_detector = Redness  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_detector_has_a_say(data, run, tmp_path, redness):
    shutil.copytree(data / "images", tmp_path / "images")
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "images" / "red.png")
    words = ("--pools", data / "pools", "--images", tmp_path / "images", "--model", "tiny")
    assert run(*words, "--out", tmp_path / "alone")[0] == 0
    assert run(*words, "--out", tmp_path / "both", "--detector", "redness")[0] == 0
    alone, both = table(tmp_path / "alone"), table(tmp_path / "both")
    for row, without in zip(both, alone, strict=True):
        level = load_image(tmp_path / "images" / row["file"])[0, :8, :8].mean().double()
        score = (10 * (level - 0.5)).sigmoid().item()
        assert float(row["redness"]) == pytest.approx(score, abs=1e-5)
        assert row["class"] == without["class"]
        assert row["decision"] == ("unsafe" if score >= 0.5 else without["class"])
    assert {row["decision"] for row in both if row["file"] == "red.png"} == {"unsafe"}
    code, _, err = run(*words, "--out", tmp_path / "other", "--detector", "redness", "--unsafe", "weapons")
    assert code == 2 and "--detector says what is weapons, and the classes are buffer, safe, unsafe" in err
    assert not (tmp_path / "other" / "job.json").exists()


def test_a_detector_looks_at_the_files_of_an_index(data, run, tmp_path, redness):
    metric = RobustPerceptualDistance("tiny")
    index = ImageIndex(metric)
    files = sorted((data / "images").rglob("*.jpg"))[:2]
    index.add(files)
    index.add(torch.eye(128)[:1], ids=["bare"])
    index.save(tmp_path / "index")
    code, _, err = run("--pools", data / "pools", "--images", tmp_path / "index", "--out", tmp_path / "out",
                       "--model", "tiny", "--detector", "redness")  # fmt: skip
    rows = table(tmp_path / "out")
    assert [bool(row["redness"]) for row in rows] == [True, True, False]
    assert code == 2 and "bare: detectors need the picture, and the index knows no file of it" in err


def test_images_are_linked_or_copied_by_class(data, run, tmp_path):
    words = ("--pools", data / "pools", "--model", "tiny")
    before = {path: path.stat().st_mtime_ns for path in (data / "images").rglob("*")}
    assert run(*words, "--images", data / "images", "--out", tmp_path / "linked", "--link")[0] == 0
    rows = table(tmp_path / "linked")
    for row in rows:
        link = tmp_path / "linked" / "images" / row["decision"] / row["file"]
        assert link.is_symlink() and link.resolve() == (data / "images" / row["file"]).resolve()
    assert sum(path.is_symlink() for path in (tmp_path / "linked" / "images").rglob("*")) == 23
    assert run(*words, "--images", data / "images", "--out", tmp_path / "linked", "--link")[0] == 0  # once more

    code, _, err = run(*words, "--images", data / "tars", "--out", tmp_path / "tars", "--link")
    assert code == 2 and "there is no file to link to in s-000.tar: pass --copy" in err
    for kind in ("tars", "parquet"):
        assert run(*words, "--images", data / kind, "--out", tmp_path / kind, "--copy")[0] == 0
        copies = [path for path in (tmp_path / kind / "images").rglob("*.jpg") if path.is_file()]
        assert sorted(path.read_bytes() for path in copies) == sorted(contents(data / "images"))
    assert {path: path.stat().st_mtime_ns for path in (data / "images").rglob("*")} == before


def test_a_shard_cannot_write_outside(data, run, tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name in ("../../../evil.jpg", "/evil.jpg", "good.jpg"):
            member = tarfile.TarInfo(name)
            content = contents(data / "images")[0]
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    code, _, err = run("--pools", data / "pools", "--images", tmp_path / "evil.tar", "--out", tmp_path / "a" / "out",
                       "--model", "tiny", "--copy")  # fmt: skip
    assert code == 2 and err.count("its name leads out of the folder") >= 1
    inside = tmp_path / "a" / "out"
    stray = [path for path in tmp_path.rglob("*.jpg") if not path.resolve().is_relative_to(inside)]
    assert stray == [] and len(list((inside / "images").rglob("good.jpg"))) == 1
    assert not Path("/evil.jpg").exists()


def test_the_page_blurs_what_is_unsafe(data, run, tmp_path):
    words = ("--pools", data / "pools", "--images", data / "tars", "--model", "tiny")
    page: dict[str, str] = {}
    for name, more in {
        "blurred": (), "open": ("--no-blur",), "empty": ("--no-thumbnails",), "unknown": ("--unsafe", "weapons"),
    }.items():  # fmt: skip
        assert run(*words, "--out", tmp_path / name, "--sample", "4", *more)[0] == 0
        page[name] = (tmp_path / name / "gallery.html").read_text()
    rows = table(tmp_path / "blurred")
    counts = {label: sum(row["decision"] == label for row in rows) for label in {row["decision"] for row in rows}}
    shown = {label: min(4, count) for label, count in counts.items()}
    assert len(counts) >= 2 and counts["unsafe"]
    assert page["blurred"].count('<input type="checkbox"') == shown["unsafe"]
    assert page["blurred"].count("data:image/jpeg") == sum(shown.values())
    assert "<script" not in page["blurred"]
    assert page["open"].count('<input type="checkbox"') == 0
    assert page["empty"].count("left out") == shown["unsafe"]
    assert page["empty"].count("data:image/jpeg") == sum(shown.values()) - shown["unsafe"]
    assert page["unknown"].count('<input type="checkbox"') == sum(shown.values())
    assert run(*words, "--out", tmp_path / "none", "--sample", "0")[0] == 0
    assert not (tmp_path / "none" / "gallery.html").exists()


def test_other_settings_or_images_are_another_job(data, run, tmp_path):
    shutil.copytree(data / "images", tmp_path / "images")
    shutil.copytree(data / "pools", tmp_path / "pools")
    words = ("--pools", tmp_path / "pools", "--images", tmp_path / "images", "--out", tmp_path / "out")
    assert run(*words, "--model", "tiny")[0] == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def refused(*more: object) -> str:
        code, _, err = run(*words, *more)
        assert code == 2
        found = re.fullmatch(r".* holds a job of other settings \((.*)\): give this one an --out of its own, .*\n", err)
        assert found, err
        return found[1]

    assert refused("--model", "tiny", "--k", "2") == "k"
    assert refused("--model", "tiny-clean", "--threshold", "1") == "model, threshold"
    save_noise(tmp_path / "images" / "new.jpg", 99)
    assert refused("--model", "tiny") == "images"
    (tmp_path / "images" / "new.jpg").unlink()
    save_noise(tmp_path / "pools" / "unsafe" / "new.png", 98)
    assert refused("--model", "tiny") == "pools"
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == kept
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    code, _, err = run(*words[:-1], tmp_path / "mine", "--model", "tiny")
    assert code == 2 and "is not empty, and holds no job" in err


def bad_pools(kind: str, folder: Path) -> str:
    """Make pools that are no pools; what is said of them."""
    if kind == "missing":
        return "is not there, expected a folder with the classes"
    folder.mkdir()
    if kind == "empty":
        return "a filter needs two classes or more, and .* has none"
    save_noise(folder / "safe" / "0.png", 0)
    if kind == "one class":
        return "a filter needs two classes or more, and .* has safe"
    (folder / "unsafe").mkdir()
    if kind == "empty class":
        return "the class unsafe has no example: there are no images below"
    if kind == "broken class":
        (folder / "unsafe" / "0.png").write_bytes(b"no image")
        return "the class unsafe has no example that can be read"
    if kind == "no class":
        save_noise(folder / "1.png", 1)
        return "1.png is in no class"
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["missing", "empty", "one class", "empty class", "broken class", "no class"])
def test_pools_that_are_none(data, run, tmp_path, kind):
    said = bad_pools(kind, tmp_path / "pools")
    code, out, err = run("--pools", tmp_path / "pools", "--images", data / "images", "--out", tmp_path / "out",
                         "--model", "tiny")  # fmt: skip
    assert (code, out) == (2, "") and re.search(said, err.splitlines()[-1])
    assert not (tmp_path / "out" / "job.json").exists()


def test_a_class_of_one_works_and_is_remarked_on(data, tmp_path, capsys):
    for label in ("safe", "unsafe"):
        save_noise(tmp_path / "pools" / label / "0.png", len(label))
    words = ["--pools", str(tmp_path / "pools"), "--images", str(data / "images"), "--out", str(tmp_path / "out")]
    assert main(["filter", *words, "--model", "tiny", "--device", "cpu"]) == 0
    assert "the class unsafe has one example only" in capsys.readouterr().err


def test_images_that_are_none(data, run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.tar").touch()
    save_noise(tmp_path / "both" / "a.png", 0)
    (tmp_path / "notes.txt").touch()
    for source, said in {
        tmp_path / "empty": "there are no images below",
        tmp_path / "nowhere": "is not there: pass a folder of images",
        tmp_path / "notes.txt": "is a file that is none of these",
        tmp_path / "both": "holds .tar and images",
        data / "tars" / "s-{000..007}.tar": "5 of the 8 shards",
    }.items():
        code, _, err = run("--pools", data / "pools", "--images", source, "--out", tmp_path / "out", "--model", "tiny")
        assert code == 2 and said in err, err
    code, _, err = run("--pools", data / "pools", "--images", data / "parquet", "--out", tmp_path / "out",
                       "--model", "tiny", "--image-column", "id2")  # fmt: skip
    assert code == 2 and "has no column 'id2': it has id (int64), image (struct" in err
    code, _, err = run("--pools", data / "pools", "--images", data / "images", "--out", tmp_path / "out",
                       "--model", "tiny", "--k", "9")  # fmt: skip
    assert code == 2 and "k must be between 1 and the 8 examples, got 9" in err
    for where in ("pools", "images"):
        code, _, err = run("--pools", data / "pools", "--images", data / "images", "--out", data / where / "out")
        assert code == 2 and f"lies in {data / where}: what is written there would be read as well" in err
    assert run("--pools", data / "pools", "--images", data / "images", "--out", tmp_path / "out",
               "--model", "tiny")[0] == 0, "what was refused has left nothing"  # fmt: skip


def test_an_index_of_another_model_is_refused(data, run, tmp_path):
    other = RobustPerceptualDistance("tiny-clean")
    ImageIndex.build(data / "pools", other, path=tmp_path / "pools", source="tiny-clean")
    ImageIndex.build(data / "images", other, path=tmp_path / "images", source="tiny-clean")
    for pools, images in ((tmp_path / "pools", data / "images"), (data / "pools", tmp_path / "images")):
        code, _, err = run("--pools", pools, "--images", images, "--out", tmp_path / "out", "--model", "tiny")
        assert code == 2 and "tiny-clean@" in err and "tiny@" in err
        assert not (tmp_path / "out" / "job.json").exists()


def test_a_full_disk_keeps_what_is_done(data, run, tmp_path):
    """A limit on the size of files stands for it: that needs no root."""
    many = write_tars(tmp_path / "tars", contents(data / "images")[:2], 1)
    write_tars(tmp_path / "large", contents(data / "images") * 6, 138, long_names=True)
    (tmp_path / "large" / "s-000.tar").rename(many / "s-001b.tar")
    words = ["--pools", data / "pools", "--images", many, "--out", tmp_path / "out", "--model", "tiny"]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

    line = [sys.executable, "-m", "rclip_metric", "filter", *map(str, words), "--quiet", "--device", "cpu"]
    full = subprocess.run(line, preexec_fn=limited, capture_output=True, text=True)
    assert full.returncode == 2 and full.stderr.count("\n") == 1 and "File too large" in full.stderr, full.stderr
    done = sorted(path.name for path in (tmp_path / "out" / "decisions").iterdir())
    assert done == ["part-00000.parquet", "part-00001.parquet"]
    before = (tmp_path / "out" / "decisions" / done[0]).stat().st_mtime_ns
    assert run(*words)[0] == 0 and len(table(tmp_path / "out")) == 2 + 138
    assert (tmp_path / "out" / "decisions" / done[0]).stat().st_mtime_ns == before


def test_two_at_once_are_one_too_many(data, run, tmp_path):
    from rclip_metric.filtering.job import Job

    with Job(tmp_path / "out").locked():
        code, _, err = run("--pools", data / "pools", "--images", data / "images", "--out", tmp_path / "out",
                           "--model", "tiny")  # fmt: skip
    assert code == 2 and "another process is at work in" in err


def test_help_needs_no_torch(tmp_path):
    probe = ("import sys; from rclip_metric.cli.main import main; code = main(sys.argv[1:]); "
             "sys.exit(code or 100 * ('torch' in sys.modules or 'ray' in sys.modules))")  # fmt: skip
    helped = subprocess.run([sys.executable, "-c", probe, "filter", "--help"], cwd=tmp_path, capture_output=True)
    assert helped.returncode == 0 and b"--engine" in helped.stdout
