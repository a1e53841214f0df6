"""What the paper reports of content filters: the percentage of queries that land in each class, clean and attacked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclip_metric.train.metrics.paper import is_published

Row = tuple[float | None, ...]

# Tables III and VIII, with a buffer: safe queries clean, and attacked towards unsafe, then unsafe queries clean, and
# attacked towards safe; each safe, buffer, unsafe. l_inf 8/255, 200 steps, 16 targets, pools of 500 per class. The
# scan drops decimal points: they were put back where the three add up to 100, and None stands where it is illegible.
BUFFERED: Mapping[str, tuple[Row, Row, Row, Row]] = {
    "lipsim-pretrained": ((66.4, 20.8, 12.8), (9.6, 32.0, 58.4), (5.6, 32.8, 61.6), (61.6, 12.6, 25.8)),
    "lipsim-0.5": ((69.2, 16.0, 14.8), (35.0, 15.2, 49.8), (21.6, 12.6, 65.8), (50.2, 23.6, 26.2)),
    "r-lpips": ((40.2, 25.6, 34.2), (7.0, 38.0, 55.0), (10.2, 27.2, 62.6), (41.2, 23.6, 35.2)),
    "dreamsim-dino-vitb16": ((72.2, 14.0, 13.8), (5.0, 11.4, 83.6), (0.6, 6.6, 92.8), (63.8, 16.6, 19.6)),
    "dreamsim": ((88.6, 7.8, 3.6), (0.8, 3.2, 96.0), (0.2, 4.2, 95.6), (84.0, 10.6, 5.4)),
    "dino-vit-b-16": ((79.0, 10.8, 10.2), (4.8, 12.7, 82.5), (2.8, 10.4, 86.8), (77.1, 10.2, 12.7)),
    "r-dino-f": ((80.2, 8.8, 11.0), (54.6, 8.7, 36.7), (12.0, 3.6, 84.4), (26.9, 6.0, 67.1)),
    "clip-vit-b-16": ((89.6, 4.8, 5.6), (0.0, 6.5, 93.5), (0.2, 7.2, 92.6), (88.4, 7.6, 4.0)),
    "r-clip-f-vit-b-16": ((85.2, 7.4, 7.4), (54.4, 15.2, 30.4), (2.4, 2.8, 94.8), (18.4, 7.2, 74.4)),
    "r-clip-t-vit-b-16": ((64.2, 26.2, 9.6), (44.8, 11.0, 44.2), (44.8, 23.0, 32.2), (46.8, 16.4, 36.8)),
    "clip-convnext-b": ((89.4, 6.6, 4.0), (1.0, 9.8, None), (0.2, 8.2, 91.6), (89.0, 6.8, 4.2)),
    "r-clip-f": ((88.6, 4.2, 7.2), (50.6, 15.2, 34.2), (1.2, 6.6, 92.2), (18.6, 6.4, 75.0)),
    "r-clip-t": ((74.2, 9.0, 16.8), (46.6, 21.0, 32.4), (9.8, 11.2, 79.0), (8.2, 21.4, 70.4)),
    "clip-convnext-b+lora": ((86.2, 7.2, 6.6), (0.6, 24.8, 74.6), (0.4, 23.4, 76.2), (86.7, 6.9, 6.5)),
    "r-clip-f+lora": ((78.4, 10.8, 10.8), (57.1, 21.7, 21.2), (1.4, 13.6, 85.0), (9.0, 12.2, 78.8)),
    "r-clip-t+lora": ((80.2, 11.0, 8.8), (53.1, 25.0, 21.9), (2.0, 18.0, 80.0), (4.8, 29.6, 65.6)),
}
LAION = "laion-vit-l-14"
"""The name of LAION's detector on ViT-L/14."""
# Table IV, on the same images without the buffer: safe and unsafe queries that stay what they are, clean, then
# attacked. The detector is attacked through its encoder alone (on its own score it is at zero), and the last row is
# the two of them attacked separately.
UNBUFFERED: Mapping[str, Row] = {
    LAION: (98.2, 99.6, 13.1, 28.2),
    "clip-convnext-b": (95.4, 99.4, 0.0, 4.2),
    "r-clip-f": (92.2, 98.4, 56.4, 82.8),
    f"r-clip-f or {LAION}": (89.6, 99.8, 9.3, 91.0),
}
# Table X, weapons among ImageNet's classes, without a buffer, 500 steps: safe and unsafe queries clean, then 1000
# unsafe ones attacked.
GUNS: Mapping[str, Row] = {
    "lipsim-pretrained": (65.3, 69.3, None, 29.0),
    "lipsim-0.5": (74.5, 70.4, None, 44.2),
    "r-lpips": (61.5, 64.3, None, 42.4),
    "dreamsim-dino-vitb16": (68.9, 92.5, None, 14.4),
    "dreamsim": (79.4, 98.2, None, 19.5),
    "dino-vit-b-16": (79.9, 99.0, None, 20.5),
    "r-dino-f": (70.9, 98.0, None, 89.6),
    "clip-convnext-b": (83.6, 99.1, None, 9.9),
    "r-clip-f": (85.8, 98.0, None, 92.4),
    "r-clip-t": (83.2, 97.6, None, 87.4),
    "clip-convnext-b+lora": (75.7, 98.2, None, 20.4),
    "r-clip-f+lora": (68.0, 97.0, None, 68.4),
    "r-clip-t+lora": (75.6, 98.7, None, 70.0),
}
STEPS = {"nsfw": 200, "guns": 500}


def reported_landed(record: Mapping[str, Any], phase: str) -> dict[str, dict[str, float]]:
    """Find the paper's percentages for a record: direction -> role -> percent; {} where there are none.

    The data have to be the published ones, the pool and the targets as large as the paper's, and the attack its own.

    Args:
        record: of `rclip-metric eval filter`.
        phase: "clean" or "attacked".

    Example:
        >>> data = {"published": "nsfw", "unreadable": [], "protocol": None, "pool": {"safe": 500}, "targets": {}}
        >>> record = {"model": {"name": "r-lpips", "revision": "sha256:0"}, "data": data}
        >>> reported_landed(record, "clean")["safe to unsafe"]
        {'safe': 40.2, 'buffer': 25.6, 'unsafe': 34.2}
    """
    data, known = record["data"], record["data"].get("published")
    name = _name(record["model"])
    sizes = {*data["pool"].values()} == {500} and {*data["targets"].values()} <= {16}
    if known not in STEPS or data["unreadable"] or not sizes or name is None:
        return {}
    if phase == "attacked" and not _papers_attack(record["threat"], STEPS[known]):
        return {}
    directions = ("safe to unsafe", "unsafe to safe")
    if known == "nsfw" and data["protocol"] is None and name in BUFFERED:
        rows = BUFFERED[name][phase == "attacked" :: 2]
        named = [dict(zip(("safe", "buffer", "unsafe"), row, strict=True)) for row in rows]
        return {
            direction: {role: value for role, value in row.items() if value is not None}
            for direction, row in zip(directions, named, strict=True)
        }
    row = (UNBUFFERED if known == "nsfw" else GUNS).get(name) if data["protocol"] else None
    if row is None:
        return {}
    own = row[2:] if phase == "attacked" else row[:2]
    stays = zip(directions, ("safe", "unsafe"), own, strict=True)
    return {direction: {role: value} for direction, role, value in stays if value is not None}


def _name(model: Mapping[str, Any]) -> str | None:
    """Find the name by which the tables above know a model: a metric, a detector, or both."""
    detector = model.get("detector")
    metric = model if detector is None else model.get("metric")
    if detector is not None and detector.get("name") != LAION:
        return None
    if metric is None:
        return LAION
    converted = str(metric.get("revision") or "").startswith("sha256:")  # of a baseline's published weights
    if not (is_published(metric) or (converted and metric["name"] in BUFFERED)):
        return None
    return str(metric["name"]) if detector is None else f"{metric['name']} or {LAION}"


def _papers_attack(threat: Mapping[str, Any], steps: int) -> bool:
    ball = threat.get("norm") == "linf" and abs(threat.get("eps", 0) - 8 / 255) < 1e-6
    return ball and threat["steps"] == steps and threat["loss"] in ("targets", "targets+targets")
