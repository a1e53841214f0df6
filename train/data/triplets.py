"""Two-alternative forced choice on disk: the NIGHTS format (data.csv, ref/, distort/) and the BAPPS format."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rclip_metric.files import regular_file
from rclip_metric.images import SUFFIXES
from rclip_metric.train.data.splits import BAPPS_SPLITS, BAPPS_TRAINING_SPLITS, PARTS, SPLITS
from rclip_metric.train.data.table import place_in, read_table

COLUMNS = (
    "id",
    "left_vote",
    "right_vote",
    "votes",
    "ref_path",
    "left_path",
    "right_path",
    "split",
    "is_imagenet",
)
MIN_VOTES = 6

_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


@dataclass(frozen=True)
class TripletFiles:
    """One triplet on disk.

    Attributes:
        key: Names the triplet within its set: the NIGHTS id as it is written, "cnn/000123" for BAPPS.
        reference: The image that the other two are compared to.
        left: NIGHTS' left image, BAPPS' p0.
        right: NIGHTS' right image, BAPPS' p1.
        share: Of the people asked, in [0, 1], who found the right image more similar; NIGHTS has 0 and 1 alone.
        split: The part it is reported under: "train", "val", "test_imagenet" or "test_no_imagenet" for NIGHTS,
            one of `BAPPS_SPLITS` for BAPPS.
        kind: What tells it from others beyond its split, where a column `kind` says so (`photos`); else empty.

    Example:
        >>> TripletFiles("7", Path("ref.png"), Path("left.png"), Path("right.png"), share=0.8, split="cnn").label
        1
    """

    key: str
    reference: Path
    left: Path
    right: Path
    share: float
    split: str
    kind: str = ""

    @property
    def label(self) -> int:
        """1 where the majority chose the right image, else 0 (also at exactly one half, as published)."""
        return int(self.share > 0.5)


def read_nights(
    folder: Path, split: str = "test", min_votes: int = MIN_VOTES, *, allow_outside: bool = False
) -> list[TripletFiles]:
    """Read the triplets of a split, by column name, keeping those with at least `min_votes` votes.

    Every row must tell its split, votes and is_imagenet; the rest is looked at in the rows that are kept.
    Whether the images are there is for `train/data/check.py`.

    Args:
        folder: holds data.csv, to which the paths in it are relative.
        split: train, val, test, or the halves of the test set, test_imagenet and test_no_imagenet.
        min_votes: 6 in the published protocol.
        allow_outside: its paths may lead out of the folder, see `place_in`.

    Returns:
        In the order of the file.

    Raises:
        ValueError: naming the file, row, column or split that is missing or malformed.

    Example:
        >>> import tempfile
        >>> from rclip_metric.train.data.scenes.draw import ScenesConfig, write_scenes
        >>> config = ScenesConfig(images=0, triplets=(0, 0, 4), pool=0, queries=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_scenes(Path(folder), config, quiet=True)
        ...     triplets = read_nights(Path(folder, "nights"))
        >>> {(triplet.reference.parts[-3], triplet.left.parts[-3]) for triplet in triplets}
        {('ref', 'distort')}
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    table = folder / "data.csv"
    if not table.is_file():
        raise ValueError(f"{folder} has no data.csv: pass the folder of a NIGHTS-format set")
    triplets: list[TripletFiles] = []
    rows: dict[str, int] = {}
    for number, row in read_table(table, COLUMNS):
        try:
            triplet = _nights_triplet(folder, row, split, min_votes, allow_outside)
        except ValueError as error:
            raise ValueError(f"{table}, row {number} is malformed ({error}): download the file again") from error
        if triplet is None:
            continue
        if triplet.key in rows:
            raise ValueError(
                f"{table}, row {number} repeats the id {triplet.key!r} of row {rows[triplet.key]}, and outcomes are "
                "kept by id: give every triplet its own"
            )
        rows[triplet.key] = number
        triplets.append(triplet)
    if not triplets:
        raise ValueError(f"{table} has no triplet of split {split!r} with {min_votes} votes or more")
    return triplets


def _nights_triplet(
    folder: Path, row: Mapping[str, str], split: str, min_votes: int, allow_outside: bool
) -> TripletFiles | None:
    """Read a row of data.csv, or None if it is of another split or has fewer votes; ValueError says what is wrong."""
    if None in row or None in row.values():
        raise ValueError("it has another number of cells than the header")
    votes = float(row["votes"])
    if not math.isfinite(votes):
        raise ValueError(f"votes is {row['votes']!r}, expected a number")
    if row["split"] not in PARTS:
        raise ValueError(f"split is {row['split']!r}, expected {', '.join(PARTS)}")
    if row["is_imagenet"].lower() not in _TRUTH:
        raise ValueError(f"is_imagenet is {row['is_imagenet']!r}, expected True or False")
    half = "test_imagenet" if _TRUTH[row["is_imagenet"].lower()] else "test_no_imagenet"
    part = half if row["split"] == "test" else row["split"]
    if votes < min_votes or split not in (part, row["split"]):
        return None
    left, right = float(row["left_vote"]), float(row["right_vote"])
    if {left, right} != {0.0, 1.0}:
        raise ValueError(f"left_vote {row['left_vote']!r} and right_vote {row['right_vote']!r}, expected a 0 and a 1")
    for name in ("id", "ref_path", "left_path", "right_path"):
        if not row[name].strip():
            raise ValueError(f"{name} is empty")
    names = (row[f"{name}_path"].strip() for name in ("ref", "left", "right"))
    reference, left_image, right_image = (place_in(folder, name, allow_outside) for name in names)
    return TripletFiles(row["id"].strip(), reference, left_image, right_image, right, part, row.get("kind", "").strip())


def read_bapps(folder: Path, splits: Sequence[str] = BAPPS_SPLITS) -> list[TripletFiles]:
    """Read the validation triplets of BAPPS: p0 is the left image, p1 the right one.

    Each split folder has ref/, p0/, p1/ and judge/, and the n-th names of the four, sorted, belong together,
    as in the published loader; here their stems must agree as well. judge/*.npy is the share of people who
    prefer p1.

    Args:
        folder: holds the split folders, or 2afc/val or val, which holds them.
        splits: which to read, and in which order.

    Returns:
        Split after split, sorted by name within each.

    Raises:
        ValueError: naming the split, folder or file that is missing or malformed.

    Example:
        >>> import tempfile
        >>> from rclip_metric.train.data.scenes import write_bapps
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_bapps(Path(folder), per_split=2, quiet=True)
        ...     triplets = read_bapps(Path(folder), ["cnn"])
        >>> [triplet.key for triplet in triplets]
        ['cnn/000000', 'cnn/000001']
    """
    return _read_bapps(folder, splits, BAPPS_SPLITS, "val")


def read_bapps_training(folder: Path, splits: Sequence[str] = BAPPS_TRAINING_SPLITS) -> list[TripletFiles]:
    """Read the training triplets of BAPPS, which lie as those of `read_bapps` do, below train instead of val.

    Two people judged each: shares are 0, 1/2 or 1.

    Args:
        folder: holds 2afc/train or train, which holds the split folders, or is called train and holds them.
        splits: which to read, and in which order; by default all three.

    Returns:
        Split after split, sorted by name within each.

    Raises:
        ValueError: naming the split, folder or file that is missing or malformed.

    Example:
        >>> import tempfile
        >>> from rclip_metric.train.data.scenes import write_bapps
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_bapps(Path(folder), per_split=1, training=2, quiet=True)
        ...     triplets = read_bapps_training(Path(folder), ["mix"])
        >>> [triplet.key for triplet in triplets]
        ['mix/000000', 'mix/000001']
    """
    return _read_bapps(folder, splits, BAPPS_TRAINING_SPLITS, "train")


def _read_bapps(folder: Path, splits: Sequence[str], known: Sequence[str], part: str) -> list[TripletFiles]:
    kind = "BAPPS splits" if part == "val" else "BAPPS training splits"
    if unknown := [split for split in splits if split not in known]:
        raise ValueError(f"unknown {kind[:-1]} {unknown[0]!r}: use some of {', '.join(known)}")
    if not splits or len(set(splits)) < len(splits):
        raise ValueError(f"got the {kind} {', '.join(splits) or '(none)'}: name at least one, and each once")
    places = [folder, folder / "2afc" / part, folder / part]
    if part == "train" and folder.resolve().name != part:  # 2afc/val has folders of the same names
        del places[0]
    found = [place for place in places if any((place / split).is_dir() for split in known)]
    if not found:
        what = "no BAPPS set" if part == "val" else "no BAPPS set with training triplets"
        where = "in it, in its 2afc/val and in its val" if part == "val" else "in its 2afc/train and in its train"
        raise ValueError(f"{folder} is {what}: looked for one of the folders {', '.join(known)} {where}")
    return [triplet for split in splits for triplet in _read_bapps_split(found[0], split)]


def _read_bapps_split(root: Path, split: str) -> list[TripletFiles]:
    stems, names = matched_files(root, split, ("ref", "p0", "p1"), "judge")
    # 0.1 ms each, threads make it 0.4
    shares = [read_share(root / split / "judge" / name, "who prefer p1") for name in names["judge"]]
    images = [[root / split / part / name for name in names[part]] for part in ("ref", "p0", "p1")]
    return [
        TripletFiles(f"{split}/{stem}", reference, left, right, share, split)
        for stem, reference, left, right, share in zip(stems, *images, shares, strict=True)
    ]


def matched_files(
    root: Path, split: str, images: Sequence[str], numbers: str
) -> tuple[list[str], Mapping[str, list[str]]]:
    """List the files of a split of BAPPS that belong together: those with the same stem in each of its folders.

    Args:
        root: holds the split's folder.
        split: its name.
        images: folders of images in it.
        numbers: the folder of .npy files in it.

    Returns:
        The stems, sorted, and for each folder the file of each of them.

    Raises:
        ValueError: naming the folder that is missing or empty, or the file that has no counterpart.
    """
    names: dict[str, list[str]] = {}
    for part in (*images, numbers):
        suffixes = {".npy"} if part == numbers else SUFFIXES
        if not (root / split / part).is_dir():
            raise ValueError(
                f"BAPPS split {split!r} lacks the folder {root / split / part}: unpack it, or leave the split out"
            )
        files = (name for name in os.listdir(root / split / part) if not name.startswith("."))
        names[part] = sorted(name for name in files if os.path.splitext(name)[1].lower() in suffixes)
    stems = {part: [os.path.splitext(name)[0] for name in files] for part, files in names.items()}
    if not any(stems.values()):
        folders = f"{', '.join(images)} and {numbers}"
        raise ValueError(f"BAPPS split {split!r} is empty: {root / split}/{folders} hold no files")
    everything = sorted(set().union(*stems.values()))
    for part, found in stems.items():
        if len(found) > len(set(found)):
            twice = next(stem for stem, following in itertools.pairwise(found) if stem == following)
            raise ValueError(f"BAPPS split {split!r}: {root / split / part} holds {twice!r} with two suffixes")
        if found != everything:
            gone = sorted(set(everything) - set(found))
            other = next(name for name in stems if gone[0] in stems[name])
            raise ValueError(
                f"BAPPS split {split!r}: {root / split / part} has {len(found)} files, and none for {gone[0]!r}, "
                f"which {root / split / other} holds (files missing there: {len(gone)}): download the set again"
            )
    return everything, names


def read_share(path: Path, people: str) -> float:
    """Read the one number in a .npy file, the share in [0, 1] of people who do something; ValueError for any other."""
    try:
        values = np.load(regular_file(path), allow_pickle=False)
    # A pickle is a ValueError, an empty file an EOFError; a header may promise more than memory or a number holds.
    except (OSError, ValueError, EOFError, OverflowError, MemoryError) as error:
        raise ValueError(f"cannot read {path} ({' '.join(str(error).split())}): download it again") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub" or values.size != 1:
        described = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise ValueError(f"{path} holds {described}, expected one number, the share of people {people}")
    share = float(values.reshape(()))
    if not 0.0 <= share <= 1.0:  # also NaN
        raise ValueError(f"{path} holds {share}, expected the share of people {people}, in [0, 1]")
    return share
