"""How processor time and peak memory grow with the number of images: all pairs, rank, index, evaluation and search.

    python examples/benchmark_growth.py --out results/growth          # growth.json and growth.png
    python examples/benchmark_growth.py --out growth --sizes 100 1000

Every point is a command in a process of its own, on drawn scenes, with the model `tiny`; search and `index, embeddings`
work on random unit embeddings of 512 numbers, of which there can be more. Time is that of all threads. What a command
takes for two images (start-up) is taken off before the slope is fitted: the exponent p in time ~ n^p.
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
import time
from pathlib import Path
from typing import Any

# torch is imported late: a process begins with the peak of the one that started it.

START, QUERIES, DIMENSION = 2, 64, 512
ON_IMAGES = ("score --all-pairs", "rank", "index build", "eval nights")
ON_EMBEDDINGS = ("index, embeddings", "search, 64 queries")
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


def in_a_process(arguments: list[str]) -> Point:
    """Run a command; return processor and wall seconds, and the peak of resident memory in MB."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")
    seconds = used.ru_utime + used.ru_stime
    return {"processor": seconds, "wall": time.perf_counter() - begin, "megabytes": used.ru_maxrss / 1024}


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


def measure(points: dict[str, dict[str, Point]], wanted: list[tuple[str, int]], scenes: Path, folder: Path) -> None:
    """Add the points that are wanted and not there, one by one."""
    largest = max((count for name, count in wanted if name in ON_IMAGES), default=0)
    drawn = sorted((scenes / "nights").rglob("*.png"))
    if len(drawn) < largest:
        counts = ["--images", "0", "--pool", "0", "--queries", "0", "--triplets", f"0,0,{math.ceil(largest / 3)}"]
        in_a_process(["-m", "rclip_metric", "train", "scenes", "--quiet", "--out", str(scenes), *counts])
        drawn = sorted((scenes / "nights").rglob("*.png"))
    for name, count in wanted:
        if str(count) in points[name]:
            continue
        if name in ON_EMBEDDINGS:
            point = in_a_process([__file__, "--measure", name, str(count), str(folder)])
        else:
            images = folder / f"{count}"
            if not images.exists():
                images.mkdir()
                for place, path in enumerate(drawn[:count]):
                    os.link(path, images / f"{place:06d}.png")
            with tempfile.TemporaryDirectory(dir=folder) as out:
                arguments = command(name, scenes, images, Path(out), count)
                point = in_a_process(["-m", "rclip_metric", *arguments])
                if name.startswith("score"):
                    point["bytes a pair"] = os.path.getsize(f"{out}/pairs.jsonl") / (count * (count - 1) / 2)
        points[name][str(count)] = point
        print(f"{name:20} {count:7}  {point['processor']:7.1f} s  {point['megabytes']:6.0f} MB", flush=True)


def slope(points: dict[str, Point]) -> float | None:
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
    for colour, (name, points) in enumerate(report["points"].items()):
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
    parser.add_argument(
        "--out", type=Path, required=True, help="where to write .json and .png; what is there already is kept"
    )
    parser.add_argument("--only", nargs="+", choices=[*ON_IMAGES, *ON_EMBEDDINGS], default=[*ON_IMAGES, *ON_EMBEDDINGS])
    parser.add_argument("--folder", type=Path, help="an existing folder to draw the scenes in, once for several runs")
    args = parser.parse_args()
    from rclip_metric.train.benchmark.turns import pressure

    loads = [pressure()]
    kept = json.loads(args.out.with_suffix(".json").read_text()) if args.out.with_suffix(".json").exists() else {}
    points = {name: dict(kept.get("points", {}).get(name, {})) for name in (*ON_IMAGES, *ON_EMBEDDINGS)}
    sizes = {name: [START, *args.sizes] for name in ON_IMAGES}
    sizes |= {name: [10 * START, *args.embeddings] for name in ON_EMBEDDINGS}
    wanted = sorted(((name, count) for name in args.only for count in sizes[name]), key=lambda point: point[1])
    try:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            measure(points, wanted, (args.folder or Path(folder)) / "scenes", Path(folder))
    finally:  # an interrupt keeps what has been measured
        loads.append(pressure())
        points = {name: dict(sorted(found.items(), key=lambda point: int(point[0]))) for name, found in points.items()}
        report(points, kept.get("machine", {}).get("load", []) + [load for load in loads if load], args.out)


def report(points: dict[str, dict[str, Point]], loads: list[str], out: Path) -> None:
    """Print the slopes, and write the figures and their picture."""
    import torch

    from rclip_metric.train.runs.machine import device_record

    machine: dict[str, Any] = {"device": device_record(torch.device("cpu")), "torch": torch.__version__, "load": loads}
    machine["OMP"] = {name: value for name, value in os.environ.items() if name.startswith("OMP_")}
    slopes = {name: slope(found) for name, found in points.items()}
    print(json.dumps(slopes, indent=2))
    figures = {"machine": machine, "model": "tiny", "slopes": slopes, "points": points}
    out.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    draw(figures, out.with_suffix(".png"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        on_embeddings(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
