"""Checkpoints in our own format, written and read.

It is a folder with `model.safetensors`, in the names of `Encoder.state_dict`, and `config.json`, which
carries architecture and preprocessing. The same configuration is in the metadata of the safetensors file, so
that the file also loads on its own, and a config.json that was not written with its weights is noticed. Beside it is
a seal, a digest of tensors and configuration: a file whose bytes have changed since is said to be damaged.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.encoder.architectures import architecture_to_dict
from rclip_metric.errors import CheckpointError, ManifestError, StorageError
from rclip_metric.files import regular_file, written_whole
from rclip_metric.images.preprocessing import READINGS, RESIZES, Reading, Resize
from rclip_metric.json_files import LINE, Checker, one_of, or_null, parse_json, shown
from rclip_metric.weights.digest import tensors_digest
from rclip_metric.weights.manifest import WeightSpec

if TYPE_CHECKING:
    from torch import Tensor

    from rclip_metric.encoder.encoder import Encoder

FORMAT = "rclip-metric"
FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

_METADATA_KEY, _SEAL_KEY = "rclip_metric", "rclip_metric_seal"
_SPEC_FIELDS = ("architecture", "preprocessing", "embedding_dim", "mlp_hidden", "training", "license", "notes")
_CONFIG_FIELDS = ("format", "format_version", "name", "revision", "resize", *_SPEC_FIELDS)
# Written where there is one, so that every other model stays readable for earlier versions; and where it is unusual.
_DOMAIN, _READING = "domain", "reading"
# What the tensors mean: these must be the same in config.json and in the weights' own metadata.
_MEANING = ("architecture", "preprocessing", "mlp_hidden", "resize", _READING)


@dataclass(frozen=True)
class SavedConfig:
    """A checked config.json of our format.

    Example:
        >>> SavedConfig.read({"model_type": "vit"}, "config.json")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.ManifestError: config.json is not the configuration of a model in the format ...
    """

    spec: WeightSpec
    revision: str | None
    resize: Resize
    reading: Reading
    values: dict[str, Any]

    @classmethod
    def read(cls, config: Any, where: str) -> "SavedConfig":
        """Check a configuration as parsed from JSON; ManifestError names `where` and the field."""
        check = Checker(where)
        if not isinstance(config, Mapping) or config.get("format") != FORMAT:
            raise ManifestError(f"{where} is not the configuration of a model in the format {FORMAT!r}.")
        version = config.get("format_version")
        if version != FORMAT_VERSION:
            reads = f"got {shown(version)} and this version of rclip-metric reads {FORMAT_VERSION}: update it"
            raise check.fail("format_version", reads)
        check.object("", config, _CONFIG_FIELDS, [_DOMAIN, _READING])
        check.value("resize", config["resize"], or_null(one_of(filter(None, RESIZES))))
        reading = check.value("reading", config.get(_READING, "published"), one_of(READINGS))
        check.value("revision", config["revision"], or_null(LINE))
        entry = {
            **dict.fromkeys(("repo", "revision", "files", "citation", "url_note")),
            **{field: config[field] for field in _SPEC_FIELDS},
            **{"layout": FORMAT, "source": "local", "reported": {}, _DOMAIN: config.get(_DOMAIN)},
        }
        spec = WeightSpec.from_dict(check.value("name", config["name"], LINE), entry, where)
        return cls(spec, config["revision"], config["resize"], reading, dict(config))


def save_encoder(
    encoder: "Encoder",
    folder: str | os.PathLike[str],
    *,
    training: Mapping[str, str | None] | None = None,
    license: str | None = None,
    notes: str | None = None,
) -> Path:
    """Write an encoder to a folder, from which `load_encoder` gives it back bit for bit.

    `model.safetensors` and `config.json` are written under other names first: each is there as a whole or not
    at all.

    Args:
        encoder: On any device; half precision is stored as such and comes back widened to float32.
        folder: Made if it does not exist.
        training: method, norm, eps, data and base, as in the manifest.
        license: Of the weights.
        notes: Anything else that belongs to the model.

    Returns:
        The folder.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
        ManifestError: `training` has other fields.

    Example:
        >>> import tempfile
        >>> from rclip_metric.weights import load_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_encoder(load_encoder("tiny"), folder)
        ...     sorted(os.listdir(folder)), load_encoder(folder).name
        (['config.json', 'model.safetensors'], 'tiny')
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = _apart({key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()})
    digest, origin = tensors_digest(state), encoder.origin
    changed = origin is not None and origin[:2] == (encoder.name, encoder.revision) and origin.digest != digest
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": encoder.name,
        "revision": f"tensors:{digest[:12]}" if changed else encoder.revision,
        "architecture": architecture_to_dict(encoder.architecture),
        "preprocessing": encoder.preprocessing.to_dict(),
        "embedding_dim": encoder.embedding_dim,
        "mlp_hidden": encoder.mlp_hidden,
        "resize": encoder.resize,
        "training": None if training is None else dict(training),
        "license": license,
        "notes": notes,
        **({} if encoder.domain is None else {_DOMAIN: encoder.domain}),
        **({} if encoder.reading == "published" else {_READING: encoder.reading}),
    }
    config = SavedConfig.read(json.loads(json.dumps(values)), f"The configuration to be saved in {folder}").values
    text = json.dumps(config)
    about = {"format": "pt", _METADATA_KEY: text, _SEAL_KEY: _seal(text, digest)}
    folder = Path(folder)
    try:
        with written_whole(folder / WEIGHTS_NAME) as partial:
            save_file(state, partial, metadata=about)
        with written_whole(folder / CONFIG_NAME) as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise StorageError(f"The encoder cannot be saved in {folder}: {reason.rstrip('.')}.") from error
    return folder


def _seal(config: str, digest: str) -> str:
    return hashlib.sha256(f"{config}\n{digest}".encode()).hexdigest()


def is_sealed(path: Path, digest: str) -> bool:
    """Say whether a file holds what was saved: its tensors have this digest, and its configuration is the same.

    What has no seal, as files of other formats and of earlier versions, cannot be told to be damaged.
    """
    if path.suffix != ".safetensors":
        return True
    with opened(path) as file:
        metadata = file.metadata() or {}
    seal = metadata.get(_SEAL_KEY)
    return seal is None or seal == _seal(metadata.get(_METADATA_KEY, ""), digest)


def _apart(state: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Copy tensors that are in memory twice, which safetensors refuses: some towers use a layer in several places."""
    seen: set[int] = set()
    for key, value in state.items():
        address = value.untyped_storage().data_ptr()
        if address in seen:
            state[key] = value.clone()
        seen.add(address)
    return state


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file for its keys, metadata and tensors; CheckpointError if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular_file(path), framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"There is no file {path}.") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}.") from error


def read_metadata(path: Path) -> SavedConfig | None:
    """Read the configuration in a safetensors file's own metadata, None if it is not in our format.

    Example:
        >>> from rclip_metric.weights import locate
        >>> read_metadata(locate("tiny").path).spec.training["method"]
        'FARE'
    """
    with opened(path) as file:
        metadata = file.metadata() or {}
    if _METADATA_KEY not in metadata:
        return None
    where = f"The metadata of {path}"
    return SavedConfig.read(parse_json(metadata[_METADATA_KEY], where), where)


def check_pair(config: SavedConfig, weights: Path) -> None:
    """Raise CheckpointError where config.json is not the configuration that the weights were saved with."""
    own = read_metadata(weights)
    for field in _MEANING:
        if own is None or own.values.get(field) != config.values.get(field):
            raise CheckpointError(
                f"{CONFIG_NAME} says {field} {config.values.get(field)!r}, and {weights} was saved with "
                f"{own and own.values.get(field)!r}: they do not belong together."
            )
