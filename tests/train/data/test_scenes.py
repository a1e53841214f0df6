"""The procedural scenes: deterministic, described by their captions, ordered by construction."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rclip_metric.train.data.classes import read_classes, read_prompts
from rclip_metric.train.data.scenes import draw as s
from rclip_metric.train.data.scenes.formats import write_pairs
from rclip_metric.train.data.triplets import read_nights
from rclip_metric.train.models.text import class_embeddings
from rclip_metric.train.models.text_weights import load_text
from rclip_metric.train.models.tokenizer import CONTEXT, WordTokenizer
from rclip_metric.weights import load_encoder

SMALL = s.ScenesConfig(seed=3, images=12, triplets=(4, 4, 40), pool=2, queries=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    s.write_scenes(folder, SMALL, quiet=True)
    return folder


def test_a_scene_is_a_function_of_seed_part_and_index():
    one, again = (s.render(s.sample_scene(s.generator(0, "image", 5))) for _ in range(2))
    assert one.shape == (64, 64, 3) and one.dtype == np.uint8
    assert np.array_equal(one, again)
    for other in (s.generator(1, "image", 5), s.generator(0, "query", 5), s.generator(0, "image", 6)):
        assert not np.array_equal(one, s.render(s.sample_scene(other)))


def test_every_caption_fits_the_vocabulary_and_names_what_is_shown():
    tokenize = WordTokenizer()
    for index in range(200):
        scene = s.sample_scene(s.generator(2, "image", index))
        text = s.caption(scene)
        assert len(text.split()) <= CONTEXT - 2
        row = tokenize([text])[0]
        assert row[0] == tokenize.start and (row == tokenize.end).sum() == 1 and row.max() == tokenize.end
        for item in scene.shown:
            assert f"{item.size} {item.colour} {item.texture} {item.shape}" in text


def test_the_farther_image_has_all_edits_of_the_nearer_and_more():
    decided = 0
    for index in range(300):
        triplet = s.sample_triplet(s.generator(0, "triplet", index))
        near, far = triplet.edits["near"], triplet.edits["far"]
        if triplet.votes >= 6:
            decided += 1
            assert far[: len(near)] == near and len(far) > len(near)
            closer = triplet.right if triplet.right_is_closer else triplet.left
            farther = triplet.left if triplet.right_is_closer else triplet.right
            assert s.caption(farther) != s.caption(triplet.reference) or "relocate" in far
            assert closer != triplet.reference and closer != farther
    assert 270 <= decided < 300  # 5 % are undecided by design


def test_edits_change_only_what_they_name():
    scene = s.sample_scene(s.generator(0, "image", 1))
    for edit in s.edits(scene):
        changed = edit.apply(scene, np.random.default_rng(0))
        assert changed != scene, edit.name
        kind, index, _ = edit.key
        if kind == "object":
            untouched = [i for i in range(len(scene.objects)) if i != index]
            assert [changed.objects[i] for i in untouched] == [scene.objects[i] for i in untouched]
            assert changed.ground == scene.ground and changed.light == scene.light
        else:
            assert changed.objects == scene.objects


def test_the_sets_on_disk_have_the_formats_of_the_real_ones(written):
    with (written / "images" / "captions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 12
    for row in rows:
        path = written / "images" / row["path"]
        assert path.parent.name in s.SHAPES and path.parent.name in row["caption"]
        with Image.open(path) as image:
            assert image.size == (64, 64) and image.mode == "RGB"
    for part, count in (("pool", 2), ("query", 1)):
        for label in s.SHAPES:
            assert len(list((written / "classes" / part / label).iterdir())) == count
    test = read_nights(written / "nights", "test")
    halves = [read_nights(written / "nights", f"test_{half}") for half in ("imagenet", "no_imagenet")]
    everything = read_nights(written / "nights", "test", min_votes=0)
    assert len(everything) == 40 and len(test) == sum(map(len, halves)) < 40
    assert {row.label for row in test} == {0, 1}
    assert all(path.is_file() for row in test for path in (row.reference, row.left, row.right))


def test_writing_again_is_harmless_and_other_settings_are_refused(written):
    before = json.loads((written / "scenes.json").read_text())
    assert s.write_scenes(written, SMALL, quiet=True) == before
    with pytest.raises(ValueError, match="other settings"):
        s.write_scenes(written, s.ScenesConfig(seed=4), quiet=True)


def test_pixels_do_not_change_without_the_version(written):
    # A change of the generator that moves these must raise scenes.VERSION (and retrain the shipped models).
    sums = [int(s.render(s.sample_scene(s.generator(0, "image", i))).sum(dtype=np.int64)) for i in range(4)]
    expected = json.loads((Path(__file__).parent / "scenes_v1.json").read_text())["pixel_sums"]
    assert sums == pytest.approx(expected, rel=1e-4)  # rounding of the machine's sine may move a pixel


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "pairs"
    write_pairs(folder, seed=5, per_class=2, quiet=True)
    return folder


def test_pairs_are_80_classes_of_an_object_on_a_ground(pairs, tmp_path):
    found = read_classes(pairs)
    assert (
        list(found.names) == sorted(f"{c}-on-{g}" for c in s.COLOURS for g in s.BACKGROUNDS) and len(found.names) == 80
    )
    assert len(found.images) == 160
    write_pairs(tmp_path / "fewer", seed=5, per_class=1, quiet=True)
    for image in read_classes(tmp_path / "fewer").images:  # a function of the seed and the index
        assert image.path.read_bytes() == (pairs / image.key).read_bytes()
    with pytest.raises(ValueError, match="other settings"):
        write_pairs(pairs, seed=6, per_class=2, quiet=True)
    with pytest.raises(ValueError, match="got 0 images per class"):
        write_pairs(tmp_path / "none", per_class=0)


def test_pairs_show_the_object_that_their_folder_names(pairs):
    """The pixels that differ from the scene without its object are nearer to its colour than to seven of the others."""
    for index, (colour, ground) in enumerate(
        [("red", "teal"), ("white", "navy"), ("black", "beige"), ("blue", "grey")]
    ):
        scene = s.sample_scene(s.generator(5, f"pair {colour} on {ground}", index % 2))
        bare = s.replace(scene, objects=(), ground_colour=ground)
        shown = np.asarray(Image.open(pairs / f"{colour}-on-{ground}" / f"{index % 2:05d}.png"), np.float64)
        inside = abs(shown - s.render(bare)).sum(2) > 30
        share = inside.mean()
        assert 0.005 < share < 0.15  # one object: its circle has a radius of 0.10 to 0.21 of the side
        mean = shown[inside].mean(0) / 255
        distances = {name: float(np.linalg.norm(mean - np.asarray(rgb))) for name, rgb in s.COLOURS.items()}
        assert distances[colour] <= sorted(distances.values())[2], (colour, distances)


def test_the_shipped_clip_tells_pairs_by_their_prompts(pairs):
    prompts, found = read_prompts("scenes-pairs"), read_classes(pairs)
    for word in prompts.words(found.names):
        WordTokenizer()([template.replace("{}", word) for template in prompts.templates])  # raises for an unknown word
    some = [name for name in found.names if name.endswith(("-teal", "-beige"))]
    images = [image for image in found.images if found.names[image.label] in some]
    encoder = load_encoder("tiny-clean").eval()
    classes = class_embeddings(load_text("tiny-clean"), prompts.words(some), prompts.templates, quiet=True)  # (20, D)
    with torch.no_grad():
        embeddings = encoder(torch.stack([encoder.preprocess(image.path) for image in images]))  # (40, D)
    labels = torch.tensor([some.index(found.names[image.label]) for image in images])
    right = ((embeddings @ classes.T).argmax(1) == labels).float().mean()
    assert len(images) == 40 and right > 0.65  # 82 % of 1,280 images of all classes; 5 % of these by chance
