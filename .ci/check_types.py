"""Type check: `python .ci/check_types.py`, followed by any option or file of mypy.

train/ is installed as rclip_metric.train, and mypy finds a module only where its name says. So the sources are copied
to where an installation has them, mypy runs there, and what it says of a copy is said of the file it was copied from.
Copies keep their times, which keeps mypy's cache warm.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = {"rclip_metric": "rclip_metric", "train": "rclip_metric/train", "tests": "tests", "examples": "examples"}


def copy_sources(folder: Path) -> None:
    """Copy every module of the repository to its place under `folder`."""
    for source, installed in INSTALLED.items():
        for path in (ROOT / source).rglob("*.py"):
            copy = folder / installed / path.relative_to(ROOT / source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)


def main() -> int:
    """Run mypy on the copies; its exit status."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    with tempfile.TemporaryDirectory() as folder:
        copy_sources(Path(folder))
        command = [sys.executable, "-m", "mypy", *options, *sys.argv[1:]]
        checked = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    sys.stdout.write(re.sub(r"(?m)^rclip_metric([/\\])train\1", r"train\1", checked.stdout))
    return checked.returncode


if __name__ == "__main__":
    sys.exit(main())
