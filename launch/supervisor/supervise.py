"""Supervise a job: start it, and restart it after a crash on the hosts that are reachable.

Fault tolerance by elastic restarts: a restart is a new set of processes at a new port that resumes from the
newest checkpoint. `exit_codes.py` lists the restartable exit codes. The restart count begins anew after each
new checkpoint.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_CRASHED, describe_exit, is_restartable
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.job import LOGS_FOLDER, Job, JobRefused, check_job
from kinemae.launch.record import Record, now, saved_steps, take_stop_request
from kinemae.launch.supervisor.attempt import Attempt, StopRequests
from kinemae.launch.supervisor.hosts import (
    HostStatus,
    Transport,
    assign_processes,
    query_hosts,
    resolution_error,
)
from kinemae.launch.supervisor.rank import catch_signals, write_out

_RETRY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class SupervisorConfig:
    """Keys of `launch local` and `launch ssh` cluster files.

    Attributes:
        max_restarts: restarts in a row without a new checkpoint.
        grace_s: from SIGTERM to SIGKILL for the other processes after a failure.
        stop_s: the same after a stop; the processes write a checkpoint in this time.
        heartbeat_timeout_s: an agent without a heartbeat of the launcher for this time ends.
        environment: variables of each process.
        container: command prefix of each process, as in [apptainer, exec, --nv, IMAGE].
        python: the interpreter of the processes; None for the current one.
    """

    max_restarts: int = 3
    grace_s: float = 20.0
    stop_s: float = 120.0
    heartbeat_timeout_s: float = 30.0
    environment: dict[str, str] = field(default_factory=dict)
    container: list[str] = field(default_factory=list)
    python: str | None = None

    def __post_init__(self) -> None:
        require(self.max_restarts >= 0, "max_restarts", "be 0 or more", self.max_restarts)
        require(self.grace_s > 0, "grace_s", "be more than 0 seconds", self.grace_s)
        require(self.stop_s > 0, "stop_s", "be more than 0 seconds", self.stop_s)
        limit_s = self.heartbeat_timeout_s
        require(limit_s >= 10, "heartbeat_timeout_s", "be at least 10 (a heartbeat comes every 3 s)", limit_s)


@dataclass(frozen=True, kw_only=True)
class LaunchSpec:
    """Hosts, rendezvous and config of a supervised run.

    Attributes:
        slots: the most processes of each host; the rendezvous is on the first host.
        master: address of the rendezvous on the first host.
        port: port of the first start; each restart takes the next one. None for a free port.
        min_nodes: the fewest hosts; None: all for the first start, one for a restart.
        host_wait_s: how long a restart waits for `min_nodes` hosts.
        trains_here: whether this machine is one of the hosts.
    """

    kind: str
    slots: Mapping[str, int]
    transport: Transport
    config: SupervisorConfig
    master: str
    port: int | None = None
    min_nodes: int | None = None
    host_wait_s: float = 60.0
    trains_here: bool = True


@dataclass(frozen=True, kw_only=True)
class StartPlan:
    """The processes of each host, and their rendezvous as HOST:PORT."""

    processes: Mapping[str, int]
    master: str

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return sum(self.processes.values())


class Supervisor:
    """Runs a job with restarts."""

    def __init__(self, spec: LaunchSpec, job: Job, record: Record):
        self._spec, self._job, self._record = spec, job, record
        self._config = spec.config
        self._run_dir = Path(job.run_dir)
        self._stops = StopRequests(poll=lambda: take_stop_request(self._run_dir))
        self._attempts = 0

    def run(self) -> int:
        """Run the job until its final end; return its exit code.

        Raises:
            ValueError: too few hosts are reachable at the first start.
            JobRefused: no number of processes on the reachable hosts can share the batch.
        """
        wakeup = catch_signals(self._stops.signals, keep_ignored=True)  # as under nohup
        restarts, newest = 0, self._newest_step()
        most = self._config.max_restarts
        while True:
            code = self._attempt(wakeup)
            if not is_restartable(code) or self._stops.first is not None:
                return self._end(code)
            step = self._newest_step()
            restarts = 1 if step != newest else restarts + 1
            newest = step
            if restarts > most:
                self.log(f"giving up after {most} restarts without a new checkpoint (max_restarts)")
                return self._end(code)
            self.log(f"restart {restarts} of {most}, from {'the start' if step is None else f'step {step}'}")

    def log(self, text: str) -> None:
        """Print a line on the terminal and append it to RUN/logs/launch.log."""
        line = f"{time.strftime('%H:%M:%S')} launch: {text}\n".encode()
        write_out(2, line)
        try:
            with (self._run_dir / LOGS_FOLDER / "launch.log").open("ab") as file:
                file.write(line)
        except OSError:
            pass

    def _newest_step(self) -> int | None:
        return max(saved_steps(self._run_dir), default=None)

    def _attempt(self, wakeup: int) -> int:
        plan = self._plan_start()
        if plan is None:
            return 128 + self._stops.first if self._stops.first else EXIT_CRASHED
        self._attempts += 1
        hosts = ", ".join(f"{count} on {host}" for host, count in plan.processes.items())
        self.log(f"start {self._attempts}: {plan.world_size} processes ({hosts}), rendezvous {plan.master}")
        values: dict[str, Any] = {"attempt": self._attempts, "hosts": dict(plan.processes)}
        self._record.update(state="running", master=plan.master, agents={}, **values)
        agents: dict[str, Any] = {}

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "started":
                agents[event["host"]] = {"pid": event["pid"], "ranks": event["ranks"]}
                self._record.update(agents=agents)
            elif event["event"] == "cause":
                self._record.update(failure={**event, "attempt": self._attempts})

        commands = agent_commands(self._spec, self._job, plan)
        config = self._config
        attempt = Attempt(
            commands, on_event=on_event, log=self.log, grace_s=config.grace_s, stop_s=config.stop_s
        )
        return attempt.run(self._stops, wakeup)

    def _end(self, code: int) -> int:
        self.log(f"the run {describe_exit(code)}")
        self._record.update(state="ended", code=code, ended=now(), agents={})
        return code

    def _plan_start(self) -> StartPlan | None:
        """Choose hosts and rendezvous; None after a stop request, or if too few hosts are reachable."""
        slots = self._spec.slots
        least = self._spec.min_nodes or (len(slots) if self._attempts == 0 else 1)
        until = time.monotonic() + self._spec.host_wait_s
        while True:
            self._stops.take()
            if self._stops.first is not None:
                return None
            words = [self._job.python, "-P", self._job.script("supervisor/agent.py"), "--query"]
            statuses = query_hosts(self._spec.transport, list(slots), [*words, self._spec.master])
            errors = {host: status.error for host, status in statuses.items() if status.error}
            if len(slots) - len(errors) >= least:
                break
            problem = "; ".join(f"{host} is unreachable ({error})" for host, error in errors.items())
            if self._attempts == 0:
                raise ConfigError(
                    f"{problem}; fix: repair it, remove it from hosts, or allow fewer hosts with min_nodes=N"
                )
            if time.monotonic() > until:
                self.log(f"{problem}: fewer than min_nodes={least} hosts are left")
                return None
            time.sleep(_RETRY_S)
        for host, error in errors.items():
            self.log(f"continuing without {host}: {error}")
        reachable = {host: status for host, status in statuses.items() if host not in errors}
        if not self._can_resolve(reachable):
            return None
        return self._start_on(reachable)

    def _can_resolve(self, statuses: Mapping[str, HostStatus]) -> bool:
        """Check that name resolution allows a start; a restart would fail in the same way.

        Raises:
            ValueError: it does not at the first start.
        """
        has_first_host = next(iter(statuses)) == next(iter(self._spec.slots))
        error = resolution_error(statuses, self._spec.master, self._config.environment)
        if error is None or not has_first_host:
            return True
        if self._attempts == 0:
            raise ConfigError(error)
        self.log(error)
        return False

    def _start_on(self, statuses: Mapping[str, HostStatus]) -> StartPlan:
        slots = {host: self._spec.slots[host] for host in statuses}
        processes = assign_processes(slots, self._world_size(sum(slots.values())))
        first = next(iter(processes))
        port = statuses[first].port if self._spec.port is None else self._spec.port + self._attempts
        address = self._spec.master if first == next(iter(self._spec.slots)) else first
        return StartPlan(processes=processes, master=f"{address}:{port}")

    def _world_size(self, slots: int) -> int:
        """The most processes that can share the batch, found by dry runs of the job."""
        if slots == sum(self._spec.slots.values()):
            return slots  # the first dry run has checked it
        clips = self._job.summary.get("global_clips", slots)
        refusal = JobRefused(EXIT_CONFIG, f"no number of processes up to {slots} can share the batch")
        job, trains_here = self._job, self._spec.trains_here
        for size in range(slots, 0, -1):
            if clips % size == 0:
                try:
                    check_job(
                        job.argv, job.environment, world_size=size, trains_here=trains_here, code=job.code
                    )
                    return size
                except JobRefused as error:
                    refusal = error
        raise refusal


def agent_commands(spec: LaunchSpec, job: Job, plan: StartPlan) -> dict[str, list[str]]:
    """The command that runs the agent of each host."""
    waits: list[str] = []
    for name in ("grace_s", "stop_s", "heartbeat_timeout_s"):
        waits += [f"--{name.replace('_', '-')}", f"{getattr(spec.config, name):g}"]
    commands, first_rank = {}, 0
    for host, processes in plan.processes.items():
        words = [job.python, "-P", job.script("supervisor/agent.py"), str(job.path), "--supervised"]
        words += ["--host", host, "--processes", str(processes), "--first-rank", str(first_rank)]
        words += ["--world-size", str(plan.world_size), "--master", plan.master, *waits]
        commands[host] = spec.transport.command(host, words)
        first_rank += processes
    return commands
