"""A real Ray, two of whose processes share the work: the rows are those of one process, also after one was killed."""

import csv
import dataclasses
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rclip_metric.cli.main import main
from rclip_metric.errors import FilterError
from rclip_metric.filtering import Cluster, Parts, Work, Worker, columns, find_work, run_local, run_ray
from rclip_metric.filtering.pools import embed_pools, find_pools
from rclip_metric.filtering.work import Report
from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.retrieval import ModelSource

from support.filtering import contents, make_images, make_pools, write_parquet, write_tars

SHARDS, IMAGES = 12, 48


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two cores of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of what it does with itself
        import ray

        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False,
                 logging_level=logging.ERROR)  # fmt: skip
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_pools(folder / "pools")
    images = contents(make_images(folder / "images", IMAGES))
    write_tars(folder / "tars", images, IMAGES // SHARDS)
    write_parquet(folder / "parquet", images, IMAGES // 4)
    return folder


def work_on(data: Path, kind: str, out: Path) -> Work:
    pools = embed_pools(find_pools(str(data / "pools")), RobustPerceptualDistance("tiny"), out / "pools", 8, print)  # type: ignore[arg-type]
    parts = Parts(str(out / "decisions"), tuple(columns([])), "parquet")
    return Work(ModelSource("tiny"), str(pools), tuple(find_work(str(data / kind))), parts, batch_size=4)


def rows(work: Work) -> list[dict[str, Any]]:
    return [row for number in range(len(work.shards)) for row in work.parts.rows(number)]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Numbers may differ where threads share out sums in another way."""
    assert len(found) == len(expected)
    for row, same in zip(found, expected, strict=True):
        assert row.keys() == same.keys()
        for name, value in same.items():
            assert row[name] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value)


def test_a_killed_process_costs_nothing(cluster: Any, data: Path, tmp_path: Path) -> None:
    work = work_on(data, "tars", tmp_path / "local")
    with Worker(work) as worker:
        run_local(worker, lambda report: None)
    on_ray = dataclasses.replace(work, parts=dataclasses.replace(work.parts, folder=str(tmp_path / "ray")))
    reports: list[Report] = []

    def done(report: Report) -> None:
        reports.append(report)
        if len(reports) == 2:
            os.kill(report.process, signal.SIGKILL)  # it is at the next shard by now

    run_ray(on_ray, Cluster(concurrency=2), done)
    assert sorted({report.shard for report in reports}) == list(range(SHARDS))
    assert sum(report.images or 0 for report in reports) <= IMAGES
    killed = reports[1].process
    assert killed != os.getpid() and len({report.process for report in reports} - {killed}) >= 2, (
        "nobody took its place"
    )
    assert_same(rows(on_ray), rows(work))
    assert len(rows(work)) == IMAGES
    before = [work.parts.path(number).stat().st_mtime_ns for number in range(SHARDS)]
    run_ray(work, Cluster(concurrency=2), lambda report: pytest.fail("all was done before"))
    assert [work.parts.path(number).stat().st_mtime_ns for number in range(SHARDS)] == before


def test_the_command_takes_a_cluster_that_runs(cluster: Any, data: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["filter", "--pools", data / "pools", "--images", data / "parquet", "--model", "tiny", "--device", "cpu"]
    ray = [*words, "--out", tmp_path / "ray", "--engine", "ray", "--concurrency", "1", "--quiet"]
    assert main([str(word) for word in [*words, "--out", tmp_path / "local", "--quiet"]]) == 0
    assert main([str(word) for word in ray]) == 0, capsys.readouterr().err
    tables = []
    for name in ("local", "ray"):
        with (tmp_path / name / "decisions.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    kept = ("file", "decision", "class", "neighbour", "identical", "error")
    assert [[row[name] for name in kept] for row in tables[0]] == [[row[name] for name in kept] for row in tables[1]]
    assert len(tables[0]) == IMAGES
    capsys.readouterr()
    many = [*ray[:-2], "3", "--gpus-per-actor", "1"]
    many[many.index(tmp_path / "ray")] = tmp_path / "many"
    assert main([str(word) for word in many]) == 2
    assert "3 processes with 1 CPU each were asked for, and the cluster has 2" in capsys.readouterr().err


def test_what_goes_wrong_in_a_process_is_told(cluster: Any, data: Path, tmp_path: Path) -> None:
    work = work_on(data, "parquet", tmp_path)
    (tmp_path / "decisions").write_text("no folder")
    with pytest.raises(FilterError, match=rf"a process of the cluster cannot go on: .*: {tmp_path}/decisions; start"):
        run_ray(work, Cluster(), lambda report: None)
