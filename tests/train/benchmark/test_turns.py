"""Turns: the order, what is counted, and ratios that a machine growing slower does not move."""

import subprocess
import sys
import time

import pytest

from rclip_metric.train.benchmark import turns
from rclip_metric.train.benchmark.turns import (
    Taken,
    Times,
    Turns,
    Waiting,
    machine_record,
    processor_seconds,
    take_turns,
    timed,
)


def test_every_second_round_is_reversed_and_the_warm_up_does_not_count():
    called = []
    found = take_turns({name: lambda name=name: called.append(name) or name for name in "abc"}, 3, warm_up=2)
    assert "".join(called) == "aabbcc" + "abc" + "cba" + "abc"
    assert found.results == {"a": "a", "b": "b", "c": "c"}
    assert {len(times.wall) for times in found.times.values()} == {3}


def test_what_takes_long_is_run_once_and_counts():
    called = []
    runs = {"slow": lambda: called.append("slow") or time.sleep(0.05), "fast": lambda: called.append("fast")}
    told = []
    found = take_turns(runs, 4, long=0.02, told=lambda name, seconds: told.append((name, seconds)))
    assert [name for name, _ in told] == ["slow", *["fast"] * 5] and told[0][1] >= 0.05
    assert called.count("slow") == 1 and called.count("fast") == 5
    assert len(found.times["slow"].wall) == 1 and found.times["slow"].wall[0] >= 0.05
    assert found.times["slow"].processor[0] < 0.04  # it slept


def test_each_round_may_be_about_other_data_and_what_prepares_it_is_not_timed():
    called = []

    def prepare(number):
        called.append(number)
        time.sleep(0.05)

    found = take_turns({name: lambda name=name: called.append(name) for name in "ab"}, 2, prepare=prepare)
    assert called == [0, "a", "b", 0, "a", "b", 1, "b", "a"]
    assert max(max(times.wall) for times in found.times.values()) < 0.05
    called.clear()
    take_turns({"a": lambda: called.append("a")}, 2, prepare=prepare, warm_up=0)
    assert called == [0, "a", 1, "a"]


def test_one_run_is_timed_in_wall_and_processor_time():
    def burn():
        begun = time.process_time()
        while time.process_time() - begun < 0.1:
            pass
        time.sleep(0.2)
        return "burnt"

    found = timed(burn)
    assert found.result == "burnt" and found.wall >= 0.3 > 0.25 > found.processor >= 0.1
    assert Times.of([found, Taken(1.0, 2.0, None)]) == Times((found.wall, 1.0), (found.processor, 2.0))


def test_ratios_are_within_a_round():
    # The machine grows ten times slower; the ratio of medians over all would say 1.5 (3 / 2).
    found = Turns({"a": Times((3.0, 30.0), (2.0, 40.0)), "b": Times((1.0, 10.0), (1.0, 10.0))}, {}, None)
    assert found.ratio("a", "b", "wall") == 3 and found.ratio("a", "b") == 3  # the median of 2 and 4
    assert found.ratios("a", "b", "wall") == [3, 3]
    with pytest.raises(ValueError, match="a and c have no round in common"):
        Turns({**found.times, "c": Times((), ())}, {}, None).ratio("a", "c")
    with pytest.raises(ValueError, match="at least 1 round, and has 0"):
        take_turns({}, 0)


def test_processor_time_is_that_of_finished_children_too():
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    before, own = processor_seconds(), time.process_time()
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert processor_seconds() - before >= 0.29 > 0.2 > time.process_time() - own


def test_pressure_is_the_share_of_time_that_tasks_waited(tmp_path, monkeypatch):
    file = tmp_path / "cpu"
    monkeypatch.setattr(turns, "PRESSURE", file)
    assert take_turns({"a": lambda: None}, 1).pressure is None and Waiting().share() is None

    def write(total):
        file.write_text(f"some avg10=1.00 avg60=2.00 avg300=3.00 total={total}\nfull avg10=0.00 total=9\n")

    write(1_000_000)

    def run():
        time.sleep(0.1)
        write(1_050_000)

    begun = time.perf_counter()
    pressure = take_turns({"a": run}, 1, warm_up=0).pressure
    assert 0.05 / (time.perf_counter() - begun) <= pressure <= 0.5  # 50 ms, of 100 and what else it takes


def test_the_machine_is_named():
    record = machine_record()
    assert {"type", "name", "kind", "cores", "threads", "load", "torch"} <= record.keys()
    assert (record["kind"] == "AMX") == ("amx_bf16" in record["bfloat16"])
