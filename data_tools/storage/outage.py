"""Storage outages: detect them by the errors of a file, and wait with retries."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

from kinemae.data_tools import heartbeat
from kinemae.data_tools.storage.retries import StorageUnavailable

Result = TypeVar("Result")

OUTAGE_S = 300.0  # for a command that reads each input once
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_TICK_S = 0.5
# Errors caused by the file's name, type or permissions. All other errors come from a disk, a network
# file system or this machine (EIO, ESTALE, ETIMEDOUT, ENOTCONN, EMFILE, ENOMEM, ...).
_OF_THE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EEXIST,
        errno.ENXIO,
        errno.ENODEV,
        errno.ESPIPE,
        None,
    }
)


def is_outage(error: OSError, path: Path | None = None) -> bool:
    """Whether an error of a local file means that its storage is unavailable.

    Args:
        path: the file; if its whole folder is missing or empty, the disk is not mounted.
    """
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and path is not None:
        return _is_unmounted(path.parent)
    return error.errno not in _OF_THE_FILE


def raise_if_outage(error: OSError, what: str, path: Path | None = None) -> None:
    """Raise StorageUnavailable where an error means an outage; return where the file itself causes it."""
    if is_outage(error, path):
        raise StorageUnavailable(
            f"{what}: {error.strerror or error}; fix: check the disk, the mount and the network, then run "
            "the same command again"
        ) from error


@contextmanager
def outage_errors(what: str) -> Iterator[None]:
    """Turn errors that mean an outage into StorageUnavailable; all others pass.

    Args:
        what: the beginning of the message, as in "cannot read x.tar".
    """
    try:
        yield
    except OSError as error:
        raise_if_outage(error, what)
        raise


def retry_during_outage(attempt: Callable[[], Result], *, outage_s: float) -> Result:
    """Call `attempt` again while it raises StorageUnavailable, with growing pauses.

    Raises:
        StorageUnavailable: the last one, when `outage_s` seconds are over.
    """
    begin_s, pause_s, has_failed = monotonic(), _FIRST_PAUSE_S, False
    while True:
        try:
            result = attempt()
        except StorageUnavailable as error:
            waited_s = monotonic() - begin_s
            if waited_s >= outage_s and not has_failed:
                raise
            if waited_s >= outage_s:
                raise _given_up(error, waited_s) from error
            _pause(min(pause_s, outage_s - waited_s), str(error))
            pause_s, has_failed = min(2 * pause_s, _LONGEST_PAUSE_S), True
        else:
            if has_failed:
                heartbeat.waiting_for_storage("")
            return result


def _given_up(error: StorageUnavailable, waited_s: float) -> StorageUnavailable:
    return StorageUnavailable(f"{error}; still so after {waited_s:.0f} s of waiting", error.status)


def _pause(seconds: float, reason: str) -> None:
    end_s = monotonic() + seconds
    while (left_s := end_s - monotonic()) > 0:
        heartbeat.waiting_for_storage(reason)
        sleep(min(left_s, _TICK_S))


def _is_unmounted(folder: Path) -> bool:
    """Whether a folder is missing or empty, as a mount point is without its disk."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True
    except OSError as error:
        return is_outage(error)
