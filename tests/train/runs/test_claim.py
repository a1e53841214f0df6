"""Two runs into one output: the second says who the first is; what was killed holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rclip_metric.cli.main import main
from rclip_metric.train.evaluation.attack import RunSettings
from rclip_metric.train.evaluation.session import Session, kept
from rclip_metric.train.runs.claim import claimed

pytest.importorskip("fcntl")

HOLD = """
import sys, time
from pathlib import Path
from rclip_metric.train.runs.claim import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that has claimed `path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_run_names_the_first_and_a_killed_one_holds_nothing(tmp_path, capsys):
    out = tmp_path / "new" / "out"
    with hold(out) as other:
        for words in (
            ["train", "scenes", "--out", out, "--quiet"],
            ["train", "fare", "--base", "tiny", "--images", tmp_path, "--out", out],
            ["benchmark", "--metrics", "l2", "--data", f"nights:{tmp_path}", "--out", out],
        ):
            assert main([*map(str, words)]) == 2
            err = capsys.readouterr().err
            assert err.startswith(f"rclip-metric: {out} is being written by process {other.pid} on ")
            assert err.endswith(": wait for it, or choose another --out\n") and err.count("\n") == 1
        other.send_signal(signal.SIGKILL)
    with claimed(out):
        pass
    assert list(out.parent.iterdir()) == []  # the lock that was left too


def test_evaluations_of_other_things_go_on_side_by_side(tmp_path):
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    with hold(path) as process:
        with pytest.raises(ValueError, match=rf"a\.json is being written by process {process.pid} on"):
            kept(path, {"seed": 0}, lambda journal: {})
        assert kept(other, {"seed": 0}, lambda journal: {"made": 1})["made"] == 1
        process.kill()
    assert kept(path, {"seed": 0}, lambda journal: {"made": 2})["made"] == 2
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b.json"]


def test_a_result_that_is_there_is_read_whoever_writes(tmp_path):
    path = tmp_path / "a.json"
    kept(path, {}, lambda journal: {"made": 1})
    with claimed(path):
        assert kept(path, {}, lambda journal: {"made": 2})["made"] == 1


def test_records_of_one_evaluation_are_made_once_at_a_time(tmp_path):
    from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
    from rclip_metric.train.evaluation.tasks import nights_data
    from rclip_metric.train.metrics import load_metric

    write_scenes(tmp_path / "s", ScenesConfig(images=1, triplets=(0, 0, 4), pool=1, queries=1), quiet=True)
    session, data = Session(tmp_path / "results", quiet=True), nights_data(tmp_path / "s" / "nights")
    metric = load_metric("l2", image_size=16)
    result = tmp_path / "results" / "l2__scenes-test__clean.json"
    with claimed(result), pytest.raises(ValueError, match="is being written by process"):
        session.records(data, metric, [], RunSettings())
    [record] = session.records(data, metric, [], RunSettings())
    assert record["clean"]["samples"] == 4


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_where_no_lock_can_be_written_the_run_goes_on(tmp_path):
    (tmp_path / "out").mkdir()
    tmp_path.chmod(0o500)
    with claimed(tmp_path / "out"):
        (tmp_path / "out" / "a").touch()
    tmp_path.chmod(0o700)
