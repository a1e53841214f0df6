"""The type check sees train/ as rclip_metric.train: what is planted there, and in code that imports it, is found."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WRONG = 'LpBall("no such norm", "x").no_such_method()\n'
FOUND = ["arg-type", "arg-type", "attr-defined"]


def test_planted_errors_are_found_and_told_of_the_file_they_are_in(tmp_path):
    for folder in (".ci", "rclip_metric", "train"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "train" / "attacks" / "threat.py").open("a") as file:
        file.write(WRONG)
    planted = tmp_path / "tests" / "planted.py"
    planted.parent.mkdir()
    planted.write_text(f'from rclip_metric.train.attacks.threat import LpBall\n\nLpBall("linf", 0.1)\n{WRONG}')

    # The repository's own cache knows torch, which takes most of the time.
    command = [sys.executable, ".ci/check_types.py", "--cache-dir", ROOT / ".mypy_cache", "tests/planted.py"]
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
