"""How processor time and peak memory grow with the number of images: all pairs, rank, index, evaluation and search.

    python examples/benchmark_growth.py --out results/                # a .json and a .png of this kind of machine
    python examples/benchmark_growth.py --out growth.json --sizes 100 1000 --repeats 3

Every point is a command in a process of its own, and the commands of a size take turns, on drawn scenes, with the model
`tiny`; search and `index, embeddings` work on random unit embeddings of 512 numbers, of which there can be more. Time
is that of all threads. What a command takes for two images (start-up) is taken off before the slope is fitted: the
exponent p in time ~ n^p.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rclip_metric.train.benchmark.report import Report
from rclip_metric.train.benchmark.turns import take_turns

START, QUERIES, DIMENSION = 2, 64, 512
ON_IMAGES = ("score --all-pairs", "rank", "index build", "eval nights")
ON_EMBEDDINGS = ("index, embeddings", "search, 64 queries")
# A process begins with the peak of the one that started it: this one is small, and has no torch.
PEAK = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(used.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""
Point = dict[str, float]


def command(name: str, scenes: Path, images: Path, out: Path, count: int) -> list[str]:
    """Return the arguments of a command on so many images."""
    first = next(iter(sorted(images.iterdir())))
    model = ["--model", "tiny", "--quiet"]
    return {
        "score --all-pairs": ["score", "--all-pairs", str(images), "--output", str(out / "pairs.jsonl"), *model],
        "rank": ["rank", str(first), str(images), "--json", *model],
        "index build": ["index", "build", str(images), str(out / "index"), *model],
        "eval nights": [
            *("eval", "nights", "--data", str(scenes / "nights"), "--attack", "none", "--out", str(out / "eval")),
            *("--limit", str(max(1, count // 3)), *model),
        ],
    }[name]


def in_a_process(arguments: list[str]) -> float:
    """Run a command; return the peak of its resident memory in MB."""
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}")
    return float(done.stdout)


def on_embeddings(name: str, count: int, folder: str) -> None:
    """Index random embeddings, or search an index of them."""
    import torch

    from rclip_metric import ImageIndex, RobustPerceptualDistance

    metric, place = RobustPerceptualDistance("tiny"), Path(folder) / f"{count}.index"
    generator = torch.Generator().manual_seed(count)
    if name == "index, embeddings":
        index = ImageIndex(metric)
        units = torch.randn(count, DIMENSION, generator=generator)
        index.add(units, ids=[str(i) for i in range(count)])
        index.save(place)
    else:
        ImageIndex.open(place, metric).search(torch.randn(QUERIES, DIMENSION, generator=generator), k=10)


def measure(report: Report, wanted: dict[int, list[str]], repeats: int, scenes: Path, folder: Path) -> None:
    """Add the points that are wanted and not there, size by size."""
    points = report.record["results"]
    largest = max((count for count, names in wanted.items() if {*names} & {*ON_IMAGES}), default=0)
    drawn = sorted((scenes / "nights").rglob("*.png"))
    if len(drawn) < largest:
        counts = ["--images", "0", "--pool", "0", "--queries", "0", "--triplets", f"0,0,{math.ceil(largest / 3)}"]
        in_a_process(["-m", "rclip_metric", "train", "scenes", "--quiet", "--out", str(scenes), *counts])
        drawn = sorted((scenes / "nights").rglob("*.png"))
    for count, names in sorted(wanted.items()):
        images = folder / f"{count}"
        if not images.exists():
            images.mkdir()
            for place, path in enumerate(drawn[:count]):
                os.link(path, images / f"{place:06d}.png")
        missing = [name for name in names if str(count) not in points.get(name, {})]
        runs: dict[str, Callable[[], Point]] = {
            name: partial(run, name, count, scenes, images, folder) for name in missing
        }
        turns = take_turns(runs, repeats, warm_up=0)
        for name in missing:
            times = turns.times[name].to_dict()
            medians = {"processor": times["processor_s"]["median"], "wall": times["wall_s"]["median"]}
            point = {**medians, **turns.results[name], **times, "pressure": turns.pressure}
            found = points.get(name, {}) | {str(count): point}
            report.add(name, dict(sorted(found.items(), key=lambda point: int(point[0]))))
            print(f"{name:20} {count:7}  {point['processor']:7.1f} s  {point['megabytes']:6.0f} MB", flush=True)


def run(name: str, count: int, scenes: Path, images: Path, folder: Path) -> Point:
    """Run a command once; return its peak in MB, and bytes a pair of what is written by pairs."""
    if name in ON_EMBEDDINGS:
        return {"megabytes": in_a_process([__file__, "--measure", name, str(count), str(folder)])}
    with tempfile.TemporaryDirectory(dir=folder) as out:
        arguments = command(name, scenes, images, Path(out), count)
        point = {"megabytes": in_a_process(["-m", "rclip_metric", *arguments])}
        if name.startswith("score"):
            point["bytes a pair"] = os.path.getsize(f"{out}/pairs.jsonl") / (count * (count - 1) / 2)
        return point


def slope(points: dict[str, Any]) -> float | None:
    """Fit p in seconds ~ n^p by least squares, start-up taken off, where what is left is more than a fifth of it."""
    if not points:
        return None
    (_, start), *rest = [(int(count), point["processor"]) for count, point in points.items()]
    above = [(math.log(count), math.log(s - start)) for count, s in rest if s > 1.2 * start]
    if len(above) < 2:
        return None
    return statistics.linear_regression(*zip(*above, strict=True)).slope


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw time and memory against n, one line per command."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for colour, (name, points) in enumerate(report["results"].items()):
        counts = [int(count) for count in points][1:]
        power = report["slopes"][name]
        told = f"{name}  (mostly start-up)" if power is None else f"{name}  (n^{power:.2f})"
        style: dict[str, Any] = {"color": f"C{colour}", "marker": "o", "markersize": 4}
        style["linestyle"] = "--" if name in ON_EMBEDDINGS else "-"
        for axis, what in zip(axes, ("processor", "megabytes"), strict=True):
            axis.plot(counts, [points[str(count)][what] for count in counts], label=told, **style)
    for axis, title in zip(axes, ("Processor seconds, start-up included", "Peak memory, MB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="images (dashed: embeddings)", title=title)
        axis.grid(alpha=0.3)
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes[1].set_ylim(100, 2000)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, title="in brackets: time above start-up")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, write and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000], help="of images")
    parser.add_argument("--embeddings", type=int, nargs="+", default=[10_000, 100_000], help="of embeddings")
    parser.add_argument("--repeats", type=int, default=1, help="of each point (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="a .json, or a folder; what is there already is kept")
    parser.add_argument("--only", nargs="+", choices=[*ON_IMAGES, *ON_EMBEDDINGS], default=[*ON_IMAGES, *ON_EMBEDDINGS])
    parser.add_argument("--folder", type=Path, help="an existing folder to draw the scenes in, once for several runs")
    args = parser.parse_args()
    report = Report("benchmark_growth", args.out, {"model": "tiny", "repeats": args.repeats})
    wanted: dict[int, list[str]] = {}
    for name in args.only:
        for count in [START, *args.sizes] if name in ON_IMAGES else [10 * START, *args.embeddings]:
            wanted.setdefault(count, []).append(name)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(report, wanted, args.repeats, (args.folder or Path(folder)) / "scenes", Path(folder))
    report.record["slopes"] = {name: slope(found) for name, found in report.record["results"].items()}
    print(json.dumps(report.record["slopes"], indent=2))
    report.write()
    assert report.path is not None
    draw(report.record, report.path.with_suffix(".png"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        on_embeddings(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
