"""Twenty stumbles of the field: the page is the record, and our own column is run again."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.programs import EXAMPLES, load_example

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "pains.md").read_text(encoding="utf-8")
RECORD = json.loads((ROOT / "results" / "pains.json").read_text(encoding="utf-8"))
OWN = RECORD["packages"]["rclip-metric"]["pains"]


@pytest.fixture(scope="module")
def program() -> Any:
    """The script examples/pains.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return load_example("pains")


def test_the_page_is_the_record(program: Any) -> None:
    assert program.page(RECORD) == PAGE


def test_every_pain_has_a_cell_of_every_package_and_a_test_that_the_questions_name(program: Any) -> None:
    questions = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    assert len(program.PAINS) == 20
    assert list(RECORD["packages"]) == ["rclip-metric", "lpips", "dreamsim", "torchmetrics", "pyiqa"]
    outcomes = {*program.ORDER, program.NOT_OFFERED, program.NOT_APPLICABLE, program.NUMBERS, program.NOT_MEASURED}
    for one in RECORD["packages"].values():
        assert list(one["pains"]) == list(program.PAINS)
        assert all(outcome in outcomes and detail for outcome, detail in one["pains"].values())
    for pain, (_, test) in program.PAINS.items():
        assert f"`tests/{test}`" in questions, pain


@pytest.mark.parametrize("pain", [pain for pain in OWN if pain not in ("dependencies and pins",)])
def test_our_own_column_is_so(program: Any, pain: str) -> None:
    from pains_packages import PACKAGES  # type: ignore[import-not-found]  # beside the script

    outcome, detail = program.PAINS[pain][0](PACKAGES["rclip-metric"])
    if outcome == program.NOT_MEASURED:
        pytest.skip(detail)
    assert outcome == OWN[pain][0], detail
    assert outcome in (program.HANDLED, program.HINT), detail


def test_a_package_that_does_not_refuse_would_be_noticed(program: Any) -> None:
    assert program.tried(lambda: 1, lambda value: False, "range", "x")[0] == program.WRONG
    assert program.tried(lambda: 1 / 0, lambda value: True, "range", "x")[0] == program.ERROR
    assert program.tried(lambda: int("range"), lambda value: True, "range", "x")[0] == program.HINT
    assert program.worst([(program.HANDLED, "a"), (program.WRONG, "b"), (program.HINT, "c")]) == (
        program.WRONG,
        "a; b; c",
    )
