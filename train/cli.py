"""``rclip-metric train ...`` and ``rclip-metric eval ...``: the commands that make and judge encoders."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import shutil
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

PAPER_BALLS = (("linf", "4/255"), ("l2", "3"))


def radius(text: str) -> float:
    """Parse a radius: ``4/255`` or ``0.857``, in the scale of [0, 1] images."""
    try:
        value = float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a radius: write it like 4/255 or 0.857") from None
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"a radius must not be negative, and {text!r} is")
    return value


def _counts(text: str) -> tuple[int, int, int]:
    numbers = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(numbers) != 3 or text.count(",") != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers: write train,val,test like 1000,400,1200")
    return numbers[0], numbers[1], numbers[2]


def _add_fields(parser: argparse.ArgumentParser, config: type, described: dict[str, str]) -> None:
    """One option per field of a config; a field that is not given keeps the recipe's value."""
    for field in dataclasses.fields(config):
        kind: Any = radius if field.name in ("eps", "inner_step_size") else type(field.default)
        if field.name == "triplets":
            kind = _counts
        recipe: Any = field.default
        default = f"{recipe * 255:g}/255" if kind is radius else recipe
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            default=None,
            metavar=getattr(kind, "__name__", "value").strip("_").upper(),
            help=f"{described[field.name]} (default {default})",
        )


def _config(config: type, options: argparse.Namespace, recipe: dict[str, Any] | None = None) -> Any:
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(config)}
    return config(**{**(recipe or {}), **{name: value for name, value in given.items() if value is not None}})


def build_parser() -> argparse.ArgumentParser:
    """The parser for both commands; ``train`` and ``eval`` are its first word."""
    from rclip_metric.train.clip import ClipConfig
    from rclip_metric.train.data.scenes import ScenesConfig
    from rclip_metric.train.finetune import TINY_RECIPE, FareConfig

    parser = argparse.ArgumentParser(prog="rclip-metric", description=__doc__)
    commands = parser.add_subparsers(dest="group", required=True)
    train = commands.add_parser("train", help="make encoders").add_subparsers(dest="task", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--quiet", action="store_true", help="no progress bar")

    scenes = train.add_parser("scenes", parents=[shared], help="write the procedural 64x64 data sets")
    scenes.add_argument("--out", type=Path, required=True, help="folder to write")
    _add_fields(
        scenes,
        ScenesConfig,
        {
            "seed": "seed of everything",
            "images": "captioned images for training",
            "triplets": "NIGHTS-format triplets: train,val,test",
            "pool": "images per class in the retrieval pool",
            "queries": "query images per class",
        },
    )
    scenes.set_defaults(run=_run_scenes)

    clip = train.add_parser("clip", parents=[shared], help="train a small CLIP on scenes (tiny-clean)")
    clip.add_argument("--scenes", type=Path, required=True, help="folder written by `train scenes`")
    clip.add_argument("--out", type=Path, required=True, help="folder for the state, the log and the encoder; resumes")
    _add_fields(
        clip,
        ClipConfig,
        {
            "seed": "seed of the weights and of the order of images",
            "steps": "optimiser steps",
            "warmup_steps": "steps of linear warm-up",
            "batch_size": "image-caption pairs per step",
            "learning_rate": "peak AdamW learning rate",
            "weight_decay": "AdamW weight decay of matrices",
            "text_width": "width of the text tower",
            "text_layers": "layers of the text tower",
            "save_every": "steps between checkpoints",
        },
    )
    clip.set_defaults(run=_run_clip)

    tiny = ", ".join(f"{key} {value:g}" for key, value in TINY_RECIPE.items())
    fare = train.add_parser(
        "fare",
        parents=[shared],
        help="adversarial fine-tuning (FARE) of an encoder",
        epilog=f"The defaults are the paper's recipe. --recipe tiny sets: {tiny}.",
    )
    fare.add_argument("--base", required=True, help="the clean encoder: a model name or a folder")
    fare.add_argument("--images", type=Path, required=True, help="any tree of images; labels are not needed")
    fare.add_argument("--out", type=Path, required=True, help="folder for the state, the log and the encoder; resumes")
    fare.add_argument("--name", help="name of the new encoder (default: the name of --out)")
    fare.add_argument("--recipe", choices=("paper", "tiny"), default="paper", help="defaults of the options below")
    fare.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    _add_fields(
        fare,
        FareConfig,
        {
            "seed": "seed of the order of images and of the random starts",
            "steps": "optimiser steps",
            "warmup_steps": "steps of linear warm-up",
            "batch_size": "images per step",
            "learning_rate": "peak AdamW learning rate",
            "weight_decay": "AdamW weight decay of matrices",
            "eps": "l_inf radius of the inner problem",
            "inner_steps": "PGD steps of the inner problem",
            "inner_step_size": "length of a PGD step",
            "inner_momentum": "momentum of the PGD steps",
            "save_every": "steps between checkpoints",
        },
    )
    fare.set_defaults(run=_run_fare)

    pack = train.add_parser("pack", help="write a run's encoder as one half-precision file, as `tiny` is shipped")
    pack.add_argument("run_folder", type=Path, metavar="RUN", help="folder with model.safetensors and config.json")
    pack.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    pack.set_defaults(run=_run_pack)

    evaluate = commands.add_parser("eval", help="judge encoders").add_subparsers(dest="task", required=True)
    nights = evaluate.add_parser(
        "nights", parents=[shared], help="2AFC accuracy on a NIGHTS-format set, clean and under APGD"
    )
    nights.add_argument("--data", type=Path, required=True, help="folder with data.csv, ref/ and distort/")
    nights.add_argument("--model", nargs="+", required=True, help="model names, paths or Hub ids")
    nights.add_argument("--split", default="test", help="train, val, test, test_imagenet or test_no_imagenet")
    nights.add_argument("--attack", choices=("apgd", "none"), default="apgd")
    nights.add_argument("--norm", nargs="+", choices=("linf", "l2"), default=None, help="default: linf l2")
    nights.add_argument(
        "--eps",
        nargs="+",
        type=radius,
        default=None,
        help="one radius per norm (default: 4/255 3, the paper's)",
    )
    nights.add_argument("--steps", type=int, default=100, help="APGD iterations (default %(default)s)")
    nights.add_argument("--seed", type=int, default=0, help="seed of the random starts (default %(default)s)")
    nights.add_argument("--limit", type=int, help="only the first LIMIT triplets")
    nights.add_argument("--batch-size", type=int, default=64, help="triplets at a time (default %(default)s)")
    nights.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    nights.add_argument("--out", type=Path, help="JSON file for the result, with the outcome of every triplet")
    nights.set_defaults(run=_run_nights)
    return parser


def _run_scenes(options: argparse.Namespace) -> None:
    from rclip_metric.train.data.scenes import ScenesConfig, write_scenes

    record = write_scenes(options.out, _config(ScenesConfig, options), quiet=options.quiet)
    print(
        f"{options.out}: {record['images']} captioned images, {sum(record['triplets'])} triplets, seed {record['seed']}"
    )


def _run_clip(options: argparse.Namespace) -> None:
    from rclip_metric.train.clip import ClipConfig, train_clip

    train_clip(options.scenes, options.out, _config(ClipConfig, options), quiet=options.quiet)
    print(f"{options.out}: load it with RobustPerceptualDistance({str(options.out)!r})")


def _run_fare(options: argparse.Namespace) -> None:
    from rclip_metric.train.finetune import TINY_RECIPE, FareConfig, train_fare
    from rclip_metric.weights import load_encoder

    recipe = TINY_RECIPE if options.recipe == "tiny" else {}
    config = _config(FareConfig, options, recipe)
    base = load_encoder(options.base).to(options.device)
    name = options.name or options.out.name
    train_fare(base, options.images, options.out, config, name=name, quiet=options.quiet)
    print(f"{options.out}: load it with RobustPerceptualDistance({str(options.out)!r})")


def _run_pack(options: argparse.Namespace) -> None:
    from rclip_metric.saved import WEIGHTS_NAME, SavedConfig, read_json, save_encoder
    from rclip_metric.weights import load_encoder

    encoder = copy.deepcopy(load_encoder(options.run_folder)).half()
    saved = SavedConfig.read(read_json(options.run_folder / "config.json"), str(options.run_folder)).values
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        save_encoder(encoder, folder, training=saved["training"], license=saved["license"], notes=saved["notes"])
        os.replace(shutil.move(Path(folder) / WEIGHTS_NAME, options.out.with_suffix(".partial")), options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")


def _run_nights(options: argparse.Namespace) -> None:
    from rclip_metric import RobustPerceptualDistance
    from rclip_metric.train.data.two_afc import read_nights
    from rclip_metric.train.evaluation.two_afc import (
        EvaluationConfig,
        evaluate_two_afc,
        markdown_table,
        save_result,
    )
    from rclip_metric.train.threat import LpBall

    norms = options.norm or [norm for norm, _ in PAPER_BALLS]
    published = {norm: radius(eps) for norm, eps in PAPER_BALLS}
    sizes = options.eps or [published[norm] for norm in norms]
    if len(sizes) != len(norms):
        raise ValueError(f"{len(norms)} norms and {len(sizes)} radii were given: pass one --eps value per --norm value")
    balls = () if options.attack == "none" else tuple(LpBall(n, e) for n, e in zip(norms, sizes, strict=True))
    config = EvaluationConfig(balls=balls, steps=options.steps, seed=options.seed, batch_size=options.batch_size)
    triplets = read_nights(options.data, options.split)[: options.limit]
    metrics = [RobustPerceptualDistance(name).to(options.device) for name in options.model]
    records = []
    for metric in metrics:
        record = evaluate_two_afc(metric, triplets, config, quiet=options.quiet)
        records.append({**record, "data": options.data.name, "split": options.split})
        if options.out is not None:
            save_result(options.out, {"results": records})  # what is done survives a later interruption
    print(markdown_table(records))
    broken = [problem for record in records for problem in record["unreadable"]]
    if broken:
        raise ValueError(f"{len(broken)} triplets could not be read and were left out; the first: {broken[0]}")


def main(argv: list[str]) -> int:
    """Run ``train ...`` or ``eval ...``: 0 when done, 2 for bad input; the Hub's errors are the caller's to report."""
    options = build_parser().parse_args(argv)
    try:
        options.run(options)
    except (ValueError, FloatingPointError) as error:
        print(f"rclip-metric: {error}", file=sys.stderr)
        return 2
    return 0
