"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) and R-LPIPS (Ghazanfari et al. 2023, arXiv 2307.15157), version 0.1.

The features y_l of a classifier's layers l, each scaled to unit length over its channels, are compared place by place:

    d(x, z) = sum_l 1 / (H_l W_l) sum_hw sum_c w_lc (y_lc(x)_hw - y_lc(z)_hw)^2,  w >= 0.

So the distance is ||e(x) - e(z)||^2 with e = sqrt(w_lc / (H_l W_l)) y_lc over all places, which spares an attack from
running the network on the options again at every step.

Images are in [0, 1] here and brought to [-1, 1] first, `normalize=True` of the published classes. So are they in the
paper's evaluation of R-LPIPS (perceptual-metrics 962995f, `lpips_clf` and `odd_one_out_clf`) and, by its data loaders,
in R-LPIPS' own training and 2AFC scores (7275b43, lpips/trainer.py: its l_inf radius of 8/255 is 4/255 of [0, 1]).
R-LPIPS' comparison of distances under attack (evaluate_lpips_robustness.py) gives the network [0, 1] as it is, which
decides otherwise: no such number can be compared with ours.

Of the PyPI package `lpips` only the files of w are used. Its code has NaN gradients where the squares of features
underflow, and builds whole classifiers through an argument that torchvision has deprecated.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric.encoder import key_report
from rclip_metric.errors import CheckpointError, DigestError, WeightsError
from rclip_metric.json_files import ANYTHING, COUNT, LINE, OBJECT, Checker, one_of
from rclip_metric.train.metrics.base import DistanceMetric, Facts
from rclip_metric.train.metrics.lpips_layers import classifier_features
from rclip_metric.train.metrics.lpips_trunks import TRUNKS
from rclip_metric.train.metrics.registry import BASELINES, RANDOM
from rclip_metric.train.metrics.weight_files import Converted, Request, Stored, read_stored, weights_path
from rclip_metric.train.runs.seeds import temporary_seed
from rclip_metric.weights import file_digest, short_digest, tensors_digest
from rclip_metric.weights.loading import read_tensors

_EXTRA = 'lpips is an extra: pip install "rclip-metric[benchmark]"'
_FLOOR = 1e-10  # added to the lengths of features, as in version 0.1
# Bytes of e(x) for one image up to which a CPU keeps those of the options. VGG needs 24 MB at 224 pixels, 3 GB for the
# options of 64 triplets, and an evaluation holds them twice for a while; its options are run again instead.
_KEPT_ON_CPU = 8_000_000


_NETS = {"lpips-alex": "alex", "lpips-vgg": "vgg", "lpips-squeeze": "squeeze", "r-lpips": "alex"}


class Lpips(nn.Module):
    """Images (N, 3, S, S) in [0, 1] to e (N, F), all layers side by side; the keys are the package's."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str) -> None:
        """Build one of `TRUNKS` without memory for its weights (device "meta"), in eval mode and frozen."""
        super().__init__()
        self.trunk, starts = TRUNKS[net], (0, *TRUNKS[net].ends)
        with torch.device("meta"):
            features = classifier_features(net)
            self.net = nn.Module()
            for layer, (start, end) in enumerate(zip(starts, self.trunk.ends, strict=False), 1):
                part = nn.Sequential()
                for place in range(start, end):
                    part.add_module(str(place), features[place])
                self.net.add_module(f"slice{layer}", part)
            for layer, channels in enumerate(self.trunk.channels):
                weight = nn.Conv2d(channels, 1, 1, bias=False)
                self.add_module(f"lin{layer}", nn.ModuleDict({"model": nn.ModuleDict({"1": weight})}))
        # Mean and standard deviation of images in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute e, of which ||e(x) - e(z)||^2 is the distance, in float32 and with finite gradients."""
        parts = []
        for layer, direction in enumerate(self.directions(images)):
            places = direction.shape[2] * direction.shape[3]
            parts.append((direction * (self.linear(layer) / places).sqrt()).flatten(1))
        return torch.cat(parts, 1)  # (N, F)

    def directions(self, images: Tensor) -> Iterator[Tensor]:
        """Yield y_l of images (N, 3, S, S) in [0, 1], layer after layer, (N, C_l, H_l, W_l) in float32."""
        features = (2 * images - 1 - self.shift) / self.scale
        features = features.to(next(self.net.parameters()).dtype)
        for part in self.net.children():
            features = part(features)
            yield _direction(features.float())

    def linear(self, layer: int) -> nn.Parameter:
        """Find w_l, (1, C_l, 1, 1)."""
        return self.get_parameter(f"lin{layer}.model.1.weight")

    def load(self, tensors: Mapping[str, Tensor]) -> Lpips:
        """Take the weights, all of them and no others.

        Raises:
            CheckpointError: names the keys or the tensor that do not fit.
        """
        expected = self.state_dict()
        if tensors.keys() != expected.keys():
            raise CheckpointError(key_report(expected.keys() - tensors.keys(), tensors.keys() - expected.keys()) + ".")
        for key, tensor in tensors.items():
            if tensor.shape != expected[key].shape:
                shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[key].shape)}"
                raise CheckpointError(f"the shape of {key} is {shapes}.")
            if not bool(tensor.isfinite().all()) or (key.startswith("lin") and bool((tensor < 0).any())):
                raise CheckpointError(f"{key} holds numbers that are not finite, or negative where LPIPS has none.")
        self.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, assign=True)
        return self.requires_grad_(False)


def _direction(features: Tensor) -> Tensor:
    """Scale features (N, C, H, W) to length 1 over C; where their squares underflow to zero they stay as they are.

    There the slope of the square root has no bound, and the gradient is passed on unscaled.
    """
    squared = features.square().sum(1, keepdim=True)
    return features / (torch.where(squared > 0, squared, 1.0).sqrt() + _FLOOR)


class LpipsMetric(DistanceMetric):
    """LPIPS as the evaluations see it: only the attacked image goes through the network at every step.

    Attributes:
        network: e.
        keeps: whether `fix` keeps e of the options, or the options themselves, to save memory.
    """

    def __init__(self, network: Lpips, image_size: int, *, keeps: bool, **about: Any) -> None:
        """Judge with a network that is on its device; `about` as for `DistanceMetric`."""
        super().__init__(self._distance, image_size, **about)
        self.network, self.keeps = network, keeps

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        return _squared(self.network(one), self.network(other))

    def fix(self, images: Tensor) -> Tensor:
        """Keep e of the images, (N, F), or the images."""
        if not self.keeps:
            return images.detach()
        with torch.no_grad():
            return self._embed(images)

    def similarities(self, images: Tensor, fixed: Tensor) -> Tensor:
        """Compute minus the distances (N, K) to what was kept, (N, K, ...)."""
        embedding, columns = self._embed(images), []
        for other in fixed.unbind(1):
            if not self.keeps:
                with torch.no_grad():
                    other = self._embed(other)
            columns.append(-_squared(embedding, other))
        return torch.stack(columns, 1)

    def _embed(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            embedding: Tensor = self.network(images)
        return embedding

    def in_bfloat16(self) -> LpipsMetric:
        """Copy it with the trunk in bfloat16; images, lengths and distances stay float32."""
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network)
        other.network.net.to(torch.bfloat16)
        other.function = other._distance
        return other


def _squared(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().sum(1)


def build(name: str, request: Request) -> LpipsMetric:
    """Build lpips-alex, lpips-vgg, lpips-squeeze or r-lpips.

    Args:
        name: one of them.
        request: where, at which size, and from which weights: a converted file for r-lpips, while the others take
            torchvision's from its cache ($TORCH_HOME) or fetch them. Random is the trunk alone.

    Raises:
        ValueError: the extra is missing, or the images are too small.
        WeightsError: a file is missing, cannot be fetched or is another one.
    """
    stored = _stored(name, request) if name == "r-lpips" and not request.random else None
    net, size = _NETS[name], request.image_size
    title = name + (RANDOM if request.random else "")
    label: str | None = BASELINES[name].label
    source = "Zhang et al. 2018, arXiv 1801.03924"
    if name == "r-lpips":
        source = "Ghazanfari et al. 2023, arXiv 2307.15157"
    details: dict[str, Any] = {"version": "0.1"}
    if stored is not None and (trained := stored.config.get("trained")) is not None:
        # Of `rclip-metric train lpips`: its own name and size, another trunk perhaps, and what was done to it.
        net, size, title, label = stored.config["net"], trained["image_size"], trained["name"], None
        source, details["trained"] = "trained here", trained
    network, trunk = Lpips(net), TRUNKS[net]
    details["net"] = net
    if size < trunk.least:
        raise ValueError(
            f"{title} needs images of at least {trunk.least} pixels a side, and they are squashed to {size}: choose a "
            "larger size"
        )
    revision: str | None = None
    if request.random:
        details["weights"] = "a random trunk with the linear weights of LPIPS"
        _load(network, random_trunk(network) | _linear(net), name)
    elif stored is not None:
        # Of a trained one the weights are looked at: a run that is repeated writes them anew.
        revision = short_digest(tensors_digest(stored.tensors)) if "trained" in details else stored.revision
        _load(network, stored.tensors, str(weights_path(name, request)))
    elif request.weights is not None:
        raise ValueError(f"{name} takes no converted file, only torchvision's own: leave {request.weights} out")
    else:
        path = fetch_trunk(net)
        revision = f"sha256:{file_digest(path)[:12]}"
        details["weights"] = f"{path.name}, and the package's v0.1/{net}.pth"
        _load(network, read_trunk(net, path) | _linear(net), str(path))
    with torch.device("meta"):
        width = Lpips(net).to("meta")(torch.empty(1, 3, size, size)).shape[1]
    return LpipsMetric(
        network.to(request.device),
        size,
        keeps=torch.device(request.device).type == "cuda" or width * 4 <= _KEPT_ON_CPU,
        name=title,
        revision=revision,
        device=request.device,
        facts=Facts(
            label=label,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            licence=None if name == "r-lpips" else "BSD-2-Clause",
            source=source,
        ),
        details=details,
    )


def _stored(name: str, request: Request) -> Stored:
    """Read a converted file, or one of `rclip-metric train lpips`; CheckpointError where its settings are no such."""
    path = weights_path(name, request)
    stored = read_stored(name, path)
    check = Checker(f"The metadata of {path}")
    check.matches("config", stored.config, {"net": one_of(TRUNKS), "version": LINE, "trained?": OBJECT})
    if (trained := stored.config.get("trained")) is not None:
        check.matches("trained", trained, {"name": LINE, "image_size": COUNT, "*": ANYTHING})
    return stored


def convert(name: str, source: Path, *, backbone: str | None = None) -> Converted:
    """Read R-LPIPS's latest_net_linf_ref.pth: the state dict of a whole LPIPS module on AlexNet.

    Its linear weights may be there as lin0.*, as lins.0.*, or as both, every key may have DataParallel's "module."
    before it, and the scaling of the images may be left out, as the authors' own copy of the module keeps it elsewhere.

    Args:
        name: r-lpips.
        source: the file.
        backbone: not used.

    Raises:
        CheckpointError: it holds something else: names the keys or the tensor.
    """
    del backbone
    tensors: dict[str, Tensor] = read_tensors(source)
    if tensors and all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    network = Lpips(_NETS[name])
    scaling: dict[str, Tensor] = {"scaling_layer.shift": network.shift, "scaling_layer.scale": network.scale}
    for key in [key for key in tensors if key in scaling or key.startswith("lins.")]:
        tensor = tensors.pop(key)
        same = scaling[key] if key in scaling else tensors.setdefault(key.replace("lins.", "lin", 1), tensor)
        if not torch.equal(tensor.float(), same.float()):
            raise CheckpointError(f"{source} is not LPIPS 0.1 on AlexNet: {key} has other values than it should.")
    _load(network, tensors, str(source))
    return Converted(dict(network.state_dict()), {"net": _NETS[name], "version": "0.1"}, [source])


def _load(network: Lpips, tensors: Mapping[str, Tensor], where: str) -> None:
    try:
        network.load(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{where} does not hold LPIPS's weights: {error}") from error


def _linear(net: str) -> dict[str, Tensor]:
    """Read the weights w of the package, checked."""
    package = importlib.util.find_spec("lpips")
    if package is None or not package.submodule_search_locations:
        raise ValueError(_EXTRA)
    path = Path(package.submodule_search_locations[0], "weights", "v0.1", f"{net}.pth")
    if not path.is_file() or file_digest(path) != TRUNKS[net].linear:
        raise DigestError(f"{path} is not LPIPS 0.1's, as in lpips 0.1.4: install the package again.")
    return read_tensors(path)


def random_trunk(network: Lpips, seed: int = 0) -> dict[str, Tensor]:
    """Draw seeded weights of a trunk, He's normal ones, which keep the size of the features from layer to layer."""
    tensors = {}
    with temporary_seed(seed):
        for key, tensor in network.state_dict().items():
            if not key.startswith("net"):
                continue
            tensors[key] = torch.zeros(tensor.shape)
            if tensor.dim() == 4:
                nn.init.kaiming_normal_(tensors[key], nonlinearity="relu")
    return tensors


def fetch_trunk(net: str) -> Path:
    """Find torchvision's file of a classifier in "checkpoints" of torch's hub folder, and fetch it if it is not there.

    Raises:
        DigestError: it is not the file that its name says, by the first digits of its sha256.
        WeightsError: it cannot be fetched; says from where to where.
    """
    url = TRUNKS[net].url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, os.fspath(path), progress=False)
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise WeightsError(f"{path.name} cannot be fetched ({reason}): get {url} and put it at {path}.") from error
    digits = path.stem.rsplit("-", 1)[1]
    if not file_digest(path).startswith(digits):
        raise DigestError(f"{path} is truncated or another file: remove it, and get {url} again.")
    return path


def read_trunk(net: str, path: Path) -> dict[str, Tensor]:
    """Read a torchvision classifier as the tensors of a trunk: features.8.weight is net.slice3.8.weight, say.

    Raises:
        CheckpointError: it holds something else.
    """
    ends, tensors = TRUNKS[net].ends, {}
    for key, tensor in read_tensors(path).items():
        part, place, *inner = key.split(".")
        if part == "classifier":
            continue
        layer = next((i for i, end in enumerate(ends, 1) if place.isdecimal() and int(place) < end), None)
        kept = part == "features" and layer is not None
        tensors[".".join([f"net.slice{layer}", place, *inner]) if kept else key] = tensor
    return tensors
