"""Foreign checkpoints to encoders of ours: vision towers, MLP heads and LoRA adapters, read strictly.

What a file holds is told by its keys, and how its images are prepared by the base: a manifest entry, an encoder of
ours or a model of timm's. A tower takes the base's architecture and preprocessing, and none of its weights; a head and
an adapter are put on the base's weights, with the squash that NIGHTS tuning prepares its images by.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rclip_metric.encoder import Architecture, Encoder, ViTArchitecture, embedding_dim
from rclip_metric.errors import CheckpointError
from rclip_metric.images import Preprocessing
from rclip_metric.train.models import peft_adapters as adapters
from rclip_metric.train.models.base import at_size, load_base
from rclip_metric.train.models.foreign import kind_of, read_head, read_tower
from rclip_metric.train.runs.files import provenance, write_json
from rclip_metric.weights import (
    CONFIG_NAME,
    FORMAT,
    WEIGHTS_NAME,
    WeightSpec,
    file_digest,
    get_spec,
    load_encoder,
    locate,
    model_names,
    save_encoder,
)
from rclip_metric.weights.libraries import TIMM, timm_base
from rclip_metric.weights.loading import read_tensors

KINDS = ("auto", "tower", "mlp", "lora")
_VERSIONS = ("rclip-metric", "torch", "safetensors")
_TUNED = {"mlp": "MLP head", "lora": "LoRA"}


@dataclass(frozen=True)
class Conversion:
    """A converted encoder, and what is recorded with it.

    Attributes:
        encoder: As the checkpoint's authors computed it, to float precision.
        training: As in the manifest; None where neither the base nor the conversion knows.
        notes: Which files it was made from, with their sha256.
        record: The contents of run.json.
        read: The files that were read; an encoder may still be mapped from them.

    Example:
        >>> encoder = load_base("tiny-clean@random")
        >>> converted = Conversion(encoder, training=None, notes="Drawn at random.", record={}, read=())
        >>> converted.encoder.image_size
        64
    """

    encoder: Encoder
    training: dict[str, str | None] | None
    notes: str
    record: dict[str, Any]
    read: tuple[Path, ...]


@dataclass(frozen=True)
class _Contents:
    """What was read of the source: tensors in our names, the files they are from (the weights last), and facts."""

    state: dict[str, Tensor]
    files: list[Path]
    layout: str | None = None
    hidden: int | None = None  # of an MLP head
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Base:
    """What a checkpoint is put on; the weights of a named base are found only when they are asked for."""

    model: str | os.PathLike[str] | Encoder
    spec: WeightSpec
    revision: str | None

    def state(self) -> dict[str, Tensor]:
        if isinstance(self.model, Encoder):  # the result must not share its parameters
            return {key: tensor.detach().cpu().clone() for key, tensor in self.model.state_dict().items()}
        return dict(load_encoder(self.model).state_dict())

    def file(self) -> Path | None:
        return None if isinstance(self.model, Encoder) else locate(self.model).path


def convert(
    source: str | os.PathLike[str],
    base: str | os.PathLike[str] | Encoder,
    *,
    kind: str = "auto",
    mlp: str | os.PathLike[str] | None = None,
    name: str | None = None,
    image_size: int | None = None,
    squash: bool = False,
) -> Encoder:
    """Convert a foreign checkpoint into an encoder; arguments and errors are those of `conversion`.

    Example:
        >>> import tempfile, torch
        >>> base = load_base("tiny-clean@random")
        >>> head = torch.nn.ModuleDict({
        ...     "fc1": torch.nn.Linear(base.embedding_dim, 8), "fc2": torch.nn.Linear(8, base.embedding_dim)
        ... })
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(head.state_dict(), Path(folder, "head.pth"))
        ...     tuned_encoder = convert(Path(folder, "head.pth"), base)
        >>> tuned_encoder.name, tuned_encoder.mlp_hidden
        ('tiny-clean@random+mlp', 8)
    """
    return conversion(source, base, kind=kind, mlp=mlp, name=name, image_size=image_size, squash=squash).encoder


def conversion(
    source: str | os.PathLike[str],
    base: str | os.PathLike[str] | Encoder,
    *,
    kind: str = "auto",
    mlp: str | os.PathLike[str] | None = None,
    name: str | None = None,
    data: str = "NIGHTS",
    image_size: int | None = None,
    squash: bool = False,
) -> Conversion:
    """Convert a foreign checkpoint.

    Args:
        source: A vision tower (a state dict as .pt, .pth, .bin or .safetensors in a layout of
            `rclip_metric.encoder.state_dicts`, or an OpenCLIP or transformers folder), an MLP head (a state dict of
            fc1 and fc2), or a PEFT LoRA folder.
        base: For a tower the model that it is, of which architecture, preprocessing and training are taken; for a
            head or an adapter the model that it was trained on. A name in the manifest, a path, an encoder, or
            `timm:NAME` as `rclip_metric.train.models.base.load_base` takes it.
        kind: One of `KINDS`.
        mlp: A head to put on the tower.
        name: Of the result; the source's own for a tower, else the base's with "+mlp" or "+lora".
        data: What the head or the adapter was trained on.
        image_size: Side of the result's square input in pixels instead of the base's, as for `load_base`.
        squash: Whether the result's images are brought to the square whatever their aspect ratio.

    Raises:
        CheckpointError: The source holds something else than its kind should: names the keys that are missing or
            unexpected, the shape that is wrong, the weight that is NaN or infinite, or what was found.
        WeightsError: The base cannot be loaded.
        ValueError: The base does not take images of that size.

    Example:
        >>> conversion("nowhere.pth", "tiny-clean")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.CheckpointError: There is no file or folder 'nowhere.pth'.
    """
    source = Path(source).expanduser()
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if not source.exists():
        raise CheckpointError(f"There is no file or folder {str(source)!r}.")
    kind = kind_of(source) if kind == "auto" else kind
    on = _base(base, kind, image_size, squash)
    if kind == "lora" and not source.is_dir():
        raise CheckpointError(f"{source} is no folder: pass the folder of the adapter, with {adapters.CONFIG_NAME}.")
    if mlp is not None and kind != "tower":
        raise CheckpointError(f"A head goes on a tower, and {source} is {_TUNED[kind]}: leave the other head out.")
    if on.spec.mlp_hidden is not None:
        raise CheckpointError(f"The base {on.spec.name} has an MLP head: give the plain encoder as the base.")

    contents = _read(source, kind, on, mlp)
    _check_finite(source, contents.state)
    step = kind if contents.hidden is None else "mlp"
    spec = on.spec if step == "tower" else tuned(on.spec, step, data)
    files = [{"file": _shown(path), "sha256": file_digest(path)} for path in contents.files]
    own_name = source.resolve().name if source.is_dir() else source.stem
    encoder = Encoder.from_weights(
        contents.state,
        spec.architecture,
        spec.preprocessing,
        mlp_hidden=contents.hidden,
        name=name or (own_name if kind == "tower" else f"{on.spec.name}+{kind}"),
        revision=f"sha256:{files[-1]['sha256'][:12]}",
        domain=spec.domain,
    )
    base_file = None if kind == "tower" else on.file()
    training = spec.training or {}
    record: dict[str, Any] = {
        "method": {"mlp": "MLP", "lora": "LoRA"}.get(step, training.get("method")),
        "command": "convert",
        "kind": kind,
        "layout": contents.layout,
        "base": {"name": on.spec.name, "revision": on.revision, "sha256": base_file and file_digest(base_file)},
        "data": {"path": None, "name": training.get("data")},
        "source": files,
        **contents.facts,
        "versions": {package: importlib.metadata.version(package) for package in _VERSIONS},
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    read = (*contents.files, *([base_file] if base_file else []))
    return Conversion(encoder, spec.training, _notes(kind, on, files, contents.facts), record, read)


def _check_finite(source: Path, state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        if tensor.is_meta:
            raise CheckpointError(f"{source} gives {key} as a meta tensor, which has a shape and no values.")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{source} gives {key} values that are NaN or infinite: the file is damaged or its training failed."
            )


def _read(source: Path, kind: str, base: _Base, mlp: str | os.PathLike[str] | None) -> _Contents:
    """Read the source and, if there is one, the head that goes on it."""
    if kind == "tower":
        layout, state, used = read_tower(source, base.spec)
        contents = _Contents(state, used, layout)
    elif kind == "lora":
        weights = adapters.adapter_weights(source)
        base_state = base.state()
        adapter = adapters.read_adapter(source, read_tensors(weights))
        contents = _Contents(
            adapters.merge(adapter, base_state, base.spec.architecture),
            [source / adapters.CONFIG_NAME, weights],
            facts={"lora": {"rank": adapter.rank, "scale": adapter.scale}},
        )
    else:
        contents = _Contents(base.state(), [])
    if kind != "mlp" and mlp is None:
        return contents
    path = source if mlp is None else Path(mlp).expanduser()
    head = read_head(path, base.spec.embedding_dim)
    return replace(
        contents,
        state=contents.state | head,
        files=[*contents.files, path],
        hidden=len(head["head.fc1.bias"]),
    )


def tuned(base: WeightSpec, step: str, data: str = "NIGHTS") -> WeightSpec:
    """Return what a base is after NIGHTS tuning: its architecture, preprocessing and training, as the manifest has it.

    Args:
        base: The plain encoder.
        step: "mlp" or "lora".
        data: What it was tuned on.
    """
    before = base.training or {}
    method, seen = before.get("method"), before.get("data")
    what = f"{_TUNED[step]} on clean {data}"
    side = base.preprocessing.crop
    return replace(
        base,
        architecture=adapters.adapted_architecture(base.architecture) if step == "lora" else base.architecture,
        preprocessing=replace(base.preprocessing, mode="squash", resize=side),
        training=provenance(
            f"{method}, then {what}" if method else what,
            f"{seen}, {data}" if seen else data,
            before.get("norm"),
            before.get("eps"),
            base.name,
        ),
    )


def save_conversion(converted: Conversion, out: str | os.PathLike[str], license: str | None = None) -> Path:
    """Write model.safetensors, config.json and run.json; returns the folder.

    Raises:
        CheckpointError: One of them would replace a file that was converted.
        StorageError: The disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> encoder = load_base("tiny-clean@random")
        >>> converted = Conversion(encoder, training=None, notes="Drawn at random.", record={}, read=())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = save_conversion(converted, folder)
        ...     files = sorted(path.name for path in out.iterdir())
        >>> files
        ['config.json', 'model.safetensors', 'run.json']
    """
    out = Path(out)
    written = [(out / name).resolve() for name in (WEIGHTS_NAME, CONFIG_NAME, "run.json")]
    for path in converted.read:
        if path.resolve() in written:
            raise CheckpointError(f"{path} was converted and would be replaced: choose another output folder.")
    save_encoder(converted.encoder, out, training=converted.training, license=license, notes=converted.notes)
    write_json(out / "run.json", converted.record)
    return out


def _base(
    base: str | os.PathLike[str] | Encoder, kind: str, image_size: int | None = None, squash: bool = False
) -> _Base:
    if isinstance(base, str) and base.startswith(TIMM):
        if kind == "tower":
            return _Base(base, _bare_spec(base, *timm_base(base, image_size, squash)), None)
        base = load_base(base, image_size=image_size, squash=squash)
    if isinstance(base, Encoder):
        spec = _bare_spec(base.name, base.architecture, base.preprocessing, base.mlp_hidden, base.domain)
        revision = base.revision
    elif isinstance(base, str) and base in model_names():
        spec, revision = get_spec(base), get_spec(base).revision
    else:
        found = locate(base)
        spec, revision = found.spec, found.revision
    architecture, preprocessing = at_size(spec.architecture, spec.preprocessing, image_size, squash)
    return _Base(base, replace(spec, architecture=architecture, preprocessing=preprocessing), revision)


def _bare_spec(
    name: str,
    architecture: Architecture,
    preprocessing: Preprocessing,
    mlp_hidden: int | None = None,
    domain: str | None = None,
) -> WeightSpec:
    """Describe what is in no manifest: nothing is known but how it computes."""
    fields: dict[str, Any] = {"layout": FORMAT, "source": "local", "files": (), "reported": {}, "training": None}
    fields |= dict.fromkeys(("repo", "revision", "license", "citation", "url_note", "notes"))
    fields |= {"embedding_dim": embedding_dim(architecture), "mlp_hidden": mlp_hidden, "domain": domain}
    return WeightSpec(name=name, architecture=architecture, preprocessing=preprocessing, **fields)


def _notes(kind: str, base: _Base, files: list[dict[str, str]], facts: dict[str, Any]) -> str:
    sources = ", ".join(f"{item['file']} (sha256 {item['sha256']})" for item in files)
    if kind == "tower":
        return f"Converted from {sources}, with the architecture and preprocessing of {base.spec.name}."
    text = f"Converted from {sources} on the weights of {base.spec.name} (revision {base.revision})."
    if kind == "lora":
        text += f" The adapter (r {facts['lora']['rank']}, scale {facts['lora']['scale']:g}) is merged."
    if kind == "lora" and isinstance(base.spec.architecture, ViTArchitecture):
        text += " It was trained inside a DINO-style ViT: LayerNorm eps 1e-6, 1e-5 before the blocks, and GELU; "
        text += "patch bias zero."
    return text


def _shown(path: Path) -> str:
    """Name a file, with its folder where the name alone says little."""
    usual = path.suffix == ".json" or path.name in (*adapters.WEIGHTS_NAMES, WEIGHTS_NAME)
    return f"{path.resolve().parent.name}/{path.name}" if usual else path.name
