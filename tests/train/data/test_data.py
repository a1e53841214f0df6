"""The data sets on disk: what the readers take, what they refuse and how they say so, and the sets made of scenes."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric import RobustPerceptualDistance
from rclip_metric.train.data.check import check_images
from rclip_metric.train.data.classes import read_classes
from rclip_metric.train.data.scenes import formats as scene_formats
from rclip_metric.train.data.scenes.draw import BACKGROUNDS, generator, render, sample_scene
from rclip_metric.train.data.scenes.formats import (
    DISTORTIONS,
    sample_comparison,
    write_bapps,
    write_grounds,
    write_things,
)
from rclip_metric.train.data.things import PUBLISHED, read_things
from rclip_metric.train.data.triplets import BAPPS_SPLITS, TripletFiles, read_bapps, read_nights


def raises(*words):
    """One sentence that says all the words, in this order."""
    return pytest.raises(ValueError, match=".*".join(map(re.escape, words)) + r"[^\n]*\Z")


# NIGHTS

NIGHTS_HEADER = "id,left_vote,right_vote,votes,ref_path,left_path,right_path,split,is_imagenet\n"
NIGHTS_ROW = "0,1.0,0.0,7,ref/0.png,d/0.png,d/1.png,test,True\n"
NIGHTS_TABLE = (
    NIGHTS_HEADER
    + NIGHTS_ROW
    + "1,0.0,1.0,6,ref/1.png,d/2.png,d/3.png,test,False\n"
    + "2,0,1,10,ref/2.png,d/4.png,d/5.png,train,false\n"
    + "3,0,1,5,ref/3.png,d/6.png,d/7.png,test,True\n"
    + "4,1,0,8,ref/4.png,d/8.png,d/9.png,val,True\n"
)


def nights(folder, text):
    (folder / "data.csv").write_text(text)
    return folder


def test_nights_splits_halves_votes_and_labels(tmp_path):
    folder = nights(tmp_path, NIGHTS_TABLE)
    first = TripletFiles(
        "0", folder / "ref/0.png", folder / "d/0.png", folder / "d/1.png", share=0.0, split="test_imagenet"
    )
    second = TripletFiles(
        "1", folder / "ref/1.png", folder / "d/2.png", folder / "d/3.png", share=1.0, split="test_no_imagenet"
    )
    assert read_nights(folder) == [first, second]
    assert (first.label, second.label) == (0, 1)
    assert read_nights(folder, "test_imagenet") == [first]
    assert read_nights(folder, "test_no_imagenet") == [second]
    assert [row.key for row in read_nights(folder, min_votes=0)] == ["0", "1", "3"]
    for split, key in (("train", "2"), ("val", "4")):
        assert [(row.key, row.split) for row in read_nights(folder, split)] == [(key, split)]


def test_nights_columns_are_found_by_name(tmp_path):
    expected = read_nights(nights(tmp_path, NIGHTS_TABLE))
    rows = list(csv.DictReader(NIGHTS_TABLE.splitlines()))
    columns = [*reversed(NIGHTS_HEADER.strip().split(",")), "prompt", "near_edits"]
    with (tmp_path / "data.csv").open("w", newline="", encoding="utf-8-sig") as handle:  # as spreadsheets save it
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows({**row, "prompt": 'a "cat",\nsitting', "near_edits": ""} for row in rows)
    assert read_nights(tmp_path) == expected


def test_nights_rows_that_are_not_kept_need_no_decision(tmp_path):
    undecided = NIGHTS_ROW.replace("1.0,0.0,7", "0.5,0.5,4")  # the same id as well
    assert [row.key for row in read_nights(nights(tmp_path, NIGHTS_HEADER + undecided + NIGHTS_ROW))] == ["0"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1.0,0.0", "1.0,1.0", ["row 3 is malformed (left_vote '1.0' and right_vote '1.0'", "download"]),
        ("1.0,0.0", "maybe,0.0", ["row 3 is malformed", "'maybe'"]),
        ("1.0,0.0", "0.6,0.4", ["row 3 is malformed", "expected a 0 and a 1"]),
        (",7,", ",seven,", ["row 3 is malformed", "'seven'"]),
        (",7,", ",nan,", ["row 3 is malformed", "votes is 'nan'"]),
        (",test,", ",tset,", ["row 3 is malformed", "split is 'tset'", "train, val, test"]),
        ("True", "perhaps", ["row 3 is malformed", "is_imagenet is 'perhaps'"]),
        ("ref/0.png", "", ["row 3 is malformed", "ref_path is empty"]),
        (",test,True", "", ["row 3 is malformed", "another number of cells"]),
        ("True", "True,more", ["row 3 is malformed", "another number of cells"]),
        ("0,1.0", " ,1.0", ["row 3 is malformed", "id is empty"]),
        ("0,1.0", "9,1.0", ["row 3 repeats the id '9' of row 2"]),
    ],
)
def test_nights_rows_that_are_refused(tmp_path, old, new, words):
    good = NIGHTS_ROW.replace("0,", "9,", 1)
    with raises("data.csv", *words):
        read_nights(nights(tmp_path, NIGHTS_HEADER + good + NIGHTS_ROW.replace(old, new, 1)))


def test_nights_files_and_splits_that_are_refused(tmp_path):
    with raises("nowhere has no data.csv"):
        read_nights(tmp_path / "nowhere")
    with raises("unknown split 'validation'", "test_no_imagenet"):
        read_nights(tmp_path, "validation")
    with raises("data.csv lacks the column 'votes'", "it has id, left_vote"):
        read_nights(nights(tmp_path, NIGHTS_HEADER.replace("votes,", "", 1) + NIGHTS_ROW))
    with raises("data.csv lacks the column 'id'", "it has none"):
        read_nights(nights(tmp_path, ""))
    with raises("data.csv has no triplet of split 'train' with 6 votes"):
        read_nights(nights(tmp_path, NIGHTS_HEADER + NIGHTS_ROW), "train")
    (tmp_path / "data.csv").write_bytes(b"\xff\xfe\x00id")
    with raises("data.csv is not a UTF-8 text file"):
        read_nights(tmp_path)


# BAPPS


@pytest.fixture
def bapps(tmp_path):
    """Two triplets per split: the shares are 0.2 and 0.8; the reader does not open the images."""
    for split in BAPPS_SPLITS:
        for part in ("ref", "p0", "p1", "judge"):
            (tmp_path / split / part).mkdir(parents=True)
            (tmp_path / split / part / "._000000.png").touch()  # what unpacking on a Mac leaves
            for stem, share in (("000007", 0.2), ("000010", 0.8)):
                if part == "judge":
                    np.save(tmp_path / split / part / f"{stem}.npy", np.array([share]))
                else:
                    (tmp_path / split / part / f"{stem}.png").touch()
    return tmp_path


def test_bapps_matches_names_and_keeps_the_order_of_splits(bapps):
    rows = read_bapps(bapps)
    assert [row.key for row in rows] == [f"{split}/{stem}" for split in BAPPS_SPLITS for stem in ("000007", "000010")]
    cnn = bapps / "cnn"
    paths = (cnn / "ref/000010.png", cnn / "p0/000010.png", cnn / "p1/000010.png")
    assert rows[1] == TripletFiles("cnn/000010", *paths, 0.8, "cnn")
    assert [row.label for row in rows] == [0, 1] * 6
    assert [row.split for row in read_bapps(bapps, ("superres", "cnn"))] == ["superres"] * 2 + ["cnn"] * 2


@pytest.mark.parametrize("place", ["2afc/val", "val"])
def test_bapps_is_found_below_a_parent(bapps, tmp_path_factory, place):
    parent = tmp_path_factory.mktemp("parent")
    (parent / place).parent.mkdir(exist_ok=True)
    (parent / place).symlink_to(bapps, target_is_directory=True)
    assert [row.key for row in read_bapps(parent)] == [row.key for row in read_bapps(bapps)]
    assert read_bapps(parent)[0].reference == parent / place / "cnn/ref/000007.png"


@pytest.mark.parametrize(
    ("value", "share"),
    [
        (np.float32(0.6), 0.6),
        (np.array([0.6]), 0.6),
        (np.array([[[0.6]]], np.float32), 0.6),  # what the published loader reshapes to
        (np.array([1]), 1.0),
        (np.array(0.5), 0.5),
    ],
)
def test_bapps_judgements_of_any_form(bapps, value, share):
    np.save(bapps / "color" / "judge" / "000007.npy", value)
    row = read_bapps(bapps, ("color",))[0]
    assert row.share == pytest.approx(share, abs=1e-7)
    assert row.label == (share > 0.5)  # an even split counts for the left image


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([0.2, 0.8]), ["holds float64 of shape (2,)", "expected one number"]),
        (np.array([]), ["holds float64 of shape (0,)"]),
        (np.array(["0.2"]), ["holds <U3 of shape (1,)"]),
        (np.array([0.2 + 0j]), ["holds complex128"]),
        (np.array([np.nan]), ["holds nan", "in [0, 1]"]),
        (np.array([np.inf]), ["holds inf", "in [0, 1]"]),
        (np.array([1.2]), ["holds 1.2", "in [0, 1]"]),
        (np.array([-0.2]), ["holds -0.2", "in [0, 1]"]),
        (np.array([{"share": 0.2}]), ["cannot read", "download it again"]),  # a pickle, which could run code
    ],
)
def test_bapps_judgements_that_are_refused(bapps, value, words):
    np.save(bapps / "cnn" / "judge" / "000010.npy", value)
    words = [words[0], "cnn/judge/000010.npy", *words[1:]] if words[0] == "cannot read" else ["000010.npy", *words]
    with raises(*words):
        read_bapps(bapps)


@pytest.mark.parametrize("keep", [0, 3, 40, -1])
def test_bapps_judgements_that_were_cut_off(bapps, keep):
    path = bapps / "cnn" / "judge" / "000010.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with raises(f"cannot read {path}", "download it again"):
        read_bapps(bapps)


def test_bapps_judgements_that_are_archives(bapps):
    path = bapps / "cnn" / "judge" / "000010.npy"
    with path.open("wb") as handle:
        np.savez(handle, share=np.array([0.2]))
    with raises("000010.npy holds an archive"):
        read_bapps(bapps)


def test_bapps_folders_that_are_refused(bapps, tmp_path_factory):
    with raises("is no BAPPS set", "cnn, color, deblur, frameinterp, superres, traditional", "2afc/val", "val"):
        read_bapps(tmp_path_factory.mktemp("empty"))
    with raises("unknown BAPPS split 'colour'", "color"):
        read_bapps(bapps, ("cnn", "colour"))
    for splits in ((), ("cnn", "cnn")):
        with raises("name at least one, and each once"):
            read_bapps(bapps, splits)
    p1 = bapps / "deblur" / "p1"
    (p1 / "000007.png").rename(p1 / "000008.png")
    with raises("'deblur'", "deblur/ref has 2 files, and none for '000008'", "deblur/p1 holds"):
        read_bapps(bapps)
    (p1 / "000008.png").unlink()
    with raises("'deblur'", "deblur/p1 has 1 files, and none for '000007'", "deblur/ref holds", "missing there: 1"):
        read_bapps(bapps)
    (p1 / "000007.png").touch()
    (p1 / "000007.jpg").touch()
    with raises("'deblur'", "deblur/p1 holds '000007' with two suffixes"):
        read_bapps(bapps)
    for path in p1.iterdir():
        path.unlink()
    p1.rmdir()
    with raises("'deblur' lacks the folder", "deblur/p1"):
        read_bapps(bapps)
    assert len(read_bapps(bapps, ("cnn", "color"))) == 4
    for part in ("ref", "p0", "p1", "judge"):
        for path in (bapps / "cnn" / part).iterdir():
            path.unlink()
    with raises("'cnn' is empty"):
        read_bapps(bapps, ("cnn",))


# THINGS

THINGS_TABLE = "image1\timage2\timage3\tchoice\tsubject_id\n1\t2\t3\t3\tA\n4\t1\t2\t1\tB\n2\t3\t4\t2\tA\n"


@pytest.fixture
def concepts(tmp_path):
    """Four concepts, an image each; the reader does not open them."""
    (tmp_path / "images").mkdir()
    for name in ("abacus.jpg", "bat1.jpg", "bat2.png", "cat.JPEG"):
        (tmp_path / "images" / name).touch()
    (tmp_path / "images" / "README.txt").touch()
    return tmp_path / "images"


def things(folder, text, name="triplets.csv"):
    (folder / name).write_text(text)
    return folder / name


def test_things_reads_every_row_but_the_header(tmp_path, concepts):
    read = read_things(things(tmp_path, THINGS_TABLE), concepts)
    assert read.triplets.tolist() == [[0, 1, 2], [3, 0, 1], [1, 2, 3]] and read.odd.tolist() == [2, 0, 1]
    assert read.triplets.dtype == read.odd.dtype == torch.int64
    assert [path.name for path in read.images] == ["abacus.jpg", "bat1.jpg", "bat2.png", "cat.JPEG"]
    unterminated = read_things(things(tmp_path, THINGS_TABLE.rstrip("\n")), concepts)
    assert torch.equal(unterminated.triplets, read.triplets)
    blank = read_things(things(tmp_path, THINGS_TABLE + "\n\n"), concepts)
    assert torch.equal(blank.triplets, read.triplets)


def test_things_columns_are_found_by_name(tmp_path, concepts):
    rows = [line.split("\t")[::-1] for line in THINGS_TABLE.splitlines()]
    read = read_things(things(tmp_path, "".join("\t".join(row) + "\r\n" for row in rows)), concepts)
    assert read.triplets.tolist() == [[0, 1, 2], [3, 0, 1], [1, 2, 3]] and read.odd.tolist() == [2, 0, 1]


def test_things_table_in_a_folder(tmp_path, concepts):
    things(tmp_path, "abacus\nbat1\n", "unique_id.txt")
    things(tmp_path, "1 2 3\n", "trainset.txt")
    with raises("holds neither", PUBLISHED, "found none"):
        read_things(tmp_path, concepts)
    things(tmp_path, THINGS_TABLE, "some.tsv")
    assert len(read_things(tmp_path, concepts).odd) == 3
    things(tmp_path, THINGS_TABLE, "other.csv")
    with raises("nor exactly one tab-separated table", "found other.csv, some.tsv"):
        read_things(tmp_path, concepts)
    things(tmp_path, THINGS_TABLE + "1\t2\t4\t1\tC\n", PUBLISHED)
    assert len(read_things(tmp_path, concepts).odd) == 4
    with raises("gone does not exist", PUBLISHED):
        read_things(tmp_path / "gone", concepts)


def test_things_images_as_folders_or_as_a_list(tmp_path, concepts):
    table = things(tmp_path, THINGS_TABLE)
    tree = tmp_path / "tree"
    for name in ("abacus", "bat1", "bat2", "cat"):
        (tree / name).mkdir(parents=True)
        (tree / name / f"{name}_02s.jpg").touch()
        (tree / name / f"{name}_01b.jpg").touch()
    read = read_things(table, tree)
    assert [path.name for path in read.images] == [f"{n}_01b.jpg" for n in ("abacus", "bat1", "bat2", "cat")]
    order = ["cat.JPEG", "bat2.png", "abacus.jpg", "bat1.jpg"]
    (tmp_path / "list.txt").write_text("".join(f"images/{name}\n" for name in order) + "\n")
    assert [path.name for path in read_things(table, tmp_path / "list.txt").images] == order

    (tree / "empty").mkdir()
    with raises("empty holds no image, and every concept needs one"):
        read_things(table, tree)
    (tree / "stray.jpg").touch()
    with raises("tree holds both images (stray.jpg) and folders (abacus)"):
        read_things(table, tree)
    with raises("gone does not exist"):
        read_things(table, tmp_path / "gone")
    with raises("empty holds neither images nor folders"):
        read_things(table, tree / "empty")
    (tmp_path / "list.txt").write_text("images/cat.JPEG\nimages/dog.jpg\n")
    with raises("list.txt, row 2 names 'images/dog.jpg', which is no file"):
        read_things(table, tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("images/cat.JPEG\n\nimages/bat2.png\n")
    with raises("list.txt, row 2 names nothing"):
        read_things(table, tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n")
    with raises("list.txt is empty"):
        read_things(table, tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xd8\xff")
    with raises("list.txt is not a text file"):
        read_things(table, tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1\t2\t3\t4\tA", ["row 5 has choice 4, expected 1, 2 or 3"]),
        ("1\t2\t3\t0\tA", ["row 5 has choice 0, expected 1, 2 or 3"]),
        ("0\t2\t3\t1\tA", ["row 5 has image1 0, expected an index from 1"]),
        ("1\t2\t5\t1\tA", ["row 5 has image3 5, and", "images gives 4 images"]),
        ("1\t3\t3\t1\tA", ["row 5 shows an image twice (1, 3, 3)"]),
        ("1\t2\t1\t1\tA", ["row 5 shows an image twice (1, 2, 1)"]),
        ("2\t2\t1\t1\tA", ["row 5 shows an image twice (2, 2, 1)"]),
        ("1\tb\t3\t1\tA", ["row 5 has image2 'b', expected a whole number"]),
        ("1\t2\t3\t\tA", ["row 5 has choice '', expected a whole number"]),
        ("1\t2\t3", ["row 5 has 3 cells where the header has 5"]),
        ("1\t2\t3\t1\tA\tB", ["row 5 has 6 cells where the header has 5"]),
    ],
)
def test_things_rows_that_are_refused(tmp_path, concepts, row, words):
    with raises("triplets.csv,", *words):
        read_things(things(tmp_path, f"{THINGS_TABLE}{row}\n3\t2\t1\t1\tA\n"), concepts)


def test_things_tables_that_are_refused(tmp_path, concepts):
    with raises("lacks the column 'choice'", "tab-separated", "it has image1, image2, image3, subject_id"):
        read_things(things(tmp_path, THINGS_TABLE.replace("choice\t", "")), concepts)
    with raises("lacks the column 'image1'", "tab-separated"):
        read_things(things(tmp_path, THINGS_TABLE.replace("\t", ",")), concepts)
    with raises("lacks the column 'image1'", "it has none"):
        read_things(things(tmp_path, ""), concepts)
    with raises("has a header and no triplets"):
        read_things(things(tmp_path, THINGS_TABLE.splitlines()[0]), concepts)
    (tmp_path / "triplets.csv").write_bytes(THINGS_TABLE.encode("utf-16"))
    with raises("triplets.csv is not a UTF-8 text file"):
        read_things(tmp_path / "triplets.csv", concepts)


# Checking images


def test_every_damaged_image_is_found_and_named(tmp_path, capfd):
    scene = Image.fromarray(render(sample_scene(generator(0, "image", 1)))).resize((256, 256))
    good, damaged = [], []
    for suffix in ("jpg", "png", "webp", "bmp"):
        path = tmp_path / f"good.{suffix}"
        scene.save(path)
        good.append(path)
        for share in (0.1, 0.5, 0.99):  # all but the first of these leave a header that can be read
            cut = tmp_path / f"{share}.{suffix}"
            cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
            damaged.append(cut)
    with Image.open(tmp_path / "0.99.jpg") as image:
        assert image.size == (256, 256)  # opening is not enough
    for name, content in (("text.png", b"not an image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        damaged.append(tmp_path / name)
    damaged.append(tmp_path / "missing.png")
    problems = check_images([*damaged, *good, *damaged], workers=3)
    assert [problem.split(": ")[0] for problem in problems] == [f"cannot read {path}" for path in sorted(damaged)]
    assert all("\n" not in problem for problem in problems)
    assert any("no such file" in problem.lower() for problem in problems)
    assert check_images(reversed([*damaged, *good]), workers=1, quiet=True) == problems
    assert check_images(good * 2) == [] and check_images([]) == []
    assert capfd.readouterr().err == ""  # the bar is for terminals
    with raises("got 0 workers"):
        check_images(good, workers=0)


# Scenes in the formats of BAPPS and THINGS


@pytest.fixture(scope="module")
def scene_bapps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bapps")
    write_bapps(folder, seed=1, per_split=8, quiet=True)
    return folder


@pytest.fixture(scope="module")
def scene_things(tmp_path_factory):
    folder = tmp_path_factory.mktemp("things")
    write_things(folder, seed=1, quiet=True)
    return folder


@pytest.fixture(scope="module")
def tiny():
    return RobustPerceptualDistance("tiny-clean", resize="squash")


def embedded(metric, paths):
    with torch.no_grad():
        return metric.embed(torch.stack([metric.preprocess(path) for path in paths]))  # (N, D)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_scene_bapps_has_the_format_of_the_real_one(scene_bapps):
    rows = read_bapps(scene_bapps)
    assert len(rows) == 8 * 6 and rows == read_bapps(scene_bapps / "2afc") == read_bapps(scene_bapps / "2afc" / "val")
    assert check_images([path for row in rows for path in (row.reference, row.left, row.right)]) == []
    for row in rows[::7]:
        with Image.open(row.left) as image:
            assert image.size == (256, 256) and image.mode == "RGB"
    assert {round(row.share * 5, 9) for row in rows} <= {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
    with (scene_bapps / "strengths.csv").open(newline="") as handle:
        strengths = {row["key"]: row for row in csv.DictReader(handle)}
    assert list(strengths) == [row.key for row in rows]
    for row in rows:
        assert strengths[row.key]["kind"] in DISTORTIONS[row.split]
        assert row.left.read_bytes() != row.right.read_bytes()


def test_scene_bapps_people_prefer_the_milder_distortion_at_the_stated_rate():
    # 5 votes each of 600 triplets; the expected share of votes for the milder one is the mean of the probabilities.
    agreed, expected, variance = 0, 0.0, 0.0
    for index in range(600):
        comparison = sample_comparison(generator(3, "bapps superres", index), "superres")
        first, second = comparison.strengths
        assert 0.05 <= abs(first - second) <= 0.3 and min(first, second) >= 0.1 and max(first, second) <= 1
        agreed += comparison.votes if first > second else 5 - comparison.votes
        probability = 1 / (1 + np.exp(-12 * abs(first - second)))
        expected, variance = expected + 5 * probability, variance + 5 * probability * (1 - probability)
    assert abs(agreed - expected) < 4 * variance**0.5


@pytest.mark.parametrize(("split", "kind"), [(split, kind) for split in DISTORTIONS for kind in DISTORTIONS[split]])
def test_a_stronger_distortion_changes_more(split, kind):
    errors = []
    for strength in (0.1, 0.3, 0.5, 0.75, 1.0):
        total = 0.0
        for index in range(4):
            image = Image.fromarray(render(sample_scene(generator(0, "image", index))))
            changed = DISTORTIONS[split][kind](image, strength, np.random.default_rng(index))
            assert changed.size == image.size and changed.mode == "RGB"
            total += float(np.abs(np.asarray(changed, float) - np.asarray(image, float)).mean())
        errors.append(total / 4)
    assert errors == sorted(errors) and errors[0] > 0.1 and errors[-1] > 2 * errors[0]


def test_scene_things_odd_one_is_odd_by_construction(scene_things):
    read = read_things(scene_things, scene_things / "images")
    assert len(read.images) == 60 and read.triplets.shape == (1000, 3)
    assert read.triplets.min() == 0 and set(read.odd.tolist()) == {0, 1, 2}
    traits = []
    for path in read.images:
        name = re.fullmatch(r"(\d{4})_(\w+)_(\w+)_on_(\w+)", path.stem)
        assert name is not None and int(name[1]) == len(traits)
        traits.append(name.groups()[1:])  # colour, shape, colour of the ground
    with (scene_things / "triplets.csv").open(newline="") as handle:
        columns = list(csv.DictReader(handle, delimiter="\t"))
    wrong = 0
    for row, triplet, odd in zip(columns, read.triplets.tolist(), read.odd.tolist(), strict=True):
        stranger = traits[triplet[odd]]
        one, other = (traits[index] for position, index in enumerate(triplet) if position != odd)
        if row["wrong"] == "1":
            wrong += 1
            # What was called odd shares something with exactly one of the others.
            assert any(a == b for a, b in zip(stranger, one, strict=True)) != any(
                a == b for a, b in zip(stranger, other, strict=True)
            )
            continue
        assert one[:2] == other[:2] if row["shared"] == "object" else one[2] == other[2]
        assert all(a not in (b, c) for a, b, c in zip(stranger, one, other, strict=True))
    assert {row["shared"] for row in columns} == {"object", "ground"}
    share = json.loads((scene_things / "things.json").read_text())["label_noise"]
    assert abs(wrong - 1000 * share) < 4 * (1000 * share * (1 - share)) ** 0.5


def test_scene_sets_depend_on_nothing_but_seed_and_index(tmp_path, scene_bapps, scene_things):
    write_bapps(tmp_path / "b", seed=1, per_split=2, quiet=True)
    whole, part = contents(scene_bapps / "2afc"), contents(tmp_path / "b" / "2afc")
    assert len(part) == 2 * 4 * 6 and all(whole[name] == content for name, content in part.items())
    write_things(tmp_path / "t", seed=1, triplets=100, quiet=True)
    assert contents(tmp_path / "t" / "images") == contents(scene_things / "images")
    table = (scene_things / "triplets.csv").read_bytes()
    assert table.splitlines()[:101] == (tmp_path / "t" / "triplets.csv").read_bytes().splitlines()
    write_bapps(tmp_path / "other", seed=2, per_split=2, quiet=True)
    other = contents(tmp_path / "other" / "2afc")
    assert all(part[name] != content for name, content in other.items() if name.endswith(".png"))


@pytest.mark.parametrize(
    ("write", "small", "different", "place"),
    [
        (write_bapps, {"per_split": 1}, {"per_split": 2}, "2afc"),
        (write_things, {"concepts": 12, "triplets": 5}, {"concepts": 12, "triplets": 6}, "images"),
    ],
)
def test_writing_again_is_harmless_and_other_settings_are_refused(tmp_path, write, small, different, place):
    (tmp_path / f"{place}.partial" / "leftover").mkdir(parents=True)  # of a run that was cut off
    record = write(tmp_path, **small, quiet=True)
    assert record["seed"] == 0 and record["version"] == scene_formats.VERSION
    assert not (tmp_path / f"{place}.partial").exists()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write(tmp_path, **small, quiet=True) == record
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    for settings in (different, {**small, "seed": 1}):
        with raises("holds a set of other settings"):
            write(tmp_path, **settings, quiet=True)
    foreign = tmp_path / "foreign"
    (foreign / place).mkdir(parents=True)
    with raises(f"{place} exists, and no", "says that it was made here"):
        write(foreign, **small, quiet=True)


def test_settings_that_allow_no_set_are_refused(tmp_path):
    with raises("got 0 triplets per split"):
        write_bapps(tmp_path, per_split=0)
    with raises("got 0 triplets of 60 concepts"):
        write_things(tmp_path, triplets=0)
    with raises("at most 10,000"):
        write_things(tmp_path, concepts=10_001)
    with raises("2 concepts allow no triplet"):
        write_things(tmp_path, concepts=2)
    assert list(tmp_path.iterdir()) == []


def test_a_metric_does_better_than_chance_on_both(tiny, scene_bapps, scene_things):
    rows = read_bapps(scene_bapps)
    reference, left, right = (
        embedded(tiny, [getattr(row, name) for row in rows]) for name in ("reference", "left", "right")
    )
    chosen = (reference * right).sum(1) > (reference * left).sum(1)
    assert (chosen.long() == torch.tensor([row.label for row in rows])).float().mean() > 0.7  # chance is 0.5

    read = read_things(scene_things, scene_things / "images")
    vectors = embedded(tiny, list(read.images))[read.triplets]  # (T, 3, D)
    first, second, third = vectors.unbind(1)
    pairs = torch.stack([(second * third).sum(1), (first * third).sum(1), (first * second).sum(1)], 1)  # (T, 3)
    assert (pairs.argmax(1) == read.odd).float().mean() > 0.5  # chance is 1/3


class TestGrounds:
    def test_every_class_has_its_images_and_its_colour(self, tmp_path):
        folder = tmp_path / "grounds"
        record = write_grounds(folder, seed=3, per_class=2, quiet=True)
        found = read_classes(folder)
        assert list(found.names) == sorted(BACKGROUNDS) and len(found.images) == 2 * len(BACKGROUNDS)
        for image in found.images:
            corner = np.asarray(Image.open(image.path), np.float64)[:3, :3].mean((0, 1)) / 255
            expected = np.asarray(BACKGROUNDS[found.names[image.label]])
            others = [np.linalg.norm(corner / corner.sum() - np.asarray(c) / sum(c)) for c in BACKGROUNDS.values()]
            own = np.linalg.norm(corner / corner.sum() - expected / expected.sum())
            assert own <= sorted(others)[2]  # the hue is among the nearest: light, stripes and noise move it
        assert write_grounds(folder, seed=3, per_class=2, quiet=True) == record
        with pytest.raises(ValueError, match="other settings"):
            write_grounds(folder, seed=4, per_class=2, quiet=True)
