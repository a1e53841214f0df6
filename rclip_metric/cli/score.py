"""The commands `score` and `rank`: which files, which model, and how the distances are printed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING

from rclip_metric.cli.pairs import score_all_pairs
from rclip_metric.cli.run import Run, UsageError, check_target, number
from rclip_metric.cli.tables import target_of, written
from rclip_metric.printing import say

if TYPE_CHECKING:
    from rclip_metric.scoring import ScoredPair


def score(args: argparse.Namespace) -> int:
    """Print the distance of two files, the pairs of two folders, or all pairs in one; return the exit code."""
    paths = [Path(path) for path in args.paths]
    if len(paths) != (1 if args.all_pairs else 2):
        raise UsageError(f"got {len(paths)} paths, expected two files or two folders, or one folder with --all-pairs")
    for path in paths:
        if not path.exists():
            raise UsageError(f"there is no {path}")
    if args.all_pairs and args.html:
        raise UsageError("--html shows the pairs of two folders, not all pairs of one: use search or duplicates")
    if args.all_pairs:
        return score_all_pairs(args, paths[0])
    if all(path.is_dir() for path in paths):
        return _score_folders(args, *paths)
    if any(path.is_dir() for path in paths):
        raise UsageError(
            f"{paths[0]} and {paths[1]} are a folder and a file: pass two of a kind, or use rank for "
            "one image against a folder"
        )
    if args.format or args.below or args.top or args.output or args.recursive:
        raise UsageError("--format, --csv, --output, --below, --top and --recursive go with folders")
    return _score_files(args, *paths)


def _score_files(args: argparse.Namespace, a: Path, b: Path) -> int:
    check_target(args.html, [a, b], html=True)
    run = Run(args)
    rows = list(_scored(run, [(a, b)]))
    if not rows:
        return 2
    [row] = rows
    if args.json:
        say(json.dumps({**row.to_dict(), **run.identity, "settings": run.settings}))
    else:
        say(f"{number(row.distance)}  {run.label}")
    if args.html:
        _write_pairs(args.html, rows, run)
    return 0


def _score_folders(args: argparse.Namespace, a: Path, b: Path) -> int:
    import numpy as np

    from rclip_metric.retrieval import Summary, images_of, pair_by_name
    from rclip_metric.scoring import pairs_nearer

    pairing = pair_by_name(a, b, args.recursive)
    if not pairing.pairs:
        raise UsageError(f"no image in {a} has the name of one in {b}")
    files = [path for pair in pairing.pairs for path in pair]
    check_target(args.html, files, html=True)
    target = target_of(args, files, matrix=False)
    run = Run(args)
    run.remark_files("without a partner", pairing.unpaired)
    left_out = sum(
        run.remark_left_out(folder, images_of(folder, args.recursive).values(), args.recursive) for folder in (a, b)
    )
    summary = Summary()
    names = [str(file) for file in files]
    places = {name: place for place, name in enumerate(names)}
    scored: list[ScoredPair] = []
    looked: list[int] = []

    def counted() -> Iterator[ScoredPair]:
        # On a terminal, lines are all the progress that it takes.
        bar = bool(args.top or target.output) or not sys.stdout.isatty()
        rows: Iterable[ScoredPair] = _scored(run, pairing.pairs, progress=bar)
        if args.below:
            rows = pairs_nearer(
                rows, args.below, run.metric, batch_size=run.batch_size, on_skip=run.skip, on_look=looked.append
            )
        for row in rows:
            summary.add(row.distance, row.a, row.b)
            yield row

    about = {"folders": [str(a), str(b)], "below": args.below, "top": args.top}
    with written(target, names, f", {json.dumps(run.identity)[1:]}") as table:
        rows: Iterable[ScoredPair] = counted()
        if args.top is not None:
            rows = nlargest(args.top, rows, key=lambda row: row.distance)
        for row in rows:
            table.write(places[row.a], [places[row.b]], np.array([row.distance], dtype=np.float32))
            if args.html:
                scored.append(row)
        run.remark_second_look(sum(looked), "pairs")
        record = run.record(summary, unpaired=[str(path) for path in pairing.unpaired], left_out=left_out)
        table.finish(about, record)
    code = run.finish(summary, None if target.is_text_alone else record)
    if args.html:
        _write_pairs(args.html, scored, run)
    return code


def _scored(run: Run, pairs: Sequence[tuple[Path, Path]], progress: bool = True) -> Iterator[ScoredPair]:
    """Compute as `score_pairs` does, with a progress bar; what cannot be read is named and counted."""
    from rclip_metric.scoring import score_pairs

    files = list(dict.fromkeys(file for pair in pairs for file in pair))
    with run.working(progress) as bar:
        bar.start(len({os.path.realpath(file) for file in files}))
        run.remark_domain(files)
        yield from score_pairs(
            pairs,
            run.metric,
            batch_size=run.batch_size,
            workers=run.workers,
            on_skip=run.skip,
            on_done=bar.advance,
        )


def rank(args: argparse.Namespace) -> int:
    """Print candidates by their distance to a reference, nearest first; return the exit code."""
    reference = Path(args.reference)
    if not reference.is_file():
        raise UsageError(f"{reference} is {'a folder' if reference.is_dir() else 'no file'}, expected an image")
    import torch

    from rclip_metric.retrieval import believed_order, images_of, nearest, significant

    given: list[Path] = []
    for path in map(Path, args.candidates):
        given += images_of(path, args.recursive).values() if path.is_dir() else [path]
    given = list(dict.fromkeys(given))
    if not given:
        raise UsageError(f"there are no images in {', '.join(args.candidates)}")
    itself = [path for path in given if not args.with_query and _is_same(path, reference)]
    candidates = [path for path in given if path not in itself]
    if not candidates:
        raise UsageError(f"{itself[0]} is the reference itself, and nothing else is to be ranked: add --with-query")
    if args.maps and not args.sheet:
        raise UsageError("--maps lays maps over pictures: say where to, with --sheet FILE")
    check_target(args.sheet, [reference, *candidates])
    run = Run(args)
    for path in itself:
        run.remark(f"{path} is the reference itself and left out of its ranking; --with-query keeps it")
    with run.embeddings([reference, *candidates]) as embeddings:
        u = embeddings[reference]
        if u is None:
            return 2
        found = [(str(path), v) for path in candidates if (v := embeddings[path]) is not None]
    ranking: list[tuple[str, float]] = []
    if found:
        units = torch.stack([v for _, v in found])
        [distances], [places] = nearest(u[None], units, len(found), squared=args.squared)
        names = [found[place][0] for place in places.tolist()]
        with run.working():
            order = believed_order(
                run.metric,
                reference,
                [Path(name) for name in names],
                distances,
                min(args.top or len(found), len(found)),
                batch_size=run.batch_size,
                on_skip=run.skip,
            )
        run.remark_second_look(order.looked_again)
        ranking = list(zip([names[place] for place in order.places], order.distances.tolist(), strict=True))
    if args.json:
        ranked = [
            {"rank": place, "candidate": name, "distance": significant(distance)}
            for place, (name, distance) in enumerate(ranking, start=1)
        ]
        record = {"reference": str(reference), "ranking": ranked, "left_out": [str(path) for path in itself]}
        record["skipped"] = run.skipped
        say(json.dumps({**record, **run.identity, "settings": run.settings}))
    else:
        say(f"nearest to {reference}  {run.label}")
        for place, (name, distance) in enumerate(ranking, start=1):
            say(f"{place:{len(str(len(ranking)))}}  {number(distance)}  {name}")
    if args.sheet:
        _write_ranking(args, str(reference), ranking, run)
    return 2 if run.skipped else 0


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _write_ranking(args: argparse.Namespace, reference: str, ranking: list[tuple[str, float]], run: Run) -> None:
    from rclip_metric.cli.gallery import Group, Tile
    from rclip_metric.cli.sheet import show_pictures

    tiles = [Tile(reference, "the reference", path=reference)]
    tiles += [
        Tile(name, f"{place}.  {number(distance)}", path=name)
        for place, (name, distance) in enumerate(ranking, start=1)
    ]
    groups = [Group(reference, tiles)]
    show_pictures(args.sheet, "Ranked by distance, nearest first", groups, run, maps=args.maps)


def _write_pairs(path: str, scored: Sequence[ScoredPair], run: Run) -> None:
    from rclip_metric.cli.gallery import Group, Tile
    from rclip_metric.cli.sheet import show_pictures

    groups = [
        Group(
            f"{number(row.distance)}  {Path(row.a).name}",
            [Tile(row.a, "A", path=row.a), Tile(row.b, "B", path=row.b)],
            alike=True,
        )
        for row in sorted(scored, key=lambda row: -row.distance)
    ]
    show_pictures(path, f"{len(groups)} pairs, the largest distance first", groups, run, maps=True)
