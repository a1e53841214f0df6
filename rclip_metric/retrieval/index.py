"""An index of images: their embeddings, where they come from, and exact search among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from rclip_metric.distance import normalize
from rclip_metric.errors import ImageError, ImageIndexError
from rclip_metric.images.reading import list_images_below
from rclip_metric.retrieval.embeddings import Embedder, FileEmbeddings
from rclip_metric.retrieval.identity import differences, identity_of
from rclip_metric.retrieval.neighbours import nearest
from rclip_metric.retrieval.rows import Hits, Update, named, rows_of, stamped_row
from rclip_metric.retrieval.storage import (
    Approximation,
    Row,
    SearchableStorage,
    Storage,
    create_storage,
    open_storage,
    require_free,
)

_BLOCK = 512
"""Files whose embeddings are written at a time: what a process that is killed loses."""
_DTYPES = {torch.float32: "float32", torch.float16: "float16"}

Skip = Callable[[Path, str], None]


class ImageIndex:
    """Images to search among, as unit embeddings of one metric; exact, on the metric's device.

    Args:
        metric: Embeds images; see `Embedder`.
        dtype: float32, or float16, which halves the memory and moves a distance by less than 0.001.

    Attributes:
        root: The folder that it was built from, None if there is none.
        source: By what the metric can be had again, where that was said.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from rclip_metric import RobustPerceptualDistance
        >>> metric = RobustPerceptualDistance("tiny")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("red", "blue", "navy"):
        ...         Image.new("RGB", (64, 64), name).save(Path(folder, f"{name}.png"))
        ...     index = ImageIndex.build(folder, metric)
        ...     hits = index.search(Path(folder, "blue.png"), k=2)
        >>> hits.ids[0], round(hits.distances[0].item(), 4)
        ('blue.png', 0.0)
    """

    def __init__(self, metric: Embedder, *, dtype: torch.dtype = torch.float32) -> None:
        """Begin empty, in memory."""
        if not hasattr(metric, "embed"):
            raise ImageIndexError(
                f"{getattr(metric, 'name', metric)} gives no embeddings: an index needs a metric that does."
            )
        if dtype not in _DTYPES:
            raise ImageIndexError(f"dtype must be torch.float32 or torch.float16, got {dtype}.")
        self.metric = metric
        self.dtype = dtype
        self.root: Path | None = None
        self.source: str | None = None
        self._rows: list[Row] = []
        self._places: dict[str, int] = {}
        self._parts: list[Tensor] = []  # of the embeddings, in the order of the rows
        self._storage: Storage | None = None
        self._on_disk: SearchableStorage | None = None  # the storage, as long as its rows are there alone
        self._dimension: int | None = None
        self._destination: tuple[Path, str | None] | None = None  # where it is kept as soon as D is known

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike[str],
        metric: Embedder,
        *,
        path: str | os.PathLike[str] | None = None,
        dtype: torch.dtype = torch.float32,
        source: str | None = None,
        batch_size: int = 32,
        on_skip: Skip | None = None,
        on_start: Callable[[int], object] = lambda total: None,
        on_done: Callable[[], object] = lambda: None,
        workers: int | None = None,
    ) -> ImageIndex:
        """Index all images below a folder.

        An image is called by its path from the folder on, and its label is the first folder on that path, if there is
        one. Files that cannot be read are left out, and named by `on_skip`.

        Args:
            folder: A tree of images.
            metric, dtype: As for the constructor.
            path: Where to keep the index, written as it grows; None keeps it in memory.
            source: By what the metric can be had again, for who opens the index: a name, a path or a Hub id.
            batch_size: Images per call of the metric.
            on_skip: Called with a file that cannot be read, and why; raises ImageError by default.
            on_start: Called with the number of files.
            on_done: Called after each file.
            workers: Threads that read images, by default a few.

        Raises:
            ImageError: The folder cannot be listed.
            ImageIndexError: There are no images in it.
            ImageIndexError: There is something at `path` already.
        """
        index = cls(metric, dtype=dtype)
        root = Path(folder)
        files = list_images_below(root)
        if not files:
            raise ImageIndexError(f"there are no images below {root}.")
        index.root, index.source = root.resolve(), source
        if path is not None:
            index._destination = Path(path), None
            require_free(Path(path))
        on_start(len(files))
        index._add_files(named(files, root), batch_size, on_skip or _refuse, on_done, workers)
        return index

    @classmethod
    def open(cls, path: str | os.PathLike[str], metric: Embedder, *, in_memory: bool = True) -> ImageIndex:
        """Open an index that was saved or built at a path; what is added goes there at once.

        Args:
            path: A folder.
            metric: The one that made it.
            in_memory: False leaves a LanceDB table on disk and searches through it there, as exactly, reading it once
                for each batch of queries; what needs to know all rows, as `update` does, reads them nevertheless.

        Raises:
            ImageIndexError: There is no index, it is damaged, or it was made by another model: both are named.
            MissingPackageError: It is a LanceDB table and LanceDB is not installed.
        """
        storage = open_storage(Path(path))
        about = storage.about()
        made_by, asked = about.get("metric"), identity_of(metric)
        if made_by != asked:
            theirs, own = differences(made_by, asked)
            raise ImageIndexError(
                f"{path} holds embeddings of {theirs}, and this is {own}: open it with that model and its settings, or "
                "build it anew with this one."
            )
        index = cls(metric, dtype=getattr(torch, about["dtype"]))
        index.root = None if about.get("root") is None else Path(about["root"])
        index.source = about.get("source")
        index._storage = storage
        index._dimension = about["dimension"]
        if isinstance(storage, SearchableStorage) and not in_memory:
            index._on_disk = storage
        else:
            rows, embeddings = storage.read()
            index._set(rows, embeddings.to(metric.device))
        return index

    def save(self, path: str | os.PathLike[str], *, format: str | None = None) -> None:
        """Write the whole index to a folder of its own, and go on adding there.

        Args:
            path: A folder that does not exist or is empty.
            format: "lance" (LanceDB, the extra `index`), "safetensors", or None for the first if it is installed.

        Raises:
            ImageIndexError: There is something there already.
            MissingPackageError: LanceDB was asked for and is not installed.
        """
        embeddings = self._require_embeddings("saving it")
        storage = self._create(Path(path), format, embeddings.shape[1])
        for start in range(0, len(self), 2**14):
            storage.write(self.rows[start : start + 2**14], embeddings[start : start + 2**14])

    def __len__(self) -> int:
        """Count the images."""
        return len(self._rows) if self._on_disk is None else self._on_disk.count()

    @property
    def rows(self) -> list[Row]:
        """What is known of each image, in the order of `embeddings`."""
        self._read()
        return self._rows

    @property
    def embeddings(self) -> Tensor | None:
        """The unit embeddings (N, D), on the metric's device; None while the index is empty."""
        self._read()
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0] if self._parts else None

    @property
    def squared(self) -> bool:
        """Whether distances are 1 - cos, and not its square root."""
        return bool(getattr(self.metric, "squared", False))

    @property
    def ids(self) -> list[str]:
        """The images' names."""
        return [row.id for row in self.rows]

    def add(
        self,
        items: Tensor | Iterable[str | os.PathLike[str]],
        *,
        ids: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
        batch_size: int = 32,
        on_skip: Skip | None = None,
    ) -> int:
        """Add images; one whose id is there already is replaced.

        Args:
            items: Image files; or images (N, 3, H, W) in [0, 1]; or embeddings (N, D), brought to unit length here.
            ids: A name for each; by default the path of a file. Images and embeddings need them.
            labels: A class for each.
            batch_size: Images per call of the metric.
            on_skip: Called with a file that cannot be read, and why; raises ImageError by default.

        Returns:
            How many were added.

        Raises:
            ImageIndexError: Lengths differ, an id stands twice, or an embedding is not finite or of another size.
        """
        if isinstance(items, Tensor):
            if ids is None:
                raise ImageIndexError("images and embeddings need ids: a name for each.")
            rows = rows_of(ids, labels, len(items))
            for start in range(0, len(items), _BLOCK):
                part = items[start : start + _BLOCK]
                embeddings = self._embed(part, batch_size) if part.dim() == 4 else self._units(part, rows[start:])
                self._write(rows[start : start + _BLOCK], embeddings)
            return len(items)
        files = [Path(item) for item in items]
        rows = rows_of([str(file) for file in files] if ids is None else ids, labels, len(files))
        return self._add_files(list(zip(files, rows, strict=True)), batch_size, on_skip or _refuse, lambda: None)

    def remove(self, ids: Iterable[str]) -> None:
        """Drop images; KeyError for one that is not there."""
        self._read()
        dropped = set(ids)
        if unknown := sorted(dropped - self._places.keys()):
            raise KeyError(f"the index has no {unknown[0]}")
        if not dropped:
            return
        if self._storage is not None:
            self._storage.remove(sorted(dropped))
        kept = [place for place, row in enumerate(self.rows) if row.id not in dropped]
        self._set([self.rows[place] for place in kept], self._require_embeddings("dropping any")[kept])

    def update(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        batch_size: int = 32,
        on_skip: Skip | None = None,
        on_start: Callable[[int], object] = lambda total: None,
        on_done: Callable[[], object] = lambda: None,
        workers: int | None = None,
    ) -> Update:
        """Bring the index of a folder up to date.

        Files whose size and time of modification are as they were are not opened; of the others, those whose bytes
        are as they were are not embedded again. Images are dropped whose files have gone, or cannot be read any more.

        Args:
            folder: Where the files are now; by default where they were when the index was built.
            batch_size: Images per call of the metric.
            on_skip: Called with a file that cannot be read, and why.
            on_start: Called with the number of files to read.
            on_done: Called after each of them.
            workers: Threads that read images, by default a few.

        Raises:
            ImageIndexError: The index was not built from a folder and none is given.
            ImageError: The folder cannot be listed.
        """
        root = self.root if folder is None else Path(folder)
        if root is None:
            raise ImageIndexError("this index was not built from a folder: say which one it is of.")
        self._read()
        skipped: list[tuple[str, str]] = []

        def skip(file: Path, reason: str) -> None:
            skipped.append((str(file), reason))
            if on_skip is not None:
                on_skip(file, reason)

        here = {row.id: (file, row) for file, row in named(list_images_below(root), root)}
        new = [here[name] for name in here if name not in self._places]
        touched = [here[name] for name in here if name in self._places and not self._is_as_it_was(*here[name])]
        on_start(len(new) + len(touched))
        again: list[tuple[Path, Row]] = []
        same: list[Row] = []
        for file, row in touched:
            stamped = stamped_row(file, row)
            known = self.rows[self._places[row.id]]
            if stamped is not None and stamped.digest == known.digest:
                same.append(stamped)
                on_done()
            else:
                again.append((file, row))
        if same:
            places = [self._places[row.id] for row in same]
            self._write(same, self._require_embeddings("updating it")[places])
        self._add_files([*new, *again], batch_size, skip, on_done, workers)
        bad = {name for name, _ in skipped}
        vanished = [name for name in self._places if name not in here]
        broken = [row.id for file, row in again if str(file) in bad]
        self.remove([*vanished, *broken])
        return Update(
            added=[row.id for file, row in new if str(file) not in bad],
            changed=[row.id for file, row in again if str(file) not in bad],
            dropped=[*vanished, *broken],
            unchanged=len(here) - len(new) - len(again),
            skipped=skipped,
        )

    @overload
    def search(self, query: str | os.PathLike[str], k: int = 10, *, approximate: bool = False) -> Hits: ...
    @overload
    def search(self, query: Tensor, k: int = 10, *, approximate: bool = False) -> Hits | list[Hits]: ...
    @overload
    def search(self, query: Sequence[Any], k: int = 10, *, approximate: bool = False) -> list[Hits]: ...
    def search(self, query: Any, k: int = 10, *, approximate: bool = False) -> Hits | list[Hits]:
        """Find the nearest images.

        Args:
            query: A file or Pillow image, an image (3, H, W) or an embedding (D,): its hits. Several, as a list or
                with a dimension more: a list of hits.
            k: How many.
            approximate: Look where `approximate` has found that the nearest are likely to be, which reads little of the
                table; some may be missed, and the distances of those that are found are exact.

        Raises:
            ImageError: A query cannot be read.
            ImageIndexError: The index is empty, k is below 1, or more than there are images; or it was not prepared
                for an approximate search.
        """
        count = len(self)
        if not count:
            raise ImageIndexError("the index is empty: add images before searching.")
        if not 1 <= k <= count:
            raise ImageIndexError(f"k must be between 1 and the {count} images of the index, got {k}.")
        units, single = self.unit_embeddings(query)
        hits = []
        for part in units.split(256):
            rows, halves = self._nearest(part, k, approximate)
            for found, squares in zip(rows, halves.cpu(), strict=True):
                hits.append(
                    Hits(
                        ids=[row.id for row in found],
                        labels=[row.label for row in found],
                        paths=[row.path for row in found],
                        distances=squares if self.squared else squares.sqrt(),
                        similarities=1 - squares,
                    )
                )
        return hits[0] if single else hits

    @property
    def approximation(self) -> Approximation | None:
        """What `approximate` has measured; None where it has not been called."""
        return self._storage.approximation() if isinstance(self._storage, SearchableStorage) else None

    def approximate(self, *, recall: float = 0.95, sample: int = 256, k: int = 10) -> Approximation:
        """Prepare the table for approximate search, and measure what that finds.

        A query looks into as many parts of the index, doubled from one on, as it takes for the recall that is asked
        for. Images that are added later are found too: those are all compared, until this is called again.

        Args:
            recall: The fraction of the k nearest that is to be found.
            sample: Images of the index whose k nearest others are looked for in both ways: every second one to choose
                the number of parts, the rest to measure.
            k: How many.

        Returns:
            What was measured, which is also kept with the index.

        Raises:
            ImageIndexError: The index is no LanceDB table, or has too few images; the recall is no fraction.
        """
        storage, embeddings = self._storage, self._require_embeddings("preparing a search")
        if not 0 < recall <= 1:
            raise ImageIndexError(f"recall must be a fraction above 0, at most 1, got {recall}.")
        if not isinstance(storage, SearchableStorage):
            raise ImageIndexError('approximate search needs an index that is a LanceDB table: save it as "lance".')
        if len(self) <= k:
            raise ImageIndexError(f"an index of {len(self)} images has no {k} nearest others to look for.")
        parts = storage.prepare()
        places = torch.linspace(0, len(self) - 1, min(sample, len(self))).long()
        queries = embeddings[places.to(embeddings.device)].float()
        exact = nearest(queries, embeddings, k + 1)[1].tolist()
        right = [
            {self._rows[other].id for other in several if other != place}
            for place, several in zip(places.tolist(), exact, strict=True)
        ]

        def measured(chosen: slice, probes: int) -> float:
            found, _ = storage.nearest(queries[chosen].cpu(), k + 1, probes=probes)
            hits = [len({row.id for row in rows} & ids) for rows, ids in zip(found, right[chosen], strict=True)]
            return sum(hits) / (k * len(hits))

        probes = 1
        while probes < parts and measured(slice(0, None, 2), probes) < recall:
            probes = min(2 * probes, parts)
        rest = slice(1, None, 2)
        approximation = Approximation(measured(rest, probes), k, len(places[rest]), len(self), probes)
        storage.keep_approximation(approximation)
        return approximation

    def unit_embeddings(self, query: Any) -> tuple[Tensor, bool]:
        """Embed queries as `search` takes them: (Q, D), and whether one was given and not a list of them."""
        if isinstance(query, Tensor):
            single = query.dim() in (1, 3)
            batch = query[None] if single else query
            if batch.dim() == 4:
                return self._embed(batch, 32), single
            return self._units(batch, []), single
        single = isinstance(query, str | os.PathLike) or not isinstance(query, Sequence)
        images = [self.metric.preprocess(item) for item in ([query] if single else query)]
        if not images:
            raise ImageIndexError("there are no queries.")
        return self._embed(torch.stack(images), 32), single

    def labelled(self, label: str) -> ImageIndex:
        """Make an index in memory of the images that have a label."""
        places = [place for place, row in enumerate(self.rows) if row.label == label]
        part = ImageIndex(self.metric, dtype=self.dtype)
        if places:
            part._set([self.rows[place] for place in places], self._require_embeddings("choosing any")[places])
        return part

    # How it is done

    def _read(self) -> None:
        """Have what the storage holds in memory."""
        if self._on_disk is not None:
            rows, embeddings = self._on_disk.read()
            self._on_disk = None
            self._set(rows, embeddings.to(self.metric.device))

    def _nearest(self, units: Tensor, k: int, approximate: bool) -> tuple[list[list[Row]], Tensor]:
        """Find rows and squared distances (Q, k) of queries (Q, D): in memory, or on disk."""
        approximation = self.approximation if approximate else None
        if approximate and approximation is None:
            raise ImageIndexError(
                "this index is not prepared for approximate search: call `approximate` once, or say "
                "`rclip-metric index approximate`."
            )
        if approximation is not None or self._on_disk is not None:
            assert isinstance(self._storage, SearchableStorage)
            probes = None if approximation is None else approximation.probes
            return self._storage.nearest(units.cpu(), k, probes=probes)
        halves, places = nearest(units, self._require_embeddings("searching"), k, squared=True)
        return [[self._rows[place] for place in found] for found in places.tolist()], halves

    def _embed(self, images: Tensor, batch_size: int) -> Tensor:
        with torch.inference_mode():
            parts = [self.metric.embed(part.to(self.metric.device)) for part in images.split(batch_size)]
            return self._units(torch.cat(parts), [])

    def _units(self, embeddings: Tensor, rows: Sequence[Row]) -> Tensor:
        if embeddings.dim() != 2 or not embeddings.is_floating_point():
            raise ImageIndexError(
                f"got a {embeddings.dtype} tensor of shape {tuple(embeddings.shape)}, expected images (N, 3, H, W) or "
                "embeddings (N, D)"
            )
        if self._dimension not in (None, embeddings.shape[1]):
            raise ImageIndexError(f"embeddings must have {self._dimension} numbers, got {embeddings.shape[1]}.")
        finite = embeddings.isfinite().all(dim=1) & (embeddings != 0).any(dim=1)
        if not finite.all():
            place = int((~finite).nonzero()[0])
            which = f" ({rows[place].id})" if rows else ""
            raise ImageIndexError(f"embedding {place}{which} is zero or not finite: it has no direction.")
        return normalize(embeddings)

    def _add_files(
        self,
        files: Sequence[tuple[Path, Row]],
        batch_size: int,
        on_skip: Skip,
        on_done: Callable[[], object],
        workers: int | None = None,
    ) -> int:
        added = 0
        for start in range(0, len(files), _BLOCK):
            block = files[start : start + _BLOCK]
            stamped = {
                file: stamped_row(file, row) for file, row in block
            }  # before they are read: a later change shows
            rows: list[Row] = []
            units: list[Tensor] = []
            with FileEmbeddings(
                self.metric,
                [file for file, _ in block],
                batch_size=batch_size,
                on_skip=on_skip,
                on_done=on_done,
                workers=workers,
            ) as embeddings:
                for file, row in block:
                    embedding = embeddings[file]
                    if embedding is not None:
                        rows.append(stamped[file] or row)
                        units.append(embedding)
            if rows:
                self._write(rows, torch.stack(units))
            added += len(rows)
        return added

    def _write(self, rows: Sequence[Row], embeddings: Tensor) -> None:
        """Keep rows on disk first, where the index has a place there, then in memory."""
        embeddings = embeddings.to(device=self.metric.device, dtype=self.dtype)
        self._dimension = embeddings.shape[1]
        if self._destination is not None:
            self._create(*self._destination, embeddings.shape[1])
            self._destination = None
        if self._storage is not None:
            self._storage.write(rows, embeddings)
        if self._on_disk is not None:
            return
        fresh: list[int] = []
        for number, row in enumerate(rows):
            if row.id in self._places:
                place = self._places[row.id]
                self._rows[place] = row
                self._require_embeddings("replacing any")[place] = embeddings[number]
            else:
                self._places[row.id] = len(self._rows)
                self._rows.append(row)
                fresh.append(number)
        if fresh:
            self._parts.append(embeddings[fresh])

    def _set(self, rows: list[Row], embeddings: Tensor) -> None:
        self._rows = rows
        self._places = {row.id: place for place, row in enumerate(rows)}
        self._parts = [embeddings] if rows else []
        self._dimension = embeddings.shape[1] if rows else None

    def _create(self, path: Path, format: str | None, dimension: int) -> Storage:
        root = None if self.root is None else str(self.root)
        about: dict[str, Any] = {"metric": identity_of(self.metric), "source": self.source, "root": root}
        about |= {"dimension": dimension, "dtype": _DTYPES[self.dtype]}
        self._storage = create_storage(path, about, format)
        return self._storage

    def _require_embeddings(self, doing: str) -> Tensor:
        embeddings = self.embeddings
        if embeddings is None:
            raise ImageIndexError(f"the index is empty: add images before {doing}.")
        return embeddings

    def _is_as_it_was(self, file: Path, row: Row) -> bool:
        known = self.rows[self._places[row.id]]
        try:
            found = file.stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (known.size, known.modified)


def _refuse(file: Path, reason: str) -> None:
    raise ImageError(reason if str(file) in reason else f"{file}: {reason}")
