"""What the commands share that compute distances: the model on its device, progress, and what cannot be read."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.printing import complain, printable, say

# What needs torch, Pillow or the Hub is imported where it is used: --help and a wrong path come at once.
if TYPE_CHECKING:
    from rclip_metric.retrieval import FileEmbeddings, Summary


PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""What a contact sheet is written as, if it is no page."""


class UsageError(ValueError):
    """The arguments parse, but do not make sense together."""


def check_target(path: str | None, read: Iterable[str | os.PathLike[str]], *, html: bool = False) -> None:
    """Raise UsageError, before anything is computed, unless a page or sheet can be written there.

    Args:
        path: The file to write; nothing is checked if None.
        read: Files that are read, of which none is overwritten.
        html: Whether only a page will do.
    """
    if path is None:
        return
    known = (".html",) if html else (".html", *PICTURES)
    if Path(path).suffix.lower() not in known:
        raise UsageError(f"got {path} to write to, expected a name that ends in {' or '.join(known)}")
    check_apart(path, read)


def check_apart(path: str | os.PathLike[str], read: Iterable[str | os.PathLike[str]]) -> None:
    """Raise UsageError where a file to write is a folder, or one of the files that are read."""
    if Path(path).is_dir():
        raise UsageError(f"{path} is a folder, expected a file to write to")
    if os.path.realpath(path) in {os.path.realpath(file) for file in read}:
        raise UsageError(f"{path} is one of the images that are read: write to another file")


class Progress:
    """A progress bar, lines in a log file, or nothing."""

    def __init__(self, shown: bool) -> None:
        """Draw nothing yet."""
        self.shown = shown
        self._bar: Any = None

    def start(self, total: int, unit: str = "image") -> None:
        """Draw the bar: it is known how many there are."""
        if self.shown:
            from rclip_metric.progress import progress

            self._bar = progress(total=total, unit=unit, leave=False)

    def advance(self) -> None:
        """Count an image."""
        if self._bar is not None:
            self._bar.update()

    def complain(self, text: object) -> None:
        """Say something on stderr, above the bar."""
        from tqdm import tqdm

        tqdm.write(f"rclip-metric: {printable(text)}", file=sys.stderr)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


class Run:
    """A run of a command that computes distances: the model on its device, and the files that could not be read."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Load the model that the arguments name."""
        from rclip_metric.retrieval import ModelSource, identity, settings
        from rclip_metric.weights.hub import without_progress_bars

        self._args = args
        self._say: Callable[[str], object] = complain
        device = chosen_device(args.device)
        self.source = ModelSource(
            args.model,
            base=args.base,
            revision=args.revision,
            resize=args.resize,
            reading=args.reading,
            cache_dir=args.cache_dir,
            squared=args.squared,
            dtype=args.dtype,
            second_look=getattr(args, "second_look", True),
        )
        with without_progress_bars(args.quiet):
            self.metric = self.source.load(device)
        self.batch_size = args.batch_size or (8 if self.metric.device.type == "cpu" else 32)
        self.identity = identity(self.metric)
        self.settings = settings(self.metric, args.model, self.batch_size)
        self.skipped: list[dict[str, str]] = []

    @property
    def json(self) -> bool:
        """Whether JSON is to be printed."""
        return bool(self._args.json)

    @property
    def workers(self) -> int | None:
        """How many threads read files, if that was said."""
        return None if self._args.workers is None else int(self._args.workers)

    @property
    def label(self) -> str:
        """Model, revision and what the number is, for people."""
        model = f"{self.identity['model']}@{_short(self.identity['revision'])}"
        measure = "1 - cos, 0 = identical, max 2" if self._args.squared else "sqrt(1 - cos), 0 = identical, max 1.414"
        precision = "" if self.settings["dtype"] == "float32" else f"; {self.settings['dtype']}"
        reading = f", {self.identity['reading']} reading" if "reading" in self.identity else ""
        return f"{model} (distance: {measure}; resize {self.identity['resize'] or 'none'}{reading}{precision})"

    @contextmanager
    def working(self, progress: bool = True) -> Iterator[Progress]:
        """Compute as published, with a progress bar that begins as soon as its end is known."""
        import torch

        bar = Progress(progress and not self._args.quiet)
        if bar.shown and sys.stderr.isatty():
            self._say = bar.complain
        try:
            with _pillow_is_quiet(), _tf32_is_off():
                yield bar
        except torch.cuda.OutOfMemoryError as error:
            raise UsageError(
                f"{self.metric.device} has too little memory for {self.batch_size} images at a time: "
                "pass a smaller --batch-size"
            ) from error
        finally:
            bar.close()
            self._say = complain

    @contextmanager
    def embeddings(self, files: Sequence[Path], progress: bool = True) -> Iterator[FileEmbeddings]:
        """Compute the embeddings of files."""
        from rclip_metric.retrieval import FileEmbeddings

        with (
            self.working(progress) as bar,
            FileEmbeddings(
                self.metric,
                files,
                batch_size=self.batch_size,
                on_skip=self.skip,
                on_done=bar.advance,
                workers=self.workers,
            ) as embeddings,
        ):
            bar.start(len(embeddings))
            self.remark_domain(files)
            yield embeddings

    def skip(self, file: Path | str, reason: str) -> None:
        """Name a file that cannot be read, and count it."""
        self.skipped.append({"file": str(file), "reason": reason})
        where = "" if str(file) in reason else f"{file}: "
        self._say(f"{where}{reason}")

    def remark(self, text: str) -> None:
        """Say something on stderr, unless it is to be quiet."""
        if not self._args.quiet:
            self._say(text)

    def remark_domain(self, files: Sequence[Path]) -> None:
        """Say so once where a model that knows something else is asked about what is certainly a photograph."""
        from rclip_metric.images.reading import states_exposure

        encoder = self.metric.encoder
        if encoder.domain is None or self._args.quiet:
            return
        photograph = next(filter(states_exposure, files), None)
        if photograph is not None:
            self._say(
                f"{encoder.name} knows {encoder.domain} only, and {photograph} states a camera and its exposure: "
                "the distances say little about photographs"
            )

    def remark_files(self, what: str, files: Sequence[Path]) -> None:
        """Name files on stderr, not more than a screenful of them."""
        for path in files[:20] if not self._args.quiet else ():
            self._say(f"{what}: {path}")
        if len(files) > 20 and not self._args.quiet:
            self._say(f"{what}: {len(files) - 20} more, all of them named in the summary")

    def remark_left_out(self, folder: Path, images: Iterable[Path], recursive: bool = False) -> int:
        """Count the files in a folder that are not images by their names, and say so on stderr."""
        known = set(images)
        count = 0
        for place, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if recursive and not name.startswith(".")]
            paths = (Path(place, name) for name in names if not name.startswith("."))
            count += sum(path not in known and path.is_file() for path in paths)
        if count:
            self.remark(f"{folder}: left out {number_of_files(count)} whose names are not those of images")
        return count

    def remark_second_look(self, count: int, what: str = "images") -> None:
        """Say how many images bfloat16 could not tell apart."""
        if count:
            self.remark(f"looked at {count} {what} again in float32, too close for {self.settings['dtype']} to tell")

    def record(self, summary: Summary, **facts: Any) -> dict[str, Any]:
        """Return the summary as it is kept, with what was skipped, the model and its settings."""
        record = {**summary.to_dict(), **facts, "skipped": self.skipped, **self.identity}
        return {"summary": {**record, "settings": self.settings}}

    def finish(self, summary: Summary, record: dict[str, Any] | None) -> int:
        """Print the record, if there is one, as the last JSON line, and words on stderr; return the exit code."""
        if record is not None:
            say(json.dumps(record))
        mean = "" if summary.mean is None else f", mean {number(summary.mean)}"
        self.remark(f"{summary.count} pairs{mean}, skipped {number_of_files(len(self.skipped))}; {self.label}")
        return 2 if self.skipped else 0


def as_made(args: argparse.Namespace, about: Mapping[str, Any]) -> None:
    """Take the model of an index, and how it prepares images, where the arguments do not name another."""
    from rclip_metric.retrieval import model_of, settings_of

    if args.model is None:
        args.model = model_of(about)
        for name, value in settings_of(about).items():
            setattr(args, name, getattr(args, name) or value)


def chosen_device(name: str) -> str:
    """Return the device of that name, or the best one there is for "auto"; UsageError if it is not there."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    kind, _, index = name.partition(":")
    if kind not in there or (index and (kind != "cuda" or not index.isdecimal())):
        raise UsageError(f"got --device {name}, expected auto, cpu, cuda, cuda:N or mps")
    if not there[kind] or (index and int(index) >= torch.cuda.device_count()):
        raise UsageError(f"there is no {name} device here")
    return name


@contextmanager
def _pillow_is_quiet() -> Iterator[None]:
    """Suppress Pillow's remarks on odd metadata and on photographs above 89 megapixels: it reads them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _tf32_is_off() -> Iterator[None]:
    """Make float32 mean float32: CUDA's convolutions otherwise round their inputs to 10 bits."""
    from torch.backends import cudnn

    allowed = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = allowed


def number(distance: float) -> str:
    """Write four decimals, except where they would make a small distance look like none."""
    return f"{distance:.4f}" if distance == 0 or distance >= 0.001 else f"{distance:.1e}"


def number_of_files(count: int) -> str:
    """Write it with its noun."""
    return f"{count} file{'s' * (count != 1)}"


def _short(revision: str) -> str:
    return revision[:7] if len(revision) == 40 else revision
