"""The benchmark's contestants do the same: the published step and ours move the weights alike, momentum and all."""

import argparse
import copy
from pathlib import Path

import pytest
import torch

from rclip_metric.encoder import ConvNeXtArchitecture, Encoder
from rclip_metric.train.finetuning.adversarial import AdversarialStep, FinetuneConfig
from rclip_metric.train.models.clip import TINY_PREPROCESSING
from rclip_metric.train.runs.seeds import seeded

from support.programs import load_example

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmark_training.py"
SMALL = ConvNeXtArchitecture(image_size=64, depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), projection=16)
CONFIG = FinetuneConfig(inner_steps=4, batch_size=6, drop_path=0.0)


@pytest.fixture(scope="module")
def benchmark():
    return load_example("benchmark_training")


def encoders():
    torch.manual_seed(0)
    original = Encoder(SMALL, TINY_PREPROCESSING)
    encoder = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.02)
    return encoder, original


def images():
    return torch.rand(6, 3, 64, 64, generator=seeded(1))


def test_the_published_step_and_ours_agree(benchmark):
    found = []
    for kind in ("published", "ours"):
        encoder, original = encoders()
        optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-4)
        if kind == "published":
            step = benchmark.PublishedStep(encoder, original, optimizer, CONFIG)
            losses = [step(images(), range(6), number) for number in range(3)]
        else:
            ours = AdversarialStep(encoder, original, optimizer, CONFIG)
            losses = [ours(images(), range(6), None, number).loss for number in range(3)]
        found.append((losses, encoder))
    # Where a gradient is nearly zero, rounding decides its sign: the attacked images agree but for such pixels.
    assert found[0][0] == pytest.approx(found[1][0], rel=2e-2)
    start = torch.cat([p.detach().flatten() for p in encoders()[0].parameters()])
    moved = [torch.cat([p.detach().flatten() for p in encoder.parameters()]) - start for _, encoder in found]
    assert torch.cosine_similarity(*moved, dim=0) > 0.999 and moved[0].norm() > 1e-3


def test_the_rounded_step_has_bfloat16s_numbers_and_float32s_weights(benchmark):
    encoder, original = encoders()
    step = benchmark.RoundedStep(encoder, original, torch.optim.SGD(encoder.parameters(), lr=1e-4), CONFIG)
    for weight in step.attacked.parameters():
        assert torch.equal(weight, weight.bfloat16().float())
    embedding = step.attacked(images())
    assert torch.equal(embedding, embedding.bfloat16().float()) and embedding.dtype == torch.float32
    exact, rounded = original.tower(images()), step.attacked.tower(images())
    assert not torch.equal(exact, rounded)
    step(images(), range(6), None, 0)
    weight = encoder.tower.projection.weight
    assert not torch.equal(weight, weight.bfloat16().float())
    torch.testing.assert_close(step.attacked.tower.projection.weight, weight.bfloat16().float())


def test_curves_are_compared_by_the_distance_of_their_means_and_the_spread_of_the_seeds(benchmark):
    def run(kind, seed, loss):
        return {"kind": kind, "seed": seed, "losses": [loss] * 20, "robust": 50.0 + seed, "clean": 90.0}

    runs = [run("published", 0, 1.0), run("published", 1, 4.0), run("fast", 0, 2.0), run("fast", 1, 4.0)]
    options = argparse.Namespace(steps=20, seeds=[0, 1], triplets=10, device="cpu")
    found = benchmark.compared(runs, options)
    # Means of the logarithms: log 2 for the published, 1.5 log 2 for the fast one.
    assert found["log_loss_apart"]["mean"] == pytest.approx(0.5 * 0.6931, abs=1e-3)
    assert found["log_loss_spread_over_seeds"]["largest"] == pytest.approx(1.3863, abs=1e-3)
    assert found["robust"] == {"published": [50.0, 51.0], "fast": [50.0, 51.0]}


def test_the_script_measures_both_and_the_floor(benchmark, tmp_path):
    out = tmp_path / "b.json"
    arguments = ["--cases", "tiny:4", "--inner-steps", "1", "--repeats", "1", "--no-memory", "--device", "cpu"]
    record = benchmark.main([*arguments, "--out", f"{out}"])
    (case,) = record["results"]["steps"]["cases"]
    assert case["ratio"] == pytest.approx(case["published_seconds"] / case["our_seconds"])
    assert case["floor_seconds"] > 0 and set(case["parts"]) == {"original", "attack", "update"}
    assert out.exists()
    assert not case["bfloat16"] or record["machine"]["bfloat16_is_fast"]
