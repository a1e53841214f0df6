"""Odd-one-out: both ways to the clean accuracy, and the attack on the odd image."""

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric import RobustPerceptualDistance
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.scenes.formats import write_things
from rclip_metric.train.data.things import Things, read_things
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.tasks.odd_one_out import OddOneOutData, evaluate_odd_one_out
from rclip_metric.train.metrics.base import DistanceMetric, EmbeddingMetric, EncoderMetric

RUN = RunSettings(batch_size=16)


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    folder = tmp_path_factory.mktemp("things")
    write_things(folder, concepts=24, triplets=40, quiet=True)
    return read_things(folder, folder / "images")


@pytest.fixture(scope="module")
def metric():
    return EncoderMetric(RobustPerceptualDistance("tiny-clean"))


def test_clean_accuracy_is_that_of_the_most_similar_pair(things, metric):
    [record] = evaluate_odd_one_out(metric, OddOneOutData("scenes-things", things), (), RUN, quiet=True)
    embeddings = torch.cat([metric.fix(metric.preprocess(path)[None]) for path in things.images])
    right = 0
    for triplet, odd in zip(things.triplets.tolist(), things.odd.tolist(), strict=True):
        pairs = {2: (0, 1), 1: (0, 2), 0: (1, 2)}  # who is left out
        similarity = {out: embeddings[triplet[a]] @ embeddings[triplet[b]] for out, (a, b) in pairs.items()}
        right += max(similarity, key=lambda out: similarity[out]) == odd
    assert record["clean"]["accuracy"] == pytest.approx(100 * right / 40, abs=0.01)
    assert right > 40 / 3 and record["data"]["samples"] == 40 and record["threat"]["attack"] == "none"


def test_an_attack_moves_the_odd_image_and_agrees_with_the_clean_pass(things, metric):
    data = OddOneOutData("scenes-things", things)
    [clean] = evaluate_odd_one_out(metric, data, (), RUN, quiet=True)
    [record] = evaluate_odd_one_out(metric, data, (AttackSettings(LpBall("linf", 4 / 255), steps=4),), RUN, quiet=True)
    before, after = unpack(clean), unpack(record)
    assert [row.clean for row in before] == [row.clean for row in after]
    for a, b in zip(before, after, strict=True):
        assert b.margin == pytest.approx(a.margin, abs=1e-5)
        assert b.robust is not None and b.robust <= b.clean and (b.robust_margin > 0) == (b.robust == 1.0)
    assert record["robust"]["accuracy"] < record["clean"]["accuracy"]
    one = evaluate_odd_one_out(
        metric, data, (AttackSettings(LpBall("linf", 4 / 255), steps=4),), RunSettings(batch_size=40), quiet=True
    )
    assert [row.robust for row in unpack(one[0])] == [row.robust for row in after]


def test_a_metric_of_distances_takes_the_other_path(things):
    embed = EmbeddingMetric(lambda images: images.flatten(1), 64, name="pixels")

    def cosine_distance(x, y):
        return 1 - torch.cosine_similarity(x.flatten(1), y.flatten(1))

    distance = DistanceMetric(cosine_distance, 64, name="pixels")
    data = OddOneOutData("scenes-things", things)
    [a], [b] = (evaluate_odd_one_out(metric, data, (), RUN, quiet=True) for metric in (embed, distance))
    assert [row.clean for row in unpack(a)] == [row.clean for row in unpack(b)]
    assert distance.describe()["similarity"] == "minus the distance"


def test_an_unreadable_image_costs_its_triplets(tmp_path, metric):
    paths = []
    for index in range(4):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.full((64, 64, 3), 60 * index, np.uint8)).save(path)
        paths.append(path)
    paths[3].write_bytes(b"broken")
    triplets, odd = torch.tensor([[0, 1, 2], [1, 2, 3], [0, 1, 3]]), torch.tensor([2, 0, 1])
    data = OddOneOutData("x", Things(tuple(paths), triplets, odd))
    for attacks in ((), (AttackSettings(LpBall("linf", 0.01), steps=1),)):
        [record] = evaluate_odd_one_out(metric, data, attacks, RunSettings(batch_size=2), quiet=True)
        assert record["data"]["samples"] == 1 and len(record["data"]["unreadable"]) == 2
        assert all("3.png" in sentence for sentence in record["data"]["unreadable"])
        assert record["data"]["unreadable"][0].startswith("triplet 1: ")
    for path in paths:
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of the 4 images"):
        evaluate_odd_one_out(metric, data, (), RUN, quiet=True)
