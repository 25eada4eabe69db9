"""State of a launched run: `RUN/launch/launch.json`, the launcher's lock, and requests to stop.

The launcher holds a lock on RUN/launch/launcher.lock while it runs. `launch status` tests the lock, and a
second launcher is refused. `launch cancel` writes the file RUN/launch/stop, from any host that sees RUN.
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

from kinemae.data_tools.files import atomic_write_text, flock
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.job import LAUNCH_FOLDER

_RECORD, _LOCK, _STOP = "launch.json", "launcher.lock", "stop"
KUBERNETES = "k8s:"
_SAVED_STEPS = "saved_steps.json"  # of checkpoints in an object store, written by the run
_TRIES = 5


class Record:
    """`launch.json` of one launch; write errors, such as a full disk, are ignored."""

    def __init__(self, run_dir: Path, **values: Any):
        self._path = run_dir / LAUNCH_FOLDER / _RECORD
        self._values: dict[str, Any] = {
            "started": now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job_id": None,
            "attempt": 0,
            "state": "starting",
            **values,
        }

    def update(self, **values: Any) -> None:
        """Change some values and write the file."""
        self._values.update(values)
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self._path, json.dumps(self._values, indent=1, ensure_ascii=False) + "\n")


def now() -> str:
    """The local time with its offset."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_record(run_dir: Path) -> dict[str, Any]:
    """Read `launch.json`. In place of a folder, `k8s:NAMESPACE/KIND/NAME` names a Kubernetes job.

    Raises:
        ValueError: the run was not launched.
    """
    if str(run_dir).startswith(KUBERNETES):
        return {"kind": "k8s", "job_id": str(run_dir).removeprefix(KUBERNETES)}
    path = run_dir / LAUNCH_FOLDER / _RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        found = f"a folder without {path.relative_to(run_dir)}" if run_dir.is_dir() else "no such folder"
        raise ConfigError(f"{run_dir}: expected the folder of a launched run, got {found}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    assert isinstance(record, dict)
    return record


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Hold the launcher's lock of a run.

    Raises:
        ValueError: another launcher holds it, or the folder cannot be written.
    """
    path = run_dir / LAUNCH_FOLDER / _LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; fix: set another run_dir") from error
    with file:
        if not _try_lock(file):
            file.seek(0)
            holder = file.read().strip() or "another launcher"
            raise ConfigError(
                f"{run_dir}: {holder} is running it already; fix: wait for it, or run "
                f"`kinemae launch cancel {shlex.quote(str(run_dir))}`"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        (run_dir / LAUNCH_FOLDER / _STOP).unlink(missing_ok=True)  # a request to the previous launcher
        yield


def _try_lock(file: IO[str]) -> bool:
    """Lock a file; retry for a moment, because `is_locked` holds the lock briefly."""
    for _ in range(_TRIES):
        try:
            flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
    return False


def is_locked(run_dir: Path) -> bool:
    """Check whether a launcher of this run is alive."""
    try:
        with (run_dir / LAUNCH_FOLDER / _LOCK).open() as file:
            flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def request_stop(run_dir: Path) -> None:
    """Ask the launcher of a run to stop it with a checkpoint; the launcher polls twice a second."""
    atomic_write_text(run_dir / LAUNCH_FOLDER / _STOP, f"requested on {socket.gethostname()} at {now()}\n")


def take_stop_request(run_dir: Path) -> signal.Signals | None:
    """Remove a pending stop request and return it as SIGTERM."""
    path = run_dir / LAUNCH_FOLDER / _STOP
    if not path.exists():
        return None
    path.unlink(missing_ok=True)
    return signal.SIGTERM


def saved_steps(run_dir: Path) -> list[int]:
    """The steps of the complete checkpoints, oldest first."""
    names = [path.name for path in (run_dir / "checkpoints").glob("step-*")]
    found = [int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))]
    in_store = run_dir / _SAVED_STEPS
    return sorted([*found, *(json.loads(in_store.read_text()) if in_store.exists() else [])])
