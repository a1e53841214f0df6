"""Completion of the command line in a shell: a script that is made once, so that no key pressed starts this program."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from rclip_metric.errors import MissingPackageError
from rclip_metric.printing import show

_HELP = """\
Print the script that completes commands, options, models and files (needs the extra `completion`):

  bash   rclip-metric completion bash > ~/.local/share/bash-completion/completions/rclip-metric
  zsh    rclip-metric completion zsh > ~/.zfunc/_rclip-metric    (with ~/.zfunc in fpath)
  tcsh   rclip-metric completion tcsh > ~/.rclip-metric.csh      (source it in ~/.cshrc)
"""
_MODELS = {"bash": "_rclip_metric_models", "zsh": "_rclip_metric_models", "tcsh": "f"}
_PREAMBLE = {
    "bash": '_rclip_metric_models() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
    "zsh": "_rclip_metric_models() {{ compadd -- {names}; _files; }}",
}
_OF_MODELS = ("--model", "--base", "names", "model")
_OF_FILES = ("paths", "reference", "candidates", "a", "b", "folder", "index", "queries", "images", "pools", "out")


def add_completion(
    commands: Any, parser: argparse.ArgumentParser, delegated: dict[str, str], raw: dict[str, Any]
) -> None:
    """Add `completion`.

    Args:
        commands: What the command is added to.
        parser: The whole program's parser.
        delegated: The modules of the commands that parse for themselves.
        raw: As for the other commands.
    """
    added = commands.add_parser(
        "completion", help="print a script that completes this command in a shell", description=_HELP, **raw
    )
    added.add_argument("shell", choices=list(_MODELS), help="which")
    added.set_defaults(command=_completion(parser, commands.choices, delegated))


def _completion(
    parser: argparse.ArgumentParser, commands: dict[str, argparse.ArgumentParser], delegated: dict[str, str]
) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        try:
            import shtab
        except ImportError as error:
            raise MissingPackageError(
                'completion in a shell needs an extra: pip install "rclip-metric[completion]"'
            ) from error
        from rclip_metric.weights.manifest import model_names

        tasks = importlib.import_module(delegated["train"]).TASKS.values()
        commands["train"].add_argument("task", choices=[name for group in tasks for name in group])
        _mark(parser, shtab.FILE)
        names = " ".join(model_names())
        preamble: Any = {shell: text.format(names=names) for shell, text in _PREAMBLE.items()}
        show(f"{shtab.complete(parser, shell=args.shell, preamble=preamble)}\n")
        return 0

    return run


def _mark(parser: argparse.ArgumentParser, files: Mapping[str, str | dict[str, str]]) -> None:
    """Say which arguments are models and which are files, of a parser and of those below it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _mark(below, files)
        elif action.choices is None and {*action.option_strings, action.dest} & {*_OF_MODELS}:
            action.complete = _MODELS  # type: ignore[attr-defined]
        elif action.choices is None and (action.dest in _OF_FILES or action.metavar in ("FILE", "FOLDER")):
            action.complete = files  # type: ignore[attr-defined]
