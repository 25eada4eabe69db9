"""`python -P launch/supervisor/task.py JOB.json`: set up the environment and exec one process of a job.

An agent, srun or a pod runs this file. It takes the rank from RANK and related variables, or from Slurm's.
Uses the standard library and `exit_codes.py` only.
"""

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file, with -P, from the frozen code
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_TERMINATED

PARENT = "KINEMAE_PARENT"  # process id of the agent that started this process
COMMIT = "KINEMAE_COMMIT"  # commit of the frozen code, which is outside any repository
_PR_SET_PDEATHSIG = 1
_FIRST_PORT, _PORTS = 12000, 20000  # below Linux' ephemeral ports, which begin at 32768
_RESTARTS = 16


def main(argv: list[str]) -> int:
    """Read the job, set the environment and exec the command."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -P task.py JOB.json\n")
        return EXIT_CONFIG
    try:
        job = read_job(Path(argv[0]))
        environment = environment_of(job, os.environ)
        os.chdir(job["cwd"])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{os.uname().nodename}: cannot start a process of {argv[0]}: {error}\n")
        return EXIT_CONFIG
    if PARENT in os.environ:
        end_with_parent(int(os.environ[PARENT]))
    command = command_of(job)
    os.execvpe(command[0], command, environment)


def read_job(path: Path) -> dict[str, Any]:
    """Read `job.json`.

    Raises:
        OSError: the file cannot be read on this host.
        ValueError: the file is not a job, or its folders are missing on this host.
    """
    job = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in ("argv", "cwd", "code", "python", "environment") if key not in job]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    for key in ("code", "cwd"):
        if not Path(job[key]).is_dir():
            raise ValueError(
                f"no folder {job[key]} on this host; fix: use a run_dir and a working folder that all hosts "
                "share"
            )
    assert isinstance(job, dict)
    return job


def command_of(job: Mapping[str, Any]) -> list[str]:
    """The command of a process; -P keeps the working folder out of the import path."""
    return [*job.get("container", []), job["python"], "-P", "-m", "kinemae", *job["argv"]]


def environment_of(job: Mapping[str, Any], present: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process: the present one, the cluster file's variables, and the rank."""
    environment = {**present, **job["environment"]}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [job["code"], environment.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"  # the last output before a crash must reach the log
    if job.get("commit"):
        environment[COMMIT] = job["commit"]
    environment.pop(PARENT, None)
    for name, value in slurm_rank(present).items():
        environment.setdefault(name, value)
    return environment


def slurm_rank(slurm: Mapping[str, str]) -> dict[str, str]:
    """RANK and related variables from Slurm's; empty outside a Slurm step.

    The port depends on the job id and the restart count, so that two jobs on one host use different ports.
    """
    if "SLURM_PROCID" not in slurm:
        return {}
    rank = {"RANK": slurm["SLURM_PROCID"]}
    sources = {"WORLD_SIZE": ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "LOCAL_RANK": ("SLURM_LOCALID",)}
    for name, variables in sources.items():
        values = [slurm[variable] for variable in variables if variable in slurm]
        rank.update({name: values[0]} if values else {})
    tasks = slurm.get("SLURM_STEP_TASKS_PER_NODE") or slurm.get("SLURM_TASKS_PER_NODE")
    if tasks:
        rank["LOCAL_WORLD_SIZE"] = str(_tasks_per_node(tasks)[int(slurm.get("SLURM_NODEID", "0"))])
    hosts = slurm.get("SLURM_STEP_NODELIST") or slurm.get("SLURM_JOB_NODELIST")
    if hosts:
        rank["MASTER_ADDR"] = first_host(hosts)
    if "SLURM_JOB_ID" in slurm:
        restarts = int(slurm.get("SLURM_RESTART_COUNT", "0")) % _RESTARTS
        rank["MASTER_PORT"] = str(_FIRST_PORT + (int(slurm["SLURM_JOB_ID"]) * _RESTARTS + restarts) % _PORTS)
    return rank


def _tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's `2(x3),1` to [2, 2, 2, 1]."""
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"cannot read the tasks per node {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_host(hosts: str) -> str:
    """The first host of a Slurm node list: `n[003-005,9],m1` gives n003."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^\[,]*))?", hosts)
    if match is None:
        raise ValueError(f"cannot read the list of hosts {hosts!r}")
    return match[1] + (match[2] or "") + (match[3] or "")


def end_with_parent(parent: int) -> None:
    """Let the kernel send SIGTERM to this process when its agent dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before prctl
        sys.exit(EXIT_TERMINATED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
