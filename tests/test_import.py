"""`import rclip_metric` and --help cost nothing; each public name pulls in what it needs, and nothing more."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rclip_metric
from rclip_metric.train.commands.train import main as cli

HEAVY = [
    "torch", "torchvision", "PIL", "numpy", "timm", "open_clip", "huggingface_hub", "safetensors", "transformers",
    "torchmetrics", "shtab", "torch._dynamo", "huggingface_hub.file_download", "rclip_metric.train",
]  # fmt: skip
DELEGATED = ("train", "eval", "benchmark", "invert", "imagine", "demo")
IMAGE = str(Path(__file__).parents[1] / "examples" / "images" / "reference.png")
QUIET = "import contextlib, io; from rclip_metric.cli.main import main; error = io.StringIO()"
PROBE = "import sys\n{code}\nprint(*[name for name in {heavy} if name in sys.modules], file=sys.stderr)"


def loaded_by(code: str, folder: Path) -> list[str]:
    probe = PROBE.format(code=code, heavy=HEAVY)
    return subprocess.run(
        [sys.executable, "-c", probe], cwd=folder, check=True, capture_output=True, text=True
    ).stderr.split()


def test_the_import_pulls_in_nothing(tmp_path):
    assert loaded_by("import rclip_metric; dir(rclip_metric)", tmp_path) == []


def test_a_public_name_pulls_in_torch_and_nothing_else(tmp_path):
    names = ", ".join(rclip_metric.__all__)
    assert set(loaded_by(f"from rclip_metric import {names}", tmp_path)) <= {"torch", "numpy"}  # torch takes numpy


# Each command's help, and a usage error in each, in one process; what a command is the first to import is its own.
WALK = """
import argparse, contextlib, io, json, os, sys
from rclip_metric.cli.main import main
from rclip_metric.printing import Parser

heavy, shown, loaded, codes = {heavy}, [], {{}}, {{}}
Parser.print_help = lambda parser, file=None: shown.append(parser)

def run(*words):
    before = {{name for name in heavy if name in sys.modules}}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        codes[" ".join(words)] = main(words)
    loaded[" ".join(words)] = sorted({{name for name in heavy if name in sys.modules}} - before)

def walk(*words):
    run(*words, "--help")
    parser = shown.pop()
    run(*words, "--no-such-option")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name in action.choices:
                walk(*words, name)

run("--version")
run("score", "no.png", "no.png")
run("models", "--cache-dir", ".")
run("models", "--json", "--cache-dir", ".")
walk()
print(json.dumps([codes, loaded]))
"""


def test_help_usage_errors_and_the_list_of_models_need_no_library(tmp_path):
    walked = subprocess.run(
        [sys.executable, "-c", WALK.format(heavy=HEAVY)], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    codes, loaded = json.loads(walked.stdout)
    for words, code in codes.items():
        assert code == (2 if words.endswith(("--no-such-option", "no.png")) else 0), words
    tasks = [f"train {task} --help" for names in cli.TASKS.values() for task in names]
    there = {"--help", "index build --help", "eval nights --help", "eval table --no-such-option", "demo --help", *tasks}
    assert there <= codes.keys() and len(codes) > 100
    # Training code is imported by its own commands alone; where the Hub's cache is takes little of its library.
    own = {command: {"rclip_metric.train"} for command in DELEGATED} | {"models": {"huggingface_hub"}}
    assert {words: names for words, names in loaded.items() if {*names} - own.get(words.split()[0], set())} == {}


def test_completion_in_a_shell_needs_no_library_but_its_own(tmp_path):
    pytest.importorskip("shtab")
    complete = "from rclip_metric.cli.main import main; assert main(['completion', 'bash']) == 0"
    assert set(loaded_by(complete, tmp_path)) == {"shtab", "rclip_metric.train"}


def test_what_is_told_of_a_task_is_what_the_task_says():
    def listed(build):
        parser = argparse.ArgumentParser("train")
        build(parser.add_subparsers(metavar="TASK"))
        return parser.format_help()

    def by_the_modules(commands):
        for name in cli.TASKS:
            module = importlib.import_module(f"rclip_metric.train.commands.train.{name}")
            module.add(commands, argparse.ArgumentParser(add_help=False))

    def by_the_table(commands):
        for tasks in cli.TASKS.values():
            for task, about in tasks.items():
                commands.add_parser(task, help=about)

    assert listed(by_the_table) == listed(by_the_modules)


@pytest.mark.parametrize("model", ["tiny", "r-lite-f"])
def test_a_score_with_a_native_tower_imports_no_library_of_models(tmp_path, model):
    """Which takes longer than the score."""
    score = f"{QUIET}\nassert main(['score', {IMAGE!r}, {IMAGE!r}, '--model', {model!r}]) == 0"
    assert set(loaded_by(score, tmp_path)) == {"torch", "numpy", "PIL", "safetensors"}


LIBRARIES = {"timm", "open_clip", "torchvision", "torch._dynamo", "huggingface_hub", "transformers"}
BUILDS = """
from dataclasses import replace
import torch
from rclip_metric.encoder import NAMED, build_tower, convert
from rclip_metric.train.metrics.lpips import Lpips
import rclip_metric.train.inversion.folder
small = replace(NAMED["dinov2_vit_b_14"], image_size=28, width=32, depth=1, heads=2)
state = build_tower(replace(small, image_size=42)).trunk.state_dict()
assert convert(state, "timm-vit", small)["tower.trunk.pos_embed"].shape == (1, 5, 32)
assert [Lpips(net).net.slice2 is not None for net in ("alex", "vgg", "squeeze")] == [True] * 3
"""


def test_published_layouts_and_lpips_need_no_library_of_models(tmp_path):
    loaded = set(loaded_by(BUILDS, tmp_path))
    assert "torch" in loaded and not loaded & LIBRARIES


def test_what_is_not_there_is_said_as_python_says_it():
    with pytest.raises(AttributeError, match="module 'rclip_metric' has no attribute 'scores'"):
        rclip_metric.scores  # noqa: B018
    assert set(rclip_metric.__all__) <= set(dir(rclip_metric))


def test_the_probe_would_notice(tmp_path):
    assert {"PIL", "rclip_metric.train"} <= set(loaded_by("import rclip_metric, PIL, rclip_metric.train", tmp_path))
    library_tower = "from rclip_metric.encoder import build_tower, timm_architecture as t; build_tower(t('resnet18'))"
    assert {"timm", "torch._dynamo"} <= set(loaded_by(library_tower, tmp_path))


@pytest.mark.parametrize("name", rclip_metric.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(rclip_metric, name)
    assert isinstance(value, str) or value.__doc__
