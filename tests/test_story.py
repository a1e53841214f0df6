"""The story runs from nothing to its figures at toy size, goes on where it was, and writes down what was found."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.results.record import load_results
from rclip_metric.weights import get_spec

from support.programs import load_example

ROOT = Path(__file__).parents[1]
WRITTEN = ROOT / "results" / "story"


story = load_example("story")

TYPICAL = {
    "clip": (92.5, 3.0, 9.1), "clip-mlp": (92.6, 2.5, 8.7), "clip-lora": (94.8, 3.0, 9.3),
    "fare": (92.4, 58.8, 62.0), "fare-mlp": (92.9, 59.0, 62.5), "fare-lora": (94.0, 61.2, 63.8),
    "tecoa": (88.1, 49.7, 55.5), "tecoa-mlp": (88.5, 50.3, 55.9), "tecoa-lora": (92.2, 57.0, 60.1),
}  # fmt: skip
EXTREME = {name: ((100.0, 100.0, 100.0) if "o" in name else (100.0, 0.0, 0.0)) for name in TYPICAL}


def summary(accuracy: float, half: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "interval_95": [max(0.0, accuracy - half), min(100.0, accuracy + half)]}


def told(values: dict[str, tuple[float, float, float]], half: float = 2.25) -> dict[str, Any]:
    """A story with these accuracies, clean, l_inf and l_2."""
    rows: list[dict[str, Any]] = []
    for name, (clean, linf, l2) in values.items():
        base, dash, tuning = name.partition("-")
        row: dict[str, Any] = {"name": name, "encoder": story.BASES[base], "tuning": story.TUNINGS[dash + tuning]}
        row |= {"clean": summary(clean, half), "linf": summary(linf, half), "l2": summary(l2, half)}
        row |= {"seed": 0, "warnings": [], "paper": None}
        rows.append(row)
    rows[3]["paper"] = get_spec("r-clip-f").reported["nights"]
    rows[5]["warnings"] = ["3 of 400 samples are ties."]
    stages = [
        {"stage": "scenes", "seconds": None, "command": "rclip-metric train scenes"},
        {"stage": "Clean CLIP", "seconds": 3840.2, "command": "rclip-metric train clip"},
        {"stage": "evaluation of clip", "seconds": 59.4, "command": "rclip-metric eval nights --model a"},
        {"stage": "evaluation of fare", "seconds": 60.7, "command": "rclip-metric eval nights --model b"},
    ]
    return {
        "quick": False, "triplets": 400, "attack": {"name": "apgd", "steps": 100, "seed": 0}, "rows": rows,
        "stages": stages, "versions": {"torch": "2.6", "python": "3.11"},
        "machine": {"type": "cpu", "name": "Some CPU", "cores": 2},
    }  # fmt: skip


# The whole of it


def commands(printed: str) -> list[str]:
    return [line[2:] for line in printed.splitlines() if line.startswith("$ ")]


def test_from_nothing_to_the_figures_and_only_once(tmp_path, capsys):
    out = tmp_path / "story"
    found = story.main(["--quick", "--out", str(out)])
    ran = commands(capsys.readouterr().out)
    assert ran == [stage["command"] for stage in found["stages"]] and len(ran) == 3 + 2 + 6 + 9
    assert [command.split()[2] for command in ran[:5]] == ["scenes", "clip", "text", "fare", "tecoa"]

    records = {(r["model"]["name"], r["threat"]["norm"]): r for r in load_results([out / "results"])}
    assert len(records) == 18 and found["triplets"] == 24
    methods = ["CLIP", "MLP", "LoRA", "FARE", "MLP", "LoRA", "TeCoA", "MLP", "LoRA"]
    assert [row["method"] for row in found["rows"]] == methods
    for row in found["rows"]:
        name = "tiny-clean in clip" if row["name"] == "clip" else row["name"]
        for norm in ("linf", "l2"):
            outcomes = unpack(records[name, norm])
            assert row[norm]["accuracy"] == pytest.approx(100 * sum(o.robust or 0 for o in outcomes) / 24, abs=1e-4)
            assert row["clean"]["accuracy"] == pytest.approx(100 * sum(o.clean for o in outcomes) / 24, abs=1e-4)
            assert records[name, norm]["threat"]["steps"] == 3
    assert len({row["sha256"] for row in found["rows"]}) == 9
    base = json.loads((out / "tecoa-lora" / "run.json").read_text())["base"]["name"]
    assert base == "tecoa" and json.loads((out / "fare" / "run.json").read_text())["recipe"]["steps"] == 3
    assert all(stage["seconds"] is not None for stage in found["stages"])

    folder = out / "results"
    assert json.loads((folder / "story.json").read_text()) == found
    assert (folder / "README.md").read_text() == story.page(found)
    with Image.open(folder / "story.png") as picture:
        assert picture.size == (1650, 780)

    assert story.main(["--quick", "--out", str(out)]) == found
    assert commands(capsys.readouterr().out) == []

    # Results of other weights are not taken for those of these.
    known = json.loads((folder / story.WEIGHTS).read_text())
    (folder / story.WEIGHTS).write_text(json.dumps(known | {"fare-mlp": "0" * 64}))
    again = story.main(["--quick", "--out", str(out)])
    [command] = commands(capsys.readouterr().out)
    assert command.startswith("rclip-metric eval nights") and f"{out / 'fare-mlp'} " in command
    assert json.loads((folder / story.WEIGHTS).read_text()) == known
    for row, before in zip(again["rows"], found["rows"], strict=True):
        assert row | {"attack_seconds": 0} == before | {"attack_seconds": 0}


def scenes(folder: Path, images: str) -> Any:
    words = f"train scenes --out {folder} --images {images} --triplets 1,1,1 --pool 1 --queries 1"
    return story.Stage(folder.name, folder.name, tuple(words.split()), (folder / "scenes.json",))


def test_commands_run_beside_each_other_as_processes(tmp_path):
    stages = [scenes(tmp_path / name, "2") for name in ("a", "b")]
    assert not any(stage.done for stage in stages)
    story.run(stages, 2, tmp_path / "ledger.jsonl")
    assert all(stage.done for stage in stages)
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert {line["command"] for line in lines} == {str(stage) for stage in stages}
    assert all(line["seconds"] > 0 for line in lines)


def test_a_command_that_fails_is_the_last_and_gives_its_code(tmp_path, capsys):
    stages = [scenes(tmp_path / "a", "none"), scenes(tmp_path / "b", "2")]
    with pytest.raises(SystemExit) as stopped:
        story.run(stages, 0, tmp_path / "ledger.jsonl")
    assert stopped.value.code == 2 and not (tmp_path / "b").exists() and not (tmp_path / "ledger.jsonl").exists()
    assert "a: ended with exit code 2\nthe same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "-1"], "--triplets and --steps must be at least 1"),
        (["--out", "my runs"], "a path has a space in it"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        story.main(arguments)


def test_the_real_story_is_the_recipes_and_the_papers_attack():
    options = story.Plan(Path("runs/story"), Path("data/scenes"), Path("results/story"), 400, 100, False)
    words = [str(stage) for group in story.trainings(options) for stage in group]
    assert words[0] == "rclip-metric train scenes --out data/scenes --pairs 150"
    assert words[3].startswith("rclip-metric train fare --recipe tiny --base runs/story/clip --images ")
    assert words[4].startswith("rclip-metric train tecoa --recipe tiny-tecoa --base runs/story/clip --images ")
    assert "--norm linf l2 --eps 4/255 0.857 --steps 100 --limit 400" in str(story.evaluation(options, "fare"))


# What is written


def test_the_table_has_our_numbers_and_the_papers():
    lines = story.table(told(TYPICAL)).splitlines()
    assert len(lines) == 11 and len({line.count("|") for line in lines}) == 1
    assert lines[2] == (
        "| Clean CLIP | zero-shot | 92.5 (90.2 - 94.8) | 3.0 (0.8 - 5.2) | 9.1 (6.8 - 11.3) | - | - | - |"
    )
    assert lines[5] == (
        "| R-CLIP_F | zero-shot | 92.4 (90.2 - 94.7) | 58.8 (56.5 - 61.0) | 62.0 (59.8 - 64.2) | 90.6 | 74.3 | 66.1 |"
    )
    assert lines[10].startswith("| R-CLIP_T | + LoRA | 92.2 ")


def test_the_page_says_what_a_reader_must_know():
    text = story.page(told(TYPICAL))
    assert "400 held-out triplets" in text and "- fare-lora: 3 of 400 samples are ties." in text
    assert "| scenes | not measured: it was there |" in text and "| Clean CLIP | 1 h 04 min |" in text
    assert "| evaluation of all 2 | 2 min 00 s |" in text and "| together | 1 h 06 min |" in text
    assert "toy size" not in text and "toy size" in story.page(told(TYPICAL) | {"quick": True})
    assert "```\nrclip-metric train scenes\nrclip-metric train clip\n" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (3660, "1 h 01 min")]
)
def test_durations(seconds, words):
    assert story.duration(seconds) == words


def test_seconds_of_a_run_in_three_parts():
    """The second was stopped before it had written a line more than the first; the third begins at a later second."""
    entries = [(10, 15.0), (20, 30.0), (20, 16.0), (30, 33.0), (40, 9.0), (50, 24.0)]
    log = "\n".join(json.dumps({"step": step, "seconds": seconds}) for step, seconds in entries)
    assert story.logged_seconds(log) == 30 + 33 + 24


@pytest.mark.parametrize(("values", "half"), [(TYPICAL, 2.25), (EXTREME, 0.0), (EXTREME, 40.0)])
def test_nothing_in_the_figure_lies_on_something_else(values, half):
    from matplotlib.text import Text

    drawn = story.figure(told(values, half))
    drawn.canvas.draw()
    renderer = drawn.canvas.get_renderer()
    boxes = {}
    for text in drawn.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            boxes[text] = text.get_window_extent(renderer)
    whole = drawn.bbox
    for text, box in boxes.items():
        inside = box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y0 >= whole.y0 and box.y1 <= whole.y1
        assert inside, text.get_text()
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        assert not a.overlaps(b), (one.get_text(), other.get_text())


def test_the_figure_shows_the_numbers():
    drawn = story.figure(told(TYPICAL))
    scatter, bars = drawn.axes
    points = [container.lines[0] for container in scatter.containers]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in points] == [v[:2] for v in TYPICAL.values()]
    assert len({line.get_color() for line in points}) == 3 and len({line.get_marker() for line in points}) == 3
    low, high = scatter.get_xlim()
    assert low < 88.1 - 2.25 and high > 94.8 + 2.25
    assert [bar.get_width() for bar in bars.patches] == [v[1] for v in TYPICAL.values()]
    labels = [label.get_text() for label in bars.get_yticklabels()]
    assert labels[0] == "Clean CLIP, zero-shot" and labels[8] == "R-CLIP_T, + LoRA" and bars.yaxis_inverted()
    [chance] = [line for line in scatter.lines if list(line.get_ydata()) == [50, 50]]
    assert chance.get_linestyle() == "--"


def test_the_story_that_is_told_is_that_of_the_saved_results():
    found = json.loads((WRITTEN / "story.json").read_text())
    assert (WRITTEN / "README.md").read_text() == story.page(found) and (WRITTEN / "story.png").exists()
    assert not found["quick"] and found["attack"]["steps"] == 100
    records = {(r["model"]["name"], r["threat"]["norm"]): r for r in load_results([WRITTEN])}
    assert len(records) == 18
    for row in found["rows"]:
        for norm in ("linf", "l2"):
            record = records["tiny-clean" if row["name"] == "clip" else row["name"], norm]
            assert row[norm]["accuracy"] == record["robust"]["accuracy"]
            assert row["clean"]["accuracy"] == record["clean"]["accuracy"]
            assert record["data"]["samples"] == found["triplets"]
