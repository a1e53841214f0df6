"""Results that are no records of accuracy (distances, pictures, times): read if they are there, else made and kept."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rclip_metric.train.evaluation.blocks import fingerprint
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.files import write_json


def kept(
    path: Path,
    settings: dict[str, Any],
    make: Callable[[Path], dict[str, Any]],
    *,
    team: Team = ALONE,
    overwrite: bool = False,
) -> dict[str, Any]:
    """What ``make`` gives, read from a file if the same settings made it, else made and written as a whole.

    Args:
        path: the file.
        settings: everything that the result depends on, JSON.
        make: gets a folder for its journal (see `run_blocks`), which goes when the result is written; gives JSON, the
            same in every process.
        team: torchrun's processes, of which the first looks and writes.
        overwrite: replace a result of other settings.

    Raises:
        ValueError: if the file holds something else, and whatever ``make`` raises.
    """
    mark = fingerprint(settings)
    found, problem = team.gather(_look(path, mark, overwrite))[0]
    if problem:
        raise ValueError(problem)
    if found is not None:
        return dict(found)
    journal = path.parent / ".journal" / mark
    record = {**make(journal), "fingerprint": mark}
    if team.rank == 0:
        write_json(path, record)
    team.gather(None)  # no journal goes before the result is there
    shutil.rmtree(journal, ignore_errors=True)
    with contextlib.suppress(OSError):  # another run's journal is still there
        journal.parent.rmdir()
    return record


def _look(path: Path, mark: str, overwrite: bool) -> tuple[dict[str, Any] | None, str]:
    """The result that is there already, or a sentence if something else is."""
    if not path.exists():
        return None, ""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = record["fingerprint"] == mark
    except (ValueError, KeyError, TypeError):
        same = False
    if same:
        return record, ""
    if overwrite:
        return None, ""
    return None, f"{path} holds a result of other data or settings: choose another --out, or add --overwrite"
