"""The end of a run: stop signals, waits for storage, and the abort of a process after an error.

SIGTERM, SIGINT and SIGUSR1 (preemption, time limit) save a checkpoint and end the run.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

from kinemae.data_tools.command import Stopped, exit_code_of, log, log_error
from kinemae.data_tools.error_file import write_error_file
from kinemae.data_tools.heartbeat import Listener
from kinemae.pretrain.runtime.processes import Processes, destroy_process_group, lost_peer
from kinemae.pretrain.runtime.watchdog import Watchdog

# SIGUSR1 is Slurm's warning before the time limit, with --signal=USR1@SECONDS.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def abort_on_error(processes: Processes) -> Iterator[None]:
    """Destroy the process group at the end; on an error of one of several processes, exit immediately.

    An orderly exit may wait for processes that in turn wait for this one. Loader workers end with their
    process. The launcher reads the exit code and ends the other processes.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if processes.world == 1:
            destroy_process_group()
            raise
        lost, code = lost_peer(error), exit_code_of(error)
        write_error_file(error, code, lost_peer=lost is not None)
        if lost is None:
            log_error(error)
        else:  # the cause is in the other process: the stack of this one does not help
            log.error("lost the connection to another process (%s): its log states the cause", lost)
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    destroy_process_group()


class StopSignals:
    """Record stop signals while entered. The run stops at the next step that all processes agree on.

    A second SIGINT ends the process.

    Attributes:
        is_requested: whether a signal has requested a stop.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._unlogged = ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in _STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def log_received(self) -> None:
        """Log a received signal once. The handler does not log, since it may interrupt a log line."""
        if self._unlogged:
            log.warning("%s received: saving a checkpoint, then leaving", self._unlogged)
        self._unlogged = ""

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.is_requested:
            self._unlogged = signal.Signals(number).name
            self.is_requested = True


class StorageWait:
    """Callback of `training_loader`, called about once a second while the next batch waits for a storage."""

    def __init__(self, watchdog: Watchdog, signals: StopSignals):
        self._watchdog = watchdog
        self._signals = signals
        self._listener = Listener()

    def __call__(self, reason: str) -> None:
        """Log the outage and restart the timer of the step: data.outage_s bounds the wait.

        Args:
            reason: why the storage cannot be read; empty when it answers again.

        Raises:
            Stopped: a stop was requested.
        """
        self._listener.outage(reason)
        self._watchdog.restart_timer()
        if reason and self._signals.is_requested:
            what = "stopped while a storage is down, at the last checkpoint; repeat the command to continue"
            raise Stopped(f"{what} ({reason})")
