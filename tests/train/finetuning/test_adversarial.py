"""One step of adversarial fine-tuning: every loss is its equation, and the split of a batch does not show."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from rclip_metric.encoder import ViTArchitecture
from rclip_metric.train.attacks.losses import excess, fare, lore, sim_clip, tecoa
from rclip_metric.train.finetuning.adversarial import (
    OBJECTIVES,
    AdversarialStep,
    DualNetwork,
    Embeddings,
    FinetuneConfig,
    NonFiniteLoss,
)
from rclip_metric.train.finetuning.adversarial.config import LOSSES
from rclip_metric.train.finetuning.adversarial.inner import (
    attacked_copy,
    branch_factors,
    refresh,
    skip_seed,
    skipped_blocks,
    start_noise,
    start_seed,
)
from rclip_metric.train.runs.seeds import seeded

from support.encoders import CONVNEXT, small_encoder

VIT = ViTArchitecture(image_size=64, patch_size=16, width=64, depth=2, heads=1, projection=16)
CONFIG = FinetuneConfig(steps=4, inner_steps=3, batch_size=6, learning_rate=1e-3)


def small(architecture=CONVNEXT, shift=0.0):
    encoder = small_encoder(architecture)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(shift)
    return encoder


def pictures(count=6):
    return torch.rand(count, 3, 64, 64, generator=seeded(1, count))


def stepper(config=CONFIG, shift=0.0, architecture=CONVNEXT, rate=0.0, **more):
    encoder = small(architecture, shift)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=rate)
    return AdversarialStep(encoder, small(architecture), optimizer, config, **more)


def test_tecoa_is_the_cross_entropy_of_scaled_cosines():
    embedding, classes = torch.randn(5, 7, generator=seeded(1)), F.normalize(torch.randn(3, 7, generator=seeded(2)))
    label = torch.tensor([0, 1, 2, 1, 0])
    cosines = torch.stack([torch.cosine_similarity(embedding, row[None]) for row in classes], 1)
    expected = -(100 * cosines).log_softmax(1)[torch.arange(5), label]
    torch.testing.assert_close(tecoa(embedding, classes, label), expected)
    torch.testing.assert_close(tecoa(3 * embedding, classes, label), expected)  # the length does not matter


def test_sim_clip_is_one_minus_the_cosine_and_each_branch_takes_half_the_gradient():
    adversarial, clean = (torch.randn(4, 7, generator=seeded(i)).requires_grad_() for i in (1, 2))
    loss = sim_clip(adversarial, clean)
    torch.testing.assert_close(loss, 1 - torch.cosine_similarity(adversarial, clean))
    halves = torch.autograd.grad(loss.sum(), (adversarial, clean))
    wholes = torch.autograd.grad((1 - torch.cosine_similarity(adversarial, clean)).sum(), (adversarial, clean))
    for half, whole in zip(halves, wholes, strict=True):
        torch.testing.assert_close(half, whole / 2)


def test_lore_is_fare_and_the_priced_excess_of_the_clean_embedding():
    adversarial, clean, original = (torch.randn(4, 7, generator=seeded(i)) for i in (1, 2, 3))
    price = torch.tensor([0.0, 0.5, 1.0, 2.0])
    for row in range(4):
        moved = ((clean[row] - original[row]) ** 2).sum() - 0.1 * (original[row] ** 2).sum()
        expected = ((adversarial[row] - original[row]) ** 2).sum() + price[row] * moved
        assert lore(adversarial, clean, original, price, 0.1)[row] == pytest.approx(expected.item(), rel=1e-5)
    # At the bound itself nothing is due: || phi(x) - phi_orig(x) ||^2 = rho || phi_orig(x) ||^2.
    at_bound = original * (1 + math.sqrt(0.1))
    torch.testing.assert_close(excess(at_bound, original, 0.1), torch.zeros(4), atol=1e-5, rtol=0)


def test_every_loss_can_be_told_by_name():
    assert tuple(OBJECTIVES) == LOSSES
    assert [FinetuneConfig(loss=loss).objective for loss in LOSSES] == [*OBJECTIVES.values()]


@pytest.mark.parametrize("loss", ["fare", "tecoa", "sim-clip", "lore"])
def test_a_step_reports_the_equation_at_the_clean_image_when_eps_is_zero(loss):
    """Without room to attack, z = x: every loss is a formula of the two clean embeddings."""
    config = dataclasses.replace(CONFIG, loss=loss, eps=0.0, drop_path=0.0)
    classes = F.normalize(torch.randn(3, 16, generator=seeded(5)), dim=1) if loss == "tecoa" else None
    step = stepper(config, shift=0.05, classes=classes)
    images, labels = pictures(), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        own, target = step.encoder(images), step.original(images)
        expected = {
            "fare": lambda: (own - target).square().sum(1),
            "tecoa": lambda: F.cross_entropy(100 * F.normalize(own, dim=1) @ classes.T, labels, reduction="none"),
            "sim-clip": lambda: torch.zeros(6),
            "lore": lambda: (
                (own - target).square().sum(1)
                + step.objective.network(target) * ((own - target).square().sum(1) - 0.1 * target.square().sum(1))
            ),
        }[loss]().mean()
        cosine = torch.cosine_similarity(own, target).mean().item()
    result = step(images, range(6), labels, 0, measure=True)
    assert result.images == 6 and result.loss == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    assert result.clean_cosine == pytest.approx(cosine, abs=1e-5)
    assert result.adversarial_cosine == pytest.approx(cosine, abs=1e-5)


def test_the_clean_weight_mixes_the_two_losses():
    config = dataclasses.replace(CONFIG, clean_weight=0.25)
    images = pictures()
    attacked = stepper(shift=0.05)(images, range(6), None, 0).loss
    with torch.no_grad():
        clean = fare(small(shift=0.05)(images), small()(images)).mean().item()
    mixed = stepper(config, shift=0.05)(images, range(6), None, 0).loss
    assert mixed == pytest.approx(0.75 * attacked + 0.25 * clean, rel=1e-4)


@pytest.mark.parametrize("architecture", [CONVNEXT, VIT], ids=["convnext", "vit"])
@pytest.mark.parametrize("loss", ["fare", "sim-clip", "lore"])
def test_a_batch_in_chunks_moves_the_weights_as_the_whole_batch(architecture, loss):
    config = dataclasses.replace(CONFIG, loss=loss)
    images = pictures()
    steps = [stepper(config, 0.02, architecture, rate=1e-3, chunk_size=size) for size in (None, 4, 1)]
    results = [step(images, range(6), None, 0) for step in steps]
    for step, result in zip(steps[1:], results[1:], strict=True):
        assert result.loss == pytest.approx(results[0].loss, rel=1e-4, abs=1e-6)
        for one, other in zip(steps[0].encoder.parameters(), step.encoder.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_attack_stays_in_the_ball_and_raises_the_loss(attack, norm):
    eps = {"linf": 4 / 255, "l2": 1.0}[norm]
    config = dataclasses.replace(CONFIG, attack=attack, norm=norm, eps=eps, inner_steps=10, inner_step_size=eps / 4)
    step, images = stepper(config, shift=0.02), pictures()
    target = step.original(images)
    found = step.attack(images, range(6), Embeddings(target), 0)
    assert step.config.threat(0)[0].violation(found, images) == 0
    with torch.no_grad():
        noise = start_noise(images, [start_seed(0, 0, key) for key in range(6)], norm)
        random = step.config.threat(0)[0].sample(images, noise)
        before, at_random, after = (fare(step.encoder(x), target).mean() for x in (images, random, found))
    assert after > 1.5 * at_random and after > 1.5 * before


def test_eps_and_the_step_grow_linearly():
    config = dataclasses.replace(CONFIG, eps_warmup_steps=4)
    shares = [config.threat(step)[0].eps * 255 / 4 for step in range(6)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert config.threat(1)[1] == pytest.approx(0.5 / 255)


def test_an_image_has_its_own_random_start_whatever_the_batch():
    images = pictures()
    seeds = [start_seed(0, 3, key) for key in range(6)]
    whole = start_noise(images, seeds, "linf")
    torch.testing.assert_close(start_noise(images[2:4], seeds[2:4], "linf"), whole[2:4], rtol=0, atol=0)
    assert whole.abs().max() <= 1 and whole.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.02)
    assert len({start_seed(s, n, k) for s in range(3) for n in range(3) for k in range(3)}) == 27


def test_the_attacked_copy_follows_the_encoder():
    encoder = small()
    shared, half = attacked_copy(encoder, False), attacked_copy(encoder, True)
    with torch.no_grad():
        encoder.tower.projection.weight.add_(1.0)
    assert torch.equal(shared.tower.projection.weight, encoder.tower.projection.weight)
    assert not any(p.requires_grad for p in shared.parameters()) and all(p.requires_grad for p in encoder.parameters())
    assert not torch.equal(half.tower.projection.weight.float(), encoder.tower.projection.weight)
    refresh(half, encoder)
    torch.testing.assert_close(half.tower.projection.weight, encoder.tower.projection.weight.bfloat16())


def test_a_bfloat16_step_keeps_float32_weights_and_the_loss_within_a_percent():
    images = pictures()
    exact = stepper(shift=0.02, rate=1e-3)
    rounded = stepper(shift=0.02, rate=1e-3, bfloat16=True)
    results = [step(images, range(6), None, 0, measure=True) for step in (exact, rounded)]
    assert results[1].loss == pytest.approx(results[0].loss, rel=0.05)
    assert all(p.dtype == torch.float32 for p in rounded.encoder.parameters())
    torch.testing.assert_close(
        rounded.attacked.tower.projection.weight, rounded.encoder.tower.projection.weight.bfloat16()
    )


def test_the_gradient_is_clipped_to_its_length():
    images = pictures()
    free = stepper(shift=0.05)(images, range(6), None, 0)
    step = stepper(dataclasses.replace(CONFIG, clip_gradient=0.5 * free.gradient_norm), shift=0.05, rate=1.0)
    before = [p.clone() for p in step.encoder.parameters()]
    result = step(images, range(6), None, 0)
    assert result.gradient_norm == pytest.approx(free.gradient_norm, rel=1e-4)
    moved = math.sqrt(
        sum((a - b).square().sum().item() for a, b in zip(before, step.encoder.parameters(), strict=True))
    )
    assert moved == pytest.approx(0.5 * free.gradient_norm, rel=1e-3)


def test_nothing_but_the_encoder_gets_gradients_and_a_nan_changes_nothing():
    step, images = stepper(shift=0.02, rate=1e-3), pictures()
    step(images, range(6), None, 0)
    assert all(p.grad is None for p in (*step.encoder.parameters(), *step.original.parameters()))
    before = copy.deepcopy(step.encoder.state_dict())
    images[3] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"loss is nan at step 2: lower") as error:
        step(images, range(6), None, 1)
    assert error.value.images is not None and len(error.value.images) == 6
    for name, value in step.encoder.state_dict().items():
        assert torch.equal(value, before[name])
    assert step(pictures(), range(6), None, 2).loss > 0


def test_the_multipliers_rise_where_the_bound_is_broken():
    config = dataclasses.replace(CONFIG, loss="lore", rho=1e-6, eps=0.0, dual_learning_rate=0.1)
    step, images = stepper(config, shift=0.05), pictures()
    target = step.original(images)
    before = step.objective.network(target)
    for number in range(5):
        step(images, range(6), None, number)
    assert (step.objective.network(target) > before).all() and (before > 0).all()
    loose = stepper(dataclasses.replace(config, rho=1e6), shift=0.05)
    for number in range(5):
        loose(images, range(6), None, number)
    assert (loose.objective.network(target) < before).all()
    # What a restart needs: the multipliers go on from where they were.
    other = stepper(config, shift=0.05)
    other.load_state(step.state())
    torch.testing.assert_close(other.objective.network(target), step.objective.network(target))


def test_multipliers_do_not_depend_on_the_length_of_embeddings():
    network, embedding = DualNetwork(16), torch.randn(5, 16, generator=seeded(1))
    torch.testing.assert_close(network(embedding), network(10 * embedding))


def test_a_loss_without_its_classes_is_refused():
    with pytest.raises(ValueError, match="needs the embeddings"):
        stepper(dataclasses.replace(CONFIG, loss="tecoa"))
    for wrong in (
        {"clean_weight": 2.0},
        {"steps": 0},
        {"learning_rate": 0.0},
        {"loss": "mse"},
        {"eps": -1.0},
        {"inner_momentum": "nesterov"},
        {"inner_start": "sphere"},
        {"norm": "l1"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dataclasses.replace(CONFIG, **wrong)
    with pytest.raises(ValueError, match="leave clean_weight"):
        dataclasses.replace(CONFIG, loss="lore", clean_weight=0.5)


def test_an_update_leaves_out_blocks_as_timm_does_in_train_mode():
    timm = pytest.importorskip("timm")
    published = timm.create_model("convnext_atto", depths=(2, 1, 3, 1), drop_path_rate=0.1)
    chances = [getattr(block.drop_path, "drop_prob", 0.0) for stage in published.stages for block in stage.blocks]
    factors = branch_factors(7, 0.1, range(20_000))
    torch.testing.assert_close((factors == 0).float().mean(0), torch.tensor(chances), atol=0.005, rtol=0)
    torch.testing.assert_close(factors.amax(0), 1 / (1 - torch.tensor(chances)))  # what is left is divided by 1 - p
    # Of a block, what it adds is multiplied, and what came in is not.
    encoder = small()
    block, features = encoder.tower.trunk.stages[0].blocks[0], torch.randn(3, 8, 4, 4, generator=seeded(1))
    torch.nn.init.ones_(block.gamma)
    moved = block(features) - features
    factor = torch.tensor([0.0, 1.0, 1.25])
    torch.testing.assert_close(block(features, factor) - features, moved * factor.view(-1, 1, 1, 1))


def test_blocks_are_left_out_in_the_update_alone_and_by_the_image():
    config = dataclasses.replace(CONFIG, drop_path=0.6, eps=0.0)
    steps = [stepper(config, shift=0.05), stepper(config, shift=0.05, chunk_size=2)]
    images = pictures()
    results = [step(images, range(6), None, 0, measure=True) for step in steps]
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-4)  # whatever the split
    whole = stepper(dataclasses.replace(config, drop_path=0.0), shift=0.05)(images, range(6), None, 0, measure=True)
    assert results[0].loss != pytest.approx(whole.loss, rel=1e-3)
    assert results[0].clean_cosine == pytest.approx(whole.clean_cosine, abs=1e-6)  # measured with every block
    assert steps[0].encoder.tower.branch_factors is None
    # The second pass over an image, of the clean one, leaves out other blocks than the first.
    with skipped_blocks(steps[0].encoder, 0.6, [skip_seed(0, 0, 3, turn) for turn in (0, 1)]):
        rows = steps[0].encoder.tower.branch_factors
        assert rows.shape == (2, 4) and not torch.equal(rows[0], rows[1])
    vit = small(VIT)
    with skipped_blocks(vit, 0.6, [0]):
        assert not hasattr(vit.tower, "branch_factors")
    with pytest.raises(ValueError, match="drop_path"):
        dataclasses.replace(CONFIG, drop_path=1.0)
