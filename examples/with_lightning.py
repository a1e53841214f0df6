"""The distance as loss and as validation metric in Lightning.

    pip install lightning torchmetrics
    python examples/with_lightning.py
    python examples/with_lightning.py --model r-lite-f --epochs 5

Needs no data: a layer learns to give back the colours of faded images, which are made here.
"""

import argparse
import warnings
from collections.abc import Sequence

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rclip_metric import RobustPerceptualDistance
from rclip_metric.torchmetric import RobustPerceptualDistanceMetric


class Restorer(lightning.LightningModule):
    def __init__(self, model: str) -> None:
        super().__init__()
        self.network = nn.Conv2d(3, 3, 1)
        nn.init.zeros_(self.network.weight)
        # A frozen submodule: it moves with this one, and neither the optimizer nor a checkpoint sees it. The network
        # overshoots [0, 1]: "clamp" leaves the gradients that lead back.
        self.loss = RobustPerceptualDistance(model, squared=True, resize="squash", out_of_range="clamp")
        self.distance = RobustPerceptualDistanceMetric(self.loss)
        self.found: list[float] = []

    def forward(self, faded: Tensor) -> Tensor:
        restored: Tensor = faded + self.network(faded)
        return restored

    def training_step(self, batch: list[Tensor]) -> Tensor:
        faded, clean = batch
        restored = self(faded)
        return self.loss(restored, clean).mean() + F.mse_loss(restored, clean)

    def validation_step(self, batch: list[Tensor]) -> None:
        self.distance.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        value = self.distance.compute()  # over all batches and processes
        self.log("distance", value)
        self.found.append(value.item())
        self.distance.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-2)


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
    warnings.filterwarnings("ignore", module="lightning")  # on workers and loggers, which so small a run needs none of

    torch.manual_seed(0)
    module, data = Restorer(arguments.model), images(16, arguments.size)
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.validate(module, DataLoader(data, 8), verbose=False)
    trainer.fit(module, DataLoader(data, 8, shuffle=True), DataLoader(data, 8))
    found = [module.found[0], *module.found[-arguments.epochs :]]
    print("distance before and after each epoch:", *(f"{value:.4f}" for value in found))
    return found


if __name__ == "__main__":
    main()
