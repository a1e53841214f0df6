"""The images of a content filter's evaluation: what it knows, what it is asked about, and what an attacker aims at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rclip_metric.train.data.class_table import read_class_table
from rclip_metric.train.data.classes import read_classes
from rclip_metric.train.data.contents import MISSING, file_digests
from rclip_metric.train.data.images import find_images
from rclip_metric.train.runs.seeds import sample_seed

ROLES = ("safe", "buffer", "unsafe")
USUAL = {"safe": ("safe", "neutral"), "buffer": ("buffer", "sexy"), "unsafe": ("unsafe", "porn")}
"""Classes that have a role without being told so: those called like it, and those of deepghs/nsfw_detect."""
BOTH_WAYS = (("safe", "unsafe"), ("unsafe", "safe"))


PAPER_SIZES = {"pool": 500, "targets": 16, "queries": 1000}


@dataclass(frozen=True)
class Sizes:
    """Images per role; None is for the paper's number (`PAPER_SIZES`), or in folders of their own for all there are.

    Example:
        >>> Sizes(pool=100).queries is None
        True
    """

    pool: int | None = None
    targets: int | None = None
    queries: int | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"at least one image is needed per role, and {value} were asked for as {name}")


@dataclass(frozen=True)
class FilterImage:
    """An image: `key` is its path below the set's folder, `role` what its class is to the filter.

    Example:
        >>> FilterImage("gun/1.png", Path("set/gun/1.png"), "unsafe").role
        'unsafe'
    """

    key: str
    path: Path
    role: str


@dataclass(frozen=True)
class FilterPools:
    """Images that no two of pool, targets and queries share.

    Attributes:
        pool: what the filter knows, role by role.
        targets: what an attacker has of the roles that are aimed at.
        queries: what the filter is asked about, direction by direction.
        directions: from the role of queries to that which attackers aim at; a role has one direction at most.
        classes: those of each role.

    Example:
        >>> image = FilterImage("gun/1.png", Path("gun/1.png"), "unsafe")
        >>> FilterPools((image,), (), (), BOTH_WAYS, {"safe": (), "unsafe": ("gun",)}).roles
        ('unsafe',)
    """

    pool: tuple[FilterImage, ...]
    targets: tuple[FilterImage, ...]
    queries: tuple[FilterImage, ...]
    directions: tuple[tuple[str, str], ...]
    classes: Mapping[str, tuple[str, ...]]

    @property
    def roles(self) -> tuple[str, ...]:
        """Those in the pool."""
        return tuple(role for role in ROLES if any(image.role == role for image in self.pool))

    def target(self, query: FilterImage) -> str:
        """Name the role that an attacker wants a query to have."""
        return dict(self.directions)[query.role]

    def repeated(self) -> list[str]:
        """Say how many queries and targets are in the pool as well, byte for byte, in a sentence each."""
        everything = (*self.pool, *self.targets, *self.queries)
        digests = file_digests([image.path for image in everything])
        known = {digests[image.path] for image in self.pool} - {MISSING}
        said = []
        asked = ("queries", self.queries, "the filter is asked about what it knows")
        told = ("target images", self.targets, "the attacker is told what the filter knows")
        for what, images, meaning in (asked, told):
            if count := sum(digests[image.path] in known for image in images):
                are = "are" if count > 1 else "is"
                said.append(f"{count} of {len(images)} {what} {are} in the pool as well, byte for byte: {meaning}.")
        return said


def read_filter_pools(
    folder: Path,
    names: Mapping[str, Sequence[str]] | None = None,
    *,
    table: Path | None = None,
    directions: Sequence[tuple[str, str]] = BOTH_WAYS,
    buffer: bool = True,
    sizes: Sizes = Sizes(),
    seed: int = 0,
) -> FilterPools:
    """Draw pool, targets and queries from a folder per class, or read them from folders of their own.

    The images of a role are put in an order that depends on their paths below the folder and the seed alone; the first
    of them are the pool, then come the targets, then the queries. Where the folder holds `pool/CLASS` and
    `queries/CLASS`, and for attacks `targets/CLASS`, each is drawn from its own.

    Args:
        folder: of the set.
        names: classes of each role, "safe", "buffer" and "unsafe". Default: those called so (`USUAL`); safe is all the
            rest where none is.
        table: says what class the images in the folder have (`read_class_table`), where folders do not.
        directions: (role of queries, role that attackers aim at).
        buffer: whether the pool has the buffer.
        sizes: images per role.
        seed: of the order.

    Raises:
        ValueError: if the folder, a class or a role is missing, has two roles or too few images.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("gun", "cat"):
        ...         for number in range(4):
        ...             Path(folder, name).mkdir(exist_ok=True)
        ...             Path(folder, name, f"{number}.png").touch()
        ...     pools = read_filter_pools(Path(folder), {"unsafe": ["gun"]}, sizes=Sizes(2, 1, 1))
        >>> pools.classes["safe"], len(pools.pool), [query.role for query in pools.queries]
        (('cat',), 4, ['safe', 'unsafe'])
    """
    directions = tuple(directions)
    _check_directions(directions, buffer)
    own_folders = table is None and all((folder / part).is_dir() for part in ("pool", "queries"))
    parts = ("pool", "targets", "queries")
    if own_folders:
        images = {part: _in_folders(folder, folder / part) for part in parts}
    else:
        images = dict.fromkeys(parts, _in_folders(folder, folder) if table is None else _in_table(folder, table))
    found = dict.fromkeys(name for part in parts for name in images[part])
    classes = _classes(folder, sorted(found), names or {})
    if not buffer:
        classes["buffer"] = ()
    aimed, asked = {target for _, target in directions}, {query for query, _ in directions}
    drawn: dict[tuple[str, str], list[FilterImage]] = {}
    for role in ROLES:
        needed = {"pool": bool(classes[role]), "targets": role in aimed, "queries": role in asked}
        all_of = {part: _ordered(role, [i for name in classes[role] for i in images[part].get(name, ())], seed)
                  for part in parts}  # fmt: skip
        taken = _separate if own_folders else _one_after_another
        drawn |= {(part, role): several for part, several in taken(role, all_of, needed, sizes).items()}
    return FilterPools(
        tuple(image for role in ROLES for image in drawn["pool", role]),
        tuple(image for role in ROLES for image in drawn["targets", role]),
        tuple(image for role, _ in directions for image in drawn["queries", role]),
        directions,
        {role: classes[role] for role in ROLES if classes[role]},
    )


_Keyed = tuple[str, Path]


def _check_directions(directions: Sequence[tuple[str, str]], buffer: bool) -> None:
    for query, target in directions:
        known = ROLES if buffer else ("safe", "unsafe")
        if query not in known or target not in known or query == target:
            raise ValueError(
                f"queries of {query!r} that shall pass for {target!r}: expected two different ones of "
                f"{', '.join(known)}"
            )
    if not directions or len({query for query, _ in directions}) < len(directions):
        raise ValueError(f"got {len(directions)} directions, expected one or more, each with queries of another role")


def _in_folders(root: Path, folder: Path) -> dict[str, list[_Keyed]]:
    """List the images of each class folder, with their paths below `root`; none where there is no such folder."""
    if folder != root and not folder.is_dir():
        return {}
    if folder == root:
        found = read_classes(folder)
        names, images = found.names, [(found.names[image.label], image.path) for image in found.images]
    else:
        names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))
        images = [(name, path) for name in names for path in find_images(folder / name)]
    by_class: dict[str, list[_Keyed]] = {name: [] for name in names}
    for name, path in images:
        by_class[name].append((path.relative_to(root).as_posix(), path))
    return by_class


def _in_table(folder: Path, table: Path) -> dict[str, list[_Keyed]]:
    """List the images of each class below a folder that a table names."""
    known, by_class = read_class_table(table), dict[str, list[_Keyed]]()
    for path in find_images(folder):
        key = path.relative_to(folder).as_posix()
        if name := known.get(Path(os.path.normpath(folder.resolve() / key))):
            by_class.setdefault(name, []).append((key, path))
    if not by_class:
        raise ValueError(f"{table} names no image below {folder}: files in it are relative to the table's own folder")
    return by_class


def _classes(folder: Path, found: Sequence[str], names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Find the classes of each role."""
    classes = {role: tuple(names.get(role) or [name for name in USUAL[role] if name in found]) for role in ROLES}
    given = [name for role in ROLES for name in classes[role]]
    if not classes["safe"]:
        classes["safe"] = tuple(name for name in found if name not in given)
    for name in given:
        if name not in found:
            raise ValueError(f"{folder} has no class {name!r}, it has {', '.join(found)}")
        if given.count(name) > 1:
            raise ValueError(f"the class {name!r} is named twice: a class has one role, safe, buffer or unsafe")
    for role in ("unsafe", "safe"):
        if not classes[role]:
            raise ValueError(f"none of the classes {', '.join(found)} is known to be {role}: name some with --{role}")
    return classes


def _ordered(role: str, images: Sequence[_Keyed], seed: int) -> list[FilterImage]:
    order = sorted(images, key=lambda image: (sample_seed(seed, f"filter/{image[0]}"), image[0]))
    return [FilterImage(key, path, role) for key, path in order]


def _one_after_another(
    role: str, images: Mapping[str, list[FilterImage]], needed: Mapping[str, bool], sizes: Sizes
) -> dict[str, list[FilterImage]]:
    """Cut the images of a role into pool, targets and queries; the place of targets is kept for queries alone too."""
    wanted = {part: getattr(sizes, part) or PAPER_SIZES[part] for part in images}
    each = {part: wanted[part] if needed[part] else 0 for part in images}
    if needed["queries"]:
        each["targets"] = wanted["targets"]
    whole, first, cut = images["pool"], 0, {}
    if sum(each.values()) > len(whole):
        raise ValueError(
            f"the {role} classes have {len(whole)} images, and {each['pool']} for the pool, {each['targets']} targets "
            f"and {each['queries']} queries are asked for: lower --pool-size, --targets or --queries"
        )
    for part, count in each.items():
        cut[part] = whole[first : first + count] if needed[part] else []
        first += count
    return cut


def _separate(
    role: str, images: Mapping[str, list[FilterImage]], needed: Mapping[str, bool], sizes: Sizes
) -> dict[str, list[FilterImage]]:
    """Take pool, targets and queries of a role from folders of their own."""
    options = {"pool": "--pool-size", "targets": "--targets", "queries": "--queries"}
    for part, several in images.items():
        wanted = getattr(sizes, part) or (0 if part == "targets" else 1)  # without targets there is no attack
        if needed[part] and len(several) < wanted:
            raise ValueError(
                f"the folder {part} has {len(several)} images of {role} classes, and {wanted} are needed: add some, or "
                f"lower {options[part]}"
            )
    return {part: several[: getattr(sizes, part)] if needed[part] else [] for part, several in images.items()}
