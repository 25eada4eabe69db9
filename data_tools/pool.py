"""The same work on many inputs, on several processes."""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import forkserver
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")

_WAITING_PER_WORKER = 3  # enough that no process idles, few enough that little is repeated after a crash


def map_in_order(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    on_crash: Callable[[Job], Result] | None = None,
) -> Iterator[Result]:
    """Yield `function(job)` for each job, in order, whatever the number of processes; see `map_as_done`."""
    waiting: dict[int, Result] = {}
    following = 0
    for position, result in map_as_done(function, jobs, workers=workers, on_crash=on_crash):
        waiting[position] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def map_as_done(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    on_crash: Callable[[Job], Result] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yield the position of each job and `function(job)`, as soon as it is done.

    Args:
        function: a module-level function.
        workers: number of processes; 0 means one for each core, 1 means this one, crashes included.
        on_crash: gives the result of a job on which a process died, as a decoder may on a broken
            video. Without it the crash is raised.

    Raises:
        BrokenProcessPool: a process died and there is no `on_crash`.
    """
    if workers == 1:
        yield from enumerate(map(function, jobs))
        return
    workers = min(workers or len(os.sched_getaffinity(0)), max(len(jobs), 1))
    undone = dict(enumerate(jobs))
    while undone:
        try:
            for position, result in _pooled(function, list(undone.items()), workers):
                del undone[position]
                yield position, result
        except BrokenProcessPool:
            if on_crash is None:
                raise
            # Any job in flight may be the killer: the first undone one is tried alone.
            position = next(iter(undone))
            yield position, _alone(function, undone.pop(position), on_crash)


def _pooled(
    function: Callable[[Job], Result], jobs: Sequence[tuple[int, Job]], workers: int
) -> Iterator[tuple[int, Result]]:
    # A child forked from here may inherit torch's threads and hang; a server that only imported it has none.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "data_tools.stream.decode"])
    _wait_for_the_server_at_exit()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as executor:
        waiting: dict[Future[Result], int] = {}
        try:
            for position, job in jobs:
                waiting[executor.submit(function, job)] = position
                while len(waiting) >= workers * _WAITING_PER_WORKER:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


@cache
def _wait_for_the_server_at_exit() -> None:
    """Workers are children of the server that forks them: their CPU time is ours once we waited for it.

    So `time python -m data_tools shard ...` tells the truth. multiprocessing only hangs up.
    """
    atexit.register(forkserver._forkserver._stop)  # type: ignore[attr-defined]


def _finished(waiting: dict[Future[Result], int]) -> Iterator[tuple[int, Result]]:
    """Take out what is done, at least one."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=waiting.__getitem__):
        result = future.result()
        yield waiting.pop(future), result


def _alone(function: Callable[[Job], Result], job: Job, on_crash: Callable[[Job], Result]) -> Result:
    try:
        return next(_pooled(function, [(0, job)], 1))[1]
    except BrokenProcessPool:
        return on_crash(job)


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, once
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed tells nobody, and its pool would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
