"""From a command to result files: what is there is not done again, what was begun goes on, what is done is saved."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rclip_metric.train.evaluation.attack import RunSettings
from rclip_metric.train.evaluation.blocks import fingerprint
from rclip_metric.train.evaluation.records import Attack, Evaluation
from rclip_metric.train.evaluation.results.record import check_result, result_name, save
from rclip_metric.train.evaluation.results.schema import check_record
from rclip_metric.train.evaluation.run import Task, evaluate
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.claim import claimed
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.files import read_sealed, write_sealed


@dataclass(frozen=True)
class Mark:
    """What tells a result from those of other data or settings.

    Attributes:
        now: of everything that it depends on.
        before: as it was before what images and weights hold was part of it. Results of that time have no checksum;
            what their images held is not known, and they count as the same where everything else is.

    Example:
        >>> model = {"name": "tiny", "revision": "sha256:61091ef75036"}
        >>> one, other = ({"model": {**model, "weights": "1"}, "content": content} for content in "ab")
        >>> Mark.of(one).now == Mark.of(other).now, Mark.of(one).before == Mark.of({"model": model}).before
        (False, True)
    """

    now: str
    before: str

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Mark:
        """Digest settings."""
        return cls(fingerprint(settings), fingerprint(_as_before(settings)))


def _as_before(value: Any) -> Any:
    """Take out of settings what was not part of them before."""
    if isinstance(value, dict):
        digest = "weights" if "name" in value and isinstance(value.get("weights"), str) else None  # else a metric's own
        return {key: _as_before(item) for key, item in value.items() if key not in ("content", digest)}
    return [_as_before(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Session:
    """Where results go.

    Attributes:
        out: folder; None to keep nothing.
        overwrite: replace results of other settings that have the same name.
        team: torchrun's processes, of which the first writes.
        quiet: no progress bar.

    Example:
        >>> from tempfile import mkdtemp
        >>> from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
        >>> from rclip_metric.train.evaluation.tasks import nights_data
        >>> from rclip_metric.train.metrics import load_metric
        >>> folder = Path(mkdtemp())
        >>> _ = write_scenes(folder, ScenesConfig(images=1, triplets=(0, 0, 4), pool=1, queries=1), quiet=True)
        >>> session, data = Session(folder / "results", quiet=True), nights_data(folder / "nights")
        >>> _ = session.records(data, load_metric("l2", image_size=16), [], RunSettings())
        >>> [path.name for path in session.out.iterdir()]
        ['l2__scenes-test__clean.json']
    """

    out: Path | None = None
    overwrite: bool = False
    team: Team = ALONE
    quiet: bool = False

    def records(
        self,
        task: Task[Any],
        metric: Metric,
        attacks: Sequence[Attack],
        run: RunSettings,
        *,
        source: Metric | None = None,
    ) -> list[dict[str, Any]]:
        """Evaluate or read the records of all attacks, in order; each is on disk as soon as it exists.

        Args:
            task: the samples, and what is asked of them.
            metric: judged.
            attacks: none for the clean accuracy.
            run: settings.
            source: of transferred attacks.

        Raises:
            ValueError: if a file of the same name holds a result of other settings or is damaged, and as `evaluate`
                raises it.
        """

        def make(chosen: Sequence[Attack], journal: Path | None) -> list[dict[str, Any]]:
            common: dict[str, Any] = {"source": source, "journal": journal, "team": self.team, "quiet": self.quiet}
            return evaluate(metric, task, chosen, run, **common)

        if self.out is None:
            return make(attacks, None)
        data = task.settings()
        wanted: list[Attack | None] = list(attacks) or [None]
        content = self.team.first(task.content() if self.team.rank == 0 else "")
        paths, marks = [], []
        for attack in wanted:
            one = Evaluation(metric, [attack] if attack else [], run, source)
            threat = one.threat(attack) | ({"eps_text": str(attack.ball).split()[1]} if attack else {})
            about = {"model": metric.describe(), "data": data, "threat": threat}
            paths.append(self.out / result_name({**about, "settings": {**asdict(run), "limit": task.limit}}))
            marks.append(Mark.of({**task.identity(one), "content": content}))
        found = _found(paths, marks, self.overwrite, self.team)
        self._remark([record for record in found if record is not None])
        missing = [index for index, record in enumerate(found) if record is None]
        if missing:
            journal = self.out / ".journal" / fingerprint({"marks": [marks[index].now for index in missing]})
            chosen = [attack for index in missing if (attack := wanted[index]) is not None]
            with _claimed([paths[index] for index in missing], self.team):
                for index, record in zip(missing, make(chosen, journal), strict=True):
                    record["settings"]["fingerprint"] = marks[index].now
                    found[index] = record
                    if self.team.rank == 0:
                        save(paths[index], record)
                _done(journal, self.team)
        return [record for record in found if record is not None]

    def _remark(self, found: Sequence[dict[str, Any]]) -> None:
        """Say of how many results that are there it is not known what their images held."""
        old = sum("content" not in record["data"] for record in found)
        if old and not self.quiet and self.team.rank == 0:
            told = f"{self.out}: {old} of {len(found)} results do not say what their images held"
            tqdm.write(f"{told}, and are taken as they are: --overwrite makes them anew", file=sys.stderr)

    def single(self, path: Path, task: Task[Any], metric: Metric, run: RunSettings) -> dict[str, Any]:
        """Evaluate or read the one record of a task that is not about accuracy, in a file of a given name; see `kept`.

        The journal is in `.journal` beside it until the result is written; other `sizes` of blocks make no other
        result.
        """
        identity = task.identity(Evaluation(metric, run=run))
        identity.pop("sizes", None)
        identity["content"] = self.team.first(task.content() if self.team.rank == 0 else "")

        def make(journal: Path) -> dict[str, Any]:
            return evaluate(metric, task, run=run, journal=journal, team=self.team, quiet=self.quiet)[0]

        return kept(path, identity, make, team=self.team, overwrite=self.overwrite)


def kept(
    path: Path,
    settings: dict[str, Any],
    make: Callable[[Path], dict[str, Any]],
    *,
    team: Team = ALONE,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Read a result that is no record of accuracy (distances, pictures, times), or make and write it.

    Args:
        path: the file.
        settings: everything that the result depends on, JSON.
        make: gets a folder for its journal (see `run_blocks`), which goes when the result is written; gives JSON, the
            same in every process.
        team: torchrun's processes, of which the first looks and writes.
        overwrite: replace a result of other settings.

    Raises:
        ValueError: if the file holds something else or is damaged, and whatever `make` raises.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "distances.json"
        >>> kept(path, {"seed": 0}, lambda journal: {"distances": [0.1]})["distances"]
        [0.1]
        >>> kept(path, {"seed": 0}, lambda journal: {"distances": []})["distances"]  # it is there already
        [0.1]
    """
    mark = Mark.of(settings)
    [found] = _found([path], [mark], overwrite, team)
    if found is not None:
        return found
    journal = path.parent / ".journal" / mark.now
    with _claimed([path], team):
        record = {**make(journal), "fingerprint": mark.now}
        if team.rank == 0:
            write_sealed(path, record)
        _done(journal, team)
    return record


@contextlib.contextmanager
def _claimed(paths: Sequence[Path], team: Team) -> Iterator[None]:
    """Keep other runs from making the same results; those of other models or threats may go on beside this one."""
    with contextlib.ExitStack() as held:
        problem = ""
        try:
            for path in sorted(set(paths)) if team.rank == 0 else ():
                held.enter_context(claimed(path))
        except ValueError as error:
            problem = str(error)
        if problem := team.first(problem):
            raise ValueError(problem)
        yield


def _found(paths: Sequence[Path], marks: Sequence[Mark], overwrite: bool, team: Team) -> list[dict[str, Any] | None]:
    """Read results that are there already, None for the others; the first process looks, all act on what it saw."""
    found: list[dict[str, Any] | None] = []
    problem = ""
    for path, mark in zip(paths, marks, strict=True):
        record, told = _read(path, mark) if team.rank == 0 else (None, "")
        if told and not overwrite:
            problem = problem or f"{told}, or add --overwrite"
        found.append(record)
    found, problem = team.first((found, problem))
    if problem:
        raise ValueError(problem)
    return found


def _read(path: Path, mark: Mark) -> tuple[dict[str, Any] | None, str]:
    """Read a result that has the mark; None and a sentence where there is another one, or it is damaged."""
    if not path.exists():
        return None, ""
    try:
        record, sealed = read_sealed(path)
        if isinstance(record, dict) and "schema" in record:
            check_result(path, check_record(record, str(path)), sealed)
    except ValueError as error:
        return None, f"{str(error).removesuffix('.')}: remove it"
    stated = record.get("settings", {}) if isinstance(record, dict) else None
    known = [record.get("fingerprint"), stated.get("fingerprint")] if isinstance(stated, dict) else []
    if mark.now in known or (not sealed and mark.before in known):
        return record, ""
    return None, f"{path} holds a result of other data or settings: choose another --out"


def _done(journal: Path, team: Team) -> None:
    """Remove a journal, once its results are there."""
    team.wait()
    shutil.rmtree(journal, ignore_errors=True)
    with contextlib.suppress(OSError):  # another run's journal is still there
        journal.parent.rmdir()
