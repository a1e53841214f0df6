"""`rclip-metric train convert-detector`: a head of LAION's detector of unsafe images, converted once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rclip_metric.printing import say

_ABOUT = """\
Read a head of LAION's detector as it is published, a SavedModel of TensorFlow, strictly and without TensorFlow, and
write it as one safetensors file, which filter and eval take as --detector. The files are in
LAION-AI/CLIP-based-NSFW-Detector on GitHub (MIT): clip_autokeras_binary_nsfw.zip is for the embeddings of OpenAI's
CLIP ViT-L/14 (clip-vit-l-14), clip_autokeras_nsfw_b32.zip for those of its ViT-B/32.
"""


def add(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the task to `commands`."""
    parser = commands.add_parser(
        "convert-detector",
        parents=[shared],
        help="turn a head of LAION's detector of unsafe images into a file of ours",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the zip file, or the folder that it unpacks to")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write, which ends in .safetensors")
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="the model that gives its embeddings, a name or path (default: clip-vit-l-14 for the head of ViT-L/14)",
    )
    parser.add_argument("--name", metavar="NAME", help="name of the detector in tables (default: the published one's)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.detectors import load_head, save_head
    from rclip_metric.train.models.detectors import convert_laion

    if options.out.suffix != ".safetensors":
        raise ValueError(f"a head is written to a .safetensors file, got {options.out}")
    tensors, origin = convert_laion(options.source, name=options.name, base=options.base)
    save_head(tensors, origin, options.out)
    head, _, digest = load_head(options.out)  # what cannot be read again must not be found out later
    takes = f"embeddings of {origin.base}" if origin.base else f"embeddings of size {head.width} (name their --base)"
    say(f"{options.out}: {origin.name} @ sha256:{digest[:12]}, takes {takes}")
