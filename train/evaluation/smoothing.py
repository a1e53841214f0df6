"""Randomised smoothing (Cohen, Rosenfeld & Kolter 2019): a certificate for any metric, at a stated confidence.

What is certified is the smoothed metric, whose answer is the one that the metric gives most often when the image has
Gaussian noise on it. It is not the metric without noise: either may be right where the other one is wrong.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rclip_metric.second_look import undecided
from rclip_metric.train.attacks.base import AttackResult, ConfirmedResult
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.evaluation.attack import SLACK, DecisionRule, RunSettings, chunk_size_of, refuse_nan
from rclip_metric.train.evaluation.certificates.binomial import clopper_pearson_lower, refuse_confidence
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.seeds import sample_seed

GROUP = 32
"""Draws that are made together, from one seed; part of what the numbers are, unlike the size of a chunk."""
_TWICE = 8  # images that are judged twice, to see whether a metric is deterministic
_AHEAD = 8  # groups of draws that are made ahead of an accelerator, which would wait for the CPU


@dataclass(frozen=True)
class Smoothing:
    """Asks whether the smoothed decision is proven in a whole l_2 ball; stands among the attacks of an evaluation.

    The image that moves gets normal noise, which is not clamped to [0, 1]: the proof is about Gaussians, and a metric
    has to take what it is given. n0 draws choose an answer; with k of n others for it, p the Clopper-Pearson bound of
    k and n from below, it is certified within the radius

        R = sigma Phi^-1(p),

    and where p is not above one half the smoothed metric abstains. The n draws choose nothing, so that the bound is
    one; of several radii that are asked for, all are answered by the same draws.

    A draw at which options tie is a vote for nobody. The bound stays what it is: k counts the draws of which the answer
    is strictly the best, which is a set of images like any other, and whose probability exceeds one half within R.
    There no rule about ties can make another answer the more frequent one.

    Where there are more than two answers (odd-one-out), all wrong ones count as one, as in Cohen's bound: right is
    the majority of all draws, and not merely more than any other answer.

    Attributes:
        ball: l_2; its radius is what the column "robust" of the record is about.
        sigma: standard deviation of the noise, in [0, 1] pixels of the metric's own size.
        n0: draws that choose.
        n: draws that estimate, others than these.
        confidence: of the one-sided bound, for each sample by itself.

    Example:
        >>> smoothing = Smoothing(LpBall("l2", 0.5), sigma=0.25)
        >>> round(smoothing.radius(900), 3), smoothing.radius(530)  # of 1000 votes; too few to say
        (0.279, 0.0)
        >>> Smoothing(LpBall("l2", 0.5), sigma=0.0)
        Traceback (most recent call last):
        ValueError: sigma must be a finite number above 0, and it is 0
    """

    ball: LpBall
    sigma: float
    n0: int = 100
    n: int = 1000
    confidence: float = 0.999
    attack: str = "smoothing"

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.ball.norm != "l2":
            raise ValueError(f"certified radii are l_2 radii, and {self.ball} is no l_2 ball")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be a finite number above 0, and it is {self.sigma:g}")
        if self.n0 < 1:
            raise ValueError(f"at least 1 draw has to choose, and n0 is {self.n0}")
        if self.n < self.n0:
            raise ValueError(f"as many draws have to estimate as choose, and n is {self.n} with n0 {self.n0}")
        refuse_confidence(self.confidence)

    def describe(self) -> dict[str, Any]:
        """Describe the certificate in the record: JSON."""
        ball = {"attack": self.attack, "norm": self.ball.norm, "eps": self.ball.eps}
        return {**ball, "sigma": self.sigma, "n0": self.n0, "n": self.n, "confidence": self.confidence}

    def radius(self, votes: int) -> float:
        """Compute the radius that so many of the n votes prove; 0 where the smoothed metric abstains."""
        lower = clopper_pearson_lower(votes, self.n, self.confidence)
        if lower <= 0.5:
            return 0.0
        return self.sigma * torch.special.ndtri(torch.tensor(lower, dtype=torch.float64)).item()

    @property
    def largest(self) -> float:
        """The radius where all votes agree: no larger one can be proven."""
        return self.radius(self.n)

    def remarks(self, abstained: int, samples: int, noisy: str) -> list[str]:
        """Say, in sentences, what a reader must know before quoting certified accuracy.

        Args:
            abstained: on how many samples.
            samples: of how many.
            noisy: what has the noise, in words.
        """
        held = f"hold with confidence {100 * self.confidence:g} % for each sample by itself, from {self.n} draws"
        sentences = [
            f"The radii are those of the metric smoothed with sigma {self.sigma:g} on {noisy}, and {held}; "
            f"it abstained on {abstained} of {samples} samples."
        ]
        if not self.largest > self.ball.eps:
            sentences.append(
                f"Sigma {self.sigma:g} and {self.n} draws prove no radius above {self.largest:.4g}: the certified "
                f"accuracy at {self.ball.eps:.4g} is 0 whatever the metric is."
            )
        return sentences


class Smoothed(NamedTuple):
    """What is certified of n smoothed decisions, and the images that were judged under noise for that.

    Example:
        >>> Smoothed(torch.tensor([0.3, 0.0, -0.1]), draws=3300).radius > 0  # right, no answer, wrong
        tensor([ True, False, False])
    """

    radius: Tensor  # (n,), float64: minus the radius where the answer is wrong, 0 where the smoothed metric abstains
    draws: int


Judge = Callable[[Tensor, Tensor], Tensor]
"""Points (m, ...) and the numbers (m,) of their samples -> margins (m,), positive where right, 0 at a tie."""


def smoothed_radii(
    metric: Metric,
    images: Tensor,
    fixed: Callable[[Metric], Tensor],
    decide: DecisionRule,
    smoothing: Smoothing,
    run: RunSettings,
    keys: Sequence[str],
    *,
    half: Metric | None = None,
) -> Smoothed:
    """Certify the smoothed decisions on n samples; see `smooth`.

    Args:
        metric: decides, in float32.
        images: references (n, 3, S, S), to which the noise is added.
        fixed: what a metric (this one, or `half`) keeps of the options, (n, K, ...).
        decide: from similarities (n, K) to margins; see `Aim`.
        smoothing: sigma, draws and confidence.
        run: seed and chunk size.
        keys: the samples' names, for their draws.
        half: the metric in bfloat16, if most draws shall be judged there.

    Raises:
        ValueError: for a metric that gives NaN, or two answers to one question.

    Example:
        >>> from rclip_metric.train.evaluation.attack import DEFAULTS
        >>> from rclip_metric.train.evaluation.tasks.two_afc import decision
        >>> from rclip_metric.train.metrics import DistanceMetric
        >>> l1 = DistanceMetric(lambda x, y: (x - y).abs().mean((1, 2, 3)), 8, name="l1")
        >>> images = torch.full((1, 3, 8, 8), 0.50)
        >>> options = torch.tensor([0.45, 0.55]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 8, 8)
        >>> rule, even = decision(torch.zeros(1, dtype=torch.long)), Smoothing(LpBall("l2", 0.5), sigma=0.25)
        >>> smoothed_radii(l1, images, lambda l1: options, rule, even, DEFAULTS, ["half-way"]).radius.item()
        0.0
    """

    def judge(judging: Metric) -> Judge:
        kept = fixed(judging)

        def margins(points: Tensor, numbers: Tensor) -> Tensor:
            return decide(judging.similarities(points, kept[numbers]), numbers).margin

        return margins

    chunk, rough = run.chunk_size or chunk_size_of(metric), judge(half) if half else None
    return smooth(judge(metric), images, smoothing, run.seed, keys, chunk, half=rough, name=metric.name)


def smooth(
    judge: Judge,
    images: Tensor,
    smoothing: Smoothing,
    seed: int,
    keys: Sequence[str],
    chunk_size: int,
    *,
    half: Judge | None = None,
    name: str = "the metric",
) -> Smoothed:
    """Certify the smoothed answers of whatever gives margins.

    The draws of a sample are its own, by the seed of the run and the sample's key: which others it is judged with, in
    which chunks and by how many processes, changes none of them. Every sigma has the same ones, each times sigma.

    Rounding: the theorem is about any function from images to answers, so also about a metric as float32 computes it,
    and what is certified is that. What is not covered is that draws are float32 numbers (as an image with noise is),
    which are no Gaussian in the last of their 24 bits, and that a vote within the last bits of a tie may depend on the
    size of a chunk. With `half`, the n0 draws are judged in both precisions. Of the others those whose margin is below
    `SLACK`, or below twice the largest difference that the n0 showed, are judged again in float32.

    Args:
        judge: in float32.
        images: (n, 3, S, S), or (n, K, 3, S, S) where one sample is K images that all get noise.
        smoothing: sigma, draws and confidence.
        seed: of the run.
        keys: the samples' names.
        chunk_size: images per pass.
        half: the same in bfloat16.
        name: who judges, for errors.

    Raises:
        ValueError: for a margin that is NaN, or one that differs when the same images are judged again.

    Example:
        >>> pixel = lambda points, numbers: points[:, 0, 0, 0] - 0.5
        >>> grey = torch.tensor([0.8, 0.5, 0.2]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
        >>> found = smooth(pixel, grey, Smoothing(LpBall("l2", 0.1), sigma=0.25), 0, ["light", "grey", "dark"], 64)
        >>> found.radius.round(decimals=2)  # the plane is at 0.3, at 0, and at 0.3 on the other side
        tensor([ 0.2600,  0.0000, -0.2600], dtype=torch.float64)
    """
    chunk_size = max(1, chunk_size // images.shape[1:-3].numel())
    votes = _Votes(images, smoothing.sigma, [sample_seed(seed, key) for key in keys], keys, chunk_size, name)
    with torch.no_grad():
        radii = []
        for number in range(len(images)):
            if number == 0:
                for asked in filter(None, (judge, half)):
                    votes.refuse_chance(asked)
            radii.append(_signed_radius(votes, judge, half, smoothing, number))
    return Smoothed(torch.tensor(radii, dtype=torch.float64), votes.judged)


def _signed_radius(votes: _Votes, judge: Judge, half: Judge | None, smoothing: Smoothing, number: int) -> float:
    """Certify one sample: choose, then estimate."""
    slack = 0.0
    chosen = 0
    for points in votes.points(number, 0, smoothing.n0):
        exact = votes.margins(judge, points, number)
        chosen += int(exact.sign().sum())
        if half is not None:
            off = (exact - votes.margins(half, points, number)).abs().max().item()
            slack = max(slack, SLACK, 2 * off)
    if chosen == 0:  # as many for as against, or none at all
        return 0.0
    side = 1 if chosen > 0 else -1
    count = 0
    for margins in votes.settled(judge, half, slack, number, smoothing):
        count += int((side * margins > 0).sum())
    return side * smoothing.radius(count)


@dataclass
class _Votes:
    """Draws of noise around images, and how they are judged."""

    images: Tensor
    sigma: float
    seeds: Sequence[int]
    keys: Sequence[str]
    chunk_size: int
    name: str
    judged: int = 0

    def points(self, number: int, first: int, count: int) -> Iterator[Tensor]:
        """Give so many noisy copies of an image, from the first one on, in chunks."""
        image = self.images[number]
        ahead = 0 if image.device.type == "cpu" else _AHEAD
        drawn = _noise(image.shape, self.seeds[number], first, count, ahead)
        for noise in _chunks(drawn, self.chunk_size):
            yield image + self.sigma * noise.to(image)

    def margins(self, judge: Judge, points: Tensor, number: int) -> Tensor:
        """Judge points around one image."""
        found = judge(points, torch.full((len(points),), number, device=points.device))
        self.judged += points.shape[:-3].numel()
        refuse_nan(found, [self.keys[number]] * len(points), f"{self.name}'s margin under noise")
        return found

    def settled(
        self, judge: Judge, half: Judge | None, slack: float, number: int, smoothing: Smoothing
    ) -> Iterator[Tensor]:
        """Judge the draws that estimate; in `half` first, and again where it is close."""
        close: list[Tensor] = []
        for points in self.points(number, smoothing.n0, smoothing.n):
            if half is None:
                yield self.margins(judge, points, number)
                continue
            margins = self.margins(half, points, number)
            near = undecided(margins, slack)
            yield margins[~near]
            close.append(points[near])
            if sum(map(len, close)) >= self.chunk_size:
                yield self.margins(judge, torch.cat(close), number)
                close.clear()
        if any(map(len, close)):
            yield self.margins(judge, torch.cat(close), number)

    def refuse_chance(self, judge: Judge) -> None:
        """Raise ValueError where the same images get other margins when they are judged again."""
        points = next(self.points(0, 0, min(_TWICE, self.chunk_size)))
        one, other = (self.margins(judge, points, 0) for _ in range(2))
        if not torch.equal(one, other):
            at = (one != other).nonzero()[0, 0]
            raise ValueError(
                f"{self.name} gives the same images two margins ({one[at].item():.6g} and {other[at].item():.6g}): "
                "smoothing needs a metric that is deterministic"
            )


def _noise(shape: torch.Size, seed: int, first: int, count: int, ahead: int = 0) -> Iterator[Tensor]:
    """Make so many standard normal draws (m, ...) in groups, on the CPU: a seed means the same on every device.

    Threads make so many groups ahead of what is asked for.
    """

    def make(group: int) -> Tensor:
        generator = torch.Generator().manual_seed(sample_seed(seed, f"smoothing {group}"))
        whole = torch.randn((GROUP, *shape), generator=generator)
        return whole[max(0, first - group * GROUP) : first + count - group * GROUP]

    groups = range(first // GROUP, -(-(first + count) // GROUP))
    if not ahead:
        yield from map(make, groups)
        return
    with ThreadPoolExecutor(ahead) as pool:
        waiting: deque[Future[Tensor]] = deque()
        for group in groups:
            waiting.append(pool.submit(make, group))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _chunks(parts: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Divide what comes in parts anew, into chunks of a size."""
    rest: Tensor | None = None
    for part in parts:
        whole = part if rest is None else torch.cat([rest, part])
        *full, rest = whole.split(size)
        yield from full
    if rest is not None:
        yield rest


def certify_smoothed(smoothed: Smoothed, smoothing: Smoothing, seconds: float) -> ConfirmedResult:
    """Compare the radii of samples with a ball's.

    Args:
        smoothed: what is certified of them.
        smoothing: with the ball.
        seconds: that it took.

    Returns:
        `fooled` where the right answer is not proven in the ball; `margin` is the signed radius less the ball's.

    Example:
        >>> smoothing, found = Smoothing(LpBall("l2", 0.5), 0.25), Smoothed(torch.tensor([0.75, 0.25]), 2200)
        >>> certify_smoothed(found, smoothing, seconds=1.0).margin
        tensor([ 0.2500, -0.2500])
    """
    radius = smoothed.radius
    unproven = ~(radius > smoothing.ball.eps)
    nothing_moved = AttackResult(torch.zeros(0), radius, unproven, smoothed.draws)
    return ConfirmedResult(unproven, radius - smoothing.ball.eps, nothing_moved, 0.0, seconds)
