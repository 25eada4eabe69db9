"""Faults inside the processes of a chaos test; Python imports this module at its start from PYTHONPATH.

KINEMAE_FAULTS names a folder. While it has a file `stale`, opening and renaming files of the run fails with
ESTALE; while it has `no_locks`, `flock` fails with ENOLCK. The first such failure of a process adds a file
`NAME-PID`. After SIGUSR2 a process prints a line of 100 kB without its end and kills itself.
"""

import builtins
import errno
import fcntl
import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

FAULTS = os.environ.get("KINEMAE_FAULTS", "")
RUN = os.path.join(os.path.dirname(FAULTS), "run")
LINE_BYTES = 100_000


def is_on(name: str) -> bool:
    """Check whether a fault is on; note that this process met it."""
    if not os.path.exists(os.path.join(FAULTS, name)):
        return False
    os.close(_os_open(os.path.join(FAULTS, f"{name}-{os.getpid()}"), os.O_CREAT | os.O_WRONLY))
    return True


def stale(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of paths which fails for files of the run while `stale` is on."""

    @functools.wraps(function)
    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(RUN) and is_on("stale"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), os.fspath(path))
        return function(path, *arguments, **options)

    return call


def refuse_locks(descriptor: Any, operation: int) -> None:
    """`fcntl.flock`, which fails while `no_locks` is on."""
    if is_on("no_locks"):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    _flock(descriptor, operation)


def print_and_die(number: int, frame: FrameType | None) -> None:
    """End with a very long line of output."""
    os.write(sys.stdout.fileno(), b"x" * LINE_BYTES)
    os.kill(os.getpid(), signal.SIGKILL)


if FAULTS:
    _os_open, _flock = os.open, fcntl.flock
    builtins.open = io.open = stale(io.open)  # type: ignore[assignment]
    os.open, os.replace, os.rename = stale(os.open), stale(os.replace), stale(os.rename)
    fcntl.flock = refuse_locks
    signal.signal(signal.SIGUSR2, print_and_die)
