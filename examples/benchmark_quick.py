"""In a minute: is anything slower than it was? Ratios of processor time, each beside what people would do without us.

    OMP_WAIT_POLICY=PASSIVE python examples/benchmark_quick.py
    OMP_WAIT_POLICY=PASSIVE python examples/benchmark_quick.py --check results/benchmark_quick.json

Each case is a ratio within one run, how many times the processor time of ours the other takes. `--check` compares with
the ratios of the same kind of machine (AMX, AVX-512, AVX2, GPU, ...) in the file and ends with 1 if one has fallen by
more than a third; a kind of machine that the file does not know passes, and says so. `--out` adds this machine's
ratios to the file: of several runs, the lowest that each case had. All is computed in one thread, which other work on
the machine disturbs least. The long benchmarks, from which figures are quoted, are the other `benchmark_*.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import benchmark_attack
import benchmark_training
import numpy as np
import torch
from benchmark_lipsim import published
from PIL import Image

from rclip_metric import RobustPerceptualDistance
from rclip_metric.distance import normalize
from rclip_metric.retrieval import nearest
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.benchmark.turns import machine_record, take_turns
from rclip_metric.train.finetuning.adversarial import FinetuneConfig
from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture
from rclip_metric.train.metrics.lipsim.model import LipSim
from rclip_metric.train.metrics.lipsim.published import folded, random_tensors
from rclip_metric.train.runs.files import write_json

ALLOWED = 2 / 3  # of the ratio that is kept: less is a failure
SMALL = LipSimArchitecture(64, embedding=256)


class Case(NamedTuple):
    """Ours, and what it is compared with."""

    ours: Callable[[], object]
    other: Callable[[], object]


def startup() -> Case:
    """A whole command, and importing torch, which is the least it can take."""
    folder = Path(tempfile.mkdtemp(prefix="rclip-metric-quick-"))
    for seed, name in enumerate("ab"):
        noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
    command = [sys.executable, "-m", "rclip_metric", "score", "--model", "tiny", str(folder / "a.png")]
    score = [*command, str(folder / "b.png")]
    run = partial(subprocess.run, check=True, capture_output=True)
    return Case(partial(run, score), partial(run, [sys.executable, "-c", "import torch"]))


def scoring() -> Case:
    """Eight pairs, and the same images through the bare tower."""
    metric = RobustPerceptualDistance("tiny")
    x, y = torch.rand(2, 8, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def tower() -> None:
        for images in (x, y):
            metric.encoder(images)

    @torch.inference_mode()
    def pairs() -> None:
        metric(x, y)

    return Case(lambda: [pairs() for _ in range(20)], lambda: [tower() for _ in range(20)])


def loss_step() -> Case:
    """A step of a training loop, and as people write it: weights with gradients, the reference with a graph."""
    metric = RobustPerceptualDistance("r-lite-f")
    naive = copy.deepcopy(metric.encoder).requires_grad_(True)
    side = naive.preprocessing.crop
    x, y = torch.rand(2, 8, 3, side, side, generator=torch.Generator().manual_seed(0))

    def ours() -> None:
        variable = x.clone().requires_grad_()
        metric(variable, y).sum().backward()

    def theirs() -> None:
        variable = x.clone().requires_grad_()
        u, v = (normalize(naive(images)) for images in (variable, y))
        (1 - (u * v).sum(1)).sum().backward()
        naive.zero_grad()

    return Case(ours, theirs)


def attack() -> Case:
    """APGD on triplets, and LipSim's published loop."""
    metric = benchmark_attack.load_metric("tiny-clean", "cpu")
    triplets, ball = benchmark_attack.load_triplets(metric, 8), LpBall("linf", 4 / 255)
    return Case(
        partial(benchmark_attack.our_evaluation, metric, triplets, ball, 20, None),
        partial(benchmark_attack.lipsim_evaluation, benchmark_attack.plain(metric.metric.encoder), triplets, ball, 20),
    )


def finetuning() -> Case:
    """A step of FARE, and the published one."""
    config = FinetuneConfig(inner_steps=3, batch_size=8)
    base = benchmark_training.build("tiny-clean", "cpu")
    mine, theirs = copy.deepcopy(base), copy.deepcopy(base)
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = benchmark_training.our_step(mine, copy.deepcopy(base), benchmark_training.adamw(mine, config), config, "cpu")
    other = benchmark_training.PublishedStep(
        theirs, copy.deepcopy(base), benchmark_training.adamw(theirs, config), config
    )
    return Case(partial(ours, images, range(8), None, 1, measure=False), partial(other, images, range(8), 1))


def search() -> Case:
    """The ten nearest of 50,000 embeddings, and numpy."""
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(50_000, 256, generator=generator)).half()
    queries = normalize(torch.randn(32, 256, generator=generator))

    def by_numpy() -> np.ndarray[Any, Any]:
        scores = queries.numpy() @ embeddings.numpy().astype(np.float32).T
        best = np.argpartition(-scores, 10, axis=1)[:, :10]
        return np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1), axis=1)

    return Case(lambda: nearest(queries, embeddings, 10), by_numpy)


def lipsim() -> Case:
    """LipSim, its constraint folded in once, and in every pass as published."""
    state = random_tensors(SMALL)
    network = LipSim(SMALL, folded(SMALL, state))
    x = torch.rand(2, 3, SMALL.image_size, SMALL.image_size, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def ours() -> None:
        network(x)

    @torch.inference_mode()
    def theirs() -> None:
        published(state, SMALL, x)

    return Case(ours, theirs)


CASES: dict[str, tuple[Callable[[], Case], int]] = {  # and rounds
    "start-up, over import torch": (startup, 3),
    "eight pairs, over the bare tower": (scoring, 5),
    "loss step, over the naive one": (loss_step, 5),
    "APGD, over LipSim's loop": (attack, 1),
    "FARE step, over the published one": (finetuning, 3),
    "search, over numpy": (search, 5),
    "LipSim, over the published network": (lipsim, 5),
}


def main(argv: list[str] | None = None) -> int:
    """Measure, print, compare; 1 if a ratio has fallen by more than a third."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with the ratios that this file keeps")
    parser.add_argument("--out", type=Path, metavar="FILE", help="add this machine's ratios to a JSON file")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that are run
    machine = machine_record()
    kept = json.loads(options.check.read_text()).get(machine["kind"], {}).get("ratios", {}) if options.check else {}
    found, failed = {}, []
    for name in options.only:
        build, rounds = CASES[name]
        case = build()
        turns = take_turns({"ours": case.ours, "other": case.other}, rounds)
        ratio = turns.ratio("other", "ours")
        found[name] = {"ratio": round(ratio, 3), **turns.to_dict()}
        low = name in kept and ratio < ALLOWED * kept[name]["ratio"]
        failed += [name] * low
        known = f"kept {kept[name]['ratio']:.2f}" if name in kept else "nothing kept"
        print(f"{name:36} {ratio:6.2f} times  ({known}){'  TOO SLOW' if low else ''}", flush=True)
    if options.check and not kept:
        print(f"{options.check} has no ratios of this kind of machine ({machine['kind']}): nothing was compared")
    if options.out:
        file = json.loads(options.out.read_text()) if options.out.exists() else {}
        before = file.get(machine["kind"], {}).get("ratios", {})
        for name, one in found.items():
            found[name] = min((one, before.get(name, one)), key=lambda case: case["ratio"])
        write_json(options.out, file | {machine["kind"]: {"machine": machine, "ratios": before | found}})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
