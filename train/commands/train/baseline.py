"""`rclip-metric train baseline`: the published weights of DreamSim, LipSim and R-LPIPS, converted once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rclip_metric.printing import say

_ABOUT = """\
Read the published weights of another metric, strictly and without running code, and write them as one safetensors file,
from which rclip-metric benchmark and eval build it under its name. LoRA adapters are merged. LPIPS, SSIM, MS-SSIM, PSNR
and l_p need no conversion.
"""


def add(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the task to `commands`."""
    from rclip_metric.train.metrics.baselines import BASELINES

    names = [name for name, baseline in BASELINES.items() if baseline.published is not None]
    parser = commands.add_parser(
        "baseline",
        parents=[shared],
        help="convert DreamSim, LipSim or R-LPIPS, to benchmark them",
        description=_ABOUT,
        epilog="\n".join(f"  {name}: {BASELINES[name].published}" for name in names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="one of those below")
    parser.add_argument("source", type=Path, metavar="FILE", help="the file as published, or an unpacked zip's folder")
    parser.add_argument(
        "--backbone",
        metavar="MODEL",
        help="for DreamSim's DINO towers, which its zip may lack: a file, or a model name (default: the zip's own, "
        "else the manifest's clean model)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default: where benchmark looks for it)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.train.metrics.registry import convert_baseline, load_baseline
    from rclip_metric.train.metrics.weight_files import weights_folder, write_stored

    out = options.out or weights_folder() / f"{options.name}.safetensors"
    converted = convert_baseline(options.name, options.source, backbone=options.backbone)
    write_stored(options.name, converted, out)
    metric = load_baseline(options.name, weights=out)  # what cannot be built again must not be found out later
    say(f"{out}: {options.name} @ {metric.revision}")
