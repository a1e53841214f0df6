"""Versions, devices, and the script that completes the command line."""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rclip_metric
from rclip_metric.cli import about
from rclip_metric.cli.main import main
from rclip_metric.weights import model_names

from support.programs import PATIENCE

ROOT = Path(__file__).parents[2]


def test_the_version_names_torch_and_its_accelerator(capsys: pytest.CaptureFixture[str]) -> None:
    """As torch itself says, which is not imported for it (see test_import.py)."""
    assert main(["--version"]) == 0
    kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    built = next((f"{kind} {version}" for kind, version in kinds.items() if version), "the CPU")
    python = platform.python_version()
    expected = f"rclip-metric {rclip_metric.__version__} (torch {torch.__version__} for {built}, Python {python})\n"
    if platform.system() != "Darwin":
        assert capsys.readouterr() == (expected, "")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            "__version__ = '2.6.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n",
            ("2.6.0+cpu", "the CPU"),
        ),
        ("__version__ = '2.7.1'\ncuda: Optional[str] = '12.6'\nhip: Optional[str] = None\n", ("2.7.1", "CUDA 12.6")),
        ("__version__ = '2.8.0'\ncuda = None\nhip: Optional[str] = '6.4'\n", ("2.8.0", "ROCm 6.4")),
        ("", ("of no known version", "the CPU")),
    ],
)
def test_what_other_builds_of_torch_say(
    written: str, expected: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    (tmp_path / "version.py").write_text(written)
    found = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})()
    monkeypatch.setattr(about, "find_spec", lambda name: found)
    assert about._installed_torch() == expected


def test_everything_about_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["torch"], facts["rclip_metric"]) == (torch.__version__, rclip_metric.__version__)
    assert facts["devices"][0] == "cpu" and len(facts["devices"]) >= 1 + torch.cuda.device_count()
    assert (facts["device"] == "cuda") == torch.cuda.is_available()
    assert main(["version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(facts) and f"torch            {torch.__version__}" in lines


def test_the_module_is_the_command() -> None:
    answered = [
        subprocess.run(
            [sys.executable, *words, "--version"], capture_output=True, text=True, check=True, timeout=PATIENCE
        ).stdout
        for words in (["-m", "rclip_metric"], ["-c", "from rclip_metric.__main__ import console_main as c; c()"])
    ]
    assert answered[0] == answered[1] and answered[0].startswith("rclip-metric ")


def test_an_answer_without_torch_takes_no_time() -> None:
    """Processor time beyond that of Python itself, the least of five: others use this machine too."""

    def seconds(code: str, *words: str) -> float:
        code += "print(time.process_time(), file=sys.stderr)"
        command = [sys.executable, "-c", f"import sys, time\n{code}", *words]
        runs = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5))
        return min(float(run.stderr) for run in runs)

    answer = "from rclip_metric.__main__ import console_main\ntry: console_main()\nfinally: "
    plain = seconds("")
    for words in ("--help", "--version"):
        assert seconds(answer, words) - plain < 0.3  # 0.1 on a core of a server that is busy; torch alone takes 3


# Completion


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> Any:
    pytest.importorskip("shtab")

    def made(shell: str) -> str:
        assert main(["completion", shell]) == 0
        return capsys.readouterr().out

    return made


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sc"], {"score"}),
        (["score", "--all"], {"--all-pairs"}),
        (["score", "--resize", ""], {"published", "squash", "none"}),
        (["score", "--model", "r-lite"], {"r-lite-f"}),
        (["download", "tin"], {"tiny", "tiny-clean"}),
        (["index", "bu"], {"build"}),
        (["train", "fa"], {"fare"}),
        (["rank", "LICEN"], {"LICENSE"}),
    ],
)
def test_bash_completes_commands_options_models_and_files(
    script: Any, tmp_path: Path, words: Any, expected: Any
) -> None:
    (tmp_path / "made").write_text(script("bash"))
    lines = [
        f"source {tmp_path / 'made'}",
        f"COMP_WORDS=(rclip-metric {' '.join(word or repr('') for word in words)}); COMP_CWORD={len(words)}",
        "$(complete -p rclip-metric | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_the_other_shells_have_a_script(script: Any, shell: str) -> None:
    text = script(shell)
    assert "rclip-metric" in text and "duplicates" in text
    assert shell != "zsh" or re.search(rf"compadd -- {re.escape(' '.join(model_names()))};", text)


def test_without_the_extra_it_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr() == (
        "",
        'rclip-metric: completion in a shell needs an extra: pip install "rclip-metric[completion]"\n',
    )
