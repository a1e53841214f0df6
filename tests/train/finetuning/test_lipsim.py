"""Provable metrics: both losses are their equations, resuming is exact, the constant is measured, bad input is told."""

import dataclasses
import json
import math
import os
import shutil
import signal
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import functional as transforms

from rclip_metric.errors import CheckpointError, UnknownModelError
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.commands.train import lipsim as command
from rclip_metric.train.data.triplets import read_nights
from rclip_metric.train.evaluation.certificates import Certificate, certified_radii
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, evaluate_two_afc
from rclip_metric.train.finetuning.lipsim import (
    DistilConfig,
    Teacher,
    TuneConfig,
    distil,
    jitter,
    memory,
    read_student,
    tune,
)
from rclip_metric.train.finetuning.lipsim.config import distil_rate
from rclip_metric.train.finetuning.lipsim.images import Squashed, photographs
from rclip_metric.train.finetuning.lipsim.step import distil_step, trained, tune_step
from rclip_metric.train.finetuning.lipsim.teacher import Lesson
from rclip_metric.train.metrics import EmbeddingMetric, load_metric
from rclip_metric.train.metrics.lipsim import (
    LipSim,
    LipSimArchitecture,
    LipSimMetric,
    Student,
    folded,
    lipschitz_constant,
    lipsim_constant,
    random_tensors,
    rounded_constant,
)
from rclip_metric.train.metrics.registry import BASELINES
from rclip_metric.train.runs.interrupt import Interrupted
from rclip_metric.train.runs.seeds import seeded

from support.programs import run_command
from support.scenes import small_scenes

SMALL = LipSimArchitecture(
    image_size=16, channels=14, depth=2, inner=3, linear_depth=2, linear_inner=6, embedding=5, patch=2, pool=4
)
SIZES: dict[str, Any] = {
    "image_size": 16,
    "channels": 14,
    "depth": 2,
    "inner": 3,
    "linear_depth": 2,
    "linear_inner": 6,
    "patch": 2,
    "pool": 4,
}
QUICK = DistilConfig(**SIZES, epochs=3, warmup_steps=1, batch_size=4, save_every=2, log_every=1)
TUNED = TuneConfig(epochs=2, batch_size=4, save_every=2, log_every=1)


def colours(size=8, dimensions=5, seed=0):
    """A teacher: a fixed random projection of the pixels."""
    matrix = torch.randn(3 * size * size, dimensions, generator=seeded(seed))
    return EmbeddingMetric(lambda images: images.flatten(1) @ matrix, size, name="colours", revision=str(seed))


def noise(count, size=16, seed=0):
    return torch.rand(count, 3, size, size, generator=seeded(seed))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return small_scenes(tmp_path_factory.mktemp("scenes"), (9, 6, 3), images=10)


@pytest.fixture
def tree(scenes):
    return scenes / "images" / "train"


def weights(run):
    return read_student(run).tensors


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def record(run):
    return json.loads((run / "run.json").read_text())


# The losses


def test_step_1_is_its_equation_whatever_the_parts_and_folds_once(monkeypatch):
    images, copies, target = noise(5), noise(5, seed=1), F.normalize(torch.randn(5, 5, generator=seeded(2)), dim=1)
    reference = Student(SMALL, seed=3)
    folding = reference.folded()
    expected = [(reference(x, folding) - target).square().mean().sqrt() for x in (images, copies)]
    (sum(expected) / 2).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in trained(reference)])
    for chunk_size in (1, 2, 5):
        student, folds = Student(SMALL, seed=3), []
        monkeypatch.setattr(
            student, "folded", lambda student=student, folds=folds: folds.append(1) or Student.folded(student)
        )
        optimizer = torch.optim.SGD(trained(student), lr=0.0)
        found = distil_step(student, optimizer, target, (images, copies), chunk_size)
        assert found == pytest.approx([value.item() for value in expected], rel=1e-5) and folds == [1]
        got = torch.cat([parameter.grad.flatten() for parameter in trained(student)])
        torch.testing.assert_close(got, gradient, rtol=1e-3, atol=1e-6)


def test_a_student_that_is_its_teacher_stands_still():
    student, images = Student(SMALL), noise(2)
    target = student(images, student.finish()).detach()
    before = student.raw_tensors()
    optimizer = torch.optim.SGD(trained(student), lr=1.0)
    with torch.no_grad():
        target = student(images, student.folded())
    assert distil_step(student, optimizer, target, (images, images), 2) == (0.0, 0.0)
    assert same(before, student.raw_tensors())


def test_step_2_is_the_sum_of_hinges_whatever_the_parts():
    triplets, label = noise(15).unflatten(0, (5, 3)), torch.tensor([0, 1, 1, 0, 1])
    reference = Student(SMALL, seed=3)
    unit = F.normalize(reference(triplets.flatten(0, 1), reference.folded()), dim=1).unflatten(0, (5, 3))
    left, right = (1 - (unit[:, 0] * unit[:, side]).sum(1) for side in (1, 2))
    expected = sum(torch.relu(0.5 - (left[i] - right[i]) * (1 if label[i] else -1)) for i in range(5))
    expected.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in trained(reference)])
    for chunk_size in (1, 6, 100):
        student = Student(SMALL, seed=3)
        found = tune_step(student, torch.optim.SGD(trained(student), lr=0.0), triplets, label, 0.5, chunk_size)
        assert found == pytest.approx(expected.item() / 5, rel=1e-5)
        got = torch.cat([parameter.grad.flatten() for parameter in trained(student)])
        torch.testing.assert_close(got, gradient, rtol=1e-3, atol=1e-5)


def test_gradients_go_through_the_rescaling():
    tiny = LipSimArchitecture(
        image_size=4, channels=4, depth=2, inner=2, linear_depth=2, linear_inner=3, embedding=3, pool=2
    )
    student, images = Student(tiny, seed=1).double(), noise(1, 4).double()
    names = ["base/1/0/kernel", "base/1/1/bias", "base/2/1/weight", "base/2/2/q"]
    direction = torch.randn(3, generator=seeded(5), dtype=torch.float64)

    def loss(*values):
        given = {f"student.raw.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(_Folding(student), given, (images,)) @ direction

    values = tuple(student.raw[name].detach().clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(loss, values, eps=1e-6, atol=1e-6)
    # The scaling is part of it: with the scale held fixed, the gradient of a kernel is another.
    [whole] = torch.autograd.grad(loss(*values).sum(), values[:1])
    held, leaf = dict(student.folded()), values[0].detach().clone().requires_grad_()
    scale = (held["kernels"][0] / student.raw[names[0]]).detach()
    held["kernels"] = torch.stack([scale * leaf, held["kernels"][1]])
    [partial] = torch.autograd.grad((student(images, held) @ direction).sum(), leaf)
    assert not torch.allclose(whole, partial, rtol=1e-2)


class _Folding(torch.nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, images):
        return self.student(images, self.student.folded())


def test_the_schedules_are_the_published_ones():
    config = DistilConfig(warmup_steps=4, learning_rate=0.01)
    rates = [distil_rate(config, step, 20) for step in range(20)]

    def published(place):  # CosineAnnealingWarmupRestarts, asked for step `place` after that step
        if place < 4:
            return 0.01 * place / 4
        return 0.01 * (1 + math.cos(math.pi * (place - 4) / 16)) / 2

    assert rates == pytest.approx([0.0, *(published(place) for place in range(19))])
    corners = [0.0, 0.01, 0.01 / 20, 0.0]
    for step in range(1, 20):
        line = torch.tensor(corners, dtype=torch.float64)
        places = [0, 8, 16, 20]
        index = max(i for i in range(4) if places[i] <= step - 1)
        share = (step - 1 - places[index]) / (places[index + 1] - places[index])
        assert TuneConfig().rate(step, 20) == pytest.approx(torch.lerp(line[index], line[index + 1], share).item())


# What is seen


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.37])
def test_colours_change_as_torchvision_changes_them(factor):
    images = noise(4)
    images[0] = 0.3  # no colour
    by = torch.full((4, 1, 1, 1), factor)
    for own, theirs in (
        (jitter.brightened, transforms.adjust_brightness),
        (jitter.contrasted, transforms.adjust_contrast),
        (jitter.saturated, transforms.adjust_saturation),
    ):
        torch.testing.assert_close(own(images, by), theirs(images, factor), rtol=0, atol=2e-4)  # its grey is 0.9999
    turn = (factor - 1) / 2
    torch.testing.assert_close(
        jitter.hue_turned(images, by - by + turn), transforms.adjust_hue(images, turn), rtol=0, atol=1e-5
    )


def test_copies_are_drawn_as_often_as_said_and_for_each_image_alone():
    images, config = noise(1, 4).expand(2000, 3, 4, 4), DistilConfig()
    keys = list(range(2000))
    copies = jitter.jittered(images, keys, 5, config)
    assert copies.min() >= 0 and copies.max() <= 1
    assert torch.equal(copies[7:9], jitter.jittered(images[7:9], [7, 8], 5, config))
    assert not torch.equal(copies[:9], jitter.jittered(images[:9], keys[:9], 6, config))
    plain = [(copies == one).flatten(1).all(1) for one in (images, images.flip(3))]
    colourless = (copies.amax(1) - copies.amin(1)).flatten(1).amax(1) < 1e-6
    expected = {"as it is": 0.5 * 0.2 * 0.8, "mirrored": 0.5 * 0.2 * 0.8, "grey": 0.2}
    shares = dict(zip(expected, (mask.double().mean().item() for mask in (*plain, colourless)), strict=True))
    for name, share in expected.items():
        assert shares[name] == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5), name
    turned = jitter.mirrored(images, keys, 5, config).double().mean().item()
    assert turned == pytest.approx(0.5, abs=0.05)
    off = DistilConfig(jitter=0.0, grey=0.0, flip=0.0)
    assert torch.equal(jitter.jittered(images[:3], keys[:3], 0, off), images[:3])


def test_the_teacher_says_the_same_once_for_all_as_in_every_step(tree):
    teacher = Teacher(colours())
    read = Squashed(8)
    stream = photographs([tree], read, batch_size=4, seed=0, stop=3)
    lesson = Lesson.given(teacher, stream, 10, flip=True)
    for batch in photographs([tree], read, batch_size=3, seed=9, stop=2):
        which = torch.arange(len(batch.keys)) % 2 == 0
        expected = teacher(jitter.turned(batch.images, which))
        torch.testing.assert_close(lesson(batch.keys, which), expected)
        assert expected.norm(dim=1).sub(1).abs().max() < 1e-6


def test_a_shortened_lesson_keeps_what_its_leading_directions_hold():
    spread = torch.randn(6, 3, generator=seeded(0)) @ torch.randn(3, 8, generator=seeded(1))  # in 3 of 8 dimensions
    lesson = Lesson(torch.cat([spread, torch.full((1, 8), math.nan)])[:, None])
    short = lesson.shortened(3).embeddings
    assert short.shape == (7, 1, 3) and bool(short[6].isnan().all())
    torch.testing.assert_close(short[:6, 0] @ short[:6, 0].t(), spread @ spread.t())
    lengths = torch.linalg.svdvals(spread)
    fewer = lesson.shortened(1).embeddings[:6, 0]
    assert fewer.square().sum().item() == pytest.approx(lengths[0].square().item(), rel=1e-5)
    with pytest.raises(ValueError, match="8 dimensions, and 9 were asked for"):
        lesson.shortened(9)


def test_a_longer_and_a_shortened_teacher_is_what_the_loss_compares_with(tree, tmp_path):
    one = dataclasses.replace(QUICK, steps=1, warmup_steps=0, batch_size=10, flip=0.0, jitter=0.0, grey=0.0)
    teacher = Teacher(colours())
    [batch] = photographs([tree], Squashed(8), batch_size=10, seed=0, stop=1)
    target = teacher(batch.images)
    _, directions = torch.linalg.eigh(target.double().t() @ target.double())
    shown = torch.stack([Squashed(16)(path) for path in sorted(tree.rglob("*.png"))])
    for name, changes in {"long": {"scale": 3.0}, "short": {"dimensions": 2, "scale": 3.0}}.items():
        config = dataclasses.replace(one, **changes)
        distil(colours(), [tree], tmp_path / name, config, quiet=True)
        wanted = 3 * (target @ directions[:, -2:].float() if config.dimensions else target)
        order = torch.tensor(batch.keys).argsort()
        student = Student(config.architecture(config.dimensions or 5), config.seed)
        error = (student(shown, student.folded()) - wanted[order]).square().mean().sqrt()
        [line] = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()][:1]
        assert line["original_rmse"] == pytest.approx(error.item(), rel=1e-5)
    assert load_metric(str(tmp_path / "short")).function.architecture.embedding == 2


def test_a_step_in_bfloat16_goes_where_that_in_float32_goes():
    images, copies, target = noise(5), noise(5, seed=1), F.normalize(torch.randn(5, 5, generator=seeded(2)), dim=1)
    triplets, label = noise(12, seed=3).unflatten(0, (4, 3)), torch.tensor([1, 0, 1, 1])
    steps = (
        lambda *held, **more: distil_step(*held, target, (images, copies), 5, **more),
        lambda *held, **more: tune_step(*held, triplets, label, 0.5, 12, **more),
    )
    for step in steps:
        found = []
        for bfloat16 in (False, True):
            student = Student(SMALL, seed=3)
            optimizer = torch.optim.SGD(trained(student), lr=0.0)
            loss = torch.tensor(step(student, optimizer, bfloat16=bfloat16)).mean().item()
            found.append((loss, torch.cat([parameter.grad.flatten() for parameter in trained(student)])))
        (exact, gradient), (rough, other) = found
        assert rough == pytest.approx(exact, rel=0.02) and rough != exact
        assert F.cosine_similarity(gradient, other, dim=0) > 0.99 and other.dtype == torch.float32


def test_several_trees_are_one(tree, tmp_path):
    for place, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9), (80 * place, 0, 0)).save(tmp_path / name / "one.png")
    trees = [tmp_path / name for name in "abc"]
    stream = photographs(trees, Squashed(8), batch_size=3, seed=0, stop=1)
    [batch] = stream
    reds = sorted(round(255 * image[0, 0, 0].item()) for image in batch.images)
    assert reds == [0, 80, 160] and stream.count == 3
    before = stream.contents()
    Image.new("RGB", (9, 9), "white").save(tmp_path / "b" / "one.png")
    assert before != photographs(trees, Squashed(8), batch_size=3, seed=0, stop=1).contents()


# Runs


@pytest.fixture(scope="module")
def taught(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "taught"
    distil(colours(), [scenes / "images" / "train"], out, QUICK, triplets=scenes / "nights", quiet=True)
    return out


def test_step_1_learns_and_leaves_a_metric_that_is_loaded_by_its_path(taught, scenes):
    lines = [json.loads(line) for line in (taught / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == QUICK.total_steps(10) == 7 and losses[-1] < losses[0]
    made = record(taught)
    assert made["lipschitz"]["largest"] <= 1 + 1e-5 and made["recipe"]["steps"] == 7
    assert [found["step"] for found in made["validations"]] == [3, 6, 7]
    assert made["teacher"]["name"] == "colours" and made["data"]["images"] == 10
    for name in (taught, taught / "lipsim.safetensors", taught / "student.safetensors"):
        metric = load_metric(str(name))
        assert isinstance(metric, LipSimMetric) and metric.name == "taught"
        assert metric.image_size == 16 and metric.function.architecture.embedding == 5
        x = noise(2)
        expected = LipSim(SMALL, folded(SMALL, weights(taught)))(x)
        torch.testing.assert_close(metric.function(x), expected)
    data = TwoAfcData("nights", "val", read_nights(scenes / "nights", "val"))
    balls = [Certificate(LpBall("l2", eps)) for eps in (36 / 255 * 16 / 224, 0.1)]
    judged = evaluate_two_afc(load_metric(str(taught)), data, balls, quiet=True)
    last = made["validations"][-1]
    assert judged[0]["clean"]["accuracy"] == pytest.approx(last["val_accuracy"], abs=1e-3)
    assert judged[0]["robust"]["accuracy"] == pytest.approx(last["val_certified"], abs=1e-3)
    assert sum(certified_radii(judged[1])) / 6 == pytest.approx(last["val_radius"], rel=1e-3)
    card = (taught / "README.md").read_text()
    assert card.startswith("# taught\n") and "`colours`" in card and "| depth | 2 |" in card


def interrupted(monkeypatch, module, step, run):
    """Run until SIGTERM comes in the given call of a module's step."""
    real, calls = getattr(module, step), []

    def terminated(*arguments, **more):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, terminated)
        with pytest.raises(Interrupted, match="the state of step 3 is in"):
            run()


@pytest.mark.parametrize("varied", [{}, {"crop_scale": 0.5, "mixup": 0.5}], ids=["once", "each step"])
def test_step_1_ends_with_the_same_weights_with_and_without_a_break(tree, tmp_path, monkeypatch, varied):
    from rclip_metric.train.finetuning.lipsim import distil as package  # the function
    from rclip_metric.train.finetuning.lipsim import run as runs

    assert package is distil
    module = sys.modules[runs.Distillation.__module__]
    config = dataclasses.replace(QUICK, save_every=100, **varied)

    def go(name):
        return distil(colours(), [tree], tmp_path / name, config, name="same", quiet=True).tensors

    whole = go("whole")
    interrupted(monkeypatch, module, "distil_step", lambda: go("cut"))
    (tmp_path / "cut" / "teacher.safetensors").unlink(missing_ok=bool(varied))
    assert same(go("cut"), whole)
    one, other = (load_metric(str(tmp_path / name)) for name in ("whole", "cut"))
    assert one.describe() == other.describe() and (one.revision or "").startswith("tensors:")
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    values = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert values[0] == values[1] and len(values[0]) == 7
    before = (tmp_path / "cut" / "run.json").read_text()
    assert same(go("cut"), whole) and (tmp_path / "cut" / "run.json").read_text() == before  # nothing is left to do


def test_step_2_ends_with_the_same_weights_with_and_without_a_break(taught, scenes, tmp_path, monkeypatch):
    from rclip_metric.train.finetuning.lipsim import run as runs

    module = sys.modules[runs.MarginTuning.__module__]

    def go(name):
        return tune(taught, scenes / "nights", tmp_path / name, TUNED, name="same", quiet=True).tensors

    whole = go("whole")
    assert not same(whole, weights(taught))
    interrupted(monkeypatch, module, "tune_step", lambda: go("cut"))
    assert same(go("cut"), whole)
    made = record(tmp_path / "cut")
    assert [found["step"] for found in made["validations"]] == [0, 3, 6]
    assert made["validations"][0] | {"step": 7} == pytest.approx(record(taught)["validations"][-1], rel=1e-4)
    assert made["validations"] == record(tmp_path / "whole")["validations"]
    assert made["training"]["method"].endswith("then hinge tuning with margin 0.5")
    assert made["training"]["base"] == "colours" and made["data"]["triplets"] == 9


def test_more_margin_is_more_proof(taught, scenes, tmp_path):
    config = dataclasses.replace(TUNED, epochs=6, learning_rate=0.02)
    tune(taught, scenes / "nights", tmp_path / "tuned", config, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_run_begins_with_anothers_weights(taught, tree, tmp_path):
    config = dataclasses.replace(
        QUICK, steps=2, epochs=1, warmup_steps=1
    )  # the published first two steps change nothing
    more = distil(colours(), [tree], tmp_path / "more", config, start_from=taught, quiet=True)
    assert same(more.tensors, weights(taught))
    with pytest.raises(ValueError, match="another architecture"):
        distil(colours(), [tree], tmp_path / "x", dataclasses.replace(config, depth=3), start_from=taught, quiet=True)
    with pytest.raises(ValueError, match="another setting of start_from"):
        distil(colours(), [tree], tmp_path / "more", config, quiet=True)


def test_what_cannot_be_read_is_left_out_and_named(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    broken = sorted((tmp_path / "tree").rglob("*.png"))[3]
    broken.write_bytes(b"nothing")
    config = dataclasses.replace(QUICK, max_unreadable=0.2)
    distil(colours(), [tmp_path / "tree"], tmp_path / "run", config, quiet=True)
    made = record(tmp_path / "run")["data"]
    assert made["images"] == 10 and made["unreadable"] == 2 and made["read"] == 7 * 4 - 2 * 2 - 2 + 0
    assert str(broken) in (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(ValueError, match=r"could not be read and at most 5 % may be.*--max-unreadable"):
        distil(colours(), [tmp_path / "tree"], tmp_path / "strict", QUICK, quiet=True)


# The proof


def test_the_constant_of_a_linear_map_is_its_largest_singular_value():
    generator = seeded(3)
    left, right = (torch.linalg.qr(torch.randn(12, 6, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    values = torch.tensor([2.5, 1.0, 0.7, 0.5, 0.2, 0.1], dtype=torch.float64)
    matrix = left @ torch.diag(values) @ right.T
    images = torch.rand(3, 1, 3, 4, generator=generator, dtype=torch.float64)
    found = lipschitz_constant(lambda x: x.flatten(1) @ matrix.T, images, iterations=30)
    torch.testing.assert_close(found, torch.full((3,), 2.5, dtype=torch.float64))
    # Where images differ, so may the constant: that of x^2 is twice the largest value.
    squares = lipschitz_constant(lambda x: x.flatten(1).square(), images, iterations=300)
    torch.testing.assert_close(squares, 2 * images.flatten(1).amax(1), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="got 0 images"):
        lipschitz_constant(lambda x: x, images[:0])


def test_the_constant_is_that_of_the_jacobian_and_notices_a_network_that_stretches():
    tensors, images = Student(SMALL, seed=1).finish(), noise(2)
    x = images[:1].clone().requires_grad_()
    jacobian = torch.stack([torch.autograd.grad(LipSim(SMALL, tensors)(x)[0, i], x)[0].flatten() for i in range(5)])
    expected = torch.linalg.matrix_norm(jacobian.double(), 2).item()
    found = lipsim_constant(SMALL, tensors, images, iterations=100)
    assert found[0].item() == pytest.approx(expected, rel=1e-4) and found.max() <= 1 + 1e-5
    wrong = {name: tensor * (2.0 if name == "weights" else 1.0) for name, tensor in tensors.items()}
    assert lipsim_constant(SMALL, wrong, images).max() > 1.1


def test_rounded_weights_stay_within_their_bound():
    for architecture in (SMALL, LipSimArchitecture(16, 4, 40, 2, 1, 4, 4)):
        exact = random_tensors(architecture, 2)
        wide = {name: tensor.double() for name, tensor in exact.items()}
        student = Student(architecture).double()
        student.load_raw(wide)
        assert lipsim_constant(architecture, student.folded(), noise(1), 3).item() <= 1 + 1e-12
        assert lipsim_constant(architecture, folded(architecture, exact), noise(1)).item() <= rounded_constant(
            architecture
        )


# Files and names


def test_a_packed_student_is_1_lipschitz_after_rounding(taught, tmp_path, run, monkeypatch):
    code, out, _ = run("train", "pack", taught, "--out", tmp_path / "models" / "lipsim-lite.safetensors")
    assert code == 0 and "MB" in out
    path = tmp_path / "models" / "lipsim-lite.safetensors"
    assert path.stat().st_size < 0.75 * (taught / "student.safetensors").stat().st_size
    halves = {name: tensor.half().float() for name, tensor in weights(taught).items()}
    metric = load_metric(str(path))
    assert isinstance(metric, LipSimMetric)
    expected = folded(SMALL, halves)
    assert same(dict(metric.function.named_buffers()), expected)
    assert lipsim_constant(SMALL, expected, noise(2)).max() <= 1 + 1e-5
    # In the package it is the baseline of that name.
    from rclip_metric.train.metrics.lipsim import model

    monkeypatch.setattr(model, "PACKAGED", path.parent)
    shipped = load_metric("lipsim-lite")
    assert isinstance(shipped, LipSimMetric) and shipped.name == "lipsim-lite"
    assert shipped.facts.label == BASELINES["lipsim-lite"].label and same(
        dict(shipped.function.named_buffers()), expected
    )
    assert load_metric("lipsim-lite@random").name == "lipsim-lite@random"
    path.unlink()
    with pytest.raises(UnknownModelError, match="lipsim-lite is not in this installation"):
        load_metric("lipsim-lite")


def test_damaged_files_are_told(taught, tmp_path):
    with pytest.raises(ValueError, match="is no finished run of `rclip-metric train lipsim`"):
        read_student(tmp_path)
    with pytest.raises(CheckpointError, match="holds no student to train on: its weights are folded"):
        read_student(taught / "lipsim.safetensors")
    data = bytearray((taught / "lipsim.safetensors").read_bytes())
    data[-3] ^= 255
    (tmp_path / "lipsim.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError):
        load_metric(str(tmp_path))


# Bad input


def test_a_student_deeper_than_memory_is_refused_before_anything_is_allocated(tree, tmp_path):
    deep = dataclasses.replace(QUICK, depth=10**9)
    with pytest.raises(ValueError, match=r"a step of this student takes .* GB .* are free: lower depth, channels"):
        distil(colours(), [tree], tmp_path / "deep", deep, quiet=True)
    free = memory.free_bytes(torch.device("cpu"))
    assert free is not None
    architecture = LipSimArchitecture(224)
    wide = (free - memory.weight_bytes(architecture)) // memory.image_bytes(architecture) + 100
    with pytest.raises(ValueError, match="lower chunk_size"):
        memory.check_memory(architecture, wide, torch.device("cpu"))


def test_the_estimate_is_what_autograd_keeps():
    architecture = LipSimArchitecture(32, 24, 6, 12, 3, 16, 20, patch=2, pool=4)
    student, images = Student(architecture), noise(4, 32)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in student.folded().items()}
    own = {leaf.untyped_storage().data_ptr() for leaf in leaves.values()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = student(images, leaves)
    assert output.requires_grad  # and so its graph is still there
    measured = sum(size for place, size in kept.items() if place not in own)
    estimate = 4 * memory.image_bytes(architecture)
    assert measured <= estimate <= 2.5 * measured


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"channels": 0}, "channels must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"betas": (0.5, 1.0)}, "betas must be two numbers"),
        ({"hue": 0.6}, "hue must be in"),
        ({"grey": math.nan}, "grey must be in"),
        ({"crop_scale": 0.0}, "crop_scale must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        DistilConfig(**values)


def test_settings_of_step_2_and_lengths_that_cannot_be_meant_are_refused():
    for values, sentence in (
        ({"margin": 0.0}, "margin must be above 0"),
        ({"margin": 2.5}, "margin must be above 0 and at most 2"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"max_unreadable": 2.0}, "max_unreadable must be a share"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TuneConfig(**values)
    with pytest.raises(ValueError, match="a warm-up of 2000 steps leaves nothing of the 1000"):
        DistilConfig(steps=1000).total_steps(10)
    with pytest.raises(ValueError, match="shards are not counted beforehand"):
        DistilConfig().total_steps(None)
    with pytest.raises(ValueError, match="dimensions, and 1000000 are to be kept"):
        DistilConfig(**SIZES).architecture(10**6)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(tree, tmp_path):
    config = dataclasses.replace(QUICK, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        distil(colours(), [tree], tmp_path / "run", config, quiet=True)
    assert not (tmp_path / "run" / "lipsim.safetensors").exists()


LONG = ["--steps", "9", "--warmup-steps", "1", "--batch-size", "4"]
WORDS = [word for name, value in {**SIZES, "channels": 32}.items() for word in (f"--{name.replace('_', '-')}", value)]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--teacher", "l2", "--images", "{tree}"], "l2 compares pairs of images and embeds none"),
        (["--images", "{tree}"], "there is no teacher to learn from"),
        (["--teacher", "tiny-clean"], "a --teacher teaches with images"),
        (["--triplets", "{nights}"], "step 2 alone needs a student"),
        ([], "there is nothing to train on"),
        (["--no-tune", "--images", "{tree}"], "--no-tune goes with --triplets"),
        (["--teacher", "tiny-clean", "--images", "{out}"], "no image files"),
        (["--teacher", "tiny-clean", "--images", "{tree}", "--image-size", "15"], "a multiple of 8 pixels wide"),
        (["--teacher", "tiny-clean", "--images", "{tree}", "--name", "lipsim-0.5"], "choose another with --name"),
        (["--recipe", "tiny"], "the recipe tiny is for `train fare`"),
        (["--margin", "-1", "--images", "{tree}"], "margin must be above 0"),
        (
            ["--teacher", "tiny-clean", "--images", "{tree}", "--dimensions", "2", "--crop-scale", "0.5", *LONG],
            "leading directions of a teacher's embeddings are those of all images",
        ),
        (["--start-from", "{tree}", "--triplets", "{nights}"], "is no finished run of `rclip-metric train lipsim`"),
    ],
)
def test_bad_commands_are_one_sentence(run, scenes, tmp_path, words, sentence):
    (tmp_path / "run").mkdir()
    places = {"tree": scenes / "images" / "train", "nights": scenes / "nights", "out": tmp_path / "run"}
    code, _, error = run("train", "lipsim", *WORDS, "--out", tmp_path / "run", *(w.format(**places) for w in words))
    assert code == 2 and sentence in error and error.count("\n") == 1


def test_the_command_takes_both_steps_and_a_run_of_one_is_not_written_over(scenes, tmp_path):
    words = ["--images", scenes / "images" / "train", "--teacher", "tiny-clean", *WORDS, "--device", "cpu", "--quiet"]
    brief = ["--steps", 3, "--warmup-steps", 1, "--batch-size", 4]
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({"depth": 1, "tune": {"batch_size": 9, "margin": 0.2}}))
    more = [*brief, "--triplets", scenes / "nights", "--config", config, "--tune-epochs", 1, "--seed", 4]
    run_command(command, "lipsim", *words, *more, "--out", tmp_path / "both")
    made, first = record(tmp_path / "both"), record(tmp_path / "both" / "distilled")
    assert made["recipe"]["margin"] == 0.2 and made["recipe"]["batch_size"] == 9 and made["seed"] == first["seed"] == 4
    assert first["recipe"]["depth"] == 2 and made["name"] == first["name"] == "both"  # an option goes before a file
    run_command(
        command, "lipsim", *words, *brief, "--triplets", scenes / "nights", "--no-tune", "--out", tmp_path / "one"
    )
    assert record(tmp_path / "one")["validations"] and not (tmp_path / "one" / "distilled").exists()
    with pytest.raises(ValueError, match="is a finished run of one step"):
        run_command(command, "lipsim", *words, *brief, "--triplets", scenes / "nights", "--out", tmp_path / "one")
    tuned = ["--start-from", tmp_path / "one", "--triplets", scenes / "nights", "--margin", 0.5, "--device", "cpu"]
    run_command(command, "lipsim", *tuned, "--quiet", "--out", tmp_path / "two")
    assert record(tmp_path / "two")["start_from"]["name"] == "one"
