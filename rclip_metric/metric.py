"""The robust perceptual distance between images: frozen, differentiable in the images, head in float32."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from rclip_metric.distance import distance_between, full_precision, length, normalize
from rclip_metric.encoder import Encoder
from rclip_metric.errors import ImageError
from rclip_metric.images import RESIZES, Reading, Resize, as_batch, load_image, resize_images
from rclip_metric.images.masks import masked
from rclip_metric.images.preprocessing import check_reading
from rclip_metric.images.ranges import OutOfRange, check_choice
from rclip_metric.images.wrapped import is_batched, requires_grad, special_kind, values_of
from rclip_metric.second_look import HALVES, slack_of, undecided

if TYPE_CHECKING:
    from rclip_metric.difference_map import Method
    from rclip_metric.images.reading import ImageSource
    from rclip_metric.weights.formats import Format

    Images = Tensor | ImageSource | Sequence[ImageSource | Tensor]

__all__ = ["RobustPerceptualDistance", "TwoAFC", "distance_between", "normalize"]


_MOST_IN_ONE_PASS = 32
"""Images of several batches: with `tiny` one pass takes 0.98 of the time of two at 32 images, and 1.05 at 64."""


class TwoAFC(NamedTuple):
    """Which of two candidates is more like the reference; every field has shape (N,).

    Example:
        >>> metric = RobustPerceptualDistance("tiny")
        >>> white, black = torch.ones(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
        >>> judged = metric.two_afc(reference=black, left=white, right=black)
        >>> judged.choice, judged.tie, judged.right_similarity
        (tensor([1]), tensor([False]), tensor([1.]))
    """

    left_similarity: Tensor
    right_similarity: Tensor
    choice: Tensor  # int64: 0 left, 1 right, only if its similarity is strictly greater; -1 where a similarity is NaN
    tie: Tensor  # bool: both similarities are equal


class RobustPerceptualDistance(nn.Module):
    """Perceptual distance d(x, y) = `sqrt(1 - <u, v>)` of the unit embeddings u, v of a robust encoder.

    Images are float (N, 3, H, W) RGB in [0, 1], of any height and width; x and y may differ in size, and a batch of
    one is compared with every image of the other batch. (3, H, W) and gray images count as a batch of one and as RGB,
    uint8 is scaled, and `value_range` names any other convention. Paths, Pillow images, arrays, and lists of them and
    of tensors of any size are read as `gather` does. Results are float32 (N,): 0 for identical images, at most sqrt(2);
    lower is more alike. Symmetric, and the triangle inequality holds. A score does not depend on the other images of
    its batch beyond float rounding.

    Gradients reach the images that require them and never the encoder's weights: the encoder is frozen, always in
    eval mode and no registered submodule, so that a parent's `train()`, `requires_grad_(True)`, optimizer and
    `state_dict` do not see it, while `.to(device, dtype)`, deepcopy and pickle carry it along. In bfloat16 it still
    takes float32 images and returns float32. Images that need no graph go through the encoder in one pass as long as
    there are no more of them than 32 and than its `chunk_size`.

    Args:
        model: Name in the manifest, path of a checkpoint, Hub id "owner/repo" in our format, a library's model by its
            name ("open_clip:ViT-B-32@TAG", "timm:NAME", "hf-hub:owner/repo", see `weights.libraries`), or a module: an
            `Encoder`, an OpenCLIP, timm or torchvision model, or any that `weights.modules.module_encoder` takes. The
            weights of a module are shared, and its own mode and `requires_grad` are left alone.
        squared: Return the squared distance `1 - <u, v>` in [0, 2]: smooth everywhere, the better loss term.
        resize: "published" (the resize and crop behind the published numbers), "squash" (the whole image to the
            encoder's size: what a loss wants, as a crop gives the border no gradient), None (any other size than the
            encoder's raises), or "default": as the encoder came, which is "published" for every named model.
        value_range: Smallest and largest value of the images that will come, if not 0 and 1.
        check_range: Raise for values outside `value_range`; never checked while compiling. Unchecked, NaN and infinity
            come out as NaN, and so do values that float32 cannot compute with (past a billion times the range).
        out_of_range: What to do with finite values outside `value_range`: "raise"; "clamp", for a loss whose images
            overshoot: to the nearer end, while gradients along which a descent step leads back into the range pass (for
            a loss that is minimised); or "ignore", which is check_range=False.
        base: Name in the manifest whose architecture and preprocessing apply to a file, folder or repository that
            does not carry its own.
        revision: Commit, tag or branch on the Hub; the manifest's own if None.
        cache_dir: Hub cache folder.
        token: Hub token.
        local_files_only: Never use the network.
        save_backbone: Put the encoder's weights into `state_dict`, under `encoder.`.
        reading: How files are read: "published", as for the published numbers; "fast", several times faster and nearly
            so (see `images.read_pixels` for how nearly); or "default": as the encoder came, which is "published" for
            every named model. What is embedded by one is to be compared with what is embedded by the same.
        second_look: In half precision, let `two_afc` ask float32 (`in_float32`) where two candidates are too close.

    Raises:
        WeightsError: The model is unknown, cannot be fetched or does not fit; one sentence says which.
        ValueError: An argument is out of its range.

    Example:
        >>> metric = RobustPerceptualDistance("tiny")
        >>> x, y = torch.zeros(1, 3, 80, 60), torch.ones(2, 3, 64, 64)
        >>> metric(x, y).shape, metric(x, x)
        (torch.Size([2]), tensor([0.]))
    """

    higher_is_better = False
    is_differentiable = True

    training: bool
    _encoder: Encoder
    _in_float32: RobustPerceptualDistance | None

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module = "r-clip-f",
        *,
        squared: bool = False,
        resize: Resize | Literal["default"] = "default",
        value_range: tuple[float, float] = (0.0, 1.0),
        check_range: bool = True,
        out_of_range: OutOfRange = "raise",
        base: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        save_backbone: bool = False,
        second_look: bool = True,
        reading: Reading | Literal["default"] = "default",
    ) -> None:
        """Load, or share, the encoder and freeze it."""
        super().__init__()
        low, high = (float(bound) for bound in value_range)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"value_range must be (low, high) with low < high, got {value_range}")
        if resize != "default" and resize not in RESIZES:
            raise ValueError(f'resize must be "published", "squash", None or "default", got {resize!r}')
        if reading != "default":
            check_reading(reading)
        check_choice(out_of_range)
        self._load: Callable[[], Encoder] | None = None
        self._loaded: Mapping[str, Tensor] | None = None  # float32 weights that cannot be loaded again
        if isinstance(model, Encoder):
            encoder = _frozen_view(model)
        elif isinstance(model, nn.Module):
            from rclip_metric.weights.modules import module_encoder

            encoder = module_encoder(model)
        elif not isinstance(model, str | os.PathLike):
            raise TypeError(f"model must be a name, a path or a module, got {type(model).__name__}")
        else:
            from rclip_metric.weights import load_encoder

            load = partial(
                load_encoder,
                model,
                base=base,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
            self._load, encoder = load, load(token=token)
        if resize != "default":
            encoder.resize = resize
        if reading != "default":
            encoder.reading = reading
        # Past nn.Module.__setattr__, so that no parent sees its parameters.
        self.__dict__["_encoder"] = encoder.requires_grad_(False).eval()
        self.__dict__["_in_float32"] = None
        self.squared = squared
        self.value_range = (low, high)
        self.check_range = check_range
        self.out_of_range = out_of_range
        self.save_backbone = save_backbone
        self.second_look = second_look
        self.training = False

    @property
    def encoder(self) -> Encoder:
        """The frozen encoder: (N, 3, H, W) in [0, 1] -> (N, D), not normalised."""
        return self._encoder

    @property
    def device(self) -> torch.device:
        """Where the encoder's weights are; images have to be there too."""
        return self._encoder.mean.device

    @property
    def score_range(self) -> tuple[float, float]:
        """Smallest and largest value that `forward` can give."""
        return (0.0, 2.0) if self.squared else (0.0, math.sqrt(2.0))

    def forward(self, x: Images, y: Images, mask: Tensor | None = None) -> Tensor:
        """Compute the distance of each pair.

        Args:
            x: (N, 3, H, W) or (1, 3, H, W), in `value_range`.
            y: (N, 3, H', W') or (1, 3, H', W').
            mask: (N, 1, H, W) or (1, 1, H, W) in [0, 1], or bool: where the images count. With it both have one size,
                and outside both are replaced by the same gray, m x + (1 - m) / 2 and m y + (1 - m) / 2: where the mask
                is 0 neither the value nor the gradient depends on their pixels.

        Returns:
            (N,) in `score_range`, float32; exactly 0 for identical images.

        Raises:
            ValueError: The batches do not fit, or the images are out of range or on another device; the mask has
                another size, is out of range or leaves nothing of an image.
        """
        return self._distance(*self._pair(x, y, mask), self.squared)

    def similarity(self, x: Images, y: Images, mask: Tensor | None = None) -> Tensor:
        """Compute `<u, v>` of each pair, for images as in `forward`: (N,) in [-1, 1], exactly 1 if identical."""
        # Unit vectors, so this is <u, v>; summed up directly, identical images would come to 0.9999999 or 1.0000001.
        return 1.0 - self._distance(*self._pair(x, y, mask), squared=True)

    def difference_map(self, x: Tensor, y: Tensor, method: Method = "features", *, steps: int = 16) -> Tensor:
        """Show where the images of a pair differ: a number for every pixel of x.

        - "features": how far apart the tower's local features are, by their directions. At a pixel it is the mean over
          the levels l of 1 - cos(f_l(x), f_l(y)), between 0 and 2, interpolated between the centres of cells of 4 to 16
          pixels. The default: where the rest of the image is disturbed as well it found edits best.
        - "gradient": how much of the squared distance would go if the pixel became that of y, to first order:
          |sum over colours of (x - y) times the gradient of the squared distance by x|. One forward and backward pass.
        - "smoothed": the same with the mean gradient of `steps` noisy copies of x, averaged over small squares.
        - "integrated": the same with the mean gradient along the straight line from y to x; with their signs these
          shares sum up to the squared distance (`rclip_metric.difference_map.integrated_gradients`).

        Args:
            x: (N, 3, H, W) or (1, 3, H, W), in `value_range`.
            y: (N, 3, H', W') or (1, 3, H', W'); of x's size for all methods but "features".
            method: One of the above.
            steps: Passes of "smoothed" and "integrated".

        Returns:
            (N, H, W), float32, not negative, without a graph: 0 everywhere for identical images, and where the resize
            crops the border away.

        Raises:
            ValueError: As in `forward`; the method is unknown; or sizes differ where they must not.

        Example:
            >>> metric = RobustPerceptualDistance("tiny")
            >>> x = torch.full((1, 3, 64, 64), 0.5)
            >>> y = x.clone()
            >>> y[..., 8:24, 8:24] = 1.0  # a white square
            >>> found = metric.difference_map(x, y)[0]
            >>> found.shape, found[8:24, 8:24].mean() > 10 * found[40:, 40:].mean()
            (torch.Size([64, 64]), tensor(True))
        """
        from rclip_metric.difference_map import difference_map

        x, y = self._pair(x.detach(), y.detach(), None)
        count = max(len(x), len(y))
        return difference_map(self._encoder, x.expand(count, -1, -1, -1), y.expand(count, -1, -1, -1), method, steps)

    def embed(self, x: Images) -> Tensor:
        """Embed images (N, 3, H, W) as (N, D) of unit length, float32; without a graph unless x requires grad."""
        return self._unit(self._read(x))

    def distance_to(self, embedding: Tensor, x: Images) -> Tensor:
        """Compute the distance of images to embeddings that `embed` computed once.

        The pixels behind the embedding are not known here: the distance of an image to its own embedding is zero only
        to float rounding (1e-6) if the two were embedded in batches of different size.

        Args:
            embedding: (N, D), (1, D) or (D,), of unit length.
            x: (N, 3, H, W) or (1, 3, H, W), in `value_range`.

        Returns:
            (N,) in `score_range`.

        Raises:
            ValueError: The embeddings have another shape or length, or x is as forward refuses it.
        """
        images = self._read(x)
        if not torch.compiler.is_compiling() and (kind := special_kind(embedding)):
            raise ValueError(f"embedding is {kind}, expected one as embed() gives it")
        if embedding.ndim == 1:
            embedding = embedding[None]
        if embedding.ndim != 2 or embedding.shape[1] != self._encoder.embedding_dim:
            expected = f"(N, {self._encoder.embedding_dim})"
            raise ValueError(f"embedding must be {expected}, as embed() gives it, got {tuple(embedding.shape)}")
        if self.check_range and not torch.compiler.is_compiling():
            _check_unit(embedding)
        _check_pairing(embedding=embedding.shape[0], x=images.shape[0])
        return distance_between(self._unit(images), embedding, self.squared)

    def two_afc(self, reference: Images, left: Images, right: Images) -> TwoAFC:
        """Decide whether left or right is more like the reference (two-alternative forced choice).

        Args:
            reference: (N, 3, H, W) or (1, 3, H, W), in `value_range`.
            left: Likewise; sizes may differ.
            right: Likewise.

        In half precision the triplets whose two distances differ by less than `slack` are judged again in float32, by
        `in_float32()`: decisions are then those of float32, but for one in thousands. Not so where an image requires
        grad, inside `vmap`, compiled, or with `second_look=False`.

        Returns:
            `TwoAFC`, every field (N,).
        """
        triplets = self._read(reference), self._read(left), self._read(right)
        shown, one, other = triplets
        _check_pairing(reference=shown.shape[0], left=one.shape[0], right=other.shape[0])
        left_squared, right_squared = self._squared_distances(*triplets)
        if self.second_look and self.slack and not (_differentiated(*triplets) or _is_traced(*triplets)):
            close = undecided(left_squared.sqrt() - right_squared.sqrt(), self.slack)
            if close.any():
                picked = (images if len(images) == 1 else images[close] for images in triplets)
                with full_precision(self.device):
                    again = self.in_float32()._squared_distances(*picked)
                left_squared, right_squared = (
                    half.masked_scatter(close, exact)
                    for half, exact in zip((left_squared, right_squared), again, strict=True)
                )
        left_similarity, right_similarity = 1.0 - left_squared, 1.0 - right_squared
        known = ~(left_similarity + right_similarity).isnan()
        choice = torch.where(known, (right_similarity > left_similarity).long(), -1)
        return TwoAFC(left_similarity, right_similarity, choice, left_similarity == right_similarity)

    @property
    def slack(self) -> float:
        """In half precision, the difference of two distances from which on it is believed; 0 in float32."""
        origin = self._encoder.origin
        return slack_of(origin.name if origin else None, self._dtype())

    def in_float32(self) -> RobustPerceptualDistance:
        """Return the same metric in float32: itself, unless it computes in half precision.

        Beside half precision it is made when it is first asked for, and kept: 4 bytes for each parameter beside the 2
        (for `r-clip-f` 350 MB beside 175). It has the weights as they were before they were rounded: loaded again for
        a model that was named, and kept from the cast on for an `Encoder` that was given, unless `second_look` is
        False. Weights that have been changed in half precision are taken as they are.

        Example:
            >>> metric = RobustPerceptualDistance("tiny").to(torch.bfloat16)
            >>> x, y = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
            >>> torch.equal(metric.in_float32()(x, y), RobustPerceptualDistance("tiny")(x, y))
            True
        """
        if self._dtype() not in HALVES:
            return self
        found = self._in_float32
        if found is None:
            encoder = copy.deepcopy(self._encoder)
            rounded = encoder.state_dict()
            weights = self._loaded if self._load is None else self._load().state_dict()
            encoder.float()
            if weights is not None and _rounds_to(weights, rounded):
                encoder.load_state_dict(weights)
            found = RobustPerceptualDistance(
                encoder,
                squared=self.squared,
                value_range=self.value_range,
                check_range=self.check_range,
                out_of_range=self.out_of_range,
            )
            self.__dict__["_in_float32"] = found
        return found

    def preprocess(self, image: Any) -> Tensor:
        """Read an image as the published numbers did: Pillow's resize and crop, uint8 rounding included.

        With `reading="fast"` nearly so.

        Args:
            image: Path, bytes, PIL image or ndarray (H, W, 3).

        Returns:
            (3, S, S) in `value_range`, S being the encoder's size; stack several to a batch.

        Raises:
            ImageError: The image cannot be read.
        """
        pixels = self._encoder.preprocess(image)
        low, high = self.value_range
        return pixels if (low, high) == (0.0, 1.0) else pixels * (high - low) + low

    def gather(self, images: ImageSource | Sequence[ImageSource | Tensor]) -> Tensor:
        """Bring one image, or several of any kind and size, to the encoder's size as a batch.

        What `metric([a, b], [c, d])` does with its lists. Files, bytes, Pillow images and integer arrays are resized by
        Pillow, as `preprocess` does; tensors and float arrays in float32, in the graph, so that gradients reach them.
        All are in memory at a time: for many files there is `rclip_metric.score_pairs`.

        Args:
            images: A path, bytes, Pillow image or ndarray (H, W, 3), or a list of these and of tensors (3, H, W) in
                `value_range` or uint8.

        Returns:
            (N, 3, S, S) in `value_range`, on the metric's device.

        Raises:
            ImageError: The list is empty, or an image cannot be read.

        Example:
            >>> from PIL import Image
            >>> metric = RobustPerceptualDistance("tiny")
            >>> metric.gather([Image.new("RGB", (80, 60)), torch.rand(3, 50, 70)]).shape
            torch.Size([2, 3, 64, 64])
        """
        several: Sequence[ImageSource | Tensor]
        several = images if isinstance(images, list | tuple) else [cast("ImageSource", images)]
        if not several:
            raise ImageError("got an empty list, expected one image or more")
        batch = torch.cat([self._one(image) for image in several])
        low, high = self.value_range
        return batch if (low, high) == (0.0, 1.0) else batch * (high - low) + low

    def _one(self, image: ImageSource | Tensor) -> Tensor:
        """Read one image, (1, 3, S, S) in [0, 1]."""
        if isinstance(image, Tensor):
            batch = as_batch(image, self.value_range, self.check_range, self.out_of_range)
            if len(batch) != 1:
                raise ImageError(f"got a batch {tuple(image.shape)} in a list, expected an image (3, H, W)")
        elif getattr(getattr(image, "dtype", None), "kind", None) == "f":
            batch = load_image(image, self.out_of_range)[None]
        else:
            return self._encoder.preprocess(image)[None].to(self.device)
        return resize_images(batch.to(self.device), self._encoder.preprocessing, self._encoder.resize)

    def _read(self, images: Images) -> Tensor:
        """Check and bring to float (N, 3, H, W) in [0, 1]."""
        if not isinstance(images, Tensor):
            images = self.gather(images)
        batch = as_batch(images, self.value_range, self.check_range, self.out_of_range)
        if batch.device != self.device:
            raise ValueError(
                f"the images are on {batch.device} and the encoder is on {self.device}: "
                "move one of them, as by metric.to(x.device)"
            )
        # Equal images have to meet equal kernels, whatever memory layout they came in.
        return batch.contiguous()

    def _pair(self, x: Images, y: Images, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Check the images of pairs, and lay the mask over both."""
        one, other = self._read(x), self._read(y)
        _check_pairing(x=one.shape[0], y=other.shape[0])
        if mask is None:
            return one, other
        if one.shape[2:] != other.shape[2:]:
            sizes = f"{_size(one)} and {_size(other)}"
            raise ValueError(f"with a mask images must have one size, got {sizes} (height x width)")
        return masked(one, mask), masked(other, mask)

    def _unit(self, images: Tensor) -> Tensor:
        """Embed (N, 3, H, W) as (N, D); the graph is kept only for images that require grad."""
        with nullcontext() if requires_grad(images) else torch.no_grad():
            return normalize(self._encoder(images))

    def _units(self, *batches: Tensor) -> list[Tensor]:
        """Embed batches as (N, D) each; in one pass those that need no graph, where they are small.

        The kernels of a small pass wait for the weights more than they compute. An image that requires grad goes alone,
        so that the graph holds nothing of the others.
        """
        together = [batch for batch in batches if not _differentiated(batch)]
        if _is_traced(*batches) or not self._in_one_pass(*together):
            return [self._unit(batch) for batch in batches]
        if any(batch.shape[2:] != together[0].shape[2:] for batch in together):
            preprocessing, resize = self._encoder.preprocessing, self._encoder.resize
            joined = torch.cat([resize_images(batch.float(), preprocessing, resize) for batch in together])
        else:
            joined = torch.cat(together)
        units = iter(self._unit(joined).split([len(batch) for batch in together]))
        return [self._unit(batch) if _differentiated(batch) else next(units) for batch in batches]

    def _in_one_pass(self, *batches: Tensor) -> bool:
        """Tell whether batches are small enough to go through the encoder together, before any size is traced."""
        most = min(self._encoder.chunk_size or 0, _MOST_IN_ONE_PASS)
        return len(batches) > 1 and not _is_traced(*batches) and sum(map(len, batches)) <= most

    def _distance(self, x: Tensor, y: Tensor, squared: bool) -> Tensor:
        # One pass has them in one order, whichever is given first, so that the distance is symmetric to the last bit.
        if self._in_one_pass(x, y) and not _differentiated(x, y) and _comes_first(y, x):
            x, y = y, x
        return length(self._difference(x, y, *self._units(x, y)), squared)

    def _squared_distances(self, reference: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the squared distances (N,) of left and of right."""
        u, v, w = self._units(reference, left, right)
        if left.shape[1:] == right.shape[1:] and not _differentiated(left, right):
            # Equal candidates tie, also where they stand at two places of one pass.
            w = torch.where((left == right).flatten(1).all(1, keepdim=True), v, w)
        squared = (
            length(self._difference(reference, candidate, u, unit), squared=True)
            for candidate, unit in ((left, v), (right, w))
        )
        left_squared, right_squared = torch.broadcast_tensors(*squared)
        return left_squared, right_squared

    def _difference(self, x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Return u - v (N, D), exactly zero where the images are equal.

        Matrix kernels round differently for different batch sizes, so that an image embedded alone and the same
        image among others would otherwise be 1e-7 apart, with a gradient of length one. NaN times zero stays NaN.
        """
        difference = u - v
        if x.shape[1:] != y.shape[1:]:
            return difference
        return difference * ~(x == y).flatten(1).all(1, keepdim=True)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **settings: Any
    ) -> RobustPerceptualDistance:
        """Load what `save_pretrained` or `push_to_hub` wrote; the same as the constructor.

        Args:
            pretrained_model_name_or_path: Folder, Hub id, or any other model that the constructor takes.
            settings: Arguments of the constructor; `squared` and `value_range` are settings of the call, not of the
                weights, and are not saved.
        """
        return cls(pretrained_model_name_or_path, **settings)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        format: Format = "rclip-metric",
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_settings: Any,
    ) -> str | None:
        """Write the encoder as model.safetensors and config.json, which carries architecture and preprocessing.

        Args:
            save_directory: Folder; made if it does not exist.
            format: "open_clip" or "timm" for a folder that these load instead, see `weights.formats.save_as`.
            push_to_hub: Upload it as well, which is for our own format.
            repo_id: Where to; the folder's name in the user's own space if None.
            push_settings: Arguments of `push_to_hub`.

        Returns:
            The commit if it was pushed, else None.

        Raises:
            ValueError: The other library has no such tower, or `push_to_hub` is to upload its format.
        """
        from rclip_metric.weights.formats import save_as

        if push_to_hub and format != "rclip-metric":
            raise ValueError(f"push_to_hub uploads the format rclip-metric: upload the folder of {format} yourself")
        save_as(self._encoder, save_directory, format)
        return self.push_to_hub(repo_id or Path(save_directory).name, **push_settings) if push_to_hub else None

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Upload the encoder; `RobustPerceptualDistance(repo_id)` then loads it.

        Args:
            repo_id: "owner/repo"; made if it does not exist.
            settings: private, token, revision, commit_message, training, license and notes, as `weights.push_encoder`
                takes them.

        Returns:
            The commit.
        """
        from rclip_metric.weights import push_encoder

        return push_encoder(self._encoder, repo_id, **settings)

    def train(self, mode: bool = True) -> RobustPerceptualDistance:
        """Do nothing: the metric is always in eval mode."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> RobustPerceptualDistance:
        """Do nothing: the weights are always frozen."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RobustPerceptualDistance:
        super()._apply(fn, recurse)
        keeps = self.second_look and self._load is None and self._dtype() not in HALVES
        wide = self._encoder.state_dict() if keeps else self._loaded
        self._encoder._apply(fn, recurse)
        self._loaded = wide if self._dtype() in HALVES else None
        self.__dict__["_in_float32"] = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle carries: the metric in float32 is made again."""
        return {**self.__dict__, "_in_float32": None}

    def _dtype(self) -> torch.dtype:
        return next(self._encoder.parameters()).dtype

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.save_backbone:
            self._encoder.state_dict(destination=destination, prefix=f"{prefix}encoder.", keep_vars=keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        inner = f"{prefix}encoder."
        backbone = {key.removeprefix(inner): value for key, value in state_dict.items() if key.startswith(inner)}
        rest = {key: value for key, value in state_dict.items() if not key.startswith(inner)}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if not (backbone or self.save_backbone):
            return
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        result = self._encoder.load_state_dict(backbone, strict=False, assign=assign)
        self._encoder.requires_grad_(False)
        missing_keys += [inner + key for key in result.missing_keys]
        unexpected_keys += [inner + key for key in result.unexpected_keys]

    def extra_repr(self) -> str:
        """Show everything that a score depends on."""
        outside = "" if self.out_of_range == "raise" else f", out_of_range={self.out_of_range!r}"
        return f"{self._encoder.extra_repr()}, squared={self.squared}, value_range={self.value_range}{outside}"


def _differentiated(*batches: Tensor) -> bool:
    """Tell whether the graph is kept of any of the images."""
    return torch.is_grad_enabled() and any(map(requires_grad, batches))


def _is_traced(*batches: Tensor) -> bool:
    """Tell whether what is done may depend on no value and on no size: compiled, traced, or inside `vmap`."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or any(map(is_batched, batches))


def _comes_first(one: Tensor, other: Tensor) -> bool:
    """Order batches that may go through one pass: by shape, then by the first pixel that differs."""
    if one.shape != other.shape or not one.numel():
        return tuple(one.shape) < tuple(other.shape)
    at = (one != other).flatten().byte().argmax()
    return bool(one.flatten()[at] < other.flatten()[at])


def _rounds_to(weights: Mapping[str, Tensor], rounded: Mapping[str, Tensor]) -> bool:
    """Tell whether weights, rounded as others are, are those."""
    if weights.keys() != rounded.keys():
        return False
    return all(torch.equal(value.to(rounded[name]), rounded[name]) for name, value in weights.items())


def _size(images: Tensor) -> str:
    return f"{images.shape[2]}x{images.shape[3]}"


def _check_pairing(**sizes: int) -> None:
    """Raise ValueError unless the batches have one size, not counting batches of one."""
    # No set of sizes: torch.export takes no hash of one that it leaves open.
    several = [size for size in sizes.values() if size != 1]
    if any(size != several[0] for size in several[1:]):
        got = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(f"batches must have the same number of images, or one: {got}")


def _check_unit(embeddings: Tensor) -> None:
    """Raise ValueError unless lengths are 1, within what half precision moves them (below 1 %), or 0."""
    norm = values_of(embeddings).float().norm(dim=-1)
    wrong = norm[((norm - 1).abs() > 0.01) & (norm != 0)]
    if len(wrong):
        raise ValueError(
            f"embedding must have unit length, got {wrong[0]:.4g}: take it from embed(), not from the encoder"
        )


def _frozen_view(encoder: Encoder) -> Encoder:
    """Put the same weights into a second encoder, whose mode and requires_grad do not touch the original's."""
    shared: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in encoder.parameters()
    }
    shared |= {id(buffer): buffer.detach() for buffer in encoder.buffers()}
    return copy.deepcopy(encoder, shared)
