"""Slurm's queue for the doctor: reason of a waiting job, time limit of a partition, cancelling a job."""

import getpass
import subprocess

from kinemae.launch.slurm.cluster import seconds_of

_ASK_S = 20
# Prefixes of sinfo's states of nodes that accept no jobs.
_UNUSABLE = ("down", "drain", "fail", "maint", "unk", "no_respond", "power")


def asked(*command: str) -> str:
    """The output of a Slurm command; empty if it fails or is not installed."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def slurm_reason(job_name: str, partition: str) -> str:
    """State and reason of the job, and of the nodes that accept no jobs, in Slurm's words."""
    job = asked("squeue", "--noheader", f"--name={job_name}", "--format=job %i is %T because of %r")
    where = [f"--partition={partition}"] if partition else []
    listed = asked("sinfo", "--noheader", "--Node", *where, "--format=%T|%N is %T (%E)").splitlines()
    nodes = {text for state, _, text in (line.partition("|") for line in listed) if _is_unusable(state)}
    return "; ".join([job or "Slurm does not know its job", *sorted(nodes)])


def _is_unusable(state: str) -> bool:
    return state.startswith(_UNUSABLE) or state.endswith("*")  # the star means that the node does not respond


def partition_limit(partition: str) -> int | None:
    """The longest a job may run in a partition, or in the default one, in seconds; None for no limit."""
    for line in asked("sinfo", "--noheader", "--format=%P %l").splitlines():
        name, _, limit = line.partition(" ")
        if name == partition or (not partition and name.endswith("*")) or name == f"{partition}*":
            try:
                return seconds_of(limit.strip())
            except ValueError:
                return None
    return None


def cancel_by_name(job_name: str) -> None:
    """Cancel a running or waiting job."""
    asked("scancel", f"--name={job_name}", f"--user={getpass.getuser()}")
