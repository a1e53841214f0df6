"""The table of splits."""

from rclip_metric.train.evaluation.results.breakdown import breakdown
from rclip_metric.train.evaluation.results.outcome import Outcome
from rclip_metric.train.evaluation.results.record import Effort, record


def result(attacked, **threat):
    rows = [
        Outcome(str(i), "cnn" if i < 3 else "color", float(i != 0), False, 0.1, float(i > 2) if i in attacked else None)
        for i in range(5)
    ]
    return record(rows, task="2afc", model={"name": "m"}, data={"name": "bapps"}, threat=threat, effort=Effort(1.0))


def test_every_split_has_its_own_numbers():
    linf = {"attack": "apgd", "norm": "linf", "eps": 4 / 255, "steps": 100}
    found = breakdown([result({0, 1, 3, 4}, **linf), result({0, 1, 2, 3, 4}, **{**linf, "norm": "l2", "eps": 3.0})])
    assert found.splitlines() == [
        "| model | data | split | samples | clean | linf 4/255 | l2 3 |",
        "|---|---|---|---:|---:|---:|---:|",
        "| m | bapps | cnn | 3 | 66.7 | 0.0 [2] | 0.0 |",
        "| m | bapps | color | 2 | 100.0 | 100.0 | 100.0 |",
    ]
    two = breakdown([result({1}, **linf), result({1}, **{**linf, "steps": 50})])
    assert "| linf 4/255, apgd 50 | linf 4/255, apgd 100 |" in two.splitlines()[0]
    assert breakdown([result(set(), attack="none")]).splitlines()[2] == "| m | bapps | cnn | 3 | 66.7 |"


def test_one_split_needs_no_table():
    rows = [Outcome("1", "all", 1.0, False, 0.1)]
    assert (
        breakdown(
            [
                record(
                    rows,
                    task="x",
                    model={"name": "m"},
                    data={"name": "d"},
                    threat={"attack": "none"},
                    effort=Effort(1.0),
                )
            ]
        )
        == ""
    )
