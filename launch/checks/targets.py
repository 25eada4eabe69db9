"""From a cluster file to the nodes that the doctor visits."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from launch.checks.nodes import probe_words
from launch.checks.rounds import Target
from launch.cluster import UsageError, read_cluster
from launch.local import HOST, LocalCluster
from launch.slurm_cluster import SlurmCluster
from launch.ssh import Ssh, SshCluster

_QUEUE_S = 120.0


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
    given = {
        "job-name": "doctor",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": "5",
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
    )


def _slurm_address(name: str) -> str:
    """A node's NodeAddr, which is where the job's processes meet; its name where Slurm does not say."""
    command = ["scontrol", "--oneliner", "show", "node", name]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
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
