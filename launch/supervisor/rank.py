"""One process of a job, as its agent manages it, and the events that an agent sends to its launcher.

An event is a line of JSON after a record separator (RFC 7464) on stderr, which separates it from ssh's own
messages. Uses the standard library and `error_file.py` only.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from kinemae.data_tools.error_file import VARIABLE, read_error_file

EVENT = "\x1e"
TAIL_LINES = 20
_ABORTED = 128 + signal.SIGABRT  # also a crash in C++; then its peers fail later than it
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Rank:
    """A process of the job, its log file, and the file to which it writes why it failed.

    Attributes:
        code: exit code, 128 + signal after a death by a signal; None while it runs.
        is_killed: whether the agent sent SIGKILL while it ran.
    """

    def __init__(self, rank: int, command: list[str], environment: dict[str, str], run_dir: Path):
        self.rank = rank
        self.log = run_dir / "logs" / f"rank-{rank:05d}.log"
        self._error_file = run_dir / "launch" / "errors" / f"rank-{rank:05d}.json"
        with suppress(OSError):
            self._error_file.unlink()  # of an earlier start
        environment = {**environment, VARIABLE: str(self._error_file)}
        self.code: int | None = None
        self.is_killed = False
        self.tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._line, self._ended_s = b"", 0.0
        self._file: Any = None
        self._open_log()
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # signals come from the agent only; its group includes its workers
        )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout.fileno()
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._write(f"--- {started} rank {rank} on {host_name()}, process {self.process.pid}\n".encode())

    def read(self) -> bytes:
        """Read new output and append it to the log; empty at the end of the output."""
        output = os.read(self.stdout, 1 << 16)
        *lines, self._line = (self._line + output).split(b"\n")
        self.tail.extend(lines)
        self._write(output)
        return output

    def poll(self) -> bool:
        """Check whether the process has ended since the last call."""
        if self.code is not None or self.process.poll() is None:
            return False
        code = self.process.returncode
        self.code, self._ended_s = code if code >= 0 else 128 - code, time.time()
        return True

    def failure(self) -> dict[str, Any]:
        """Describe the failure of an ended process.

        A process is a victim if it failed because another one did: it lost its connection to it, or the
        watchdog of NCCL aborted it.
        """
        error = read_error_file(self._error_file) or {}
        return {
            "rank": self.rank,
            "code": self.code,
            "time_s": error.get("time_s", self._ended_s),
            "is_victim": error.get("lost_peer", self.code == _ABORTED),
            "message": error.get("message"),
            "log": str(self.log),
            "last_lines": self.last_lines(),
        }

    def send(self, number: int) -> None:
        """Send a signal to the process; SIGKILL also goes to its workers."""
        try:
            if number == signal.SIGKILL:
                self.is_killed |= self.code is None
                os.killpg(self.process.pid, number)
            elif self.code is None:
                self.process.send_signal(number)
        except ProcessLookupError:
            pass

    def last_lines(self) -> list[str]:
        """The last lines of its output."""
        lines = [*self.tail, *([self._line] if self._line else [])]
        return [line.decode(errors="backslashreplace") for line in lines][-TAIL_LINES:]

    def _open_log(self) -> None:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.log.open("ab", buffering=0)
        except OSError as error:
            emit("note", text=f"no log file {self.log}: {error.strerror}; rank {self.rank} continues without")

    def _write(self, output: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(output)
        except OSError as error:  # a full disk must not end the training
            emit(
                "note", text=f"cannot write {self.log}: {error.strerror}; rank {self.rank} continues without"
            )
            self._file = None


def emit(event: str, **values: Any) -> None:
    """Send an event to the launcher."""
    line = json.dumps({"event": event, "host": host_name(), **values})
    write_out(2, f"{EVENT}{line}\n".encode())


def write_out(descriptor: int, text: bytes) -> None:
    """Write to a terminal or a pipe; ignore errors, since the log file holds the same text."""
    try:
        while text:
            text = text[os.write(descriptor, text) :]
    except OSError:
        pass


def host_name() -> str:
    """The name of this host in the cluster file."""
    return os.environ.get("KINEMAE_HOST") or socket.gethostname()


def catch_signals(received: list[int], *, keep_ignored: bool = False) -> int:
    """Append stop signals to a list; return a descriptor that becomes readable when one or SIGCHLD arrives.

    Args:
        keep_ignored: whether stop signals that are ignored now stay ignored.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            received.append(signal.SIGTERM if number == signal.SIGHUP else number)

    signal.signal(signal.SIGCHLD, on_signal)
    for number in _STOP_SIGNALS:
        if not keep_ignored or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    return reader


def first_failure(failures: list[dict[str, Any]]) -> dict[str, Any]:
    """The cause of several failures: the earliest one that is no victim of another."""
    return min(failures, key=lambda failure: (failure["is_victim"], failure["time_s"]))
