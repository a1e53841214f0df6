"""The benchmark itself: every metric on every data set, resumed where it stopped, whatever fails on the way."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rclip_metric.errors import WeightsError
from rclip_metric.printing import printable
from rclip_metric.progress import progress
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.benchmark.board import board
from rclip_metric.train.benchmark.entry import Data, MetricEntry, first_triplets
from rclip_metric.train.benchmark.examples import example_triplets
from rclip_metric.train.benchmark.searches import read_searches
from rclip_metric.train.benchmark.settings import BenchmarkSettings, DataFolder
from rclip_metric.train.benchmark.tables import write_board
from rclip_metric.train.benchmark.timing import time_metrics
from rclip_metric.train.benchmark.timing_visit import TimingSettings
from rclip_metric.train.evaluation.attack import RunSettings, chunk_size_of
from rclip_metric.train.evaluation.records import Attack
from rclip_metric.train.evaluation.results.record import result_name
from rclip_metric.train.evaluation.session import Session, kept
from rclip_metric.train.evaluation.tasks import bapps_data, cue_conflict_data, nights_data, things_data
from rclip_metric.train.evaluation.tasks.self_distance import SelfDistance
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, at_equal_steps
from rclip_metric.train.metrics.base import Certified, EncoderMetric, Facts, Metric, metric_precision
from rclip_metric.train.metrics.paper import BAPPS_ATTACKED
from rclip_metric.train.metrics.registry import RANDOM, is_baseline, load_metric
from rclip_metric.train.runs.distributed import Team, join
from rclip_metric.train.runs.files import write_text
from rclip_metric.train.runs.machine import versions
from rclip_metric.train.runs.precision import bfloat16_is_fast
from rclip_metric.weights import get_spec, locate, model_names

Value = TypeVar("Value")


def benchmark(settings: BenchmarkSettings, *, command: str = "") -> dict[str, Any] | None:
    """Run a benchmark, and write its tables and its page after every metric.

    Args:
        settings: what to do.
        command: that asked for it, for the record.

    Returns:
        The board (JSON; what the page is drawn from), or None in all processes of torchrun but the first.

    Raises:
        ValueError: for data that cannot be read at all, two sets of one name, or a device that is not there.

    Example:
        >>> from tempfile import mkdtemp
        >>> from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
        >>> folder = Path(mkdtemp())
        >>> _ = write_scenes(folder, ScenesConfig(images=1, triplets=(0, 0, 4), pool=1, queries=1), quiet=True)
        >>> data = (DataFolder("nights", folder / "nights"),)
        >>> settings = BenchmarkSettings(("l2",), data, folder / "out", balls=(), image_size=16, quiet=True)
        >>> board = benchmark(settings)
        >>> board["metrics"][0]["results"]["scenes"]["clean"]["accuracy"]
        100.0
    """
    if settings.page:
        import rclip_metric.train.benchmark.page.page  # noqa: F401 - what is missing for it is told before any work
    run = _Run(settings, join(settings.device))
    sets = run.open_data()
    entries, searches = [MetricEntry(name) for name in settings.metrics], run.searches()
    lead = run.team.rank == 0

    def write() -> dict[str, Any] | None:
        if not lead:
            return None
        made = board(entries, sets, settings, command) | searches
        write_board(made, settings.out, page=settings.page)
        return made

    with progress(total=len(entries), label="metrics", unit="metric", quiet=settings.quiet or not lead) as bar:
        for entry in entries:
            bar.set_postfix_str(printable(entry.name))
            run.judge(entry, sets)
            write()
            bar.update()
    if settings.timing:
        run.time(entries)
    return write()


@dataclass(frozen=True)
class _Run:
    """One benchmark in one process."""

    settings: BenchmarkSettings
    team: Team

    def open_data(self) -> dict[str, Data]:
        """Open the data sets, by name."""
        sets: dict[str, Data] = {}
        for part in self.settings.data:
            data = self._open(part)
            name = f"{data.name} {part.format}" if data.name in sets else data.name  # one folder may hold two formats
            if name in sets:
                raise ValueError(f"two of the data sets are {data.name}: give each benchmark one of them")
            sets[name] = data
        return sets

    def _open(self, part: DataFolder) -> Data:
        limit, attacked, allow = self.settings.limit, self.settings.attacked, self.settings.allow_outside
        if part.format == "nights":
            return nights_data(part.folder, self.settings.split, limit, attacked=attacked, allow_outside=allow)
        if part.format == "bapps":
            return bapps_data(part.folder, attacked=attacked or BAPPS_ATTACKED, limit=limit)
        if part.format == "cue-conflict":
            return cue_conflict_data(part.folder, self.settings.classes, seed=self.settings.seed, limit=limit)
        return things_data(part.folder, limit=limit, allow_outside=allow)

    def searches(self) -> dict[str, list[dict[str, Any]]]:
        """Read what there is of retrieval and filters; ValueError in every process if any of it is damaged."""
        found, problem = {}, ""
        try:
            found = read_searches(self.settings.out) if self.team.rank == 0 else {}
        except ValueError as error:
            problem = str(error)
        if problem := self.team.first(problem):
            raise ValueError(problem)
        return found

    def judge(self, entry: MetricEntry, sets: dict[str, Data]) -> None:
        """Do everything that needs the metric built, but its timing."""
        first = first_triplets(sets)
        for name, data in sets.items():
            self._judge_on(entry, name, data, more=name == first)
            if entry.facts is None:  # it cannot be built
                return

    def _judge_on(self, entry: MetricEntry, name: str, data: Data, *, more: bool) -> None:
        metric = self._guarded(entry, "", lambda: self._build(entry, data))
        if metric is None:
            return
        found = self._guarded(entry, name, lambda: self._records(metric, data))
        if found is not None:
            entry.records[name] = found
            if more and isinstance(data, TwoAfcData):
                self._more(entry, metric, data)

    def _build(self, entry: MetricEntry, data: Data) -> Metric:
        # As eval does: BAPPS goes squashed through every metric, in the paper and here.
        resize: Any = "squash" if isinstance(data, TwoAfcData) and data.macro else "default"
        metric = load_metric(
            entry.name, device=str(self.team.device), resize=resize, image_size=self.settings.image_size
        )
        entry.facts, entry.about = getattr(metric, "facts", None) or Facts(), metric.describe()
        entry.image_size = getattr(metric, "image_size", None)
        entry.kind = _kind(entry.name, metric)
        return metric

    def _records(self, metric: Metric, data: Data) -> list[dict[str, Any]]:
        """Evaluate clean and attacked, then what can be certified."""
        if not isinstance(data, TwoAfcData):
            return self._evaluated(metric, data, [])
        records = self._evaluated(metric, data, self.settings.attacks())
        certificates = self.settings.certificates()
        if certificates and isinstance(metric, Certified):
            records += self._evaluated(metric, data, certificates)
        for smoothings in self.settings.smoothings():  # a journal for each: one more costs the others nothing
            records += self._evaluated(metric, data, smoothings)
        return records

    def _evaluated(
        self, metric: Metric, data: Data, attacks: Sequence[Attack], folder: str = ""
    ) -> list[dict[str, Any]]:
        return self._session(folder).records(data, metric, attacks, self._run_settings(metric))

    def _session(self, folder: str = "") -> Session:
        return Session(self.settings.out / folder, self.settings.overwrite, self.team, self.settings.quiet)

    def _more(self, entry: MetricEntry, metric: Metric, data: TwoAfcData) -> None:
        """Run the radius sweep, the direct attack and the examples, on one data set."""
        settings = self.settings
        name = result_name({"model": metric.describe(), "data": data.settings(), "threat": {"attack": "none"}})
        stem = name.partition("__")[0]
        if settings.sweep and settings.balls:
            attacked = [triplet for triplet in data.triplets if data.is_attacked(triplet)]
            few = replace(data, triplets=attacked[: settings.sweep], limit=settings.sweep)
            found = self._guarded(entry, "radii", lambda: self._evaluated(metric, few, settings.swept(), "sweep"))
            entry.sweep = found or []
        if data.attack_limit:  # what follows does not depend on it
            data = replace(data, attacked=None, attack_limit=None)
        for ball in settings.balls if settings.direct else ():
            found_direct = self._guarded(entry, f"direct {ball}", partial(self._direct, metric, data, ball, stem))
            entry.direct += [] if found_direct is None else [found_direct]
        if settings.examples and settings.balls:
            path = settings.out / "examples" / f"{stem}__{data.name}.json"
            shown = self._guarded(entry, "examples", lambda: self._examples(path, metric, data)["examples"])
            entry.examples = shown or []

    def _direct(self, metric: Metric, data: TwoAfcData, ball: LpBall, stem: str) -> dict[str, Any]:
        words = str(ball).replace(" ", "-").replace("/", "_")
        path = self.settings.out / "direct" / f"{stem}__{data.name}__{words}.json"
        task = SelfDistance(data, ball, self.settings.direct, self.settings.steps)
        return self._session().single(path, task, metric, self._run_settings(metric))

    def _examples(self, path: Path, metric: Metric, data: TwoAfcData) -> dict[str, Any]:
        """Show a few triplets before and after the first attack."""
        run, attack = self._run_settings(metric), self.settings.attacks()[0]
        triplets = at_equal_steps(data.triplets, self.settings.examples)
        about = {"model": metric.describe(), "data": data.settings(), "attack": attack.describe(), "seed": run.seed}
        return kept(
            path,
            about | {"triplets": [triplet.key for triplet in triplets], "precision": run.precision},
            lambda _: {"examples": example_triplets(metric, triplets, attack, run, data.load)},
            team=self.team,
            overwrite=self.settings.overwrite,
        )

    def _run_settings(self, metric: Metric) -> RunSettings:
        run = self.settings.run(chunk_size_of(metric))
        return replace(run, precision=self.team.first(metric_precision(run.precision, metric)))

    def time(self, entries: list[MetricEntry]) -> None:
        """Time each metric that could be built; the first process alone measures."""
        built = [entry for entry in entries if entry.facts is not None]
        if self.team.rank == 0 and built:
            names = [entry.name for entry in built]
            sizes = TimingSettings(
                str(self.team.device), self.settings.timing_batch_sizes, image_size=self.settings.image_size
            )
            fast = ["float32", *(["bfloat16"] if bfloat16_is_fast(self.team.device) else [])]
            precisions = list(self.settings.timing_dtypes) or fast
            about: dict[str, Any] = {"device": sizes.device, "image_size": sizes.image_size, "precisions": precisions}
            about |= {"batch_sizes": list(sizes.batch_sizes), "metrics": names, "versions": versions()}
            measure = partial(time_metrics, names, sizes, precisions=precisions, quiet=self.settings.quiet)
            # One run for all of them, or ratios would compare different hours of the machine.
            path = self.settings.out / "timing.json"
            found = kept(path, about, lambda _: {"metrics": measure()}, overwrite=True)
            if any("failed" in timing for timing in found["metrics"].values()):
                path.unlink()  # what failed is tried again when the same command is given again
            for entry in built:
                entry.timing = found["metrics"][entry.name].get("timing")
                if problem := found["metrics"][entry.name].get("failed"):
                    entry.failures.append(f"timing: {problem}")
        self.team.wait()

    def _guarded(self, entry: MetricEntry, what: str, do: Callable[[], Value]) -> Value | None:
        """Do something; None in every process if it failed in one of them, with a sentence in the entry.

        An error that is no sentence of ours also leaves its traceback, in failures/.
        """
        value, problem = None, ""
        try:
            value = do()
        except (ValueError, WeightsError, FloatingPointError) as error:
            problem = str(error)
        except (Exception, SystemExit) as error:
            lines = str(error).splitlines() or [""]
            problem = f"{type(error).__name__}: {lines[0]}"
            path = self.settings.out / "failures" / f"{entry.name.replace('/', '_')}-{self.team.rank}.txt"
            write_text(path, traceback.format_exc())
        problems = [found for found in self.team.gather(problem) if found]
        if problems:
            entry.failures.append(f"{what}: {problems[0]}" if what else problems[0])
            return None
        return value


def _kind(name: str, metric: Metric) -> str:
    """Tell what was adversarially fine-tuned from what was not, and both from what a user brought."""
    if not isinstance(metric, EncoderMetric):
        return "baseline" if is_baseline(name) else "yours"
    if name.startswith(("open_clip:", "timm:")):
        return "baseline"
    plain = name.removesuffix(RANDOM)
    training = (get_spec(plain) if plain in model_names() else locate(plain).spec).training
    return "ours" if training and training.get("eps") else "baseline"
