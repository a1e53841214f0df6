"""A filter by examples, on embeddings whose distances are known, and on files."""

import math
from pathlib import Path

import pytest
import torch

from rclip_metric import ContentFilter, ImageError, ImageIndex, RobustPerceptualDistance
from rclip_metric.errors import ImageIndexError
from rclip_metric.retrieval import Decision

from support.encoders import small_encoder
from support.images import save_noise


@pytest.fixture(scope="module")
def metric() -> RobustPerceptualDistance:
    return RobustPerceptualDistance(small_encoder(spread=True, name="first", revision="1"))


def at(*degrees: float) -> torch.Tensor:
    """Unit vectors of the plane."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def pools(metric: RobustPerceptualDistance) -> ImageIndex:
    """Safe at 0 and 10 degrees, the buffer at 40, unsafe at 60, 62 and 90."""
    index = ImageIndex(metric)
    labels = ["safe", "safe", "buffer", "unsafe", "unsafe", "unsafe"]
    index.add(at(0, 10, 40, 60, 62, 90), ids=[f"{a}.png" for a in (0, 10, 40, 60, 62, 90)], labels=labels)
    return index


def test_an_image_gets_the_class_of_its_nearest_example(metric):
    found = ContentFilter(pools(metric), metric).decide(at(5.1, 45, 55, 89))
    assert [one.label for one in found] == ["safe", "buffer", "unsafe", "unsafe"]
    assert [one.neighbour for one in found] == ["10.png", "40.png", "60.png", "90.png"]
    # 45 degrees: 5 from the buffer, 15 from the nearest other example.
    assert found[1].similarity == pytest.approx(math.cos(math.radians(5)), abs=1e-6)
    assert found[1].other == pytest.approx(math.cos(math.radians(15)), abs=1e-6)
    assert found[1].margin == pytest.approx(math.cos(math.radians(5)) - math.cos(math.radians(15)), abs=1e-6)


def test_several_neighbours_vote_and_ties_go_to_the_nearest(metric):
    index = pools(metric)
    query = at(48)  # 40 is 8 away, 60 is 12, 62 is 14, 10 is 38
    labels = [ContentFilter(index, metric, k=k).decide(query)[0].label for k in (1, 2, 3)]
    assert labels == ["buffer", "buffer", "unsafe"]  # one vote; one each; one against two
    [voted] = ContentFilter(index, metric, k=3).decide(query)
    assert voted.neighbour == "60.png" and voted.margin < 0


def test_nothing_near_is_no_class(metric):
    # The distance of two directions d degrees apart is sqrt(1 - cos d): 0.0872 for 7.08, 0.1309 for 10.6.
    threshold = math.sqrt(1 - math.cos(math.radians(10)))
    found = ContentFilter(pools(metric), metric, threshold=threshold).decide(at(19.9, 20.1))
    assert [(one.label, one.neighbour) for one in found] == [("safe", "10.png"), (None, "10.png")]


def test_pools_are_folders_or_indexes(metric, tmp_path: Path):
    for number in range(4):
        save_noise(tmp_path / ("safe" if number < 2 else "unsafe") / f"{number}.png", number)
    by_folder = ContentFilter({"safe": tmp_path / "safe", "unsafe": tmp_path / "unsafe"}, metric)
    by_label = ContentFilter(ImageIndex.build(tmp_path, metric), metric)
    by_index = ContentFilter(
        {"safe": ImageIndex.build(tmp_path / "safe", metric), "unsafe": tmp_path / "unsafe"}, metric
    )
    query = save_noise(tmp_path / "query.png", 9)
    ends = [one.decide([query])[0] for one in (by_folder, by_label, by_index)]
    assert {end.label for end in ends} <= {"safe", "unsafe"} and len({end.path for end in ends}) == 1
    assert all(end.similarity == pytest.approx(ends[0].similarity, abs=1e-5) for end in ends)
    with pytest.warns(UserWarning, match=r"^3\.png of the examples is a query itself$"):
        assert by_folder.decide([tmp_path / "unsafe" / "3.png"])[0].label == "unsafe"
    (tmp_path / "safe" / "broken.png").write_bytes(b"x")
    skipped: list[str] = []
    with pytest.raises(ImageError, match=r"broken\.png"):
        ContentFilter({"safe": tmp_path / "safe", "unsafe": tmp_path / "unsafe"}, metric)
    pools = {"safe": tmp_path / "safe", "unsafe": tmp_path / "unsafe"}
    ContentFilter(pools, metric, on_skip=lambda file, reason: skipped.append(file.name))
    assert skipped == ["broken.png"]


def test_bad_input_is_one_sentence(metric):
    index, empty = pools(metric), ImageIndex(metric)
    for pools_of, settings, told in (
        ({}, {}, "two classes or more, got none"),
        ({"safe": index}, {}, "two classes or more, got safe"),
        ({"safe": index, "unsafe": empty}, {}, "the class unsafe has no example"),
        (index, {"k": 7}, "k must be between 1 and the 6 examples, got 7"),
        (index, {"k": 0}, "k must be between 1 and the 6 examples, got 0"),
        (index, {"threshold": -1.0}, "threshold must be a positive distance or None"),
        (index, {"threshold": float("nan")}, "threshold must be a positive distance or None"),
    ):
        with pytest.raises(ImageIndexError, match=told):
            ContentFilter(pools_of, metric, **settings)
    index.add(at(120), ids=["stray.png"])
    with pytest.raises(ImageIndexError, match=r"stray\.png has no label"):
        ContentFilter(index, metric)
    assert Decision(None, "a", None, 0.5, 0.4).margin == pytest.approx(0.1)
