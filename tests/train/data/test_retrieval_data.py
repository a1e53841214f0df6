"""Sets to retrieve from: the published landmark format, class folders, pairs; what strangers may have put in them."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rclip_metric.images import ImageError
from rclip_metric.train.data.ground_truth import read_ground_truth
from rclip_metric.train.data.retrieval import Query, read_retrieval

from support.images import save_noise

TRUTH = {
    "imlist": ["radcliffe_1", "radcliffe_2", "christ_1", "christ_2", "other_1"],
    "qimlist": ["q_radcliffe", "q_christ"],
    "gnd": [
        {"bbx": [10.4, 5.6, 30.0, 25.5], "easy": [1], "hard": [0], "junk": [2]},
        {"bbx": [0.0, 0.0, 50.0, 40.0], "easy": [], "hard": [3, 2], "junk": []},
    ],
}


def as_published(truth):
    """As numpy arrays, the empty ones of floats."""
    lists = [{key: np.array(rows) for key, rows in one.items()} for one in truth["gnd"]]
    return {**truth, "gnd": lists, "n": 5}


@pytest.fixture
def landmarks(tmp_path):
    folder = tmp_path / "roxford"
    for number, name in enumerate([*TRUTH["imlist"], *TRUTH["qimlist"]]):
        save_noise(folder / "jpg" / f"{name}.jpg", number)
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(as_published(TRUTH), 2))
    return folder


def test_the_published_pickle_is_converted_once(landmarks):
    found = read_retrieval(f"roxford5k:{landmarks}")
    first, second = found.queries
    assert (found.kind, found.name, len(found.images)) == ("roxford5k", "roxford", 5)
    assert (first.key, first.easy, first.hard, first.junk) == ("q_radcliffe", (1,), (0,), (2,))
    assert second.positives == (3, 2) and second.path == landmarks / "jpg" / "q_christ.jpg"
    converted = landmarks / "gnd_roxford5k.json"
    assert json.loads(converted.read_text()) == TRUTH
    (landmarks / "gnd_roxford5k.pkl").write_bytes(b"damaged")  # it is not looked at again
    assert read_retrieval(f"roxford5k:{landmarks}") == found
    assert read_ground_truth(converted) == TRUTH


@pytest.mark.skipif(os.getuid() == 0, reason="everything can be written to")
def test_a_folder_that_cannot_be_written_is_read(landmarks):
    landmarks.chmod(0o555)
    try:
        assert len(read_retrieval(f"roxford5k:{landmarks}").queries) == 2
        assert not (landmarks / "gnd_roxford5k.json").exists()
    finally:
        landmarks.chmod(0o755)


def test_query_images_are_cropped_to_their_box(landmarks):
    first, second = read_retrieval(f"roxford5k:{landmarks}").queries
    whole = Image.open(first.path)
    assert np.array_equal(first.image(), whole.crop((10, 6, 30, 26)))  # as Pillow rounds the published boxes
    assert second.image().size == (50, 40)
    assert Query("q", first.path, box=(-4.0, 30.0, 20.0, 99.0)).image().size == (20, 10)
    with pytest.raises(ImageError, match=r"has 50 x 40 pixels, and its box .* is outside"):
        Query("q", first.path, box=(60.0, 0.0, 70.0, 10.0)).image()


def change(truth, path, value):
    copy = json.loads(json.dumps(truth))
    place = copy
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["gnd"], [], "names 2 queries and has the ground truth of 0"),
        (["gnd", 0, "easy"], [5], "'q_radcliffe' names row 5, and the database has rows 0 to 4"),
        (["gnd", 0, "easy"], [0], "'q_radcliffe' names row 0 twice"),
        (["gnd", 0, "easy"], [0.5], "field 'gnd\\[0\\].easy': expected a list"),
        (["gnd", 0, "easy"], "abc", "field 'gnd\\[0\\].easy': expected a list"),
        (["gnd", 0, "easy"], [-1], "field 'gnd\\[0\\].easy': expected a list"),
        (["gnd", 1], {"easy": []}, "field 'gnd\\[1\\].hard': is missing"),
        (["gnd", 1], 3, "field 'gnd\\[1\\]': expected an object"),
        (["gnd", 1, "bbx"], [3, 3, 3, 4], "expected a box of left, top, right and bottom"),
        (["gnd", 1, "bbx"], [0, 0, 1], "expected a box of left, top, right and bottom"),
        (["imlist", 1], "radcliffe_1", "names 'radcliffe_1' twice"),
        (["imlist", 1], 7, "field 'imlist': expected a list"),
        (["qimlist"], ["q"], "names 1 queries and has the ground truth of 2"),
    ],
)
def test_a_ground_truth_that_does_not_fit_is_one_sentence(path, value, said, landmarks):
    changed = change(TRUTH, path, value)
    pickled, converted = landmarks / "gnd_roxford5k.pkl", landmarks / "gnd_roxford5k.json"
    pickled.write_bytes(pickle.dumps(changed, 2))
    with pytest.raises(ValueError, match=said) as caught:
        read_retrieval(f"roxford5k:{landmarks}")
    assert not converted.exists() and "\n" not in str(caught.value)
    converted.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=said):
        read_retrieval(f"roxford5k:{landmarks}")


def test_a_pickle_that_imports_is_refused(landmarks):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {landmarks / 'run'}",)

    (landmarks / "gnd_roxford5k.pkl").write_bytes(pickle.dumps({**TRUTH, "gnd": Payload()}))
    with pytest.raises(ValueError, match=r"gnd_roxford5k\.pkl wants to import '\w+\.system'.*nothing of it was run"):
        read_retrieval(f"roxford5k:{landmarks}")
    assert not (landmarks / "run").exists() and not (landmarks / "gnd_roxford5k.json").exists()


def test_names_stay_in_the_folder(landmarks):
    (landmarks / "gnd_roxford5k.json").write_text(json.dumps(change(TRUTH, ["imlist", 0], "../../../etc/x")))
    with pytest.raises(ValueError, match="leads out of the folder"):
        read_retrieval(f"roxford5k:{landmarks}")
    assert read_retrieval(f"roxford5k:{landmarks}", allow_outside=True).images[0].name == "x.jpg"


def test_what_is_missing_is_said(landmarks, tmp_path):
    for data, said in (
        ("roxford5k", "data must be roxford5k:PLACE, rparis6k:PLACE, classes:PLACE, pairs:PLACE"),
        (f"oxford:{landmarks}", "data must be"),
        ("classes:", "data must be"),
        (f"rparis6k:{landmarks}", r"has no gnd_rparis6k\.pkl"),
        (f"classes:{tmp_path / 'nowhere'}", "there is no folder"),
        (f"pairs:{tmp_path / 'nowhere.csv'}", "cannot be read: No such file"),
    ):
        with pytest.raises(ValueError, match=said):
            read_retrieval(data)
    (landmarks / "jpg").rename(landmarks / "images")
    with pytest.raises(ValueError, match="has no folder jpg"):
        read_retrieval(f"roxford5k:{landmarks}")
    with pytest.raises(ValueError, match="a table of classes goes with classes:DIR"):
        read_retrieval(f"roxford5k:{landmarks}", classes=tmp_path / "index.csv")


def classes(folder, sizes):
    for name, count in sizes.items():
        for number in range(count):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder


def test_every_image_of_a_class_asks_for_the_others(tmp_path):
    found = read_retrieval(f"classes:{classes(tmp_path / 'set', {'a': 3, 'b': 2, 'c': 1})}")
    assert found.names == ("a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "c/0.png")
    assert [query.key for query in found.queries] == ["a/0.png", "b/0.png", "a/1.png", "b/1.png", "a/2.png"]
    assert found.without == ("c/0.png",)  # its image stays in the database
    assert [(q.easy, q.hard, q.junk) for q in found.queries[:2]] == [((1, 2), (), (0,)), ((4,), (), (3,))]
    with pytest.raises(ValueError, match="no query to which any of them belongs"):
        read_retrieval(f"classes:{classes(tmp_path / 'ones', {'a': 1, 'b': 1})}")


def test_queries_may_be_apart_from_the_database(tmp_path):
    classes(tmp_path / "query", {"a": 1, "b": 1, "z": 1})
    classes(tmp_path / "database", {"a": 2, "b": 1, "c": 2})
    found = read_retrieval(f"classes:{tmp_path}")
    assert len(found.images) == 5 and found.without == ("z/0.png",)
    assert [(q.path.parent.parent.name, q.easy, q.junk) for q in found.queries] == [
        ("query", (0, 1), ()),
        ("query", (2,), ()),
    ]


def test_a_table_of_classes_stands_in_for_folders(tmp_path):
    for number in range(5):
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "all" / f"{number}.jpg").touch()
    table = tmp_path / "index.csv"
    rows = [f"test,{name},all/{number}.jpg" for number, name in enumerate("abab")]
    table.write_text("\n".join(["split,class,file", *rows, "train,a,elsewhere/9.jpg"]))
    found = read_retrieval(f"classes:{tmp_path / 'all'}", classes=table)
    assert found.names == ("0.jpg", "1.jpg", "2.jpg", "3.jpg")  # 4.jpg is not in the table
    assert [q.easy for q in found.queries] == [(2,), (3,), (0,), (1,)]
    (tmp_path / "none.csv").write_text("class,file\na,x.jpg\n")
    with pytest.raises(ValueError, match="names none of the 5 images"):
        read_retrieval(f"classes:{tmp_path / 'all'}", classes=tmp_path / "none.csv")


def pairs(folder, *lines, header="query,image,kind"):
    table = folder / "mine.csv"
    table.write_text("\n".join([header, *lines]) + "\n")
    return f"pairs:{table}"


def test_pairs_are_read(tmp_path):
    lines = (
        "a.png,b.png,",
        "a.png,c.png,hard",
        "a.png,d.png,junk",
        "b.png,a.png,easy",
        ",e.png,other",
        "x/q.png,d.png,",
    )
    found = read_retrieval(pairs(tmp_path, *lines))
    assert found.name == "mine" and found.names == ("b.png", "c.png", "d.png", "a.png", "e.png")
    first, second, third = found.queries
    assert (first.key, first.easy, first.hard, first.junk) == ("a.png", (0,), (1,), (2, 3))  # and itself
    assert (second.easy, second.junk) == ((3,), (0,)) and third.path == tmp_path / "x" / "q.png"
    assert read_retrieval(pairs(tmp_path, "a,b", "c,d", header="query,image")).queries[0].easy == (0,)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a.png,../../b.png,"], "leads out of the folder"),
        (["/etc/a.png,b.png,", "c,d,"], "leads out of the folder"),
        (["a,b,", "a,b,hard"], "line 3: a and b are there before"),
        (["a,b,best"], "line 2: query 'a', image 'b', kind 'best', expected"),
        (["a,,"], "line 2: query 'a', image '', kind 'easy', expected two files"),
        (["a,a,"], "a would be found by itself"),
        (["a,b,", "b/../c,b,", "c,d,"], "is there under two names"),
        (["a,b,"], "no query to which any of them belongs"),  # and there is nothing else to be found
    ],
)
def test_pairs_that_do_not_fit_are_one_sentence(lines, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read_retrieval(pairs(tmp_path, *lines))


def test_the_digest_is_of_names_and_of_what_belongs_together(tmp_path):
    lines = ["a,b,", "a,c,junk", "d,c,"]
    one, again = (read_retrieval(pairs(tmp_path, *lines, ",e,other")) for _ in range(2))
    other = read_retrieval(pairs(tmp_path, lines[0], "a,c,hard", lines[2], ",e,other"))
    assert len(one.queries) == len(other.queries) == 2
    assert one.digest() == again.digest() != other.digest()
    assert isinstance(one.images[0], Path)
