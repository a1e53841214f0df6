"""What torchmetrics asks of its own metrics: the checks of its MetricTester, which its wheel does not contain.

The tester is tests/unittests/_helpers/testers.py of torchmetrics (03d52bd). Two of its checks are left out: scripting,
which torchmetrics leaves out for metrics with a network of their own, and a numerical gradient in float64, which a
distance in float32 does not have. That grey images are errors is not asked here: they are accepted as colour images.
"""

import os
import pickle
import sys
from copy import deepcopy
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from rclip_metric import Encoder, RobustPerceptualDistance
from rclip_metric.images import Preprocessing
from rclip_metric.torchmetric import RobustPerceptualDistanceMetric

from support.encoders import VIT, small_encoder
from support.forked import ranks
from support.images import noise

SIDE, BATCHES, SIZE = 32, 4, 3
Reduction = Literal["mean", "sum", "none"]
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "none")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder(VIT, Preprocessing("crop", SIDE, SIDE), spread=True)


def batches() -> tuple[Tensor, Tensor]:
    """(BATCHES, SIZE, 3, SIDE, SIDE) each."""
    x, y = noise(2, BATCHES * SIZE, 3, SIDE, SIDE, seed=7).unflatten(1, (BATCHES, SIZE))
    return x, y


def reference(encoder: Encoder, x: Tensor, y: Tensor, reduction: Reduction) -> Tensor:
    """The distance without torchmetrics, of batches (B, N, ...) together."""
    distances = RobustPerceptualDistance(encoder)(x.flatten(0, -4), y.flatten(0, -4))
    return {"mean": distances.mean(), "sum": distances.sum(), "none": distances}[reduction]


def close(found: Tensor, expected: Tensor) -> None:
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def class_test(encoder: Encoder, reduction: Reduction, rank: int = 0, world: int = 1, on_step: bool = False) -> None:
    """The class test, in one process of `world`: batch values, and what is accumulated over batches and processes."""
    metric = RobustPerceptualDistanceMetric(encoder, reduction=reduction, dist_sync_on_step=on_step)
    for name in ("is_differentiable", "higher_is_better"):
        with pytest.raises(RuntimeError):
            setattr(metric, name, not getattr(metric, name))
    clone = metric.clone()
    assert clone is not metric and type(clone) is type(metric)
    metric = pickle.loads(pickle.dumps(metric.to("cpu")))
    twin = deepcopy(metric)
    x, y = batches()
    for batch in range(rank, BATCHES, world):
        found = metric(x[batch], y[batch])
        if world == 1 and batch == 0:  # forward is update and compute
            twin.update(x[0], y[0])
            close(found, twin.compute())
        seen = range(batch - rank, batch - rank + world) if on_step else [batch]
        close(found, reference(encoder, x[list(seen)], y[list(seen)], reduction))
    assert isinstance(hash(metric), int) and metric.state_dict() == {}
    # One process after the other, each with every world-th batch.
    order = [batch for first in range(world) for batch in range(first, BATCHES, world)]
    close(metric.compute(), reference(encoder, x[order], y[order], reduction))
    assert metric.compute() is metric.compute()  # kept until the next update
    metric.reset()
    assert metric.update_count == 0
    metric.update(x[0], y[0])
    if world == 1:
        close(metric.compute(), reference(encoder, x[0], y[0], reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_process(encoder, reduction):
    class_test(encoder, reduction)


def test_two_processes_with_and_without_synchronising_each_step(encoder, tmp_path, forks):
    (tmp_path / "encoder.pickle").write_bytes(pickle.dumps(encoder))
    forks.start([tmp_path], script=__file__, environments=ranks(2), imports=["rclip_metric.torchmetric"])
    assert forks.wait() == [0, 0], forks.errors


def work(rank: int, folder: Path) -> None:
    """One process of the group: this file run as a script."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    encoder = pickle.loads((folder / "encoder.pickle").read_bytes())
    for reduction in REDUCTIONS:
        for on_step in (False, True):
            class_test(encoder, reduction, rank, 2, on_step)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("move", ["set_dtype", "to"])
def test_images_and_encoder_of_another_precision(encoder, dtype, move):
    x, y = batches()
    metric = RobustPerceptualDistanceMetric(deepcopy(encoder))
    metric = metric.set_dtype(dtype) if move == "set_dtype" else metric.to(dtype)
    found = metric(x[0].to(dtype), y[0].to(dtype))
    exact = reference(encoder, x[0], y[0], "mean")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.03, rtol=0.05)


def test_its_value_has_a_gradient_as_is_differentiable_says(encoder):
    x, y = batches()
    metric = RobustPerceptualDistanceMetric(encoder)
    found = metric(x[0].requires_grad_(), y[0])
    assert metric.is_differentiable == found.requires_grad


def test_states_do_not_grow_beyond_what_the_reduction_needs(encoder):
    x, y = batches()
    kept: dict[Reduction, set[str]] = {"mean": {"total", "rounding", "count"}, "none": {"distances"}}
    for reduction, states in kept.items():
        metric = RobustPerceptualDistanceMetric(encoder, reduction=reduction)
        for batch in range(BATCHES):
            metric.update(x[batch], y[batch])
        assert metric.metric_state.keys() == states and metric.update_called and metric.update_count == BATCHES
    assert torch.cat(metric.metric_state["distances"]).shape == (BATCHES * SIZE,)


def test_grey_images_count_as_colour_images(encoder):
    x, y = (one[0].mean(1, keepdim=True) for one in batches())
    grey = RobustPerceptualDistanceMetric(encoder)(x, y)
    close(grey, reference(encoder, x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1), "mean"))


if __name__ == "__main__":
    work(int(os.environ["RANK"]), Path(sys.argv[1]))
