"""Tables and plots of results: every number in them is that of the records."""

import csv
import importlib
import io
import math
import re
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from rclip_metric.train.evaluation import results
from rclip_metric.train.evaluation.results.leaderboard import plot, sweep_plot, table
from rclip_metric.train.evaluation.results.outcome import Outcome
from rclip_metric.train.evaluation.results.record import Averaging, Effort, record
from rclip_metric.train.metrics.paper import BAPPS_SPLITS, PUBLISHED, PublishedSet, published_as, reported
from rclip_metric.weights import get_spec, model_names

R_CLIP_F = {"name": "r-clip-f", "revision": (get_spec("r-clip-f").revision or "").ljust(40, "0"), "resize": "published"}
OURS = {"name": "ours", "revision": "sha256:0123456789ab", "resize": "published"}
SCENES: dict[str, Any] = {"name": "scenes", "split": "test", "protocol": None, "unreadable": []}
NIGHTS = {**SCENES, "name": "nights", "published": "nights"}
LINF = {"attack": "apgd", "norm": "linf", "eps": 4 / 255, "steps": 100, "restarts": 1, "loss": "ce"}
L2 = {**LINF, "norm": "l2", "eps": 3.0}
CLEAN = {"attack": "none"}


def made(right: int, robust: int | None, samples: int, **changes):
    """The record of a model that decides ``right`` of ``samples`` triplets rightly, and ``robust`` under attack."""
    rows = [
        Outcome(str(i), "test", float(i < right), False, 0.1, None if robust is None else float(i < robust))
        for i in range(samples)
    ]
    settings = {"task": "2afc", "model": OURS, "data": SCENES, "threat": LINF, "effort": Effort(1.0), **changes}
    if robust is None:
        settings["threat"] = CLEAN
    return record(rows, **settings)


def bapps(robust_per_split: int = 1000, protocol: str = "majority", per_split: int = 6060, **changes):
    rows = [
        Outcome(
            f"{split}/{i}", split, float(i % 4 > 0), False, 0.1, float(i % 5 == 1) if i < robust_per_split else None
        )
        for split in sorted(BAPPS_SPLITS)
        for i in range(per_split)
    ]
    data: dict[str, Any] = {"name": "2afc", "split": None, "protocol": protocol, "unreadable": [], "published": "bapps"}
    data |= {"interpolation": "bilinear"}
    settings = {"task": "2afc", "model": R_CLIP_F, "data": data, "threat": LINF, "effort": Effort(1.0), **changes}
    return record(rows, averaging=Averaging(macro=True, resamples=100), **settings)


# Tables


def test_markdown_table_is_exact():
    records = [
        made(8, 8, 8, threat={**L2, "eps": 0.857}),
        made(8, 0, 8, model={**OURS, "name": "fragile"}),
        made(8, 8, 8),
    ]
    assert table(records).splitlines() == [
        "| model | data | samples | clean | linf 4/255 | l2 0.857 |",
        "|---|---|---:|---:|---:|---:|",
        "| ours @ sha256:0123456789ab | scenes test | 8 | 100.0 (100.0 - 100.0) | 100.0 (100.0 - 100.0) | "
        "100.0 (100.0 - 100.0) |",
        "| fragile @ sha256:0123456789ab | scenes test | 8 | 100.0 (100.0 - 100.0) | 0.0 (0.0 - 0.0) | - |",
        "",
        "Percent, with 95 % bootstrap intervals. Attack: apgd, 100 steps, loss ce, 1 restart.",
    ]


def test_cells_quote_accuracy_and_interval_of_the_record():
    built = made(1063, 676, 1150)
    low, high = built["robust"]["interval_95"]
    # 676 of 1150 is 58.78 %; the normal interval is 2.85 to either side.
    assert (low, high) == pytest.approx((58.78 - 2.85, 58.78 + 2.85), abs=0.2)
    assert f"| 58.8 ({low:.1f} - {high:.1f}) |" in table([built])


def test_columns_are_ordered_and_named_by_what_differs():
    changes: list[dict[str, Any]] = [
        L2, {**L2, "eps": 0.5}, {**LINF, "eps": 8 / 255}, LINF, {**LINF, "steps": 50},
        {**L2, "norm": "l1", "eps": 12.0}, {"attack": "square", "norm": "linf", "eps": 4 / 255, "queries": 5000},
    ]  # fmt: skip
    lines = table([made(9, 5, 10, threat=threat) for threat in changes]).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[5:-1]] == [
        "linf 4/255 apgd 50 steps loss ce 1 restart",
        "linf 4/255 apgd 100 steps loss ce 1 restart",
        "linf 4/255 square 5000 queries",
        "linf 8/255 apgd 100 steps loss ce 1 restart",
        "l2 0.5 apgd 100 steps loss ce 1 restart",
        "l2 3 apgd 100 steps loss ce 1 restart",
        "l1 12 apgd 100 steps loss ce 1 restart",
    ]
    others: list[dict[str, Any]] = [{**LINF, "attack": "transfer", "source": OURS}, {**LINF, "larger_eps": True}]
    header = table([made(9, 5, 10, threat=threat) for threat in others]).splitlines()[0]
    assert header.endswith("| linf 4/255 apgd larger_eps | linf 4/255 transfer source ours @ sha256:0123456789ab |")
    header = table([made(9, 5, 10), made(9, 5, 10, threat={**LINF, "steps": 10})]).splitlines()[0]
    assert header.endswith("| linf 4/255 10 steps | linf 4/255 100 steps |")


def test_rows_are_sorted_by_the_first_robust_column():
    records = [made(90, robust, 100, model={"name": f"m{robust}"}) for robust in (20, 60, 5)]
    records += [made(95, None, 100, model={"name": "only-clean"}), made(90, 80, 100, model={"name": "l2"}, threat=L2)]
    names = [line.split("|")[1].strip() for line in table(records).splitlines()[2:7]]
    assert names == ["m60", "m20", "m5", "only-clean", "l2"]


def test_a_row_per_run_and_no_record_is_lost():
    first, again = made(9, 5, 10), made(9, 4, 10, settings={"seed": 1})
    clean, part = made(9, None, 10), made(4, 2, 5)
    cells = [line.split("|")[3:6] for line in table([first, first, again, clean, part]).splitlines()[2:5]]
    assert [[cell.strip().split(" ")[0] for cell in row] for row in cells] == [
        ["10", "90.0", "50.0"], ["10", "90.0", "40.0"], ["5", "80.0", "40.0"],
    ]  # fmt: skip


def test_paper_stands_beside_the_released_model_on_nights_only():
    numbers = get_spec("r-clip-f").reported["nights"]
    records = [made(1650, 1355, 1824, model=R_CLIP_F, data=NIGHTS, threat=threat) for threat in (LINF, L2)]
    line = table(records).splitlines()[2]
    cells = [cell.strip() for cell in line.split("|")[4:-1]]
    assert [cell.rsplit(", ", 1)[1] for cell in cells] == [
        f"paper {numbers[key]:.1f}" for key in ("clean", "linf", "l2")
    ]
    assert numbers == {"clean": 90.6, "linf": 74.3, "l2": 66.1}
    scenes = [made(1650, 1355, 1824, model=R_CLIP_F, threat=threat) for threat in (LINF, L2)]
    assert "paper" not in table(scenes) and "paper" in table(scenes[:1] + records)


@pytest.mark.parametrize(
    "changes",
    [
        {"threat": {**LINF, "eps": 8 / 255}},
        {"threat": {**LINF, "steps": 50}},
        {"threat": {**LINF, "restarts": 5}},
        {"threat": {**LINF, "attack": "square"}},
        {"threat": {**LINF, "loss": "margin"}},
        {"threat": {**LINF, "larger_eps": True}},
        {"threat": {**LINF, "source": OURS}},
        {"threat": {**L2, "eps": 0.857}},
        {"data": SCENES},
        {"data": {**NIGHTS, "published": None}},
        {"data": {**NIGHTS, "unreadable": ["a.png"]}},
        {"settings": {"limit": 1824}},
        {"model": {**R_CLIP_F, "resize": "squash"}},
        {"model": {**R_CLIP_F, "revision": "f" * 40}},
        {"model": OURS},
    ],
)
def test_other_settings_have_no_number_in_the_paper(changes):
    same = made(1650, 1355, 1824, model=R_CLIP_F, data=NIGHTS)
    assert (reported(same, "clean"), reported(same, "robust")) == (90.6, 74.3)
    other = made(1650, 1355, 1824, **{"model": R_CLIP_F, "data": NIGHTS, **changes})
    assert reported(other, "robust") is None
    assert reported(other, "clean") == (90.6 if "threat" in changes else None)
    del same["data"]["published"]  # of a version that did not ask
    assert reported(same, "clean") is None
    renamed = made(1650, 1355, 1824, model=R_CLIP_F, data={**NIGHTS, "name": "mine"})
    assert (reported(renamed, "clean"), reported(renamed, "robust")) == (90.6, 74.3)


def test_the_paper_stands_beside_converted_metrics_of_others_at_their_size():
    dreamsim = {"name": "dreamsim", "revision": "sha256:0123456789ab", "resize": None, "preprocessing": {"crop": 224}}
    record = made(1755, 9, 1824, model=dreamsim, data=NIGHTS)
    assert (reported(record, "clean"), reported(record, "robust")) == (96.2, 0.5)
    for changes in ({"revision": None}, {"name": "dreamsim@random"}, {"preprocessing": {"crop": 64}}):
        assert reported(made(1755, 9, 1824, model={**dreamsim, **changes}, data=NIGHTS), "clean") is None


def test_every_released_model_has_its_number():
    found, nights = {}, made(1650, 1355, 1824, data=NIGHTS)
    for name in model_names():
        spec = get_spec(name)
        packaged = f"sha256:{(spec.files[0].sha256 or '')[:12]}" if spec.source == "package" else ""
        built = {**nights, "model": {"name": name, "revision": packaged or (spec.revision or "").ljust(40, "0")}}
        found[name] = {"clean": reported(built, "clean"), "linf": reported(built, "robust")}
    # What the manifest knows no file of has no number: any weights could bear its name.
    known = {name: get_spec(name).source != "local" for name in model_names()}
    expected = {name: get_spec(name).reported.get("nights", {}) if known[name] else {} for name in model_names()}
    assert found == {name: {key: numbers.get(key) for key in ("clean", "linf")} for name, numbers in expected.items()}


def test_paper_on_other_data():
    numbers = get_spec("r-clip-f").reported
    whole = bapps()
    assert reported(whole, "clean") == numbers["bapps"]["clean"] == 74.0
    assert reported(whole, "robust") == numbers["bapps"]["linf"] == 19.0
    for change in ({"protocol": "lpips"}, {"interpolation": None}):  # the paper resized bilinearly
        assert reported({**whole, "data": {**whole["data"], **change}}, "clean") is None
    fewer = bapps(robust_per_split=500, per_split=1000)["splits"]
    fewer = {split: {**whole["splits"][split], "robust": fewer[split]["robust"]} for split in fewer}
    assert reported({**whole, "splits": fewer}, "clean") == 74.0
    assert reported({**whole, "splits": fewer}, "robust") is None
    things = made(51, None, 100, task="odd-one-out", model=R_CLIP_F, data={**SCENES, "name": "things"})
    assert reported(things, "clean") is None
    things["data"]["published"] = "things"
    assert reported(things, "clean") == numbers["things"]["clean"] == 51.2
    both = {**LINF, "attack": "apgd-ce+apgd-t", "loss": None, "targets": 9}
    data = {**SCENES, "name": "imagenet", "split": "val", "published": "imagenet"}
    whole = made(31_300, 12_000, 50_000, task="zero-shot", model=R_CLIP_F, data=data, threat=both)
    for eps, key in ((2, "linf_2"), (4, "linf_4")):
        built = {**whole, "threat": {**whole["threat"], "eps": eps / 255}}
        assert reported(built, "robust") == numbers["imagenet_zero_shot"][key]
        assert reported(built, "clean") == 62.6
        assert reported({**built, "task": "2afc"}, "clean") is None


def test_published_data_are_recognised_by_number_and_digest(monkeypatch):
    # Nobody has told the digest yet: the user has to state it, and the number has to fit.
    assert published_as("nights", 1824, "0" * 16, "test") is None
    assert published_as("nights", 1824, "0" * 16, "test", stated=True) == "nights"
    for samples, split in ((1823, "test"), (1824, "val")):
        with pytest.raises(
            ValueError, match=r"not the published set nights: it has 1,824 samples of split test; leave"
        ):
            published_as("nights", samples, "0" * 16, split, stated=True)
    assert published_as("bapps", 36_344, "0" * 16, stated=True) == "bapps"
    with pytest.raises(ValueError, match="36,001 to 36,999 samples"):
        published_as("bapps", 1000, "0" * 16, stated=True)
    # Once it is known, it decides.
    monkeypatch.setitem(PUBLISHED, "nights", PublishedSet((1824, 1824), "1" * 16, "test"))
    assert published_as("nights", 1824, "1" * 16, "test") == "nights"
    assert published_as("nights", 1824, "0" * 16, "test") is published_as("nights", 9, "1" * 16, "test") is None
    with pytest.raises(ValueError, match="their digest is 0000000000000000 and not 1111111111111111"):
        published_as("nights", 1824, "0" * 16, "test", stated=True)


def test_the_kind_of_intervals_is_said():
    few = made(9, None, 10, settings={"resample": "images"})
    assert table([few]).splitlines()[-1] == "Percent, with 95 % intervals over images."
    both = table([few, made(8, None, 10, data={**SCENES, "name": "many"}), made(9, None, 10)]).splitlines()
    assert len(both) == 7  # other intervals, another row
    assert both[-1] == (
        "Percent, with 95 % bootstrap intervals (many test, scenes test) and 95 % intervals over images (scenes test)."
    )
    assert next(csv.DictReader(io.StringIO(table([few], "csv"))))["intervals"] == "95 % intervals over images"


def test_a_column_for_people_and_the_number_attacked():
    built = bapps(protocol="soft", human={"accuracy": 82.61, "ceiling": 87.06})
    head, _, line = table([built]).splitlines()[:3]
    assert head.endswith("| linf 4/255 | human |") and line.endswith("; 6000 samples) | 82.6, ceiling 87.1 |")
    row = next(csv.DictReader(io.StringIO(table([built], "csv"))))
    assert (row["human"], row["human: ceiling"]) == ("82.61", "87.06")
    assert "| 75.0 (" in line and f"| {built['robust']['accuracy']:.1f} (" in line
    # The robust one by hand: of every 1,000 attacked in a split, i = 1, 6, 11, ... are robust.
    assert built["robust"]["accuracy"] == 20.0


def test_warnings_become_footnotes():
    tied = [Outcome(str(i), "test", 1.0, i == 0, 0.1, 0.0) for i in range(4)]
    settings: dict[str, Any] = {"task": "2afc", "model": OURS, "data": SCENES}
    masked, free = Effort(1.0, zero_gradients=2), Effort(1.0)
    records = [record(tied, threat=LINF, effort=masked, **settings), record(tied, threat=L2, effort=free, **settings)]
    text = table(records)
    assert "| 0.0 (0.0 - 0.0) [1] [2] | 0.0 (0.0 - 0.0) [2] |" in text
    one, two = text.splitlines()[-2:]
    assert one.startswith("- [1] ours @ sha256:0123456789ab, linf 4/255: 2 of 4")
    assert two.startswith("- [2] ours") and "1 of 4 samples are ties" in two
    assert table(records, "csv").splitlines()[1].count("all-zero gradient") == 1
    assert '<li id="note-2">' in table(records, "html")


def test_csv_has_a_number_per_column():
    records = [made(1650, 1355, 1824, model=R_CLIP_F, data=NIGHTS), made(9, 5, 10, model={"name": 'a,"b"'})]
    rows = list(csv.DictReader(io.StringIO(table(records, "csv"))))
    assert [row["model"] for row in rows] == ["r-clip-f", 'a,"b"']
    name = "linf 4/255, apgd, 100 steps, loss ce, 1 restart"
    built = records[0]
    assert float(rows[0][name]) == built["robust"]["accuracy"] == round(135500 / 1824, 4)
    assert [float(rows[0][f"{name}: {end}"]) for end in ("low", "high")] == built["robust"]["interval_95"]
    assert float(rows[0]["clean"]) == built["clean"]["accuracy"] and rows[0]["revision"] == R_CLIP_F["revision"][:7]
    assert (rows[0]["clean: paper"], rows[0][f"{name}: paper"], rows[1]["clean: paper"]) == ("90.6", "74.3", "")
    assert (rows[0]["data"], rows[0]["split"], rows[0]["samples"], rows[0]["ties"]) == ("nights", "test", "1824", "0")


class Page(HTMLParser):
    """Collects tags, attributes and the text of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self._inside = False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag in ("td", "th"):
            self.cells.append("")
            self._inside = True

    def handle_endtag(self, tag):
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self._inside:
            self.cells[-1] += data


def test_html_escapes_and_needs_nothing_else():
    name = '<b>"x" & co</b>'
    text = table([made(9, 5, 10, model={"name": name}, effort=Effort(1.0, zero_gradients=1))], "html")
    page = Page()
    page.feed(text)
    assert "b" not in page.tags and name in page.cells
    assert page.cells[:5] == ["model", "data", "samples", "clean", "linf 4/255"]
    assert page.cells[9].startswith("50.0[1](")
    assert page.links == ["#note-1"] and 'data-value="50.0"' in text


def test_markdown_shows_names_as_they_are():
    line = table([made(9, 5, 10, model={"name": "<b>|*[x]"})]).splitlines()[2]
    assert line.startswith(r"| &lt;b&gt;\|\*\[x\] | scenes test |")


def test_tables_refuse_nonsense():
    with pytest.raises(ValueError, match="no results"):
        table([])
    with pytest.raises(ValueError, match="unknown style 'latex': use one of markdown, csv, html"):
        table([made(9, 5, 10)], "latex")  # type: ignore[arg-type]


# Plots


def sweep(**changes) -> list[dict[str, Any]]:
    """Two models at three l_inf and two l_2 radii."""
    pairs = [({"name": "a"}, 90), ({"name": "b", "revision": "sha256:1"}, 40)]
    balls = [("linf", 8 / 255, 0.3), ("linf", 1 / 255, 0.9), ("linf", 4 / 255, 0.5), ("l2", 3.0, 0.4), ("l2", 0.5, 0.8)]
    return [
        made(95, round(share * top), 100, model=model, threat={**LINF, "norm": norm, "eps": eps, **changes})
        for model, top in pairs
        for norm, eps, share in balls
    ]


def test_figure_draws_the_records():
    pytest.importorskip("matplotlib")
    from rclip_metric.train.evaluation.results.curves import figure

    records = sweep()
    drawn = figure(records)
    left, right = drawn.axes
    assert "infty" in left.get_xlabel() and "/255" in left.get_xlabel() and "ell_2" in right.get_xlabel()
    assert left.get_ylim() == right.get_ylim() == (0, 100)
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines) == ["a", "b @ sha256:1"]
    assert lines["a"].get_xdata().tolist() == [0, 1, 4, 8]
    assert lines["a"].get_ydata().tolist() == [95.0, 81.0, 45.0, 27.0]
    assert lines["b @ sha256:1"].get_ydata().tolist() == [95.0, 36.0, 20.0, 12.0]
    other = {line.get_label(): line for line in right.lines}
    assert other["a"].get_xdata().tolist() == [0, 0.5, 3] and other["a"].get_ydata().tolist() == [95.0, 72.0, 36.0]
    assert other["a"].get_color() == lines["a"].get_color() != lines["b @ sha256:1"].get_color()
    # The band of a at 8/255 is the interval of its record.
    interval = records[0]["robust"]["interval_95"]
    corners = left.collections[0].get_paths()[0].vertices
    assert sorted({y for x, y in corners.tolist() if x == 8}) == pytest.approx(interval)
    title = drawn.get_suptitle()
    assert "scenes test, 100 samples" in title and "apgd, 100 steps" in title
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert legend == ["a", "b\n@ sha256:1"]
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0", "1", "4", "8"]


def test_radii_far_apart_get_a_logarithmic_axis():
    pytest.importorskip("matplotlib")
    from rclip_metric.train.evaluation.results.curves import figure

    near = [made(9, 5, 10, threat={**LINF, "eps": eps / 255}) for eps in (1, 16)]
    assert figure(near).axes[0].get_xscale() == "linear"
    far = [*near, made(9, 5, 10, threat={**LINF, "eps": 32 / 255})]
    assert figure(far).axes[0].get_xscale() == "symlog"


def test_settings_that_differ_make_lines_of_their_own():
    pytest.importorskip("matplotlib")
    from rclip_metric.train.evaluation.results.curves import figure

    drawn = figure([*sweep(), *sweep(steps=10)])
    labels = [line.get_label() for line in drawn.axes[0].lines]
    assert sorted(labels) == ["a, 10 steps", "a, 100 steps", "b @ sha256:1, 10 steps", "b @ sha256:1, 100 steps"]
    assert "steps" not in drawn.get_suptitle()


def test_sweep_draws_accuracy_against_steps():
    pytest.importorskip("matplotlib")
    from rclip_metric.train.evaluation.results.curves import sweep_figure

    steps = {10: 60, 100: 52, 1000: 50}
    threats = [{**ball, "steps": count} for ball in (LINF, L2) for count in reversed(steps)]
    drawn = sweep_figure([made(90, steps[threat["steps"]], 100, threat=threat) for threat in threats])
    axes = drawn.axes[0]
    assert axes.get_xscale() == "log" and axes.get_title().endswith("4/255")
    curve, clean = axes.lines
    assert curve.get_xdata().tolist() == [10, 100, 1000] and curve.get_ydata().tolist() == [60.0, 52.0, 50.0]
    assert set(clean.get_ydata()) == {90.0} and clean.get_linestyle() == "--"
    restarts = [made(90, 50 - count, 100, threat={**LINF, "restarts": count}) for count in (1, 5)]
    assert sweep_figure(restarts, "restarts").axes[0].lines[0].get_ydata().tolist() == [49.0, 45.0]


def test_plots_are_written_whole_in_three_formats(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    records = sweep()
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        path = tmp_path / "made" / f"plot{suffix}"
        plot(records, path)
        assert path.read_bytes().startswith(start) and path.stat().st_size > 5000
    sweep_plot(records[:1], tmp_path / "made" / "sweep.png")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "plot.pdf", "plot.png", "plot.svg", "sweep.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "made" / "plot.png") as image:
        # Two panels of 4.2 inches, 0.8 for the legend and 0.075 for each of 10 letters, by 3.6; 150 dots an inch.
        assert image.size == (math.floor(150 * (2 * 4.2 + 0.8 + 10 * 0.075)), 540)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ("0072B2", "D55E00"):  # the first two lines
        assert (pixels == np.frombuffer(bytes.fromhex(colour), np.uint8)).all(1).sum() > 500
    assert (pixels == 255).all(1).mean() > 0.7


def test_names_are_not_taken_for_mathematics(tmp_path):
    pytest.importorskip("matplotlib")
    plot([made(9, 5, 10, model={"name": name}) for name in ("$x_{$", "_hidden", "50%")], tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 5000


def test_plots_refuse_what_cannot_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    records = sweep()
    with pytest.raises(ValueError, match="nothing to draw"):
        plot([made(9, None, 10)], tmp_path / "a.png")
    with pytest.raises(ValueError, match="nights test, scenes test: draw each by itself"):
        plot([made(9, 5, 10), made(9, 5, 10, data=NIGHTS)], tmp_path / "a.png")
    with pytest.raises(ValueError, match="two results of a at linf 8/255"):
        plot([*records, records[0]], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.jpg names no format"):
        plot(records, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="'queries' is None"):
        sweep_plot(records, tmp_path / "a.png", "queries")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_there_are_tables_and_one_sentence(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what Python has for a module that is not there
    for name in ("curves", "leaderboard"):
        monkeypatch.setattr(results, name, getattr(results, name))  # put back, as importing anew replaces it
        monkeypatch.delitem(sys.modules, f"rclip_metric.train.evaluation.results.{name}")
    fresh = importlib.import_module("rclip_metric.train.evaluation.results.leaderboard")
    assert fresh.table(sweep()) == table(sweep())
    with pytest.raises(ValueError, match=re.escape('pip install "rclip-metric[plot]"')):
        fresh.plot(sweep(), tmp_path / "a.png")
