"""From a cluster file to the nodes that the doctor checks."""

import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.cluster import read_cluster
from kinemae.launch.doctor.probes import probe_words
from kinemae.launch.local import HOST, LocalCluster
from kinemae.launch.slurm.cluster import SlurmCluster, seconds_of
from kinemae.launch.slurm.queue import cancel_by_name, output_of, partition_limit, pending_reason
from kinemae.launch.ssh import SshCluster, SshTransport

_QUEUE_S, _MOST_S = 120.0, 300


@dataclass(frozen=True, kw_only=True)
class Target:
    """The nodes of a cluster as a job would use them.

    Attributes:
        names: of the nodes; empty if a scheduler chooses them.
        processes: of each node.
        commands: the commands that start the probes, and the nodes of each.
        environment: variables from the cluster file.
        master: returns the rendezvous address for the name of the first node that replies.
        master_port: port of the rendezvous; 0 for any free port.
        link_gbit: expected network speed; None for the drivers' values.
        start_s: time limit for the start of a probe, including a scheduler's queue.
        pending_reason: returns the scheduler's reason if probes have not started in time.
        end: called at the end; cancels the doctor's jobs.
    """

    names: list[str]
    processes: list[int]
    commands: Sequence[tuple[Sequence[str], Sequence[int]]]
    environment: Mapping[str, str]
    master: Callable[[str], str]
    master_port: int = 0
    link_gbit: float | None = None
    start_s: float = 30.0
    pending_reason: Callable[[], str] | None = None
    end: Callable[[], None] | None = None


def _local(file: str | None, overrides: list[str]) -> Target:
    cluster = read_cluster(LocalCluster, file, overrides)
    command = [*cluster.container, *probe_words(cluster.python or sys.executable, 0)]
    return Target(
        names=[HOST],
        processes=[cluster.processes],
        commands=[(command, [0])],
        environment=cluster.environment,
        master=lambda name: "127.0.0.1",
    )


def _ssh(file: str | None, overrides: list[str]) -> Target:
    cluster = read_cluster(SshCluster, file, overrides)
    transport, slots, python = SshTransport(cluster.ssh), cluster.slots(), cluster.python or sys.executable
    first, address = next(iter(slots)), cluster.master_addr
    return Target(
        names=list(slots),
        processes=list(slots.values()),
        commands=[
            (transport.command(host, [*cluster.container, *probe_words(python, node)]), [node])
            for node, host in enumerate(slots)
        ],
        environment=cluster.environment,
        # As `launch ssh`: without the first host, the rendezvous is on the next one.
        master=lambda name: address if address and name == first else name.rpartition("@")[2],
        master_port=cluster.master_port or 0,
        link_gbit=cluster.link_gbit,
    )


def _slurm(file: str | None, overrides: list[str]) -> Target:
    """One step with a task on each node, in the current allocation or in a new one."""
    cluster = read_cluster(SlurmCluster, file, overrides)
    name = f"doctor-{os.getpid()}-{secrets.token_hex(3)}"  # identifies the job, to cancel it
    given = {
        "job-name": name,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": _time(cluster),
        "nodes": str(cluster.nodes),
        "ntasks": str(cluster.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(cluster.processes_per_node * cluster.cpus_per_process),
        "gres": cluster.gres(),
        "mem": cluster.memory,
    }
    options = [f"--{name}={value}" for name, value in given.items() if value]
    options += cluster.pyxis_options() + cluster.extra
    probe = [*cluster.container_command(), *probe_words(cluster.python or sys.executable, None)]
    return Target(
        names=[],
        processes=[cluster.processes_per_node] * cluster.nodes,
        commands=[(["srun", *options, *probe], list(range(cluster.nodes)))],
        environment=cluster.environment,
        master=_slurm_address,
        link_gbit=cluster.link_gbit,
        start_s=_QUEUE_S,
        pending_reason=lambda: pending_reason(name, cluster.partition),
        end=lambda: cancel_by_name(name),
    )


def _time(cluster: SlurmCluster) -> str:
    """Five minutes, or less if the cluster file or the partition allows less."""
    limits = [limit for limit in (seconds_of(cluster.time), partition_limit(cluster.partition)) if limit]
    limit = min([_MOST_S, *limits])
    return "5" if limit == _MOST_S else f"{limit // 60}:{limit % 60:02d}"


def _slurm_address(name: str) -> str:
    """A node's NodeAddr, which a job uses for the rendezvous; its name without one."""
    match = re.search(r"\bNodeAddr=(\S+)", output_of("scontrol", "--oneliner", "show", "node", name))
    return match[1] if match else name


KINDS: Mapping[str, Callable[[str | None, list[str]], Target]] = {
    "local": _local,
    "ssh": _ssh,
    "slurm": _slurm,
}


def target_of(kind: str, file: str | None, overrides: list[str]) -> Target:
    """The nodes of a cluster file.

    Raises:
        ValueError: the file is wrong, or the program that starts the probes is not installed.
    """
    target = KINDS[kind](file, overrides)
    for command, _ in target.commands:
        if shutil.which(command[0]) is None:
            raise ConfigError(f"no program {command[0]!r} on this machine, which starts the probes")
    return target
