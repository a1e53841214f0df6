"""LoRA: the formula, PEFT's own module, the identity at the start, and a merge that leaves a plain encoder."""

import math

import pytest
import torch
from torch import nn

from rclip_metric.encoder import Architecture, ConvNeXtArchitecture, Encoder, ViTArchitecture, expected_shapes
from rclip_metric.images import Preprocessing
from rclip_metric.train.models.lora import LoRALinear, add_lora, merge_lora, train_dropout
from rclip_metric.weights import load_encoder, save_encoder

from support.encoders import small_encoder

CONVNEXT = ConvNeXtArchitecture(image_size=64, depths=(1, 1, 2, 1), widths=(8, 8, 16, 16), projection=16)
VIT = ViTArchitecture(image_size=64, patch_size=16, width=64, depth=2, heads=2, projection=16)
DINO = ViTArchitecture(image_size=64, patch_size=16, width=64, depth=2, heads=2, pre_norm=False, patch_bias=True)
TOWERS = [CONVNEXT, VIT, DINO]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(architecture: Architecture) -> Encoder:
    return small_encoder(architecture, Preprocessing("squash", 64, 64), layer_scale=0.5)


def filled(encoder: Encoder) -> Encoder:
    """B is zero at the start: give it values, so that the updates are seen."""
    draw = generator(5)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, LoRALinear):
                module.lora_b.copy_(torch.randn(module.lora_b.shape, generator=draw))
    return encoder


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=generator(1))


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)])
def test_the_map_is_the_formula(shape):
    linear = nn.Linear(5, 4)
    adapter = LoRALinear(linear, rank=2, alpha=0.5, dropout=0.3, generator=generator(0)).eval()
    x = torch.randn(shape, generator=generator(1))
    assert torch.equal(adapter(x), linear(x))
    with torch.no_grad():
        adapter.lora_b.copy_(torch.randn(4, 2, generator=generator(2)))
    expected = x @ linear.weight.T + linear.bias + 0.5 / 2 * (x @ adapter.lora_a.T) @ adapter.lora_b.T
    torch.testing.assert_close(adapter(x), expected)
    assert LoRALinear(linear, 16, 0.5, 0.3).scale == 1 / 32
    # kaiming_uniform with a = sqrt(5) is uniform on +-1 / sqrt(inputs).
    drawn = LoRALinear(nn.Linear(400, 3), 16, 0.5, 0.0, generator(0)).lora_a
    assert drawn.abs().max() <= 1 / 20
    assert drawn.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)


def test_dropout_zeroes_inputs_of_the_update_alone_and_keeps_their_mean():
    linear = nn.Linear(6, 6, bias=False)
    adapter = LoRALinear(linear, rank=6, alpha=6.0, dropout=0.25)
    with torch.no_grad():
        linear.weight.zero_()
        adapter.lora_a.copy_(torch.eye(6))
        adapter.lora_b.copy_(torch.eye(6))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = adapter(torch.ones(4000, 6))
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(adapter.eval()(torch.ones(2, 6)), torch.ones(2, 6))


@pytest.mark.parametrize("architecture", TOWERS, ids=["convnext", "clip-vit", "dino-vit"])
def test_it_is_the_identity_at_the_start_and_trains_the_updates_alone(architecture, images):
    encoder = build(architecture)
    before = encoder(images).detach()
    adapted = add_lora(encoder)
    torch.testing.assert_close(encoder(images), before)
    if isinstance(architecture, ConvNeXtArchitecture):
        # fc1 is width -> 4 width, fc2 the other way: 16 (in + out) parameters each.
        blocks = [w for d, w in zip(architecture.depths, architecture.widths, strict=True) for _ in range(d)]
        assert (adapted.layers, adapted.parameters) == (2 * len(blocks), sum(2 * 16 * 5 * w for w in blocks))
    else:
        assert (adapted.layers, adapted.parameters) == (2, 2 * 16 * (64 + 3 * 64))
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"lora_a", "lora_b"}
    embedding = filled(encoder)(images)  # its sum would not do: a LayerNorm without projection makes that constant
    (embedding * torch.randn(embedding.shape, generator=generator(2))).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == (name in trained), name


@pytest.mark.parametrize("architecture", TOWERS, ids=["convnext", "clip-vit", "dino-vit"])
def test_merged_it_is_a_plain_encoder_with_the_same_outputs(architecture, images, tmp_path):
    encoder = build(architecture)
    plain = encoder(images).detach()
    add_lora(encoder, seed=3)
    before = filled(encoder)(images).detach()
    assert (before - plain).abs().max() > 1e-2
    merge_lora(encoder)
    torch.testing.assert_close(encoder(images), before, atol=1e-4, rtol=1e-4)
    assert {key: tuple(value.shape) for key, value in encoder.state_dict().items()} == expected_shapes(architecture)
    assert all(type(m) is nn.Linear for m in encoder.modules() if isinstance(m, nn.Linear))
    save_encoder(encoder, tmp_path)
    assert torch.equal(load_encoder(tmp_path)(images), encoder(images))


@pytest.mark.parametrize("architecture", [CONVNEXT, VIT], ids=["convnext", "vit"])
def test_outputs_and_gradients_are_pefts(architecture, images):
    peft = pytest.importorskip("peft")
    ours, theirs = build(architecture), build(architecture)
    names = ["fc1", "fc2"] if architecture is CONVNEXT else ["qkv"]
    config = peft.LoraConfig(r=16, lora_alpha=0.5, lora_dropout=0.3, bias="none", target_modules=names)
    wrapped = peft.get_peft_model(theirs.tower, config).eval()
    add_lora(ours)
    filled(ours)
    copied = 0
    for name, module in ours.tower.named_modules():
        if isinstance(module, LoRALinear):
            other = wrapped.base_model.model.get_submodule(name)
            with torch.no_grad():
                other.lora_A["default"].weight.copy_(module.lora_a)
                other.lora_B["default"].weight.copy_(module.lora_b)
            copied += 1
    assert copied == sum(type(m).__module__.startswith("peft") and hasattr(m, "lora_A") for m in wrapped.modules())
    torch.testing.assert_close(ours(images), theirs(images))
    for part in (train_dropout, lambda encoder: encoder.train()):  # nothing but the updates' dropout acts in training
        outputs = []
        for encoder in (ours, theirs):
            part(encoder) if encoder is ours else encoder.train()
            encoder.zero_grad()
            with torch.random.fork_rng():
                torch.manual_seed(11)
                outputs.append(encoder(images))
            outputs[-1].square().sum().backward()
        torch.testing.assert_close(*outputs)
        for name, module in ours.tower.named_modules():
            if isinstance(module, LoRALinear):
                other = wrapped.base_model.model.get_submodule(name)
                torch.testing.assert_close(
                    module.lora_a.grad, other.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-5
                )
                torch.testing.assert_close(
                    module.lora_b.grad, other.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-5
                )


class Custom(nn.Module):
    """A tower of another kind: its linear maps are `a.fc1`, `b.fc1`, `nofc1` and `last`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"fc1": nn.Linear(12, 8)})
        self.b = nn.ModuleDict({"fc1": nn.Linear(8, 8)})
        self.nofc1 = nn.Linear(8, 8)
        self.last = nn.Linear(8, 16)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)  # (N, 12)
        return self.last(self.nofc1(self.b["fc1"](self.a["fc1"](pooled).relu()).relu()).relu())


def test_any_tower_with_linear_maps_of_these_names_is_adapted(images):
    encoder = build(CONVNEXT)
    encoder.tower = Custom()
    before = encoder(images).detach()
    assert add_lora(encoder, rank=2).layers == 2
    assert isinstance(encoder.tower.a["fc1"], LoRALinear) and type(encoder.tower.nofc1) is nn.Linear
    merge_lora(encoder)
    torch.testing.assert_close(encoder(images), before)
    assert add_lora(encoder, rank=2, targets=("last", "b.fc1")).layers == 2
    assert isinstance(encoder.tower.last, LoRALinear) and type(encoder.tower.a["fc1"]) is nn.Linear


def test_the_head_is_frozen_and_not_adapted():
    encoder = Encoder(CONVNEXT, Preprocessing("squash", 64, 64), mlp_hidden=4)
    add_lora(encoder)
    assert encoder.head is not None and type(encoder.head.fc1) is nn.Linear
    assert not any(parameter.requires_grad for parameter in encoder.head.parameters())


def test_what_cannot_be_adapted_or_merged_is_said():
    encoder = build(CONVNEXT)
    with pytest.raises(ValueError, match="small has no LoRA updates"):
        merge_lora(encoder)
    with pytest.raises(ValueError, match=r"no nn\.Linear named proj"):
        add_lora(encoder, targets=("proj",))
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="rank from 1"):
            add_lora(encoder, **wrong)
    add_lora(encoder)
    with pytest.raises(ValueError, match="merge them first"):
        add_lora(encoder)
    from timm.models.convnext import ConvNeXt

    convolutional = build(CONVNEXT)  # timm's other kind of MLP: 1x1 convolutions
    convolutional.tower.trunk = ConvNeXt(num_classes=0, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), conv_mlp=True)
    with pytest.raises(ValueError, match=r"no nn\.Linear named qkv or fc1, fc2"):
        add_lora(convolutional)


def test_the_seed_draws_a_and_touches_nothing_else():
    state = torch.get_rng_state()
    first, same, other = (build(VIT) for _ in range(3))
    for encoder, seed in ((first, 1), (same, 1), (other, 2)):
        add_lora(encoder, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = [
        dict(encoder.named_parameters())["tower.trunk.blocks.1.attn.qkv.lora_a"] for encoder in (first, same, other)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
