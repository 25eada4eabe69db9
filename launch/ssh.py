"""`launch ssh`: run a training on several hosts that this machine reaches by ssh.

The launcher starts one agent on each host, prints their output and requests stops. The run does not depend on
it. If the agent with the store is lost, the launcher starts new agents on the reachable hosts.
"""

import argparse
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
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_CRASHED
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.cluster import read_cluster, split_words
from kinemae.launch.job import Job
from kinemae.launch.record import AGENT_LOCK, Record, is_locked, request_stop
from kinemae.launch.supervisor.hosts import HostStatus, query_hosts, resolution_error
from kinemae.launch.supervisor.rank import catch_signals, log_line
from kinemae.launch.supervisor.start import SupervisedConfig, add_launcher, agent_command, start

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
        hostfile: lines of `HOST slots=N`, as for DeepSpeed; an alternative to `hosts`.
        ssh: further options of ssh, as [-p, "2222"]; they take precedence.
        master_addr: address of the rendezvous; None for the first host's name.
        master_port: port of the agents' store; None for a free port.
        min_nodes: the fewest hosts; None: all for the first start, half of them for a restart.
    """

    hosts: dict[str, int] = field(default_factory=dict)
    hostfile: str | None = None
    ssh: list[str] = field(default_factory=list)
    master_addr: str | None = None
    master_port: int | None = None
    min_nodes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("hosts", "hostfile") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(
                "expected the hosts as one of hostfile=FILE and 'hosts={a: 8, b: 8}' (processes by host), "
                f"got {' and '.join(given) or 'neither'}"
            )
        port, slots = self.master_port, self.slots()
        require(port is None or 0 < port < 65536, "master_port", "be a port", port)
        for host, count in slots.items():
            require(_HOST.fullmatch(host) is not None, "hosts", "contain host names or addresses", host)
            require(count > 0, f"hosts.{host}", "be at least 1", count)
        least, most = self.min_nodes, len(slots)
        require(
            least is None or 1 <= least <= most, "min_nodes", f"be 1 to {most}, the number of hosts", least
        )

    def slots(self) -> dict[str, int]:
        """Processes by host, in the order of the file."""
        return dict(self.hosts) if self.hostfile is None else read_hostfile(Path(self.hostfile))


class SshTransport:
    """Runs commands by ssh, which passes them to a shell: paths are quoted.

    The job's own arguments travel in `job.json`.
    """

    def __init__(self, options: Sequence[str] = ()):
        self._words = ["ssh", "-T", *options, *(word for option in _OPTIONS for word in ("-o", option))]

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """The local command that executes `words` on a host."""
        return [*self._words, host, shlex.join(words)]


def read_hostfile(path: Path) -> dict[str, int]:
    """Read processes by host from lines of `HOST slots=N`; `#` begins a comment.

    Raises:
        ValueError: the file cannot be read, or a line has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read hostfile={path}: {error}") from error
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        match = re.fullmatch(r"slots=(\d+)", words[1]) if len(words) == 2 else None
        if match is None:
            raise ConfigError(f"{path}, line {number}: expected `HOST slots=N`, got {line.strip()!r}")
        if words[0] in slots:
            raise ConfigError(f"{path}, line {number}: expected each host once, got {words[0]} again")
        slots[words[0]] = int(match[1])
    require(bool(slots), "hostfile", "contain at least one host", str(path))
    return slots


class SshLaunch:
    """See `Launch`."""

    kind, trains_here = "ssh", False

    def __init__(self, config: SshCluster):
        self.config: SupervisedConfig = config
        self._cluster = config
        self.slots: Mapping[str, int] = config.slots()
        self._master = config.master_addr or next(iter(self.slots)).rpartition("@")[2]
        self._transport = SshTransport(config.ssh)
        self._signals: list[int] = []
        self._stop: int | None = None
        self._wakeup = -1

    def commands(
        self, job: Job, port: str, run_id: str = "1", hosts: Mapping[str, HostStatus] | None = None
    ) -> dict[str, list[str]]:
        """See `Launch.commands`.

        Args:
            run_id: name of this set of agents.
            hosts: those that take part, all by default; the first has the store.
        """
        order = list(self.slots)
        first = next(iter(hosts or order))
        address = self._master if hosts is None or first == order[0] else _address_of(first, hosts[first])
        least = self._least(is_first=False)
        shared = ["--nodes", f"{least}:{len(order)}", "--agents", str(len(hosts or order))]
        shared += ["--rendezvous", f"{address}:{self._cluster.master_port or port}", "--run-id", run_id]
        shared += ["--store-node", str(order.index(first))]
        commands = {}
        for node, host in enumerate(order):
            own = ["--host", host, "--node", str(node), "--node-slots", str(self.slots[host])]
            command = agent_command(self.config.container, job, *own, *shared)
            commands[host] = self._transport.command(host, command)
        return commands

    def run(self, job: Job) -> int:
        """See `Launch.run`.

        Raises:
            ValueError: too few hosts are reachable at the first start, or they cannot connect.
        """
        self._wakeup = catch_signals(self._signals, keep_ignored=True)  # as under nohup
        record, run_id, starts = Record(Path(job.run_dir)), 0, 0
        while True:
            run_id += 1
            record.update(run_id=str(run_id))  # agents of an earlier one end
            hosts = self._find_hosts(job, is_first=run_id == 1)
            if self._stop is not None or hosts is None:
                code = EXIT_CRASHED if self._stop is None else 128 + self._stop
                record.end(code)
                return code
            attempt = record.read().get("attempt", 0)
            port = str(next(iter(hosts.values())).port)
            commands = self.commands(job, port, str(run_id), hosts)
            self._watch(job, commands, list(hosts))
            last = record.read()
            if last.get("state") == "ended":
                return int(last["code"])
            # The next agents decide about the attempt, unless they have not come to one.
            starts = 0 if last.get("attempt", 0) > attempt else starts + 1
            if self._stop is not None or starts > self.config.max_restarts:
                raise ConfigError("the agents ended without a result; fix: see their messages above")
            log_line(Path(job.run_dir), "the agents are lost: starting new ones on the reachable hosts")

    def _least(self, *, is_first: bool) -> int:
        """The fewest hosts of the first start, or of a restart."""
        return self._cluster.min_nodes or (len(self.slots) if is_first else (len(self.slots) + 1) // 2)

    def _find_hosts(self, job: Job, *, is_first: bool) -> dict[str, HostStatus] | None:
        """Query the hosts; None after a stop request, or if too few of them are left."""
        excluded = Record(Path(job.run_dir)).read().get("history", {}).get("excluded", [])
        least = self._least(is_first=is_first)
        until = time.monotonic() + self.config.host_wait_s
        script = [job.python, "-P", job.script("supervisor/agent.py"), "--query", job.run_dir]
        while True:
            queries = {
                host: self._transport.command(host, [*self.config.container, *script, host, self._master])
                for host in self.slots
                if host not in excluded
            }
            statuses = query_hosts(queries)
            errors = {host: status.error for host, status in statuses.items() if status.error}
            self._take_signals(job)
            if len(statuses) - len(errors) >= least or self._stop is not None:
                break
            problem = "; ".join(f"{host} is unreachable ({error})" for host, error in errors.items())
            if is_first:
                raise ConfigError(
                    f"{problem}; fix: repair it, remove it from hosts, or allow fewer hosts with min_nodes=N"
                )
            if time.monotonic() > until:
                log_line(Path(job.run_dir), f"{problem}: fewer than min_nodes={least} hosts are left")
                return None
            time.sleep(_RETRY_S)
        for host, error in errors.items():
            log_line(Path(job.run_dir), f"continuing without {host}: {error}")
        hosts = {host: status for host, status in statuses.items() if host not in errors}
        problem = resolution_error(hosts, self._master, self.config.environment) or ""
        if problem and next(iter(hosts)) == next(iter(self.slots)):
            raise ConfigError(problem)
        return hosts

    def _watch(self, job: Job, commands: Mapping[str, list[str]], hosts: Sequence[str]) -> None:
        """Start the agents and return when they have ended; start those of lost hosts again."""
        run_dir, record = Path(job.run_dir), Record(Path(job.run_dir))
        agents = {host: _start(commands[host]) for host in hosts}
        pauses = dict.fromkeys(commands, _REJOIN_S)
        again = {host: time.monotonic() + _REJOIN_S for host in commands}
        lost_s: float | None = None
        limit_s = self.config.heartbeat_timeout_s + self.config.grace_s + _MARGIN_S
        while True:
            if select.select([self._wakeup], [], [], _POLL_S)[0]:
                os.read(self._wakeup, 4096)
            self._take_signals(job)
            alive = [host for host, agent in agents.items() if agent.poll() is None]
            last = record.read()
            has_store = hosts[0] in alive or is_locked(run_dir, AGENT_LOCK)
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

    def _take_signals(self, job: Job) -> None:
        """Pass received signals to the agents; a second SIGINT kills the processes."""
        while self._signals:
            number = self._signals.pop(0)
            is_second = number == signal.SIGINT and self._stop is not None
            try:
                request_stop(Path(job.run_dir), signal.SIGKILL if is_second else number)
                self._stop = self._stop or number
            except ConfigError as error:
                log_line(Path(job.run_dir), str(error))


def _address_of(host: str, status: HostStatus) -> str:
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


def add_to(parsers: Any) -> None:
    """Register `ssh`."""
    text = "run a training on several hosts by ssh, with restarts on the reachable hosts after crashes"
    add_launcher(parsers, "ssh", text, run_ssh, "ssh CLUSTER.yaml -- pretrain CONFIG run_dir=RUN")


def run_ssh(arguments: argparse.Namespace) -> int:
    """Run the command."""
    return start(SshLaunch(read_cluster(SshCluster, *split_words(arguments.words))), arguments)
