"""The command `filter`: what images are unsafe, by examples of each class."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.cli.run import Run, UsageError, as_made, number_of_files
from rclip_metric.printing import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rclip_metric.cli.gallery import Group, Tile
    from rclip_metric.filtering import Work, Worker
    from rclip_metric.filtering.job import Job, Outcome
    from rclip_metric.filtering.pools import Pools
    from rclip_metric.filtering.shards import Shard
    from rclip_metric.filtering.work import Report

HELP = """\
Give each image the class of the examples that it is nearest to, and say where a detector objects.

POOLS is a folder with a folder of examples for each class, such as safe, buffer and unsafe, or an
index whose labels are the classes. IMAGES is a folder of images, WebDataset shards (.tar), Parquet
files with a column of encoded images, a folder of one kind of these, a pattern such as
'photos-{000..127}.tar', or an index, whose embeddings are taken as they are: nothing is decoded.

OUT gets a part of the table for each shard, under decisions/, as soon as it is done, and at the end
decisions.csv, decisions.parquet (with the extra `parquet`), summary.json and gallery.html, a sample
of each class on which all is blurred that was found unsafe. A run that was ended goes on where it
was when it is started again, and decides on no image twice. No image is moved or changed.
"""


def add_options(parser: argparse.ArgumentParser, positive: Any, distance: Any) -> None:
    """Add the options that only this command has."""
    parser.add_argument("--pools", required=True, metavar="POOLS", help="examples, a folder for each class")
    parser.add_argument("--images", required=True, metavar="IMAGES", help="what to decide on")
    parser.add_argument("--out", required=True, metavar="OUT", help="a folder for the results")
    parser.add_argument("-k", "--k", type=positive, default=1, metavar="N", help="neighbours that vote (default: 1)")
    parser.add_argument(
        "--threshold", type=distance, metavar="D", help="decide on nothing that is farther from every example"
    )
    parser.add_argument(
        "--detector",
        action="append",
        default=[],
        metavar="NAME",
        help="a detector of unsafe images as well, by name, path or module:function: unsafe if any says so; repeatable",
    )
    parser.add_argument("--unsafe", default="unsafe", metavar="CLASS", help="the unsafe class (default: %(default)s)")
    parser.add_argument("--image-column", metavar="NAME", help="of Parquet files (default: by its name and type)")
    sorting = parser.add_mutually_exclusive_group()
    sorting.add_argument("--link", dest="sorting", action="store_const", const="link", help="OUT/images/CLASS: links")
    sorting.add_argument("--copy", dest="sorting", action="store_const", const="copy", help="OUT/images/CLASS: copies")
    page = parser.add_argument_group("page")
    page.add_argument("--sample", type=int, default=24, metavar="N", help="images of each class; 0 for no page")
    page.add_argument(
        "--blur", action=argparse.BooleanOptionalAction, default=True, help="blur what is unsafe (default: yes)"
    )
    page.add_argument("--no-thumbnails", action="store_true", help="leave pictures out that would be blurred")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--engine", choices=("local", "ray"), default="local", help="this process, or a Ray cluster")
    engine.add_argument("--concurrency", type=positive, default=1, metavar="N", help="ray: processes with a model")
    engine.add_argument("--gpus-per-actor", type=float, default=0, metavar="G", help="ray: GPUs of each, also parts")
    engine.add_argument("--cpus-per-actor", type=float, default=1, metavar="C", help="ray: cores of each")
    engine.add_argument("--address", help="ray: of the cluster (default: RAY_ADDRESS, else one on this machine)")


def decide(args: argparse.Namespace) -> int:
    """Decide on images; return the exit code."""
    if args.engine == "local" and (args.address or args.concurrency > 1 or args.gpus_per_actor):
        raise UsageError("--concurrency, --gpus-per-actor and --address go with --engine ray")
    if args.sample < 0:
        raise UsageError(f"got --sample {args.sample}, expected a whole number, 0 for no page")
    for read in (args.pools, args.images):
        if Path(args.out).resolve().is_relative_to(Path(read).resolve()):
            raise UsageError(f"{args.out} lies in {read}: what is written there would be read as well")
    from rclip_metric.filtering import find_pools, find_work
    from rclip_metric.filtering.job import Job
    from rclip_metric.filtering.sorting import check_sorting, sort_images

    pools = find_pools(args.pools)
    shards = find_work(args.images, column=args.image_column)
    check_sorting(shards, args.sorting)
    _take_model_of(pools, args)
    run = Run(args)
    for label, count in pools.counts.items():
        if count == 1:
            run.remark(f"the class {label} has one example only")
    job = Job(Path(args.out))
    with job.locked(), run.working() as progress:
        with _prepared(args, run, job, pools, shards) as worker:
            work = worker.work
            begun = time.perf_counter()
            progress.start(len(shards), unit="shard")
            images = _carry_out(args, run, worker, progress)
            seconds = time.perf_counter() - begun
        outcome = job.finish(work.parts, len(shards), args.sample)
        sorted_ones = None
        if args.sorting:
            sorted_ones = sort_images(job.folder / "images", shards, work.parts, args.sorting, run.skip)
    if args.sample:
        _write_page(args, run, job, work, outcome, args.unsafe in pools.counts)
    summary = _summary(run, job, outcome, images, seconds) | {"sorted": sorted_ones}
    job.write_summary(summary)
    return _tell(args, run, outcome, summary)


def _take_model_of(pools: Pools, args: argparse.Namespace) -> None:
    from rclip_metric.retrieval import open_storage

    if pools.is_index:
        as_made(args, open_storage(pools.path).about())
    args.model = args.model or "r-clip-f"


def _prepared(args: argparse.Namespace, run: Run, job: Job, pools: Pools, shards: list[Shard]) -> Worker:
    """Embed the examples, find out whether all goes together, and only then write down what is to be done."""
    from rclip_metric.filtering import Work, Worker, columns
    from rclip_metric.filtering.pools import embed_pools
    from rclip_metric.filtering.shards import check_model
    from rclip_metric.filtering.work import load_detectors
    from rclip_metric.retrieval import identity_of

    if args.detector and args.unsafe not in pools.counts:
        raise UsageError(f"--detector says what is {args.unsafe}, and the classes are {', '.join(pools.counts)}")
    check_model(shards, run.metric)
    detectors = load_detectors(args.detector, str(run.metric.device))
    settings = {
        "model": identity_of(run.metric),
        "squared": run.metric.squared,
        "dtype": args.dtype,
        "pools": pools.digests,
        "k": args.k,
        "threshold": args.threshold,
        "detectors": {detector.name: detector.describe() for detector in detectors},
        "unsafe": args.unsafe if detectors else None,
        "columns": columns([detector.name for detector in detectors]),
    }
    parts, is_begun = job.begin(settings, shards)
    if parts.format == "csv":
        run.remark('only CSV is written: pip install "rclip-metric[parquet]" for Parquet')
    index = embed_pools(pools, run.metric, job.pools, run.batch_size, run.skip)
    work = Work(
        run.source,
        str(index),
        tuple(shards),
        parts,
        k=args.k,
        threshold=args.threshold,
        detectors=tuple(args.detector),
        unsafe=args.unsafe,
        batch_size=run.batch_size,
        device=str(run.metric.device),
        threads=args.workers
        or (os.cpu_count() if run.metric.device.type == "cuda" else None),  # a GPU is faster than a few
    )
    worker = Worker(work, run.metric, detectors)
    if not is_begun:
        job.commit(settings, shards, parts)
    return worker


def _carry_out(args: argparse.Namespace, run: Run, worker: Worker, progress: Any) -> int:
    """Let the engine do what is left; return the number of images."""
    from rclip_metric.filtering import Cluster, run_local, run_ray

    count = 0

    def done(report: Report) -> None:
        nonlocal count
        count += report.images or 0
        progress.advance()

    work = worker.work
    before = len(work.shards) - len(work.parts.missing(len(work.shards)))
    for _ in range(before):
        progress.advance()
    if 0 < before < len(work.shards):
        run.remark(f"{before} of {len(work.shards)} shards were done before")
    if args.engine == "ray":
        run_ray(work, Cluster(args.concurrency, args.gpus_per_actor, args.cpus_per_actor, args.address), done)
    else:
        run_local(worker, done)
    return count


def _summary(run: Run, job: Job, outcome: Outcome, images: int, seconds: float) -> dict[str, Any]:
    """State what was done, by what, and how fast."""
    return {
        "images": outcome.images,
        "decisions": dict(outcome.decisions),
        "classes": dict(outcome.classes),
        "unreadable": outcome.unreadable,
        "errors": outcome.errors,
        "identical_to_an_example": outcome.identical,
        "this_run": {
            "images": images,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 2) if images else None,
        },
        "job": json.loads((job.folder / "job.json").read_text())["job"],
        **run.identity,
        "settings": run.settings,
    }


def _tell(args: argparse.Namespace, run: Run, outcome: Outcome, summary: dict[str, Any]) -> int:
    """Say what came out; return the exit code."""
    for error in outcome.errors:
        run.skip(Path(error["file"]), error["reason"])
    if outcome.unreadable > len(outcome.errors):
        run.remark(f"{outcome.unreadable - len(outcome.errors)} more cannot be read, all of them named in the table")
    if outcome.identical:
        run.remark(
            f"{number_of_files(outcome.identical)} identical to examples of the pools: they say nothing of the filter"
        )
    if args.json:
        say(json.dumps(summary))
    else:
        counts = ", ".join(f"{count} {label or 'near to no example'}" for label, count in outcome.decisions.items())
        say(
            f"{outcome.images} images: {counts or 'none decided'}, skipped {number_of_files(outcome.unreadable)}; "
            f"{Path(args.out) / 'decisions.csv'}; {run.label}"
        )
    return 2 if run.skipped else 0


def _write_page(args: argparse.Namespace, run: Run, job: Job, work: Work, outcome: Outcome, known: bool) -> None:
    """Write the page of samples; `known` is whether one of the classes is the unsafe one."""
    from rclip_metric.cli.gallery import Group, write_gallery

    if args.blur and not known:
        run.remark(f"no class is called {args.unsafe}: all pictures on the page are blurred; say which with --unsafe")

    def groups() -> Iterator[Group]:
        for label in sorted(outcome.samples):
            count = outcome.decisions[label]
            title = f"{label or 'near to no example'}: {min(count, args.sample)} of {count}"
            blurred = args.blur and (label == args.unsafe or not known)
            yield Group(title, list(_tiles(args, work, outcome.samples[label], blurred)), alike=True)

    about = f"The number is how much nearer the class is than any other, as a difference of cosines. {run.label}"
    write_gallery(job.folder / "gallery.html", "What the filter decided", about, groups())


def _tiles(args: argparse.Namespace, work: Work, sample: Iterable[tuple[int, Any]], blurred: bool) -> Iterator[Tile]:
    """Find the pictures of a sample again, shard by shard; the narrowest decisions come first."""
    from rclip_metric.cli.gallery import Tile
    from rclip_metric.errors import ImageError

    rows = sorted(sample, key=lambda one: (one[1]["margin"], one[1]["file"]))
    contents: dict[tuple[int, str], bytes] = {}
    for shard in sorted({shard for shard, _ in rows}) if not (blurred and args.no_thumbnails) else ():
        names = {row["file"] for place, row in rows if place == shard}
        for item in work.shards[shard].items():
            if item.name in names and item.read is not None:
                try:
                    contents[shard, item.name] = item.read()
                except ImageError:
                    continue  # it was there when it was decided on: its place on the page stays empty
    for shard, row in rows:
        said = f"{row['margin']:.3f}" if row["class"] is not None else "none"
        told = f"nearest: {row['neighbour']}"
        yield Tile(row["file"], said, told, contents.get((shard, row["file"])), blurred)
