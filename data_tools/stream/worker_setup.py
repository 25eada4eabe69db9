"""Loader processes: their number, their start, and signals, which only the main process handles."""

import fcntl
import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from kinemae.data_tools.command import log
from kinemae.data_tools.control_groups import group_folders, text_of

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_IMPORTS = "kinemae.data_tools.stream.server_imports"
_WORKER_MODULE = "kinemae.data_tools.stream.worker"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAIN_LOCK = threading.Lock()


class CoreLimits(NamedTuple):
    """The CPU limits of a process, compared between the processes of a machine.

    Attributes:
        machine: identifier of the running kernel.
        cores: the cores of its CPU affinity.
        quotas: cores that each control group above it may use in total, by the group's name.
    """

    machine: str
    cores: frozenset[int]
    quotas: dict[str, float]


def resolve_num_workers(requested: int, cores: int) -> int:
    """Number of loader workers of a process.

    Args:
        requested: data.num_workers; -1 means one less than the cores. Any other number is used as given;
            a number above the cores gives a warning, because it helps with a slow disk.
        cores: cores of the process, see `cores_per_process`.

    Raises:
        ValueError: a negative number other than -1.
    """
    if requested < -1:
        raise ValueError(
            f"data.num_workers must be -1 (as many as the cores allow) or at least 0, got {requested}"
        )
    if requested == -1:
        return max(cores - 1, 0)
    if requested > max(cores, 1):
        log.warning(
            "data.num_workers=%d is more than the %d cores of this process: loader workers will take turns",
            requested, cores,
        )  # fmt: skip
    return requested


def cores_per_process(own: CoreLimits, everyone: Sequence[CoreLimits]) -> int:
    """Whole cores for one process, at least 1.

    A core is divided among the processes whose affinity includes it; processes bound to separate cores, as by
    Slurm, share none. A quota is divided among the processes of its control group.

    Args:
        everyone: the limits of all processes of the run, including this one.
    """
    here = [limits for limits in everyone if limits.machine == own.machine]
    users = Counter(core for limits in here for core in limits.cores)
    shares = [sum(Fraction(1, max(users[core], 1)) for core in own.cores)]
    for group, quota in own.quotas.items():
        shares.append(Fraction(quota) / max(1, sum(group in limits.quotas for limits in here)))
    return max(int(min(shares)), 1)


def core_limits() -> CoreLimits:
    """The limits of this process."""
    machine = text_of(_BOOT_ID).strip() or platform.node()
    return CoreLimits(machine, frozenset(os.sched_getaffinity(0)), dict(_quotas()))


def available_cores() -> int:
    """Cores of this process if it runs alone: its affinity, limited by quotas."""
    own = core_limits()
    return cores_per_process(own, [own])


def _quotas() -> Iterator[tuple[str, float]]:
    """The quotas of this process's control groups, from its own to the outermost visible one."""
    space = _inode(Path("/proc/self/ns/cgroup"))
    for folder in group_folders("cpu"):
        quota, period = _quota_of(folder)
        if quota > 0 and period > 0:
            yield f"{space}:{folder}", quota / period


def _quota_of(folder: Path) -> tuple[int, int]:
    """CPU microseconds per period; (0, 0) without a limit. Control groups v2 have one file, v1 two."""
    words = text_of(folder / "cpu.max").split()
    words = words or [text_of(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    quota, period = words if len(words) == 2 else ("", "")
    return (int(quota), int(period)) if quota.isdigit() and period.isdigit() else (0, 0)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def worker_context(preload: Iterable[str]) -> BaseContext:
    """Multiprocessing context: workers are forked from a clean server process with preloaded modules.

    A plain fork would copy a process that uses CUDA, NCCL and pinned memory, and a worker that outlives a
    killed parent would keep the GPU's memory. `spawn` imports torch in every worker.

    Args:
        preload: modules to import once for all workers.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.stderr.write(
            f'{sys.argv[0]}: expected the calls that start workers below `if __name__ == "__main__":`, got '
            "none: a worker imports the script for a function of it; fix: add the line, or use a function of "
            "a module\n"
        )
        sys.stderr.flush()
        os._exit(1)
    context = multiprocessing.get_context("forkserver")
    modules = sorted({*preload, _WORKER_MODULE} - {"__main__"})
    context.set_forkserver_preload([f"{_IMPORTS}_begin", *modules, f"{_IMPORTS}_end"])
    return context


def ensure_server() -> None:
    """Start the server process of a `worker_context` if it does not run; it imports on its own meanwhile.

    Workers inherit its blocked signals.
    """
    with stop_signals_blocked():
        forkserver.ensure_running()


@contextmanager
def server_ended_on_error() -> Iterator[None]:
    """End the server of `ensure_server` if the block fails, also during its imports.

    The server has the output of this process open: a program that reads it would wait for the imports. No
    workers may run.
    """
    try:
        yield
    except BaseException:
        if server := forkserver._forkserver._forkserver_pid:  # type: ignore[attr-defined]
            with suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)
        raise


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Start processes in this block that do not import the main module.

    The import runs a script without `if __name__ == "__main__":` once more in each process.
    """
    with _MAIN_LOCK:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start processes in this block with the stop signals of a run blocked.

    A scheduler signals the whole process group, and a run that saves a checkpoint first needs its workers.
    Children inherit blocked signals through fork and exec; a signal that arrives in the block reaches the
    main process afterwards.
    """
    resource_tracker.ensure_running()  # started inside the block, it would unblock SIGINT and SIGTERM again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def block_stop_signals() -> None:
    """Block these signals in a worker, whose fork server may have been started by other code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def exit_with_parent() -> None:
    """Let the kernel kill this process when the main process ends, which closes a pipe held here.

    A thread that waits for the main process could not kill a worker that is stopped or stuck in C code.
    """
    main = multiprocessing.parent_process()
    assert main is not None
    fcntl.fcntl(main.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(main.sentinel, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(main.sentinel, fcntl.F_SETFL, fcntl.FASYNC)
    if not main.is_alive():  # ended before the request
        os._exit(1)
