"""Just noticeable differences: do the pairs that people call the same come first, by distance? (Zhang et al. 2018)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from rclip_metric.train.data.jnd import JND_SPLITS, JndPair, read_jnd
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.results.labels import PEOPLE, SCENES
from rclip_metric.train.evaluation.results.record import result_name, short_revision
from rclip_metric.train.evaluation.run import Task
from rclip_metric.train.evaluation.tasks.two_afc import loader_at
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.machine import device_record, versions

SIDE = 64  # pixels, as LPIPS reports it (082bb24, data/dataset/jnd_dataset.py)
COLUMNS = ("keys", "distances", "same", "unreadable")
RESAMPLES = 1000


@dataclass(frozen=True)
class JndData(Task[JndPair]):
    """Pairs, sorted by the metric's distance: their average precision as a detector of what people call the same.

    Attributes:
        name: its own, e.g. the folder's.
        pairs: in a fixed order.
        side: of the square that images are squashed to first, bilinearly, whatever the metric makes of that.
        judges: who called what the same, in words.
        limit: how many of each split were asked for, None for all.

    Example:
        >>> pair = JndPair("cnn/0", (Path("p0.png"), Path("p1.png")), same=1.0, split="cnn")
        >>> JndData("mine", [pair]).files(pair)[1].name
        'p1.png'
    """

    task: ClassVar[str] = "jnd"
    noun: ClassVar[str] = "pair"
    name: str
    pairs: Sequence[JndPair]
    side: int = SIDE
    judges: str = PEOPLE
    limit: int | None = None

    @property
    def samples(self) -> Sequence[JndPair]:
        """The pairs."""
        return self.pairs

    def files(self, sample: JndPair) -> tuple[Path, Path]:
        """List both."""
        return sample.files

    def reader(self, metric: Metric) -> Callable[[Path], Tensor]:
        """Read as the published loader does, for every metric."""
        return loader_at(self.side, "bilinear")

    def settings(self) -> dict[str, Any]:
        """Describe what the result depends on, JSON: names and shares go in as a digest."""
        rows = "\n".join(f"{pair.key} {pair.same}" for pair in self.pairs)
        digest = hashlib.sha256(rows.encode()).hexdigest()[:16]
        return {"name": self.name, "protocol": "mAP", "side": self.side, "interpolation": "bilinear", "pairs": digest}

    def identity(self, on: Evaluation) -> dict[str, Any]:
        """Gather metric, data and sizes: nothing is drawn."""
        about = {"task": self.task, "model": on.metric.describe(), "data": self.settings()}
        return {**about, "sizes": [on.run.batch_size, on.run.chunk_size]}

    def file_name(self, metric: Metric) -> str:
        """Name the file of a metric's record."""
        about = {"model": metric.describe(), "data": {"name": self.name, "protocol": "jnd"}}
        return result_name({**about, "threat": {"attack": "none"}, "settings": {"limit": self.limit}})

    def judge(self, block: Sequence[JndPair], images: ImageSet, on: Evaluation) -> dict[str, Any]:
        """Measure the distances of a block: `COLUMNS`, and seconds."""
        begun = time.perf_counter()
        pairs, unreadable = self.readable(block, images, on.metric)
        found = {"keys": [pair.key for pair in pairs], "same": [pair.same for pair in pairs], "unreadable": unreadable}
        distances = []
        if pairs:
            firsts, seconds = [pair.files[0] for pair in pairs], [[pair.files[1]] for pair in pairs]
            similarities = images.similarities(on.metric, firsts, seconds)
            if not bool(similarities.isfinite().all()):
                raise ValueError(
                    f"{on.metric.name} gives similarities that are not finite: sorting pairs needs a metric that is "
                    "bounded where images are identical"
                )
            distances = [float(f"{-value:.7g}") for value in similarities[:, 0].tolist()]  # as float32 is
        return {**found, "distances": distances, "seconds": time.perf_counter() - begun}

    def records(self, blocks: list[Any], on: Evaluation) -> list[dict[str, Any]]:
        """Make one record, of columns; the tables of accuracy have no row for it.

        Raises:
            ValueError: if no pair could be read, or of a split nobody calls any pair the same.
        """
        keys, distances, same, unreadable = ([v for block in blocks for v in block[name]] for name in COLUMNS)
        if not keys:
            raise ValueError(f"none of the {len(unreadable)} pairs of {self.name} could be read: {unreadable[0]}")
        parts: dict[str, tuple[list[float], list[float]]] = {}
        for key, distance, share in zip(keys, distances, same, strict=True):
            one = parts.setdefault(key.partition("/")[0], ([], []))
            one[0].append(distance)
            one[1].append(share)
        data = {**self.settings(), "judges": self.judges, "samples": len(keys), "unreadable": unreadable}
        made: dict[str, Any] = {"task": self.task, "model": on.metric.describe(), "data": data}
        made |= {"precision": mean_precision(parts), "keys": keys, "distances": distances, "same": same}
        made |= {"settings": {**asdict(on.run), "limit": self.limit}, "versions": versions()}
        seconds = round(sum(block["seconds"] for block in blocks), 3)
        return [made | {"device": device_record(on.metric.device), "processes": on.team.count, "seconds": seconds}]


def average_precision(distances: Sequence[float] | np.ndarray, same: Sequence[float] | np.ndarray) -> float:
    """Compute the area under precision and recall of "the same", pairs taken from the least distance on.

    As LPIPS has it (082bb24, `score_jnd_dataset` and `voc_ap`): a pair that a share s of the people call the same is s
    of a true positive and 1 - s of a false one, and precision at a recall is the highest at that recall or beyond.
    Pairs at equal distances are taken together, whatever order they stand in.

    Args:
        distances: of the pairs.
        same: share of people who call each the same.

    Returns:
        In [0, 1].

    Raises:
        ValueError: if nobody calls any pair the same: there is no recall.

    Example:
        >>> average_precision([0.1, 0.2, 0.3], [1.0, 0.0, 1.0])  # precision 1 up to half of them, then 2/3
        0.8333333333333333
    """
    values, shares = np.asarray(distances, np.float64), np.asarray(same, np.float64)
    if not shares.sum() > 0:
        raise ValueError(f"nobody calls any of the {len(shares)} pairs the same: average precision is not defined")
    order = np.argsort(values, kind="stable")
    last = np.append(np.diff(values[order]) > 0, True)  # of the pairs at one distance
    true = np.cumsum(shares[order])[last]
    precision = true / (np.flatnonzero(last) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(np.append(0.0, true)) * best) / true[-1])


def mean_precision(parts: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """Average the precision of splits, with the 95 % interval over pairs drawn anew within each: percent.

    Args:
        parts: distances and shares of each split.

    Example:
        >>> found = mean_precision({"cnn": ([0.1, 0.2, 0.3], [1.0, 0.0, 1.0])})
        >>> found["mean"], found["splits"]
        (83.3333, {'cnn': 83.3333})
    """
    each = {name: average_precision(*part) for name, part in parts.items()}
    generator = np.random.default_rng(0)
    drawn = np.zeros(RESAMPLES)
    for distances, same in (map(np.asarray, part) for part in parts.values()):
        for number in range(RESAMPLES):
            rows = generator.integers(len(same), size=len(same))
            # A draw in which nobody calls any pair the same has found none.
            drawn[number] += average_precision(distances[rows], same[rows]) if same[rows].any() else 0.0
    low, high = np.percentile(drawn / len(parts), (2.5, 97.5))
    return {
        "mean": round(100 * sum(each.values()) / len(each), 4),
        "interval_95": [round(100 * float(low), 4), round(100 * float(high), 4)],
        "splits": {name: round(100 * value, 4) for name, value in each.items()},
    }


def jnd_data(
    folder: Path, splits: Sequence[str] | None = None, *, limit: int | None = None, name: str | None = None
) -> JndData:
    """Read the JND part of BAPPS.

    Args:
        folder: with jnd/val.
        splits: default both.
        limit: only the first pairs of each split.
        name: of the set (default: the folder's, "scenes-jnd" for the scenes').

    Raises:
        ValueError: as `read_jnd` raises it.

    Example:
        >>> from tempfile import mkdtemp
        >>> from rclip_metric.train.data.scenes import write_jnd
        >>> folder = Path(mkdtemp())
        >>> _ = write_jnd(folder, per_split=3, quiet=True)
        >>> data = jnd_data(folder, limit=2)
        >>> data.name, len(data.pairs)
        ('scenes-jnd', 4)
    """
    pairs = read_jnd(folder, splits or JND_SPLITS)
    kept = [pair for split in splits or JND_SPLITS for pair in [p for p in pairs if p.split == split][:limit]]
    drawn = (folder / "jnd.json").exists()
    own, judges = ("scenes-jnd", SCENES) if drawn else (folder.resolve().name, PEOPLE)
    return JndData(name or own, kept, judges=judges, limit=limit)


def jnd_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Write records as a table in Markdown, in percent."""
    splits = list(dict.fromkeys(split for record in records for split in record["precision"]["splits"]))
    lines = [f"| model | data | pairs | {' | '.join(splits)} | mAP |", "|---|---|---:|" + "---:|" * (len(splits) + 1)]
    for record in records:
        model, found = record["model"], record["precision"]
        low, high = found["interval_95"]
        name = " @ ".join(filter(None, (model["name"], short_revision(model.get("revision")))))
        cells = [name, record["data"]["name"], str(record["data"]["samples"])]
        cells += [f"{found['splits'][split]:.1f}" if split in found["splits"] else "-" for split in splits]
        lines.append("| " + " | ".join([*cells, f"{found['mean']:.1f} ({low:.1f} - {high:.1f})"]) + " |")
    return "\n".join(lines)
