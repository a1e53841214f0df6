"""Per-sample losses, against loops in numpy float64, finite differences and their invariances."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rclip_metric.train.attacks import losses as objectives
from rclip_metric.train.runs.seeds import seeded

COUNT, CLASSES, SIZE = 7, 6, 5
PAIRS = list(combinations(range(3), 2))  # (0, 1), (0, 2), (1, 2)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed, *shape), dtype=torch.float64)


def unit(*shape, seed=0):
    return F.normalize(normal(*shape, seed=seed), dim=-1)


def labels(high, seed=0):
    return torch.randint(high, (COUNT,), generator=seeded(seed, high))


def numpy_odd_one_out(similarities, odd):
    with_odd = [s for pair, s in zip(PAIRS, similarities, strict=True) if odd in pair]
    (without,) = [s for pair, s in zip(PAIRS, similarities, strict=True) if odd not in pair]
    return max(with_odd) - without


def numpy_cross_entropy(logits, label):
    return -math.log(math.exp(logits[label]) / sum(math.exp(z) for z in logits))


def numpy_dlr(logits, label):
    ranked = sorted(logits, reverse=True)
    rival = max(z for k, z in enumerate(logits) if k != label)
    return -(logits[label] - rival) / (ranked[0] - ranked[2])


def numpy_targeted_dlr(logits, label, target):
    ranked = sorted(logits, reverse=True)
    return -(logits[label] - logits[target]) / (ranked[0] - 0.5 * (ranked[2] + ranked[3]))


def numpy_targeted_distance(embedding, targets):
    return -np.mean([np.linalg.norm(embedding - target) ** 2 for target in targets])


CASES = {
    "fare": (
        objectives.fare,
        lambda u, v: np.linalg.norm(u - v) ** 2,
        (normal(COUNT, SIZE), normal(COUNT, SIZE, seed=1)),
    ),
    "embedding": (
        objectives.embedding_distance,
        lambda u, v: 2 - 2 * u @ v,
        (unit(COUNT, SIZE), unit(COUNT, SIZE, seed=1)),
    ),
    "targeted": (
        objectives.targeted_embedding_distance,
        numpy_targeted_distance,
        (unit(COUNT, SIZE), unit(COUNT, 4, SIZE, seed=1)),
    ),
    "two_afc": (objectives.two_afc_cross_entropy, numpy_cross_entropy, (normal(COUNT, 2), labels(2))),
    "margin": (objectives.two_afc_margin, lambda s, y: s[y] - s[1 - y], (normal(COUNT, 2), labels(2))),
    "odd_one_out": (objectives.odd_one_out, numpy_odd_one_out, (normal(COUNT, 3), labels(3))),
    "cross_entropy": (objectives.cross_entropy, numpy_cross_entropy, (normal(COUNT, CLASSES), labels(CLASSES))),
    "dlr": (objectives.dlr, numpy_dlr, (normal(COUNT, CLASSES), labels(CLASSES))),
    "targeted_dlr": (
        objectives.targeted_dlr,
        numpy_targeted_dlr,
        (normal(COUNT, CLASSES), labels(CLASSES), (labels(CLASSES) + 1 + labels(CLASSES - 1, seed=1)) % CLASSES),
    ),
}
every_loss = pytest.mark.parametrize(("loss", "by_hand", "inputs"), CASES.values(), ids=CASES)


@every_loss
def test_losses_are_their_formulas(loss, by_hand, inputs):
    expected = [by_hand(*row) for row in zip(*(tensor.numpy() for tensor in inputs), strict=True)]
    torch.testing.assert_close(loss(*inputs), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@every_loss
def test_gradients_are_finite_differences(loss, by_hand, inputs):
    assert torch.autograd.gradcheck(lambda first: loss(first, *inputs[1:]), inputs[0].clone().requires_grad_())


@every_loss
def test_a_sample_does_not_depend_on_its_batch(loss, by_hand, inputs):
    whole = loss(*inputs)
    alone = torch.cat([loss(*(tensor[i : i + 1] for tensor in inputs)) for i in range(COUNT)])
    torch.testing.assert_close(alone, whole, rtol=1e-14, atol=1e-14)
    leaked = torch.autograd.functional.jacobian(lambda first: loss(first, *inputs[1:]), inputs[0])
    leaked[range(COUNT), range(COUNT)] = 0
    assert not leaked.any()


def test_shared_targets_are_the_same_targets_for_everyone():
    embedding, targets = unit(COUNT, SIZE), unit(16, SIZE, seed=2)
    loss = objectives.targeted_embedding_distance(embedding, targets)
    torch.testing.assert_close(loss, objectives.targeted_embedding_distance(embedding, targets.expand(COUNT, -1, -1)))
    torch.testing.assert_close(loss, 2 * (embedding @ targets.T).mean(1) - 2)  # eq. 5 maximises the mean cosine


@pytest.mark.parametrize("shape", [(16, SIZE + 1), (COUNT + 1, 16, SIZE), (1, 16, SIZE), (SIZE,), (0, SIZE)])
def test_targets_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="targets must be"):
        objectives.targeted_embedding_distance(unit(COUNT, SIZE), torch.zeros(shape, dtype=torch.float64))


def test_odd_one_out_is_positive_where_the_choice_is_wrong():
    similarities = normal(200, 3, seed=3)
    most_similar = similarities.numpy().argmax(1)
    expected = [({0, 1, 2} - set(PAIRS[place])).pop() for place in most_similar]
    choice = objectives.odd_one_out_choice(similarities)
    assert choice.tolist() == expected
    for odd in range(3):
        label = torch.full((200,), odd)
        assert torch.equal(objectives.odd_one_out(similarities, label) > 0, choice != label)


def test_of_equally_similar_pairs_the_first_wins():
    ties = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.1, 0.5], [0.1, 0.5, 0.5], [0.5, 0.5, 0.5]])
    assert objectives.odd_one_out_choice(ties).tolist() == [2, 2, 1, 2]
    assert objectives.odd_one_out(ties, torch.tensor([2, 2, 1, 2])).tolist() == [0, 0, 0, 0]
    assert objectives.odd_one_out(ties, torch.tensor([1, 0, 0, 0])).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["dlr", "targeted_dlr"])
def test_dlr_ignores_a_shift_and_a_scale_of_the_logits(name):
    loss, _, (logits, *rest) = CASES[name]
    expected = loss(logits, *rest)
    for scale, shift in ((100.0, 0.0), (0.01, 0.0), (1.0, -3.0), (7.0, 2.5)):
        torch.testing.assert_close(loss(scale * logits + shift, *rest), expected, rtol=1e-10, atol=1e-10)
    other = objectives.cross_entropy(100 * logits, rest[0])
    assert not torch.allclose(other, objectives.cross_entropy(logits, rest[0]))  # the probe would notice


def test_dlr_is_positive_where_fooled():
    logits, label, target = CASES["targeted_dlr"][2]
    assert torch.equal(objectives.dlr(logits, label) > 0, logits.argmax(1) != label)
    rows = range(COUNT)
    assert torch.equal(objectives.targeted_dlr(logits, label, target) > 0, logits[rows, target] > logits[rows, label])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "row", [[0.0] * 5, [2.0, 2.0, 2.0, 2.0, -1.0], [2.0, 2.0, 2.0, 1.0, -1.0], [1e-7, 0.0, 0.0, 0.0, 0.0]], ids=str
)
def test_equal_top_logits_give_finite_losses_and_gradients(dtype, row):
    for label in range(5):
        for loss, rest in (
            (objectives.dlr, ()),
            (objectives.targeted_dlr, (torch.tensor([(label + 1) % 5]),)),
        ):
            logits = torch.tensor([row], dtype=dtype, requires_grad=True)
            value = loss(logits, torch.tensor([label]), *rest)
            value.sum().backward()
            assert value.isfinite().all()
            assert logits.grad.isfinite().all()
    tied = objectives.dlr(torch.zeros(1, 3, dtype=dtype), torch.tensor([1]))
    assert tied.tolist() == [0.0]


def test_too_few_classes_are_refused_with_what_to_use_instead():
    label = torch.tensor([0])
    with pytest.raises(ValueError, match="at least 3 classes and the logits have 2: use cross_entropy"):
        objectives.dlr(torch.zeros(1, 2), label)
    with pytest.raises(ValueError, match="at least 4 classes and the logits have 3: use dlr"):
        objectives.targeted_dlr(torch.zeros(1, 3), label, label)
