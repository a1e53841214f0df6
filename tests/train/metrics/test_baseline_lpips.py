"""LPIPS and R-LPIPS against the PyPI package `lpips`, which is the reference here and not used by the code."""

from __future__ import annotations

import random
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import models

from rclip_metric.errors import CheckpointError, DigestError, UnknownModelError, WeightsError
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings, attack_block
from rclip_metric.train.evaluation.tasks.two_afc import decision
from rclip_metric.train.metrics import lpips as ours
from rclip_metric.train.metrics.lpips_layers import classifier_features
from rclip_metric.train.metrics.lpips_trunks import TRUNKS
from rclip_metric.train.metrics.weight_files import Request, write_stored
from rclip_metric.train.runs.seeds import sample_seed

lpips = pytest.importorskip("lpips")

SIZE = 33
NETS = ("alex", "vgg", "squeeze")


def metric(name: str, size: int = SIZE) -> ours.LpipsMetric:
    return ours.build(name, Request(image_size=size, random=True))


def package(**options: Any) -> Any:
    """The package's module; it calls torchvision in a way that warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return lpips.LPIPS(verbose=False, **options)


def reference(net: str, tensors: dict[str, Tensor]) -> Any:
    """The package's module around the given tensors; on "meta" first, as it initialises VGG for seconds."""
    with torch.device("meta"):
        module = package(net=net, pretrained=False, pnet_rand=True).to_empty(device="cpu")
    scaling = {f"scaling_layer.{k}": v for k, v in lpips.lpips.ScalingLayer().state_dict().items()}
    doubled = {key.replace("lin", "lins.", 1): tensor for key, tensor in tensors.items() if key.startswith("lin")}
    module.load_state_dict(tensors | doubled | scaling)
    return module.eval()


def pictures(count: int, seed: int = 0, size: int = SIZE) -> Tensor:
    """Smooth images with some noise, (count, 3, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (fine + 0.05 * torch.randn(fine.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("net", NETS)
def test_equal_to_the_package(net: str) -> None:
    built = metric(f"lpips-{net}")
    other = reference(net, dict(built.network.state_dict()))
    x, y = pictures(3), pictures(3, 1)
    y[1] = (x[1] + 0.01 * y[1]).clamp(0, 1)  # alike
    y[2] = 0  # black
    wanted = other(2 * x - 1, 2 * y - 1).detach().flatten()
    assert wanted.min() > 1e-5
    torch.testing.assert_close(built.function(x, y), wanted, rtol=1e-6, atol=1e-7)
    kept = built.similarities(x, built.fix(y)[:, None])
    torch.testing.assert_close(kept[:, 0], -wanted, rtol=1e-6, atol=1e-7)


def test_the_linear_weights_are_the_package_s() -> None:
    module = package(net="squeeze", pnet_rand=True)
    state = metric("lpips-squeeze").network.state_dict()
    for layer, linear in enumerate(module.lins):
        assert torch.equal(state[f"lin{layer}.model.1.weight"], linear.model[1].weight)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("features", ["zero", "tiny"])
def test_gradients_are_finite(features: str, half: bool) -> None:
    """Where features are zero, and where their squares underflow, which gives the package's own gradient NaN."""
    full = metric("lpips-squeeze")
    for key, tensor in full.network.net.named_parameters():
        if features == "tiny" and key.startswith("slice1"):
            tensor.mul_(1e-24)
        elif features == "zero" and key.endswith("bias"):
            tensor.sub_(1.0)  # whole places become zero, as in trained networks
    built = full.in_bfloat16() if half else full
    grey = torch.full((2, 3, SIZE, SIZE), 0.5)
    images = torch.cat([pictures(1), torch.zeros(1, 3, SIZE, SIZE), grey, pictures(1, 1)])
    against = torch.cat([images[:3], pictures(1), pictures(1)])  # the first three are identical
    x = images.clone().requires_grad_()
    other = reference("squeeze", dict(full.network.state_dict()))
    (theirs,) = torch.autograd.grad(other(2 * x - 1, 2 * against - 1).sum(), x)
    assert bool(theirs.isnan().any()) == (features == "tiny")
    similarity = built.similarities(x, built.fix(against)[:, None])
    (gradient,) = torch.autograd.grad(similarity.sum(), x)
    assert similarity[:3].abs().max() == 0
    assert gradient.isfinite().all()
    assert gradient[:3].abs().max() == 0
    if features == "zero":
        places = built.network.net.get_submodule("slice1")(pictures(1).to(torch.bfloat16 if half else torch.float32))
        assert (places.sum(1) == 0).any()
        assert similarity[3:].max() < 0 and gradient[4].abs().max() > 0


def test_gradient_is_the_package_s() -> None:
    built = metric("lpips-alex")
    other = reference("alex", dict(built.network.state_dict()))
    x, y = pictures(2).requires_grad_(), pictures(2, 1)
    (wanted,) = torch.autograd.grad(other(2 * x - 1, 2 * y - 1).sum(), x)
    (found,) = torch.autograd.grad(built.similarities(x, built.fix(y)[:, None]).sum(), x)
    torch.testing.assert_close(-found, wanted, rtol=1e-4, atol=1e-7)


def test_keeping_options_or_their_features_is_the_same() -> None:
    built = metric("lpips-alex")
    about: dict[str, Any] = {"name": "lpips-alex", "device": "cpu"}
    frugal = ours.LpipsMetric(built.network, SIZE, keeps=False, **about)
    assert built.keeps and not metric("lpips-vgg", 224).keeps
    x, options = pictures(3).requires_grad_(), pictures(6, 1)
    outcomes = []
    for one in (built, frugal):
        fixed = one.fix(options)
        similarity = one.similarities(x, fixed.view(3, 2, *fixed.shape[1:]))
        outcomes.append((similarity.detach(), *torch.autograd.grad(similarity.sum(), x)))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-6, atol=1e-7)


def test_an_image_s_distance_does_not_depend_on_its_batch() -> None:
    built, x, y = metric("lpips-squeeze"), pictures(5), pictures(5, 1)
    together = built.similarities(x, built.fix(y)[:, None])
    apart = torch.cat([built.similarities(x[i : i + 1], built.fix(y[i : i + 1])[:, None]) for i in range(5)])
    assert together.shape == (5, 1)
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-8)


def test_bfloat16_is_near() -> None:
    built, x, y = metric("lpips-alex"), pictures(3), pictures(3, 1)
    half = built.in_bfloat16()
    near = half.similarities(x, half.fix(y)[:, None])
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, built.similarities(x, built.fix(y)[:, None]), rtol=0.02, atol=0)
    assert next(built.network.net.parameters()).dtype == torch.float32


def test_an_attack_lowers_the_margin_without_nan() -> None:
    built = metric("lpips-squeeze")
    x, options = pictures(3), pictures(6, 1).view(3, 2, 3, SIZE, SIZE)
    x[2] = 0
    fixed = built.fix(options.flatten(0, 1)).view(3, 2, -1)
    similarities = built.similarities(x, fixed)
    right = similarities.argmax(1)
    settings = AttackSettings(LpBall("linf", 8 / 255), steps=5)
    done = attack_block(built, x, lambda judged: fixed, decision(right), settings, RunSettings(), ["a", "b", "c"])
    clean = decision(right)(similarities, torch.arange(3)).margin
    assert done.attacked.nonfinite_gradients == 0 and done.attacked.zero_gradients == 0 and done.violation == 0
    assert (done.margin < clean - 1e-3).all()
    assert sample_seed(0, "a") != sample_seed(0, "b")


def test_random_weights_are_seeded_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    before, plain = torch.get_rng_state(), random.getstate()
    one, other = metric("lpips-alex"), metric("r-lpips")
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == plain
    for key, tensor in one.network.state_dict().items():
        assert torch.equal(tensor, other.network.state_dict()[key])
    assert one.name == "lpips-alex@random" and one.revision is None
    assert one.facts.parameters == 2_469_696 + 64 + 192 + 384 + 256 + 256
    assert not any(parameter.requires_grad for parameter in one.network.parameters())


@pytest.mark.parametrize("net", NETS)
def test_the_least_size_is_stated_and_enforced(net: str) -> None:
    least = TRUNKS[net].least
    with torch.device("meta"):
        trunk = ours.Lpips(net).to("meta")
        assert trunk(torch.empty(1, 3, least, least)).shape[0] == 1
        with pytest.raises(RuntimeError, match="too small"):
            trunk(torch.empty(1, 3, least - 1, least - 1))
    with pytest.raises(ValueError, match=f"at least {least} pixels"):
        ours.build(f"lpips-{net}", Request(image_size=least - 1, random=True))


def published(tmp_path: Path, tensors: dict[str, Tensor], how: str) -> Path:
    """R-LPIPS's file in the forms that its authors' code may have written."""
    state = dict(reference("alex", tensors).state_dict())
    if how == "own copy":  # their ScalingLayer has no buffers
        state = {key: tensor for key, tensor in state.items() if not key.startswith("scaling_layer")}
    elif how == "lins alone":
        state = {key: tensor for key, tensor in state.items() if not key.startswith("lin") or key.startswith("lins")}
    elif how == "parallel":
        state = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save(state, tmp_path / "latest_net_linf_ref.pth")
    return tmp_path / "latest_net_linf_ref.pth"


@pytest.mark.parametrize("how", ["whole", "own copy", "lins alone", "parallel"])
def test_r_lpips_from_its_published_file(tmp_path: Path, how: str) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {key: tensor.clone() for key, tensor in metric("lpips-alex").network.state_dict().items()}
    for tensor in tensors.values():
        tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))  # tuned, trunk and all
    source = published(tmp_path, tensors, how)
    converted, file = ours.convert("r-lpips", source), tmp_path / "r-lpips.safetensors"
    write_stored("r-lpips", converted, file)
    assert converted.files == [source]
    built = ours.build("r-lpips", Request(image_size=SIZE, weights=file))
    x, y = pictures(2), pictures(2, 1)
    wanted = reference("alex", tensors)(2 * x - 1, 2 * y - 1).detach().flatten()
    torch.testing.assert_close(built.function(x, y), wanted, rtol=1e-6, atol=1e-7)
    assert built.name == "r-lpips" and (built.revision or "").startswith("sha256:")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lins.2.model.1.weight", torch.ones(1, 384, 1, 1), "lins.2.model.1.weight has other values"),
        ("scaling_layer.scale", torch.ones(1, 3, 1, 1), "scaling_layer.scale has other values"),
        ("net.slice1.0.weight", torch.ones(64, 3, 3, 3), r"net.slice1.0.weight is \(64, 3, 3, 3\), expected \(64, 3, "),
        ("net.slice1.0.bias", torch.full((64,), torch.nan), "net.slice1.0.bias holds numbers"),
        ("net.slice6.0.weight", torch.ones(1), "unexpected net.slice6.0.weight"),
        ("net.slice5.10.bias", None, "missing net.slice5.10.bias"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, key: str, value: Tensor | None, said: str) -> None:
    source = published(tmp_path, dict(metric("lpips-alex").network.state_dict()), "whole")
    state = torch.load(source, weights_only=True)
    if value is None:
        del state[key]
    else:
        state[key] = value
    torch.save(state, source)
    with pytest.raises(CheckpointError, match=said):
        ours.convert("r-lpips", source)


def test_negative_linear_weights_are_refused() -> None:
    tensors = dict(metric("lpips-alex").network.state_dict())
    tensors["lin0.model.1.weight"] = tensors["lin0.model.1.weight"] - 1
    with pytest.raises(CheckpointError, match=r"lin0.model.1.weight holds .* negative"):
        ours.Lpips("alex").load(tensors)


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_torchvision_s_trunk_in_the_package_s_places(tmp_path: Path, net: str) -> None:
    built = metric(f"lpips-{net}")
    other = reference(net, dict(built.network.state_dict()))
    # The file as torchvision has it: the package's slices name their modules after the places in ``features``.
    state: dict[str, Tensor] = {}
    for part in (part for name, part in other.net.named_children()):
        state |= {f"features.{key}": tensor for key, tensor in part.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "trunk.pth")
    read = ours.read_trunk(net, tmp_path / "trunk.pth")
    trunk = {key: tensor for key, tensor in built.network.state_dict().items() if key.startswith("net.")}
    assert read.keys() == trunk.keys() and all(torch.equal(read[key], trunk[key]) for key in read)


@pytest.mark.parametrize(
    ("net", "model", "weights"),
    [
        ("alex", models.alexnet, models.AlexNet_Weights),
        ("vgg", models.vgg16, models.VGG16_Weights),
        ("squeeze", models.squeezenet1_1, models.SqueezeNet1_1_Weights),
    ],
)
def test_the_trunks_are_torchvision_s(net: str, model: Any, weights: Any) -> None:
    assert weights.IMAGENET1K_V1.url == TRUNKS[net].url
    with torch.device("meta"):  # without the classifier, which is most of it
        theirs, own = model(weights=None).features[: TRUNKS[net].ends[-1]], classifier_features(net)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in own.state_dict().items()} == shapes
    generator = torch.Generator().manual_seed(8)
    state = {key: 0.05 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    outputs, gradients = [], []
    for network in (theirs, own):
        network.load_state_dict(state, assign=True)
        image = torch.randn(1, 3, 40, 35, generator=torch.Generator().manual_seed(9)).requires_grad_()
        outputs.append(network(image))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), [image, *network.parameters()]))
    assert outputs[0].count_nonzero() > 0 and torch.equal(*outputs)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_trunk_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    place = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    with pytest.raises(WeightsError, match=f"cannot be fetched .*: get .*/{place.name} and put it at {place}"):
        ours.build("lpips-squeeze", Request(image_size=SIZE))
    place.write_bytes(b"half of it")
    with pytest.raises(DigestError, match="truncated or another file"):
        ours.build("lpips-squeeze", Request(image_size=SIZE))


def test_what_else_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCLIP_METRIC_BASELINES", str(tmp_path))
    with pytest.raises(UnknownModelError, match="train baseline r-lpips FILE"):
        ours.build("r-lpips", Request(image_size=SIZE))
    with pytest.raises(ValueError, match="takes no converted file"):
        ours.build("lpips-alex", Request(image_size=SIZE, weights=tmp_path / "some.safetensors"))
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match=r"rclip-metric\[benchmark\]"):
        metric("lpips-alex")


@pytest.mark.weights
@pytest.mark.parametrize("net", NETS)
def test_equal_to_the_package_with_the_published_trunk(net: str) -> None:
    """Where torch has the trunk in its cache, and only there."""
    url = TRUNKS[net].url
    if not Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1]).is_file():
        pytest.skip(f"the trunk {net} is not in torch's cache")
    built = ours.build(f"lpips-{net}", Request(image_size=64))
    module = package(net=net)
    x, y = pictures(2, size=64), pictures(2, 1, size=64)
    wanted = module(2 * x - 1, 2 * y - 1).detach().flatten()
    torch.testing.assert_close(built.function(x, y), wanted, rtol=1e-6, atol=1e-7)
