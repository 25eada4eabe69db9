"""Run jobs in this process, one after the other, each with a deadline."""

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from kinemae.data_tools import heartbeat
from kinemae.data_tools.command import Stuck, log
from kinemae.data_tools.exit_codes import EXIT_STUCK
from kinemae.data_tools.pool_worker import Signs, timed_out

Job = TypeVar("Job")
Result = TypeVar("Result")

_TICK_S = 1.0
_INTERRUPT_S = 30.0  # for a job to react to its deadline
_SIGNAL = signal.SIGVTALRM  # unused otherwise


class _TimedOut(BaseException):
    """Raised in a job after its deadline; not an Exception, so that no job handles it."""


def do_here(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    on_failure: Callable[[Job, str], Result] | None,
    timeout_s: float,
) -> Iterator[tuple[int, Result]]:
    """Yield the position of each job and its result; see `pool.imap_unordered`."""
    for position, job in enumerate(jobs):
        try:
            with _deadline(timeout_s):
                result = function(job)
        except _TimedOut:
            reason = timed_out(timeout_s)
            if on_failure is None:
                raise Stuck(f"an input {reason}; fix: run the same command again") from None
            result = on_failure(job, reason)
        yield position, result


@contextmanager
def _deadline(timeout_s: float) -> Iterator[None]:
    """Interrupt the block after `timeout_s` without progress. Only the main thread has a deadline."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    beats, ended = ctypes.c_uint64(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(beats, ended, timeout_s), daemon=True)
    before = signal.signal(_SIGNAL, _interrupt)
    try:
        with heartbeat.listening(heartbeat.CountingListener(beats)):
            watcher.start()
            yield
    finally:
        ended.set()
        watcher.join()
        signal.signal(_SIGNAL, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _TimedOut


def _watch(beats: ctypes.c_uint64, ended: threading.Event, timeout_s: float) -> None:
    main = threading.main_thread()
    signs = Signs(f"self/task/{main.native_id}", lambda: beats.value)
    while not ended.wait(_TICK_S):
        signs.watch(_TICK_S)
        if not signs.is_stuck(timeout_s):
            continue
        assert main.ident is not None
        signal.pthread_kill(main.ident, _SIGNAL)
        if not ended.wait(_INTERRUPT_S):
            log.error(
                "an input made no progress for timeout_s=%g seconds and cannot be interrupted in this "
                "process; with workers=2 it is left out", timeout_s,
            )  # fmt: skip
            logging.shutdown()
            os._exit(EXIT_STUCK)
        return
