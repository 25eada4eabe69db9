"""`launch ssh`: a run on several hosts that this machine reaches by ssh, supervised from here."""

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kinemae.launch.cluster import UsageError, read_cluster, require, split_words
from kinemae.launch.deepspeed_launcher import check_names, deepspeed_commands, hostfile
from kinemae.launch.supervisor.start import add_launcher, start
from kinemae.launch.supervisor.supervise import Launch, Limits, agent_commands

_OPTIONS = (
    "BatchMode=yes",  # a question would wait for ever
    "ConnectTimeout=10",
    "ServerAliveInterval=5",  # a cut link is noticed within 15 s
    "ServerAliveCountMax=3",
    "ControlPath=none",  # one of several on a shared connection would not notice
)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%@-]*")


@dataclass(frozen=True, kw_only=True)
class SshCluster(Limits):
    """Hosts behind ssh that share the folders of code, data and runs under the same paths.

    Attributes:
        hostfile: lines of `HOST slots=N`, as DeepSpeed has them; or else
        hosts: processes (one for each GPU) by host. The processes meet on the first.
        ssh: further options for ssh, as [-p, "2222"]; they come first, so they win.
        environment: set for each process; nothing of this machine's environment gets there.
        container: words before the interpreter, as in [apptainer, exec, --nv, kinemae.sif].
        python: the interpreter on the hosts; None: the path of the one here.
        master_addr: where the processes meet; None: the first host by its name.
        master_port: the first port; each restart takes the next. None: one that is free there.
        through: `agent` is ours; `deepspeed` is DeepSpeed's launcher over pdsh, which knows no stop with a
            checkpoint that takes more than 30 s and hides how a process ended.
        link_gbit: what the network between hosts gives, for `launch doctor`; None: what the drivers say.
        min_nodes, host_wait_s: see `Launch`.
    """

    hostfile: str | None = None
    hosts: dict[str, int] = field(default_factory=dict)
    ssh: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    container: list[str] = field(default_factory=list)
    python: str | None = None
    master_addr: str | None = None
    master_port: int | None = None
    through: Literal["agent", "deepspeed"] = "agent"
    link_gbit: float | None = None
    min_nodes: int | None = None
    host_wait_s: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("hostfile", "hosts") if getattr(self, name)]
        if len(given) != 1:
            raise UsageError(
                "name the hosts by one of hostfile=FILE and 'hosts={a: 8, b: 8}' (processes by host), "
                f"got {' and '.join(given) or 'neither'}"
            )
        port = self.master_port
        require(port is None or 0 < port < 65536 - self.max_restarts, "master_port", "be a port", port)
        require(self.link_gbit is None or self.link_gbit > 0, "link_gbit", "be above 0", self.link_gbit)
        slots = self.slots()
        for host, count in slots.items():
            require(_HOST.fullmatch(host) is not None, "hosts", "name hosts by name or address", host)
            require(count > 0, f"hosts.{host}", "be at least 1", count)
        require(
            self.min_nodes is None or 1 <= self.min_nodes <= len(slots),
            "min_nodes",
            f"be 1 to {len(slots)}, the number of hosts",
            self.min_nodes,
        )
        require(self.host_wait_s >= 0, "host_wait_s", "be 0 or more seconds", self.host_wait_s)

    def slots(self) -> dict[str, int]:
        """Processes by host, in the order of the file."""
        return dict(self.hosts) if self.hostfile is None else read_hostfile(Path(self.hostfile))


class Ssh:
    """The link to hosts: ssh hands its last words to a shell there, so they are quoted for one.

    What is quoted are paths and numbers of ours; the job's own arguments travel in `job.json`.
    """

    def __init__(self, options: Sequence[str] = ()):
        self.words = ["ssh", "-T", *options, *(word for option in _OPTIONS for word in ("-o", option))]

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """See `Link.command`."""
        return [*self.words, host, shlex.join(words)]


def read_hostfile(path: Path) -> dict[str, int]:
    """Processes by host from lines of `HOST slots=N`; `#` begins a comment.

    Raises:
        UsageError: it cannot be read, or a line is not of that form; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read hostfile={path}: {error}") from error
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        match = re.fullmatch(r"slots=(\d+)", words[1]) if len(words) == 2 else None
        if match is None:
            raise UsageError(f"{path}, line {number}: expected `HOST slots=N`, got {line.strip()!r}")
        if words[0] in slots:
            raise UsageError(f"{path}, line {number}: {words[0]} stands twice; add up its slots in one line")
        slots[words[0]] = int(match[1])
    require(bool(slots), "hostfile", "name at least one host", str(path))
    return slots


def add_to(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `ssh`."""
    add_launcher(
        parsers,
        "ssh",
        run_ssh,
        about="processes on several hosts, by ssh",
        description="Run a training on hosts behind ssh; after a crash, again on those that are left.",
        epilog="example:\n  kinemae launch ssh configs/cluster/ssh.yaml -- pretrain CONFIG run_dir=RUN",
    )


def run_ssh(arguments: argparse.Namespace) -> int:
    """The command."""
    return start(launch_of(read_cluster(SshCluster, *split_words(arguments.words))), arguments)


def launch_of(cluster: SshCluster) -> Launch:
    """How a cluster behind ssh runs a job."""
    link, slots = Ssh(cluster.ssh), cluster.slots()
    is_ours = cluster.through == "agent"
    if not is_ours:
        check_names(list(slots), cluster.ssh)
    return Launch(
        kind="ssh",
        slots=slots,
        link=link,
        commands=(lambda job, planned: agent_commands(job, planned, cluster, link))
        if is_ours
        else (lambda job, planned: deepspeed_commands(job, planned, cluster.ssh)),
        files=(lambda job, planned: {}) if is_ours else hostfile,
        limits=cluster,
        min_nodes=cluster.min_nodes,
        host_wait_s=cluster.host_wait_s,
        environment=cluster.environment,
        python=cluster.python,
        container=cluster.container,
        master=cluster.master_addr or next(iter(slots)).rpartition("@")[2],
        port=cluster.master_port,
        is_node=False,
        is_ours=is_ours,
    )
