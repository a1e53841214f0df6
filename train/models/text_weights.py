"""Which text tower goes with an image encoder: found, read from a whole CLIP or a file of its own, and exported."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import rclip_metric
from rclip_metric.errors import CheckpointError
from rclip_metric.files import regular_file, written_whole
from rclip_metric.json_files import ANYTHING, COUNT, LINE, Checker, Schema, at_most, parse_json
from rclip_metric.train.models.text import NOT_TEXT, TextConfig, TextModel, build_text
from rclip_metric.weights import WeightFile, WeightSpec, check_file, get_spec, locate, model_names

TEXT_NAME = "text.safetensors"  # looked for beside an encoder in a folder

_METADATA_KEY = "rclip_metric_text"
_ABOUT: Schema = {"heads": at_most(COUNT, 512), "vocabulary": [LINE], "*": ANYTHING}
_EMBEDDING = re.compile(r"(text\.)?token_embedding\.weight")
_BYTE_PAIRS = 49408  # the size of CLIP's own vocabulary
# The image encoder changes towards the embeddings of the original one (FARE) or of its texts (TeCoA); what is tuned
# on similarities between images alone (LoRA, MLP) is not bound to any text tower.
_KEEPS_TEXT = ("FARE", "TeCoA")
# Text towers that ship in the package, by the encoder they were trained with.
_PACKAGED = {
    "tiny-clean": WeightFile(
        "models/tiny-text.safetensors",
        sha256="d61bd3707fa595a2ff87a242cf694804b7c5a78252d1c8963395cc60727ea252",
        size=854250,
    )
}


def load_text(model: str | os.PathLike[str], **settings: Any) -> TextModel:
    """Load the text tower that goes with an image encoder.

    It is in the encoder's own file (a whole CLIP), in a `text.safetensors` in its folder (as `export_text` writes), or
    in the package; else it is that of the model an encoder was made from by FARE or TeCoA, neither of which touches
    it, and `source` says so.

    Args:
        model: a name in the manifest, a path or a Hub id, as `rclip_metric.weights.locate` takes it; or the path of a
            text tower that `export_text` wrote.
        settings: `base`, `revision`, `cache_dir`, `token`, `local_files_only`, as for `locate`.

    Raises:
        WeightsError: as for `locate`, and CheckpointError where no text tower goes with the encoder.

    Example:
        >>> load_text("tiny-clean").source
        'tiny-clean (tiny-text.safetensors)'
    """
    found, spec = _own_text(model, settings)
    if found is not None:
        return found
    assert spec is not None
    training = spec.training or {}
    base = training.get("base")
    if base is None or training.get("method") not in _KEEPS_TEXT:
        raise CheckpointError(
            f"{spec.name} has no text tower: its weights are not a whole CLIP's, and it was not made from a CLIP by "
            f"{' or '.join(_KEEPS_TEXT)} alone; zero-shot classification needs one of these."
        )
    hub = {name: value for name, value in settings.items() if name not in ("base", "revision")}
    try:
        inherited = load_text(base, **hub)
    except CheckpointError as error:
        raise CheckpointError(f"{spec.name} has no text tower of its own, and its base none: {error}") from error
    if inherited.tower.config.embedding_dim != spec.embedding_dim:
        raise CheckpointError(
            f"The text tower of {base} gives {inherited.tower.config.embedding_dim} numbers and {spec.name}, which "
            f"says that it was made from it, {spec.embedding_dim}."
        )
    return replace(inherited, source=f"{inherited.source}, the base of {spec.name}")


def _own_text(model: str | os.PathLike[str], settings: dict[str, Any]) -> tuple[TextModel | None, WeightSpec | None]:
    """Read the text tower in the model's own files, and say what the model is; never (None, None)."""
    name = os.fspath(model)
    if isinstance(model, str) and name in model_names():
        spec = get_spec(name)
        if name in _PACKAGED:
            file = _PACKAGED[name]
            path = Path(rclip_metric.__file__).parent / file.name
            check_file(path, file.sha256 or "", file.size)
            return _read_exported(path, name), spec
        if spec.layout != "open-clip":
            return None, spec  # not worth a download
    path = Path(name).expanduser()
    own = path / TEXT_NAME if path.is_dir() else path
    if own.is_file() and own.suffix == ".safetensors" and _METADATA_KEY in _open_tensors(own)[1]:
        return _read_exported(own, name), None
    located = locate(model, **settings)
    state, _ = _open_tensors(located.path)
    if not any(_EMBEDDING.fullmatch(key) for key in state):
        return None, located.spec
    activation = getattr(located.spec.architecture, "activation", "gelu")
    try:
        tower = build_text(state, quick_gelu=activation == "quick_gelu")
        tokenizer = _byte_pair_tokenizer(tower.config)
    except CheckpointError as error:
        raise CheckpointError(f"{located.path}: {error}") from error
    revision = f" @ {located.revision}" if located.revision else ""
    return TextModel(tower, tokenizer, f"{located.spec.name}{revision}"), located.spec


def _open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map all tensors outside the vision tower from the file, and read the metadata of a safetensors file."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(regular_file(path), framework="pt") as file:
                keys = [key for key in file.keys() if not NOT_TEXT.fullmatch(key)]  # noqa: SIM118 (not a dict)
                return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
        state = torch.load(regular_file(path), map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(f"{path} is not a readable file of tensors: {reason}.") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is not a plain state dict of names and tensors.")
    return {key: tensor for key, tensor in state.items() if not NOT_TEXT.fullmatch(key)}, {}


def _byte_pair_tokenizer(config: TextConfig) -> Callable[[list[str]], Tensor]:
    if config.vocabulary != _BYTE_PAIRS:
        raise CheckpointError(
            f"The text tower has a vocabulary of {config.vocabulary} tokens, and CLIP's tokenizer one of {_BYTE_PAIRS}."
        )
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer: Callable[[list[str]], Tensor] = SimpleTokenizer(context_length=config.context)
    return tokenizer


def _read_exported(path: Path, name: str) -> TextModel:
    from rclip_metric.train.models.tokenizer import WordTokenizer

    state, metadata = _open_tensors(path)
    where = f"The metadata of {path}"
    about = Checker(where).matches("", parse_json(metadata[_METADATA_KEY], where), _ABOUT)
    tokenizer = WordTokenizer()
    if about["vocabulary"] != list(tokenizer.ids):
        raise CheckpointError(f"{path} was trained with other words than the scenes have now: train it again.")
    try:
        tower = build_text(state, heads=about["heads"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return TextModel(tower, tokenizer, f"{name} ({path.name})")


def export_text(state_path: Path, out: Path) -> Path:
    """Write the text tower of a run of `train clip` as one half-precision file, which `load_text` reads.

    Args:
        state_path: the run's state.safetensors.
        out: the file to write: `text.safetensors` in the run's folder is found with the run's encoder.

    Returns:
        The file.

    Raises:
        ValueError: if the file is not the state of such a run.

    Example:
        >>> export_text(Path("nowhere.safetensors"), Path("text.safetensors"))
        Traceback (most recent call last):
            ...
        ValueError: there is no nowhere.safetensors: pass the state.safetensors of a run of `train clip`
    """
    from rclip_metric.train.models.clip import ClipConfig, build_clip
    from rclip_metric.train.models.tokenizer import WordTokenizer
    from rclip_metric.train.runs.config import configured

    if not state_path.is_file():
        raise ValueError(f"there is no {state_path}: pass the state.safetensors of a run of `train clip`")
    tensors, metadata = _open_tensors(state_path)
    try:
        config = configured(ClipConfig, None, parse_json(metadata["config"], f"The config of {state_path}"))
        step = int(metadata["step"])
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"{state_path} is not the state of a run of `train clip`: it has no text tower") from error
    weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    with torch.random.fork_rng(devices=[]):  # the number of heads is in no tensor
        blocks: Any = build_clip(config).transformer
    heads = blocks.resblocks[0].attn.num_heads
    tower = build_text(weights, heads=heads)
    about = {
        "heads": heads,
        "vocabulary": list(WordTokenizer().ids),
        "made_by": "rclip_metric.train.models.text_weights: text tower and logit scale of a CLIP run on scenes",
        "run": state_path.resolve().parent.name,
        "step": step,
        "training": asdict(config),
    }
    half = {key: tensor.half().contiguous() for key, tensor in tower.state_dict().items()}
    with written_whole(out) as partial:
        # One entry: the order of several is not the same from one process to the next.
        save_file(half, partial, {_METADATA_KEY: json.dumps(about)})
    return out
