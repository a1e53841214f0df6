"""The same numbers on a GPU. Run with a CUDA device: pytest -m cuda."""

import pytest
import torch

from rclip_metric import RobustPerceptualDistance
from rclip_metric.difference_map import METHODS
from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.smoothing import Smoothing, smooth
from rclip_metric.train.finetuning.adversarial import AdversarialStep, FinetuneConfig
from rclip_metric.train.finetuning.lipsim.step import distil_step
from rclip_metric.train.metrics.lipsim import LipSimArchitecture, Student
from rclip_metric.train.runs.distributed import Team
from rclip_metric.train.runs.precision import full_float32
from rclip_metric.train.runs.seeds import seeded
from rclip_metric.weights import load_encoder

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture
def images():
    return torch.rand(2, 5, 3, 80, 70, generator=seeded(1))


def test_distances_are_those_of_the_cpu(images):
    metric = RobustPerceptualDistance("tiny")
    expected = metric(*images)
    metric = metric.to("cuda")
    torch.testing.assert_close(metric(*images.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    same = images[0].cuda()
    assert (metric(same, same) == 0).all()


def test_difference_maps_and_masks_are_those_of_the_cpu(images):
    metric = RobustPerceptualDistance("tiny", squared=True)
    mask = torch.zeros(1, 1, 80, 70)
    mask[..., 20:60, 10:50] = 1
    expected = {method: metric.difference_map(*images, method=method, steps=4) for method in METHODS}
    masked = metric(*images, mask=mask)
    metric = metric.to("cuda")
    torch.testing.assert_close(metric(*images.cuda(), mask=mask).cpu(), masked, rtol=1e-3, atol=1e-3)
    for method, wanted in expected.items():
        found = metric.difference_map(*images.cuda(), method=method, steps=4).cpu()
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2 * wanted.max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_finite_at_zero_distance_under_autocast(images, dtype):
    metric = RobustPerceptualDistance("tiny").to("cuda")
    x = images[0].cuda().requires_grad_()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        distance = metric(x, x.detach())
    distance.sum().backward()
    assert distance.dtype == torch.float32 and x.grad is not None and x.grad.isfinite().all()


def test_an_attack_starts_where_it_does_on_the_cpu_and_stays_in_the_ball(images):
    metric = RobustPerceptualDistance("tiny")
    x = metric.encoder.preprocessing.crop
    small = images[0, :, :, :x, :x].contiguous()
    ball = LpBall("l2", 0.5)
    seeds = list(range(len(small)))
    torch.testing.assert_close(ball.start(small.cuda(), seeds).cpu(), ball.start(small, seeds))
    metric = metric.to("cuda")
    target = metric.embed(small.cuda())
    found = apgd(
        lambda points, alive: metric.distance_to(target[alive], points), small.cuda(), ball, 20,
        start=ball.start(small.cuda(), seeds),
    )  # fmt: skip
    assert ball.violation(found.images, small.cuda()) < 1e-5 and (found.loss > 0.01).all()


@pytest.mark.parametrize("loss", ["fare", "sim-clip", "lore"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_training_step_is_that_of_the_cpu(images, loss, bfloat16):
    """From the clean image (eps 0, so that no random start differs) to within float32's or bfloat16's rounding."""
    config = FinetuneConfig(loss=loss, eps=0.0, inner_steps=1, learning_rate=1e-3)
    found = []
    for device, half in (("cpu", False), ("cuda", bfloat16)):
        original = load_encoder("tiny-clean").to(device)
        encoder = load_encoder("tiny").to(device)
        step = AdversarialStep(
            encoder, original, torch.optim.AdamW(encoder.parameters(), lr=1e-3), config, bfloat16=half,
            team=Team(device=torch.device(device)),
        )  # fmt: skip
        small = images[0, :, :, :64, :64].to(device)
        found.append([step(small, range(5), None, number, measure=True) for number in range(3)])
    tolerance = 0.05 if bfloat16 else 2e-3
    for here, there in zip(*found, strict=True):
        assert there.loss == pytest.approx(here.loss, rel=tolerance, abs=1e-2)
        assert there.adversarial_cosine == pytest.approx(here.adversarial_cosine, abs=tolerance)
    assert all(p.dtype == torch.float32 for p in encoder.parameters())


def test_draws_of_a_smoothing_are_those_of_the_cpu():
    smoothing = Smoothing(LpBall("l2", 0.1), sigma=0.25, n0=10, n=200)
    grey = torch.tensor([0.8, 0.5, 0.3]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    found = [
        smooth(lambda points, numbers: points[:, 0, 0, 0].cpu() - 0.5, grey.to(device), smoothing, 0, list("abc"), 64)
        for device in ("cpu", "cuda")
    ]
    assert found[0].radius.tolist() == found[1].radius.tolist() and found[0].radius[0] > 0


def test_a_step_of_a_provable_student_is_that_of_the_cpu():
    small = LipSimArchitecture(16, channels=14, depth=2, inner=3, linear_depth=1, linear_inner=6, embedding=5)
    shown = torch.rand(4, 3, 16, 16, generator=seeded(0))
    target = torch.randn(4, 5, generator=seeded(1))
    found = []
    for device in ("cpu", "cuda"):
        student = Student(small, seed=3).to(device)
        optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.0)
        with full_float32():
            losses = distil_step(student, optimizer, target.to(device), (shown.to(device),) * 2, 4)
        gradients = [p.grad.flatten().cpu() for p in student.parameters() if p.grad is not None]
        found.append((losses, torch.cat(gradients)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-5)
