"""Contact sheets and pages: what they show, in which order, and what they refuse."""

import base64
import io
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rclip_metric import RobustPerceptualDistance
from rclip_metric.cli import gallery, maps, sheet
from rclip_metric.images import load_image
from rclip_metric.images.heat import COLOURS

from support.images import save_noise


def scene(path: Path, colour: str, square: str | None = None, size: tuple[int, int] = (96, 96)) -> Path:
    """A plain picture, and perhaps a square of another colour in its lower right quarter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    if square:
        image.paste(square, (60, 60, 84, 84))
    image.save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    a, b = tmp_path / "a", tmp_path / "b"
    for name, colour, other in (("same", "gray", None), ("edited", "gray", "yellow"), ("other", "navy", None)):
        scene(a / f"{name}.png", "gray")
        scene(b / f"{name}.png", colour, other)
    return a, b


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


@dataclass
class Page(HTMLParser):
    """The pictures of a page, by section, and every element's name."""

    text: str
    titles: list[str] = field(default_factory=list)
    pictures: list[list[dict[str, Any]]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        self.close()
        assert self.open == [], "elements are not closed"

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        if tag == "section":
            self.pictures.append([])
        if tag == "img":
            found = dict(attrs)
            assert found["src"].startswith("data:image/jpeg;base64,") and found["alt"]
            encoded = base64.b64decode(found["src"].partition(",")[2], validate=True)
            found |= {"image": Image.open(io.BytesIO(encoded)), "inside": tuple(self.open)}
            self.pictures[-1].append(found)
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def test_pairs_are_sorted_by_distance_and_every_one_has_its_map(folders, run, tmp_path):
    a, b = folders
    target = tmp_path / "pairs.html"
    code, out, _ = run("score", a, b, "--model", "tiny", "--html", target)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and lines[-1]["summary"]["pairs"] == 3
    page = Page(target.read_text())
    distances = {Path(line["a"]).name: line["distance"] for line in lines[:-1]}
    assert [title.split()[1] for title in page.titles] == sorted(distances, key=distances.__getitem__, reverse=True)
    assert [float(title.split()[0]) for title in page.titles] == pytest.approx(
        sorted(distances.values())[::-1], abs=1e-4
    )
    for one, other, laid in page.pictures:
        assert "details" not in one["inside"]
        # What opens it is an element that keyboards reach and that needs no script.
        assert other["inside"][-2:] == laid["inside"][-2:] == ("details", "summary") and laid["class"] == "map"
    assert "script" not in page.names and "http" not in page.text
    assert "light dark" in page.text and "width=device-width" in page.text
    assert all(colour in page.text for colour in COLOURS)  # the colour bar


def test_a_map_is_bright_where_the_metric_sees_a_difference(folders, run, tmp_path):
    a, b = folders
    target = tmp_path / "pairs.html"
    run("score", a, b, "--model", "tiny", "--html", target)
    page = Page(target.read_text())
    [place] = [place for place, title in enumerate(page.titles) if "edited" in title]
    [same] = [place for place, title in enumerate(page.titles) if "same" in title]
    bright = np.asarray(page.pictures[place][2]["image"]).sum(2).astype(float)
    assert bright.shape == (96, 96) and bright[60:84, 60:84].mean() > 1.5 * bright[:40, :40].mean()
    assert np.ptp(np.asarray(page.pictures[same][2]["image"]).astype(int)) <= 12  # JPEG
    metric = RobustPerceptualDistance("tiny")
    largest = max(
        float(metric.difference_map(load_image(b / name)[None], load_image(a / name)[None]).max())
        for name in ("edited.png", "other.png")
    )
    [stated] = re.findall(r"bright\"></i><span>([\d.]+)</span>", page.text)
    assert float(stated) == pytest.approx(largest, rel=0.02)


def test_two_files_make_a_page_of_one_pair(folders, run, tmp_path):
    a, b = folders
    code, out, _ = run("score", a / "same.png", b / "edited.png", "--model", "tiny", "--html", tmp_path / "one.html")
    page = Page((tmp_path / "one.html").read_text())
    assert code == 0 and page.titles == [f"{float(out.split()[0]):.4f}  same.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_sheet_shows_candidates_in_order(run, tmp_path, suffix):
    colours = {"red": (255, 0, 0), "maroon": (128, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "gray": (128,) * 3,
               "white": (255,) * 3, "black": (0,) * 3}  # fmt: skip
    files = [scene(tmp_path / "c" / f"{name}.png", name) for name in colours]
    target = tmp_path / f"sheet{suffix}"
    code, out, _ = run("rank", files[0], tmp_path / "c", "--with-query", "--model", "tiny", "--sheet", target)
    ranked = [Path(line.split()[-1]).stem for line in out.splitlines()[1:]]
    assert code == 0 and ranked[0] == "red" and len(ranked) == 7
    with Image.open(target) as opened:
        assert opened.format == {".png": "PNG", ".jpg": "JPEG"}[suffix]
    drawn = pixels(target)
    # Every cell of five columns, by the layout's own measures; the reference is the large one on the left.
    top = next(y for y in range(drawn.shape[0]) if np.abs(drawn[y, 30] - colours["red"]).max() < 20)
    assert np.abs(drawn[top : top + 300, 24:324].mean((0, 1)) - colours["red"]).max() < 20
    for place, name in enumerate(ranked):
        row, column = divmod(place, 5)
        y, x = top + row * (168 + 3 * 19 + 12) + 84, 24 + 300 + 24 + column * 180 + 84
        assert np.abs(drawn[y, x] - colours[name]).max() < 20, (place, name)


def test_a_sheet_with_maps_has_one_below_each_candidate(folders, run, tmp_path):
    a, b = folders
    plain, mapped = tmp_path / "plain.png", tmp_path / "mapped.png"
    for target, more in ((plain, ()), (mapped, ("--maps",))):
        code, _, _ = run("rank", a / "same.png", b / "edited.png", "--model", "tiny", "--sheet", target, *more)
        assert code == 0
    drawn = pixels(mapped)
    top = next(y for y in range(drawn.shape[0]) if (drawn[y, 30] == 128).all())
    below = drawn[top + 168 : top + 336, 348:516].sum(2)
    assert below[105:147, 105:147].mean() > 1.5 * below[:70, :70].mean()
    assert len(pixels(plain)) < len(drawn)
    bar = drawn[:top, :300].reshape(-1, 3).tolist()
    assert {(0, 0, 4), (188, 55, 84), (252, 255, 164)} & set(map(tuple, bar)) >= {(0, 0, 4), (252, 255, 164)}


def test_search_writes_page_and_sheet(folders, run, tmp_path):
    a, b = folders
    page, picture = tmp_path / "found.html", tmp_path / "found.png"
    words = ("search", b, a / "same.png", a / "edited.png", "-k", 2, "--model", "tiny", "--maps", "--quiet")
    code, out, _ = run(*words, "--html", page, "--sheet", picture)
    assert code == 0 and out.count("nearest to") == 2
    found = Page(page.read_text())
    assert [len(row) for row in found.pictures] == [5, 5]  # a query, and two with their maps
    assert pixels(picture).shape[1] == 1280


def test_names_do_what_names_do(run, tmp_path):
    hostile = scene(tmp_path / "b" / "<b>&\x1b[31m.png", "red")
    for target in (tmp_path / "sheet.html", tmp_path / "sheet.png"):
        code, _, _ = run("rank", hostile, hostile, "--with-query", "--model", "tiny", "--sheet", target, "--maps")
        assert code == 0
    text = (tmp_path / "sheet.html").read_text()
    assert "&lt;b&gt;&amp;" in text and "<b>&" not in text
    long = scene(tmp_path / ("x" * 200 + ".png"), "red")
    assert run("rank", long, hostile, "--model", "tiny", "--sheet", tmp_path / "long.png")[0] == 0


def test_what_is_too_much_is_left_out_and_counted(run, tmp_path, monkeypatch):
    for seed in range(6):
        save_noise(tmp_path / "c" / f"{seed}.png", seed, (64, 64))
    words = ("rank", tmp_path / "c" / "0.png", tmp_path / "c", "--with-query", "--model", "tiny", "--maps", "--sheet")
    monkeypatch.setattr(gallery, "LARGEST", 10_000)
    code, out, err = run(*words, tmp_path / "sheet.html")
    page = Page((tmp_path / "sheet.html").read_text())
    shown = sum(len(row) for row in page.pictures) - sum(p.get("class") == "map" for row in page.pictures for p in row)
    assert code == 0 and len(out.splitlines()) == 7 and 1 <= shown < 7
    assert f"{7 - shown} more pictures are left out" in page.text and f"{7 - shown} more pictures are left out" in err
    monkeypatch.setattr(sheet, "MOST", 3)
    monkeypatch.setattr(maps, "MOST", 2)
    code, _, err = run(*words, tmp_path / "sheet.png")
    assert code == 0 and "4 more pictures are left out" in err and "difference maps for 2 of 6 pictures" in err
    assert "left out" not in run(*words, tmp_path / "again.png", "--quiet")[2]


def test_bad_input_is_one_sentence_before_anything_is_computed(folders, run, tmp_path, monkeypatch):
    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("rclip_metric.retrieval.ModelSource.load", loaded)
    a, b = folders
    image = a / "same.png"
    before = image.read_bytes()
    for words, told in (
        (
            ("rank", image, b, "--sheet", tmp_path / "out.gif"),
            "out.gif to write to, expected a name that ends in .html",
        ),
        (("rank", image, b, "--sheet", "noname"), "expected a name that ends in .html or .png or .jpg or .jpeg"),
        (("rank", image, b, "--maps"), "--maps lays maps over pictures: say where to, with --sheet FILE"),
        (("rank", image, b, "--sheet", image), "is one of the images that are read"),
        (("search", b, image, "--maps"), "--maps lays maps over pictures"),
        (("search", b, image, "--html", tmp_path / "page.png"), "expected a name that ends in .html"),
        (("score", a, b, "--html", tmp_path / "page.txt"), "expected a name that ends in .html"),
        (("score", image, b / "same.png", "--html", a), "expected a name that ends in .html"),
        (("score", "--all-pairs", a, "--html", tmp_path / "page.html"), "--html shows the pairs of two folders"),
    ):
        code, out, err = run(*words, "--model", "tiny")
        assert (code, out) == (2, "") and told in err and err.count("\n") == 1, err
    (tmp_path / "folder.html").mkdir()
    code, _, err = run("rank", image, b, "--sheet", tmp_path / "folder.html", "--model", "tiny")
    assert code == 2 and "is a folder, expected a file to write to" in err
    assert image.read_bytes() == before


def test_a_sheet_that_cannot_be_written_loses_no_result(folders, run, tmp_path):
    a, b = folders
    (tmp_path / "file").touch()
    code, out, err = run("rank", a / "same.png", b, "--model", "tiny", "--sheet", tmp_path / "file" / "sheet.png")
    assert code == 2 and len(out.splitlines()) == 4 and err.count("\n") == 1 and "sheet.png" not in out


def test_a_file_that_is_gone_leaves_its_place_empty(folders, run, tmp_path):
    a, b = folders
    index = tmp_path / "index"
    run("index", "build", b, index, "--model", "tiny")
    (b / "other.png").unlink()
    for target in ("found.html", "found.png"):
        code, _, _ = run("search", index, a / "same.png", "-k", 3, "--maps", "--sheet", tmp_path / target, "--quiet")
        assert code == 0
    assert "not there" in (tmp_path / "found.html").read_text()
