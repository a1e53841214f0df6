"""The examples in docstrings: they run and are right, and every public name of a package has one.

Not by pytest's --doctest-modules: it collects train/attacks/apgd.py under the name train.attacks.apgd, a second copy of
rclip_metric.train.attacks.apgd whose classes are others, and it passes over what a decorator such as torch.no_grad
wraps.
"""

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Packages whose every public class and function, the names in __all__, has an example.
FACES = [
    "rclip_metric",
    "rclip_metric.detectors",
    "rclip_metric.encoder",
    "rclip_metric.filtering",
    "rclip_metric.images",
    "rclip_metric.retrieval",
    "rclip_metric.weights",
    "rclip_metric.train.attacks",
    "rclip_metric.train.data",
    "rclip_metric.train.data.scenes",
    "rclip_metric.train.benchmark",
    "rclip_metric.train.evaluation",
    "rclip_metric.train.evaluation.certificates",
    "rclip_metric.train.evaluation.results",
    "rclip_metric.train.evaluation.tasks",
    "rclip_metric.train.inversion",
    "rclip_metric.train.metrics",
    "rclip_metric.train.metrics.dreamsim",
    "rclip_metric.train.metrics.lipsim",
    "rclip_metric.train.models",
    "rclip_metric.train.finetuning",
    "rclip_metric.train.finetuning.adversarial",
    "rclip_metric.train.finetuning.lipsim",
    "rclip_metric.train.finetuning.lpips",
    "rclip_metric.train.finetuning.nights",
    "rclip_metric.train.publishing",
    "rclip_metric.train.runs",
]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules_with_examples() -> list[str]:
    """Import names of the modules under rclip_metric/ and train/ whose text has an example."""
    names = []
    for folder in ("rclip_metric", "train"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                package = ("rclip_metric", *parts) if folder == "train" else parts
                names.append(".".join(package).removesuffix(".__init__"))
    return names


def examples(thing: object, name: str, module: ModuleType) -> list[doctest.DocTest]:
    """What there is to run in a docstring, and in those of a class's methods."""
    found = doctest.DocTestFinder().find(inspect.unwrap(thing), name, False, vars(module).copy())  # type: ignore[arg-type]
    return [test for test in found if test.examples]


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    """All examples of what a module defines, and of its own docstring."""
    found = doctest.DocTestParser().get_doctest(module.__doc__ or "", vars(module).copy(), module.__name__, None, 0)
    tests = [found] if found.examples else []
    for name, thing in vars(module).items():
        if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ == module.__name__:
            tests += examples(thing, f"{module.__name__}.{name}", module)
    return tests


def without_example(face: ModuleType) -> list[str]:
    """The public classes and functions of a package whose own docstring has no example."""
    missing = []
    for name in face.__all__:
        thing = getattr(face, name)
        if (inspect.isclass(thing) or inspect.isroutine(thing)) and ">>> " not in (inspect.getdoc(thing) or ""):
            missing.append(name)
    return missing


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_in_docstrings_are_right(name: str) -> None:
    said: list[str] = []
    tests = examples_of(importlib.import_module(name))
    for test in tests:
        doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append)
    assert not said, "".join(said)
    # As many as the text holds: none is passed over because of how it is wrapped or where it stands.
    text = Path(inspect.getfile(importlib.import_module(name))).read_text(encoding="utf-8")
    assert sum(len(test.examples) for test in tests) == text.count(">>> ")


@pytest.mark.parametrize("name", FACES)
def test_every_public_name_has_an_example(name: str) -> None:
    face = importlib.import_module(name)
    assert not without_example(face)
    assert list(face.__all__) == sorted(face.__all__, key=lambda one: (not one.isupper(), not one[0].isupper(), one))


def with_example() -> None:
    """Have an example.

    Example:
        >>> 1 + 1
        2
    """


def wrong() -> None:
    """Have an example that is not right.

    Example:
        >>> 1 + 1
        3
    """


def silent() -> None:
    """Have none."""


def test_a_missing_and_a_wrong_example_are_noticed() -> None:
    face = ModuleType("planted")
    face.__dict__.update(with_example=with_example, wrong=wrong, silent=silent, CONSTANT=3, number=float)
    face.__all__ = ["CONSTANT", "silent", "with_example", "wrong"]  # type: ignore[attr-defined]
    assert without_example(face) == ["silent"]
    for thing, failures in ((with_example, 0), (wrong, 1)):
        [test] = examples(thing, thing.__name__, face)
        said: list[str] = []
        assert doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append).failed == failures
        assert ("Expected:" in "".join(said)) == bool(failures)
