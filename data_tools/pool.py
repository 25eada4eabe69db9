"""Process pool whose jobs time out one by one; `engine=ray` runs them on a cluster, see `ray_pool.py`.

`concurrent.futures` waits forever for a worker that blocks in a read. This pool kills a worker whose job made
no progress for `timeout_s`: no heartbeat, no byte read or written, no CPU time. The other jobs continue.
"""

import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from multiprocessing import process as process_module
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Generic, Literal, NamedTuple, NoReturn, Protocol, TypeVar

import torch

from kinemae.data_tools import heartbeat
from kinemae.data_tools.command import Stuck, log
from kinemae.data_tools.exit_codes import EXIT_STUCK
from kinemae.data_tools.packages import require_packages
from kinemae.data_tools.stream.worker import picklable
from kinemae.data_tools.stream.worker_setup import (
    block_stop_signals,
    ensure_server,
    exit_with_parent,
    worker_context,
)

Job = TypeVar("Job")
Result = TypeVar("Result")
AnyResult = TypeVar("AnyResult", covariant=True)
Engine = Literal["local", "ray"]

TIMEOUT_S = 300.0
CRASHED = "the decoder crashed on it"
_POLL_S = 1.0
_JOIN_S = 1.0
_SERVER_JOIN_S = 5.0
_MAX_TIMEOUTS = 10  # in a row; more of them mean that the storage is down
_INTERRUPT_S = 30.0  # for a job of the main process to react to its timeout
_TIMEOUT_SIGNAL = signal.SIGVTALRM  # unused otherwise
_CPU_TIMEOUT_FACTOR = 10  # on timeout_s, for a job that only uses CPU time: an endless loop
_MIN_CPU_FRACTION = 0.02  # of one core; less counts as no progress
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def imap(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    on_failure: Callable[[Job, str], Result] | None = None,
    timeout_s: float = TIMEOUT_S,
    engine: Engine = "local",
) -> Iterator[Result]:
    """Yield `function(job)` for each job, in the order of the jobs; see `imap_unordered`."""
    finished: dict[int, Result] = {}
    following = 0
    results = imap_unordered(
        function, jobs, workers=workers, on_failure=on_failure, timeout_s=timeout_s, engine=engine
    )
    for position, result in results:
        finished[position] = result
        while following in finished:
            yield finished.pop(following)
            following += 1


def imap_unordered(  # noqa: PLR0913 - keyword-only, except for the inputs
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    on_failure: Callable[[Job, str], Result] | None = None,
    timeout_s: float = TIMEOUT_S,
    engine: Engine = "local",
    cores: int = 1,
) -> Iterator[tuple[int, Result]]:
    """Yield the position of each job and `function(job)`, as soon as it is done.

    A job whose worker died runs once more at the end, alone: the out-of-memory killer may hit any process.
    Closing the iterator and any error kill the workers.

    Args:
        function: a module-level function.
        workers: number of processes; 0 means one per core, 1 runs the jobs in this process.
        on_failure: the result of a job that crashed twice or timed out; None raises the failure.
        timeout_s: limit without progress. For a job that only uses CPU time the limit is ten times as long.
        engine, cores: "ray" runs at most `workers` tasks of `cores` cores at a time on a Ray cluster.

    Raises:
        BrokenProcessPool: a worker died and there is no `on_failure`.
        Stuck: a job timed out and there is no `on_failure`, or more than 10 timed out in a row.
    """
    if workers == 1 and engine == "local":
        yield from _run_in_main_process(function, jobs, on_failure=on_failure, timeout_s=timeout_s)
        return
    pool = _new_pool(function, jobs, timeout_s=timeout_s, engine=engine, cores=cores)
    crashed, timeouts = list[int](), 0  # timeouts in a row
    for positions, count in ((range(len(jobs)), workers), (crashed, 1)):
        for position, outcome in pool.run(deque(positions), count):
            timeouts = timeouts + outcome.is_timeout if isinstance(outcome, Lost) else 0
            if not isinstance(outcome, Lost):
                yield position, outcome
                continue
            if timeouts > _MAX_TIMEOUTS:
                raise _outage(timeouts, outcome.reason)
            if on_failure is None:
                raise outcome.error
            if outcome.is_timeout or positions is crashed:
                yield position, on_failure(jobs[position], outcome.reason)
            else:
                crashed.append(position)


def _outage(timeouts: int, reason: str) -> Stuck:
    return Stuck(
        f"{timeouts} inputs in a row {reason}: the storage does not answer; fix: run the same command again "
        "when it does"
    )


def check_engine(engine: Engine) -> None:
    """Check that the package of an engine is installed.

    Raises:
        ValueError: it is not.
    """
    if engine == "ray":
        require_packages("ray", key="engine")


class Lost(NamedTuple):
    """A job whose worker is gone: the reason, and the error to raise without `on_failure`."""

    reason: str
    error: Exception
    is_timeout: bool


@dataclass(frozen=True)
class Failure:
    """An exception of a job, sent to the main process."""

    error: Exception
    trace: str

    def reraise(self) -> NoReturn:
        """Raise the exception, with the traceback of the worker as its cause."""
        raise self.error from RuntimeError(f"in a worker process:\n{self.trace}")


class Pool(Protocol[AnyResult]):
    """Runs jobs on many workers."""

    def run(self, todo: deque[int], count: int) -> Iterator[tuple[int, AnyResult | Lost]]:
        """Run the jobs at some positions on at most `count` workers; 0 means as many as possible."""


def _new_pool(
    function: Callable[[Job], Result], jobs: Sequence[Job], *, timeout_s: float, engine: Engine, cores: int
) -> Pool[Result]:
    if engine == "ray":
        from kinemae.data_tools.ray_pool import RayPool

        return RayPool(function, jobs, timeout_s=timeout_s, cores=cores)
    return LocalPool(function, jobs, timeout_s=timeout_s)


class LocalPool(Generic[Job, Result]):
    """Pool of processes on this machine.

    Args:
        function, jobs, timeout_s: see `imap_unordered`.
    """

    def __init__(self, function: Callable[[Job], Result], jobs: Sequence[Job], *, timeout_s: float):
        self._function = function
        self._jobs = jobs
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        # A child forked from this process may inherit torch's threads and hang; a fork server has none.
        self._context = worker_context(["torch", "kinemae.data_tools.stream.decode", __name__])
        _join_fork_server_at_exit()

    def run(self, todo: deque[int], count: int) -> Iterator[tuple[int, Result | Lost]]:
        """See `Pool.run`; the workers start when they are needed."""
        count = count or len(os.sched_getaffinity(0))
        at_exit = atexit.register(self._kill)
        try:
            while todo or any(worker.position is not None for worker in self._workers):
                self._assign(todo, count)
                yield from self._collect()
        finally:
            self._kill()
            atexit.unregister(at_exit)

    def _assign(self, todo: deque[int], count: int) -> None:
        while todo:
            idle = next((worker for worker in self._workers if worker.position is None), None)
            if idle is None:
                if len(self._workers) == count:
                    return
                idle = _Worker(self._context)
                self._workers.append(idle)
            position = todo.popleft()
            idle.start(position, self._function, self._jobs[position])

    def _collect(self) -> Iterator[tuple[int, Result | Lost]]:
        """Wait for results for up to a second; kill workers whose job timed out."""
        begin_s = monotonic()
        busy = [worker for worker in self._workers if worker.position is not None]
        ready = wait([worker.connection for worker in busy], _POLL_S)
        # Capped: time during which this process was suspended does not count against the workers.
        waited_s = min(monotonic() - begin_s, _POLL_S)
        for worker in busy:
            position = worker.position
            assert position is not None
            if worker.connection in ready:
                yield position, self._receive(worker)
                continue
            worker.monitor.update(waited_s)
            if worker.monitor.is_stuck(self._timeout_s):
                yield position, self._give_up(worker)

    def _receive(self, worker: "_Worker") -> Result | Lost:
        try:
            answer = worker.receive()
        except (EOFError, ConnectionResetError):
            self._remove(worker)
            code = worker.process.exitcode
            message = f"a worker process died (exit code {code}): negative codes are signals"
            return Lost(CRASHED, BrokenProcessPool(message), is_timeout=False)
        if isinstance(answer, Failure):
            answer.reraise()
        result: Result = answer
        return result

    def _give_up(self, worker: "_Worker") -> Lost:
        self._remove(worker)
        reason = _timeout_reason(self._timeout_s)
        return Lost(reason, Stuck(f"an input {reason}; fix: run the same command again"), is_timeout=True)

    def _remove(self, worker: "_Worker") -> None:
        worker.kill()
        self._workers.remove(worker)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()  # all of them before the first join
        for worker in self._workers:
            worker.kill()
        self._workers.clear()


class _Worker:
    """A worker process and its current job.

    Attributes:
        connection: readable when a result has arrived or the process has ended.
        position: of the current job, or None.
        monitor: progress of the current job.
    """

    def __init__(self, context: BaseContext):
        self.position: int | None = None
        self._heartbeats = RawValue(ctypes.c_uint64)
        self.connection, remote_end = multiprocessing.Pipe()
        self.process = context.Process(  # type: ignore[attr-defined]
            target=_run_worker, args=(remote_end, self._heartbeats), daemon=True, name="kinemae-pool"
        )
        ensure_server()
        self.process.start()  # signals are unblocked: the server may import for minutes from a slow disk
        remote_end.close()

    def start(self, position: int, function: Callable[[Any], Any], job: object) -> None:
        """Send a job to the process. `receive` reports a process that has ended."""
        self.position = position
        self.monitor = _ProgressMonitor(str(self.process.pid), lambda: self._heartbeats.value)
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((function, job))

    def receive(self) -> Any:
        """Return the result of the job or a `Failure`; raise an error if the process has ended."""
        answer = self.connection.recv()
        self.position = None
        return answer

    def kill(self) -> None:
        """Kill the process; do not wait long, because a blocked read may delay its end."""
        self.process.kill()
        self.process.join(_JOIN_S)
        if self.process.is_alive():
            process_module._children.discard(self.process)  # type: ignore[attr-defined]
        self.connection.close()


def _run_worker(connection: Connection, heartbeats: Any) -> None:
    """Run jobs until the main process ends."""
    block_stop_signals()
    exit_with_parent()
    torch.set_num_threads(1)
    with heartbeat.listening(heartbeat.CountingListener(heartbeats)):
        while True:
            try:
                function, job = connection.recv()
                answer = function(job)
            except EOFError:
                return
            except Exception as error:  # the main process raises it again
                answer = Failure(picklable(error), traceback.format_exc())
            try:
                connection.send(answer)
            except BrokenPipeError:
                return


class _ProgressMonitor:
    """Measures how long a process or thread has made no progress.

    Args:
        folder: its folder in /proc.
        heartbeats: returns the number of its heartbeats.
    """

    def __init__(self, folder: str, heartbeats: Callable[[], int]):
        self._folder = Path("/proc", folder)
        self._heartbeats = heartbeats
        *self._counters, self._cpu_s = self._read()
        self._idle_s = 0.0  # without any progress
        self._cpu_only_s = 0.0  # CPU time without other progress

    def update(self, waited_s: float) -> None:
        """Account for the last `waited_s` seconds."""
        *counters, cpu_s = self._read()
        if counters != self._counters:
            self._counters, self._idle_s, self._cpu_only_s = counters, 0.0, 0.0
        else:
            used_s = cpu_s - self._cpu_s
            self._idle_s = 0.0 if used_s > _MIN_CPU_FRACTION * waited_s else self._idle_s + waited_s
            self._cpu_only_s += used_s
        self._cpu_s = cpu_s

    def is_stuck(self, timeout_s: float) -> bool:
        """Check whether there was no progress for `timeout_s`."""
        return self._idle_s > timeout_s or self._cpu_only_s > _CPU_TIMEOUT_FACTOR * timeout_s

    def _read(self) -> tuple[int, int, float]:
        """Heartbeats, bytes read and written, CPU seconds."""
        try:
            io = (self._folder / "io").read_text(encoding="ascii").split()
            stat = (self._folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (OSError, ValueError):  # the process has ended, or /proc is hidden
            return self._heartbeats(), 0, 0.0
        return self._heartbeats(), int(io[1]) + int(io[3]), sum(map(int, stat[11:13])) / _TICKS_PER_S


class _TimedOut(BaseException):
    """Raised in a job after its timeout. Not an Exception, so that no job handles it."""


def _run_in_main_process(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    on_failure: Callable[[Job, str], Result] | None,
    timeout_s: float,
) -> Iterator[tuple[int, Result]]:
    for position, job in enumerate(jobs):
        try:
            with _interrupted_after(timeout_s):
                result = function(job)
        except _TimedOut:
            reason = _timeout_reason(timeout_s)
            if on_failure is None:
                raise Stuck(f"an input {reason}; fix: run the same command again") from None
            result = on_failure(job, reason)
        yield position, result


@contextmanager
def _interrupted_after(timeout_s: float) -> Iterator[None]:
    """Raise `_TimedOut` after `timeout_s` without progress; only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heartbeats, ended = ctypes.c_uint64(), threading.Event()
    monitor = threading.Thread(target=_interrupt_if_stuck, args=(heartbeats, ended, timeout_s), daemon=True)
    before = signal.signal(_TIMEOUT_SIGNAL, _raise_timed_out)
    try:
        with heartbeat.listening(heartbeat.CountingListener(heartbeats)):
            monitor.start()
            yield
    finally:
        ended.set()
        monitor.join()
        signal.signal(_TIMEOUT_SIGNAL, before)


def _raise_timed_out(number: int, frame: FrameType | None) -> None:
    raise _TimedOut


def _interrupt_if_stuck(heartbeats: ctypes.c_uint64, ended: threading.Event, timeout_s: float) -> None:
    main = threading.main_thread()
    monitor = _ProgressMonitor(f"self/task/{main.native_id}", lambda: heartbeats.value)
    while not ended.wait(_POLL_S):
        monitor.update(_POLL_S)
        if not monitor.is_stuck(timeout_s):
            continue
        assert main.ident is not None
        signal.pthread_kill(main.ident, _TIMEOUT_SIGNAL)
        if not ended.wait(_INTERRUPT_S):
            log.error(
                "an input made no progress for timeout_s=%g seconds and cannot be interrupted in this "
                "process; fix: set workers=2, which skips the input", timeout_s,
            )  # fmt: skip
            logging.shutdown()
            os._exit(EXIT_STUCK)
        return


def _timeout_reason(timeout_s: float) -> str:
    return f"timed out: no sign of progress for timeout_s={timeout_s:g} seconds"


@cache
def _join_fork_server_at_exit() -> None:
    """Wait for the fork server at exit, so that `time kinemae data shard ...` includes the workers' CPU time.

    The wait has a limit: the server ends after its last child, which may block in a read of a network disk.
    """
    stop = forkserver._forkserver._stop  # type: ignore[attr-defined]

    def stop_quietly() -> None:
        with suppress(OSError):  # its socket no longer exists after the wait timed out
            stop()

    def stop_with_limit() -> None:
        thread = threading.Thread(target=stop_quietly, daemon=True)
        thread.start()
        thread.join(_SERVER_JOIN_S)

    atexit.register(stop_with_limit)
