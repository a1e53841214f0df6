"""From a folder on the disk to the samples of an evaluation: NIGHTS, BAPPS and THINGS, and scenes in their formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rclip_metric.train.data.things import read_things
from rclip_metric.train.data.two_afc import BAPPS_SPLITS, read_bapps, read_nights
from rclip_metric.train.evaluation.odd_one_out import OddOneOutData
from rclip_metric.train.evaluation.two_afc import TwoAfcData, first_of_each_split, loader_at

BAPPS_ATTACKED = 1000  # per split, in the paper


def nights_data(folder: Path, split: str = "test", limit: int | None = None) -> TwoAfcData:
    """Triplets in the NIGHTS format.

    Args:
        folder: with data.csv.
        split: train, val, test, test_imagenet or test_no_imagenet.
        limit: only the first ones.
    """
    triplets = read_nights(folder, split)[:limit]
    # The scenes' folder is called nights as well, for its format; published numbers must not stand beside it.
    name = "scenes" if (folder.resolve().parent / "scenes.json").exists() else "nights"
    return TwoAfcData(name, split, triplets, limit=limit)


def bapps_data(
    folder: Path,
    splits: Sequence[str] | None = None,
    *,
    protocol: str = "majority",
    attacked: int = BAPPS_ATTACKED,
    limit: int | None = None,
) -> TwoAfcData:
    """Triplets in the BAPPS format.

    Args:
        folder: with 2afc/val.
        splits: default all six.
        protocol: "majority", or "soft" (images at 64 pixels, as LPIPS reports it).
        attacked: triplets of each split that attacks are run on.
        limit: only the first ones of each split.
    """
    triplets = read_bapps(folder, splits or BAPPS_SPLITS)
    if limit:
        triplets = first_of_each_split(triplets, limit)
    name = "scenes-bapps" if (folder / "bapps.json").exists() else "bapps"
    chosen = frozenset(triplet.key for triplet in first_of_each_split(triplets, attacked))
    split = None if splits is None else "+".join(sorted(splits))
    load = loader_at(64) if protocol == "soft" else None
    return TwoAfcData(name, split, triplets, protocol, True, chosen, load, limit)


def things_data(
    folder: Path, table: Path | None = None, images: Path | None = None, limit: int | None = None
) -> OddOneOutData:
    """Odd-one-out triplets in the THINGS format.

    Args:
        folder: with the table and the images.
        table: the tab-separated triplets, if they are elsewhere.
        images: folder, or list of one path per line (default: images/ in the folder).
        limit: only the first triplets.
    """
    things = read_things(table or folder, images or folder / "images")
    if limit:
        things = replace(things, triplets=things.triplets[:limit], odd=things.odd[:limit])
    return OddOneOutData("scenes-things" if (folder / "things.json").exists() else "things", things, limit)
