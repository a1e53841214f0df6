"""Tuning of LPIPS's heads (Zhang et al. 2018, arXiv 1801.03924), and its adversarial form, R-LPIPS (arXiv 2307.15157).

    min over w >= 0 and G of  E max_{||z - x|| <= eps} BCE(G(d(z, x0), d(z, x1)), h)

x is the reference, x0 and x1 are the left and the right image, h is the share of people who prefer the right one, d is
LPIPS with the weights w (`rclip_metric.train.metrics.lpips`), and G a small network that is thrown away at the end.
Plain tuning has z = x.

What the published code of R-LPIPS does (SaraGhazanfari/R-LPIPS 7275b43, lpips/trainer.py), and what is done here:

- Its radius of 8/255 is one of images in [-1, 1], so 4/255 of [0, 1], and its points may leave the box. Here the radius
  is that of [0, 1], 4/255 by default, and points stay in ball and box, as everywhere in this package.
- Its 50 steps have a length of 1e4 and are then clamped: every point is a corner of the ball, and the last one counts.
  Such steps find less than shorter ones (results/r_lpips.json), which are a quarter of the radius long here by default;
  `step_size` 1 makes them as published, and `attack` "apgd" finds their length itself.
- It draws a new ranking network for every step of the attack, and raises the loss under that one. Of such a network it
  is a matter of chance whether more of d0 means more or less loss, so that about as many of its steps help the metric
  as harm it, and the last one decides: of four such attacks three leave a metric about as it was
  (results/r_lpips.json). Here the attack raises the very loss that is being minimised, under G as it stands.
- It attacks under dropout, with other masks at every step. Here the attack sees the metric without dropout.
- It sets negative weights to 0 after every step, and begins with some. Here none is below 0 before the first either.
- It sets all negative weights of 1x1 convolutions to 0, which SqueezeNet's trunk has too, and so compares other
  features than the metric that is read back does. Here the weights of the heads alone are clamped.
- The weights after the last epoch are the result, as here, and nothing is validated on the way.
- Its images are brought to 64 pixels by torchvision on Pillow, bilinearly, as here.
- It perturbs the left or the right image, or both, if it is told to, and can do so by another loss. Here it is the
  reference alone, as for its own checkpoint latest_net_linf_ref.pth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.errors import WeightsError
from rclip_metric.progress import progress
from rclip_metric.train.data.triplet_images import TripletImages
from rclip_metric.train.data.triplets import BAPPS_TRAINING_SPLITS, read_bapps_training
from rclip_metric.train.evaluation.tasks.two_afc import loader_at
from rclip_metric.train.finetuning.lpips.config import LpipsConfig
from rclip_metric.train.finetuning.lpips.step import (
    RankingNetwork,
    StepResult,
    draw_heads,
    trained_parameters,
    update,
)
from rclip_metric.train.finetuning.nights.loop import TuningLog
from rclip_metric.train.finetuning.nights.run import digests
from rclip_metric.train.metrics.lpips import Lpips, fetch_trunk, random_trunk, read_trunk
from rclip_metric.train.metrics.registry import is_baseline
from rclip_metric.train.metrics.weight_files import METRIC_FILE, Converted, write_stored
from rclip_metric.train.runs.checkpoint import TrainingState, latest_state, restore_training, save_state
from rclip_metric.train.runs.distributed import chosen_device
from rclip_metric.train.runs.files import write_json
from rclip_metric.train.runs.interrupt import Interrupt, Interrupted
from rclip_metric.train.runs.log import LOG_NAME
from rclip_metric.train.runs.machine import device_name, device_record, versions
from rclip_metric.train.runs.precision import full_float32
from rclip_metric.train.runs.seeds import mixed_seed, seeded, temporary_seed
from rclip_metric.weights import tensors_digest


@dataclass
class Standing:
    """Where a run stands, as its state remembers it.

    Attributes:
        epoch: the epoch that is under way, from 1.
        done: its steps that are done.
        seen: triplets in them.
        loss: sum of their losses.
        agreement: sum of the shares of people that the metric agreed with.
        epochs: a record per epoch that is over.
        seconds: spent so far.
        unreadable: the triplets left out and why.
    """

    epoch: int = 1
    done: int = 0
    seen: int = 0
    loss: float = 0.0
    agreement: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)

    def means(self) -> dict[str, float | None]:
        """Average over the epoch so far: the loss, and the percentage of people that the metric agreed with."""
        if not self.seen:
            return {"loss": None, "agreement": None}
        return {"loss": self.loss / self.seen, "agreement": 100 * self.agreement / self.seen}

    def add(self, found: StepResult, count: int) -> None:
        """Count a step on `count` triplets."""
        self.done, self.seen = self.done + 1, self.seen + count
        self.loss, self.agreement = self.loss + found.loss * count, self.agreement + found.agreement * count

    def finish(self, rate: float, seconds: float) -> None:
        """Close the epoch and begin the next."""
        record = {"epoch": self.epoch, **self.means(), "triplets": self.seen, "learning_rate": rate}
        self.epochs.append({**record, "seconds": round(seconds, 3)})
        self.epoch, self.done, self.seen, self.loss, self.agreement = self.epoch + 1, 0, 0, 0.0, 0.0


def tune_lpips(
    data: Path,
    out: Path,
    config: LpipsConfig = LpipsConfig(),  # noqa: B008 (frozen)
    *,
    name: str,
    splits: Sequence[str] = BAPPS_TRAINING_SPLITS,
    device: str | torch.device = "cpu",
    workers: int = 0,
    quiet: bool = False,
) -> Lpips:
    """Tune LPIPS on a BAPPS-format set and write it to `out/metric.safetensors`, which `load_metric(out)` reads.

    `out/log.jsonl` has a line per 10 steps and per epoch; `out/state-STEP.safetensors` is where the run stands. A run
    that finds one goes on there, and on a CPU it ends with the very weights that it would have had without a break. A
    triplet with an image that cannot be read is left out, counted, and named in the log.

    Args:
        data: folder with 2afc/train.
        out: folder for the states, the log and the result.
        config: the recipe.
        name: of the new metric.
        splits: of the training triplets; R-LPIPS takes all three.
        device: "cpu", "cuda", ..., or "auto" for a GPU where there is one.
        workers: threads that read images while the device works; 0 reads in between.
        quiet: no progress bar.

    Returns:
        The tuned metric's network, frozen.

    Raises:
        ValueError: for data that cannot be used, or states of other settings.
        WeightsError: torchvision's trunk is not here and cannot be fetched.
        FloatingPointError: if the loss is not finite.
        StorageError: if a state cannot be written; the last one survives.
        Interrupted: after SIGTERM or SIGINT, when the state is saved.

    Example:
        >>> import tempfile
        >>> from rclip_metric.train.data.scenes import write_bapps
        >>> from rclip_metric.train.metrics import load_metric
        >>> recipe = LpipsConfig(random_trunk=True, image_size=32, epochs=1, decay_epochs=0)
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     _ = write_bapps(folder, per_split=1, training=2, quiet=True)
        ...     tuned = tune_lpips(folder, folder / "tuned", recipe, name="tuned", quiet=True)
        ...     metric = load_metric(str(folder / "tuned"))
        >>> metric.name, metric.image_size, metric.describe()["trained"]["method"]
        ('tuned', 32, 'LPIPS heads')
    """
    begun = time.perf_counter()
    if not name or not name.isprintable():
        raise ValueError(f"the new metric needs a name of one line, and it is {name!r}: pass --name")
    if is_baseline(name):
        raise ValueError(f"{name} is the name of a metric that there is: pass another --name")
    device = chosen_device(str(device))
    files = read_bapps_training(data, splits)
    network, trunk = _network(config)
    settings = config.computed | digests(network, {"train": files})
    state = latest_state(out, settings)
    standing = Standing() if state is None else Standing(**state.facts)
    images = TripletImages(files, loader_at(config.image_size, "bilinear"), config.image_size, threads=workers)
    images.unreadable.update(standing.unreadable)
    out.mkdir(parents=True, exist_ok=True)
    rank = RankingNetwork(config.hidden, mixed_seed(config.seed, 1)).to(device)
    network.to(device)
    log = TuningLog(out / LOG_NAME, {"train": images}, config.max_unreadable)
    tuning = Tuning(out, settings, config, network, rank, images, log, standing)
    standing.seconds += time.perf_counter() - begun
    if state is not None:
        tuning.restore(state)
    with full_float32():
        tuning.run(quiet)
    network.requires_grad_(False)
    run = {"device": device_name(device), "workers": workers, "save_every": config.save_every}
    _write(tuning, name, data, splits, trunk, run)
    return network


def _network(config: LpipsConfig) -> tuple[Lpips, str]:
    """Build the metric that a run begins with, and say which trunk it has."""
    network = Lpips(config.trunk)
    if config.random_trunk:
        tensors, trunk = random_trunk(network, config.trunk_seed), f"random, seed {config.trunk_seed}"
    else:
        try:
            path = fetch_trunk(config.trunk)
        except WeightsError as error:
            raise type(error)(f"{str(error).removesuffix('.')}, or train on --random-trunk.") from error
        tensors, trunk = read_trunk(config.trunk, path), path.name
    return network.load(tensors | draw_heads(network, mixed_seed(config.seed, 0))), trunk


class Tuning:
    """A run: what is trained, on what, and where it stands.

    Attributes:
        trained: the parameters, by name.
        optimizer: over them.
        standing: where the run stands.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        config: LpipsConfig,
        network: Lpips,
        rank: RankingNetwork,
        images: TripletImages,
        log: TuningLog,
        standing: Standing,
    ) -> None:
        """Begin with the weights as they are.

        Args:
            out: folder of the states.
            settings: what a state must agree in to be continued.
            config: the recipe.
            network: LPIPS, on its device.
            rank: the ranking network, there too.
            images: the triplets.
            log: where lines go.
            standing: where the run stands.
        """
        self.out, self.settings, self.config = out, settings, config
        self.network, self.rank, self.images, self.log, self.standing = network, rank, images, log, standing
        trained = trained_parameters(network, rank, config.train_trunk)
        # A ParameterDict takes no dots in its keys.
        self.trained = nn.ParameterDict({name.replace(".", "/"): p for name, p in trained.items()})
        betas = (config.betas[0], config.betas[1])
        self.optimizer = torch.optim.Adam(self.trained.parameters(), lr=config.learning_rate, betas=betas)
        self._share = torch.tensor([triplet.share for triplet in images.triplets])
        self._begun = self._epoch_begun = time.perf_counter()
        self._before = standing.seconds

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.images) / self.config.batch_size)

    def restore(self, state: TrainingState) -> None:
        """Go on from a state; `standing` has its facts already."""
        restore_training(state, self.trained, self.optimizer)

    def run(self, quiet: bool = False) -> None:
        """Train to the end of the last epoch.

        Raises:
            FloatingPointError: if a loss is not finite.
            ValueError: if too many triplets cannot be read.
            Interrupted: after a signal, when the state is saved.
        """
        self._begun, self._before = time.perf_counter(), self.standing.seconds
        with Interrupt() as interrupt:
            while self.standing.epoch <= self.config.last_epoch:
                self.train(interrupt, quiet)

    def train(self, interrupt: Interrupt, quiet: bool) -> None:
        """Train to the end of the epoch that is under way, from the step that it has come to."""
        config, standing = self.config, self.standing
        rate, label = config.rate(standing.epoch), f"epoch {standing.epoch}/{config.last_epoch}"
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        order = torch.randperm(len(self.images), generator=seeded(config.seed, standing.epoch))
        bar = progress(
            self.images.batches(order.split(config.batch_size)[standing.done :]),
            label=label,
            unit="step",
            initial=standing.done,
            total=self.steps,
            quiet=quiet,
        )
        begun = time.perf_counter()
        for indices, pixels in bar:
            found = self._step(indices, pixels)
            standing.add(found, len(indices))
            means = standing.means()
            bar.set_postfix_str("" if means["loss"] is None else f"loss {means['loss']:.4f}")
            if standing.done % 10 == 0 or standing.done == self.steps:
                seconds = round(time.perf_counter() - begun, 2)
                self.log({"epoch": standing.epoch, "step": standing.done, **means, "seconds": seconds})
                self.log.unreadable()
            if standing.done < self.steps and (standing.done % config.save_every == 0 or interrupt.signal):
                self._save()
            if interrupt.signal and standing.done < self.steps:
                raise Interrupted(interrupt.signal, f"{self.out} goes on from step {standing.done} of {label}")
        self.log.unreadable()
        standing.finish(rate, time.perf_counter() - begun)
        self.log(standing.epochs[-1])
        self._save()
        if interrupt.signal and standing.epoch <= config.last_epoch:
            raise Interrupted(interrupt.signal, f"{self.out} goes on from the end of {label}")

    def _step(self, indices: Tensor, pixels: Tensor) -> StepResult:
        if not len(indices):
            return StepResult(0.0, 0.0)
        config, standing = self.config, self.standing
        device = self.network.shift.device
        triplets, share = pixels.to(device).float() / 255, self._share[indices].to(device)
        with temporary_seed(mixed_seed(config.seed, standing.epoch, standing.done), device):
            found = update(self.network, self.rank, triplets, share, self.optimizer, config)
        if not math.isfinite(found.loss):
            some = ", ".join(self.images.triplets[index].key for index in indices[:5].tolist())
            raise FloatingPointError(
                f"the loss is {found.loss} at step {standing.done + 1} of epoch {standing.epoch} (triplets {some}, "
                "...): lower the learning rate, or look at these images and at the trunk"
            )
        return found

    def _save(self) -> None:
        standing = self.standing
        if not all(bool(parameter.isfinite().all()) for parameter in self.trained.parameters()):
            raise FloatingPointError(f"the weights are not finite in epoch {standing.epoch}: lower the learning rate")
        standing.seconds = self._before + time.perf_counter() - self._begun
        standing.unreadable = dict(self.images.unreadable)
        step, facts = (standing.epoch - 1) * self.steps + standing.done, asdict(standing)
        save_state(self.out, step, self.settings, model=self.trained, optimizer=self.optimizer, facts=facts)


def _write(tuning: Tuning, name: str, data: Path, splits: Sequence[str], trunk: str, run: Mapping[str, Any]) -> None:
    """Write the metric, and run.json."""
    config, standing, images = tuning.config, tuning.standing, tuning.images
    method = "R-LPIPS" if config.adversarial else "LPIPS"
    about = {
        "name": name,
        "method": f"{method}, heads and trunk" if config.train_trunk else f"{method} heads",
        "trunk": trunk,
        "image_size": config.image_size,
        "threat": None if config.ball is None else str(config.ball),
    }
    tensors = {key: value.contiguous() for key, value in tuning.network.state_dict().items()}
    stored = {"net": config.trunk, "version": "0.1", "trained": about}
    write_stored("r-lpips", Converted(tensors, stored, files=[]), tuning.out / METRIC_FILE)
    seen = sum(epoch["triplets"] for epoch in standing.epochs)
    record = {
        **about,
        "metric": {"file": METRIC_FILE, "weights": tensors_digest(tensors)},
        "data": {
            "path": str(data),
            "splits": list(splits),
            "triplets": len(images) - len(images.unreadable),
            "unreadable": len(images.unreadable),
            "digests": {key: tuning.settings[key] for key in ("triplets", "images")},
        },
        "base": tuning.settings["base"],
        "recipe": {key: value for key, value in config.computed.items() if key != "seed"},
        "run": {
            **run,
            "trained_parameters": sum(parameter.numel() for parameter in tuning.trained.parameters()),
            "images_through_the_trunk": seen * config.passes,
        },
        "seed": config.seed,
        "versions": versions(),
        "device": device_record(tuning.network.shift.device),
        "seconds": round(standing.seconds, 1),
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "epochs": standing.epochs,
    }
    write_json(tuning.out / "run.json", record)
