"""What is proven beside what was found: a table for each data set, and what must be said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

from markupsafe import Markup

from rclip_metric.train.benchmark.page.reading import Board, Found, JsonObject, at, certified, interval, score, smoothed
from rclip_metric.train.benchmark.page.words import DASH, figure, joined, norm_name

SIGMA = "\N{GREEK SMALL LETTER SIGMA}"


@dataclass(frozen=True)
class ProofRow:
    """A metric, or a metric under the noise of one sigma.

    Attributes:
        metric: the metric.
        result: what it reached on the data.
        number: of the row among the metric's, from 0 on.
        rows: of the metric.
        clean: its summary without an attack.
        attacked: summaries by the l_2 radius of the attack.
        lipschitz: what it certifies by itself, summaries by radius.
        smoothing: what is certified under noise; None where that was not asked for.
        smoothed: its summaries by radius.
    """

    metric: Found
    result: Found
    number: int
    rows: int
    clean: Found | None
    attacked: Mapping[float, Found]
    lipschitz: Mapping[float, Found]
    smoothing: Found | None
    smoothed: Mapping[float, Found]

    @property
    def median(self) -> float | None:
        """The median of the radii that the metric certifies by itself."""
        found: float | None = self.result["certified"].get("median")
        return found

    @property
    def right(self) -> float | None:
        """Percent of samples that are decided rightly under noise, at radius 0."""
        found: float | None = at(self.smoothing, "right", "accuracy")
        return found

    @property
    def forwards(self) -> float | None:
        """Images that went through the metric under noise, for each sample."""
        return self._each("draws")

    @property
    def seconds(self) -> float | None:
        """Seconds for each sample."""
        return self._each("seconds")

    def _each(self, cost: str) -> float | None:
        spent, samples = at(self.smoothing, cost), at(self.smoothing, "right", "samples")
        return spent / samples if samples and spent is not None else None


@dataclass(frozen=True)
class ProofColumn:
    """A column: its whole name, a shorter one as HTML below its group's, and what a row has to show.

    `cell` gives a text, and small print. What is `own` is the metric's, whatever the noise.
    """

    title: str
    heading: str
    group: str
    cell: Callable[[ProofRow], tuple[str, str]]
    own: bool = True


@dataclass(frozen=True)
class ProofTable:
    """What the metrics of a data set can prove, the most robust first.

    Attributes:
        rows: of metrics that prove anything, by themselves or under noise.
        columns: that any row fills.
        said: how far numbers under noise can be trusted, in sentences; empty without any.
    """

    rows: Sequence[ProofRow]
    columns: Sequence[ProofColumn]
    said: str

    def groups(self) -> dict[str, list[ProofColumn]]:
        """Group the columns."""
        groups: dict[str, list[ProofColumn]] = {}
        for column in self.columns:
            groups.setdefault(column.group, []).append(column)
        return groups


def proof_table(board: Board, data: Found) -> ProofTable | None:
    """Lay out what is proven on a data set; None where nothing is.

    The radii are the smallest that is certified, and those that were attacked.
    """
    threats = {threat["eps"]: threat for threat in board.tried(data) if threat["norm"] == "l2"}
    rows, written = [], {}
    for metric in board.ranked(data):
        proven, noisy = certified(metric, data), smoothed(metric, data)
        if not proven and not noisy:
            continue
        for point in [*proven, *(point for found in noisy for point in found["points"])]:
            written[point["eps"]] = str(point["eps_text"] or format(point["eps"], ".3g"))
        clean, result = score(metric, data), metric["results"][data["id"]]
        attacked = {eps: found for eps, threat in threats.items() if (found := score(metric, data, threat))}
        own = {point["eps"]: point for point in proven}
        for n, found in enumerate(noisy or [None]):
            under = {point["eps"]: point for point in found["points"]} if found else {}
            rows.append(ProofRow(metric, result, n, len(noisy) or 1, clean, attacked, own, found, under))
    if not rows:
        return None
    radii = [eps for n, eps in enumerate(sorted(written)) if n == 0 or eps in threats]
    shown = [
        column
        for column in _columns({eps: written[eps] for eps in radii})
        if any(column.cell(row)[0] != DASH for row in rows)
    ]
    return ProofTable(rows, shown, confidence(board, [data]))


def _columns(radii: Mapping[float, str]) -> list[ProofColumn]:
    """List all columns: what is found and proven without noise, then what is proven under noise, and what it costs."""

    def percents(
        group: str, word: str, found: Callable[[ProofRow], Mapping[float, Found]], own: bool = True
    ) -> list[ProofColumn]:
        def cell(row: ProofRow, eps: float) -> tuple[str, str]:
            return _share(found(row).get(eps))

        return [
            ProofColumn(f"{word} l2 {text}", norm_name("l2") + f" {text}", group, partial(cell, eps=eps), own)
            for eps, text in radii.items()
        ]

    def number(value: float | None, form: str) -> tuple[str, str]:
        return DASH if value is None else format(value, form), ""

    noise = "smoothed, %"
    cost = "smoothed, for each sample"
    return [
        ProofColumn("clean", "clean", "clean and attacked, %", lambda row: _share(row.clean)),
        *percents("clean and attacked, %", "attacked", lambda row: row.attacked),
        *percents("certified, %", "certified", lambda row: row.lipschitz),
        ProofColumn("median radius", "median radius", "certified, %", lambda row: number(row.median, ".3f")),
        ProofColumn("sigma", SIGMA, noise, lambda row: number(at(row.smoothing, "sigma"), "g"), False),
        ProofColumn(
            "smoothed right", Markup("right, at<br>radius 0"), noise, lambda row: number(row.right, ".1f"), False
        ),
        *percents(noise, "smoothed", lambda row: row.smoothed, False),
        ProofColumn(
            "smoothed median radius",
            "median radius",
            noise,
            lambda row: number(at(row.smoothing, "median"), ".3f"),
            False,
        ),
        ProofColumn("abstained", "abstained", noise, lambda row: number(at(row.smoothing, "abstained"), ",.0f"), False),
        ProofColumn("forwards a sample", "forwards", cost, lambda row: number(row.forwards, ",.0f"), False),
        ProofColumn(
            "seconds a sample",
            "seconds",
            cost,
            lambda row: (DASH if row.seconds is None else figure(row.seconds), ""),
            False,
        ),
    ]


def _share(summary: Found | None) -> tuple[str, str]:
    """Write a share in percent, and its interval."""
    if not summary:
        return DASH, ""
    bounds = interval(summary)
    return f"{summary['accuracy']:.1f}", f"{bounds[0]:.1f}{DASH}{bounds[1]:.1f}" if bounds else ""


def confidence(board: Board, sets: Sequence[JsonObject]) -> str:
    """Say what certified accuracy under noise is, and how surely it holds; empty where there is none."""
    found = [one for data in sets for metric in board.metrics for one in smoothed(metric, data)]
    if not found:
        return ""
    shares = [f"{100 * one['confidence']:.6g} %" for one in found if one["confidence"] is not None]
    draws = [f"{one['n']:,.0f}" for one in found if one["n"] is not None]
    sure, drawn = (joined(words) if words else "an unknown" for words in (shares, draws))
    surely = f"{sure} confidence for each sample, by {drawn}{'' if draws else ' number of'} draws of noise"
    return (
        "Smoothed accuracy is that of another metric: of the smoothed one, which sides with the option that the metric "
        "picks most often when Gaussian noise of standard deviation sigma is put on the reference. A sample counts "
        "where that option is right and stays so for every change within the radius. This is no certainty, but holds "
        f"with {surely}. Where the draws do not tell the options apart the smoothed metric abstains, which counts as "
        f"wrong.{_bound(found)}"
    )


def _bound(found: Sequence[Found]) -> str:
    """Say beyond which radius so many draws prove nothing, whatever the metric is: where all of them agree."""
    largest: dict[float, float] = {}
    for one in found:
        if one["n"] and one["confidence"] is not None and 0 < one["confidence"] < 1:
            radius = one["sigma"] * NormalDist().inv_cdf((1 - one["confidence"]) ** (1 / one["n"]))
            largest[one["sigma"]] = max(radius, largest.get(one["sigma"], 0.0))
    told = [f"{radius:.3g} with sigma {sigma:g}" for sigma, radius in sorted(largest.items())]
    return f" Whatever the metric is, no larger radius can come out than {joined(told)}." if told else ""
