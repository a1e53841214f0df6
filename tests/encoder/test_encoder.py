"""Encoder: preprocessing, dtypes, chunks and construction around the towers that test_towers and test_layouts check."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rclip_metric.encoder import Architecture, ConvNeXtArchitecture, Encoder, ViTArchitecture, expected_shapes
from rclip_metric.errors import CheckpointError
from rclip_metric.images import Preprocessing, Resize, preprocess_pil, resize_images

from support.images import blotches

VIT = ViTArchitecture(image_size=32, patch_size=8, width=64, depth=2, heads=4, projection=24)
CONVNEXT = ConvNeXtArchitecture(image_size=32, depths=(1, 1, 2, 1), widths=(8, 16, 24, 32), projection=12)
CROP = Preprocessing("crop", 36, 32)
KINDS: dict[str, tuple[Architecture, int | None]] = {
    "vit": (VIT, None),
    "vit+mlp": (VIT, 16),
    "convnext": (CONVNEXT, None),
}


def weights(architecture: Architecture, mlp_hidden: int | None = None) -> dict[str, Tensor]:
    """Seeded weights that keep activations at about 1 and are nowhere at a default."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in expected_shapes(architecture, mlp_hidden).items():
        noise = torch.randn(shape, generator=generator)
        state[key] = noise * noise[0].numel() ** -0.5 if len(shape) > 1 else 0.5 + 0.3 * noise
    return state


def encoder(kind: str = "vit", resize: Resize = "published") -> Encoder:
    architecture, mlp_hidden = KINDS[kind]
    state = weights(architecture, mlp_hidden)
    result = Encoder.from_weights(
        state, architecture, CROP, mlp_hidden=mlp_hidden, resize=resize, name="random", revision="abc"
    )
    return result.eval().requires_grad_(False)


def batch(count: int = 3, height: int = 32, width: int = 32, seed: int = 1) -> Tensor:
    """Images, blotchy rather than white noise."""
    return blotches(count, (height, width), seed)


def tower_inputs(model: Encoder, run: Callable[[], object]) -> list[Tensor]:
    """What the tower is given while `run` runs."""
    seen: list[Tensor] = []
    with model.tower.register_forward_pre_hook(lambda _module, args: seen.append(args[0])):
        run()
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resize", ["published", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (50, 41), (7, 90), (1, 1)], ids=str)
def test_forward_is_resize_normalise_tower_head(kind: str, resize: Resize, size: tuple[int, int]) -> None:
    model = encoder(kind, resize)
    images = batch(3, *size)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CROP.mean, CROP.std))
    with torch.inference_mode():
        result = model(images)
        expected = model.tower((resize_images(images, CROP, resize) - mean) / std)
        if model.head is not None:
            state = model.state_dict()
            hidden = expected @ state["head.fc1.weight"].T + state["head.fc1.bias"]
            expected = expected + hidden.relu() @ state["head.fc2.weight"].T + state["head.fc2.bias"]
    assert result.shape == (3, model.embedding_dim)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_without_resize_another_size_raises() -> None:
    model = encoder(resize=None)
    assert model(batch()).shape == (3, 24)
    with pytest.raises(ValueError, match=r"must be 32x32 \(height x width\), got 32x33"):
        model(batch(width=33))


@pytest.mark.parametrize("kind", KINDS)
def test_from_weights_copies_and_draws_nothing_and_leaves_nothing_on_meta(kind: str) -> None:
    architecture, mlp_hidden = KINDS[kind]
    state = weights(architecture, mlp_hidden)
    rng = torch.get_rng_state()
    model = Encoder.from_weights(state, architecture, CROP, mlp_hidden=mlp_hidden)
    assert torch.equal(torch.get_rng_state(), rng)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == state.keys() == model.state_dict().keys()
    assert all(parameters[key].data_ptr() == state[key].data_ptr() for key in state)
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert model(batch()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes_become_float32(dtype: torch.dtype) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in weights(VIT).items()}
    model = Encoder.from_weights(stored, VIT, CROP)
    for key, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, stored[key].float())


def test_weights_that_do_not_fit_are_named() -> None:
    state = weights(VIT)
    with pytest.raises(CheckpointError, match=r"missing tower\.trunk\.cls_token"):
        Encoder.from_weights({k: v for k, v in state.items() if k != "tower.trunk.cls_token"}, VIT, CROP)
    with pytest.raises(CheckpointError, match=r"unexpected head\.fc1\.weight"):
        Encoder.from_weights(state | {"head.fc1.weight": torch.zeros(2)}, VIT, CROP)
    with pytest.raises(CheckpointError, match=r"missing head\.fc1\.weight.*head\.fc2\.bias"):
        Encoder.from_weights(state, VIT, CROP, mlp_hidden=16)
    wrong = state | {"tower.projection.weight": torch.zeros(24, 65)}
    with pytest.raises(CheckpointError, match=r"tower\.projection\.weight is \(24, 65\).*expected \(24, 64\)"):
        Encoder.from_weights(wrong, VIT, CROP)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preprocessing": Preprocessing("crop", 36, 30)}, r"image_size \(32\), got 30"),
        ({"resize": "crop"}, "resize must be"),
        ({"mlp_hidden": 0}, "mlp_hidden must be"),
        ({"mlp_hidden": True}, "mlp_hidden must be"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(VIT, **({"preprocessing": CROP} | arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_weights_resize_and_normalise_in_float32(kind: str) -> None:
    model = encoder(kind)
    images = batch(3, 45, 40)
    expected = model(images)
    mean, std = model.mean, model.std
    (pixels,) = tower_inputs(model, lambda: model(images))
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.mean, mean)
    assert torch.equal(half.std, std)
    assert half.mean.dtype == half.std.dtype == torch.float32
    (rounded,) = tower_inputs(half, lambda: half(images))
    assert torch.equal(rounded, pixels.bfloat16())
    result = half(images)
    assert result.dtype == torch.float32
    assert (result - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: nn.Sequential(m).to(torch.bfloat16)[0],
        lambda m: m.to_empty(device="cpu"),
        lambda m: m.to("meta"),
    ],
)
def test_mean_and_std_stay_float32_and_follow_the_device(move: Callable[[Encoder], Encoder]) -> None:
    model = encoder()
    mean, std = model.mean.clone(), model.std.clone()
    model = move(model)
    assert model.mean.device == model.std.device == next(model.parameters()).device
    assert model.mean.dtype == model.std.dtype == torch.float32
    if not model.mean.is_meta:
        assert torch.equal(model.mean, mean)
        assert torch.equal(model.std, std)
    assert "mean" not in model.state_dict()


def test_autocast_leaves_the_pixels_in_float32() -> None:
    model = encoder()
    images = batch(2, 50, 6)
    (expected,) = tower_inputs(model, lambda: model(images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (pixels,) = tower_inputs(model, lambda: model(images))
        result = model(images)
    assert torch.equal(pixels, expected)
    assert result.dtype == torch.float32
    assert (result - model(images)).abs().max() > 0  # the tower did run in bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_channels_last_where_it_is_faster(dtype: torch.dtype) -> None:
    for kind, last in (("convnext", dtype == torch.bfloat16), ("vit", False)):
        model = encoder(kind).to(dtype)
        (pixels,) = tower_inputs(model, lambda model=model: model(batch()))  # type: ignore[misc]
        assert pixels.is_contiguous(memory_format=torch.channels_last) is last
        assert pixels.is_contiguous() is not last


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (8, [8]), (9, [5, 4]), (16, [8, 8]), (17, [6, 6, 5]), (0, [0])])
def test_large_batches_go_in_even_chunks(count: int, sizes: list[int]) -> None:
    model = encoder("convnext")
    assert model.chunk_size == 64  # of 32x32 images
    model.chunk_size = 8  # what it is for 224x224
    images = batch(count, 20, 20) if count else torch.empty(0, 3, 32, 32)
    with torch.no_grad():
        inputs = tower_inputs(model, lambda: model(images))
        assert [len(pixels) for pixels in inputs] == sizes
        result = model(images)
        model.chunk_size = None
        assert [len(pixels) for pixels in tower_inputs(model, lambda: model(images))] == [count]
        torch.testing.assert_close(result, model(images), atol=1e-5, rtol=1e-5)


def test_no_chunks_where_a_graph_is_needed() -> None:
    model = encoder()
    model.chunk_size = 8
    images = batch(9)

    def calls(images: Tensor) -> int:
        return len(tower_inputs(model, lambda: model(images)))

    assert calls(images) == 2  # frozen weights and images without gradient: grad mode alone does not matter
    assert calls(images.clone().requires_grad_()) == 1
    with torch.inference_mode():
        assert calls(images) == 2
    model.tower.requires_grad_(True)
    assert calls(images) == 1
    with torch.no_grad():
        assert calls(images.clone().requires_grad_()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_batch_mates_do_not_matter(kind: str) -> None:
    model = encoder(kind)
    images = batch(11, 40, 40)
    with torch.inference_mode():
        whole = model(images)
        for index in (0, 5, 10):
            torch.testing.assert_close(model(images[index : index + 1])[0], whole[index], atol=1e-5, rtol=1e-5)
        others = torch.cat([images[:1], 1 - images[1:]])
        torch.testing.assert_close(model(others)[0], whole[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1), (5, 9), (32, 32), (77, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_the_images_and_not_the_weights(kind: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    model = encoder(kind).to(dtype)
    plain = [torch.zeros(1, 3, *size), torch.ones(1, 3, *size), torch.full((1, 3, *size), 0.5)]
    images = torch.cat([batch(1, *size), *plain]).requires_grad_()
    model(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert (images.grad.abs().flatten(1).sum(1) > 0).all()
    assert all(p.grad is None for p in model.parameters())


def test_gradient_is_the_slope() -> None:
    model = encoder("vit+mlp").double()
    # float64 throughout the tower; the resize in front is float32, so the step is not too small.
    images = (0.25 + 0.5 * batch(1, 40, 40)).requires_grad_()
    (gradient,) = torch.autograd.grad(model(images).sum(), images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    step = 1e-3
    with torch.no_grad():
        slope = (model(images + step * direction) - model(images - step * direction)).sum() / (2 * step)
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=2e-2)


def test_training_reaches_the_weights() -> None:
    model = encoder("vit+mlp").requires_grad_(True)
    model(batch(12)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# Tracing takes ten seconds and more: the way back is traced for one tower, and in test_metric.py for the other.
@pytest.mark.parametrize(("kind", "grad"), [("vit+mlp", False), ("convnext", True)])
def test_compiles_into_one_graph_for_any_size(kind: str, grad: bool) -> None:
    from torch._dynamo.backends.debugging import aot_eager

    torch.compiler.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs) if grad else graph.forward

    model = encoder(kind)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for count, height, width in [(2, 32, 32), (2, 48, 40), (3, 33, 57), (12, 20, 16), (5, 90, 95)]:
        images = batch(count, height, width).requires_grad_(grad)
        result, expected = compiled(images), model(images)
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
        if grad:
            (slope,) = torch.autograd.grad(expected.sum(), images)
            torch.testing.assert_close(torch.autograd.grad(result.sum(), images)[0], slope, atol=1e-3, rtol=1e-3)
    assert len(graphs) <= 3  # preprocessed images, other sizes, other batch sizes
    images = batch(2, 6, 80)
    torch.testing.assert_close(compiled(images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_independent_and_equal(kind: str) -> None:
    model = encoder(kind)
    images = batch(2, 40, 50)
    expected = model(images)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        assert torch.equal(other(images), expected)
        assert repr(other) == repr(model)
        assert other.architecture == model.architecture
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(images), expected)


def test_repr_says_what_a_result_needs() -> None:
    text = repr(encoder()).splitlines()[1].strip()
    assert text == "'random', revision='abc', preprocessing='resize 36, crop 32', resize='published'"
    squash = Preprocessing("squash", 32, 32)
    assert "preprocessing='squash 32', resize=None" in repr(Encoder(VIT, squash, resize=None))


@pytest.mark.parametrize("resize", ["published", "squash"])
def test_preprocess_is_the_pillow_path_and_passes_unchanged(tmp_path: Path, resize: Resize) -> None:
    model = encoder(resize=resize)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    expected = preprocess_pil(image, CROP, resize)
    for source in (image, pixels, tmp_path / "image.png", (tmp_path / "image.png").read_bytes()):
        assert torch.equal(model.preprocess(source), expected)
    (given,) = tower_inputs(model, lambda: model(expected[None]))
    assert torch.equal(given, (expected - model.mean) / model.std)
    with pytest.raises(ValueError, match="got 50x70"):
        encoder(resize=None).preprocess(image)


def test_random_initialisation_trains_from_scratch() -> None:
    torch.manual_seed(0)
    first = Encoder(VIT, CROP)
    torch.manual_seed(1)
    second = Encoder(VIT, CROP)
    assert not torch.equal(first(batch()), second(batch()))
    assert all(p.requires_grad for p in first.parameters())
    assert first.training


def test_a_vit_of_another_patch_size_needs_its_own_weights() -> None:
    coarse = replace(VIT, patch_size=16)
    with pytest.raises(CheckpointError, match=r"pos_embed is \(1, 17, 64\).*expected \(1, 5, 64\)"):
        Encoder.from_weights(weights(VIT), coarse, CROP)
    assert math.prod(expected_shapes(coarse)["tower.trunk.pos_embed"]) == 5 * 64


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_neither_outputs_nor_gradients(kind: str) -> None:
    model = encoder(kind).requires_grad_(True)
    images = batch(4).requires_grad_()
    sought = [images, *model.parameters()]

    def results() -> list[Tensor]:
        embeddings = model(images)
        return [embeddings, *torch.autograd.grad((embeddings * embeddings.detach().cos()).sum(), sought)]

    expected = results()
    assert not model.checkpointing
    model.checkpointing = True
    for ours, theirs in zip(results(), expected, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert "checkpointing" not in model.state_dict()
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected[0], atol=1e-6, rtol=1e-6)


def test_checkpointing_repeats_the_dropout_of_an_adapter() -> None:
    model = encoder("vit").requires_grad_(True).train()
    block: Any = model.tower.trunk.blocks[0]  # type: ignore[union-attr, index]
    block.attn.qkv = nn.Sequential(block.attn.qkv, nn.Dropout(0.5))
    images = batch(4)

    def gradient() -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            (result,) = torch.autograd.grad(model(images).square().sum(), [block.mlp.fc1.weight])
        return result

    expected = gradient()
    model.checkpointing = True
    torch.testing.assert_close(gradient(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "architecture",
    [
        ViTArchitecture(image_size=64, patch_size=8, width=64, depth=12, heads=4),
        ConvNeXtArchitecture(image_size=64, depths=(3, 3, 6, 3), widths=(16, 32, 64, 128)),
    ],
    ids=["vit", "convnext"],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointing_keeps_less_for_the_backward_pass(architecture: Architecture, frozen: bool) -> None:
    """A block keeps its input alone, and else that of each of its layers."""
    model = Encoder(architecture, Preprocessing("crop", 64, 64)).requires_grad_(not frozen)
    images = batch(2, 64, 64).requires_grad_()

    def kept() -> int:
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            embeddings = model(images)
        del embeddings
        return sum(size for address, size in seen.items() if address not in own)

    whole = kept()
    model.checkpointing = True
    assert kept() < whole / 3


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_on_request(kind: str) -> None:
    model = encoder(kind)
    images = batch(4, 40, 36).requires_grad_()
    expected = model(images)
    (gradient,) = torch.autograd.grad(expected.square().sum(), [images])
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not model.channels_last
    (pixels,) = tower_inputs(model, lambda: model(images))
    assert pixels.is_contiguous()
    model.channels_last = True
    (pixels,) = tower_inputs(model, lambda: model(images))
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (pixels,) = tower_inputs(model, lambda: model(images))
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    result = model(images)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(result.square().sum(), [images])[0], gradient, atol=1e-4, rtol=1e-5)
