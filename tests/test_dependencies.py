"""What is imported is declared: in pyproject.toml, and in the recipe for conda."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml  # type: ignore[import-untyped]  # huggingface_hub's own requirement
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import rclip_metric

ROOT = Path(__file__).parents[1]
# Where a package is imported under another name than it is installed by.
INSTALLED_BY = {"PIL": "pillow", "open_clip": "open-clip-torch"}
# Imports this package, and is never a dependency of it.
CALLERS = {"pyiqa": {"rclip_metric/compat/pyiqa.py"}}
ON_CONDA_FORGE = {"torch": "pytorch"}


def project() -> Any:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def declared(requirements: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(found.name): found for found in map(Requirement, requirements)}


def third_party(node: ast.AST) -> Iterator[str]:
    """The packages that one statement imports, by what installs them."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [node.module]
    for name in {name.partition(".")[0] for name in names} - {"rclip_metric"}:
        if name not in sys.stdlib_module_names:
            yield canonicalize_name(INSTALLED_BY.get(name, name))


def imports() -> Iterator[tuple[str, str]]:
    """Every module of ours with every package that it imports, wherever in it."""
    for path in sorted(path for folder in ("rclip_metric", "train") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in third_party(node):
                yield path.relative_to(ROOT).as_posix(), name


def test_every_import_is_declared() -> None:
    required = declared(project()["dependencies"])
    extras = {name: declared(those) for name, those in project()["optional-dependencies"].items()}
    # What is there to test or document it all is not there for a user.
    known = required.keys() | {
        name for extra, those in extras.items() if extra not in ("test", "docs") for name in those
    }
    found = {(name, file) for file, name in imports()}
    assert {name for name, _ in found} >= {"torch", "pillow", "filelock", "shtab"}  # the walk sees them
    undeclared = {(name, file) for name, file in found if name not in known and file not in CALLERS.get(name, ())}
    assert undeclared == set()


def test_every_requirement_is_imported_and_has_a_lower_bound_alone() -> None:
    required = declared(project()["dependencies"])
    # open_clip_torch imports torchvision, and has no bound that keeps it to the torch that it was built for.
    assert required.keys() - {"torchvision"} <= {name for _, name in imports()}
    for requirement in required.values():
        assert [bound.operator for bound in requirement.specifier] == [">="], str(requirement)


def test_what_is_there_to_test_includes_every_extra() -> None:
    extras = project()["optional-dependencies"]
    tested = declared(extras["test"])
    for name, those in extras.items():
        assert declared(those).keys() <= tested.keys() | declared(project()["dependencies"]).keys(), name


@pytest.fixture(scope="module")
def recipe() -> Any:
    def load_file_regex(load_file: str, regex_pattern: str, from_recipe_dir: bool) -> re.Match[str] | None:
        assert from_recipe_dir
        return re.search(regex_pattern, (ROOT / "recipe" / load_file).read_text())

    text = (ROOT / "recipe" / "meta.yaml").read_text()
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text)
    return yaml.safe_load(template.render(load_file_regex=load_file_regex, PYTHON="python"))


def test_the_recipe_for_conda_says_what_pyproject_says(recipe: Any) -> None:
    stated = project()
    assert (recipe["package"]["name"], recipe["package"]["version"]) == (stated["name"], rclip_metric.__version__)
    expected: dict[str, str] = {
        canonicalize_name(ON_CONDA_FORGE.get(name, name)): str(found.specifier)
        for name, found in declared(stated["dependencies"]).items()
    }
    run = [line.partition(" ") for line in recipe["requirements"]["run"]]
    named = {canonicalize_name(name): bound for name, _, bound in run}
    assert named == {**expected, "python": stated["requires-python"]}
    assert recipe["build"]["entry_points"] == [f"{k} = {v}" for k, v in stated["scripts"].items()]
    assert (recipe["about"]["summary"], recipe["about"]["license"]) == (stated["description"], stated["license"])
