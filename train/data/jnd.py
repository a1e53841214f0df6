"""Just noticeable differences on disk: the other half of BAPPS, pairs of patches that people call the same or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rclip_metric.train.data.triplets import matched_files, read_share

JND_SPLITS = ("traditional", "cnn")


@dataclass(frozen=True)
class JndPair:
    """One pair on disk.

    Attributes:
        key: Names the pair within its set: "cnn/000123".
        files: The two images, p0 and p1.
        same: Share of the people asked, in [0, 1], who called them the same.
        split: One of `JND_SPLITS`.

    Example:
        >>> JndPair("cnn/000000", (Path("p0.png"), Path("p1.png")), same=1 / 3, split="cnn").split
        'cnn'
    """

    key: str
    files: tuple[Path, Path]
    same: float
    split: str


def read_jnd(folder: Path, splits: Sequence[str] = JND_SPLITS) -> list[JndPair]:
    """Read the validation pairs of BAPPS' JND part.

    Each split folder has p0/, p1/ and same/, in which the n-th names, sorted, belong together; their stems must agree.
    same/*.npy is the share of people who called the two the same.

    Args:
        folder: holds the split folders, or jnd/val or val, which holds them.
        splits: which to read, and in which order.

    Returns:
        Split after split, sorted by name within each.

    Raises:
        ValueError: naming the split, folder or file that is missing or malformed.

    Example:
        >>> import tempfile
        >>> from rclip_metric.train.data.scenes import write_jnd
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_jnd(Path(folder), per_split=2, quiet=True)
        ...     pairs = read_jnd(Path(folder), ["cnn"])
        >>> [pair.key for pair in pairs]
        ['cnn/000000', 'cnn/000001']
    """
    if unknown := [split for split in splits if split not in JND_SPLITS]:
        raise ValueError(f"unknown split {unknown[0]!r} of BAPPS' JND part: use some of {', '.join(JND_SPLITS)}")
    if not splits or len(set(splits)) < len(splits):
        raise ValueError(f"got the JND splits {', '.join(splits) or '(none)'}: name at least one, and each once")
    places = [folder / "jnd" / "val", folder / "val", folder]
    found = [place for place in places if any((place / split / "same").is_dir() for split in JND_SPLITS)]
    if not found:
        raise ValueError(
            f"{folder} holds no JND part of BAPPS: looked for {' and '.join(JND_SPLITS)}, with p0, p1 and same, in its "
            "jnd/val, in its val and in it"
        )
    return [pair for split in splits for pair in _read_split(found[0], split)]


def _read_split(root: Path, split: str) -> list[JndPair]:
    stems, names = matched_files(root, split, ("p0", "p1"), "same")
    people = "who call the two the same"
    return [
        JndPair(
            f"{split}/{stem}",
            (root / split / "p0" / first, root / split / "p1" / second),
            read_share(root / split / "same" / number, people),
            split,
        )
        for stem, first, second, number in zip(stems, names["p0"], names["p1"], names["same"], strict=True)
    ]
