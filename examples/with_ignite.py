"""The distance as loss and as validation metric in PyTorch-Ignite.

    pip install pytorch-ignite
    python examples/with_ignite.py

Needs no data: a layer learns to give back the colours of faded images, which are made here.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.metrics import Average
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rclip_metric import RobustPerceptualDistance

Batch = tuple[Tensor, Tensor]


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
    network = nn.Conv2d(3, 3, 1)
    nn.init.zeros_(network.weight)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-2)
    # The network overshoots [0, 1]: "clamp" leaves the gradients that lead back.
    metric = RobustPerceptualDistance(arguments.model, resize="squash", out_of_range="clamp")
    loader = DataLoader(images(16, arguments.size), 8, shuffle=True)

    def train(engine: Engine, batch: Batch) -> float:
        faded, clean = batch
        restored = faded + network(faded)
        loss = metric(restored, clean).square().mean() + F.mse_loss(restored, clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(engine: Engine, batch: Batch) -> Tensor:
        faded, clean = batch
        return metric(faded + network(faded), clean)[:, None]  # (N, 1): Ignite averages over the first dimension

    trainer, evaluator = Engine(train), Engine(evaluate)
    Average().attach(evaluator, "distance")
    found: list[float] = []

    @trainer.on(Events.STARTED | Events.EPOCH_COMPLETED)
    def validate() -> None:
        found.append(float(evaluator.run(loader).metrics["distance"]))

    trainer.run(loader, max_epochs=arguments.epochs)
    print("distance before and after each epoch:", *(f"{value:.4f}" for value in found))
    return found


if __name__ == "__main__":
    main()
