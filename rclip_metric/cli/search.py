"""The commands `index`, `search` and `duplicates`."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.cli.run import Run, UsageError, as_made, check_target, number, number_of_files
from rclip_metric.printing import say

if TYPE_CHECKING:
    from rclip_metric.retrieval import Approximation, DuplicateGroup, Hits, ImageIndex

_SHOWN = 20


def build(args: argparse.Namespace) -> int:
    """Index a folder; return the exit code."""
    import torch

    from rclip_metric.retrieval import ImageIndex

    _require_folder(args.folder)
    run = Run(args)
    with run.working() as progress:
        index = ImageIndex.build(
            args.folder,
            run.metric,
            path=args.index,
            source=args.model,
            dtype=torch.float16 if args.half else torch.float32,
            batch_size=run.batch_size,
            on_skip=run.skip,
            on_start=progress.start,
            on_done=progress.advance,
            workers=args.workers,
        )
    facts = {"index": args.index, "images": len(index), "skipped": run.skipped}
    _tell(run, facts, f"{len(index)} images in {args.index}, skipped {number_of_files(len(run.skipped))}; {run.label}")
    return 2 if run.skipped else 0


def update(args: argparse.Namespace) -> int:
    """Bring the index of a folder up to date; return the exit code."""
    run, index = _open(args)
    with run.working() as progress:
        found = index.update(
            args.folder,
            batch_size=run.batch_size,
            on_skip=run.skip,
            on_start=progress.start,
            on_done=progress.advance,
            workers=args.workers,
        )
    facts: dict[str, Any] = {"added": found.added, "changed": found.changed, "dropped": found.dropped}
    counts = ", ".join(f"{len(names)} {what}" for what, names in facts.items())
    facts |= {"unchanged": found.unchanged, "skipped": run.skipped}
    _tell(run, facts, f"{counts}, {found.unchanged} as they were, skipped {number_of_files(len(run.skipped))}")
    return 2 if run.skipped else 0


def approximate(args: argparse.Namespace) -> int:
    """Prepare an index for approximate search; return the exit code."""
    run, index = _open(args)
    found = index.approximate()
    _tell(run, {"index": args.index, **found._asdict()}, _recall(found))
    return 0


def info(args: argparse.Namespace) -> int:
    """Say what an index holds, without loading its model; return the exit code."""
    from collections import Counter

    from rclip_metric.retrieval import SearchableStorage, open_storage

    storage = open_storage(Path(args.index))
    about = storage.about()
    rows = storage.rows()
    approximation = storage.approximation() if isinstance(storage, SearchableStorage) else None
    labels = Counter(row.label for row in rows if row.label is not None)
    if args.json:
        known = approximation and approximation._asdict()
        say(json.dumps({**about, "images": len(rows), "labels": dict(labels), "approximate": known}))
        return 0
    metric = about["metric"]
    say(f"{len(rows)} images, embeddings of {about['dimension']} numbers in {about['dtype']}")
    say(f"model   {metric.get('name')}@{metric.get('revision')}")
    say(f"folder  {about.get('root') or 'none: images were added one by one'}")
    if approximation is not None:
        say(f"search  {_recall(approximation)}")
    for label, count in labels.most_common(_SHOWN):
        say(f"{count:7}  {label}")
    if len(labels) > _SHOWN:
        say(f"and {len(labels) - _SHOWN} labels more")
    return 0


def search(args: argparse.Namespace) -> int:
    """Print the nearest images of each query; return the exit code."""
    queries = [Path(query) for query in args.queries]
    for query in queries:
        if not query.is_file():
            raise UsageError(f"{query} is {'a folder' if query.is_dir() else 'no file'}, expected an image")
    if args.maps and not (args.html or args.sheet):
        raise UsageError("--maps lays maps over pictures: say where to, with --sheet FILE or --html FILE")
    check_target(args.html, queries, html=True)
    check_target(args.sheet, queries)
    import torch

    from rclip_metric.retrieval import search_again

    run, index = _open(args, in_memory=False)
    if args.approximate and index.approximation is not None:
        run.remark(_recall(index.approximation))
    with run.embeddings(queries) as embeddings:
        units = [(query, u) for query in queries if (u := embeddings[query]) is not None]
    hits: Any = []
    if units:
        k = args.k or min(10, max(1, len(index)))  # of an empty one the index itself says so
        hits = index.search(torch.stack([u for _, u in units]).float(), k=k, approximate=args.approximate)
        how: dict[str, Any] = {"approximate": args.approximate, "batch_size": run.batch_size, "on_skip": run.skip}
        with run.working():
            again = [search_again(index, *unit, one, **how) for unit, one in zip(units, hits, strict=True)]
        hits = [one for one, _ in again]
        run.remark_second_look(sum(count for _, count in again))
    found = list(zip((str(query) for query, _ in units), hits, strict=True))
    _print_hits(args, found, run)
    for path in filter(None, (args.html, args.sheet)):
        _write_page(path, found, run, args.maps)
    return 2 if run.skipped else 0


def duplicates(args: argparse.Namespace) -> int:
    """Print groups of images that are nearly the same; return the exit code."""
    from rclip_metric.retrieval import find_duplicates

    check_target(args.html, [], html=True)
    run, index = _open(args)
    groups = find_duplicates(index, args.below)
    if args.html:
        _write_duplicates_page(args.html, groups, run)
    spare = [row for group in groups for row, _ in group.others]
    size = sum(row.size or 0 for row in spare)
    if args.json:
        say(json.dumps({"below": args.below, "groups": [_group(group) for group in groups], **run.identity}))
    else:
        for group in groups:
            say(f"keep    {group.keep.path or group.keep.id}")
            for row, distance in group.others:
                same = "  the same file" if row.digest is not None and row.digest == group.keep.digest else ""
                say(f"{number(distance)}  {row.path or row.id}{same}")
    run.remark(
        f"{len(groups)} groups; {len(spare)} of {len(index)} images ({size / 1e6:.1f} MB) are nearer than "
        f"{args.below:g} to one that stays; nothing was deleted; {run.label}"
    )
    return 2 if run.skipped else 0


def _open(args: argparse.Namespace, in_memory: bool = True) -> tuple[Run, ImageIndex]:
    """Open an index with its own model, unless another is asked for; make one in memory of a folder of images."""
    from rclip_metric.retrieval import ImageIndex, is_index, open_storage

    _require_folder(args.index)
    path = Path(args.index)
    if is_index(path):
        as_made(args, open_storage(path).about())
        run = Run(args)
        return run, ImageIndex.open(path, run.metric, in_memory=in_memory)
    args.model = args.model or "r-clip-f"
    run = Run(args)
    with run.working() as progress:
        index = ImageIndex.build(
            path,
            run.metric,
            batch_size=run.batch_size,
            on_skip=run.skip,
            on_start=progress.start,
            on_done=progress.advance,
            workers=args.workers,
        )
    return run, index


def _recall(found: Approximation) -> str:
    return (
        f"approximate search finds {100 * found.recall:.1f} % of the {found.k} nearest, measured on {found.sample} of "
        f"the {found.images} images that there were"
    )


def _require_folder(path: str) -> None:
    if not Path(path).is_dir():
        raise UsageError(f"{path} is {'a file' if Path(path).exists() else 'no folder'}, expected a folder")


def _tell(run: Run, facts: dict[str, Any], words: str) -> None:
    if run.json:
        say(json.dumps({**facts, **run.identity, "settings": run.settings}))
    else:
        say(words)


def _hits(hits: Hits) -> Iterator[dict[str, Any]]:
    from rclip_metric.retrieval import significant

    distances, similarities = hits.distances.tolist(), hits.similarities.tolist()
    columns = zip(hits.ids, hits.labels, hits.paths, distances, similarities, strict=True)
    for place, (name, label, path, distance, similarity) in enumerate(columns, start=1):
        yield {
            "rank": place,
            "id": name,
            "label": label,
            "path": path,
            "distance": significant(distance),
            "similarity": significant(similarity),
        }


def _print_hits(args: argparse.Namespace, found: Sequence[tuple[str, Hits]], run: Run) -> None:
    if args.json:
        for query, hits in found:
            say(json.dumps({"query": query, "hits": list(_hits(hits)), **run.identity}))
        return
    if args.csv:
        lines = io.StringIO()
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(["query", "rank", "id", "label", "path", "distance", "similarity"])
        table.writerows([query, *hit.values()] for query, hits in found for hit in _hits(hits))
        for line in lines.getvalue().splitlines():
            say(line)
        return
    for query, hits in found:
        say(f"nearest to {query}  {run.label}")
        for hit in _hits(hits):
            label = f"  ({hit['label']})" if hit["label"] else ""
            say(
                f"{hit['rank']:{len(str(len(hits.ids)))}}  {number(hit['distance'])}  {hit['path'] or hit['id']}{label}"
            )


def _write_page(path: str, found: Sequence[tuple[str, Hits]], run: Run, maps: bool) -> None:
    from rclip_metric.cli.gallery import Group, Tile
    from rclip_metric.cli.sheet import show_pictures

    groups = [
        Group(
            query,
            [
                Tile(query, "the query", path=query),
                *(Tile(hit["id"], number(hit["distance"]), hit["label"], hit["path"]) for hit in _hits(hits)),
            ],
        )
        for query, hits in found
    ]
    show_pictures(path, "The nearest images", groups, run, maps=maps)


def _write_duplicates_page(path: str, groups: Sequence[DuplicateGroup], run: Run) -> None:
    from rclip_metric.cli.gallery import Group, Tile
    from rclip_metric.cli.sheet import show_pictures

    pages = [
        Group(
            "copies of one file" if group.identical else f"{len(group.others) + 1} images",
            [
                Tile(group.keep.id, "keep", path=group.keep.path),
                *(Tile(row.id, number(distance), path=row.path) for row, distance in group.others),
            ],
        )
        for group in groups
    ]
    show_pictures(path, "Images that are nearly the same", pages, run)


def _group(group: DuplicateGroup) -> dict[str, Any]:
    from rclip_metric.retrieval import significant

    others = [{"id": row.id, "path": row.path, "distance": significant(distance)} for row, distance in group.others]
    return {"keep": {"id": group.keep.id, "path": group.keep.path}, "others": others, "identical": group.identical}
