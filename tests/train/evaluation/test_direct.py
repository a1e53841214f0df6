"""The direct attack: optima that are formulas, the scale beside them, and records that are taken up."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric import RobustPerceptualDistance
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.triplets import TripletFiles
from rclip_metric.train.evaluation.attack import RunSettings
from rclip_metric.train.evaluation.tasks.self_distance import direct_attack, direct_record
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData
from rclip_metric.train.metrics.base import DistanceMetric, EmbeddingMetric, EncoderMetric, dissimilarity
from rclip_metric.train.runs.distributed import Team
from rclip_metric.train.runs.files import read_sealed
from rclip_metric.train.runs.seeds import sample_seed

SIDE = 16
VALUES = 3 * SIDE**2
LINF, L2 = LpBall("linf", 4 / 255), LpBall("l2", 0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven references, of which one comes twice: values in [0.4, 0.6], so that the box is out of reach."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(7):
        pixels = generator.integers(102, 154, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return of(folder, [0, 1, 2, 1, 3, 4, 5, 6])


def of(folder, references):
    rows = [
        TripletFiles(f"t{row}", folder / f"{index}.png", Path("left"), Path("right"), 1.0, "test")
        for row, index in enumerate(references)
    ]
    return TwoAfcData("squares", "test", rows)


def euclidean(x, y):
    return (x - y).flatten(1).norm(dim=1)


def angle(images):
    """Unit vectors at an angle of the mean value."""
    mean = images.mean((1, 2, 3))
    return torch.stack([mean.cos(), mean.sin()], 1)


class Bounded(DistanceMetric):
    """A similarity that is 1 for identical images and falls to 0, like SSIM."""

    def similarities(self, images, fixed):
        return super().similarities(images, fixed).exp()


class Float64(EmbeddingMetric):
    """Embeddings and cosines in float64."""

    def _call(self, *images):
        return self.function(*images)


PIXELS = DistanceMetric(euclidean, SIDE, name="l2")
BRIGHTNESS = EmbeddingMetric(angle, SIDE, name="brightness")
BOUNDED = Bounded(euclidean, SIDE, name="bounded")


@pytest.fixture(scope="module")
def network():
    """A small network with weights from a seed.

    Its images are nearly parallel, so a distance is what a cosine lacks of 1 in the fourth digit and beyond: in float64
    the rounding of a processor, and of a batch's size, is nowhere near what the tests tell apart.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.GELU(), torch.nn.Conv2d(8, 8, 3, stride=2))
        tower = torch.nn.Sequential(*layers, torch.nn.Flatten()).requires_grad_(False).double()
    return Float64(lambda images: tower(images.double()), SIDE, name="network")


def attack(metric, data, ball=LINF, steps=8, images=64, **settings):
    others = {key: settings.pop(key) for key in ("journal", "team") if key in settings}
    run = RunSettings(**{"batch_size": 3, **settings})
    return direct_attack(metric, data, ball, images=images, steps=steps, run=run, quiet=True, **others)


@pytest.mark.parametrize(
    ("metric", "ball", "optimum"),
    [
        (PIXELS, L2, 0.5),
        (PIXELS, LINF, 4 / 255 * math.sqrt(VALUES)),  # a corner of the cube
        (BOUNDED, L2, 1 - math.exp(-0.5)),
        # The mean moves by eps, or, with all values moved alike, by eps / sqrt(number of values).
        (BRIGHTNESS, LpBall("linf", 0.3), 1 - math.cos(0.3)),
        (BRIGHTNESS, LpBall("l2", 8.0), 1 - math.cos(8 / math.sqrt(VALUES))),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else str(value),
)
def test_the_optimum_is_the_formula(metric, ball, optimum, data):
    record = attack(metric, data, ball, steps=30)
    assert record["distances"] == pytest.approx([optimum] * 7, rel=1e-4)
    assert record["largest_violation"] <= np.spacing(np.float32(ball.eps))
    assert record["warnings"] == [] and record["masking"] == {"zero_gradients": 0, "nonfinite_gradients": 0}


def test_the_others_are_distances_to_the_next_image(data):
    for metric, scale in ((PIXELS, lambda d: d), (BOUNDED, lambda d: 1 - torch.exp(-d))):
        images = torch.stack([metric.preprocess(data.triplets[row].reference) for row in (0, 1, 2, 4, 5, 6, 7)])
        record = attack(metric, data, steps=1)
        assert record["keys"] == ["t0", "t1", "t2", "t4", "t5", "t6", "t7"]  # t3 has the reference of t1
        assert record["others"] == pytest.approx(scale(euclidean(images, images.roll(-1, 0))).tolist(), rel=1e-5)


def test_for_our_own_encoders_it_is_the_squared_distance(data):
    metric = EncoderMetric(RobustPerceptualDistance("tiny"))
    record = attack(metric, data, LINF, steps=2, images=3)
    images = torch.stack([metric.preprocess(data.triplets[row].reference) for row in range(3)])
    distances = metric.metric(images, images.roll(-1, 0)) ** 2
    assert record["others"] == pytest.approx(distances.tolist(), abs=1e-6)
    assert record["model"]["name"] == "tiny" and record["data"]["images"] == 3
    assert all(0 < value < 2 for value in record["distances"])


def test_it_is_the_maximum_that_pgd_on_the_mse_looks_for(network, data):
    """The talk's attack, written down once more: normalised gradient steps of the MSE between embeddings."""
    steps, eps = 40, L2.eps
    best = []
    for row in (0, 1, 2):
        x = network.preprocess(data.triplets[row].reference)[None]
        target = network.embed(x)
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(sample_seed(0, f"t{row}")))
        delta = eps * noise[None] / noise.norm()
        for _ in range(steps):
            delta.requires_grad_(True)
            [gradient] = torch.autograd.grad((network.embed(x + delta) - target).square().mean(), delta)
            delta = delta.detach() + 0.2 * eps * gradient / gradient.norm()
            delta = delta * min(1.0, eps / delta.norm().item())
        best.append((network.embed(x + delta) - target).square().sum().item() / 2)
    ours = attack(network, data, L2, steps=steps, images=3)["distances"]
    # From the same starts, with steps that shrink: never less, and not another quantity.
    assert all(theirs <= mine < 1.1 * theirs for mine, theirs in zip(ours, best, strict=True))
    once = attack(network, data, L2, steps=0, images=3)["distances"]  # the random start alone
    assert all(2 * start < mine for start, mine in zip(once, ours, strict=True))


@pytest.mark.parametrize("settings", [{"batch_size": 7}, {"batch_size": 1}, {"chunk_size": 2}], ids=str)
def test_distances_do_not_depend_on_how_images_are_batched(network, data, settings):
    record, other = attack(network, data), attack(network, data, **settings)
    assert record["keys"] == other["keys"]
    assert record["distances"] == pytest.approx(other["distances"], rel=1e-4)
    assert record["others"] == pytest.approx(other["others"], rel=1e-4)


def test_the_same_settings_give_the_same_numbers_and_another_seed_gives_others(network, data):
    record = attack(network, data)
    for field in ("distances", "others", "keys", "largest_violation"):
        assert attack(network, data)[field] == record[field]
    assert attack(network, data, seed=1)["distances"] != record["distances"]
    back = TwoAfcData("squares", "test", data.triplets[::-1])
    assert attack(network, back)["distances"][::-1][:1] == pytest.approx(record["distances"][:1], rel=1e-4)
    # The start is the sample's own, so with no step a distance is the one of that start.
    image = network.preprocess(data.triplets[5].reference)[None]
    start = LINF.start(image, [sample_seed(0, "t5")])
    apart = dissimilarity(network, start, network.fix(image)[:, None], image)
    assert attack(network, data, steps=0)["distances"][4] == pytest.approx(apart.item(), rel=1e-5)


def test_two_processes_give_the_numbers_of_one(network, data, tmp_path):
    class Half(Team):
        def gather(self, value):
            return [value]

    with pytest.raises(KeyError):  # of three blocks the second process does the second only
        attack(network, data, journal=tmp_path, team=Half(1, 2))
    [line] = next(iter(tmp_path.glob("*-1.jsonl"))).read_text().splitlines()
    assert json.loads(line)["block"] == 1
    alone, together = attack(network, data), attack(network, data, journal=tmp_path)
    assert alone["distances"] == together["distances"] and alone["others"] == together["others"]


def test_what_cannot_be_read_is_left_out_and_named(data, tmp_path):
    for triplet in data.triplets[:3]:
        (tmp_path / triplet.reference.name).write_bytes(triplet.reference.read_bytes())
    for index in (1, 3):
        (tmp_path / f"{index}.png").write_bytes(b"not an image")
    mixed = of(tmp_path, [1, 0, 3, 2])
    for size in (1, 3, 4):  # also as whole blocks
        record = attack(PIXELS, mixed, batch_size=size)
        assert record["keys"] == ["t1", "t3"]
        assert record["others"] == [record["others"][0]] * 2  # each is the other's next, round the end
        first, second = record["data"]["unreadable"]
        assert "triplet t0" in first and "1.png" in first and "triplet t2" in second
        assert "2 of 4 images could not be read" in record["warnings"][0]
    assert attack(PIXELS, mixed, images=2)["others"] == []  # one image alone has no other
    with pytest.raises(ValueError, match="none of the 1 reference images of squares"):
        attack(PIXELS, mixed, images=1)


def test_metrics_and_settings_that_give_no_distance_are_refused(data):
    psnr = DistanceMetric(lambda x, y: 10 * (x - y).square().mean((1, 2, 3)).log10(), SIDE, name="psnr")
    with pytest.raises(ValueError, match="psnr gives similarities that are not finite"):
        attack(psnr, data)
    with pytest.raises(ValueError, match="at least 1 image"):
        attack(PIXELS, data, images=0)


def test_masked_gradients_are_reported(data):
    rounded = DistanceMetric(lambda x, y: euclidean((x * 8).round(), (y * 8).round()), SIDE, name="rounded")
    record = attack(rounded, data, LpBall("linf", 0.2))
    assert record["masking"]["zero_gradients"] + record["masking"]["nonfinite_gradients"] == 7
    assert any("7 of 7 images met" in sentence for sentence in record["warnings"])


def test_a_record_is_written_once_and_read_again(network, data, tmp_path):
    path, run = tmp_path / "direct.json", RunSettings(batch_size=3)
    asked = []

    class Counted(EmbeddingMetric):
        def similarities(self, images, fixed):
            asked.append(len(images))
            if len(asked) == self.stop:
                raise KeyboardInterrupt
            return super().similarities(images, fixed)

    def record(stop=None, steps=4, run=run, **others):
        metric = Counted(network.function, SIDE, name="network")
        metric.stop = stop
        asked.clear()
        return direct_record(path, metric, data, LINF, steps=steps, run=run, quiet=True, **others)

    whole = record()
    blocks = len(asked) // 3  # per block: 5 in the attack, 2 for the distances, 2 for the others
    assert blocks == 9 and read_sealed(path) == (whole, True) and not (tmp_path / ".journal").exists()
    assert record() == whole and asked == []
    assert record(run=RunSettings(batch_size=7, chunk_size=2)) == whole and asked == []
    with pytest.raises(ValueError, match="settings"):
        record(steps=5)
    assert record(steps=5, overwrite=True)["threat"]["steps"] == 5 and len(asked) > 0

    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        record(stop=blocks + 3)  # in the second block
    assert not path.exists() and list((tmp_path / ".journal").glob("*/*.jsonl"))
    again = record()
    assert len(asked) == 2 * blocks and again["distances"] == whole["distances"] and again["others"] == whole["others"]
    assert not (tmp_path / ".journal").exists()
    path.write_text("{}")
    with pytest.raises(ValueError, match="settings"):
        record()
