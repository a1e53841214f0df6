"""`rclip-metric train scenes`: the procedural data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rclip_metric.printing import say
from rclip_metric.train.runs.config import add_options, configured, positive


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the command."""
    from rclip_metric.train.data.scenes.config import ScenesConfig

    parser = commands.add_parser("scenes", parents=[shared], help="write the procedural 64x64 data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    add_options(parser, ScenesConfig, skip=("triplets",))
    parser.add_argument(
        "--triplets",
        type=_counts,
        metavar="COUNTS",
        help="NIGHTS-format triplets: train,val,test (default 1000,400,1200)",
    )
    parser.add_argument("--bapps", type=positive, metavar="N", help="also N triplets per split in the BAPPS format")
    parser.add_argument(
        "--bapps-training", type=positive, metavar="N", help="with --bapps, also N triplets in each training split"
    )
    parser.add_argument("--jnd", type=positive, metavar="N", help="also N pairs per split in BAPPS' JND format")
    parser.add_argument("--things", type=positive, metavar="N", help="also N triplets in the THINGS format")
    parser.add_argument("--grounds", type=positive, metavar="N", help="also N images of each ground colour, in folders")
    parser.add_argument("--pairs", type=positive, metavar="N", help="also N images of each object and ground colour")
    parser.set_defaults(run=_run)


def _counts(text: str) -> tuple[int, int, int]:
    numbers = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(numbers) != 3 or text.count(",") != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers: write train,val,test like 1000,400,1200")
    return numbers[0], numbers[1], numbers[2]


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.train.data.scenes.config import ScenesConfig
    from rclip_metric.train.data.scenes.draw import write_scenes
    from rclip_metric.train.data.scenes.formats import (
        write_bapps,
        write_grounds,
        write_jnd,
        write_pairs,
        write_things,
    )

    if options.bapps_training and not options.bapps:
        raise ValueError("--bapps-training adds to the set that --bapps N writes: pass both")
    record = write_scenes(options.out, configured(ScenesConfig, options), quiet=options.quiet)
    seed, quiet = record["seed"], options.quiet
    say(f"{options.out}: {record['images']} captioned images, {sum(record['triplets'])} triplets, seed {seed}")
    if options.bapps:
        training = options.bapps_training or 0
        write_bapps(options.out / "bapps", seed=seed, per_split=options.bapps, training=training, quiet=quiet)
        more = f", {training} in each of three training splits" if training else ""
        say(f"{options.out / 'bapps'}: {options.bapps} triplets in each of six splits{more}")
    if options.jnd:
        write_jnd(options.out / "bapps", seed=seed, per_split=options.jnd, quiet=quiet)
        say(f"{options.out / 'bapps'}: {options.jnd} pairs in each of two splits of the JND part")
    if options.grounds:
        write_grounds(options.out / "grounds", seed=seed, per_class=options.grounds, quiet=quiet)
        say(f"{options.out / 'grounds'}: {options.grounds} images of each ground colour")
    if options.pairs:
        write_pairs(options.out / "pairs", seed=seed, per_class=options.pairs, quiet=quiet)
        say(f"{options.out / 'pairs'}: {options.pairs} images of each pair of object and ground colour")
    if options.things:
        write_things(options.out / "things", seed=seed, triplets=options.things, quiet=quiet)
        say(f"{options.out / 'things'}: {options.things} triplets")
