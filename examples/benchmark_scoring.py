"""What scoring and the loss cost, against the original OpenCLIP towers used as people use them.

    python examples/benchmark_scoring.py
    python examples/benchmark_scoring.py --only loss throughput --models r-clip-f --batch-sizes 1 8 32 --out results/

Weights are random (seeded): speed and memory do not depend on them, and nothing is downloaded. Only what bfloat16
changes is measured on the trained weights that ship; `benchmark_second_look.py` does so on triplets. All contestants
of a table hold the same weights and take turns within one run (A B C, C B A, ...); the figures are medians, and only
their ratios mean anything on another machine. `bfloat16` is fast where the processor multiplies it (AMX, AVX512-BF16,
a GPU's tensor cores) and slow elsewhere: the header says what this machine has.

    import        a process with `import rclip_metric` against one with `import torch`
    construction  r-clip-f from a warm cache: seconds after the imports, peak memory against the vision weights
    loss          forward + backward to the images against the raw tower with gradients everywhere: time and memory
    overhead      metric(x, y), small pairs in one pass, against our own raw tower called twice
    throughput    pairs per second against the original tower called twice in float32; what bfloat16 changes
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rclip_metric.train.benchmark.report import Report, outlined
from rclip_metric.train.benchmark.turns import Turns, take_turns

PARTS = ("import", "construction", "loss", "overhead", "throughput")
MODELS = ("r-clip-f", "r-clip-f-vit-b-16")
DTYPES = ("float32", "bfloat16")
TRAINED = ("tiny", "r-lite-f")
"""What bfloat16 changes is asked of these: at its start the layer scale of a ConvNeXt switches its blocks off."""
LOSS_BATCH_SIZE = 8

# What the published checkpoints were made with; ours is built from the same entry.
OPEN_CLIP_NAMES = {"r-clip-f": "convnext_base_w", "r-clip-f-vit-b-16": "ViT-B-16"}
TOY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


class Settings(NamedTuple):
    """What is measured, and how often."""

    repeats: int
    models: Sequence[str]
    dtypes: Sequence[str]
    batch_sizes: Sequence[int]
    keep: Callable[[str, dict[str, Any]], object] = lambda part, found: None  # what a part has found so far


# The contestants


def open_clip_config(model: str) -> dict[str, Any]:
    """OpenCLIP's own configuration, at the image size of the published evaluation."""
    import open_clip

    if model == "toy":
        return TOY
    config = open_clip.get_model_config(OPEN_CLIP_NAMES[model])
    config["vision_cfg"]["image_size"] = 224
    return config


def original(model: str, text: bool = False) -> nn.Module:
    """The original CLIP with random weights, in eval mode as loaded; only its visual tower unless text is asked for."""
    import open_clip

    config = dict(open_clip_config(model))
    if not text:
        config["text_cfg"] = TOY["text_cfg"]
    torch.manual_seed(0)
    clip = open_clip.CLIP(**config).eval()
    return clip if text else clip.visual


def ours(model: str, tower: nn.Module, **settings: Any) -> Any:
    """A metric with the weights of an original visual tower."""
    from rclip_metric import Encoder, RobustPerceptualDistance
    from rclip_metric.encoder import convert, open_clip_vision_architecture
    from rclip_metric.images import Preprocessing

    architecture = open_clip_vision_architecture(open_clip_config(model))
    state = {f"visual.{key}": value.detach().clone() for key, value in tower.state_dict().items()}
    size = architecture.image_size
    preprocessing = Preprocessing(mode="crop", resize=size, crop=size)
    encoder = Encoder.from_weights(convert(state, "open-clip", architecture), architecture, preprocessing, name=model)
    return RobustPerceptualDistance(encoder, **settings)


def images(model: str, count: int, seed: int) -> Tensor:
    """(count, 3, S, S) in [0, 1], of the model's size."""
    return smooth_noise(open_clip_config(model)["vision_cfg"]["image_size"], count, seed)


def smooth_noise(size: int, count: int, seed: int) -> Tensor:
    """(count, 3, size, size) in [0, 1]: a little like photographs."""
    coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def naive_distance(tower: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What people write around a raw tower: normalise, embed both, one minus the cosine."""
    from rclip_metric.images import CLIP_MEAN, CLIP_STD

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    u, v = (F.normalize(tower((image - mean) / std), dim=-1) for image in (x, y))
    return 1 - (u * v).sum(-1)


# Measuring


def in_a_fresh_process(measurement: str, **settings: Any) -> dict[str, Any]:
    """Run one of MEASUREMENTS in its own interpreter."""
    command = [sys.executable, __file__, "--measure", measurement, json.dumps(settings)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return dict(json.loads(result.stdout))


def memory() -> dict[str, float]:
    """Resident and peak resident memory of this process in bytes; nothing where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    rows = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return {name: 1024 * float(rows[name].split()[0]) for name in ("VmRSS", "VmHWM")}


def forget_the_peak() -> None:
    """Let the peak start again from what is resident now."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_since(before: Mapping[str, float]) -> float | None:
    """Bytes by which the peak is above what was resident before."""
    return memory()["VmHWM"] - before["VmRSS"] if before else None


def share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def measure_construction(model: str, cache_dir: str | None, size: int) -> dict[str, Any]:
    """Seconds and peak memory of building a metric and of its first score, imports not counted."""
    import huggingface_hub
    import safetensors.torch
    import timm.models
    import torchvision

    from rclip_metric import RobustPerceptualDistance

    del huggingface_hub, safetensors, timm, torchvision
    F.linear(torch.rand(256, 256), torch.rand(256, 256))  # what the math library sets up for itself
    x = torch.rand(1, 3, size, size)
    forget_the_peak()
    before = memory()
    start = time.perf_counter()
    metric = RobustPerceptualDistance(model, cache_dir=cache_dir)
    seconds = time.perf_counter() - start
    built = peak_since(before)
    start = time.perf_counter()
    metric(x, 1 - x)
    return {
        "seconds": seconds,
        "peak": built,
        "first score seconds": time.perf_counter() - start,
        "peak with first score": peak_since(before),
    }


def loss_step(name: str, tower: nn.Module, model: str) -> Callable[[], object]:
    """One step of an optimisation: forward, backward to the images."""
    x, y = images(model, LOSS_BATCH_SIZE, seed=1).requires_grad_(), images(model, LOSS_BATCH_SIZE, seed=2)

    def step_of(distance: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], object]:
        def step() -> None:
            for leaf in leaves:
                leaf.grad = None
            distance().mean().backward()

        return step

    if name == "naive float32":
        # Both sides carry a graph, and so do the weights.
        return step_of(lambda: naive_distance(tower, x, y.requires_grad_()), [x, y, *tower.parameters()])
    metric = ours(model, tower, squared=True)
    if "bfloat16" in name:
        metric.to(torch.bfloat16)
    if "embedded once" in name:
        embedding = metric.embed(y)
        return step_of(lambda: metric.distance_to(embedding, x), [x])
    return step_of(lambda: metric(x, y), [x])


LOSSES = ("naive float32", "float32", "float32, y embedded once", "bfloat16", "bfloat16, y embedded once")


def measure_loss_memory(name: str, model: str) -> dict[str, Any]:
    """Peak memory of a first step above model and images."""
    tower = original(model)
    step = loss_step(name, tower, model)
    if name == "naive float32":
        with torch.no_grad():  # what the first forward alone sets up
            tower(images(model, 1, seed=3))
    del tower
    gc.collect()
    forget_the_peak()
    before = memory()
    step()
    return {"peak": peak_since(before)}


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "construction": measure_construction,
    "loss memory": measure_loss_memory,
}


# The parts


def import_part(settings: Settings) -> dict[str, Any]:
    modules = ("torch", "rclip_metric")
    imports = {name: partial(subprocess.run, [sys.executable, "-c", f"import {name}"], check=True) for name in modules}
    turns = take_turns(imports, settings.repeats)
    return {"ratio": turns.ratio("rclip_metric", "torch"), **turns.to_dict()}


def construction_part(settings: Settings) -> dict[str, Any]:
    from safetensors.torch import save_file

    model = settings.models[0]
    with tempfile.TemporaryDirectory(prefix="rclip-metric-benchmark-") as folder:
        clip = original(model, text=True)
        vision = sum(p.numel() * p.element_size() for p in clip.get_submodule("visual").parameters())
        weights = Path(folder) / "open_clip_model.safetensors"
        save_file(clip.state_dict(), weights)
        size = open_clip_config(model)["vision_cfg"]["image_size"]
        del clip
        file_size = weights.stat().st_size
        if model == "toy":
            (Path(folder) / "open_clip_config.json").write_text(json.dumps({"model_cfg": TOY}))
            source: dict[str, Any] = {"model": folder, "cache_dir": None}
        else:
            source = {"model": model, "cache_dir": hub_cache(weights, model)}
        # Once for the disk and for the digest, which is then remembered: a warm cache.
        first, *warm = [in_a_fresh_process("construction", size=size, **source) for _ in range(settings.repeats + 1)]
    median = {name: statistics.median(run[name] for run in warm) if first[name] is not None else None for name in first}
    peaks = {name: share(median[name], vision) for name in ("peak", "peak with first score")}
    return {
        "model": model,
        "file bytes": file_size,
        "vision bytes": vision,
        "first": first,
        "warm": median,
        "peak over vision weights": peaks,
    }


def hub_cache(weights: Path, model: str) -> str:
    """Move a file to where huggingface_hub would have put it."""
    from rclip_metric.weights import get_spec
    from rclip_metric.weights.digest import file_digest

    spec = get_spec(model)
    assert spec.repo is not None
    sha256 = file_digest(weights)
    cache = weights.parent / "hub"
    storage = cache / f"models--{spec.repo.replace('/', '--')}"
    commit = (spec.revision or "").ljust(40, "0")
    snapshot, blobs = storage / "snapshots" / commit, storage / "blobs"
    for directory in (snapshot, blobs, storage / "refs"):
        directory.mkdir(parents=True)
    (storage / "refs" / "main").write_text(commit)
    weights.rename(blobs / sha256)
    (snapshot / weights.name).symlink_to(Path("../../blobs") / sha256)
    return str(cache)


def loss_part(settings: Settings) -> dict[str, Any]:
    results: dict[str, Any] = {}
    contestants = [name for name in LOSSES if "bfloat16" in settings.dtypes or "bfloat16" not in name]
    for model in settings.models:
        tower = original(model)
        steps = {name: loss_step(name, tower, model) for name in contestants}
        turns = take_turns(steps, settings.repeats)
        del tower, steps
        peaks = {name: in_a_fresh_process("loss memory", name=name, model=model)["peak"] for name in contestants}
        results[model] = {
            name: {
                "seconds": turns.seconds[name],
                **faster(turns, "naive float32", name),
                "peak bytes": peaks[name],
                "share of memory": share(peaks[name], peaks["naive float32"]),
            }
            for name in contestants
        } | turns.to_dict()
        settings.keep("loss", results)
    return results


def overhead_part(settings: Settings) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for model in settings.models:
        metric = ours(model, original(model))
        tower, mean, std = metric.encoder.tower, metric.encoder.mean, metric.encoder.std
        for count in settings.batch_sizes:
            x, y = images(model, count, seed=1), images(model, count, seed=2)
            pixels = [(image - mean) / std for image in (x, y)]

            def towers(tower: nn.Module = tower, pixels: list[Tensor] = pixels) -> None:
                with torch.no_grad():
                    for batch in pixels:
                        tower(batch)

            turns = take_turns({"towers": towers, "metric": partial(metric, x, y)}, 2 * settings.repeats)
            results[f"{model}, batch {count}"] = {
                "towers seconds": turns.seconds["towers"],
                "overhead": turns.ratio("metric", "towers", "wall") - 1,
                "overhead, processor": turns.ratio("metric", "towers") - 1,
                **turns.to_dict(),
            }
            settings.keep("overhead", results)
    return results


def throughput_part(settings: Settings) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for model in settings.models:
        tower = original(model)
        metric = ours(model, tower)
        half = ours(model, tower).to(torch.bfloat16) if "bfloat16" in settings.dtypes else None
        tower.requires_grad_(False)  # the original at its best
        for count in settings.batch_sizes:
            x, y = images(model, count, seed=1), images(model, count, seed=2)

            def original_pair(tower: nn.Module = tower, x: Tensor = x, y: Tensor = y) -> None:
                with torch.inference_mode():
                    naive_distance(tower, x, y)

            contestants: dict[str, Callable[[], object]] = {"original float32": original_pair}
            if "float32" in settings.dtypes:
                contestants["float32"] = partial(metric, x, y)
            if half is not None:
                contestants["bfloat16"] = partial(half, x, y)
            turns = take_turns(contestants, settings.repeats)
            results[f"{model}, batch {count}"] = {
                name: {"pairs per second": count / turns.seconds[name], **faster(turns, "original float32", name)}
                for name in contestants
            } | turns.to_dict()
            settings.keep("throughput", results)
    for model in TRAINED if "bfloat16" in settings.dtypes else ():
        results[f"{model}, change by bfloat16"] = change_of_distances(model)
    return results


def faster(turns: Turns, base: str, name: str) -> dict[str, float]:
    """How many times as long the base takes: medians of the ratios within a round, of wall and of processor time."""
    kinds = {"times faster": "wall", "times less processor time": "processor"}
    return {words: turns.ratio(base, name, kind) for words, kind in kinds.items()}


def change_of_distances(model: str) -> dict[str, float]:
    """Distances of 32 pairs from nearly equal to unrelated, in float32 and in bfloat16."""
    from rclip_metric import RobustPerceptualDistance

    metric, half = RobustPerceptualDistance(model), RobustPerceptualDistance(model).to(torch.bfloat16)
    x, other = (smooth_noise(metric.encoder.image_size, 8, seed) for seed in (1, 2))
    full, changed = [], []
    for share in (0.03, 0.1, 0.3, 1.0):
        y = torch.lerp(x, other, share)
        full.append(metric(x, y))
        changed.append(half(x, y))
    distances = torch.cat(full)
    change = (torch.cat(changed) - distances).abs()
    return {
        "mean distance": distances.mean().item(),
        "mean change": change.mean().item(),
        "largest change": change.max().item(),
        "largest relative change": (change / distances).max().item(),
    }


RUN: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "import": import_part,
    "construction": construction_part,
    "loss": loss_part,
    "overhead": overhead_part,
    "throughput": throughput_part,
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the parts, print their tables and return the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=DTYPES,
        metavar="DTYPE",
        help="leave bfloat16 out where the processor does not multiply it: a step then takes minutes",
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], metavar="N", help="pairs (default: 1 8)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the report to this .json, or to one in this folder")
    parser.add_argument("--toy", action="store_true", help="a tower of a few thousand parameters, to try it out")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        measurement, settings = arguments.measure
        figures = MEASUREMENTS[measurement](**json.loads(settings))
        print(json.dumps(figures))
        return figures

    models = ["toy"] if arguments.toy else list(arguments.models)
    settings = Settings(arguments.repeats, models, list(arguments.dtypes), arguments.batch_sizes)
    about = {name: value for name, value in settings._asdict().items() if name != "keep"}
    report = Report("benchmark_scoring", arguments.out, about)
    settings = settings._replace(keep=report.add)
    print(outlined("machine", report.record["machine"]))
    for part in PARTS:
        if part in arguments.only:
            report.add(part, RUN[part](settings))
            print(outlined(part, report.record["results"][part], without="times"), flush=True)
    return report.record


if __name__ == "__main__":
    main()
