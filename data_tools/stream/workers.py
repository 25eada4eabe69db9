"""Loader processes: how many, how they start, and how they leave signals to the main process."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from data_tools.command import log

_MAIN_ONLY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def worker_count(requested: int, local_processes: int = 1) -> int:
    """Loader workers for each process of a machine, never more than there are cores.

    Args:
        requested: data.workers; -1 means this process's share of the cores less one for itself.
        local_processes: training processes on this machine.

    Raises:
        ValueError: a negative number other than -1.
    """
    if requested < -1:
        raise ValueError(
            f"data.workers must be -1 (as many as the cores allow) or at least 0, got {requested}"
        )
    share = available_cores() // max(local_processes, 1)
    if requested == -1:
        return max(share - 1, 0)
    allowed = min(requested, max(share, 1))
    if allowed < requested:
        log.warning(
            "data.workers=%d is more than the %d cores that %d processes share here: using %d each",
            requested, available_cores(), local_processes, allowed,
        )  # fmt: skip
    return allowed


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the container's quota where there is one."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(min(cores, int(quota) // int(period)), 1)


def worker_context(preload: Iterable[str]) -> BaseContext:
    """How workers start: forked from a clean server process that has imported what they need.

    A plain fork would copy a process with CUDA, NCCL and pinned memory in use, and keep the GPU's memory
    alive for as long as a worker outlives a killed parent; `spawn` imports torch in every worker.

    Args:
        preload: modules that the server imports once for all workers.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sorted(set(preload) - {"__main__"}))
    return context


@contextmanager
def signals_left_to_main() -> Iterator[None]:
    """Processes started in this block never see the signals that ask the run to stop.

    A scheduler signals the whole process group, and a run that wants to save a checkpoint first needs
    its workers alive. The signals are blocked rather than ignored, which children inherit through fork
    and exec, so one that arrives meanwhile reaches the main process afterwards.
    """
    resource_tracker.ensure_running()  # started inside the block, it would unblock SIGINT and SIGTERM again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _MAIN_ONLY)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def workers_started_here() -> Iterator[set[BaseProcess]]:
    """Collects the processes that are started in this block, and kills those left when the program exits.

    Left to multiprocessing they would get SIGTERM, which they do not take, and be waited for without end.
    """
    before = set(multiprocessing.active_children())
    started: set[BaseProcess] = set()
    yield started
    started |= set(multiprocessing.active_children()) - before
    if started:
        atexit.register(dismiss, started)


def dismiss(workers: set[BaseProcess]) -> None:
    """Kill those that still run; a loader worker has nothing to save."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def leave_signals_to_main(worker: int) -> None:
    """The same from inside a worker, for one whose server was started by somebody else."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _MAIN_ONLY)
