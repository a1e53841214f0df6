"""The type check sees train/ as rclip_metric.train: what is planted there, and in code that imports it, is found."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WRONG = 'LpBall("no such norm", "x").no_such_method()\n'
FOUND = ["arg-type", "arg-type", "attr-defined"]
# What is checked here are the checker, the settings and the folders. The gate checks all of the modules; they import
# torch, which mypy reads for a minute.
BALL = """from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LpBall:
    norm: Literal["linf", "l2", "l1"]
    eps: float


"""


def test_planted_errors_are_found_and_told_of_the_file_they_are_in(tmp_path):
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("rclip_metric", "train", "train/attacks", "tests"):
        (tmp_path / folder).mkdir()
        if folder != "tests":
            (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "train" / "attacks" / "threat.py").write_text(BALL + WRONG)
    planted = tmp_path / "tests" / "planted.py"
    planted.write_text(f'from rclip_metric.train.attacks.threat import LpBall\n\nLpBall("linf", 0.1)\n{WRONG}')

    command = [sys.executable, ".ci/check_types.py", "tests/planted.py"]
    result = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    errors = re.findall(r"(?m)^(.+?):(\d+): error: .*\[(.+)\]$", result.stdout)
    found: dict[tuple[Path, int], list[str]] = {}
    for path, line, code in errors:
        found.setdefault((Path(path), int(line)), []).append(code)
    last = len((tmp_path / "train" / "attacks" / "threat.py").read_text().splitlines())
    assert {place: sorted(codes) for place, codes in found.items()} == {
        (Path("tests/planted.py"), 4): FOUND,
        (Path("train/attacks/threat.py"), last): FOUND,
    }, result.stdout
    assert result.returncode == 1
