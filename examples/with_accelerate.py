"""The distance as loss and as validation metric in Hugging Face Accelerate.

    pip install accelerate
    python examples/with_accelerate.py
    accelerate launch examples/with_accelerate.py        # on all GPUs

Needs no data: a layer learns to give back the colours of faded images, which are made here.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rclip_metric import RobustPerceptualDistance


def images(count: int, size: int) -> TensorDataset:
    """Pairs of faded and clean images in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    clean = F.interpolate(torch.rand(count, 3, 4, 4, generator=generator), (size, size), mode="bilinear")
    yellow = torch.tensor([0.7, 0.6, 0.2]).view(3, 1, 1)
    return TensorDataset(0.3 * clean + 0.7 * yellow, clean)


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train; return the validation distance before and after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="name, path or Hub id (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="of the images (default: %(default)s)")
    arguments = parser.parse_args(argv)

    torch.manual_seed(0)
    accelerator = Accelerator()
    network = nn.Conv2d(3, 3, 1)
    nn.init.zeros_(network.weight)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-2)
    loader = DataLoader(images(16, arguments.size), 8, shuffle=True)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    # Not prepared: it has nothing to train, so that DDP would find no gradient to reduce. "clamp", because the network
    # overshoots [0, 1]; the gradients that lead back stay.
    metric = RobustPerceptualDistance(arguments.model, resize="squash", out_of_range="clamp").to(accelerator.device)

    @torch.no_grad()
    def validate() -> float:
        distances = [
            accelerator.gather_for_metrics(metric(faded + network(faded), clean))  # (N,) of all processes
            for faded, clean in loader
        ]
        return torch.cat(distances).mean().item()

    found = [validate()]
    for _ in range(arguments.epochs):
        for faded, clean in loader:
            restored = faded + network(faded)
            loss = metric(restored, clean).square().mean() + F.mse_loss(restored, clean)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        found.append(validate())
    accelerator.print("distance before and after each epoch:", *(f"{value:.4f}" for value in found))
    return found


if __name__ == "__main__":
    main()
