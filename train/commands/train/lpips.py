"""`rclip-metric train lpips`: LPIPS's heads on BAPPS-format triplets, plain or adversarial."""

from __future__ import annotations

import argparse
from pathlib import Path

from rclip_metric.printing import say


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser) -> None:
    """Add the command."""
    from rclip_metric.train.data.splits import BAPPS_TRAINING_SPLITS
    from rclip_metric.train.finetuning.lpips import LpipsConfig
    from rclip_metric.train.runs.config import add_options, count, recipe_names

    parser = commands.add_parser(
        "lpips",
        parents=[shared],
        help="tune LPIPS's heads on BAPPS-format triplets, plain or adversarial (R-LPIPS)",
        epilog="The defaults are LPIPS's, and with --adversarial R-LPIPS's. Settings come from --recipe, then from "
        "--config, then from the options. A run that was stopped goes on when the same command is given again.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with 2afc/train")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the states, the log and the result; resumes"
    )
    splits = BAPPS_TRAINING_SPLITS
    parser.add_argument("--splits", nargs="+", default=splits, metavar="SPLIT", help=f"default: {', '.join(splits)}")
    parser.add_argument("--name", help="name of the new metric (default: the name of --out)")
    names = ", ".join(recipe_names("lpips"))
    parser.add_argument("--recipe", metavar="NAME|FILE", help=f"settings of a published metric, or a file: {names}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON file with settings, by the names below")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1; auto takes a GPU where there is one")
    parser.add_argument("--workers", type=count, default=4, metavar="N", help="threads that read images (default 4)")
    add_options(parser, LpipsConfig, "settings")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.json_files import read_json
    from rclip_metric.train.finetuning.lpips import LpipsConfig, tune_lpips
    from rclip_metric.train.finetuning.lpips.config import ATTACK_SETTINGS
    from rclip_metric.train.runs.config import configured, read_recipe, read_settings

    recipe = read_recipe(options.recipe, "lpips") if options.recipe else None
    stored = read_settings(options.config) if options.config else None
    config = configured(LpipsConfig, options, recipe.settings if recipe else None, stored)
    config.require_attack([name for name in ATTACK_SETTINGS if getattr(options, name) is not None])
    tune_lpips(
        options.data,
        options.out,
        config,
        name=options.name or options.out.name,
        splits=options.splits,
        device=options.device,
        workers=options.workers,
        quiet=options.quiet,
    )
    record = read_json(options.out / "run.json")
    first, last = record["epochs"][0], record["epochs"][-1]
    under = f" under {record['threat']}" if record["threat"] else ""
    say(
        f"{options.out}: agrees with {last['agreement']:.1f} % of the people{under} in epoch {last['epoch']}, "
        f"{first['agreement']:.1f} % in the first ({record['data']['triplets']} triplets); judge it with "
        f"rclip-metric eval bapps --model {options.out}"
    )
