"""The command `diff`: where two images differ, in words, as numbers and as a picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.cli.run import Run, UsageError, check_apart, number
from rclip_metric.printing import say

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Array = np.ndarray[Any, Any]

_LARGEST = 1536
"""Pixels on the longer side of what is compared and drawn."""
_PICTURES = (".jpg", ".pdf", ".png", ".svg")
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same picture is the same file
_WIDTH = 5.5  # inches of an image in the picture
_PLOTS = 'the picture needs matplotlib: pip install "rclip-metric[plot]"'


def diff(args: argparse.Namespace) -> int:
    """Print the distance and where the images differ most, and write the map; return the exit code."""
    paths = [Path(args.a), Path(args.b)]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} is {'a folder' if path.is_dir() else 'no file'}, expected an image")
    out = None if args.out is None else Path(args.out)
    _require_writable(out, args.side_by_side, paths)
    run = Run(args)
    from rclip_metric.images.reading import load_image, open_image
    from rclip_metric.retrieval import distances, significant

    with run.embeddings(paths) as embeddings:
        u, v = (embeddings[path] for path in paths)
    if u is None or v is None:
        return 2
    distance = distances(u, v[None], args.squared)[0]
    images = []
    for path in paths:
        picture = open_image(path)
        if max(picture.size) > _LARGEST:
            picture.thumbnail((_LARGEST, _LARGEST))
            run.remark(f"{path} is compared at {picture.width}x{picture.height} pixels")
        images.append(load_image(picture)[None].to(run.metric.device))
    with run.working(progress=False):
        try:
            found = run.metric.difference_map(images[0], images[1], args.method)[0].cpu()
        except ValueError as error:
            raise UsageError(str(error)) from error
    row, column = divmod(int(found.argmax()), found.shape[1])
    peak = found[row, column].item()
    if out is not None and out.suffix == ".npy":
        _write_numbers(out, found)
    elif out is not None:
        _write_picture(out, [image[0].cpu() for image in images], found, _caption(args, distance, run), args)
    facts = {"a": str(paths[0]), "b": str(paths[1]), "distance": significant(distance), "method": args.method}
    facts |= {"height": found.shape[0], "width": found.shape[1], "mean": significant(found.mean().item())}
    facts |= {"peak": {"value": significant(peak), "row": row, "column": column}, "out": args.out}
    if args.json:
        say(json.dumps({**facts, **run.identity, "settings": run.settings}))
        return 0
    say(f"{number(distance)}  {run.label}")
    where = f"differs most at column {column}, row {row} of {found.shape[1]}x{found.shape[0]}"
    say(f"{where}: {number(peak)}, {number(found.mean().item())} on average" if peak else "differs nowhere")
    return 0


def _caption(args: argparse.Namespace, distance: float, run: Run) -> str:
    name = f"{run.identity['model']}@{str(run.identity['revision']).removeprefix('sha256:')[:12]}"
    measure = "1 - cos" if args.squared else "sqrt(1 - cos)"
    return f"distance {number(distance)} ({measure}) by {name}"


def _require_writable(out: Path | None, side_by_side: bool, read: list[Path]) -> None:
    """Find out what would fail before a model is loaded."""
    from importlib.util import find_spec

    if out is None:
        if side_by_side:
            raise UsageError("--side-by-side is about the picture: say where it goes with --out map.png")
        return
    if out.suffix not in (*_PICTURES, ".npy"):
        raise UsageError(f"{out} must end in {', '.join(_PICTURES)} (a picture) or .npy (the numbers)")
    check_apart(out, read)
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent} for {out.name}")
    if out.suffix in _PICTURES and find_spec("matplotlib") is None:
        raise UsageError(_PLOTS)


def _write_numbers(path: Path, found: Tensor) -> None:
    import numpy as np

    from rclip_metric.files import written_whole

    with written_whole(path) as partial, partial.open("wb") as file:
        np.save(file, found.numpy())


def _write_picture(path: Path, images: list[Tensor], found: Tensor, caption: str, args: argparse.Namespace) -> None:
    """Draw the map over the first image, with its scale; beside both images if that was asked for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from rclip_metric.files import written_whole

    height, width = found.shape
    columns = 3 if args.side_by_side else 1
    tall = min(max(_WIDTH * height / width, 1.5), 2 * _WIDTH)
    figure = Figure(figsize=(columns * _WIDTH + 1.2, tall + 1.1), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for panel, image, name in zip(axes[:-1], images, (args.a, args.b), strict=False):
        panel.imshow(_pixels(image))
        panel.set_title(_title(name), fontsize=10, parse_math=False)
    largest = args.scale if args.scale is not None else max(found.max().item(), 1e-6)
    axes[-1].imshow(_pixels(images[0].mean(0, keepdim=True).expand(3, -1, -1) * 0.6 + 0.2))
    shares = (found / largest).clamp(0, 1)
    drawn = axes[-1].imshow(found.numpy(), cmap="inferno", vmin=0, vmax=largest, alpha=shares.sqrt().mul(0.9).numpy())
    axes[-1].set_title(f"where they differ ({args.method})", fontsize=10)
    for panel in axes:
        panel.set_axis_off()
    bar = figure.colorbar(drawn, ax=axes[-1], fraction=0.046, pad=0.02)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    words = {"features": "1 - cos of local features", "integrated": "share of 1 - cos"}
    bar.set_label(words.get(args.method, "change of 1 - cos, to first order"), fontsize=9)
    figure.suptitle(caption, fontsize=11, parse_math=False)
    with written_whole(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], metadata=_UNDATED.get(path.suffix))


def _pixels(image: Tensor) -> Array:
    return image.permute(1, 2, 0).clamp(0, 1).numpy()


def _title(name: str) -> str:
    from rclip_metric.printing import printable

    name = printable(Path(name).name)
    return name if len(name) <= 40 else f"{name[:18]}...{name[-18:]}"
