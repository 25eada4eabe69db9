"""`python -P launch/supervisor/task.py JOB.json`: become one process of a job.

Run as a file, by an agent, by srun, by a pod or by another launcher; it imports the standard library alone.
Who this process is comes from RANK and its like, or from Slurm's variables where those are not given.
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

from kinemae.data_tools.exit_codes import EXIT_CONFIG

PARENT = "KINEMAE_PARENT"  # process id of the agent that started this
COMMIT = "KINEMAE_COMMIT"  # of the frozen code, which lies in no repository
_PR_SET_PDEATHSIG = 1
_FIRST_PORT, _PORTS = 12000, 20000  # below the ports that Linux gives out by itself (32768 and up)
_RESTARTS = 16


def main(argv: list[str]) -> int:
    """Read the job, set the environment, become the room."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -P task.py JOB.json\n")
        return EXIT_CONFIG
    try:
        job = read(Path(argv[0]))
        environment = environment_of(job, os.environ)
        os.chdir(job["cwd"])
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{os.uname().nodename}: cannot start a process of {argv[0]}: {error}\n")
        return EXIT_CONFIG
    if PARENT in os.environ:
        end_with_parent(int(os.environ[PARENT]))
    command = command_of(job)
    os.execvpe(command[0], command, environment)


def read(path: Path) -> dict[str, Any]:
    """The job as `job.json` has it.

    Raises:
        OSError: the file, the code or the working folder cannot be seen from this host.
        ValueError: the file is not a job.
    """
    job = json.loads(path.read_text(encoding="utf-8"))
    lacking = [key for key in ("argv", "cwd", "code", "python", "environment") if key not in job]
    if lacking:
        raise ValueError(f"it does not say {', '.join(lacking)}")
    for key in ("code", "cwd"):
        if not Path(job[key]).is_dir():
            raise ValueError(
                f"no folder {job[key]} on this host: run_dir and the folder from which the job was started "
                "must be shared by all hosts"
            )
    assert isinstance(job, dict)
    return job


def command_of(job: Mapping[str, Any]) -> list[str]:
    """What a process of the job executes; -P keeps the working folder out of the import path."""
    return [*job.get("container", []), job["python"], "-P", "-m", "kinemae", *job["argv"]]


def environment_of(job: Mapping[str, Any], present: Mapping[str, str]) -> dict[str, str]:
    """The environment of one process: what is there, the cluster file's over it, and who this process is."""
    environment = {**present, **job["environment"]}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [job["code"], environment.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"  # its output is a file: what it said before it died must be there
    if job.get("commit"):
        environment[COMMIT] = job["commit"]
    environment.pop(PARENT, None)
    for name, value in of_slurm(present).items():
        environment.setdefault(name, value)
    return environment


def of_slurm(slurm: Mapping[str, str]) -> dict[str, str]:
    """The usual variables from Slurm's; empty outside a Slurm step, and without those it cannot tell.

    The port follows from the job and how often it was started, so that two jobs on a host do not meet.
    """
    if "SLURM_PROCID" not in slurm:
        return {}
    found = {"RANK": slurm["SLURM_PROCID"]}
    wanted = {"WORLD_SIZE": ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "LOCAL_RANK": ("SLURM_LOCALID",)}
    for name, sources in wanted.items():
        given = [slurm[source] for source in sources if source in slurm]
        found.update({name: given[0]} if given else {})
    tasks = slurm.get("SLURM_STEP_TASKS_PER_NODE") or slurm.get("SLURM_TASKS_PER_NODE")
    if tasks:
        found["LOCAL_WORLD_SIZE"] = str(_tasks_of_nodes(tasks)[int(slurm.get("SLURM_NODEID", "0"))])
    hosts = slurm.get("SLURM_STEP_NODELIST") or slurm.get("SLURM_JOB_NODELIST")
    if hosts:
        found["MASTER_ADDR"] = first_host(hosts)
    if "SLURM_JOB_ID" in slurm:
        start = (
            int(slurm["SLURM_JOB_ID"]) * _RESTARTS + int(slurm.get("SLURM_RESTART_COUNT", "0")) % _RESTARTS
        )
        found["MASTER_PORT"] = str(_FIRST_PORT + start % _PORTS)
    return found


def _tasks_of_nodes(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"cannot read the tasks per node {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts: `n[003-005,9],m1` gives n003."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^\[,]*))?", hosts)
    if match is None:
        raise ValueError(f"cannot read the list of hosts {hosts!r}")
    return match[1] + (match[2] or "") + (match[3] or "")


def end_with_parent(parent: int) -> None:
    """Let the kernel send SIGTERM to this process when its agent dies, however it dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
