"""An index: built, kept on disk in two ways, brought up to date, searched, and never another model's."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from rclip_metric import ImageError, ImageIndex, RobustPerceptualDistance
from rclip_metric.errors import ImageIndexError, MissingPackageError
from rclip_metric.retrieval import FileEmbeddings, find_duplicates
from rclip_metric.retrieval.storage import Row
from rclip_metric.train.metrics import EmbeddingMetric, load_metric

from support.encoders import small_encoder
from support.images import save_noise
from support.programs import PATIENCE

FORMATS = ("lance", "safetensors")


@pytest.fixture(scope="module")
def metric() -> RobustPerceptualDistance:
    return RobustPerceptualDistance(small_encoder(spread=True, name="first", revision="1"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images in two classes and one of none, and one that cannot be read."""
    for number in range(6):
        save_noise(tmp_path / "photos" / ("cats" if number % 2 else "dogs") / f"{number}.png", number)
    save_noise(tmp_path / "photos" / "loose.png", 9)
    (tmp_path / "photos" / "cats" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "photos" / "cats" / "notes.txt").write_text("left out")
    (tmp_path / "photos" / ".hidden").mkdir()
    save_noise(tmp_path / "photos" / ".hidden" / "x.png", 10)
    return tmp_path / "photos"


IDS = ["cats/1.png", "cats/3.png", "cats/5.png", "dogs/0.png", "dogs/2.png", "dogs/4.png", "loose.png"]


def built(folder: Path, metric: RobustPerceptualDistance, **settings) -> tuple[ImageIndex, list[str]]:
    skipped: list[str] = []
    index = ImageIndex.build(folder, metric, on_skip=lambda file, reason: skipped.append(file.name), **settings)
    return index, skipped


def test_a_tree_is_indexed_by_path_and_labelled_by_folder(folder, metric):
    index, skipped = built(folder, metric)
    assert index.ids == IDS and skipped == ["broken.jpg"]
    assert [row.label for row in index.rows] == ["cats"] * 3 + ["dogs"] * 3 + [None]
    first = folder / "cats" / "1.png"
    stated = first.stat()
    assert index.rows[0].path == str(first)
    assert (index.rows[0].size, index.rows[0].modified) == (stated.st_size, stated.st_mtime_ns)
    with FileEmbeddings(metric, [first], batch_size=1, on_skip=print) as embeddings:
        torch.testing.assert_close(index.embeddings[0], embeddings[first], atol=1e-6, rtol=0)


def test_names_are_the_same_from_wherever_the_folder_is_named(folder, metric, monkeypatch):
    monkeypatch.chdir(folder)
    for root in (".", "../photos", f"{folder}/", folder):
        index, _ = built(Path(root), metric)
        assert index.ids == IDS and [row.label for row in index.rows] == ["cats"] * 3 + ["dogs"] * 3 + [None]
        assert index.rows[0].path == str(folder / "cats" / "1.png")


def test_links_are_followed_once_and_one_to_nothing_is_named(folder, metric, tmp_path):
    save_noise(tmp_path / "elsewhere" / "far.png", 30)
    (folder / "birds").symlink_to(tmp_path / "elsewhere")
    (folder / "cats" / "up").symlink_to(folder)
    (folder / "cats" / "gone.png").symlink_to(tmp_path / "nothing.png")
    index, skipped = built(folder, metric)
    assert sorted(index.ids) == sorted(["birds/far.png", *IDS]) and sorted(skipped) == ["broken.jpg", "gone.png"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_distances_are_the_metrics(folder, metric, dtype):
    index, _ = built(folder, metric, dtype=dtype)
    query = metric.preprocess(folder / "dogs" / "2.png")
    hits = index.search(folder / "dogs" / "2.png", k=7)
    assert hits.ids[0] == "dogs/2.png" and hits.labels[0] == "dogs" and sorted(hits.ids) == IDS
    assert hits.distances[0] < 1e-3  # passes of another size round in another way
    near = {torch.float32: 1e-5, torch.float16: 1e-3}[dtype]
    for name, distance, similarity in zip(hits.ids, hits.distances, hits.similarities, strict=True):
        image = metric.preprocess(folder / name)
        torch.testing.assert_close(distance, metric(query[None], image[None])[0], atol=near, rtol=0)
        torch.testing.assert_close(similarity, 1 - distance**2, atol=1e-6, rtol=0)
    squared = ImageIndex(RobustPerceptualDistance(metric.encoder, squared=True))
    squared.add(index.embeddings.float(), ids=index.ids)
    torch.testing.assert_close(squared.search(query, k=7).distances, hits.distances**2, atol=near, rtol=0)


def test_queries_come_as_files_images_embeddings_and_lists(folder, metric):
    index, _ = built(folder, metric)
    files = [folder / "dogs" / "2.png", folder / "loose.png"]
    images = torch.stack([metric.preprocess(file) for file in files])
    embeddings = metric.embed(images)
    for queries in (files, images, embeddings, [Image.open(file) for file in files]):
        assert [hits.ids[0] for hits in index.search(queries, k=2)] == ["dogs/2.png", "loose.png"]
    for query in (files[1], str(files[1]), images[1], embeddings[1], Image.open(files[1])):
        assert index.search(query, k=1).ids == ["loose.png"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_kept_is_what_comes_back(folder, metric, tmp_path, kind, dtype):
    index, _ = built(folder, metric, dtype=dtype)
    index.save(tmp_path / "kept", format=kind)
    again = ImageIndex.open(tmp_path / "kept", metric)
    assert again.rows == index.rows and again.dtype == dtype and again.root == folder
    assert torch.equal(again.embeddings, index.embeddings)
    again.add(torch.eye(16)[:2], ids=["it's new", "cats/1.png"], labels=["a", None])
    again.remove(["loose.png", "dogs/0.png"])
    third = ImageIndex.open(tmp_path / "kept", metric)
    assert sorted(third.ids) == sorted({*IDS, "it's new"} - {"loose.png", "dogs/0.png"})
    assert torch.equal(third.search(torch.eye(16)[1], k=1).distances, torch.zeros(1))
    assert third.search(torch.eye(16)[1], k=1).ids == ["cats/1.png"]
    assert third.rows[third.ids.index("it's new")] == Row("it's new", "a")


@pytest.mark.parametrize("kind", FORMATS)
def test_another_model_is_told_and_both_are_named(folder, metric, tmp_path, kind):
    built(folder, metric)[0].save(tmp_path / "kept", format=kind)
    other = RobustPerceptualDistance(small_encoder(spread=True, name="second", revision="2", seed=1))
    with pytest.raises(
        ImageIndexError, match=r"holds embeddings of first@1 .*, and this is second@2 .*: open it with that"
    ):
        ImageIndex.open(tmp_path / "kept", other)
    changed = RobustPerceptualDistance(small_encoder(spread=True, name="first", revision="1"))
    with torch.no_grad():
        next(changed.encoder.parameters()).add_(1e-3)
    with pytest.raises(ImageIndexError, match="holds embeddings of first@1"):
        ImageIndex.open(tmp_path / "kept", changed)
    squashed = RobustPerceptualDistance(small_encoder(spread=True, name="first", revision="1", resize="squash"))
    with pytest.raises(ImageIndexError, match="holds embeddings of first@1"):
        ImageIndex.open(tmp_path / "kept", squashed)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_update_reads_what_changed_and_nothing_else(folder, metric, tmp_path, kind, monkeypatch):
    index, _ = built(folder, metric)
    index.save(tmp_path / "kept", format=kind)
    save_noise(folder / "dogs" / "new.png", 20)
    save_noise(folder / "dogs" / "2.png", 21)
    (folder / "dogs" / "4.png").unlink()
    (folder / "dogs" / "0.png").write_bytes(b"no image any more")
    os.utime(folder / "cats" / "1.png")  # touched, the bytes are the same
    read: list[str] = []
    preprocess = metric.preprocess
    monkeypatch.setattr(metric, "preprocess", lambda file: read.append(Path(file).name) or preprocess(file))
    found = ImageIndex.open(tmp_path / "kept", metric).update()
    assert sorted(read) == ["0.png", "2.png", "broken.jpg", "new.png"]
    assert (found.added, found.changed, found.dropped) == (
        ["dogs/new.png"],
        ["dogs/2.png"],
        ["dogs/4.png", "dogs/0.png"],
    )
    assert [Path(file).name for file, _ in found.skipped] == ["broken.jpg", "0.png"]
    assert found.unchanged == 4
    read.clear()
    again = ImageIndex.open(tmp_path / "kept", metric)
    assert again.update().unchanged == 6 and read == ["broken.jpg", "0.png"]
    fresh, _ = built(folder, metric)
    assert sorted(again.rows) == sorted(fresh.rows)
    for name in fresh.ids:
        ours, theirs = (i.embeddings[i.ids.index(name)] for i in (again, fresh))
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_a_folder_that_moved_is_the_same_index(folder, metric, tmp_path):
    index, _ = built(folder, metric)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="cannot list"):
        index.update()
    assert index.update(tmp_path / "elsewhere").unchanged == 7 and len(index) == 7


ADDER = """
import os, sys, time, torch
from pathlib import Path
tests, kept, begin = sys.argv[1:]
sys.path.insert(0, tests)
from rclip_metric import ImageIndex, RobustPerceptualDistance
from support.encoders import small_encoder
metric = RobustPerceptualDistance(small_encoder(spread=True, name="first", revision="1"))
index = ImageIndex.open(kept, metric)
name, stop = os.environ["NAME"], int(os.environ["STOP"])
print(name, "open", flush=True)
while not Path(begin).exists():
    time.sleep(0.01)
for number in range(10_000):
    index.add(torch.eye(16)[number % 16][None], ids=[f"{name}{number}"])
    print(name, number, flush=True)
    if number == stop:
        break
"""


@pytest.mark.parametrize("kind", FORMATS)
def test_two_processes_add_at_once_and_one_is_killed(metric, tmp_path, kind, forks):
    index = ImageIndex(metric)
    index.add(torch.eye(16), ids=[f"old{number}" for number in range(16)])
    index.save(tmp_path / "kept", format=kind)
    (tmp_path / "adder.py").write_text(ADDER)
    words = [Path(__file__).parents[1], tmp_path / "kept", tmp_path / "begin"]
    both = [{"NAME": "done", "STOP": "12"}, {"NAME": "killed", "STOP": "-1"}]
    _, killed = forks.start(words, script=tmp_path / "adder.py", environments=both)
    deadline = time.monotonic() + PATIENCE

    def wait_for(line):
        while line not in forks.output:
            assert time.monotonic() < deadline and not forks.errors, forks.errors
            time.sleep(0.01)

    for one in both:
        wait_for(f"{one['NAME']} open\n")
    (tmp_path / "begin").touch()
    wait_for("killed 5\n")
    os.kill(killed, signal.SIGKILL)
    assert forks.wait() == [0, -signal.SIGKILL], forks.errors
    last = max(int(number) for number in re.findall(r"killed (\d+)\n", forks.output))
    ids = set(ImageIndex.open(tmp_path / "kept", metric).ids)
    assert ids >= {f"old{n}" for n in range(16)} | {f"done{n}" for n in range(13)} | {
        f"killed{n}" for n in range(last + 1)
    }
    assert ImageIndex.open(tmp_path / "kept", metric).search(torch.eye(16)[3], k=1).distances.item() == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_is_one_sentence_and_what_was_added_before_stays(metric, small_disk, kind):
    path = small_disk / "kept"
    index = ImageIndex(metric)
    index.add(crowd(100), ids=[f"{n}.png" for n in range(100)])
    index.save(path, format=kind)
    with pytest.raises(ImageIndexError) as caught:
        for start in range(100, 100_000, 512):
            ids = [f"{'long' * 20}{n}.png" for n in range(start, start + 512)]
            index.add(crowd(512), ids=ids)
    told = str(caught.value)
    assert told.startswith(f"{path} cannot be written (") and told.endswith("): what was added before is there.")
    assert "No space left on device" in told and "\n" not in told
    again = ImageIndex.open(path, metric)
    assert len(again) >= 100 and sorted(again.rows) == sorted(index.rows)  # in memory no more than on disk
    assert again.search(crowd(100)[17], k=1).ids == ["17.png"]


def test_building_writes_as_it_goes(folder, metric, tmp_path, monkeypatch):
    monkeypatch.setattr("rclip_metric.retrieval.index._BLOCK", 2)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        ImageIndex.build(folder, metric, path=tmp_path / "kept")
    kept = ImageIndex.open(tmp_path / "kept", metric)
    assert kept.ids == ["cats/1.png"] or kept.ids == ["cats/1.png", "cats/3.png"]
    found = kept.update()
    assert sorted(kept.ids) == IDS and [Path(file).name for file, _ in found.skipped] == ["broken.jpg"]


def test_a_refresh_opens_no_file_that_is_as_it_was(metric, tmp_path, monkeypatch):
    """So that it takes as long as listing them."""
    many = tmp_path / "many"
    save_noise(many / "0.png", 0, (8, 8))
    for number in range(1, 300):
        os.link(many / "0.png", many / f"{number}.png")
    index = ImageIndex.build(many, metric)
    assert index.update().unchanged == 300
    opened: list[object] = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args: opened.append(self) or original(self, *args))
    assert index.update().unchanged == 300 and opened == []
    os.utime(many / "0.png")  # and all of its links
    assert index.update().unchanged == 300 and len(opened) == 300


def test_any_metric_that_embeds(folder, tmp_path):
    colours = EmbeddingMetric(lambda images: images.mean((2, 3)), 8, name="mean colour")
    for name in ("red", "lime", "maroon"):
        Image.new("RGB", (20, 20), name).save(tmp_path / f"{name}.png")
    index = ImageIndex.build(tmp_path, colours, on_skip=lambda *_: None)
    assert index.search(tmp_path / "red.png", k=2).ids == ["maroon.png", "red.png"]  # the same direction
    index.save(tmp_path / "kept")
    assert len(ImageIndex.open(tmp_path / "kept", colours)) == len(index)
    with pytest.raises(ValueError, match="l2 gives no embeddings"):
        ImageIndex(load_metric("l2"))


def test_without_lancedb_there_is_the_other_format_and_one_sentence(folder, metric, tmp_path, monkeypatch):
    index, _ = built(folder, metric)
    index.save(tmp_path / "lance")
    assert (tmp_path / "lance" / "images.lance").is_dir()
    monkeypatch.setattr("rclip_metric.retrieval.storage.lance_is_installed", lambda: False)
    with pytest.raises(MissingPackageError, match=r'pip install "rclip-metric\[index\]"'):
        ImageIndex.open(tmp_path / "lance", metric)
    index.save(tmp_path / "files")
    assert (tmp_path / "files" / "index.json").is_file()
    assert ImageIndex.open(tmp_path / "files", metric).ids == IDS


def test_bad_input_is_one_sentence(folder, metric, tmp_path):
    index = ImageIndex(metric)
    with pytest.raises(ImageIndexError, match="the index is empty: add images before searching"):
        index.search(torch.eye(16)[0])
    with pytest.raises(ImageIndexError, match="the index is empty"):
        index.save(tmp_path / "nothing")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="there are no images below"):
        ImageIndex.build(tmp_path / "none", metric)
    index.add(torch.eye(16)[:3], ids=["a", "b", "c"])
    with pytest.raises(ValueError, match="k must be between 1 and the 3 images of the index, got 4"):
        index.search(torch.eye(16)[0], k=4)
    with pytest.raises(ValueError, match="embeddings must have 16 numbers, got 8"):
        index.add(torch.eye(8), ids=list("abcdefgh"))
    for bad in (float("nan"), float("inf"), 0.0):
        with pytest.raises(ValueError, match=r"embedding 1 \(e\) is zero or not finite"):
            index.add(torch.tensor([[1.0] * 16, [bad] * 16]), ids=["d", "e"])
    with pytest.raises(ValueError, match="the id 'd' stands twice"):
        index.add(torch.eye(16)[:2], ids=["d", "d"])
    with pytest.raises(ValueError, match="ids must be one for each of 2 images, got 1"):
        index.add(torch.eye(16)[:2], ids=["d"])
    with pytest.raises(KeyError, match="the index has no x"):
        index.remove(["a", "x"])
    assert index.ids == ["a", "b", "c"]
    with pytest.raises(ImageIndexError, match="does not exist: make one with"):
        ImageIndex.open(tmp_path / "nowhere", metric)
    with pytest.raises(ImageIndexError, match="is there already"):
        index.save(folder)


def crowd(count: int, seed: int = 0) -> torch.Tensor:
    """Embeddings (N, 16) in forty clusters."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, 16, generator=torch.Generator().manual_seed(99))
    return centres[torch.arange(count) % 40] + 0.6 * torch.randn(count, 16, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_table_is_searched_where_it_is(metric, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("rclip_metric.retrieval.lance._BLOCK", 300)
    index = ImageIndex(metric, dtype=dtype)
    index.add(crowd(1000), ids=[f"{n}.png" for n in range(1000)], labels=["even", "odd"] * 500)
    index.save(tmp_path / "kept", format="lance")
    on_disk = ImageIndex.open(tmp_path / "kept", metric, in_memory=False)
    read: list[str] = []
    monkeypatch.setattr("rclip_metric.retrieval.lance.LanceTable.read", lambda self: read.append("all"))
    on_disk.add(crowd(3, seed=5), ids=["0.png", "late", "later"])  # one is replaced
    index.add(crowd(3, seed=5), ids=["0.png", "late", "later"])
    assert len(on_disk) == 1002
    for ours, right in zip(on_disk.search(crowd(30), k=7), index.search(crowd(30), k=7), strict=True):
        assert (ours.ids, ours.labels, ours.paths) == (right.ids, right.labels, right.paths)
        torch.testing.assert_close(ours.distances, right.distances, atol=1e-6, rtol=0)
    with pytest.raises(ImageIndexError, match="embeddings must have 16 numbers, got 8"):
        on_disk.search(torch.ones(8))
    with pytest.raises(ImageIndexError, match="k must be between 1 and the 1002 images of the index, got 1003"):
        on_disk.search(crowd(1), k=1003)
    assert read == []
    monkeypatch.undo()
    assert sorted(on_disk.ids) == sorted(index.ids)  # now all is read


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_approximate_search_says_what_it_finds(metric, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("rclip_metric.retrieval.lance._PARTITION", 50)
    index = ImageIndex(metric, dtype=dtype)
    index.add(crowd(2000), ids=[f"{n}.png" for n in range(2000)])
    index.save(tmp_path / "kept", format="lance")
    # 40 parts: of a low recall a query looks into the fewest, of all that there is into every one.
    assert index.approximate(recall=1.0, sample=100, k=8).probes > 1
    assert index.approximation is not None and index.approximation.recall > 0.9
    told = index.approximate(recall=0.1, sample=600, k=8)
    assert told == index.approximation and (told.k, told.sample, told.images, told.probes) == (8, 300, 2000, 1)
    # Counted by hand, with other queries: those of the sample are their own nearest.
    on_disk = ImageIndex.open(tmp_path / "kept", metric, in_memory=False)
    assert on_disk.approximation == told
    queries = crowd(400, seed=3)
    found = on_disk.search(queries, k=8, approximate=True)
    exact = index.search(queries, k=8)
    recall = sum(len(set(a.ids) & set(b.ids)) for a, b in zip(found, exact, strict=True)) / 3200
    assert 0.3 < told.recall < 0.99 and told.recall == pytest.approx(recall, abs=0.06)
    for ours, right in zip(found, exact, strict=True):
        known = dict(zip(right.ids, right.distances.tolist(), strict=True))
        for name, distance in zip(ours.ids, ours.distances.tolist(), strict=True):
            assert distance == pytest.approx(known.get(name, distance), abs=1e-6)
            assert name in known or distance >= right.distances[-1] - 1e-6
    # What was added since is found, and what was dropped is not.
    late = crowd(40, seed=8)
    on_disk.add(late, ids=[f"late{n}" for n in range(40)])
    near = on_disk.search(late, k=1, approximate=True)
    assert [hits.ids for hits in near] == [[f"late{n}"] for n in range(40)]
    on_disk.remove(["late7"])
    assert on_disk.search(late[7], k=1, approximate=True).ids != ["late7"]
    assert on_disk.search(late[0], k=len(on_disk), approximate=True).ids[0] == "late0"  # more than it looks into


def test_approximate_search_where_there_is_none_is_refused(metric, tmp_path):
    index = ImageIndex(metric)
    index.add(crowd(200), ids=[f"{n}.png" for n in range(200)])
    with pytest.raises(ImageIndexError, match="is not prepared for approximate search: call `approximate` once"):
        index.search(crowd(1), approximate=True)
    for kept, told in ((None, "needs an index that is a LanceDB table"), ("safetensors", "needs an index that is a"),
                       ("lance", "an index of 200 images is searched exactly, approximately from 256 on")):  # fmt: skip
        if kept is not None:
            index.save(tmp_path / kept, format=kept)
        with pytest.raises(ImageIndexError, match=told):
            index.approximate()
    with pytest.raises(ImageIndexError, match=r"^recall must be a fraction above 0, at most 1, got 95\.$"):
        index.approximate(recall=95)
    (tmp_path / "lance" / "approximate.json").write_text("{")
    with pytest.raises(ImageIndexError, match=r"approximate\.json is damaged"):
        index.search(crowd(1), approximate=True)


def test_damaged_files_are_told(folder, metric, tmp_path):
    index, _ = built(folder, metric)
    index.save(tmp_path / "kept", format="safetensors")
    [part] = (tmp_path / "kept").glob("part-*")
    whole = part.read_bytes()
    for damage in (whole[:-5], b"", whole.replace(b"cats", b'"ts"', 1)):
        part.write_bytes(damage)
        with pytest.raises(ImageIndexError, match="missing or damaged"):
            ImageIndex.open(tmp_path / "kept", metric)
    part.unlink()
    with pytest.raises(ImageIndexError, match="missing or damaged"):
        ImageIndex.open(tmp_path / "kept", metric)
    listed = tmp_path / "kept" / "index.json"
    good = json.loads(listed.read_text())
    for text in ("{", "[]", "{}", json.dumps({**good, "parts": ["../x"]}), json.dumps({**good, "dtype": "int8"})):
        listed.write_text(text)
        with pytest.raises(ImageIndexError, match="is damaged"):
            ImageIndex.open(tmp_path / "kept", metric)


def test_duplicates_are_near_to_what_stays(metric, tmp_path):
    index = ImageIndex(metric)
    angles = torch.tensor([0.0, 0.1, 0.2, 1.0, 1.0, 2.0])
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    index.add(embeddings, ids=list("abcdef"))
    sizes = {"a": 10, "b": 5, "c": 20, "d": 7, "e": 7, "f": 1}
    index.rows[:] = [
        row._replace(size=sizes[row.id], digest="same" if row.id in "de" else row.id) for row in index.rows
    ]
    # The distance of two unit vectors at an angle is sqrt(1 - cos(angle)): 0.0707 for 0.1, 0.1412 for 0.2.
    groups = find_duplicates(index, 0.1)
    assert [(g.keep.id, [row.id for row, _ in g.others], g.identical) for g in groups] == [
        ("d", ["e"], True),
        ("c", ["b"], False),  # and not a, which is near to b and not to c
    ]
    assert groups[1].others[0][1] == pytest.approx((1 - torch.cos(torch.tensor(0.1))).sqrt().item(), abs=1e-6)
    assert [[row.id for row, _ in g.others] for g in find_duplicates(index, 0.15)] == [["e"], ["b", "a"]]
