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
from kinemae.data_tools.storage.retries import PERMANENT_ERRORS
from kinemae.pretrain.runtime.processes import Processes

DELAYS_S: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16)

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
            Stuck: the error is transient.
            OSError: the error is permanent.
        """
        raise Stuck(f"{self.text}; {attempts()}") if self.may_pass else OSError(self.text)


def may_pass(error: OSError) -> bool:
    """Whether an error is transient: the same call may succeed later."""
    return error.errno not in PERMANENT_ERRORS


def retried(act: Callable[[], Value], what: str) -> Value:
    """Call `act`; retry after each transient `OSError`, with the delays of `DELAYS_S`.

    Raises:
        OSError: the last transient error, or the first permanent one.
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


def written(act: Callable[[], Value], folder: Path) -> Value:
    """Call `act`, which writes small files to a run folder, with retries.

    Raises:
        DataError: it failed for good.
        Stuck: it failed in a way that may pass.
    """
    what = f"writing to {folder}"
    with writing_to(folder):
        try:
            return retried(act, what)
        except OSError as error:
            if not may_pass(error):
                raise
            raise Stuck(
                f"{what} failed on {platform.node()}: {error} ({attempts()}); fix: check the file system and "
                "its mount on that host, then repeat the command"
            ) from error


def failure_of(error: OSError) -> FileFailure:
    """Convert an error to a form that can be sent to other processes."""
    return FileFailure(str(error), may_pass(error))


def attempts() -> str:
    """The number and duration of the attempts, for messages."""
    return f"{len(DELAYS_S) + 1} attempts in {sum(DELAYS_S):g} seconds"


def on_first(processes: Processes, what: str, act: Callable[[], Value]) -> Value:
    """Run `act` on the first process, with retries.

    Returns:
        Its result, on every process.

    Raises:
        OSError: it failed permanently; raised on every process.
        Stuck: it failed with a transient error; raised on every process.
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
