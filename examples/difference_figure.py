"""Draw where two photographs differ, as pixels and as metrics see it, when the whole image is disturbed as well.

    python examples/difference_figure.py --out examples/images/difference.png

The second image is the first with one edit (what lies in an ellipse comes from elsewhere in it) and random signs of
4/255 everywhere, which nobody sees. Needs the extras `lite` and `plot`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor

from rclip_metric import RobustPerceptualDistance, load_image

IMAGES = Path(__file__).parent / "images"
CENTRE, SIZE, FROM = (0.30, 0.62), (0.20, 0.24), (0.45, -0.30)  # shares of height and width
EPS = 4 / 255


def edited(x: Tensor) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Move something into an ellipse and disturb the rest: the image, and the ellipse's centre and size in pixels."""
    height, width = x.shape[1:]
    row, column, tall, wide = CENTRE[0] * height, CENTRE[1] * width, SIZE[0] * height, SIZE[1] * width
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = ((down - row) / tall) ** 2 + ((across - column) / wide) ** 2 <= 0.25
    y = torch.where(inside, x.roll((int(FROM[0] * height), int(FROM[1] * width)), (1, 2)), x)
    signs = torch.randint(0, 2, y.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (y + EPS * signs).clamp(0, 1), (column, row, wide, tall)


def main(arguments: list[str] | None = None) -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photograph", type=Path, default=IMAGES / "photo-reference.jpg")
    parser.add_argument("--models", nargs=2, default=["lite", "r-lite-f"])
    parser.add_argument("--out", type=Path, default=IMAGES / "difference.png")
    args = parser.parse_args(arguments)
    x = load_image(args.photograph)
    y, (column, row, wide, tall) = edited(x)
    panels = [("a photograph", x), ("one edit, and 4/255 everywhere", y), ("|x - y|", (x - y).abs().mean(0))]
    for name in args.models:
        metric = RobustPerceptualDistance(name, resize="squash")
        panels.append((name, metric.difference_map(x[None], y[None])[0]))
    figure = Figure(figsize=(3 * len(panels), 3.3), layout="constrained", dpi=72)
    FigureCanvasAgg(figure)
    for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        if values.ndim == 3:
            axes.imshow(values.permute(1, 2, 0).numpy())
        else:
            axes.imshow(values.numpy(), cmap="inferno", vmin=0)
            axes.add_patch(Ellipse((column, row), wide, tall, fill=False, color="white", linewidth=1))
        axes.set_title(title, fontsize=12)
        axes.set_axis_off()
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
