"""Plots of results: accuracy against the radius of the attack, or against its number of steps (extra "plot")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rclip_metric.files import written_whole
from rclip_metric.train.evaluation.results.labels import (
    Record,
    Threat,
    data_label,
    model_label,
    norm_order,
    shared_words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150
PANEL = (4.2, 3.6)  # inches
LETTER, MARGIN = 0.075, 0.8  # inches of the legend beside the panels: a letter, and the rest
# Okabe and Ito's colours, which the colour-blind can tell apart, without yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
WIDE = 20  # a ratio of the largest to the smallest radius from which the axis is logarithmic

_SYMBOLS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$"}


@dataclass
class Curve:
    """One line: a summary (accuracy and interval in percent) at each x, and the clean one."""

    label: str
    clean: Mapping[str, Any]
    points: dict[float, Mapping[str, Any]] = field(default_factory=dict)

    def columns(self) -> tuple[list[float], list[float], list[float], list[float]]:
        """Give x, rising, and at each of them the accuracy and the bounds of its interval."""
        x = sorted(self.points)
        low, high = ([self.points[at]["interval_95"][side] for at in x] for side in (0, 1))
        return x, [self.points[at]["accuracy"] for at in x], low, high


@dataclass(frozen=True)
class Chart:
    """The curves of each norm, a heading for each, and what all have in common, in words."""

    panels: dict[str, list[Curve]]
    headings: dict[str, str]
    title: str
    subtitle: str

    @property
    def labels(self) -> list[str]:
        """Of all lines, the most robust first."""
        scores: dict[str, list[float]] = {}
        for curve in (curve for curves in self.panels.values() for curve in curves):
            scores.setdefault(curve.label, []).extend(curve.columns()[1])
        return sorted(scores, key=lambda label: (-sum(scores[label]) / len(scores[label]), label))


def plot(records: Sequence[Record], path: Path) -> None:
    """Draw accuracy against eps into a .png, .svg or .pdf file, written atomically; see `figure`."""
    write_plot(figure(records), path)


def sweep_plot(records: Sequence[Record], path: Path, x: str = "steps") -> None:
    """Draw accuracy against a setting of the attack into a file, as `plot` does; see `sweep_figure`."""
    write_plot(sweep_figure(records, x), path)


def figure(records: Sequence[Record]) -> Figure:
    """Draw accuracy against eps: a panel per norm, a line per model with its 95 % band, the clean accuracy at eps 0.

    l_inf radii are in units of 1/255. Settings of the attack that differ make lines of their own, and are named there.

    Raises:
        ValueError: for records of several data sets, without any attack, or two of the same model, attack and eps; or
            if matplotlib is not installed.
    """
    chart = _chart(records, "eps")
    for curve in (curve for curves in chart.panels.values() for curve in curves):
        curve.points.setdefault(0.0, curve.clean)
    drawn = _empty_figure(chart)
    for axes, (norm, curves) in zip(drawn.axes, chart.panels.items(), strict=True):
        radii = sorted({x for curve in curves for x in curve.points})
        radius_axis(axes, radii)
        axes.set_xlabel(f"{_SYMBOLS.get(norm, norm)} radius" + (" (/255)" if norm == "linf" else ""))
        for curve in curves:
            _draw(axes, curve, chart.labels.index(curve.label))
    return drawn


def radius_axis(axes: Axes, radii: Sequence[float], wide: float = WIDE) -> bool:
    """Mark radii, rising from 0, on a horizontal axis, and make it logarithmic from the first one on if it must be.

    It must where the largest radius is more than `wide` times the smallest above 0; returns whether it was.
    """
    bent = len(radii) > 2 and radii[-1] > wide * radii[1]
    if bent:
        axes.set_xscale("symlog", linthresh=radii[1], linscale=0.4)
    axes.set_xticks(radii, [f"{radius:.3g}" for radius in radii])
    axes.set_xticks([], minor=True)
    return bent


def sweep_figure(records: Sequence[Record], x: str = "steps") -> Figure:
    """Draw accuracy against a number among the attack's settings, on a logarithmic axis; dashes are the clean accuracy.

    Args:
        records: of one data set.
        x: "steps", or another setting that is a positive number, e.g. "restarts".

    Raises:
        ValueError: as for `figure`, and where a record does not state `x`.
    """
    chart = _chart(records, x)
    chart = replace(chart, subtitle=f"{chart.subtitle}, dashes: clean")
    drawn = _empty_figure(chart)
    for axes, (norm, curves) in zip(drawn.axes, chart.panels.items(), strict=True):
        values = sorted({value for curve in curves for value in curve.points})
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(x)
        axes.set_title(chart.headings[norm], fontsize=10)
        for curve in curves:
            number = chart.labels.index(curve.label)
            _draw(axes, curve, number)
            axes.axhline(curve.clean["accuracy"], color=COLOURS[number % len(COLOURS)], linewidth=1, linestyle="--")
    return drawn


def _chart(records: Sequence[Record], x: str) -> Chart:
    """Sort the records that have an attack into panels and curves."""
    attacked = [(record, threat) for record in records if (threat := Threat.of(record)) and record["robust"]]
    if not attacked:
        raise ValueError("there is nothing to draw: pass results of at least one attack")
    data = sorted({data_label(record) for record, _ in attacked})
    if len(data) > 1:
        raise ValueError(f"a plot shows one data set and the results are of {', '.join(data)}: draw each by itself")
    settings = [
        {"samples": f"{record['data']['samples']} samples", "eps": threat.ball, **threat.settings()}
        for record, threat in attacked
    ]
    shared = shared_words(settings)
    panels: dict[str, dict[tuple[str, ...], Curve]] = {}
    headings = {}
    for norm in sorted({threat.norm for _, threat in attacked}, key=norm_order):
        members = [(*pair, words) for pair, words in zip(attacked, settings, strict=True) if pair[1].norm == norm]
        balls = sorted({threat.eps_text for _, threat, _ in members})
        headings[norm] = _SYMBOLS.get(norm, norm) + (f" {balls[0]}" if len(balls) == 1 else "")
        curves = panels.setdefault(norm, {})
        for record, threat, words in members:
            model = model_label(record)
            fixed = {key: word for key, word in words.items() if key != x}
            told = [word for key, word in fixed.items() if key not in shared and (key != "eps" or len(balls) > 1)]
            # Of a smoothed metric the accuracy at radius 0 is its own, and not that without noise.
            clean = (record.get("smoothing") or {}).get("right") or record["clean"]
            curve = curves.setdefault((model, *fixed.values()), Curve(", ".join([model, *told]), clean))
            at = _position(record, threat, x)
            if at in curve.points:
                raise ValueError(f"there are two results of {curve.label} at {threat.ball}, {at:g}: leave one out")
            curve.points[at] = record["robust"]
    title = ", ".join([data[0], *([shared["samples"]] if "samples" in shared else [])])
    rest = [word for key, word in shared.items() if key not in ("samples", "eps", x)]
    subtitle = ", ".join([*rest, "95 % bands"])
    return Chart({norm: list(curves.values()) for norm, curves in panels.items()}, headings, title, subtitle)


def _position(record: Record, threat: Threat, x: str) -> float:
    """Find where a record is on the horizontal axis."""
    if x == "eps":
        return round(threat.eps * 255, 6) if threat.norm == "linf" else threat.eps
    value = record["threat"].get(x)
    if not isinstance(value, int | float) or not value > 0:
        raise ValueError(
            f"{model_label(record)}, {threat.ball}: {x!r} is {value!r}, and a sweep needs a number above 0"
        )
    return float(value)


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    """Make an empty figure of so many inches that no window shows.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError('plots need matplotlib, which is an extra: pip install "rclip-metric[plot]"') from error
    drawn = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(drawn)
    return drawn


def _empty_figure(chart: Chart) -> Figure:
    """Make a figure with a panel per norm, their shared axis, the title and the legend."""
    names = [literal(label).replace(" @ ", "\n@ ") for label in chart.labels]
    legend = MARGIN + LETTER * max(len(line) for name in names for line in name.splitlines())
    drawn = new_figure(PANEL[0] * len(chart.panels) + legend, PANEL[1], "constrained")
    from matplotlib.lines import Line2D

    for axes in drawn.subplots(1, len(chart.panels), squeeze=False, sharey=True)[0]:
        axes.set_ylim(0, 100)
        axes.set_yticks(range(0, 101, 20))
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    drawn.axes[0].set_ylabel("accuracy (%)")
    drawn.suptitle(f"{literal(chart.title)}\n{literal(chart.subtitle)}", fontsize=11, x=0.01, ha="left")
    lines = [Line2D([], [], **_look(number)) for number in range(len(chart.labels))]
    drawn.axes[-1].legend(
        lines,
        names,
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        borderaxespad=0,
        labelspacing=0.8,
        frameon=False,
        fontsize=9,
    )
    return drawn


def _look(number: int) -> dict[str, Any]:
    """Choose colour and marker of the n-th line: 56 that differ."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    return {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.8}


def _draw(axes: Axes, curve: Curve, number: int) -> None:
    x, y, low, high = curve.columns()
    look = _look(number)
    axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    axes.plot(x, y, label=literal(curve.label), clip_on=False, **look)  # markers at 0 and 100 are whole


def literal(text: str) -> str:
    """Escape what matplotlib takes for mathematics, or leaves out of a legend for its first character."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def write_plot(drawn: Figure, path: Path) -> None:
    """Write a figure to a file, in the format that its name ends in, as a whole or not at all."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} names no format for a plot: end it in {', '.join(SUFFIXES)}")
    with written_whole(path) as partial:
        drawn.savefig(partial, format=path.suffix[1:].lower(), dpi=DPI)
