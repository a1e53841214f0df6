"""LipSim (Ghazanfari et al. 2023, arXiv 2310.18274): the cosine of a 1-Lipschitz network's embeddings, certified.

RGB in [0, 1] is zero-padded to 45 channels; 20 convolutional SLL layers; AvgPool2d(4, divisor 4) twice, which is sums
over squares of 16 pixels, divided by 16; 7 linear SLL layers; the first 1,792 dimensions. The published code computes
the layers' constraint in every forward pass; here it is folded into the weights once (`sll`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rclip_metric
from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.train.metrics.base import EmbeddingMetric, Facts
from rclip_metric.train.metrics.lipsim import sll
from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture
from rclip_metric.train.metrics.lipsim.published import check, folded, random_tensors
from rclip_metric.train.metrics.registry import BASELINES, RANDOM
from rclip_metric.train.metrics.weight_files import Request, Stored, read_stored, weights_path
from rclip_metric.weights import short_digest, tensors_digest

PACKAGED = Path(rclip_metric.__file__).parent / "models"

# What rounding may add, see `LipSimMetric.certified_radius`.
_LIPSCHITZ = 1 + 2**-12
_FORWARD_ERROR = 2**-19
_SIMILARITY_ERROR = 2**-19


class LipSim(nn.Module):
    """Images (N, 3, S, S) in [0, 1] to embeddings (N, D), not normalised, 1-Lipschitz in l_2.

    The weights are buffers: trained as they are, they would leave the constraint that is folded into them.

    Example:
        >>> small = LipSimArchitecture(image_size=32, channels=6, depth=2, linear_depth=1, linear_inner=8, embedding=16)
        >>> network = LipSim(small, folded(small, random_tensors(small)))
        >>> x, z = torch.rand(2, 1, 3, 32, 32)
        >>> bool((network(x) - network(z)).norm() <= (x - z).norm())  # 1-Lipschitz
        True
    """

    kernels: Tensor
    kernel_biases: Tensor
    weights: Tensor
    weight_biases: Tensor

    def __init__(self, architecture: LipSimArchitecture, tensors: Mapping[str, Tensor], *, bias: bool = False) -> None:
        """Hold folded tensors.

        Args:
            architecture: the sizes.
            tensors: exactly those of `LipSimArchitecture.shapes`.
            bias: append a constant 1 to the embedding, as the authors' package can; the paper's numbers are without.

        Raises:
            CheckpointError: names the keys, or the tensor whose shape is another.
        """
        super().__init__()
        check(tensors, architecture.shapes)
        self.architecture, self.bias = architecture, bias
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach())

    def forward(self, images: Tensor) -> Tensor:
        """Embed, with a gradient to the images (no second one); float32 or wider, whatever the weights are in."""
        embedding: Tensor
        if torch.is_grad_enabled() and images.requires_grad:
            embedding = _Embedding.apply(images.to(self.kernels.dtype), self)
        else:
            embedding = self.run(images.to(self.kernels.dtype))
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        return torch.cat([embedding, torch.ones_like(embedding[:, :1])], 1) if self.bias else embedding

    def run(self, images: Tensor, gates: tuple[list[Tensor], list[Tensor]] | None = None) -> Tensor:
        """Compute the embedding (N, D) without the constant; `gates` get what `run_backward` needs."""
        if images.shape[1:] != (3, self.architecture.image_size, self.architecture.image_size):
            size = self.architecture.image_size
            raise ValueError(f"LipSim takes images (N, 3, {size}, {size}), and they are {tuple(images.shape)}")
        of_kernels, of_weights = gates or (None, None)
        moved = F.pixel_unshuffle(images, self.architecture.patch)  # (N, 3 patch^2, S / patch, S / patch)
        pooled = sll.convolutions(moved, self.kernels, self.kernel_biases, self.architecture.pool, of_kernels)
        last = sll.linears(pooled.flatten(1), self.weights, self.weight_biases, of_weights)
        return last[:, self.architecture.kept]

    def run_backward(self, gradient: Tensor, gates: tuple[list[Tensor], list[Tensor]]) -> Tensor:
        """Turn the gradient (N, D) of what `run` gave into that of the images (N, 3, S, S)."""
        architecture = self.architecture
        side = architecture.side // architecture.pool
        last = gradient.new_zeros(len(gradient), architecture.features)
        last[:, architecture.kept] = gradient
        pooled = sll.linears_backward(last, self.weights, gates[1]).unflatten(1, (-1, side, side))
        moved = sll.convolutions_backward(pooled, self.kernels, architecture.colours, architecture.pool, gates[0])
        return F.pixel_shuffle(moved, architecture.patch)


class _Embedding(torch.autograd.Function):
    """`LipSim.run` with `LipSim.run_backward`; what stays in between is one bit (a byte of memory) per ReLU."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, network: LipSim) -> Tensor:
        ctx.network, ctx.gates = network, ([], [])
        return network.run(images, ctx.gates)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.network.run_backward(gradient, ctx.gates), None


def rounded_constant(architecture: LipSimArchitecture) -> float:
    """Bound the Lipschitz constant of a network whose folded weights were rounded to float32.

    For a layer with r rows V_i of length at most sqrt(2), rounding moves V by at most 2^-24 sqrt(2 r) in norm, and
    the eigenvalues of I - V^T D V by 2 ||V|| times that, 4 sqrt(r) 2^-24 at most; the 9 places that a kernel's row is
    moved to make that 4 sqrt(9 r) 2^-24 for a convolution. Not below the 1 + 2^-12 of the published sizes.

    Example:
        >>> deep = LipSimArchitecture(depth=70, channels=120, inner=64, linear_depth=15, linear_inner=2048)
        >>> rounded_constant(LipSimArchitecture()) == 1 + 2**-12 < rounded_constant(deep)
        True
    """
    convolution = architecture.depth * math.log1p(2**-22 * math.sqrt(9 * architecture.inner))
    linear = architecture.linear_depth * math.log1p(2**-22 * math.sqrt(architecture.linear_inner))
    return max(_LIPSCHITZ, math.exp(convolution + linear))


class LipSimMetric(EmbeddingMetric):
    """LipSim as the evaluations see it.

    Example:
        >>> small = LipSimArchitecture(image_size=32, channels=6, depth=2, linear_depth=1, linear_inner=8, embedding=16)
        >>> metric = LipSimMetric(LipSim(small, folded(small, random_tensors(small))), 32, name="small LipSim")
        >>> x, left, right = torch.rand(3, 1, 3, 32, 32)
        >>> metric.certified_radius(x, torch.stack([metric.fix(left), metric.fix(right)], 1)).shape
        torch.Size([1])
    """

    function: LipSim

    def in_bfloat16(self) -> LipSimMetric:
        """Copy it with weights and activations in bfloat16; embeddings and head stay float32."""
        other = copy.copy(self)
        other.function = copy.deepcopy(self.function).to(torch.bfloat16)
        return other

    def certified_radius(self, images: Tensor, fixed: Tensor) -> Tensor:
        """Certify how far the reference may move in l_2 before the 2AFC decision changes: (N,), float32.

        The decision is the sign of <phi(x), w>, w = v_0 - v_1 the difference of the options' unit embeddings: dividing
        phi(x) by its length changes no sign. phi is 1-Lipschitz: the layers are (see `sll`, borders included); padding
        with zeros, dropping dimensions and pooling (each output is the sum of 16 inputs / 4, a product with a vector
        of length 1, and no input is used twice) are. So |<phi(x'), w> - <phi(x), w>| <= ||x' - x|| ||w||, and

            R = |<phi(x), w>| / ||w|| = ||phi(x)|| times `published_radius`

        holds for embeddings of any length; for one of length 0 it is 0, and so it is at a tie. With the appended 1,
        ||w|| is without the last entry, which no image moves.

        What rounding takes off it: the folded weights are float32, whose error of at most 2^-24 each makes a layer at
        most (1 + 7.6e-6)-Lipschitz, and 27 layers less than 1 + 2^-12 (published sizes; `rounded_constant` for others);
        the two dot products of unit vectors may be wrong by 2^-19 together; and a forward pass in float32 by 2^-19
        times the longest that an activation can get, ||x|| plus what the biases add. The last is no worst case, but
        twice what was measured (of float32 without TF32, as evaluations run).

        Raises:
            ValueError: in bfloat16, which proves nothing.
        """
        if self.function.kernels.dtype != torch.float32:
            raise ValueError(f"{self.name} in {self.function.kernels.dtype} certifies nothing: use it in float32")
        embedding, w, moving = self._decision(images, fixed)
        score, length = (embedding * w).sum(1).abs(), embedding.norm(dim=1)
        forward = _FORWARD_ERROR * (images.flatten(1).cpu().double().norm(dim=1) + self._bias_lengths())
        # The embedding that is judged in the end is at most R longer than this one.
        left = score - _SIMILARITY_ERROR * length - 2 * forward * moving
        radius = left / (rounded_constant(self.function.architecture) * (moving + _SIMILARITY_ERROR))
        return torch.where(moving > 0, radius.clamp(min=0), 0.0).to(images)

    def published_radius(self, images: Tensor, fixed: Tensor) -> Tensor:
        """Compute the authors' radius (N,): the difference of the two cosines, over ||v_0 - v_1||; 0 at a tie.

        Their theorem takes the unit embedding for 1-Lipschitz. Normalising is 1/||phi(x)||-Lipschitz, so it is a
        guarantee where ||phi(x)|| >= 1 only (always with the appended 1, without which their table is made). Elsewhere
        it is too large by the factor 1 / ||phi(x)||, and a network that is the identity attains that.
        """
        embedding, w, _ = self._decision(images, fixed)
        length, apart = embedding.norm(dim=1), w.norm(dim=1)
        there = (length > 0) & (apart > 0)
        radius = (embedding * w).sum(1).abs() / torch.where(there, length * apart, 1.0)
        return torch.where(there, radius, 0.0).to(images)

    def _decision(self, images: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute phi(x) (N, D), w (N, D), and the length (N,) of what of w an image can move; float64."""
        with torch.no_grad():
            embedding = self._call(images).cpu().double()
        w = fixed[:, 0].cpu().double() - fixed[:, 1].cpu().double()
        return embedding, w, w[:, : self.function.architecture.embedding].norm(dim=1)

    def _bias_lengths(self) -> float:
        """Bound what all biases add to an activation's length: ||V^T relu(c)|| <= sqrt(2) ||relu(c)|| per layer."""
        of_pixels = self.function.kernel_biases.relu().norm(dim=1).sum().item() * self.function.architecture.side
        return math.sqrt(2) * (of_pixels + self.function.weight_biases.relu().norm(dim=1).sum().item())


def build(name: str, request: Request, *, bias: bool = False) -> LipSimMetric:
    """Build a variant.

    Args:
        name: lipsim-pretrained, lipsim-0.2, lipsim-0.5, or lipsim-lite, whose weights are in the package.
        request: where and from which weights.
        bias: as for `LipSim`.

    Raises:
        UnknownModelError: its file is not there.
        CheckpointError: the file is damaged or another one: names the keys or shapes.

    Example:
        >>> from pathlib import Path
        >>> build("lipsim-0.5", Request(weights=Path("nowhere.safetensors"), published="its checkpoint"))
        Traceback (most recent call last):
            ...
        rclip_metric.errors.UnknownModelError: lipsim-0.5 needs its published weights, and nowhere.safetensors is not
        there: get its checkpoint, then run: rclip-metric train baseline lipsim-0.5 FILE
    """
    published = BASELINES[name].published is not None
    if request.random:
        architecture = LipSimArchitecture() if published else _sizes(_stored(name, request))
        network = LipSim(architecture, folded(architecture, random_tensors(architecture)), bias=bias)
        return _metric(name + RANDOM, network, request.device, label=BASELINES[name].label)
    stored = _stored(name, request)
    return _built(name, stored, request.device, label=BASELINES[name].label, bias=bias)


def load(path: Path, device: str = "cpu") -> LipSimMetric:
    """Build what a file of `rclip-metric train lipsim` or `train pack` holds.

    Raises:
        CheckpointError: it is damaged or another one: names the keys or shapes.

    Example:
        >>> import tempfile
        >>> from rclip_metric.train.metrics.weight_files import Converted, write_stored
        >>> small = LipSimArchitecture(16, channels=4, depth=1, linear_depth=1, linear_inner=8, embedding=4)
        >>> config = {"architecture": vars(small), "family": "lipsim", "raw": True}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "small.safetensors")
        ...     write_stored("small", Converted(random_tensors(small), config, []), path)
        ...     load(path).name
        'small'
    """
    stored = read_stored(None, path)
    return _built(stored.name, stored, device, label=stored.config.get("label"))


def _stored(name: str, request: Request) -> Stored:
    """Read the file of a name: in the package, or where converted files lie."""
    if BASELINES[name].published is not None or request.weights is not None:
        return read_stored(name, weights_path(name, request))
    path = PACKAGED / f"{name}.safetensors"
    if not path.is_file():
        raise UnknownModelError(f"{name} is not in this installation, {path} is not there: install rclip-metric again")
    return read_stored(name, path)


def _sizes(stored: Stored) -> LipSimArchitecture:
    try:
        return LipSimArchitecture(**stored.config["architecture"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{stored.path} is not LipSim: {error}") from error


def _built(name: str, stored: Stored, device: str, *, label: str | None, bias: bool = False) -> LipSimMetric:
    """Build what a file holds; raw weights, of any precision, are folded here, in float64.

    So the network is 1-Lipschitz whatever they were rounded to.
    """
    architecture = _sizes(stored)
    try:
        tensors = stored.tensors
        if stored.config.get("raw"):
            check(tensors, architecture.published_shapes)
            tensors = folded(architecture, tensors)
        network = LipSim(architecture, tensors, bias=bias)
    except CheckpointError as error:
        raise CheckpointError(f"{stored.path} is not LipSim: {error}") from error
    # Published files are known by themselves; of ours the same weights are written anew where a run is finished again.
    own = stored.config.get("family") is not None
    revision = short_digest(tensors_digest(stored.tensors)) if own else stored.revision
    return _metric(name, network, device, label=label, revision=revision, about=stored.config.get("training"))


def _metric(
    name: str,
    network: LipSim,
    device: str,
    *,
    label: str | None,
    revision: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> LipSimMetric:
    architecture = network.architecture
    more = {} if about is None else {"training": dict(about)}
    which = "last" if architecture.from_end else "first"
    return LipSimMetric(
        network.eval().to(device),
        architecture.image_size,
        name=name,
        revision=revision,
        device=device,
        facts=Facts(
            label=label,
            # The q of a convolution cancels: no image's score depends on it.
            parameters=sum(
                math.prod(shape)
                for key, shape in architecture.published_shapes.items()
                if not (key.startswith("base.1.") and key.endswith(".q"))
            ),
            source="Ghazanfari et al. 2023, arXiv 2310.18274" if about is None else "trained by rclip-metric",
        ),
        details={
            "embedding": f"{which} {architecture.embedding} dimensions{', and a constant 1' if network.bias else ''}",
            "certificate": "|<phi(x), v_0 - v_1>| / ||v_0 - v_1||, phi not normalised, less rounding",
            **more,
        },
    )
