"""`rclip-metric train clip`, `text` and `pack`: a small CLIP from nothing, its text tower, what is shipped of a run."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

from rclip_metric.printing import say
from rclip_metric.train.runs.config import add_options, configured


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the three commands."""
    from rclip_metric.train.models.clip_config import ClipConfig

    clip = commands.add_parser("clip", parents=[shared], help="train a small CLIP on scenes (tiny-clean)")
    clip.add_argument("--scenes", type=Path, required=True, help="folder written by `train scenes`")
    clip.add_argument("--out", type=Path, required=True, help="folder for the state, the log and the encoder; resumes")
    add_options(clip, ClipConfig)
    clip.set_defaults(run=_run_clip)

    text = commands.add_parser("text", help="write the text tower of a `train clip` run, for zero-shot classification")
    text.add_argument("run_folder", type=Path, metavar="RUN", help="folder with state.safetensors")
    text.add_argument("--out", type=Path, help="file to write (default: RUN/text.safetensors, found with the encoder)")
    text.set_defaults(run=_run_text)

    pack = commands.add_parser("pack", help="write a run's weights as one half-precision file, as `tiny` is shipped")
    pack.add_argument(
        "run_folder",
        type=Path,
        metavar="RUN",
        help="folder with model.safetensors and config.json, or a `train lipsim`",
    )
    pack.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    pack.set_defaults(run=_run_pack)


def _run_clip(options: argparse.Namespace) -> None:
    from rclip_metric.train.finetuning.clip import train_clip
    from rclip_metric.train.models.clip_config import ClipConfig

    config = configured(ClipConfig, options)
    train_clip(options.scenes, options.out, config, quiet=options.quiet)
    say(f"{options.out}: load it with RobustPerceptualDistance({str(options.out)!r})")


def _run_text(options: argparse.Namespace) -> None:
    from rclip_metric.train.models.text_weights import TEXT_NAME, export_text

    path = export_text(options.run_folder / "state.safetensors", options.out or options.run_folder / TEXT_NAME)
    say(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def _run_pack(options: argparse.Namespace) -> None:
    from rclip_metric.files import written_whole
    from rclip_metric.json_files import read_json
    from rclip_metric.train.finetuning.lipsim.result import STUDENT_NAME, pack_student
    from rclip_metric.weights import WEIGHTS_NAME, SavedConfig, load_encoder, save_encoder

    if (options.run_folder / STUDENT_NAME).is_file():
        pack_student(options.run_folder, options.out)
        say(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")
        return
    encoder = copy.deepcopy(load_encoder(options.run_folder)).half()
    saved = SavedConfig.read(read_json(options.run_folder / "config.json"), str(options.run_folder)).values
    about = {field: saved[field] for field in ("training", "license", "notes")}
    with written_whole(options.out) as partial:
        (save_encoder(encoder, partial.parent / "whole", **about) / WEIGHTS_NAME).replace(partial)
    say(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")
