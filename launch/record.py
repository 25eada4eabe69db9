"""What is known of a launched run while nobody looks: `RUN/launch/launch.json`, and who holds the run.

The launcher holds a lock on RUN/launch/launcher.lock for as long as it lives: that is how `launch status`
knows, and how a second launcher is refused. A stop is asked for by a file: any host that sees RUN can ask.
"""

import fcntl
import json
import os
import re
import shlex
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from kinemae.launch.cluster import UsageError
from kinemae.launch.freezing import atomic_write_text
from kinemae.launch.job import LAUNCH_FOLDER

_RECORD, _LOCK, _STOP = "launch.json", "launcher.lock", "stop"
_TRIES = 5


class Record:
    """`launch.json` of one launch; a disk that is full loses notes, not the run."""

    def __init__(self, run_dir: Path, **told: Any):
        self._path = run_dir / LAUNCH_FOLDER / _RECORD
        self._told: dict[str, Any] = {
            "started": now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job_id": None,
            "attempt": 0,
            "state": "starting",
            **told,
        }

    def note(self, **told: Any) -> None:
        """Change some of what is known and write all of it."""
        self._told.update(told)
        with suppress(OSError):
            atomic_write_text(self._path, json.dumps(self._told, indent=1, ensure_ascii=False) + "\n")


def now() -> str:
    """The local time, as it stands in notes."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_record(run_dir: Path) -> dict[str, Any]:
    """What the last launch of a run noted.

    Raises:
        UsageError: the run was never launched.
    """
    path = run_dir / LAUNCH_FOLDER / _RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        missing = "" if run_dir.is_dir() else ": there is no such folder"
        raise UsageError(f"no {path}: {run_dir} is not a run that `launch` has started{missing}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    assert isinstance(record, dict)
    return record


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold a run as its only launcher.

    Raises:
        UsageError: another launcher holds it, or its folder cannot be written.
    """
    path = run_dir / LAUNCH_FOLDER / _LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another run_dir") from error
    with file:
        if not _locked(file):
            file.seek(0)
            holder = file.read().strip() or "another launcher"
            raise UsageError(
                f"{run_dir} is run by {holder} already; fix: wait for it, or "
                f"`kinemae launch cancel {shlex.quote(str(run_dir))}`"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        (run_dir / LAUNCH_FOLDER / _STOP).unlink(missing_ok=True)  # meant for the one before
        yield


def _locked(file: IO[str]) -> bool:
    """Whether the lock could be had; somebody who only looks at it holds it for a moment."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
    return False


def is_held(run_dir: Path) -> bool:
    """Whether a launcher of this run lives."""
    try:
        with (run_dir / LAUNCH_FOLDER / _LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def ask_for_stop(run_dir: Path) -> None:
    """Ask the launcher of a run for a stop with a checkpoint; it looks every second or so."""
    atomic_write_text(run_dir / LAUNCH_FOLDER / _STOP, f"asked on {socket.gethostname()} at {now()}\n")


def take_stop(run_dir: Path) -> signal.Signals | None:
    """The stop that was asked for since the last look, as the signal that says the same."""
    path = run_dir / LAUNCH_FOLDER / _STOP
    if not path.exists():
        return None
    path.unlink(missing_ok=True)
    return signal.SIGTERM


def checkpoints(run_dir: Path) -> list[int]:
    """The steps of the whole checkpoints, oldest first."""
    names = [path.name for path in (run_dir / "checkpoints").glob("step-*")]
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name)))


def newest_checkpoint(run_dir: Path) -> int | None:
    """The step of the newest whole checkpoint; None where there is none yet."""
    return max(checkpoints(run_dir), default=None)
