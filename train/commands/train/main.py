"""``rclip-metric train ...``: the commands that make encoders and the data for them."""

from __future__ import annotations

import argparse
import sys

from rclip_metric.train.commands.train import baseline, clip, convert, export, finetune, nights, photos, scenes
from rclip_metric.train.runs.interrupt import Interrupted


def build_parser() -> argparse.ArgumentParser:
    """The parser; ``train`` is the first word."""
    parser = argparse.ArgumentParser(prog="rclip-metric", description=__doc__)
    group = parser.add_subparsers(dest="group", required=True)
    commands = group.add_parser("train", help="make encoders").add_subparsers(
        dest="task", required=True, metavar="TASK"
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--quiet", action="store_true", help="no progress bar")
    for module in (scenes, photos, clip, finetune, nights, convert, baseline, export):
        module.add(commands, shared)
    return parser


def main(argv: list[str]) -> int:
    """Run ``train ...``: 0 when done, 2 for bad input, 128 + N after signal N; the Hub's errors are the caller's."""
    options = build_parser().parse_args(argv)
    try:
        return options.run(options) or 0
    except (ValueError, FloatingPointError) as error:
        print(f"rclip-metric: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(f"rclip-metric: {stopped}", file=sys.stderr)
        return int(stopped.code or 1)
