"""Encoder: resize, normalise and embed, in one differentiable graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rclip_metric.encoder.architectures import LIBRARY_KINDS, Architecture, ConvNeXtArchitecture
from rclip_metric.encoder.forked import survive_fork
from rclip_metric.encoder.towers import Tower, build_tower, without_weights
from rclip_metric.errors import CheckpointError
from rclip_metric.images.pixels import read_pixels
from rclip_metric.images.preprocessing import RESIZES, Preprocessing, Reading, Resize, check_reading
from rclip_metric.images.resizing import resize_images
from rclip_metric.images.wrapped import is_batched

if TYPE_CHECKING:
    from rclip_metric.encoder.folding import FoldedTower
    from rclip_metric.images.reading import ImageSource

_HALVES = (torch.bfloat16, torch.float16)


class Origin(NamedTuple):
    """The weights that an encoder was loaded with: name and revision as they were then, and the digest of the tensors.

    Example:
        >>> Origin("tiny", "sha256:61091ef75036", "0" * 64).name
        'tiny'
    """

    name: str
    revision: str | None
    digest: str


class Encoder(nn.Module):
    """Images in [0, 1], of any height and width, to unnormalised embeddings.

    The mean and standard deviation are part of the module, so attacks and losses act on pixels in [0, 1].
    Weights are as `build_tower` makes them until a state dict is loaded; `from_weights` builds and loads
    without ever drawing random ones. Nothing is frozen here.

    Args:
        architecture: The vision tower.
        preprocessing: What published numbers did to images; its crop is the tower's image_size.
        mlp_hidden: Hidden size of the residual head e + fc2(relu(fc1(e))); None for no head.
        resize: What to do with images of another size than the tower's: see `resize_images`.
        name: Shown by repr and quoted with every result.
        revision: Which weights of that name.
        domain: The only images that it knows, in words such as "drawn scenes"; None for photographs and anything else.
        tower: The module that computes the architecture, if it is there already.
        reading: How files are read, "published" or "fast": see `images.read_pixels`.

    Attributes:
        tower: The vision tower; head: the residual MLP or None; mean, std: float32 (1, 3, 1, 1), whatever the
            dtype of the weights.
        embedding_dim: D. image_size: the tower's side in pixels.
        chunk_size: On the CPU and without gradients, a batch is worked through in chunks of at most this many
            images, which is faster than all at once (fresh activation memory costs page faults); None for
            off.
        channels_last: Give the tower its pixels in channels_last, whatever its kind and dtype, for weights that were
            brought into that format (`encoder.to(memory_format=torch.channels_last)`) or for autocast. False, the
            default, does so for a ConvNeXt in half precision alone. Not saved.
        folding: In eval mode, compute with the tower's BatchNorms folded into its convolutions (`folding`), in
            channels_last: embeddings differ by float rounding, and passes are two to three times faster. True by
            default, and without effect where there is no BatchNorm. Not saved.
        origin: What it was loaded from; None for one that was not loaded. It stays when the weights change.

    Example:
        >>> tiny = ConvNeXtArchitecture(image_size=32, depths=(1, 1, 1, 1), widths=(8, 16, 32, 64), projection=16)
        >>> encoder = Encoder(tiny, Preprocessing(mode="crop", resize=36, crop=32))
        >>> encoder(torch.rand(2, 3, 50, 40)).shape  # any height and width
        torch.Size([2, 16])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: Architecture,
        preprocessing: Preprocessing,
        *,
        mlp_hidden: int | None = None,
        resize: Resize = "published",
        name: str = "custom",
        revision: str | None = None,
        domain: str | None = None,
        tower: Tower | None = None,
        reading: Reading = "published",
    ) -> None:
        """Build with random weights, or with none under `with torch.device("meta")`."""
        super().__init__()
        if preprocessing.crop != architecture.image_size:
            raise ValueError(
                f"preprocessing.crop must be the architecture's image_size ({architecture.image_size}), "
                f"got {preprocessing.crop}."
            )
        if resize not in RESIZES:
            raise ValueError(f'resize must be "published", "squash" or None, got {resize!r}.')
        check_reading(reading)
        if mlp_hidden is not None and (type(mlp_hidden) is not int or mlp_hidden < 1):
            raise ValueError(f"mlp_hidden must be a positive integer or None, got {mlp_hidden!r}.")
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.mlp_hidden = mlp_hidden
        self.resize: Resize = resize
        self.reading: Reading = reading
        self.name = name
        self.revision = revision
        self.domain = domain
        self.origin: Origin | None = None
        # As many pixels as eight images of 224x224, but no more than 64 images: small ones pay for every call.
        self.chunk_size: int | None = max(8, min(64, 8 * 224**2 // architecture.image_size**2))
        self.channels_last = False
        self.folding = True
        self._folded: FoldedTower | Literal[False] | None = None  # not known yet; False where there is none
        self.tower: Tower = build_tower(architecture) if tower is None else tower
        self.embedding_dim = self.tower.embedding_dim
        self.image_size = architecture.image_size
        self.head = None if mlp_hidden is None else ResidualMLP(self.embedding_dim, mlp_hidden)
        device = torch.empty(0).device
        self._place_constants(torch.device("cpu") if device.type == "meta" else device)

    @classmethod
    def from_weights(
        cls,
        state: Mapping[str, Tensor],
        architecture: Architecture,
        preprocessing: Preprocessing,
        *,
        layout: str = "rclip-metric",
        mlp_hidden: int | None = None,
        resize: Resize = "published",
        name: str = "custom",
        revision: str | None = None,
        domain: str | None = None,
        reading: Reading = "published",
    ) -> Encoder:
        """Build around existing tensors: they become the parameters and are not copied.

        A library's tower comes in eval mode; for a native one, which has neither BatchNorm nor dropout, it is the same.

        Args:
            state: Half precision, as stored to save space, is widened to float32.
            architecture, preprocessing, mlp_hidden, resize, name, revision, domain, reading: As for the constructor.
            layout: How the keys of `state` are named, see `state_dicts.LAYOUTS`; our own by default.

        Raises:
            CheckpointError: Names the missing and unexpected keys, or the key whose shape is wrong.
        """
        from rclip_metric.encoder.state_dicts import fit

        with without_weights(architecture):
            encoder = cls(
                architecture,
                preprocessing,
                mlp_hidden=mlp_hidden,
                resize=resize,
                name=name,
                revision=revision,
                domain=domain,
                reading=reading,
            )
        fitting = fit(encoder.state_dict(), state, layout, architecture)
        if empty := [key for key, value in fitting.items() if value.is_meta]:
            raise CheckpointError(
                f"{empty[0]} is a meta tensor, which has a shape and no values: load its values first."
            )
        floats = {key: value.float() if value.is_floating_point() else value for key, value in fitting.items()}
        encoder.load_state_dict(floats, strict=True, assign=True)
        encoder._place_constants(next(encoder.parameters()).device)
        if isinstance(architecture, LIBRARY_KINDS):
            # What is not in the state dict was made on the CPU. A BatchNorm that trains mixes the images of a batch.
            encoder.to(next(encoder.parameters()).device).eval()
        return encoder

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Resizing and normalisation are float32; the tower and the head run in the dtype of the weights.

        Args:
            images: (N, 3, H, W) floats in [0, 1] on the encoder's device; the range is not checked here.

        Returns:
            (N, D) float32, not normalised.

        Raises:
            ValueError: When resize is None and the images have another size than the encoder's.
        """
        size = self.chunk_size
        if size is None or torch.compiler.is_compiling() or images.device.type != "cpu" or len(images) <= size:
            return self._embed(images)
        if torch.is_grad_enabled() and (images.requires_grad or any(p.requires_grad for p in self.parameters())):
            return self._embed(images)
        # Even chunks: nine images go as 5 + 4, since a last chunk of one would be slow.
        return torch.cat([self._embed(chunk) for chunk in images.chunk(math.ceil(len(images) / size))])

    def _embed(self, images: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            survive_fork()
            if is_batched(images):
                return self._embed_batched(images)
        pixels = resize_images(images.float(), self.preprocessing, self.resize)  # (N, 3, S, S)
        pixels = ((pixels - self.mean) / self.std).to(self._dtype())
        if self.channels_last or (pixels.dtype in _HALVES and isinstance(self.architecture, ConvNeXtArchitecture)):
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        folded = self._folded_tower()
        embedding = folded.embed(self.tower, pixels) if folded else self.tower(pixels)  # (N, D)
        if self.head is not None:
            embedding = self.head(embedding)
        return embedding.float()

    def _embed_batched(self, images: Tensor) -> Tensor:
        """Embed inside `vmap`, which knows neither channels_last nor the fused kernels of attention."""
        from torch.nn.attention import SDPBackend, sdpa_kernel  # takes 50 ms to import

        with sdpa_kernel(SDPBackend.MATH):
            pixels = resize_images(images.float(), self.preprocessing, self.resize)
            embedding = self.tower(((pixels - self.mean) / self.std).to(self._dtype()))
            return (embedding if self.head is None else self.head(embedding)).float()

    @property
    def convolutional(self) -> bool:
        """Whether the tower's weights are mostly those of convolutions, or a ConvNeXt's: faster in channels_last."""
        if isinstance(self.architecture, ConvNeXtArchitecture):
            return True
        total = sum(parameter.numel() for parameter in self.tower.parameters())
        convolutions = (module for module in self.tower.modules() if isinstance(module, nn.Conv2d))
        return 2 * sum(module.weight.numel() for module in convolutions) > total

    def _folded_tower(self) -> FoldedTower | None:
        """Return the tower that stands in for the own one, where BatchNorms can be folded and nobody is in the way."""
        # Compiling comes first: what is looked at while compiling is compiled again for when it changes.
        if torch.compiler.is_compiling() or not self.folding or self._folded is False or self.tower.training:
            return None
        # Activations that are computed again would meet other weights than the first time.
        if self.checkpointing and any(parameter.requires_grad for parameter in self.tower.parameters()):
            return None
        if self._folded is None:
            from rclip_metric.encoder.folding import folded

            self.__dict__["_folded"] = folded(self.tower, self.image_size) or False
        return self._folded or None

    def forget_folding(self) -> None:
        """Fold anew at the next pass, after weights changed in a way that autograd does not count (`.data`)."""
        if self._folded:
            self._folded.forget()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle carries: a folded tower is made again."""
        return {**self.__dict__, "_folded": None}

    @property
    def checkpointing(self) -> bool:
        """Whether the tower's blocks keep no activations for the backward pass, but compute them again.

        Outputs and gradients are the same; memory falls and time rises (about half the memory for 1.5 times the time).
        Nothing changes while gradients are disabled. False by default, not saved. A BatchNorm in train mode would
        count each batch twice.

        Raises:
            ValueError: On setting it to True for a library's tower that cannot do so.
        """
        return self.tower.checkpointing

    @checkpointing.setter
    def checkpointing(self, enable: bool) -> None:
        self.tower.checkpointing = enable
        self.__dict__["_folded"] = None

    def preprocess(self, image: ImageSource) -> Tensor:
        """Prepare one image, to (3, S, S) float32 in [0, 1]: as published numbers were, unless `reading` is "fast".

        Args:
            image: A path, bytes, a Pillow image or an array; see `images.open_image`.

        Returns:
            What `forward` takes unchanged, as its size is the encoder's. It differs from giving `forward`
            the full image by rounding to grey levels, at most 1.2/255 (see `preprocessing`); for the fast reading
            see `images.read_pixels`.
        """
        return read_pixels(image, self.preprocessing, self.resize, self.reading)

    def extra_repr(self) -> str:
        """Show name, revision and preprocessing: without them a score is not a result."""
        p = self.preprocessing
        how = f"squash {p.crop}" if p.mode == "squash" else f"resize {p.resize}, crop {p.crop}"
        knows = "" if self.domain is None else f", knows='{self.domain} only'"
        reading = "" if self.reading == "published" else f", reading={self.reading!r}"
        about = f"{self.name!r}, revision={self.revision!r}{knows}, preprocessing={how!r}"
        return f"{about}, resize={self.resize!r}{reading}"

    def _dtype(self) -> torch.dtype:
        return next(self.tower.parameters(), self.mean).dtype

    def _place_constants(self, device: torch.device) -> None:
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.preprocessing, name), dtype=torch.float32, device=device)
            self.register_buffer(name, values.view(1, 3, 1, 1), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Encoder:
        """Move or cast: mean and std follow to the device, and stay float32."""
        super()._apply(fn, recurse)
        self._place_constants(self.mean.device)
        self.__dict__["_folded"] = None
        return self


class ResidualMLP(nn.Module):
    """The head that the NIGHTS fine-tuning trains: e + fc2(relu(fc1(e))).

    Example:
        >>> head = ResidualMLP(dim=16, hidden=32)
        >>> _ = nn.init.zeros_(head.fc2.weight), nn.init.zeros_(head.fc2.bias)
        >>> embedding = torch.rand(2, 16)
        >>> torch.equal(head(embedding), embedding)
        True
    """

    def __init__(self, dim: int, hidden: int) -> None:
        """Build for embeddings of size `dim`."""
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (N, dim) to (N, dim)."""
        return embedding + self.fc2(F.relu(self.fc1(embedding)))
