"""Loader processes: how many, how they start, and how they leave signals to the main process."""

import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path

from data_tools.command import log

_MAIN_ONLY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def worker_count(requested: int, local_processes: int = 1) -> int:
    """Loader workers for each process of a machine.

    Args:
        requested: data.workers; -1 means this process's share of the cores less one for itself. Any other
            number is obeyed, more than the share with a warning: whoever waits for a slow disk means it.
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
    if requested > max(share, 1):
        log.warning(
            "data.workers=%d for each of %d processes is more than the %d cores here: they will take turns",
            requested, local_processes, available_cores(),
        )  # fmt: skip
    return requested


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


def leave_signals_to_main() -> None:
    """The same from inside a worker, for one whose server was started by somebody else."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _MAIN_ONLY)
