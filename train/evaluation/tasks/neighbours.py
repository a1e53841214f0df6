"""Nearest neighbours of queries, clean and under attack: the paper's Figures 3, 11 and 12.

An attack that knows nothing of the database moves the query as far from itself as the metric lets it (eq. 6); what the
metric then calls most alike is looked at, and how much of what it said before is still there is counted.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rclip_metric.images.reading import list_images_below
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.contents import contents_digest
from rclip_metric.train.data.images import NamedImage
from rclip_metric.train.evaluation.attack import refuse_nan
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.record import masked, result_name, rounding
from rclip_metric.train.evaluation.run import Task
from rclip_metric.train.evaluation.searched import Points, Searched, drawn, most_alike
from rclip_metric.train.evaluation.tasks.self_distance import moved_away
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.machine import device_record, versions

STEPS = 50  # of APGD, as in Figures 11 and 12
_COLUMNS = ("keys", "itself", "unreadable")
_COSTS = ("evaluations", "zero_gradients", "nonfinite_gradients", "seconds", "violation")


@dataclass(frozen=True)
class Neighbours(Task[NamedImage]):
    """The k images of a database that are most like each query, and most like it once it is attacked.

    Images of the database that are a query's own file, or whose pixels are its own as the metric sees them, are left
    out of its neighbours. The metric is always attacked in float32.

    Attributes:
        queries: their keys differ.
        database: what is searched.
        ball: the feasible set.
        k: how many neighbours.
        steps: of APGD, from one random start per query, seeded by the run's seed and the query's key.

    Raises:
        ValueError: for no queries, two of one key, a k below 1 or above what the database holds.

    Example:
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> from rclip_metric.train.evaluation.searched import Folder
        >>> from rclip_metric.train.evaluation.run import evaluate
        >>> from rclip_metric.train.metrics import load_metric
        >>> folder = Path(mkdtemp())
        >>> for level in (100, 110, 130, 160):
        ...     Image.new("RGB", (16, 16), (level, level, level)).save(folder / f"{level}.png")
        >>> query = NamedImage("110.png", folder / "110.png")
        >>> task = Neighbours([query], Folder(folder), LpBall("linf", 8 / 255), k=1, steps=3)
        >>> [record] = evaluate(load_metric("linf", image_size=16), task, quiet=True)
        >>> record["neighbours"][0]["clean"][0]["image"]
        '100.png'
    """

    task: ClassVar[str] = "neighbours"
    noun: ClassVar[str] = "query"
    queries: Sequence[NamedImage]
    database: Searched
    ball: LpBall
    k: int = 5
    steps: int = STEPS

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.queries or len({query.key for query in self.queries}) < len(self.queries):
            raise ValueError(f"the {len(self.queries)} queries need to be one or more, each with a key of its own")
        if self.k < 1 or self.steps < 0:
            raise ValueError(f"neighbours need a k of at least 1 and 0 steps, and have {self.k} and {self.steps}")
        own = any(self.database.holds(query.path) for query in self.queries)
        if self.k > len(self.database) - own:
            beside = " beside the query" if own else ""
            there = f"{len(self.database) - own} images{beside}"
            raise ValueError(f"k is {self.k}, and {self.database.name} has {there}: ask for fewer neighbours")

    @property
    def samples(self) -> Sequence[NamedImage]:
        """The queries."""
        return self.queries

    def files(self, sample: NamedImage) -> list[Path]:
        """List the query's image."""
        return [sample.path]

    def threat(self) -> dict[str, Any]:
        """Describe the attack: JSON."""
        about: dict[str, Any] = {"attack": "apgd", "norm": self.ball.norm, "eps": self.ball.eps}
        about |= {"eps_text": str(self.ball).split()[1], "steps": self.steps, "restarts": 1, "loss": "dissimilarity"}
        return about

    def settings(self) -> dict[str, Any]:
        """Describe what is asked, JSON."""
        asked = {"queries": [query.key for query in self.queries], "database": self.database.settings()}
        return {"name": self.database.name, **asked, "k": self.k, "threat": self.threat()}

    def content(self) -> str:
        """Digest what queries and database hold."""
        return f"{contents_digest([query.path for query in self.queries])}-{self.database.content()}"

    def identity(self, on: Evaluation) -> dict[str, Any]:
        """Gather metric, seed and sizes, but not the precision."""
        about = {"task": self.task, "model": on.metric.describe(), "seed": on.run.seed, **self.settings()}
        return {**about, "sizes": [on.run.batch_size, on.run.chunk_size]}

    def file_name(self, metric: Metric) -> str:
        """Name the file of a metric's record."""
        data = {"name": self.database.name, "protocol": f"{self.k}-neighbours"}
        threat = {key: value for key, value in self.threat().items() if key != "loss"}
        return result_name({"model": metric.describe(), "data": data, "threat": threat})

    def label(self, metric: Metric) -> str:
        """Label the progress bar."""
        return f"{self.database.name} {metric.name} neighbours {self.ball}"

    def blocks(self, on: Evaluation) -> list[Any]:
        """Attack the queries in blocks, then go through the database in blocks: what either found, first the former."""
        attacked = super().blocks(on)
        readable = {key: query for block in attacked for key, query in zip(block["keys"], block["points"], strict=True)}
        if not readable:
            return [attacked, []]
        paths = {query.key: query.path for query in self.queries}
        files = [paths[key] for key in readable]
        clean = torch.stack([on.metric.preprocess(path) for path in files])
        moved = torch.stack([_unpacked(text) for text in readable.values()])
        device = on.metric.device
        points = Points(files, clean.to(device), moved.to(device)).embedded(on.metric, on.run.chunk_size)
        search = self.database.search(on.metric, on.run)

        def look(part: Sequence[Any]) -> dict[str, Any]:
            begun = time.perf_counter()
            found = search(part, points, self.k)
            return {**asdict(found), "seconds": time.perf_counter() - begun}

        about = {**self.depends_on(on), "part": "database"}
        return [attacked, on.share(self.database.parts(on.run.batch_size), look, about, f"{self.label(on.metric)} k")]

    def judge(self, block: Sequence[NamedImage], images: ImageSet, on: Evaluation) -> dict[str, Any]:
        """Attack a block of queries: keys, the attacked points, their similarity to the clean ones, and costs."""
        begun = time.perf_counter()
        read, unreadable = self.readable(block, images, None)
        if not read:
            nothing: dict[str, Any] = {"keys": [], "points": [], "itself": [], "unreadable": unreadable}
            return nothing | dict.fromkeys(_COSTS, 0)
        clean = images.pixels([query.path for query in read])
        found, _ = moved_away(on.metric, clean, self.ball, self.steps, on.seeds(read), on.run.chunk_size)
        refuse_nan(found.loss, [query.key for query in read], f"{on.metric.name}'s similarity")
        points = [_packed(point) for point in found.images]
        made: dict[str, Any] = {"keys": [query.key for query in read], "points": points}
        made |= {"itself": [float(f"{-loss:.7g}") for loss in found.loss.tolist()], "unreadable": unreadable}
        violation, seconds = self.ball.violation(found.images, clean), time.perf_counter() - begun
        costs = (found.evaluations, found.zero_gradients, found.nonfinite_gradients, seconds, violation)
        return {**made, **dict(zip(_COSTS, costs, strict=True))}

    def records(self, blocks: list[Any], on: Evaluation) -> list[dict[str, Any]]:
        """Make one record; the tables of accuracy have no row for it.

        Raises:
            ValueError: if no query could be read, or one has fewer than k images left to find.
        """
        attacked, looked = blocks
        keys, itself, unreadable = (
            [v for block in attacked for v in block[n]] for n in ("keys", "itself", "unreadable")
        )
        if not keys:
            raise ValueError(f"none of the {len(unreadable)} queries could be read: {unreadable[0]}")
        lost = [sentence for part in looked for sentence in part["unreadable"]]
        rows = [self._row(key, place, len(keys), looked) for place, key in enumerate(keys)]
        for row, similarity in zip(rows, itself, strict=True):
            row["similarity_to_itself"] = similarity
        mean = summary([row["overlap"] for row in rows], ["all"] * len(rows), macro=False)
        overlap = {"k": self.k, "mean": mean["accuracy"], "interval_95": mean["interval_95"], "queries": len(rows)}
        evaluations, zero, nonfinite, seconds, _ = (sum(block[name] for block in attacked) for name in _COSTS)
        violation = max(block["violation"] for block in attacked)
        warnings = masked(zero, nonfinite, f"{len(keys)} queries", ": the metric may be less robust than it looks.")
        for what, missing, whole in (("queries", unreadable, len(self.queries)), ("images", lost, len(self.database))):
            if missing:
                warnings.append(f"{len(missing)} of {whole} {what} could not be read, the first: {missing[0]}")
        if violation > rounding(self.ball.eps):
            warnings.append(f"An attacked image left the ball of {self.ball} or the range [0, 1] by {violation:.2g}.")
        data: dict[str, Any] = {"name": self.database.name}
        data |= {"database": {**self.database.settings(), "unreadable": lost}}
        data |= {"queries": len(keys), "unreadable": unreadable, "content": on.content}
        made: dict[str, Any] = {"task": self.task, "model": on.metric.describe(), "data": data, "threat": self.threat()}
        made |= {"overlap": overlap, "neighbours": rows, "largest_violation": violation, "warnings": warnings}
        made |= {"masking": {"zero_gradients": zero, "nonfinite_gradients": nonfinite}, "evaluations": evaluations}
        made |= {"settings": {**asdict(on.run), "precision": "float32"}, "versions": versions()}
        seconds += sum(part["seconds"] for part in looked)
        made |= {"device": device_record(on.metric.device), "processes": on.team.count, "seconds": round(seconds, 3)}
        return [made]

    def _row(self, key: str, place: int, count: int, looked: Sequence[Any]) -> dict[str, Any]:
        """Gather what all parts of the database have for one of so many queries."""
        row: dict[str, Any] = {"query": key}
        for when, point in (("clean", place), ("attacked", count + place)):
            near = most_alike([tuple(pair) for part in looked for pair in part["near"][point]], self.k)
            if len(near) < self.k:
                raise ValueError(
                    f"k is {self.k}, and {self.database.name} has {len(near)} images that can be read beside {key}: "
                    "ask for fewer neighbours"
                )
            row[when] = [{"image": name, "similarity": float(f"{value:.7g}")} for name, value in near]
        clean, attacked = ({found["image"] for found in row[when]} for when in ("clean", "attacked"))
        row["overlap"] = overlap_at_k(clean, attacked, self.k)
        row["left_out"] = [name for part in looked for name in part["same"][place]]
        return row


def overlap_at_k(clean: set[str], attacked: set[str], k: int) -> float:
    """Compute the share of the clean k nearest that are still among the k nearest under attack: in [0, 1].

    Example:
        >>> overlap_at_k({"a", "b", "c", "d"}, {"b", "x", "d", "a"}, 4)
        0.75
    """
    return len(clean & attacked) / k


def choose_queries(places: Sequence[Path], count: int | None = None, seed: int = 0) -> list[NamedImage]:
    """Choose queries: of a folder those in it and below, called by their paths there; files are called by their names.

    Args:
        places: one folder, or files.
        count: so many of them at random; by default all files, and 4 of a folder.
        seed: of the choice.

    Raises:
        ImageError: a folder cannot be listed.
        ValueError: a place is not there, there are no images, or fewer than `count`; or a folder stands among others.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> for name in ("1.png", "2.png"):
        ...     (folder / name).touch()
        >>> [query.key for query in choose_queries([folder], count=2)]
        ['1.png', '2.png']
    """
    if missing := [place for place in places if not place.exists()]:
        raise ValueError(f"there is no {missing[0]}: pass a folder of queries, or files")
    if not any(place.is_dir() for place in places):
        names = [place.name for place in places]
        keys = {place: place.name if names.count(place.name) == 1 else place.as_posix() for place in places}
        chosen = list(keys) if count is None else drawn(list(keys), count, seed, "queries")
        return [NamedImage(keys[path], path) for path in chosen]
    if len(places) > 1:
        raise ValueError(f"queries are one folder or files, and {len(places)} were given with a folder among them")
    [root] = places
    paths = list_images_below(root)
    if not paths:
        raise ValueError(f"there are no images in {root}: pass a folder of queries, or files")
    chosen = drawn(paths, min(4, len(paths)) if count is None else count, seed, f"queries of {root}")
    return [NamedImage(path.relative_to(root).as_posix(), path) for path in chosen]


def neighbours_table(records: Sequence[dict[str, Any]]) -> str:
    """Write records as a table in Markdown: percent of the clean neighbours that are still there under attack."""
    lines = ["| model | database | images | queries | attack | overlap, % |", "|---|---|---:|---:|---|---:|"]
    for record in records:
        found, threat, data = record["overlap"], record["threat"], record["data"]
        low, high = found["interval_95"]
        attack = f"{threat['norm']} {threat['eps_text']}, {threat['steps']} steps"
        cells = [record["model"]["name"], data["name"], str(data["database"]["images"]), str(found["queries"]), attack]
        lines.append("| " + " | ".join([*cells, f"{found['mean']:.1f} ({low:.1f} - {high:.1f})"]) + " |")
    return "\n".join(lines)


def _packed(image: Tensor) -> str:
    """Write an image (3, S, S) as text, bit by bit, with its side."""
    bits = image.detach().float().cpu().contiguous().numpy()
    return f"{bits.shape[-1]} {base64.b64encode(bits.astype('<f4').tobytes()).decode()}"


def _unpacked(text: str) -> Tensor:
    side, _, bits = text.partition(" ")
    values = np.frombuffer(base64.b64decode(bits), "<f4").astype(np.float32)
    return torch.from_numpy(values.reshape(3, -1, int(side)))
