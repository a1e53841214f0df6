"""Triplets from photographs: each change does what it says, and the set is what its table says."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from rclip_metric.images import open_image
from rclip_metric.train.commands.evaluate.main import main as eval_main
from rclip_metric.train.commands.train.main import main
from rclip_metric.train.data import photo_changes as c
from rclip_metric.train.data import photos as p
from rclip_metric.train.data.photographs import Others, read_photographs
from rclip_metric.train.data.triplets import read_nights

CONFIG = p.PhotosConfig(count=22, size=48, seed=3)


def drawn(seed, side=100):
    """A picture with broad and fine detail in colour."""
    rng = np.random.default_rng(seed)
    coarse, fine = (Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (5, 24))
    sizes = [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), float) for image in (coarse, fine)]
    return Image.fromarray((0.7 * sizes[0] + 0.3 * sizes[1]).astype(np.uint8))


def levels(image):
    return np.asarray(image, np.float64) / 255


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three classes of four pictures."""
    folder = tmp_path_factory.mktemp("tree")
    for label in range(3):
        (folder / f"class{label}").mkdir()
        for index in range(4):
            drawn(10 * label + index, 64 + 8 * index).save(folder / f"class{label}" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def written(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "photos"
    record = p.write_photos(folder, [tree], CONFIG, quiet=True)
    return folder, record


def rows_of(folder):
    with (folder / "data.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize(
    ("view", "box", "flip"),
    [
        (c.View(), (9, 9, 91, 91), False),
        (c.View(shift=(8 / 82, -5 / 82)), (17, 4, 99, 86), False),
        (c.View(mirrored=True), (9, 9, 91, 91), True),
    ],
)
def test_a_view_shows_the_pixels_of_the_photograph(view, box, flip):
    photo = drawn(0)
    expected = photo.crop(box)
    if flip:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert abs(levels(c.seen(photo, view, 82)) - levels(expected)).max() <= 1.5 / 255


def test_views_move_points_as_they_say():
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    corners = ((0.1, 0.0), (-0.05, 0.02), (0.0, -0.1), (0.03, 0.0))
    assert np.allclose(c.View(corners=corners).places(square), square + corners)
    assert np.allclose(c.View(zoom=0.5, shift=(0.1, 0.2)).places(square), 0.25 + 0.5 * square + (0.1, 0.2))
    bent = c.View(bend=0.04, waves=(1.0, 2.0)).places(np.random.default_rng(0).uniform(size=(1000, 2)))
    straight = c.View().places(np.random.default_rng(0).uniform(size=(1000, 2)))
    assert 0.03 < abs(bent - straight).max() <= 0.06  # two waves, of the amplitude and half of it


def test_light_is_arithmetic_on_levels():
    image = Image.fromarray(np.full((4, 4, 3), (100, 60, 20), np.uint8))
    assert np.array_equal(np.asarray(c.Light()(image)), np.asarray(image))
    assert np.asarray(c.Light(stops=1)(image))[0, 0].tolist() == [200, 120, 40]
    assert np.asarray(c.Light(warmth=0.2)(image))[0, 0].tolist() == [120, 60, 16]
    assert np.asarray(c.Light(hue=120)(image))[0, 0].tolist() in ([20, 100, 60], [60, 20, 100])  # a third of a turn
    gray = np.asarray(c.Light(saturation=0)(image))[0, 0]
    assert gray.tolist() == [round(0.299 * 100 + 0.587 * 60 + 0.114 * 20)] * 3


def test_noise_has_its_deviation_and_repeats():
    image = Image.fromarray(np.full((200, 200, 3), 128, np.uint8))
    noisy = c.Noise(0.1, seed=5)(image)
    assert np.isclose(levels(noisy).std(), 0.1, rtol=0.02)
    assert np.array_equal(np.asarray(noisy), np.asarray(c.Noise(0.1, seed=5)(image)))
    assert not np.array_equal(np.asarray(noisy), np.asarray(c.Noise(0.1, seed=6)(image)))


def test_blur_and_jpeg_grow_with_their_numbers():
    image = drawn(1)

    def change(applied):
        return abs(levels(applied(image)) - levels(image)).mean()

    assert change(c.Blur(0.004)) < change(c.Blur(0.02)) < change(c.Blur(0.1))
    assert change(c.Jpeg(90)) < change(c.Jpeg(30)) < change(c.Jpeg(3))


def test_local_edits_stay_in_their_box():
    image, other = drawn(2), drawn(3)
    box = c.Box(0.4, 0.6, 0.4)
    cover = box.cover(100)[..., 0]
    assert cover[60, 40] == 1 and cover[60, 70] == 0 and 0.35**2 < cover.mean() < 0.45**2
    for edit in (c.Removed(box), c.Replaced(box, other)):
        changed = edit(image)
        assert np.array_equal(np.asarray(changed)[cover == 0], np.asarray(image)[cover == 0])
        assert c.visible(image, changed, box) > 0.05
    inside = cover == 1
    new, old = levels(c.Replaced(box, other)(image))[inside], levels(image)[inside]
    # The soft edge is matched as well, and not looked at here.
    assert abs(new.mean(0) - old.mean(0)).max() < 0.08 and abs(new.std(0) - old.std(0)).max() < 0.08
    flat = Image.fromarray(np.full((100, 100, 3), (200, 90, 30), np.uint8))
    assert abs(levels(c.Removed(box)(flat)) - levels(flat)).max() <= 1 / 255  # the surroundings of one colour give it


def test_the_busiest_box_is_where_the_detail_is():
    values = np.full((100, 100, 3), 128, np.uint8)
    values[10:40, 60:90] = np.random.default_rng(0).integers(0, 256, (30, 30, 3))
    boxes = [c.Box(x, y, 0.4) for x in (0.25, 0.75) for y in (0.25, 0.75)]
    assert c.busiest(Image.fromarray(values), boxes) == c.Box(0.75, 0.25, 0.4)


def test_changes_are_told_in_numbers():
    assert c.described(c.View()) == "none"
    told = c.described(c.View(zoom=0.9, mirrored=True), c.Blur(0.02), c.Replaced(c.Box(0.5, 0.25, 0.4), drawn(0)))
    assert told == "view zoom=0.9 mirrored=True; blur radius=0.02; replaced box=0.500,0.250,0.400"


def test_the_set_is_what_its_table_says(written, tree):
    folder, record = written
    rows = rows_of(folder)
    triplets = read_nights(folder)
    assert [t.kind for t in triplets] == list(p.PHOTO_KINDS) * 2 == [row["kind"] for row in rows]
    assert record["kinds"] == dict.fromkeys(p.PHOTO_KINDS, 2) and (record["photographs"], record["classes"]) == (12, 3)
    for kind in p.PHOTO_KINDS:  # one of the two has the closer image on the right
        assert sorted(row["right_vote"] for row in rows if row["kind"] == kind) == ["0", "1"]
    for row, triplet in zip(rows, triplets, strict=True):
        closer, farther = (triplet.right, triplet.left) if triplet.label else (triplet.left, triplet.right)
        sizes = {open_image(path).size for path in (triplet.reference, closer, farther)}
        reference = open_image(tree / row["reference_source"])
        assert sizes == {(min(48, round(c.WINDOW * reference.width)),) * 2}
        own = row["reference_source"].split("/")[0]
        assert row["prompt"] == own
        others = [name.split("/")[0] for name in row["other_source"].split()]
        if row["kind"] == "class":
            assert others[0] == own and others[1] != own
        elif row["kind"] == "photo":
            assert others == [own] and row["other_source"] != row["reference_source"]
        elif row["kind"] == "stranger":
            assert others and others[0] != own
        else:
            assert not others
        if row["farther_change"] == "another photograph":
            name = row["other_source"].split()[-1]
            square = open_image(tree / name)
            whole = round(open_image(farther).width / c.WINDOW)
            again = c.seen(square.resize((whole, whole), Image.Resampling.LANCZOS), c.View(), open_image(farther).width)
            assert np.array_equal(np.asarray(again), np.asarray(open_image(farther)))


def test_the_set_depends_on_its_seed_alone(written, tree, tmp_path):
    folder, _ = written
    p.write_photos(tmp_path / "again", [tree], CONFIG, workers=3, quiet=True)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 3 * 22 + 2
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    other = p.write_photos(tmp_path / "other", [tree], p.PhotosConfig(count=11, size=48, seed=4), quiet=True)
    assert other["digest"] == written[1]["digest"]
    assert (tmp_path / "other" / "ref/000/000.png").read_bytes() != (folder / "ref/000/000.png").read_bytes()


def test_a_set_is_made_once_and_never_over_another(written, tree, tmp_path):
    folder, record = written
    before = (folder / "data.csv").stat().st_mtime_ns
    again = p.write_photos(folder, [tree], CONFIG, quiet=True)
    assert again == {key: value for key, value in record.items() if key != "versions"}
    assert (folder / "data.csv").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings"):
        p.write_photos(folder, [tree], p.PhotosConfig(count=11, size=48, seed=3), quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"no photos\.json says"):
        p.write_photos(tmp_path / "mine", [tree], CONFIG, quiet=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_unusable_files_are_named_and_left_out(tree, tmp_path, capsys):
    folder = tmp_path / "flat"
    folder.mkdir()
    for index in range(3):
        drawn(index).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:200])
    drawn(9, 40).save(folder / "small.png")
    command = ["train", "photos", "--images", str(folder), "--out", str(tmp_path / "out"), "--count", "9", "--quiet"]
    assert main(command) == 0
    told = capsys.readouterr()
    assert "broken.png" in told.err and "small.png has 40 x 40 pixels" in told.err
    assert "9 triplets of 3 photographs in 0 classes" in told.out and "left out: photo and class" in told.out
    assert {row["kind"] for row in rows_of(tmp_path / "out")} == set(p.PHOTO_KINDS) - {"photo", "class"}
    record = json.loads((tmp_path / "out" / "photos.json").read_text())
    assert len(record["left_out"]) == 2 and record["versions"]["pillow"]
    (folder / "1.png").unlink()
    (folder / "2.png").unlink()
    assert main([*command, "--out", str(tmp_path / "none")]) == 2
    assert "at least two are needed" in capsys.readouterr().err


def test_a_table_of_classes_stands_for_folders(tree, tmp_path):
    lines = ["set,class,file"]
    lines += [f"x,{'even' if i % 2 == 0 else 'odd'},class{k}/{i}.png" for k in range(3) for i in range(3)]
    (tree / "index.csv").write_text("\n".join(lines) + "\n")
    try:
        found, left_out = read_photographs([tree], classes=tree / "index.csv", quiet=True)
        one_class, _ = read_photographs([tree / "class1"], classes=tree / "index.csv", quiet=True)
    finally:
        (tree / "index.csv").unlink()
    assert not left_out and len(found) == 9 and {photo.label for photo in found} == {(0, "even"), (0, "odd")}
    assert [photo.name for photo in one_class] == ["0.png", "1.png", "2.png"]
    (tmp_path / "other.csv").write_text("class,file\na,b.png\n")
    with pytest.raises(ValueError, match="names none of the 12 images"):
        read_photographs([tree], classes=tmp_path / "other.csv", quiet=True)
    (tmp_path / "bad.csv").write_text("klass,file\na,b.png\n")
    with pytest.raises(ValueError, match="lacks the column 'class'"):
        read_photographs([tree], classes=tmp_path / "bad.csv", quiet=True)
    (tmp_path / "twice.csv").write_text("class,file\na,b.png\nc,b.png\n")
    with pytest.raises(ValueError, match="'c' here and 'a' before"):
        read_photographs([tree], classes=tmp_path / "twice.csv", quiet=True)


def test_duplicates_are_nobody_elses_photograph(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        drawn(0).save(tmp_path / label / "same.png")
        drawn(0).point(lambda level: level * 0.9).save(tmp_path / label / "darker.png")
        drawn(ord(label)).save(tmp_path / label / "own.png")
    photographs, _ = read_photographs([tmp_path], quiet=True)
    others = Others(photographs)
    names = [photo.name for photo in photographs]
    one = names.index("a/same.png")
    assert [names[i] for i in others.of_class(one)] == ["a/own.png"]
    assert [names[i] for i in others.of_other_classes(one, np.random.default_rng(0), 9)] == ["b/own.png"]


def test_results_are_told_by_kind(written, tmp_path, capsys):
    folder, _ = written
    command = ["eval", "nights", "--data", str(folder), "--attack", "none", "--model", "psnr", "--quiet"]
    assert eval_main([*command, "--out", str(tmp_path)]) == 0
    assert "| kind | samples | clean |" in capsys.readouterr().out
    (file,) = tmp_path.glob("*.json")
    record = json.loads(file.read_text())
    assert list(record["by_kind"]) == list(p.PHOTO_KINDS)
    assert all(part["clean"]["samples"] == 2 and part["robust"] is None for part in record["by_kind"].values())
    mean = sum(part["clean"]["accuracy"] for part in record["by_kind"].values()) / len(p.PHOTO_KINDS)
    assert np.isclose(mean, record["clean"]["accuracy"], atol=1e-3)
    assert record["by_kind"]["blur"]["clean"]["accuracy"] == 0  # pixels prefer the blurred picture to the moved one
    assert eval_main(["eval", "table", str(tmp_path), "--by", "kind"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(p.PHOTO_KINDS) and [line.split(" | ")[2] for line in lines[2:]] == list(p.PHOTO_KINDS)
    assert eval_main(["eval", "table", str(tmp_path), "--by", "split"]) == 2
    assert "none of the 1 results has several splits" in capsys.readouterr().err
    assert eval_main(["eval", "table", str(tmp_path), "--by", "kind", "--format", "csv"]) == 2


def test_settings_that_make_no_sense_are_refused(tree, tmp_path, capsys):
    command = ["train", "photos", "--images", str(tree), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*command, "--size", "8"]) == 2
    assert "expected 1 or more of 32 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--split", "all"])
