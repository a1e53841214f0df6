"""Validation: the numbers of the formula, the same at every call, and an encoder that is left as it was."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rclip_metric import RobustPerceptualDistance
from rclip_metric.images import open_image
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.triplets import read_nights
from rclip_metric.train.finetuning.adversarial import FinetuneConfig, Validator, held_out
from rclip_metric.train.runs.config import configured, read_recipe
from rclip_metric.train.runs.seeds import sample_seed

from support.encoders import small_encoder
from support.images import noise
from support.scenes import small_scenes

BALL = LpBall("linf", 4 / 255)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("scenes"), (1, 9, 1), images=8)


@pytest.fixture(scope="module")
def pair():
    """An original, and an encoder that has moved away from it."""
    original = small_encoder()
    moved = copy.deepcopy(original)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return original, moved


@pytest.fixture(scope="module")
def images():
    return noise(5, 3, 64, 64, seed=2)


class Linear(nn.Module):
    """phi(x) = W x + b: PGD's answer is a formula."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T + self.bias


def test_the_numbers_of_a_linear_encoder_are_the_formula():
    """With one output, || w z + b - w x ||^2 grows with |w (z - x) + b|: the worst z is x + eps sign(b) sign(w)."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(1, 27, generator=generator)
    images = 0.3 + 0.4 * torch.rand(7, 3, 3, 3, generator=generator)  # away from the bounds of the box
    original = Linear(weight, torch.zeros(1))
    tuned = Linear(weight, torch.tensor([5.0]))
    found = Validator(images, original, LpBall("linf", 0.1), steps=20, step_size=0.02)(tuned)
    assert found["loss"] == pytest.approx((5 + 0.1 * weight.abs().sum().item()) ** 2, rel=1e-5)
    clean = [x.flatten() @ weight[0] for x in images]
    signs = [float(torch.sign(value) * torch.sign(value + 5)) for value in clean]  # cosines of numbers
    assert found["clean_cosine"] == pytest.approx(sum(signs) / 7)


@pytest.mark.parametrize("own", [False, True], ids=["published", "as tiny was trained"])
def test_the_numbers_are_those_of_a_plain_transcription(pair, images, own):
    original, moved = pair
    options = configured(FinetuneConfig, None, read_recipe("tiny").settings).pgd_options if own else None
    found = Validator(images, original, BALL, steps=3, pgd_options=options, seed=5, batch_size=2)(moved)
    clean, adversarial, loss = [], [], []
    for place, x in enumerate(images):
        noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(sample_seed(5, f"validation {place}")))
        target = original(x[None]).detach()
        z, velocity = x + (2 * noise - 1) * 4 / 255, torch.zeros_like(x)
        z = z.clamp(0, 1) if own else z
        for _ in range(3):
            z = z.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad((moved(z[None]) - target).square().sum(), z)
            velocity = 0.9 * velocity + slope.sign() if own else (0.9 * velocity + slope.sign()).sign()
            z = torch.clamp(z.detach() + velocity.sign() / 255, x - 4 / 255, x + 4 / 255).clamp(0, 1)
        clean.append(F.cosine_similarity(moved(x[None]), target))
        adversarial.append(F.cosine_similarity(moved(z[None]), target))
        loss.append((moved(z[None]) - target).square().sum())
    assert found["clean_cosine"] == pytest.approx(torch.stack(clean).mean().item(), abs=1e-5)
    assert found["adversarial_cosine"] == pytest.approx(torch.stack(adversarial).mean().item(), abs=1e-5)
    assert found["loss"] == pytest.approx(torch.stack(loss).mean().item(), rel=1e-3)
    assert found["clean_cosine"] - found["adversarial_cosine"] > 1e-3


def test_the_original_is_at_cosine_one_and_loses_it_under_attack(pair, images):
    original, _ = pair
    found = Validator(images, original, BALL)(original)
    assert found["clean_cosine"] == pytest.approx(1, abs=1e-6)
    assert found["adversarial_cosine"] < 1 - 1e-4 and found["loss"] > 0
    unmoved = Validator(images, original, LpBall("linf", 0.0))(original)
    assert unmoved["adversarial_cosine"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("ball", [BALL, LpBall("l2", 0.5)], ids=str)
def test_every_validation_is_the_same_in_any_batch(pair, images, ball):
    original, moved = pair
    validator = Validator(images, original, ball, steps=2, batch_size=5)
    first = validator(moved)
    torch.rand(3)  # the global generator has moved on
    assert validator(moved) == first
    again = Validator(images, original, ball, steps=2, batch_size=2)(moved)
    # Sums in another order are right to 1e-6. A pixel whose slope is nothing but rounding may step the other way: that
    # is one of 12,288, and would have to happen to 12 of an image to be seen.
    assert again == pytest.approx(first, rel=1e-3)
    other = Validator(images, original, ball, steps=0, seed=1)(moved)
    assert other["loss"] != Validator(images, original, ball, steps=0)(moved)["loss"]


def test_the_encoder_is_left_as_it_was(pair, images, scenes):
    original, moved = copy.deepcopy(pair)
    moved.train()
    part = next(module for name, module in moved.named_modules() if name.count(".") == 1)
    part.eval()
    frozen = next(moved.parameters()).requires_grad_(False)
    gradients = {name: torch.full_like(parameter, 0.5) for name, parameter in moved.named_parameters()}
    for name, parameter in moved.named_parameters():
        parameter.grad = gradients[name]
    modes = [module.training for module in moved.modules()]
    weights = copy.deepcopy(moved.state_dict())
    validator = Validator(images, original, BALL, steps=1, nights=scenes / "nights", nights_limit=2, nights_steps=1)
    validator(moved)
    assert [module.training for module in moved.modules()] == modes and not part.training and moved.training
    assert [p.requires_grad for p in moved.parameters()] == [p is not frozen for p in moved.parameters()]
    assert all(p.grad is gradients[name] and bool((p.grad == 0.5).all()) for name, p in moved.named_parameters())
    assert all(torch.equal(value, weights[name]) for name, value in moved.state_dict().items())

    validator.targets = torch.zeros(5, 17)  # which no pass survives: the encoder is left as it was all the same
    with pytest.raises(RuntimeError, match="must match the size"):
        validator(moved)
    assert [module.training for module in moved.modules()] == modes and not frozen.requires_grad


def test_the_original_is_embedded_once(pair, images):
    original, moved = pair
    calls = []
    handle = original.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    validator = Validator(images, original, BALL, steps=1, batch_size=2)
    assert calls == [False, False, False]
    validator(moved)
    validator(moved)
    assert len(calls) == 3
    handle.remove()


def test_under_autocast_the_encoder_is_judged_in_bfloat16_and_the_triplets_are_not(pair, images, scenes):
    original, moved = pair
    validator = Validator(images, original, BALL, steps=1)
    targets = validator.targets
    exact = validator(moved)
    triplets = Validator(None, original, BALL, nights=scenes / "nights", nights_steps=1)
    modes: list[bool] = []
    handle = moved.register_forward_hook(lambda *_: modes.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        half = validator(moved)
        assert modes and all(modes)
        modes.clear()
        triplets(moved)
        assert modes and not any(modes)
        again = Validator(images, original, BALL)
    handle.remove()
    assert half["clean_cosine"] != exact["clean_cosine"]
    assert half["clean_cosine"] == pytest.approx(exact["clean_cosine"], abs=0.01)
    assert targets is not None and again.targets is not None and torch.equal(again.targets, targets)


def test_triplets_are_judged_as_by_the_metric_itself(pair, scenes):
    _, moved = pair
    triplets = read_nights(scenes / "nights", "val")[:6]
    metric = RobustPerceptualDistance(moved)
    right = 0
    for triplet in triplets:
        reference, left, right_image = (
            metric.preprocess(open_image(path))[None] for path in (triplet.reference, triplet.left, triplet.right)
        )
        right += int(metric.two_afc(reference, left, right_image).choice.item() == triplet.label)
    found = Validator(None, moved, BALL, nights=scenes / "nights", nights_limit=6, nights_steps=10, batch_size=4)(moved)
    assert list(found) == ["two_afc_clean", "two_afc_robust"]
    assert found["two_afc_clean"] == pytest.approx(100 * right / len(triplets), abs=1e-3)
    weak = Validator(None, moved, LpBall("linf", 0.0), nights=scenes / "nights", nights_limit=6, nights_steps=1)(moved)
    assert weak["two_afc_robust"] == found["two_afc_clean"] > found["two_afc_robust"]


def test_held_out_images_are_spread_over_the_tree_and_broken_ones_passed_over(pair, scenes, tmp_path):
    original, _ = pair
    folder = tmp_path / "images"
    folder.mkdir()
    sources = sorted((scenes / "images").rglob("*.png"))[:8]
    for place, source in enumerate(sources):
        shutil.copy(source, folder / f"{place}.png")
    (folder / "4.png").write_bytes(b"no image")
    found = held_out(folder, original, 4)
    expected = torch.stack([original.preprocess(sources[place]) for place in (0, 2, 5, 6)])
    assert torch.equal(found, expected)
    assert len(held_out(folder, original, 100)) == 7
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of the images below"):
        held_out(folder, original, 4)


def test_bad_settings_are_named(pair, images, tmp_path):
    original, _ = pair
    with pytest.raises(ValueError, match="nothing to validate on"):
        Validator(None, original, BALL)
    with pytest.raises(ValueError, match=r"must be \(N, 3, S, S\), N at least 1, and they are \(0, 3, 64, 64\)"):
        Validator(images[:0], original, BALL)
    with pytest.raises(ValueError, match="batch size"):
        Validator(images, original, BALL, batch_size=0)
    with pytest.raises(ValueError, match=r"no data\.csv"):
        Validator(images, original, BALL, nights=tmp_path)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_the_numbers_on_cuda_are_those_of_the_cpu(pair, images, scenes):
    original, moved = pair
    validator = Validator(images, original, BALL, steps=2, nights=scenes / "nights", nights_steps=2)
    cuda = Validator(images, copy.deepcopy(original).cuda(), BALL, steps=2, nights=scenes / "nights", nights_steps=2)
    assert cuda(copy.deepcopy(moved).cuda()) == pytest.approx(validator(moved), rel=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        assert cuda(copy.deepcopy(moved).cuda()) == pytest.approx(validator(moved), rel=0.05)
