"""The distance itself: its formula, its edges, and what it promises to code around it."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rclip_metric import Encoder, ImageError, RobustPerceptualDistance, WeightsError, score
from rclip_metric.compare import _last_metric
from rclip_metric.distance import distance_between, normalize
from rclip_metric.encoder import Architecture, ConvNeXtArchitecture
from rclip_metric.images import Preprocessing
from rclip_metric.weights import short_digest, tensors_digest

from support.encoders import VIT, small_encoder
from support.images import noise

SIDE = 32


def make_encoder(kind: str = "vit", seed: int = 0) -> Encoder:
    architectures: dict[str, Architecture] = {
        "vit": VIT,
        "convnext": ConvNeXtArchitecture(image_size=SIDE, depths=(1, 1, 2, 1), widths=(8, 16, 24, 32), projection=16),
    }
    preprocessing = Preprocessing(mode="crop", resize=36, crop=SIDE)
    name = f"random-{kind}"
    return small_encoder(architectures[kind], preprocessing, name=name, seed=seed, spread=True, revision="r1")


@pytest.fixture(scope="module", params=["vit", "convnext"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return make_encoder(request.param)


@pytest.fixture
def metric(encoder: Encoder) -> RobustPerceptualDistance:
    return RobustPerceptualDistance(encoder)


X, Y = noise(5, 3, SIDE, SIDE, seed=1), noise(5, 3, SIDE, SIDE, seed=2)


def cosine(encoder: Encoder, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cosine_similarity(encoder.eval()(x).double(), encoder.eval()(y).double())


# The formula


def test_distance_is_the_root_of_one_minus_similarity(encoder, metric):
    expected = cosine(encoder, X, Y)
    assert expected.std() > 1e-3  # the encoder tells images apart, or nothing here means anything
    torch.testing.assert_close(metric.similarity(X, Y).double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(metric(X, Y).double(), (1 - expected).sqrt(), atol=1e-6, rtol=1e-5)
    squared = RobustPerceptualDistance(encoder, squared=True)
    torch.testing.assert_close(squared(X, Y).double(), 1 - expected, atol=1e-6, rtol=1e-5)


def test_embeddings_have_unit_length_and_the_encoders_direction(encoder, metric):
    embedded = metric.embed(X)
    assert embedded.shape == (5, encoder.embedding_dim) and embedded.dtype == torch.float32
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(5), atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(embedded, F.normalize(encoder.eval()(X)))


@pytest.mark.parametrize("angle", [1e-4, 1e-3, 0.1, 1.0, math.pi / 2, 3.0, math.pi])
def test_distance_of_two_directions_at_a_known_angle(angle):
    """1 - cos(1e-4) is 5e-9, which 1 - <u, v> in float32 could only give as 0 or 6e-8."""
    u = torch.tensor([1.0, 0.0])
    v = torch.tensor([math.cos(angle), math.sin(angle)])
    expected = math.sqrt(2) * math.sin(angle / 2)
    assert distance_between(u, v).item() == pytest.approx(expected, rel=1e-4)
    assert distance_between(u, v, squared=True).item() == pytest.approx(expected**2, rel=1e-4)


def test_values_stay_in_their_range():
    u = normalize(torch.randn(2000, 7, generator=torch.Generator().manual_seed(0)))
    v = -u
    assert distance_between(u, v).max() <= math.sqrt(2) and distance_between(u, v, squared=True).max() <= 2
    assert distance_between(u, v).min() > 1.4142


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_is_float32_inside_autocast_and_for_half_embeddings(dtype):
    e, f = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    near = e + 1e-3 * f  # a distance that half precision could not tell from zero
    expected = distance_between(normalize(e), normalize(near))
    assert 0 < expected.max() < 2e-3
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(distance_between(normalize(e), normalize(near)), expected)
    assert normalize(e.to(dtype)).dtype == distance_between(e.to(dtype), f.to(dtype)).dtype == torch.float32


def test_triangle_inequality_and_symmetry_of_random_directions():
    generator = torch.Generator().manual_seed(0)
    for dimension in (2, 16, 640):
        u, v, w = normalize(torch.randn(3, 3000, dimension, generator=generator))
        near = normalize(u + 1e-3 * torch.randn(3000, dimension, generator=generator))
        for a, b, c in [(u, v, w), (u, near, v), (u, v, near), (near, u, normalize(u + near))]:
            assert (distance_between(a, c) <= distance_between(a, b) + distance_between(b, c) + 2e-6).all()
            assert torch.equal(distance_between(a, b), distance_between(b, a))


def test_triangle_inequality_and_exact_symmetry_of_images(metric):
    images = torch.cat([X, X[:1] + 0.01 * (Y[:1] - X[:1]), torch.zeros(1, 3, SIDE, SIDE)])
    table = torch.stack([metric(images, image[None]) for image in images])
    for i in range(len(images)):
        assert (table <= table[:, i, None] + table[None, i] + 2e-6).all()
    assert torch.equal(metric(X, Y), metric(Y, X))
    assert torch.equal(metric(X, Y[:, :, 5:, 3:]), metric(Y[:, :, 5:, 3:], X))
    assert torch.equal(metric(X, Y[:1]), metric(Y[:1], X))


# Equal images, and gradients everywhere

FLAT = {
    "black": torch.zeros(1, 3, SIDE, SIDE),
    "white": torch.ones(1, 3, SIDE, SIDE),
    "gray": torch.full((1, 3, SIDE, SIDE), 0.5),
    "noise": X[:1],
    "rectangle": noise(1, 3, 20, 50),
    "pixel": noise(1, 3, 1, 1),
}


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast bfloat16", "autocast float16"])
@pytest.mark.parametrize("name", FLAT)
def test_identical_images_are_at_zero_with_zero_gradient(encoder, name, precision, squared):
    metric = RobustPerceptualDistance(encoder, squared=squared)
    if precision == "bfloat16":
        metric.to(torch.bfloat16)
    x = FLAT[name].clone().requires_grad_()
    dtype = torch.float16 if "float16" in precision.split() else torch.bfloat16
    with torch.autocast("cpu", dtype=dtype, enabled="autocast" in precision):
        distance = metric(x, FLAT[name])
        similarity = metric.similarity(x, FLAT[name])
    assert distance.dtype == torch.float32 and distance.tolist() == [0.0]
    assert similarity.tolist() == [1.0]
    [gradient] = torch.autograd.grad(distance.sum(), x)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast bfloat16", "autocast float16"])
@pytest.mark.parametrize("name", FLAT)
def test_gradients_are_finite_between_any_two_images(encoder, name, precision):
    metric = RobustPerceptualDistance(encoder)
    if precision == "bfloat16":
        metric.to(torch.bfloat16)
    other = FLAT[name]
    dtype = torch.float16 if "float16" in precision.split() else torch.bfloat16
    # From far away down to a distance that only rounding makes.
    for step in (0.5, 1e-2, 1e-4, 1e-6):
        x = (other + step * (noise(*other.shape, seed=9) - other)).requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled="autocast" in precision):
            distance = metric(x, other)
        [gradient] = torch.autograd.grad(distance.sum(), x)
        assert distance.isfinite().all() and gradient.isfinite().all()
        if step == 0.5 and name != "pixel":
            assert gradient.abs().max() > 0


def test_equal_images_are_at_zero_in_batches_of_any_layout(metric):
    """An image embedded alone and the same image among others go through different kernels."""
    for count in (1, 2, 3, 7, 9, 20):
        x = noise(count, 3, SIDE, SIDE, seed=count)
        assert metric(x, x.clone()).eq(0).all()
        assert metric(x, x[-1:].clone())[-1] == 0
        assert metric(x[:1], x)[0] == 0
        strided = x.contiguous(memory_format=torch.channels_last)
        assert metric(x.clone().requires_grad_(), strided).eq(0).all()
    assert metric(X, X.double()).eq(0).all()
    levels = (X * 255).round().to(torch.uint8)
    assert metric(levels, levels.float() / 255).eq(0).all()


def test_only_the_equal_pair_of_a_batch_is_at_zero(metric):
    y = Y.clone()
    y[2] = X[2]
    x = X.clone().requires_grad_()
    distance = metric(x, y)
    assert (distance == 0).tolist() == [False, False, True, False, False]
    [gradient] = torch.autograd.grad(distance.sum(), x)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).abs().amax(1).gt(0).tolist() == [True, True, False, True, True]


def test_a_single_changed_pixel_is_not_identical(metric):
    y = X.clone()
    y[:, :, 3, 4] = 1 - y[:, :, 3, 4]
    assert metric(X, y).gt(0).all()


def test_the_zero_embedding_is_safe():
    for scale in (0.0, 1e-30, 1e-13, 1.0):
        raw = (scale * torch.ones(2, 4)).requires_grad_()
        u = normalize(raw)
        distance = distance_between(u, normalize(torch.eye(4)[:2]))
        [gradient] = torch.autograd.grad(distance.sum() + u.sum(), raw)
        assert u.isfinite().all() and distance.isfinite().all() and gradient.isfinite().all()
        if scale < 1e-12:
            assert gradient.abs().max() < 10
    encoder = make_encoder()
    with torch.no_grad():
        encoder.tower.projection.weight.zero_()
    x = X.clone().requires_grad_()
    distance = RobustPerceptualDistance(encoder)(x, Y)
    assert torch.equal(distance, torch.zeros(5))
    assert torch.autograd.grad(distance.sum(), x)[0].abs().max() == 0


def test_the_gradient_is_the_slope(metric):
    """A finite difference along the gradient, in double steps large enough for float32."""
    x = X.clone().requires_grad_()
    distance = metric(x, Y)
    [gradient] = torch.autograd.grad(distance.sum(), x)
    direction = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    slope = (gradient * direction).flatten(1).sum(1)
    with torch.no_grad():
        step = 1e-2
        metric.check_range = False
        measured = (metric(X + step * direction, Y) - metric(X - step * direction, Y)) / (2 * step)
    torch.testing.assert_close(measured, slope, rtol=0.03, atol=1e-4)


def test_second_derivatives_are_finite():
    raw = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    target = normalize(torch.eye(5, dtype=torch.float64)[:3])
    assert torch.autograd.gradcheck(lambda e: distance_between(normalize(e), target), raw)
    assert torch.autograd.gradgradcheck(lambda e: distance_between(normalize(e), target), raw)
    same = normalize(target.clone()).requires_grad_()
    [gradient] = torch.autograd.grad(distance_between(same, target).sum(), same, create_graph=True)
    [curvature] = torch.autograd.grad(gradient.sum(), same)
    assert curvature.isfinite().all()


def test_functional_transforms_agree_with_backward(metric):
    metric.check_range = False  # looks at values, which a transform hides
    x = X[:2].clone().requires_grad_()
    [expected] = torch.autograd.grad(metric(x, Y[:2]).sum(), x)
    torch.testing.assert_close(torch.func.grad(lambda image: metric(image, Y[:2]).sum())(X[:2]), expected)


# Batches and sizes


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_result_has_one_entry_per_pair(metric, count):
    x, y = X[:count], Y[:count]
    afc = metric.two_afc(x, y, y)
    for result in (metric(x, y), metric.similarity(x, y), *afc, metric.distance_to(metric.embed(y), x)):
        assert result.shape == (count,)
    assert metric.embed(x).shape == (count, 16)


def test_a_batch_of_one_is_compared_with_every_image(metric):
    for function in (metric, metric.similarity):
        pairwise = torch.cat([function(x[None], Y[:1]) for x in X])
        torch.testing.assert_close(function(X, Y[:1]), pairwise, atol=1e-5, rtol=0)
        torch.testing.assert_close(function(Y[:1], X), pairwise, atol=1e-5, rtol=0)
    x, y = X.clone().requires_grad_(), Y[:1].clone().requires_grad_()
    metric(x, y).sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape and y.grad is not None and y.grad.abs().max() > 0


def test_batches_that_do_not_fit_are_refused(metric):
    with pytest.raises(ValueError, match="x has 5, y has 3"):
        metric(X, Y[:3])
    with pytest.raises(ValueError, match="embedding has 2, x has 5"):
        metric.distance_to(metric.embed(Y[:2]), X)
    with pytest.raises(ValueError, match="reference has 5, left has 1, right has 4"):
        metric.two_afc(X, Y[:1], Y[:4])


def test_a_score_does_not_depend_on_its_batch_mates(metric):
    generator = torch.Generator().manual_seed(0)
    x, y = noise(20, 3, 40, 33, seed=5), noise(20, 3, 40, 33, seed=6)
    whole = metric(x, y)
    for _ in range(10):
        size = int(torch.randint(1, 20, (), generator=generator))
        chosen = torch.randperm(20, generator=generator)[:size]
        torch.testing.assert_close(metric(x[chosen], y[chosen]), whole[chosen], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (70, 2), (31, 33), (100, 64)])
def test_any_size_and_two_different_ones(metric, size):
    odd = noise(2, 3, *size, seed=3)
    distance = metric(X[:2], odd)
    assert distance.shape == (2,) and distance.isfinite().all()
    resized = metric.encoder.eval()
    with torch.no_grad():
        expected = distance_between(normalize(resized(X[:2])), normalize(resized(odd)))
    torch.testing.assert_close(distance, expected)


def test_single_and_gray_images_count_as_a_batch_and_as_rgb(metric):
    torch.testing.assert_close(metric(X[0], Y[0]), metric(X[:1], Y[:1]))
    gray = X[:, :1]
    torch.testing.assert_close(metric(gray, Y), metric(gray.repeat(1, 3, 1, 1), Y))
    with pytest.raises(ImageError, match="alpha"):
        metric(noise(1, 4, SIDE, SIDE), X[:1])


# 2AFC


def test_two_afc_prefers_the_more_similar(metric):
    near, far = 0.9 * X + 0.1 * Y, Y
    result = metric.two_afc(X, near, far)
    torch.testing.assert_close(result.left_similarity, metric.similarity(X, near))
    torch.testing.assert_close(result.right_similarity, metric.similarity(X, far))
    assert result.choice.tolist() == [0] * 5 and result.choice.dtype == torch.int64
    assert metric.two_afc(X, far, near).choice.tolist() == [1] * 5
    assert not result.tie.any() and result.tie.dtype == torch.bool


def test_two_afc_chooses_left_on_a_tie_and_says_so(metric):
    result = metric.two_afc(X, Y, Y.clone())
    assert result.tie.all() and result.choice.tolist() == [0] * 5
    both = metric.two_afc(X, X, X)
    assert both.tie.all() and both.left_similarity.tolist() == [1.0] * 5


def test_two_afc_broadcasts_and_differentiates(metric):
    reference = X[:1].clone().requires_grad_()
    result = metric.two_afc(reference, Y[:1], Y.flip(0))
    assert [field.shape for field in result] == [(5,)] * 4
    torch.testing.assert_close(result.left_similarity, metric.similarity(X[:1], Y[:1]).expand(5))
    torch.testing.assert_close(result.right_similarity, metric.similarity(X[:1], Y.flip(0)))
    (result.left_similarity - result.right_similarity).sum().backward()
    assert reference.grad is not None and reference.grad.abs().max() > 0


# Embeddings computed once


def test_distance_to_an_embedding_is_the_distance(encoder):
    for squared in (False, True):
        metric = RobustPerceptualDistance(encoder, squared=squared)
        embedding = metric.embed(Y)
        torch.testing.assert_close(metric.distance_to(embedding, X), metric(X, Y), atol=1e-6, rtol=1e-5)
        expected = metric(X, Y[:1])
        torch.testing.assert_close(metric.distance_to(embedding[0], X), expected, atol=1e-6, rtol=1e-5)
        x = X.clone().requires_grad_()
        [from_embedding] = torch.autograd.grad(metric.distance_to(embedding, x).sum(), x)
        [from_images] = torch.autograd.grad(metric(x, Y).sum(), x)
        torch.testing.assert_close(from_embedding, from_images, atol=1e-6, rtol=1e-4)
        assert metric.distance_to(metric.embed(X), X).max() < 1e-6


def test_distance_to_refuses_what_is_no_unit_embedding(metric):
    with pytest.raises(ValueError, match=r"must be \(N, 16\), .*got \(5, 3\)"):
        metric.distance_to(torch.zeros(5, 3), X)
    with pytest.raises(ValueError, match=r"unit length.*embed"):
        metric.distance_to(3 * metric.embed(Y), X)
    stored = metric.embed(Y).to(torch.float16)  # as an index may keep it
    torch.testing.assert_close(metric.distance_to(stored, X), metric(X, Y), atol=2e-3, rtol=0)


# What carries a graph


def saved_bytes(function: Any) -> tuple[int, Tensor]:
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size() * (not isinstance(tensor, nn.Parameter))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return total, result


def test_the_graph_is_kept_only_for_inputs_that_require_grad(metric):
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    both, _ = saved_bytes(lambda: metric(x, y))
    one, _ = saved_bytes(lambda: metric(x, Y))
    none, distance = saved_bytes(lambda: metric(X, Y))
    assert none == 0 and not distance.requires_grad
    assert 0 < one < 0.6 * both
    scored, embedded = saved_bytes(lambda: metric.embed(X))
    assert scored == 0 and not embedded.requires_grad
    assert metric.embed(x).requires_grad
    with torch.no_grad():
        assert not metric(x, y).requires_grad


def test_gradients_reach_the_images_and_not_the_weights(encoder):
    metric = RobustPerceptualDistance(encoder)
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    metric(x, y).sum().backward()
    for image in (x, y):
        assert image.grad is not None and image.grad.abs().max() > 0
    for parameter in metric.encoder.parameters():
        assert not parameter.requires_grad and parameter.grad is None


# Frozen, whatever the code around it does


class Generator(nn.Module):
    """A model with the loss inside, as people write it."""

    def __init__(self, loss: RobustPerceptualDistance) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.dropout = nn.Dropout()
        self.loss = loss

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.layer(x).sigmoid(), x)


def test_a_parent_neither_trains_nor_unfreezes_nor_saves_it(metric):
    model = Generator(metric)
    before = copy.deepcopy(metric.encoder.state_dict())
    expected = metric(X, Y)
    model.train().requires_grad_(True)
    assert model.dropout.training and not metric.training and not metric.encoder.training
    assert not any(module.training for module in metric.encoder.modules())
    metric.train()
    metric.requires_grad_(True)
    assert not any(module.training for module in metric.encoder.modules())
    assert not any(parameter.requires_grad for parameter in metric.encoder.parameters())

    assert {name for name, _ in model.named_parameters()} == {"layer.weight", "layer.bias"}
    assert set(model.state_dict()) == {"layer.weight", "layer.bias"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(X).mean().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in metric.encoder.state_dict().items())
    assert torch.equal(metric(X, Y), expected)
    model.load_state_dict(model.state_dict())
    model.zero_grad()
    assert model.eval() is model and not metric.training


def test_the_backbone_is_saved_when_asked_for():
    kept = RobustPerceptualDistance(make_encoder(seed=1), save_backbone=True)
    state = Generator(kept).state_dict()
    assert {f"loss.encoder.{key}" for key in kept.encoder.state_dict()} < set(state)
    for save_backbone in (True, False):  # a checkpoint that holds the backbone is loaded either way
        other = Generator(RobustPerceptualDistance(make_encoder(seed=2), save_backbone=save_backbone))
        assert not torch.equal(other.loss(X, Y), kept(X, Y))
        other.load_state_dict(state)
        assert torch.equal(other.loss(X, Y), kept(X, Y))
        other.load_state_dict(state, assign=True)
        assert not any(parameter.requires_grad for parameter in other.loss.encoder.parameters())


def test_a_state_dict_is_loaded_strictly():
    kept = RobustPerceptualDistance(make_encoder(), save_backbone=True)
    state = kept.state_dict()
    lost = state.popitem()[0]
    with pytest.raises(RuntimeError, match=rf'Missing key.*"{lost}"'):
        kept.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"encoder\.extra"'):
        kept.load_state_dict({**kept.state_dict(), "encoder.extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"other"'):
        RobustPerceptualDistance(make_encoder()).load_state_dict({"other": torch.zeros(1)})


def test_an_encoder_is_shared_and_left_alone():
    encoder = make_encoder().train()
    metric = RobustPerceptualDistance(encoder)
    assert encoder.training and all(parameter.requires_grad for parameter in encoder.parameters())
    weights = zip(encoder.parameters(), metric.encoder.parameters(), strict=True)
    assert all(own.data_ptr() == shared.data_ptr() for own, shared in weights)
    before = metric(X, Y)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(metric(X, Y), before)  # a metric on an encoder in training follows the training
    metric.to(torch.bfloat16)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    RobustPerceptualDistance(encoder, resize="squash")
    assert encoder.resize == "published"


def test_deepcopy_and_pickle(metric):
    expected = metric(X, Y)
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert torch.equal(twin(X, Y), expected) and repr(twin) == repr(metric)
        assert not any(parameter.requires_grad for parameter in twin.encoder.parameters())
        assert not twin.train().encoder.training
        twin.to(torch.bfloat16)
    assert torch.equal(metric(X, Y), expected)


def test_dtype_reaches_the_hidden_weights_and_back(metric):
    expected = metric(X, Y)
    for moved in (metric.to(torch.bfloat16), Generator(metric).bfloat16().loss):
        assert {parameter.dtype for parameter in moved.encoder.parameters()} == {torch.bfloat16}
        result = moved(X, Y)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, atol=0.02, rtol=0.02)
        assert moved.embed(X.bfloat16()).dtype == torch.float32
    assert {parameter.dtype for parameter in metric.float().encoder.parameters()} == {torch.float32}
    assert metric.to("meta").device.type == "meta"


def test_images_elsewhere_are_refused(metric):
    with pytest.raises(ValueError, match=r"images are on cpu and the encoder is on meta.*metric.to"):
        metric.to("meta")(X, Y)


def test_distributed_data_parallel_ignores_the_weights(metric, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Generator(metric))
        model(X).mean().backward()
        assert {name for name, _ in model.named_parameters()} == {"module.layer.weight", "module.layer.bias"}
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


# Tracing is where a graph would break; one real compilation shows that the graph is also the right one.
@pytest.mark.filterwarnings("ignore:Skipping serialization of:UserWarning")  # of torch 2.6's own settings
@pytest.mark.parametrize(
    ("kind", "size", "backend"), [("convnext", SIDE, "eager"), ("convnext", 50, "eager"), ("vit", 50, "inductor")]
)
def test_compiles_without_a_graph_break(kind, size, backend):
    torch.compiler.reset()
    metric = RobustPerceptualDistance(make_encoder(kind))
    compiled = torch.compile(metric, fullgraph=True, backend=backend)
    x, y = noise(2, 3, size, size).requires_grad_(), Y[:2]
    [expected] = torch.autograd.grad(metric(x, y).sum(), x)
    distance = compiled(x, y)
    torch.testing.assert_close(distance, metric(x, y))
    [gradient] = torch.autograd.grad(distance.sum(), x)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    if backend == "eager":
        assert compiled(x, x.detach()).tolist() == [0.0, 0.0]
        compiled(3 * x, y)  # the range is not looked at here


# Ranges


def test_other_conventions_give_the_same_distance(encoder, metric):
    levels = (X * 255).round().to(torch.uint8)
    expected = metric(levels.float() / 255, Y)
    torch.testing.assert_close(metric(levels, Y), expected)
    signed = RobustPerceptualDistance(encoder, value_range=(-1, 1))
    torch.testing.assert_close(signed(2 * X - 1, 2 * Y - 1), metric(X, Y), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(signed.embed(levels), metric.embed(levels))


def test_values_out_of_range_are_refused_unless_told(encoder, metric):
    for bad in (2 * X - 1, 255 * X, X / 0.25, torch.full_like(X, math.nan)):
        with pytest.raises(ValueError, match="got images"):
            metric(bad, Y)
        with pytest.raises(ValueError, match="got images"):
            metric(Y, bad.requires_grad_())
        with pytest.raises(ValueError, match="got images"):
            metric.embed(bad)
    metric(X + 5e-4, Y - 5e-4)
    RobustPerceptualDistance(encoder, check_range=False)(4 * X, Y)


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0, math.inf), (math.nan, 1)])
def test_a_range_that_is_none_is_refused(encoder, value_range):
    with pytest.raises(ValueError, match="value_range"):
        RobustPerceptualDistance(encoder, value_range=value_range)


def test_resize_is_part_of_the_result(encoder):
    x = noise(2, 3, 60, 40)
    published, squash, exact = (
        RobustPerceptualDistance(encoder, resize=resize) for resize in ("published", "squash", None)
    )
    assert not torch.allclose(published(x, Y[:2]), squash(x, Y[:2]))
    torch.testing.assert_close(exact(X, Y), published(X, Y))
    with pytest.raises(ValueError, match="60"):
        exact(x, Y[:2])
    with pytest.raises(ValueError, match="resize must be"):
        RobustPerceptualDistance(encoder, resize="stretch")  # type: ignore[arg-type]
    edge = x.clone().requires_grad_()
    [lost] = torch.autograd.grad(published(edge, Y[:2]).sum(), edge)
    [whole] = torch.autograd.grad(squash(edge, Y[:2]).sum(), edge)
    assert lost[:, :, 0].abs().max() == 0 and whole[:, :, 0].abs().max() > 0
    assert [repr(m).count(f"resize={m.encoder.resize!r}") for m in (published, squash, exact)] == [1, 1, 1]


def test_an_encoders_own_resize_is_kept_unless_asked():
    encoder = make_encoder()
    encoder.resize = "squash"
    assert RobustPerceptualDistance(encoder).encoder.resize == "squash"
    assert RobustPerceptualDistance(encoder, resize="published").encoder.resize == "published"


def test_the_contract_is_stated(encoder):
    metric = RobustPerceptualDistance(encoder)
    assert metric.higher_is_better is False and metric.is_differentiable is True
    assert metric.score_range == (0.0, math.sqrt(2))
    assert RobustPerceptualDistance(encoder, squared=True).score_range == (0.0, 2.0)
    text = repr(metric)
    for part in (encoder.name, "revision='r1'", "resize 36, crop 32", "resize='published'", "squared=False"):
        assert part in text


# Saving and loading


def assert_same_weights(one: RobustPerceptualDistance, other: RobustPerceptualDistance) -> None:
    ours, theirs = one.encoder.state_dict(), other.encoder.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_save_and_load(encoder, metric, tmp_path):
    expected = metric(X, Y)
    for settings in ({}, {"resize": "squash"}):
        folder = tmp_path / str(len(settings))
        saved = RobustPerceptualDistance(encoder, **settings)
        assert saved.save_pretrained(folder) is None
        for source in (folder, str(folder), folder / "model.safetensors"):
            loaded = RobustPerceptualDistance.from_pretrained(source)
            assert_same_weights(loaded, saved)
            # Mapped weights may lie on other boundaries in memory, where kernels round otherwise.
            torch.testing.assert_close(loaded(X, Y), expected, atol=1e-6, rtol=1e-5)
            revision = short_digest(tensors_digest(saved.encoder.state_dict()))  # whatever the file calls it
            assert repr(loaded) == repr(saved).replace("revision='r1'", f"revision='{revision}'")
    assert RobustPerceptualDistance(folder, resize="published").encoder.resize == "published"
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())
    with pytest.raises(WeightsError):
        RobustPerceptualDistance(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="r-clip-f"):
        RobustPerceptualDistance("r-clip-g")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # httpx, of huggingface_hub's own upload
def test_push_and_load(hub, metric, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = metric.push_to_hub("someone/robust", token=hub.token)
    loaded = RobustPerceptualDistance("someone/robust", cache_dir=tmp_path / "cache")
    assert_same_weights(loaded, metric)
    assert commit in repr(loaded)
    assert loaded.save_pretrained(tmp_path / "x", push_to_hub=True, repo_id="someone/again", token=hub.token)
    again = RobustPerceptualDistance.from_pretrained("someone/again", cache_dir=tmp_path / "cache", squared=True)
    assert_same_weights(again, metric)
    assert again.squared


def test_score_keeps_the_last_model_until_it_changes(tmp_path):
    a, b = photo(0), photo(1)
    RobustPerceptualDistance(make_encoder(seed=1)).save_pretrained(tmp_path / "model")
    first = score(a, b, tmp_path / "model")
    assert score(a, b, tmp_path / "model") == first
    built = _last_metric.cache_info().misses
    assert score(b, a, tmp_path / "model") == first and _last_metric.cache_info().misses == built
    RobustPerceptualDistance(make_encoder(seed=2)).save_pretrained(tmp_path / "model")  # trained on, say
    assert score(a, b, tmp_path / "model") != first


# Files


def photo(seed: int, size: tuple[int, int] = (60, 45)) -> Image.Image:
    small = noise(1, 3, 6, 6, seed=seed)
    large = F.interpolate(small, size[::-1], mode="bilinear")[0]
    return Image.fromarray((large * 255).byte().permute(1, 2, 0).numpy())


def test_preprocess_is_the_encoders_pillow_path(encoder, metric):
    image = photo(0)
    pixels = metric.preprocess(image)
    assert torch.equal(pixels, encoder.preprocess(image)) and pixels.shape == (3, SIDE, SIDE)
    signed = RobustPerceptualDistance(encoder, value_range=(-1, 1))
    torch.testing.assert_close(signed.preprocess(image), 2 * pixels - 1)
    torch.testing.assert_close(
        signed(signed.preprocess(image)[None], signed.preprocess(photo(1))[None]),
        metric(pixels[None], metric.preprocess(photo(1))[None]),
        atol=1e-5,
        rtol=1e-5,
    )


def test_score_takes_images_of_every_kind(encoder, metric, tmp_path):
    a, b = photo(0), photo(1, (50, 70))
    expected = metric(metric.preprocess(a)[None], metric.preprocess(b)[None]).item()
    a.save(tmp_path / "a.png")
    kinds = [a, tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), np.asarray(a)]
    for kind in kinds:
        result = score(kind, b, model=encoder)
        assert isinstance(result, float) and result == pytest.approx(expected, abs=1e-6)
        assert score(kind, a, model=encoder) == 0.0
    assert score(a, b, encoder, squared=True) == pytest.approx(expected**2, abs=1e-6)
    assert score(b, a, encoder) == score(a, b, encoder)
    tensor = torch.from_numpy(np.array(a)).permute(2, 0, 1)
    floats = np.asarray(a, dtype=np.float32) / 255
    in_graph = metric(tensor, metric.preprocess(b)).item()
    assert score(tensor, b, encoder) == pytest.approx(in_graph, abs=1e-6)
    assert score(floats, b, encoder) == pytest.approx(in_graph, abs=1e-6)
    with pytest.raises(ImageError, match=r"missing\.png"):
        score(tmp_path / "missing.png", b, encoder)
