"""The commands index, search and duplicates as people run them."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from rclip_metric.weights import save_encoder

from support.encoders import small_encoder
from support.images import save_noise


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "small"
    save_encoder(small_encoder(spread=True, name="small"), folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        save_noise(tmp_path / "photos" / f"class{number % 2}" / f"{number}.png", number)
    shutil.copy(tmp_path / "photos" / "class0" / "0.png", tmp_path / "photos" / "copy.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    return tmp_path / "photos"


def test_from_a_folder_to_the_nearest_images(folder, model, run, tmp_path):
    index = tmp_path / "photos.index"
    code, out, err = run("index", "build", folder, index, "--model", model)
    assert code == 2 and out.startswith(f"5 images in {index}, skipped 1 file; small@tensors:")  # it says which
    assert "broken.jpg" in err

    code, out, _ = run("index", "info", index)
    assert code == 0 and out.splitlines()[0] == "5 images, embeddings of 16 numbers in float32"
    assert "small@tensors:" in out and str(folder) in out and "      2  class0" in out
    code, out, _ = run("index", "info", index, "--json")
    assert (json.loads(out)["images"], json.loads(out)["labels"]) == (5, {"class0": 2, "class1": 2})

    query = folder / "class1" / "3.png"
    code, out, _ = run("search", index, query, folder / "copy.png", "-k", 2)  # with the index's own model
    lines = out.splitlines()
    assert code == 0 and len(lines) == 6 and lines[0].startswith(f"nearest to {query}  small@tensors:")
    assert lines[1].endswith(f"{query}  (class1)")
    assert {line.split("  ")[2] for line in lines[4:]} == {str(folder / "copy.png"), str(folder / "class0" / "0.png")}

    code, out, _ = run("search", index, query)  # without -k the nearest ten, here all five
    assert code == 0 and [line[:3] for line in out.splitlines()[1:]] == [f"{rank}  " for rank in range(1, 6)]

    code, out, _ = run("search", index, query, "-k", 2, "--json")
    record = json.loads(out)
    assert record["query"] == str(query) and [hit["rank"] for hit in record["hits"]] == [1, 2]
    assert record["hits"][0] | {"distance": 0, "similarity": 1} == {
        "rank": 1, "id": "class1/3.png", "label": "class1", "path": str(query), "distance": 0, "similarity": 1,
    }  # fmt: skip
    assert record["hits"][0]["distance"] < 1e-3 < record["hits"][1]["distance"]
    _, out, _ = run("search", index, query, "-k", 2, "--csv")
    [first, _] = csv.DictReader(io.StringIO(out))
    assert (first["query"], first["rank"], first["id"]) == (str(query), "1", "class1/3.png")


def test_a_page_holds_the_pictures(folder, model, run, tmp_path):
    page = tmp_path / "page.html"
    query = folder / "class1" / "3.png"
    code, _, _ = run("search", folder, query, "-k", 5, "--model", model, "--html", page)  # a folder, for this once
    text = page.read_text()
    assert code == 2 and text.count("data:image/jpeg;base64,") == 6 and "class1/3.png" in text  # one file is broken
    assert "http" not in text and "<script" not in text
    hostile = folder / "class0" / "<b>&.png"
    (folder / "class0" / "2.png").rename(hostile)
    run("search", folder, hostile, "-k", 5, "--model", model, "--html", page)
    assert "&lt;b&gt;&amp;.png" in page.read_text() and "<b>&" not in page.read_text()


def test_near_duplicates_are_told_and_nothing_is_deleted(folder, model, run, tmp_path):
    index = tmp_path / "photos.index"
    run("index", "build", folder, index, "--model", model)
    before = sorted(folder.rglob("*"))
    code, out, err = run("duplicates", index, "--below", "0.001", "--html", tmp_path / "page.html")
    kept, other = out.splitlines()
    assert code == 0 and kept == f"keep    {folder / 'class0' / '0.png'}"
    assert other.endswith(f"{folder / 'copy.png'}  the same file")
    assert "1 groups; 1 of 5 images" in err and "nothing was deleted" in err
    assert sorted(folder.rglob("*")) == before
    assert "copies of one file" in (tmp_path / "page.html").read_text()
    _, out, _ = run("duplicates", index, "--below", "0.001", "--json", "--quiet")
    [group] = json.loads(out)["groups"]
    assert group["identical"] and group["keep"]["id"] == "class0/0.png" and group["others"][0]["id"] == "copy.png"


def test_an_update_tells_what_it_found(folder, model, run, tmp_path):
    index = tmp_path / "photos.index"
    run("index", "build", folder, index, "--model", model, "--half")
    (folder / "broken.jpg").unlink()
    (folder / "copy.png").unlink()
    save_noise(folder / "new.png", 9)
    code, out, _ = run("index", "update", index)
    assert (code, out) == (0, "1 added, 0 changed, 1 dropped, 4 as they were, skipped 0 files\n")
    folder.rename(tmp_path / "moved")
    code, out, _ = run("index", "update", index, "--folder", tmp_path / "moved", "--json")
    assert code == 0 and json.loads(out)["unchanged"] == 5


def test_an_approximate_search_says_what_it_finds(model, run, tmp_path):
    photos, index = tmp_path / "many", tmp_path / "many.index"
    for number in range(260):
        save_noise(photos / f"{number}.png", number, (8, 8))
    run("index", "build", photos, index, "--model", model)
    query = photos / "7.png"
    code, _, err = run("search", index, query, "--approximate")
    assert code == 2 and "is not prepared for approximate search" in err and "rclip-metric index approximate" in err
    code, out, _ = run("index", "approximate", index)
    assert code == 0
    assert out == (  # one partition: nothing can be missed
        "approximate search finds 100.0 % of the 10 nearest, measured on 128 of the 260 images that there were\n"
    )
    _, info, _ = run("index", "info", index)
    assert f"search  {out}" in info
    known = json.loads(run("index", "info", index, "--json")[1])["approximate"]
    assert known == {"recall": 1.0, "k": 10, "sample": 128, "images": 260, "probes": 1}
    code, found, err = run("search", index, query, "-k", 3, "--approximate")
    assert code == 0 and out in err and found == run("search", index, query, "-k", 3)[1]
    assert out not in run("search", index, query, "-k", 3, "--approximate", "--quiet")[2]


def test_bad_input_is_one_sentence(folder, model, run, tmp_path):
    index, query = tmp_path / "photos.index", folder / "copy.png"
    run("index", "build", folder, index, "--model", model)
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, told in (
        (("index", "build", folder, index, "--model", model), "is there already"),
        (("index", "build", tmp_path / "nowhere", tmp_path / "x"), "is no folder, expected a folder"),
        (("index", "build", empty, tmp_path / "x", "--model", model), "there are no images below"),
        (("index", "info", empty), "is no index"),
        (("search", index, query, "-k", 6), "k must be between 1 and the 5 images of the index, got 6"),
        (("search", index, tmp_path / "nothing.png"), "is no file, expected an image"),
        (("search", index, query, "--model", "tiny"), "holds embeddings of small@tensors:"),
        (("search", query, query), "is a file, expected a folder"),
        (("search", index, query, "-k", "0"), "expected a positive whole number"),
        (("duplicates", index, "--below", "nan"), "expected a distance above 0"),
    ):
        code, _, err = run(*words)
        assert code == 2 and told in err and "Traceback" not in err, (words, err)
    code, _, err = run("search", index, folder / "broken.jpg", "-k", "1")
    assert code == 2 and "broken.jpg" in err
    shutil.rmtree(index / "images.lance" / "data")
    code, _, err = run("search", index, query, "-k", 1)
    assert code == 2 and "damaged" in err and os.listdir(index)
