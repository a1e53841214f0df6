"""How well difference maps find an edit of known place, clean and where the rest of the image is disturbed as well.

    python examples/benchmark_difference_maps.py PHOTOGRAPHS --out results/

A photograph is changed in one ellipse (something pasted, erased, recoloured or blurred in turn), and then disturbed all
over or not: signs of 4/255 at random, 4/255 from ten steps of APGD that raise the metric's own distance to the edited
image, or JPEG at quality 75. Each map is judged by the area under the ROC curve of its values against the ellipse, and
by whether its largest value lies inside (the pointing game). Other metrics' maps stand beside ours: LPIPS's spatial one
(linear weights as published, the trunk at random: it cannot be fetched offline), SSIM's, and |x - y|.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from skimage.metrics import structural_similarity
from torch import Tensor

from rclip_metric import RobustPerceptualDistance, load_image
from rclip_metric.difference_map import METHODS
from rclip_metric.images.reading import list_images_below
from rclip_metric.train.attacks import LpBall, apgd
from rclip_metric.train.benchmark.report import Report
from rclip_metric.train.benchmark.turns import take_turns
from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.record import library_versions

SIDE, EPS = 192, 4 / 255
EDITS = ("paste", "erase", "recolour", "blur")
DISTURBED = ("nothing", "random 4/255", "attack 4/255", "JPEG 75")
VISIBLE = 0.02
"""Mean change inside the ellipse below which a pair is left out: a blurred sky is no edit."""
Map = Callable[[Tensor, Tensor], Tensor]


class Pair(NamedTuple):
    """An image, its edited copy, where it was edited, and how."""

    x: Tensor
    y: Tensor
    mask: Tensor
    edit: str


def pairs(folder: Path, count: int, seed: int = 0) -> Iterator[Pair]:
    """Edit the images of a folder, one after another in an order of its own."""
    generator = np.random.default_rng(seed)
    files = list_images_below(folder)
    order = [files[number] for number in generator.permutation(len(files))]
    before, made = _square(order[-1]), 0
    for path in order:
        x = _square(path)
        edit = EDITS[made % len(EDITS)]
        mask, ring = _ellipse(generator)
        y = _edited(x, before, mask, ring, edit)
        before = x
        if (x - y).abs()[:, mask].mean() < VISIBLE:
            continue
        made += 1
        yield Pair(x, y, mask, edit)
        if made == count:
            return
    print(f"{folder} gave {made} of {count} pairs", file=sys.stderr)


def _square(path: Path) -> Tensor:
    image = load_image(path)
    return F.interpolate(image[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _ellipse(generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw an ellipse of 15 to 35 % of the side, and the ring around it."""
    tall = SIDE * generator.uniform(0.15, 0.35)
    wide = tall * generator.uniform(0.7, 1.4)
    row, column = (generator.uniform(half, SIDE - half) for half in (tall / 2, wide / 2))
    down, across = np.mgrid[:SIDE, :SIDE]
    apart = torch.from_numpy(((down - row) / tall) ** 2 + ((across - column) / wide) ** 2)
    return apart <= 0.25, (apart > 0.25) & (apart <= 0.375)


def _edited(x: Tensor, other: Tensor, mask: Tensor, ring: Tensor, edit: str) -> Tensor:
    y = x.clone()
    if edit == "paste":
        y[:, mask] = other.roll((SIDE // 3, SIDE // 3), (1, 2))[:, mask]
    elif edit == "erase":
        y[:, mask] = x[:, ring].mean(1, keepdim=True)
    elif edit == "recolour":
        y[:, mask] = x[[1, 2, 0]][:, mask]
    else:
        y[:, mask] = _tensor(_picture(x).filter(ImageFilter.GaussianBlur(4)))[:, mask]
    return y


def _picture(x: Tensor) -> Image.Image:
    return Image.fromarray((x.permute(1, 2, 0) * 255).round().byte().numpy())


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


def disturbed(pair: Pair, how: str, number: int, metric: RobustPerceptualDistance | None) -> Tensor:
    """Disturb the edited image all over."""
    y = pair.y
    if how == "random 4/255":
        signs = torch.randint(0, 2, y.shape, generator=torch.Generator().manual_seed(number)) * 2 - 1
        return (y + EPS * signs).clamp(0, 1)
    if how == "JPEG 75":
        file = io.BytesIO()
        _picture(y).save(file, "JPEG", quality=75)
        return _tensor(Image.open(file))
    if how == "attack 4/255" and metric is not None:
        embedding = metric.embed(y[None])
        found = apgd(
            lambda images, _: metric.distance_to(embedding, images), y[None], LpBall("linf", EPS), 10, seeds=[number]
        )
        return found.images[0]
    return y


def area_under_curve(values: Tensor, mask: Tensor) -> float:
    """The probability that a pixel inside has a larger value than one outside; ties count half."""
    _, place, count = values.flatten().double().unique(return_inverse=True, return_counts=True)
    ranks = (count.cumsum(0) - (count - 1) / 2)[place]
    inside = mask.flatten()
    ones, zeros = int(inside.sum()), int((~inside).sum())
    return min(1.0, float((ranks[inside].sum() - ones * (ones + 1) / 2) / (ones * zeros)))  # it may round up


def others() -> dict[str, Map]:
    """The maps of other metrics."""
    import lpips

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it names torchvision's arguments as they once were
        torch.manual_seed(0)
        spatial = lpips.LPIPS(net="alex", pnet_rand=True, spatial=True, verbose=False).eval()

    def by_lpips(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = spatial(x[None], y[None], normalize=True)[0, 0]
        return found

    def by_ssim(x: Tensor, y: Tensor) -> Tensor:
        arrays = (image.permute(1, 2, 0).numpy() for image in (x, y))
        _, found = structural_similarity(*arrays, channel_axis=2, data_range=1.0, full=True)
        return torch.from_numpy(1 - found.mean(2))

    return {"LPIPS (random trunk)": by_lpips, "SSIM": by_ssim, "|x - y|": lambda x, y: (x - y).abs().mean(0)}


def drawn(
    found: dict[str, Map], chosen: list[Pair], how: str, metric: RobustPerceptualDistance | None
) -> tuple[dict[str, dict[int, Tensor]], dict[str, float]]:
    """Draw the map of every method and pair, a round for each pair; and the median processor time of each in ms."""
    made: dict[str, dict[int, Tensor]] = {method: {} for method in found}
    now: tuple[int, Pair, Tensor]

    def prepare(number: int) -> None:
        nonlocal now
        now = number, chosen[number], disturbed(chosen[number], how, number, metric)

    def draw(method: str) -> None:
        number, pair, y = now
        made[method][number] = found[method](pair.x, y)

    turns = take_turns({method: partial(draw, method) for method in found}, len(chosen), prepare=prepare)
    return made, {method: 1000 * seconds for method, seconds in turns.processor.items()}


def judged(name: str, found: dict[str, Map], chosen: list[Pair], metric: Any, quiet: bool) -> list[dict[str, Any]]:
    """Judge several maps of one model on all pairs, under every disturbance."""
    rows = []
    for how in DISTURBED:
        if how == "attack 4/255" and metric is None:
            continue
        made, milliseconds = drawn(found, chosen, how, metric)
        for method, maps in made.items():
            areas = [area_under_curve(maps[number], pair.mask) for number, pair in enumerate(chosen)]
            hits = [float(pair.mask.flatten()[maps[number].argmax()]) for number, pair in enumerate(chosen)]
            parts = [pair.edit for pair in chosen]
            row: dict[str, Any] = {"model": name, "method": method, "disturbed": how, "pairs": len(chosen)}
            row["area"] = {key: value / 100 for key, value in _mean(areas).items()}
            row["pointing"] = {key: value / 100 for key, value in _mean(hits).items()}
            row["area_by_edit"] = {
                edit: round(statistics.mean(area for area, part in zip(areas, parts, strict=True) if part == edit), 4)
                for edit in EDITS
                if edit in parts
            }
            row["processor_ms"] = round(milliseconds[method], 2)
            rows.append(row)
            if not quiet:
                print(f"{name:22} {method:12} {how:14} {row['area']['mean']:.4f} {row['pointing']['mean']:.3f}")
    return rows


def _mean(scores: list[float]) -> dict[str, float]:
    found = summary(scores, [""] * len(scores), macro=False)
    assert found is not None
    low, high = found["interval_95"]
    return {"mean": found["accuracy"], "low": low, "high": high}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photographs", type=Path, help="a folder of images")
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--slow-pairs", type=int, default=100, help="for the methods of many passes")
    parser.add_argument("--models", nargs="+", default=["r-lite-f", "lite", "tiny", "tiny-clean"])
    parser.add_argument("--out", type=Path, help="a .json, or a folder")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args(arguments)
    chosen = list(pairs(args.photographs, args.pairs))
    settings = {"pairs": args.pairs, "slow_pairs": args.slow_pairs, "side": SIDE, "steps": 8, "edits": EDITS}
    settings |= {"images": args.photographs.name, "versions": library_versions()}
    report = Report("benchmark_difference_maps", args.out, settings)
    for model in args.models:
        metric = RobustPerceptualDistance(model, squared=True, resize="squash")
        maps: dict[str, Map] = {
            method: lambda x, y, method=method, metric=metric: metric.difference_map(  # type: ignore[misc]
                x[None], y[None], method, steps=8
            )[0]
            for method in METHODS
        }
        quick = {method: maps[method] for method in ("features", "gradient")}
        slow = {method: maps[method] for method in ("smoothed", "integrated")}
        rows = judged(model, quick, chosen, metric, args.quiet)
        if args.slow_pairs:
            rows += judged(model, slow, chosen[: args.slow_pairs], metric, args.quiet)
        report.add(model, rows)
    for name, make in others().items():
        report.add(name, judged(name, {"its own": make}, chosen, None, args.quiet))
    return report.record


if __name__ == "__main__":
    main()
