"""What a metric costs: fresh processes, rounds, memory above the level before, and metrics that fail."""

import json
import os
import subprocess
import sys

import pytest
import torch

from rclip_metric.train.benchmark import timing, timing_visit
from rclip_metric.train.benchmark.timing import in_a_fresh_process, time_metrics
from rclip_metric.train.benchmark.timing_visit import TimingSettings, visit
from rclip_metric.train.benchmark.turns import machine_record
from rclip_metric.train.runs.machine import device_record

CPU = torch.device("cpu")
METRICS = """
import os, signal, time
import torch
from rclip_metric.train.metrics.base import DistanceMetric
from rclip_metric.train.metrics.registry import load_metric

HELD = []

def pixels(x, y):
    return (x - y).abs().mean((1, 2, 3))

def quick(device):
    print("a metric that talks")
    return DistanceMetric(pixels, 32, name="quick", device=device)

def slow(device):
    def sleeping(x, y):
        time.sleep(0.1)
        return pixels(x, y)
    return DistanceMetric(sleeping, 32, name="slow", device=device)

def large(device):
    HELD.append(torch.ones(20_000_000))  # 80 MB
    def holding(x, y):
        torch.ones(len(x) * 10_000_000)  # 40 MB per pair
        if len(x) > 2:
            raise MemoryError("three at once are too many")
        return pixels(x, y)
    return DistanceMetric(holding, 32, name="large", device=device)

def broken(device):
    raise ValueError("its weights are nowhere: fetch them\\nwith care")

def killed(device):
    os.kill(os.getpid(), signal.SIGKILL)

def unhalved(device):
    return DistanceMetric(pixels, 32, name="unhalved", device=device, autocast=False)

def load(name, *, device, image_size):
    with open(os.environ["VISITS"], "a") as handle:
        handle.write(f"{name} {os.getpid()}\\n")
    return load_metric(name, device=device, image_size=image_size)
"""


@pytest.fixture
def visits(tmp_path, monkeypatch):
    """Metrics in a module that only this process's own path leads to, and the file that lists who built them."""
    (tmp_path / "timed.py").write_text(METRICS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VISITS", str(tmp_path / "visits"))
    yield tmp_path / "visits"
    sys.modules.pop("timed", None)


def protocol(sizes=(1, 2), repeats=3, warmup=1, image_size=32, seconds=20.0, load=timing_visit.LOADER):
    return TimingSettings("cpu", sizes, repeats, warmup, image_size, seconds, load, ())


def test_metrics_take_turns_in_fresh_processes_and_failures_stop_nobody(visits):
    names = ["timed:slow", "timed:broken", "timed:quick"]
    found = time_metrics(names, protocol(sizes=(2, 1), image_size=64, load="timed:load"), quiet=True)
    assert list(found) == names
    turns = [line.split() for line in visits.read_text().splitlines()]
    # Forward, then backward; what failed is not asked again. Each in a process of its own, and what it prints is not
    # taken for its answer.
    assert [name for name, _ in turns] == [*names, "timed:quick", "timed:slow"]
    assert len({number for _, number in turns} | {str(os.getpid())}) == 6
    assert found["timed:broken"] == {"failed": "its weights are nowhere: fetch them"}

    quick, slow = found["timed:quick"], found["timed:slow"]
    for entry in (quick, slow):
        assert list(entry["timing"]) == ["float32"] and entry["left_out"] == {} and entry["image_size"] == 32
        cells = entry["timing"]["float32"]
        assert list(cells) == ["1", "2", "memory_mb"]
        for size in ("1", "2"):
            assert cells[size]["low"] <= cells[size]["pairs_per_second"] <= cells[size]["high"]
            assert cells[size]["measurements"] == 6  # three in each of two rounds
            processor, ratio = cells[size]["processor"], cells[size]["ratio"]
            assert 0 < processor["low"] <= processor["ms_per_pair"] <= processor["high"]
            assert 0 < ratio["low"] <= ratio["times"] <= ratio["high"]
            assert (ratio["of"], ratio["reference"]) == ("processor", "timed:slow")
            assert 0 <= cells[size]["memory_mb"] <= cells["memory_mb"] < 500
        assert entry["machine"]["threads"] >= 1 and entry["machine"]["torch"] == torch.__version__
        assert entry["machine"]["device"].keys() == device_record(torch.device("cpu")).keys()
        assert entry["machine"]["cores"] >= 1 and entry["machine"]["kind"] == machine_record()["kind"]
        shares = entry["pressure"]["float32"]
        assert len(shares) == 2 and all(share is None or 0 <= share <= 1 for share in shares)
    assert quick["model"]["name"] == "quick"
    for size in ("1", "2"):  # who sleeps takes time, and not the processor's: 0.1 s for each pass
        cell = slow["timing"]["float32"][size]
        assert cell["ratio"]["times"] == 1 and cell["processor"]["ms_per_pair"] < 0.6 * 1000 / cell["pairs_per_second"]
    for size in (1, 2):  # one sleep of 0.1 seconds per pass
        rates = [entry["timing"]["float32"][str(size)]["pairs_per_second"] for entry in (slow, quick)]
        assert 0 < rates[0] <= size / 0.1 < rates[1]
    assert json.loads(json.dumps(found)) == found


def test_our_own_encoders_by_name():
    found = visit("tiny", "float32", protocol(sizes=(1,), repeats=1))
    assert found["model"]["name"] == "tiny" and found["image_size"] == 64 and found["rates"]["1"][0] > 0


def test_a_process_that_dies_is_a_sentence(visits):
    found = in_a_fresh_process("timed:killed", "float32", protocol())
    assert isinstance(found, str) and "ended by SIGKILL" in found and "timed:killed" in found


def fresh(code, *arguments):
    """What ``code`` prints last, as JSON, from a process whose memory nothing was done with: freed pages are used again
    without the kernel counting them anew."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_is_what_building_and_scoring_add(visits):
    found = fresh(
        """
import json, sys
sys.path.insert(0, sys.argv[1])
from rclip_metric.train.benchmark.timing_visit import TimingSettings, visit
def protocol(sizes):
    return TimingSettings("cpu", sizes, 1, 1, 32, 20.0, sys.argv[2], ())
visit("timed:quick", "float32", protocol((1, 2)))  # what is imported once
print(json.dumps(visit("timed:large", "float32", protocol((1, 2, 3)))))
""",
        str(visits.parent),
        timing_visit.LOADER,
    )
    # 80 MB are held from building on; a pass adds 40 MB per pair. Other things of the process may come and go.
    assert 110e6 < found["bytes"]["1"] < 150e6 and 150e6 < found["bytes"]["2"] < 190e6 <= 1.2 * found["peak"]
    # A batch that is too large leaves the others their figures.
    assert list(found["rates"]) == ["1", "2"] and found["left_out"] == {"3": "MemoryError: three at once are too many"}


def test_the_peak_can_be_forgotten():
    first, held, after = fresh(
        """
import json, torch
from rclip_metric.train.benchmark.timing_visit import Peak
peak = Peak(torch.device("cpu"))
held = torch.ones(10_000_000)
first, count = peak.above(), held.numel()
del held
peak.forget()
print(json.dumps([first, count, peak.above()]))
"""
    )
    assert 36e6 < first < 80e6 and held == 10_000_000
    assert after < first - 30e6


def test_measurements_stop_when_the_time_is_spent(visits):
    found = visit("timed:slow", "float32", protocol(repeats=50, seconds=0.35))
    for size in ("1", "2"):  # a warm-up of 0.1 seconds, and a measurement for each further 0.1 that has begun
        assert 1 <= len(found["rates"][size]) <= 3
    for warmup in (0, 1):
        one = visit("timed:slow", "float32", protocol(sizes=(1,), repeats=50, warmup=warmup, seconds=0.0))
        assert len(one["rates"]["1"]) == 1


def test_bfloat16_is_measured_where_it_is_fast_and_said_where_not(visits, monkeypatch):
    monkeypatch.setattr(timing_visit, "bfloat16_is_fast", lambda device: False)
    with pytest.raises(ValueError, match="cpu does not multiply bfloat16 in hardware"):
        visit("timed:quick", "bfloat16", protocol())
    monkeypatch.setattr(timing_visit, "bfloat16_is_fast", lambda device: True)
    assert visit("timed:quick", "bfloat16", protocol(repeats=1))["rates"].keys() == {"1", "2"}
    with pytest.raises(ValueError, match="unhalved"):
        visit("timed:unhalved", "bfloat16", protocol())


def test_a_precision_that_failed_is_left_out_beside_one_that_did_not(visits, monkeypatch):
    def answers(name, precision, protocol):
        return visit(name, precision, protocol) if precision == "float32" else "too slow here"

    monkeypatch.setattr(timing, "in_a_fresh_process", answers)
    settings, once = protocol(sizes=(1,), repeats=1, image_size=224), {"rounds": 1, "quiet": True}
    [entry] = time_metrics(["timed:quick"], settings, precisions=("float32", "bfloat16"), **once).values()
    assert list(entry["timing"]) == ["float32"] and entry["left_out"] == {"bfloat16": "too slow here"}
    assert time_metrics(["timed:quick"], settings, precisions=("bfloat16",), **once) == {
        "timed:quick": {"failed": "too slow here"}
    }


def made_up(rates, processor, kind="cpu"):
    about = {"model": {}, "image_size": 32, "machine": {"device": {"type": kind}}, "pressure": None}
    return {**about, "rates": rates, "processor": processor, "bytes": {}, "peak": 0.0, "left_out": {}}


@pytest.mark.parametrize(("kind", "of", "expected"), [("cpu", "processor", [2, 2, 2]), ("cuda", "wall", [4, 3, 5])])
def test_ratios_are_within_a_round_and_of_what_means_something_on_the_device(monkeypatch, kind, of, expected):
    """The second round is ten times slower for all; a GPU is waited for by a processor that does nothing."""
    answers = {
        "a": [made_up({"1": [3.0, 1.0, 2.0]}, {"1": [0.5, 0.1, 0.2]}, kind), made_up({"1": [0.2]}, {"1": [2.0]}, kind)],
        "b": [
            made_up({"1": [2 / 3]}, {"1": [0.4]}, kind),
            made_up({"1": [0.04], "2": [1.0]}, {"1": [4.0], "2": [1.0]}, kind),
        ],
    }
    monkeypatch.setattr(timing, "in_a_fresh_process", lambda name, precision, settings: answers[name].pop(0))
    found = time_metrics(["a", "b"], protocol(), quiet=True)
    ratio = found["b"]["timing"]["float32"]["1"]["ratio"]
    assert [ratio[key] for key in ("times", "low", "high")] == pytest.approx(expected, rel=1e-4)
    assert (ratio["of"], ratio["reference"]) == (of, "a")
    assert "ratio" not in found["b"]["timing"]["float32"]["2"]  # the reference has no figure of it


@pytest.mark.parametrize(
    ("settings", "others", "sentence"),
    [
        ({"batch_sizes": ()}, {}, "batch sizes, repeats and an image size of at least 1"),
        ({"repeats": 0}, {}, "at least 1"),
        ({}, {"rounds": 0}, "at least 1 round"),
        ({}, {"precisions": ("float16",)}, "float32 and bfloat16"),
        ({}, {"reference": "ssim"}, r"the reference must be one of the metrics \(tiny\), and is ssim"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings, others, sentence):
    with pytest.raises(ValueError, match=sentence):
        time_metrics(["tiny"], TimingSettings(**settings), quiet=True, **others)
