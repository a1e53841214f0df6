"""A benchmark's file: one for each kind of machine, whole after each part, and honest about parts of other calls."""

import json
import re
from pathlib import Path

import pytest

from rclip_metric.train.benchmark.report import Report, outlined, result_path
from rclip_metric.train.benchmark.turns import kind_of, machine_record

RESULTS = Path(__file__).parents[3] / "results"


@pytest.mark.parametrize(
    ("kind", "name"),
    [("AMX", "amx"), ("AVX-512", "avx512"), ("AVX2", "avx2"), ("GPU", "gpu"), ("NO AVX", "noavx")],
)
def test_a_folder_has_a_file_for_each_kind(kind, name):
    assert result_path(Path("results"), "benchmark_x", kind) == Path(f"results/benchmark_x_{name}.json")
    assert result_path(Path("a.json"), "benchmark_x", kind) == Path("a.json")


def test_kinds_are_told_by_what_the_record_says():
    assert kind_of({"type": "cpu", "capability": "AVX512", "bfloat16": ["amx_bf16", "avx512_bf16"]}) == "AMX"
    assert kind_of({"type": "cpu", "capability": "AVX2", "bfloat16": []}) == "AVX2"
    assert kind_of({"type": "mps", "name": "arm"}) == "mps"
    assert kind_of({"processor": "AMD EPYC"}) is None


def test_each_part_is_on_the_disk_when_it_is_measured(tmp_path):
    report = Report("sums", tmp_path, {"repeats": 3})
    assert report.path.parent == tmp_path and not report.path.exists()
    for n, part in enumerate(("first", "second"), 1):
        report.add(part, {"ratio": n})
        assert json.loads(report.path.read_text()) == report.record
    assert list(report.record["results"]) == ["first", "second"] and "earlier" not in report.record
    assert report.record["machine"]["kind"] == machine_record()["kind"]
    assert report.record["machine"]["pressure"] is None or 0 <= report.record["machine"]["pressure"] <= 1


def test_a_report_without_a_file_writes_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = Report("sums", None, {})
    report.add("first", 1)
    assert report.record["results"] == {"first": 1} and not list(tmp_path.iterdir())


def test_parts_of_earlier_calls_keep_their_machine_and_settings(tmp_path):
    for repeats, parts in ((3, "ab"), (5, "bc"), (7, "c")):
        report = Report("sums", tmp_path, {"repeats": repeats})
        for part in parts:
            report.add(part, repeats)
    record = json.loads(report.path.read_text())
    assert record["results"] == {"a": 3, "b": 5, "c": 7} and record["settings"] == {"repeats": 7}
    assert {part: about["settings"]["repeats"] for part, about in record["earlier"].items()} == {"a": 3, "b": 5}
    assert {about["machine"]["kind"] for about in record["earlier"].values()} == {record["machine"]["kind"]}
    for part in "ab":
        report.add(part, 7)
    assert "earlier" not in json.loads(report.path.read_text())


def test_what_another_kind_of_machine_measured_is_not_overwritten(tmp_path):
    file = tmp_path / "sums.json"
    Report("sums", file, {}).add("first", 1)
    record = json.loads(file.read_text())
    record["machine"]["kind"] = "a slide rule"
    file.write_text(text := json.dumps(record))
    with pytest.raises(ValueError, match=r"sums.json is of a machine of another kind \(a slide rule; this one is "):
        Report("sums", file, {})
    del record["machine"]
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"another kind \(not stated; .*: give --out a folder"):
        Report("sums", file, {})
    file.write_text("[1]")
    with pytest.raises(ValueError, match="is no report of a benchmark: write to another file"):
        Report("sums", file, {})
    assert text and file.read_text() == "[1]"


def test_results_are_outlined_a_line_for_each_record():
    found = {
        "x": {"a": {"s": 1.23456, "n": 2}, "times": {"w": 1.0}},
        "top": [{"op": "conv", "share": 0.25}],
        "none": None,
    }
    lines = outlined("part", found, without="times").splitlines()
    assert [re.sub(" {2,}", "  ", line.lstrip()) for line in lines] == [
        "part",
        "x",
        "a  s 1.235  n 2",
        "top",
        "conv  0.25",
        "none  None",
    ]
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 2, 4, 2]


def test_every_result_of_a_benchmark_says_in_its_name_what_it_says_inside():
    """The quick one has a set per kind in one file."""
    others = {"benchmark_quick.json"}
    files = [path for path in RESULTS.glob("benchmark_*.json") if path.name not in others]
    assert len(files) > 10
    for path in files:
        record = json.loads(path.read_text())
        assert {"machine", "settings", "results"} <= record.keys(), path.name
        machine, name = record["machine"], path.stem.rpartition("_")[0]
        assert result_path(RESULTS, name, machine["kind"]) == path, path.name
        # Of before the kind was recorded, the device is a record in the machine's, or its name.
        device = machine["device"] if isinstance(machine.get("device"), dict) else machine
        assert kind_of(device) in (None, machine["kind"]), path.name
