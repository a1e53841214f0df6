"""What an evaluation asks of a metric, and adapters: ours, a function to embeddings, a function to distances."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from rclip_metric import RobustPerceptualDistance
from rclip_metric.distance import normalize
from rclip_metric.images import CLIP_MEAN, CLIP_STD, Preprocessing, open_image, preprocess_pil
from rclip_metric.train.metrics.paper import is_published
from rclip_metric.train.runs.precision import encoder_precision, resolved_precision
from rclip_metric.weights import get_spec, model_names, short_digest, tensors_digest

if TYPE_CHECKING:
    from rclip_metric.encoder import Encoder
    from rclip_metric.images import ImageSource


@dataclass(frozen=True)
class Facts:
    """What a table says of a metric besides its numbers; None where nobody has said.

    Attributes:
        label: how people call it, e.g. "DreamSim (ensemble)".
        parameters: numbers that were learned, of which an image's score depends on.
        licence: of the weights.
        source: the paper, or where the weights are from, in one clause.

    Example:
        >>> Facts(label="l_1", parameters=0).licence is None
        True
    """

    label: str | None = None
    parameters: int | None = None
    licence: str | None = None
    source: str | None = None


class Metric(Protocol):
    """An image metric that can be judged and attacked.

    Images are float (N, 3, H, W) in [0, 1], as `preprocess` makes them. What is fixed during an attack (the options of
    a triplet) goes through `fix` once, and `similarities` compares images with it again and again: for embeddings
    that is a dot product, for a pairwise distance the other images themselves.

    A metric with an `embed` besides states that `fix` gives unit embeddings (N, D) and that similarities are their
    dot products: evaluations then embed each image once, in however many samples it stands.

    Example:
        >>> metric: Metric = EmbeddingMetric(lambda images: images.flatten(1), 4, name="pixels")
        >>> reference, options = torch.rand(1, 3, 4, 4), torch.rand(2, 3, 4, 4)
        >>> fixed = metric.fix(options)[None]  # (1, 2, D)
        >>> metric.similarities(reference, fixed).shape
        torch.Size([1, 2])
    """

    name: str
    revision: str | None

    @property
    def device(self) -> torch.device:
        """Where images have to be."""

    def describe(self) -> dict[str, Any]:
        """Say what the numbers depend on, for the record: JSON."""

    def preprocess(self, image: ImageSource) -> Tensor:
        """Read one image: (3, S, S) in [0, 1]; raises `ImageError` when it cannot be read."""

    def fix(self, images: Tensor) -> Tensor:
        """Keep of images what comparing with them takes: (N, 3, H, W) -> (N, ...), without a graph."""

    def similarities(self, images: Tensor, fixed: Tensor) -> Tensor:
        """Compare images (N, 3, H, W) with K fixed ones each, (N, K, ...) -> (N, K), float32, higher is more alike.

        Differentiable in the images; the smallest difference decides, so nothing may be rounded to half precision.
        """

    def in_bfloat16(self) -> Metric:
        """Copy the metric with a backbone in bfloat16, for the attack's own passes."""


@runtime_checkable
class Certified(Protocol):
    """A metric that can prove how far the reference may move before a 2AFC decision changes.

    Example:
        >>> from rclip_metric.train.metrics import load_metric
        >>> isinstance(load_metric("l2"), Certified), isinstance(load_metric("tiny"), Certified)
        (True, False)
    """

    def certified_radius(self, images: Tensor, fixed: Tensor) -> Tensor:
        """Certify decisions on images (N, 3, H, W): l_2 radii (N,), float32.

        `fixed` is what `Metric.fix` keeps of two options each, (N, 2, ...). Radii are in the scale of [0, 1] images of
        the metric's own size, and 0 at a tie. Within its radius no perturbation changes which option is closer, whether
        that is the right one or not.
        """


class EncoderMetric:
    """A `RobustPerceptualDistance` as the evaluations see it; its similarity is the cosine.

    Example:
        >>> metric = EncoderMetric(RobustPerceptualDistance("tiny"))
        >>> image = torch.full((1, 3, 64, 64), 0.5)
        >>> metric.similarities(image, metric.fix(image)[:, None]).round(decimals=4)  # with itself
        tensor([[1.]])
    """

    def __init__(self, metric: RobustPerceptualDistance) -> None:
        """Wrap; nothing is copied. The weights are looked at once: they may be others than those that were loaded."""
        self.metric = metric
        self.weights = tensors_digest(metric.encoder.state_dict())
        self.name, self.revision = _named(metric.encoder, self.weights)
        self.image_size = metric.encoder.image_size

    @property
    def device(self) -> torch.device:
        """The encoder's."""
        return self.metric.device

    @property
    def facts(self) -> Facts:
        """Parameters as they are; the manifest's licence and citation, for a model of its."""
        parameters = sum(parameter.numel() for parameter in self.metric.encoder.parameters())
        if not is_published({"name": self.name, "revision": self.revision}):
            return Facts(parameters=parameters)
        spec = get_spec(self.name)
        return Facts(parameters=parameters, licence=spec.license, source=spec.citation)

    def describe(self) -> dict[str, Any]:
        """State name, revision, digest of the weights, and preprocessing."""
        encoder = self.metric.encoder
        p = encoder.preprocessing
        return {
            "name": self.name,
            "revision": self.revision,
            "weights": self.weights,
            "resize": encoder.resize,
            "preprocessing": {"mode": p.mode, "resize": p.resize, "crop": p.crop, "interpolation": p.interpolation},
            "similarity": "cosine",
            **({} if encoder.reading == "published" else {"reading": encoder.reading}),
        }

    def preprocess(self, image: ImageSource) -> Tensor:
        """Prepare an image as for the published numbers, or as the metric was built to: (3, S, S)."""
        return self.metric.encoder.preprocess(image)

    def fix(self, images: Tensor) -> Tensor:
        """Embed, without a graph: unit embeddings (N, D)."""
        with torch.no_grad():
            return self.metric.embed(images)

    def embed(self, images: Tensor) -> Tensor:
        """Embed, differentiably: unit embeddings (N, D)."""
        return normalize(self.metric.encoder(images))

    def similarities(self, images: Tensor, fixed: Tensor) -> Tensor:
        """Compute the cosines (N, K) with unit embeddings (N, K, D)."""
        return (self.embed(images)[:, None] * fixed).sum(2)

    def in_bfloat16(self) -> EncoderMetric:
        """Copy it in bfloat16; images, mean and head stay float32."""
        half = copy.copy(self)  # the same weights, and so the same name
        half.metric = copy.deepcopy(self.metric)
        half.metric.second_look = False  # whoever attacks confirms in float32; no second copy of the weights is kept
        half.metric.to(torch.bfloat16)
        return half


def _named(encoder: Encoder, weights: str) -> tuple[str, str | None]:
    """Give name and revision, unless they are those of other weights: loaded and then changed, or claimed by hand."""
    name, revision, origin = encoder.name, encoder.revision, encoder.origin
    claimed = origin is not None and origin[:2] == (name, revision)
    if claimed and origin is not None:
        right = origin.digest == weights
    else:
        by_hand = name in model_names() and is_published({"name": name, "revision": revision})
        right = not by_hand or get_spec(name).tensors == weights
    return (name, revision) if right else (f"{name}, changed", short_digest(weights))


class _FunctionMetric:
    """What the two adapters of plain functions share: squash to one size, and a name."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        image_size: int,
        *,
        name: str,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        autocast: bool = True,
        facts: Facts | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Judge `function`, frozen by the caller.

        Args:
            function: differentiable; see the class.
            image_size: side S of the square that images are squashed to (bicubic, by Pillow).
            name: as it will stand in tables.
            revision: which weights.
            device: where the images go.
            autocast: whether the attack may run the function under bfloat16 autocast.
            facts: what a table says of it (default: nothing).
            details: whatever else the numbers depend on, JSON, for `describe`.
        """
        self.function, self.image_size, self.name, self.revision = function, image_size, name, revision
        self._device, self._autocast = torch.device(device), autocast
        self._half = False
        self.facts, self._details = facts or Facts(), dict(details or {})
        # Only its size and interpolation count here: mean and standard deviation are the function's own business.
        self._preprocessing = Preprocessing("squash", image_size, image_size, "bicubic", CLIP_MEAN, CLIP_STD)

    @property
    def device(self) -> torch.device:
        """As given."""
        return self._device

    def describe(self) -> dict[str, Any]:
        """State name, revision and size."""
        how = {"mode": "squash", "resize": self.image_size, "crop": self.image_size, "interpolation": "bicubic"}
        kind = "cosine" if isinstance(self, EmbeddingMetric) else "minus the distance"
        about = {"name": self.name, "revision": self.revision, "preprocessing": how, "similarity": kind}
        return about | self._details

    def preprocess(self, image: ImageSource) -> Tensor:
        """Squash the whole image: (3, S, S)."""
        return preprocess_pil(open_image(image), self._preprocessing, "squash")

    def _call(self, *images: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            return self.function(*images).float()

    def in_bfloat16(self) -> Any:
        """Copy it, with the function under autocast."""
        if not self._autocast:
            raise ValueError(f"{self.name} does not run in bfloat16: attack it with precision float32")
        other = copy.copy(self)
        other._half = True
        return other


class EmbeddingMetric(_FunctionMetric):
    """Any function from images (N, 3, S, S) in [0, 1] to embeddings (N, D); the similarity is their cosine.

    Example:
        >>> metric = EmbeddingMetric(lambda images: images.mean((2, 3)), 8, name="mean colour")
        >>> red, white = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
        >>> metric.similarities(red, metric.fix(white)[:, None])  # 1 / sqrt(3)
        tensor([[0.5774]])
    """

    def fix(self, images: Tensor) -> Tensor:
        """Embed, without a graph: unit embeddings (N, D)."""
        with torch.no_grad():
            return normalize(self._call(images))

    def embed(self, images: Tensor) -> Tensor:
        """Embed, differentiably: unit embeddings (N, D)."""
        return normalize(self._call(images))

    def similarities(self, images: Tensor, fixed: Tensor) -> Tensor:
        """Compute the cosines (N, K) with unit embeddings (N, K, D)."""
        return (self.embed(images)[:, None] * fixed).sum(2)


class DistanceMetric(_FunctionMetric):
    """Any function of two batches (N, 3, S, S) in [0, 1] to distances (N,); the similarity is minus the distance.

    Example:
        >>> metric = DistanceMetric(lambda x, y: (x - y).abs().mean((1, 2, 3)), 8, name="l1")
        >>> black, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
        >>> metric.similarities(white, metric.fix(black)[:, None])
        tensor([[-1.]])
    """

    def fix(self, images: Tensor) -> Tensor:
        """Keep the images themselves."""
        return images.detach()

    def similarities(self, images: Tensor, fixed: Tensor) -> Tensor:
        """Compute minus the distances (N, K) to images (N, K, 3, S, S)."""
        n, k = fixed.shape[:2]
        distance = self._call(images.repeat_interleave(k, 0), fixed.flatten(0, 1))  # (N * K,)
        if distance.numel() != n * k:
            raise ValueError(f"{self.name} must give one distance per pair, {n * k}, and gave {tuple(distance.shape)}")
        return -distance.view(n, k)


def metric_precision(precision: str, metric: Metric) -> Literal["float32", "bfloat16"]:
    """Resolve "auto" for the passes of an attack on a metric: of ours by `encoder_precision`, else by the device.

    Example:
        >>> metric_precision("float32", EmbeddingMetric(torch.flatten, 8, name="pixels"))
        'float32'
    """
    if isinstance(metric, EncoderMetric):
        return encoder_precision(precision, metric.metric.encoder)
    return resolved_precision(precision, metric.device)


def dissimilarity(
    metric: Metric, images: Tensor, fixed: Tensor, clean: Tensor, chunk_size: int | None = None
) -> Tensor:
    """Compute by how much an image is less alike than a clean one is to itself, on the metric's own scale.

    This is s(x, x) - s(z, y): 1 - cos for cosines, the distance itself where the similarity is minus a distance,
    1 - SSIM for SSIM. In float64, so that what a float32 similarity tells apart stays apart.

    Args:
        metric: has the similarity s.
        images: z, (N, 3, S, S).
        fixed: what the metric keeps of K images y for each, (N, K, ...).
        clean: x, (N, 3, S, S): the images themselves, or what they were before an attack.
        chunk_size: images per forward pass.

    Returns:
        (N, K), float64.

    Raises:
        ValueError: if the metric gives a similarity that is not finite, as PSNR does for an image and itself.

    Example:
        >>> metric = EmbeddingMetric(lambda images: images.mean((2, 3)), 8, name="mean colour")
        >>> red, green = torch.eye(3)[:2, None, :, None, None].expand(2, 1, 3, 8, 8)
        >>> dissimilarity(metric, red, metric.fix(green)[:, None], clean=red)  # 1 - cos of a right angle
        tensor([[1.]], dtype=torch.float64)
    """
    found = []
    with torch.no_grad():
        for part in torch.arange(len(images), device=images.device).split(chunk_size or max(1, len(images))):
            itself = metric.similarities(clean[part], metric.fix(clean[part])[:, None]).double()  # (n, 1)
            found.append(itself - metric.similarities(images[part], fixed[part]).double())
    apart = torch.cat(found) if found else torch.zeros(fixed.shape[:2], dtype=torch.float64, device=images.device)
    if not bool(apart.isfinite().all()):
        raise ValueError(
            f"{metric.name} gives similarities that are not finite, of an image to itself or to another: "
            "a distance needs a metric that is bounded where images are identical"
        )
    return apart
