"""The stream that fine-tuning reads: shares, epochs, workers, resuming and damage, of trees and of shards."""

import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
import tarfile
from collections import Counter

import pytest
import torch
import webdataset
from PIL import Image

from rclip_metric.images import load_image
from rclip_metric.images.shards import find_shards, index_shard
from rclip_metric.train.data.augmentation import Augmentation
from rclip_metric.train.data.classes import read_classes
from rclip_metric.train.data.images import SUFFIXES, find_images, walk_images
from rclip_metric.train.data.shards import ShardSampler
from rclip_metric.train.data.stream import open_stream

SIDE = 8


def picture(number):
    return Image.new("RGB", (SIDE, SIDE), (number, 2 * number, 255 - number))


def number_of(image):
    """Which picture it is, from its pixels."""
    levels = (image * 255).round().int()
    assert (levels == levels[:, :1, :1]).all()
    red, green, blue = levels[:, 0, 0].tolist()
    assert (green, blue) == (2 * red, 255 - red)
    return red


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """23 images in three classes; in sorted order, the image at place i is picture i."""
    root = tmp_path_factory.mktemp("tree")
    places = [f"a/{i:02d}.png" for i in range(9)] + [f"b/deep/{i}.PNG" for i in range(5)]
    places += [f"b-1/{i:02d}.bmp" for i in range(9)]
    for number, place in enumerate(places):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / place)
    (root / "b" / "notes.txt").write_text("no image")
    return root


def read(source, *, stop=10, batch_size=5, seed=3, preprocess=load_image, **settings):
    return list(open_stream(source, preprocess, batch_size=batch_size, seed=seed, stop=stop, **settings))


def same(one, other):
    """Whether two lists of batches are equal, bit for bit."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.keys, a.broken, a.position) == (b.keys, b.broken, b.position)
        assert torch.equal(a.images, b.images)
        assert (a.labels is None and b.labels is None) or torch.equal(a.labels, b.labels)
    return True


class TestWalk:
    def test_the_order_is_that_of_sorted_paths(self, tmp_path):
        for name in ("b/1.png", "b-1/2.png", "b.png/x.jpg", ".hidden/3.JPEG", "z.webp", "b/a/4.tif", "B.bmp", "n.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / ".png").touch()  # a hidden file without an ending
        expected = sorted(p for p in tmp_path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        assert len(expected) == 7 and find_images(tmp_path) == expected

    def test_links_are_followed_and_loops_are_not(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "1.png").touch()
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "class").symlink_to(tmp_path / "real")
        (tmp_path / "real" / "back").symlink_to(tmp_path / "real")
        (tmp_path / "tree" / "up").symlink_to(tmp_path / "tree")
        assert list(walk_images(tmp_path / "tree")) == [str(tmp_path / "tree" / "class" / "1.png")]

    def test_a_loop_of_two_links_ends(self, tmp_path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "1.png").touch()
        (tmp_path / "one" / "other").symlink_to(tmp_path / "two")
        (tmp_path / "two" / "other").symlink_to(tmp_path / "one")
        found = list(walk_images(tmp_path / "one"))
        assert found == [str(tmp_path / "one" / "1.png"), str(tmp_path / "one" / "other" / "1.png")]

    def test_where_there_is_nothing_it_says_so(self, tmp_path):
        for place in (tmp_path, tmp_path / "missing"):
            with pytest.raises(ValueError, match=r"no image files \(.png, .* below"):
                find_images(place)
            with pytest.raises(ValueError, match="no image files"):
                read(place)


class TestTree:
    def test_every_epoch_draws_every_image_once_and_ends_with_a_smaller_batch(self, tree):
        batches = read(tree)  # 23 images in batches of 5: 5 steps an epoch
        assert [len(batch.keys) for batch in batches] == [5, 5, 5, 5, 3] * 2
        epochs = [[key for batch in batches[first : first + 5] for key in batch.keys] for first in (0, 5)]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(23)) and epochs[0] != epochs[1]
        for batch in batches:  # a key is the place in the sorted tree
            assert [number_of(image) for image in batch.images] == batch.keys and batch.images.shape[1:] == (3, 8, 8)
        assert [batch.position for batch in batches] == list(range(10))
        assert [batch.keys for batch in read(tree, seed=4)] != [batch.keys for batch in batches]

    @pytest.mark.parametrize("world", [2, 3, 5])
    def test_the_shares_of_processes_make_up_the_batch_of_one(self, tree, world):
        whole = read(tree)
        shares = [read(tree, rank=rank, world=world) for rank in range(world)]
        for batch, *parts in zip(whole, *shares, strict=True):
            sizes = [len(part.keys) for part in parts]
            assert max(sizes) - min(sizes) <= 1  # 3 images for 5 processes: two get none
            drawn = Counter(itertools.chain.from_iterable(part.keys for part in parts))
            assert drawn == Counter(batch.keys) and max(drawn.values()) == 1
            assert all(part.images.shape == (len(part.keys), 3, SIDE, SIDE) or not part.keys for part in parts)

    def test_workers_change_nothing_and_neither_does_a_restart(self, tree):
        whole = read(tree, labels=True, rank=1, world=2)
        assert same(read(tree, labels=True, rank=1, world=2, workers=2), whole)
        for start in (1, 4, 5, 7, 10):
            assert same(read(tree, labels=True, rank=1, world=2, start=start), whole[start:])

    def test_labels_are_the_folders_of_the_root(self, tree):
        folders = read_classes(tree)
        stream = open_stream(tree, load_image, batch_size=23, seed=0, stop=1, labels=True)
        assert stream.classes == folders.names == ("a", "b", "b-1")
        assert len(stream) == 1 and stream.count == 23
        assert stream.describe() == {"path": str(tree), "images": 23, "classes": 3}
        [batch] = stream
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == [folders.images[key].label for key in batch.keys]
        assert Counter(batch.labels.tolist()) == {0: 9, 1: 5, 2: 9}
        [unlabelled] = read(tree, batch_size=23, stop=1, seed=0)
        assert unlabelled.labels is None and unlabelled.keys == batch.keys

    def test_labels_need_class_folders(self, tree, tmp_path):
        with pytest.raises(ValueError, match="holds 1 class folder"):
            read(tree / "b", labels=True)
        (tmp_path / "empty").mkdir()
        (tmp_path / "full").mkdir()
        picture(1).save(tmp_path / "full" / "1.png")
        with pytest.raises(ValueError, match=r"class folder .*empty holds no images"):
            read(tmp_path, labels=True)

    def test_broken_files_are_left_out_and_named(self, tmp_path):
        for number in range(6):
            picture(number).save(tmp_path / f"{number}.png")
        whole = read(tmp_path, batch_size=2, stop=3)
        broken = [tmp_path / "1.png", tmp_path / "4.png"]
        broken[0].write_bytes(broken[0].read_bytes()[:40])
        broken[1].write_bytes(b"")
        for workers in (0, 2):
            batches = read(tmp_path, batch_size=2, stop=3, workers=workers)
            assert sorted(name for batch in batches for name in batch.broken) == [str(path) for path in broken]
            for batch, before in zip(batches, whole, strict=True):
                assert batch.keys == [key for key in before.keys if key not in (1, 4)]
                assert [number_of(image) for image in batch.images] == batch.keys

    def test_a_batch_of_broken_files_has_the_shape_of_others(self, tmp_path):
        for number in range(2):
            (tmp_path / f"{number}.png").write_bytes(b"no image")
        [batch] = read(tmp_path, batch_size=2, stop=1, preprocess=lambda source: load_image(source)[:, :SIDE, :SIDE])
        assert batch.images.shape == (0, 3, SIDE, SIDE) and batch.keys == [] and len(batch.broken) == 2

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"batch_size": 24}, "a batch of 24 was asked for and there are 23 images: lower"),
            ({"batch_size": 2, "world": 3}, "a batch of 2 leaves some of 3 processes without an image"),
            ({"rank": 2, "world": 2}, "got process 2 of 2"),
            ({"start": 11}, "steps 11 to 10"),
            ({"workers": -1}, "-1 workers"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tree, settings, message):
        with pytest.raises(ValueError, match=message):
            read(tree, **settings)

    def test_the_global_random_numbers_stay_where_they_are(self, tree):
        before = torch.get_rng_state()
        read(tree, stop=2)
        assert torch.equal(torch.get_rng_state(), before)

    def test_workers_outlive_the_signal_that_tells_all_to_end(self, tree):
        stream = open_stream(tree, load_image, batch_size=5, seed=3, stop=10, workers=2)
        batches = iter(stream)
        seen = [next(batches), next(batches)]  # one of each worker, which by then leaves signals alone
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            assert worker.pid is not None
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(worker.pid, number)
        assert same(seen + list(batches), read(tree))
        del batches, stream
        for worker in workers:
            worker.join(20)
            assert worker.exitcode == 0


# Shards. Sample i of them all is picture i, named by its shard and its place there; its label is i modulo 4.

SIZES = (3, 5, 4, 6, 3, 4, 5)


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def png(number):
    stream = io.BytesIO()
    picture(number).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path, numbers, suffix="png"):
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            add(archive, f"part/{number:04d}.{suffix}", png(number))
            if number % 2:
                add(archive, f"part/{number:04d}.cls", b"%d\n" % (number % 4))
            else:
                add(archive, f"part/{number:04d}.json", json.dumps({"label": number % 4, "width": 8}).encode())


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    first = 0
    for index, size in enumerate(SIZES):
        write_shard(folder / f"set-{index:03d}.tar", range(first, first + size), "PNG" if index == 2 else "png")
        first += size
    return folder


def numbers_in(batches):
    return [number_of(image) for batch in batches for image in batch.images]


class TestShards:
    def test_a_folder_a_file_and_a_pattern_are_found(self, shards):
        expected = [str(shards / f"set-{index:03d}.tar") for index in range(7)]
        assert find_shards(shards) == find_shards(f"{shards}/set-{{000..006}}.tar") == expected
        assert find_shards(shards / "set-001.tar") == expected[1:2]
        with pytest.raises(ValueError, match=r"2 of the 9 shards .* the first is .*set-007.tar: correct the pattern"):
            find_shards(f"{shards}/set-{{000..008}}.tar")
        stream = open_stream(shards, load_image, batch_size=2, seed=0, stop=3)
        assert (len(stream), stream.count, stream.classes) == (3, None, None)
        assert stream.describe() == {"path": str(shards), "shards": 7}

    def test_samples_are_those_that_webdataset_reads(self, shards):
        expected = []
        for shard in find_shards(shards):
            with open(shard, "rb") as stream:  # webdataset's own opener leaves it to the garbage collector
                files = webdataset.tariterators.tar_file_expander([{"url": shard, "stream": stream}])
                expected += [(e["__key__"], e["png"]) for e in webdataset.tariterators.group_by_keys(files)]
        samples = [sample for shard in find_shards(shards) for sample in index_shard(shard)[0]]
        assert [(sample.name.split(":")[1], sample.load()[0]) for sample in samples] == expected
        assert len({sample.key for sample in samples}) == sum(SIZES) and all(
            index_shard(s)[1] for s in find_shards(shards)
        )

    @pytest.mark.parametrize("world", [1, 2, 3])
    def test_shards_are_disjoint_and_an_epoch_is_complete(self, shards, world):
        orders = []
        for rank in range(world):
            sampler = ShardSampler(find_shards(shards), 1, seed=5, start=0, stop=0, rank=rank, world=world)
            own = sampler.own(0)
            orders.append(own)
            count = sum(len(index_shard(shard)[0]) for shard in own)
            batches = read(shards, batch_size=world, seed=5, rank=rank, world=world, stop=count)
            expected = [number_of(load_image(s.load()[0])) for shard in own for s in index_shard(shard)[0]]
            assert sorted(numbers_in(batches)) == sorted(expected) and all(len(b.keys) == 1 for b in batches)
            if count > 8:
                assert numbers_in(batches) != expected  # shuffled
        assert sorted(itertools.chain.from_iterable(orders)) == find_shards(shards)

    def test_epochs_differ_and_batches_are_full(self, shards):
        batches = read(shards, batch_size=4, stop=15)  # two epochs of 30
        numbers = numbers_in(batches)
        assert all(len(batch.keys) == 4 and not batch.broken for batch in batches)
        assert sorted(numbers[:30]) == sorted(numbers[30:]) == list(range(30)) and numbers[:30] != numbers[30:]
        assert numbers_in(read(shards, batch_size=4, stop=15, seed=4)) != numbers
        uneven = [read(shards, batch_size=5, stop=4, rank=rank, world=3) for rank in range(3)]
        assert [[len(batch.keys) for batch in share] for share in uneven] == [[2] * 4, [2] * 4, [1] * 4]

    def test_mixtures_are_of_a_process_s_own_images(self, shards):
        plain = read(shards, batch_size=4, stop=2)
        vary = Augmentation(1.0, False, seed=2, mixup=1.0)
        mixtures = read(shards, batch_size=4, stop=2, augmentation=vary)
        for step, (batch, mixed) in enumerate(zip(plain, mixtures, strict=True)):
            others = batch.images.roll(-1, 0)
            for image, other, found, key in zip(batch.images, others, mixed.images, batch.keys, strict=True):
                assert torch.equal(found, vary.mixed(image, lambda other=other: other, step, key))

    def test_workers_change_nothing_and_neither_does_a_restart(self, shards):
        settings = {"batch_size": 5, "rank": 1, "world": 2, "labels": True, "stop": 25}
        (shards / "set-003.tar").write_bytes((shards / "set-003.tar").read_bytes()[:3000])
        whole = read(shards, **settings)
        assert sum(len(batch.broken) for batch in whole) > 1
        assert same(read(shards, **settings), whole) and same(read(shards, **settings, workers=2), whole)
        for start in range(0, 26, 3):
            assert same(read(shards, **settings, start=start), whole[start:])

    def test_what_a_restart_skips_is_not_decoded(self, shards):
        decoded = []

        def counting(source):
            decoded.append(source)
            return load_image(source)

        batches = read(shards, batch_size=4, start=13, stop=15, preprocess=counting)
        assert len(numbers_in(batches)) == len(decoded) == 8

    def test_labels_are_those_of_cls_and_json(self, shards):
        batches = read(shards, batch_size=30, stop=1, labels=True)
        assert batches[0].labels.tolist() == [number % 4 for number in numbers_in(batches)]
        assert batches[0].labels.dtype == torch.int64

    def test_what_cannot_be_read_is_named_and_left_out(self, tmp_path):
        path = tmp_path / "one.tar"
        with tarfile.open(path, "w") as archive:
            for key, members in {
                "good": {"png": png(1), "cls": b"0"},
                "cut": {"png": png(2)[:40], "cls": b"1"},
                "none": {"png": png(3)},
                "words": {"png": png(4), "cls": b"tench"},
                "negative": {"png": png(5), "json": b'{"label": -1}'},
                "text": {"txt": b"no image", "cls": b"2"},
                "bare": {"png": png(6), "json": b"3"},
            }.items():
                for kind, content in members.items():
                    add(archive, f"{key}.{kind}", content)
            add(archive, "LICENSE", b"without an ending, so in no sample")
        [batch] = read(path, batch_size=7, stop=1, labels=True)
        assert sorted(zip(numbers_in([batch]), batch.labels.tolist(), strict=True)) == [(1, 0), (6, 3)]
        names = ("cut", "negative", "none", "text", "words")
        assert sorted(batch.broken) == [f"{path}:{key}" for key in names]
        [batch] = read(path, batch_size=7, stop=1)
        assert sorted(numbers_in([batch])) == [1, 3, 4, 5, 6]
        assert sorted(batch.broken) == [f"{path}:{key}" for key in ("cut", "text")]

    @pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4, 6.5, 7, 8, 9, 13, 16])
    def test_a_shard_that_ends_too_early_is_read_up_to_there(self, shards, blocks):
        """A sample is 4 blocks of 512 bytes: header and image, header and label; shard 0 has three, then zeros."""
        path = shards / "set-000.tar"
        whole = path.read_bytes()
        path.write_bytes(whole[: int(512 * blocks)])
        # Images that end before the cut; 512 bytes after the last label come the zeros that end a tar file.
        expected = [number for number in range(3) if 4 * number + 2 <= blocks]
        samples, complete = index_shard(str(path))
        assert complete == (blocks > 12)
        assert [number_of(load_image(sample.load()[0])) for sample in samples if sample.image] == expected
        batches = read(shards, batch_size=3, stop=11)
        first_epoch = [name for batch in batches[:9] for name in batch.broken]
        assert (first_epoch.count(str(path)) == 0) == complete
        assert set(numbers_in(batches)) == {*expected, *range(3, 30)}

    def test_noise_in_the_middle_ends_a_shard_and_not_the_run(self, shards):
        path = shards / "set-003.tar"
        content = bytearray(path.read_bytes())
        content[4 * 512 : 5 * 512] = bytes(range(256)) * 2  # the header of the second sample
        path.write_bytes(content)
        assert [len(index_shard(str(path))[0]), index_shard(str(path))[1]] == [1, False]
        assert str(path) in [name for batch in read(shards, batch_size=25, stop=1) for name in batch.broken]

    def test_shards_without_samples_stop_the_run(self, tmp_path):
        (tmp_path / "0.tar").write_bytes(b"no tar file at all")
        with pytest.raises(ValueError, match=r"none of the 1 shards of process 0 holds a sample, the first is .*0.tar"):
            read(tmp_path / "0.tar", stop=1)

    def test_what_does_not_fit_is_refused(self, shards, tmp_path):
        with pytest.raises(ValueError, match="there are 7 shards for 8 processes, and each needs one of its own"):
            read(shards, batch_size=8, rank=7, world=8)
        picture(1).save(shards / "1.png")
        with pytest.raises(ValueError, match=r"holds .tar files and images: pass the former by a pattern"):
            read(shards)
        assert numbers_in(read(f"{shards}/set-{{000..001}}.tar", batch_size=8, stop=1)) != []

    def test_without_the_extra_it_is_named(self, shards, monkeypatch):
        monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
        with pytest.raises(ValueError, match=r'pip install "rclip-metric\[webdataset\]"'):
            read(shards, stop=1)
