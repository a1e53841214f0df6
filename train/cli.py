"""``rclip-metric train ...``: the commands that make encoders and the data for them."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from rclip_metric.train.options import positive, radius


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
    """The parser; ``train`` is the first word."""
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
    scenes.add_argument("--bapps", type=positive, metavar="N", help="also N triplets per split in the BAPPS format")
    scenes.add_argument("--things", type=positive, metavar="N", help="also N triplets in the THINGS format")
    scenes.add_argument("--grounds", type=positive, metavar="N", help="also N images of each ground colour, in folders")
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

    text = train.add_parser("text", help="write the text tower of a `train clip` run, for zero-shot classification")
    text.add_argument("run_folder", type=Path, metavar="RUN", help="folder with state.safetensors")
    text.add_argument("--out", type=Path, help="file to write (default: RUN/text.safetensors, found with the encoder)")
    text.set_defaults(run=_run_text)

    pack = train.add_parser("pack", help="write a run's encoder as one half-precision file, as `tiny` is shipped")
    pack.add_argument("run_folder", type=Path, metavar="RUN", help="folder with model.safetensors and config.json")
    pack.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    pack.set_defaults(run=_run_pack)

    return parser


def _run_scenes(options: argparse.Namespace) -> None:
    from rclip_metric.train.data.scene_formats import write_bapps, write_grounds, write_things
    from rclip_metric.train.data.scenes import ScenesConfig, write_scenes

    record = write_scenes(options.out, _config(ScenesConfig, options), quiet=options.quiet)
    print(
        f"{options.out}: {record['images']} captioned images, {sum(record['triplets'])} triplets, seed {record['seed']}"
    )
    if options.bapps:
        write_bapps(options.out / "bapps", seed=record["seed"], per_split=options.bapps, quiet=options.quiet)
        print(f"{options.out / 'bapps'}: {options.bapps} triplets in each of six splits")
    if options.grounds:
        write_grounds(options.out / "grounds", seed=record["seed"], per_class=options.grounds, quiet=options.quiet)
        print(f"{options.out / 'grounds'}: {options.grounds} images of each ground colour")
    if options.things:
        write_things(options.out / "things", seed=record["seed"], triplets=options.things, quiet=options.quiet)
        print(f"{options.out / 'things'}: {options.things} triplets")


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


def _run_text(options: argparse.Namespace) -> None:
    from rclip_metric.train.text_weights import TEXT_NAME, export_text

    path = export_text(options.run_folder / "state.safetensors", options.out or options.run_folder / TEXT_NAME)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


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


def main(argv: list[str]) -> int:
    """Run ``train ...``: 0 when done, 2 for bad input; the Hub's errors are the caller's to report."""
    options = build_parser().parse_args(argv)
    try:
        options.run(options)
    except (ValueError, FloatingPointError) as error:
        print(f"rclip-metric: {error}", file=sys.stderr)
        return 2
    return 0
