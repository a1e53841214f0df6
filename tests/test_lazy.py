"""Packages that import their public names when they are used, and those of ours that do."""

import ast
import copy
import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from rclip_metric.lazy import LazyPackage

ROOT = Path(__file__).parents[1]
FACES = {
    ".".join((*(("rclip_metric",) if folder == "train" else ()), *path.parent.relative_to(ROOT).parts)): path
    for folder in ("rclip_metric", "train")
    for path in sorted((ROOT / folder).rglob("__init__.py"))
    if "import_when_used(" in path.read_text(encoding="utf-8")
}


@pytest.fixture
def attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package with a function of its module's name, and a module that is not public."""
    folder = tmp_path / "planted_attacks"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from rclip_metric.lazy import import_when_used\n"
        "KNOWN = 1\n"
        'import_when_used(__name__, {".pgd": "pgd STEPS", ".losses": "fare", "math": "pi"})\n'
    )
    (folder / "pgd.py").write_text("STEPS = 10\n\n\ndef pgd(): ...\n")
    (folder / "losses.py").write_text("def fare(): ...\n")
    (folder / "inner.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("planted_attacks")
    for name in [name for name in sys.modules if name.partition(".")[0] == "planted_attacks"]:
        del sys.modules[name]


def test_a_name_is_imported_when_it_is_used(attacks):
    assert dir(attacks) == sorted(dir(attacks)) and {"KNOWN", "STEPS", "pgd", "pi"} <= set(dir(attacks))
    assert attacks.KNOWN == 1 and "planted_attacks.pgd" not in sys.modules
    assert attacks.STEPS == 10 and "planted_attacks.pgd" in sys.modules
    assert 3.14 < attacks.pi < 3.15
    with pytest.raises(AttributeError, match="module 'planted_attacks' has no attribute 'steps'"):
        attacks.steps  # noqa: B018


def test_a_function_is_not_hidden_by_the_module_of_its_name(attacks):
    module = importlib.import_module("planted_attacks.pgd")  # which would be the package's pgd now
    assert attacks.pgd is module.pgd and attacks.pgd is not module
    names: dict[str, object] = {}
    exec("from planted_attacks import pgd, inner", names)
    assert names["pgd"] is module.pgd and names["inner"] is sys.modules["planted_attacks.inner"]


def test_a_module_of_public_names_is_there_too(attacks):
    assert attacks.losses is importlib.import_module("planted_attacks.losses") and attacks.losses.fare is attacks.fare
    with pytest.raises(AttributeError, match="'inner'"):
        attacks.inner  # noqa: B018


def test_a_name_can_be_replaced(attacks, monkeypatch):
    def other() -> None: ...

    with monkeypatch.context() as patched:
        patched.setattr("planted_attacks.pgd", other)
        assert attacks.pgd is other
    assert attacks.pgd is sys.modules["planted_attacks.pgd"].pgd


def test_packages_are_pickled_by_name(attacks):
    """As what a notebook sends to other processes refers to them."""
    cloudpickle = pytest.importorskip("cloudpickle")
    for dumps in (pickle.dumps, cloudpickle.dumps):
        assert pickle.loads(dumps(attacks)) is attacks
    assert copy.deepcopy(attacks) is attacks


def read(path: Path) -> tuple[dict[str, set[str]], dict[str, set[str]], set[str]]:
    """What a face imports for a type checker and when it is used, by module, and its `__all__`."""
    for_types: dict[str, set[str]] = {}
    used: dict[str, set[str]] = {}
    public: set[str] = set()
    package = ".".join(path.parent.relative_to(ROOT).parts)
    package = f"rclip_metric.{package}" if package.startswith("train") else package
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If):
            for line in node.body:
                assert isinstance(line, ast.ImportFrom) and line.module is not None
                # `as` is for what there is for type checkers alone.
                names = {alias.name for alias in line.names if alias.asname is None}
                if names:
                    for_types[line.module] = for_types.get(line.module, set()) | names
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public = set(ast.literal_eval(node.value))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            for module, text in ast.literal_eval(node.value.args[1]).items():
                used[f"{package}{module}" if module.startswith(".") else module] = set(text.split())
    return for_types, used, public


@pytest.mark.parametrize("name", FACES)
def test_what_is_used_is_what_a_type_checker_sees(name):
    for_types, used, public = read(FACES[name])
    assert used == for_types
    assert set().union(*used.values()) == public - {"__version__"}
    face = importlib.import_module(name)
    assert isinstance(face, LazyPackage)
    for module, names in used.items():
        for public_name in names:
            assert getattr(face, public_name) is getattr(importlib.import_module(module), public_name)


def test_the_packages_that_options_come_from_are_among_them():
    assert {"rclip_metric", "rclip_metric.weights", "rclip_metric.train.attacks", "rclip_metric.train.runs"} <= {*FACES}
