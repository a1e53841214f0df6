"""What is seen of a long job: on a terminal (a real one, made by `pty`), in a log file, and through a pipe."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rclip_metric import progress as module
from rclip_metric.cli.main import main
from rclip_metric.progress import progress
from rclip_metric.train.evaluation.blocks import run_blocks
from rclip_metric.train.runs.log import TrainingLog

from support.images import save_noise


def shown(unit: str, total: int) -> str:
    return rf"\d+/{total} \[\d\d:\d\d<\d\d:\d\d, +\d+\.\d+({unit}/s|s/{unit})"


class Terminal:
    """A pseudo-terminal, 100 columns wide, in the place of stderr, and all that was written to it."""

    text = ""

    @contextmanager
    def in_place_of_stderr(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        import fcntl
        import pty
        import struct
        import termios

        reading, writing = pty.openpty()
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        read: list[bytes] = []
        reader = threading.Thread(target=self._drain, args=(reading, read))
        reader.start()
        with os.fdopen(writing, "w", buffering=1) as stream, monkeypatch.context() as patch:
            assert stream.isatty()
            patch.setattr(sys, "stderr", stream)
            yield
        reader.join()
        os.close(reading)
        self.text = b"".join(read).decode()

    @staticmethod
    def _drain(reading: int, read: list[bytes]) -> None:
        while True:
            try:
                read.append(os.read(reading, 4096))
            except OSError:  # EIO: the other end is closed
                return


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("termios", reason="there are no pseudo-terminals on this system")

    def watched(job: Any) -> str:
        terminal = Terminal()
        with terminal.in_place_of_stderr(monkeypatch):
            job()
        return terminal.text

    return watched


def slowly(count: int, **options: Any) -> None:
    for _ in progress(range(count), **options):
        time.sleep(0.03)


def test_a_terminal_shows_rate_and_time_left(on_terminal: Any) -> None:
    text = on_terminal(lambda: slowly(12, label="squares", unit="image"))
    assert re.search(shown("image", 12), text) and "squares: 100%" in text
    assert max(len(line) for line in re.split(r"[\r\n]", text)) <= 100
    assert on_terminal(lambda: slowly(12, quiet=True)) == ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(9):
        save_noise(tmp_path / "images" / f"{index}.png", index, size=(70, 70))
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("command", "total", "unit"),
    [
        (["score", "{folder}", "{folder}"], 9, "image"),
        (["score", "--all-pairs", "{folder}"], 9, "image"),
        (["rank", "{image}", "{folder}"], 9, "image"),
        (["index", "build", "{folder}", "{out}"], 9, "image"),
        (["search", "{folder}", "{image}", "-k", "3"], 9, "image"),
        (["filter", "--images", "{folder}", "--pools", "{pools}", "--out", "{out}"], 1, "shard"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_on_a_terminal_and_through_a_pipe(
    command: list[str], total: int, unit: str, folder: Path, tmp_path: Path, on_terminal: Any, capfd: Any
) -> None:
    for label in ("one", "two"):
        shutil.copytree(folder, tmp_path / "pools" / label)
    places = {"folder": folder, "image": folder / "0.png", "out": tmp_path / "out", "pools": tmp_path / "pools"}
    words = [word.format(**places) for word in command] + ["--model", "tiny", "--batch-size", "2"]

    def job() -> None:
        assert main(words) == 0

    text = on_terminal(job)
    assert re.search(rf"\d+/{total} \[\d\d:\d\d<", text) and re.search(f"{unit}/s|s/{unit}", text)
    assert f"{unit}/s" not in capfd.readouterr().out
    if command[0] == "score":
        assert on_terminal(lambda: main([*words, "--quiet"])) == ""


def test_evaluation_and_training_on_a_terminal(on_terminal: Any, tmp_path: Path) -> None:
    def evaluation() -> None:
        def evaluate(block: int) -> dict[str, int]:
            time.sleep(0.03)
            return {"block": block}

        run_blocks(range(8), evaluate, settings={}, describe="2afc r-lite-f", sizes=[4] * 8)

    assert re.search(shown("sample", 32), on_terminal(evaluation))

    def training() -> None:
        with TrainingLog(tmp_path, total=12, label="fare") as log:
            for step in range(1, 13):
                time.sleep(0.03)
                log.step(step, images=8, loss=1 / step)

    assert re.search(r"fare: +\d+%.* \d+/12 \[00:0\d, loss 0\.\d+, \d+ images/s, ETA 00:00\]", on_terminal(training))


def in_a_process(code: str, **streams: Any) -> "subprocess.CompletedProcess[str]":
    begin = (
        "import sys, time\nfrom rclip_metric import progress as module\nfrom rclip_metric.progress import progress\n"
    )
    return subprocess.run([sys.executable, "-c", begin + code], text=True, check=True, **streams)


LOOP = "for i in progress(range(40), label='epoch', unit='image'): time.sleep(0.02)"


def test_a_pipe_gets_nothing() -> None:
    assert in_a_process(f"module.EVERY = 0.0\n{LOOP}", stderr=subprocess.PIPE).stderr == ""


def test_a_log_file_gets_a_line_now_and_then_and_a_short_job_none(tmp_path: Path) -> None:
    assert module.EVERY == 60
    with (tmp_path / "log").open("w") as log:
        in_a_process(LOOP, stderr=log)
        assert (tmp_path / "log").read_text() == ""
        in_a_process(f"module.EVERY = 0.2\n{LOOP}", stderr=log)
    lines = (tmp_path / "log").read_bytes().decode().split("\n")
    assert lines.pop() == "" and 2 <= len(lines) <= 6  # 0.8 s and more, at most one each 0.2 s, and the end
    line = r"rclip-metric: epoch: (\d+)%, (\d+) of 40 in \d\d:\d\d, \d\d:\d\d left, +\d+\.\d+image/s"
    found = [re.fullmatch(line, text) for text in lines]
    assert all(found), lines
    counts = [int(match[2]) for match in found if match]
    assert counts == sorted(counts) and counts[-1] == 40
    assert [int(match[1]) for match in found if match] == [round(100 * count / 40) for count in counts]


def test_what_a_job_says_of_itself_is_in_the_lines(tmp_path: Path) -> None:
    """The log of a run counts its rate over the last steps; its own format goes without the bar."""
    training = f"""
import pathlib
from rclip_metric.train.runs.log import TrainingLog
module.EVERY = 0.1
with TrainingLog(pathlib.Path({str(tmp_path / "run")!r}), total=10, label="fare") as log:
    for step in range(1, 11):
        time.sleep(0.05)
        log.step(step, images=8, loss=0.5)
"""
    with (tmp_path / "log").open("w") as log:
        in_a_process(training, stderr=log)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) >= 2
    for line in lines:
        text = r"rclip-metric: fare: +\d+% \d+/10 \[00:0\d, loss 0.5, +[\d.e+]+ images/s, ETA 00:0\d\]"
        assert re.fullmatch(text, line), line
