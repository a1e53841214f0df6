"""The torchmetrics wrapper: one result, however the data came in."""

import os
import pickle
import subprocess
import sys
import warnings
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

SIDE = 32


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder(VIT, Preprocessing("crop", SIDE, SIDE), spread=True)


def pairs(count: int) -> tuple[Tensor, Tensor]:
    x, y = noise(2, count, 3, SIDE, SIDE, seed=1)
    return x, y


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("sizes", [[7], [3, 4], [1] * 7, [6, 1]])
def test_batches_add_up_to_the_whole(encoder, reduction, sizes):
    x, y = pairs(7)
    distances = RobustPerceptualDistance(encoder)(x, y)
    metric = RobustPerceptualDistanceMetric(encoder, reduction=reduction)
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        metric.update(a, b)
    torch.testing.assert_close(metric.compute(), expected_of(distances, reduction), atol=1e-6, rtol=1e-5)
    metric.reset()
    metric.update(x[:2], y[:2])
    torch.testing.assert_close(metric.compute().sum(), expected_of(distances[:2], reduction).sum())


def expected_of(distances: Tensor, reduction: str) -> Tensor:
    return {"mean": distances.mean(), "sum": distances.sum(), "none": distances}[reduction]


def test_forward_returns_the_batch_and_accumulates(encoder):
    x, y = pairs(6)
    distances = RobustPerceptualDistance(encoder)(x, y)
    metric = RobustPerceptualDistanceMetric(encoder)
    torch.testing.assert_close(metric(x[:2], y[:2]), distances[:2].mean())
    torch.testing.assert_close(metric(x[2:], y[2:]), distances[2:].mean())
    torch.testing.assert_close(metric.compute(), distances.mean())


def test_it_is_differentiable_as_it_says(encoder):
    x, y = pairs(2)
    metric = RobustPerceptualDistanceMetric(encoder)
    assert metric.is_differentiable is True and metric.higher_is_better is False
    x.requires_grad_()
    metric(x, y).backward()
    assert x.grad is not None and x.grad.abs().max() > 0
    assert not list(metric.parameters()) and not metric.state_dict()


def test_a_long_sum_keeps_its_small_terms(encoder):
    """Beyond a million, plain float32 takes 0.1 for 0.125."""
    metric = RobustPerceptualDistanceMetric(encoder, reduction="mean")
    steps, value = 20000, torch.full((1,), 0.1)
    metric.distance.forward = lambda x, y: value
    metric.total = torch.tensor(1e6)
    for _ in range(steps):
        metric.update(value, value)
    assert (metric.total.double() + metric.rounding.double()).item() == pytest.approx(1e6 + 0.1 * steps, abs=0.01)


def test_states_stay_float32_when_the_encoder_does_not(encoder):
    x, y = pairs(3)
    metric = RobustPerceptualDistanceMetric(encoder, reduction="sum")
    metric.update(x, y)
    before = metric.compute()
    metric.to(torch.bfloat16)
    assert {parameter.dtype for parameter in metric.distance.encoder.parameters()} == {torch.bfloat16}
    metric.update(x[:1], x[:1])
    assert torch.equal(metric.compute(), before) and metric.compute().dtype == torch.float32


def test_a_ready_metric_is_used_as_it_is(encoder):
    x, y = pairs(2)
    squared = RobustPerceptualDistance(encoder, squared=True)
    metric = RobustPerceptualDistanceMetric(squared, dist_sync_on_step=False)
    metric.update(x, y)
    torch.testing.assert_close(metric.compute(), squared(x, y).mean())
    with pytest.raises(ValueError, match="resize"):
        RobustPerceptualDistanceMetric(squared, resize="squash")
    with pytest.raises(ValueError, match="reduction"):
        RobustPerceptualDistanceMetric(squared, reduction="median")  # type: ignore[arg-type]


def test_no_pairs_have_no_distances(encoder):
    for reduction, shape in [("none", (0,)), ("sum", ())]:
        metric = RobustPerceptualDistanceMetric(encoder, reduction=reduction)  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match="before the ``update``"):
            result = metric.compute()
        assert result.shape == shape and result.sum() == 0


SHARDS = {"uneven": [(0, 4), (4, 7)], "one empty": [(0, 0), (0, 7)]}
REDUCTIONS: list[Literal["mean", "sum", "none"]] = ["mean", "sum", "none"]


def work(rank: int, folder: Path) -> None:
    """One process of the group, over its shard of each kind: this file run as a script."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    encoder = pickle.loads((folder / "encoder.pickle").read_bytes())
    x, y = pairs(7)
    found = {}
    for name, shards in SHARDS.items():
        start, end = shards[rank]
        for reduction in REDUCTIONS:
            metric = RobustPerceptualDistanceMetric(encoder, reduction=reduction)
            for i in range(start, end, 2):
                metric.update(x[i : min(i + 2, end)], y[i : min(i + 2, end)])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # an empty shard has had no update, as intended
                found[f"{name}, {reduction}"] = metric.compute()
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(encoder, tmp_path, forks):
    x, y = pairs(7)
    distances = RobustPerceptualDistance(encoder)(x, y)
    (tmp_path / "encoder.pickle").write_bytes(pickle.dumps(encoder))
    forks.start([tmp_path], script=__file__, environments=ranks(2), imports=["rclip_metric.torchmetric"])
    assert forks.wait() == [0, 0], forks.errors
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(found) == len(SHARDS) * len(REDUCTIONS)
        for case, result in found.items():
            expected = expected_of(distances, case.split(", ")[1])
            torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)


def test_without_torchmetrics_the_error_names_the_extra(tmp_path: Path):
    code = "import sys; sys.modules['torchmetrics'] = None; import rclip_metric.torchmetric"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and 'pip install "rclip-metric[torchmetrics]"' in result.stderr


if __name__ == "__main__":
    work(int(os.environ["RANK"]), Path(sys.argv[1]))
