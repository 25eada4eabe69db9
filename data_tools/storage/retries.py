"""Trying again where that helps: bounded in number and in time, with growing and jittered pauses."""

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from kinemae.data_tools import heartbeat
from kinemae.data_tools.command import DataError, Stuck

Result = TypeVar("Result")

_SLOWEST_BYTES_S = 1_000_000  # a transfer that is slower than this on the whole counts as hanging
_LONGEST_PAUSE_S = 10.0
_DENIED = (401, 403)
_MISSING = (404, 410)
_CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public one",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "HF_TOKEN",
}
# Failures of these libraries that carry no status are the network's: resets, time-outs, short bodies.
_NETWORK_LIBRARIES = (
    "aiohttp",
    "aiobotocore",
    "botocore",
    "gcsfs",
    "httpx",
    "httpcore",
    "requests",
    "urllib3",
)


class StorageError(DataError):
    """A place for shards cannot be read or written, after all retries; the message says what to do.

    Attributes:
        status: the server's answer as an HTTP status, where there was one.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status

    @property
    def is_missing(self) -> bool:
        """Whether the storage answered that there is no such thing."""
        return self.status in _MISSING

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, int | None]]:
        return type(self), (str(self), self.status)


class StorageUnavailable(StorageError, Stuck):
    """An outage: a storage does not answer now; the stored data may be intact."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long a request is tried.

    Attributes:
        attempts: tries in a row that bring nothing; one that brings a part of a body starts the count anew.
        idle_s: the longest silence of a server within a try.
        total_s: the longest time for all tries, to which comes a second for each megabyte.
        pause_s: the first pause; each further one is twice as long, less up to a half by chance.
        outage_s: how long a reader of samples waits for a storage that is down, after the tries of a request.
    """

    attempts: int = 6
    idle_s: float = 20.0
    total_s: float = 60.0
    pause_s: float = 0.5
    outage_s: float = 0.0

    def deadline_s(self, size: int) -> float:
        """Seconds allowed for moving `size` bytes."""
        return self.total_s + size / _SLOWEST_BYTES_S


DEFAULT_RETRY_POLICY = RetryPolicy()


def retry(
    attempt: Callable[[float], Result],
    *,
    doing: str,
    url: str,
    retry_policy: RetryPolicy,
    size: int = 0,
    progress: Callable[[], int] = int,
) -> Result:
    """Call `attempt` until it succeeds, gives a reason that will not change, or retry_policy ends.

    Args:
        attempt: gets the seconds left, beyond which it must not go.
        doing: for the message, as in "read".
        size: bytes to be moved, for which time is added.
        progress: how much earlier tries have brought.

    Raises:
        StorageError: as said, on one line, with nothing secret of the URL in it.
        StorageUnavailable: the same where a later try may succeed.
    """
    begin, failed, brought = time.monotonic(), 0, progress()
    while True:
        left = begin + retry_policy.deadline_s(size) - time.monotonic()
        try:
            return attempt(left)
        except Exception as error:
            if not _is_storage_failure(error):
                raise
            heartbeat.progress()  # the number of tries is limited, so a reader that retries does not hang
            status = http_status(error)
            failed = 1 if progress() > brought else failed + 1
            brought = progress()
            pause = min(retry_policy.pause_s * 2 ** (failed - 1), _LONGEST_PAUSE_S) * random.uniform(0.5, 1)
            spent = time.monotonic() - begin
            is_over = failed >= retry_policy.attempts or spent + pause >= retry_policy.deadline_s(size)
            may_pass = _may_pass(status, error)
            if is_over or not may_pass:
                what = _what(error, status, spent if may_pass else None)
                raise (StorageUnavailable if may_pass else StorageError)(
                    f"cannot {doing} {mask_secrets(url)}: {what}; {_advice(status, error, url)}", status
                ) from error
        time.sleep(pause)


def mask_secrets(text: str) -> str:
    """The text without the passwords and signatures of URLs in it."""
    text = re.sub(r"(://)[^/@\s]+@", r"\1***@", text)
    return re.sub(r"(://[^?\s]*\?)[^\s'\"]+", r"\1***", text)


def http_status(error: BaseException) -> int | None:
    """The HTTP status behind an error, whichever library raised it."""
    for cause in _chain(error):
        answer = getattr(cause, "response", None)
        in_answer = (
            answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(answer, dict)
            else getattr(answer, "status_code", None)
        )
        status = in_answer or getattr(cause, "status", None)
        if isinstance(status, int) and 100 <= status < 600:
            return status
    if error.__cause__ is not None:
        return None  # fsspec calls a web server that cannot be reached a file that is not found
    named = {FileNotFoundError: 404, PermissionError: 403}
    return next((status for kind, status in named.items() if isinstance(error, kind)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_storage_failure(error: Exception) -> bool:
    if isinstance(error, StorageError):
        return False
    library = type(error).__module__.split(".")[0]
    is_ours = isinstance(error, OSError | EOFError | TimeoutError)
    return is_ours or library in _NETWORK_LIBRARIES or http_status(error) is not None


def _may_pass(status: int | None, error: Exception) -> bool:
    """Whether another try can end otherwise."""
    if status is None:
        return not _lacks_credentials(error)
    return status in (408, 425, 429) or status >= 500 or status < 400


def _lacks_credentials(error: Exception) -> bool:
    return "Credentials" in type(error).__name__ or "Token" in type(error).__name__


def _what(error: Exception, status: int | None, spent_s: float | None) -> str:
    told = (str(error).splitlines() or [""])[0]
    if status in _DENIED or _lacks_credentials(error):
        what = f"access denied ({f'HTTP {status}' if status else type(error).__name__})"
    elif status in _MISSING:
        what = f"there is no such thing (HTTP {status})"
    elif status is not None:
        what = f"HTTP {status}"
    else:
        what = f"{type(error).__name__}: {mask_secrets(told)}" if told else type(error).__name__
    return what if spent_s is None else f"{what}, retried for {spent_s:.0f} s"


def _advice(status: int | None, error: Exception, url: str) -> str:
    scheme = url.partition("://")[0].lower()
    if status in _DENIED or _lacks_credentials(error):
        where = _CREDENTIALS.get(scheme, "a password in ~/.netrc, or the signature in the URL")
        return f"check that the credentials are set and allow it ({where})"
    if status in _MISSING:
        return "check the name"
    if status is not None and 400 <= status < 500 and status not in (408, 425, 429):
        return "the server refuses such a request"
    return "check the address and the network, and run the same command again later"
