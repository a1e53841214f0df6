"""The log of a run: its numbers, one line on a terminal, and a resumed run that reads like an uninterrupted one."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
import torch

from rclip_metric.errors import StorageError
from rclip_metric.train.runs.log import TrainingLog

TIMES = ("seconds", "images_per_second")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("rclip_metric.train.runs.log.time", clock)
    return clock


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_times(entries):
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in entries]


def value(step):
    """Some loss at a step."""
    return 1 / step + 0.25 * (step % 3)


def run(log, first, last):
    for step in range(first + 1, last + 1):
        if step % 7 == 0:
            log.event(step, unreadable=[f"{step}.png"])
        log.step(step, 4, loss=value(step), adversarial_cosine=torch.tensor(0.5))
        if step % 6 == 0:
            log.validation(step, {"clean_cosine": step / 100})


def test_a_line_has_the_mean_of_its_steps_and_the_last_step_has_one(tmp_path):
    with TrainingLog(tmp_path / "new" / "run", total=23) as log:
        run(log, 0, 23)
    entries = lines(tmp_path / "new" / "run")
    means = {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
    assert list(means) == [10, 20, 23]
    for step, steps in ((10, range(1, 11)), (20, range(11, 21)), (23, range(21, 24))):
        assert means[step] == pytest.approx(sum(value(n) for n in steps) / len(steps), rel=1e-12)
    assert {entry["adversarial_cosine"] for entry in entries if "loss" in entry} == {0.5}
    assert [e for e in entries if "validation" in e] == [
        {"step": step, "validation": {"clean_cosine": step / 100}} for step in (6, 12, 18)
    ]
    assert [entry["unreadable"] for entry in entries if "unreadable" in entry] == [["7.png"], ["14.png"], ["21.png"]]


def test_a_value_that_is_taken_now_and_then_is_averaged_over_its_own_steps(tmp_path):
    with TrainingLog(tmp_path, total=4, every=4) as log:
        for step in range(1, 5):
            log.step(step, 1, loss=step, **({"clean_cosine": 0.5} if step == 2 else {}))
    (line,) = without_times(lines(tmp_path))
    assert line == {"step": 4, "loss": 2.5, "clean_cosine": 0.5}


@pytest.mark.parametrize("start", [20, 13])
def test_a_resumed_run_has_the_log_of_an_uninterrupted_one(start, tmp_path):
    with TrainingLog(tmp_path / "whole", total=30) as log:
        run(log, 0, 30)
    with TrainingLog(tmp_path / "cut", total=30) as log:
        run(log, 0, start)
        pending = log.pending  # what a state would hold
        run(log, start, 27)  # what the crash loses
    with (tmp_path / "cut" / "log.jsonl").open("a") as handle:
        handle.write('{"step": 30, "lo')
    with TrainingLog(tmp_path / "cut", total=30, start=start, pending=json.loads(json.dumps(pending))) as log:
        assert all(entry["step"] <= start for entry in lines(tmp_path / "cut"))
        run(log, start, 30)
    assert without_times(lines(tmp_path / "cut")) == without_times(lines(tmp_path / "whole"))
    with TrainingLog(tmp_path / "cut", total=30, start=30):
        pass  # a run that is done keeps its log
    assert len(lines(tmp_path / "cut")) == len(lines(tmp_path / "whole"))
    with TrainingLog(tmp_path / "cut", total=30):
        pass  # a run that begins anew does not
    assert lines(tmp_path / "cut") == []


def test_the_rate_is_that_of_the_last_steps_and_validation_is_no_step(clock, tmp_path):
    with TrainingLog(tmp_path, total=60) as log:
        assert log.images_per_second != log.images_per_second  # NaN: nothing is known yet
        for step in range(1, 61):
            clock.now += 2.0 if step <= 25 else 0.5
            log.step(step, 8)
            if step == 30:
                clock.now += 1000
                log.validation(step, {})
    rates = {entry["step"]: entry["images_per_second"] for entry in lines(tmp_path) if "images_per_second" in entry}
    # At step 30, of the last 20 steps 15 took 2 s and 5 took 0.5 s; at step 40, 5 and 15; then all took 0.5 s.
    assert rates == {10: 4, 20: 4, 30: round(160 / 32.5, 2), 40: round(160 / 17.5, 2), 50: 16, 60: 16}
    assert lines(tmp_path)[-1]["seconds"] == 50 + 1000 + 17.5
    with TrainingLog(tmp_path, total=70, start=60) as log:
        clock.now += 3
        assert log.seconds == 1067.5 + 3


def on_a_terminal(monkeypatch, work):
    """What ``work`` writes to stderr when that is a terminal of 160 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        work()
        terminal.flush()
        os.set_blocking(master, False)
        text = b""
        while True:
            try:
                text += os.read(master, 65536)
            except BlockingIOError:
                break
    os.close(master)
    return text.decode()


def test_one_line_on_a_terminal(clock, tmp_path, monkeypatch):
    def work(quiet=False):
        with TrainingLog(tmp_path, total=4000, start=1000, label="FARE", quiet=quiet) as log:
            clock.now += 2
            log.step(1001, 128, loss=0.123456, clean_cosine=0.9, adversarial_cosine=0.8765432)
            clock.now += 6
            log.validation(1001, {"clean_cosine": 0.5})
            clock.now += 2
            log.step(1002, 128)  # no numbers were taken: the last ones stand

    shown = on_a_terminal(monkeypatch, work)
    final = shown.strip().split("\r")[-1]
    # 2 s per step, and validation adds 6 s to every 4 s: 2998 steps take 2998 * 2 * 2.5 s = 4:09:50.
    assert re.fullmatch(
        r"FARE:  25%\|\S*\s*\| 1002/4000 \[\d\d:\d\d, loss 0\.1235, clean 0\.9, adversarial 0\.8765, 64 images/s, "
        r"ETA 4:09:50\]",
        final,
    ), final
    assert shown.count("\n") == 1 and shown.endswith("\n")
    assert on_a_terminal(monkeypatch, lambda: work(quiet=True)) == ""


def test_nothing_is_shown_off_a_terminal(tmp_path, capfd):
    with TrainingLog(tmp_path, total=3) as log:
        run(log, 0, 3)
    assert capfd.readouterr() == ("", "")


def test_the_first_process_alone_writes(tmp_path, monkeypatch):
    def work():
        with TrainingLog(tmp_path / "run", total=20, rank=1, tensorboard=True) as log:
            run(log, 0, 20)

    assert on_a_terminal(monkeypatch, work) == ""
    assert not (tmp_path / "run").exists()


def test_a_closed_log_and_settings_without_sense_are_refused(tmp_path):
    with TrainingLog(tmp_path, total=3) as log:
        log.step(1, 1, loss=1.0)
    with pytest.raises(ValueError, match="the log is closed"):
        log.event(2, what="late")
    with pytest.raises(ValueError, match="needs at least 1 step, not 0"):
        TrainingLog(tmp_path, total=3, every=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"log\.jsonl"):
        TrainingLog(tmp_path / "file", total=3)


def test_a_full_disk_is_one_sentence_and_the_log_goes_on_when_there_is_room(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (disk / "other").write_bytes(bytes(12288))
        with TrainingLog(disk, total=3, every=1) as log:
            log.step(1, 1, loss=1.0)
            with pytest.raises(StorageError) as caught:
                log.event(2, text="x" * 5000)
            (disk / "other").unlink()
            log.event(2, text="y")
        text = (disk / "log.jsonl").read_text()
    finally:
        subprocess.run(["umount", disk], check=True)
    assert re.search(
        r"log\.jsonl cannot be written to .*: No space left on device \(0\.00 MB are free", str(caught.value)
    )
    first, cut, last = text.splitlines()
    assert json.loads(first)["loss"] == 1.0 and "xxx" in cut and json.loads(last) == {"step": 2, "text": "y"}


def test_tensorboard_shows_the_same_numbers_and_hides_what_is_written_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TrainingLog(tmp_path, total=40, tensorboard=True) as log:
        run(log, 0, 30)
    with TrainingLog(tmp_path, total=40, start=20, tensorboard=True) as log:
        run(log, 20, 40)
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = [entry for entry in lines(tmp_path) if "loss" in entry]
    points = [(point.step, point.value) for point in shown.Scalars("loss")]
    assert points == [(entry["step"], pytest.approx(entry["loss"], rel=1e-6)) for entry in written]
    assert [step for step, _ in points] == [10, 20, 30, 40]
    assert [point.step for point in shown.Scalars("validation/clean_cosine")] == [6, 12, 18, 24, 30, 36]
    assert len(shown.Scalars("images_per_second")) == 4


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r'pip install "rclip-metric\[tensorboard\]"'):
        TrainingLog(tmp_path, total=3, tensorboard=True)
