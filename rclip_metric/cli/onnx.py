"""`rclip-metric export-onnx`: a model as a file for onnxruntime."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rclip_metric.printing import complain, say

_HELP = """\
Write a model as one ONNX file, for onnxruntime on a server, in a browser or on a phone. Inputs x and y are
float32 (N, 3, S, S) in [0, 1], S being the model's size and N anything; the output is the distance (N,).
Needs the extra `onnx`.
"""


def add_export_onnx(commands: Any, parents: list[argparse.ArgumentParser], raw: dict[str, Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export-onnx", help="write a model as an ONNX file", description=_HELP, parents=parents, **raw
    )
    parser.add_argument("model", metavar="MODEL", help="name (see `models`), path, or Hub id")
    parser.add_argument("out", metavar="OUT", help="the file to write (.onnx)")
    parser.add_argument("--embedding", action="store_true", help="the unit embedding (N, D) of x, not the distance")
    parser.add_argument("--squared", action="store_true", help="1 - cos in [0, 2], not its square root")
    parser.set_defaults(command=_export)


def _export(args: argparse.Namespace) -> int:
    from rclip_metric.metric import RobustPerceptualDistance
    from rclip_metric.onnx_export import Output, export_onnx
    from rclip_metric.weights.hub import without_progress_bars

    output: Output = "embedding" if args.embedding else "distance"
    with without_progress_bars(args.quiet):
        metric = RobustPerceptualDistance(args.model, squared=args.squared, cache_dir=args.cache_dir)
    path = export_onnx(metric, args.out, output)
    encoder, size = metric.encoder, path.stat().st_size
    facts: dict[str, Any] = {"path": str(path), "model": encoder.name, "revision": encoder.revision, "output": output}
    facts |= {"size": encoder.image_size, "bytes": size}
    if args.json:
        say(json.dumps(facts))
    else:
        say(f"{path}  {encoder.name}@{encoder.revision}, {output} of {encoder.image_size}x{encoder.image_size} images")
    if not args.quiet and encoder.preprocessing.mode == "crop":
        p = encoder.preprocessing
        complain(f"resize images to {p.resize} on the shorter side and crop {p.crop} from the middle before the file")
    return 0
