"""Draw the README's figure of results: right answers against the size of the change, from records in results/.

    pip install "rclip-metric[plot]"
    python examples/results_figure.py --out examples/images/results.png

Reads results/benchmark: 66 triplets of each set, clean and under APGD with 100 steps.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rclip_metric.train.evaluation.results import load_results, unpack

ROOT = Path(__file__).resolve().parents[1]
SETS = {
    "photos": "triplets from photographs",
    "kriegeskorte92": "what people said of 92 objects",
    "zappos85": "what people said of 85 shoes",
}
METRICS = {
    "r-lite-f": ("#00796b", "-", "r-lite-f (robust)"),
    "lite": ("#d84315", "-", "lite (the same, not robust)"),
    "ssim": ("#757575", "--", "SSIM"),
    "l2": ("#757575", ":", "l_2"),
}


def accuracies(folder: Path) -> dict[str, dict[str, dict[float, float]]]:
    """Percent right by set, metric and radius in 255ths; 0 is clean, on the samples that were attacked."""
    found: dict[str, dict[str, dict[float, float]]] = {}
    files = [path for name in METRICS for path in sorted(folder.glob(f"{name}__*-66attacked__apgd-linf-*.json"))]
    for record in load_results(files):
        threat, data = record["threat"], record["data"]["name"]
        name = record["model"]["name"]
        clean = [row.clean for row in unpack(record) if row.robust is not None]
        line = found.setdefault(data, {}).setdefault(name, {})
        line[round(threat["eps"] * 255, 3)] = record["robust"]["accuracy"]
        line[0.0] = 100 * sum(clean) / len(clean)
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, dict[float, float]]]:
    """Draw, and return what was drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "benchmark", help="folder of records")
    parser.add_argument("--out", type=Path, default=ROOT / "examples" / "images" / "results.png")
    options = parser.parse_args(argv)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = accuracies(options.results)
    figure, axes = pyplot.subplots(1, len(SETS), figsize=(9, 3), sharey=True, layout="constrained")
    for axis, (data, title) in zip(axes, SETS.items(), strict=True):
        for name, (colour, style, label) in METRICS.items():
            points = sorted(found[data][name].items())
            radii, rights = [eps for eps, _ in points], [right for _, right in points]
            axis.plot(radii, rights, color=colour, linestyle=style, marker="o", markersize=4, label=label)
        axis.axhline(50, color="0.8", linewidth=1, zorder=0)
        axis.set_title(title, fontsize=9)
        axis.set_xticks([0, 2, 4], ["none", "2/255", "4/255"])
        axis.set_ylim(0, 100)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("right answers, percent")
    figure.supxlabel("largest change of any value that an attacker may make", fontsize=10)
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(options.out, dpi=110)
    return found


if __name__ == "__main__":
    main()
