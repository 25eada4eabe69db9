"""Is a node large enough for the processes that it is to run: cores, memory, limits, clock?"""

from collections.abc import Mapping
from statistics import median
from typing import Any

from kinemae.launch.doctor.checks.findings import Finding, counted, error, named, or_ok, warning

GIB = 1 << 30
LEAST_MEMORY = 2 * GIB  # a process of the smallest recipe and its loader take 1.5 GiB
LEAST_FILES = 4096
LEAST_SHARED = GIB
CLOCK_WARNING_S, CLOCK_ERROR_S = 1.0, 300.0  # at 300 s munge, Kerberos and TLS refuse

Reports = Mapping[str, Mapping[str, Any]]


def check_machines(machines: Reports, processes: Mapping[str, int], has_gpus: bool) -> list[Finding]:
    """Hold every node's means against what its processes need; in bytes, cores and numbers of files."""
    findings = [
        finding
        for name, machine in machines.items()
        for finding in (
            *_cores_and_memory(name, machine, processes[name]),
            *_limits(name, machine, has_gpus),
        )
    ]
    least = min(machine["memory_bytes"] for machine in machines.values()) / GIB
    cores = min(machine["cores"] for machine in machines.values())
    return or_ok(findings, "machine", f"at least {cores} cores and {least:.0f} GiB of free memory a node")


def _cores_and_memory(name: str, machine: Mapping[str, Any], processes: int) -> list[Finding]:
    findings = []
    if machine["cores"] < processes:
        findings.append(
            warning(
                "machine",
                f"{name} offers {counted(machine['cores'], 'core')} to {counted(processes, 'process')}",
                "ask the scheduler for more cores, or start fewer processes; every process and every loader "
                "worker (data.num_workers) wants one",
                [name],
            )
        )
    if machine["memory_bytes"] < processes * LEAST_MEMORY:
        findings.append(
            warning(
                "machine",
                f"{name} has {machine['memory_bytes'] / GIB:.1f} GiB of memory left for "
                f"{counted(processes, 'process')}",
                "end what else runs there, ask for more memory, or lower data.num_workers; `launch "
                "plan` says what "
                "a config needs",
                [name],
            )
        )
    return findings


def _limits(name: str, machine: Mapping[str, Any], has_gpus: bool) -> list[Finding]:
    findings = []
    if machine["open_files"] is not None and machine["open_files"] < LEAST_FILES:
        findings.append(
            warning(
                "machine",
                f"{name} allows {machine['open_files']} open files a process (ulimit -n), fewer "
                f"than {LEAST_FILES}; "
                "every open shard and every connection is one",
                "raise `nofile` in /etc/security/limits.conf, or LimitNOFILE of sshd or slurmd",
                [name],
            )
        )
    if has_gpus and machine["locked_bytes"] is not None and machine["locked_bytes"] < GIB:
        findings.append(
            warning(
                "machine",
                f"{name} lets a process lock {machine['locked_bytes'] // 1024} KiB of memory (ulimit -l); "
                "pinned buffers and RDMA need more",
                "set `memlock` to unlimited in /etc/security/limits.conf, LimitMEMLOCK of slurmd, or "
                "--ulimit memlock=-1 of the container",
                [name],
            )
        )
    if has_gpus and machine["shared_memory_bytes"] < LEAST_SHARED:
        findings.append(
            warning(
                "machine",
                f"/dev/shm of {name} holds {machine['shared_memory_bytes'] >> 20} MiB; NCCL "
                "passes data between "
                "processes of a node through it",
                "mount a larger one: an emptyDir of medium Memory in a pod, --shm-size of a container",
                [name],
            )
        )
    return findings


def check_clocks(ahead_s: Mapping[str, float]) -> list[Finding]:
    """Compare clocks, each given in seconds ahead of the doctor's own, half a round trip taken off."""
    middle = median(ahead_s.values())
    findings = []
    for name, ahead in ahead_s.items():
        apart = ahead - middle
        if abs(apart) <= CLOCK_WARNING_S:
            continue
        say = error if abs(apart) > CLOCK_ERROR_S else warning
        findings.append(
            say(
                "clock",
                f"the clock of {name} is {abs(apart):.1f} s "
                f"{'ahead of' if apart > 0 else 'behind'} the others",
                f"start chrony or systemd-timesyncd on {name}; until then its log lines stand in "
                "the wrong order, "
                "and tickets may be refused",
                [name],
            )
        )
    widest = max(ahead_s.values()) - min(ahead_s.values())
    return or_ok(findings, "clock", f"clocks at most {1000 * widest:.0f} ms apart")


def check_paths(missing: Mapping[str, list[str]]) -> list[Finding]:
    """Folders that a job names and a node does not see; `missing` holds each path's nodes."""
    return [
        error(
            "folder",
            f"{named(nodes)} {'have' if len(nodes) > 1 else 'has'} no {path}",
            "a job starts in the folder from which it was launched: launch it from one that all nodes share",
            nodes,
        )
        for path, nodes in missing.items()
        if nodes
    ]
