"""What a run leaves: the metric, the raw weights that training goes on from, its record and its card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.errors import CheckpointError
from rclip_metric.train.finetuning.lipsim.card import metric_card
from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture
from rclip_metric.train.metrics.lipsim.constant import TOLERANCE, lipsim_constant
from rclip_metric.train.metrics.lipsim.published import check, folded
from rclip_metric.train.metrics.registry import BASELINES
from rclip_metric.train.metrics.weight_files import Converted, read_stored, write_stored
from rclip_metric.train.runs.files import write_json, write_text
from rclip_metric.weights import short_digest, tensors_digest

METRIC_NAME = "lipsim.safetensors"
STUDENT_NAME = "student.safetensors"
RECORD_NAME = "run.json"
_ITERATIONS = 20  # of the power iteration


@dataclass(frozen=True)
class RawStudent:
    """A student's raw weights, as a run leaves them.

    Attributes:
        name: of the metric.
        architecture: its sizes.
        tensors: in the published layout.
        training: how it was made, as `rclip_metric.train.runs.files.provenance` says it.
        digest: of the tensors.
    """

    name: str
    architecture: LipSimArchitecture
    tensors: dict[str, Tensor]
    training: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the tensors, short."""
        return short_digest(tensors_digest(self.tensors))


def read_student(run: Path) -> RawStudent:
    """Read the raw weights of a run, or of a file that `train pack` wrote.

    Raises:
        ValueError: if there are none.
        CheckpointError: if they are damaged.

    Example:
        >>> read_student(Path("nowhere"))
        Traceback (most recent call last):
        ValueError: nowhere is no finished run of `rclip-metric train lipsim`: it has no student.safetensors
    """
    path = run / STUDENT_NAME if run.is_dir() or run.suffix != ".safetensors" else run
    if not path.is_file():
        raise ValueError(f"{run} is no finished run of `rclip-metric train lipsim`: it has no {STUDENT_NAME}")
    stored = read_stored(None, path)
    try:
        if not stored.config.get("raw"):
            raise CheckpointError("its weights are folded")
        architecture = LipSimArchitecture(**stored.config["architecture"])
        check(stored.tensors, architecture.published_shapes)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no student to train on: {error}") from error
    tensors = {name: tensor.float() for name, tensor in stored.tensors.items()}
    return RawStudent(stored.name, architecture, tensors, dict(stored.config.get("training") or {}))


def write_result(
    out: Path, student: RawStudent, record: Mapping[str, Any], images: Tensor, *, license: str | None = None
) -> dict[str, Any]:
    """Write a finished run: `METRIC_NAME`, `STUDENT_NAME`, run.json and README.md.

    Args:
        out: folder of the run.
        student: what was trained.
        record: what run.json is to say.
        images: (n, 3, S, S) that the Lipschitz constant is measured at, on the device that measures.
        license: of the weights.

    Returns:
        The record, with the constant.

    Raises:
        FloatingPointError: if the network stretches an image's surroundings: then nothing of it is proved.
        StorageError: if a file cannot be written.
    """
    weights = folded(student.architecture, student.tensors)
    measured = lipsim_constant(student.architecture, weights, images, _ITERATIONS)
    largest = measured.max().item()
    if not largest <= 1 + TOLERANCE:
        raise FloatingPointError(
            f"the network of {out} stretches differences by {largest:.7f}, which is no rounding: "
            "its certificates would be wrong, so it is not written; this is a defect, please report it"
        )
    config = {"family": "lipsim", "architecture": asdict(student.architecture), "training": student.training}
    write_stored(student.name, Converted(student.tensors, {**config, "raw": True}, []), out / STUDENT_NAME)
    write_stored(student.name, Converted(weights, config, []), out / METRIC_NAME)
    whole = {
        **record,
        "name": student.name,
        "training": student.training,
        "architecture": asdict(student.architecture),
        "lipschitz": {"largest": largest, "images": len(images), "iterations": _ITERATIONS},
        "license": license,
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    write_json(out / RECORD_NAME, whole)
    write_text(out / "README.md", metric_card(whole, (out / METRIC_NAME).stat().st_size / 1e6))
    return whole


def pack_student(run: Path, out: Path) -> None:
    """Write a run's raw weights in half precision, as `lipsim-lite` is shipped; the constraint is folded on loading.

    Args:
        run: a finished run of `rclip-metric train lipsim`.
        out: the .safetensors file; the metric is called after it.

    Raises:
        ValueError: if that is no such run, or its weights are too large for float16.
        StorageError: if it cannot be written.

    Example:
        >>> pack_student(Path("nowhere"), Path("packed.safetensors"))
        Traceback (most recent call last):
        ValueError: nowhere is no finished run of `rclip-metric train lipsim`: it has no student.safetensors
    """
    student = read_student(run)
    halves = {name: tensor.to(torch.float16) for name, tensor in student.tensors.items()}
    if large := [name for name, tensor in halves.items() if not bool(tensor.isfinite().all())]:
        raise ValueError(f"{large[0]} of {run} has values that float16 cannot hold: publish {METRIC_NAME} as it is")
    config = {
        "family": "lipsim",
        "architecture": asdict(student.architecture),
        "training": student.training,
        "raw": True,
    }
    write_stored(out.stem, Converted(halves, config, []), out)


def check_name(name: str) -> str:
    """Give back a metric's name, unless it is that of another: ValueError.

    Example:
        >>> check_name("my-lipsim"), check_name("lipsim-lite")
        ('my-lipsim', 'lipsim-lite')
        >>> check_name("lipsim-0.5")
        Traceback (most recent call last):
        ValueError: 'lipsim-0.5' is the name of LipSim (margin 0.5): choose another with --name
    """
    known = BASELINES.get(name)
    if known is not None and (known.published is not None or known.family != "lipsim"):
        raise ValueError(f"{name!r} is the name of {known.label}: choose another with --name")
    return name
