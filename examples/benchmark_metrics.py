"""What a score costs: ours, DreamSim, LipSim and LPIPS at 224 pixels, pairs per second and memory, in one run.

    python examples/benchmark_metrics.py                                        # a CPU
    python examples/benchmark_metrics.py --device cuda --batch-sizes 1 8 64     # a GPU

Weights are random (seeded), nothing is downloaded. Every metric gets a process of its own, all of them visited forwards
and then backwards, so that a machine that slows down shows; figures are medians, and only their ratios, in processor
time within a round, mean anything on another machine. Two rows are others' own code, for comparison: DreamSim's
package (pip install dreamsim), with its adapters beside the layers as it runs them, and LipSim's published formulas,
whose constraint is computed in every pass.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from rclip_metric.train.benchmark import TimingSettings, time_metrics
from rclip_metric.train.benchmark.report import Report
from rclip_metric.train.metrics.base import EmbeddingMetric, Facts
from rclip_metric.train.runs.files import write_text
from rclip_metric.train.runs.precision import bfloat16_is_fast

DREAMSIM, LIPSIM = "benchmark_metrics:dreamsim_package", "benchmark_metrics:lipsim_published"
OURS = ("r-clip-f", "r-clip-f-vit-b-16", "r-dino-f")
OTHERS = ("dreamsim", "dreamsim-dino-vitb16", "dreamsim-clip-vitb32", "lipsim-0.5", "lpips-alex", "lpips-vgg")
NAMES = (*(f"{name}@random" for name in (*OURS, *OTHERS)), DREAMSIM, LIPSIM)


def dreamsim_package(device: str) -> EmbeddingMetric:
    """The package's ensemble as its `dreamsim()` builds it, around random weights instead of downloaded ones."""
    from dreamsim.feature_extraction import extractor
    from dreamsim.feature_extraction.load_clip_as_dino import QuickGELU
    from dreamsim.feature_extraction.vision_transformer import vit_base
    from dreamsim.model import PerceptualModel
    from peft import LoraConfig, get_peft_model

    def tower(kind: str, folder: str) -> Any:
        network = vit_base(patch_size=16)
        if "clip" not in kind:
            return network
        network.pos_drop = torch.nn.LayerNorm(768)
        if not kind.startswith("open"):
            for block in network.blocks:
                block.mlp.act = QuickGELU()
        return network, torch.randn(768, 512) / 28

    torch.manual_seed(0)
    extractor.ViTExtractor.create_model = staticmethod(tower)
    towers = {"model_type": "dino_vitb16,clip_vitb16,open_clip_vitb16", "feat_type": "cls,embedding,embedding"}
    model = PerceptualModel(**towers, stride="16,16,16", lora=True, normalize_embeds=True, device=device)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=["qkv"]))
    model.to(device).eval().requires_grad_(False)
    facts = Facts("DreamSim (its package)", sum(parameter.numel() for parameter in model.parameters()), "MIT")
    return EmbeddingMetric(model.embed, 224, name="dreamsim-package", device=device, facts=facts)


def lipsim_published(device: str) -> EmbeddingMetric:
    """The published formulas of LipSim, transcribed in benchmark_lipsim.py."""
    from benchmark_lipsim import published

    from rclip_metric.train.metrics.lipsim.architecture import LipSimArchitecture
    from rclip_metric.train.metrics.lipsim.published import random_tensors

    sizes = LipSimArchitecture()
    state = {key: tensor.to(device) for key, tensor in random_tensors(sizes).items()}
    facts = Facts("LipSim (as published)", sum(tensor.numel() for tensor in state.values()))
    return EmbeddingMetric(
        lambda images: published(state, sizes, images), 224, name="lipsim-published", device=device, facts=facts
    )


def markdown(found: dict[str, Any], batch_sizes: list[int], precisions: list[str]) -> str:
    """A row per metric; in brackets, how many times the processor time of DreamSim's package is its own.

    That is of the same type of number and batch size; a file of before it was measured has the ratio of pairs.
    """
    slow = (found.get(DREAMSIM) or {}).get("timing") or {}
    columns = [(precision, size) for precision in precisions for size in batch_sizes]
    heads = [f"{precision}, batch {size}" for precision, size in columns]
    lines = ["| | " + " | ".join(heads) + " | MB |", "|---|" + "---:|" * (len(heads) + 1)]
    for name, entry in found.items():
        timing = entry.get("timing") or {}
        cells = []
        for precision, size in columns:
            cell, against = (cells_of.get(precision, {}).get(str(size)) for cells_of in (timing, slow))
            ratio = ""
            if cell and against:
                wall = cell["pairs_per_second"] / against["pairs_per_second"]
                ratio = f" ({1 / cell['ratio']['times'] if 'ratio' in cell else wall:.2g})"
            cells.append(f"{cell['pairs_per_second']:.3g}{ratio}" if cell else "-")
        memory = timing.get("float32", {}).get("memory_mb")
        label = {DREAMSIM: "DreamSim, its package", LIPSIM: "LipSim, as published"}.get(name, name.partition("@")[0])
        lines.append(f"| {label} | {' | '.join(cells)} | {'-' if memory is None else f'{memory:.0f}'} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", nargs="+", default=list(NAMES), metavar="NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--repeats", type=int, default=3, help="per round (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per metric and batch size (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), help="default: those that are fast here"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="a .json, or a folder; a .md beside it")
    options = parser.parse_args(argv)
    precisions = options.dtypes or [
        "float32",
        *(["bfloat16"] if bfloat16_is_fast(torch.device(options.device)) else []),
    ]
    here = str(Path(__file__).parent)
    if here not in sys.path:
        sys.path.insert(0, here)  # for the processes that are timed
    settings = {"device": options.device, "batch_sizes": options.batch_sizes, "repeats": options.repeats}
    settings |= {"rounds": options.rounds, "seconds": options.seconds, "precisions": precisions}
    visit = TimingSettings(options.device, tuple(options.batch_sizes), options.repeats, seconds=options.seconds)
    reference = DREAMSIM if DREAMSIM in options.metrics else None
    report = Report("benchmark_metrics", options.out, settings, device=options.device)
    found = time_metrics(options.metrics, visit, precisions=precisions, rounds=options.rounds, reference=reference)
    for name, entry in found.items():
        report.add(name, entry)
    assert report.path is not None
    text = markdown(found, options.batch_sizes, precisions)
    write_text(report.path.with_suffix(".md"), text)
    print(text)
    for name, entry in found.items():
        if "failed" in entry:
            print(f"{name}: {entry['failed']}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
