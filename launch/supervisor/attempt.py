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
from pathlib import Path
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_CRASHED, EXIT_OK, STOPPED, describe_exit
from kinemae.launch.supervisor.agent import END, HEARTBEAT, KILL, ORDERS
from kinemae.launch.supervisor.rank import EVENT, put

_HEARTBEAT_S = 3.0
_SETTLE_S = 2.0
_LOOK_S = 0.5
_MARGIN_S = 10.0  # what an agent may take beyond the time that it gives its processes
_ORDER_OF = {number: order for order, number in ORDERS.items()}


@dataclass(kw_only=True)
class Wishes:
    """Stops that somebody asked for: by a signal to the launcher or, from anywhere, by `launch cancel`.

    Attributes:
        look: what else may ask; called every second or so.
        signals: received and not yet passed on.
        first: the first of all; None while nobody has asked.
    """

    look: Callable[[], signal.Signals | None]
    signals: list[int] = field(default_factory=list)
    first: int | None = None

    def take(self) -> list[bytes]:
        """What to tell the agents now; a second Ctrl-C ends everything at once."""
        wished = self.look()
        self.signals += [] if wished is None else [wished]
        orders = []
        while self.signals:
            number = self.signals.pop(0)
            is_second = number == signal.SIGINT and self.first is not None
            orders.append(KILL if is_second else _ORDER_OF[signal.Signals(number)])
            self.first = self.first or number
        return orders


class RemoteAgent:
    """The head's end of an agent, or of another launcher, which knows neither orders nor events.

    Attributes:
        code: how it ended; None while it runs.
        said: the exit code that it announced before it ended.
        complaint: the last line on stderr that was no event, such as ssh's own.
    """

    def __init__(self, host: str, command: Sequence[str], *, is_ours: bool):
        self.host, self.is_ours = host, is_ours
        self.code: int | None = None
        self.said: int | None = None
        self.complaint = ""
        self._rest = b""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if is_ours else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches it as an order, not as a signal
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.output, self.errors = self.process.stdout.fileno(), self.process.stderr.fileno()
        if self.process.stdin is not None:
            os.set_blocking(self.process.stdin.fileno(), False)

    def order(self, order: bytes) -> None:
        """Send one byte; an agent that cannot be reached will notice the silence."""
        if self.process.stdin is not None:
            with suppress(OSError):
                os.write(self.process.stdin.fileno(), order)
        elif order != HEARTBEAT:
            self.process.send_signal(signal.SIGKILL if order == KILL else signal.SIGTERM)

    def events(self, printed: bytes) -> list[dict[str, Any]]:
        """The events in what it printed on stderr; the rest goes to the terminal."""
        *lines, self._rest = (self._rest + printed).split(b"\n")
        told = []
        for line in (line.decode(errors="backslashreplace") for line in lines):
            if line.startswith(EVENT):
                told.append(json.loads(line[len(EVENT) :]))
            elif line.strip():
                self.complaint = line.strip()
                put(2, f"{self.host}: {line}\n".encode())
        return told


class Attempt:
    """Runs a command on each host as one job: the failure of one is the end of all.

    Args:
        commands: for each host what runs its agent.
        note: is told of every event.
        say: prints one line for the user.
        times: `grace_s` and `stop_s` of `Limits`.
        log: where the output goes of another launcher's command; None: the commands are agents of ours.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        note: Callable[[dict[str, Any]], None],
        say: Callable[[str], None],
        times: tuple[float, float],
        log: Path | None = None,
    ):
        self._log = log
        self._note, self._say = note, say
        self._grace_s, self._stop_s = times
        self._deadline: float | None = None
        self._failure: int | None = None
        self._suspects: list[dict[str, Any]] = []
        self._settled: float | None = None
        self._agents = [RemoteAgent(host, command, is_ours=log is None) for host, command in commands.items()]
        self._open = {agent.output: agent for agent in self._agents}
        self._open |= {agent.errors: agent for agent in self._agents}

    def run(self, wishes: Wishes, wakeup: int) -> int:
        """Until all have ended; the exit code of the first that failed.

        Args:
            wakeup: a descriptor that can be read when a signal has come.
        """
        next_beat = 0.0
        while any(agent.code is None for agent in self._agents):
            for source in select.select([wakeup, *self._open], [], [], _LOOK_S)[0]:
                self._read(source) if source != wakeup else os.read(wakeup, 4096)
            for order in wishes.take():
                self._order(order, self._stop_s)
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + _HEARTBEAT_S
                self._order(HEARTBEAT)
            for agent in self._agents:
                if agent.code is None and agent.process.poll() is not None:
                    self._note_end(agent)
            self._mind_time()
        self._name_the_first()
        return self._failure or EXIT_OK

    def _read(self, source: int) -> None:
        agent, printed = self._open[source], os.read(source, 1 << 16)
        if not printed:
            del self._open[source]
        elif source == agent.output or self._log is not None:
            put(1, printed)
            self._keep(printed)
        else:
            for event in agent.events(printed):
                self._hear(agent, event)

    def _keep(self, printed: bytes) -> None:
        if self._log is not None:
            with suppress(OSError), self._log.open("ab") as file:
                file.write(printed)

    def _hear(self, agent: RemoteAgent, event: dict[str, Any]) -> None:
        self._note(event)
        if event["event"] == "note":
            self._say(f"{agent.host}: {event['text']}")
        elif event["event"] == "ended":
            agent.said = event["code"]
        elif event["event"] == "failed" and self._failure is None:
            self._suspects.append({**event, "host": agent.host})
            # Who just lost its peer crashes too, and may be heard of first: the cause has a moment to come.
            self._settled = self._settled or time.monotonic() + _SETTLE_S
            if event["code"] != EXIT_CRASHED:
                self._name_the_first()

    def _name_the_first(self) -> None:
        """Say which process failed first, as far as that can be told; it ends the others."""
        if self._failure is not None or not self._suspects:
            return
        first = min(self._suspects, key=lambda event: event["code"] == EXIT_CRASHED)
        # Rank 0's own words stand on the terminal already.
        lines = [] if first["rank"] == 0 else first["last_lines"]
        lines = lines and ["its last lines:", *lines]
        code = first["code"]
        text = f"rank {first['rank']} on {first['host']} {describe_exit(code)} (exit code {code})"
        self._say("\n    ".join([f"{text}; all it said is in {first['log']}", *lines]))
        self._fail(code)

    def _note_end(self, agent: RemoteAgent) -> None:
        """Its last words may explain its end, or announce it."""
        for source in (agent.output, agent.errors):
            while source in self._open and select.select([source], [], [], 0)[0]:
                self._read(source)
        ended = agent.process.returncode
        if agent.said is not None:
            agent.code = agent.said
        elif not agent.is_ours:
            agent.code = ended if ended >= 0 else EXIT_CRASHED
        else:
            agent.code = EXIT_CRASHED
            why = f"its agent was killed by signal {-ended}" if ended < 0 else agent.complaint
            self._say(f"{agent.host} is lost: {why or 'its agent ended without a word'}")
        if not self._suspects:
            self._fail(agent.code)

    def _fail(self, code: int) -> None:
        """The first failure ends the other agents. A stop is agreed on by all: they end by themselves."""
        if code == EXIT_OK or self._failure is not None:
            return
        self._failure = code
        if code in STOPPED:
            self._deadline = time.monotonic() + self._stop_s + _MARGIN_S
        else:
            self._order(END, self._grace_s)

    def _order(self, order: bytes, wait_s: float | None = None) -> None:
        for agent in self._agents:
            if agent.code is None:
                agent.order(order)
        if wait_s is not None:
            deadline = time.monotonic() + wait_s + _MARGIN_S
            self._deadline = min(deadline, self._deadline or deadline)

    def _mind_time(self) -> None:
        if self._settled is not None and time.monotonic() > self._settled:
            self._name_the_first()
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        for agent in self._agents:
            if agent.code is None:
                self._say(f"{agent.host} did not end in time: its connection is given up")
                agent.process.kill()
        self._deadline = time.monotonic() + _MARGIN_S
