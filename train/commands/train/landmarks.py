"""`rclip-metric train landmarks`: the ground truth of a landmark set, from the published pickle to JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rclip_metric.printing import say

_ABOUT = """\
Reads lists, dicts, texts, numbers and numpy arrays alone: a pickle that asks for anything else is refused, and nothing
in it is run. rclip-metric eval retrieval --data roxford5k:DIR does the same by itself.
"""


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "landmarks",
        parents=[shared],
        help="convert the ground truth of ROxford5k or RParis6k from a pickle to JSON",
        description=_ABOUT,
    )
    parser.add_argument("source", type=Path, metavar="GND.pkl", help="gnd_roxford5k.pkl or gnd_rparis6k.pkl")
    parser.add_argument("--out", type=Path, required=True, metavar="GND.json", help="file to write")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.train.data.ground_truth import read_ground_truth
    from rclip_metric.train.runs.files import write_json

    if options.out.is_dir():
        raise ValueError(f"{options.out} is a folder: pass the JSON file to write")
    found = read_ground_truth(options.source)
    write_json(options.out, found)
    say(f"{options.out}: {len(found['imlist'])} images, {len(found['qimlist'])} queries")
