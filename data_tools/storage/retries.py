"""Retries for storage: failed requests, outages, and the error that is raised in the end.

`retry` repeats one request with growing, jittered pauses. `retry_during_outage` repeats a whole read during
an outage. Errors of local files are sorted by `errno`: permanent ones are caused by the file
itself; all others (EIO, ESTALE, ETIMEDOUT, ENOTCONN, EMFILE, ENOMEM, ...) mean an outage.
"""

import errno
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kinemae.data_tools import heartbeat
from kinemae.data_tools.command import DataError, Stuck

Result = TypeVar("Result")

OUTAGE_S = 300.0  # for a command that reads each input once
# Errors caused by the file's name, type or permissions: a retry cannot help.
_FILE_ERRORS = frozenset(
    {
        errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT,
        errno.ENOTDIR, errno.EPERM,
    }
)  # fmt: skip
# A full or read-only disk is permanent for writes. A read gets such an error from a file system's cache.
PERMANENT_READ_ERRORS = _FILE_ERRORS | {errno.EEXIST, errno.ENODEV, errno.ENXIO, errno.ESPIPE}
PERMANENT_WRITE_ERRORS = _FILE_ERRORS | {errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS}
_MIN_BYTES_PER_S = 1_000_000  # the slowest transfer that does not time out
_MAX_PAUSE_S = 10.0
_FIRST_OUTAGE_PAUSE_S, _MAX_OUTAGE_PAUSE_S = 1.0, 30.0
_HEARTBEAT_S = 0.5
_DENIED, _MISSING, _TEMPORARY = (401, 403), (404, 410), (408, 425, 429)
_CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public one",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "HF_TOKEN",
}
# Errors of these libraries without an HTTP status are network errors: resets, time-outs, short bodies.
_NETWORK_LIBRARIES = (
    *("aiohttp", "aiobotocore", "botocore", "gcsfs"),
    *("httpx", "httpcore", "requests", "urllib3"),
)


class StorageError(DataError):
    """A read or write of a storage that failed after all retries; the message names the fix.

    Attributes:
        status: HTTP status of the response, if there was one.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status

    @property
    def is_missing(self) -> bool:
        """True if the storage answered that there is no such file."""
        return self.status in _MISSING

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, int | None]]:
        return type(self), (str(self), self.status)


class StorageUnavailable(StorageError, Stuck):
    """An outage: a storage does not answer now; the stored data may be intact."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Limits of the retries of one request.

    Attributes:
        attempts: maximum number of consecutive attempts without progress.
        idle_s: time limit of one attempt without a byte from the server.
        total_s: time limit of all attempts; each megabyte to transfer adds a second.
        pause_s: pause after the first failure; it doubles with each further one, minus up to half at random.
        outage_s: how long a reader of samples waits during an outage, on top of the retries of a request.
    """

    attempts: int = 6
    idle_s: float = 20.0
    total_s: float = 60.0
    pause_s: float = 0.5
    outage_s: float = 0.0

    def deadline_s(self, size: int) -> float:
        """Time limit for transferring `size` bytes."""
        return self.total_s + size / _MIN_BYTES_PER_S


DEFAULT_RETRY_POLICY = RetryPolicy()


def retry(
    attempt: Callable[[float], Result],
    *,
    action: str,
    url: str,
    policy: RetryPolicy,
    size: int = 0,
    bytes_received: Callable[[], int] = int,
) -> Result:
    """Call `attempt` until it succeeds, fails permanently or reaches the limits of the policy.

    Args:
        attempt: gets the seconds left, its time limit.
        action: verb for the message, such as "read".
        size: bytes to transfer, for which time is added.
        bytes_received: bytes received by all attempts so far.

    Raises:
        StorageError: a permanent failure, as one line without the secrets of the URL.
        StorageUnavailable: a failure that may end later.
    """
    begin, failures, received = time.monotonic(), 0, bytes_received()
    while True:
        try:
            return attempt(begin + policy.deadline_s(size) - time.monotonic())
        except Exception as error:
            if not _is_storage_failure(error):
                raise
            heartbeat.progress()  # the number of attempts is limited, so a reader that retries does not hang
            failures = 1 if bytes_received() > received else failures + 1
            received = bytes_received()
            pause = min(policy.pause_s * 2 ** (failures - 1), _MAX_PAUSE_S) * random.uniform(0.5, 1)
            spent = time.monotonic() - begin
            is_temporary = _is_temporary(http_status(error), error)
            is_last = failures >= policy.attempts or spent + pause >= policy.deadline_s(size)
            if is_last or not is_temporary:
                raise _failure(error, action, url, spent if is_temporary else None) from error
        time.sleep(pause)


def retry_during_outage(attempt: Callable[[], Result], *, outage_s: float) -> Result:
    """Call `attempt` again while it raises StorageUnavailable, with growing pauses.

    Raises:
        StorageUnavailable: the last one, after `outage_s` seconds.
    """
    begin_s, pause_s, has_failed = time.monotonic(), _FIRST_OUTAGE_PAUSE_S, False
    while True:
        try:
            result = attempt()
        except StorageUnavailable as error:
            waited_s = time.monotonic() - begin_s
            if waited_s >= outage_s:
                if not has_failed:
                    raise
                raise StorageUnavailable(
                    f"{error}; still so after {waited_s:.0f} s of waiting", error.status
                ) from error
            _pause(min(pause_s, outage_s - waited_s), str(error))
            pause_s, has_failed = min(2 * pause_s, _MAX_OUTAGE_PAUSE_S), True
        else:
            if has_failed:
                heartbeat.waiting_for_storage("")
            return result


def is_outage(error: OSError, path: Path | None = None) -> bool:
    """Check whether an error of a local file means that its storage is unavailable.

    Args:
        path: the file. If its folder is missing or empty, the disk is not mounted, which is an outage.
    """
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and path is not None:
        return _is_unmounted(path.parent)
    return error.errno is not None and error.errno not in PERMANENT_READ_ERRORS


def raise_if_outage(error: OSError, what: str, path: Path | None = None) -> None:
    """Raise StorageUnavailable if an error means an outage; return if the file itself causes it."""
    if is_outage(error, path):
        raise StorageUnavailable(
            f"{what}: {error.strerror or error}; fix: check the disk, the mount and the network, then run "
            "the same command again"
        ) from error


@contextmanager
def outage_errors(what: str) -> Iterator[None]:
    """Convert errors that mean an outage to StorageUnavailable; other errors pass unchanged.

    Args:
        what: the beginning of the message, such as "cannot read x.tar".
    """
    try:
        yield
    except OSError as error:
        raise_if_outage(error, what)
        raise


def mask_secrets(text: str) -> str:
    """Replace passwords and signatures of URLs in a text by ***."""
    text = re.sub(r"(://)[^/@\s]+@", r"\1***@", text)
    return re.sub(r"(://[^?\s]*\?)[^\s'\"]+", r"\1***", text)


def http_status(error: BaseException) -> int | None:
    """HTTP status of an error of any of the network libraries, or of its causes."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        in_response = (
            response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(response, dict)
            else getattr(response, "status_code", None)
        )
        status = in_response or getattr(cause, "status", None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
        cause = cause.__cause__ or cause.__context__
    if error.__cause__ is not None:
        return None  # fsspec raises FileNotFoundError if a web server cannot be reached
    statuses = {FileNotFoundError: 404, PermissionError: 403}
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), None)


def _pause(seconds: float, reason: str) -> None:
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        heartbeat.waiting_for_storage(reason)
        time.sleep(min(left_s, _HEARTBEAT_S))


def _is_unmounted(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True
    except OSError as error:
        return is_outage(error)


def _is_storage_failure(error: Exception) -> bool:
    if isinstance(error, StorageError):
        return False
    is_io = isinstance(error, OSError | EOFError | TimeoutError)
    library = type(error).__module__.split(".")[0]
    return is_io or library in _NETWORK_LIBRARIES or http_status(error) is not None


def _is_temporary(status: int | None, error: Exception) -> bool:
    if status is None:
        return not _lacks_credentials(error)
    return status in _TEMPORARY or status >= 500 or status < 400


def _lacks_credentials(error: Exception) -> bool:
    return "Credentials" in type(error).__name__ or "Token" in type(error).__name__


def _failure(error: Exception, action: str, url: str, retried_s: float | None) -> StorageError:
    """The error to raise; `retried_s` is None for a permanent failure."""
    status, scheme = http_status(error), url.partition("://")[0].lower()
    reason = f"HTTP {status}" if status else type(error).__name__
    fix = "check the address and the network, and run the same command again later"
    if status in _DENIED or _lacks_credentials(error):
        names = _CREDENTIALS.get(scheme, "a password in ~/.netrc, or the signature in the URL")
        reason, fix = (
            f"access denied ({reason})",
            f"check that the credentials are set and allow it ({names})",
        )
    elif status in _MISSING:
        reason, fix = f"there is no such file ({reason})", "check the name"
    elif status is not None and 400 <= status < 500 and status not in _TEMPORARY:
        fix = "the server refuses such a request"
    elif status is None and str(error):
        reason = f"{reason}: {mask_secrets(str(error).splitlines()[0])}"
    retried = "" if retried_s is None else f", retried for {retried_s:.0f} s"
    kind = StorageError if retried_s is None else StorageUnavailable
    return kind(f"cannot {action} {mask_secrets(url)}: {reason}{retried}; {fix}", status)
