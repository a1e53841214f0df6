"""The card of a provable metric: what it is, how it was made, what is proved of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CITED = (
    "- Ghazanfari, Araujo, Krishnamurthy, Khorrami, Garg: *LipSim: A Provably Robust Perceptual Similarity Metric*, "
    "2023, arXiv 2310.18274",
    "- Araujo, Havens, Delattre, Allauzen, Hu: *A Unified Algebraic Perspective on Lipschitz Neural Networks*, 2023, "
    "arXiv 2303.03169 (SLL layers)",
)


def metric_card(record: Mapping[str, Any], megabytes: float) -> str:
    """Write README.md from run.json.

    Example:
        >>> record = {
        ...     "name": "mine", "license": None, "training": {"method": "LipSim", "data": "photos", "base": "lite"},
        ...     "architecture": {"image_size": 64, "embedding": 512}, "recipe": {"depth": 5}, "validations": [],
        ...     "lipschitz": {"largest": 0.5, "images": 8, "iterations": 30}, "seconds": 60.0,
        ... }
        >>> metric_card(record, 4.2).splitlines()[0]
        '# mine'
    """
    training, sizes, measured = record["training"], record["architecture"], record["lipschitz"]
    license = record["license"] or "Nobody has stated the licence of the weights."
    parts = [
        f"# {record['name']}",
        "A perceptual image metric whose decisions come with a proof: the cosine of the embeddings of a 1-Lipschitz "
        f"network (LipSim), made by {training['method']}, of `{training['base']}`, on {training['data']}. For every "
        "comparison of two images with a reference it states how far, in l_2, the reference may move before another is "
        "the closer one.",
        "```python\nfrom rclip_metric.train.metrics import load_metric\n\n"
        f'metric = load_metric("path/to/{record["name"]}")  # this folder\n```\n\n'
        f"`rclip-metric benchmark --metrics path/to/{record['name']} --data nights:NIGHTS --certified` judges it.",
        _table(
            {
                "images": f"RGB in [0, 1], squashed to {sizes['image_size']}x{sizes['image_size']} pixels",
                "embedding": f"{sizes['embedding']} numbers",
                "layers": ", ".join(f"{name} {value}" for name, value in sizes.items() if name != "image_size"),
                "stored": f"float32, the constraint folded in; {megabytes:.2f} MB, safetensors",
                "stretches by at most": f"1 (proved); {measured['largest']:.6f} measured, {measured['images']} images",
                "this step took": f"{record['seconds']:.0f} s",
            }
        ),
    ]
    if record["validations"]:
        last = record["validations"][-1]
        parts.append(
            f"On the held-out triplets: {last['val_accuracy']:.1f} % right, {last['val_certified']:.1f} % right and "
            f"proven to stay so within 36/255 (at 224 pixels), mean certified radius {last['val_radius']:.4f}."
        )
    parts.append("## Recipe\n\n" + _table({name: str(value) for name, value in record["recipe"].items()}))
    parts.append(f"## Licence\n\n{license}")
    parts.append("## Citation\n\n" + "\n".join(_CITED))
    return "\n\n".join(parts) + "\n"


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
