"""A few triplets to look at: images, attacked reference, amplified perturbation, and the distances before and after."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rclip_metric.images import open_image
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.triplets import TripletFiles
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.records import Evaluation
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, files_of
from rclip_metric.train.metrics.base import Metric, dissimilarity
from rclip_metric.train.runs.precision import full_float32, resolved_precision

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 160
"""Longer sides are brought down to so many pixels."""


def example_triplets(
    metric: Metric,
    triplets: Sequence[TripletFiles],
    attack: AttackSettings,
    run: RunSettings,
    load: Callable[[Path], Tensor] | None = None,
    *,
    source: Metric | None = None,
) -> list[dict[str, Any]]:
    """Show what an attack does to a metric's view of a few triplets, with the outcome that the 2AFC evaluation counted.

    Seeds, settings, precision and the code are the evaluation's own. As there, a triplet that the metric gets wrong on
    the clean images is not attacked: `was_attacked` is False, and everything after is as before.

    Args:
        metric: judged, and attacked.
        triplets: e.g. from `at_equal_steps`, in one block.
        attack: as in the evaluation.
        run: likewise.
        load: path -> (3, S, S); None for the metric's own `preprocess`.
        source: the metric that transferred attacks are made on.

    Returns:
        One dict per triplet, JSON: `key` and `share_right`, as in `TripletFiles`; `before` and `after`, the distances
        [to left, to right] of `dissimilarity`; `right_before`, `right_after` and `was_attacked`; `reference`, `left`
        and `right` from their files, `attacked` and `perturbation` from the metric's own square, PNG in data URIs of at
        most 160 pixels. The perturbation is 0.5 + factor * delta, `amplification` the factor (None where nothing
        moved): 1 / (2 eps) for l_inf, elsewhere 1 / (2 max |delta|). A triplet that cannot be read is
        {"key", "failed"}, a sentence.

    Raises:
        ValueError: for a transfer without a source.

    Example:
        >>> from tempfile import mkdtemp
        >>> from PIL import Image
        >>> from rclip_metric.train.metrics import load_metric
        >>> folder = Path(mkdtemp())
        >>> for level in (100, 110, 130):
        ...     Image.new("RGB", (16, 16), (level, level, level)).save(folder / f"{level}.png")
        >>> files = [folder / f"{level}.png" for level in (100, 110, 130)]
        >>> triplet = TripletFiles("1", *files, share=0.0, split="test")
        >>> attack = AttackSettings(LpBall("linf", 8 / 255), steps=9)
        >>> [found] = example_triplets(load_metric("linf", image_size=16), [triplet], attack, RunSettings())
        >>> found["right_before"], found["right_after"]  # 118 is nearer to 110 than to 130
        (True, True)
    """
    if not triplets:
        return []
    task = TwoAfcData("examples", None, triplets, load=load)
    half = metric.in_bfloat16() if resolved_precision(run.precision, metric.device) == "bfloat16" else None
    on = Evaluation(metric, [attack], run, source, half)
    images = ImageSet([task.paths()], task.reader(metric), metric.device, run)
    with full_float32():
        broken = images.broken(metric, {triplet.key: files_of(triplet) for triplet in triplets})
        read = [triplet for triplet in triplets if triplet.key not in broken]
        shown = _before_and_after(task, read, images, on) if read else {}
    for key, problem in broken.items():
        shown[key] = {"key": key, "failed": f"triplet {key}: {problem}"}
    return [shown[triplet.key] for triplet in triplets]


def _before_and_after(
    task: TwoAfcData, triplets: Sequence[TripletFiles], images: ImageSet, on: Evaluation
) -> dict[str, dict[str, Any]]:
    """Attack the triplets that are right, and describe all of them, by key."""
    metric, chunk = on.metric, on.run.chunk_size
    [attack] = on.attacks
    reference = images.pixels([triplet.reference for triplet in triplets])  # (n, 3, S, S)
    fixed = images.kept(metric, [(triplet.left, triplet.right) for triplet in triplets])  # (n, 2, ...)
    similarities = task.similarities(triplets, images, on)  # (n, 2)
    wrong = task.decide(triplets, similarities).wrong
    final, wrong_after = reference.clone(), wrong.clone()
    right = (~wrong).nonzero()[:, 0]
    if len(right):
        chosen = [triplets[index] for index in right.tolist()]
        [confirmed] = task.under_attack(chosen, similarities[right], images, on)
        final[right], wrong_after[right] = confirmed.attacked.images, confirmed.fooled
    before = dissimilarity(metric, reference, fixed, reference, chunk)  # (n, 2)
    after = dissimilarity(metric, final, fixed, reference, chunk)
    after[wrong] = before[wrong]
    found = {}
    for i, triplet in enumerate(triplets):
        perturbation, factor = _amplified((final[i] - reference[i]).cpu(), attack.ball)
        found[triplet.key] = {
            "key": triplet.key,
            "share_right": triplet.share,
            "was_attacked": not bool(wrong[i]),
            "before": before[i].tolist(),
            "after": after[i].tolist(),
            "right_before": not bool(wrong[i]),
            "right_after": not bool(wrong_after[i]),
            **{side: _uri(open_image(getattr(triplet, side)), exact=False) for side in ("reference", "left", "right")},
            "attacked": _tensor_uri(final[i].cpu(), exact=False),
            "perturbation": _tensor_uri(perturbation, exact=True),
            "amplification": factor,
        }
    return found


def _amplified(delta: Tensor, ball: LpBall) -> tuple[Tensor, float | None]:
    """Put a perturbation (3, S, S) on grey so that it fills [0, 1], and give the factor."""
    largest = delta.abs().max().item()
    if largest == 0:
        return torch.full_like(delta, 0.5), None
    largest = ball.eps if ball.norm == "linf" else largest
    return (0.5 + delta / (2 * largest)).clamp(0, 1), 1 / (2 * largest)


def _tensor_uri(image: Tensor, exact: bool) -> str:
    """Encode an image (3, H, W) in [0, 1], rounded to 8 bits."""
    from PIL import Image

    levels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()  # (H, W, 3)
    return _uri(Image.frombytes("RGB", (levels.shape[1], levels.shape[0]), bytes(levels.flatten().tolist())), exact)


def _uri(image: Image.Image, exact: bool) -> str:
    """Encode as PNG, brought down to `LONGEST`: by area, or by leaving pixels out, which keeps noise as strong."""
    from PIL import Image

    share = LONGEST / max(image.size)
    if share < 1:
        size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
        image = image.resize(size, Image.Resampling.NEAREST if exact else Image.Resampling.BOX)
    held = io.BytesIO()
    image.save(held, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
