"""What huggingface_hub, its HTTP client or the disk raise, turned into one sentence of ours."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from rclip_metric.errors import (
    AccessError,
    DigestError,
    HubError,
    NetworkError,
    NotFoundError,
    StorageError,
    WeightsError,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_HTTP_CLIENTS = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}


class MissingFileError(NotFoundError):
    """The repository and the revision exist, the file does not: another name can be tried."""


@contextlib.contextmanager
def explained(what: str, cache: Path | None = None) -> Iterator[None]:
    """Raises a `WeightsError` that begins with `what` for anything that goes wrong inside.

    Args:
        what: What was being transferred, as the subject of a sentence.
        cache: Where it was to be stored.
    """
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        for cause in _chain(error):
            if explanation := _by_status(cause, what) or _by_disk(cause, what, cache):
                raise explanation from error
        text = f"{what} could not be transferred: {type(error).__name__}: {_first_line(_chain(error)[-1])}."
        raise HubError(text) from error


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and its causes: huggingface_hub wraps what went wrong with an upload."""
    return [error, *(_chain(error.__cause__) if error.__cause__ else ())]


def _by_status(error: BaseException, what: str) -> WeightsError | None:
    """What the Hub answered, or that it did not."""
    from huggingface_hub import utils

    status = getattr(getattr(error, "response", None), "status_code", None)
    reached_nothing = utils.LocalEntryNotFoundError | utils.OfflineModeIsEnabled | ConnectionError | TimeoutError
    if isinstance(error, reached_nothing) or (_is_http_client(error) and status is None):
        cause = error.__cause__ or error
        return NetworkError(f"{what} cannot be reached, check the network and HF_ENDPOINT: {_first_line(cause)}.")
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
        return DigestError(f"{what} came truncated, try again: {_first_line(error)}.")
    return None


def _is_http_client(error: BaseException) -> bool:
    """Whether it comes from the HTTP client, which differs between versions of huggingface_hub."""
    return type(error).__module__.partition(".")[0] in _HTTP_CLIENTS


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
