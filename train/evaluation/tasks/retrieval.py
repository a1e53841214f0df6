"""Retrieval: does a query find what belongs to it, clean and when an attack has moved it? (paper, V-B; Table IX)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rclip_metric.train.attacks.base import ConfirmedResult
from rclip_metric.train.data.contents import MISSING, file_digests
from rclip_metric.train.data.retrieval import Query, RetrievalSet, read_retrieval
from rclip_metric.train.evaluation.attack import AttackSettings, Decisions, attack_block, refuse_nan
from rclip_metric.train.evaluation.database import Database
from rclip_metric.train.evaluation.image_set import ImageSet, embeds
from rclip_metric.train.evaluation.ranking import AT, DIFFICULTIES, chance, mean_average_precision, precision_at
from rclip_metric.train.evaluation.records import (
    Block,
    Evaluation,
    SampleRow,
    attack_cost,
    cost,
    empty_block,
)
from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.run import Task
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.metrics.paper import LANDMARK_SETS, published_as

NEIGHBOURS = 16  # of each kind that an attack knows which knows the database
_LARGEST = 1e6  # margin: of a similarity that may be infinite, such as PSNR


class Found(NamedTuple):
    """What one ranking found: average precision, and precision at 1, 5 and 10, by difficulty; None for no positives."""

    ap: dict[str, float | None]
    at: dict[str, list[float] | None]


class RetrievalRow(SampleRow, total=False):
    """A query: Medium's average precisions where a sample has its scores, and beside them everything found."""

    found: list[Found]  # clean, then under each attack
    chance: dict[str, float | None]


@dataclass(frozen=True)
class RetrievalData(Task[Query]):
    """Queries that rank a database by similarity, and are scored by the average precision of what belongs to them.

    The score of a query, and the "accuracy" of a record, is that of Medium: of all that belongs to it, easy and hard.
    `retrieval` in a record has Easy and Hard as well where the set tells them apart, and precision at 1, 5 and 10; the
    margin of a query is the similarity of its nearest positive minus that of the nearest other image.

    An attack with the loss "embedding" makes the query as different from itself as the metric can be made to find it
    (eq. 6), and knows nothing of the database. One with the loss "neighbours" knows it: it lowers the mean similarity
    to the 16 nearest positives, and raises that to whichever of the 16 nearest others is nearest. Both are judged at
    their point of highest loss.

    Attributes:
        name: its own, e.g. the folder's.
        data: database and queries.
        limit: how many queries were asked for, None for all.
        published: "roxford5k" or "rparis6k" if that is what it is (`published_as`).
        database: embedded; made when it is needed.

    Example:
        >>> query = Query("cat/1.png", Path("1.png"), easy=(1,), junk=(0,))
        >>> pets = RetrievalSet("classes", "pets", (Path("1.png"), Path("2.png")), ("1.png", "2.png"), (query,))
        >>> RetrievalData("pets", pets).describe()["queries"]
        1
    """

    task: ClassVar[str] = "retrieval"
    noun: ClassVar[str] = "query"
    name: str
    data: RetrievalSet
    limit: int | None = None
    published: str | None = None
    database: Database | None = field(default=None, compare=False, repr=False)

    @property
    def samples(self) -> Sequence[Query]:
        """The queries."""
        return self.data.queries

    @property
    def difficulties(self) -> tuple[str, ...]:
        """Those that the set tells apart: M alone where nothing is hard."""
        return tuple(DIFFICULTIES) if any(query.hard for query in self.samples) else ("M",)

    def files(self, sample: Query) -> list[Path]:
        """List the query's image."""
        return [sample.path]

    def paths(self) -> list[Path]:
        """List queries and database."""
        return [*Task.paths(self), *self.data.images]

    def reader(self, metric: Metric) -> Callable[[Path], Tensor]:
        """Read the part of a query's image that counts."""
        by_path = {query.path: query for query in self.samples}
        return lambda path: metric.preprocess(by_path[path].image())

    def settings(self) -> dict[str, Any]:
        """Describe the data, JSON: names, and what belongs to what, go in as a digest."""
        return {"name": self.name, "split": None, "protocol": self.data.kind, "digest": self.data.digest()}

    def describe(self) -> dict[str, Any]:
        """Describe the data in the record: JSON."""
        about = {**self.settings(), "queries": len(self.samples), "database": len(self.data.images)}
        return {**about, "without_positives": list(self.data.without)} | (
            {"published": self.published} if self.published else {}
        )

    def blocks(self, on: Evaluation) -> list[Any]:
        """Embed the database, then evaluate the queries; the first block tells what the database took."""
        if not embeds(on.metric) and not on.quiet and on.team.rank == 0:
            passes = f"{len(self.samples):,} x {len(self.data.images):,} pairs for the clean queries and each attack"
            tqdm.write(f"{on.metric.name} has no embeddings and compares {passes}", file=sys.stderr)
        label = f"{self.name} {on.metric.name} database"
        database = Database.of(self.data.images, on, self.depends_on(on), label)
        blocks = [dict(block) for block in Task.blocks(replace(self, database=database), on)]
        first = {
            name: value + database.cost[name] for name, value in blocks[0]["costs"][0].items() if name in database.cost
        }
        blocks[0] |= {"costs": [{**blocks[0]["costs"][0], **first}, *blocks[0]["costs"][1:]]}
        blocks[0]["missing"] = [[row, told] for row, told in sorted(database.problems.items())]
        return blocks

    def judge(self, block: Sequence[Query], images: ImageSet, on: Evaluation) -> Any:
        """Evaluate a block: rank the database for the clean queries, then for those of every attack."""
        begun, passes = time.perf_counter(), images.passes
        read, unreadable = self.readable(block, images, None)
        missing = self._database.problems.keys()
        samples = [query for query in read if set(query.positives) - missing and self._others(query)]
        unreadable += [
            f"query {query.key}: of the images that belong to it, or of all others, none can be read"
            for query in read
            if query not in samples
        ]
        if not samples:
            return empty_block(unreadable, len(on.attacks))
        points = images.pixels([query.path for query in samples])
        similarities = self._ranked(points, samples, "", on)
        compared = 0 if embeds(on.metric) else len(samples) * len(self._database.rows)
        rows = self._rows(samples, similarities)
        costs = [cost(time.perf_counter() - begun, images.passes - passes + len(samples) + compared)]
        for attack in on.attacks:
            confirmed = self._attacked(samples, similarities, points, images, attack, on)
            after = self._ranked(confirmed.attacked.images, samples, f" under {attack.attack}", on)
            for row, moved in zip(rows, self._rows(samples, after), strict=True):
                row["attacks"].append((moved["clean"], moved["margin"]))
                row["found"] += moved["found"]
            costs.append(attack_cost(confirmed, 2 * len(samples) + compared))
        return Block(rows=rows, unreadable=unreadable, costs=costs)  # type: ignore[typeddict-item]

    def _others(self, query: Query) -> bool:
        """Say whether an image is left that does not belong to a query."""
        known = {*query.positives, *query.junk, *self._database.problems}
        return len(known) < len(self.data.images)

    @property
    def _database(self) -> Database:
        if self.database is None:
            raise ValueError("the database is embedded by `blocks`, which comes first")
        return self.database

    def _ranked(self, points: Tensor, samples: Sequence[Query], when: str, on: Evaluation) -> Tensor:
        """Compare queries with the database: (n, N)."""
        found = self._database.similarities(on.metric, points)
        refuse_nan(found, [query.key for query in samples], f"{on.metric.name}'s similarity{when}")
        return found

    def _rows(self, samples: Sequence[Query], similarities: Tensor) -> list[RetrievalRow]:
        """Rank the database for n queries by similarities (n, N), of equal ones the first row first, and score that."""
        missing = frozenset(self._database.problems)
        truths = [_without(query, missing) for query in samples]
        ranks = (-similarities).argsort(dim=1, stable=True).numpy()
        precision, shares = mean_average_precision(ranks, truths), precision_at(ranks, truths, AT)
        rows = []
        for i, (query, truth) in enumerate(zip(samples, truths, strict=True)):
            ap = {name: _known(precision[name]["aps"][i]) for name in DIFFICULTIES}
            at = {
                name: None if ap[name] is None else [shares[name][k]["values"][i] for k in AT] for name in DIFFICULTIES
            }
            margin = _margin(similarities[i], truth)
            chances = {name: _chance(truth, name, similarities.shape[1]) for name in DIFFICULTIES}
            row = RetrievalRow(key=query.key, split="all", clean=ap["M"] or 0.0, tie=margin == 0, margin=margin)
            rows.append(row | {"attacks": [], "found": [Found(ap, at)], "chance": chances})
        return rows

    def _attacked(
        self,
        samples: Sequence[Query],
        similarities: Tensor,
        points: Tensor,
        images: ImageSet,
        attack: AttackSettings,
        on: Evaluation,
    ) -> ConfirmedResult:
        """Attack queries; the similarities are those of the clean ones."""
        if attack.loss == "neighbours":
            nearest = [_nearest(row, _without(query, frozenset(self._database.problems)))
                       for row, query in zip(similarities, samples, strict=True)]  # fmt: skip
            rule, kept = _towards_others, lambda judging: self._database.kept(judging, nearest)
        else:
            rule, kept = _away, lambda judging: images.kept(judging, [[query.path] for query in samples])
        keys = [query.key for query in samples]
        return attack_block(on.metric, points, kept, rule, attack, on.run, keys, half=on.half, source=on.source)

    def records(self, blocks: list[Any], on: Evaluation) -> list[dict[str, Any]]:
        """Add `retrieval`: what each difficulty found, and the average precisions of all queries.

        Raises:
            ValueError: if no query could be evaluated.
        """
        records = super().records(blocks, on)
        rows = [row for block in blocks for row in block["rows"]]
        missing = blocks[0]["missing"]
        said = self._said(missing)
        for number, record in enumerate(records):
            record["retrieval"] = self._summaries(rows, number + 1 if on.attacks else None)
            record["data"]["unreadable_images"] = [told for _, told in missing]
            record["warnings"] += said
        return records

    def _summaries(self, rows: Sequence[RetrievalRow], attack: int | None) -> dict[str, Any]:
        found: dict[str, Any] = {"difficulties": list(self.difficulties), "precision_at": list(AT)}
        levels = {name: [one for row in rows if (one := row["chance"][name]) is not None] for name in self.difficulties}
        found["chance"] = {name: round(100 * sum(level) / len(level), 4) for name, level in levels.items() if level}
        for column, state in (("clean", 0), ("robust", attack)):
            found[column] = None if state is None else {
                name: part for name in self.difficulties if (part := _summary(rows, name, state))
            }  # fmt: skip
        found["queries"] = [row["key"] for row in rows]
        found["average_precision"] = {
            column: {name: [_short(Found(*row["found"][state]).ap[name]) for row in rows] for name in self.difficulties}
            for column, state in (("clean", 0), ("robust", attack))
            if state is not None
        }
        return found

    def _copies(self) -> list[str]:
        """Find queries whose file is in the database, byte by byte, and not known to be junk."""
        digests, rows = file_digests(self.paths()), dict[str, list[int]]()
        for row, path in enumerate(self.data.images):
            rows.setdefault(digests[path], []).append(row)
        found = []
        for query in self.samples:
            same = set() if digests[query.path] == MISSING else {*rows.get(digests[query.path], ())} - {*query.junk}
            if same:
                found.append(f"{query.key} is {self.data.names[min(same)]}")
        return found

    def _said(self, missing: Sequence[tuple[int, str]]) -> list[str]:
        """Say what was left out of the database, and who asked for nothing."""
        said = []
        if missing:
            gone = {row for row, _ in missing}
            lost = sum(bool(gone.intersection(query.positives)) for query in self.samples)
            said.append(
                f"{len(missing)} of {len(self.data.images)} images of the database could not be read and were left "
                f"out, which takes something away from {lost} queries; the first: {missing[0][1]}"
            )
        if copies := self._copies():
            said.append(
                f"{len(copies)} queries are in the database under another name, and are found at once; the first: "
                f"{copies[0]}"
            )
        if without := self.data.without:
            said.append(
                f"{len(without)} queries were left out, to which no image of the database belongs, or every one; "
                f"the first: {without[0]}"
            )
        return said


def _without(query: Query, missing: frozenset[int]) -> dict[str, list[int]]:
    """Call what cannot be read junk."""
    truth = {name: [row for row in getattr(query, name) if row not in missing] for name in ("easy", "hard")}
    return {**truth, "junk": sorted({*query.junk, *missing})}


def _known(value: float) -> float | None:
    return None if value != value else value


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _chance(truth: Mapping[str, Sequence[int]], difficulty: str, size: int) -> float | None:
    wanted, left_out = (sum(len(truth[name]) for name in names) for names in DIFFICULTIES[difficulty])
    return chance(size - left_out, wanted) if wanted else None


def _parted(similarities: Tensor, truth: Mapping[str, Sequence[int]]) -> tuple[list[int], list[int]]:
    """List positives and others, nearest first; of equally near ones the first row first."""
    order = (-similarities).argsort(stable=True).tolist()
    positives, junk = {*truth["easy"], *truth["hard"]}, set(truth["junk"])
    return [row for row in order if row in positives], [row for row in order if row not in positives | junk]


def _margin(similarities: Tensor, truth: Mapping[str, Sequence[int]]) -> float:
    positives, others = _parted(similarities, truth)
    nearest, other = similarities[positives[0]].item(), similarities[others[0]].item()
    return 0.0 if nearest == other else min(max(nearest - other, -_LARGEST), _LARGEST)


def _nearest(similarities: Tensor, truth: Mapping[str, Sequence[int]]) -> list[int]:
    """List the nearest positives, then the nearest others; where there are fewer, they come again."""
    rows = []
    for part in _parted(similarities, truth):
        rows += [part[i % min(len(part), NEIGHBOURS)] for i in range(NEIGHBOURS)]
    return rows


def _away(similarities: Tensor, indices: Tensor) -> Decisions:
    """Raise what an image lacks of the similarity to its clean self, (n, 1); nothing is won before the end."""
    return _unending(-similarities[:, 0])


def _towards_others(similarities: Tensor, indices: Tensor) -> Decisions:
    """Raise the nearest other image above the positives, of similarities (n, 2 * NEIGHBOURS)."""
    positives, others = similarities.split(NEIGHBOURS, 1)
    return _unending(others.amax(1) - positives.mean(1))


def _unending(loss: Tensor) -> Decisions:
    """Decide nothing: the attack runs to its end, and a NaN is met there."""
    margin = torch.where(loss.isnan(), loss, torch.ones_like(loss)).detach()
    return Decisions(loss, margin, torch.zeros_like(loss, dtype=torch.bool))


def _summary(rows: Sequence[RetrievalRow], difficulty: str, state: int) -> dict[str, Any] | None:
    """Average what a difficulty found, in percent, with intervals over queries; None where nobody asked for it."""
    found = [Found(*row["found"][state]) for row in rows]
    precision = [ap for one in found if (ap := one.ap[difficulty]) is not None]
    shares = np.array([one.at[difficulty] for one in found if one.at[difficulty] is not None])  # (n, 3)
    if not precision:
        return None

    def mean(values: Sequence[float]) -> dict[str, Any]:
        return summary(values, [""] * len(values), macro=False)

    return {"map": mean(precision), "precision_at": {str(k): mean(shares[:, i].tolist()) for i, k in enumerate(AT)}}


def retrieval_data(
    data: str,
    limit: int | None = None,
    *,
    classes: Path | None = None,
    name: str | None = None,
    published: bool = False,
    allow_outside: bool = False,
) -> RetrievalData:
    """Read a set to retrieve from.

    Args:
        data: KIND:PLACE, see `read_retrieval`.
        limit: only the first queries; the database stays whole.
        classes: a table of classes, see `read_retrieval`.
        name: of the set (default: the folder's or the table's).
        published: the user states that it is the published set of this kind, see `published_as`.
        allow_outside: names may lead out of the folder, see `place_in`.

    Raises:
        ValueError: as `read_retrieval` and `published_as` raise it.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> for file in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        ...     (folder / file).parent.mkdir(exist_ok=True)
        ...     (folder / file).touch()
        >>> data = retrieval_data(f"classes:{folder}", limit=2, name="pets")
        >>> [query.key for query in data.samples], len(data.data.images)
        (['cat/1.png', 'dog/1.png'], 4)
    """
    found = read_retrieval(data, classes=classes, allow_outside=allow_outside)
    known = None
    if published and found.kind not in LANDMARK_SETS:
        raise ValueError(f"{data}: the paper has no numbers for such a set: leave --published out")
    if found.kind in LANDMARK_SETS:
        images = len(found.images)
        if published and images != LANDMARK_SETS[found.kind]:
            raise ValueError(
                f"{data} has {images:,} images, and the published set {found.kind} has {LANDMARK_SETS[found.kind]:,}: "
                "leave --published out"
            )
        asked = len(found.queries) + len(found.without)
        known = published_as(found.kind, asked, found.digest(), stated=published)
    if limit is not None:
        found = replace(found, queries=found.queries[:limit])
    return RetrievalData(name or found.name, found, limit, known)
