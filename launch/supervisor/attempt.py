"""One start of a job: an agent on each host, until all have ended."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_CRASHED, EXIT_OK, STOPPED, describe_exit
from kinemae.launch.supervisor.agent import COMMANDS, END, HEARTBEAT, KILL
from kinemae.launch.supervisor.rank import EVENT, first_failure, write_out

_HEARTBEAT_S = 3.0
_DECIDE_S = 2.0
_POLL_S = 0.5
_MARGIN_S = 10.0  # time of an agent beyond the time of its processes
_COMMAND_OF = {number: command for command, number in COMMANDS.items()}


@dataclass(kw_only=True)
class StopRequests:
    """Requests to stop a run: by a signal to the launcher, or by `launch cancel`.

    Attributes:
        poll: returns a new request of `launch cancel`; called about twice a second.
        signals: received signals that have not been forwarded.
        first: the first request; None without one.
    """

    poll: Callable[[], signal.Signals | None]
    signals: list[int] = field(default_factory=list)
    first: int | None = None

    def take(self) -> list[bytes]:
        """Commands to send to the agents; a second Ctrl-C kills all processes."""
        request = self.poll()
        self.signals += [] if request is None else [request]
        commands = []
        while self.signals:
            number = self.signals.pop(0)
            is_second = number == signal.SIGINT and self.first is not None
            commands.append(KILL if is_second else _COMMAND_OF[signal.Signals(number)])
            self.first = self.first or number
        return commands


class RemoteAgent:
    """The launcher's connection to an agent.

    Attributes:
        code: exit code; None while the agent runs.
        reported_code: the exit code in its `ended` event.
        last_error: the last line on stderr that is not an event, such as ssh's message.
    """

    def __init__(self, host: str, command: Sequence[str]):
        self.host = host
        self.code: int | None = None
        self.reported_code: int | None = None
        self.last_error = ""
        self._rest = b""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches it as a command, not as a signal
        )
        pipes = (self.process.stdin, self.process.stdout, self.process.stderr)
        self._stdin, self.stdout, self.stderr = (pipe.fileno() for pipe in pipes if pipe is not None)
        os.set_blocking(self._stdin, False)

    def send(self, command: bytes) -> None:
        """Send one command; an unreachable agent ends when its heartbeat times out."""
        with suppress(OSError):
            os.write(self._stdin, command)

    def events(self, output: bytes) -> list[dict[str, Any]]:
        """Parse the events in new stderr output; other lines go to the terminal."""
        *lines, self._rest = (self._rest + output).split(b"\n")
        events = []
        for line in (line.decode(errors="backslashreplace") for line in lines):
            if line.startswith(EVENT):
                with suppress(ValueError):  # an event that a full pipe has cut
                    events.append(json.loads(line[len(EVENT) :]))
            elif line.strip():
                self.last_error = line.strip()
                write_out(2, f"{self.host}: {line}\n".encode())
        return events


class Attempt:
    """Runs one agent per host as one job: a failure on one host ends all.

    Args:
        commands: the command of each host's agent.
        on_event: called with every event, and with the failure that is taken for the cause, as event `cause`.
        log: prints a line for the user.
        grace_s, stop_s: see `SupervisorConfig`.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        on_event: Callable[[dict[str, Any]], None],
        log: Callable[[str], None],
        grace_s: float,
        stop_s: float,
    ):
        self._on_any_event, self._log = on_event, log
        self._grace_s, self._stop_s = grace_s, stop_s
        self._deadline: float | None = None
        self._exit_code: int | None = None
        self._failures: list[dict[str, Any]] = []
        self._decide_at: float | None = None
        self._agents = [RemoteAgent(host, command) for host, command in commands.items()]
        self._open = {agent.stdout: agent for agent in self._agents}
        self._open |= {agent.stderr: agent for agent in self._agents}

    def run(self, stops: StopRequests, wakeup: int) -> int:
        """Wait until all agents have ended; return the exit code of the first failure, or 0.

        Args:
            wakeup: a descriptor that becomes readable when a signal arrives.
        """
        next_beat = 0.0
        while any(agent.code is None for agent in self._agents):
            for source in select.select([wakeup, *self._open], [], [], _POLL_S)[0]:
                self._read(source) if source != wakeup else os.read(wakeup, 4096)
            for command in stops.take():
                self._send(command, self._stop_s)
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + _HEARTBEAT_S
                self._send(HEARTBEAT)
            for agent in self._agents:
                if agent.code is None and agent.process.poll() is not None:
                    self._on_end(agent)
            self._check_deadlines()
        self._report_first_failure()
        return self._exit_code or EXIT_OK

    def _read(self, source: int) -> None:
        agent, output = self._open[source], os.read(source, 1 << 16)
        if not output:
            del self._open[source]
        elif source == agent.stdout:
            write_out(1, output)
        else:
            for event in agent.events(output):
                self._on_event(agent, event)

    def _on_event(self, agent: RemoteAgent, event: dict[str, Any]) -> None:
        self._on_any_event(event)
        if event["event"] == "note":
            self._log(f"{agent.host}: {event['text']}")
        elif event["event"] == "ended":
            agent.reported_code = event["code"]
        elif event["event"] == "failed" and self._exit_code is None:
            self._failures.append({**event, "host": agent.host})
            # The first failure that arrives may be a victim of another one: wait for the cause.
            self._decide_at = self._decide_at or time.monotonic() + _DECIDE_S
            if not event["is_victim"]:
                self._report_first_failure()

    def _report_first_failure(self) -> None:
        """Log the cause of the failure, and end the other agents."""
        if self._exit_code is not None or not self._failures:
            return
        first = first_failure(self._failures)
        # The output of rank 0 is on the terminal already.
        lines = [] if first["rank"] == 0 else first["last_lines"]
        lines = lines and ["its last lines:", *lines]
        code = first["code"]
        text = f"rank {first['rank']} on {first['host']} {describe_exit(code)} (exit code {code})"
        if first["is_victim"]:
            text += ", after another process whose failure is unknown"
        self._log("\n    ".join([f"{text}; full output: {first['log']}", *lines]))
        self._on_any_event({**first, "event": "cause"})
        self._fail(code)

    def _on_end(self, agent: RemoteAgent) -> None:
        for source in (agent.stdout, agent.stderr):  # the last output may hold the reason
            while source in self._open and select.select([source], [], [], 0)[0]:
                self._read(source)
        ended = agent.process.returncode
        if agent.reported_code is not None:
            agent.code = agent.reported_code
        else:
            agent.code = EXIT_CRASHED
            reason = f"its agent was killed by signal {-ended}" if ended < 0 else agent.last_error
            self._log(f"{agent.host} is lost: {reason or 'its agent ended without a message'}")
        # Ranks that lost their connection to a stopped one are no failure of the run.
        is_stop = agent.code in STOPPED and all(failure["is_victim"] for failure in self._failures)
        if is_stop or not self._failures:
            self._fail(agent.code)

    def _fail(self, code: int) -> None:
        """End the other agents after the first failure. After a stop, they end by themselves."""
        if code == EXIT_OK or self._exit_code is not None:
            return
        self._exit_code = code
        if code in STOPPED:
            self._deadline = time.monotonic() + self._stop_s + _MARGIN_S
        else:
            self._send(END, self._grace_s)

    def _send(self, command: bytes, wait_s: float | None = None) -> None:
        for agent in self._agents:
            if agent.code is None:
                agent.send(command)
        if wait_s is not None:
            deadline = time.monotonic() + wait_s + _MARGIN_S
            self._deadline = min(deadline, self._deadline or deadline)

    def _check_deadlines(self) -> None:
        if self._decide_at is not None and time.monotonic() > self._decide_at:
            self._report_first_failure()
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        for agent in self._agents:
            if agent.code is None:
                self._log(f"{agent.host} did not end in time: closing its connection")
                agent.process.kill()
        self._deadline = time.monotonic() + _MARGIN_S
