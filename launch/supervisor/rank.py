"""The processes of a job on one host, as their agent manages them."""

import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from kinemae.data_tools.error_file import VARIABLE, read_error_file
from kinemae.data_tools.exit_codes import EXIT_STOPPED
from kinemae.launch.supervisor.policy import NodeEnd

TAIL_LINES = 20
_LINE_BYTES = 2000  # of a last line that is kept
_ABORTED = 128 + signal.SIGABRT  # also a crash in C++; then its peers fail later than it
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_DRAIN_S = 2.0
_DECIDE_S = 2.0  # the first process that fails may be a victim of another one
_WRITE_S = 1.0
_UNKILLABLE_S = 60.0  # after SIGKILL


class Rank:
    """A process of the job, its log file, and the file to which it writes why it failed.

    Attributes:
        code: exit code, 128 + signal after a death by a signal; None while it runs.
    """

    def __init__(
        self, rank: int, command: list[str], env: dict[str, str], *, run_dir: Path, host: str, attempt: int
    ):
        self.rank, self.host = rank, host
        self.log = run_dir / "logs" / f"rank-{rank:05d}.log"
        # A suspended process of an earlier start may write its file later.
        self._error_file = run_dir / "launch" / "errors" / f"start-{attempt}-rank-{rank:05d}.json"
        with suppress(OSError):
            self._error_file.unlink()  # of an earlier launch
        self.code: int | None = None
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._line, self._ended_s = b"", 0.0
        self._file: Any = None
        self._has_log = True
        self.process = subprocess.Popen(
            command,
            env={**env, VARIABLE: str(self._error_file)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # signals come from the agent only; its group includes its workers
        )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout.fileno()
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._write(f"--- {started} rank {rank} on {host}, process {self.process.pid}\n".encode())

    def read(self) -> bytes:
        """Read new output and append it to the log; empty at the end of the output."""
        output = os.read(self.stdout, 1 << 16)
        *lines, rest = (self._line + output).split(b"\n")
        self._tail.extend(line[-_LINE_BYTES:] for line in lines)
        self._line = rest[-_LINE_BYTES:]
        self._write(output)
        return output

    def poll(self) -> bool:
        """Check whether the process has ended since the last call."""
        if self.code is not None or self.process.poll() is None:
            return False
        code = self.process.returncode
        self.set_end(code if code >= 0 else 128 - code)
        return True

    def set_end(self, code: int) -> None:
        """Count the process as ended now."""
        self.code, self._ended_s = code, time.time()

    def failure(self) -> dict[str, Any]:
        """Describe the failure of an ended process.

        A process is a victim if it failed because another one did: it lost its connection to it, or the
        watchdog of NCCL aborted it.
        """
        error = read_error_file(self._error_file) or {}
        lines = [*self._tail, *([self._line] if self._line else [])][-TAIL_LINES:]
        return {
            "rank": self.rank,
            "host": self.host,
            "code": self.code,
            "time_s": error.get("time_s", self._ended_s),
            "is_victim": error.get("lost_peer", self.code == _ABORTED),
            "message": error.get("message"),
            "log": str(self.log),
            "last_lines": [line.decode(errors="backslashreplace") for line in lines],
        }

    def send(self, number: int) -> None:
        """Send a signal to the process; SIGKILL also goes to its workers."""
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            elif self.code is None:
                self.process.send_signal(number)

    def _write(self, output: bytes) -> None:
        """Append to the log; a full disk must not end the training."""
        if not self._has_log:
            return
        try:
            if self._file is None:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.log.open("ab", buffering=0)
            self._file.write(output)
        except OSError as error:
            note(f"cannot write {self.log}: {error.strerror}; rank {self.rank} continues without")
            self._has_log = False


class NodeRanks:
    """All processes of a node in one attempt: output, signals, and their end.

    Args:
        failures: of a node that could not start its processes.
    """

    def __init__(self, ranks: Sequence[Rank], *, stop_s: float, failures: Sequence[dict[str, Any]] = ()):
        self._ranks, self._stop_s = ranks, stop_s
        self._open = {rank.stdout: rank for rank in ranks}
        self._deadline: float | None = None
        self._killed_s: float | None = None
        self._is_ending = False
        self._sent: int | None = None
        self._failures = list(failures)
        self._stop_code = 0

    @property
    def is_running(self) -> bool:
        """Whether a process has not ended."""
        return any(rank.code is None for rank in self._ranks)

    @property
    def has_failed(self) -> bool:
        """Whether a process has failed and the others have to end; victims alone wait for their cause."""
        if all(failure["is_victim"] for failure in self._failures):
            return bool(self._failures) and time.time() > self._failures[0]["time_s"] + _DECIDE_S
        return True

    def wait(self, wakeup: int, timeout_s: float) -> None:
        """Forward output and collect ended processes, until something happens or the time is over."""
        for source in select.select([wakeup, *self._open], [], [], timeout_s)[0]:
            if source == wakeup:
                os.read(wakeup, 4096)
            else:
                self._forward(self._open[source])
        for rank in [rank for rank in self._ranks if rank.poll()]:
            until = time.monotonic() + _DRAIN_S  # a worker that outlives it may write for ever
            while rank.stdout in self._open and select.select([rank.stdout], [], [], 0)[0]:
                self._forward(rank)
                if time.monotonic() > until:
                    break
            self._on_end(rank)
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._kill()

    def end(self, wait_s: float) -> None:
        """End the processes after a failure; a stop in progress continues."""
        if self._deadline is None:
            self._is_ending = True
            self.stop(signal.SIGTERM, wait_s)

    def stop(self, number: int, wait_s: float) -> None:
        """Send a signal to all processes, and SIGKILL after `wait_s`."""
        self._sent = number
        for rank in self._ranks:
            rank.send(number)
        deadline = time.monotonic() + wait_s
        self._deadline = min(deadline, self._deadline or deadline)

    def close(self) -> NodeEnd:
        """Kill workers that outlived their process, read the last output, and describe the end."""
        for rank in self._ranks:
            rank.send(signal.SIGKILL)
        until = time.monotonic() + _DRAIN_S
        while self._open and time.monotonic() < until:
            for source in select.select([*self._open], [], [], 0.1)[0]:
                self._forward(self._open[source])
        return NodeEnd(failures=self._failures, stop_code=self._stop_code)

    def _forward(self, rank: Rank) -> None:
        output = rank.read()
        if not output:
            del self._open[rank.stdout]
        elif rank.rank == 0:
            write_out(1, output)

    def _on_end(self, rank: Rank) -> None:
        code = rank.code or 0
        if code == EXIT_STOPPED or (self._sent is not None and code == 128 + self._sent):
            if not self._is_ending:  # otherwise a failure is the cause
                self._stop_code = max(self._stop_code, code)
                self._deadline = self._deadline or time.monotonic() + self._stop_s
        elif code and not self._stop_code:  # after a stop, others may only have lost their connection
            self._failures.append(rank.failure())

    def _kill(self) -> None:
        running = [rank for rank in self._ranks if rank.code is None]
        if self._killed_s is None:
            self._killed_s = time.monotonic()
            for rank in running:
                note(f"rank {rank.rank} did not end in time: SIGKILL")
        self.stop(signal.SIGKILL, 0)
        if time.monotonic() > self._killed_s + _UNKILLABLE_S:
            for rank in running:  # the kernel cannot end it, as in a hanging driver
                note(f"rank {rank.rank}: process {rank.process.pid} survives SIGKILL: continuing")
                rank.set_end(128 + signal.SIGKILL)
                self._on_end(rank)
        self._deadline = time.monotonic() + _DRAIN_S


def note(text: str) -> None:
    """Print a line for the user."""
    write_out(2, f"{time.strftime('%H:%M:%S')} launch: {text}\n".encode())


def log_line(run_dir: Path, text: str) -> None:
    """Print a line for the user and append it to RUN/logs/launch.log."""
    note(text)
    with suppress(OSError), (run_dir / "logs" / "launch.log").open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%H:%M:%S')} launch: {text}\n")


def write_out(descriptor: int, text: bytes) -> None:
    """Write to a terminal or a pipe. If it is stalled, text is dropped; the log file contains it."""
    with suppress(OSError, ValueError):
        while text and select.select([], [descriptor], [], _WRITE_S)[1]:
            text = text[os.write(descriptor, text[: select.PIPE_BUF]) :]


def catch_signals(received: list[int]) -> int:
    """Append stop signals to a list; return a descriptor that becomes readable when one or SIGCHLD arrives.

    Signals that are ignored stay ignored, as under nohup.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            received.append(signal.SIGTERM if number == signal.SIGHUP else number)

    signal.signal(signal.SIGCHLD, on_signal)
    for number in _STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    return reader
