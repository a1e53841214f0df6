"""Detectors that others published, turned into heads of ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rclip_metric.detectors.laion import HeadOrigin, LaionHead
from rclip_metric.errors import CheckpointError
from rclip_metric.train.models.saved_model import DATA, GRAPH, INDEX, SavedModel, read_saved_model
from rclip_metric.weights import file_digest, tensors_digest

_LAYER = re.compile(r"layer_with_weights-(\d+)/(mean|variance|count|kernel|bias)")
_COLUMN = re.compile(r"layer_with_weights-\d+/encoding_layers/(\d+)/token_counts/\.ATTRIBUTES/table-(?:keys|values)")
# What a trained model keeps besides: the graph of its objects, the metrics and the optimizer of its training.
_BESIDE = re.compile(
    r"_CHECKPOINTABLE_OBJECT_GRAPH|keras_api/metrics/.*|(?:.*/)?\.?optimizer/.*|.*/\.OPTIMIZER_SLOT/.*"
)
_DECIMAL = re.compile(r"-?\d{1,6}\.\d{6}")
_LOOKED_UP = "columns looked up: "
# The published heads, by the sha256 of their tensors: name, and the model in the manifest that gives the embeddings.
PUBLISHED = {
    "8f176b41826fa03de4dac2d04f69bf4aeeadfce06741309a648c08619643bba4": ("laion-vit-l-14", "clip-vit-l-14"),
    # Of OpenAI's ViT-B/32, which the manifest has not.
    "befa3fad075b4a883c9fd0d24d2fe780a552426574e6e504fd61a9dd5aff5d1f": ("laion-vit-b-32", None),
}


def convert_laion(
    source: Path, *, name: str | None = None, base: str | None = None
) -> tuple[dict[str, Tensor], HeadOrigin]:
    """Read a head of LAION's detector, as published: a SavedModel of AutoKeras' structured classifier.

    Args:
        source: The zip file, or the folder that it unpacks to.
        name: Of the detector; None for the published one's.
        base: The model that gives its embeddings; None for the published one's, if the manifest has it.

    Returns:
        What `save_head` takes.

    Raises:
        CheckpointError: It is damaged, or another model.

    Example:
        >>> convert_laion(Path("no-such-model.zip"))
        Traceback (most recent call last):
            ...
        rclip_metric.errors.CheckpointError: There is no no-such-model.zip.
    """
    model = read_saved_model(source)
    tensors = _tensors(model, str(source))
    LaionHead(tensors)  # says what does not fit
    if model.layers is not None:
        _check_layers(model.layers, tensors, str(source))
    published = PUBLISHED.get(tensors_digest(tensors))
    known, usual = published or (source.stem, None)
    files = [source] if source.is_file() else [source / part for part in (INDEX, DATA, GRAPH)]
    sources = {file.name: file_digest(file) for file in files}
    return tensors, HeadOrigin(name or known, base or usual, "MIT" if published else None, sources)


def _tensors(model: SavedModel, where: str) -> dict[str, Tensor]:
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in model.variables.items():
        if match := _LAYER.fullmatch(key):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
        elif not (_COLUMN.fullmatch(key) or _BESIDE.fullmatch(key)):
            raise CheckpointError(f"{where} is none of LAION's detectors: it holds {key}.")
    columns = sorted({int(match[1]) for key in [*model.others, *model.variables] if (match := _COLUMN.fullmatch(key))})
    (_, norm), *dense = sorted(layers.items()) or [(0, {})]
    if {"mean", "variance"} - norm.keys() or not dense or any(layer.keys() != {"kernel", "bias"} for _, layer in dense):
        raise CheckpointError(f"{where} is none of LAION's detectors: expected a normalisation and dense layers.")
    if len(columns) != len(model.tables):
        raise CheckpointError(
            f"{where} is none of LAION's detectors: it looks up {len(columns)} columns in {len(model.tables)} tables."
        )
    tensors = {"mean": norm["mean"], "variance": norm["variance"]}
    for number, (_, layer) in enumerate(dense):
        kernel = layer["kernel"]
        tensors[f"dense.{number}.weight"] = kernel.t().contiguous() if kernel.dim() == 2 else kernel
        tensors[f"dense.{number}.bias"] = layer["bias"]
    for column, table in zip(columns, model.tables, strict=True):
        keys, values = _sorted(table, where)
        tensors |= {f"lookup.{column}.keys": keys, f"lookup.{column}.values": values}
    return tensors


def _sorted(table: dict[str, int], where: str) -> tuple[Tensor, Tensor]:
    """Return a table from decimal numbers with six places to ranks: sorted millionths, and the ranks as floats."""
    for text in table:
        if not _DECIMAL.fullmatch(text) or text == "-0.000000":
            raise CheckpointError(f"{where} looks up {text!r}, expected numbers with six decimals.")
    pairs = sorted((int(text.replace(".", "")), rank) for text, rank in table.items())
    keys, ranks = zip(*pairs, strict=True) if pairs else ((), ())
    return torch.tensor(keys, dtype=torch.int64), torch.tensor(ranks, dtype=torch.float32)


def _check_layers(layers: list[dict[str, Any]], tensors: dict[str, Tensor], where: str) -> None:
    """Refuse other steps than those that `LaionHead` takes: ReLU between the layers and a sigmoid at the end."""
    steps = [_step(layer) for layer in layers]
    steps = [step for step in steps if step not in ("InputLayer", "Dropout", f"{_LOOKED_UP}none")]
    columns = [key.split(".")[1] for key in tensors if key.startswith("lookup.") and key.endswith(".keys")]
    dense = sum(key.endswith(".bias") for key in tensors)
    expected = [f"{_LOOKED_UP}{', '.join(columns)}"] if columns else []
    expected += ["Normalization", *(["Dense", "ReLU"] * dense)[:-1], "sigmoid"]
    if steps != expected:
        raise CheckpointError(
            f"{where} is none of LAION's detectors: its layers are {', '.join(steps)}, expected {', '.join(expected)}."
        )


def _step(layer: dict[str, Any]) -> str:
    """Name a layer by its class, an activation by what it is, and anything with settings of its own by these too."""
    config = layer.get("config")
    settings = config if isinstance(config, dict) else {}
    kind = str(layer.get("class_name"))
    if kind == "Custom>MultiCategoryEncoding":
        encodings = [str(encoding) for encoding in settings.get("encoding", [])]
        looked_up = [str(column) for column, encoding in enumerate(encodings) if encoding == "int"]
        others = set(encodings) - {"int", "none"}
        return f"{_LOOKED_UP}{', '.join(looked_up) or 'none'}" if not others else f"columns as {others}"
    if kind == "Activation":
        return str(settings.get("activation"))
    if kind == "Dense" and settings.get("activation") != "linear":
        return f"Dense with {settings.get('activation')}"
    if kind == "ReLU" and (settings.get("max_value"), settings.get("negative_slope"), settings.get("threshold")) != (
        None, 0.0, 0.0,
    ):  # fmt: skip
        return "ReLU with bounds"
    return kind
