"""`rclip-metric benchmark`: any metrics, the same data and attacks, one page."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclip_metric.printing import Parser, complain, say, show
from rclip_metric.train.runs.claim import claimed, leads
from rclip_metric.train.runs.config import count, positive, radius

_ABOUT = """\
Judge any set of metrics on the same data under the same attacks, on this machine, and write what came out as
benchmark.md, benchmark.csv, benchmark.json and, with --page, benchmark.html.
"""
_EPILOG = """\
metrics:
  r-clip-f, tiny, clip-vit-b-16, ...   a model of the manifest (rclip-metric models), a path or a Hub id
  dreamsim, dreamsim-dino-vitb16, lipsim-0.5, lpips-alex, r-lpips, ssim, ms-ssim, psnr, l1, l2, linf, ...
                                       DreamSim, LipSim and R-LPIPS once converted: rclip-metric train baseline
  open_clip:MODEL@TAG, timm:NAME       any tower of OpenCLIP or timm
  my_module:build                      yours: examples/benchmark_dreamsim_lipsim.py
  NAME@random                          with seeded random weights, for what a score costs

The same command goes on where it stopped. Several processes or machines: torchrun --nproc-per-node N -m
rclip_metric benchmark ...; the numbers are those of one process. A metric that fails is reported, and the others go
on (exit code 2).
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; `benchmark` is the first word."""
    parser = Parser(
        prog="rclip-metric benchmark",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser.add_argument)
    _add_how(parser.add_argument)
    return parser


def _add_what(add: Callable[..., Any]) -> None:
    """Add what is measured, and where it goes."""
    add("--metrics", required=True, metavar="NAME,NAME,...", help="see below")
    add("--data", required=True, metavar="FORMAT:DIR,...", help="FORMAT is nights, bapps, things or cue-conflict")
    add("--norms", default="linf:4/255,l2:3", metavar="NORM:EPS,...", help="balls of APGD, or none (%(default)s)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything")
    add("--certified", action="store_true", help="certified l_2 accuracy, of metrics that can prove any")
    add(
        "--smoothing",
        type=float,
        nargs="+",
        default=[],
        metavar="SIGMA",
        help="certified l_2 accuracy of every metric under Gaussian noise of these standard deviations, in [0, 1] "
        "pixels: it holds with 99.9 %% confidence for each sample",
    )
    add(
        "--smoothing-draws",
        type=positive,
        default=1000,
        metavar="N",
        help="of noise, that each sample is judged under, beside 100 that choose (default: %(default)s)",
    )
    add(
        "--timing",
        action="store_true",
        help="pairs per second, processor time over that of the first metric, and memory, each metric in processes of "
        "its own that take turns",
    )
    add(
        "--timing-batch-sizes",
        type=positive,
        nargs="+",
        default=[1, 8],
        metavar="N",
        help="pairs at once (default: 1 8)",
    )
    add(
        "--timing-dtypes",
        nargs="+",
        choices=("float32", "bfloat16"),
        default=[],
        metavar="DTYPE",
        help="float32, bfloat16 or both, each timed by itself (default: both where the device multiplies bfloat16)",
    )
    add("--page", action="store_true", help="write benchmark.html: one file that needs nothing else")
    add("--direct", type=count, metavar="N", help="images under the direct attack on d(x, x + delta); 64 with --page")
    add("--examples", type=count, metavar="N", help="triplets to show; 4 with --page")
    add(
        "--sweep",
        type=count,
        default=0,
        metavar="N",
        help="triplets to attack at a quarter, half, twice and four times each radius (default: none)",
    )


def _add_how(add: Callable[..., Any]) -> None:
    """Add how it is measured."""
    add("--steps", type=positive, default=100, help="APGD iterations (default: %(default)s)")
    add("--restarts", type=positive, default=1, help="of APGD (default: %(default)s)")
    add("--split", default="test", help="of NIGHTS (default: %(default)s)")
    add(
        "--attacked",
        type=positive,
        metavar="N",
        help="triplets that are attacked: of a set in the NIGHTS format N at equal steps through it, kind by kind "
        "(default: all), of BAPPS the first N of each split (default: 1000); the clean accuracy is that of all",
    )
    add(
        "--classes",
        type=Path,
        metavar="CSV",
        help="what the images of cue conflicts show, where the files are not called so: as in eval cue-conflict",
    )
    add("--limit", type=positive, metavar="N", help="only the first N samples of each set")
    add(
        "--image-size",
        type=positive,
        default=224,
        metavar="S",
        help="side that images are squashed to for metrics that leave it open: LPIPS, SSIM, l_p (default: %(default)s)",
    )
    add(
        "--seed",
        type=count,
        default=0,
        help="of the random starts, and of the options that are drawn for cue conflicts (default: %(default)s)",
    )
    add(
        "--batch-size",
        type=positive,
        metavar="N",
        help="samples in a block, the unit of work (default: two passes, at least 64)",
    )
    add("--chunk-size", type=positive, metavar="N", help="images per pass (default: by device and size)")
    add(
        "--precision",
        choices=("float32", "bfloat16", "auto"),
        default="float32",
        help="of the attack's own passes; successes are confirmed in float32 (default: %(default)s)",
    )
    add(
        "--resample",
        choices=("samples", "images"),
        default="samples",
        help="what intervals are about, as in eval: other samples, or other images as well (default: %(default)s)",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--title", default="Perceptual metrics under attack", help="of the page")
    add("--overwrite", action="store_true", help="replace results of other settings")
    add("--allow-outside", action="store_true", help="paths in the tables of sets may lead out of their folders")
    add("--quiet", action="store_true", help="no progress")


def main(argv: list[str]) -> int:
    """Run `benchmark ...`: 0 when done, 2 for bad input or a metric that failed."""
    options = build_parser().parse_args(argv[1:])
    try:
        from rclip_metric.train.benchmark import benchmark, markdown

        settings = _settings(options)
        with claimed(options.out) if leads() else contextlib.nullcontext():
            board = benchmark(settings, command=shlex.join(["rclip-metric", *argv]))
    except (ValueError, FloatingPointError) as error:
        complain(error)
        return 2
    if board is None:  # not the first process
        return 0
    show(f"{markdown(board)}\n\n")
    say(f"{options.out}: {', '.join(sorted(path.name for path in options.out.glob('benchmark.*')))}")
    failed = [metric["id"] for metric in board["metrics"] if metric["failures"]]
    if failed:
        count = f"{len(failed)} of {len(board['metrics'])} metrics"
        complain(f"{count} failed, in part or whole, for the reasons above")
    return 2 if failed else 0


def _settings(options: argparse.Namespace) -> Any:
    from rclip_metric.train.benchmark import BenchmarkSettings, balls_from, data_of, metrics_of

    def eps(text: str) -> float:
        try:
            return radius(text)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--norms: {error}") from None

    values = vars(options)
    values |= {"metrics": metrics_of(options.metrics), "data": data_of(options.data)}
    for name in ("smoothing", "timing_batch_sizes", "timing_dtypes"):
        values[name] = tuple(values[name])
    values["balls"] = balls_from(values.pop("norms"), eps)
    for name, usual in (("direct", 64), ("examples", 4)):
        if values[name] is None:
            values[name] = usual if options.page and values["balls"] else 0
    return BenchmarkSettings(**values)
