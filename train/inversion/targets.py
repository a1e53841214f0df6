"""What is to be found again: an image, an embedding that was computed earlier, an image of an index, a text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rclip_metric.errors import CheckpointError, first_line
from rclip_metric.files import regular_file
from rclip_metric.images import ImageError
from rclip_metric.retrieval import is_index, open_storage
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.models import TextModel, load_base_text
from rclip_metric.weights import file_digest

EMBEDDINGS = (".npy", ".safetensors")
_LONGEST = 40  # letters of a name


class Target(Protocol):
    """Something of which a metric has an embedding."""

    @property
    def name(self) -> str:
        """Short, and fit for the name of a file."""

    @property
    def source(self) -> str:
        """Where it is from, or the text itself."""

    @property
    def digest(self) -> str:
        """Of what it holds."""

    @property
    def kind(self) -> str:
        """One of "image", "embedding" and "text"."""

    def embedding(self, metric: Metric) -> Tensor:
        """Compute or read its embedding for a metric: (1, D) on the metric's device."""

    def pixels(self, metric: Metric) -> Tensor | None:
        """Read the image as the metric sees it, (3, S, S); None where there is none."""


@dataclass(frozen=True)
class ImageTarget:
    """An image file.

    Example:
        >>> ImageTarget(Path("holiday photos/cat.jpg"), digest="0" * 64).name
        'cat'
    """

    path: Path
    digest: str
    kind: str = field(default="image", init=False)

    @property
    def name(self) -> str:
        """The file's, without its suffix."""
        return safe_name(self.path.stem)

    @property
    def source(self) -> str:
        """The file's name."""
        return self.path.name

    def embedding(self, metric: Metric) -> Tensor:
        """Embed the image."""
        return metric.fix(self.pixels(metric)[None])

    def pixels(self, metric: Metric) -> Tensor:
        """Read the image; ImageError if that cannot be done."""
        return metric.preprocess(self.path).to(metric.device)


@dataclass(frozen=True)
class EmbeddingTarget:
    """An embedding (D,) from a file or an index; where it is known whose it is, no other model takes it.

    Attributes:
        vector: of any length but zero.
        made_by: name of the model, and digest of its weights.

    Example:
        >>> from rclip_metric.train.metrics import load_metric
        >>> EmbeddingTarget("found", "found.npy", torch.tensor([3.0, 4.0])).embedding(load_metric("l2"))
        tensor([[3., 4.]])
    """

    name: str
    source: str
    vector: Tensor
    made_by: tuple[str, str] | None = None
    kind: str = field(default="embedding", init=False)

    @property
    def digest(self) -> str:
        """Of its values as float32."""
        return hashlib.sha256(self.vector.float().cpu().contiguous().numpy().tobytes()).hexdigest()[:32]

    def embedding(self, metric: Metric) -> Tensor:
        """Give it back; ValueError if it is another model's."""
        if self.made_by is not None and metric.describe().get("weights") != self.made_by[1]:
            raise ValueError(
                f"{self.source} is an embedding of {self.made_by[0]}, and {metric.name} has other weights: invert it "
                f"with --model {self.made_by[0]}"
            )
        return self.vector.float().to(metric.device)[None]

    def pixels(self, metric: Metric) -> None:
        """Say that there is no image."""


@dataclass(frozen=True)
class TextTarget:
    """A text, as the text tower that goes with a model embeds it.

    Attributes:
        loaded_as: what the metric's model was loaded as: a name, a path or a Hub id.

    Example:
        >>> target = TextTarget("a red circle above a blue square")
        >>> target.name, target.kind
        ('a-red-circle-above-a-blue-square', 'text')
    """

    source: str
    loaded_as: Callable[[Metric], str] = lambda metric: metric.name
    kind: str = field(default="text", init=False)

    @property
    def name(self) -> str:
        """The text's first words."""
        return safe_name(self.source)

    @property
    def digest(self) -> str:
        """Of the text."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:32]

    def embedding(self, metric: Metric) -> Tensor:
        """Embed the text."""
        return text_model(self.loaded_as(metric)).embed([self.source]).to(metric.device)

    def pixels(self, metric: Metric) -> None:
        """Say that there is no image."""


def text_model(model: str) -> TextModel:
    """Load the text tower that goes with a model, as `load_base_text` finds it.

    Raises:
        CheckpointError: it has none: one sentence with the reason.

    Example:
        >>> text_model("r-lite-f")
        Traceback (most recent call last):
        rclip_metric.errors.CheckpointError: r-lite-f cannot imagine a text: r-lite-f has no text tower...
    """
    try:
        return load_base_text(model)
    except CheckpointError as error:
        raise CheckpointError(f"{model} cannot imagine a text: {error}") from error


def read_targets(word: str) -> list[ImageTarget] | list[EmbeddingTarget]:
    """Read what one argument of the command names.

    Args:
        word: an image; a .npy of (D,) or (N, D); a .safetensors of such tensors, each with its own name; INDEX:ID.

    Raises:
        ImageError: there is no such file.
        ValueError: a file of embeddings cannot be read, or holds something else.

    Example:
        >>> read_targets("nowhere.png")
        Traceback (most recent call last):
        rclip_metric.errors.ImageError: cannot read nowhere.png: No such file or directory
    """
    path = Path(word)
    place, colon, id = word.partition(":")
    if colon and not path.exists() and is_index(Path(place)):
        return [_row_of_index(Path(place), id)]
    try:
        if path.suffix.lower() in EMBEDDINGS:
            return _read_embeddings(regular_file(path))
        return [ImageTarget(path, file_digest(regular_file(path)))]
    except OSError as error:
        raise ImageError(f"cannot read {word}: {error.strerror or error}") from error


def _row_of_index(place: Path, id: str) -> EmbeddingTarget:
    storage = open_storage(place)
    rows, embeddings = storage.read()
    found = [number for number, row in enumerate(rows) if row.id == id]
    if not found:
        raise ValueError(f"{place} has no image {id!r}: `rclip-metric search` shows what they are called")
    about = storage.about()["metric"]
    source = f"{place.name}:{id}"
    return EmbeddingTarget(safe_name(id), source, embeddings[found[0]], (str(about["name"]), str(about.get("weights"))))


def _read_embeddings(path: Path) -> list[EmbeddingTarget]:
    try:
        if path.suffix.lower() == ".npy":
            tensors = {"": torch.from_numpy(np.load(path, allow_pickle=False))}
        else:
            tensors = load_file(path)
    except (ValueError, TypeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{path} is no readable file of embeddings: {first_line(error)}") from error
    found = []
    for key, tensor in sorted(tensors.items()):
        if tensor.ndim not in (1, 2) or not tensor.is_floating_point() or not tensor.numel():
            raise ValueError(
                f"{path} must hold embeddings, floating-point (D,) or (N, D), and {key or 'it'} is "
                f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
            )
        rows = tensor[None] if tensor.ndim == 1 else tensor
        for number, row in enumerate(rows):
            parts = [path.stem, key, str(number) if len(rows) > 1 else ""]
            found.append(EmbeddingTarget(safe_name("-".join(filter(None, parts))), path.name, row))
    return found


def safe_name(text: str) -> str:
    """Make a short name of letters, digits, dots and dashes.

    Example:
        >>> safe_name("A red  circle, above!"), safe_name("...")
        ('A-red-circle-above', 'target')
    """
    return re.sub(r"[^\w.]+", "-", text)[:_LONGEST].strip("-._") or "target"
