"""A newcomer's log: from a clean clone to the first number, by README's own blocks, with times and sizes.

    python examples/newcomer.py --out results/newcomer.json
    python examples/newcomer.py --installed .venv/bin/python

Clones the repository, makes a virtual environment without pip's cache, installs what `pip install -e .` installs, and
then runs "Two commands" and "Six lines of Python" as they stand in the clone's README, comparing what they print with
what stands there. It downloads gigabytes; with `--installed` an environment that has everything is used, and the record
says so. Times are wall seconds and the processor's, of each step and all it starts.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_UNITS = {"bytes": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}


def run(command: Sequence[str], folder: Path, environment: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Run a step to its end: its seconds, and what it printed."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return {"wall_s": round(wall, 1), "processor_s": round(used, 1)}, done.stdout


def downloads(log: str) -> dict[str, int]:
    """The files that pip says it downloads, and their bytes as it rounds them.

    Example:
        >>> downloads("  Downloading torch-2.14.1-cp311.whl (531.2 MB)")
        {'torch-2.14.1-cp311.whl': 531200000}
    """
    found = re.findall(r"Downloading (?:\S*/)?(\S+\.(?:whl|gz|zip)) \(([\d.]+) (bytes|[kMG]B)\)", log)
    return {name: round(float(count) * _UNITS[unit]) for name, count, unit in found}


def block(page: str, heading: str, language: str) -> tuple[str, str]:
    """The first block of a language below a heading, and the text block after it."""
    part = page[page.index(f"\n## {heading}\n") :]
    match = re.search(rf"```{language}\n(.*?)```\s+```text\n(.*?)```", part, re.DOTALL)
    if match is None:
        raise SystemExit(f"README has no {language} block with its output below {heading!r}")
    return match[1], match[2]


def same(printed: str, shown: str) -> bool:
    """Are the words equal, and the numbers to 0.001?

    Example:
        >>> same("0.2003 a.jpg", "0.20026 a.jpg"), same("0.2003 a.jpg", "0.2103 a.jpg")
        (True, False)
    """
    number = r"\d+\.\d+"
    figures = [[float(one) for one in re.findall(number, text)] for text in (printed, shown)]
    words = [re.sub(number, "#", text).split() for text in (printed, shown)]
    return words[0] == words[1] and all(abs(a - b) < 1e-3 for a, b in zip(*figures, strict=True))


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def follow(folder: Path, installed: str | None) -> dict[str, Any]:
    """Do all a newcomer does in an empty folder."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    record: dict[str, Any] = {"installed_before": installed is not None, "steps": {}}
    steps, home = record["steps"], folder / "rclip-metric"
    steps["clone"], _ = run(["git", "clone", "--quiet", str(ROOT), str(home)], folder, environment)
    record["clone_bytes"] = {"git": size(home / ".git"), "files": size(home) - size(home / ".git")}
    record["commit"] = run(["git", "rev-parse", "HEAD"], home, environment)[1].strip()
    if installed is None:
        steps["virtual environment"], _ = run([sys.executable, "-m", "venv", ".venv"], home, environment)
        command = [".venv/bin/pip", "install", "--no-cache-dir", "--progress-bar", "off", "-e", "."]
        steps["install"], log = run(command, home, environment)
        files = downloads(log)
        record["download_bytes"] = {"all": sum(files.values()), "files": files}
        record["environment_bytes"] = size(home / ".venv")
        binaries = home / ".venv" / "bin"
    else:
        binaries = Path(installed).absolute().parent
        environment["PYTHONPATH"] = str(home)  # the clone before what is installed
    environment["PATH"] = f"{binaries}{os.pathsep}{environment['PATH']}"
    environment["HF_HUB_OFFLINE"] = "1"  # the models of these blocks are in the package
    readme = (home / "README.md").read_text(encoding="utf-8")
    shell, shown = block(readme, "Two commands", "sh")
    lines, printed = [line for line in shell.splitlines() if line], ""
    for step, line in zip(("first command", "second command"), lines, strict=True):
        steps[step], output = run(["sh", "-c", line], home, environment)
        printed += output
    steps["first command again"], _ = run(["sh", "-c", lines[0]], home, environment)
    python, said = block(readme, "Six lines of Python", "python")
    steps["six lines"], output = run([str(binaries / "python"), "-c", python], home, environment)
    record["prints_what_readme_says"] = {"commands": same(printed, shown), "six lines": same(output, said)}
    order = ["clone", "virtual environment", "install", "first command"]
    record["clone_to_first_number_s"] = round(sum(steps[name]["wall_s"] for name in order if name in steps), 1)
    question = "import json, torch, rclip_metric as r; print(json.dumps([torch.__version__, r.__version__]))"
    versions = json.loads(run([str(binaries / "python"), "-c", question], home, environment)[1])
    record["versions"] = {"python": platform.python_version(), "torch": versions[0], "rclip_metric": versions[1]}
    return record


def pressure() -> str:
    """The load of the last five minutes, as Linux states it."""
    path = Path("/proc/pressure/cpu")
    return path.read_text().splitlines()[0] if path.exists() else "not known"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Make the log and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--installed", metavar="PYTHON", help="the python of an environment that has everything")
    parser.add_argument("--out", type=Path, help="the record, as JSON")
    options = parser.parse_args(argv)
    before = pressure()
    with tempfile.TemporaryDirectory(prefix="rclip-metric-newcomer-") as folder:
        record = follow(Path(folder), options.installed)
    machine = {"cpus": os.cpu_count(), "system": platform.system(), "pressure_before": before, "after": pressure()}
    record["machine"] = machine
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in record.items() if key != "download_bytes"}, indent=2))
    return record


if __name__ == "__main__":
    main()
