"""Exact search against numpy, which looks at everything."""

import numpy as np
import pytest
import torch

from rclip_metric.distance import normalize
from rclip_metric.retrieval import nearest, pairs_within

CHUNKS = "rclip_metric.retrieval.neighbours._ROWS"


def units(count: int, size: int = 24, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed))).to(dtype)


def by_numpy(queries: torch.Tensor, embeddings: torch.Tensor) -> np.ndarray:
    """All distances (Q, N) in float64, of what the embeddings hold."""
    x, y = (t.to(embeddings.dtype).double().numpy() for t in (queries, embeddings))
    return np.sqrt(np.square(x[:, None] - y[None]).sum(2) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("count", "rows"), [(500, 64), (500, 2**16), (3, 64)])
def test_it_finds_what_numpy_finds(dtype, count, rows, monkeypatch):
    monkeypatch.setattr(CHUNKS, rows)
    embeddings, queries = units(count, dtype=dtype), units(7, seed=1)
    distances, found = nearest(queries, embeddings, 10)
    wanted = by_numpy(queries, embeddings)
    k = min(10, count)
    assert found.shape == distances.shape == (7, k) and distances.dtype == torch.float32
    assert np.array_equal(found.numpy(), np.argsort(wanted, axis=1, kind="stable")[:, :k])
    assert np.allclose(distances.numpy(), np.sort(wanted, axis=1)[:, :k], atol=2e-7)
    squares, same = nearest(queries, embeddings, 10, squared=True)
    assert torch.equal(same, found) and np.allclose(squares.numpy(), distances.numpy() ** 2, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_identical_is_at_zero_and_the_first_comes_first(dtype):
    embeddings = units(50, dtype=torch.float32)
    embeddings[[11, 30, 49]] = embeddings[7].clone()
    distances, found = nearest(embeddings[7:8], embeddings.to(dtype), 5)
    assert (
        found[0, :4].tolist() == [7, 11, 30, 49] and distances[0, :4].tolist() == [0.0] * 4 < distances[0, 4:].tolist()
    )


def test_products_that_round_to_the_same_are_told_apart():
    """Of vectors 1e-5 apart the float32 products are equal; their differences are not."""
    base = normalize(torch.tensor([[1.0, 1.0, 1.0, 1.0]]))
    steps = torch.tensor([4e-5, 1e-5, 3e-5, 2e-5])
    embeddings = normalize(base + steps[:, None] * torch.tensor([[1.0, -1.0, 0.0, 0.0]]))
    assert nearest(base, embeddings, 4)[1].tolist() == [[1, 3, 2, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("squared", [False, True])
def test_pairs_are_numpys(dtype, squared, monkeypatch):
    monkeypatch.setattr(CHUNKS, 40)
    monkeypatch.setattr("rclip_metric.retrieval.neighbours._QUERIES", 17)
    embeddings = units(120, size=6, dtype=dtype)
    wanted = by_numpy(embeddings, embeddings)
    below = 0.45
    pairs, distances = pairs_within(embeddings, below**2 if squared else below, squared=squared)
    rows, columns = np.nonzero(np.triu(wanted < below, k=1))
    assert len(rows) > 50 and pairs.tolist() == list(map(list, zip(rows.tolist(), columns.tolist(), strict=True)))
    expected = wanted[rows, columns] ** (2 if squared else 1)
    assert np.allclose(distances.numpy(), expected, atol=1e-6)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"queries \(2, 3\) and embeddings \(5, 4\), expected \(Q, D\) and \(N, D\)"):
        nearest(units(2, 3), units(5, 4), 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        nearest(units(2, 4), units(5, 4), 0)
    for below in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive number"):
            pairs_within(units(5, 4), below)
