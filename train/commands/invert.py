"""`rclip-metric invert` and `rclip-metric imagine`: what an embedding holds, what a sentence looks like."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rclip_metric.printing import Parser, complain, say
from rclip_metric.train.runs.config import count, positive, radius

_INVERT = """\
Images that a model takes for the same as the given one: found from its embedding alone, starting from grey noise.
With a robust model they show what it sees; with any other one they are noise.

TARGET is an image; a .npy or .safetensors file of embeddings, (D,) or (N, D); or INDEX:ID, an image of an index.
"""
_IMAGINE = """\
Images whose embedding is near that of a text: what the model takes the words to look like. It takes a model with a
text tower, such as tiny, tiny-clean or a CLIP with its text weights.
"""
_EPILOG = """\
--out gets a PNG for each target, model and seed, inversion.json with settings and cosines, and sheet.png with all of
them. The same command goes on where it stopped; more targets, models or seeds are added to what is there.
"""


def build_parser(command: str) -> argparse.ArgumentParser:
    """Build the parser of one of the two; what it parses begins after the command's name."""
    imagine = command == "imagine"
    parser = Parser(
        prog=f"rclip-metric {command}",
        description=_IMAGINE if imagine else _INVERT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    if imagine:
        add("targets", nargs="+", metavar="TEXT", help="in quotes")
    else:
        add("targets", nargs="+", metavar="TARGET", help="see above")
    add("--model", nargs="+", required=True, help="names, paths or Hub ids; a column each")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything")
    add("--seeds", type=positive, default=4, metavar="N", help="how many starts (default: %(default)s)")
    add(
        "--method",
        choices=("apgd", "multi-view"),
        default="apgd",
        help="apgd: on the embedding of the image itself; multi-view: Adam on 32 augmented views, smoother "
        "(default: %(default)s)",
    )
    add("--steps", type=count, metavar="N", help="iterations (default: 500; of multi-view 1000)")
    add("--radius", type=radius, default=100.0, metavar="EPS", help="of apgd: l_2, at 224 pixels (default: 100)")
    add("--views", type=count, default=32, metavar="N", help="of multi-view: per step (default: %(default)s)")
    add("--every", type=count, default=0, metavar="N", help="also write a picture every N steps (default: none)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: list[str]) -> int:
    """Run `invert ...` or `imagine ...`: 0 when done, 2 for bad input; the Hub's errors are the caller's to report."""
    options = build_parser(argv[0]).parse_args(argv[1:])
    try:
        record = _run(options, imagine=argv[0] == "imagine")
    except (ValueError, FloatingPointError) as error:
        complain(error)
        return 2
    names = {entry["digest"]: entry["name"] for part in ("targets", "models") for entry in record[part]}
    for result in record["results"]:
        said = f"{names[result['target']]}  {names[result['model']]}  seed {result['seed']}"
        say(f"{said}  cosine {result['similarity_of_file']:.4f}  {options.out / result['file']}")
    say(f"all of them: {options.out / 'sheet.png'}")
    return 0


def _run(options: argparse.Namespace, imagine: bool) -> dict[str, Any]:
    from rclip_metric.train.evaluation.attack import chunk_size_of
    from rclip_metric.train.inversion import (
        STEPS,
        How,
        InversionSettings,
        TextTarget,
        read_targets,
        reconstruct,
    )
    from rclip_metric.train.metrics import load_metric
    from rclip_metric.train.runs.distributed import chosen_device

    steps = STEPS[options.method] if options.steps is None else options.steps
    settings = InversionSettings(options.method, steps, options.radius, views=options.views)
    device = str(chosen_device(options.device))
    given = [] if imagine else [target for word in options.targets for target in read_targets(word)]
    metrics = [load_metric(name, device=device) for name in options.model]
    names = {id(metric): name for metric, name in zip(metrics, options.model, strict=True)}
    texts = [TextTarget(text, lambda metric: names[id(metric)]) for text in options.targets] if imagine else []
    how = How(min(map(chunk_size_of, metrics)), options.every, options.quiet)
    return reconstruct(options.out, [*texts, *given], metrics, settings, seeds=options.seeds, how=how)
