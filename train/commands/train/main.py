"""`rclip-metric train ...`: the commands that make encoders and the data for them."""

from __future__ import annotations

import argparse
import contextlib
import importlib

from rclip_metric.printing import Parser, complain
from rclip_metric.train.runs.claim import claimed, leads
from rclip_metric.train.runs.interrupt import Interrupted

# The modules of the tasks and what --help says of each: a module is imported for its own tasks alone.
TASKS = {
    "scenes": {"scenes": "write the procedural 64x64 data sets"},
    "photos": {"photos": "write triplets from a tree of photographs"},
    "landmarks": {"landmarks": "convert the ground truth of ROxford5k or RParis6k from a pickle to JSON"},
    "clip": {
        "clip": "train a small CLIP on scenes (tiny-clean)",
        "text": "write the text tower of a `train clip` run, for zero-shot classification",
        "pack": "write a run's weights as one half-precision file, as `tiny` is shipped",
    },
    "finetune": {
        "fare": "adversarial fine-tuning of an image encoder without labels (FARE, Sim-CLIP, LORE)",
        "tecoa": "adversarial fine-tuning of a CLIP's image encoder with class labels (TeCoA)",
    },
    "nights": {"nights": "tune an encoder on NIGHTS-format triplets: LoRA inside it, or an MLP on top of it"},
    "lipsim": {"lipsim": "distil a metric into a 1-Lipschitz one, whose decisions are proven, and tune it on triplets"},
    "lpips": {"lpips": "tune LPIPS's heads on BAPPS-format triplets, plain or adversarial (R-LPIPS)"},
    "convert": {"convert": "turn a vision tower, an MLP head or a LoRA adapter of others into an encoder of ours"},
    "detector": {"convert-detector": "turn a head of LAION's detector of unsafe images into a file of ours"},
    "baseline": {"baseline": "convert DreamSim, LipSim or R-LPIPS, to benchmark them"},
    "export": {"export": "publish a run's encoder"},
}


def build_parser(task: str) -> argparse.ArgumentParser:
    """Build the parser, with the options of this task; `train` is the first word, the other tasks are only named."""
    parser = Parser(prog="rclip-metric", description=__doc__)
    group = parser.add_subparsers(dest="group", required=True)
    commands = group.add_parser("train", help="make encoders").add_subparsers(
        dest="task", required=True, metavar="TASK"
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--quiet", action="store_true", help="no progress bar")
    for name, tasks in TASKS.items():
        if task in tasks:
            importlib.import_module(f"rclip_metric.train.commands.train.{name}").add(commands, shared)
            continue
        for other, about in tasks.items():
            commands.add_parser(other, help=about, add_help=False)
    return parser


def main(argv: list[str]) -> int:
    """Run `train ...`: 0 when done, 2 for bad input, 128 + N after signal N; the Hub's errors are the caller's."""
    options = build_parser(argv[1] if len(argv) > 1 else "").parse_args(argv)
    try:
        # Of torchrun's processes the first writes, and the others end with it.
        with claimed(options.out) if leads() and options.out is not None else contextlib.nullcontext():
            return options.run(options) or 0
    except (ValueError, FloatingPointError) as error:
        complain(error)
        return 2
    except Interrupted as stopped:
        complain(stopped)
        return int(stopped.code or 1)
