"""Your own metric beside R-CLIP, DreamSim, LipSim, LPIPS and the pixel metrics, on one page.

    python examples/benchmark_dreamsim_lipsim.py --data nights:/data/nights --out results/mine --timing

`build` below is all that your metric needs: a function from images to embeddings, and a name. Metrics whose weights are
not on this machine are reported, with where to get them, and the others go on. Without NIGHTS or a network:

    rclip-metric train scenes --out data/scenes
    python examples/benchmark_dreamsim_lipsim.py --data nights:data/scenes/nights --out results/mine \\
        --metrics tiny,tiny-clean,ssim,l2 --norms linf:4/255,l2:0.857 --image-size 64 --limit 100
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from rclip_metric.cli.main import main
from rclip_metric.train.metrics.base import EmbeddingMetric, Facts

OTHERS = "r-clip-f,r-clip-t,r-dino-f,dreamsim,lipsim-0.5,lpips-alex,r-lpips,ssim,psnr"
MINE = "benchmark_dreamsim_lipsim:build"


def edges(images: Tensor) -> Tensor:
    """Where the edges are and which way they run: (N, 3, 64, 64) in [0, 1] -> (N, 256), differentiable."""
    gray = images.mean(1, keepdim=True)  # (N, 1, 64, 64)
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device)
    slopes = F.conv2d(F.pad(gray, (1, 1, 1, 1), "reflect"), torch.stack([sobel, sobel.T])[:, None])  # (N, 2, 64, 64)
    directions = torch.cat([slopes.relu(), (-slopes).relu()], 1)  # right, down, left, up
    return F.avg_pool2d(directions, 8).flatten(1) + 1e-6


def build(device: str) -> EmbeddingMetric:
    """What ``--metrics my_module:build`` calls: a network would be loaded, frozen and moved to the device here."""
    return EmbeddingMetric(edges, 64, name="edges", device=device, facts=Facts("Edges (mine)", 0, "CC0"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as for rclip-metric benchmark")
    parser.add_argument("--out", required=True, help="folder for everything")
    parser.add_argument("--metrics", default=OTHERS, help="beside your own (default: %(default)s)")
    options, more = parser.parse_known_args()
    command = ["benchmark", "--metrics", f"{MINE},{options.metrics}", "--data", options.data, "--out", options.out]
    sys.exit(main([*command, "--certified", "--page", *more]))
