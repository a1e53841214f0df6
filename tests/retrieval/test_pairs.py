"""Pairs of many embeddings against NumPy in float64."""

import numpy as np
import pytest
import torch

from rclip_metric.distance import distance_between
from rclip_metric.retrieval import Summary, all_pairs, nearest_others, pairs_below
from rclip_metric.retrieval import pairs as module


def some_units(count: int = 40, dimension: int = 24) -> torch.Tensor:
    """Random ones, among them two that are the same and some that are nearer and nearer."""
    torch.manual_seed(0)
    units = torch.nn.functional.normalize(torch.randn(count, dimension, dtype=torch.float64), dim=1)
    units[5] = units[3]
    for place, apart in enumerate((1e-1, 1e-3, 1e-5, 1e-6), start=10):
        units[place] = torch.nn.functional.normalize(units[0] + apart * torch.randn(dimension), dim=0)
    return units.float()


def true_distances(units: torch.Tensor, squared: bool) -> np.ndarray:
    wide = units.double().numpy()
    half = 0.5 * np.square(wide[:, None] - wide[None]).sum(-1)
    return half if squared else np.sqrt(half)


@pytest.mark.parametrize("squared", [False, True])
def test_products_in_float64_are_as_exact_as_differences(squared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    units = some_units()
    right = true_distances(units, squared)
    monkeypatch.setattr(module, "_COLUMNS", 16)
    monkeypatch.setattr(module, "_MOST_ROWS", 7)
    matrix = torch.stack([row for _, row in all_pairs(units, squared, whole=True)]).numpy()
    np.testing.assert_allclose(matrix, right, rtol=4e-7)
    assert (matrix == matrix.T).all() and (matrix.diagonal() == 0).all() and matrix[3, 5] == 0
    rows = dict(all_pairs(units, squared))
    assert list(rows) == list(range(40))
    for i, row in rows.items():
        np.testing.assert_allclose(row, matrix[i, i + 1 :], rtol=4e-7)
    differences = distance_between(units[0], units[1:], squared).numpy()
    # No worse than what differences in float32 give, of which the nearest have lost digits to the embeddings' rounding.
    assert np.abs(rows[0].numpy() / right[0, 1:] - 1).max() <= np.abs(differences / right[0, 1:] - 1).max() + 1e-7


def test_none_and_one() -> None:
    assert list(all_pairs(torch.empty(0, 4))) == list(nearest_others(torch.empty(0, 4), 2)) == []
    ((place, row),) = all_pairs(torch.eye(4)[:1])
    assert place == 0 and row.tolist() == []


@pytest.mark.parametrize("squared", [False, True])
def test_below_and_nearest_are_those_of_the_whole_matrix(squared: bool) -> None:
    units = some_units()
    right = true_distances(units, squared)
    below = float(np.quantile(right, 0.3))
    found = {(i, j) for i, others, _ in pairs_below(units, below, squared) for j in others.tolist()}
    assert found == {(i, j) for i in range(40) for j in range(i + 1, 40) if right[i, j] < below}
    np.fill_diagonal(right, np.inf)
    for i, others, distances in nearest_others(units, 5, squared):
        np.testing.assert_allclose(distances, np.sort(right[i])[:5], rtol=4e-7, atol=1e-7)
        assert i not in others and len(others) == 5
        np.testing.assert_allclose(right[i, others], np.sort(right[i])[:5], atol=1e-7)
    assert [len(others) for _, others, _ in nearest_others(units[:3], 9)] == [2, 2, 2]


def test_copies_do_not_take_the_place_of_others() -> None:
    """Five of the same: each has the four others at distance 0, whatever the order of equal ones."""
    for i, others, distances in nearest_others(torch.eye(3)[[0, 0, 0, 0, 0, 1]], 3):
        assert i not in others and len(others) == 3
        assert distances.tolist() == ([0.0] * 3 if i < 5 else [1.0] * 3)


def test_a_summary_of_rows_is_that_of_their_pairs() -> None:
    rows = {"x": [0.5, 0.25, 0.75], "y": [0.75, 0.25], "z": []}
    by_row, by_pair = Summary(), Summary()
    for a, distances in rows.items():
        names = [f"{a}{place}" for place in range(len(distances))]
        by_row.add_row(a, names, np.array(distances, dtype=np.float32))
        for b, distance in zip(names, distances, strict=True):
            by_pair.add(distance, a, b)
    assert by_row.to_dict() == by_pair.to_dict()
    assert by_row.to_dict()["highest"] == {"distance": 0.75, "a": "x", "b": "x2"}
    with pytest.raises(ValueError, match="the distance of x and y1 is NaN"):
        by_row.add_row("x", ["y0", "y1"], np.array([0.5, np.nan]))
