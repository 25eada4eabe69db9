"""Retries for files of a run folder: network file systems fail for a moment, and that is no damage.

An `OSError` that may pass (ESTALE, EIO, ETIMEDOUT, EMFILE, ...) is tried again with growing delays. If it
stays, the process ends with `Stuck`, and a supervisor restarts it. An error that lasts, such as a full disk,
is raised at once.
"""

import errno
import platform
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn, TypeVar, cast

from data_tools.command import Stuck, log
from pretrain.runtime.processes import Processes

DELAYS_S: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16)

_LASTING = frozenset(
    {
        errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG,
        errno.ENOENT, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS,
    }
)  # fmt: skip

Value = TypeVar("Value")


class FileFailure(NamedTuple):
    """An `OSError` as text, to be sent to other processes.

    Attributes:
        may_pass: whether another attempt, here or on another host, may succeed.
    """

    text: str
    may_pass: bool

    def throw(self) -> NoReturn:
        """Raise it again.

        Raises:
            Stuck: it may pass.
            OSError: it lasts.
        """
        raise Stuck(f"{self.text}; {attempts()}") if self.may_pass else OSError(self.text)


def may_pass(error: OSError) -> bool:
    """Whether the same call may succeed later without anybody's help."""
    return error.errno not in _LASTING


def retried(act: Callable[[], Value], what: str) -> Value:
    """Call `act`, again after each `OSError` that may pass, with the delays of `DELAYS_S`.

    Raises:
        OSError: the last one, or the first that lasts.
    """
    for delay_s in DELAYS_S:
        try:
            return act()
        except OSError as error:
            if not may_pass(error):
                raise
            log.warning("%s failed on %s (%s): next attempt in %g s", what, platform.node(), error, delay_s)
        time.sleep(delay_s)
    return act()


def failure_of(error: OSError) -> FileFailure:
    """An error as it is sent to other processes."""
    return FileFailure(str(error), may_pass(error))


def attempts() -> str:
    """How long was tried, for messages."""
    return f"{len(DELAYS_S) + 1} attempts in {sum(DELAYS_S):g} seconds"


def on_first(processes: Processes, what: str, act: Callable[[], Value]) -> Value:
    """Let the first process act on the disk, with retries.

    Returns:
        Its result, on every process.

    Raises:
        OSError: it failed for good, on every process.
        Stuck: it failed in a way that may pass, on every process.
    """
    done: tuple[Value | None, FileFailure | None] = (None, None)
    if processes.is_first:
        try:
            done = (retried(act, what), None)
        except OSError as error:
            done = (None, failure_of(error))
    result, failure = processes.from_first(done)
    if failure is not None:
        failure._replace(text=f"{what} failed on rank 0: {failure.text}").throw()
    return cast(Value, result)
