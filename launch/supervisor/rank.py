"""One process of a job as its agent sees it, and the lines in which an agent tells its head.

An event is a line of JSON behind a record separator (RFC 7464) on stderr: what ssh itself says stays apart.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections import deque
from pathlib import Path
from typing import Any

EVENT = "\x1e"
TAIL_LINES = 20


class Rank:
    """One process of the job with its log file.

    Attributes:
        code: as a shell has it, 128 + signal for a death by a signal; None while it runs.
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
            start_new_session=True,  # signals reach it through us alone, and its workers can be ended with it
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._write(f"--- {started} rank {rank} on {host()}, process {self.process.pid}\n".encode())

    def read(self) -> bytes:
        """What it has printed since, kept in the log as well; empty at the end of its output."""
        printed = os.read(self.output, 1 << 16)
        *lines, self._line = (self._line + printed).split(b"\n")
        self.tail.extend(lines)
        self._write(printed)
        return printed

    def poll(self) -> bool:
        """Whether it has just ended."""
        if self.code is not None or self.process.poll() is None:
            return False
        code = self.process.returncode
        self.code = code if code >= 0 else 128 - code
        return True

    def send(self, number: int) -> None:
        """A signal to the process, SIGKILL to its loader processes as well."""
        try:
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            elif self.code is None:
                self.process.send_signal(number)
        except ProcessLookupError:
            pass

    def last_lines(self) -> list[str]:
        """What it printed last in this start."""
        lines = [*self.tail, *([self._line] if self._line else [])]
        return [line.decode(errors="backslashreplace") for line in lines][-TAIL_LINES:]

    def _open_log(self) -> None:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.log.open("ab", buffering=0)
        except OSError as error:
            tell("note", text=f"no log file {self.log}: {error.strerror}; rank {self.rank} goes on without")

    def _write(self, printed: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(printed)
        except OSError as error:  # a full disk must not end the training
            tell("note", text=f"cannot write {self.log}: {error.strerror}; rank {self.rank} goes on without")
            self._file = None


def tell(event: str, **told: Any) -> None:
    """One line to the head."""
    line = json.dumps({"event": event, "host": host(), **told})
    put(2, f"{EVENT}{line}\n".encode())


def put(descriptor: int, text: bytes) -> None:
    """Write to a terminal or the head; where nobody reads or nobody listens any more, the log file has it."""
    try:
        while text:
            text = text[os.write(descriptor, text) :]
    except OSError:
        pass


def host() -> str:
    """What the cluster file calls this host."""
    return os.environ.get("KINEMAE_HOST") or socket.gethostname()
