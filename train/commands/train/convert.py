"""`rclip-metric train convert`: foreign checkpoints to this project's format."""

from __future__ import annotations

import argparse
from pathlib import Path

from rclip_metric.printing import say
from rclip_metric.train.runs.config import add_size


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser) -> None:
    """Add the sub-parser."""
    convert = commands.add_parser(
        "convert",
        parents=[shared],
        help="turn a vision tower, an MLP head or a LoRA adapter of others into an encoder of ours",
        description="Reads tensors only, never code. The preprocessing is the base's; heads and adapters squash.",
    )
    convert.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a state dict (.pt, .pth, .bin, .safetensors), an OpenCLIP or transformers folder, or a PEFT LoRA folder",
    )
    convert.add_argument(
        "--base",
        required=True,
        metavar="MODEL",
        help="a model name, path or timm:NAME: the model that a tower is, or that a head or an adapter was trained on",
    )
    convert.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    convert.add_argument(
        "--kind",
        choices=("auto", "tower", "mlp", "lora"),
        default="auto",
        help="what SOURCE holds (default: told by its keys)",
    )
    convert.add_argument("--mlp", type=Path, metavar="FILE", help="an MLP head to put on the tower")
    convert.add_argument(
        "--name", metavar="NAME", help="name of the new encoder (default: the source's, or the base's with +mlp, +lora)"
    )
    convert.add_argument(
        "--data", default="NIGHTS", metavar="TEXT", help="what a head or an adapter was trained on (default NIGHTS)"
    )
    add_size(convert)
    convert.add_argument("--license", metavar="TEXT", help="licence of the weights (default: not known)")
    convert.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.train.models.convert import conversion, save_conversion

    converted = conversion(
        options.source,
        options.base,
        kind=options.kind,
        mlp=options.mlp,
        name=options.name,
        data=options.data,
        image_size=options.image_size,
        squash=options.squash,
    )
    out = save_conversion(converted, options.out, options.license)
    encoder = converted.encoder
    say(f"{out}: {encoder.name}, {encoder.embedding_dim} dimensions; RobustPerceptualDistance({str(out)!r}) loads it")
