"""`rclip-metric train export`: a finished run as a folder to publish, and onto the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rclip_metric.printing import complain, say

_ABOUT = """\
Write the encoder of a finished run, a model card and an entry for weights_manifest.json into one folder, which
RobustPerceptualDistance loads. With --push, the folder goes to the Hugging Face Hub in one commit; the token is that of
HF_TOKEN or of the stored login.
"""


def add(commands: argparse._SubParsersAction[Any], shared: argparse.ArgumentParser) -> None:
    """Add the task to `commands`."""
    parser = commands.add_parser("export", parents=[shared], help="publish a run's encoder", description=_ABOUT)
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the --out of a training command")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder to write (default: RUN/export)")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="result files of `rclip-metric eval` for the card; of a folder, those of this encoder",
    )
    parser.add_argument("--name", help="name of the encoder (default: that of the run)")
    parser.add_argument("--license", metavar="TEXT", help="of the weights (default: what the run says)")
    parser.add_argument("--notes", metavar="TEXT", help="what else a reader must know (default: what the run says)")
    parser.add_argument("--half", action="store_true", help="round the weights to float16: half the size")
    parser.add_argument("--push", metavar="OWNER/REPO", help="upload to this repository of the Hub, made if need be")
    parser.add_argument("--private", action="store_true", help="with --push: make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="with --push: a branch, which must exist (default: main)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rclip_metric.train.publishing import ENTRY_NAME, check_repo_id, export_run, push_export
    from rclip_metric.weights import WEIGHTS_NAME

    if options.push is not None:
        check_repo_id(options.push)  # before any work is done
    elif options.private or options.revision is not None:
        raise ValueError(f"{'--private' if options.private else '--revision'} goes with --push OWNER/REPO")
    exported = export_run(
        options.run_folder,
        options.out,
        results=options.results,
        name=options.name,
        license=options.license,
        notes=options.notes,
        half=options.half,
    )
    if not options.quiet:
        for sentence in exported.passed_over:
            complain(sentence)
        if exported.entry["license"] is None:
            complain("the card says that nobody has stated the licence of the weights: add --license")
    size = (exported.folder / WEIGHTS_NAME).stat().st_size / 1e6
    say(f"{exported.folder}: {size:.2f} MB, load it with RobustPerceptualDistance({str(exported.folder)!r})")
    if options.push is None:
        return
    commit = push_export(exported, options.push, private=options.private, revision=options.revision)
    branch = f", revision={options.revision!r}" if options.revision else ""
    say(f"{options.push} @ {commit}: load it with RobustPerceptualDistance({options.push!r}{branch})")
    say(f"{exported.folder / ENTRY_NAME}: its entry for weights_manifest.json")
