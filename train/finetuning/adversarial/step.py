"""One step of adversarial fine-tuning: attack the batch, then move the weights at the attacked images.

    min over phi of  E_x  max over ||z - x|| <= eps of  loss(phi(z), x)                       (paper, eq. 2 for FARE)

What makes it faster than the published loop: the attack runs on a copy of the encoder whose weights have no gradients
(in bfloat16 where the device is fast at it: cast once per step, not in every pass), the original is embedded once
per batch, no pass is made for logging alone, a batch is worked through in chunks that fit the device, and filters of
depthwise convolutions are differentiated as fast as images (`depthwise`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from rclip_metric.encoder import Encoder
from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.pgd import pgd
from rclip_metric.train.finetuning.adversarial.config import FinetuneConfig
from rclip_metric.train.finetuning.adversarial.depthwise import fast_depthwise_gradients
from rclip_metric.train.finetuning.adversarial.inner import (
    attacked_copy,
    refresh,
    skip_seed,
    skipped_blocks,
    start_noise,
    start_seed,
)
from rclip_metric.train.finetuning.adversarial.objectives import Embeddings
from rclip_metric.train.runs.distributed import ALONE, Team


@dataclass(frozen=True)
class StepResult:
    """What one update saw, over all processes; cosines are to the original's embedding of the clean image.

    Attributes:
        images: how many there were; 0 if none could be read, and then nothing was updated.
        loss: mean over the images.
        adversarial_cosine: of the attacked images; NaN where the original was not embedded (TeCoA, unless asked).
        clean_cosine: of the clean images; NaN unless asked for, or known anyway.
        gradient_norm: of all weights together, before clipping.

    Example:
        >>> StepResult(images=0)
        StepResult(images=0, loss=nan, adversarial_cosine=nan, clean_cosine=nan, gradient_norm=nan)
    """

    images: int
    loss: float = math.nan
    adversarial_cosine: float = math.nan
    clean_cosine: float = math.nan
    gradient_norm: float = math.nan


class NonFiniteLoss(FloatingPointError):
    """The loss or its gradient is NaN or infinite; no weight was changed.

    Attributes:
        images, attacked: the chunk of the batch where it showed; None in a process where it did not.

    Example:
        >>> error = NonFiniteLoss("the loss is nan at step 3", images=torch.zeros(2, 3, 64, 64))
        >>> isinstance(error, FloatingPointError), error.images.shape
        (True, torch.Size([2, 3, 64, 64]))
    """

    def __init__(self, message: str, images: Tensor | None = None, attacked: Tensor | None = None) -> None:
        """Keep the images for `checkpoint.save_batch`."""
        super().__init__(message)
        self.images, self.attacked = images, attacked


@dataclass
class _Sums:
    """Sums over the images of one step, so far."""

    loss: Any = 0.0
    adversarial: Any = 0.0
    clean: Any = 0.0
    bad: tuple[Tensor, Tensor] | None = field(default=None)


class AdversarialStep:
    """The step of one run: `step(images, keys, labels, number)` attacks and updates.

    Args:
        encoder: phi, on its device, float32; trained in place, always in eval mode (batch statistics would depend on
            the batch; of what train mode does, a ConvNeXt's skipped blocks are drawn here: see `skipped_blocks`).
        original: phi_orig; frozen.
        optimizer: over the encoder's parameters.
        config: what is computed.
        bfloat16: attack a bfloat16 copy and update under autocast; weights, loss and optimiser stay float32.
        chunk_size: most images per forward and backward pass; None for all at once.
        compiled: compile encoder, attacked copy and original with torch.compile.
        classes: for TeCoA, the unit embeddings (K, D) of the class prompts.
        team: the processes that share the batch.

    Attributes:
        objective: the loss, with its state.
        clock: called with "original", "attack" and "update" when a part of a step is over; None for nobody.

    Example:
        >>> from rclip_metric.weights import load_encoder
        >>> original, encoder = load_encoder("tiny"), load_encoder("tiny")
        >>> optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-4)
        >>> step = AdversarialStep(encoder, original, optimizer, FinetuneConfig(inner_steps=1))
        >>> result = step(torch.full((2, 3, 64, 64), 0.5), keys=[0, 1], labels=None, number=0)
        >>> result.images, result.loss > 0
        (2, True)
    """

    def __init__(
        self,
        encoder: Encoder,
        original: Encoder,
        optimizer: torch.optim.Optimizer,
        config: FinetuneConfig,
        *,
        bfloat16: bool = False,
        chunk_size: int | None = None,
        compiled: bool = False,
        classes: Tensor | None = None,
        team: Team = ALONE,
    ) -> None:
        """Make the copy that is attacked, and share the encoder's gradients with the team."""
        if config.objective.needs_labels != (classes is not None):
            raise ValueError("tecoa, and no other loss, needs the embeddings of the classes' prompts")
        self.encoder, self.original, self.optimizer, self.config = encoder, original, optimizer, config
        self.bfloat16, self.chunk_size, self.compiled, self.team = bfloat16, chunk_size, compiled, team
        self.clock: Callable[[str], None] | None = None
        encoder.eval().requires_grad_(True)
        original.eval().requires_grad_(False)
        self.attacked = attacked_copy(encoder, bfloat16)
        self.frozen = attacked_copy(original, bfloat16)
        self._attacked: Any = torch.compile(self.attacked) if compiled else self.attacked
        self._original: Any = torch.compile(self.frozen) if compiled else self.frozen
        module: Any = torch.compile(encoder) if compiled else encoder
        if team.count > 1:
            ids = [team.device] if team.device.type == "cuda" else None
            module = DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)
        self._module: Any = module
        self.objective = config.objective.build(config, encoder.embedding_dim, classes, team)

    def __call__(
        self, images: Tensor, keys: Sequence[int], labels: Tensor | None, number: int, *, measure: bool = False
    ) -> StepResult:
        """Attack this process's images and update the weights with everybody's.

        Args:
            images: (n, 3, S, S) in [0, 1] on the encoder's device; n may be 0 in a team.
            keys: n numbers that name the images: with seed and step, they give each its random start.
            labels: (n,) for TeCoA.
            number: of the step, from 0.
            measure: also take the cosines that the update itself does not need: one or two more forward passes.

        Raises:
            NonFiniteLoss: in every process.
        """
        team, config = self.team, self.config
        total = int(team.sum(torch.tensor(float(len(images)), device=team.device)).item())
        if not total:
            return StepResult(0)
        sums = _Sums()
        chunks = math.ceil(len(images) / (self.chunk_size or max(1, len(images))))
        rows = torch.arange(len(images)).chunk(chunks) if len(images) else [torch.empty(0, dtype=torch.long)]
        for place, row in enumerate(rows):
            chosen = row.to(images.device)
            label = None if labels is None else labels[chosen]
            last = place + 1 == len(rows)
            names = [keys[i] for i in row.tolist()]
            self._work(images[chosen], names, label, number, measure, team.count / total, last, sums)
        gradients = [p for p in self.encoder.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(gradients, config.clip_gradient or math.inf)
        found = [sums.loss, sums.adversarial, sums.clean, float(sums.bad is not None)]
        gathered = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=team.device) for value in found])
        loss, adversarial, clean, bad = team.sum(gathered).tolist()
        length = norm.item()
        if bad or not math.isfinite(length) or not math.isfinite(loss):
            self.optimizer.zero_grad(set_to_none=True)
            what = f"loss is {loss / total}" if bad or not math.isfinite(loss) else f"gradient's norm is {length}"
            kept = sums.bad or ((None, None) if bad or not len(images) else (images, images))
            raise NonFiniteLoss(
                f"the {what} at step {number + 1}: lower the learning rate, clip the gradient, or look at the batch",
                *kept,
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.refresh()
        self.objective.finish(number)
        self._tick("update")
        known = self.objective.needs_original or measure
        return StepResult(
            total,
            loss / total,
            adversarial / total if known else math.nan,
            clean / total if measure or (config.needs_clean and known) else math.nan,
            length,
        )

    def _work(
        self,
        images: Tensor,
        keys: list[int],
        label: Tensor | None,
        number: int,
        measure: bool,
        weight: float,
        last: bool,
        sums: _Sums,
    ) -> None:
        """Embed, attack and differentiate one chunk of the batch; adds to the gradients and to the sums."""
        config = self.config
        target = clean_now = None
        if self.objective.needs_original or measure:
            with torch.no_grad():
                target = self._original(images) if len(images) else images.new_zeros(0, self.encoder.embedding_dim)
        seen = Embeddings(target, label)
        self._tick("original")
        attacked = self.attack(images, keys, seen, number) if len(images) else images
        self._tick("attack")
        points = torch.cat([attacked, images]) if config.needs_clean else attacked
        if not len(images):  # a process without images takes part in the exchange of gradients all the same
            points = images.new_zeros(1, *images.shape[1:])
            keys = [0]
        seeds = [skip_seed(config.seed, number, key, turn) for turn in range(len(points) // len(keys)) for key in keys]
        waits = self.team.count > 1 and not last
        with (
            self._module.no_sync() if waits else contextlib.nullcontext(),
            contextlib.nullcontext() if self.compiled else fast_depthwise_gradients(self.encoder),
        ):
            with (
                skipped_blocks(self.encoder, config.drop_path, seeds),
                torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16),
            ):
                embedding = self._module(points)
            embedding = embedding.float()
            if not len(images):
                (embedding.sum() * 0).backward()
                return
            adversarial = embedding[: len(images)]
            if config.needs_clean:
                clean_now = embedding[len(images) :]
            seen = replace(seen, adversarial=adversarial, clean=clean_now)
            loss = self.objective.loss(seen, config.clean_weight)  # (n,)
            (loss.sum() * weight).backward()
        loss = loss.detach()
        sums.loss = sums.loss + loss.sum()
        if not torch.isfinite(loss).all():
            sums.bad = sums.bad or (images, attacked)
        if target is not None:
            sums.adversarial = sums.adversarial + torch.cosine_similarity(adversarial.detach(), target).sum()
            if clean_now is None and measure:
                with torch.no_grad():
                    clean_now = self._attacked(images)
            if clean_now is not None:
                sums.clean = sums.clean + torch.cosine_similarity(clean_now.detach(), target).sum()

    def attack(self, images: Tensor, keys: Sequence[int], seen: Embeddings, number: int) -> Tensor:
        """Find points of the ball (n, 3, S, S) around images (n, 3, S, S) with a high inner loss.

        Args:
            images: clean.
            keys: n numbers that name them.
            seen: what the objective's `inner` asks for, but for the encoder's embeddings of `images`.
            number: of the step, from 0.
        """
        config = self.config
        if self.objective.clean_target:
            with torch.no_grad():
                seen = replace(seen, clean=self._attacked(images))
        inner = self.objective.inner(seen)

        def loss(points: Tensor, rows: Tensor) -> Tensor:
            return inner(self._attacked(points), rows)

        ball, size = config.threat(number)
        seeds = [start_seed(config.seed, number, key) for key in keys]
        if config.attack == "apgd":
            return apgd(loss, images, ball, config.inner_steps, seeds=seeds).images
        everything = torch.arange(len(images), device=images.device)
        noise = start_noise(images, seeds, config.norm)
        return pgd(
            lambda points: loss(points, everything),
            images,
            ball,
            config.inner_steps,
            size,
            noise=noise,
            **config.pgd_options,
        )

    def state(self) -> dict[str, Any]:
        """Gather what a restart needs beside the encoder and its optimiser; all processes of a team ask together."""
        return self.objective.state()

    def load_state(self, parts: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, once the encoder's own weights are restored."""
        self.objective.load_state(parts)
        self.refresh()

    def resize(self, size: int) -> None:
        """Take images of another side from now on, (n, 3, size, size): encoder, attacked copy and original alike."""
        for one in (self.encoder, self.attacked, self.frozen):
            one.preprocessing = one.preprocessing.at(size)

    def refresh(self) -> None:
        """Let the attacked copy follow the encoder's weights."""
        refresh(self.attacked, self.encoder)

    def _tick(self, part: str) -> None:
        if self.clock is not None:
            self.clock(part)
