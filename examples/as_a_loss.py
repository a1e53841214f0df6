"""The distance as a loss: first find an image, then train an autoencoder, with code written for LPIPS.

    python examples/as_a_loss.py
    python examples/as_a_loss.py --model r-clip-f --steps 200 --size 224

Needs no data: the images are made here. With `--out` the optimised image is written beside its target.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rclip_metric import RobustPerceptualDistance


class Losses(NamedTuple):
    """Loss before the first and after the last step."""

    image: tuple[float, float]
    autoencoder: tuple[float, float]


def shapes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, 3, size, size) in [0, 1]: a coloured disc on a graded background."""
    axis = torch.linspace(0, 1, size)
    row, column = axis[:, None], axis[None, :]
    background, disc = torch.rand(2, count, 3, 1, 1, generator=generator)
    centre = 0.25 + 0.5 * torch.rand(2, count, 1, 1, 1, generator=generator)
    radius = 0.1 + 0.2 * torch.rand(count, 1, 1, 1, generator=generator)
    inside = torch.sigmoid(80 * (radius - ((row - centre[0]) ** 2 + (column - centre[1]) ** 2).sqrt()))
    return background * (0.5 + 0.5 * row) * (1 - inside) + disc * inside


class Autoencoder(nn.Module):
    """Three strided convolutions down to 8 channels, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 8, 4, 2, 1)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(8, 32, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(16, 3, 4, 2, 1),
            nn.Sigmoid(),  # [0, 1], the range of the metric
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def optimise_an_image(loss_fn: RobustPerceptualDistance, target: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    """Walk from gray to an image that looks like the target to the encoder."""
    reference = loss_fn.embed(target)  # once: the target does not change
    image = torch.full_like(target, 0.5).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.02)
    history = []
    for _ in range(steps):
        loss = loss_fn.distance_to(reference, image).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            image.clamp_(0, 1)  # stay an image
        history.append(loss.item())
    return image.detach(), history


def train_an_autoencoder(loss_fn: RobustPerceptualDistance, images: Tensor, steps: int) -> list[float]:
    """The loop as it stands in any LPIPS code; only the line that makes loss_fn is another."""
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(steps):
        reconstruction = model(images)
        loss = loss_fn(reconstruction, images).mean() + nn.functional.mse_loss(reconstruction, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def main(argv: Sequence[str] | None = None) -> Losses:
    """Run both and return their losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="name, path or Hub id (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="of each optimisation (default: %(default)s)")
    parser.add_argument("--size", type=int, default=96, help="of the images, a multiple of 8 (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="write the target and the optimised image, side by side, to this file")
    arguments = parser.parse_args(argv)

    torch.manual_seed(arguments.seed)
    images = shapes(arguments.batch_size, arguments.size, torch.Generator().manual_seed(arguments.seed))
    # With LPIPS: loss_fn = lpips.LPIPS(net="vgg"), and images in [-1, 1] (here: value_range=(-1, 1)).
    # "squash", because the published crop would leave the border without a gradient.
    loss_fn = RobustPerceptualDistance(arguments.model, squared=True, resize="squash")
    print(loss_fn)

    image, found = optimise_an_image(loss_fn, images[:1], arguments.steps)
    print(f"an image from its embedding: loss {found[0]:.4f} -> {found[-1]:.4f}")
    trained = train_an_autoencoder(loss_fn, images, arguments.steps)
    print(f"an autoencoder:              loss {trained[0]:.4f} -> {trained[-1]:.4f}")

    if arguments.out:
        from torchvision.utils import save_image

        save_image(torch.cat([images[:1], image]), arguments.out)
        print(f"target and optimised image: {arguments.out}")
    return Losses((found[0], found[-1]), (trained[0], trained[-1]))


if __name__ == "__main__":
    main()
