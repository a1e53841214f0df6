"""Draw what is certified of metrics beside what attacks leave of them, against the l_2 radius, a panel per metric.

    rclip-metric eval nights --data DIR --model tiny l2 --norm l2 --eps 0.2 0.5 --out RESULTS
    rclip-metric eval nights --data DIR --model tiny l2 --certify smoothing lipschitz --sigma 0.12 0.25 --out RESULTS
    python examples/proof_figure.py RESULTS --out proof.png

Reads any result folders of one data set, those of `rclip-metric benchmark` too, and writes the figure, and beside it
the numbers with what they cost (proof.json, proof.md). Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rclip_metric.printing import complain
from rclip_metric.train.evaluation.certificates import certified_radii
from rclip_metric.train.evaluation.results.curves import COLOURS, literal, new_figure, write_plot
from rclip_metric.train.evaluation.results.labels import Record, data_label, model_label
from rclip_metric.train.evaluation.results.leaderboard import plain_markdown
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.results.record import Averaging, load_results
from rclip_metric.train.runs.files import write_json, write_text

COLUMNS = 3
PANEL = (3.1, 2.4)  # inches
ATTACK, LIPSCHITZ, *SMOOTHING = COLOURS
NOISE = ("n0", "n", "confidence")
LEAST = 36 / 255  # the smallest radius of LipSim's table, which the table here has as well


@dataclass(frozen=True)
class Radii:
    """The certified radius of every sample of a record, 0 where nothing is certified, by the parts that are averaged.

    Example:
        >>> Radii(((0.5, 0.0), (1.0,))).accuracy(0.6)  # the mean of two parts: 0 of 2, and 1 of 1
        50.0
    """

    parts: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, record: Record) -> Radii:
        """Read them; samples that were left out, as most of a large set can be, are no part of them."""
        parts: dict[str, list[float]] = {}
        for row, radius in zip(unpack(record), certified_radii(record), strict=True):
            if row.robust is not None:
                parts.setdefault(row.split if record["settings"].get("macro") else "", []).append(radius)
        return cls(tuple(map(tuple, parts.values())))

    @property
    def every(self) -> list[float]:
        """All of them, rising."""
        return sorted(radius for part in self.parts for radius in part)

    def accuracy(self, eps: float) -> float:
        """Compute certified accuracy at a radius, in percent."""
        return 100 * fmean(fmean(radius > eps for radius in part) for part in self.parts)

    def steps(self) -> tuple[list[float], list[float]]:
        """Give the radii at which certified accuracy falls, from 0 on, and what is left from there on."""
        at = sorted({0.0, *self.every})
        return at, [self.accuracy(radius) for radius in at]


@dataclass
class Panel:
    """A metric: records of attacks and certificates, by radius; `certified` of None is Lipschitz, else sigma.

    `clean` is of the samples that were attacked or certified, which may be a part of those of the records.
    """

    label: str
    clean: Mapping[str, Any]
    attacks: dict[float, Record] = field(default_factory=dict)
    certified: dict[float | None, Record] = field(default_factory=dict)

    @property
    def reach(self) -> float:
        """The largest radius that is certified."""
        return max((max(Radii.of(record).every, default=0.0) for record in self.certified.values()), default=0.0)

    def rows(self, radii: Sequence[float]) -> list[dict[str, Any]]:
        """List the numbers: of all attacks together, then of each certificate."""
        found = []
        if self.attacks:
            at = {0.0: self.clean["accuracy"]}
            at |= {eps: record["robust"]["accuracy"] for eps, record in sorted(self.attacks.items())}
            about = {"kind": ", ".join(sorted({r["threat"]["attack"] for r in self.attacks.values()}))}
            costs = [_cost(record, record["passes"]) for record in self.attacks.values()]
            mean = {key: _mean([cost[key] for cost in costs]) for key in costs[0]}  # for each radius
            samples = next(iter(self.attacks.values()))["robust"]["samples"]
            found.append({**about, "samples": samples, "accuracy": _named(at), **mean})
        for sigma, record in sorted(self.certified.items(), key=lambda pair: pair[0] or 0.0):
            known = Radii.of(record)
            at = {eps: round(known.accuracy(eps), 4) for eps in (0.0, *radii)}
            own: dict[str, Any] = {"kind": "Lipschitz" if sigma is None else f"smoothing, sigma {sigma:g}"}
            own |= {"samples": len(known.every), "accuracy": _named(at), "median radius": median(known.every)}
            if sigma is None:
                own |= _cost(record, record["passes"])
            else:
                threat, smoothing = record["threat"], record["smoothing"]
                own |= {key: threat[key] for key in NOISE}
                own |= {"abstained": smoothing["abstained"], **_cost(record, smoothing["draws"])}
            found.append(own)
        return [{"metric": self.label, **row} for row in found]


def _clean(record: Record) -> Mapping[str, Any]:
    """Average the clean scores of the samples that were asked about."""
    asked = [row for row in unpack(record) if row.robust is not None]
    clean: Mapping[str, Any] = Averaging(bool(record["settings"].get("macro"))).summaries(asked)["clean"]
    return clean


def _named(accuracy: Mapping[float, float]) -> dict[str, float]:
    return {f"{eps:.4g}": percent for eps, percent in accuracy.items()}


def _cost(record: Record, passes: int | None) -> dict[str, float | None]:
    samples = record["robust"]["samples"]
    return {
        "forwards a sample": None if passes is None else passes / samples,
        "seconds a sample": record["seconds"] / samples,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def panels_of(records: Sequence[Record]) -> list[Panel]:
    """Sort what was attacked or certified in l_2 by metric, those that certify furthest first.

    Where several attacks have the same radius, the one that leaves least counts.

    Raises:
        ValueError: for nothing to draw, several data sets, attacks on other numbers of samples, or two certificates
            that differ in their draws alone.
    """
    used = [record for record in records if record["threat"]["norm"] == "l2" and record["robust"]]
    sets = sorted({data_label(record) for record in used})
    if len(sets) > 1:
        raise ValueError(f"a figure shows one data set, and the results are of {', '.join(sets)}: draw each by itself")
    names = {model_label(record): record["model"]["name"] for record in used}
    panels: dict[str, Panel] = {}
    for record in used:
        whole = model_label(record)
        name = names[whole] if list(names.values()).count(names[whole]) == 1 else whole
        panel = panels.setdefault(whole, Panel(name, _clean(record)))
        eps, kind = record["threat"]["eps"], record["threat"]["attack"]
        if kind in ("certified", "smoothing"):
            sigma = record["threat"].get("sigma")
            other = panel.certified.setdefault(sigma, record)
            if any(other["threat"].get(key) != record["threat"].get(key) for key in NOISE):
                raise ValueError(f"{name} has two certificates with sigma {sigma:g}, of other draws: leave one out")
        elif eps not in panel.attacks or record["robust"]["accuracy"] < panel.attacks[eps]["robust"]["accuracy"]:
            panel.attacks[eps] = record
    for panel in panels.values():
        counts = sorted({record["robust"]["samples"] for record in panel.attacks.values()})
        if len(counts) > 1:
            several = " and ".join(map(str, counts))
            raise ValueError(f"{panel.label} was attacked on {several} samples: a curve needs the same ones everywhere")
    if not any(panel.certified for panel in panels.values()):
        raise ValueError("nothing is certified in these results: rclip-metric eval nights --certify smoothing does it")
    return sorted(panels.values(), key=lambda panel: (-panel.reach, panel.label))


def draw(panels: Sequence[Panel], title: str, top: float | None = None) -> Any:
    """Draw a panel per metric on the same axes: attacks drawn through, certificates dashed, smoothing dotted.

    Args:
        panels: one or more.
        title: of the figure.
        top: the end of the axis; None for the largest radius under attack, or twice what half of the metrics certify
            something up to, if that is more: a few that reach far would leave the others no room.

    Returns:
        The figure, of matplotlib.
    """
    if top is None:
        ends = [panel.reach for panel in panels if panel.reach > 0]
        attacked = max((eps for panel in panels for eps in panel.attacks), default=0.0)
        top = 1.05 * (max(attacked, min(max(ends), 2 * median(ends)) if ends else 0.0) or 1.0)
    across = min(COLUMNS, len(panels))
    down = -(-len(panels) // across)
    figure = new_figure(PANEL[0] * across, PANEL[1] * down + 1.0, "constrained")
    every = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    sigmas = sorted({sigma for panel in panels for sigma in panel.certified if sigma is not None})
    legend: dict[str, Any] = {}
    for axes, panel in zip(every.flat, panels, strict=False):
        axes.set_title(literal(panel.label), fontsize=10)
        if panel.attacks:
            points = [(0.0, panel.clean), *((eps, r["robust"]) for eps, r in sorted(panel.attacks.items()))]
            x, y = [eps for eps, _ in points], [found["accuracy"] for _, found in points]
            low, high = zip(*(found["interval_95"] for _, found in points), strict=True)
            axes.fill_between(x, low, high, color=ATTACK, alpha=0.18, linewidth=0)
            legend["under attack (found)"] = axes.plot(x, y, color=ATTACK, marker="o", markersize=3.5)[0]
        for sigma, record in sorted(panel.certified.items(), key=lambda pair: pair[0] or 0.0):
            style = {"color": LIPSCHITZ, "linestyle": "--"}
            name = "Lipschitz certificate"
            if sigma is not None:
                colour = SMOOTHING[sigmas.index(sigma) % len(SMOOTHING)]
                style, name = {"color": colour, "linestyle": ":"}, f"smoothed, sigma {sigma:g}"
            x, y = Radii.of(record).steps()
            legend[name] = axes.plot(x, y, drawstyle="steps-post", linewidth=1.8, **style)[0]
    for axes in every.flat[: len(panels)]:
        axes.set(xlim=(0, top), ylim=(0, 101), yticks=range(0, 101, 25))
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in every.flat[len(panels) :]:
        axes.set_axis_off()
    for axes in every.flat[max(0, len(panels) - across) : len(panels)]:
        axes.set_xlabel(r"$\ell_2$ radius")
        axes.tick_params(labelbottom=True)
    for axes in every[:, 0]:
        axes.set_ylabel("accuracy, %")
    figure.suptitle(literal(title), fontsize=11)
    names = sorted(legend, key=lambda name: (name.startswith("smoothed"), name.startswith("Lipschitz"), name))
    lines = [legend[name] for name in names]
    figure.legend(lines, names, loc="outside lower center", ncols=max(1, 4 * across // 3), frameon=False, fontsize=9)
    return figure


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the rows as Markdown: a column for whatever any of them says; the draws of noise are told below."""
    numbers = sorted({key for row in rows for key in row["accuracy"]}, key=float)
    last = ("median radius", "abstained", "forwards a sample", "seconds a sample")
    names = ["metric", "kind", "samples", *numbers, *(name for name in last if any(name in row for row in rows))]

    def shown(row: Mapping[str, Any], name: str) -> str:
        value = row["accuracy"].get(name) if name in numbers else row.get(name)
        if value is None:
            return "-"
        if isinstance(value, str):
            return plain_markdown(value)
        if name in numbers:
            return f"{value:.1f}"
        return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    heads = [f"at {name}" if name in numbers else name for name in names]
    lines = [heads, ["---"] * 2 + ["---:"] * (len(names) - 2), *([shown(row, name) for name in names] for row in rows)]
    drawn = ["| " + " | ".join(line) + " |" for line in lines]
    noise = {tuple(row[key] for key in NOISE) for row in rows if "n" in row}
    told = [
        f"Smoothed accuracy is that of the smoothed metric, and holds with {100 * confidence:.6g} % confidence for "
        f"each sample, by {n:,} draws after {n0:,} that choose."
        for n0, n, confidence in sorted(noise)
    ]
    return "\n".join([*drawn, "", "Percent at l_2 radii. " + " ".join(told)]).strip()


def main(arguments: list[str] | None = None) -> int:
    """Read, draw and write; 2 for results that cannot be drawn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="folders or files of results, of one data set")
    parser.add_argument("--out", type=Path, default=Path("proof.png"), help="the figure; .json and .md go beside it")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--top", type=float, help="where the axis of the radius ends")
    args = parser.parse_args(arguments)
    try:
        records = load_results(args.results)
        if args.metrics:
            records = [record for record in records if record["model"]["name"] in args.metrics]
        panels = panels_of(records)
        attacked = {eps for panel in panels for eps in panel.attacks}
        rows = [row for panel in panels for row in panel.rows(sorted({LEAST, *attacked}))]
        data = next(data_label(record) for panel in panels for record in panel.certified.values())
        text = table(rows)
        write_plot(draw(panels, f"{data}: what is certified, and what attacks leave", args.top), args.out)
        write_json(args.out.with_suffix(".json"), {"data": data, "rows": rows})
        write_text(args.out.with_suffix(".md"), text + "\n")
    except ValueError as error:
        complain(error)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
