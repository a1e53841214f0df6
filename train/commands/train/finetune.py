"""`rclip-metric train fare` and `train tecoa`: adversarial fine-tuning."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rclip_metric.printing import say
from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig, RunConfig
from rclip_metric.train.runs.config import add_options, configured, read_recipe, read_settings, recipe_names, shared_out

_ONLY = {"fare": ("scale", "prompts"), "tecoa": ("mixup", "rho", "dual_learning_rate", "dual_every")}
_EPILOG = """\
Settings come from --recipe, then from --config, then from the options; what none of them says is the paper's
recipe (ImageNet, 2 epochs). Recipes of this command: {recipes}.

Several GPUs or machines: torchrun --nproc-per-node N -m rclip_metric train {command} ... with the same options: the
batch size stays that of all processes together. A run that was stopped goes on when the same command is given again.
"""


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add both commands."""
    about = {
        "fare": "adversarial fine-tuning of an image encoder without labels (FARE, Sim-CLIP, LORE)",
        "tecoa": "adversarial fine-tuning of a CLIP's image encoder with class labels (TeCoA)",
    }
    for command, text in about.items():
        parser = commands.add_parser(
            command,
            parents=[shared],
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=_EPILOG.format(recipes=", ".join(recipe_names(command)), command=command),
        )
        parser.add_argument(
            "--base",
            metavar="MODEL",
            help="the clean encoder: a model name, path or Hub id, open_clip:MODEL@TAG, timm:MODEL or "
            "timm:MODEL@FILE; the TAG random gives random weights (default: the recipe's)",
        )
        parser.add_argument(
            "--start-from",
            metavar="MODEL",
            help="weights to begin with, of the same architecture, to train an earlier run's on (default: the base's); "
            "attacked images are held to the base either way",
        )
        labels = "a folder per class" if command == "tecoa" else "labels are not needed"
        parser.add_argument(
            "--images", required=True, metavar="DATA", help=f"a tree of images or WebDataset shards; {labels}"
        )
        parser.add_argument(
            "--out", type=Path, required=True, help="folder of the run; goes on with what it finds there"
        )
        parser.add_argument("--name", help="name of the new encoder (default: the name of --out)")
        parser.add_argument("--recipe", metavar="NAME", help="published settings by name, or a JSON file like them")
        parser.add_argument("--config", type=Path, metavar="FILE", help="JSON file with some of the settings below")
        parser.add_argument("--validation", type=Path, metavar="DIR", help="held-out images: cosines under PGD on them")
        parser.add_argument("--nights", type=Path, metavar="DIR", help="NIGHTS-format set: 2AFC on its val split")
        if command == "fare":
            parser.add_argument(
                "--loss",
                choices=("fare", "sim-clip", "lore"),
                help="what is minimised at the attacked images: fare (squared distance to the original's embedding), "
                "sim-clip (cosine to the own clean one) or lore (fare, and clean embeddings kept near) (default fare)",
            )
        skip = ("loss", *_ONLY[command])
        add_options(parser, FinetuneConfig, "what is computed", skip=skip)
        add_options(parser, RunConfig, "how it runs")
        parser.set_defaults(run=_run, command=command)


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.train.finetuning.adversarial import finetune
    from rclip_metric.train.models.base import load_base, load_base_text

    recipe = read_recipe(options.recipe, options.command) if options.recipe else None
    stored = read_settings(options.config) if options.config else {}
    computed, running = shared_out(stored, FinetuneConfig, RunConfig)
    if options.command == "tecoa":
        options.loss = "tecoa"
    config = configured(FinetuneConfig, options, recipe.settings if recipe else None, computed)
    if options.command == "fare" and config.objective.needs_labels:
        raise ValueError(f"the loss {config.loss} needs labels: use `train tecoa`")
    run = configured(RunConfig, options, running)
    name = options.base or (recipe.base if recipe else None)
    if name is None:
        raise ValueError("no encoder to start from: pass --base, or a --recipe that names one")
    text = load_base_text(name) if config.objective.needs_labels else None
    finetune(
        load_base(name, seed=config.seed, image_size=config.image_size or None, squash=config.squash),
        options.images,
        options.out,
        config,
        run,
        name=options.name,
        start_from=load_base(options.start_from) if options.start_from else None,
        text=text,
        validation=options.validation,
        nights=options.nights,
        quiet=options.quiet,
    )
    precision = "bfloat16" if read_settings(options.out / "run.json")["run"]["bfloat16"] else "float32"
    done = f"{config.objective.title} in {precision}, {config.steps} steps"
    say(f"{options.out}: {done}; load it with RobustPerceptualDistance({str(options.out)!r})")
