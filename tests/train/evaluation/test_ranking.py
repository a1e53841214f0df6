"""Average precision and precision at k: against the definition in plain loops, scikit-learn, and cases by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from rclip_metric.train.evaluation import mean_average_precision, precision_at
from rclip_metric.train.evaluation.ranking import DIFFICULTIES, chance

ROLES = {"E": {"easy": 1, "hard": 0, "junk": 0}, "M": {"easy": 1, "hard": 1, "junk": 0}, "H": {"easy": 0, "hard": 1,
         "junk": 0}}  # fmt: skip


def relevance(ranking, truth, difficulty):
    """1 for a positive, 0 for any other row, in the order of the ranking, without what counts as junk."""
    found = []
    for row in ranking:
        named = [name for name in ("easy", "hard", "junk") if row in truth[name]]
        if not named:
            found.append(0)
        elif ROLES[difficulty][named[0]]:
            found.append(1)
    return found


def plain_average_precision(relevant):
    """The area under precision and recall, trapezoid by trapezoid; before the first row precision is 1."""
    total, seen, area, precision = sum(relevant), 0, 0.0, 1.0
    if not total:
        return math.nan
    for length, hit in enumerate(relevant, 1):
        seen += hit
        now = seen / length
        if hit:
            area += (precision + now) / 2 / total
        precision = now
    return area


def plain_precision(relevant, k):
    if not sum(relevant):
        return math.nan
    last = max(place for place, hit in enumerate(relevant, 1) if hit)
    cut = min(k, last)
    return sum(relevant[:cut]) / cut


def drawn(rng, rows, queries):
    ranks, truth = [], []
    for _ in range(queries):
        ranks.append(rng.permutation(rows))
        kind = rng.choice(["easy", "hard", "junk", "none"], rows, p=rng.dirichlet([0.5, 0.5, 0.5, 2]))
        truth.append({name: np.flatnonzero(kind == name) for name in ("easy", "hard", "junk")} | {"bbx": [0, 0, 1, 1]})
    return np.array(ranks), truth


def test_both_measures_are_their_definition():
    rng = np.random.default_rng(0)
    without = 0
    for rows in (1, 2, 3, 7, 40):
        ranks, truth = drawn(rng, rows, 30)
        found, shares = mean_average_precision(torch.tensor(ranks), truth), precision_at(ranks, truth, (1, 3, 10))
        for name in DIFFICULTIES:
            relevant = [relevance(ranking, one, name) for ranking, one in zip(ranks.tolist(), truth, strict=True)]
            expected = [plain_average_precision(one) for one in relevant]
            assert found[name]["aps"] == pytest.approx(expected, nan_ok=True, abs=1e-12)
            assert found[name]["map"] == pytest.approx(np.nanmean(expected), abs=1e-12)
            without += int(np.isnan(expected).sum())
            for k, part in shares[name].items():
                expected = [plain_precision(one, k) for one in relevant]
                assert part["values"] == pytest.approx(expected, nan_ok=True)
                assert part["mean"] == pytest.approx(np.nanmean(expected))
    assert without > 50  # queries without positives were among them


def test_the_step_rule_of_scikit_learn_differs_by_a_formula():
    """By steps the precision before a positive is not asked: the two differ by half the mean fall at the positives."""
    rng = np.random.default_rng(1)
    ranks, truth = drawn(rng, 30, 40)
    found = mean_average_precision(ranks, truth)
    for name in DIFFICULTIES:
        for ranking, one, ours in zip(ranks.tolist(), truth, found[name]["aps"], strict=True):
            relevant = np.array(relevance(ranking, one, name))
            if not relevant.sum():
                continue
            steps = average_precision_score(relevant, -np.arange(len(relevant)))
            precision = relevant.cumsum() / np.arange(1, len(relevant) + 1)
            before = np.append(1.0, precision[:-1])
            assert ours == pytest.approx(steps - (precision - before)[relevant == 1].mean() / 2)
    perfect = mean_average_precision(np.arange(6)[None], [{"easy": [0, 1, 2], "hard": [], "junk": []}])
    assert perfect["M"]["map"] == average_precision_score([1, 1, 1, 0, 0, 0], [6, 5, 4, 3, 2, 1]) == 1


def test_cases_by_hand():
    truth = [{"easy": [4], "hard": [1], "junk": [2, 0]}]
    ranks = [[2, 4, 3, 0, 1]]  # E: 4 | 3;  M: 4, 3, 1;  H: 3, 1
    found = mean_average_precision(np.array(ranks), truth)
    assert found["E"] == {"map": 1.0, "aps": [1.0]}
    assert found["M"]["map"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert found["H"]["map"] == pytest.approx((0 + 1 / 2) / 2)
    shares = precision_at(np.array(ranks), truth)
    assert [shares["M"][k]["mean"] for k in (1, 5, 10)] == pytest.approx([1, 2 / 3, 2 / 3])
    assert [shares["H"][k]["mean"] for k in (1, 5, 10)] == pytest.approx([0, 1 / 2, 1 / 2])
    # A query without positives is left out of the mean; where there is no other there is none.
    two = mean_average_precision(np.array(ranks * 2), [*truth, {"easy": [], "hard": [], "junk": [1]}])
    assert two["M"]["map"] == found["M"]["map"] and math.isnan(two["M"]["aps"][1])
    nothing = mean_average_precision(np.array(ranks), [{"easy": [], "junk": [0, 1, 2, 3, 4]}])
    assert all(math.isnan(part["map"]) and math.isnan(part["aps"][0]) for part in nothing.values())
    assert math.isnan(precision_at(np.array(ranks), [{"junk": [0]}])["H"][5]["mean"])
    empty = mean_average_precision(np.zeros((0, 5), int), [])
    assert empty["E"]["aps"] == [] and math.isnan(empty["E"]["map"])


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
def test_lists_arrays_and_tensors_are_the_same(dtype):
    ranks = np.array([[1, 0, 2, 3]], dtype)
    plain = mean_average_precision(ranks, [{"easy": [3], "hard": [2], "junk": []}])
    for kind in (tuple, lambda rows: np.array(rows), torch.tensor, lambda rows: np.array([rows], np.uint8)):
        truth = {name: kind(rows) for name, rows in {"easy": [3], "hard": [2], "junk": []}.items()}
        assert mean_average_precision(ranks, [truth]) == plain


@pytest.mark.parametrize(
    ("ranks", "truth", "said"),
    [
        (np.array([[0, 1, 1]]), [{"easy": [0]}], "query 0 is not a permutation of the 3 rows from 0 to 2"),
        (np.array([[7, 4, 5]]), [{"easy": [7]}], "pass all rows of the database"),  # the first few of many
        (np.array([[0, 1, -1]]), [{"easy": [0]}], "not a permutation"),
        (np.array([0, 1, 2]), [{"easy": [0]}], r"must be integers \(Q, N\).*int64 \(3,\)"),
        (torch.rand(1, 3), [{"easy": [0]}], "must be integers"),
        (np.array([[0, 1, 2]]), [], "1 rankings and the ground truth of 0 queries"),
        (np.array([[0, 1, 2]]), [{"easy": [3]}], "query 0 names row 3, and the database has rows 0 to 2"),
        (np.array([[0, 1, 2]]), [{"easy": [1], "junk": [1]}], "names row 1 twice"),
        (np.array([[0, 1, 2]]), [{"easy": [0.5]}], "must be a list of rows, integers, and holds float64"),
        (np.array([[0, 1, 2]]), [{"eazy": [0]}], "none of easy, hard, junk: expected lists of rows, got eazy"),
        (np.array([[0, 1, 2]]), [[0]], "got list"),
    ],
)
def test_what_does_not_fit_is_one_sentence(ranks, truth, said):
    with pytest.raises(ValueError, match=said):
        mean_average_precision(ranks, truth)
    with pytest.raises(ValueError, match=said):
        precision_at(ranks, truth)


def test_precision_needs_a_row():
    with pytest.raises(ValueError, match="at least 1 row, and was asked for 0"):
        precision_at(np.array([[0]]), [{"easy": [0]}], at=(0,))


def test_chance_is_the_mean_over_all_orders():
    for rows in range(1, 7):
        orders = np.array(list(itertools.permutations(range(rows))))
        for positives in range(1, rows + 1):
            truth = [{"easy": list(range(positives))}] * len(orders)
            assert chance(rows, positives) == pytest.approx(mean_average_precision(orders, truth)["E"]["map"])
    for wrong in ((3, 0), (3, 4), (0, 0)):
        with pytest.raises(ValueError, match="cannot have"):
            chance(*wrong)
