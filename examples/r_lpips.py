"""LPIPS's heads, tuned plainly and adversarially on the same random trunk: what is left of each under attack.

    python examples/r_lpips.py --work /tmp/r-lpips
    python examples/r_lpips.py --work /tmp/r-lpips --trunks --out results/r_lpips.json

Everything is made here: scenes in BAPPS' format (training and validation triplets of other scenes), and a seeded random
AlexNet, as torchvision's is not part of this package. So the figures say what this way of training does, and are no
figures of LPIPS or R-LPIPS. Settings are theirs but for those in `SMALLER`, which fit an hour's worth of BAPPS into
minutes of one core.

Three metrics: the heads as they are drawn, after plain tuning, and after adversarial tuning; with --trunks also the two
tunings of heads and trunk. Each is judged on all validation triplets by the majority of people, and attacked on the
first of each split, by APGD on the reference. An attacked triplet is right if it is right without an attack and at
every point that the attack visits; the same triplets without an attack stand beside.

Beside that, attacks as one may train against them are compared on the plain heads and their ranking network: what is
left of the agreement with people, and the loss, on some training triplets. "as published" is what R-LPIPS's code does:
corners of the ball, and a new ranking network for every step.

Found (results/r_lpips.json; 36 triplets under attack, so that the intervals of all three overlap): drawn, plain and
adversarial heads are right on 93.3, 92.9 and 92.9 % of the triplets, on 69, 67 and 81 % of the attacked ones at l_inf
1/255, and on 8, 8 and 19 % at 4/255, the radius of the training. The loss under attack does not leave ln 2: heads alone
do not make a random trunk robust. The seconds are those of a machine on which others computed as well.

What was made stays in the folder --work, and is not made again.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.train.attacks import LpBall
from rclip_metric.train.data.scenes import write_bapps
from rclip_metric.train.data.triplets import read_bapps_training
from rclip_metric.train.evaluation import AttackSettings, RunSettings, evaluate
from rclip_metric.train.evaluation.results.outcome import unpack
from rclip_metric.train.evaluation.tasks import TwoAfcData, bapps_data
from rclip_metric.train.evaluation.tasks.two_afc import loader_at
from rclip_metric.train.finetuning.lpips import LpipsConfig, RankingNetwork, ranking_loss, tune_lpips
from rclip_metric.train.finetuning.lpips.step import attacked_references, draw_heads
from rclip_metric.train.metrics import load_metric
from rclip_metric.train.metrics.lpips import Lpips, random_trunk
from rclip_metric.train.metrics.weight_files import METRIC_FILE, Converted, write_stored
from rclip_metric.train.runs.checkpoint import latest_state
from rclip_metric.train.runs.files import write_json
from rclip_metric.train.runs.machine import device_record, versions
from rclip_metric.train.runs.seeds import mixed_seed

SCENES: dict[str, Any] = {"seed": 0, "per_split": 40, "training": 160}
SMALLER: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 16, "epochs": 4, "decay_epochs": 0}
ATTACK: dict[str, Any] = {"adversarial": True, "eps": 4 / 255, "attack_steps": 5, "step_size": 1 / 255}
RADII, STEPS, ATTACKED = (1 / 255, 4 / 255), 20, 6
COMPARED = 20  # every so many of the training triplets


def settings(tuned: str, **more: Any) -> LpipsConfig:
    """The recipe of a metric: "plain" or "adversarial"."""
    return LpipsConfig(random_trunk=True, **SMALLER, **(ATTACK if tuned == "adversarial" else {}), **more)


def write_drawn(out: Path, config: LpipsConfig) -> None:
    """Write the metric that a tuning begins with."""
    network = Lpips(config.trunk)
    tensors = random_trunk(network, config.trunk_seed) | draw_heads(network, mixed_seed(config.seed, 0))
    about = {"name": "drawn", "image_size": config.image_size}
    stored = {"net": config.trunk, "version": "0.1", "trained": about}
    write_stored("r-lpips", Converted(tensors, stored, files=[]), out / METRIC_FILE)


def compared(place: Path, config: LpipsConfig, folder: Path) -> dict[str, Any]:
    """Loss and agreement in percent under each of some attacks of `ATTACK`'s radius and steps."""
    state = latest_state(place)
    assert state is not None
    rank = RankingNetwork(config.hidden)
    trained = {name.replace("/", "."): tensor for name, tensor in state.parts["model"].items()}
    rank.load_state_dict({name[5:]: tensor for name, tensor in trained.items() if name.startswith("rank.")})
    network = load_metric(str(place)).network  # type: ignore[attr-defined]
    files, load = read_bapps_training(folder)[::COMPARED], loader_at(config.image_size, "bilinear")
    paths = [(file.reference, file.left, file.right) for file in files]
    triplets = torch.stack([torch.stack([load(path) for path in three]) for three in paths])
    share = torch.tensor([file.share for file in files])
    robust = dataclasses.replace(config, **ATTACK)
    ball = robust.ball
    assert ball is not None

    def found(reference: Tensor) -> dict[str, float]:
        with torch.no_grad():
            e, left, right = (network(images) for images in (reference, triplets[:, 1], triplets[:, 2]))
            d0, d1 = ((e - other).square().sum(1) for other in (left, right))
            loss = ranking_loss(rank, d0, d1, share).mean().item()
        agreement = torch.where(d1 < d0, share, 1 - share).mean().item()
        return {"loss": round(loss, 3), "agreement": round(100 * agreement, 1)}

    ways = {"quarters of the radius": robust, "corners": dataclasses.replace(robust, step_size=1.0)}
    ways["apgd"] = dataclasses.replace(robust, attack="apgd", step_size=0.0)
    results: dict[str, Any] = {"triplets": len(files), "steps": robust.attack_steps, "none": found(triplets[:, 0])}
    for name, way in ways.items():
        results[name] = found(attacked_references(network, rank, triplets, share, ball, way))
    results["as published"] = []
    for seed in range(4):
        points = triplets[:, 0]
        for step in range(robust.attack_steps):
            fresh = RankingNetwork(config.hidden, mixed_seed(seed, step))
            once = dataclasses.replace(robust, step_size=1.0, attack_steps=1)
            # One step to a corner of the ball around the reference, from where the last one ended.
            there = torch.cat([points[:, None], triplets[:, 1:]], 1)
            wide = attacked_references(network, fresh, there, share, LpBall("linf", 1.0), once)
            points = ball.project(wide, triplets[:, 0])
        results["as published"].append({"seed": seed, **found(points)})
    return results


def judged(place: Path, data: TwoAfcData) -> dict[str, Any]:
    """Accuracies of a metric in percent, with 95 % intervals: of all triplets, and of those that are attacked."""
    kept = place / "judged.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    begun = time.perf_counter()
    attacks = [AttackSettings(LpBall("linf", eps), steps=STEPS) for eps in RADII]
    records = evaluate(load_metric(str(place)), data, attacks, RunSettings(batch_size=32), quiet=True)
    found = {"clean": records[0]["clean"], "attacked": {}}
    for attack, record in zip(attacks, records, strict=True):
        chosen = [outcome.clean for outcome in unpack(record) if outcome.robust is not None]
        found["attacked, without an attack"] = 100 * sum(chosen) / len(chosen)
        found["attacked"][str(attack.ball)] = record["robust"]
    found["seconds"] = round(time.perf_counter() - begun, 1)
    write_json(kept, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the scenes and the metrics")
    parser.add_argument("--trunks", action="store_true", help="also tune the trunks")
    parser.add_argument("--out", type=Path, help="where the figures go, JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    write_bapps(options.work / "bapps", **SCENES)
    data = bapps_data(options.work / "bapps", attacked=ATTACKED)
    runs: dict[str, LpipsConfig] = {name: settings(name) for name in ("plain", "adversarial")}
    if options.trunks:
        runs |= {f"{name}, with the trunk": settings(name, train_trunk=True) for name in ("plain", "adversarial")}
    write_drawn(options.work / "drawn", settings("plain"))
    metrics: dict[str, Any] = {"drawn": judged(options.work / "drawn", data)}
    print("drawn", json.dumps(metrics["drawn"]))
    comparison: dict[str, Any] = {}
    for name, config in runs.items():
        out = options.work / name.replace(", ", "-").replace(" ", "-")
        tune_lpips(options.work / "bapps", out, config, name=name)
        run = json.loads((out / "run.json").read_text())
        about = {key: run["run"][key] for key in ("trained_parameters", "images_through_the_trunk")}
        epochs = [{key: epoch[key] for key in ("loss", "agreement")} for epoch in run["epochs"]]
        training = {
            "trunk": run["trunk"],
            "recipe": dataclasses.asdict(config),
            **about,
            "epochs": epochs,
            "seconds": run["seconds"],
        }
        metrics[name] = {"training": training, **judged(out, data)}
        if name == "plain":
            comparison = compared(out, config, options.work / "bapps")
            print(json.dumps(comparison))
        print(name, json.dumps({key: metrics[name][key] for key in metrics[name] if key != "training"}))
    record = {
        "scenes": SCENES,
        "attack": {"attack": "apgd", "steps": STEPS, "norm": "linf", "eps": RADII, "triplets per split": ATTACKED},
        "machine": {**device_record(torch.device("cpu")), "threads": torch.get_num_threads()},
        "versions": versions(),
        "attacks in training": comparison,
        "metrics": metrics,
    }
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
