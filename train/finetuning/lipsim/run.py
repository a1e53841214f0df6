"""A provable metric from any teacher (Ghazanfari et al. 2023, LipSim): distil its embeddings, then tune on triplets.

    step 1: min over theta of (RMSE(f(x), g(x)) + RMSE(f(x'), g(x))) / 2,  x' a jittered copy, g the unit teacher
    step 2: min over theta of sum max(0, margin - (d_left - d_right) y),  d = 1 - cos,  y = 1 where right was chosen

f is a network of SLL layers, 1-Lipschitz whatever theta is (`rclip_metric.train.metrics.lipsim.sll`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.train.data.triplet_images import TripletImages
from rclip_metric.train.data.triplets import read_nights
from rclip_metric.train.finetuning.lipsim.config import DistilConfig, TuneConfig
from rclip_metric.train.finetuning.lipsim.distil import Distillation
from rclip_metric.train.finetuning.lipsim.images import Squashed, photographs
from rclip_metric.train.finetuning.lipsim.result import RawStudent, check_name, read_student, write_result
from rclip_metric.train.finetuning.lipsim.teacher import Teacher
from rclip_metric.train.finetuning.lipsim.tune import MarginTuning
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.distributed import chosen_device
from rclip_metric.train.runs.files import provenance
from rclip_metric.train.runs.machine import device_name, device_record, versions
from rclip_metric.train.runs.precision import resolved_precision

_MEASURED = 4  # images that the Lipschitz constant is measured at


def distil(
    teacher: Metric,
    images: Sequence[str | Path],
    out: Path,
    config: DistilConfig = DistilConfig(),  # noqa: B008 (frozen)
    *,
    name: str | None = None,
    start_from: Path | None = None,
    triplets: Path | None = None,
    device: str = "cpu",
    precision: str = "float32",
    workers: int = 0,
    allow_outside: bool = False,
    license: str | None = None,
    quiet: bool = False,
) -> RawStudent:
    """Teach a 1-Lipschitz student a teacher's embeddings, and write it to `out`.

    In `out`: states to go on from, log.jsonl, and after the last step `lipsim.safetensors`, which `load_metric` builds
    (as it does the folder), `student.safetensors`, which training goes on from, run.json and README.md. The same call
    goes on where a run was interrupted, and ends on a CPU with the very weights of an uninterrupted one. What cannot be
    read is left out of its batch and named in the log.

    Args:
        teacher: any metric that embeds; on its device.
        images: one source as `rclip_metric.train.data.open_stream` takes it, or several trees of images.
        out: folder of the run.
        config: the recipe.
        name: of the metric; the folder's by default.
        start_from: an earlier run, whose weights this one begins with.
        triplets: a NIGHTS-format set, whose `val` split is judged and certified after each epoch.
        device: where the student is trained: "cpu", "cuda", ..., or "auto".
        precision: of the student's passes in training: "float32", "bfloat16" (folding, losses, updates and all that is
            proven stay float32), or "auto".
        workers: processes that read images; 0 reads in between.
        allow_outside: paths in data.csv may lead out of its folder.
        license: of the weights, for the card.
        quiet: no progress bar.

    Returns:
        The student's raw weights.

    Raises:
        ValueError: if the teacher embeds nothing, the student is too large for the memory, or data, name or state do
            not suit.
        FloatingPointError: if a loss is not finite.
        StorageError: if a state cannot be written; the last one stays good.
        Interrupted: after SIGTERM or SIGINT, when the state is saved.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from rclip_metric.train.metrics import load_metric
        >>> sizes = {"image_size": 16, "patch": 4, "pool": 2, "channels": 48, "depth": 1, "linear_depth": 1}
        >>> config = DistilConfig(**sizes, linear_inner=8, steps=3, warmup_steps=0, batch_size=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 64), "red").save(Path(folder, "red.png"))
        ...     student = distil(load_metric("tiny-clean"), [folder], Path(folder, "provable"), config, quiet=True)
        ...     load_metric(str(Path(folder, "provable"))).name
        'provable'
    """
    name, chosen = check_name(name or out.name), chosen_device(device)
    first = read_student(start_from) if start_from else None
    precision = resolved_precision(precision, chosen)
    taught = Teacher(teacher)
    if first is not None and first.architecture != config.architecture(config.dimensions or taught.dimensions):
        raise ValueError(
            f"{start_from} has another architecture than this run: pass the settings that it was made with"
        )
    validation = None
    if triplets is not None:
        files = read_nights(triplets, "val", allow_outside=allow_outside)
        validation = TripletImages(files, Squashed(config.image_size, 0), config.image_size)
    run = Distillation(
        taught,
        images,
        out,
        config,
        chosen,
        start_from=first.tensors if first else None,
        start_digest=first.digest if first else None,
        workers=workers,
        precision=precision,
        validation=validation,
    )
    run.run(quiet)
    data = ", ".join(Path(source).name for source in images)
    begun = f", from {first.name}" if first else ""
    training = provenance(f"distillation into a 1-Lipschitz student{begun}", data, base=taught.metric.name)
    student = RawStudent(name, run.architecture, run.student.cpu().raw_tensors(), training)
    record = {
        "method": "LipSim, step 1",
        "teacher": taught.describe(),
        "start_from": first and {"name": first.name, "revision": first.digest},
        "data": {**run.facts, "contents": run.contents, "read": run.standing.read, "unreadable": run.standing.lost},
        "recipe": _recipe(config.computed) | {"steps": run.steps},
        "run": {
            "device": device_name(chosen),
            "precision": precision,
            "workers": workers,
            "chunk_size": run.chunk_size,
        },
        **_circumstances(config.seed, chosen, run.standing.seconds, run.standing.validations),
    }
    batch = photographs(
        images, Squashed(config.image_size), batch_size=min(_MEASURED, run.count or _MEASURED), seed=config.seed, stop=1
    )
    write_result(out, student, record, _in_float64(next(iter(batch)).images, chosen), license=license)
    return student


def tune(
    start_from: Path,
    triplets: Path,
    out: Path,
    config: TuneConfig = TuneConfig(),  # noqa: B008 (frozen)
    *,
    name: str | None = None,
    device: str = "cpu",
    precision: str = "float32",
    workers: int = 0,
    allow_outside: bool = False,
    license: str | None = None,
    quiet: bool = False,
) -> RawStudent:
    """Tune a run's student on people's choices, and write it to `out` as `distil` does; resumes as it does.

    The student after the last epoch is kept, as published, whatever `val` says of it; that is judged and certified
    before the first and after each.

    Args:
        start_from: a finished run of `distil` or `tune`, or a packed file.
        triplets: folder with data.csv; `train` is trained on, both splits with 6 votes or more.
        out: folder of the run.
        config: the recipe.
        name: of the metric; the folder's by default.
        device: "cpu", "cuda", ..., or "auto".
        precision: of the student's passes in training, as for `distil`.
        workers: threads that read images while the device works; 0 reads in between.
        allow_outside: paths in data.csv may lead out of its folder.
        license: of the weights, for the card.
        quiet: no progress bar.

    Raises:
        ValueError: for a run, data or a state that cannot be used, or a student too large for the memory.
        FloatingPointError: if a loss is not finite.
        StorageError: if a state cannot be written; the last one stays good.
        Interrupted: after SIGTERM or SIGINT, when the state is saved.

    Example:
        >>> tune(Path("nowhere"), Path("nights"), Path("tuned"))
        Traceback (most recent call last):
        ValueError: nowhere is no finished run of `rclip-metric train lipsim`: it has no student.safetensors
    """
    name, chosen = check_name(name or out.name), chosen_device(device)
    precision = resolved_precision(precision, chosen)
    first = read_student(start_from)
    size = first.architecture.image_size
    images = {
        split: TripletImages(
            read_nights(triplets, split, allow_outside=allow_outside), Squashed(size, 0), size, threads=workers
        )
        for split in ("train", "val")
    }
    run = MarginTuning(
        first.architecture, first.tensors, images, out, config, chosen, start_digest=first.digest, precision=precision
    )
    run.run(quiet)
    before = first.training
    seen = ", ".join(part for part in (before.get("data"), triplets.name) if part)
    method = f"{before.get('method') or first.name}, then hinge tuning with margin {config.margin:g}"
    training = provenance(method, seen, base=before.get("base") or first.name)
    student = RawStudent(name, first.architecture, run.student.cpu().raw_tensors(), training)
    record = {
        "method": "LipSim, step 2",
        "start_from": {"name": first.name, "revision": first.digest},
        "data": {
            "path": str(triplets),
            **run.digests,
            "triplets": len(images["train"]),
            "val": len(images["val"]),
            "unreadable": run.standing.lost,
        },
        "recipe": _recipe(config.computed),
        "run": {
            "device": device_name(chosen),
            "precision": precision,
            "workers": workers,
            "chunk_size": run.chunk_size,
        },
        **_circumstances(config.seed, chosen, run.standing.seconds, run.standing.validations),
    }
    write_result(out, student, record, _in_float64(_references(images["val"]), chosen), license=license)
    return student


def _references(triplets: TripletImages) -> Tensor:
    """Read the first references that can be read."""
    for _, levels in triplets.batches(torch.arange(len(triplets)).split(_MEASURED)):
        if len(levels):
            return levels[:, 0].float() / 255
    raise ValueError("no triplet of val can be read: mend its images")


def _in_float64(images: Tensor, device: torch.device) -> Tensor:
    """Bring images to a device that computes in float64: the run's own, or the CPU."""
    return images.double().to(device if device.type in ("cpu", "cuda") else "cpu")


def _recipe(computed: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in computed.items() if name != "seed"}


def _circumstances(
    seed: int, device: torch.device, seconds: float, validations: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    return {
        "seed": seed,
        "versions": versions(),
        "device": device_record(device),
        "seconds": round(seconds, 1),
        "validations": [dict(found) for found in validations],
    }
