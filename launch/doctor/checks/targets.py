"""From a cluster file to the nodes that the doctor visits."""

import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from kinemae.launch.cluster import UsageError, read_cluster
from kinemae.launch.doctor.checks.nodes import probe_words
from kinemae.launch.doctor.checks.sessions import Target
from kinemae.launch.doctor.checks.slurm_queue import asked, cancel_by_name, partition_limit, slurm_reason
from kinemae.launch.local import HOST, LocalCluster
from kinemae.launch.slurm.cluster import SlurmCluster, seconds_of
from kinemae.launch.ssh import Ssh, SshCluster

_QUEUE_S, _MOST_S = 120.0, 300


def _local(file: Path | None, overrides: list[str]) -> Target:
    cluster = read_cluster(LocalCluster, file, overrides)
    command = [*cluster.container, *probe_words(cluster.python or sys.executable, 0)]
    return Target(
        names=[HOST],
        processes=[cluster.processes],
        commands=[(command, [0])],
        environment=cluster.environment,
        master=lambda name: "127.0.0.1",
    )


def _ssh(file: Path | None, overrides: list[str]) -> Target:
    cluster = read_cluster(SshCluster, file, overrides)
    link, slots, python = Ssh(cluster.ssh), cluster.slots(), cluster.python or sys.executable
    first = next(iter(slots))
    return Target(
        names=list(slots),
        processes=list(slots.values()),
        commands=[
            (link.command(host, [*cluster.container, *probe_words(python, node)]), [node])
            for node, host in enumerate(slots)
        ],
        environment=cluster.environment,
        # `launch ssh` too meets at the next host where the first one is gone
        master=lambda name: (
            cluster.master_addr if cluster.master_addr and name == first else name.rpartition("@")[2]
        ),
        master_port=cluster.master_port or 0,
        link_gbit=cluster.link_gbit,
    )


def _slurm(file: Path | None, overrides: list[str]) -> Target:
    """One step with a task on each node; inside an allocation it runs there, else it waits for its own."""
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
        why_not_started=lambda: slurm_reason(name, cluster.partition),
        end=lambda: cancel_by_name(name),
    )


def _time(cluster: SlurmCluster) -> str:
    """Five minutes, or less where the cluster file or the partition allows less."""
    limits = [limit for limit in (seconds_of(cluster.time), partition_limit(cluster.partition)) if limit]
    limit = min([_MOST_S, *limits])
    return "5" if limit == _MOST_S else f"{limit // 60}:{limit % 60:02d}"


def _slurm_address(name: str) -> str:
    """A node's NodeAddr, which is where the job's processes meet; its name where Slurm does not say."""
    said = asked("scontrol", "--oneliner", "show", "node", name)
    match = re.search(r"\bNodeAddr=(\S+)", said)
    return match[1] if match else name


KINDS: Mapping[str, Callable[[Path | None, list[str]], Target]] = {
    "local": _local,
    "ssh": _ssh,
    "slurm": _slurm,
}


def target_of(kind: str, file: Path | None, overrides: list[str]) -> Target:
    """The nodes of a cluster file and how probes get there.

    Raises:
        UsageError: the file cannot be used, or the program that starts the probes is not installed here.
    """
    target = KINDS[kind](file, overrides)
    for command, _ in target.commands:
        if shutil.which(command[0]) is None:
            raise UsageError(f"no program {command[0]!r} on this machine; it is needed to start the probes")
    return target
