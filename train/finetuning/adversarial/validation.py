"""What is measured while a run goes on: held-out cosines, clean and under PGD, and 2AFC accuracy on NIGHTS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric import RobustPerceptualDistance
from rclip_metric.encoder import Encoder
from rclip_metric.images import ImageError
from rclip_metric.train.attacks.losses import fare
from rclip_metric.train.attacks.pgd import pgd
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.images import find_images
from rclip_metric.train.data.triplets import read_nights
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, evaluate_two_afc
from rclip_metric.train.metrics.base import EncoderMetric
from rclip_metric.train.runs.seeds import sample_seed


class Validator:
    """How near an encoder phi stays to the original on images it is not trained on, and how it judges triplets.

    With z = argmax over the ball of || phi(z) - phi_orig(x) ||_2^2 (FARE's loss, by PGD), it gives

        clean_cosine        mean over x of cos(phi(x), phi_orig(x))
        adversarial_cosine  mean over x of cos(phi(z), phi_orig(x))
        loss                mean over x of || phi(z) - phi_orig(x) ||_2^2

    and with a set in the NIGHTS format, on the first triplets of its val split, two_afc_clean and two_afc_robust, the
    accuracy in percent without an attack and under APGD on the reference image. Every image and triplet has a random
    start of its own, the same at each validation: what changes is the encoder.

    Example:
        >>> from rclip_metric.weights import load_encoder
        >>> original, images = load_encoder("tiny"), torch.full((2, 3, 64, 64), 0.5)
        >>> validator = Validator(images, original, LpBall("linf", 2 / 255), steps=1)
        >>> found = validator(original)
        >>> round(found["clean_cosine"], 3), found["adversarial_cosine"] < 1
        (1.0, True)
    """

    def __init__(
        self,
        images: Tensor | None,
        original: nn.Module,
        ball: LpBall,
        *,
        steps: int = 10,
        step_size: float = 1 / 255,
        pgd_options: Mapping[str, Any] | None = None,
        seed: int = 0,
        nights: Path | None = None,
        nights_limit: int | None = 200,
        nights_steps: int = 10,
        allow_outside: bool = False,
        batch_size: int = 64,
    ) -> None:
        """Embed the held-out images with the original, once.

        Args:
            images: (N, 3, S, S) in [0, 1], held out; they may stay on the CPU. None for the triplets alone.
            original: phi_orig; embeds in its own precision, whatever autocast the encoder is judged under.
            ball: the threat model of both attacks.
            steps: of PGD.
            step_size: of PGD, in the scale of [0, 1] images.
            pgd_options: more for `pgd`, as `FinetuneConfig.pgd_options` gives it.
            seed: with an image's place or a triplet's key it makes the random start.
            nights: folder of a NIGHTS-format set.
            nights_limit: triplets of its val split, from the first; None for all.
            nights_steps: APGD iterations.
            allow_outside: paths in its data.csv may lead out of the folder.
            batch_size: images, or triplets, per pass; it does not change the numbers beyond float rounding.

        Raises:
            ValueError: if there is nothing to validate on, a number is out of its range, or `nights` is no such set.
        """
        if images is None and nights is None:
            raise ValueError("there is nothing to validate on: pass held-out images, a NIGHTS-format set, or both")
        if images is not None and (images.ndim != 4 or not len(images)):
            raise ValueError(f"held-out images must be (N, 3, S, S), N at least 1, and they are {tuple(images.shape)}")
        if batch_size < 1 or min(steps, nights_steps) < 0 or (nights_limit is not None and nights_limit < 1):
            raise ValueError(
                "validation needs a batch size and a number of triplets of at least 1 and steps that are not negative, "
                f"and has {batch_size}, {nights_limit}, {steps} and {nights_steps}"
            )
        self.images, self.ball, self.steps, self.step_size, self.seed = images, ball, steps, step_size, seed
        self.batch_size, self.pgd_options = batch_size, dict(pgd_options or {})
        self.targets: Tensor | None = None  # (N, D)
        if images is not None:
            device = next(original.parameters()).device
            with torch.no_grad(), torch.autocast(device.type, enabled=False), _only_pixels(original):
                parts = [original(part.to(device)).float().cpu() for part in images.split(batch_size)]
            self.targets = torch.cat(parts)
        self.triplets: TwoAfcData | None = None
        if nights is not None:
            triplets = read_nights(nights, "val", allow_outside=allow_outside)[:nights_limit]
            self.triplets = TwoAfcData(nights.name, "val", triplets, limit=nights_limit)
        self._apgd = AttackSettings(ball, steps=nights_steps)

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Judge an encoder in eval mode; its mode, requires_grad and gradients are as before when this is done.

        The cosines are taken under the caller's autocast, if there is one, and compared in float32; the triplets are
        judged in float32 throughout, where the smallest difference decides.
        """
        found: dict[str, float] = {}
        with _only_pixels(encoder):
            if self.images is not None:
                found |= self._cosines(encoder)
            if self.triplets is not None:
                found |= self._two_afc(encoder, self.triplets)
        return found

    def _cosines(self, encoder: Encoder) -> dict[str, float]:
        assert self.images is not None and self.targets is not None
        device = next(encoder.parameters()).device
        totals = torch.zeros(3, dtype=torch.float64)
        first = 0
        for part, kept in zip(self.images.split(self.batch_size), self.targets.split(self.batch_size), strict=True):
            images, target = part.to(device), kept.to(device)

            def loss(points: Tensor, target: Tensor = target) -> Tensor:
                return fare(encoder(points).float(), target)

            noise = self._noise(part, first).to(device)
            attacked = pgd(loss, images, self.ball, self.steps, self.step_size, noise=noise, **self.pgd_options)
            with torch.no_grad():
                clean, adversarial = encoder(images).float(), encoder(attacked).float()
                totals[0] += torch.cosine_similarity(clean, target).sum().item()
                totals[1] += torch.cosine_similarity(adversarial, target).sum().item()
                totals[2] += fare(adversarial, target).sum().item()
            first += len(part)
        means = (totals / len(self.images)).tolist()
        return dict(zip(("clean_cosine", "adversarial_cosine", "loss"), means, strict=True))

    def _noise(self, images: Tensor, first: int) -> Tensor:
        """Draw the random starts of images (B, 3, S, S), the first of which is held-out image `first`."""
        rows = []
        for place in range(first, first + len(images)):
            generator = torch.Generator().manual_seed(sample_seed(self.seed, f"validation {place}"))
            if self.ball.norm == "linf":
                rows.append(torch.rand(images.shape[1:], generator=generator) * 2 - 1)
            else:
                rows.append(torch.randn(images.shape[1:], generator=generator))
        return torch.stack(rows)

    def _two_afc(self, encoder: Encoder, triplets: TwoAfcData) -> dict[str, float]:
        run = RunSettings(seed=self.seed, batch_size=self.batch_size, chunk_size=self.batch_size)
        metric = EncoderMetric(RobustPerceptualDistance(encoder))
        with torch.autocast(metric.device.type, enabled=False):
            (record,) = evaluate_two_afc(metric, triplets, [self._apgd], run, quiet=True)
        return {"two_afc_clean": record["clean"]["accuracy"], "two_afc_robust": record["robust"]["accuracy"]}


def held_out(folder: Path, encoder: Encoder, count: int) -> Tensor:
    """Read images for a validation, evenly spread over the sorted files of any tree: (N, 3, S, S), N at most `count`.

    A file that cannot be read is passed over for the next one.

    Raises:
        ValueError: if there is no image, or none that can be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from rclip_metric.weights import load_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (80, 64)).save(Path(folder, "black.png"))
        ...     held_out(Path(folder), load_encoder("tiny"), count=4).shape
        torch.Size([1, 3, 64, 64])
    """
    paths = find_images(folder)
    count = min(count, len(paths))
    images = []
    for place in range(count):
        for path in paths[place * len(paths) // count : (place + 1) * len(paths) // count]:
            with contextlib.suppress(ImageError):
                images.append(encoder.preprocess(path))
                break
    if not images:
        raise ValueError(f"none of the images below {folder} can be read: pass a folder with images to validate on")
    return torch.stack(images)


@contextlib.contextmanager
def _only_pixels(module: nn.Module) -> Iterator[None]:
    """Switch to eval mode and off the gradients of weights inside; afterwards every part is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
