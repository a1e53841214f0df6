"""`rclip-metric train photos`: triplets by construction from any tree of photographs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rclip_metric.printing import complain, say
from rclip_metric.train.runs.config import add_options, configured, positive

_ABOUT = """\
Triplets in the NIGHTS format from any tree of photographs, whose order is known by construction: the closer image is
the same photograph in another view, the farther one has lost something that people see and pixels hardly do, or is of
another thing. data.csv says the kind of each; rclip-metric eval nights --data DIR reads the set and reports by kind.
"""


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the command."""
    from rclip_metric.train.data.photos_config import PhotosConfig

    parser = commands.add_parser(
        "photos", parents=[shared], help="write triplets from a tree of photographs", description=_ABOUT
    )
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        required=True,
        metavar="TREE",
        help="folders of photographs; the folders right below one are its classes",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="CSV",
        help="a table with the columns class and file (relative to the table's folder) in place of "
        "class folders; images that it does not name are left out",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=4,
        metavar="N",
        help="threads; the set does not depend on their number (default: %(default)s)",
    )
    add_options(parser, PhotosConfig)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.train.data.photo_recipes import PHOTO_KINDS
    from rclip_metric.train.data.photos import write_photos
    from rclip_metric.train.data.photos_config import PhotosConfig

    record = write_photos(
        options.out,
        options.images,
        configured(PhotosConfig, options),
        classes=options.classes,
        workers=options.workers,
        quiet=options.quiet,
    )
    for sentence in record["left_out"]:
        complain(f"left out: {sentence}")
    kinds = record["kinds"]
    say(
        f"{options.out}: {record['count']} triplets of {record['photographs']} photographs in {record['classes']} "
        f"classes, seed {record['seed']}; {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"
    )
    if missing := [kind for kind in PHOTO_KINDS if kind not in kinds]:
        say(f"left out: {' and '.join(missing)}, which need classes of at least two photographs each")
