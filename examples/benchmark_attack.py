"""What the 2AFC attack costs, and finds, against the two published evaluations of perceptual metrics.

    python examples/benchmark_attack.py
    python examples/benchmark_attack.py --models tiny --samples 300 --repeats 1 --bfloat16-agreement

The contestants attack the same triplets from the same starts, take turns within one run, and the figures are medians:
only their ratios mean anything on another machine. What is published is written out here as a plain loop:

    LipSim    Ghazanfari et al. 2023, with AutoAttack's APGD: every call embeds reference, left and right anew; a
              gradient after every step, the last one too; no sample leaves before the last iteration.
    R-CLIP    Croce et al. 2024: left and right are embedded once per batch, without a graph; the last step has no
              gradient; samples that are wrong from the start are attacked too; it stops when all of a batch are fooled.

Both are in float32 and pass a batch at once through an encoder whose weights require gradients, so that the forward
pass keeps what their gradients would need; `torch.autograd.grad` then asks for the images' gradient alone, and the
weights' own gradients are never computed.

`tiny` and `tiny-clean` are attacked as they ship. Any other name is an architecture with random (seeded) weights, whose
radius is divided by 1,000 and whose labels are its own choices, so that no sample leaves: its times are upper bounds.
"""

import argparse
import copy
import gc
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rclip_metric import Encoder, RobustPerceptualDistance, __version__
from rclip_metric.encoder import NAMED
from rclip_metric.images import Preprocessing
from rclip_metric.train.attacks.threat import LpBall
from rclip_metric.train.benchmark.report import Report, outlined
from rclip_metric.train.benchmark.turns import synchronize, take_turns
from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
from rclip_metric.train.data.triplets import read_nights
from rclip_metric.train.evaluation.attack import (
    AttackSettings,
    RunSettings,
    attack_block,
    default_chunk_size,
    fixed_options,
)
from rclip_metric.train.evaluation.tasks.two_afc import decision
from rclip_metric.train.metrics.base import EncoderMetric, Metric
from rclip_metric.train.runs.precision import bfloat16_is_fast, full_float32
from rclip_metric.train.runs.seeds import sample_seed

SCENES = Path(__file__).parents[1] / "data" / "scenes" / "nights"
SHIPPED = ("tiny-clean", "tiny")
NORMS = ("linf", "l2")
OURS, LIPSIM, RCLIP = "ours", "LipSim", "R-CLIP"
AIMS = {
    "tiny-clean": "nearly all are fooled within a few steps and leave: at least 10 times faster than LipSim's loop",
    "tiny": "most stay: 2 (LipSim's 3 forward + 1 backward pass against 1 + 1), and 1.3 against R-CLIP's loop",
    "random": "nobody leaves: 2 against LipSim's loop, 1 to 1.3 against R-CLIP's, which keeps more activations",
    "bfloat16": "at least 3 times faster than float32 loops where the device multiplies it; the same accuracy",
    "outcomes": "no sample ends differently",
    "arithmetic": "under 5 % of the time passes outside the metric's forward and backward passes",
}


# The published evaluations


class Published(NamedTuple):
    """What a published loop found: right at every point visited (N,), and images passed forward and backward."""

    robust: Tensor
    forward: int
    backward: int


def published_apgd(
    logits: Callable[[Tensor], Tensor],
    images: Tensor,
    label: Tensor,
    ball: LpBall,
    steps: int,
    start: Tensor,
    *,
    spare_last_gradient: bool,
    stop_when_all_fooled: bool,
    unset_row: bool = True,
) -> Published:
    """APGD on the cross-entropy of ``logits``, as released: every sample takes part in every iteration.

    At the first checkpoint the released oscillation test compares the first recorded loss, the one after the first
    step, with a row that was never written, so that this step counts as a rise. Without ``unset_row`` it is compared
    with the loss of the start, as the paper has it.
    """

    def project(points: Tensor) -> Tensor:
        if ball.norm == "linf":
            return torch.min(torch.max(points, images - ball.eps), images + ball.eps).clamp(0, 1)
        delta = points - images
        size = lengths(delta)
        return (images + delta / (size + 1e-12) * size.clamp(max=ball.eps)).clamp(0, 1)

    def ascent(gradient: Tensor) -> Tensor:
        return gradient.sign() if ball.norm == "linf" else gradient / (lengths(gradient) + 1e-12)

    def evaluate(points: Tensor, differentiate: bool = True) -> tuple[Tensor, Tensor | None, Tensor]:
        variable = points.detach().requires_grad_()
        scores = logits(variable)
        loss = F.cross_entropy(scores, label, reduction="none")
        gradient = torch.autograd.grad(loss.sum(), variable)[0] if differentiate else None
        return loss.detach(), gradient, scores.detach().argmax(1) == label

    point = previous = best = start.clamp(0, 1)
    loss, gradient, robust = evaluate(point)
    assert gradient is not None
    calls = gradients = 1
    best_loss, best_gradient = loss, gradient
    record = torch.zeros(steps + 1, len(images), device=images.device)  # row 0 stands for the start
    record[0] = 0 if unset_row else loss
    size = torch.full((len(images), 1, 1, 1), 2 * ball.eps, device=images.device)
    halved, best_at_review = torch.ones_like(robust), best_loss
    period, since = max(int(0.22 * steps), 1), 0
    for step in range(steps):
        momentum = 1.0 if step == 0 else 0.75
        towards = project(point + size * ascent(gradient))
        towards = project(point + momentum * (towards - point) + (1 - momentum) * (point - previous))
        previous, point = point, towards

        differentiate = step < steps - 1 or not spare_last_gradient
        loss, found, right = evaluate(point, differentiate)
        gradient = gradient if found is None else found
        calls, gradients = calls + 1, gradients + differentiate
        robust = robust & right
        record[step + 1] = loss
        better = loss > best_loss
        chosen = better.view(-1, 1, 1, 1)
        best, best_gradient = torch.where(chosen, point, best), torch.where(chosen, gradient, best_gradient)
        best_loss = torch.where(better, loss, best_loss)
        since += 1
        if since == period:
            recent = record[step + 1 - period : step + 2]
            few = (recent[1:] > recent[:-1]).sum(0) <= 0.75 * period
            halved = few | (~halved & (best_at_review >= best_loss))
            best_at_review = best_loss
            size = torch.where(halved.view(-1, 1, 1, 1), size / 2, size)
            point = torch.where(halved.view(-1, 1, 1, 1), best, point)
            gradient = torch.where(halved.view(-1, 1, 1, 1), best_gradient, gradient)
            period, since = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)), 0
        if stop_when_all_fooled and not bool(robust.any()):
            break
    return Published(robust, calls * len(images), gradients * len(images))


def lengths(delta: Tensor) -> Tensor:
    """Euclidean norms (N, 1, 1, 1)."""
    return delta.square().flatten(1).sum(1).sqrt().view(-1, 1, 1, 1)


def cosines(u: Tensor, v: Tensor) -> Tensor:
    return (F.normalize(u, dim=1) * F.normalize(v, dim=1)).sum(1)


class Triplets(NamedTuple):
    """Images (N, 3, S, S) and (N, 2, 3, S, S) in [0, 1], labels (N,) in {0, 1}, and names for the seeds."""

    reference: Tensor
    options: Tensor
    label: Tensor
    keys: list[str]


def some_of(triplets: Triplets, rows: list[int]) -> Triplets:
    """The triplets at these places."""
    keys = [triplets.keys[row] for row in rows]
    return Triplets(triplets.reference[rows], triplets.options[rows], triplets.label[rows], keys)


class Outcome(NamedTuple):
    """Right on the clean images, and at every point that was visited (N,); images passed forward and backward."""

    clean: Tensor
    robust: Tensor
    margin: Tensor | None
    forward: int
    backward: int


def starts(triplets: Triplets, ball: LpBall, rows: Tensor) -> Tensor:
    """Where our attack starts."""
    seeds = [sample_seed(0, triplets.keys[i]) for i in rows.tolist()]
    return ball.start(triplets.reference[rows], seeds)


def plain(encoder: Encoder) -> Encoder:
    """A copy as the published evaluations load it: nothing frozen, nothing chunked."""
    encoder = copy.deepcopy(encoder).eval().requires_grad_(True)
    encoder.chunk_size = None
    return encoder


def lipsim_evaluation(
    encoder: Encoder, triplets: Triplets, ball: LpBall, steps: int, unset_row: bool = True
) -> Outcome:
    """Clean accuracy, then the attack on those that are right."""
    reference, options, label, _ = triplets

    def scores(points: Tensor, left: Tensor, right: Tensor) -> Tensor:
        u, v, w = (encoder(images) for images in (points, left, right))
        return torch.stack([cosines(u, v), cosines(u, w)], 1)

    with torch.no_grad():
        clean = scores(reference, options[:, 0], options[:, 1]).argmax(1) == label
    robust, rows, forward, backward = clean.clone(), clean.nonzero()[:, 0], 3 * len(label), 0
    if len(rows):
        left, right = options[rows, 0], options[rows, 1]
        found = published_apgd(
            lambda points: scores(points, left, right), reference[rows], label[rows], ball, steps,
            starts(triplets, ball, rows), spare_last_gradient=False, stop_when_all_fooled=False, unset_row=unset_row,
        )  # fmt: skip
        robust[rows] = found.robust
        forward, backward = forward + 3 * found.forward, found.backward
    return Outcome(clean, robust, None, forward, backward)


def rclip_evaluation(encoder: Encoder, triplets: Triplets, ball: LpBall, steps: int, unset_row: bool = True) -> Outcome:
    """Clean accuracy, then the attack on the whole batch."""
    reference, options, label, keys = triplets
    with torch.no_grad():
        u, v, w = (encoder(images) for images in (reference, options[:, 0], options[:, 1]))
    clean = torch.stack([cosines(u, v), cosines(u, w)], 1).argmax(1) == label

    def scores(points: Tensor) -> Tensor:
        u = encoder(points)
        return torch.stack([cosines(u, v), cosines(u, w)], 1)

    found = published_apgd(
        scores, reference, label, ball, steps, starts(triplets, ball, torch.arange(len(keys))),
        spare_last_gradient=True, stop_when_all_fooled=True, unset_row=unset_row,
    )  # fmt: skip
    # A sample that is wrong when clean and right ever after is right to this loop; nobody counts it so.
    return Outcome(clean, found.robust & clean, None, 3 * len(label) + found.forward, found.backward)


# Ours


class Recorder(EncoderMetric):
    """A metric that keeps a list of its passes: whether with a gradient, and of how many images."""

    def __init__(self, metric: EncoderMetric) -> None:
        super().__init__(metric.metric)
        self.passes: list[tuple[bool, int]] = []

    def fix(self, images: Tensor) -> Tensor:
        self.passes.append((False, len(images)))
        return super().fix(images)

    def similarities(self, images: Tensor, fixed: Tensor) -> Tensor:
        self.passes.append((images.requires_grad and torch.is_grad_enabled(), len(images)))
        return super().similarities(images, fixed)


def our_evaluation(
    metric: EncoderMetric,
    triplets: Triplets,
    ball: LpBall,
    steps: int,
    chunk_size: int | None,
    half: EncoderMetric | None = None,
) -> Outcome:
    """Clean accuracy, then the attack on those that are right; as `evaluate_two_afc` does it for one block."""
    reference, options, label, keys = triplets
    recorder = Recorder(metric)
    fixed = fixed_options(recorder, options, chunk_size)
    chunk = chunk_size or len(reference)
    with torch.no_grad():
        pairs = zip(reference.split(chunk), fixed.split(chunk), strict=True)
        similarities = torch.cat([recorder.similarities(part, held) for part, held in pairs])
    decided = decision(label)(similarities, torch.arange(len(label), device=label.device))
    clean, margin = ~decided.wrong, decided.margin
    robust, rows = clean.clone(), clean.nonzero()[:, 0]

    def kept(judging: Metric) -> Tensor:  # what the clean pass has embedded is not embedded again
        return fixed[rows] if judging is recorder else fixed_options(judging, options[rows], chunk_size)

    if len(rows):
        confirmed = attack_block(
            recorder, reference[rows], kept, decision(label[rows]), AttackSettings(ball, steps=steps),
            RunSettings(seed=0, chunk_size=chunk_size), [keys[i] for i in rows.tolist()], half=half,
        )  # fmt: skip
        robust[rows] = ~confirmed.fooled
        margin[rows] = confirmed.margin
    forward = sum(count for _, count in recorder.passes)
    return Outcome(clean, robust, margin, forward, sum(count for gradient, count in recorder.passes if gradient))


def passes_of(
    metric: EncoderMetric, triplets: Triplets, ball: LpBall, steps: int, chunk_size: int | None
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Our attack (without the clean pass), and the same passes of the metric on the same numbers of images alone."""
    reference, options, label, keys = triplets
    run, settings = RunSettings(seed=0, chunk_size=chunk_size), AttackSettings(ball, steps=steps)
    recorder = Recorder(metric)
    kept = partial(fixed_options, options=options, chunk_size=chunk_size)
    attack = partial(attack_block, metric, reference, kept, decision(label), settings, run, keys)
    attack_block(recorder, reference, kept, decision(label), settings, run, keys)
    pool, fixed = options.flatten(0, 1), fixed_options(metric, options, chunk_size)
    decide = decision(label)

    def alone() -> None:
        for differentiate, count in recorder.passes:
            if differentiate:
                variable = reference[:count].detach().requires_grad_()
                at = torch.arange(count, device=label.device)
                torch.autograd.grad(decide(metric.similarities(variable, fixed[:count]), at).loss.sum(), variable)
            else:
                metric.fix(pool[:count])

    return attack, alone


# Models and images


def random_metric(name: str) -> EncoderMetric:
    """An architecture with seeded random weights whose embeddings differ between images.

    The weights of every linear map and convolution are normal with the inverse of the fan-in as variance, and a layer
    scale, which would begin at 1e-6 and so switch all blocks off, is 0.1.
    """
    if name not in NAMED:
        raise ValueError(f"unknown model {name!r}: use {', '.join([*SHIPPED, *NAMED])}")
    architecture = NAMED[name]
    size = architecture.image_size
    encoder = Encoder(architecture, Preprocessing(mode="crop", resize=size, crop=size), name=f"{name}, random weights")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in encoder.named_parameters():
            if parameter.ndim > 1:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * parameter[0].numel() ** -0.5)
            elif key.endswith("gamma"):
                parameter.fill_(0.1)
    return EncoderMetric(RobustPerceptualDistance(encoder))


def load_metric(name: str, device: str) -> EncoderMetric:
    metric = EncoderMetric(RobustPerceptualDistance(name)) if name in SHIPPED else random_metric(name)
    return EncoderMetric(metric.metric.to(device))


def load_triplets(metric: EncoderMetric, count: int, folder: Path = SCENES) -> Triplets:
    """The first decided test triplets of the scenes; where there are none on disk, of scenes made for the occasion."""
    if not (folder / "data.csv").exists():
        with tempfile.TemporaryDirectory(prefix="rclip-metric-scenes-") as made:
            write_scenes(Path(made), ScenesConfig(0, 0, (0, 0, count + count // 8 + 8), 0, 0), quiet=True)
            return load_triplets(metric, count, Path(made) / "nights")
    files = read_nights(folder, "test")
    if len(files) < count:
        raise ValueError(f"{folder} has {len(files)} test triplets and {count} are wanted: pass a smaller --samples")
    rows = [torch.stack([metric.preprocess(path) for path in (t.reference, t.left, t.right)]) for t in files[:count]]
    images = torch.stack(rows).to(metric.device)
    label = torch.tensor([t.label for t in files[:count]], device=metric.device)
    # Contiguous, as a loader of either contestant would have them.
    return Triplets(images[:, 0].contiguous(), images[:, 1:].contiguous(), label, [t.key for t in files[:count]])


def own_choices(metric: EncoderMetric, triplets: Triplets) -> Triplets:
    """The same triplets, labelled as the metric decides them."""
    with torch.no_grad():
        fixed = fixed_options(metric, triplets.options, 8)
        similarities = torch.cat(
            [metric.similarities(x, f) for x, f in zip(triplets.reference.split(8), fixed.split(8), strict=True)]
        )
    return triplets._replace(label=(similarities[:, 1] > similarities[:, 0]).long())


def ball_of(norm: str, model: str, image_size: int) -> LpBall:
    """The paper's radii; l_2 in proportion to the side, so that every value moves as far as at 224 pixels."""
    eps = 4 / 255 if norm == "linf" else 3 * image_size / 224
    return LpBall("linf" if norm == "linf" else "l2", eps if model in SHIPPED else eps / 1000)


# Measuring


def contestants_of(
    metric: EncoderMetric, triplets: Triplets, ball: LpBall, steps: int, chunk_size: int | None
) -> dict[str, Callable[[], Outcome]]:
    encoder = plain(metric.metric.encoder)
    return {
        OURS: partial(our_evaluation, metric, triplets, ball, steps, chunk_size),
        LIPSIM: partial(lipsim_evaluation, encoder, triplets, ball, steps),
        RCLIP: partial(rclip_evaluation, encoder, triplets, ball, steps),
    }


def measure_memory(model: str, contestant: str, samples: int, chunk_size: int | None) -> dict[str, Any]:
    """Bytes by which the peak of two iterations is above model and images, in a process of its own."""
    metric = load_metric(model, "cpu")
    triplets = own_choices(metric, load_triplets(metric, samples))
    ball = ball_of("linf", model, metric.metric.encoder.image_size)
    runs = contestants_of(metric, triplets, ball, 2, chunk_size)
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and forget.exists()):
        return {"peak": None}
    gc.collect()
    forget.write_text("5")  # the peak starts again from what is resident now

    def resident(name: str) -> float:
        return next(1024 * float(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    before = resident("VmRSS")
    runs[contestant]()
    return {"peak": resident("VmHWM") - before}


def peak_memory(runs: Mapping[str, Callable[[], Outcome]], device: str, **settings: Any) -> dict[str, float | None]:
    peaks: dict[str, float | None] = {}
    for name, run in runs.items():
        if device.startswith("cuda"):
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            run()
            peaks[name] = float(torch.cuda.max_memory_allocated() - before)
            continue
        command = [sys.executable, __file__, "--measure", json.dumps({**settings, "contestant": name})]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peaks[name] = json.loads(result.stdout)["peak"]
    return peaks


def top_operations(run: Callable[[], object], device: str, count: int = 12) -> list[dict[str, Any]]:
    """Operations by their own time, and each one's share of all."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.startswith("cuda"):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
        synchronize(device)
    own = "self_device_time_total" if device.startswith("cuda") else "self_cpu_time_total"
    rows = sorted(profile.key_averages(), key=lambda row: getattr(row, own), reverse=True)
    total = sum(getattr(row, own) for row in rows)
    return [
        {"operation": row.key, "milliseconds": getattr(row, own) / 1e3, "share": getattr(row, own) / total}
        for row in rows[:count]
    ]


def differing(ours: Outcome, theirs: Outcome, triplets: Triplets) -> dict[str, Any]:
    """Samples that end differently, with our float32 margin at the final point: near zero, it is rounding."""
    rows = (ours.robust != theirs.robust).nonzero()[:, 0].tolist()
    assert ours.margin is not None
    return {"count": len(rows), "margins": {triplets.keys[i]: ours.margin[i].item() for i in rows}}


def percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()


# The cases


def case(model: str, norm: str, metric: EncoderMetric, triplets: Triplets, options: argparse.Namespace) -> Any:
    """One model under one norm."""
    device, size = options.device, metric.metric.encoder.image_size
    ball = ball_of(norm, model, size)
    random = model not in SHIPPED
    steps, repeats = (options.random_steps, 1) if random else (options.steps, options.repeats)
    chunk = options.chunk_size or default_chunk_size(metric.device, size)
    runs: dict[str, Callable[[], Outcome]] = contestants_of(metric, triplets, ball, steps, chunk)
    fast = bfloat16_is_fast(metric.device)
    half = metric.in_bfloat16() if fast else None
    if fast:
        runs["ours, bfloat16"] = partial(our_evaluation, metric, triplets, ball, steps, chunk, half)
    for run in contestants_of(metric, triplets, ball, 1, chunk).values():  # pages, primitives, lazy imports
        run()
    measured = take_turns(runs, repeats, device=device, warm_up=0)
    seconds, processor, results = measured.seconds, measured.processor, measured.results
    ours = results[OURS]
    found: dict[str, Any] = {
        "ball": str(ball),
        "steps": steps,
        "batch": len(triplets.keys),
        "chunk size": chunk,
        "pressure": measured.pressure,
        "seconds": seconds,
        "times faster": {name: seconds[name] / seconds[OURS] for name in (LIPSIM, RCLIP)},
        "times less processor time": {name: processor[name] / processor[OURS] for name in (LIPSIM, RCLIP)},
        "images forward": {name: result.forward for name, result in results.items() if "bfloat16" not in name},
        "images backward": {name: result.backward for name, result in results.items() if "bfloat16" not in name},
        "clean accuracy": percent(ours.clean),
        "robust accuracy": {name: percent(result.robust) for name, result in results.items()},
        "clean decisions that differ": int(sum((ours.clean != results[name].clean).sum() for name in (LIPSIM, RCLIP))),
        "outcomes that differ": {name: differing(ours, results[name], triplets) for name in (LIPSIM, RCLIP)},
    }
    if fast:
        name = "ours, bfloat16"
        found["times faster in bfloat16"] = {other: seconds[other] / seconds[name] for other in (OURS, LIPSIM, RCLIP)}
        less = {other: processor[other] / processor[name] for other in (OURS, LIPSIM, RCLIP)}
        found["times less processor time in bfloat16"] = less
        found["points between bfloat16 and float32"] = abs(percent(results[name].robust) - percent(ours.robust))
    else:
        found["bfloat16"] = "skipped: this device emulates it, which takes many times as long as float32"
    if random:
        found["seconds per iteration"] = {name: value / (steps + 1) for name, value in seconds.items()}
        found["samples that left"] = int((ours.clean & ~ours.robust).sum())
        if norm == options.norms[0] and not options.skip_memory:
            memory = {"model": model, "samples": len(triplets.keys), "chunk_size": chunk}
            found["peak bytes"] = peak_memory(runs, device, **memory)
    else:
        # As above, but the first step's rise is judged by the start's loss: what is left is rounding.
        paper = rclip_evaluation(plain(metric.metric.encoder), triplets, ball, steps, unset_row=False)
        found["outcomes that differ"]["R-CLIP, every row set"] = differing(ours, paper, triplets)
    rows = ours.clean.nonzero()[:, 0]
    right = some_of(triplets, rows.tolist())
    attack, alone = passes_of(metric, right, ball, steps, chunk)
    turns = take_turns({"attack": attack, "passes": alone}, 1 if random else 2 * repeats + 1, device=device)
    found["share of the attack's own arithmetic"] = {
        kind: 1 - spent["passes"] / spent["attack"]
        for kind, spent in (("of the seconds", turns.seconds), ("of the processor's", turns.processor))
    }
    found["top operations"] = top_operations(attack, device)
    return found


def agreement(norm: str, metric: EncoderMetric, triplets: Triplets, options: argparse.Namespace) -> dict[str, Any]:
    """The attack in bfloat16, confirmed in float32, against the attack in float32, on any device."""
    size = metric.metric.encoder.image_size
    ball = ball_of(norm, "tiny", size)
    chunk = options.chunk_size or default_chunk_size(metric.device, size)
    half = metric.in_bfloat16()
    blocks = range(0, len(triplets.keys), 64)

    def attacked(other: EncoderMetric | None) -> Tensor:
        parts = [some_of(triplets, list(range(len(triplets.keys))[first : first + 64])) for first in blocks]
        return torch.cat([our_evaluation(metric, part, ball, options.steps, chunk, other).robust for part in parts])

    runs = {"float32": partial(attacked, None), "bfloat16": partial(attacked, half)}
    turns = take_turns(runs, options.repeats, device=options.device, warm_up=0)
    full, approximate = turns.results.values()
    return {
        "ball": str(ball),
        "samples": len(full),
        "robust accuracy": {"float32": percent(full), "bfloat16": percent(approximate)},
        "points of difference": abs(percent(full) - percent(approximate)),
        "fooled in bfloat16 alone": int((full & ~approximate).sum()),
        "fooled in float32 alone": int((~full & approximate).sum()),
        "seconds": turns.seconds,
        "processor seconds": turns.processor,
    }


def in_blocks(
    norm: str, model: str, metric: EncoderMetric, triplets: Triplets, options: argparse.Namespace
) -> dict[str, Any]:
    """All samples in one block against blocks of 64: the more there are, the fuller the passes of those that stay."""
    ball = ball_of(norm, model, metric.metric.encoder.image_size)
    chunk = options.chunk_size or default_chunk_size(metric.device, metric.metric.encoder.image_size)
    count = len(triplets.keys)

    def run(size: int) -> Outcome:
        found = [
            our_evaluation(
                metric, some_of(triplets, list(range(count))[first : first + size]), ball, options.steps, chunk
            )
            for first in range(0, count, size)
        ]
        clean, robust = (torch.cat([getattr(one, name) for one in found]) for name in ("clean", "robust"))
        return Outcome(clean, robust, None, sum(one.forward for one in found), sum(one.backward for one in found))

    sizes = {"blocks of 64": partial(run, 64), f"one of {count}": partial(run, count)}
    turns = take_turns(sizes, options.repeats, device=options.device, warm_up=0)
    (small, large), (one, other) = turns.results.values(), turns.processor.values()
    return {
        "ball": str(ball),
        "samples": count,
        "robust accuracy": percent(small.robust),
        "outcomes that differ": int((small.robust != large.robust).sum()),
        "images backward": {name: result.backward for name, result in turns.results.items()},
        "processor seconds": turns.processor,
        "times less processor time": one / other,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the tables and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*SHIPPED, "convnext_base_w"], metavar="MODEL")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=NORMS, metavar="NORM")
    parser.add_argument("--samples", type=int, default=64, help="one batch, for the shipped models")
    parser.add_argument("--steps", type=int, default=100, help="iterations for the shipped models")
    parser.add_argument("--random-samples", type=int, default=8, help="the batch for random weights")
    parser.add_argument("--random-steps", type=int, default=5, help="iterations for random weights")
    parser.add_argument("--chunk-size", type=int, help="images per pass of ours (default: as for evaluations)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each for the shipped models")
    parser.add_argument("--skip-memory", action="store_true", help="no process of its own per peak of memory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bfloat16-agreement", action="store_true", help="only compare what bfloat16 and float32 find on tiny"
    )
    parser.add_argument("--blocks", action="store_true", help="only compare blocks of 64 with one of all --samples")
    parser.add_argument("--scenes", type=Path, default=SCENES, help="triplets, as `train scenes` writes them")
    parser.add_argument("--out", type=Path, help="a .json, or a folder for one of this kind of machine")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        figures = measure_memory(**json.loads(options.measure))
        print(json.dumps(figures))
        return figures

    names = ("models", "norms", "samples", "steps", "random_samples", "random_steps", "repeats", "device")
    settings = {**{name: getattr(options, name) for name in names}, "seed": 0, "tf32": False}
    report = Report("benchmark_attack", options.out, settings, device=options.device)
    report.record["versions"] = {"rclip-metric": __version__, "python": platform.python_version()}
    report.record["expected"] = AIMS
    for part in ("machine", "settings", "versions", "expected"):
        print(outlined(part, report.record[part]))
    with full_float32():
        for model in ["tiny"] if options.bfloat16_agreement else options.models:
            metric = load_metric(model, options.device)
            count = options.samples if model in SHIPPED else options.random_samples
            triplets = load_triplets(metric, count, options.scenes)
            if model not in SHIPPED:
                triplets = own_choices(metric, triplets)
            for norm in options.norms:
                if options.bfloat16_agreement:
                    name, found = f"{model} {norm}, agreement", agreement(norm, metric, triplets, options)
                elif options.blocks:
                    name, found = f"{model} {norm}, blocks", in_blocks(norm, model, metric, triplets, options)
                else:
                    name, found = f"{model} {norm}", case(model, norm, metric, triplets, options)
                report.add(name, found)
                print(outlined(name, found), flush=True)
    return report.record


if __name__ == "__main__":
    main()
