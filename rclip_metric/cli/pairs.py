"""`score --all-pairs`: the distances of all images of a folder, as lines, a table or a matrix."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rclip_metric.cli.run import Run, UsageError
from rclip_metric.cli.tables import target_of, written

if TYPE_CHECKING:
    from torch import Tensor

    from rclip_metric.cli.tables import Distances


def score_all_pairs(args: argparse.Namespace, folder: Path) -> int:
    """Write the pairs of a folder's images; return the exit code."""
    from rclip_metric.retrieval import Summary, images_of
    from rclip_metric.scoring import embedded

    images = images_of(folder, args.recursive)
    files = list(images.values())
    if len(files) < 2:
        raise UsageError(f"{folder} has {len(files)} images, expected two or more")
    target = target_of(args, files, matrix=True)
    run = Run(args)
    left_out = run.remark_left_out(folder, files, args.recursive)
    with run.embeddings(files) as embeddings:
        names, units = embedded(embeddings, images)
    chosen = {"below": args.below, "top": args.top}
    about = {"folder": str(folder), **chosen, **run.identity, "settings": run.settings}
    summary = Summary()
    whole = target.kind == "npy"
    with written(target, names) as table:
        if target.kind == "jsonl":
            table.put(f"{json.dumps({'header': {**about, 'images': len(names)}})}\n")
        for i, others, distances in _rows(run, args, [images[name] for name in names], units, whole):
            table.write(i, others, distances)
            after = slice(i + 1, None) if whole else slice(None)  # a matrix has each pair twice
            summary.add_row(names[i], [names[j] for j in others[after]], distances[after])
        record = run.record(summary, images=len(names), left_out=left_out)
        table.finish({**about, "images": names}, record)
    return run.finish(summary, None if target.is_text_alone else record)


def _rows(
    run: Run, args: argparse.Namespace, files: Sequence[Path], units: Tensor, whole: bool
) -> Iterator[tuple[int, Sequence[int], Distances]]:
    from rclip_metric.retrieval import all_pairs, believed_pairs

    if not whole:
        with run.working():
            chosen = believed_pairs(
                run.metric,
                files,
                units,
                top=args.top,
                below=args.below,
                batch_size=run.batch_size,
                on_skip=run.skip,
            )
        run.remark_second_look(chosen.looked_again)
        yield from chosen
        return
    for i, row in all_pairs(units, args.squared, whole=True):
        yield i, range(len(units)), row.numpy()
