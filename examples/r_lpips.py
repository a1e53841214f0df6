"""LPIPS's heads, tuned plainly and adversarially on the same random trunk: what is left of each under attack.

    python examples/r_lpips.py --work /tmp/r-lpips
    python examples/r_lpips.py --work /tmp/r-lpips --trunks --out results/r_lpips.json

Everything is made here: scenes in BAPPS' format (training and validation triplets of other scenes), and a seeded random
AlexNet, as torchvision's is not part of this package. So the figures say what this way of training does, and are no
figures of LPIPS or R-LPIPS. Settings are theirs but for those in `SMALLER`, which fit an hour's worth of BAPPS into
minutes of one core; the attack has shorter steps where it has fewer of them.

Three metrics: the heads as they are drawn, after plain tuning, and after adversarial tuning; with --trunks also the two
tunings of heads and trunk. Each is judged on all validation triplets by the majority of people, and attacked on the
first of each split, by APGD on the reference. An attacked triplet is right if it is right without an attack and at
every point that the attack visits; the same triplets without an attack stand beside.

What was made stays in the folder --work, and is not made again.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rclip_metric.train.attacks import LpBall
from rclip_metric.train.data.scenes import write_bapps
from rclip_metric.train.evaluation import AttackSettings, RunSettings, evaluate
from rclip_metric.train.evaluation.tasks import TwoAfcData, bapps_data
from rclip_metric.train.finetuning.lpips import LpipsConfig, tune_lpips
from rclip_metric.train.metrics import load_metric
from rclip_metric.train.runs.files import write_json
from rclip_metric.train.runs.machine import device_record, versions

SCENES = {"seed": 0, "per_split": 40, "training": 160}
SMALLER: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 16, "epochs": 4, "decay_epochs": 0}
ATTACK: dict[str, Any] = {"adversarial": True, "eps": 4 / 255, "attack_steps": 8, "step_size": 1 / 255}
RADII, STEPS, ATTACKED = (1 / 255, 4 / 255, 8 / 255), 20, 10


def settings(tuned: str, **more: Any) -> LpipsConfig:
    """The recipe of a metric: "plain" or "adversarial"."""
    return LpipsConfig(random_trunk=True, **SMALLER, **(ATTACK if tuned == "adversarial" else {}), **more)


def judged(place: Path, data: TwoAfcData) -> dict[str, Any]:
    """Accuracies of a metric in percent, with 95 % intervals: of all triplets, and of those that are attacked."""
    begun = time.perf_counter()
    attacks = [AttackSettings(LpBall("linf", eps), steps=STEPS) for eps in RADII]
    records = evaluate(load_metric(str(place)), data, attacks, RunSettings(batch_size=32), quiet=True)
    found: dict[str, Any] = {"clean": records[0]["clean"], "attacked": {}}
    for attack, record in zip(attacks, records, strict=True):
        columns = zip(record["samples"]["clean"], record["samples"]["robust"], strict=True)
        chosen = [clean for clean, robust in columns if robust is not None]
        found["attacked, without an attack"] = 100 * sum(chosen) / len(chosen)
        found["attacked"][str(attack.ball)] = record["robust"]
    return {**found, "seconds": round(time.perf_counter() - begun, 1)}


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
    metrics: dict[str, Any] = {}
    for name, config in runs.items():
        out = options.work / name.replace(", ", "-").replace(" ", "-")
        tune_lpips(options.work / "bapps", out, config, name=name)
        run = json.loads((out / "run.json").read_text())
        about = {key: run["run"][key] for key in ("trained_parameters", "images_through_the_trunk")}
        epochs = [{key: epoch[key] for key in ("loss", "agreement")} for epoch in run["epochs"]]
        training = {"recipe": asdict(config), **about, "epochs": epochs, "seconds": run["seconds"]}
        metrics[name] = {"training": training, **judged(out, data)}
        print(name, json.dumps({key: metrics[name][key] for key in metrics[name] if key != "training"}))
    record = {
        "scenes": SCENES,
        "attack": {"attack": "apgd", "steps": STEPS, "norm": "linf", "eps": RADII, "triplets per split": ATTACKED},
        "machine": {**device_record(torch.device("cpu")), "threads": torch.get_num_threads()},
        "versions": versions(),
        "metrics": metrics,
    }
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
