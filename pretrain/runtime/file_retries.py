"""Retries for files of a run folder: transient errors of network file systems are not damage.

A call with a transient `OSError` (ESTALE, EIO, ETIMEDOUT, EMFILE, ...) is retried with growing delays. If it
still fails, the process ends with `Stuck`, and a supervisor restarts it. A permanent error, such as a full
disk, is raised at once.
"""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar, cast

from kinemae.data_tools.command import Stuck, log, writing_to
from kinemae.data_tools.storage.retries import PERMANENT_WRITE_ERRORS
from kinemae.pretrain.runtime.processes import Processes

DELAYS_S: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16)

Value = TypeVar("Value")


class FileFailure(NamedTuple):
    """An `OSError` in a form that can be sent to other processes.

    Attributes:
        is_transient: whether another attempt, here or on another host, may succeed.
    """

    text: str
    is_transient: bool

    @classmethod
    def of(cls, error: OSError) -> "FileFailure":
        """Convert an error."""
        return cls(str(error), is_transient(error))

    def throw(self) -> NoReturn:
        """Raise the error again.

        Raises:
            Stuck: the error is transient.
            OSError: the error is permanent.
        """
        raise Stuck(f"{self.text}; {attempts()}") if self.is_transient else OSError(self.text)


def is_transient(error: OSError) -> bool:
    """Check whether the same call may succeed later."""
    return error.errno not in PERMANENT_WRITE_ERRORS


def retry(call: Callable[[], Value], what: str) -> Value:
    """Call `call`; repeat it after each transient `OSError`, with the delays of `DELAYS_S`.

    Raises:
        OSError: the last transient error, or the first permanent one.
    """
    for delay_s in DELAYS_S:
        try:
            return call()
        except OSError as error:
            if not is_transient(error):
                raise
            log.warning("%s failed on %s (%s): next attempt in %g s", what, platform.node(), error, delay_s)
        time.sleep(delay_s)
    return call()


def retry_write(call: Callable[[], Value], folder: Path) -> Value:
    """Call `call`, which writes small files to a run folder, with retries.

    Raises:
        DataError: a permanent error.
        Stuck: a transient error.
    """
    what = f"writing to {folder}"
    with writing_to(folder):
        try:
            return retry(call, what)
        except OSError as error:
            if not is_transient(error):
                raise
            raise Stuck(
                f"{what} failed on {platform.node()}: {error} ({attempts()}); fix: check the file system and "
                "its mount on that host, then repeat the command"
            ) from error


def attempts() -> str:
    """The number and duration of the attempts, for messages."""
    return f"{len(DELAYS_S) + 1} attempts in {sum(DELAYS_S):g} seconds"


def run_on_first(processes: Processes, what: str, call: Callable[[], Value]) -> Value:
    """Collective. Run `call` on the first process, with retries.

    Returns:
        Its result, on every process.

    Raises:
        OSError: a permanent error; raised on every process.
        Stuck: a transient error; raised on every process.
    """
    done: tuple[Value | None, FileFailure | None] = (None, None)
    if processes.is_first:
        try:
            done = (retry(call, what), None)
        except OSError as error:
            done = (None, FileFailure.of(error))
    result, failure = processes.broadcast_object(done)
    if failure is not None:
        failure._replace(text=f"{what} failed on rank 0: {failure.text}").throw()
    return cast(Value, result)
