"""LipSim: equal to the published formulas, 1-Lipschitz, and its certificates hold."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.base import LossAndSuccess
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings, attack_block
from rclip_metric.train.evaluation.tasks.two_afc import decision
from rclip_metric.train.metrics import load_metric
from rclip_metric.train.metrics.base import Certified, Facts
from rclip_metric.train.metrics.lipsim import lipsim_constant, sll
from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture
from rclip_metric.train.metrics.lipsim.constant import TOLERANCE
from rclip_metric.train.metrics.lipsim.model import LipSim, LipSimMetric, build
from rclip_metric.train.metrics.lipsim.published import convert, folded, random_tensors
from rclip_metric.train.metrics.lipsim.student import Student
from rclip_metric.train.metrics.weight_files import Request, write_stored
from rclip_metric.train.runs.seeds import seeded

ROOT = Path(__file__).parents[3]
SMALL = LipSimArchitecture(32, 9, 4, 3, 3, 16, 20)
PUBLISHED = LipSimArchitecture()


def published_scale(kernel_or_weight, q):
    """1 / row sums of the weighted absolute Gram matrix, as published: for kernels q cancels."""
    if kernel_or_weight.ndim == 4:
        gram = F.conv2d(kernel_or_weight, kernel_or_weight, padding=2).abs()
        sums = (torch.exp(-q).view(-1, 1, 1, 1) * gram * torch.exp(q).view(-1, 1, 1, 1)).sum((1, 2, 3))
    else:
        gram = kernel_or_weight @ kernel_or_weight.T
        sums = torch.abs(torch.exp(-q)[:, None] * gram * torch.exp(q)[None, :]).sum(1)
    return torch.where(sums == 0, torch.zeros_like(sums), 1 / sums)


def published_embedding(state, architecture, images):
    """The published forward pass, transcribed: the constraint anew each time, no layer knows of another."""
    x = torch.cat([images, images.new_zeros(len(images), architecture.channels - 3, *images.shape[2:])], 1)
    for layer in range(architecture.depth):
        kernel, bias, q = (state[f"base.1.{layer}.{part}"] for part in ("kernel", "bias", "q"))
        inner = published_scale(kernel, q).view(1, -1, 1, 1) * torch.relu(F.conv2d(x, kernel, padding=1) + bias)
        x = x - 2 * F.conv_transpose2d(inner, kernel, padding=1)
    x = F.avg_pool2d(F.avg_pool2d(x, 4, divisor_override=4), 4, divisor_override=4).flatten(1)
    for layer in range(1, architecture.linear_depth + 1):
        weight, bias, q = (state[f"base.2.{layer}.{part}"] for part in ("weight", "bias", "q"))
        x = x - 2 * F.linear(published_scale(weight, q) * torch.relu(F.linear(x, weight) + bias), weight.T)
    return x[:, : architecture.embedding]


def images(count, size=32, seed=0):
    """Smooth colours and some noise."""
    generator = seeded(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    noise = torch.rand(count, 3, size, size, generator=generator)
    return (0.8 * F.interpolate(coarse, (size, size), mode="bilinear") + 0.2 * noise).clamp(0, 1)


def metric_of(state, architecture=SMALL, *, bias=False):
    network = LipSim(architecture, folded(architecture, state), bias=bias)
    return LipSimMetric(network, architecture.image_size, name="lipsim", facts=Facts())


def identity_state(architecture):
    """No ReLU ever opens: the embedding is linear in the image, and as long as 1-Lipschitz allows."""
    state = random_tensors(architecture)
    return {key: tensor - 1e3 if key.endswith(".bias") else tensor for key, tensor in state.items()}


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


# The network is the published one


def test_equals_the_published_formulas_at_the_published_size():
    state = random_tensors(PUBLISHED)
    x = images(1, 224).requires_grad_()
    metric = build("lipsim-0.5", Request(random=True))
    embedding = metric.function(x)
    assert embedding.shape == (1, 1792)
    with torch.no_grad():
        expected = published_embedding(state, PUBLISHED, x)
    assert relative(embedding, expected) < 1e-5 and (embedding - expected).abs().max() < 1e-5 * expected.abs().max()
    assert metric.facts == Facts("LipSim (margin 0.5)", sum(map(torch.numel, state.values())) - 20 * 5, None,
                                 "Ghazanfari et al. 2023, arXiv 2310.18274")  # fmt: skip
    assert metric.name == "lipsim-0.5@random" and json.loads(json.dumps(metric.describe()))["similarity"] == "cosine"


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_published_formulas_with_their_gradients(seed):
    state = random_tensors(SMALL, seed)
    x, direction = images(3, seed=seed), torch.randn(3, 20, generator=seeded(seed))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, expected = metric_of(state).function(a), published_embedding(state, SMALL, b)
    (ours * direction).sum().backward()
    (expected * direction).sum().backward()
    assert relative(ours, expected) < 1e-5
    assert relative(a.grad, b.grad) < 1e-5
    with torch.no_grad():
        assert torch.equal(metric_of(state).function(x), ours)


def test_embeddings_do_not_depend_on_batch_mates():
    metric, x = metric_of(random_tensors(SMALL)), images(5)
    together = metric.function(x)
    for order in ([0], [3, 1], [4, 3, 2, 1, 0]):
        torch.testing.assert_close(metric.function(x[order]), together[order], rtol=1e-5, atol=1e-6)
    assert metric.function(x[:0]).shape == (0, 20)


def test_bfloat16_copy():
    metric = metric_of(random_tensors(SMALL))
    half, x = metric.in_bfloat16(), images(4)
    assert half.function.kernels.dtype == torch.bfloat16 and metric.function.kernels.dtype == torch.float32
    assert half.function(x).dtype == torch.float32 and relative(half.function(x), metric.function(x)) < 0.02
    fixed = metric.fix(images(8, seed=1)).unflatten(0, (4, 2))
    gradients = []
    for each in (metric, half):
        y = x.clone().requires_grad_()
        (each.similarities(y, fixed) @ torch.tensor([1.0, -1.0])).sum().backward()
        gradients.append(y.grad)
    assert F.cosine_similarity(*(gradient.flatten(1) for gradient in gradients)).min() > 0.9
    with pytest.raises(ValueError, match="certifies nothing"):
        half.certified_radius(x, fixed)


# It is 1-Lipschitz


def dense(kernel, size):
    """The matrix of a zero-padded convolution of images of this size, float64, with its borders."""
    inner, channels = kernel.shape[:2]
    columns = torch.eye(channels * size * size, dtype=torch.float64).view(-1, channels, size, size)
    return F.conv2d(columns, kernel.double(), padding=1).flatten(1).t().reshape(inner * size * size, -1)


@pytest.mark.parametrize("size", [3, 9])
@pytest.mark.parametrize("positive", [False, True])
def test_the_published_convolution_constraint_holds_at_the_border_though_q_cancels(size, positive):
    generator = seeded(size)
    kernel = torch.randn(3, 4, 3, 3, generator=generator, dtype=torch.float64)
    kernel = kernel.abs() if positive else kernel
    bound = 1 / published_scale(kernel, torch.randn(3, generator=generator, dtype=torch.float64))
    gram = dense(kernel, size) @ dense(kernel, size).t()
    slack = torch.diag(bound.repeat_interleave(size * size)) - gram
    assert torch.linalg.eigvalsh(slack)[0] > 0
    # In units of the bound: what is left is border, and nothing at all as positive kernels meet larger images.
    scale = bound.repeat_interleave(size * size).rsqrt()
    share = torch.linalg.eigvalsh(scale[:, None] * gram * scale)[-1].item()
    assert share < 1
    if positive:
        assert share > {3: 0.4, 9: 0.85}[size]


@pytest.mark.parametrize("spread", [0, 1, 3])
def test_the_published_linear_constraint_holds(spread):
    generator = seeded(spread)
    weight = torch.randn(12, 30, generator=generator, dtype=torch.float64)
    q = spread * torch.randn(12, generator=generator, dtype=torch.float64)
    slack = torch.diag(1 / published_scale(weight, q)) - weight @ weight.t()
    assert torch.linalg.eigvalsh(slack)[0] > 0


def test_a_zero_row_stays_closed():
    kernel = torch.randn(2, 3, 3, 3, generator=seeded(0))
    kernel[1] = 0
    folded_kernel, bias = sll.folded_kernel(kernel, torch.ones(2))
    assert bias[1] == 0 and not folded_kernel[1].any() and folded_kernel.isfinite().all()
    weight, bias = sll.folded_weight(torch.eye(3)[:2] * torch.tensor([[1.0], [0.0]]), torch.ones(2), torch.zeros(2))
    torch.testing.assert_close(weight, torch.tensor([[math.sqrt(2), 0, 0], [0, 0, 0]]))
    assert bias.tolist() == [pytest.approx(math.sqrt(2)), 0]


def jacobian(function, x):
    return torch.stack([torch.autograd.grad(function(x)[0, i], x)[0].flatten() for i in range(function(x).shape[1])])


def layers(state, architecture):
    """Every kind of layer alone, and all of them: functions of float64 images, on this network's float32 weights."""
    f = {name: tensor.double() for name, tensor in folded(architecture, state).items()}
    network = LipSim(architecture, f)
    pooled = architecture.image_size // 16

    class Convolution(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.gates = []
            return sll.convolutions(x, f["kernels"][:1], f["kernel_biases"][:1], 1, ctx.gates).flatten(1)

        @staticmethod
        def backward(ctx, gradient):
            return sll.convolutions_backward(gradient.view(1, -1, *x_size), f["kernels"][:1], 3, 1, ctx.gates)

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.gates = []
            return sll.linears(x.flatten(1), f["weights"][:1], f["weight_biases"][:1], ctx.gates)

        @staticmethod
        def backward(ctx, gradient):
            return sll.linears_backward(gradient, f["weights"][:1], ctx.gates).view(1, -1, pooled, pooled)

    x_size = (6, 6)
    return {
        "convolution": (Convolution.apply, (3, *x_size)),
        "linear": (Linear.apply, (architecture.channels, pooled, pooled)),
        "network": (network, (3, architecture.image_size, architecture.image_size)),
    }


@pytest.mark.parametrize("kind", ["convolution", "linear", "network"])
@pytest.mark.parametrize("positive", [False, True])
def test_largest_singular_value_of_the_jacobian(kind, positive):
    architecture = LipSimArchitecture(16, 6, 3, 2, 2, 5, 6)
    state = random_tensors(architecture, 1)
    if positive:  # then the constraint is as tight as it gets
        state = {key: tensor if key.endswith((".bias", ".q")) else tensor.abs() for key, tensor in state.items()}
    function, shape = layers(state, architecture)[kind]
    largest = 0.0
    for seed in range(4):
        x = torch.randn(1, *shape, generator=seeded(seed), dtype=torch.float64).requires_grad_()
        largest = max(largest, torch.linalg.matrix_norm(jacobian(function, x), 2).item())
    assert 0.5 < largest < 1 + 1e-6


def test_lipschitz_by_power_iteration_and_by_pairs():
    architecture = LipSimArchitecture(32, 12, 5, 4, 3, 24, 40)
    for seed in range(2):
        state = random_tensors(architecture, seed)
        network = LipSim(architecture, {k: v.double() for k, v in folded(architecture, state).items()})
        x = images(6, seed=seed).double()
        step = torch.randn(6, 3, 32, 32, generator=seeded(seed), dtype=torch.float64)
        for _ in range(12):  # J^T J, by a small difference (the network is piecewise linear) and by backward
            step = 1e-6 * step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            y = x.clone().requires_grad_()
            change = network(x + step) - network(x)
            (step,) = torch.autograd.grad(network(y), y, change)
        size = change.norm(dim=1) / 1e-6
        assert size.min() > 0.5 and size.max() < 1 + 1e-6
        a, b = images(64, seed=seed).double(), images(64, seed=seed + 9).double()
        b = torch.cat([b[:32], a[32:] + 1e-3 * torch.randn(32, 3, 32, 32, generator=seeded(seed), dtype=torch.float64)])
        assert ((network(a) - network(b)).norm(dim=1) <= (a - b).flatten(1).norm(dim=1)).all()


# The certificates


def attacked(metric, x, fixed, radii, steps=20):
    """Which decisions APGD changes when it may move every image by its own radius, out of the box as well.

    It runs in coordinates in which all radii are 0.4 and no box is met.
    """
    before = metric.similarities(x, fixed).diff(dim=1)[:, 0].sign()
    stretch = (radii / 0.4).view(-1, 1, 1, 1)

    def loss(points, alive):
        moved = x[alive] + (points - 0.5) * stretch[alive]
        margin = metric.similarities(moved, fixed[alive]).diff(dim=1)[:, 0] * before[alive]
        return LossAndSuccess(-margin, margin <= 0)

    half = torch.full_like(x, 0.5)
    return apgd(loss, half, LpBall("l2", 0.4), steps, seeds=range(len(x))).success


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["random", "identity"])
def test_no_attack_within_the_certified_radius_changes_a_decision(kind, bias):
    state = random_tensors(SMALL, 5) if kind == "random" else identity_state(SMALL)
    metric = metric_of(state, bias=bias)
    x, fixed = images(40, seed=2), metric.fix(images(80, seed=3)).unflatten(0, (40, 2))
    radius = metric.certified_radius(x, fixed)
    assert isinstance(metric, Certified) and radius.dtype == torch.float32 and (radius > 0).float().mean() > 0.9
    assert not attacked(metric, x, fixed, 0.99 * radius).any()
    flipped = attacked(metric, x, fixed, 1.02 * radius)[radius > 0.05].float().mean()
    assert flipped == 1 if kind == "identity" and not bias else flipped >= 0  # the bound is attained


def test_the_published_radius_is_too_large_where_embeddings_are_short():
    """Wrong by 1 / ||phi(x)||: an attack in ball and box, well inside the published radius, changes decisions."""
    metric = metric_of(identity_state(SMALL))
    x = 0.003 * images(32, seed=4)  # dark photographs
    fixed = metric.fix(images(64, seed=5)).unflatten(0, (32, 2))
    length = metric.function(x).norm(dim=1)
    ours, theirs = metric.certified_radius(x, fixed), metric.published_radius(x, fixed)
    assert length.max() < 0.2
    torch.testing.assert_close(ours, length * theirs, rtol=2e-3, atol=1e-5)
    assert attacked(metric, x, fixed, 1.02 * length * theirs).all() and (1.02 * length < 0.2).all()
    flipped = 0
    for index in range(8):  # and with images that are images
        ball = LpBall("l2", 0.5 * theirs[index].item())
        before = metric.similarities(x[index : index + 1], fixed[index : index + 1]).diff(dim=1).sign()

        def loss(points, alive, index=index, before=before):
            margin = (metric.similarities(points, fixed[index : index + 1]).diff(dim=1) * before)[:, 0]
            return LossAndSuccess(-margin, margin <= 0)

        flipped += apgd(loss, x[index : index + 1], ball, 20).success.item()
    assert flipped == 8
    assert not attacked(metric, x, fixed, 0.99 * ours).any()


def test_radii_against_the_formula():
    state = random_tensors(SMALL)
    x, options = images(16), images(32, seed=1)
    for bias in (False, True):
        metric = metric_of(state, bias=bias)
        fixed = metric.fix(options).unflatten(0, (16, 2))
        phi = published_embedding(state, SMALL, x)
        phi = torch.cat([phi, torch.ones(16, 1)], 1) if bias else phi
        w = fixed[:, 0] - fixed[:, 1]
        expected = (phi * w).sum(1).abs() / w[:, :20].norm(dim=1)
        ours, theirs = metric.certified_radius(x, fixed), metric.published_radius(x, fixed)
        assert (ours < expected).all() and (ours > expected * 0.999 - 5e-4).all()
        u = phi / phi.norm(dim=1, keepdim=True)
        torch.testing.assert_close(theirs, (u * w).sum(1).abs() / w.norm(dim=1), rtol=1e-3, atol=1e-6)
        if bias:  # then the published one is a guarantee, and the smaller one
            assert (theirs <= expected).all()


def test_ties_and_embeddings_of_length_zero_have_no_radius():
    metric = metric_of(identity_state(SMALL))
    x = images(2)
    x[1] = 0
    fixed = metric.fix(images(4, seed=1)).unflatten(0, (2, 2))
    fixed[0, 1] = fixed[0, 0]
    assert metric.certified_radius(x, fixed).tolist() == metric.published_radius(x, fixed).tolist() == [0, 0]
    assert metric.similarities(x, fixed)[1].tolist() == [0, 0]


def test_the_allowance_covers_the_rounding_of_a_deep_network():
    architecture = LipSimArchitecture(64, 45, 20, 5, 7, 64, 500)
    tensors = folded(architecture, random_tensors(architecture))
    network = LipSim(architecture, tensors)
    exact = LipSim(architecture, {key: tensor.double() for key, tensor in tensors.items()})
    metric = LipSimMetric(network, 64, name="lipsim")
    x = torch.cat([images(1, 64), torch.ones(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)])
    error = (network(x) - exact(x.double())).norm(dim=1)
    allowed = 2**-19 * (x.flatten(1).norm(dim=1) + metric._bias_lengths())
    assert (error < allowed).all() and (error > 0).all()


# Files


def checkpoint(path, state, prefix="module.model.", twice=True):
    """As published: every layer under two names, and a leftover that the authors' loader drops."""
    named = {prefix + key: tensor for key, tensor in state.items()}
    if twice:
        named |= {
            prefix + key.replace("base.1.", "convs.").replace("base.2.", "linear."): tensor
            for key, tensor in state.items()
        }
    named[prefix + "alpha"] = torch.ones(1)
    torch.save({"model_state_dict": named, "epoch": 1}, path)
    return path


@pytest.mark.parametrize(("prefix", "twice"), [("module.model.", True), ("", False), ("model.module.", True)])
def test_convert_and_build(tmp_path, prefix, twice):
    state, x = random_tensors(SMALL), images(2)
    source = checkpoint(tmp_path / "model.pth", state, prefix, twice)
    converted = convert("lipsim-0.2", source, architecture=SMALL)
    assert converted.files == [source] and converted.config == {"architecture": asdict(SMALL)}
    write_stored("lipsim-0.2", converted, tmp_path / "lipsim.safetensors")
    metric = build("lipsim-0.2", Request(weights=tmp_path / "lipsim.safetensors"), bias=True)
    assert metric.image_size == 32 and metric.name == "lipsim-0.2" and metric.revision.startswith("sha256:")
    embedding = metric.function(x)
    assert relative(embedding[:, :20], published_embedding(state, SMALL, x)) < 1e-5
    assert embedding[:, 20].tolist() == [1, 1]
    assert not any(tensor.requires_grad for tensor in metric.function.state_dict().values())


def broken(state, how):
    if how == "missing":
        del state["base.1.2.q"]
    elif how == "unexpected":
        state["last.weight"] = torch.ones(1)
    elif how == "shape":
        state["base.2.3.weight"] = torch.ones(16, 35)
    elif how == "twice":
        state["convs.0.bias"] = state["base.1.0.bias"] + 1
    elif how == "not finite":
        state["base.1.0.kernel"] = torch.full((3, 9, 3, 3), math.nan)
    return state


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "missing base.1.2.q"),
        ("unexpected", "unexpected module.model.last.weight"),
        ("shape", r"base.2.3.weight is \(16, 35\), expected \(16, 36\)"),
        ("twice", "twice, with different values"),
        ("not finite", "base.1.0.kernel is not all finite"),
    ],
)
def test_wrong_checkpoints_are_refused(tmp_path, how, words):
    source = checkpoint(tmp_path / "model.pth", broken(random_tensors(SMALL), how), twice=False)
    with pytest.raises(CheckpointError, match=words):
        convert("lipsim-0.5", source, architecture=SMALL)


def test_other_files_are_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no model_state_dict"):
        convert("lipsim-0.5", tmp_path / "list.pth")
    source = checkpoint(tmp_path / "small.pth", random_tensors(SMALL))
    with pytest.raises(CheckpointError, match=r"missing base.1.4.kernel, .* and \d+ more"):
        convert("lipsim-0.5", source)
    with pytest.raises(CheckpointError, match="no backbone"):
        convert("lipsim-0.5", source, backbone="dino")
    write_stored("lipsim-0.2", convert("lipsim-0.2", source, architecture=SMALL), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"holds lipsim-0\.2"):
        build("lipsim-0.5", Request(weights=tmp_path / "a.safetensors"))
    with pytest.raises(UnknownModelError, match=r"rclip-metric train baseline lipsim-0\.5"):
        build("lipsim-0.5", Request(weights=tmp_path / "none.safetensors"))


def test_patches_and_the_last_dimensions_change_where_numbers_are_and_nothing_else():
    sizes = {"channels": 50, "depth": 2, "inner": 7, "linear_depth": 1, "linear_inner": 8}
    first = LipSimArchitecture(16, embedding=50, patch=4, pool=4, **sizes)
    last = replace(first, embedding=2, from_end=True)
    assert (first.colours, first.side, first.features) == (48, 4, 50)
    raw, shown = random_tensors(first), images(3, size=16).requires_grad_()
    whole, end = (LipSim(architecture, folded(architecture, raw)) for architecture in (first, last))
    assert torch.equal(whole(shown)[:, -2:], end(shown))
    # By hand: the 4 x 4 pixels of a block are channels of one place; the sum over all places, divided by 4.
    x = shown.detach().unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 1, 4, 5, 2, 3).reshape(3, 48, 4, 4)
    x = torch.cat([x, torch.zeros(3, 2, 4, 4)], 1)
    for kernel, bias in zip(whole.kernels, whole.kernel_biases, strict=True):
        x = x - F.conv_transpose2d(F.conv2d(x, kernel, bias, padding=1).relu(), kernel, padding=1)
    x = x.sum((2, 3)) / 4
    x = x - (x @ whole.weights[0].t() + whole.weight_biases[0]).relu() @ whole.weights[0]
    torch.testing.assert_close(whole(shown), x, rtol=1e-4, atol=1e-5)
    student = Student(last)
    student.load_raw(raw)
    ways = (end, lambda x: student(x, student.folded()))
    fast, plain = (torch.autograd.grad(way(shown).square().sum(), shown)[0] for way in ways)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_images_of_another_size_and_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"images \(N, 3, 32, 32\)"):
        metric_of(random_tensors(SMALL)).function(torch.rand(1, 3, 48, 48))
    with pytest.raises(ValueError, match="multiple of 16"):
        LipSimArchitecture(image_size=100)


def test_the_shipped_metric_judges_photographs_and_proves_it():
    metric = load_metric("lipsim-lite")
    places = [ROOT / "examples" / "images" / f"photo-{name}.jpg" for name in ("reference", "closer", "farther")]
    reference, *options = (metric.preprocess(place)[None] for place in places)
    fixed = torch.stack([metric.fix(option) for option in options], 1)
    closer, farther = metric.similarities(reference, fixed)[0].tolist()
    radius = metric.certified_radius(reference, fixed)
    assert closer > farther and radius.item() > 36 / 255 * 64 / 224
    network = metric.function
    measured = lipsim_constant(network.architecture, dict(network.named_buffers()), reference, 20)
    assert measured.max() <= 1 + TOLERANCE
    # No attack finds another answer inside the ball.
    ball = LpBall("l2", 0.999 * radius.item())
    rule = decision(torch.zeros(1, dtype=torch.long), "margin")
    found = attack_block(metric, reference, lambda _: fixed, rule, AttackSettings(ball), RunSettings(), ["photo"])
    assert not found.fooled.any()


def test_what_is_said_of_the_shipped_metric_is_the_saved_result():
    card = (ROOT / "rclip_metric" / "models" / "README.md").read_text()
    tuned = json.loads((ROOT / "results" / "lipsim-lite" / "tuned.json").read_text())
    last = tuned["validations"][-1]
    said = f"{last['val_accuracy']:.1f} % right, {last['val_certified']:.1f} % right and proven"
    assert said in card
    metric = load_metric("lipsim-lite")
    architecture = LipSimArchitecture(**tuned["architecture"])
    assert metric.function.architecture == architecture and f"{metric.facts.parameters:,} parameters" in card
