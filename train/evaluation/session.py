"""From a command to result files: what is there is not done again, what was begun goes on, what is done is saved."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rclip_metric.train.evaluation.blocks import fingerprint
from rclip_metric.train.evaluation.collected import Attack, settings_of
from rclip_metric.train.evaluation.report import result_name, save
from rclip_metric.train.evaluation.robustness import RunSettings
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.distributed import ALONE, Team

Evaluate = Callable[[Sequence[Attack], "Path | None"], list[dict[str, Any]]]
"""Attacks and a folder for the journal -> a record per attack, or one of the clean accuracy for no attack."""


@dataclass(frozen=True)
class Session:
    """Where results go.

    Attributes:
        out: folder; None to keep nothing.
        overwrite: replace results of other settings that have the same name.
        team: torchrun's processes, of which the first writes.
    """

    out: Path | None = None
    overwrite: bool = False
    team: Team = ALONE

    def records(
        self,
        evaluate: Evaluate,
        *,
        task: str,
        metric: Metric,
        data: dict[str, Any],
        attacks: Sequence[Attack],
        run: RunSettings,
        source: Metric | None = None,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """The records of all attacks, evaluated or read, in order; each is on disk as soon as it exists.

        Args:
            evaluate: does what is not there yet; it may be asked for fewer attacks.
            task: as in the record.
            metric: judged.
            data: name, split and protocol, and whatever else the outcomes depend on.
            attacks: none for the clean accuracy.
            run: settings.
            source: of transferred attacks.
            limit: as in the record.

        Raises:
            ValueError: if a file of the same name holds a result of other settings.
        """
        if self.out is None:
            return evaluate(attacks, None)
        wanted: list[Attack | None] = list(attacks) or [None]
        marks = [
            fingerprint(settings_of(task, metric, data, [attack] if attack else [], run, source)) for attack in wanted
        ]
        paths = [self.out / self._name(metric, data, attack, run, source, limit) for attack in wanted]
        # The first process looks, and all act on what it saw.
        found, problem = self.team.gather(self._look(paths, marks))[0]
        if problem:
            raise ValueError(problem)
        missing = [index for index, record in enumerate(found) if record is None]
        if missing:
            journal = self.out / ".journal" / fingerprint({"marks": [marks[index] for index in missing]})
            chosen = [attack for index in missing if (attack := wanted[index]) is not None]
            for index, record in zip(missing, evaluate(chosen, journal), strict=True):
                record["settings"]["fingerprint"] = marks[index]
                found[index] = record
                if self.team.rank == 0:
                    save(paths[index], record)
            shutil.rmtree(journal, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run's journal is still there
                journal.parent.rmdir()
        return found

    def _name(
        self,
        metric: Metric,
        data: dict[str, Any],
        attack: Attack | None,
        run: RunSettings,
        source: Metric | None,
        limit: int | None,
    ) -> str:
        threat: dict[str, Any] = attack.describe() if attack else {"attack": "none"}
        if attack and attack.attack == "transfer" and source:
            threat["source"] = source.describe()
        if attack:
            threat["eps_text"] = str(attack.ball).split()[1]
        settings = {**asdict(run), "limit": limit}
        return result_name({"model": metric.describe(), "data": data, "threat": threat, "settings": settings})

    def _look(self, paths: Sequence[Path], marks: Sequence[str]) -> tuple[list[dict[str, Any] | None], str]:
        """Records that are there already, and a sentence if one is in the way."""
        found: list[dict[str, Any] | None] = []
        for path, mark in zip(paths, marks, strict=True):
            record = None
            if path.exists():
                try:
                    record = json.loads(path.read_text(encoding="utf-8"))
                    same = record["settings"].get("fingerprint") == mark
                except (ValueError, KeyError, TypeError, AttributeError):
                    same = False
                if not same and not self.overwrite:
                    problem = "holds a result of other data or settings: choose another --out, or add --overwrite"
                    return [], f"{path} {problem}"
                record = record if same else None
            found.append(record)
        return found, ""
