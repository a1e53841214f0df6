"""What calls images safe, buffer or unsafe, clean and under attack: a filter by examples, a detector, or both.

An attack either runs blind, to the end, and its best point is judged then: the paper's grey box, of an attacker who
cannot ask. Or every point that it visits is judged, and it stops where an image has the role it aims at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rclip_metric.detectors import Detector
from rclip_metric.distance import normalize
from rclip_metric.train.attacks.apgd import apgd
from rclip_metric.train.attacks.base import AttackResult, LossAndSuccess
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.filter_pools import ROLES
from rclip_metric.train.evaluation.image_set import embeds
from rclip_metric.train.metrics.base import Metric

SAFE, UNSAFE = ROLES.index("safe"), ROLES.index("unsafe")
BEYOND = 1.0
"""Log-odds past a detector's threshold from which a joint attack leaves it alone."""
_DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
_TINY = 1e-12


class Verdicts(NamedTuple):
    """What is said of n images whose own roles are known: (n,) each.

    Example:
        >>> verdicts(torch.tensor([[0.5, 0.25, 0.75]]), own=torch.tensor([0]))  # the nearest example is unsafe
        Verdicts(margin=tensor([-0.2500]), landed=tensor([2]))
    """

    margin: Tensor  # positive where the image has its own role
    landed: Tensor  # the role, by its place in `ROLES`


def verdicts(scores: Tensor, own: Tensor) -> Verdicts:
    """Decide by the highest score (n, roles); at a tie an image does not have its own role, and with NaN no other."""
    kept = scores.gather(1, own[:, None])[:, 0]
    others = scores.scatter(1, own[:, None], -torch.inf)
    margin = kept - others.amax(1)
    return Verdicts(margin, torch.where(margin <= 0, others.argmax(1), own))


class Queries(NamedTuple):
    """Images under attack: (n, 3, S, S), their own roles and those aimed at (n,), a seed each, and the clean verdicts.

    Example:
        >>> role = torch.zeros(1, dtype=torch.long)
        >>> Queries(torch.zeros(1, 3, 4, 4), role, role + 2, [0], Verdicts(torch.ones(1), role)).target
        tensor([2])
    """

    images: Tensor
    own: Tensor
    target: Tensor
    seeds: Sequence[int]
    clean: Verdicts


class Found(NamedTuple):
    """What became of queries, what the attack took, and for one of several stages which of them fooled each, or None.

    Example:
        >>> Found(Verdicts(torch.ones(1), torch.zeros(1)), [], violation=0.0).stages is None
        True
    """

    verdicts: Verdicts
    attacks: Sequence[AttackResult]
    violation: float
    stages: Sequence[str | None] | None = None


Step = Callable[[Tensor, Tensor], tuple[Tensor, Verdicts]]
"""Points (n, 3, S, S) and the numbers (n,) of their queries -> losses (n,), which are raised, and verdicts."""


class Screen(Protocol):
    """What puts images into roles."""

    def decide(self, images: Tensor, own: Tensor) -> Verdicts:
        """Decide on images (n, 3, S, S), without a graph, in chunks."""


class Worst:
    """The worst for the defence of all verdicts on queries: the role aimed at before any other wrong one.

    Example:
        >>> role = torch.zeros(1, dtype=torch.long)
        >>> queries = Queries(torch.zeros(1, 3, 4, 4), role, role + 2, [0], Verdicts(torch.ones(1), role))
        >>> worst = Worst(queries, queries.clean)
        >>> for landed in (1, 2, 1):
        ...     worst.see(torch.tensor([0]), Verdicts(torch.tensor([-0.5]), role + landed))
        >>> worst.verdicts.landed
        tensor([2])
    """

    def __init__(self, queries: Queries, first: Verdicts) -> None:
        """Begin with one verdict on each."""
        self._queries = queries
        self.verdicts = Verdicts(first.margin.clone(), first.landed.clone())

    def see(self, rows: Tensor, seen: Verdicts) -> None:
        """Take in verdicts on some of them; a margin that is NaN tells nothing."""
        margin, landed = self.verdicts
        worse = self._rank(rows, seen.landed) > self._rank(rows, landed[rows])
        landed[rows] = torch.where(worse, seen.landed, landed[rows])
        margin[rows] = torch.fmin(margin[rows], seen.margin)

    def _rank(self, rows: Tensor, landed: Tensor) -> Tensor:
        aimed = landed == self._queries.target[rows]
        return (landed != self._queries.own[rows]).long() + aimed.long()


def first_fooled(own: Tensor, stages: Mapping[str, Verdicts]) -> list[str | None]:
    """Name the first stage after which a query has lost its own role, None where it has kept it throughout.

    Example:
        >>> lost, kept = (Verdicts(torch.zeros(1), torch.tensor([role])) for role in (2, 0))
        >>> first_fooled(torch.tensor([0]), {"clean": kept, "grey-box": lost, "adaptive": lost})
        ['grey-box']
    """
    found: list[str | None] = [None] * len(own)
    for name, seen in stages.items():
        for row, lost in enumerate((seen.landed != own).tolist()):
            found[row] = found[row] or (name if lost else None)
    return found


def blind(
    loss: Callable[[Tensor, Tensor], Tensor],
    screen: Screen,
    queries: Queries,
    ball: LpBall,
    steps: int,
    chunk_size: int | None,
) -> Found:
    """Raise a loss to the end with APGD, and judge the points of the highest loss."""
    found = apgd(loss, queries.images, ball, steps, seeds=queries.seeds, chunk_size=chunk_size)
    seen = screen.decide(found.images, queries.own)
    return Found(seen, [found], ball.violation(found.images, queries.images))


def visiting(step: Step, first: Verdicts, queries: Queries, ball: LpBall, steps: int, chunk_size: int | None) -> Found:
    """Raise a loss with APGD, and judge every point; queries that have the role aimed at in `first` are left alone."""
    worst = Worst(queries, first)
    left = (first.landed != queries.target).nonzero()[:, 0]

    def loss(points: Tensor, alive: Tensor) -> LossAndSuccess:
        rows = left[alive]
        value, seen = step(points, rows)
        worst.see(rows, seen)
        return LossAndSuccess(value, seen.landed == queries.target[rows])

    centre, seeds = queries.images[left], [queries.seeds[row] for row in left.tolist()]
    found = apgd(loss, centre, ball, steps, seeds=seeds, chunk_size=chunk_size)
    # A NaN at the last point of a query is told of: it has hidden what the attack would have found.
    with torch.no_grad():
        last = [step(*part)[1].margin for part in _parts(found.images, left, chunk_size)]
    broken = left[torch.cat([*last, queries.images.new_empty(0)]).isnan()]
    worst.verdicts.margin[broken] = torch.nan
    return Found(worst.verdicts, [found], ball.violation(found.images, centre))


def _parts(images: Tensor, rows: Tensor, chunk_size: int | None) -> list[tuple[Tensor, Tensor]]:
    if not len(images):
        return []
    size = chunk_size or len(images)
    return list(zip(images.split(size), rows.split(size), strict=True))


@dataclass(frozen=True)
class PoolFilter:
    """A filter by examples: an image has the role of its nearest neighbour in a pool (k = 1).

    A metric without embeddings compares an image with the whole pool, so many pairs per pass; the gradient is that of
    the nearest examples alone, which is the same.

    Attributes:
        metric: compares.
        pool: what it keeps of the examples of each role, (K, ...), by the role's place in `ROLES`.
        targets: what it keeps of an attacker's images of each role that is aimed at.
        chunk_size: images, or pairs, per pass.
        half: the metric in bfloat16, for the blind attack's own passes.
    """

    metric: Metric
    pool: Mapping[int, Tensor]
    targets: Mapping[int, Tensor]
    chunk_size: int | None = None
    half: Metric | None = None

    def decide(self, images: Tensor, own: Tensor) -> Verdicts:
        """Decide, without a graph, in chunks."""
        with torch.no_grad():
            parts = [
                verdicts(self.highest(self.seen(part)), rows) for part, rows in _parts(images, own, self.chunk_size)
            ]
        return Verdicts(*map(torch.cat, zip(*parts, strict=True)))

    def seen(self, images: Tensor) -> Tensor:
        """Embed images once for all comparisons, where there are embeddings."""
        return self.metric.embed(images) if embeds(self.metric) else images  # type: ignore[attr-defined]

    def highest(self, seen: Tensor) -> Tensor:
        """Find the similarity to the nearest example of each role: (n, roles), -inf where there is none."""
        missing = seen.new_full((len(seen),), -torch.inf)
        columns = [self._nearest(seen, self.pool[role]) if role in self.pool else missing for role in range(len(ROLES))]
        return torch.stack(columns, 1)

    def _nearest(self, seen: Tensor, kept: Tensor) -> Tensor:
        if embeds(self.metric):
            return (seen @ kept.T).amax(1)
        with torch.no_grad():
            pairs = max(1, (self.chunk_size or len(kept)) // len(seen))
            place = torch.cat([_compared(self.metric, seen, part) for part in kept.split(pairs)], 1).argmax(1)
        return self.metric.similarities(seen, kept[place][:, None])[:, 0]

    def towards(self, seen: Tensor, target: Tensor, metric: Metric | None = None) -> Tensor:
        """Average the similarities to an attacker's images, (n,): with embeddings, eq. 5 of the paper.

        The mean squared distance of unit vectors is 2 minus twice this. Without embeddings it is the same for
        whatever the metric calls similar.
        """
        found = seen.new_zeros(len(seen))
        for role, kept in self.targets.items():
            rows = (target == role).nonzero()[:, 0]
            if len(rows):
                found = found.index_put((rows,), _compared(metric or self.metric, seen[rows], kept).mean(1))
        return found

    def blindly(self, images: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of an attacker who does not know the pool: (n,)."""
        metric = self.half or self.metric
        seen = metric.embed(images) if embeds(metric) else images  # type: ignore[attr-defined]
        return self.towards(seen, target, metric)

    def adaptive(self, images: Tensor, own: Tensor, target: Tensor) -> tuple[Tensor, Verdicts]:
        """Subtract the highest similarity to the own role from that to the role aimed at: (n,), and the verdicts."""
        return self.raised(self.highest(self.seen(images)), own, target)

    def raised(self, scores: Tensor, own: Tensor, target: Tensor) -> tuple[Tensor, Verdicts]:
        """Do so from scores (n, roles)."""
        rise = scores.gather(1, target[:, None]) - scores.gather(1, own[:, None])
        return rise[:, 0], verdicts(scores.detach(), own)

    @property
    def attack_chunk(self) -> int | None:
        """Images per pass of an attack: without embeddings each is compared with all targets at once."""
        most = max((len(kept) for kept in self.targets.values()), default=1)
        return self.chunk_size if self.chunk_size is None or embeds(self.metric) else max(1, self.chunk_size // most)


def _compared(metric: Metric, seen: Tensor, kept: Tensor) -> Tensor:
    """Compare n images, or their embeddings, with K that are kept: (n, K)."""
    if embeds(metric):
        return seen @ kept.T
    return metric.similarities(seen, kept.expand(len(seen), *kept.shape))


@dataclass(frozen=True)
class DetectorScreen:
    """A detector alone: it knows safe and unsafe, and sees what the filter sees.

    Attributes:
        detector: scores images.
        targets: unit embeddings (K, D) of an attacker's images of each role, for a detector with `embed`.
        chunk_size: images per pass.
    """

    detector: Detector
    targets: Mapping[int, Tensor]
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Check the threshold."""
        if not 0 < self.detector.threshold < 1:
            raise ValueError(
                f"the threshold of {self.detector.name} is {self.detector.threshold}, expected a score between 0 and 1"
            )

    def score(self, images: Tensor) -> Tensor:
        """Compute how far the log-odds of "unsafe" are past the threshold, (n,): from 0 on an image is unsafe."""
        threshold = self.detector.threshold
        return self.detector.logits(images.to(self.detector.device)).to(images.device) - math.log(
            threshold / (1 - threshold)
        )

    def decide(self, images: Tensor, own: Tensor) -> Verdicts:
        """Decide, without a graph, in chunks."""
        with torch.no_grad():
            parts = [self.verdicts(self.score(part), rows) for part, rows in _parts(images, own, self.chunk_size)]
        return Verdicts(*map(torch.cat, zip(*parts, strict=True)))

    def verdicts(self, score: Tensor, own: Tensor) -> Verdicts:
        """Decide by scores (n,); with NaN an image has its own role."""
        landed = torch.where(score.isnan(), own, torch.where(score >= 0, UNSAFE, SAFE))
        return Verdicts(torch.where(own == UNSAFE, score, -score), landed)

    def white(self, images: Tensor, own: Tensor, target: Tensor) -> tuple[Tensor, Verdicts]:
        """Give the score, raised or lowered as is aimed at: (n,), and the verdicts."""
        score = self.score(images)
        return torch.where(target == UNSAFE, score, -score), self.verdicts(score.detach(), own)

    def blindly(self, images: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of an attacker who knows the encoder, and not the head: eq. 5, (n,)."""
        seen = embedded(self.detector, images)
        found = seen.new_zeros(len(seen))
        for role, kept in self.targets.items():
            rows = (target == role).nonzero()[:, 0]
            found = found.index_put((rows,), (seen[rows] @ kept.T).mean(1))
        return found


def embedded(detector: Detector, images: Tensor) -> Tensor:
    """Embed images with a detector's encoder: unit embeddings (n, D), on the images' device."""
    return normalize(detector.embed(images.to(detector.device))).to(images.device)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class EitherScreen:
    """A filter and a detector together: unsafe if either says so, else what the filter says.

    The margin is the larger one of both where an image is unsafe, and the smaller one where it is not: its sign tells
    right from wrong, its size is in the units of either.

    Attributes:
        filter: by examples.
        detector: alone.
    """

    filter: PoolFilter
    detector: DetectorScreen

    def decide(self, images: Tensor, own: Tensor) -> Verdicts:
        """Decide, without a graph, in chunks."""
        return self.combined(self.filter.decide(images, own), self.detector.decide(images, own), own)

    @staticmethod
    def combined(one: Verdicts, other: Verdicts, own: Tensor) -> Verdicts:
        """Combine the verdicts of filter and detector."""
        landed = torch.where(other.landed == UNSAFE, UNSAFE, one.landed)
        margins = torch.maximum(one.margin, other.margin), torch.minimum(one.margin, other.margin)
        return Verdicts(torch.where(own == UNSAFE, *margins), landed)

    def joint(self, queries: Queries, ball: LpBall, knows_pool: bool) -> Step:
        """Make the loss of one perturbation against both: the filter's plus the detector's.

        Each is divided by the dual norm of its own gradient at the clean image, so that the first step moves both
        alike. The detector's counts up to `BEYOND` past its threshold: what it misses by more is no use.
        """

        def parts(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Verdicts]:
            own, target = queries.own[rows], queries.target[rows]
            seen = self.filter.seen(points)
            rise, one = self.filter.raised(self.filter.highest(seen), own, target)
            first = rise if knows_pool else self.filter.towards(seen, target)
            second, other = self.detector.white(points, own, target)
            return first, second, self.combined(one, other, own)

        scales = self._scales(parts, queries, ball)

        def step(points: Tensor, rows: Tensor) -> tuple[Tensor, Verdicts]:
            first, second, found = parts(points, rows)
            return first / scales[0][rows] + second.clamp(max=BEYOND) / scales[1][rows], found

        return step

    def _scales(
        self, parts: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Verdicts]], queries: Queries, ball: LpBall
    ) -> tuple[Tensor, Tensor]:
        everyone = torch.arange(len(queries.images), device=queries.images.device)
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for images, rows in _parts(queries.images, everyone, self.filter.attack_chunk):
            with torch.enable_grad():
                variable = images.detach().requires_grad_(True)
                for number, loss in enumerate(parts(variable, rows)[:2]):
                    [gradient] = torch.autograd.grad(loss.sum(), variable, retain_graph=number == 0)
                    size = torch.linalg.vector_norm(gradient.flatten(1), _DUAL[ball.norm], dim=1)
                    found[number].append(torch.where(size.isfinite(), size, 0).clamp(min=_TINY))
        return torch.cat(found[0]), torch.cat(found[1])
