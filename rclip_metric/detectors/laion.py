"""LAION's detector of unsafe images: a small network on the embeddings of a CLIP.

Its heads for OpenAI's ViT-L/14 and ViT-B/32 are published as Keras models (MIT, Christoph Schuhmann);
`rclip-metric train convert-detector` turns one into the file that is read here, without TensorFlow.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from rclip_metric.errors import CheckpointError, StorageError
from rclip_metric.files import written_whole
from rclip_metric.json_files import LINE, Checker, matching, one_of, or_null, parse_json
from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.weights import tensors_digest
from rclip_metric.weights.saving import opened

if TYPE_CHECKING:
    from rclip_metric.images.reading import ImageSource

_METADATA_KEY, _FORMAT, _VERSION = "rclip_metric_detector", "rclip-metric-detector", 1
_LEAST_STD = 1e-7  # Keras' epsilon
_DECIMALS = 1e6  # a column that is looked up is written out with six decimals
_NAMES = re.compile(r"mean|variance|dense\.(\d{1,3})\.(?:weight|bias)|lookup\.(\d{1,5})\.(?:keys|values)")
_SCHEMA = {
    "format": one_of([_FORMAT]),
    "version": one_of([_VERSION]),
    "name": LINE,
    "base": or_null(LINE),
    "license": or_null(LINE),
    "sources": {"*": matching("a sha256", "[0-9a-f]{64}")},
    "digest": matching("a sha256", "[0-9a-f]{64}"),
}


class Embedder(Protocol):
    """What gives the embeddings that a head was trained on; `RobustPerceptualDistance` does."""

    @property
    def device(self) -> torch.device:
        """Where images have to be."""

    def preprocess(self, image: Any) -> Tensor:
        """Read one image: (3, S, S) in [0, 1]."""

    def embed(self, x: Tensor) -> Tensor:
        """Embed images (N, 3, H, W) as (N, D) of unit length, differentiably."""


@dataclass(frozen=True)
class HeadOrigin:
    """Where a head is from.

    Attributes:
        name: As it stands in tables.
        base: The model that gives its embeddings, a name or path; None where nobody has said.
        license: Of the weights.
        sources: sha256 of the files that it was converted from, by name.

    Example:
        >>> HeadOrigin("laion-vit-l-14", base="clip-vit-l-14").license is None
        True
    """

    name: str
    base: str | None = None
    license: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


class LaionHead(nn.Module):
    """Log-odds of "unsafe" from embeddings: columns looked up, normalised, then linear layers with ReLU between.

    AutoKeras took a few columns of the training embeddings for categories. The published network writes such a number
    out with six decimals, looks the text up among those of its training set and goes on with its rank, 0 if it is not
    there. This is done here as well, so that scores are the published ones; no gradient goes through such a column.

    Args:
        tensors: mean (D,), variance (D,); dense.0.weight (H, D), dense.0.bias (H,), dense.1.weight, ... to a single
            output; lookup.C.keys, sorted int64 in millionths, and lookup.C.values, float32, of column C.

    Raises:
        CheckpointError: Names what is missing, unexpected or of a wrong shape.

    Example:
        >>> tensors = {"mean": torch.zeros(2), "variance": torch.ones(2)}
        >>> tensors |= {"dense.0.weight": torch.tensor([[1.0, 2.0]]), "dense.0.bias": torch.zeros(1)}
        >>> tensors |= {"lookup.1.keys": torch.tensor([800000]), "lookup.1.values": torch.tensor([5.0])}
        >>> head = LaionHead(tensors)
        >>> head(torch.tensor([[0.6, 0.8], [0.8, 0.6]]))
        tensor([10.6000,  0.8000])
    """

    mean: Tensor
    std: Tensor
    looked_up: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that the tensors make a network."""
        super().__init__()
        layers, columns = _parts(tensors)
        self.width = _check_shapes(tensors, layers, columns)
        self.columns = columns
        self.register_buffer("mean", tensors["mean"].float())
        self.register_buffer("std", tensors["variance"].float().sqrt().clamp(min=_LEAST_STD))
        self.register_buffer("looked_up", torch.zeros(self.width, dtype=torch.bool))
        self.looked_up[columns] = True
        for column in columns:
            self.register_buffer(f"keys_{column}", tensors[f"lookup.{column}.keys"])
            self.register_buffer(f"values_{column}", tensors[f"lookup.{column}.values"].float())
        self.dense = nn.ModuleList()
        for layer in range(layers):
            weight = tensors[f"dense.{layer}.weight"]
            linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": tensors[f"dense.{layer}.bias"]})
            self.dense.append(linear)
        self.requires_grad_(False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Compute log-odds, (N, D) of unit length -> (N,), differentiably but for columns that are looked up."""
        if embeddings.shape[-1] != self.width:
            raise CheckpointError(
                f"The head takes embeddings of size {self.width}, and its base gives {embeddings.shape[-1]}: pass the "
                "model that it was trained on as base."
            )
        x = embeddings
        if self.columns:
            with torch.no_grad():
                found = torch.zeros_like(x)
                for column in self.columns:
                    found[:, column] = self._found(column, x[:, column])
            x = torch.where(self.looked_up, found, x)
        x = (x - self.mean) / self.std
        *hidden, last = self.dense
        for layer in hidden:
            x = layer(x).relu()
        return last(x)[:, 0]

    def _found(self, column: int, values: Tensor) -> Tensor:
        keys, ranks = self.get_buffer(f"keys_{column}"), self.get_buffer(f"values_{column}")
        if not len(keys):
            return torch.zeros_like(values)
        wanted = (values.double() * _DECIMALS).round().long()
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        hit = (keys[place] == wanted) & ~((wanted == 0) & values.signbit())  # "-0.000000" is not "0.000000"
        return torch.where(hit, ranks[place], 0).to(values.dtype)


class LaionDetector(nn.Module):
    """A head on the model that gives its embeddings, as a `Detector`.

    Args:
        base: Gives the embeddings, of unit length: the CLIP that the head was trained on, or a robust copy of it.
        head: Makes scores of them.
        origin: Where the head is from.
        digest: sha256 of the head's tensors.
        threshold: An image is unsafe from this score on.

    Example:
        >>> tensors = {"mean": torch.zeros(128), "variance": torch.ones(128)}
        >>> tensors |= {"dense.0.weight": torch.ones(1, 128), "dense.0.bias": torch.zeros(1)}
        >>> base = RobustPerceptualDistance("tiny")
        >>> detector = LaionDetector(base, LaionHead(tensors), HeadOrigin("mine"), digest="")
        >>> image = torch.full((1, 3, 64, 64), 0.5)
        >>> bool((detector.logits(image) - base.embed(image).sum()).abs() < 1e-5)
        True
    """

    def __init__(
        self, base: Embedder, head: LaionHead, origin: HeadOrigin, digest: str, threshold: float = 0.5
    ) -> None:
        """Check that the two go together, as far as the base says what it gives."""
        super().__init__()
        if isinstance(base, RobustPerceptualDistance) and base.encoder.embedding_dim != head.width:
            raise CheckpointError(
                f"{origin.name} takes embeddings of size {head.width}, and {base.encoder.name} gives "
                f"{base.encoder.embedding_dim}: pass the model that it was trained on as base."
            )
        self.name = origin.name
        self.base, self.head, self.origin, self.digest, self.threshold = base, head, origin, digest, threshold

    @property
    def device(self) -> torch.device:
        """The base's."""
        return self.base.device

    def describe(self) -> dict[str, Any]:
        """State the name, the digest of the head's tensors, and the base with its own digest."""
        return {
            "name": self.name,
            "weights": f"sha256:{self.digest}",
            "threshold": self.threshold,
            "base": _described(self.base),
            "score": "probability of NSFW",
        }

    def preprocess(self, image: ImageSource) -> Tensor:
        """Read one image as the base does: (3, S, S) in [0, 1]."""
        return self.base.preprocess(image)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images (N, 3, H, W) as (N, D) of unit length: what an attack on the base alone sees."""
        return self.base.embed(images)

    def logits(self, images: Tensor) -> Tensor:
        """Compute the log-odds of NSFW, (N, 3, H, W) RGB in [0, 1] of any size -> (N,), float32, differentiably."""
        return self.head(self.embed(images).float())


def load_laion(
    path: str | os.PathLike[str], base: str | os.PathLike[str] | Embedder | None = None, threshold: float = 0.5
) -> LaionDetector:
    """Load a converted head and its base, on the CPU.

    Args:
        path: The file that `rclip-metric train convert-detector` wrote.
        base: Gives its embeddings, a model or its name; None for the one that the file names.
        threshold: An image is unsafe from this score on.

    Raises:
        CheckpointError: The file is damaged, no head, or does not fit the base; or nobody has named a base.
        WeightsError: As for `RobustPerceptualDistance`.

    Example:
        >>> load_laion("head.safetensors")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.CheckpointError: There is no file head.safetensors.
    """
    head, origin, digest = load_head(Path(path))
    base = base if base is not None else origin.base
    if base is None:
        raise CheckpointError(f"{path} does not say which model gives its embeddings: pass base, a model or its name.")
    model = RobustPerceptualDistance(base) if isinstance(base, str | os.PathLike) else base
    return LaionDetector(model, head, origin, digest, threshold)


def save_head(tensors: Mapping[str, Tensor], origin: HeadOrigin, path: Path) -> None:
    """Write a head to a safetensors file, as a whole or not at all.

    Args:
        tensors: As for `LaionHead`.
        origin: Goes into the file's metadata.
        path: Its folder is made if it does not exist.

    Raises:
        CheckpointError: The tensors make no head, or hold NaN or infinity.
        StorageError: The disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> tensors = {"mean": torch.zeros(2), "variance": torch.ones(2)}
        >>> tensors |= {"dense.0.weight": torch.ones(1, 2), "dense.0.bias": torch.zeros(1)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_head(tensors, HeadOrigin("mine", base="tiny"), Path(folder, "mine.safetensors"))
        ...     head, origin, _ = load_head(Path(folder, "mine.safetensors"))
        >>> origin, head.width
        (HeadOrigin(name='mine', base='tiny', license=None, sources={}), 2)
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    LaionHead(tensors)
    digest = tensors_digest(tensors)
    about = {"format": _FORMAT, "version": _VERSION, **asdict(origin), "digest": digest}
    try:
        with written_whole(path) as partial:
            save_file(dict(tensors), partial, metadata={_METADATA_KEY: json.dumps(about)})
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise StorageError(f"The head cannot be written to {path}: {reason.rstrip('.')}.") from error


def load_head(path: Path) -> tuple[LaionHead, HeadOrigin, str]:
    """Read what `save_head` wrote: the head, where it is from, and the sha256 of its tensors.

    Raises:
        CheckpointError: The file is missing, damaged, or no head.
        ManifestError: Its metadata are malformed.

    Example:
        >>> load_head(Path("rclip_metric/models/tiny.safetensors"))
        Traceback (most recent call last):
            ...
        rclip_metric.errors.CheckpointError: ...tiny.safetensors is no detector's head: ...
    """
    with opened(path) as file:
        metadata = file.metadata() or {}
        if _METADATA_KEY not in metadata:
            raise CheckpointError(f"{path} is no detector's head: make one with rclip-metric train convert-detector.")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    where = f"The metadata of {path}"
    about = Checker(where).matches("", parse_json(metadata[_METADATA_KEY], where), _SCHEMA)
    digest = tensors_digest(tensors)
    if digest != about["digest"]:
        raise CheckpointError(f"{path} is damaged: its tensors are not those that were written.")
    origin = HeadOrigin(**{key: about[key] for key in ("name", "base", "license", "sources")})
    return LaionHead(tensors), origin, digest


def _parts(tensors: Mapping[str, Tensor]) -> tuple[int, list[int]]:
    """Count the layers and list the columns that are looked up; CheckpointError where a tensor is missing."""
    matches = {key: _NAMES.fullmatch(key) for key in tensors}
    strange = [key for key, match in matches.items() if match is None]
    layers = {int(match[1]) for match in matches.values() if match and match[1]}
    columns = sorted({int(match[2]) for match in matches.values() if match and match[2]})
    expected = ["mean", "variance"]
    expected += [f"dense.{layer}.{part}" for layer in range(max(layers, default=0) + 1) for part in ("weight", "bias")]
    expected += [f"lookup.{column}.{part}" for column in columns for part in ("keys", "values")]
    if strange or (missing := [key for key in expected if key not in tensors]):
        problem = f"unexpected {strange[0]}" if strange else f"missing {missing[0]}"
        raise CheckpointError(f"These tensors are no detector's head: {problem}.")
    return len(layers), columns


def _check_shapes(tensors: Mapping[str, Tensor], layers: int, columns: list[int]) -> int:
    """Check that layers follow on one another; return the size of the embeddings."""

    def check(key: str, shape: tuple[int, ...], integer: bool = False) -> None:
        tensor = tensors[key]
        kind = torch.int64 if integer else torch.float32
        if tuple(tensor.shape) != shape or tensor.dtype != kind:
            raise CheckpointError(
                f"A detector's head has {key} of shape {tuple(tensor.shape)} and {tensor.dtype}, expected {shape} and "
                f"{kind}."
            )
        if not integer and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"A detector's head has values in {key} that are NaN or infinite.")

    width = inputs = tensors["mean"].numel()
    if not width:
        raise CheckpointError("A detector's head has a mean without numbers.")
    check("mean", (width,))
    check("variance", (width,))
    if bool((tensors["variance"] < 0).any()):
        raise CheckpointError("A detector's head has a variance below zero.")
    for layer in range(layers):
        outputs = tensors[f"dense.{layer}.bias"].numel() if layer < layers - 1 else 1
        check(f"dense.{layer}.weight", (outputs, inputs))
        check(f"dense.{layer}.bias", (outputs,))
        inputs = outputs
    for column in columns:
        keys = tensors[f"lookup.{column}.keys"]
        check(f"lookup.{column}.keys", (keys.numel(),), integer=True)
        check(f"lookup.{column}.values", (keys.numel(),))
        if column >= width or bool((keys.diff() <= 0).any()):
            raise CheckpointError(f"A detector's head has a table for column {column} that is not sorted or not there.")
    return width


def _described(base: Embedder) -> dict[str, Any]:
    if isinstance(base, RobustPerceptualDistance):
        encoder = base.encoder
        weights = tensors_digest(encoder.state_dict())
        return {"name": encoder.name, "revision": encoder.revision, "weights": weights, "resize": encoder.resize}
    describe = getattr(base, "describe", None)
    return dict(describe()) if describe is not None else {"name": type(base).__name__}
