"""From a folder on the disk to the samples of an evaluation: NIGHTS, BAPPS and THINGS, and scenes in their formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rclip_metric.train.data.things import read_things
from rclip_metric.train.data.two_afc import BAPPS_SPLITS, read_bapps, read_nights
from rclip_metric.train.evaluation import odd_one_out, two_afc
from rclip_metric.train.evaluation.odd_one_out import OddOneOutData
from rclip_metric.train.evaluation.published import BAPPS_ATTACKED, published_as
from rclip_metric.train.evaluation.two_afc import TwoAfcData, first_of_each_split, loader_at


def nights_data(
    folder: Path, split: str = "test", limit: int | None = None, *, name: str | None = None, published: bool = False
) -> TwoAfcData:
    """Triplets in the NIGHTS format.

    Args:
        folder: with data.csv.
        split: train, val, test, test_imagenet or test_no_imagenet.
        limit: only the first ones.
        name: of the set (default: the folder's, "scenes" for the scenes').
        published: the user states that this is NIGHTS itself, see `published_as`.

    Raises:
        ValueError: as `read_nights` and `published_as` raise it.
    """
    triplets = read_nights(folder, split)[:limit]
    # The scenes' folder is called nights, for its format.
    own = "scenes" if (folder.resolve().parent / "scenes.json").exists() else folder.resolve().name
    known = published_as("nights", len(triplets), two_afc.digest_of(triplets), split, stated=published)
    return TwoAfcData(name or own, split, triplets, limit=limit, published=known)


def bapps_data(
    folder: Path,
    splits: Sequence[str] | None = None,
    *,
    protocol: str = "majority",
    attacked: int = BAPPS_ATTACKED,
    limit: int | None = None,
    name: str | None = None,
    published: bool = False,
) -> TwoAfcData:
    """Triplets in the BAPPS format.

    Args:
        folder: with 2afc/val.
        splits: default all six.
        protocol: "majority", or "soft" (images at 64 pixels, as LPIPS reports it).
        attacked: triplets of each split that attacks are run on.
        limit: only the first ones of each split.
        name: of the set (default: the folder's, "scenes-bapps" for the scenes').
        published: the user states that this is BAPPS itself, see `published_as`.

    Raises:
        ValueError: as `read_bapps` and `published_as` raise it.
    """
    triplets = read_bapps(folder, splits or BAPPS_SPLITS)
    if limit:
        triplets = first_of_each_split(triplets, limit)
    own = "scenes-bapps" if (folder / "bapps.json").exists() else folder.resolve().name
    chosen = frozenset(triplet.key for triplet in first_of_each_split(triplets, attacked))
    split = None if splits is None else "+".join(sorted(splits))
    load = loader_at(64) if protocol == "soft" else None
    known = published_as("bapps", len(triplets), two_afc.digest_of(triplets), split, stated=published)
    return TwoAfcData(name or own, split, triplets, protocol, True, chosen, load, limit, known)


def things_data(
    folder: Path,
    table: Path | None = None,
    images: Path | None = None,
    limit: int | None = None,
    *,
    name: str | None = None,
    published: bool = False,
) -> OddOneOutData:
    """Odd-one-out triplets in the THINGS format.

    Args:
        folder: with the table and the images, or the table itself beside them.
        table: the tab-separated triplets, if they are elsewhere.
        images: folder, or list of one path per line (default: images/ in the folder).
        limit: only the first triplets.
        name: of the set (default: the folder's, "scenes-things" for the scenes').
        published: the user states that this is THINGS itself, see `published_as`.

    Raises:
        ValueError: as `read_things` and `published_as` raise it.
    """
    if folder.is_file():
        table, folder = table or folder, folder.parent
    things = read_things(table or folder, images or folder / "images")
    if limit:
        things = replace(things, triplets=things.triplets[:limit], odd=things.odd[:limit])
    own = "scenes-things" if (folder / "things.json").exists() else folder.resolve().name
    known = published_as("things", len(things.triplets), odd_one_out.digest_of(things), stated=published)
    return OddOneOutData(name or own, things, limit, known)
