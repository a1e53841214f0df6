"""`rclip-metric eval ...`: how well a metric agrees with people, clean and under attack."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rclip_metric.printing import complain, printable, say, show
from rclip_metric.train.commands.evaluate.options import balls_of, build_parser, certificates_of

if TYPE_CHECKING:
    from rclip_metric.train.attacks.threat import LpBall

STEPS = {"apgd": 100, "square": 5000, "noise": 100}
PAPER: dict[str, dict[str, Any]] = {
    "nights": {"split": "test", "min-votes": 6, "attack": "apgd", "norm": "linf l2", "eps": "4/255 3", "steps": 100},
    "bapps": {"protocol": "majority", "interpolation": "bilinear", "attack": "apgd", "norm": "linf l2",
              "eps": "4/255 3", "steps": 100, "attacked": "1000 per split"},
    "jnd": {"protocol": "mAP", "interpolation": "bilinear", "side": 64, "attack": "none"},
    "things": {"attack": "none"},
    "cue-conflict": {"attack": "none"},
    "neighbours": {"database": "15,000 images of MS-COCO's training set", "k": 1, "attack": "apgd", "norm": "linf",
                   "eps": "4/255", "steps": 50},
    "filter": {"pool-size": 500, "targets": 16, "queries": 1000, "attack": "apgd", "norm": "linf", "eps": "8/255",
               "steps": 200},
    "retrieval": {"protocol": "revisitop mAP", "attack": "apgd", "norm": "linf", "eps": "4/255", "steps": 100,
                  "loss": "embedding"},
    "inversion": {"method": "apgd", "steps": 500, "norm": "l2", "radius at 224 px": 100, "images": 100},
    "zeroshot": {"attack": "apgd-ce, then apgd-t (targeted DLR)", "norm": "linf", "eps": "2/255 4/255", "steps": 100,
                 "targets": 9},
}  # fmt: skip


def _attacks(options: argparse.Namespace) -> list[Any]:
    from rclip_metric.train.evaluation import AttackSettings

    if options.attack == "none":
        return []
    steps = STEPS[options.attack] if options.steps is None else options.steps
    loss: Literal["ce", "margin"] = "margin" if options.attack == "square" else options.loss
    return [
        AttackSettings(ball, options.attack, steps, options.restarts, loss, options.larger_eps)
        for ball in balls_of(options.norm, options.eps)
    ]


def _run_settings(options: argparse.Namespace, metric: Any, team: Any) -> Any:
    from rclip_metric.train.evaluation.attack import RunSettings, chunk_size_of, default_batch_size
    from rclip_metric.train.metrics.base import metric_precision

    chunk_size = options.chunk_size or chunk_size_of(metric)
    resample: Literal["samples", "images"] = getattr(options, "resample", "samples")
    asked = getattr(options, "precision", "float32")
    precision = team.first(metric_precision(asked, metric))  # where it is measured they may not agree
    return RunSettings(
        options.seed, options.batch_size or default_batch_size(chunk_size), chunk_size, precision, resample
    )


def _proof_run(options: argparse.Namespace, run: Any, proofs: Sequence[Any]) -> Any:
    """Make blocks small for a smoothing, which judges thousands of images for every sample."""
    from dataclasses import replace

    small = options.batch_size is None and any(proof.attack == "smoothing" for proof in proofs)
    return replace(run, batch_size=1) if small else run


def _needs(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name) is None:
            raise ValueError(f"rclip-metric eval {options.task} needs --{name}")


def _checked(paths: Sequence[Path], options: argparse.Namespace) -> None:
    """Decode every image for --check; ValueError when some are broken."""
    from rclip_metric.train.data.check import check_images

    problems = check_images(paths, quiet=options.quiet)
    for problem in problems:
        say(problem)
    whole = len(set(paths))
    if problems:
        raise ValueError(f"{len(problems)} of {whole} images cannot be read: download them again")
    say(f"{options.data}: all {whole} images can be read")


def _finish(records: Sequence[dict[str, Any]], options: argparse.Namespace, rank: int) -> None:
    """Print the table; name what could not be read."""
    from rclip_metric.train.evaluation.results.breakdown import PARTS, breakdown
    from rclip_metric.train.evaluation.results.leaderboard import table

    if rank:
        return
    show(f"{table(records)}\n")
    for by in PARTS:
        if parts := breakdown(records, by):
            show(f"\n{parts}\n")
    _refuse_unreadable("samples", *(record["data"] for record in records))


def _refuse_unreadable(what: str, *parts: dict[str, Any]) -> None:
    """Raise ValueError where something of the data could not be read, and name the first."""
    if broken := list(dict.fromkeys(problem for part in parts for problem in part["unreadable"])):
        raise ValueError(f"{len(broken)} {what} could not be read and were left out; the first: {broken[0]}")


def _judge(
    options: argparse.Namespace,
    task_of: Callable[[str], Any],
    attacks: Sequence[Any],
    resize: Literal["default", "squash"] = "default",
    finish: Callable[[Sequence[dict[str, Any]], argparse.Namespace, int], None] = _finish,
    certificates: Sequence[Sequence[Any]] = (),
) -> None:
    """Evaluate every model on the task that goes with its name: under the attacks, then each kind of certificate.

    These are evaluations by themselves, with a run of their own (`_proof_run`).
    """
    from rclip_metric.train.evaluation import Session
    from rclip_metric.train.metrics.registry import load_metric
    from rclip_metric.train.runs.distributed import join

    team = join(options.device)
    session = Session(options.out, options.overwrite, team, options.quiet)
    records: list[dict[str, Any]] = []
    for name in options.model:
        metric = load_metric(name, device=str(team.device), resize=resize)
        task, run = task_of(name), _run_settings(options, metric, team)
        if attacks or not certificates:
            records += session.records(task, metric, attacks, run)
        for proofs in certificates:
            records += session.records(task, metric, proofs, _proof_run(options, run, proofs))
    finish(records, options, team.rank)


def _two_afc(options: argparse.Namespace, data: Any, resize: Literal["default", "squash"]) -> None:
    """Do what NIGHTS and BAPPS share."""
    if options.check:
        return _checked(data.paths(), options)
    _needs(options, "model")
    _judge(options, lambda _: data, _attacks(options), resize, certificates=certificates_of(options))


def _nights(options: argparse.Namespace) -> None:
    _two_afc(options, _nights_data(options, options.attacked), "default")


def _nights_data(options: argparse.Namespace, attacked: int | None = None) -> Any:
    from rclip_metric.train.evaluation.tasks import nights_data

    _needs(options, "data")
    settings = {"attacked": attacked, "name": options.name, "published": options.published}
    settings["allow_outside"] = options.allow_outside
    return nights_data(options.data, options.split, options.limit, **settings)


def _bapps(options: argparse.Namespace) -> None:
    from rclip_metric.train.evaluation.tasks import bapps_data

    _needs(options, "data")
    settings = {"protocol": options.protocol, "attacked": options.attacked, "limit": options.limit}
    settings |= {"name": options.name, "published": options.published}
    _two_afc(options, bapps_data(options.data, options.splits, **settings), "squash")


def _jnd(options: argparse.Namespace) -> None:
    from rclip_metric.train.evaluation import Session
    from rclip_metric.train.evaluation.run import evaluate
    from rclip_metric.train.evaluation.tasks.jnd import jnd_data, jnd_table
    from rclip_metric.train.metrics.registry import load_metric
    from rclip_metric.train.runs.distributed import join

    _needs(options, "data")
    data = jnd_data(options.data, options.splits, limit=options.limit, name=options.name)
    if options.check:
        return _checked(data.paths(), options)
    _needs(options, "model")
    team = join(options.device)
    session = Session(options.out, options.overwrite, team, options.quiet)
    records = []
    for name in options.model:
        metric = load_metric(name, device=str(team.device), resize="squash")
        run = _run_settings(options, metric, team)
        if session.out is None:
            records += evaluate(metric, data, run=run, team=team, quiet=options.quiet)
        else:
            records.append(session.single(session.out / data.file_name(metric), data, metric, run))
    if team.rank == 0:
        show(f"{jnd_table(records)}\n")
    _refuse_unreadable("pairs", *(record["data"] for record in records))


def _things(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from rclip_metric.train.evaluation.tasks import things_data

    _needs(options, "data")
    naming = {"name": options.name, "published": options.published, "allow_outside": options.allow_outside}
    data = things_data(options.data, options.table, options.images, options.limit, **naming)
    if options.check:
        return _checked(data.things.images, options)
    _needs(options, "model")
    # Three pairs compete here: what is raised is always the margin between them.
    attacks = [replace(attack, loss="margin") for attack in _attacks(options)]
    _judge(options, lambda _: data, attacks, certificates=certificates_of(options))


def _cue_conflict(options: argparse.Namespace) -> None:
    from rclip_metric.train.data.cue_conflict import read_conflicts
    from rclip_metric.train.evaluation.tasks import cue_conflict_data
    from rclip_metric.train.runs.distributed import join

    _needs(options, "data")
    if options.check:
        return _checked([image.path for image in read_conflicts(options.data, options.classes)], options)
    _needs(options, "model")
    settings = {"draws": options.draws, "seed": options.seed, "limit": options.limit, "name": options.name}
    data = cue_conflict_data(options.data, options.classes, **settings)
    if data.left_out and join(options.device).rank == 0:
        _say(f"{len(data.left_out)} images are no references; the first: {data.left_out[0]}")
    _judge(options, lambda _: data, ())


def _neighbours(options: argparse.Namespace) -> None:
    from rclip_metric.retrieval import is_index
    from rclip_metric.train.attacks.threat import LpBall
    from rclip_metric.train.evaluation import Session
    from rclip_metric.train.evaluation.results.curves import new_figure
    from rclip_metric.train.evaluation.results.neighbour_pictures import Pictures, write_figure, write_page
    from rclip_metric.train.evaluation.searched import Folder, Indexed
    from rclip_metric.train.evaluation.tasks.neighbours import Neighbours, choose_queries, neighbours_table
    from rclip_metric.train.metrics.registry import load_metric
    from rclip_metric.train.runs.distributed import join

    _needs(options, "database", "queries", "model", "out")
    new_figure(1, 1)  # what it needs is told before any work
    indexed = is_index(options.database)
    if indexed and options.sample:
        raise ValueError("--sample chooses files of a folder, and an index is searched whole: leave it out")
    queries = choose_queries(options.queries, options.count, options.seed)
    folder = None if indexed else Folder.at(options.database, options.sample, options.seed)
    team = join(options.device)
    session, ball = Session(options.out, options.overwrite, team, options.quiet), LpBall(options.norm, options.eps)
    records: list[dict[str, Any]] = []
    database: Any = folder
    for name in options.model:
        metric = load_metric(name, device=str(team.device))
        database = folder or Indexed(options.database, metric)
        task = Neighbours(queries, database, ball, options.k, options.steps)
        path = options.out / task.file_name(metric)
        records.append(session.single(path, task, metric, _run_settings(options, metric, team)))
    if team.rank == 0:
        pictures = Pictures({query.key: query.path for query in queries}.__getitem__, database.picture)
        write_figure(records, pictures, options.out / "neighbours.png")
        write_page(records, pictures, options.out / "neighbours.html")
        show(f"{neighbours_table(records)}\n")
    _refuse_unreadable("queries", *(record["data"] for record in records))
    _refuse_unreadable("images", *(record["data"]["database"] for record in records))


def _filter(options: argparse.Namespace) -> None:
    from rclip_metric.train.commands.evaluate.filtering import filter_task
    from rclip_metric.train.evaluation import Session
    from rclip_metric.train.evaluation.results.filter_table import filter_table
    from rclip_metric.train.evaluation.tasks.filtering import evaluate_filter
    from rclip_metric.train.metrics.registry import load_metric
    from rclip_metric.train.runs.distributed import join

    _needs(options, "data")
    task = filter_task(options)
    if options.check:
        return _checked(task.paths(), options)
    _needs(options, "model")
    balls = [] if options.attack == "none" else balls_of([options.norm], options.eps or [8 / 255])
    certificates = certificates_of(options)
    team = join(options.device)
    session = Session(options.out, options.overwrite, team, options.quiet)
    detectors = []
    for name in options.detector:
        from rclip_metric.detectors.loading import load_detector

        detectors.append(load_detector(name, str(team.device)))
    how: dict[str, Any] = {"steps": options.steps, "adaptive": options.adaptive, "detectors": detectors}
    records: list[dict[str, Any]] = []
    for name in options.model:
        metric = load_metric(name, device=str(team.device))
        run = _run_settings(options, metric, team)
        records += evaluate_filter(metric, task, balls, run, session=session, **how)
        for proofs in certificates:
            records += session.records(task, metric, proofs, _proof_run(options, run, proofs))
    if team.rank == 0:
        show(f"{filter_table(records)}\n\n")
    _finish(records, options, team.rank)


def _retrieval(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from rclip_metric.train.evaluation.tasks import retrieval_data

    _needs(options, "data")
    naming = {"name": options.name, "published": options.published, "allow_outside": options.allow_outside}
    data = retrieval_data(str(options.data), options.limit, classes=options.classes, **naming)
    if options.check:
        return _checked(data.paths(), options)
    _needs(options, "model")
    losses: tuple[Literal["embedding", "neighbours"], ...] = ("embedding", "neighbours")
    known = losses if options.adaptive else losses[:1]
    attacks = [replace(attack, loss=loss) for attack in _attacks(options) for loss in known]
    _judge(options, lambda _: data, attacks, finish=_finish_retrieval)


def _finish_retrieval(records: Sequence[dict[str, Any]], options: argparse.Namespace, rank: int) -> None:
    """Print the table; name what could not be read, and the queries that nothing belongs to."""
    from rclip_metric.train.evaluation.results.retrieval_table import retrieval_table

    if rank:
        return
    show(f"{retrieval_table(records)}\n")
    for warning in dict.fromkeys(warning for record in records for warning in record["warnings"]):
        _say(f"note: {warning}")
    data = records[0]["data"]
    if broken := data["unreadable"] + data["unreadable_images"]:
        raise ValueError(f"{len(broken)} images could not be read and were left out; the first: {broken[0]}")
    if without := data["without_positives"]:
        raise ValueError(
            f"{len(without)} queries were left out, to which nothing belongs; the first: {without[0]}; "
            "give its class a second image, or take it out"
        )


def _inversion(options: argparse.Namespace) -> None:
    from rclip_metric.train.evaluation import Session
    from rclip_metric.train.evaluation.tasks.inversion import InversionData, inversion_images, inversion_table
    from rclip_metric.train.inversion import STEPS, InversionSettings
    from rclip_metric.train.metrics.registry import load_metric
    from rclip_metric.train.runs.distributed import join

    _needs(options, "data")
    images = inversion_images(options.data, options.limit)
    if options.check:
        return _checked([image.path for image in images], options)
    _needs(options, "model")
    how = InversionSettings(options.method, STEPS[options.method] if options.steps is None else options.steps)
    team = join(options.device)
    session = Session(options.out, options.overwrite, team, options.quiet)
    makers = {name: load_metric(name, device=str(team.device)) for name in options.model}
    side = max(getattr(metric, "image_size", 224) for metric in makers.values())
    others = [name for name in dict.fromkeys(options.judge) if name not in makers]
    judges = [*makers.values(), *(load_metric(name, device=str(team.device), image_size=side) for name in others)]
    data = InversionData(
        options.name or options.data.resolve().name, images, judges, how, options.limit, options.pictures
    )
    records = [data.record(session, metric, _run_settings(options, metric, team)) for metric in makers.values()]
    if team.rank == 0:
        show(f"{inversion_table(records)}\n")
        if options.plot is not None:
            from rclip_metric.train.evaluation.results.heat_map import heat_map

            heat_map(records, options.plot)
    _refuse_unreadable("images", *(record["data"] for record in records))


def _sanity(options: argparse.Namespace) -> None:
    from dataclasses import asdict, replace

    from rclip_metric.train.evaluation import Session
    from rclip_metric.train.evaluation import sanity as suite
    from rclip_metric.train.metrics.registry import load_metric
    from rclip_metric.train.runs.distributed import join
    from rclip_metric.train.runs.files import write_json

    _needs(options, "data", "model")
    whole = _nights_data(options)
    if options.check:
        return _checked(whole.paths(), options)
    balls, team = balls_of(options.norm, options.eps), join(options.device)
    settings = suite.SanitySettings(options.steps, tuple(options.iterations), options.queries, options.draws)
    session = Session(options.out, options.overwrite, team, options.quiet)
    failed = 0
    everything: list[dict[str, Any]] = []
    for name in options.model:
        metric = load_metric(name, device=str(team.device))
        source = load_metric(options.source, device=str(team.device)) if options.source else None
        if source and (source.name, source.revision) == (metric.name, metric.revision):
            source = None  # its own attack is no transfer
        run = _run_settings(options, metric, team)

        def evaluate(
            attacks: Any,
            *,
            attacked: Any = None,
            transfer: bool = False,
            metric: Any = metric,
            source: Any = source,
            run: Any = run,
        ) -> list[dict[str, Any]]:
            clean = source if transfer else None
            return session.records(replace(whole, attacked=attacked), metric, attacks, run, source=clean)

        side = getattr(metric, "image_size", 224)
        checks, records = suite.sanity(
            evaluate,
            balls,
            settings,
            transfer=source is not None,
            largest=partial(_largest, side=side),
            report=_say if team.rank == 0 and not options.quiet else lambda line: None,
        )
        failed += sum(not check.passed for check in checks)
        everything += records
        if team.rank == 0:
            say(f"{metric.name} on {whole.name} ({len(whole.triplets)} triplets)")
            show(f"\n{suite.markdown(checks)}\n\n")
            if options.out is not None:
                record = {"model": metric.describe(), "data": whole.settings(), "settings": asdict(settings)}
                record |= {"run": asdict(run), "source": source.describe() if source else None}
                record |= {"versions": records[0]["versions"], "checks": suite.as_json(checks)}
                write_json(options.out / f"sanity-{metric.name.replace('/', '_')}.json", record)
    if options.out is not None and team.rank == 0:
        _sanity_plots(everything, balls, options)
    if failed:
        raise ValueError(f"{failed} checks failed: the robust accuracy should not be quoted without saying so")


def _largest(ball: LpBall, side: int) -> float:
    """Give the radius at which a ball holds every image of this side."""
    return {"linf": 1.0, "l2": math.sqrt(3) * side, "l1": 3.0 * side**2}[ball.norm]


def _sanity_plots(records: Sequence[dict[str, Any]], balls: Sequence[LpBall], options: argparse.Namespace) -> None:
    """Draw both sweeps beside the results, where matplotlib is installed."""
    from rclip_metric.train.evaluation.results.leaderboard import plot, sweep_plot

    apgd = [record for record in records if record["threat"]["attack"] == "apgd"]
    radii = [record for record in apgd if record["threat"]["steps"] == options.steps]
    own = {(ball.norm, ball.eps) for ball in balls}
    steps = [record for record in apgd if (record["threat"]["norm"], record["threat"]["eps"]) in own]
    try:
        plot(radii, options.out / "radius.png")
        sweep_plot(steps, options.out / "iterations.png")
    except ValueError as error:
        _say(f"no plots: {error}")


def _zeroshot(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from rclip_metric.train.attacks.threat import LpBall
    from rclip_metric.train.data.classes import read_classes, read_prompts
    from rclip_metric.train.evaluation.tasks.zero_shot import PAPER_BALLS, ZeroShot, ZeroShotAttack, ZeroShotData
    from rclip_metric.train.metrics.paper import published_as

    _needs(options, "data")
    if options.limit:
        raise ValueError("--limit would keep the first classes only: use --per-class")
    folders, prompts = read_classes(options.data, options.per_class), read_prompts(options.prompts)
    if options.check:
        return _checked([image.path for image in folders.images], options)
    _needs(options, "model")
    words = prompts.words(folders.names)  # what does not fit is found before a model is loaded
    data = ZeroShotData(options.name or options.data.resolve().name, folders, prompts, limit=options.per_class)
    known = published_as("imagenet", len(folders.images), data.digest(), stated=options.published)
    data = replace(data, published=known)
    balls = PAPER_BALLS if options.eps is None else tuple(LpBall(options.norm, eps) for eps in options.eps)
    attacks = [ZeroShotAttack(ball, options.steps, options.targets).on(len(words)) for ball in balls]
    if options.attack == "none":
        attacks = []

    def task_of(name: str) -> ZeroShot:
        text, own = _text_of(name, options.text)
        return ZeroShot(data, text, own_text=own)

    _judge(options, task_of, attacks)


def _text_of(model: str, asked: str | None) -> tuple[Any, bool]:
    """Load the text tower that was asked for, by default the model's own, and say whether it is the model's own."""
    from rclip_metric.errors import CheckpointError
    from rclip_metric.train.models.text_weights import load_text

    if asked in (None, model):
        return load_text(model), True
    text = load_text(asked)
    try:
        own = load_text(model)
    except CheckpointError:  # it has none
        return text, False
    return text, text.source == own.source.partition(", the base of ")[0]


def _table(options: argparse.Namespace) -> None:
    from rclip_metric.train.evaluation.results.breakdown import breakdown
    from rclip_metric.train.evaluation.results.leaderboard import plot, sweep_plot, table
    from rclip_metric.train.evaluation.results.record import load_results
    from rclip_metric.train.evaluation.results.retrieval_table import retrieval_table
    from rclip_metric.train.runs.files import write_text

    records = load_results(options.results)
    if options.by and options.format != "markdown":
        raise ValueError(f"--by {options.by} gives a table in Markdown: leave --format {options.format} out")
    # What retrieval found is more than one number: in Markdown it has tables of its own, below the others.
    own = options.format == "markdown"
    apart = [record for record in records if own and "retrieval" in record]
    others = [record for record in records if not (own and "retrieval" in record)]
    if options.by:
        text = breakdown(records, options.by)
    else:
        parts = [table(others, options.format) if others else "", retrieval_table(apart)]
        text = "\n\n".join(part for part in parts if part)
    if not text:
        raise ValueError(f"none of the {len(records)} results has several {options.by}s: leave --by out")
    if options.out is not None:
        write_text(options.out, text)
    elif not (options.plot or options.sweep):
        show(f"{text}\n")
    if options.plot is not None:
        plot(records, options.plot)
    if options.sweep is not None:
        sweep_plot(records, options.sweep)


def _say(line: str) -> None:
    sys.stderr.write(f"{printable(line)}\n")


TASKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "nights": _nights,
    "bapps": _bapps,
    "jnd": _jnd,
    "things": _things,
    "zeroshot": _zeroshot,
    "cue-conflict": _cue_conflict,
    "neighbours": _neighbours,
    "filter": _filter,
    "retrieval": _retrieval,
    "inversion": _inversion,
    "sanity": _sanity,
    "table": _table,
}


def main(argv: list[str]) -> int:
    """Run `eval ...`: 0 when done, 2 for bad input; the Hub's errors are the caller's to report."""
    options = build_parser(TASKS).parse_args(argv)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        if getattr(options, "preset", None):
            say(json.dumps({"task": options.task, **PAPER.get(options.task, PAPER["nights"])}))
        else:
            run(options)
    except (ValueError, FloatingPointError) as error:
        complain(error)
        return 2
    return 0
