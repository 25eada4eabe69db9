"""`launch ssh`: supervise a run on several hosts that this machine reaches by ssh."""

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.cluster import read_cluster, split_words
from kinemae.launch.supervisor.start import add_launcher, start
from kinemae.launch.supervisor.supervise import LaunchSpec, SupervisorConfig

_OPTIONS = (
    "BatchMode=yes",  # fail instead of asking for a password
    "ConnectTimeout=10",
    "ServerAliveInterval=5",  # detect a broken connection within 15 s
    "ServerAliveCountMax=3",
    "ControlPath=none",  # a shared connection would hide it
)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%@-]*")


@dataclass(frozen=True, kw_only=True)
class SshCluster(SupervisorConfig):
    """Cluster file of `launch ssh`: hosts that share code, data and run folders under the same paths.

    Attributes:
        hosts: processes by host, one for each GPU; the rendezvous is on the first host.
        hostfile: lines of `HOST slots=N`, as for DeepSpeed; an alternative to `hosts`.
        ssh: further options of ssh, as [-p, "2222"]; they take precedence.
        master_addr: address of the rendezvous; None for the first host's name.
        master_port: port of the first start; each restart takes the next one. None for a free port.
        link_gbit: network speed between the hosts, for `launch doctor` to compare with; None if unknown.
        min_nodes, host_wait_s: see `LaunchSpec`.
    """

    hosts: dict[str, int] = field(default_factory=dict)
    hostfile: str | None = None
    ssh: list[str] = field(default_factory=list)
    master_addr: str | None = None
    master_port: int | None = None
    link_gbit: float | None = None
    min_nodes: int | None = None
    host_wait_s: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("hosts", "hostfile") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(
                "expected the hosts as one of hostfile=FILE and 'hosts={a: 8, b: 8}' (processes by host), "
                f"got {' and '.join(given) or 'neither'}"
            )
        port, slots = self.master_port, self.slots()
        require(port is None or 0 < port < 65536 - self.max_restarts, "master_port", "be a port", port)
        require(self.link_gbit is None or self.link_gbit > 0, "link_gbit", "be above 0", self.link_gbit)
        for host, count in slots.items():
            require(_HOST.fullmatch(host) is not None, "hosts", "contain host names or addresses", host)
            require(count > 0, f"hosts.{host}", "be at least 1", count)
        least, most = self.min_nodes, len(slots)
        require(
            least is None or 1 <= least <= most, "min_nodes", f"be 1 to {most}, the number of hosts", least
        )
        require(self.host_wait_s >= 0, "host_wait_s", "be 0 or more seconds", self.host_wait_s)

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
        """See `Transport.command`."""
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


def add_to(parsers: Any) -> None:
    """Register `ssh`."""
    add_launcher(parsers, "ssh", run_ssh, "ssh CLUSTER.yaml -- pretrain CONFIG run_dir=RUN")


def run_ssh(arguments: argparse.Namespace) -> int:
    """Run the command."""
    return start(spec_of(read_cluster(SshCluster, *split_words(arguments.words))), arguments)


def spec_of(cluster: SshCluster) -> LaunchSpec:
    """The launch specification of hosts behind ssh."""
    slots = cluster.slots()
    return LaunchSpec(
        kind="ssh",
        slots=slots,
        transport=SshTransport(cluster.ssh),
        config=cluster,
        master=cluster.master_addr or next(iter(slots)).rpartition("@")[2],
        port=cluster.master_port,
        min_nodes=cluster.min_nodes,
        host_wait_s=cluster.host_wait_s,
        trains_here=False,
    )
