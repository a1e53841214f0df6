"""Files on the Hugging Face Hub: downloaded through huggingface_hub, checked, and used from its cache.

HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN are huggingface_hub's own and mean what they mean there.
What is in the cache at the revision asked for is used without any request. What huggingface_hub, its HTTP client or
the disk raise becomes one sentence of ours.
"""

import contextlib
import errno
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclip_metric.errors import (
    AccessError,
    DigestError,
    HubError,
    NetworkError,
    NotFoundError,
    StorageError,
    UnknownModelError,
    WeightsError,
    first_line,
)
from rclip_metric.json_files import shown
from rclip_metric.weights.digest import check_file, noted
from rclip_metric.weights.manifest import HUB_ID, WeightFile

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_REVISION = re.compile(r"(?!.*(?:\.\.|//))[\w][\w./-]{0,254}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_HTTP_CLIENTS = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}  # differs between versions of huggingface_hub


def require_hub_id(name: str) -> None:
    """Raise UnknownModelError unless a repository of that name can be on the Hub.

    Example:
        >>> require_hub_id("owner/..")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.UnknownModelError: 'owner/..' is no Hub id: that is owner/repo, each of 1 to 96 letters, ...
    """
    words, holds = HUB_ID
    if not holds(name):
        raise UnknownModelError(f"{shown(name)} is no Hub id: that is {words}.")


WINDOW, SLOWEST = 30.0, 1000.0
"""A download ends that brings less than so many bytes a second, over so many seconds."""


@dataclass(frozen=True)
class HubSource:
    """Where from and how: one repository at one revision, with the caller's cache and token.

    Attributes:
        repo: Hub id "owner/repo".
        revision: Commit (full or its first 7 or more digits), branch or tag; None for the main branch.
        cache_dir, token, local_files_only: As for `locate`.
        newest: Ask the Hub whether a branch has moved; without it, what is in the cache is used as it is.
    """

    repo: str
    revision: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    newest: bool = False

    def __post_init__(self) -> None:
        """Raise UnknownModelError for what the Hub cannot have, before it becomes a path or an address."""
        if self.repo:  # not yet known otherwise
            require_hub_id(self.repo)
        if self.revision is not None and not _REVISION.fullmatch(self.revision):
            raise UnknownModelError(f"{shown(self.revision)} is no revision on the Hub: pass a commit, branch or tag.")

    @property
    def cache(self) -> Path:
        """The cache folder."""
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser().resolve()

    @property
    def storage(self) -> Path:
        """This repository's folder in the cache."""
        from huggingface_hub import constants

        # As file_download.repo_folder_name does, which takes more than twice as long to import as all of this.
        return self.cache / constants.REPO_ID_SEPARATOR.join(["models", *self.repo.split("/")])

    @property
    def pinned(self) -> bool:
        """Whether the revision names one commit for good."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        """Show the repository and, where there is one, the revision."""
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True)
class HubFile:
    """A file in the cache and the full commit it belongs to."""

    path: Path
    commit: str
    name: str


class MissingFileError(NotFoundError):
    """The repository and the revision exist, the file does not: another name can be tried."""


def cached_file(source: HubSource, name: str) -> HubFile | None:
    """Find the file as it is in the cache, unchecked; None if it is not there. Needs no network."""
    if not os.path.isdir(source.storage):
        return None
    from huggingface_hub import try_to_load_from_cache

    revisions = [source.revision or "main"]
    if source.pinned:
        # The Hub resolves a short hash; the cache knows it only if the file was downloaded under it.
        revisions += sorted(path.name for path in (source.storage / "snapshots").glob(f"{source.revision}*"))
    for revision in revisions:
        path = try_to_load_from_cache(source.repo, name, cache_dir=source.cache, revision=revision)
        if isinstance(path, str):
            return _in_cache(source, path, name)
    return None


def first_cached(source: HubSource, files: Sequence[WeightFile]) -> tuple[HubFile, WeightFile] | None:
    """Find the first of the files that is in the cache, with what was asked for; None if none is."""
    hits = ((cached_file(source, file.name), file) for file in files)
    return next(((hit, file) for hit, file in hits if hit is not None), None)


def fetch(source: HubSource, files: Sequence[WeightFile]) -> HubFile:
    """Get the first of the files that the repository has: from the cache or downloaded, and checked.

    Its digest is compared with the sha256 given or, where that is unknown, with what the Hub says (or said
    when the file was downloaded). A file that fails is removed from the cache: the next call downloads it.

    Raises:
        NetworkError: No connection, or offline with a cold cache.
        AccessError: 401 or 403.
        NotFoundError: No such repository, revision or file.
        DigestError: Corrupt or truncated.
        StorageError: Full disk or read-only cache.
    """
    from huggingface_hub import constants

    hit = first_cached(source, files)
    offline = source.local_files_only or constants.HF_HUB_OFFLINE
    if hit is None and offline:
        reason = "local_files_only" if source.local_files_only else "HF_HUB_OFFLINE"
        raise NetworkError(
            f"{source} is not in the cache {source.cache}, and {reason} is set: download it where there is a network."
        )
    if hit is None or (source.newest and not source.pinned and not offline):
        try:
            return _download(source, files)
        except NetworkError:
            if hit is None:
                raise  # otherwise nothing answers, and what was newest last time is here
    found, file = hit
    _check(source, found, _expected_digest(source, found, file), file.size)
    return found


def recheck(source: HubSource, found: HubFile, file: WeightFile) -> str:
    """Check a file in the cache anew, whatever is remembered of it, and return its digest.

    Raises:
        DigestError: It has changed since it was downloaded; it was removed from the cache.
    """
    expected = _expected_digest(source, found, file)
    _record(source, found).unlink(missing_ok=True)
    return _check(source, found, expected, file.size)


def _download(source: HubSource, files: Sequence[WeightFile]) -> HubFile:
    from huggingface_hub import hf_hub_download

    missing: MissingFileError | None = None
    for file in files:
        try:
            published = _published(source, file.name, source.revision)
            break
        except MissingFileError as error:
            missing = error
    else:
        names = " or ".join(file.name for file in files)
        raise NotFoundError(f"{source} has no {names} on the Hub (404).") from missing
    digest = str(published.etag)
    if file.sha256 is not None and len(digest) == 64 and digest != file.sha256:
        raise DigestError(
            f"The Hub has another {file.name} in {source} than the one that is known: its sha256 is {digest}, "
            f"expected {file.sha256}."
        )
    what = f"{file.name} of {source}"
    _remove_partial(source, digest, "*.*.incomplete")
    try:
        with explained(what, source.cache), _paced(what), warnings.catch_warnings():
            _check_space(source, file.name, file.size or published.size)
            # huggingface_hub warns of a disk that is too small, and goes on; the line above has raised for that.
            warnings.filterwarnings("ignore", message="Not enough free disk space")
            path = hf_hub_download(
                source.repo,
                file.name,
                revision=source.revision,
                cache_dir=source.cache,
                token=source.token,
                library_name="rclip-metric",
            )
    finally:
        _remove_partial(source, digest, f"{digest}*.incomplete")
    found = _in_cache(source, path, file.name)
    if found.commit != published.commit_hash:  # the branch moved in between
        published = _published(source, file.name, found.commit)
    _check(source, found, file.sha256 or str(published.etag), file.size or published.size)
    return found


def _check(source: HubSource, found: HubFile, expected: str, size: int | None) -> str:
    record = _record(source, found)
    try:
        return check_file(found.path, expected, size, record)
    except DigestError as error:
        astray = _digest_by_the_cache(source, found) not in (None, expected)
        # A blob that the link should not have led to is another file's, and may be right for that.
        for path in [*(_trail(found.path)[:1] if astray else _trail(found.path)), record]:
            path.unlink(missing_ok=True)
        raise DigestError(f"{error} It was removed from the cache: try again to download it.") from error


def _expected_digest(source: HubSource, found: HubFile, file: WeightFile) -> str:
    """Return the one given, what the Hub said when the file was downloaded, or what it says now.

    A file of one commit has one digest for good: what was noted of it comes before the name of the blob that its link
    leads to, since a link can be made to lead elsewhere.
    """
    known = file.sha256 or noted(_record(source, found)) or _digest_by_the_cache(source, found)
    return known or str(_published(source, found.name, found.commit).etag)


def _digest_by_the_cache(source: HubSource, found: HubFile) -> str | None:
    """Return the digest that the Hub stated at download: the name of the blob that a snapshot links to."""
    blobs = os.path.normpath(source.storage / "blobs")
    names = (path.name for path in _trail(found.path) if os.path.normpath(path.parent) == blobs)
    return next(filter(_DIGEST.fullmatch, names), None)


def _trail(path: Path) -> list[Path]:
    """List a path and all that it leads to, one symbolic link after the other."""
    trail = [path]
    while trail[-1].is_symlink():
        trail.append(trail[-1].parent / os.readlink(trail[-1]))
    return trail


def _record(source: HubSource, found: HubFile) -> Path:
    """Name a file in the repository's own folder of the cache, so that it goes when that is removed."""
    return source.storage / "rclip-metric" / f"{found.commit}--{found.name.replace('/', '--')}.json"


def _remove_partial(source: HubSource, digest: str, pattern: str) -> None:
    """Remove what downloads that failed, or processes that were killed, left of this repository's files.

    Older versions of huggingface_hub go on from DIGEST.incomplete; what newer ones begin, DIGEST.NUMBER.incomplete, is
    of no use to anybody once its process is gone.
    """
    from filelock import FileLock, Timeout

    for partial in (source.storage / "blobs").glob(pattern):
        name = f"{partial.name.partition('.')[0]}.lock"
        lock = FileLock(source.cache / ".locks" / source.storage.name / name)
        with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):  # unless a process is writing to it
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _paced(what: str) -> Iterator[None]:
    """Raise NetworkError for an answer that goes on coming, and so slowly that it will not end.

    The HTTP client's own time-outs are about single reads, and a byte now and then satisfies them. Versions of
    huggingface_hub that use requests, before 1.0, have nothing that can be watched.
    """
    from huggingface_hub.utils import get_session

    hooks = getattr(get_session(), "event_hooks", {}).get("response")
    if hooks is None:
        yield
        return

    def watch(response: Any) -> None:
        base: Any = sys.modules[type(response).__module__.partition(".")[0]].SyncByteStream

        class Watched(base):  # type: ignore[misc]
            def __init__(self, stream: Any) -> None:
                self.stream = stream

            def __iter__(self) -> Iterator[bytes]:
                yield from _not_too_slow(self.stream, what)

            def close(self) -> None:
                self.stream.close()

        response.stream = Watched(response.stream)

    hooks.append(watch)
    try:
        yield
    finally:
        hooks.remove(watch)


def _not_too_slow(stream: Iterable[bytes], what: str) -> Iterator[bytes]:
    start, count = time.monotonic(), 0
    for piece in stream:
        count += len(piece)
        took = time.monotonic() - start
        if took >= WINDOW:
            if count < WINDOW * SLOWEST:
                raise NetworkError(
                    f"{what} comes too slowly, {count} bytes in {took:.0f} seconds: try again, or on another network."
                )
            start, count = time.monotonic(), 0
        yield piece


def _in_cache(source: HubSource, path: str, name: str) -> HubFile:
    return HubFile(Path(path), Path(path).relative_to(source.storage / "snapshots").parts[0], name)


def _published(source: HubSource, name: str, revision: str | None) -> "HfFileMetadata":
    """Ask the Hub about a file; the etag is the digest."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with explained(f"{name} of {source}", source.cache):
        url = hf_hub_url(source.repo, name, revision=revision)
        metadata = get_hf_file_metadata(url, token=source.token, library_name="rclip-metric")
    if metadata.commit_hash is None or metadata.etag is None or not _DIGEST.fullmatch(metadata.etag):
        raise HubError(
            f"The answer for {name} of {source} names no commit and digest, as a Hub does: check HF_ENDPOINT."
        )
    return metadata


def _check_space(source: HubSource, name: str, size: int | None) -> None:
    folder = next(folder for folder in (source.cache, *source.cache.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if size is not None and free < size:
        raise StorageError(
            f"{name} of {source} takes {size / 1e6:.0f} MB and {folder} has {free / 1e6:.0f} MB free: make "
            "room or pass another cache_dir."
        )


@contextlib.contextmanager
def without_progress_bars(quiet: bool) -> Iterator[None]:
    """Silence huggingface_hub's progress bars, if so asked."""
    if not quiet:
        yield
        return
    from huggingface_hub import utils

    change = not utils.are_progress_bars_disabled()
    if change:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if change:
            utils.enable_progress_bars()


@contextlib.contextmanager
def explained(what: str, cache: Path | None = None) -> Iterator[None]:
    """Raise a `WeightsError` that begins with `what` for anything that goes wrong inside.

    Args:
        what: What was being transferred, as the subject of a sentence.
        cache: Where it was to be stored.

    Example:
        >>> with explained("config.json of owner/repo"):
        ...     raise TimeoutError("no answer in 10 seconds")
        Traceback (most recent call last):
            ...
        rclip_metric.errors.NetworkError: config.json of owner/repo cannot be reached, check the network and ...
    """
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        for cause in _chain(error):
            if explanation := _by_status(cause, what) or _by_disk(cause, what, cache):
                raise explanation from error
        text = f"{what} could not be transferred: {type(error).__name__}: {first_line(_chain(error)[-1])}."
        raise HubError(text) from error


def _chain(error: BaseException) -> list[BaseException]:
    """List an exception and its causes: huggingface_hub wraps what went wrong with an upload."""
    return [error, *(_chain(error.__cause__) if error.__cause__ else ())]


def _by_status(error: BaseException, what: str) -> WeightsError | None:
    """Say what the Hub answered, or that it did not."""
    from huggingface_hub import utils

    status = getattr(getattr(error, "response", None), "status_code", None)
    reached_nothing = utils.LocalEntryNotFoundError | utils.OfflineModeIsEnabled | ConnectionError | TimeoutError
    by_client = type(error).__module__.partition(".")[0] in _HTTP_CLIENTS
    if isinstance(error, reached_nothing) or (by_client and status is None):
        cause = error.__cause__ or error
        return NetworkError(f"{what} cannot be reached, check the network and HF_ENDPOINT: {first_line(cause)}.")
    if isinstance(error, utils.GatedRepoError):
        return AccessError(f"{what} is gated ({status}): accept its terms on the Hub and set HF_TOKEN or pass token.")
    if isinstance(error, utils.EntryNotFoundError):
        return MissingFileError(f"{what} does not exist on the Hub (404).")
    if isinstance(error, utils.RevisionNotFoundError):
        return NotFoundError(f"{what} does not exist on the Hub at this revision, nor does the revision (404).")
    if status in (401, 403):
        return AccessError(
            f"{what} is private, or does not exist, or the token is not valid ({status}): set HF_TOKEN or pass token."
        )
    if status == 404:
        return NotFoundError(f"{what} does not exist on the Hub, nor does its repository (404).")
    if status is not None and (status == 429 or status >= 500):
        return NetworkError(f"{what} cannot be delivered by the Hub now ({status}): try again later.")
    return None


def _by_disk(error: BaseException, what: str, cache: Path | None) -> WeightsError | None:
    if not isinstance(error, OSError):
        return None
    if error.errno in _FULL:
        return StorageError(f"{what} does not fit on the disk of {cache}: make room or pass another cache_dir.")
    if error.errno is not None:
        reason = os.strerror(error.errno)
        return StorageError(f"{what} cannot be stored in {cache} ({reason}): pass another cache_dir or set HF_HOME.")
    if "Consistency check" in str(error):  # huggingface_hub's way of saying that bytes are missing
        return DigestError(f"{what} came truncated, try again: {first_line(error)}.")
    return None
