"""2AFC accuracy, clean and under attack on the reference image (paper, section IV; LipSim's setting)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from rclip_metric.images import Preprocessing, open_image, preprocess_pil
from rclip_metric.train.attacks.losses import two_afc_cross_entropy, two_afc_margin
from rclip_metric.train.data.triplets import TripletFiles
from rclip_metric.train.evaluation.blocks import run_blocks
from rclip_metric.train.evaluation.certified import Certificate, certify, radii
from rclip_metric.train.evaluation.collected import Block, Row, attack_cost, cost, empty_block, records_of, settings_of
from rclip_metric.train.evaluation.image_set import ImageSet
from rclip_metric.train.evaluation.kinds import with_kinds
from rclip_metric.train.evaluation.labels import PEOPLE
from rclip_metric.train.evaluation.robustness import (
    DEFAULTS,
    AttackSettings,
    Confirmed,
    Decided,
    RunSettings,
    attack_block,
)
from rclip_metric.train.metrics.base import Metric
from rclip_metric.train.runs.distributed import ALONE, Team
from rclip_metric.train.runs.precision import full_float32, resolved_precision

PROTOCOLS = ("majority", "soft")


@dataclass(frozen=True)
class TwoAfcData:
    """Triplets and the protocol that they are judged by.

    Attributes:
        name: its own, e.g. the folder's.
        split: what was read.
        triplets: in a fixed order.
        protocol: "majority" (right is what most people chose) or "soft" (the share of people that the metric agrees
            with; BAPPS as LPIPS and DreamSim report it). A soft tie counts one half.
        macro: average over splits rather than over triplets.
        attacked: keys of the triplets that are attacked; None for all.
        load: path -> (3, S, S); None for the metric's own `preprocess`.
        limit: how many were asked for, None for all.
        published: the published set that these data are (`published_as`), whose numbers may stand beside the results.
        attack_limit: how many were asked to be attacked, None for as many as the set's protocol has.
        judges: who said which option is right, in words.
    """

    name: str
    split: str | None
    triplets: Sequence[TripletFiles]
    protocol: str = "majority"
    macro: bool = False
    attacked: frozenset[str] | None = None
    load: Callable[[Path], Tensor] | None = None
    limit: int | None = None
    published: str | None = None
    attack_limit: int | None = None
    judges: str = PEOPLE

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {self.protocol!r}")
        if not self.triplets:
            raise ValueError(f"there is no triplet of {self.name} to evaluate")

    def settings(self) -> dict[str, Any]:
        """What the outcomes depend on, JSON: the names and labels of all triplets go in as a digest."""
        rows = "\n".join(f"{t.key} {t.share} {self.is_attacked(t)}" for t in self.triplets)
        digest = hashlib.sha256(rows.encode()).hexdigest()[:16]
        found = {"name": self.name, "split": self.split, "protocol": self.protocol, "triplets": digest}
        return found | self._asked() | ({"published": self.published} if self.published else {})

    def describe(self) -> dict[str, Any]:
        """For the record: JSON; the digest is of ids and labels."""
        images = {path for triplet in self.triplets for path in files_of(triplet)}
        about = {"name": self.name, "split": self.split, "protocol": self.protocol, "images": len(images)}
        return {**about, **self._asked(), "digest": digest_of(self.triplets), "published": self.published}

    def is_attacked(self, triplet: TripletFiles) -> bool:
        """Whether attacks are run on a triplet, if the metric is right about it."""
        return self.attacked is None or triplet.key in self.attacked

    def _asked(self) -> dict[str, Any]:
        """What tells the results of a part under attack from those of all, in their names as well."""
        return {} if self.attack_limit is None else {"attacked": self.attack_limit}


def at_equal_steps(triplets: Sequence[TripletFiles], count: int) -> list[TripletFiles]:
    """``count`` triplets at equal steps through a set, from its first on: picked by nobody."""
    count = min(count, len(triplets))
    return [triplets[index * len(triplets) // count] for index in range(count)]


def first_of_each_split(triplets: Iterable[TripletFiles], count: int) -> list[TripletFiles]:
    """The first ``count`` triplets of every split, in order: the paper attacks 1,000 of each split of BAPPS."""
    taken: dict[str, int] = {}
    kept = []
    for triplet in triplets:
        taken[triplet.split] = taken.get(triplet.split, 0) + 1
        if taken[triplet.split] <= count:
            kept.append(triplet)
    return kept


def digest_of(triplets: Iterable[TripletFiles]) -> str:
    """A short digest of ids and labels, in any order: which triplets these are, wherever their images lie."""
    return hashlib.sha256("\n".join(sorted(f"{t.key} {t.share}" for t in triplets)).encode()).hexdigest()[:16]


def files_of(triplet: TripletFiles) -> tuple[Path, Path, Path]:
    """Reference, left and right."""
    return triplet.reference, triplet.left, triplet.right


def loader_at(size: int) -> Callable[[Path], Tensor]:
    """Reads images squashed to a size of their own, whatever the metric's: LPIPS judges BAPPS at 64 pixels."""
    return lambda path: preprocess_pil(open_image(path), Preprocessing("squash", size, size), "squash")


def decision(label: Tensor, loss: str = "ce") -> Callable[[Tensor, Tensor], Decided]:
    """The rule of 2AFC for labels (N,) in {0, 1}: right is chosen only if its similarity is strictly greater."""

    def decide(similarities: Tensor, indices: Tensor) -> Decided:
        wanted = label[indices]
        margin = two_afc_margin(similarities, wanted)
        raised = two_afc_cross_entropy(similarities, wanted) if loss == "ce" else -margin
        chosen = (similarities[:, 1] > similarities[:, 0]).long()
        return Decided(raised, margin, chosen != wanted)

    return decide


def evaluate_two_afc(
    metric: Metric,
    data: TwoAfcData,
    attacks: Sequence[AttackSettings | Certificate] = (),
    run: RunSettings = DEFAULTS,
    *,
    source: Metric | None = None,
    journal: Path | None = None,
    team: Team = ALONE,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Clean accuracy, and accuracy under each attack; all of them share the images, the clean pass and the options.

    "Robust" is right on the clean image and at every point that the attack visited.

    Args:
        metric: judged, and attacked.
        data: the triplets.
        attacks: none for the clean accuracy alone; a `Certificate` among them asks for certified accuracy.
        run: seed, sizes and precision.
        source: the metric that transferred attacks are made on.
        journal: folder of the journal, see `run_blocks`.
        team: torchrun's processes.
        quiet: no progress bar.

    Returns:
        One record per attack, or one of the clean accuracy alone (`report.record`), the same in every process.

    Raises:
        ValueError: if no triplet can be read.
    """
    device = metric.device
    precision = resolved_precision(run.precision, device)
    half = metric.in_bfloat16() if precision == "bfloat16" and attacks else None
    blocks = [data.triplets[i : i + run.batch_size] for i in range(0, len(data.triplets), run.batch_size)]
    shown = ([path for triplet in block for path in files_of(triplet)] for block in blocks)
    images = ImageSet(shown, data.load or metric.preprocess, device, run)

    def evaluate(block: Sequence[TripletFiles]) -> Block:
        with full_float32():
            return _evaluate_block(metric, block, data, attacks, run, images, half, source)

    results = run_blocks(
        blocks,
        evaluate,
        settings=settings_of("2afc", metric, data.settings(), attacks, run, source),
        journal=journal,
        team=team,
        describe=f"{data.name} {metric.name}",
        sizes=[len(block) for block in blocks],
        quiet=quiet,
    )
    human = None
    if data.protocol == "soft":
        read = {row["key"] for result in results for row in result["rows"]}
        human = _human([triplet for triplet in data.triplets if triplet.key in read], data.macro)
    records = records_of(
        results,
        task="2afc",
        metric=metric,
        data=data.describe(),
        attacks=attacks,
        run=run,
        source=source,
        team=team,
        limit=data.limit,
        macro=data.macro,
        human=human,
        images_of={triplet.key: files_of(triplet) for triplet in data.triplets}.__getitem__,
    )
    return with_kinds(records, {triplet.key: triplet.kind for triplet in data.triplets})


def _evaluate_block(
    metric: Metric,
    block: Sequence[TripletFiles],
    data: TwoAfcData,
    attacks: Sequence[AttackSettings | Certificate],
    run: RunSettings,
    images: ImageSet,
    half: Metric | None,
    source: Metric | None,
) -> Block:
    """The rows of one block: clean, then every attack on those that are right."""
    begun, passes = time.perf_counter(), images.passes
    broken = images.broken(metric, {triplet.key: files_of(triplet) for triplet in block})
    unreadable, triplets = list(broken.values()), [triplet for triplet in block if triplet.key not in broken]
    if not triplets:
        return empty_block(unreadable, len(attacks))
    label = torch.tensor([triplet.label for triplet in triplets], device=metric.device)
    options = [(triplet.left, triplet.right) for triplet in triplets]
    similarities = images.similarities(metric, [triplet.reference for triplet in triplets], options)  # (n, 2)
    clean = decision(label)(similarities, torch.arange(len(label), device=metric.device))
    tie = similarities[:, 0] == similarities[:, 1]
    costs = [cost(time.perf_counter() - begun, images.passes - passes)]

    rows: list[Row] = []
    for i, triplet in enumerate(triplets):
        score, tied = _score(triplet, bool(clean.wrong[i]), bool(tie[i]), data.protocol), bool(tie[i])
        margin = clean.margin[i].item()
        rows.append(Row(key=triplet.key, split=triplet.split, clean=score, tie=tied, margin=margin, attacks=[]))
    chosen = [data.is_attacked(triplet) for triplet in triplets]
    right = [i for i in range(len(rows)) if attacks and chosen[i] and not bool(clean.wrong[i])]
    reference, kept = images.pixels([triplets[i].reference for i in right]), [options[i] for i in right]
    fixed = images.kept(metric, kept)
    radius, spent = torch.zeros(0), 0.0
    if any(isinstance(attack, Certificate) for attack in attacks):  # once for all balls
        begun = time.perf_counter()
        radius = radii(metric, reference, fixed, run.chunk_size)
        spent = time.perf_counter() - begun
    for attack in attacks:
        passes = images.passes
        if isinstance(attack, Certificate):
            confirmed = certify(reference, radius, attack, spent)
        else:
            confirmed = attack_block(
                metric, reference, lambda judging: fixed if judging is metric else images.kept(judging, kept),
                decision(label[right], attack.loss), attack, run, [triplets[i].key for i in right],
                half=half, source=source,
            )  # fmt: skip
        _add_attack(rows, triplets, chosen, right, confirmed, data.protocol)
        costs.append(attack_cost(confirmed, images.passes - passes))
    return {"rows": rows, "unreadable": unreadable, "costs": costs}


def _add_attack(
    rows: Sequence[Row],
    triplets: Sequence[TripletFiles],
    chosen: Sequence[bool],
    right: Sequence[int],
    confirmed: Confirmed,
    protocol: str,
) -> None:
    """Append (robust score, margin) to every row: unchanged where the clean decision was wrong already."""
    after = dict(zip(right, zip(confirmed.fooled.tolist(), confirmed.margin.tolist(), strict=True), strict=True))
    for i, row in enumerate(rows):
        if not chosen[i]:
            row["attacks"].append((None, None))
        elif i not in after:
            row["attacks"].append((row["clean"], row["margin"]))
        else:
            fooled, margin = after[i]
            score = _score(triplets[i], True, False, protocol) if fooled else row["clean"]
            row["attacks"].append((score, margin))


def _score(triplet: TripletFiles, wrong: bool, tie: bool, protocol: str) -> float:
    """Majority: 1 or 0. Soft: the share of people who chose what the metric chose, one half for a tie."""
    if protocol == "majority":
        return float(not wrong)
    majority = max(triplet.share, 1 - triplet.share)
    return 0.5 if tie else 1 - majority if wrong else majority


def _human(triplets: Sequence[TripletFiles], macro: bool) -> dict[str, Any] | None:
    """The score of one more person, p^2 + (1 - p)^2 (LPIPS), and the highest any metric can reach, max(p, 1 - p)."""
    parts: dict[str, list[float]] = {}
    for triplet in triplets:
        parts.setdefault(triplet.split if macro else "", []).append(triplet.share)
    if not parts:
        return None
    person = fmean(fmean(p * p + (1 - p) ** 2 for p in shares) for shares in parts.values())
    best = fmean(fmean(max(p, 1 - p) for p in shares) for shares in parts.values())
    return {"accuracy": round(100 * person, 4), "ceiling": round(100 * best, 4)}
