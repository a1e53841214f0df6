"""The structure of the code: imports go one way, between files at the top and folders, at two depths.

python tests/test_architecture.py [CHECKOUT]        # the figures: files, lines, functions, imports, cycles
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = {"rclip_metric": "rclip_metric", "train": "rclip_metric.train"}
# Each imports from those before it only. What stands in one line knows nothing of the others in that line.
METRIC = (
    ("errors", "files", "lazy", "printing", "distance", "plugins", "second_look"),
    ("json_files", "progress"),
    ("images",),
    ("encoder",),
    ("weights", "difference_map"),
    ("metric",),
    ("detectors",),
    ("compare", "compat", "onnx_export", "retrieval", "torchmetric"),
    ("filtering", "scoring"),
    ("cli",),
)
TRAIN = (
    ("html", "runs"),
    ("attacks", "data"),
    ("models",),
    ("metrics",),
    ("inversion",),
    ("evaluation",),
    ("finetuning", "benchmark", "demo"),
    ("publishing",),
    ("commands",),
)

Graph = dict[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """All modules by their import names."""
    found = {}
    for folder, package in PLACES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: Mapping[str, Path]) -> set[str]:
    """The modules of ours that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.names[0].name != "__version__":
            deep = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in deep}
    return names & known.keys()


def room(name: str, path: Path, depth: int) -> str:
    """Where a module lives: its folder, cut at a depth below the package; a file at the top is a room of its own."""
    package = "rclip_metric.train" if name.startswith("rclip_metric.train") else "rclip_metric"
    parts = name.removeprefix(package).strip(".").split(".")
    folders = parts if path.name == "__init__.py" else parts[:-1]
    return ".".join((package, *folders[:depth])) if folders != [""] and folders else name


def graph(root: Path = ROOT, depth: int = 1) -> Graph:
    """Rooms, and the rooms that each imports from; the two packages' own faces left out."""
    known = modules(root)
    faces = {*PLACES.values(), "rclip_metric.__main__"}
    found: Graph = {}
    for name, path in known.items():
        if name in faces:
            continue
        here = room(name, path, depth)
        there = {room(other, known[other], depth) for other in imported(path, known) - faces}
        found[here] = found.get(here, set()) | (there - {here})
    return found


def cycle(found: Mapping[str, set[str]]) -> list[str]:
    """A cycle, or nothing."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("depth", [1, 2])
def test_there_is_no_cycle(depth):
    assert cycle(graph(depth=depth)) == []


def test_imports_go_one_way():
    found = graph()
    order = {"rclip_metric": METRIC, "rclip_metric.train": TRAIN}
    place = {f"{package}.{name}": number for package, lines in order.items() for number, line in enumerate(lines)
             for name in line}  # fmt: skip
    assert found.keys() == place.keys()
    for here, there in found.items():
        package = here.rpartition(".")[0]
        for other in there:
            if package == "rclip_metric":
                assert other.rpartition(".")[0] == package, f"{here} imports {other}: the metric needs no training code"
            if other.startswith(f"{package}.") and other.rpartition(".")[0] == package:
                assert place[other] < place[here], f"{here} imports {other}"


def test_nothing_below_the_command_imports_the_package_face():
    known = modules()
    for name, path in known.items():
        if not name.startswith(("rclip_metric.train", "rclip_metric.cli", "rclip_metric.__main__")):
            assert "rclip_metric" not in imported(path, known), f"{name} imports the package that imports it"


def test_a_planted_cycle_is_found(tmp_path):
    for name, text in {
        "rclip_metric/images/reading.py": "from rclip_metric import errors\n",
        "rclip_metric/errors.py": "def late():\n    from rclip_metric.images import reading\n",
        "train/data/images.py": "from rclip_metric.images.reading import open_image\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = graph(tmp_path)
    assert found["rclip_metric.train.data"] == {"rclip_metric.images"}
    assert set(cycle(found)) == {"rclip_metric.errors", "rclip_metric.images"}


def functions(path: Path) -> Iterator[tuple[int, str, int]]:
    """Lines, name and parameters of each function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = sum(map(len, (node.args.posonlyargs, node.args.args, node.args.kwonlyargs)))
            yield (node.end_lineno or 0) - node.lineno + 1, node.name, count


def report(root: Path) -> str:
    """The figures of a checkout, as text."""
    known = modules(root)
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in known.items()}
    longest = max(lines, key=lambda name: lines[name])
    every = [(*found, name) for name, path in known.items() for found in functions(path)]
    length, function, _, where = max(every)
    most = max(every, key=lambda found: found[2])
    files, sizes = Counter[str](), Counter[str]()
    for name, path in known.items():
        files[str(path.parent.relative_to(root))] += 1
        sizes[path.relative_to(root).parts[0]] += lines[name]
    told = [f"{len(known)} files, {sum(lines.values())} lines: " + ", ".join(f"{k} {v}" for k, v in sizes.items())]
    told += [f"  {count:3d} files in {folder}" for folder, count in sorted(files.items())]
    told += [
        f"longest file: {longest}, {lines[longest]} lines",
        f"longest function: {where}.{function}, {length} lines",
    ]
    told += [f"most parameters: {most[3]}.{most[1]}, {most[2]}", f"{sum(n[0] > 60 for n in every)} functions above 60"]
    for depth in (1, 2):
        found = graph(root, depth)
        edges = sum(map(len, found.values()))
        told.append(f"depth {depth}: {len(found)} rooms, {edges} imports between them; cycle: {cycle(found) or 'none'}")
    return "\n".join(told)


if __name__ == "__main__":
    sys.stdout.write(report(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT) + "\n")
