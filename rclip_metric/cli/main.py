"""The command rclip-metric: its arguments, its exit codes, and what it tells of models."""

from __future__ import annotations

import argparse
import atexit
import importlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from rclip_metric.cli import filter as filtering
from rclip_metric.cli import search, tables
from rclip_metric.cli.about import ShowVersion, add_version
from rclip_metric.cli.completion import add_completion
from rclip_metric.cli.diff import diff
from rclip_metric.cli.onnx import add_export_onnx
from rclip_metric.cli.run import UsageError
from rclip_metric.cli.score import rank, score
from rclip_metric.errors import (
    DigestError,
    FilterError,
    HubError,
    ImageError,
    ImageIndexError,
    StorageError,
    WeightsError,
)
from rclip_metric.files import written_whole
from rclip_metric.printing import Parser, complain, give_up, printable, say, show

_EPILOG = """\
exit codes:
  0    done
  2    bad usage or input; also when files of a folder could not be read: they are named on stderr,
       skipped and counted, and the others are scored
  3    the network, the Hub, or the integrity or storage of a downloaded file
  130  interrupted; 141: nobody reads the output any more
"""
_ELSEWHERE = {
    "train": "rclip_metric.train.commands.train.main",
    "eval": "rclip_metric.train.commands.evaluate.main",
    "benchmark": "rclip_metric.train.commands.benchmark",
    "invert": "rclip_metric.train.commands.invert",
    "imagine": "rclip_metric.train.commands.invert",
    "demo": "rclip_metric.train.commands.demo",
}
_SCORE_USAGE = """rclip-metric score [options] A B
       rclip-metric score [options] --all-pairs FOLDER"""
_SCORE_HELP = """\
The distance between two images, or between the images of two folders that have the same name (with
the same suffix, or with another one where that is unambiguous), or between all images of one folder.

Two files give one line. Folders give JSON lines: one per pair, and a summary last, which also names
the files that were skipped or have no partner. Hidden files are left out, and subfolders unless
--recursive is given: then images are paired and named by their paths from the folder on. With --top the
summary is still that of all pairs.

All pairs begin with a line that holds the model and its settings, so that each pair is three values. In a
file they can be a table or a matrix too; FILE.json then has the names of the images, the model and the
summary. Memory does not grow with the pairs, and a file is there as a whole or not at all.
"""
_RANK_HELP = """\
Candidates by their distance to the reference, nearest first. A candidate that is a folder stands for
the images in it. The reference is not ranked against itself, unless --with-query is given.
"""
_DIFF_HELP = """\
Where two images differ: the distance, the place of the largest difference and, with --out, a map over
the first image. Compares local features; the other methods share the distance out among the pixels.
"""
_BUILD_HELP = """\
Embed all images below a folder and keep that in an index: a LanceDB table if the extra `index` is
installed, else a few files. A file that cannot be read is named, skipped and counted.
"""
_UPDATE_HELP = """\
Embed the files that are new or have changed, and drop those that are gone. Files of the same size
and time of modification are not opened.
"""
_APPROXIMATE_HELP = """\
Prepare the index, a LanceDB table, for `search --approximate`, which reads a part of it: past a million images
that is faster. It will read as much as 95 % of the 10 nearest take; what it finds is measured on images of the
index, and said. Images that are added later are found too; do it again when they are many.
"""
_SEARCH_HELP = """\
The images of an index that are nearest to each query, exactly: nothing is left out to be faster, unless
--approximate is given.
"""
_DUPLICATES_HELP = """\
Groups of images that are nearly the same: the largest file first, which to keep, then those nearer
to it than --below. Copies of one file come first. Nothing is ever deleted.
"""


def console_main() -> None:
    """Run the command as a process."""
    _fill_descriptors()
    if sys.stdout is None:
        complain("the standard output is closed: send it to /dev/null where it is not wanted")
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names that the terminal cannot show
    warnings.formatwarning = lambda message, *where, **line: f"rclip-metric: {printable(message)}\n"
    atexit.register(_leave)  # the first to come is the last to be called
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is said: an impatient second Ctrl-C gets no traceback
    _ending.append(code)
    sys.exit(code)


_ending: list[int] = []  # the exit code of the process, once it is known


def _leave() -> None:
    """Leave with 130 after an interrupt: one that came while C code ran Python would end the process by a signal."""
    if _ending == [130]:
        os._exit(130)


def _fill_descriptors() -> None:
    """Open those of stdin, stdout and stderr that are closed: the next file that is opened would be one of them."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    if sys.stderr is None:
        sys.stderr = open(2, "w")  # noqa: SIM115 (to the end of the process)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments, without the program's name; those of the process if None.

    Returns:
        The exit code, see --help.
    """
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        code = 141
    except KeyboardInterrupt:
        complain("interrupted")
        code = 130
    except (FilterError, ImageError, ImageIndexError, UsageError, WeightsError) as error:
        complain(error)
        code = _exit_code(error)
    except OSError as error:
        if not error.filename and (lost := _output_error()):
            return lost
        complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        code = 2
    return _output_error() or code


def _output_error() -> int:
    """Write out what stdout still holds; return the exit code if that fails, else 0."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # somebody like `head` has seen enough
        give_up(sys.stdout)
        return 141
    except OSError as error:
        give_up(sys.stdout)
        complain(f"the output cannot be written: {error.strerror}")
        return 2
    return 0


def _run(arguments: list[str]) -> int:
    try:
        if arguments and arguments[0] in _ELSEWHERE:
            # By name: the metric is imported without the training code.
            return int(importlib.import_module(_ELSEWHERE[arguments[0]]).main(arguments))
        args = _parser().parse_args(arguments)
    except SystemExit as stop:  # argparse has printed what there is to say
        return int(stop.code or 0)
    return int(args.command(args))


def _exit_code(error: Exception) -> int:
    return 3 if isinstance(error, HubError | DigestError | StorageError) else 2


def _parser() -> argparse.ArgumentParser:
    raw: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": _EPILOG}
    parser = Parser(
        prog="rclip-metric",
        description="A perceptual distance between images that holds up under adversarial perturbation.",
        **raw,
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="show the versions and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--quiet", action="store_true", help="no progress and no remarks, only errors")
    cache = argparse.ArgumentParser(add_help=False)
    cache.add_argument("--cache-dir", metavar="FOLDER", help="Hub cache (default: that of huggingface_hub)")
    _add_scoring(commands, [_scoring_options("r-clip-f"), cache, output], raw)
    _add_searching(commands, cache, output, raw)
    _add_models(commands, cache, output, raw)
    add_export_onnx(commands, [cache, output], raw)
    add_version(commands, [output], raw)
    add_completion(commands, parser, _ELSEWHERE, raw)
    # Only for the list in --help: their arguments go to rclip_metric.train as they are.
    commands.add_parser("train", help="train a robust encoder", add_help=False)
    commands.add_parser("eval", help="evaluate a metric, clean and under attack", add_help=False)
    commands.add_parser("benchmark", help="any metrics beside each other, on one page", add_help=False)
    commands.add_parser("invert", help="images that a model takes for the same as some image", add_help=False)
    commands.add_parser("imagine", help="images that a model takes a text to look like", add_help=False)
    commands.add_parser("demo", help="two images in a browser, and an attack on them", add_help=False)
    return parser


def _add_scoring(commands: Any, parents: list[argparse.ArgumentParser], raw: dict[str, Any]) -> None:
    """Add `score`, `rank` and `diff`: what computes distances."""
    scored = commands.add_parser(
        "score",
        help="distance between two images, two folders, or all images of one",
        usage=_SCORE_USAGE,
        description=_SCORE_HELP,
        parents=parents,
        **raw,
    )
    scored.add_argument("paths", nargs="+", metavar="PATH", help="two files, two folders, or one folder")
    scored.add_argument("--all-pairs", action="store_true", help="every pair of images in one folder")
    tables.add_options(scored, _positive, _distance)
    scored.add_argument("--html", metavar="FILE", help="write a page: pairs, the largest distance first, with maps")
    _add_second_look(scored)
    scored.set_defaults(command=score)

    ranked = commands.add_parser(
        "rank", help="order images by their distance to one", description=_RANK_HELP, parents=parents, **raw
    )
    ranked.add_argument("reference", help="an image")
    ranked.add_argument("candidates", nargs="+", metavar="candidate", help="an image, or a folder of images")
    ranked.add_argument("--top", type=_positive, metavar="K", help="only the K nearest")
    ranked.add_argument("--recursive", action="store_true", help="images in folders below as well")
    ranked.add_argument("--with-query", action="store_true", help="rank the reference too, where it is a candidate")
    _add_sheet(ranked)
    _add_second_look(ranked)
    ranked.set_defaults(command=rank)

    shown = commands.add_parser(
        "diff", help="show where two images differ", description=_DIFF_HELP, parents=parents, **raw
    )
    shown.add_argument("a", metavar="A", help="an image; the map is in its size")
    shown.add_argument("b", metavar="B", help="an image")
    shown.add_argument("--out", metavar="FILE", help="write a picture (.png, .jpg, .pdf, .svg) or the numbers (.npy)")
    shown.add_argument("--side-by-side", action="store_true", help="draw both images beside the map")
    shown.add_argument(
        "--method",
        choices=("features", "gradient", "smoothed", "integrated"),
        default="features",
        help="what is compared (default: %(default)s)",
    )
    shown.add_argument(
        "--scale", type=_distance, metavar="MAX", help="value of the brightest colour (default: the map's largest)"
    )
    shown.set_defaults(command=diff)


def _add_sheet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sheet", metavar="FILE", help="write the pictures to a .png, .jpg or .html file")
    parser.add_argument("--maps", action="store_true", help="lay over the pictures where they differ")


def _add_second_look(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-second-look",
        action="store_false",
        dest="second_look",
        help="with --dtype bfloat16: let it decide too where only float32 can tell which image is nearer",
    )


def _add_searching(
    commands: Any, cache: argparse.ArgumentParser, output: argparse.ArgumentParser, raw: dict[str, Any]
) -> None:
    """Add `index`, `search` and `duplicates`: what works on an index of images."""
    anew, again = [_scoring_options("r-clip-f"), cache, output], [_scoring_options(None), cache, output]
    page: Any = {"metavar": "FILE", "help": "write a page with the pictures"}
    indexes = commands.add_parser("index", help="embed a folder of images once, to search in it", **raw)
    tasks = indexes.add_subparsers(required=True, metavar="TASK")
    built = tasks.add_parser("build", help="index a folder", description=_BUILD_HELP, parents=anew, **raw)
    built.add_argument("folder", help="images, in folders of any depth; the first one on the way is their label")
    built.add_argument("index", help="a folder to make, for the index")
    built.add_argument("--half", action="store_true", help="keep embeddings in float16: half the memory")
    built.set_defaults(command=search.build)
    updated = tasks.add_parser(
        "update", help="bring an index up to date with its folder", description=_UPDATE_HELP, parents=again, **raw
    )
    updated.add_argument("index", help="an index")
    updated.add_argument("--folder", help="where the images are now, if they were moved")
    updated.set_defaults(command=search.update)
    prepared = tasks.add_parser(
        "approximate",
        help="prepare a large one for a faster search",
        description=_APPROXIMATE_HELP,
        parents=again,
        **raw,
    )
    prepared.add_argument("index", help="an index that is a LanceDB table")
    prepared.set_defaults(command=search.approximate)
    told = tasks.add_parser("info", help="say what an index holds", parents=[output], **raw)
    told.add_argument("index", help="an index")
    told.set_defaults(command=search.info)

    searched = commands.add_parser(
        "search", help="find the images that are nearest to some", description=_SEARCH_HELP, parents=again, **raw
    )
    searched.add_argument("index", help="an index, or a folder of images, which is embedded for this once")
    searched.add_argument("queries", nargs="+", metavar="QUERY", help="an image")
    searched.add_argument("-k", type=_positive, metavar="N", help="how many (default: 10, or all if there are fewer)")
    searched.add_argument(
        "--approximate", action="store_true", help="look where the nearest are likely to be (see `index approximate`)"
    )
    searched.add_argument("--csv", action="store_true", help="print CSV")
    searched.add_argument("--html", **page)
    _add_sheet(searched)
    _add_second_look(searched)
    searched.set_defaults(command=search.search)

    doubled = commands.add_parser(
        "duplicates", help="find images that are nearly the same", description=_DUPLICATES_HELP, parents=again, **raw
    )
    doubled.add_argument("index", help="an index, or a folder of images, which is embedded for this once")
    doubled.add_argument(
        "--below", type=_distance, default=0.1, metavar="D", help="distance of what is nearly the same (default: 0.1)"
    )
    doubled.add_argument("--html", **page)
    doubled.set_defaults(command=search.duplicates)

    filtered = commands.add_parser(
        "filter",
        help="give images the class of the examples they are nearest to",
        description=filtering.HELP,
        parents=[_scoring_options(None, "that of the pools; r-clip-f for a folder"), cache, output],
        **raw,
    )
    filtering.add_options(filtered, _positive, _distance)
    filtered.set_defaults(command=filtering.decide)


def _add_models(
    commands: Any, cache: argparse.ArgumentParser, output: argparse.ArgumentParser, raw: dict[str, Any]
) -> None:
    """Add `models`, `download`, `verify` and `manifest`: what handles weights."""
    models = commands.add_parser("models", help="list the models", parents=[cache, output], **raw)
    models.set_defaults(command=_models)

    download = commands.add_parser(
        "download", help="fetch models into the cache, for use offline", parents=[cache, output], **raw
    )
    download.add_argument("names", nargs="*", metavar="NAME", help="model name or Hub id")
    download.add_argument(
        "--all-published",
        action="store_true",
        help="every model of the manifest that is on the Hub",
    )
    download.add_argument("--revision", help="commit, tag or branch on the Hub, for a single model")
    download.set_defaults(command=_download)

    verify = commands.add_parser(
        "verify", help="compute the digests of models on this machine anew", parents=[cache, output], **raw
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help="model name, Hub id or path")
    verify.add_argument("--all", action="store_true", help="every model that is on this machine")
    verify.set_defaults(command=_verify)

    manifest = commands.add_parser(
        "manifest", help="print the weights manifest, or bring it up to date", parents=[output], **raw
    )
    manifest.add_argument("--refresh", action="store_true", help="ask the Hub, and print what differs")
    manifest.add_argument("--write", action="store_true", help="with --refresh: write it back")
    manifest.set_defaults(command=_manifest)


def _scoring_options(
    model: str | None, otherwise: str = "that of the index; r-clip-f for a folder"
) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    default = model or otherwise
    options.add_argument("--model", default=model, help=f"name (see `models`), path, or Hub id (default: {default})")
    options.add_argument(
        "--base",
        metavar="NAME",
        help="for a checkpoint that does not say so itself: the model it is made from",
    )
    options.add_argument("--revision", help="commit, tag or branch on the Hub (default: the manifest's)")
    options.add_argument(
        "--resize",
        choices=("published", "squash", "none"),
        help="what to do with images of another size than the model's: as for the published numbers, squash "
        "the whole image, or refuse (default: as the model was saved; published for named ones)",
    )
    options.add_argument(
        "--reading",
        choices=("published", "fast"),
        help="how files are read: as for the published numbers, or two to four times faster, which changes distances "
        "of large JPEGs about as much as bfloat16 does (default: as the model was saved; published for named ones)",
    )
    options.add_argument("--squared", action="store_true", help="1 - cos in [0, 2], not its square root")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    options.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the model (default: float32)"
    )
    options.add_argument(
        "--batch-size", type=_positive, metavar="N", help="images at a time (default: 8 on a CPU, else 32)"
    )
    options.add_argument(
        "--workers", type=_positive, metavar="N", help="threads that read images (default: one per core, at most 4)"
    )
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _distance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 2:
        raise argparse.ArgumentTypeError(f"expected a distance above 0, at most 2, got {text!r}")
    return value


def _models(args: argparse.Namespace) -> int:
    from rclip_metric.cli.models import format_table, list_models

    records = list_models(args.cache_dir)
    show(f"{json.dumps(records) if args.json else format_table(records)}\n")
    return 0


def _download(args: argparse.Namespace) -> int:
    from rclip_metric.weights.hub import without_progress_bars
    from rclip_metric.weights.loading import locate
    from rclip_metric.weights.manifest import get_spec, model_names

    if bool(args.names) == args.all_published:
        raise UsageError("pass the names of models, or --all-published for every one that is on the Hub")
    names = args.names or [name for name in model_names() if get_spec(name).source == "hub"]
    if args.revision and (len(args.names) > 1 or args.all_published):
        raise UsageError("--revision is for a single model: it names a commit of one repository")

    def fetch(name: str) -> dict[str, Any]:
        with without_progress_bars(args.quiet):
            found = locate(name, revision=args.revision, cache_dir=args.cache_dir)
        return {"name": name, "revision": found.revision, "path": str(found.path)}

    return _each(args, names, fetch)


def _verify(args: argparse.Namespace) -> int:
    from rclip_metric.weights.loading import verify
    from rclip_metric.weights.local import is_cached
    from rclip_metric.weights.manifest import get_spec, model_names

    if bool(args.names) == args.all:
        raise UsageError("pass the names of models, or --all for every one that is on this machine")
    here = [name for name in model_names() if is_cached(get_spec(name), args.cache_dir)] if args.all else []

    if args.all and not here and not args.quiet:
        complain("no model is on this machine")

    def check(name: str) -> dict[str, Any]:
        return {"name": name, "digest": verify(name, cache_dir=args.cache_dir)}

    return _each(args, args.names or here, check)


def _each(args: argparse.Namespace, names: Sequence[str], work: Callable[[str], dict[str, Any]]) -> int:
    """Do the work for every model, one line each, also after one that fails; return the worst exit code."""
    worst = 0
    for name in names:
        try:
            record = work(name)
        except WeightsError as error:
            complain(str(error))
            worst = max(worst, _exit_code(error))
            continue
        say(json.dumps(record) if args.json else "  ".join(str(value or "?") for value in record.values()))
    return worst


def _manifest(args: argparse.Namespace) -> int:
    from rclip_metric.weights.manifest import format_manifest, load_manifest, manifest_path
    from rclip_metric.weights.publishing import refresh_manifest

    if args.write and not args.refresh:
        raise UsageError("--write goes with --refresh")
    manifest = load_manifest()
    if not args.refresh:
        show(f"{json.dumps(manifest)}\n" if args.json else format_manifest(manifest))
        return 0
    refreshed, difference = refresh_manifest(manifest)
    failed = [line for line in difference if ": not refreshed: " in line]
    changes = [line for line in difference if line not in failed]
    for line in failed:
        complain(line)
    if args.write and changes:
        with written_whole(manifest_path()) as partial:
            partial.write_text(format_manifest(refreshed), encoding="utf-8")
    if args.json:
        say(json.dumps({"changes": changes, "failed": failed, "written": bool(args.write and changes)}))
    else:
        for line in changes or ["nothing differs"]:
            say(line)
    if changes and not args.write and not args.quiet:
        complain("nothing was written: add --write")
    return 3 if failed else 0
