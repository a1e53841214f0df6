"""The direct attack: how different from itself an image can be made to look to a metric.

LipSim's authors show a histogram of d(x, x + delta), delta from PGD on the MSE between f(x + delta) and f(x). Here APGD
raises the metric's own dissimilarity; of unit embeddings it is half their squared distance, and has the same maximum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from rclip_metric.images import ImageError
from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.blocks import run_blocks
from rclip_metric.train.evaluation.kept import kept
from rclip_metric.train.evaluation.robustness import DEFAULTS, RunSettings, fixed_options
from rclip_metric.train.metrics.base import Metric, dissimilarity
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.machine import device_record, versions
from rclip_metric.train.runs.precision import full_float32
from rclip_metric.train.runs.seeds import sample_seed

if TYPE_CHECKING:
    from rclip_metric.train.evaluation.two_afc import TwoAfcData

Image = tuple[str, Path]
"""A reference image: the key of the first triplet that has it, which makes its seed, and its file."""


class _Block(TypedDict):
    """What a block evaluated to; the first three are columns, ``others`` empty where there is no other image."""

    keys: list[str]
    distances: list[float]
    others: list[float]
    unreadable: list[str]
    violation: float
    zero_gradients: int
    nonfinite_gradients: int
    evaluations: int
    seconds: float


def direct_attack(
    metric: Metric,
    data: TwoAfcData,
    ball: LpBall,
    *,
    images: int = 64,
    steps: int = 100,
    run: RunSettings = DEFAULTS,
    journal: Path | None = None,
    team: Team = ALONE,
    quiet: bool = False,
) -> dict[str, Any]:
    """Make the first reference images of a set as different from themselves as the metric can be made to find them.

    Beside each distance d(x, x + delta) stands d(x, y) to another image of the set, the next one that can be read (the
    last has the first): the scale on which to read it.

    Args:
        metric: attacked, always in float32.
        data: its triplets' reference images, without repetition.
        ball: the feasible set.
        images: how many of them; those that cannot be read are left out and named.
        steps: of APGD, from one random start per image, seeded by the run's seed and the triplet's key.
        run: seed and sizes; the precision is not used.
        journal: folder of the journal, see `run_blocks`.
        team: torchrun's processes.
        quiet: no progress bar.

    Returns:
        JSON, the same in every process: ``keys``, ``distances`` and ``others`` are columns (``others`` is empty if
        there is only one image). It is no result of `report`, whose tables have no row for it.

    Raises:
        ValueError: if no image can be read, or the metric has no finite distances.
    """
    settings = _settings(metric, data, ball, images, steps, run)
    chosen = _references(data, images)
    load = data.load or metric.preprocess
    starts = range(0, len(chosen), run.batch_size)

    def evaluate(start: int) -> _Block:
        with full_float32():
            return _evaluate_block(metric, chosen, start, load, ball, steps, run)

    blocks = run_blocks(
        starts,
        evaluate,
        settings={**settings, "sizes": [run.batch_size, run.chunk_size]},
        journal=journal,
        team=team,
        describe=f"{data.name} {metric.name} direct {ball}",
        sizes=[len(chosen[start : start + run.batch_size]) for start in starts],
        quiet=quiet,
    )
    unreadable = [sentence for block in blocks for sentence in block["unreadable"]]
    distances = [value for block in blocks for value in block["distances"]]
    if not distances:
        raise ValueError(f"none of the {len(chosen)} reference images of {data.name} could be read: {unreadable[0]}")
    others = [value for block in blocks for value in block["others"]]
    zero = sum(block["zero_gradients"] for block in blocks)
    nonfinite = sum(block["nonfinite_gradients"] for block in blocks)
    violation = max(block["violation"] for block in blocks)
    seconds = sum(block["seconds"] for block in blocks)
    return {
        "task": "direct",
        "model": metric.describe(),
        "data": {"name": data.name, "split": data.split, "images": len(distances), "unreadable": unreadable},
        "threat": settings["threat"],
        "keys": [key for block in blocks for key in block["keys"]],
        "distances": distances,
        "others": others,
        "largest_violation": violation,
        "masking": {"zero_gradients": zero, "nonfinite_gradients": nonfinite},
        "warnings": _warnings(len(distances), unreadable, zero, nonfinite, violation, ball),
        "settings": {**asdict(run), "precision": "float32", "images": images},
        "versions": versions(),
        "device": device_record(metric.device),
        "processes": team.count,
        "seconds": round(seconds, 3),
        "images_per_second": round(sum(block["evaluations"] for block in blocks) / seconds, 2) if seconds else None,
    }


def direct_record(
    path: Path,
    metric: Metric,
    data: TwoAfcData,
    ball: LpBall,
    *,
    images: int = 64,
    steps: int = 100,
    run: RunSettings = DEFAULTS,
    team: Team = ALONE,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """What `direct_attack` gives, read from a file if it is there, else evaluated (on from its journal) and written.

    Args:
        path: the file; the journal is in ``.journal`` beside it until the result is written.
        metric: this and what is not said here as for `direct_attack`.
        data: likewise.
        ball: likewise.
        images: likewise.
        steps: likewise.
        run: another batch or chunk size makes no other result.
        team: torchrun's processes, of which the first looks and writes.
        overwrite: replace a result of other settings.
        quiet: no progress bar.

    Raises:
        ValueError: if the file holds something else, and as `direct_attack` raises it.
    """
    return kept(
        path,
        _settings(metric, data, ball, images, steps, run),
        lambda journal: direct_attack(
            metric, data, ball, images=images, steps=steps, run=run, journal=journal, team=team, quiet=quiet
        ),
        team=team,
        overwrite=overwrite,
    )


def _settings(
    metric: Metric, data: TwoAfcData, ball: LpBall, images: int, steps: int, run: RunSettings
) -> dict[str, Any]:
    """What the distances depend on, JSON."""
    if images < 1 or steps < 0:
        raise ValueError(f"a direct attack needs at least 1 image and 0 steps, and has {images} and {steps}")
    threat: dict[str, Any] = {"attack": "apgd", "norm": ball.norm, "eps": ball.eps, "eps_text": str(ball).split()[1]}
    threat |= {"steps": steps, "restarts": 1, "loss": "dissimilarity"}
    about = {"task": "direct", "model": metric.describe(), "data": data.settings(), "images": images}
    return {**about, "threat": threat, "seed": run.seed}


def _references(data: TwoAfcData, count: int) -> list[Image]:
    """The first reference images, each file once."""
    first: dict[Path, str] = {}
    for triplet in data.triplets:
        first.setdefault(triplet.reference, triplet.key)
    return [(key, path) for path, key in first.items()][:count]


def _evaluate_block(
    metric: Metric,
    chosen: Sequence[Image],
    start: int,
    load: Callable[[Path], Tensor],
    ball: LpBall,
    steps: int,
    run: RunSettings,
) -> _Block:
    begun = time.perf_counter()
    block = range(start, min(start + run.batch_size, len(chosen)))
    with ThreadPoolExecutor(4) as pool:
        tried = list(pool.map(lambda index: _read(chosen[index], load), block))
    unreadable = [found for found in tried if isinstance(found, str)]
    read = {index: found for index, found in zip(block, tried, strict=True) if isinstance(found, Tensor)}
    if not read:
        return _Block(
            keys=[], distances=[], others=[], unreadable=unreadable, violation=0.0, zero_gradients=0,
            nonfinite_gradients=0, evaluations=0, seconds=0.0,
        )  # fmt: skip
    keys, chunk = [chosen[index][0] for index in read], run.chunk_size
    clean = torch.stack(list(read.values())).to(metric.device)  # (n, 3, S, S)
    kept = fixed_options(metric, clean[:, None], chunk)  # (n, 1, ...)

    def loss_fn(points: Tensor, indices: Tensor) -> Tensor:
        return -metric.similarities(points, kept[indices])[:, 0]

    found = apgd(loss_fn, clean, ball, steps, seeds=[sample_seed(run.seed, key) for key in keys], chunk_size=chunk)
    distances = _short(dissimilarity(metric, found.images, kept, clean, chunk)[:, 0])
    after = _next_readable(chosen, max(read), load)
    following = torch.cat([clean[1:], clean[:0] if after is None else after[None].to(clean)])
    count = len(following)  # one less than n where there is no other image than the last one
    others = _short(dissimilarity(metric, following, kept[:count], clean[:count], chunk)[:, 0])
    return _Block(
        keys=keys, distances=distances, others=others, unreadable=unreadable,
        violation=ball.violation(found.images, clean), zero_gradients=found.zero_gradients,
        nonfinite_gradients=found.nonfinite_gradients, evaluations=found.evaluations + 4 * len(keys),
        seconds=time.perf_counter() - begun,
    )  # fmt: skip


def _read(image: Image, load: Callable[[Path], Tensor]) -> Tensor | str:
    """The image (3, S, S), or a sentence."""
    key, path = image
    try:
        return load(path)
    except ImageError as error:
        return f"triplet {key}: {error}"


def _next_readable(chosen: Sequence[Image], last: int, load: Callable[[Path], Tensor]) -> Tensor | None:
    """The first image after the one at ``last``, round the end, that can be read; None if there is no other."""
    for index in (*range(last + 1, len(chosen)), *range(last)):
        found = _read(chosen[index], load)
        if isinstance(found, Tensor):
            return found
    return None


def _short(values: Tensor) -> list[float]:
    """Float32 has no more than 7 significant digits."""
    return [float(f"{value:.7g}") for value in values.tolist()]


def _warnings(
    images: int, unreadable: Sequence[str], zero: int, nonfinite: int, violation: float, ball: LpBall
) -> list[str]:
    """What a reader must know before showing the distances, as sentences."""
    sentences = []
    for count, what in ((zero, "an all-zero gradient"), (nonfinite, "a gradient with NaN or infinity")):
        if count:
            sentences.append(f"{count} of {images} images met {what}: the metric may be less robust than it looks.")
    if unreadable:
        whole = images + len(unreadable)
        sentences.append(f"{len(unreadable)} of {whole} images could not be read, the first: {unreadable[0]}")
    if violation > float(np.spacing(np.float32(ball.eps))):
        sentences.append(f"An attacked image left the ball of {ball} or the range [0, 1] by {violation:.2g}.")
    return sentences
