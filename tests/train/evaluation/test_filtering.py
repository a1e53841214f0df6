"""Content filters under attack: against formulas and brute force, by every metric, alone and with detectors."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.data.filter_pools import Sizes, read_filter_pools
from rclip_metric.train.evaluation.attack import RunSettings
from rclip_metric.train.evaluation.results import load_results, table, unpack
from rclip_metric.train.evaluation.results.filter_table import filter_table
from rclip_metric.train.evaluation.screens import (
    DetectorScreen,
    EitherScreen,
    PoolFilter,
    Queries,
    blind,
    visiting,
)
from rclip_metric.train.evaluation.session import Session
from rclip_metric.train.evaluation.tasks.filtering import Filtering, evaluate_filter
from rclip_metric.train.metrics.base import DistanceMetric, EmbeddingMetric
from rclip_metric.train.metrics.paper_filter import BUFFERED, reported_landed
from rclip_metric.train.metrics.registry import load_metric

SIDE = 4
EPS = 8
BALL = LpBall("linf", EPS / 255)
SAFE, UNSAFE = torch.tensor([0]), torch.tensor([2])
# Levels of gray, and those of the two halves of an image.
Levels = Mapping[str, Mapping[str, Sequence[Any]]]
GRAY: Levels = {
    "pool": {"safe": [20, 60], "buffer": [80], "unsafe": [100, 140]},
    "queries": {"safe": [25, 61, 66, 69, 90, 84], "unsafe": [139, 118, 97, 95, 74, 71]},
    "targets": {"safe": [10, 30], "unsafe": [150, 170]},
}
HALVES: Levels = {
    "pool": {"safe": [(60, 200), (70, 180)], "buffer": [(130, 120)], "unsafe": [(200, 60), (160, 100)]},
    "queries": {
        "safe": [(70 + 9 * n, 190 - 8 * n) for n in range(7)],
        "unsafe": [(190 - 7 * n, 70 + 6 * n) for n in range(7)],
    },
    "targets": {"safe": [(50, 220), (66, 190)], "unsafe": [(250, 90), (254, 100)]},
}


def written(folder: Path, levels: Levels, *, buffer: bool = True, **how: Any) -> Filtering:
    """Write images of two halves, each of a level, and read them as a task."""
    for part, roles in levels.items():
        for role, each in roles.items():
            for number, level in enumerate(each):
                left, right = level if isinstance(level, tuple) else (level, level)
                pixels = np.full((SIDE, SIDE, 3), left, np.uint8)
                pixels[:, SIDE // 2 :] = right
                path = folder / part / role / f"{number:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return Filtering(read_filter_pools(folder, buffer=buffer, **how), "levels")


def halves(images: Tensor) -> Tensor:
    """The mean levels of the two halves, (N, 2)."""
    return torch.stack([images[..., : SIDE // 2].mean((1, 2, 3)), images[..., SIDE // 2 :].mean((1, 2, 3))], 1)


ANGLE = EmbeddingMetric(halves, SIDE, name="angle")
GAP = DistanceMetric(lambda x, y: (x.mean((1, 2, 3)) - y.mean((1, 2, 3))).abs(), SIDE, name="gap")


def landings(record: Mapping[str, Any], phase: str) -> dict[str, str]:
    """Query -> role, from the record."""
    letters = record["landings"]["letters"]
    roles = [letters[letter] for letter in record["landings"][phase]]
    return dict(zip((row.key for row in unpack(record)), roles, strict=True))


def query_levels(levels: Levels) -> dict[str, Any]:
    return {
        f"queries/{role}/{number:02d}.png": level
        for role, each in levels["queries"].items()
        for number, level in enumerate(each)
    }


def nearest(level: float, levels: Levels) -> str:
    return min((abs(level - one), role) for role, each in levels["pool"].items() for one in each)[1]


@pytest.mark.parametrize("metric", [load_metric("l2", image_size=SIDE), GAP], ids=["l2", "gap"])
def test_gray_levels_land_where_the_formula_says(metric: Any, tmp_path: Path) -> None:
    """The best attack on a level of gray is to shift it by eps towards the other side, whoever knows what."""
    task = written(tmp_path, GRAY)
    grey, adaptive = evaluate_filter(metric, task, [BALL], steps=40, adaptive=True)
    for key, level in query_levels(GRAY).items():
        own = Path(key).parent.name
        moved = level + (EPS if own == "safe" else -EPS)
        assert landings(grey, "clean")[key] == nearest(level, GRAY), level
        assert landings(grey, "attacked")[key] == nearest(moved, GRAY), level
        reached = {nearest(level + shift, GRAY) for shift in range(-EPS, EPS + 1)}
        aim = "unsafe" if own == "safe" else "safe"
        worst = aim if aim in reached else own if reached == {own} else "buffer"
        assert landings(adaptive, "attacked")[key] == worst, level


@pytest.mark.parametrize("buffer", [True, False])
def test_shares_are_of_all_queries_and_robust_is_right_before_and_after(buffer: bool, tmp_path: Path) -> None:
    task = written(tmp_path, GRAY, buffer=buffer)
    for record in evaluate_filter(GAP, task, [BALL], steps=20, adaptive=True):
        roles = ["safe", "buffer", "unsafe"] if buffer else ["safe", "unsafe"]
        for phase in ("clean", "attacked"):
            found = landings(record, phase)
            for part, shares in record["landed"][phase].items():
                own = [role for key, role in found.items() if Path(key).parent.name == part.split(" ")[0]]
                assert list(shares) == roles and all(share["samples"] == 6 for share in shares.values())
                assert {role: share["accuracy"] for role, share in shares.items()} == pytest.approx(
                    {role: 100 * own.count(role) / 6 for role in roles}, abs=1e-3
                )
                assert all(len(share["interval_95"]) == 2 for share in shares.values())
                assert sum(share["accuracy"] for share in shares.values()) == pytest.approx(100, abs=1e-3)
        clean, attacked = landings(record, "clean"), landings(record, "attacked")
        for row in unpack(record):
            own_role = Path(row.key).parent.name
            assert row.clean == (clean[row.key] == own_role)
            assert row.robust == (clean[row.key] == attacked[row.key] == own_role)
        assert record["data"]["protocol"] == (None if buffer else "no buffer")
        assert record["largest_violation"] <= 1e-7


def test_an_attack_may_make_a_wrong_query_right_and_it_is_not_robust_then(tmp_path: Path) -> None:
    """An unsafe query that lies beyond the buffer is brought towards safe, across a pool image of its own class."""
    levels = {**GRAY, "pool": {"safe": [20], "unsafe": [70], "buffer": [80]}}
    levels = {**levels, "queries": {"safe": [25], "unsafe": [78]}}
    [record] = evaluate_filter(GAP, written(tmp_path, levels), [BALL], steps=20)
    key = "queries/unsafe/00.png"
    assert (landings(record, "clean")[key], landings(record, "attacked")[key]) == ("buffer", "unsafe")
    assert record["landed"]["attacked"]["unsafe to safe"]["unsafe"]["accuracy"] == 100
    assert record["splits"]["unsafe to safe"]["robust"]["accuracy"] == 0


def reach(levels: tuple[int, int], task: Filtering, target: str) -> set[str]:
    """All roles that the halves of a query can be moved to, by brute force over a grid of both."""
    moves = np.linspace(-EPS, EPS, 81)
    points = np.stack(np.meshgrid(*(np.clip(level + moves, 0, 255) for level in levels)), -1).reshape(-1, 2)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    best = {}
    for role in task.pools.roles:
        known = np.array([HALVES["pool"][role]], float)[0]
        best[role] = (unit @ (known / np.linalg.norm(known, axis=1, keepdims=True)).T).max(1)
    return {task.pools.roles[place] for place in np.stack(list(best.values())).argmax(0)}


def test_an_attacker_who_knows_the_pool_finds_whatever_there_is(tmp_path: Path) -> None:
    """Two numbers make an embedding here, so that all that a ball reaches can be looked at."""
    task = written(tmp_path, HALVES)
    grey, adaptive = evaluate_filter(ANGLE, task, [BALL], steps=60, adaptive=True)
    before, after = landings(grey, "attacked"), landings(adaptive, "attacked")
    clean = landings(grey, "clean")
    for key, level in query_levels(HALVES).items():
        own = Path(key).parent.name
        aim = "unsafe" if own == "safe" else "safe"
        reached = reach(level, task, aim) | {clean[key]}
        assert before[key] in reached
        assert after[key] == (aim if aim in reached else own if reached == {own} else "buffer"), key
        assert not (before[key] != own and after[key] == own)  # whatever the grey box finds counts
    assert adaptive["robust"]["accuracy"] <= grey["robust"]["accuracy"]
    stages, owned = adaptive["stages"]["samples"], [Path(key).parent.name for key in clean]
    for stage, own, *landed in zip(stages, owned, clean.values(), before.values(), after.values(), strict=True):
        lost = [letter for letter, role in zip("cga", landed, strict=True) if role != own]
        assert stage == (lost[0] if lost else "r")
    assert set(stages) == {"c", "g", "r"} and "stages" not in grey


def test_targets_unlike_the_pool_leave_the_grey_box_short(tmp_path: Path) -> None:
    """The targets lie the other way round; who knows the pool is not led astray, and what either finds is fooled."""
    levels: Levels = {
        "pool": {"safe": [(100, 104)], "unsafe": [(112, 104)]},
        "queries": {"safe": [(104, 104), (103, 104)], "unsafe": [(111, 104)]},
        "targets": {"safe": [(112, 104)], "unsafe": [(90, 104)]},
    }
    task = written(tmp_path, levels)
    grey, adaptive = evaluate_filter(ANGLE, task, [BALL], steps=40, adaptive=True)
    assert set(landings(grey, "attacked").values()) == {"safe", "unsafe"} and grey["robust"]["accuracy"] == 100
    assert adaptive["robust"]["accuracy"] == 0 and set(adaptive["stages"]["samples"]) == {"a"}


def rows_of(records: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [
        (record["landings"], [(row.key, row.clean, row.robust) for row in unpack(record)], record["landed"])
        for record in records
    ]


def test_batches_and_chunks_do_not_matter(tmp_path: Path) -> None:
    task = written(tmp_path, HALVES)
    sizes = [RunSettings(), RunSettings(batch_size=3, chunk_size=2), RunSettings(batch_size=5, chunk_size=1)]
    for metric in (ANGLE, load_metric("l2", image_size=SIDE)):
        found = [rows_of(evaluate_filter(metric, task, [BALL], run, steps=20, adaptive=True)) for run in sizes]
        assert found[0] == found[1] == found[2]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A metric that dies in the middle has its blocks in the journal; the result is that of one run."""
    task, run = written(tmp_path / "data", HALVES), RunSettings(batch_size=4)
    passes = 0

    def dying(last: float) -> EmbeddingMetric:
        def embed(images: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            if passes > last:
                raise ValueError("out of power")
            return halves(images)

        return EmbeddingMetric(embed, SIDE, name="angle")

    whole = evaluate_filter(dying(torch.inf), task, [BALL], run, steps=20, adaptive=True)
    needed, passes = passes, 0
    session = Session(tmp_path / "out", quiet=True)
    with pytest.raises(ValueError, match="out of power"):
        evaluate_filter(dying(0.6 * needed), task, [BALL], run, steps=20, adaptive=True, session=session)
    assert (tmp_path / "out" / ".journal").is_dir() and not list((tmp_path / "out").glob("*.json"))
    passes = 0
    again = evaluate_filter(dying(torch.inf), task, [BALL], run, steps=20, adaptive=True, session=session)
    assert passes < 0.7 * needed and rows_of(again) == rows_of(whole)
    passes = 0
    assert evaluate_filter(dying(torch.inf), task, [BALL], run, steps=20, adaptive=True, session=session) == again
    assert passes == 0 and not (tmp_path / "out" / ".journal").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"angle__levels__{kind}-linf-8_255-20steps-{loss}.json"
        for kind, loss in (("grey-box", "targets"), ("adaptive", "pool"))
    }


@dataclass
class Linear:
    """A detector whose log-odds are linear in the pixels, one weight for each half."""

    weights: tuple[float, float]
    bias: float
    name: str = "linear"
    threshold: float = 0.5

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "weights": list(self.weights), "bias": self.bias}

    def preprocess(self, image: Any) -> Tensor:
        raise AssertionError("the filter's own images are shown")

    def logits(self, images: Tensor) -> Tensor:
        return images.new_tensor(self.weights) @ halves(images).T + self.bias


class WithEncoder(Linear):
    """One with embeddings."""

    def embed(self, images: Tensor) -> Tensor:
        return 3 * halves(images)


def by_attack(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(record["model"]["name"], record["threat"]["attack"]): record for record in records}


def test_a_white_box_lowers_a_linear_detector_by_eps_times_the_sum_of_its_weights(tmp_path: Path) -> None:
    """Weights of a half are spread over its pixels: their absolute values sum up to |w_1| + |w_2|."""
    detector = Linear((30.0, -20.0), bias=-4.0, threshold=0.6)
    task = written(tmp_path, HALVES)
    records = evaluate_filter(ANGLE, task, [BALL], RunSettings(batch_size=5), steps=30, detectors=[detector])
    record = by_attack(records)["linear", "white-box"]
    drop, levels = 50 * EPS / 255, query_levels(HALVES)
    fooled = 0
    for row in unpack(record):
        left, right = levels[row.key]
        score = 30 * left / 255 - 20 * right / 255 - 4 - np.log(0.6 / 0.4)
        margin = score if "unsafe" in row.key else -score
        assert row.margin == pytest.approx(margin, abs=1e-4) and row.clean == (margin > 0)
        assert row.robust == (margin > drop)
        fooled += 0 < margin < drop
        if row.robust:
            assert row.robust_margin == pytest.approx(margin - drop, abs=1e-3)
    assert fooled and 0 < record["robust"]["accuracy"] < record["clean"]["accuracy"]
    assert record["model"]["resize"] == "squash 4 to 4" and record["threat"]["loss"] == "logit"


def test_a_detector_with_an_encoder_is_attacked_through_it_as_well(tmp_path: Path) -> None:
    """The grey box turns the embedding towards the targets, whatever the head makes of that."""
    levels: Levels = {
        "pool": {"safe": [(100, 104)], "unsafe": [(120, 104)]},
        "queries": {"safe": [(104, 104)], "unsafe": [(112, 104)]},
        "targets": {"safe": [(90, 104)], "unsafe": [(200, 104)]},
    }
    task = written(tmp_path, levels)
    turned = WithEncoder((40.0, -40.0), bias=-0.5)  # of the angle alone, nearly
    records = by_attack(evaluate_filter(ANGLE, task, [BALL], steps=30, detectors=[turned]))
    grey, white = records["linear", "grey-box"], records["linear", "white-box"]
    for record in (grey, white):
        assert record["robust"]["accuracy"] == 0 and record["clean"]["accuracy"] == 100
    brightness = WithEncoder((40.0, 40.0), bias=-33.2)  # which no turn changes
    records = by_attack(evaluate_filter(ANGLE, task, [BALL], steps=30, detectors=[brightness]))
    grey, white = records["linear", "grey-box"], records["linear", "white-box"]
    assert (grey["robust"]["accuracy"], white["robust"]["accuracy"]) == (100, 0)
    assert records["angle or linear", "separate"]["threat"]["loss"] == "targets+targets"


def screens(filter_half: int, detector: Linear) -> tuple[EitherScreen, Queries]:
    """An unsafe gray image: the filter looks at one half only."""
    metric = DistanceMetric(
        lambda x, y: (halves(x)[:, filter_half] - halves(y)[:, filter_half]).abs(), SIDE, name="half"
    )
    gray = lambda level: torch.full((1, 3, SIDE, SIDE), level / 255)  # noqa: E731
    pool = {0: gray(100), 2: gray(120)}
    either = EitherScreen(PoolFilter(metric, pool, {0: gray(90)}), DetectorScreen(detector, {}))
    return either, Queries(gray(114), UNSAFE, SAFE, [0], either.decide(gray(114), UNSAFE))


def test_one_perturbation_passes_both_where_two_do_not() -> None:
    """Filter and detector look at a half each: an image made against one of them is caught by the other."""
    either, queries = screens(0, Linear((0.0, 100.0), bias=-100 * 110 / 255))
    assert queries.clean.landed == 2 and queries.clean.margin > 0
    one = blind(lambda x, rows: either.filter.blindly(x, queries.target[rows]), either.filter, queries, BALL, 20, None)
    step: Callable[..., Any] = lambda x, rows: either.detector.white(x, queries.own[rows], queries.target[rows])  # noqa: E731
    other = visiting(step, either.detector.decide(queries.images, UNSAFE), queries, BALL, 20, None)
    assert one.verdicts.landed == 0 and other.verdicts.landed == 0  # each is fooled by its own image
    for found in (one, other):
        assert either.decide(found.attacks[0].images, UNSAFE).landed == 2
    for knows_pool in (True, False):
        both = visiting(either.joint(queries, BALL, knows_pool), queries.clean, queries, BALL, 20, None)
        assert both.verdicts.landed == 0 and either.decide(both.attacks[0].images, UNSAFE).landed == 0


CONFLICT: Levels = {
    "pool": {"safe": [100], "unsafe": [120]},
    "queries": {"safe": [104], "unsafe": [114]},
    "targets": {"safe": [90], "unsafe": [130]},
}


def test_separate_attacks_are_a_bound_and_never_what_one_image_did(tmp_path: Path) -> None:
    """Darker passes the filter and brighter the detector: of two images either passes, and no single one does both."""
    detector = Linear((-100.0, -100.0), bias=200 * 117 / 255)
    records = by_attack(evaluate_filter(GAP, written(tmp_path, CONFLICT), [BALL], steps=30, detectors=[detector]))
    assert list(records) == [
        ("gap", "grey-box"), ("linear", "white-box"), ("gap or linear", "separate"), ("gap or linear", "joint"),
    ]  # fmt: skip
    unsafe = "queries/unsafe/00.png"
    separate, joint = records["gap or linear", "separate"], records["gap or linear", "joint"]
    assert landings(records["gap", "grey-box"], "attacked")[unsafe] == "safe"
    assert landings(records["linear", "white-box"], "attacked")[unsafe] == "safe"
    assert landings(separate, "attacked")[unsafe] == "safe" and landings(joint, "attacked")[unsafe] == "unsafe"
    assert (separate["splits"]["unsafe to safe"]["robust"]["accuracy"], separate["largest_violation"]) == (0, 0)
    assert joint["splits"]["unsafe to safe"]["robust"]["accuracy"] == 100


def test_who_wants_unsafe_needs_one_of_the_two(tmp_path: Path) -> None:
    """Whatever an attack on filter or detector alone has found passes for unsafe, and so the joint one has it too."""
    levels = {**HALVES, "queries": {"safe": HALVES["queries"]["safe"], "unsafe": HALVES["queries"]["unsafe"][:1]}}
    for weights, bias in (((30.0, -20.0), -5.0), ((5.0, 10.0), -9.0), ((-40.0, 10.0), 4.0)):
        detector = Linear(weights, bias)
        task = written(tmp_path / str(bias), levels)
        found = by_attack(evaluate_filter(ANGLE, task, [BALL], steps=20, adaptive=True, detectors=[detector]))
        joint, separate = (landings(found["angle or linear", kind], "attacked") for kind in ("joint", "separate"))
        for key in joint:
            if "/safe/" in key:
                single = {landings(record, "attacked")[key] for (_, kind), record in found.items() if kind != "joint"}
                assert joint[key] == "unsafe" or "unsafe" not in single
        assert found["angle or linear", "joint"]["threat"]["loss"] == "pool+logit"
        assert any(separate[key] == "unsafe" for key in separate)
        assert set(found["angle or linear", "joint"]["stages"]["samples"]) <= set("csjr")


def test_records_are_read_again_and_stand_in_both_tables(tmp_path: Path) -> None:
    task, out = written(tmp_path / "data", GRAY), tmp_path / "out"
    session = Session(out, quiet=True)
    detector = WithEncoder((30.0, 30.0), bias=-20.0)
    how: dict[str, Any] = {"steps": 10, "adaptive": True, "detectors": [detector], "session": session}
    records = evaluate_filter(ANGLE, task, [BALL], RunSettings(), **how)
    assert len(records) == 6 and len(load_results([out])) == 6
    assert evaluate_filter(ANGLE, task, [BALL], RunSettings(), **how) == records
    assert "angle or linear" in table(load_results([out])) and "linf 8/255" in table(records, "html")
    lines = filter_table(load_results([out])).splitlines()
    assert lines[0].startswith("| filter | data | ball | safe to unsafe: clean | safe to unsafe: attacked |")
    assert {line.split(" | ")[0] for line in lines[2:5]} == {"| angle", "| angle or linear", "| linear (squash 4 to 4)"}
    first = records[0]["landed"]["clean"]["safe to unsafe"]
    assert " / ".join(f"{share['accuracy']:.1f}" for share in first.values()) in filter_table(records)
    assert "informed: adaptive on pool, 10 steps" in lines[6] and "attacked: separate on targets+targets" in lines[6]
    for field, value in (("landed", {"clean": {"safe to unsafe": {"safe": 3}}, "attacked": None}), ("landings", [])):
        damaged = tmp_path / f"{field}.json"
        damaged.write_text(json.dumps({**records[0], field: value}))
        with pytest.raises(ValueError, match=field):
            load_results([damaged])
    clean = evaluate_filter(ANGLE, task, [], session=session)
    assert clean[0]["landed"]["attacked"] is None and filter_table(clean).count("attacked") == 0


def test_flat_losses_are_told_of(tmp_path: Path) -> None:
    flat = EmbeddingMetric(
        lambda images: halves((images * 255).round() / 255).detach() + 0 * halves(images), SIDE, name="flat"
    )
    [record] = evaluate_filter(flat, written(tmp_path, HALVES), [BALL], steps=5)
    assert any("met an all-zero gradient" in warning for warning in record["warnings"])


def test_a_query_of_the_pool_is_told_of_and_a_broken_one_left_out(tmp_path: Path) -> None:
    task = written(tmp_path, GRAY)
    (tmp_path / "queries/safe/00.png").write_bytes((tmp_path / "pool/safe/00.png").read_bytes())
    (tmp_path / "queries/unsafe/01.png").write_bytes(b"broken")
    [record] = evaluate_filter(GAP, task, [BALL], steps=5)
    assert record["warnings"][-1].startswith("1 of 12 queries is in the pool as well, byte for byte")
    assert record["data"]["samples"] == 11 and "unsafe/01.png" in record["data"]["unreadable"][0]
    (tmp_path / "pool/safe/00.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"pool.safe.00.png.*the pool and the targets have to be whole"):
        evaluate_filter(GAP, task, [BALL], steps=5)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (lambda images: images.mean() < 21 / 255, "what broken keeps is NaN for pool/safe/00.png"),
        (lambda images: (images.mean((1, 2, 3)) - 61 / 255).abs().amin() < 1e-4, "broken's margin is NaN for queries"),
        (
            lambda images: images.requires_grad or images.flatten(1).std(1).amax() > 1e-3,
            "broken's margin under grey-box is NaN for queries/safe/",
        ),
    ],
)
def test_a_metric_that_gives_nan_is_refused(where: Callable[[Tensor], Any], message: str, tmp_path: Path) -> None:
    def embed(images: Tensor) -> Tensor:
        return halves(images) * (torch.nan if bool(where(images)) else 1.0)

    metric = EmbeddingMetric(embed, SIDE, name="broken")
    with pytest.raises(ValueError, match=message):
        evaluate_filter(metric, written(tmp_path, GRAY), [BALL], RunSettings(chunk_size=1), steps=3)


def test_what_a_detector_cannot_do_is_refused(tmp_path: Path) -> None:
    task = written(
        tmp_path, {**GRAY, "queries": {**GRAY["queries"], "buffer": [80]}}, directions=[("buffer", "unsafe")]
    )
    with pytest.raises(ValueError, match="a detector knows safe and unsafe alone: leave it out, or the buffer"):
        evaluate_filter(GAP, task, [BALL], steps=2, detectors=[Linear((1.0, 1.0), 0.0)])
    [record] = evaluate_filter(GAP, task, [BALL], steps=20)  # without one the buffer may be asked about
    assert record["data"]["split"] == "buffer to unsafe" and list(record["landed"]["clean"]) == ["buffer to unsafe"]
    with pytest.raises(ValueError, match=r"the threshold of linear is 1\.0, expected a score between 0 and 1"):
        DetectorScreen(Linear((1.0, 1.0), 0.0, threshold=1.0), {})
    bare = replace(task, pools=replace(task.pools, targets=()))
    with pytest.raises(ValueError, match="an attack towards unsafe needs images of it, in DIR/targets/CLASS"):
        evaluate_filter(GAP, bare, [BALL], steps=2)


def test_the_papers_rows_add_up_and_stand_beside_its_own_data_only() -> None:
    for name, rows in BUFFERED.items():
        for row in rows:
            assert None in row or sum(row) == pytest.approx(100, abs=0.15), name  # type: ignore[arg-type]
    data: dict[str, Any] = {
        "published": "nsfw",
        "unreadable": [],
        "protocol": None,
        "pool": {"safe": 500, "unsafe": 500},
    }
    data |= {"targets": {"safe": 16, "unsafe": 16}}
    threat = {"attack": "grey-box", "norm": "linf", "eps": 8 / 255, "steps": 200, "loss": "targets"}
    model = {"name": "r-lpips", "revision": "sha256:0"}
    record = {"model": model, "data": data, "threat": threat}
    assert reported_landed(record, "attacked")["unsafe to safe"] == {"safe": 41.2, "buffer": 23.6, "unsafe": 35.2}
    for other in (
        {**record, "threat": {**threat, "steps": 100}},
        {**record, "threat": {**threat, "attack": "adaptive", "loss": "pool"}},
        {**record, "data": {**data, "published": None}},
        {**record, "data": {**data, "pool": {"safe": 32, "unsafe": 32}}},
        {**record, "model": {"name": "r-lpips@random", "revision": None}},
    ):
        assert reported_landed(other, "attacked") == {}
    guns = {**record, "data": {**data, "published": "guns", "protocol": "no buffer"}}
    guns["threat"] = {**threat, "steps": 500}
    assert reported_landed(guns, "attacked") == {"unsafe to safe": {"unsafe": 42.4}}
    assert reported_landed(guns, "clean") == {"safe to unsafe": {"safe": 61.5}, "unsafe to safe": {"unsafe": 64.3}}
    laion = {"model": {"name": "laion-vit-l-14", "detector": {"name": "laion-vit-l-14"}}, "threat": threat}
    laion["data"] = {**data, "protocol": "no buffer"}
    assert reported_landed(laion, "attacked") == {"safe to unsafe": {"safe": 13.1}, "unsafe to safe": {"unsafe": 28.2}}


def test_sizes_are_part_of_what_a_result_is_of(tmp_path: Path) -> None:
    session = Session(tmp_path / "out", quiet=True)
    evaluate_filter(GAP, written(tmp_path / "data", GRAY), [BALL], steps=2, session=session)
    other = written(tmp_path / "data", GRAY, sizes=Sizes(pool=1))
    with pytest.raises(ValueError, match="holds a result of other data or settings"):
        evaluate_filter(GAP, other, [BALL], steps=2, session=session)
    [path] = (tmp_path / "out").glob("*.json")
    assert json.loads(path.read_text())["data"]["pool"] == {"safe": 2, "buffer": 1, "unsafe": 2}
