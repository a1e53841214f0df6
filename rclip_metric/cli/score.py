"""The commands `score` and `rank`: which files, which model, and how the distances are printed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rclip_metric.cli.pairs import score_all_pairs
from rclip_metric.cli.run import Run, UsageError, check_target, number
from rclip_metric.printing import say


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
    if args.format or args.below or args.top or args.output:
        raise UsageError("--format, --below, --top and --output go with --all-pairs")
    if all(path.is_dir() for path in paths):
        return _score_folders(args, *paths)
    if any(path.is_dir() for path in paths):
        raise UsageError(
            f"{paths[0]} and {paths[1]} are a folder and a file: pass two of a kind, or use rank for "
            "one image against a folder"
        )
    return _score_files(args, *paths)


def _score_files(args: argparse.Namespace, a: Path, b: Path) -> int:
    check_target(args.html, [a, b], html=True)
    from rclip_metric.retrieval import distances

    run = Run(args)
    with run.embeddings([a, b]) as embeddings:
        u, v = embeddings[a], embeddings[b]
    if u is None or v is None:
        return 2
    distance = distances(u, v[None], args.squared)[0]
    if args.json:
        say(json.dumps({**_pair(a, b, distance), **run.identity, "settings": run.settings}))
    else:
        say(f"{number(distance)}  {run.label}")
    if args.html:
        _write_pairs(args.html, [(distance, str(a), str(b))], run)
    return 0


def _score_folders(args: argparse.Namespace, a: Path, b: Path) -> int:
    from rclip_metric.retrieval import Summary, distances, pair_by_name

    pairing = pair_by_name(a, b)
    if not pairing.pairs:
        raise UsageError(f"no image in {a} has the name of one in {b}")
    files = [path for pair in pairing.pairs for path in pair]
    check_target(args.html, files, html=True)
    run = Run(args)
    run.remark_files("without a partner", pairing.unpaired)
    left_out = run.remark_left_out(a) + run.remark_left_out(b)
    summary = Summary()
    identity = json.dumps(run.identity)[1:]
    scored: list[tuple[float, str, str]] = []
    with run.embeddings(files, progress=not sys.stdout.isatty()) as embeddings:  # on a terminal, the lines are it
        for x, y in pairing.pairs:
            u, v = embeddings[x], embeddings[y]
            if u is None or v is None:
                continue
            distance = distances(u, v[None], args.squared)[0]
            summary.add(distance, str(x), str(y))
            say(f"{json.dumps(_pair(x, y, distance))[:-1]}, {identity}")
            if args.html:
                scored.append((distance, str(x), str(y)))
    unpaired = [str(path) for path in pairing.unpaired]
    code = run.finish(summary, run.record(summary, unpaired=unpaired, left_out=left_out))
    if args.html:
        _write_pairs(args.html, scored, run)
    return code


def rank(args: argparse.Namespace) -> int:
    """Print candidates by their distance to a reference, nearest first; return the exit code."""
    reference = Path(args.reference)
    if not reference.is_file():
        raise UsageError(f"{reference} is {'a folder' if reference.is_dir() else 'no file'}, expected an image")
    import torch

    from rclip_metric.images.reading import list_images
    from rclip_metric.retrieval import believed_order, nearest, significant

    candidates: list[Path] = []
    for path in map(Path, args.candidates):
        candidates += list_images(path) if path.is_dir() else [path]
    candidates = list(dict.fromkeys(candidates))
    if not candidates:
        raise UsageError(f"there are no images in {', '.join(args.candidates)}")
    if args.maps and not args.sheet:
        raise UsageError("--maps lays maps over pictures: say where to, with --sheet FILE")
    check_target(args.sheet, [reference, *candidates])
    run = Run(args)
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
        record = {"reference": str(reference), "ranking": ranked, "skipped": run.skipped}
        say(json.dumps({**record, **run.identity, "settings": run.settings}))
    else:
        say(f"nearest to {reference}  {run.label}")
        for place, (name, distance) in enumerate(ranking, start=1):
            say(f"{place:{len(str(len(ranking)))}}  {number(distance)}  {name}")
    if args.sheet:
        _write_ranking(args, str(reference), ranking, run)
    return 2 if run.skipped else 0


def _pair(a: Path, b: Path, distance: float) -> dict[str, Any]:
    from rclip_metric.retrieval import significant

    return {"a": str(a), "b": str(b), "distance": significant(distance)}


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


def _write_pairs(path: str, scored: list[tuple[float, str, str]], run: Run) -> None:
    from rclip_metric.cli.gallery import Group, Tile
    from rclip_metric.cli.sheet import show_pictures

    groups = [
        Group(
            f"{number(distance)}  {Path(a).name}",
            [Tile(a, "A", path=a), Tile(b, "B", path=b)],
            alike=True,
        )
        for distance, a, b in sorted(scored, key=lambda pair: -pair[0])
    ]
    show_pictures(path, f"{len(groups)} pairs, the largest distance first", groups, run, maps=True)
