"""`launch ssh`: run a training on several hosts that this machine reaches by ssh.

The launcher starts one agent on each host, prints their output and requests stops. The run does not depend on
it. If the agent with the store is lost, the launcher starts new agents on the reachable hosts.
"""

import itertools
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinemae.data_tools.exit_codes import EXIT_CRASHED, EXIT_STUCK
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.cluster import SupervisedConfig
from kinemae.launch.job import Job
from kinemae.launch.record import AGENT_LOCK, Record, is_locked, request_stop
from kinemae.launch.supervisor.hosts import HostStatus, query_hosts, resolution_error
from kinemae.launch.supervisor.rank import catch_signals, log_line

_OPTIONS = (
    "BatchMode=yes",  # fail instead of asking for a password
    "ConnectTimeout=10",
    "ServerAliveInterval=5",  # detect a broken connection within 15 s
    "ServerAliveCountMax=3",
    "ControlPath=none",  # a shared connection would hide it
)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%@-]*")
_POLL_S, _RETRY_S, _MARGIN_S = 0.5, 5.0, 10.0
_REJOIN_S, _LONGEST_PAUSE_S = 10.0, 300.0  # between two attempts to start the agent of a lost host


@dataclass(frozen=True, kw_only=True)
class SshCluster(SupervisedConfig):
    """Cluster file of `launch ssh`: hosts that share code, data and run folders under the same paths.

    Attributes:
        hosts: processes by host, one for each GPU; the rendezvous is on the first host.
        ssh: further options of ssh, as [-p, "2222"]; they take precedence.
        master_addr: address of the rendezvous; None for the first host's name.
        master_port: port of the agents' store; None for a free port.
        min_nodes: the fewest hosts; None: all for the first start, half of them for a restart.
    """

    hosts: dict[str, int] = field(default_factory=dict)
    ssh: list[str] = field(default_factory=list)
    master_addr: str | None = None
    master_port: int | None = None
    min_nodes: int | None = None

    KIND = "ssh"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.hosts), "hosts", "contain processes by host, as in 'hosts={a: 8, b: 8}'", self.hosts
        )
        port = self.master_port
        require(port is None or 0 < port < 65536, "master_port", "be a port", port)
        for host, count in self.hosts.items():
            require(_HOST.fullmatch(host) is not None, "hosts", "contain host names or addresses", host)
            require(count > 0, f"hosts.{host}", "be at least 1", count)
        least, most = self.min_nodes, len(self.hosts)
        require(
            least is None or 1 <= least <= most, "min_nodes", f"be 1 to {most}, the number of hosts", least
        )

    def slots(self) -> dict[str, int]:
        return dict(self.hosts)

    @property
    def master(self) -> str:
        """Name or address of the rendezvous."""
        return self.master_addr or next(iter(self.hosts)).rpartition("@")[2]

    def least(self, *, is_first: bool) -> int:
        """The fewest hosts of the first start, or of a restart."""
        count = len(self.hosts)
        return self.min_nodes or (count if is_first else (count + 1) // 2)

    def on_host(self, host: str, words: Sequence[str]) -> list[str]:
        """See `SupervisedConfig.on_host`: ssh passes the words to a shell."""
        options = [word for option in _OPTIONS for word in ("-o", option)]
        return ["ssh", "-T", *self.ssh, *options, host, shlex.join(words)]

    def commands(self, job: Job) -> dict[str, list[str]]:
        return self.agents(job, "PORT", "1", dict.fromkeys(self.hosts, HostStatus()))

    def agents(
        self, job: Job, port: str, run_id: str, hosts: Mapping[str, HostStatus]
    ) -> dict[str, list[str]]:
        """The command that starts the agent of each host.

        Args:
            port: that of the store if none is configured.
            run_id: name of this set of agents.
            hosts: those that take part now; the first has the store.
        """
        order, first = list(self.hosts), next(iter(hosts))
        address = self.master if first == order[0] else address_of(first, hosts[first])
        shared = ["--nodes", f"{self.least(is_first=False)}:{len(order)}", "--agents", str(len(hosts))]
        shared += ["--rendezvous", f"{address}:{self.master_port or port}", "--run-id", run_id]
        shared += ["--store-node", str(order.index(first))]
        commands = {}
        for node, host in enumerate(order):
            own = ["--host", host, "--node", str(node), "--node-slots", str(self.hosts[host])]
            commands[host] = self.on_host(host, self.agent_command(job, *own, *shared))
        return commands

    def run(self, job: Job) -> int:
        return SshRun(self, job).run()


class SshRun:
    """A run on the hosts of a cluster, from its first agents to its end."""

    def __init__(self, cluster: SshCluster, job: Job):
        self._cluster, self._job, self._run_dir = cluster, job, Path(job.run_dir)
        self._record = Record(self._run_dir)
        self._signals: list[int] = []
        self._stop: int | None = None
        self._wakeup = catch_signals(self._signals)

    def run(self) -> int:
        """Start agents until the run has ended; return its exit code."""
        record, starts = self._record, 0
        for run_id in itertools.count(1):
            record.update(run_id=str(run_id))  # agents of an earlier one end
            hosts = self._find_hosts(is_first=run_id == 1)
            if self._stop is not None or hosts is None:
                code = EXIT_CRASHED if self._stop is None else 128 + self._stop
                record.end(code)
                return code
            attempt = record.read().get("attempt", 0)
            port = str(next(iter(hosts.values())).port)
            self._watch(self._cluster.agents(self._job, port, str(run_id), hosts), list(hosts))
            last = record.read()
            if last.get("state") == "ended":
                return int(last["code"])
            # The next agents decide about the attempt, unless they have not come to one.
            starts = 0 if last.get("attempt", 0) > attempt else starts + 1
            if self._stop is not None or starts > self._cluster.max_restarts:
                break
            log_line(self._run_dir, "the agents are lost: starting new ones on the reachable hosts")
        log_line(self._run_dir, "the agents have ended without a result: see their messages above")
        code = EXIT_STUCK if self._stop is None else 128 + self._stop
        record.end(code)
        return code

    def _find_hosts(self, *, is_first: bool) -> dict[str, HostStatus] | None:
        """Query the hosts; None after a stop request, or if too few of them are left."""
        cluster, job = self._cluster, self._job
        excluded = self._record.read().get("history", {}).get("excluded", [])
        least = cluster.least(is_first=is_first)
        until = time.monotonic() + cluster.host_wait_s
        script = [job.python, "-P", job.script("supervisor/agent.py"), "--query", job.run_dir]
        queries = {
            host: cluster.on_host(host, [*cluster.container, *script, host, cluster.master])
            for host in cluster.hosts
            if host not in excluded
        }
        while True:
            statuses = query_hosts(queries)
            errors = {host: status.error for host, status in statuses.items() if status.error}
            self._take_signals()
            if len(statuses) - len(errors) >= least or self._stop is not None:
                break
            problem = "; ".join(f"{host} is unreachable ({error})" for host, error in errors.items())
            if is_first:
                raise ConfigError(
                    f"{problem}; fix: repair it, remove it from hosts, or allow fewer hosts with min_nodes=N"
                )
            if time.monotonic() > until:
                log_line(self._run_dir, f"{problem}: fewer than min_nodes={least} hosts are left")
                return None
            time.sleep(_RETRY_S)
        for host, error in errors.items():
            log_line(self._run_dir, f"continuing without {host}: {error}")
        hosts = {host: status for host, status in statuses.items() if host not in errors}
        problem = resolution_error(hosts, cluster.master, cluster.environment) or ""
        if problem and next(iter(hosts)) == next(iter(cluster.hosts)):
            if is_first:
                raise ConfigError(problem)
            log_line(self._run_dir, problem)  # perhaps for a moment: the agents try for minutes
        return hosts

    def _watch(self, commands: Mapping[str, list[str]], hosts: Sequence[str]) -> None:
        """Start the agents and return when they have ended; start those of lost hosts again."""
        agents = {host: _start(commands[host]) for host in hosts}
        pauses = dict.fromkeys(commands, _REJOIN_S)
        again = {host: time.monotonic() + _REJOIN_S for host in commands}
        lost_s: float | None = None
        limit_s = self._cluster.heartbeat_timeout_s + self._cluster.grace_s + _MARGIN_S
        while True:
            if select.select([self._wakeup], [], [], _POLL_S)[0]:
                os.read(self._wakeup, 4096)
            self._take_signals()
            alive = [host for host, agent in agents.items() if agent.poll() is None]
            last = self._record.read()
            has_store = hosts[0] in alive or is_locked(self._run_dir, AGENT_LOCK)
            lost_s = None if has_store and last.get("state") != "ended" else lost_s or time.monotonic()
            if lost_s is not None:
                if not alive or time.monotonic() > lost_s + limit_s:
                    break
                continue
            for host in commands.keys() - set(alive) - set(last.get("history", {}).get("excluded", [])):
                if host != hosts[0] and time.monotonic() > again[host]:
                    agents[host] = _start(commands[host])
                    pauses[host] = min(2 * pauses[host], _LONGEST_PAUSE_S)
                    again[host] = time.monotonic() + pauses[host]
        for agent in agents.values():
            agent.kill()
            agent.wait()

    def _take_signals(self) -> None:
        """Pass received signals to the agents; a second SIGINT kills the processes."""
        while self._signals:
            number = self._signals.pop(0)
            is_second = number == signal.SIGINT and self._stop is not None
            try:
                request_stop(self._run_dir, signal.SIGKILL if is_second else number)
                self._stop = self._stop or number
            except ConfigError as error:
                log_line(self._run_dir, str(error))


def address_of(host: str, status: HostStatus) -> str:
    """The address of a host that replaces the first one; an alias of ssh is known to ssh only."""
    name = host.rpartition("@")[2]
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return status.own_address or name
    return name


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start an agent. It survives this process: its session is its own, and it reads nothing."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
