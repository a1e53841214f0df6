"""Two-alternative forced choice in the NIGHTS format: data.csv, ref/, distort/."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

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
SPLITS = ("train", "val", "test", "test_imagenet", "test_no_imagenet")
MIN_VOTES = 6


@dataclass(frozen=True)
class TripletFiles:
    """One triplet on disk; ``label`` is 1 when people chose the right image, else 0."""

    id: int
    reference: Path
    left: Path
    right: Path
    label: int
    votes: int
    is_imagenet: bool


def read_nights(folder: Path, split: str = "test", min_votes: int = MIN_VOTES) -> list[TripletFiles]:
    """Read the triplets of a split, by column name, keeping those with at least ``min_votes`` votes.

    Args:
        folder: holds data.csv.
        split: train, val, test, or the halves of the test set, test_imagenet and test_no_imagenet.
        min_votes: 6 in the published protocol.

    Raises:
        ValueError: naming the file, row, column or split that is missing or malformed.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    table = folder / "data.csv"
    if not table.is_file():
        raise ValueError(f"{folder} has no data.csv: pass the folder of a NIGHTS-format set")
    with table.open(newline="") as handle:
        reader = csv.DictReader(handle)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{table} lacks the column {missing[0]!r}; it has {', '.join(reader.fieldnames or ())}")
        triplets = []
        for number, row in enumerate(reader, start=2):  # row 1 of the file is the header
            try:
                left, right = float(row["left_vote"]), float(row["right_vote"])
                votes, identity = int(float(row["votes"])), int(float(row["id"]))
                if not {left, right} <= {0.0, 1.0} or left == right:
                    raise ValueError(f"left_vote {row['left_vote']!r} and right_vote {row['right_vote']!r}")
                imagenet = {"true": True, "false": False, "1": True, "0": False}[row["is_imagenet"].lower()]
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ValueError(f"{table}, row {number} is malformed ({error}): download the file again") from error
            half = "test_imagenet" if imagenet else "test_no_imagenet"
            if votes < min_votes or split not in (
                row["split"],
                half if row["split"] == "test" else row["split"],
            ):
                continue
            reference, left_image, right_image = (folder / row[f"{name}_path"] for name in ("ref", "left", "right"))
            triplets.append(
                TripletFiles(identity, reference, left_image, right_image, int(right == 1), votes, imagenet)
            )
    if not triplets:
        raise ValueError(f"{table} has no triplet of split {split!r} with {min_votes} votes or more")
    return triplets
