"""The filter, killed at random moments and started again, decides on every image once."""

import csv
import random
import shutil
import time
from collections import Counter
from pathlib import Path

from support.filtering import contents, make_images, make_pools, write_tars
from support.forked import Forks

SHARDS, IMAGES = 12, 120


def rows(out: Path) -> list[list[str]]:
    with (out / "decisions.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_every_image_is_decided_on_once(forks: Forks, tmp_path: Path) -> None:
    make_pools(tmp_path / "pools")
    images = contents(make_images(tmp_path / "images", IMAGES))
    write_tars(tmp_path / "tars", images, IMAGES // SHARDS)
    words = ["filter", "--pools", tmp_path / "pools", "--images", tmp_path / "tars", "--model", "tiny", "--copy",
             "--batch-size", "4", "--device", "cpu", "--quiet"]  # fmt: skip
    begun = time.monotonic()
    assert forks.run([*words, "--out", tmp_path / "whole"]) == 0, forks.errors
    took = time.monotonic() - begun
    moments = random.Random(0)
    midway: set[int] = set()
    killed, out = 0, tmp_path / "killed"
    while killed < 5 or not any(0 < count < SHARDS for count in midway):
        assert killed < 40, f"it was never killed between two shards: {midway}"
        before = {path: path.stat().st_mtime_ns for path in (out / "decisions").glob("part-*")}
        code = forks.run([*words, "--out", out], kill_after=moments.uniform(0.1, 1.0) * took)
        if code == 0:
            shutil.rmtree(out)  # it was done before: from the start, and sooner
            took *= 0.8
            continue
        assert code == -9, forks.errors
        killed += 1
        assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items()), "a shard was done again"
        midway.add(len(list((out / "decisions").glob("part-*"))))
    assert forks.run([*words, "--out", out]) == 0, forks.errors
    assert rows(out) == rows(tmp_path / "whole")
    names = Counter(row[0] for row in rows(out)[1:])
    assert len(names) == IMAGES and set(names.values()) == {1}
    copies = [path.read_bytes() for path in (out / "images").rglob("*.jpg") if path.is_file()]
    assert sorted(copies) == sorted(images)
    left = [path.name for path in out.rglob("*") if ".partial" in path.name]
    assert left == [], "what a killed process left unfinished stays"
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    assert len(list((out / "decisions").iterdir())) == SHARDS
