"""One process of the pool: its main loop, its handle and its progress counters."""

import ctypes
import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing import process as process_module
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools import heartbeat
from kinemae.data_tools.stream.worker_setup import block_stop_signals, exit_with_parent, stop_signals_blocked

_GONE_S = 1.0
_BUSY_FACTOR = 10  # on the time without progress: so much CPU time without any is an endless loop
_CPU_SHARE = 0.02  # of one core; less counts as no progress
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Failure:
    """An error of a job on its way to the main process."""

    error: Exception
    trace: str

    def reraise(self) -> None:
        """Raise the error with the worker's traceback as its cause."""
        raise self.error from RuntimeError(f"in a worker process:\n{self.trace}")


def timed_out(timeout_s: float) -> str:
    """The reason of a job that timed out."""
    return f"timed out: no sign of progress for timeout_s={timeout_s:g} seconds"


class Signs:
    """Progress of a process or thread: heartbeats, bytes read or written, CPU time.

    A blocked read makes no progress. For an endless loop, which uses only CPU time, the limit is ten
    times as long.

    Args:
        folder: in /proc, of the process or thread.
        events: counts its heartbeats.
    """

    def __init__(self, folder: str, events: Callable[[], int]):
        self._folder = Path("/proc", folder)
        self._events = events
        self._moved = self._read()[:2]
        self._cpu_s = self._read()[2]
        self.idle_s = 0.0  # without any sign
        self.busy_s = 0.0  # of CPU time without another sign

    def watch(self, waited_s: float) -> None:
        """Update the counters for the last `waited_s` seconds."""
        events, moved, cpu_s = self._read()
        if (events, moved) != self._moved:
            self._moved, self.idle_s, self.busy_s = (events, moved), 0.0, 0.0
        else:
            used_s = cpu_s - self._cpu_s
            self.idle_s = 0.0 if used_s > _CPU_SHARE * waited_s else self.idle_s + waited_s
            self.busy_s += used_s
        self._cpu_s = cpu_s

    def is_stuck(self, timeout_s: float) -> bool:
        """Whether there was no progress for `timeout_s`."""
        return self.idle_s > timeout_s or self.busy_s > _BUSY_FACTOR * timeout_s

    def _read(self) -> tuple[int, int, float]:
        try:
            io = (self._folder / "io").read_text(encoding="ascii").split()
            stat = (self._folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (OSError, ValueError):  # gone, or a system that hides it
            return self._events(), 0, 0.0
        return self._events(), int(io[1]) + int(io[3]), sum(map(int, stat[11:13])) / _TICKS_A_SECOND


class Worker:
    """A process and its current job.

    Attributes:
        connection: readable when a result has arrived or the process has ended.
        position: of its current job; None for none.
    """

    def __init__(self, context: BaseContext):
        self.position: int | None = None
        self._record = RawValue(ctypes.c_uint64)
        self.connection, theirs = multiprocessing.Pipe()
        self.process = context.Process(  # type: ignore[attr-defined]
            target=_work, args=(theirs, self._record), daemon=True, name="kinemae-pool"
        )
        with stop_signals_blocked():
            forkserver.ensure_running()  # workers inherit its blocked signals
        self.process.start()  # with signals: the server may import for minutes from a busy network disk
        theirs.close()

    def give(self, position: int, function: Callable[[Any], Any], job: object) -> None:
        """Send a job to the process and start its timer. `take` reports a process that has ended."""
        self.position = position
        self.signs = Signs(str(self.process.pid), lambda: self._record.value)
        try:
            self.connection.send((function, job))
        except (BrokenPipeError, ConnectionResetError):
            return

    def take(self) -> Any:
        """The result of the job, or a `Failure`.

        Raises:
            EOFError: the process has ended.
        """
        try:
            answer = self.connection.recv()
        except ConnectionResetError as error:
            raise EOFError from error
        self.position = None
        return answer

    def end(self) -> None:
        """Kill the process without waiting: a read of a dead network disk may block its end."""
        self.process.kill()
        self.process.join(_GONE_S)
        if self.process.is_alive():
            process_module._children.discard(self.process)  # type: ignore[attr-defined]
        self.connection.close()


def _work(connection: Connection, record: Any) -> None:
    """Run jobs until the main process ends."""
    block_stop_signals()
    exit_with_parent()
    torch.set_num_threads(1)
    with heartbeat.listening(heartbeat.CountingListener(record)):
        while True:
            try:
                function, job = connection.recv()
                answer = function(job)
            except EOFError:
                return
            except Exception as error:  # the border to the main process, which raises it again
                answer = Failure(_portable(error), traceback.format_exc())
            try:
                connection.send(answer)
            except BrokenPipeError:
                return


def _portable(error: Exception) -> Exception:
    """The error itself if it can be pickled, else an error with the same text."""
    try:
        multiprocessing.reduction.ForkingPickler.loads(multiprocessing.reduction.ForkingPickler.dumps(error))
    except Exception:  # pickling a foreign error may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
