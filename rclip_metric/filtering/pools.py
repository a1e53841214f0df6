"""Examples of each class: a folder per class, or an index whose labels are the classes."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rclip_metric.errors import FilterError
from rclip_metric.files import regular_file
from rclip_metric.images.reading import list_images_below
from rclip_metric.metric import RobustPerceptualDistance
from rclip_metric.retrieval import ImageIndex, is_index, open_storage


@dataclass(frozen=True)
class Pools:
    """What was given as examples, before any is embedded.

    Attributes:
        path: The folder or the index.
        is_index: Which of them.
        counts: Examples of each class.
        digests: Of the names and contents of each class's examples.
        names: Of all examples.
    """

    path: Path
    is_index: bool
    counts: dict[str, int]
    digests: dict[str, str]
    names: tuple[str, ...]


def find_pools(path: str) -> Pools:
    """List the examples, and digest their files.

    Raises:
        FilterError: There are fewer than two classes, one has no example, or an example no class.
        ImageError: A folder cannot be listed.
        ImageIndexError: The index is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("safe/a.png", "safe/b.png", "unsafe/c.png"):
        ...         Path(folder, name).parent.mkdir(exist_ok=True)
        ...         Path(folder, name).touch()
        ...     find_pools(folder).counts
        {'safe': 2, 'unsafe': 1}
    """
    root = Path(path)
    if not root.is_dir():
        raise FilterError(
            f"{path} is {'a file' if root.exists() else 'not there'}, expected a folder with the classes."
        )
    examples: dict[str, list[tuple[str, str | None]]] = {}
    if is_index(root):
        for row in open_storage(root).rows():
            if row.label is None:
                raise FilterError(f"{row.id} in {path} has no label: a filter needs the class of every example.")
            examples.setdefault(row.label, []).append((row.id, row.digest))
    else:
        folders = [entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        examples = {folder.name: [] for folder in sorted(folders)}
        for file in list_images_below(root):
            parts = file.relative_to(root).parts
            if len(parts) == 1:
                raise FilterError(f"{file} is in no class: {path} should hold a folder for each class, and no images.")
            examples[parts[0]].append(("/".join(parts), _digest_of(file)))
    if len(examples) < 2:
        raise FilterError(
            f"a filter needs two classes or more, and {path} has {', '.join(examples) or 'none'}: "
            "it should hold a folder of images for each."
        )
    if empty := [label for label, found in examples.items() if not found]:
        raise FilterError(f"the class {empty[0]} has no example: there are no images below {root / empty[0]}.")
    return Pools(
        root,
        is_index(root),
        {label: len(found) for label, found in examples.items()},
        {label: _digest(found) for label, found in examples.items()},
        tuple(name for found in examples.values() for name, _ in found),
    )


def embed_pools(
    pools: Pools,
    metric: RobustPerceptualDistance,
    destination: Path,
    batch_size: int,
    on_skip: Callable[[Path, str], None],
) -> Path:
    """Embed the examples once, for all processes; return the index of them.

    An index that was given stays where it is. What a run that was ended has embedded already is not embedded again.

    Raises:
        FilterError: No example of a class can be read.
    """
    if pools.is_index:
        return pools.path
    if destination.is_dir():
        there = {row.id for row in open_storage(destination).rows()}
        for name in pools.names:
            if name not in there:
                on_skip(pools.path / name, "it could not be read when the examples were embedded")
    else:
        index = ImageIndex.build(pools.path, metric, batch_size=batch_size, on_skip=on_skip)
        for label in pools.counts:
            if not any(row.label == label for row in index.rows):
                raise FilterError(f"the class {label} has no example that can be read.")
        workshop = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.partial")
        try:
            index.save(workshop, format="safetensors")  # needs no package that a worker might not have
            os.replace(workshop, destination)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    return destination


def _digest_of(file: Path) -> str | None:
    try:
        return hashlib.blake2b(regular_file(file).read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None


def _digest(examples: Iterable[tuple[str, str | None]]) -> str:
    return hashlib.blake2b(repr(sorted(examples, key=lambda one: one[0])).encode(), digest_size=16).hexdigest()
