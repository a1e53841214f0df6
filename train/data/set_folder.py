"""Folders of sets that are made here: begun aside, put in their place as a whole, and told by the record in them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rclip_metric.json_files import read_json


def written(done: Path, record: Mapping[str, Any]) -> bool:
    """Say whether `done`, which is written last, tells that this very set is there already.

    Args:
        done: the record of a set, JSON; what it holds beyond `record` does not count.
        record: all that the set depends on, as JSON reads it back.

    Raises:
        ValueError: if it is the record of another set, or damaged.
    """
    if not done.exists():
        return False
    found = read_json(done)
    if {key: found.get(key) for key in record} != record:
        raise ValueError(
            f"{done.parent} holds a set of other settings (see {done}): choose another folder or delete it"
        )
    return True


def begin(place: Path, done: str) -> Path:
    """Make an empty folder to be renamed to `place` at the end: no interrupted run leaves half a set there.

    Raises:
        ValueError: if `place` is there already; `done` is the name of the record that it lacks.
    """
    if place.exists():
        raise ValueError(
            f"{place} exists, and no {done} says that it was made here: choose another folder or delete it"
        )
    partial = place.with_name(place.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial
