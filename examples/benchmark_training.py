"""What a FARE step costs against the published one, and whether the faster step learns as well.

    python examples/benchmark_training.py                                # the steps: minutes
    python examples/benchmark_training.py --parts update --cases convnext_base_w:2 --side 112    # weight gradients
    python examples/benchmark_training.py --parts learning --seeds 0 1 2 # 200 steps of the tiny recipe, six runs

The published step (Schlarmann et al. 2024) is written out here as a plain loop: float32, the whole batch at once,
weights that require gradients during the attack, a forward pass of the clean images for logging in every step, and on
a GPU an emptied cache after every step. Ours is `AdversarialStep` as `rclip-metric train fare` runs it. Both take turns
in one process on the same images; only the ratios mean anything on another machine.

    steps     seconds per step, medians; ratio; memory; the parts of our step; the distance to a floor
    learning  loss curves and robust 2AFC accuracy after 200 steps of the tiny recipe, three seeds of each

The floor is (n + 1) forward passes, (n + 1) backward passes to the pixels and one full backward pass for n inner
steps, each measured alone on the same encoder in the same precision: nobody who makes these passes can be faster.

Where the processor is slow at bfloat16, `learning` compares float32 with a float32 step whose weights, activations and
gradients are rounded to bfloat16 where bfloat16 passes would round them: the same numbers to within the accumulation
order, without the speed.
"""

import argparse
import contextlib
import copy
import gc
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rclip_metric import Encoder, RobustPerceptualDistance, __version__
from rclip_metric.encoder import NAMED, ConvNeXtArchitecture
from rclip_metric.images import Preprocessing
from rclip_metric.train.attacks.losses import fare
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.benchmark.report import Report
from rclip_metric.train.benchmark.turns import machine_record, synchronize, take_turns
from rclip_metric.train.data.stream import open_stream
from rclip_metric.train.data.triplets import read_nights
from rclip_metric.train.evaluation.attack import AttackSettings, RunSettings
from rclip_metric.train.evaluation.tasks.two_afc import TwoAfcData, evaluate_two_afc
from rclip_metric.train.finetuning.adversarial import AdversarialStep, FinetuneConfig
from rclip_metric.train.finetuning.adversarial.depthwise import fast_depthwise_gradients
from rclip_metric.train.finetuning.adversarial.inner import start_noise, start_seed
from rclip_metric.train.metrics.base import EncoderMetric
from rclip_metric.train.runs.config import configured, read_recipe
from rclip_metric.train.runs.files import write_json
from rclip_metric.train.runs.precision import bfloat16_is_fast
from rclip_metric.train.runs.schedule import cosine_schedule
from rclip_metric.weights import load_encoder

SCENES = Path(__file__).parents[1] / "data" / "scenes"
AIMS = {"AMX CPU": 2.5, "H100": 4.0}


class PublishedStep:
    """The published step, one after another; gives the loss at the attacked images."""

    def __init__(self, encoder: Encoder, original: Encoder, optimizer: torch.optim.Optimizer, config: FinetuneConfig):
        self.encoder, self.original, self.optimizer, self.config = encoder, original, optimizer, config
        encoder.chunk_size = original.chunk_size = None

    def __call__(self, images: Tensor, keys: Sequence[int], number: int) -> float:
        """Attack and update."""
        config = self.config
        with torch.no_grad():
            target = self.original(images)
        self.encoder.eval()
        noise = start_noise(images, [start_seed(config.seed, number, key) for key in keys], "linf")
        perturbation, velocity = noise * config.eps, torch.zeros_like(images)
        for _ in range(config.inner_steps):
            perturbation = perturbation.detach().requires_grad_(True)
            loss = fare(self.encoder(images + perturbation), target).mean()
            (gradient,) = torch.autograd.grad(loss, perturbation)
            with torch.no_grad():
                velocity = (config.inner_momentum_factor * velocity + gradient.sign()).sign()
                perturbation = perturbation + config.inner_step_size * velocity
                perturbation = perturbation.clamp(-config.eps, config.eps)
                perturbation = (images + perturbation).clamp(0, 1) - images
        self.encoder.train()
        clean = self.encoder(images)  # for the log alone
        embedding = self.encoder((images + perturbation).detach())
        loss = fare(embedding, target).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch.cosine_similarity(clean.detach(), target).mean().item()
        torch.cosine_similarity(embedding.detach(), target).mean().item()
        if images.is_cuda:
            torch.cuda.empty_cache()
        return loss.item()


class _Rounding(torch.autograd.Function):
    """To bfloat16 and back, in both directions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.bfloat16().float()


def rounding(module: nn.Module) -> None:
    """Round what every layer puts out, and the gradients that come back, to bfloat16."""
    for part in module.modules():
        if not list(part.children()):
            part.register_forward_hook(lambda _module, _inputs, output: _Rounding.apply(output))


class RoundedStep(AdversarialStep):
    """Our step with bfloat16's numbers and float32's arithmetic."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.attacked = copy.deepcopy(self.encoder).requires_grad_(False)
        self._attacked = self.attacked
        rounding(self.attacked)
        rounding(self.encoder)
        self.refresh()

    def refresh(self) -> None:
        """Round the weights into the copy that is attacked."""
        with torch.no_grad():
            for own, weight in zip(self.attacked.parameters(), self.encoder.parameters(), strict=True):
                own.copy_(weight.bfloat16())


def our_step(
    encoder: Encoder, original: Encoder, optimizer: torch.optim.Optimizer, config: FinetuneConfig, device: str,
    *, compiled: bool = False, kind: type[AdversarialStep] = AdversarialStep,
) -> AdversarialStep:  # fmt: skip
    """The step as `finetune` sets it up on this device."""
    for one in (encoder, original):
        if isinstance(one.architecture, ConvNeXtArchitecture):
            one.channels_last = True
            one.to(memory_format=torch.channels_last)
    chunk_size = encoder.chunk_size if device == "cpu" else None
    fast = bfloat16_is_fast(torch.device(device)) and kind is AdversarialStep
    return kind(encoder, original, optimizer, config, bfloat16=fast, chunk_size=chunk_size, compiled=compiled)


def build(name: str, device: str) -> Encoder:
    """The shipped tiny-clean, or an architecture of the manifest with random weights (seed 0)."""
    if name in ("tiny", "tiny-clean"):
        return load_encoder(name).to(device)
    torch.manual_seed(0)
    side = NAMED[name].image_size
    return Encoder(NAMED[name], Preprocessing("squash", side, side), name=name).to(device)


def adamw(encoder: Encoder, config: FinetuneConfig, fused: bool | None = None) -> torch.optim.Optimizer:
    """As published, or in one pass over the weights as `finetune` has it."""
    rate, decay = config.learning_rate, config.weight_decay
    return torch.optim.AdamW(encoder.parameters(), lr=rate, weight_decay=decay, fused=fused)


def steps_case(name: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both steps in turns, our parts, and the floor."""
    device = options.device
    config = FinetuneConfig(inner_steps=options.inner_steps, batch_size=batch)
    side = NAMED[name].image_size if name in NAMED else 64
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    keys = list(range(batch))
    base = build(name, device)
    theirs_encoder, ours_encoder = copy.deepcopy(base), copy.deepcopy(base)
    theirs = PublishedStep(theirs_encoder, copy.deepcopy(base), adamw(theirs_encoder, config), config)
    ours = our_step(
        ours_encoder, copy.deepcopy(base), adamw(ours_encoder, config, True), config, device, compiled=options.compile
    )
    peaks: dict[str, float] = {}
    parts: list[dict[str, float]] = []
    turn, mark = 0, 0.0

    def prepare(number: int) -> None:
        nonlocal turn
        turn = number

    def clock(part: str) -> None:
        nonlocal mark
        synchronize(device)
        now = time.perf_counter()
        parts[-1][part] = parts[-1].get(part, 0.0) + now - mark
        mark = now

    def step(kind: str) -> None:
        nonlocal mark
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        if kind == "ours":
            parts.append({})
            mark = time.perf_counter()
            ours(images, keys, None, turn, measure=turn % 10 == 9)  # the clean cosine in one step of ten, as in a run
        else:
            theirs(images, keys, turn)
        if device.startswith("cuda"):
            peaks[kind] = torch.cuda.max_memory_allocated() / 1e9

    ours.clock = clock
    steps = {kind: partial(step, kind) for kind in ("published", "ours")}
    turns = take_turns(steps, options.repeats, device=device, prepare=prepare, long=options.long)
    ours.clock = None
    found, floor = turns.seconds, floor_of(ours, images, config, options)
    return {
        "model": name, "batch": batch, "inner_steps": config.inner_steps, "bfloat16": ours.bfloat16,
        "published_seconds": found["published"], "our_seconds": found["ours"],
        "ratio": turns.ratio("published", "ours", "wall"), "images_per_second": batch / found["ours"],
        "ratio_processor": turns.ratio("published", "ours"), "ratios": turns.ratios("published", "ours", "wall"),
        # the first warms up, unless it is the only one
        "parts": {part: statistics.median(one[part] for one in parts[1:] or parts) for part in parts[0]},
        "floor_seconds": floor["wall"], "over_floor": found["ours"] / floor["wall"],
        "over_floor_processor": turns.processor["ours"] / floor["processor"], "peak_gb": peaks or None,
        **turns.to_dict(),
    }  # fmt: skip


def floor_of(
    step: AdversarialStep, images: Tensor, config: FinetuneConfig, options: argparse.Namespace
) -> dict[str, float]:
    """(n + 1) forward + (n + 1) backward to pixels + 1 full backward, in our step's own passes, in seconds."""
    device, size = options.device, step.chunk_size or len(images)
    target = torch.cat([step.original(part).detach() for part in images.split(size)])

    def to_pixels() -> None:
        for part, wanted in zip(images.split(size), target.split(size), strict=True):
            points = part.detach().requires_grad_(True)
            torch.autograd.grad(fare(step._attacked(points), wanted).sum(), points)

    def forward_of_update() -> list[Tensor]:
        losses = []
        for part, wanted in zip(images.split(size), target.split(size), strict=True):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=step.bfloat16):
                embedding = step.encoder(part)
            losses.append(fare(embedding.float(), wanted).sum())
        return losses

    def update() -> None:
        for loss in forward_of_update():
            loss.backward()
        step.optimizer.zero_grad(set_to_none=True)

    passes: dict[str, Callable[[], object]] = {"pixels": to_pixels, "update": update, "forward": forward_of_update}
    turns = take_turns(passes, options.repeats, device=device, long=options.long)
    return {
        kind: (config.inner_steps + 1) * found["pixels"] + max(0.0, found["update"] - found["forward"])
        for kind, found in (("wall", turns.seconds), ("processor", turns.processor))
    }


def milliseconds(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor milliseconds of each, in turn, and how many times the first's the second takes."""
    turns = take_turns(works, repeats)
    first, second, *_ = works
    return {name: 1e3 * s for name, s in turns.processor.items()} | {"ratio": turns.ratio(first, second)}


def update_part(options: argparse.Namespace) -> dict[str, Any]:
    """Depthwise weight gradients as the library has them and as a step does: layer by layer, and of a whole update."""
    found: dict[str, Any] = {"layers": []}

    def backward(part: nn.Module, pixels: Tensor, half: bool, context: Callable[[nn.Module], Any]) -> None:
        with context(part), torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = part(pixels)
        outputs.float().sum().backward()

    nothing = lambda _part: contextlib.nullcontext()  # noqa: E731
    kinds: dict[str, Callable[[nn.Module], Any]] = {"library": nothing, "fast": fast_depthwise_gradients}
    for name, _, batch in (case.partition(":") for case in options.cases):
        count, side = int(batch), options.side or NAMED[name].image_size
        encoder = build(name, "cpu")
        encoder.resize, encoder.preprocessing = None, encoder.preprocessing.at(side)
        our_step(encoder, copy.deepcopy(encoder), adamw(encoder, FinetuneConfig()), FinetuneConfig(), "cpu")
        architecture: Any = encoder.architecture
        for half in (False, True):
            for stage, width in enumerate(architecture.widths):
                across = side // 4 // 2**stage
                layer = nn.Conv2d(width, width, 7, padding=3, groups=width)
                pixels = torch.rand(count, width, across, across).contiguous(memory_format=torch.channels_last)
                pixels.requires_grad_()
                works = {kind: partial(backward, layer, pixels, half, context) for kind, context in kinds.items()}
                row = {"width": width, "side": across, "bfloat16": half, **milliseconds(works, options.repeats)}
                found["layers"].append({"model": name, "batch": count, **row})
            images = torch.rand(count, 3, side, side)
            works = {kind: partial(backward, encoder, images, half, context) for kind, context in kinds.items()}
            frozen = copy.deepcopy(encoder).requires_grad_(False)
            points = images.clone().requires_grad_()
            works["to pixels"] = partial(backward, frozen, points, half, nothing)
            row = {"model": name, "batch": count, "side": side, "bfloat16": half}
            found.setdefault("forward and backward", []).append(row | milliseconds(works, options.repeats))
        parameters = list(encoder.parameters())
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizers = {kind: adamw(encoder, FinetuneConfig(), kind == "fused" or None) for kind in ("foreach", "fused")}
        steps = {kind: optimizer.step for kind, optimizer in optimizers.items()}
        found.setdefault("AdamW", []).append({"model": name, **milliseconds(steps, options.repeats)})
        for rows in found.values():
            for row in (row for row in rows if row["model"] == name):
                print(json.dumps(row), flush=True)
    return found


def peak_of(name: str, kind: str, batch: int, inner_steps: int) -> float:
    """Peak resident memory in GB of two steps in this process, above what the imports take."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = FinetuneConfig(inner_steps=inner_steps, batch_size=batch)
    encoder, original = build(name, "cpu"), build(name, "cpu")
    images = torch.rand(batch, 3, encoder.image_size, encoder.image_size)
    for number in range(2):
        if kind == "ours":
            if number == 0:
                step = our_step(encoder, original, adamw(encoder, config, True), config, "cpu")
            step(images, range(batch), None, number)
        else:
            if number == 0:
                published = PublishedStep(encoder, original, adamw(encoder, config), config)
            published(images, range(batch), number)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6


def learning_run(kind: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """200 steps of the tiny recipe from tiny-clean: the loss of every step, and 2AFC accuracy at the end."""
    recipe = configured(FinetuneConfig, None, read_recipe("tiny").settings)
    config = replace(recipe, steps=options.steps, seed=seed)
    original, encoder = load_encoder("tiny-clean"), copy.deepcopy(load_encoder("tiny-clean"))
    original, encoder = original.to(options.device), encoder.to(options.device)
    optimizer = adamw(encoder, config)
    schedule = cosine_schedule(config.steps, config.warmup_steps)
    stream = open_stream(
        options.scenes / "images" / "train", encoder.preprocess, batch_size=config.batch_size, seed=seed,
        stop=config.steps,
    )  # fmt: skip
    step: Any
    if kind == "published":
        step = PublishedStep(encoder, original, optimizer, config)
    else:
        slow = not bfloat16_is_fast(torch.device(options.device))
        step = our_step(
            encoder, original, optimizer, config, options.device, kind=RoundedStep if slow else AdversarialStep
        )
    losses, begun = [], time.perf_counter()
    for number, batch in enumerate(stream):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(number)
        images = batch.images.to(options.device)
        if kind == "published":
            losses.append(step(images, batch.keys, number))
        else:
            losses.append(step(images, batch.keys, None, number).loss)
    seconds = time.perf_counter() - begun
    encoder.eval()
    for part in encoder.modules():
        part._forward_hooks.clear()  # judged in float32, as any encoder is
    triplets = read_nights(options.scenes / "nights", "test")[: options.triplets]
    (record,) = evaluate_two_afc(
        EncoderMetric(RobustPerceptualDistance(encoder)), TwoAfcData("scenes", "test", triplets),
        [AttackSettings(LpBall("linf", 4 / 255), steps=50)], RunSettings(batch_size=100), quiet=True,
    )  # fmt: skip
    return {
        "kind": kind, "seed": seed, "seconds": seconds, "losses": losses,
        "clean": record["clean"]["accuracy"], "robust": record["robust"]["accuracy"],
    }  # fmt: skip


def learning(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All runs, those that are in the folder already left out, and their comparison."""
    runs = []
    for seed in options.seeds:
        for kind in ("published", "fast"):
            path = folder / f"{kind}-{options.steps}-{seed}.json"
            if not path.exists():
                write_json(path, learning_run(kind, seed, options))
            runs.append(json.loads(path.read_text()))
            print(f"{kind} seed {seed}: robust {runs[-1]['robust']:.1f}, clean {runs[-1]['clean']:.1f}", flush=True)
    return compared(runs, options)


def compared(runs: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Curves averaged over ten steps at a time: the fast one's distance from the published, and the seeds' spread."""
    curves: dict[str, list[list[float]]] = {"published": [], "fast": []}
    for run in runs:
        losses = run["losses"]
        curves[run["kind"]].append([statistics.fmean(losses[i : i + 10]) for i in range(0, len(losses), 10)])
    apart, spread = [], []
    for place in range(len(curves["published"][0])):
        own, theirs = ([math.log(curve[place]) for curve in curves[kind]] for kind in ("fast", "published"))
        apart.append(abs(statistics.fmean(own) - statistics.fmean(theirs)))
        spread.append(max(theirs) - min(theirs))
    of = {kind: [run for run in runs if run["kind"] == kind] for kind in curves}
    return {
        "steps": options.steps, "seeds": options.seeds, "triplets": options.triplets,
        "fast_is": "bfloat16" if bfloat16_is_fast(torch.device(options.device)) else "rounded to bfloat16 in float32",
        "log_loss_apart": {"mean": statistics.fmean(apart), "largest": max(apart)},
        "log_loss_spread_over_seeds": {"mean": statistics.fmean(spread), "largest": max(spread)},
        "curves": {kind: [[round(v, 3) for v in curve] for curve in values] for kind, values in curves.items()},
        "robust": {kind: [run["robust"] for run in values] for kind, values in of.items()},
        "clean": {kind: [run["clean"] for run in values] for kind, values in of.items()},
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("steps", "update", "learning"), default=["steps"])
    parser.add_argument(
        "--cases", nargs="+", default=["tiny:64", "convnext_base_w:8", "vit_b_16:8", "dino_vit_b_16:8"],
        metavar="MODEL:BATCH", help="tiny, or an architecture with random weights (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--side", type=int, help="pixels, for the update (default: the model's)")
    parser.add_argument("--inner-steps", type=int, default=10, help="of PGD (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="steps of each that count (default %(default)s)")
    parser.add_argument(
        "--long", type=float, default=float("inf"), metavar="S", help="what takes more seconds runs once, unwarmed"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="our passes through torch.compile")
    parser.add_argument("--no-memory", action="store_true", help="skip the peak memory, a process per figure on a CPU")
    parser.add_argument("--scenes", type=Path, default=SCENES, help="folder of `train scenes` (for learning)")
    parser.add_argument("--steps", type=int, default=200, help="of a learning run (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--triplets", type=int, default=300, help="judged at the end (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="a .json, or a folder")
    parser.add_argument("--peak", nargs=4, metavar=("MODEL", "KIND", "BATCH", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.peak:
        name, kind, batch, steps = options.peak
        print(json.dumps(peak_of(name, kind, int(batch), int(steps))))
        return {}
    settings = {name: getattr(options, name) for name in ("inner_steps", "repeats", "steps", "seeds", "triplets")}
    settings |= {"rclip_metric": __version__, "aims": AIMS}
    report = Report("benchmark_training", options.out, settings, device=options.device)
    report.record["machine"]["bfloat16_is_fast"] = bfloat16_is_fast(torch.device(options.device))
    if "steps" in options.parts:
        cases = []
        for case in options.cases:
            name, _, batch = case.partition(":")
            cases.append(steps_case(name, int(batch), options))
            gc.collect()
            if options.device == "cpu" and not options.no_memory:
                cases[-1]["peak_gb"] = {kind: measured(name, kind, batch) for kind in ("published", "ours")}
            print(shown(cases[-1]), flush=True)
            report.add("steps", {"cases": cases})
    if "update" in options.parts:
        report.add("update", {"machine": machine_record(), **update_part(options)})  # on the processor
    if "learning" in options.parts:
        assert report.path is not None
        found = learning(options, report.path.with_suffix(""))
        report.add("learning", found)
        print(f"log loss apart {found['log_loss_apart']}, over seeds {found['log_loss_spread_over_seeds']}")
        print(f"robust 2AFC {found['robust']}, clean {found['clean']}")
    return report.record


def measured(name: str, kind: str, batch: str) -> float:
    """`peak_of` in a fresh process; one inner step is enough, as they all take the same memory."""
    import subprocess

    command = [sys.executable, __file__, "--peak", name, kind, batch, "1"]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def shown(case: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {100 * value / case['our_seconds']:.0f} %" for name, value in case["parts"].items())
    peaks = case["peak_gb"] and ", ".join(f"{kind} {value:.2f} GB" for kind, value in case["peak_gb"].items())
    return (
        f"{case['model']} x {case['batch']}, {case['inner_steps']} inner steps, "
        f"{'bfloat16' if case['bfloat16'] else 'float32'}: {case['published_seconds']:.2f} s -> "
        f"{case['our_seconds']:.2f} s, {case['ratio']:.2f} times faster, {case['images_per_second']:.1f} images/s; "
        f"{parts}; {case['over_floor']:.2f} of the floor; {peaks}"
    )


if __name__ == "__main__":
    main()
