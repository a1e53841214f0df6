"""What torch does to functions: vmap, torch.func.grad, export with any batch size, one compilation for all sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from rclip_metric import Encoder, ImageError, RobustPerceptualDistance
from rclip_metric.encoder import Architecture, TimmArchitecture

from support.encoders import CONVNEXT, VIT, small_encoder
from support.images import noise

LITE = TimmArchitecture(model="tf_efficientnet_lite0", image_size=32, features=1280, projection=16)
ARCHITECTURES: dict[str, Architecture] = {"convnext": CONVNEXT, "vit": VIT, "lite": LITE}
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-3}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return small_encoder(ARCHITECTURES[request.param], spread=True).requires_grad_(False)


@pytest.fixture
def metric(encoder: Encoder) -> RobustPerceptualDistance:
    return RobustPerceptualDistance(encoder)


def pairs(encoder: Encoder, count: int = 4, larger: int = 0) -> tuple[Tensor, Tensor]:
    side = encoder.image_size + larger
    return noise(count, 3, side, side, seed=1), noise(count, 3, side, side, seed=2)


def slope(metric: RobustPerceptualDistance, x: Tensor, y: Tensor) -> Tensor:
    """The gradient (N, 3, H, W) of the distances, by an ordinary backward pass."""
    moved = x.clone().requires_grad_()
    return torch.autograd.grad(metric(moved, y).sum(), moved)[0]


@pytest.mark.parametrize("larger", [0, 9], ids=["own size", "resized"])
def test_vmap_gives_what_the_batch_gives(metric: RobustPerceptualDistance, larger: int) -> None:
    x, y = pairs(metric.encoder, larger=larger)
    one_by_one: Callable[[Tensor, Tensor], Tensor] = torch.vmap(lambda a, b: metric(a, b)[0])
    torch.testing.assert_close(one_by_one(x, y), metric(x, y), **CLOSE)
    in_twos = torch.vmap(metric)(x.unflatten(0, (2, 2)), y.unflatten(0, (2, 2)))
    torch.testing.assert_close(in_twos.flatten(), metric(x, y), **CLOSE)
    torch.testing.assert_close(torch.vmap(metric.encoder)(x[:, None])[:, 0], metric.encoder(x), atol=1e-4, rtol=1e-3)
    to_all = torch.vmap(metric.distance_to, in_dims=(0, None))(metric.embed(y)[:, None], x)  # (4 of y, 4 of x)
    torch.testing.assert_close(to_all.diagonal(), metric(x, y), **CLOSE)
    afc = torch.vmap(metric.two_afc)(y[:, None], x[:, None], y[:, None])
    assert afc.choice.flatten().tolist() == [1, 1, 1, 1] and torch.equal(afc.right_similarity, torch.ones(4, 1))


@pytest.mark.parametrize("larger", [0, 9], ids=["own size", "resized"])
def test_gradients_of_every_nesting_are_those_of_backward(metric: RobustPerceptualDistance, larger: int) -> None:
    metric.encoder.folding = False  # rounds otherwise, which decides on which side of a ReLU's kink a value lies
    x, y = pairs(metric.encoder, larger=larger)
    expected = slope(metric, x, y)
    assert expected.abs().max() > 1e-4

    def one(a: Tensor, b: Tensor) -> Tensor:
        return metric(a, b)[0]

    torch.testing.assert_close(torch.func.grad(lambda a: metric(a, y).sum())(x), expected, **CLOSE)
    torch.testing.assert_close(torch.vmap(torch.func.grad(one))(x, y), expected, **CLOSE)
    torch.testing.assert_close(torch.func.grad(lambda a: torch.vmap(one)(a, y).sum())(x), expected, **CLOSE)
    ordinary = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad(torch.vmap(one)(ordinary, y).sum(), ordinary)
    torch.testing.assert_close(gradient, expected, **CLOSE)
    itself = torch.vmap(torch.func.grad(one))(x, x)
    assert torch.equal(itself, torch.zeros_like(x))


def test_the_range_is_looked_at_inside_a_transform(metric: RobustPerceptualDistance) -> None:
    x, y = pairs(metric.encoder)
    x[2, 0, 0, 0] = 7.0
    with pytest.raises(ImageError, match="7"):
        torch.vmap(lambda a, b: metric(a, b)[0])(x, y)
    with pytest.raises(ImageError, match="7"):
        torch.func.grad(lambda a: metric(a, y).sum())(x)
    with pytest.raises(ValueError, match="unit length"):
        torch.vmap(metric.distance_to)(2 * metric.embed(y)[:, None], y[:, None])


def test_no_random_numbers_are_drawn_and_no_state_is_left(encoder: Encoder) -> None:
    """A first pass inside vmap, which forbids random numbers, and ordinary ones before and after agree."""
    fresh = small_encoder(encoder.architecture, spread=True)
    x, _ = pairs(encoder)
    inside = torch.vmap(fresh)(x[:, None])[:, 0]
    torch.testing.assert_close(inside, fresh(x), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(inside, encoder(x), atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")  # of torch's own, about its own
def test_exports_for_any_batch_size(encoder: Encoder, metric: RobustPerceptualDistance) -> None:
    whole = encoder.architecture is VIT  # the metric's part is the same for all towers, and exporting takes seconds
    module: nn.Module = metric if whole else encoder
    images = pairs(encoder, count=4, larger=9)[: 2 if whole else 1]
    shapes = tuple({0: Dim("count", min=2, max=64)} for _ in images)
    exported = export(module, images, dynamic_shapes=shapes, strict=False).module()
    for count in (2, 5):
        others = pairs(encoder, count=count, larger=9)[: len(images)]
        torch.testing.assert_close(exported(*others), module(*others), atol=1e-4, rtol=1e-3)


def test_compiles_once_for_all_batch_sizes(encoder: Encoder, metric: RobustPerceptualDistance) -> None:
    graphs = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    whole = encoder.architecture is VIT
    module: nn.Module = metric if whole else encoder
    torch.compiler.reset()
    compiled = torch.compile(module, dynamic=True, fullgraph=True, backend=counted)
    for count in (4, 5, 2, 7):
        images = pairs(encoder, count)[: 2 if whole else 1]
        torch.testing.assert_close(compiled(*images), module(*images), atol=1e-4, rtol=1e-3)
    torch.compiler.reset()
    assert len(graphs) == 1
