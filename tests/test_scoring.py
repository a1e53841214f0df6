"""Many distances at once, against embeddings that were made one by one and NumPy in float64."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rclip_metric import ImageError, RobustPerceptualDistance, ScoredPair, score, score_all, score_folders, score_pairs
from rclip_metric import scoring as module
from rclip_metric.images import Preprocessing, load_image

from support.encoders import VIT, small_encoder
from support.images import save_noise

NAMES = ("0.png", "1.png", "2.png", "deep/0.png", "deep/er/3.png")


@pytest.fixture(scope="module")
def metric() -> RobustPerceptualDistance:
    return RobustPerceptualDistance(small_encoder(VIT, Preprocessing("crop", 36, 32), spread=True, name="random"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoring") / "images"
    for seed, name in enumerate(NAMES):
        save_noise(folder / name, seed, (40 + seed, 50))
    return folder


def truth(metric: RobustPerceptualDistance, a: Path, b: Path) -> float:
    """sqrt((1 - cos)) of two embeddings, each made alone."""
    u, v = (metric.embed(metric.preprocess(file)[None])[0].double().numpy() for file in (a, b))
    return float(np.sqrt(max(0.0, 1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v))))


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_pairs_come_in_order_with_their_distances(
    batch_size: int, metric: RobustPerceptualDistance, folder: Path
) -> None:
    files = [folder / name for name in NAMES]
    pairs = list(itertools.permutations(files, 2))
    rows = list(score_pairs(iter(pairs), metric, batch_size=batch_size))
    assert [(row.a, row.b) for row in rows] == [(str(a), str(b)) for a, b in pairs]
    np.testing.assert_allclose([row.distance for row in rows], [truth(metric, a, b) for a, b in pairs], atol=1e-6)
    squared = RobustPerceptualDistance(metric.encoder, squared=True)
    again = score_pairs(pairs, squared, batch_size=batch_size)
    np.testing.assert_allclose([row.distance for row in again], [row.distance**2 for row in rows], atol=1e-6)


def test_images_of_every_kind_have_the_distances_of_score(folder: Path) -> None:
    path = folder / "0.png"
    array = np.asarray(Image.open(folder / "1.png"))
    kinds: list[Any] = [
        str(path),
        path.read_bytes(),
        Image.open(path),
        array,
        array.astype(np.float32) / 255,
        load_image(path),
    ]
    pairs = list(itertools.combinations(kinds, 2))
    rows = list(score_pairs(pairs, "tiny", batch_size=4))
    for row, (a, b) in zip(rows, pairs, strict=True):
        assert row.distance == pytest.approx(score(a, b, "tiny"), abs=1e-6)
    assert rows[0].distance == rows[1].distance == 0.0  # the same pixels, however they came
    assert (rows[0].a, rows[0].b) == (str(path), "pairs[0][1]")


def test_a_pillow_image_that_is_still_to_be_decoded_may_stand_in_many_pairs(tmp_path: Path) -> None:
    large = tmp_path / "large.png"  # so that threads meet while they decode it
    save_noise(large, 1, (900, 900))
    for _ in range(3):
        image = Image.open(large)
        rows = list(score_pairs([(image, image)] * 6, "tiny", batch_size=6, workers=4))
        assert [row.distance for row in rows] == [0.0] * 6


def test_a_file_is_read_once_and_pairs_are_taken_as_they_are_needed(
    metric: RobustPerceptualDistance, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    taken: list[int] = []
    gather = metric.gather

    def noted(images: list[Path]) -> Tensor:
        read.append(os.path.basename(images[0]))
        return gather(images)

    def endless() -> Iterator[tuple[Path, Path]]:
        for place in itertools.count():
            taken.append(place)
            yield folder / "0.png", folder / f"{place % 3}.png"

    monkeypatch.setattr(metric, "gather", noted)
    rows = score_pairs(endless(), metric, batch_size=2)
    for _ in range(10):
        next(rows)
    assert sorted(read) == ["0.png", "1.png", "2.png"] and len(taken) <= 10 + 2 * 2
    rows.close()  # type: ignore[attr-defined]


def test_no_more_embeddings_are_kept_than_fit(
    metric: RobustPerceptualDistance, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT", 3)
    files = [save_noise(folder.parent / "many" / f"{seed}.png", seed, (8, 8)) for seed in range(12)]
    stream = module._Stream(metric, 2, None, lambda: None)
    kept = []
    pairs = [(files[0], file) for file in files]
    for row, (a, b) in zip(stream.rows(pairs, None), pairs, strict=True):
        kept.append(len(stream._units))
        assert row.distance == pytest.approx(truth(metric, a, b), abs=2e-6)
    assert max(kept) <= 3 + 2 * 2 and kept[0] >= 2


def test_what_cannot_be_read_is_an_error_or_left_out(metric: RobustPerceptualDistance, folder: Path) -> None:
    pairs: list[tuple[Any, Any]] = [
        (folder / "0.png", b"broken"),
        (folder / "0.png", folder / "1.png"),
        ("gone.png", folder / "1.png"),
    ]
    with pytest.raises(ImageError, match=r"^pairs\[0\]\[1\]: .*not an image"):
        list(score_pairs(pairs, metric))
    skipped: list[tuple[str, str]] = []
    done: list[int] = []
    rows = list(
        score_pairs(
            pairs, metric, on_skip=lambda name, why: skipped.append((name, why)), on_done=lambda: done.append(1)
        )
    )
    assert [(Path(row.a).name, Path(row.b).name) for row in rows] == [("0.png", "1.png")]
    assert [name for name, _ in skipped] == ["pairs[0][1]", "gone.png"] and len(done) == 4
    refused: list[tuple[Any, str]] = [("ab", "got str"), ([1, 2, 3], "got 3 of them"), (7, "got int")]
    for wrong, told in refused:
        with pytest.raises(ImageError, match=rf"pairs\[0\] must be two images, {told}"):
            list(score_pairs([wrong], metric))
    with pytest.raises(ValueError, match="batch_size"):
        score_pairs(pairs, metric, batch_size=0)


def test_two_folders_are_paired_by_name_and_depth(
    metric: RobustPerceptualDistance, folder: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate(("0.bmp", "deep/0.png", "deep/1.png", "other/3.png")):
        save_noise(tmp_path / name, 20 + seed)
    with pytest.warns(UserWarning, match="2 images have no partner"):
        [flat] = score_folders(folder, tmp_path, metric)
    assert (flat.a, flat.b) == (str(folder / "0.png"), str(tmp_path / "0.bmp"))
    with pytest.warns(UserWarning, match="5 images have no partner"):
        rows = list(score_folders(folder, tmp_path, metric, recursive=True))
    assert [Path(row.b).relative_to(tmp_path).as_posix() for row in rows] == ["0.bmp", "deep/0.png"]
    for row in rows:
        assert row.distance == pytest.approx(truth(metric, Path(row.a), Path(row.b)), abs=1e-6)
    with pytest.raises(ImageError, match="no image in"):
        score_folders(folder, tmp_path / "other", metric)


def test_all_pairs_of_a_folder(metric: RobustPerceptualDistance, folder: Path) -> None:
    right = {(a, b): truth(metric, folder / a, folder / b) for a, b in itertools.combinations(NAMES, 2)}
    rows = list(score_all(folder, metric, recursive=True))
    assert [(row.a, row.b) for row in rows] == list(right)
    np.testing.assert_allclose([row.distance for row in rows], list(right.values()), atol=1e-6)
    assert len(list(score_all(folder, metric))) == 3
    below = sorted(right.values())[4]
    near = {(row.a, row.b) for row in score_all(folder, metric, recursive=True, below=below - 1e-4)}
    assert near == {pair for pair, distance in right.items() if distance < below - 1e-4} and len(near) == 4
    both = right | {(b, a): distance for (a, b), distance in right.items()}
    nearest = [(row.a, row.b) for row in score_all(folder, metric, recursive=True, top=1)]
    assert nearest == [min((pair for pair in both if pair[0] == name), key=both.__getitem__) for name in NAMES]
    with pytest.raises(ImageError, match="has 1 images"):
        score_all(folder / "deep", metric)
    refused: list[dict[str, Any]] = [{"top": 0}, {"below": 0.0}]
    for wrong in refused:
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
            score_all(folder, metric, **wrong)


def test_a_row_is_frozen_and_made_for_json() -> None:
    row = ScoredPair("a", "b", torch.tensor(0.1).item())
    assert row.to_dict() == {"a": "a", "b": "b", "distance": 0.1} and row.distance != 0.1
    with pytest.raises(FrozenInstanceError):
        row.distance = 0.0  # type: ignore[misc]


def test_lists_and_paths_work_where_tensors_do(metric: RobustPerceptualDistance, folder: Path) -> None:
    a, b, c, d = (folder / name for name in NAMES[:4])
    right = [truth(metric, a, c), truth(metric, b, d)]
    np.testing.assert_allclose(metric([a, str(b)], [c.read_bytes(), Image.open(d)]), right, atol=1e-6)
    np.testing.assert_allclose(metric(a, [c, c]), right[:1] * 2, atol=1e-6)
    np.testing.assert_allclose(metric.similarity(a, c), [1 - right[0] ** 2], atol=1e-6)
    assert metric([a, a], [a, a]).tolist() == [0.0, 0.0]
    assert metric.two_afc(a, a, [b]).choice.tolist() == [0] and metric.embed([a, b, c]).shape[0] == 3
    torch.testing.assert_close(metric.distance_to(metric.embed(a), [c, d])[0].item(), right[0], atol=1e-6, rtol=0)
    x, y = (load_image(file).requires_grad_() for file in (a, d))  # of different sizes
    metric([x, y], [b, b]).sum().backward()
    alone = load_image(d).requires_grad_()
    metric(alone, load_image(b)).backward()
    assert x.grad is not None and y.grad is not None and alone.grad is not None
    assert x.grad.shape == x.shape and y.grad.abs().max() > 0
    signed = RobustPerceptualDistance(metric.encoder, value_range=(-1, 1))
    np.testing.assert_allclose(
        signed([a, 2 * x.detach() - 1], [c, c]), metric([a, x.detach()], [c, c]).detach(), atol=1e-5
    )
    for wrong, told in (([], "empty list"), ([torch.zeros(2, 3, 8, 8)], "got a batch"), (["gone.png"], "gone.png")):
        with pytest.raises(ImageError, match=told):
            metric(wrong, a)
