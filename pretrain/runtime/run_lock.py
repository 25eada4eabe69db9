"""One writer for a run folder: `RUN/lock`, held by the first process for as long as it lives.

The kernel lets go of it when the process ends, however it ends, so nothing stale is left behind.
"""

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from kinemae.data_tools.command import log
from kinemae.data_tools.files import Descriptor
from kinemae.pretrain.runtime.file_retries import written
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.watchdog import TimeoutsConfig

LOCK_FILE = "lock"
_POLL_S = 0.2
_MOST_BYTES = 4096
_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def run_lock(run_dir: Path, processes: Processes, timeouts: TimeoutsConfig) -> Iterator[None]:
    """Hold the folder's lock while entered; the first process does, for all.

    A run that is started again may meet its predecessor while that is still ending, so it waits first.

    Raises:
        ValueError: another process holds it still after `timeouts.lock_wait_s`; names its host and process.
        DataError: the folder cannot be written.
        Stuck: the same, where it may succeed if it is tried again.
    """
    if not processes.is_first:
        yield
        return
    lock = written(partial(_open, run_dir), run_dir)
    _take(lock.number, run_dir, timeouts.lock_wait_s)
    try:
        yield
    finally:
        with suppress(OSError):  # where there are no locks
            fcntl.flock(lock.number, fcntl.LOCK_UN)


def _open(run_dir: Path) -> Descriptor:
    run_dir.mkdir(parents=True, exist_ok=True)
    return Descriptor(str(run_dir / LOCK_FILE), os.O_RDWR | os.O_CREAT)


def _take(lock: int, run_dir: Path, wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    is_said = False
    while not _try(lock, run_dir):
        if time.monotonic() > deadline_s:
            raise ValueError(
                f"run_dir {run_dir} is in use by {_holder(lock)}: wait for it to end or end it, or choose "
                f"another run_dir (timeouts.lock_wait_s={wait_s:g} seconds were waited)"
            )
        if not is_said:
            log.info("waiting for %s to leave %s", _holder(lock), run_dir)
        is_said = True
        time.sleep(_POLL_S)


def _try(lock: int, run_dir: Path) -> bool:
    """Whether the lock is ours now, or cannot be had by anybody."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise
        log.warning("%s is on a file system without locks: see to it that no two runs use it", run_dir)
        return True
    signature = json.dumps({"host": platform.node(), "pid": os.getpid()}).encode()
    with suppress(OSError):  # a full disk: the lock holds, it is only not signed
        os.ftruncate(lock, 0)
        os.pwrite(lock, signature, 0)
    return True


def _holder(lock: int) -> str:
    try:
        holder = json.loads(os.pread(lock, _MOST_BYTES, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError):
        return "another process, which has not signed yet"
