"""Programs as a test runs them: the scripts of examples/, and one command without the command line around it."""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
# Seconds that a test waits for a process of its own: one that takes 10 on quiet cores takes minutes beside other work.
PATIENCE = 600


def load_example(name: str) -> ModuleType:
    """The script examples/NAME.py as a module, anew each time."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


def run_command(command: Any, *words: object) -> int | None:
    """Parse `words` with what `command.add` adds to a parser, and run it; its exit status."""
    parser = argparse.ArgumentParser()
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--quiet", action="store_true")
    command.add(parser.add_subparsers(required=True), shared)
    options = parser.parse_args([str(word) for word in words])
    status: int | None = options.run(options)
    return status
