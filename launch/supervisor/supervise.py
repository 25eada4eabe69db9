"""Supervision: start a job, and start it again after a crash, on the hosts that are left.

A restart is a new set of processes that meet at a new port and go on from the newest checkpoint.
`exit_codes.py` says which ends are crashes. A run that got to a new checkpoint has used up no restarts.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_CRASHED, describe_exit, is_restartable
from kinemae.launch.cluster import UsageError, require
from kinemae.launch.freezing import atomic_write_text
from kinemae.launch.job import LOGS_FOLDER, Job, JobRefused, dry_run
from kinemae.launch.record import Record, newest_checkpoint, now, take_stop
from kinemae.launch.supervisor.attempt import Attempt, Wishes
from kinemae.launch.supervisor.hosts import Answer, Link, ask, deal
from kinemae.launch.supervisor.name_resolution import name_fault
from kinemae.launch.supervisor.rank import put

_ASK_AGAIN_S = 5.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to give up, and how long to wait for what: keys of every cluster that is supervised from here.

    Attributes:
        max_restarts: how often in a row, without a new checkpoint in between.
        grace_s: from SIGTERM to SIGKILL for the others, after a process has failed.
        stop_s: the same after a stop was asked for; a checkpoint is written in it.
        silence_s: how long an agent goes on without a sign of the launcher.
    """

    max_restarts: int = 3
    grace_s: float = 20.0
    stop_s: float = 120.0
    silence_s: float = 30.0

    def __post_init__(self) -> None:
        require(self.max_restarts >= 0, "max_restarts", "be 0 or more", self.max_restarts)
        require(self.grace_s > 0, "grace_s", "be more than 0 seconds", self.grace_s)
        require(self.stop_s > 0, "stop_s", "be more than 0 seconds", self.stop_s)
        require(self.silence_s >= 10, "silence_s", "be at least 10 (it is told every 3)", self.silence_s)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What one start runs.

    Attributes:
        dealt: processes by host.
        master: where they meet, HOST:PORT.
    """

    dealt: Mapping[str, int]
    master: str


Commands = Callable[[Job, Start], Mapping[str, list[str]]]
Files = Callable[[Job, Start], Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How one kind of cluster runs a job.

    Attributes:
        slots: processes that each host can take; they meet on the first.
        link: how commands get to hosts.
        environment: what the cluster file sets for each process.
        container: words before the interpreter of each process.
        master: address where they meet; None: the first host's name.
        port: the first port; each restart takes the next. None: one that is free on the first host.
        commands: what to run for a start, by host.
        files: what to write before it, texts by path.
        limits: when to give up.
        min_nodes: the fewest hosts to go on with; None: the first start needs all, a restart one.
        host_wait_s: how long a restart waits for that many.
        python: the interpreter on the hosts; None: this one.
        is_ours: whether the commands are our agents.
        is_node: whether this machine is one of those that train.
    """

    kind: str
    slots: Mapping[str, int]
    link: Link
    commands: Commands
    limits: Limits
    environment: Mapping[str, str]
    python: str | None
    container: list[str]
    master: str | None = None
    port: int | None = None
    files: Files = lambda job, start: {}
    min_nodes: int | None = None
    host_wait_s: float = 60.0
    is_node: bool = True
    is_ours: bool = True


class Supervisor:
    """Keeps a job going."""

    def __init__(self, launch: Launch, job: Job, record: Record):
        self._launch, self._job, self._record = launch, job, record
        self._limits, self._slots = launch.limits, launch.slots
        self._run_dir = Path(job.run_dir)
        self._wishes = Wishes(look=lambda: take_stop(self._run_dir))
        self._attempts = 0

    def run(self) -> int:
        """Until it has ended for good; its exit code.

        Raises:
            UsageError: too few hosts answer at the first start.
            JobRefused: no number of processes on the hosts that answer can share the batch.
        """
        wakeup = _catch(self._wishes)
        restarts, newest = 0, newest_checkpoint(self._run_dir)
        while True:
            code = self._attempt(wakeup)
            if not is_restartable(code) or self._wishes.first is not None:
                return self._end(code)
            progress = newest_checkpoint(self._run_dir)
            restarts = 1 if progress != newest else restarts + 1
            newest = progress
            if restarts > self._limits.max_restarts:
                most = self._limits.max_restarts
                self.say(f"given up after {most} restarts without a new checkpoint (max_restarts)")
                return self._end(code)
            went_on = "from its start" if newest is None else f"from step {newest}"
            self.say(f"restart {restarts} of at most {self._limits.max_restarts}, {went_on}")

    def say(self, text: str) -> None:
        """A line for the user, on the terminal and in RUN/logs/launch.log."""
        line = f"{time.strftime('%H:%M:%S')} launch: {text}\n".encode()
        put(2, line)
        try:
            with (self._run_dir / LOGS_FOLDER / "launch.log").open("ab") as file:
                file.write(line)
        except OSError:
            pass

    def _attempt(self, wakeup: int) -> int:
        start = self._plan_start()
        if start is None:
            return 128 + self._wishes.first if self._wishes.first else EXIT_CRASHED
        self._attempts += 1
        world = sum(start.dealt.values())
        hosts = ", ".join(f"{count} on {host}" for host, count in start.dealt.items())
        self.say(f"start {self._attempts}: {world} processes ({hosts}), meeting at {start.master}")
        self._record.note(
            state="running", attempt=self._attempts, hosts=dict(start.dealt), master=start.master, agents={}
        )
        agents: dict[str, Any] = {}

        def note(event: dict[str, Any]) -> None:
            if event["event"] == "started":
                agents[event["host"]] = {"pid": event["pid"], "ranks": event["ranks"]}
                self._record.note(agents=agents)

        for path, text in self._launch.files(self._job, start).items():
            atomic_write_text(Path(path), text)
        attempt = Attempt(
            self._launch.commands(self._job, start),
            note=note,
            say=self.say,
            times=(self._limits.grace_s, self._limits.stop_s),
            log=None if self._launch.is_ours else self._run_dir / LOGS_FOLDER / "all-ranks.log",
        )
        return attempt.run(self._wishes, wakeup)

    def _end(self, code: int) -> int:
        self.say(f"the run {describe_exit(code)}")
        self._record.note(state="ended", code=code, ended=now(), agents={})
        return code

    def _plan_start(self) -> Start | None:
        """Who takes part and where they meet; None where a stop was asked for, or too few hosts answer."""
        least = self._launch.min_nodes or (len(self._slots) if self._attempts == 0 else 1)
        until = time.monotonic() + self._launch.host_wait_s
        while True:
            self._wishes.take()
            if self._wishes.first is not None:
                return None
            answers = ask(self._launch.link, list(self._slots), answer_words(self._job, self._master()))
            alive = {host: slots for host, slots in self._slots.items() if answers[host].silence is None}
            silent = {host: answer.silence for host, answer in answers.items() if answer.silence}
            if len(alive) >= least:
                break
            said = "; ".join(f"{host} does not answer ({why})" for host, why in silent.items())
            if self._attempts == 0:
                raise UsageError(
                    f"{said}: mend that, leave it out of the hosts, or allow fewer with min_nodes=N"
                )
            if time.monotonic() > until:
                self.say(f"{said}: fewer than min_nodes={least} are left")
                return None
            time.sleep(_ASK_AGAIN_S)
        for host, why in silent.items():
            self.say(f"going on without {host}: {why}")
        if not self._can_meet({host: answers[host] for host in alive}):
            return None
        return self._meet(deal(alive, self._world_for(sum(alive.values()))), answers)

    def _master(self) -> str:
        """The rendezvous host while the first host is part of the job."""
        return self._launch.master or next(iter(self._slots))

    def _can_meet(self, answers: Mapping[str, Answer]) -> bool:
        """Whether name resolution allows a start. If not, another start would fail in the same way.

        Raises:
            UsageError: it does not at the first start.
        """
        is_first_there = next(iter(answers)) == next(iter(self._slots))
        fault = name_fault(answers, self._master(), self._launch.environment)
        if fault is None or not self._launch.is_ours or not is_first_there:
            return True
        if self._attempts == 0:
            raise UsageError(fault)
        self.say(fault)
        return False

    def _meet(self, dealt: Mapping[str, int], answers: Mapping[str, Answer]) -> Start:
        first = next(iter(dealt))
        port = answers[first].port if self._launch.port is None else self._launch.port + self._attempts
        address = self._launch.master if first == next(iter(self._slots)) else None
        return Start(dealt=dealt, master=f"{address or first}:{port}")

    def _world_for(self, slots: int) -> int:
        """The most processes that can share the batch; the room itself is asked, since it knows its rules."""
        if slots == sum(self._slots.values()):
            return slots  # checked before anything was started
        clips = self._job.counts.get("global_clips", slots)
        refusal = JobRefused(2, f"no number of processes up to {slots} can share the batch")
        for world in range(slots, 0, -1):
            if clips % world == 0:
                try:
                    self._ask_room(world)
                    return world
                except JobRefused as error:
                    refusal = error
        raise refusal

    def _ask_room(self, world: int) -> None:
        job, is_node = self._job, self._launch.is_node
        dry_run(job.argv, job.environment, processes=world, is_node=is_node, code=job.code)


def agent_commands(job: Job, start: Start, limits: Limits, link: Link) -> dict[str, list[str]]:
    """The command that runs our agent, for each host."""
    times = ("grace_s", "stop_s", "silence_s")
    waits = [word for name in times for word in (f"--{name.replace('_', '-')}", f"{getattr(limits, name):g}")]
    world, first_rank = sum(start.dealt.values()), 0
    commands = {}
    for host, processes in start.dealt.items():
        words = [
            job.python,
            "-P",
            job.script("supervisor/agent.py"),
            str(job.path),
            "--host",
            host,
            "--headed",
        ]
        words += ["--processes", str(processes), "--first-rank", str(first_rank), "--world", str(world)]
        commands[host] = link.command(host, [*words, "--master", start.master, *waits])
        first_rank += processes
    return commands


def answer_words(job: Job, master: str) -> list[str]:
    """What a host is asked with: it must have the interpreter and see the frozen code."""
    return [job.python, "-P", job.script("supervisor/agent.py"), "--answer", master]


def _catch(wishes: Wishes) -> int:
    """Note the signals that stop a run; a descriptor that can be read when one has come."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def note(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            wishes.signals.append(signal.SIGTERM if number == signal.SIGHUP else number)

    for number in (*_STOP_SIGNALS, signal.SIGCHLD):
        if number == signal.SIGCHLD or signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, note)
    return reader
