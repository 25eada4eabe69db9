"""Worker pool: apply a function to many inputs on several processes, each input with a deadline.

A job without progress for `timeout_s` (no heartbeat, no byte read or written, no CPU time) times out, and its
process is killed. The other jobs continue. Only a process that crashed or timed out is replaced.
"""

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import wait
from time import monotonic
from typing import Generic, TypeVar

from kinemae.data_tools.command import Stuck
from kinemae.data_tools.pool_alone import do_here
from kinemae.data_tools.pool_worker import Failure, Worker, timed_out
from kinemae.data_tools.stream.worker_setup import worker_context

Job = TypeVar("Job")
Result = TypeVar("Result")

TIMEOUT_S = 300.0
CRASHED = "the decoder crashed on it"
_TICK_S = 1.0
_SERVER_S = 5.0
_MOST_TIMEOUTS = 10  # in a row; more are not the fault of single inputs


def imap(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    on_failure: Callable[[Job, str], Result] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[Result]:
    """Yield `function(job)` for each job, in the order of the jobs; see `imap_unordered`."""
    waiting: dict[int, Result] = {}
    following = 0
    done = imap_unordered(function, jobs, workers=workers, on_failure=on_failure, timeout_s=timeout_s)
    for position, result in done:
        waiting[position] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def imap_unordered(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    on_failure: Callable[[Job, str], Result] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[tuple[int, Result]]:
    """Yield the position of each job and `function(job)`, as soon as it is done.

    A job on which a process died is tried once more, alone, when all others are done: the kernel's
    out-of-memory killer takes any process. Closing the iterator and any error kill the processes.

    Args:
        function: a module-level function.
        workers: number of processes; 0 means one for each core, 1 means this one, crashes included.
        on_failure: gives the result of a job that crashed, also alone, or timed out, from the job and the
            reason. Another run may succeed, so the result is not final. Without it the failure is raised.
        timeout_s: limit without progress. With CPU time as the only progress the limit is ten times as long.

    Raises:
        BrokenProcessPool: a process died and there is no `on_failure`.
        Stuck: a job timed out and there is no `on_failure`, or many did in a row.
    """
    if workers == 1:
        yield from do_here(function, jobs, on_failure=on_failure, timeout_s=timeout_s)
        return
    workers = min(workers or len(os.sched_getaffinity(0)), max(len(jobs), 1))
    crashed: list[int] = []
    for each, processes in ((range(len(jobs)), workers), (crashed, 1)):
        pool = _Pool(function, jobs, timeout_s=timeout_s)
        for position, outcome in pool.run(deque(each), processes):
            if not isinstance(outcome, Lost):
                yield position, outcome
            elif on_failure is None:
                raise outcome.error
            elif outcome.may_retry and each is not crashed:
                crashed.append(position)
            else:
                yield position, on_failure(jobs[position], outcome.reason)


class Lost:
    """A job whose process ended: the reason, and the error to raise without `on_failure`."""

    def __init__(self, reason: str, error: Exception, *, may_retry: bool):
        self.reason = reason
        self.error = error
        self.may_retry = may_retry


class _Pool(Generic[Job, Result]):
    def __init__(self, function: Callable[[Job], Result], jobs: Sequence[Job], *, timeout_s: float):
        self._function = function
        self._jobs = jobs
        self._timeout_s = timeout_s
        self._timeouts = 0  # in a row
        self._workers: list[Worker] = []
        # A child forked from here may inherit torch's threads and hang; a server that imported it has none.
        self._context = worker_context(
            ["torch", "kinemae.data_tools.stream.decode", "kinemae.data_tools.pool_worker"]
        )
        _wait_for_the_server_at_exit()

    def run(self, todo: deque[int], processes: int) -> Iterator[tuple[int, Result | Lost]]:
        """Do the jobs at some positions; processes start as they are needed."""
        at_exit = atexit.register(self._kill)
        try:
            while todo or any(worker.position is not None for worker in self._workers):
                self._give(todo, processes)
                yield from self._finished()
        finally:
            self._kill()
            atexit.unregister(at_exit)

    def _give(self, todo: deque[int], processes: int) -> None:
        while todo:
            idle = next((worker for worker in self._workers if worker.position is None), None)
            if idle is None:
                if len(self._workers) == processes:
                    return
                idle = Worker(self._context)
                self._workers.append(idle)
            position = todo.popleft()
            idle.give(position, self._function, self._jobs[position])

    def _finished(self) -> Iterator[tuple[int, Result | Lost]]:
        """Remove finished and lost jobs."""
        begin_s = monotonic()
        busy = [worker for worker in self._workers if worker.position is not None]
        ready = wait([worker.connection for worker in busy], _TICK_S)
        # Capped: time during which the command itself was suspended does not count against its workers.
        waited_s = min(monotonic() - begin_s, _TICK_S)
        for worker in busy:
            position = worker.position
            assert position is not None
            if worker.connection in ready:
                yield position, self._take(worker)
                continue
            worker.signs.watch(waited_s)
            if worker.signs.is_stuck(self._timeout_s):
                yield position, self._give_up(worker)

    def _take(self, worker: Worker) -> Result | Lost:
        try:
            answer = worker.take()
        except EOFError:
            self._remove(worker)
            code = worker.process.exitcode
            how = f"a worker process died (exit code {code}): negative codes are signals"
            return Lost(CRASHED, BrokenProcessPool(how), may_retry=True)
        if isinstance(answer, Failure):
            answer.reraise()
        self._timeouts = 0
        result: Result = answer
        return result

    def _give_up(self, worker: Worker) -> Lost:
        self._remove(worker)
        self._timeouts += 1
        reason = timed_out(self._timeout_s)
        if self._timeouts > _MOST_TIMEOUTS:
            raise Stuck(
                f"{self._timeouts} inputs in a row {reason}: their storage does not answer; fix: run the "
                "same command again when it does"
            )
        return Lost(reason, Stuck(f"an input {reason}; fix: run the same command again"), may_retry=False)

    def _remove(self, worker: Worker) -> None:
        worker.end()
        self._workers.remove(worker)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()  # all of them first
        for worker in self._workers:
            worker.end()
        self._workers.clear()


@cache
def _wait_for_the_server_at_exit() -> None:
    """Workers are children of the server that forks them: their CPU time is ours once we waited for it.

    Then `time kinemae data shard ...` includes the workers. multiprocessing only closes the
    connection. The server ends after its last child, which may block in a read of a dead network disk: so the
    wait has a limit.
    """
    stop = forkserver._forkserver._stop  # type: ignore[attr-defined]

    def quietly() -> None:
        with suppress(OSError):  # its socket is gone when the wait was given up
            stop()

    def bounded() -> None:
        thread = threading.Thread(target=quietly, daemon=True)
        thread.start()
        thread.join(_SERVER_S)

    atexit.register(bounded)
