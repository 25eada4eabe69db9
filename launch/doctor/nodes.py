"""The nodes of a cluster file, and a probe on each of them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.cluster import read_cluster
from kinemae.launch.doctor import probe
from kinemae.launch.local import HOST, LocalCluster
from kinemae.launch.slurm.cluster import SlurmCluster
from kinemae.launch.ssh import SshCluster, SshTransport

SOURCE = Path(probe.__file__).read_text(encoding="utf-8")
GROUP_S = 40
_RUN_S = GROUP_S + 60  # of a probe
_QUEUE_S, _MOST_MINUTES = 120, 5  # of a Slurm job
_PORTS = range(20_000, 32_000)  # below Linux' ephemeral ports
_TAIL_LINES = 5


@dataclass(frozen=True, kw_only=True)
class Target:
    """The nodes of a cluster as a job would use them.

    Attributes:
        names: of the nodes; empty if a scheduler chooses them.
        processes: of each node.
        commands: the commands that start the probes, and the nodes of each.
        environment: variables from the cluster file.
        master: address of the rendezvous on the first node; None on Slurm, where the nodes query it.
        port: port of the rendezvous.
        limit_s: time limit of a probe, including a scheduler's queue.
    """

    names: list[str]
    processes: list[int]
    commands: Sequence[tuple[Sequence[str], Sequence[int]]]
    environment: Mapping[str, str]
    master: str | None
    port: int
    limit_s: float = _RUN_S


def _local(file: str | None, overrides: list[str]) -> Target:
    cluster = read_cluster(LocalCluster, file, overrides)
    return Target(
        names=[HOST],
        processes=[cluster.processes],
        commands=[([*cluster.container, cluster.python or sys.executable, "-", "0"], [0])],
        environment=cluster.environment,
        master="127.0.0.1",
        port=random.choice(_PORTS),
    )


def _ssh(file: str | None, overrides: list[str]) -> Target:
    cluster = read_cluster(SshCluster, file, overrides)
    transport, slots = SshTransport(cluster.ssh), cluster.slots()
    words = [*cluster.container, cluster.python or sys.executable, "-"]
    return Target(
        names=list(slots),
        processes=list(slots.values()),
        commands=[(transport.command(host, [*words, str(node)]), [node]) for node, host in enumerate(slots)],
        environment=cluster.environment,
        master=cluster.master_addr or next(iter(slots)).rpartition("@")[2],
        port=cluster.master_port or random.choice(_PORTS),
    )


def _slurm(file: str | None, overrides: list[str]) -> Target:
    """One step with a task on each node, in the current allocation or in a new one."""
    cluster = read_cluster(SlurmCluster, file, overrides)
    options = cluster.options(
        job_name="kinemae-doctor",
        immediate=str(_QUEUE_S),
        time=str(_MOST_MINUTES),
        nodes=str(cluster.nodes),
        ntasks=str(cluster.nodes),
    )
    words = [*cluster.container, cluster.python or sys.executable, "-"]
    return Target(
        names=[],
        processes=[cluster.processes_per_node] * cluster.nodes,
        commands=[(["srun", *options, *cluster.extra, *cluster.srun, *words], range(cluster.nodes))],
        environment=cluster.environment,
        master=None,
        port=random.choice(_PORTS),
        limit_s=_QUEUE_S + _RUN_S,
    )


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


def ask(target: Target, request: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Run a probe on all nodes at once.

    Args:
        request: see `kinemae.launch.doctor.probe.main`; what concerns the target is added.

    Returns:
        The report of each node by its name: the parts that it has printed, `stage` if it has started, and
        `lost` with the reason if it is not complete.
    """
    whole = {**request, "source": SOURCE, "environment": dict(target.environment), "limit_s": GROUP_S}
    whole |= {"master": target.master, "port": target.port, "processes": target.processes}
    program = f"{SOURCE}\nmain({whole!r})\n"
    started = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,  # only the doctor handles Ctrl-C
        )
        for command, _ in target.commands
    ]  # fmt: skip
    with ThreadPoolExecutor(len(started)) as pool:
        try:
            outputs = list(pool.map(lambda process: _output_of(process, program, target.limit_s), started))
        finally:
            for process in started:
                _end(process)
    reports: dict[str, dict[str, Any]] = {}
    for (_, nodes), (output, reason) in zip(target.commands, outputs, strict=True):
        for node, report in _parse(output, nodes).items():
            if report.get("stage") != "done":
                report["lost"] = reason
            name = report["host"]["name"] if "host" in report else f"node {node}"
            reports[target.names[node] if target.names else name] = report
    return reports


def _output_of(process: subprocess.Popen[str], program: str, limit_s: float) -> tuple[str, str]:
    """The output of a command, and why it has ended: its last lines besides reports, or the time limit."""
    try:
        output, errors = process.communicate(program, timeout=limit_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return process.communicate()[0], f"no reply within {limit_s:g} s"
    lines = [line.strip() for line in [*output.splitlines(), *errors.splitlines()]]
    tail = [line for line in lines if line and not line.startswith(probe.MARK)][-_TAIL_LINES:]
    return output, " / ".join(tail) or "it ended without a message"


def _end(process: subprocess.Popen[str]) -> None:
    """End a command and its processes here; srun cancels its request at SIGTERM."""
    for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)


def _parse(output: str, nodes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The report of each node from chunks of JSON objects; what srun has damaged is left out."""
    reports: dict[int, dict[str, Any]] = {node: {} for node in nodes}
    texts = dict.fromkeys(nodes, "")
    for line in output.splitlines():
        words = line.split(" ", 3)
        if words[0] == probe.MARK and len(words) == 4:
            node = int(words[1])
            texts[node] += words[3]
            if words[2] == "0":
                with suppress(ValueError):
                    reports[node] |= json.loads(texts[node])
                texts[node] = ""
    return reports
