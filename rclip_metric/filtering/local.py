"""The engine of one process: one shard after the other."""

from __future__ import annotations

from rclip_metric.filtering.work import Done, Worker, decide_shard


def run_local(worker: Worker, on_done: Done) -> None:
    """Do all shards that are not done.

    Args:
        worker: Decides, and knows the work.
        on_done: Called after each shard.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from rclip_metric import ImageIndex
        >>> from rclip_metric.filtering import Parts, Work, columns, find_work
        >>> from rclip_metric.retrieval import ModelSource
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("pools/safe/blue.png", "pools/unsafe/red.png", "images/dark_red.png"):
        ...         Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        ...         Image.new("RGB", (64, 64), Path(name).stem.replace("_", "")).save(Path(folder, name))
        ...     model, index = ModelSource("tiny"), Path(folder, "index")
        ...     ImageIndex.build(Path(folder, "pools"), model.load()).save(index)
        ...     parts = Parts(str(Path(folder, "out")), tuple(columns([])), "csv")
        ...     work = Work(model, str(index), tuple(find_work(str(Path(folder, "images")))), parts)
        ...     with Worker(work) as worker:
        ...         run_local(worker, lambda report: print(report.shard, report.images))
        ...     [row["decision"] for row in parts.rows(0)]
        0 1
        ['unsafe']
    """
    work = worker.work
    for number in work.parts.missing(len(work.shards)):
        on_done(decide_shard(worker, number))
