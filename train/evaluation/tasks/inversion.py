"""What an image that is made from an embedding alone keeps of the original, in the eyes of every metric (Table VII)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from rclip_metric.errors import ImageError
from rclip_metric.images import CLIP_MEAN, CLIP_STD, Preprocessing, open_image, preprocess_pil, resize_images
from rclip_metric.images.reading import list_images_below
from rclip_metric.train.data.images import NamedImage
from rclip_metric.train.evaluation.image_set import ImageSet, embeds
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.results.bootstrap import mean_interval
from rclip_metric.train.evaluation.results.labels import named
from rclip_metric.train.evaluation.results.record import result_name
from rclip_metric.train.evaluation.run import RunSettings, Task, evaluate
from rclip_metric.train.evaluation.session import Session
from rclip_metric.train.inversion import How, InversionSettings, found_by, high_frequency, total_variation
from rclip_metric.train.inversion.folder import save_picture
from rclip_metric.train.inversion.targets import safe_name
from rclip_metric.train.metrics.base import Metric, dissimilarity
from rclip_metric.train.runs.machine import device_record, versions

STATISTICS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "total_variation": total_variation,
    "high_frequency": high_frequency,
}


@dataclass(frozen=True)
class InversionData(Task[NamedImage]):
    """Images, each made anew from the metric's embedding of it, and compared with the original by every judge.

    Of an image the square in its middle counts, in the metric's own size. A judge sees both, original and what was
    made, brought from that size to its own. Its verdict is 1 - (s(x, x) - s(x', x)): the cosine for embeddings, SSIM
    for SSIM, and 1 - d for a distance d.

    Attributes:
        name: of the set.
        images: in a fixed order.
        judges: of different names; a metric that makes images may be one.
        how: how an image is found.
        limit: how many were asked for, None for all.
        pictures: folder for what is made, a PNG per image in a folder per metric; those of earlier runs are not made
            again for it.

    Example:
        >>> from rclip_metric.train.metrics import load_metric
        >>> data = InversionData("mine", [NamedImage("x.png", Path("x.png"))], [load_metric("tiny")])
        >>> data.settings()["inversion"]["steps"]
        500
    """

    task: ClassVar[str] = "inversion"
    noun: ClassVar[str] = "image"
    name: str
    images: Sequence[NamedImage]
    judges: Sequence[Metric]
    how: InversionSettings = field(default_factory=InversionSettings)
    limit: int | None = None
    pictures: Path | None = None

    def __post_init__(self) -> None:
        """Check the judges."""
        names = [judge.name for judge in self.judges]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two of the metrics are called {twice[0]}: the columns of the table need different names")

    @property
    def samples(self) -> Sequence[NamedImage]:
        """The images."""
        return self.images

    def files(self, sample: NamedImage) -> list[Path]:
        """List the one."""
        return [sample.path]

    def reader(self, metric: Metric) -> Callable[[Path], Tensor]:
        """Read the square in the middle, in the metric's size."""
        square = _squashed(metric, "crop")
        return lambda path: preprocess_pil(open_image(path), square, "published")

    def settings(self) -> dict[str, Any]:
        """Describe what the result depends on, JSON."""
        return {
            "name": self.name,
            "keys": [image.key for image in self.images],
            "inversion": self.how.describe(),
            "judges": [judge.describe() for judge in self.judges],
        }

    def identity(self, on: Evaluation) -> dict[str, Any]:
        """Gather metric, seed, data and sizes; everything is computed in float32."""
        about = {"task": self.task, "model": on.metric.describe(), "seed": on.run.seed, **self.settings()}
        return {**about, "sizes": [on.run.batch_size, on.run.chunk_size]}

    def label(self, metric: Metric) -> str:
        """Label the progress bar."""
        return f"{self.name} from {metric.name}"

    def record(self, session: Session, metric: Metric, run: RunSettings) -> dict[str, Any]:
        """Make the record of one metric, or read it if it is there.

        Raises:
            ValueError: the metric has no embeddings, and as `Session.single` raises it.
        """
        if not embeds(metric):
            raise ValueError(f"{metric.name} has no embeddings to make images from: let it judge, with --judge")
        if session.out is None:
            return evaluate(metric, self, run=run, team=session.team, quiet=session.quiet)[0]
        about = {"model": metric.describe(), "data": {"name": self.name, "protocol": self.task}}
        threat = {"attack": self.how.method, "steps": self.how.steps}
        name = result_name({**about, "threat": threat, "settings": {"limit": self.limit, "seed": run.seed}})
        return session.single(session.out / name, self, metric, run)

    def judge(self, block: Sequence[NamedImage], images: ImageSet, on: Evaluation) -> dict[str, Any]:
        """Make the images of a block and have them judged: keys, a list per judge and statistic, and seconds."""
        begun, metric = time.perf_counter(), on.metric
        read, unreadable = self.readable(block, images, None)
        columns: dict[str, dict[str, list[float]]] = {"judged": {}, "made": {}, "original": {}}
        if read:
            original = images.pixels([image.path for image in read])
            how = How(chunk_size=on.run.chunk_size)
            made = found_by(metric, metric.fix(original), on.seeds(read), self.how, how, lambda *_: None).images
            self._save(metric, read, made)
            for judge in self.judges:
                columns["judged"][judge.name] = _short(verdicts(judge, made, original, on.run.chunk_size))
            for name, statistic in STATISTICS.items():
                columns["made"][name], columns["original"][name] = _short(statistic(made)), _short(statistic(original))
        seconds = time.perf_counter() - begun
        return {"keys": [image.key for image in read], **columns, "unreadable": unreadable, "seconds": seconds}

    def picture(self, metric: Metric, image: NamedImage) -> Path:
        """Name the file of what a metric makes of an image."""
        assert self.pictures is not None
        return self.pictures / safe_name(Path(metric.name).name) / f"{image.key}.png"

    def _save(self, metric: Metric, read: Sequence[NamedImage], made: Tensor) -> None:
        if self.pictures is not None:
            for image, pixels in zip(read, made, strict=True):
                save_picture(pixels, self.picture(metric, image))

    def records(self, blocks: list[Any], on: Evaluation) -> list[dict[str, Any]]:
        """Make one record, of columns and their means with 95 % intervals over images.

        Raises:
            ImageError: no image could be read.
        """
        keys, unreadable = ([value for block in blocks for value in block[name]] for name in ("keys", "unreadable"))
        if not keys:
            raise ImageError(f"none of the {len(unreadable)} images of {self.name} could be read: {unreadable[0]}")
        parts: dict[str, dict[str, list[float]]] = {}
        for part in ("judged", "made", "original"):
            names = next(block[part] for block in blocks if block[part])
            parts[part] = {name: [v for block in blocks for v in block[part].get(name, [])] for name in names}
        data = {"name": self.name, "images": len(keys), "unreadable": unreadable}
        made: dict[str, Any] = {"task": self.task, "model": on.metric.describe(), "data": data}
        made |= {"judges": [judge.describe() for judge in self.judges], "inversion": self.how.describe()}
        made |= {"means": {part: {name: mean(v) for name, v in found.items()} for part, found in parts.items()}}
        made |= {"keys": keys, **parts, "settings": {**asdict(on.run), "limit": self.limit, "precision": "float32"}}
        seconds = round(sum(block["seconds"] for block in blocks), 3)
        made |= {"versions": versions(), "device": device_record(on.metric.device), "processes": on.team.count}
        return [made | {"seconds": seconds}]


def inversion_images(folder: Path, limit: int | None = None) -> list[NamedImage]:
    """List the images in a folder and below it, the first `limit` of them.

    Raises:
        ImageError: there is no such folder, or no image in it.

    Example:
        >>> inversion_images(Path("nowhere"))
        Traceback (most recent call last):
        rclip_metric.errors.ImageError: cannot list nowhere: no such file or directory
    """
    found = list_images_below(folder)[:limit]
    if not found:
        raise ImageError(f"{folder} holds no images: pass a folder of some")
    return [NamedImage(path.relative_to(folder).as_posix(), path) for path in found]


def verdicts(judge: Metric, made: Tensor, original: Tensor, chunk_size: int | None = None) -> Tensor:
    """Compute how alike a judge finds images (N, 3, S, S) and originals, which it sees in its own size: (N,), float64.

    Example:
        >>> import torch
        >>> from rclip_metric.train.metrics import load_metric
        >>> black, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
        >>> verdicts(load_metric("l1", image_size=16), black, white)  # 1 - the mean difference
        tensor([0.], dtype=torch.float64)
    """
    seen = _squashed(judge, "squash")
    made, original = (resize_images(images.to(judge.device), seen, "squash") for images in (made, original))
    return 1 - dissimilarity(judge, made, judge.fix(original)[:, None], original, chunk_size)[:, 0]


def _squashed(metric: Metric, mode: Any) -> Preprocessing:
    side = getattr(metric, "image_size", 224)
    return Preprocessing(mode, side, side, "bicubic", CLIP_MEAN, CLIP_STD)


def mean(values: Sequence[float]) -> dict[str, Any]:
    """Average values, with the 95 % interval over samples.

    Example:
        >>> mean([0.5, 0.5])
        {'mean': 0.5, 'interval_95': [0.5, 0.5]}
    """
    low, high = mean_interval(values)
    return {"mean": round(sum(values) / len(values), 6), "interval_95": [round(low, 6), round(high, 6)]}


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.7g}") for value in values.tolist()]  # as float32 is


def inversion_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Write records as a table in Markdown: a row for each metric that made images, a column for each that judged.

    The last columns are what needs no judge, of what was made; the last row is that of the originals.
    """
    judges, statistics = (list(records[0]["means"][part]) for part in ("judged", "made"))
    lines = ["| made by | " + " | ".join([*judges, *(name.replace("_", " ") for name in statistics)]) + " |"]
    lines.append("|---|" + "---:|" * (len(judges) + len(statistics)))
    for record in records:
        means = record["means"]
        cells = [_cell(means["judged"][name], 2) for name in judges]
        cells += [_cell(means["made"][name], 3) for name in statistics]
        lines.append("| " + " | ".join([named(record["model"]), *cells]) + " |")
    for record in records[:1]:
        cells = ["" for _ in judges] + [_cell(record["means"]["original"][name], 3) for name in statistics]
        lines.append("| " + " | ".join([f"originals, as {record['model']['name']} sees them", *cells]) + " |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any], digits: int) -> str:
    low, high = found["interval_95"]
    return f"{found['mean']:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"
