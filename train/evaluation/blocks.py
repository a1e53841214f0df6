"""Work in blocks: shared out over torchrun's processes, journalled as it goes, resumed where it stopped."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rclip_metric.json_files import ANYTHING, NATURAL, OBJECT, Checker, Schema, at_most, shown
from rclip_metric.progress import progress
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.files import append_line, checksum, whole_lines

Block = TypeVar("Block")
Result = TypeVar("Result", bound=Mapping[str, Any])


def fingerprint(settings: dict[str, Any]) -> str:
    """Digest settings: work is resumed only under the same."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def run_blocks(
    blocks: Sequence[Block],
    evaluate: Callable[[Block], Result],
    *,
    settings: dict[str, Any],
    journal: Path | None = None,
    team: Team = ALONE,
    describe: str = "",
    sizes: Sequence[int] | None = None,
    quiet: bool = False,
) -> list[Result]:
    """Evaluate every block once, in any number of processes, and return all results, in order, in every process.

    What a block holds does not depend on the number of processes, so neither do the results. With a `journal`, every
    result is on disk before the next block begins: each process appends to a file of its own in that folder, and a
    later call, with the same settings and any number of processes, takes up all that it finds there. Processes on
    machines that do not share a disk each find their own. A line that a crash cut short is dropped; so is one that is
    not as it was written, with a warning.

    Args:
        blocks: what there is to do.
        evaluate: block -> a result that JSON can hold.
        settings: everything that the results depend on, JSON; a journal of other settings is left alone and unused.
        journal: folder for the journal; None for none. The caller removes it when the final result is written.
        team: from `join`.
        describe: label of the progress bar.
        sizes: samples per block, for the progress bar (default: 1 each).
        quiet: no progress bar.

    Raises:
        ValueError: in the processes that did their part, if another one failed; that one raises what it met.
    """
    name = fingerprint({**settings, "blocks": len(blocks)})
    everywhere: dict[int, Result] = {}
    for found in team.gather(_done(journal, name, len(blocks))):
        everywhere |= found
    mine = [index for index in range(len(blocks)) if index not in everywhere][team.rank :: team.count]

    sizes = sizes or [1] * len(blocks)
    finished: dict[int, Result] = {}
    failure: Exception | None = None
    begun = sum(sizes[i] for i in everywhere)
    hidden = quiet or team.rank > 0
    with progress(total=sum(sizes), initial=begun, label=describe, unit="sample", quiet=hidden) as bar:
        for index in mine:
            try:
                finished[index] = evaluate(blocks[index])
                if journal is not None:
                    line = {"block": index, "result": finished[index]}
                    append_line(journal / f"{name}-{team.rank}.jsonl", {**line, "checksum": checksum(line)})
            except Exception as error:
                failure = error  # told once the others, which wait for this process, know of it
                break
            except SystemExit as stop:  # a metric's own, whose exit code would pass for ours
                failure = ValueError(f"the metric ended the program (exit {stop.code!r}) and gave no number")
                break
            bar.update(sizes[index] * min(team.count, len(mine)))
    problems = [problem for problem in team.gather(failure and f"{type(failure).__name__}: {failure}") if problem]
    if failure is not None:
        raise failure
    if problems:
        raise ValueError(f"another process failed: {problems[0]}")
    for found in team.gather(finished):
        everywhere |= found
    return [everywhere[index] for index in range(len(blocks))]


def _done(journal: Path | None, name: str, blocks: int) -> dict[int, Any]:
    """Read the results of so many blocks from every process's file of a journal."""
    done: dict[int, Any] = {}
    schema: Schema = {"block": at_most(NATURAL, blocks - 1), "result": OBJECT, "*": ANYTHING}
    if journal is not None:
        for path in sorted(journal.glob(f"{name}-*.jsonl")):
            for line in whole_lines(path):
                if line.get("checksum") != checksum(line):
                    block = shown(line.get("block"))
                    damaged = f"{path} has a damaged line, of block {block}, which is evaluated again"
                    warnings.warn(damaged, RuntimeWarning, stacklevel=3)
                else:
                    Checker(str(path)).matches("", line, schema)
                    done[line["block"]] = line["result"]
    return done
