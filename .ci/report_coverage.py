"""Line coverage per package, as a table: `python .ci/report_coverage.py DATA_FILE`.

A package is a folder of the repository, without the folders in it. Modules that no test imported count as well.
"""

import sys
from collections import defaultdict
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("rclip_metric", "train")


def lines_per_package(data_file: str) -> dict[str, tuple[int, int]]:
    """Covered and all executable lines of every package, by its folder."""
    measured = coverage.Coverage(data_file=data_file, config_file=str(Path(__file__).with_name("coverage.ini")))
    measured.load()
    lines: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for path in sorted(path for source in SOURCES for path in (ROOT / source).rglob("*.py")):
        _, statements, _, missing, _ = measured.analysis2(str(path))
        package = path.relative_to(ROOT).parent.as_posix()
        covered, total = lines[package]
        lines[package] = (covered + len(statements) - len(missing), total + len(statements))
    return lines


def main() -> int:
    """Print the table; 1 where nothing was measured."""
    lines = lines_per_package(sys.argv[1])
    covered, total = (sum(counts) for counts in zip(*lines.values(), strict=True))
    if not covered:
        sys.stderr.write(f"{sys.argv[1]}: no line was measured\n")
        return 1
    width = max(map(len, lines))
    sys.stdout.write(f"{'package':<{width}}  covered  lines      %\n")
    for name, (some, every) in [*lines.items(), ("together", (covered, total))]:
        share = f"{100 * some / every:.1f}" if every else "-"
        sys.stdout.write(f"{name:<{width}}  {some:7}  {every:5}  {share:>5}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
