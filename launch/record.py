"""State of a launched run: `RUN/launch/launch.json`, locks, and requests to stop.

The launcher holds a lock on RUN/launch/launcher.lock, and the agent of the first node one on
RUN/launch/agent.lock. `launch status` tests them, and a second launcher is refused. `launch cancel` writes
the file RUN/launch/stop, from any host that sees RUN.
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
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from kinemae.data_tools.files import atomic_write_text, flock, names_in, read_json
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.job import LAUNCH_FOLDER
from kinemae.launch.supervisor.rank import log_line

_RECORD, _WRITE_LOCK, STOP = "launch.json", "launch.json.lock", "stop"
LAUNCHER_LOCK, AGENT_LOCK = "launcher.lock", "agent.lock"
KUBERNETES = "k8s:"
_SAVED_STEPS = "saved_steps.json"  # of checkpoints in an object store, written by the run
_TRY_S = 0.5
_READS, _PAUSE_S = 3, 1.0


class Record:
    """`launch.json` of a run. After a write error, as on a full disk, this object keeps the values."""

    def __init__(self, run_dir: Path):
        self._run_dir, self._path = run_dir, run_dir / LAUNCH_FOLDER / _RECORD
        self._values: dict[str, Any] = {}
        self._unwritten: dict[str, Any] = {}

    def begin(self, *, kind: str, **values: Any) -> None:
        """Begin a new launch."""
        here = {"started": now(), "host": socket.gethostname(), "pid": os.getpid()}
        self._values = {"kind": kind, **here, "job_id": None, "attempt": 0, "state": "starting", **values}
        self._unwritten = self._values
        self._write()

    def read(self) -> dict[str, Any]:
        """The values; other processes may have changed them. Empty before the first successful read."""
        with suppress(OSError, ValueError):
            self._values = {**json.loads(self._path.read_text(encoding="utf-8")), **self._unwritten}
        return self._values

    def update(self, **values: Any) -> None:
        """Change some values. Writers take turns, so that none undoes the changes of another one."""
        self._unwritten = {**self._unwritten, **values}
        turn: IO[str] | None = None
        with suppress(OSError):
            turn = take_lock(self._run_dir, _WRITE_LOCK, _TRY_S)
        with turn or nullcontext():  # without a lock, a writer is suspended: go on
            self._values = {**self.read(), **values}
            self._write()

    def end(self, code: int, **values: Any) -> None:
        """Record the end of the run, with its exit code."""
        self.update(state="ended", code=code, ended=now(), **values)

    def _write(self) -> None:
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self._path, json.dumps(self._values, indent=1, ensure_ascii=False) + "\n")
            self._unwritten = {}


def now() -> str:
    """The local time with its offset."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_record(run_dir: Path) -> dict[str, Any]:
    """Read `launch.json`. In place of a folder, `k8s:NAMESPACE/KIND/NAME` names a Kubernetes job."""
    if str(run_dir).startswith(KUBERNETES):
        return {"kind": "k8s", "job_id": str(run_dir).removeprefix(KUBERNETES)}
    path = run_dir / LAUNCH_FOLDER / _RECORD
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        found = f"a folder without {path.relative_to(run_dir)}" if run_dir.is_dir() else "no such folder"
        raise ConfigError(f"{run_dir}: expected the folder of a launched run, got {found}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Hold the launcher's lock of a run. Raises `ConfigError` if another launcher holds it."""
    folder = run_dir / LAUNCH_FOLDER
    try:
        file = take_lock(run_dir, LAUNCHER_LOCK, _TRY_S)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}; fix: set another run_dir") from error
    if file is None or is_locked(run_dir, AGENT_LOCK):
        holder = (folder / (LAUNCHER_LOCK if file is None else AGENT_LOCK)).read_text(encoding="utf-8")
        raise ConfigError(
            f"{run_dir}: {holder or 'another process'} is running it already; fix: wait for it, or run "
            f"`kinemae launch cancel {shlex.quote(str(run_dir))}`"
        )
    with file:
        os.set_inheritable(file.fileno(), True)  # `launch local` becomes the agent
        (folder / STOP).unlink(missing_ok=True)  # a request to the previous launcher
        yield


def take_lock(run_dir: Path, name: str, wait_s: float) -> IO[str] | None:
    """Take a lock, which is held until the file is closed; None if another process holds it all the time.

    A short wait is necessary, because `is_locked` holds the lock briefly.
    """
    path = run_dir / LAUNCH_FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    until = time.monotonic() + wait_s
    while True:
        try:
            flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                file.close()
                return None
            time.sleep(0.1)
    with suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    return file


def is_locked(run_dir: Path, *names: str) -> bool | None:
    """Check whether a launcher or an agent of this run is alive; None if the file system has no locks."""
    knows = True
    for name in names or (LAUNCHER_LOCK, AGENT_LOCK):
        try:
            with (run_dir / LAUNCH_FOLDER / name).open() as file:
                knows = flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB) and knows
        except FileNotFoundError:
            continue
        except BlockingIOError:
            return True
    return False if knows else None


def request_stop(run_dir: Path, number: int = signal.SIGTERM) -> None:
    """Ask the first agent of a run to send a signal to the processes; it reads requests once a second."""
    path = run_dir / LAUNCH_FOLDER / STOP
    try:
        atomic_write_text(path, f"{signal.Signals(number).name}\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; fix: send SIGTERM to an agent") from error


def take_stop_request(run_dir: Path) -> int | None:
    """Remove a pending stop request and return its signal."""
    path = run_dir / LAUNCH_FOLDER / STOP
    taken = path.with_name(f"{STOP}.taken")
    try:
        path.rename(taken)  # first: a request that is written from now on is the next one
        name = taken.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return getattr(signal, name, signal.SIGTERM)


def saved_steps(run_dir: Path) -> list[int]:
    """The steps of the complete checkpoints, oldest first."""
    names = names_in(run_dir / "checkpoints")
    found = [int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))]
    in_store = run_dir / _SAVED_STEPS
    return sorted([*found, *(read_json(in_store) if in_store.exists() else [])])


def newest_step(run_dir: Path, known: int | None) -> int | None:
    """The newest checkpoint; `known` if the file system does not respond correctly for a moment."""
    for _ in range(_READS):
        try:
            return max(saved_steps(run_dir), default=None)
        except OSError as error:
            failed = error
            time.sleep(_PAUSE_S)
    log_line(run_dir, f"cannot read the checkpoints: {failed}; this attempt counts as one without a new one")
    return known
