"""Work in blocks: several processes, a journal, and a kill in the middle."""

import json
import os
import signal
import time

import pytest
import torch

from rclip_metric.train.evaluation.blocks import fingerprint, run_blocks
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.results.record import load_results
from rclip_metric.train.runs.distributed import Team, chosen_device, join

from support.forked import ranks
from support.programs import PATIENCE
from support.scenes import small_scenes

SETTINGS = {"model": "m", "steps": 3}


def double(block):
    return {"value": 2 * block}


def test_results_come_in_order_and_each_block_is_done_once(tmp_path):
    done = []

    def evaluate(block):
        done.append(block)
        return double(block)

    results = run_blocks([3, 1, 2], evaluate, settings=SETTINGS, journal=tmp_path, quiet=True)
    assert [result["value"] for result in results] == [6, 2, 4] and done == [3, 1, 2]
    assert run_blocks([3, 1, 2], evaluate, settings=SETTINGS, journal=tmp_path, quiet=True) == results
    assert done == [3, 1, 2]


def test_a_journal_is_taken_up_after_the_last_whole_line(tmp_path):
    def failing(block):
        if block == 2:
            raise KeyboardInterrupt
        return double(block)

    with pytest.raises(KeyboardInterrupt):
        run_blocks([0, 1, 2, 3], failing, settings=SETTINGS, journal=tmp_path, quiet=True)
    [path] = tmp_path.glob("*.jsonl")
    path.write_text(path.read_text()[:-9])  # the second line is cut short
    done = []

    def evaluate(block):
        done.append(block)
        return double(block)

    results = run_blocks([0, 1, 2, 3], evaluate, settings=SETTINGS, journal=tmp_path, quiet=True)
    assert done == [1, 2, 3] and [result["value"] for result in results] == [0, 2, 4, 6]
    assert run_blocks([0, 1, 2, 3], failing, settings=SETTINGS, journal=tmp_path, quiet=True) == results


def test_a_journal_of_other_settings_is_not_used(tmp_path):
    run_blocks([1], lambda block: {"value": "old"}, settings=SETTINGS, journal=tmp_path, quiet=True)
    for settings, blocks in (({**SETTINGS, "steps": 4}, [1]), (SETTINGS, [1, 2])):
        results = run_blocks(blocks, double, settings=settings, journal=tmp_path, quiet=True)
        assert results[0] == {"value": 2}
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 2, "b": 1})


def test_the_journal_of_any_number_of_processes_is_taken_up(tmp_path):
    """What a process of two would do, alone: it does every second block, and another run finds them."""

    class Half(Team):
        def gather(self, value):
            return [value]

    done = []

    def evaluate(block):
        done.append(block)
        return double(block)

    with pytest.raises(KeyError):  # the other half is missing
        run_blocks([0, 1, 2, 3, 4], evaluate, settings=SETTINGS, journal=tmp_path, team=Half(1, 2), quiet=True)
    assert done == [1, 3]
    run_blocks([0, 1, 2, 3, 4], evaluate, settings=SETTINGS, journal=tmp_path, quiet=True)
    assert done == [1, 3, 0, 2, 4]


class Beside(Team):
    """The first of two processes; what the second one says in each gathering is given."""

    def __init__(self, *said):
        super().__init__(0, 2)
        object.__setattr__(self, "said", list(said))

    def gather(self, value):
        return [value, self.said.pop(0)]


def test_a_process_that_fails_tells_the_others_before_it_stops(tmp_path):
    def failing(block):
        if block == 2:
            raise ZeroDivisionError("no such luck")
        return double(block)

    others = Beside({}, None)  # its journal is empty, and it did not fail
    with pytest.raises(ZeroDivisionError):
        run_blocks([0, 1, 2, 3, 4], failing, settings=SETTINGS, journal=tmp_path, team=others, quiet=True)
    assert others.said == []  # the failure was told in the gathering in which the second process waits
    with pytest.raises(ValueError, match="another process failed: ZeroDivisionError: no such luck"):
        team = Beside({}, "ZeroDivisionError: no such luck")
        run_blocks([0, 1, 2, 3, 4], double, settings=SETTINGS, journal=tmp_path, team=team, quiet=True)
    # What both had finished is there when the same work is taken up again.
    done = []
    run_blocks([0, 1, 2, 3, 4], lambda b: done.append(b) or double(b), settings=SETTINGS, journal=tmp_path, quiet=True)
    assert done == [2, 4]


def test_devices_under_torchrun(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join("cpu") == Team(0, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert str(chosen_device("cuda")) == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [str(chosen_device(name)) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="device 'cuda:4' was asked for and this machine has 4 GPUs"):
        chosen_device("cuda")
    with pytest.raises(ValueError, match="there is no device 'gpu': pass auto, cpu or cuda"):
        join("gpu")


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("scenes"), (0, 0, 60)) / "nights"


def command(nights, out):
    return ["eval", "nights", "--data", nights, "--model", "tiny-clean", "--out", out, "--norm", "linf", "l2", "--eps",
            "1/255", "0.2", "--steps", "6", "--batch-size", "4", "--device", "cpu"]  # fmt: skip


def outcomes(folder):
    return {record["threat"]["norm"]: unpack(record) for record in load_results([folder])}


def test_two_processes_killed_in_the_middle_end_with_the_numbers_of_one(nights, tmp_path, forks):
    """With what torchrun sets for them; test_retrieval.py starts torchrun itself."""
    first = forks.start(command(nights, tmp_path / "two"), environments=ranks(2))
    journal = tmp_path / "two" / ".journal"
    deadline = time.monotonic() + PATIENCE

    def lines():
        return [line for path in journal.glob("*/*.jsonl") for line in path.read_text().splitlines()]

    while len(lines()) < 3:
        assert time.monotonic() < deadline and "Traceback" not in forks.errors, forks.errors
        time.sleep(0.02)
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    assert forks.wait() == [-signal.SIGKILL] * 2, forks.errors
    before = lines()
    assert 3 <= len(before) < 15 and not list((tmp_path / "two").glob("*.json"))  # interrupted: no result yet

    forks.start(command(nights, tmp_path / "two"), environments=ranks(2))
    assert forks.wait() == [0, 0], forks.errors
    told = forks.output
    assert "| tiny-clean @" in told and told.count("| model | data | samples |") == 1  # one process prints
    assert not journal.exists()

    assert forks.run(command(nights, tmp_path / "one")) == 0, forks.errors
    one, two = outcomes(tmp_path / "one"), outcomes(tmp_path / "two")
    assert one.keys() == two.keys() == {"linf", "l2"}
    for norm in one:
        assert one[norm] == two[norm]  # to the last digit: the blocks are the same
        assert {row.robust for row in one[norm]} == {0.0, 1.0}
    [record, _] = load_results([tmp_path / "two"])
    assert record["processes"] == 2
    # The blocks that were done before the kill were not done again: their seconds are in the result as they were.
    kept = [json.loads(line)["result"]["costs"][0]["seconds"] for line in before]
    assert record["seconds"] > sum(kept)
