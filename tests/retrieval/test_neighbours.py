"""Exact search against numpy, which looks at everything."""

import numpy as np
import pytest
import torch

from rclip_metric.distance import normalize
from rclip_metric.retrieval import nearest, neighbours, pairs_within

CHUNKS = "rclip_metric.retrieval.neighbours._ROWS"


def units(count: int, size: int = 24, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed))).to(dtype)


def by_numpy(queries: torch.Tensor, embeddings: torch.Tensor) -> np.ndarray:
    """All distances (Q, N) in float64, of what the embeddings hold."""
    x, y = (t.to(embeddings.dtype).double().numpy() for t in (queries, embeddings))
    return np.sqrt(np.square(x[:, None] - y[None]).sum(2) / 2)


@pytest.fixture(params=[False, True], ids=["float32 products", "bfloat16 products"])
def coarse(request, monkeypatch) -> bool:
    """Multiply in one way or the other, whatever this processor is good at."""
    monkeypatch.setattr("rclip_metric.retrieval.neighbours._COARSE_ROWS", 1)
    monkeypatch.setattr("rclip_metric.retrieval.neighbours._COARSE_QUERIES", 1)
    monkeypatch.setattr("rclip_metric.retrieval.neighbours._bfloat16_is_fast", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("count", "rows"), [(500, 64), (5000, 600), (500, 2**16), (3, 64)])
def test_it_finds_what_numpy_finds(dtype, count, rows, coarse, monkeypatch):
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


def hard(kind: str, dtype: torch.dtype) -> torch.Tensor:
    """What products of few digits tell badly apart."""
    noise = torch.randn(6000, 96, generator=torch.Generator().manual_seed(3))
    if kind == "outliers":  # as CLIP's embeddings have: a number that is much larger than the others
        noise[:, 5] += 30
    elif kind == "a crowd":  # a third of them within what bfloat16 rounds away
        noise[:2000] = noise[0] + 0.01 * noise[:2000]
    elif kind == "small numbers":  # most below what float16 normally holds
        noise[:, 3:] *= 3e-5
    elif kind == "copies":
        noise[1000:1500] = noise[7].clone()
    return normalize(noise).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["outliers", "a crowd", "small numbers", "copies"])
def test_nothing_is_missed_where_products_tell_little(kind, dtype, coarse, monkeypatch):
    monkeypatch.setattr(CHUNKS, 1000)
    embeddings = hard(kind, dtype)
    queries = embeddings[[0, 7, 1999, 4000]].float()
    distances, found = nearest(queries, embeddings, 20, squared=True)
    wanted = np.sort(by_numpy(queries, embeddings) ** 2, axis=1)[:, :20]
    # Of distances that float32 takes for equal either may come first: it is the distances that must be the smallest.
    assert np.allclose(distances.numpy(), wanted, rtol=1e-5, atol=1e-9)
    there = by_numpy(queries, embeddings) ** 2
    assert np.allclose(np.take_along_axis(there, found.numpy(), axis=1), wanted, rtol=1e-5, atol=1e-9)
    if kind == "copies":
        assert found[1].tolist() == [7, *range(1000, 1019)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["outliers", "a crowd", "small numbers", "copies", "noise"])
def test_products_are_no_more_wrong_than_is_said(kind, dtype):
    """A product may stand in for a distance, up to a constant of the query."""
    embeddings = hard(kind, dtype)
    queries = embeddings[::40]
    x, y = queries.double(), embeddings.double()
    halves = (x[:, None] - y[None]).square().sum(2) / 2 - x.square().sum(1, keepdim=True) / 2 - 0.5
    for products, wrong in (neighbours._in_float32(queries), neighbours._in_bfloat16(queries)):
        error = (products(embeddings[:4096]).T.double() + halves[:, :4096]).abs().max().item()
        assert error <= wrong < 0.03, (error, wrong)
    assert error > wrong / 20  # of bfloat16: what is said is no guess either


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_not_finite_is_near_to_nothing(dtype, coarse):
    queries, embeddings = units(2), units(300, dtype=dtype)
    for bad in (float("nan"), float("inf")):
        queries[1, 3] = bad
        with pytest.raises(ValueError, match="is not finite"):
            nearest(queries, embeddings, 3)
    embeddings[1, 3] = float("nan")
    with pytest.raises(ValueError, match="is not finite"):
        nearest(units(2), embeddings, 300)


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
    monkeypatch.setattr("rclip_metric.retrieval.neighbours.QUERIES", 17)
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
