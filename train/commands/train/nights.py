"""`rclip-metric train nights`: LoRA or an MLP head on NIGHTS-format triplets."""

from __future__ import annotations

import argparse
from pathlib import Path

from rclip_metric.printing import say


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser) -> None:
    """Add the command."""
    from rclip_metric.train.finetuning.nights import NightsConfig
    from rclip_metric.train.runs.config import PRECISIONS, add_options, count, recipe_names

    parser = commands.add_parser(
        "nights",
        parents=[shared],
        help="tune an encoder on NIGHTS-format triplets: LoRA inside it, or an MLP on top of it",
        epilog="The defaults are DreamSim's scheme, which the paper follows. Settings come from --recipe, then from "
        "--config, then from the options. A run that was stopped goes on when the same command is given again.",
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="the encoder to tune, named as for `train fare` (default: the recipe's)"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with data.csv, ref/ and distort/")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the states, the log and the result; resumes"
    )
    parser.add_argument("--name", help="name of the new encoder (default: the name of --out)")
    names = ", ".join(recipe_names("nights"))
    parser.add_argument("--recipe", metavar="NAME|FILE", help=f"settings of a published model, or a file: {names}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON file with settings, by the names below")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the encoder's passes in training; auto: bfloat16 where it is fast",
    )
    parser.add_argument("--allow-outside", action="store_true", help="paths in data.csv may lead out of the folder")
    parser.add_argument("--workers", type=count, default=4, metavar="N", help="threads that read images (default 4)")
    add_options(parser, NightsConfig, "settings")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.json_files import read_json
    from rclip_metric.train.finetuning.nights import NightsConfig, tune_nights
    from rclip_metric.train.models.base import load_base
    from rclip_metric.train.runs.config import configured, read_recipe, read_settings
    from rclip_metric.weights import locate

    recipe = read_recipe(options.recipe, "nights") if options.recipe else None
    stored = read_settings(options.config) if options.config else None
    config = configured(NightsConfig, options, recipe.settings if recipe else None, stored)
    base = options.base or (recipe and recipe.base)
    if not base:
        raise ValueError("there is no encoder to tune: pass --base, or a --recipe that names one")
    tune_nights(
        load_base(base, seed=config.seed),
        options.data,
        options.out,
        config,
        name=options.name or options.out.name,
        device=options.device,
        precision=options.precision,
        workers=options.workers,
        origin=None if base.startswith(("open_clip:", "timm:")) else locate(base).spec,
        allow_outside=options.allow_outside,
        quiet=options.quiet,
    )
    record = read_json(options.out / "run.json")
    first, best = record["epochs"][0], record["epochs"][record["best_epoch"]]
    say(
        f"{options.out}: {best['val_accuracy']:.1f} % on val after epoch {best['epoch']} of {config.epochs}, "
        f"{first['val_accuracy']:.1f} % before the first ({record['data']['val']} triplets); load it with "
        f"RobustPerceptualDistance({str(options.out)!r})"
    )
