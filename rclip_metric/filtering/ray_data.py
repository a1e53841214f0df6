"""The engine of a Ray cluster: Ray Data gives shards to processes that each hold the model.

What goes through Ray are the numbers of shards. A process reads its shard itself and writes the part itself, under a
name that is the shard's: one that dies, or is taken for dead, and is done again elsewhere leaves one part, and what is
there is not done again if the whole cluster is started anew. Were Ray Data to read the images, its blocks would not be
shards, and a block that is computed twice could not be told from another.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from rclip_metric.errors import FilterError, first_line
from rclip_metric.filtering.work import Done, Report, Work, Worker, decide_shard

_BLOCKS = 10_000  # of shards, at most: what Ray keeps a record of


class Cluster(NamedTuple):
    """What of a cluster is used.

    Attributes:
        concurrency: Processes that hold the model.
        gpus: Of each; 0 computes on the CPU, a half lets two share one.
        cpus: Cores of each, which decode.
        address: Of the cluster; None for RAY_ADDRESS, else one that is started on this machine and ends with the run.

    Example:
        >>> Cluster(concurrency=8, gpus=1, cpus=12).address is None
        True
    """

    concurrency: int = 1
    gpus: float = 0
    cpus: float = 1
    address: str | None = None


def run_ray(work: Work, cluster: Cluster, on_done: Done) -> None:
    """Do all shards that are not done.

    Args:
        work: Its paths have to mean the same on every machine.
        cluster: A Ray that is running in this process already is used as it is.
        on_done: Called after each shard.

    Raises:
        FilterError: Ray is not installed, cannot be reached, or has too little; or a shard cannot be done.

    Example:
        >>> from rclip_metric.filtering import Parts
        >>> from rclip_metric.retrieval import ModelSource
        >>> nothing = Work(ModelSource("tiny"), "pools.index", (), Parts("decisions", ("file",), "csv"))
        >>> run_ray(nothing, Cluster(concurrency=2), print)
    """
    missing = work.parts.missing(len(work.shards))
    if not missing:
        return
    ray = _ray()
    begun = not ray.is_initialized()
    if begun:
        _start(ray, cluster)
    try:
        _require_room(ray, cluster)
        device, threads = "cuda" if cluster.gpus else "cpu", max(1, int(cluster.cpus))
        _run(ray, dataclasses.replace(work, device=device, threads=threads), cluster, missing, on_done)
    except ray.exceptions.RayError as error:
        raise FilterError(f"Ray gave up: {first_line(error)}; start again to go on.") from error
    finally:
        if begun:
            ray.shutdown()


_TOLD = (OSError, RuntimeError, ValueError)
"""What a process says in a sentence: a full disk, a model that cannot be had; Ray would only show where it was."""


class _Actor:
    """Holds the model in a process of the cluster."""

    def __init__(self, work: Work) -> None:
        self._worker: Worker | None = None
        self._work = work

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        [number] = batch["shard"]
        report = Report(int(number), None, os.getpid())
        error = ""
        try:
            self._worker = self._worker or Worker(self._work)
            report = decide_shard(self._worker, report.shard)
        except _TOLD as raised:
            where = getattr(raised, "filename", None)
            error = f"{getattr(raised, 'strerror', None) or first_line(raised)}{f': {where}' if where else ''}"
        return {name: [value] for name, value in {**dataclasses.asdict(report), "error": error}.items()}


def _run(ray: Any, work: Work, cluster: Cluster, missing: list[int], on_done: Done) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it would tell of every step that it takes
    shards = ray.data.from_items(
        [{"shard": number} for number in missing], override_num_blocks=min(len(missing), _BLOCKS)
    )
    done = shards.map_batches(  # a process that dies is replaced, and its shard done again
        _Actor,
        fn_constructor_args=(work,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=cluster.concurrency),
        num_gpus=cluster.gpus or None,
        num_cpus=cluster.cpus,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise FilterError(f"a process of the cluster cannot go on: {row['error']}; start again when it can.")
        on_done(Report(row["shard"], row["images"], row["process"]))


def _start(ray: Any, cluster: Cluster) -> None:
    try:
        ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise FilterError(f"the Ray cluster cannot be reached: {first_line(error)}") from error


def _require_room(ray: Any, cluster: Cluster) -> None:
    """Refuse what the cluster can never give: Ray would wait for it."""
    there = ray.cluster_resources()
    for name, each in (("CPU", cluster.cpus), ("GPU", cluster.gpus)):
        if each * cluster.concurrency > there.get(name, 0):
            raise FilterError(
                f"{cluster.concurrency} processes with {each:g} {name} each were asked for, and the cluster has "
                f"{there.get(name, 0):g}: lower --concurrency or --{name.lower()}s-per-actor."
            )


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise FilterError('--engine ray needs Ray, which is an extra: pip install "rclip-metric[ray]"') from error
    return ray
