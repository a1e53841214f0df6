"""What a training run tells while it goes: one line on the terminal, JSON lines, and TensorBoard if wanted."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from tqdm import tqdm

from rclip_metric.files import written_whole
from rclip_metric.progress import progress
from rclip_metric.train.runs.files import append_line, storing, whole_lines

LOG_NAME = "log.jsonl"

_WINDOW = 20  # steps that the rate is taken over
_SHOWN = {"loss": "loss", "clean_cosine": "clean", "adversarial_cosine": "adversarial"}


class TrainingLog:
    """The log of a run, in `folder/log.jsonl`, on the terminal and, if wanted, in `folder/tensorboard`.

    A line of the log has a step, the mean of every value over the steps since the last line (over those that had it),
    the seconds that the run has taken so far, earlier processes included, and the images per second of the last 20
    steps, in which validation does not count. Everything else that happens is a line with its step too. Every line is
    on the disk when the call returns.

    A run that goes on after `start` steps drops the lines of later steps, which it writes again, and any line that a
    crash cut short. With the `pending` of the state it goes on from, its log is in the end that of an uninterrupted
    run, but for the times. The process of rank 0 alone writes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with TrainingLog(Path(folder), total=2, every=2, quiet=True) as log:
        ...         log.step(1, images=8, loss=0.5)
        ...         log.step(2, images=8, loss=0.25)
        ...     [(line["step"], line["loss"]) for line in whole_lines(Path(folder, LOG_NAME))]
        [(2, 0.375)]
    """

    def __init__(
        self,
        folder: Path,
        *,
        total: int,
        start: int = 0,
        quiet: bool = False,
        tensorboard: bool = False,
        rank: int = 0,
        every: int = 10,
        label: str = "",
        pending: Mapping[str, list[float]] | None = None,
    ) -> None:
        """Open the log.

        Args:
            folder: of the run; made if it does not exist.
            total: steps of the whole run.
            start: steps that are done already.
            quiet: no line on the terminal; there is none anyway where stderr is not one.
            tensorboard: also write what TensorBoard shows (extra "tensorboard").
            rank: of this process.
            every: steps per line of the log; the last step always has one.
            label: before the line on the terminal.
            pending: what `pending` was when the state of step `start` was saved.

        Raises:
            ValueError: if `every` is not positive, or the extra is missing.
            StorageError: if the log cannot be written.
        """
        if every < 1:
            raise ValueError(f"a line of the log needs at least 1 step, not {every}")
        self.folder, self.total, self.every = folder, total, every
        self._writes = rank == 0
        self._pending = {name: list(values) for name, values in (pending or {}).items()}
        self._latest: dict[str, float] = {}
        self._steps: deque[tuple[float, int]] = deque(maxlen=_WINDOW)  # seconds, images
        self._working = self._resting = 0.0
        self._before = 0.0
        self._open = True
        self._board: Any = None
        if self._writes:
            self._board = _summary_writer(folder / "tensorboard", start) if tensorboard else None
            with storing(LOG_NAME, folder):
                self._before = _resume(folder / LOG_NAME, start)
        self._bar = progress(
            total=total,
            initial=start,
            label=f"{label}: " if label else "",
            quiet=quiet or rank > 0,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        self._begun = self._last = time.perf_counter()

    def __enter__(self) -> TrainingLog:
        """Begin to count the time."""
        self._begun = self._last = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @property
    def seconds(self) -> float:
        """Of the run so far; earlier processes count up to their last line."""
        return self._before + time.perf_counter() - self._begun

    @property
    def images_per_second(self) -> float:
        """Of the last 20 steps; NaN before the first."""
        taken = sum(seconds for seconds, _ in self._steps)
        return sum(images for _, images in self._steps) / taken if taken else math.nan

    @property
    def pending(self) -> dict[str, list[float]]:
        """The values since the last line of the log; they belong into a state that is saved between two lines."""
        return {name: list(values) for name, values in self._pending.items()}

    def step(self, step: int, images: int, **values: float) -> None:
        """Note a step.

        Args:
            step: steps that are done, this one included.
            images: that it was made of, in all processes.
            values: by name; loss, clean_cosine and adversarial_cosine stand on the terminal. A 0-dimensional tensor
                will do, and waits for its device.

        Raises:
            StorageError: if the line cannot be written.
        """
        now = time.perf_counter()
        self._steps.append((now - self._last, images))
        self._working += now - self._last
        self._last = now
        if not self._writes:
            return
        for name, value in values.items():
            self._latest[name] = float(value)
            self._pending.setdefault(name, []).append(self._latest[name])
        self._show(step)
        if step % self.every == 0 or step == self.total:
            means = {name: fmean(taken) for name, taken in self._pending.items()}
            times = {"seconds": round(self.seconds, 3), "images_per_second": round(self.images_per_second, 2)}
            self._write({"step": step, **means, **times})
            self._add_scalars(step, {**means, "images_per_second": times["images_per_second"]})
            self._pending.clear()

    def event(self, step: int, **record: Any) -> None:
        """Note anything else that JSON can hold: files that could not be read, an interruption.

        Args:
            step: the step it belongs to, counted from 1.
            record: what happened.

        Raises:
            StorageError: if the line cannot be written.
        """
        if self._writes:
            self._write({"step": step, **record})

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Note what a validation found after `step` steps; the time since the step does not count as training.

        Log it before the state of the same step is saved: a run that goes on from a state keeps what was logged by
        then, and does not validate that step again.

        Raises:
            StorageError: if the line cannot be written.
        """
        now = time.perf_counter()
        self._resting += now - self._last
        self._last = now
        if self._writes:
            self._write({"step": step, "validation": dict(values)})
            self._add_scalars(step, {f"validation/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Write out and close everything; calling it twice does no harm."""
        self._bar.close()
        if self._board is not None:
            self._board.close()
            self._board = None
        self._open = False

    def _show(self, step: int) -> None:
        if self._bar.disable:
            return
        taken = sum(seconds for seconds, _ in self._steps) / len(self._steps)
        left = (self.total - step) * taken * (1 + self._resting / max(self._working, 1e-9))
        shown = [f"{text} {self._latest[name]:.4g}" for name, text in _SHOWN.items() if name in self._latest]
        shown += [f"{self.images_per_second:.3g} images/s", f"ETA {tqdm.format_interval(int(left))}"]
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.update(step - self._bar.n)

    def _write(self, line: dict[str, Any]) -> None:
        if not self._open:
            raise ValueError("the log is closed: write into it inside its with block")
        append_line(self.folder / LOG_NAME, line)

    def _add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def _resume(path: Path, start: int) -> float:
    """Keep the lines of the first `start` steps, and give back the seconds that the last of them tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    # A run that begins anew writes everything again.
    kept = [entry for entry in whole_lines(path) if start and entry.get("step", math.inf) <= start]
    text = "".join(f"{json.dumps(entry)}\n" for entry in kept)
    if text != path.read_text(errors="replace"):
        with written_whole(path) as partial:
            partial.write_text(text)
    return next((float(entry["seconds"]) for entry in reversed(kept) if "images_per_second" in entry), 0.0)


def _summary_writer(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            'the log for TensorBoard needs an extra: pip install "rclip-metric[tensorboard]", or leave TensorBoard out'
        ) from error
    with storing("the log for TensorBoard", folder.parent):
        # What an earlier process wrote for later steps is written again, and hidden from here on.
        return SummaryWriter(str(folder), purge_step=start + 1 if start else None)
