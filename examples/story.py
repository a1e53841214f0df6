"""From nothing to a robust metric on this machine: the paper's Table I in miniature, on procedural scenes.

    python examples/story.py            # hours on a small CPU; when stopped, the same command goes on
    python examples/story.py --quick    # all of it at toy size, below runs/story-quick, to see that it runs

A clean CLIP is trained on scenes, made robust without labels (FARE) and with them (TeCoA), each of the three is tuned
on NIGHTS-format triplets (MLP head, LoRA), and all nine are judged on held-out triplets, clean and under APGD. Every
stage is a command of `rclip-metric`, printed before it runs; one that has left its result is not run again.
"""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.cli.main import main as rclip_metric
from rclip_metric.files import written_whole
from rclip_metric.json_files import read_json
from rclip_metric.train.evaluation import load_results
from rclip_metric.train.evaluation.results.curves import COLOURS, DPI
from rclip_metric.train.runs.files import write_json, write_text
from rclip_metric.weights import file_digest, get_spec, model_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASES = {"clip": "Clean CLIP", "fare": "R-CLIP_F", "tecoa": "R-CLIP_T"}
TUNINGS = {"": "zero-shot", "-mlp": "+ MLP", "-lora": "+ LoRA"}
ENCODERS = [base + tuning for base in BASES for tuning in TUNINGS]
PUBLISHED = {"clip": "clip-convnext-b", "fare": "r-clip-f", "tecoa": "r-clip-t"}
COLUMNS = {"clean": "clean", "linf": "linf 4/255", "l2": "l2 0.857"}
PAPER_COLUMNS = {"clean": "clean", "linf": "linf 4/255", "l2": "l2 3"}
WEIGHTS = "weights.json"  # whose results the folder of results holds: sha256 of the weights, by encoder
# What --quick adds to the commands.
QUICK = {
    "scenes": "--images 48 --triplets 16,8,40 --pool 1 --queries 1",
    "clip": "--steps 10 --warmup-steps 1 --batch-size 16",
    "fare": "--steps 3 --warmup-steps 1 --batch-size 8 --inner-steps 2 --validation-images 4 --validation-triplets 4 "
    "--validation-attack-steps 2",
    "nights": "--epochs 1 --batch-size 8 --learning-rate 0.01",
}
QUICK["tecoa"] = QUICK["fare"]


@dataclass(frozen=True)
class Plan:
    """What to do and where.

    Attributes:
        out: folder of the runs.
        data: of the scenes.
        results: of what is measured.
        triplets: of the test split that are judged.
        steps: of APGD.
        quick: everything at toy size.
    """

    out: Path
    data: Path
    results: Path
    triplets: int
    steps: int
    quick: bool


@dataclass(frozen=True)
class Stage:
    """A command: a short name, its title, the words after `rclip-metric`, and the files that it leaves."""

    name: str
    title: str
    command: tuple[str, ...]
    files: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        return bool(self.files) and all(path.exists() for path in self.files)

    def __str__(self) -> str:
        return shlex.join(["rclip-metric", *self.command])


def trainings(plan: Plan) -> list[list[Stage]]:
    """All stages before the evaluation; those of one list do not need each other."""
    out, data = plan.out, plan.data
    held_out = f"--validation {data / 'classes'} --nights {data / 'nights'} --validate-every 400 --save-every 100"

    def stage(name: str, title: str, task: str, words: str, files: Sequence[Path]) -> Stage:
        quick = QUICK.get(task, "") if plan.quick else ""
        return Stage(name, title, ("train", task, *f"{words} {quick}".split()), tuple(files))

    def finished(name: str) -> list[Path]:
        return [out / name / "run.json", out / name / "model.safetensors"]

    pairs = 1 if plan.quick else 150
    scenes = [data / "scenes.json", data / "pairs" / "pairs.json"]
    clip = out / "clip"
    return [
        [stage("scenes", "scenes", "scenes", f"--out {data} --pairs {pairs}", scenes)],
        [stage("clip", "Clean CLIP", "clip", f"--scenes {data} --out {clip}", finished("clip"))],
        [stage("text", "its text tower", "text", f"{clip}", [clip / "text.safetensors"])],
        [
            stage("fare", "R-CLIP_F: FARE", "fare", f"--recipe tiny --base {clip} --images {data / 'images' / 'train'} "
                  f"--out {out / 'fare'} {held_out}", finished("fare")),
            stage("tecoa", "R-CLIP_T: TeCoA", "tecoa", f"--recipe tiny-tecoa --base {clip} --images {data / 'pairs'} "
                  f"--out {out / 'tecoa'} {held_out}", finished("tecoa")),
        ],
        [
            # DreamSim's learning rate, made for 16,000 triplets, does not move LoRA in the 240 steps that 945 give.
            stage(base + tuning, f"{title} {TUNINGS[tuning]}", "nights", f"--base {out / base} --head {tuning[1:]} "
                  f"--data {data / 'nights'} --out {out / (base + tuning)}"
                  + (" --learning-rate 0.01" if tuning == "-lora" else ""), finished(base + tuning))
            for base, title in BASES.items() for tuning in ("-mlp", "-lora")
        ],
    ]  # fmt: skip


def evaluation(plan: Plan, encoder: str) -> Stage:
    """The evaluation of one encoder."""
    words = f"--data {plan.data / 'nights'} --model {plan.out / encoder} --norm linf l2 --eps 4/255 0.857"
    words += f" --steps {plan.steps} --limit {plan.triplets} --batch-size 256 --out {plan.results}"
    return Stage(f"eval-{encoder}", f"evaluation of {encoder}", ("eval", "nights", *words.split()))


def run(stages: Sequence[Stage], processes: int, ledger: Path) -> None:
    """Run commands, at most so many at once (0: in this process); a line of ``ledger`` for each that is done.

    Raises:
        SystemExit: if one fails, when those beside it have ended.
    """
    waiting, failed = list(stages), 0
    running: dict[subprocess.Popen[bytes], tuple[Stage, float]] = {}
    environment = dict(os.environ)
    if min(processes, len(stages)) > 1:
        environment["OMP_NUM_THREADS"] = "1"

    def ended(stage: Stage, begun: float, code: int) -> int:
        if code:
            print(f"{stage.title}: ended with exit code {code}", file=sys.stderr)
            return code
        line = {"stage": stage.name, "command": str(stage), "seconds": round(time.perf_counter() - begun, 1)}
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        return 0

    try:
        while running or (waiting and not failed):
            while waiting and not failed and len(running) < max(1, processes):
                stage, begun = waiting.pop(0), time.perf_counter()
                print(f"$ {stage}", flush=True)
                # Bars would be written over each other; `train text` has none, nor --quiet.
                hushed = stage.name != "text" and (processes == 0 or min(processes, len(stages)) > 1)
                command = [*stage.command, *(["--quiet"] if hushed else [])]
                if processes == 0:
                    failed = ended(stage, begun, rclip_metric(command))
                    continue
                process = subprocess.Popen([sys.executable, "-m", "rclip_metric", *command], env=environment)
                running[process] = stage, begun
            for process in [process for process in running if process.poll() is not None]:
                stage, begun = running.pop(process)
                failed = ended(stage, begun, process.returncode) or failed
            if running:
                time.sleep(0.1)
    finally:
        for process in running:  # only if this process was stopped: they save what they have
            process.terminate()
        for process in running:
            process.wait()
    if failed:
        print("the same command goes on from here", file=sys.stderr)
        raise SystemExit(failed)


def names_of(plan: Plan, encoder: str) -> tuple[str, str]:
    """What results call an encoder: the name it was saved with, and that with its folder, where the manifest has it."""
    name = read_json(plan.out / encoder / "config.json")["name"]
    return name, f"{name} in {encoder}"


def records_of(plan: Plan, encoder: str) -> dict[str, dict[str, Any]]:
    """The results of an encoder by norm; {} unless both are there, of these settings and these weights."""
    known = plan.results / WEIGHTS
    if not known.exists() or read_json(known).get(encoder) != file_digest(plan.out / encoder / "model.safetensors"):
        return {}
    names = names_of(plan, encoder)
    found = {
        record["threat"]["norm"]: record
        for record in load_results(sorted(plan.results.glob("*__*.json")))
        if record["model"]["name"] in names
        and record["threat"]["steps"] == plan.steps
        and record["settings"]["limit"] == plan.triplets
    }
    return found if found.keys() == {"linf", "l2"} else {}


def evaluate(plan: Plan, processes: int) -> None:
    """Evaluate the encoders that have no results yet, or results of other weights, which are thrown away."""
    known = plan.results / WEIGHTS
    digests = dict(read_json(known)) if known.exists() else {}
    missing = [encoder for encoder in ENCODERS if not records_of(plan, encoder)]
    for encoder in missing:
        digest = file_digest(plan.out / encoder / "model.safetensors")
        if digests.get(encoder) != digest:
            # Not every run's encoder has a revision that the evaluation could tell old weights from new ones by.
            names = names_of(plan, encoder)
            for path in plan.results.glob("*__*.json"):
                if read_json(path)["model"]["name"] in names:
                    path.unlink()
            shutil.rmtree(plan.results / ".journal", ignore_errors=True)
        digests[encoder] = digest
    write_json(known, digests)
    run([evaluation(plan, encoder) for encoder in missing], processes, plan.out / "commands.jsonl")


def seconds_of(stage: Stage, out: Path) -> float | None:
    """What a stage took by its own record, else by the ledger; None where neither knows."""
    folder = out / stage.name
    if stage.name == "clip" and (folder / "log.jsonl").exists():  # written from the 10th step on
        return logged_seconds((folder / "log.jsonl").read_text())
    record = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    if "seconds" in record:
        return float(record["seconds"] + record["run"].get("prepared_seconds", 0.0))
    ledger = out / "commands.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    return next((line["seconds"] for line in reversed(lines) if line["stage"] == stage.name), None)


def logged_seconds(log: str) -> float:
    """The seconds of a log whose every line counts them from the start of its process, summed over processes."""
    total, last = 0.0, {"step": 0, "seconds": 0.0}
    for line in map(json.loads, log.splitlines()):
        if line["step"] <= last["step"] or line["seconds"] < last["seconds"]:
            total += last["seconds"]
        last = line
    return round(total + last["seconds"], 1)


def story(plan: Plan) -> dict[str, Any]:
    """Everything that was found, as JSON: rows in the paper's order, the stages, versions and machine."""
    rows: list[dict[str, Any]] = []
    everything: list[dict[str, Any]] = []
    for encoder in ENCODERS:
        base, dash, tuning = encoder.partition("-")
        folder, found = plan.out / encoder, records_of(plan, encoder)
        published = PUBLISHED[base] + (f"+{tuning}" if tuning else "")
        run = read_json(folder / "run.json")
        row: dict[str, Any] = {"encoder": BASES[base], "tuning": TUNINGS[dash + tuning], "name": encoder}
        row |= {"method": run["method"], "seed": run["seed"]}
        row["sha256"] = file_digest(folder / "model.safetensors")
        row["clean"] = {key: found["linf"]["clean"][key] for key in ("accuracy", "interval_95")}
        for norm in ("linf", "l2"):
            row[norm] = {key: found[norm]["robust"][key] for key in ("accuracy", "interval_95")}
        row["paper"] = get_spec(published).reported.get("nights") if published in model_names() else None
        row["attack_seconds"] = round(sum(record["seconds"] for record in found.values()), 1)
        row["warnings"] = [sentence for record in found.values() for sentence in record["warnings"]]
        rows.append(row)
        everything += found.values()
    samples = {record["data"]["samples"] for record in everything}
    if len(samples) > 1:
        raise SystemExit(f"the encoders were judged on {sorted(samples)} triplets: some images could not be read")
    stages = [
        {"stage": stage.title, "seconds": seconds_of(stage, plan.out), "command": str(stage)}
        for group in trainings(plan) for stage in group
    ]  # fmt: skip
    stages += [
        {"stage": stage.title, "seconds": row["attack_seconds"], "command": str(stage)}
        for row in rows for stage in [evaluation(plan, row["name"])]
    ]  # fmt: skip
    return {
        "quick": plan.quick,
        "triplets": samples.pop(),
        "attack": {"name": "apgd", "steps": plan.steps, "linf": "4/255", "l2": "0.857",
                   "seed": everything[0]["settings"]["seed"]},
        "rows": rows,
        "stages": stages,
        "versions": everything[0]["versions"],
        "machine": {**everything[0]["device"], "cores": os.cpu_count()},
    }  # fmt: skip


def table(story: Mapping[str, Any]) -> str:
    """The rows as Markdown, the paper's numbers beside them."""
    heads = ["encoder", "", *COLUMNS.values(), *(f"paper: {name}" for name in PAPER_COLUMNS.values())]
    lines = [heads, ["---", "---", *["---:"] * 6]]
    for row in story["rows"]:
        cells = ["{:.1f} ({:.1f} - {:.1f})".format(row[c]["accuracy"], *row[c]["interval_95"]) for c in COLUMNS]
        paper = [(row["paper"] or {}).get(column) for column in PAPER_COLUMNS]
        lines.append([row["encoder"], row["tuning"], *cells, *("-" if x is None else f"{x:.1f}" for x in paper)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def times(story: Mapping[str, Any]) -> str:
    """What every stage took, as Markdown; the evaluations in one row."""
    judged = [stage["seconds"] for stage in story["stages"] if stage["command"].startswith("rclip-metric eval")]
    rows = [(stage["stage"], stage["seconds"]) for stage in story["stages"][: len(story["stages"]) - len(judged)]]
    rows.append((f"evaluation of all {len(judged)}", sum(judged)))
    rows.append(("together", sum(seconds or 0.0 for _, seconds in rows)))
    lines = ["| stage | time |", "|---|---:|", *(f"| {name} | {duration(seconds)} |" for name, seconds in rows)]
    return "\n".join(lines)


def duration(seconds: float | None) -> str:
    """In words, e.g. ``1 h 05 min``, ``3 min 20 s``, ``12 s``."""
    if seconds is None:
        return "not measured: it was there"
    minutes, left = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {left:02d} s" if minutes else f"{left} s"


def page(story: Mapping[str, Any]) -> str:
    """The README beside the results."""
    attack, machine = story["attack"], story["machine"]
    notes = [f"- {row['name']}: {sentence}" for row in story["rows"] for sentence in row["warnings"]]
    seeds = ", ".join(sorted({str(row["seed"]) for row in story["rows"]}))
    return "\n".join(
        [
            "# From nothing to a robust metric, on one machine",
            "",
            f"`python examples/story.py{' --quick' if story['quick'] else ''}` makes all of this: the paper's Table I "
            "in miniature. Written by that script.",
            *(["", "**At toy size: the stages ran, and the figures mean nothing.**"] if story["quick"] else []),
            "",
            table(story),
            "",
            f"Percent of {story['triplets']} held-out triplets of scenes that are decided as they were made, with 95 % "
            f"bootstrap intervals; under attack: APGD, {attack['steps']} steps, on the reference image. The network "
            "has 2 M parameters and sees 64x64 pixels, where l2 0.857 moves a pixel as far as l2 3 does at 224x224. "
            "The paper's numbers are those of ConvNeXt-B on NIGHTS: what can be compared is how the rows stand to each "
            "other. `-`: not among the published numbers that the manifest has.",
            "",
            "![Clean against robust accuracy, and the robust accuracies](story.png)",
            *(["", *notes] if notes else []),
            "",
            "## Time",
            "",
            times(story),
            "",
            f"On {machine['name']}, {machine['cores']} cores ({machine['type']}); as each run recorded it, whatever "
            f"else the machine did meanwhile. Seeds of the runs: {seeds}; of the attack: {attack['seed']}.",
            "",
            "## The commands",
            "",
            "```",
            *(stage["command"] for stage in story["stages"]),
            "```",
            "",
            ", ".join(f"{name} {version}" for name, version in story["versions"].items()) + ".",
            "",
        ]
    )


def figure(story: Mapping[str, Any]) -> "Figure":
    """Clean against robust accuracy, and bars of the robust one; whiskers are 95 % intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    colour = dict(zip(BASES.values(), COLOURS, strict=False))
    marker = dict(zip(TUNINGS.values(), "os^", strict=True))
    shade = dict(zip(TUNINGS.values(), (0.45, 0.7, 1.0), strict=True))
    drawn = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(drawn)
    scatter, bars = drawn.subplots(1, 2, width_ratios=(1.15, 1))
    chance: dict[str, Any] = {"color": "#777777", "linewidth": 1, "linestyle": "--", "zorder": 1}

    def whiskers(summary: Mapping[str, Any]) -> list[list[float]]:
        """Below and above, as matplotlib takes them."""
        low, high = summary["interval_95"]
        return [[max(0.0, summary["accuracy"] - low)], [max(0.0, high - summary["accuracy"])]]

    ends = []
    for place, row in enumerate(story["rows"]):
        clean, robust, paint = row["clean"], row["linf"], colour[row["encoder"]]
        scatter.errorbar(
            clean["accuracy"], robust["accuracy"], whiskers(robust), whiskers(clean), fmt=marker[row["tuning"]],
            color=paint, markersize=9, alpha=0.8, markeredgecolor="white", elinewidth=0.8,
            ecolor=f"{paint}80", zorder=3,
        )  # fmt: skip
        bars.barh(place, robust["accuracy"], xerr=whiskers(robust), color=paint, alpha=shade[row["tuning"]],
                  error_kw={"elinewidth": 1, "ecolor": "#444444"})  # fmt: skip
        white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6}
        bars.text(robust["interval_95"][1] + 2, place, f"{robust['accuracy']:.1f}", va="center", fontsize=9, bbox=white)
        ends += clean["interval_95"]
    margin = max(1.0, 0.06 * (max(ends) - min(ends)))
    scatter.set(xlim=(min(ends) - margin, max(ends) + margin), ylim=(-3, 103), xlabel="clean accuracy (%)")
    scatter.set_ylabel(r"accuracy under $\ell_\infty$ 4/255 (%)")
    scatter.set_yticks(range(0, 101, 20))
    scatter.axhline(50, **chance)
    bars.axvline(50, **chance)
    bars.set_yticks(range(len(story["rows"])), [f"{row['encoder']}, {row['tuning']}" for row in story["rows"]])
    bars.invert_yaxis()
    bars.set_xticks(range(0, 101, 20))
    bars.set(xlim=(0, 120), xlabel=r"accuracy under $\ell_\infty$ 4/255 (%)")
    for axes in (scatter, bars):
        axes.grid(axis="both" if axes is scatter else "x", color="#e4e4e4", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=paint, linewidth=6, label=name) for name, paint in colour.items()]
    handles += [
        Line2D([], [], color="#444444", marker=shape, linestyle="none", markersize=8, label=name)
        for name, shape in marker.items()
    ]
    handles.append(Line2D([], [], label="chance, 50 %", **chance))
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    drawn.suptitle(
        f"2AFC on {story['triplets']} held-out triplets of scenes; APGD with {story['attack']['steps']} steps, "
        "whiskers: 95 % bootstrap intervals",
        fontsize=11, x=0.01, ha="left",
    )  # fmt: skip
    return drawn


def render(story: dict[str, Any], folder: Path) -> None:
    """Write story.json, README.md and story.png."""
    write_json(folder / "story.json", story)
    write_text(folder / "README.md", page(story))
    with written_whole(folder / "story.png") as partial:
        figure(story).savefig(partial, format="png", dpi=DPI)


def _plan(options: argparse.Namespace) -> Plan:
    if min(options.triplets or 1, options.steps or 1) < 1 or (options.processes or 0) < 0:
        raise SystemExit("--triplets and --steps must be at least 1, and --processes at least 0")
    out = options.out or Path("runs/story-quick" if options.quick else "runs/story")
    data = options.data or (out / "scenes" if options.quick else Path("data/scenes"))
    results = options.results or (out / "results" if options.quick else Path("results/story"))
    if any(" " in str(path) for path in (out, data, results)):
        raise SystemExit("a path has a space in it, and the commands are split at spaces: choose other folders")
    few, many = (24, 3), (400, 100)
    triplets, steps = few if options.quick else many
    return Plan(out, data, results, options.triplets or triplets, options.steps or steps, options.quick)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Do what is left of the story, write it down and return it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/story)")
    parser.add_argument("--data", type=Path, help="folder of the scenes, made if need be (default: data/scenes)")
    parser.add_argument("--results", type=Path, help="folder of what is measured (default: results/story)")
    parser.add_argument("--quick", action="store_true", help="everything at toy size, below runs/story-quick")
    parser.add_argument("--triplets", type=int, metavar="N", help="held-out triplets to judge (default: 400)")
    parser.add_argument("--steps", type=int, metavar="N", help="APGD iterations (default: 100)")
    parser.add_argument("--processes", type=int, metavar="N", help="commands at once where they do not need each "
                        "other, with one thread each; 0: all in this process (default: 2; with --quick 0)")  # fmt: skip
    options = parser.parse_args(argv)
    plan = _plan(options)
    processes = options.processes if options.processes is not None else 0 if plan.quick else 2
    if importlib.util.find_spec("matplotlib") is None:  # now, not after hours
        raise SystemExit('the figure needs matplotlib, which is an extra: pip install "rclip-metric[plot]"')
    for group in trainings(plan):
        for stage in group:
            if stage.done:
                print(f"{stage.title}: there already", flush=True)
        run([stage for stage in group if not stage.done], processes, plan.out / "commands.jsonl")
    evaluate(plan, processes)
    told = story(plan)
    render(told, plan.results)
    print(f"\n{table(told)}\n\n{times(told)}\n\n{plan.results / 'README.md'}, {plan.results / 'story.png'}")
    return told


def _stopped(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stopped)  # so that the commands are told too
    main()
