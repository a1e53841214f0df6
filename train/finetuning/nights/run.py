"""Tuning on NIGHTS: what people find more alike, taught to an encoder by LoRA or by a head (Fu et al. 2023, DreamSim).

    min over theta of  E max(0, margin - (d_left - d_right) y),  d = 1 - sim,  y = 1 where right was chosen, else -1

theta is the LoRA updates inside the encoder, or a residual MLP on top of the frozen one. Images are clean and
squashed, and the epoch that is best on `val` is kept.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rclip_metric.encoder import Encoder, ResidualMLP
from rclip_metric.images import Preprocessing
from rclip_metric.train.data.triplet_images import TripletEmbeddings, TripletImages
from rclip_metric.train.data.triplets import TripletFiles, read_nights
from rclip_metric.train.finetuning.nights.loop import Standing, Tuning, TuningLog
from rclip_metric.train.finetuning.nights.step import Forward, Source, embed_triplets
from rclip_metric.train.models.lora import add_lora, merge_lora, train_dropout
from rclip_metric.train.runs.checkpoint import latest_state
from rclip_metric.train.runs.config import setting
from rclip_metric.train.runs.distributed import chosen_device
from rclip_metric.train.runs.files import provenance, write_json
from rclip_metric.train.runs.interrupt import Interrupt
from rclip_metric.train.runs.machine import device_name, device_record, versions
from rclip_metric.train.runs.precision import full_float32, resolved_precision
from rclip_metric.weights import WeightSpec, get_spec, model_names, save_encoder

# What DreamSim's configurations have differently for the two.
_PUBLISHED = {"lora": {"batch_size": 32, "epochs": 8}, "mlp": {"batch_size": 512, "epochs": 20}}
HEADS = tuple(_PUBLISHED)
# How a run gets there and not what it computes: a run may go on under other values. (The triplets per pass also decide
# which inputs a dropout mask falls on.)
_HOW = ("micro_batch", "save_every")


@dataclass(frozen=True)
class NightsConfig:
    """Settings of a tuning.

    The paper follows DreamSim's scheme without numbers of its own. Margin, learning rate, Adam's averages, rank,
    alpha, dropout and hidden size stand in the project's specification; batch size, epochs and weight decay are those
    of the configurations that DreamSim's repository publishes for a single encoder (train_single_model_lora.yaml and
    train_single_model_mlp.yaml).
    """

    head: str = setting("lora", "what is trained: updates inside the encoder, or an MLP on top of it", choices=HEADS)
    hidden: int = setting(512, "hidden size of the MLP")
    rank: int = setting(16, "rank of a LoRA update")
    alpha: float = setting(0.5, "a LoRA update is scaled by alpha / rank")
    dropout: float = setting(0.3, "probability that an input of a LoRA update is zeroed")
    margin: float = setting(0.05, "by how much the chosen image is to be nearer", unit="1 - cosine")
    learning_rate: float = setting(3e-4, "Adam's learning rate, constant")
    betas: tuple[float, ...] = setting((0.5, 0.999), "decay of Adam's two averages")
    weight_decay: float = setting(0.0, "Adam's weight decay")
    batch_size: int = setting(0, "triplets per step (0: as DreamSim, 32 for LoRA and 512 for an MLP)")
    epochs: int = setting(0, "passes over the training triplets (0: as DreamSim, 8 for LoRA and 20 for an MLP)")
    seed: int = setting(0, "seed of the first weights, of the order of the triplets and of the dropout")
    micro_batch: int = setting(0, "triplets, three images each, per pass (0: what suits a CPU; up to 64 on a GPU)")
    save_every: int = setting(100, "steps between states within an epoch, besides the one at its end")

    def __post_init__(self) -> None:
        """Raise ValueError for the first value that cannot be meant."""
        if self.head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, and it is {self.head!r}")
        for name, published in _PUBLISHED[self.head].items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, published)
        for name in ("hidden", "rank", "batch_size", "epochs", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, and it is {getattr(self, name)}")
        for name in ("alpha", "margin", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, and it is {getattr(self, name)}")
        for name in ("micro_batch", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, and it is {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), and it is {self.dropout}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), and they are {self.betas}")


def hinge(d_left: Tensor, d_right: Tensor, y: Tensor, margin: float = 0.05) -> Tensor:
    """Hinge loss of triplets, max(0, margin - (d_left - d_right) y): (N,).

    Args:
        d_left: 1 - sim(reference, left), (N,).
        d_right: 1 - sim(reference, right), (N,).
        y: (N,), 1 where people chose the right image, which is then to be the nearer one, and -1 for the left.
        margin: the loss is 0 where the chosen image is nearer by so much.
    """
    return (margin - (d_left - d_right) * y).clamp(min=0)


def tune_nights(
    base: Encoder,
    data: Path,
    out: Path,
    config: NightsConfig = NightsConfig(),
    *,
    name: str,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    workers: int = 0,
    origin: WeightSpec | None = None,
    quiet: bool = False,
) -> Encoder:
    """Tune a copy of ``base`` on a NIGHTS-format set and write it to ``out`` as one plain checkpoint.

    ``out/log.jsonl`` has a line per 10 steps and per epoch; ``out/state-STEP.safetensors`` is where the run stands, the
    best epoch so far included. A run that finds one goes on there, and on a CPU it ends with the very weights that it
    would have had without a break. The encoder before the first epoch (epoch 0) takes part in the choice of the best
    on val; the earlier of equals is kept. A triplet with an image that cannot be read is left out, counted, and named
    in the log.

    Args:
        base: any encoder without a head; it is not changed. Its preprocessing is replaced by a squash.
        data: folder with data.csv; ``train`` is trained on and ``val`` chooses, both with 6 votes or more.
        out: folder for the states, the log and the result.
        config: the recipe.
        name: of the new encoder.
        device: "cpu", "cuda", ..., or "auto" for a GPU where there is one.
        precision: "float32", "bfloat16" (autocast of the encoder; weights, loss and validation stay float32), or
            "auto".
        workers: threads that read images while the device works; 0 reads in between.
        origin: the base's manifest entry or saved record, by default the entry of its name: its training and licence
            go on into the new one's.
        quiet: no progress bar.

    Returns:
        The tuned encoder, frozen and in eval mode: its updates merged, or with the MLP as its head.

    Raises:
        ValueError: for data or a base that cannot be used, or states of other settings.
        FloatingPointError: if the loss is not finite.
        StorageError: if a state cannot be written; the last one survives.
        Interrupted: after SIGTERM or SIGINT, when the state is saved.
    """
    begun = time.perf_counter()
    device = chosen_device(str(device))
    precision = resolved_precision(precision, device)
    files = {split: read_nights(data, split) for split in ("train", "val")}
    encoder = _squashed(base, name, config)
    settings = {key: value for key, value in asdict(config).items() if key not in _HOW} | _digests(encoder, files)
    state = latest_state(out, settings)
    images = {
        split: TripletImages(triplets, encoder.preprocess, encoder.image_size, threads=workers)
        for split, triplets in files.items()
    }
    standing = Standing() if state is None else Standing(**state.facts)
    for split, sentences in standing.unreadable.items():
        images[split].unreadable.update(sentences)
    out.mkdir(parents=True, exist_ok=True)
    log = TuningLog(out / "log.jsonl", images)
    if encoder.convolutional:
        encoder.channels_last = True
        encoder.to(memory_format=torch.channels_last)
    encoder.to(device)
    part = config.micro_batch or _part(encoder, device, config)

    sources: dict[str, Source] = dict(images)
    forward: dict[str, Forward] = {
        "train": partial(embed_triplets, encoder, device, precision == "bfloat16"),
        "val": partial(embed_triplets, encoder, device, False),
    }
    if config.head == "mlp":
        # Nothing but the head varies from epoch to epoch: every image is embedded once.
        with torch.no_grad(), full_float32():
            sources = {split: TripletEmbeddings(images[split], forward[split], part, quiet) for split in images}
        log.unreadable()
        encoder.mlp_hidden = config.hidden
        encoder.head = drawn_mlp(encoder.embedding_dim, config.hidden, config.seed).to(device)
        forward = dict.fromkeys(images, encoder.head)
        part = config.micro_batch or config.batch_size
    else:
        add_lora(encoder, config.rank, config.alpha, config.dropout, config.seed)
    prepared = time.perf_counter() - begun
    standing.seconds += prepared

    # A ParameterDict takes no dots in its keys.
    trained = nn.ParameterDict({k.replace(".", "/"): p for k, p in encoder.named_parameters() if p.requires_grad})
    optimizer = torch.optim.Adam(
        trained.parameters(),
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
    )
    tuning = Tuning(
        out=out,
        settings=settings,
        trained=trained,
        optimizer=optimizer,
        loss=partial(hinge, margin=config.margin),
        sources=sources,
        forward=forward,
        batch_size=config.batch_size,
        part=part,
        save_every=config.save_every,
        seed=config.seed,
        device=device,
        log=log,
        standing=standing,
    )
    if state is not None:
        tuning.restore(state)
    with Interrupt() as interrupt:
        while (epoch := standing.epoch) <= config.epochs:
            if epoch > 0:
                train_dropout(encoder)
                tuning.train(interrupt, f"epoch {epoch}/{config.epochs}", quiet)
            encoder.eval()
            tuning.validate()

    trained.load_state_dict(tuning.best)
    if config.head == "lora":
        merge_lora(encoder)
    encoder.channels_last = False
    encoder.requires_grad_(False).to(memory_format=torch.contiguous_format)
    origin = origin or (get_spec(base.name) if base.name in model_names() else None)
    counted = {split: len(files[split]) - len(images[split].unreadable) for split in files}
    record = {
        "method": {"lora": "LoRA", "mlp": "MLP"}[config.head],
        "base": {"name": base.name, "revision": base.revision},
        "data": {"path": str(data), "triplets": counted["train"], "val": counted["val"],
                 "unreadable": sum(len(source.unreadable) for source in images.values())},
        "recipe": {key: value for key, value in asdict(config).items() if key not in (*_HOW, "seed")},
        "run": {"device": device_name(device), "precision": precision, "workers": workers, "micro_batch": part,
                "save_every": config.save_every, "trained_parameters": sum(p.numel() for p in trained.parameters()),
                "prepared_seconds": round(prepared, 1)},
        "seed": config.seed,
        "versions": versions(),
        "device": device_record(device),
        "seconds": round(standing.seconds, 1),
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "epochs": standing.epochs,
        "best_epoch": standing.best_epoch,
    }  # fmt: skip
    save_encoder(
        encoder, out, training=_training(origin, base, data, config), license=origin.license if origin else None
    )
    write_json(out / "run.json", record)
    return encoder


def drawn_mlp(dim: int, hidden: int, seed: int) -> ResidualMLP:
    """A head as `nn.Linear` draws it, which is how DreamSim starts: uniform on +-1 / sqrt(inputs), biases too."""
    with torch.device("meta"):  # draws nothing from torch's own generator
        head = ResidualMLP(dim, hidden)
    head.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for linear in (head.fc1, head.fc2):
            bound = linear.in_features**-0.5
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.uniform_(-bound, bound, generator=generator)
    return head


def _squashed(base: Encoder, name: str, config: NightsConfig) -> Encoder:
    """A frozen copy that sees the whole image, squashed to its square."""
    if base.head is not None:
        raise ValueError(f"{base.name} has an MLP head already: pass the encoder that it was put on")
    encoder = copy.deepcopy(base).eval().requires_grad_(False)
    p, size = base.preprocessing, base.image_size
    encoder.preprocessing = Preprocessing("squash", size, size, p.interpolation, p.mean, p.std)
    encoder.resize, encoder.name, encoder.revision = "published", name, None
    return encoder


def _part(encoder: Encoder, device: torch.device, config: NightsConfig) -> int:
    """Triplets per pass: on a CPU larger ones are slower, on a GPU 64 triplets of a ViT-B fit into 80 GB."""
    if device.type != "cpu":
        return min(config.batch_size, 64)
    return max(1, (encoder.chunk_size or 3) // 3)


def _digests(encoder: Encoder, files: Mapping[str, Sequence[TripletFiles]]) -> dict[str, str]:
    """What a run depends on besides its settings, so that none is continued on another base or other triplets."""
    weights, triplets = hashlib.sha256(), hashlib.sha256()
    for key, value in encoder.state_dict().items():
        weights.update(key.encode())
        weights.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for split in files:
        triplets.update(json.dumps([split, [(t.key, t.share) for t in files[split]]]).encode())
    return {"base": weights.hexdigest()[:16], "triplets": triplets.hexdigest()[:16]}


def _training(origin: WeightSpec | None, base: Encoder, data: Path, config: NightsConfig) -> dict[str, str | None]:
    """The manifest's fields: what was done to the base, and then this."""
    before = (origin and origin.training) or {}
    scenes = (data.resolve().parent / "scenes.json").exists()
    sets = ("NIGHTS-format scenes", "procedural scenes") if scenes else ("NIGHTS", "NIGHTS")
    now = f"{'LoRA' if config.head == 'lora' else 'MLP head'} on clean {sets[0]}"
    method = f"{before['method']}, then {now}" if before.get("method") else now
    seen = ", ".join(dict.fromkeys(part for part in (before.get("data"), sets[1]) if part))
    return provenance(method, seen, before.get("norm"), before.get("eps"), base.name)
