"""One process of a job, as its agent manages it, and the events that an agent sends to its launcher.

An event is a line of JSON after a record separator (RFC 7464) on stderr, which separates it from ssh's own
messages. Uses the standard library only.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any

EVENT = "\x1e"
TAIL_LINES = 20
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Rank:
    """A process of the job and its log file.

    Attributes:
        code: exit code, 128 + signal after a death by a signal; None while it runs.
    """

    def __init__(self, rank: int, command: list[str], environment: dict[str, str], log: Path):
        self.rank, self.log = rank, log
        self.code: int | None = None
        self.tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._line = b""
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
        self.code = code if code >= 0 else 128 - code
        return True

    def send(self, number: int) -> None:
        """Send a signal to the process; SIGKILL also goes to its workers."""
        try:
            if number == signal.SIGKILL:
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
