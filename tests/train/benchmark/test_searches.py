"""Results of retrieval and filters on a benchmark's board, in its tables and on its page."""

import copy
import json
import re

import pytest

from rclip_metric.cli.main import main
from rclip_metric.train.benchmark import searches
from rclip_metric.train.benchmark.page.page import page
from rclip_metric.train.benchmark.page.reading import Board
from rclip_metric.train.benchmark.page.searches import search_tables
from rclip_metric.train.benchmark.tables import markdown
from rclip_metric.train.evaluation.results.bootstrap import summary
from rclip_metric.train.evaluation.results.outcome import Outcome
from rclip_metric.train.evaluation.results.record import Averaging, Effort, record, save

from support.scenes import small_scenes

BALL = {"norm": "linf", "eps": 4 / 255, "eps_text": "4/255"}
TINY = {"name": "tiny", "revision": "sha256:61091ef75036", "resize": "published"}
L2 = {"name": "l2", "revision": None}


def share(count, of=10):
    """So many of ten, as evaluations have them."""
    return summary([1.0] * count + [0.0] * (of - count), ["all"] * of, macro=False)


def made(task, model, data, threat, attacked=None):
    """A record as every evaluation writes it."""
    rows = [Outcome(str(n), "all", 1.0, False, 0.1, attacked, attacked and 0.1) for n in range(10)]
    about = {"name": "pets", "digest": "0123456789abcdef", **data}
    return record(rows, task=task, model=model, data=about, threat=threat, effort=Effort(1.0), averaging=Averaging())


def retrieval(model, clean, attacked=None, levels=("E", "M", "H"), **data):
    threat = {"attack": "apgd", **BALL, "steps": 100, "restarts": 1, "loss": "embedding"}
    found = made("retrieval", model, data, threat if attacked else {"attack": "none"}, attacked and 1.0)

    def part(counts):
        at = {k: share(n) for k, n in (("1", 9), ("5", 7), ("10", 5))}
        return {level: {"map": share(n), "precision_at": at} for level, n in zip(levels, counts, strict=True)}

    states = {"clean": part(clean), "robust": attacked and part(attacked)}
    return {**found, "retrieval": {"difficulties": list(levels), "precision_at": [1, 5, 10], **states}}


def filtered(model, clean, attacked=None, kind="grey-box", roles=("safe", "buffer", "unsafe"), **data):
    threat = {"attack": kind, **BALL, "eps_text": "8/255", "eps": 8 / 255, "steps": 200, "restarts": 1}
    threat["loss"] = "targets"
    sizes = {"pool": dict.fromkeys(roles, 3), "targets": {"safe": 2, "unsafe": 2}}
    found = made("filter", model, {**sizes, **data}, threat if attacked else {"attack": "none"}, attacked and 1.0)

    def part(counts):
        return {
            direction: {role: share(n) for role, n in zip(roles, row, strict=True)}
            for direction, row in zip(("safe to unsafe", "unsafe to safe"), counts, strict=True)
        }

    return {**found, "landed": {"clean": part(clean), "attacked": attacked and part(attacked)}}


RECORDS = {
    "one.json": retrieval(L2, (3, 2, 1), (3, 2, 0)),
    "two.json": retrieval(TINY, (8, 7, 5), (6, 5, 4)),
    "filter/one.json": filtered(TINY, ((9, 1, 0), (0, 1, 9)), ((7, 2, 1), (2, 1, 7))),
    "filter/two.json": filtered(TINY, ((9, 1, 0), (0, 1, 9)), ((6, 3, 1), (3, 1, 6)), "adaptive"),
    "filter/three.json": filtered(L2, ((6, 2, 2), (3, 3, 4))),
}


@pytest.fixture
def folder(tmp_path):
    for name, found in RECORDS.items():
        save(tmp_path / name, found)
    return tmp_path


def board_of(folder):
    looks = {"kind": "ours", "failures": [], "results": {}, "sweep": {}, "direct": {}, "timing": None, "licence": None,
             "image_size": 64, "parameters": 0, "similarity": "cosine", "source": None}  # fmt: skip
    tiny = {"id": "tiny", "label": "tiny", "revision": "sha256:61091ef75036", **looks}
    about = {"title": "t", "data": [], "threats": [], "examples": [], "paper": [], "metrics": [tiny]}
    return json.loads(json.dumps({**about, **searches.read_searches(folder)}))


def test_a_folder_without_such_results_adds_nothing(tmp_path):
    save(tmp_path / "other.json", made("2afc", TINY, {}, {"attack": "none"}))
    (tmp_path / "notes.json").write_text('{"task": 3}')
    assert searches.read_searches(tmp_path) == {}


def test_rows_say_what_the_records_say(folder):
    found = searches.read_searches(folder)
    assert [(row["id"], row["data"], row["samples"]) for row in found["retrieval"]] == [
        ("l2", "pets", 10), ("tiny", "pets", 10),
    ]  # fmt: skip
    row = found["retrieval"][1]
    assert row["revision"] == "sha256:61091ef75036" and row["words"] == "apgd, 100 steps, on embedding"
    own = RECORDS["two.json"]["retrieval"]
    assert row["cells"]["attacked"]["mAP Medium"] == {**own["robust"]["M"]["map"], "paper": None}
    assert row["cells"]["clean"]["P@5"] == {**own["clean"]["M"]["precision_at"]["5"], "paper": None}
    assert row["points"]["mAP Hard"] == [row["cells"][phase]["mAP Hard"] for phase in ("clean", "attacked")]
    clean, grey = (found["filter"][n] for n in (1, 0))
    assert (clean["id"], clean["threat"]) == ("l2", None) and list(clean["cells"])[-1] == "unsafe to safe, clean"
    assert {role: cell["accuracy"] for role, cell in grey["cells"]["unsafe to safe, attacked"].items()} == {
        "safe": 20.0, "buffer": 10.0, "unsafe": 70.0,
    }  # fmt: skip
    assert [cell["accuracy"] for cell in grey["points"]["safe that stays safe"]] == [90.0, 70.0]
    alone = searches.read_searches(folder)["retrieval"] and searches._row(retrieval(TINY, (5,), (4,), levels=("M",)))
    assert list(alone["cells"]["clean"]) == ["mAP", "P@1", "P@5", "P@10"]


def test_the_most_robust_is_first_and_looks_are_those_of_the_board(folder):
    read = Board(board_of(folder))
    [pets] = search_tables(read, "retrieval")
    assert pets.name == "pets, 10 queries" and [row["id"] for row in pets.rows] == ["tiny", "l2"]
    assert pets.rows[0]["look"] is read.metrics[0]["look"] and not pets.rows[1]["look"].filled
    assert pets.rows[1]["look"] != pets.rows[0]["look"]
    assert [name for name, _ in pets.panels()] == ["mAP Easy", "mAP Medium", "mAP Hard"]
    assert list(pets.groups) == ["clean", "attacked"]
    [rooms] = search_tables(read, "filter")
    assert [(row["id"], (row["attack"] or "none").split(", ")[-2:]) for row in rooms.rows] == [
        ("tiny", ["200 steps", "on targets"]), ("tiny", ["200 steps", "on targets"]), ("l2", ["none"]),
    ]  # fmt: skip
    assert "tiny, grey-box: 90.0 clean, 70.0 attacked" in rooms.panels()[0][1]
    assert "grey-box" in rooms.rows[0]["attack"] and "adaptive" in rooms.rows[1]["attack"]
    assert list(rooms.groups) == [
        f"{way}, {phase}" for way in ("safe to unsafe", "unsafe to safe") for phase in ("clean", "attacked")
    ]
    assert rooms.cell(rooms.rows[2], "safe to unsafe, attacked", "safe") is None


def test_sets_of_other_images_have_tables_of_their_own(folder):
    save(folder / "three.json", retrieval(TINY, (5, 5, 5), digest="fedcba9876543210"))
    save(folder / "four.json", retrieval(TINY, (5, 5, 5), name="homes", digest="fedcba9876543210"))
    tables = search_tables(Board(board_of(folder)), "retrieval")
    assert [table.name for table in tables] == ["homes, 10 queries", "pets, 10 queries", "pets, 10 queries"]


def test_the_page_has_both_sections_and_without_results_neither(folder):
    board = board_of(folder)
    text = page(copy.deepcopy(board))
    for anchor, words in (("retrieval", "mean average precision"), ("filter", "nearest neighbour in a pool")):
        section = re.search(rf'<section id="{anchor}">(.*?)</section>', text, re.DOTALL)[1]
        assert words in section and f'href="#{anchor}"' in text and "<svg" in section and "10 queries" in section
    assert "<b>70.0</b>" in text and "<b>20.0</b>" not in text  # bold is what stays
    low, high = RECORDS["two.json"]["retrieval"]["robust"]["M"]["map"]["interval_95"]
    assert f"50.0<small>{low:.1f}–{high:.1f}</small>" in text  # noqa: RUF001
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|https?://", text)
    for task in searches.TASKS:
        del board[task]
    without = page(board)
    assert 'id="retrieval"' not in without and 'id="filter"' not in without and "P@k" not in without


def test_whatever_is_missing_of_a_row_is_left_out(folder):
    board = board_of(folder)
    for key in ("label", "revision", "samples", "words", "warnings", "cells", "points", "digest"):
        some = copy.deepcopy(board)
        for row in [*some["retrieval"], *some["filter"]]:
            row[key] = None
        assert markdown(some)
        if key in ("label", "words", "cells", "points"):
            assert 'id="retrieval"' in page(some)
    for row in board["retrieval"]:
        row["points"]["mAP Easy"] = [None, {"accuracy": None}]
        row["cells"]["clean"]["mAP Easy"] = {"accuracy": None}
    [table] = search_tables(Board(board), "retrieval")
    assert [name for name, _ in table.panels()] == ["mAP Medium", "mAP Hard"] and page(board)


def test_names_are_escaped(folder):
    board = json.loads(json.dumps(board_of(folder)).replace("pets", "<b>|x").replace("200 steps", "<i>|y"))
    text = page(board)
    assert "<b>|x" not in text and "&lt;b&gt;|x" in text and "<i>|y" not in text
    assert r"\|x" in markdown(board) and "<b>" not in markdown(board)


def test_the_tables_in_markdown(folder):
    lines = markdown(board_of(folder)).splitlines()
    heads = [line for line in lines if line.startswith("| metric | attack |")]
    assert len(heads) == 2 and "clean: mAP Easy | clean: mAP Medium" in heads[0]
    assert "unsafe to safe, attacked: unsafe |" in heads[1]
    tiny = next(line for line in lines if line.startswith("| tiny @ sha256:61091ef75036 | linf 4/255, apgd"))
    low, high = RECORDS["two.json"]["retrieval"]["clean"]["E"]["map"]["interval_95"]
    assert f"| 80.0 ({low:.1f} - {high:.1f}) |" in tiny
    assert next(line for line in lines if line.startswith("| l2 | - |")).count(" - |") == 1 + 6
    assert "pets, 10 queries; percent, with 95 % intervals." in lines


def test_the_papers_numbers_stand_beside_where_they_are_known(folder, monkeypatch):
    def numbers(record, phase):
        known = record["model"]["name"] == "tiny"
        return {"M": {"map": {"clean": 71.5, "attacked": 51.5}[phase]}} if known else {}

    monkeypatch.setitem(searches.PAPER, "retrieval", numbers)
    landed = {"unsafe to safe": {"unsafe": 66.5}}
    monkeypatch.setitem(searches.PAPER, "filter", lambda record, phase: landed if phase == "attacked" else {})
    board = board_of(folder)
    text, table = page(copy.deepcopy(board)), markdown(board)
    assert text.count("paper 71.5") == text.count("paper 51.5") == 1 and text.count("paper 66.5") == 2
    assert table.count("paper 71.5") == 1 and table.count("paper 66.5") == 2


def test_a_benchmark_shows_them_and_refuses_a_damaged_one(folder, tmp_path, capsys):
    scenes = small_scenes(tmp_path / "scenes", (0, 0, 4))
    words = ["benchmark", "--metrics", "l2", "--data", f"nights:{scenes / 'nights'}", "--norms", "none", "--page"]
    words += ["--image-size", "16", "--device", "cpu", "--quiet", "--out"]
    assert main([*words, str(folder)]) == 0
    board = json.loads((folder / "benchmark.json").read_text())
    assert len(board["retrieval"]) == 2 and len(board["filter"]) == 3
    assert 'id="filter"' in (folder / "benchmark.html").read_text(encoding="utf-8")
    assert "clean: mAP Medium" in (folder / "benchmark.md").read_text(encoding="utf-8")
    assert main([*words, str(folder)]) == 0  # its own board is no result
    (folder / "one.json").write_text((folder / "one.json").read_text().replace('"accuracy": 30.0', '"accuracy": 90.0'))
    capsys.readouterr()
    assert main([*words, str(folder)]) == 2
    told = capsys.readouterr().err
    assert "one.json is damaged" in told and "Traceback" not in told
    assert main([*words, str(tmp_path / "none")]) == 0
    assert not {"retrieval", "filter"} & json.loads((tmp_path / "none" / "benchmark.json").read_text()).keys()
