"""A job in its folder: what it is to do, what of it is done, and what comes out of it.

`job.json` states the settings and is there before anything else; `pools` is the index of the examples; a shard is done
if its part is in `decisions`. Each of them is there as a whole or not at all, so that a process may end at any moment.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rclip_metric.errors import FilterError
from rclip_metric.files import remove_unfinished, written_whole
from rclip_metric.filtering.shards import Shard, require_pyarrow
from rclip_metric.filtering.table import FORMATS, Parts, Row, best_format, write_table

FORMAT = "rclip-metric filter 1"
_NAMED = 20
"""Images that cannot be read and are named in the summary; all of them are in the table."""


@dataclass
class Outcome:
    """What a job came to, summed up row by row.

    Attributes:
        images: How many were decided on, or could not be read.
        decisions: Images of each class; "" counts those near to no example.
        classes: The same before any detector was heard.
        unreadable: How many could not be read.
        errors: File and reason of the first of them.
        identical: How many are a file of the examples, byte by byte.
        samples: For each class, some of its images with their shards, each as likely as any other.
    """

    images: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    errors: list[dict[str, str]] = field(default_factory=list)
    identical: int = 0
    samples: dict[str, list[tuple[int, Row]]] = field(default_factory=dict)

    def add(self, shard: int, row: Row, samples: int, dice: random.Random) -> None:
        """Take a row into account."""
        self.images += 1
        if row["error"] is not None:
            self.unreadable += 1
            if len(self.errors) < _NAMED:
                self.errors.append({"file": row["file"], "reason": row["error"]})
            return
        label = row["decision"] or ""
        self.decisions[label] += 1
        self.classes[row["class"] or ""] += 1
        self.identical += bool(row["identical"])
        kept = self.samples.setdefault(label, [])
        if len(kept) < samples:
            kept.append((shard, row))
        elif (place := dice.randrange(self.decisions[label])) < samples:
            kept[place] = (shard, row)


@dataclass(frozen=True)
class Job:
    """A folder that a job works in.

    Attributes:
        folder: The folder.
    """

    folder: Path

    @property
    def pools(self) -> Path:
        """Where the index of the examples is."""
        return self.folder / "pools"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out, as long as this one lives.

        Raises:
            FilterError: One is there already.
        """
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            with lock.acquire(timeout=0):
                yield
        except Timeout as error:
            raise FilterError(f"another process is at work in {self.folder}: wait for it, or end it.") from error

    def begin(self, settings: dict[str, Any], shards: Sequence[Shard]) -> tuple[Parts, bool]:
        """Find out whether the job that is to be done was begun here.

        Args:
            settings: What decisions depend on, JSON; `columns` are those of the table.
            shards: What is to be decided.

        Returns:
            Where decisions go, and whether `commit` has written down what is to be done.

        Raises:
            FilterError: Something else is in the folder, or another job.
        """
        self._clean()
        file = self.folder / "job.json"
        if not file.exists():
            if any(not entry.name.startswith(".") and entry != self.pools for entry in self.folder.iterdir()):
                raise FilterError(f"{self.folder} is not empty, and holds no job: give this one a folder of its own.")
            shutil.rmtree(self.pools, ignore_errors=True)  # of a run that was ended before it knew whether it can work
            return self._parts(settings, best_format()), False
        begun = self._read(file)
        told = _described(settings, shards)
        names = told.keys() | begun["job"].keys()
        if different := sorted(name for name in names if told.get(name) != begun["job"].get(name)):
            raise FilterError(
                f"{self.folder} holds a job of other settings ({', '.join(different)}): "
                "give this one an --out of its own, or remove that one."
            )
        if begun["parts"] == "parquet":
            require_pyarrow("the parts of this job")
        return self._parts(settings, begun["parts"]), True

    def commit(self, settings: dict[str, Any], shards: Sequence[Shard], parts: Parts) -> None:
        """Write down what is to be done."""
        told = {"format": FORMAT, "parts": parts.format, "job": _described(settings, shards)}
        with written_whole(self.folder / "job.json", flush=True) as partial:
            partial.write_text(json.dumps(told, indent=1) + "\n")

    def _parts(self, settings: dict[str, Any], format: str) -> Parts:
        return Parts(str(self.folder / "decisions"), tuple(settings["columns"]), format)

    def finish(self, parts: Parts, shards: int, samples: int = 0) -> Outcome:
        """Put the parts together as decisions.csv, and decisions.parquet where the parts are Parquet; sum them up.

        Args:
            parts: All there.
            shards: How many.
            samples: Images of each class to return.
        """
        outcome = Outcome()
        dice = random.Random(0)

        def blocks() -> Iterator[list[Row]]:
            for number in range(shards):
                block: list[Row] = []
                for row in parts.rows(number):
                    outcome.add(number, row, samples, dice)
                    block.append(row)
                    if len(block) == 4096:
                        yield block
                        block = []
                yield block

        write_table(self.folder / "decisions.csv", parts.columns, blocks())
        if parts.format == "parquet":
            parts.join(self.folder / "decisions.parquet", shards)
        return outcome

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, the last of all."""
        with written_whole(self.folder / "summary.json") as partial:
            partial.write_text(json.dumps(summary, indent=1) + "\n")

    def _clean(self) -> None:
        """Remove what a process that was killed left unfinished."""
        for name in ("job.json", "pools", "decisions.csv", "decisions.parquet", "summary.json", "gallery.html"):
            remove_unfinished(self.folder / name)
        for workshop in (self.folder / "decisions").glob(".part-*.partial"):
            shutil.rmtree(workshop, ignore_errors=True)

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            begun = json.loads(file.read_text())
            if begun["format"] != FORMAT or begun["parts"] not in FORMATS or not isinstance(begun["job"], dict):
                raise ValueError("it is of another kind")
        except (KeyError, TypeError, ValueError) as error:
            raise FilterError(
                f"{file} is damaged, or of another version: remove {self.folder} to begin anew."
            ) from error
        return dict(begun)


def _described(settings: dict[str, Any], shards: Sequence[Shard]) -> dict[str, Any]:
    """State what is to be done, and what would be void if it were replaced."""
    stamps = hashlib.blake2b(digest_size=16)
    for shard in shards:
        stamps.update(f"{shard.name}\0{shard.stamp()}\0".encode(errors="surrogateescape"))
    return {**json.loads(json.dumps(settings)), "shards": len(shards), "images": stamps.hexdigest()}
