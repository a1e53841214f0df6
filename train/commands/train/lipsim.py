"""`rclip-metric train lipsim`: a provable metric from any teacher."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rclip_metric.printing import say

_PREFIX = "tune_"
_DISTILLED = "distilled"  # folder of step 1 in that of a run of both
_ABOUT = """\
Distil a metric into a 1-Lipschitz one, whose decisions come with a proof, in LipSim's two steps:

  1. with --teacher and --images, a student regresses the teacher's embeddings of images, from them and jittered copies;
  2. with --triplets, it is tuned on people's choices by a margin.

With all three, step 1 is in RUN/distilled and step 2 in RUN. Step 2 alone goes on from --start-from RUN.
"""
_EPILOG = """\
Settings come from --recipe, then from --config, then from the options; in both files those of step 2 are under "tune".
What none of them says is as published (224 pixels, ImageNet, 40 epochs). A run that was stopped goes on when the same
command is given again. Recipes of this command: {recipes}.
"""


def add(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the command."""
    from rclip_metric.train.finetuning.lipsim import DistilConfig, TuneConfig
    from rclip_metric.train.runs.config import PRECISIONS, add_options, count, recipe_names

    parser = commands.add_parser(
        "lipsim",
        parents=[shared],
        help="distil a metric into a 1-Lipschitz one, whose decisions are proven, and tune it on triplets",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG.format(recipes=", ".join(recipe_names("lipsim"))),
    )
    parser.add_argument(
        "--teacher", metavar="METRIC", help="what to learn from, as --metrics has it (default: recipe's)"
    )
    parser.add_argument("--images", nargs="+", metavar="TREE", help="trees of images, or WebDataset shards: step 1")
    parser.add_argument("--triplets", type=Path, metavar="DIR", help="NIGHTS-format set: step 2, and its val is judged")
    parser.add_argument("--no-tune", action="store_true", help="judge val of --triplets after step 1, and stop there")
    parser.add_argument(
        "--start-from", type=Path, metavar="RUN", help="an earlier run, whose weights the student begins with"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run; resumes")
    parser.add_argument("--name", help="name of the new metric (default: the name of --out)")
    parser.add_argument("--recipe", metavar="NAME|FILE", help="settings by name, or a file like them")
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON file with settings, by the names below")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the student's passes in training; what is proven is float32 whatever it is (default float32)",
    )
    parser.add_argument("--workers", type=count, default=0, metavar="N", help="processes that read images (default 0)")
    parser.add_argument("--allow-outside", action="store_true", help="paths in data.csv may lead out of the folder")
    parser.add_argument("--license", metavar="TEXT", help="of the weights, for the card")
    add_options(parser, DistilConfig, "step 1")
    add_options(parser, TuneConfig, "step 2", skip=("margin", "seed"), prefix=_PREFIX)
    parser.add_argument(
        "--margin",
        type=float,
        dest=f"{_PREFIX}margin",
        metavar="X",
        help="step 2: by how much the chosen image is to be nearer, in 1 - cosine; published: 0.2, 0.5 (default 0.5)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.train.finetuning.lipsim import DistilConfig, TuneConfig, distil, tune
    from rclip_metric.train.metrics import load_metric
    from rclip_metric.train.runs.config import configured, prefixed, read_recipe, read_settings
    from rclip_metric.train.runs.distributed import chosen_device

    recipe = read_recipe(options.recipe, "lipsim") if options.recipe else None
    layers = [
        _parted(recipe.settings if recipe else {}),
        _parted(read_settings(options.config) if options.config else {}),
    ]
    config = configured(DistilConfig, options, *(layer[0] for layer in layers))
    tuning = configured(TuneConfig, prefixed(options, _PREFIX), *(layer[1] for layer in layers))
    if options.seed is not None:
        tuning = replace(tuning, seed=options.seed)
    tunes = options.triplets is not None and not options.no_tune
    _check(options, tunes)
    more = {
        "device": str(chosen_device(options.device)),
        "precision": options.precision,
        "workers": options.workers,
        "allow_outside": options.allow_outside,
        "license": options.license,
        "quiet": options.quiet,
    }
    name, first = options.name or options.out.name, options.start_from
    if options.images:
        teacher = options.teacher or (recipe and recipe.base)
        if not teacher:
            raise ValueError("there is no teacher to learn from: pass --teacher, or a --recipe that names one")
        out = options.out / _DISTILLED if tunes else options.out
        metric = load_metric(teacher, device=more["device"])
        distil(metric, options.images, out, config, name=name, start_from=first, triplets=options.triplets, **more)
        first = out
    if tunes:
        tune(first, options.triplets, options.out, tuning, name=name, **more)
    _tell(options.out)


def _check(options: argparse.Namespace, tunes: bool) -> None:
    """Raise ValueError where there is nothing to do, or something is missing for it."""
    if options.teacher and not options.images:
        raise ValueError("a --teacher teaches with images: pass --images, or leave it out and tune --start-from a run")
    if options.no_tune and options.triplets is None:
        raise ValueError("--no-tune goes with --triplets, whose val split is judged")
    if options.images and tunes and (options.out / "run.json").exists() and not (options.out / _DISTILLED).exists():
        raise ValueError(
            f"{options.out} is a finished run of one step: tune it with --start-from {options.out}, without --images "
            "and into another --out"
        )
    if not options.images and not tunes:
        raise ValueError(
            "there is nothing to train on: pass --images (and a --teacher) for step 1, --triplets for step 2"
        )
    if not options.images and options.start_from is None:
        raise ValueError("step 2 alone needs a student: pass --start-from RUN, or --teacher and --images for step 1")


def _parted(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part the settings of step 1 from those of step 2, which are under "tune"."""
    own = {name: value for name, value in settings.items() if name != "tune"}
    tuned = settings.get("tune", {})
    if not isinstance(tuned, dict):
        raise ValueError(f'"tune" must be an object with settings of step 2, and it is {tuned!r}')
    return own, tuned


def _tell(out: Path) -> None:
    from rclip_metric.json_files import read_json

    record = read_json(out / "run.json")
    found = record["validations"][-1] if record["validations"] else None
    judged = ""
    if found:
        judged = (
            f", {found['val_accuracy']:.1f} % right on val and {found['val_certified']:.1f} % proven within 36/255 "
            f"(at 224 px), mean radius {found['val_radius']:.4f}"
        )
    stretch = record["lipschitz"]["largest"]
    say(f"{out}: Lipschitz constant {stretch:.6f} measured{judged}; judge it with --metrics {out}")
