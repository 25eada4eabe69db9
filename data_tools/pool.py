"""The same work on many inputs, on several processes, with results in the order of the inputs."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch
from tqdm import tqdm

from data_tools.command import log

Job = TypeVar("Job")
Result = TypeVar("Result")

_WAITING_PER_WORKER = 8  # enough that no process idles, few enough that a long list is not queued whole
_LINES_IN_A_LOG = 10


def map_in_order(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int,
    on_crash: Callable[[Job], Result] | None = None,
) -> Iterator[Result]:
    """Yield `function(job)` for each job, in order, whatever the number of processes.

    Args:
        function: a module-level function.
        workers: number of processes; 0 means one for each core, 1 means this one, crashes included.
        on_crash: gives the result of a job on which a process died, as a decoder may on a broken
            video. Without it the crash is raised.

    Raises:
        BrokenProcessPool: a process died and there is no `on_crash`.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    workers = min(workers or len(os.sched_getaffinity(0)), max(len(jobs), 1))
    done = 0
    while done < len(jobs):
        try:
            for result in _pooled(function, jobs[done:], workers):
                done += 1
                yield result
        except BrokenProcessPool:
            if on_crash is None:
                raise
            # Any job in flight may be the killer: the first undone one is tried alone.
            yield _alone(function, jobs[done], on_crash)
            done += 1


def progress(results: Iterable[Result], *, total: int, what: str) -> Iterator[Result]:
    """Pass results on, showing a bar on a terminal and about ten plain lines in a log."""
    if sys.stderr.isatty():
        yield from tqdm(results, total=total, desc=what, unit="video")
        return
    every = max(total // _LINES_IN_A_LOG, 1)
    for done, result in enumerate(results, start=1):
        yield result
        if done % every == 0 or done == total:
            log.info("%s: %d of %d", what, done, total)


def _pooled(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    # A child forked from here may inherit torch's threads and hang; a server that only imported it has none.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "data_tools.stream.decode"])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as executor:
        waiting = deque()  # type: ignore[var-annotated]
        try:
            for job in jobs:
                waiting.append(executor.submit(function, job))
                if len(waiting) >= workers * _WAITING_PER_WORKER:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _alone(function: Callable[[Job], Result], job: Job, on_crash: Callable[[Job], Result]) -> Result:
    try:
        return next(_pooled(function, [job], 1))
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
