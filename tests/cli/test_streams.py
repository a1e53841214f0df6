"""What the command says and how it ends when streams are closed or full, it is interrupted, or names are hostile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rclip_metric.cli.main import main
from rclip_metric.printing import printable

from support.images import save_noise
from support.programs import PATIENCE

START = "from rclip_metric.__main__ import console_main; console_main()"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell and signals")


def run(redirection: str, *words: object, code: str = START) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command whose streams the shell redirects."""
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command], capture_output=True, timeout=PATIENCE
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


COMMANDS = [
    ["models"],
    ["manifest", "--json"],
    ["score", "--help"],
    ["eval", "nights", "--preset", "paper"],
    ["train", "--help"],
    ["benchmark", "--help"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_output_that_goes_nowhere_is_an_error_in_one_line(words, monkeypatch):
    assert run(">&-", *words) == (
        2, "", "rclip-metric: the standard output is closed: send it to /dev/null where it is not wanted\n"
    )  # fmt: skip
    full = (2, "", "rclip-metric: the output cannot be written: No space left on device\n")
    if os.path.exists("/dev/full"):
        for unbuffered in ("", "1"):
            monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
            assert run(">/dev/full", *words) == full


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_without_stderr_the_exit_code_tells(redirection):
    assert run(redirection, "score", "nowhere.png", "neither.png") == (2, "", "")
    assert run(redirection, "score", "--unknown") == (2, "", "")
    code, out, err = run(redirection, "models")
    assert (code, err) == (0, "") and "r-clip-f" in out


def test_no_file_takes_the_place_of_a_closed_stream():
    code = (
        "import os, sys, rclip_metric.cli.main as cli\n"
        "cli.main = lambda: sys.stdout.write(str(os.open(os.devnull, os.O_RDONLY))) and 0\n"
        "cli.console_main()"
    )
    assert run("<&- 2>&-", code=code) == (0, "3", "")


@pytest.mark.parametrize("module", ["rclip_metric.cli.main", "rclip_metric.retrieval", "torch", "torch.nn.functional"])
def test_an_interrupt_while_modules_are_imported_is_one_like_any_other(tmp_path, module):
    files = [save_noise(tmp_path / f"{i}.png", i) for i in range(2)]
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *place):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        f"{START}"
    )
    assert run("", "score", *files, "--model", "tiny", code=code) == (130, "", "rclip-metric: interrupted\n")


def test_an_interrupt_that_passed_through_c_ends_with_130_as_well(tmp_path):
    code = (
        "import ctypes, rclip_metric.cli.main as cli\n"
        "evaluate = ctypes.pythonapi.PyRun_String\n"
        "evaluate.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.py_object, ctypes.py_object]\n"
        "def stopped():\n"
        "    try:\n"
        "        evaluate(b'raise KeyboardInterrupt', 257, {}, {})\n"
        "    except KeyboardInterrupt:\n"
        "        return 130\n"
        "cli.main = stopped\n"
        "cli.console_main()"
    )
    (tmp_path / "interrupted.py").write_text(code)
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, timeout=PATIENCE)
    assert done.returncode == 130  # not -2, as Python itself ends here


HOSTILE = "a\nb\x1b[31m\u202egnp\u2028.png"
SHOWN = r"a\nb\x1b[31m\u202egnp\u2028.png"


def test_a_hostile_name_stays_on_its_line(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_noise(Path(HOSTILE), 1)
    save_noise(Path("b.png"), 2)
    Path("broken\n.png").write_bytes(b"x")
    assert main(["rank", "b.png", HOSTILE, "broken\n.png", "--model", "tiny", "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and out.endswith(f"{SHOWN}\n")
    assert err == "rclip-metric: cannot read broken\\n.png: not an image, or not in a format that is read here\n"
    for words in (
        ["score", "b.png", f"no{HOSTILE}"],
        ["eval", "nights", "--data", f"no{HOSTILE}", "--model", "l2"],
        ["eval", "table", f"no{HOSTILE}"],
        ["train", "fare", "--images", ".", "--out", "o", "--recipe", f"no{HOSTILE}"],
        ["benchmark", "--metrics", "l2", "--data", f"nights:no{HOSTILE}", "--out", "o"],
        ["verify", f"no{HOSTILE}"],
    ):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and printable(err[:-1]) == err[:-1] and f"no{SHOWN}"[:6] in err
    assert main(["score", "b.png", f"--no{HOSTILE}"]) == 2
    assert f"--no{SHOWN}" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are UTF-8")
def test_a_name_that_is_not_utf8_is_shown_by_its_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9.png")
    Path(name).write_bytes(b"x")
    assert main(["score", name, name, "--model", "tiny", "--quiet"]) == 2
    assert "cannot read caf\\udce9.png: " in capsys.readouterr().err


def test_what_people_write_is_not_changed():
    assert printable("Zoë's Straße, 東京/écran (1) - 50 %.png") == "Zoë's Straße, 東京/écran (1) - 50 %.png"
    assert printable("\x00\x7f\x9b\ud800\u2066") == r"\x00\x7f\x9b\ud800\u2066"
