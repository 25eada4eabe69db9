"""`python -P launch/supervisor/task.py JOB.json`: set up the environment and exec one process of a job.

The agent starts this file, with RANK and related variables. Uses the standard library and `exit_codes.py`.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file, with -P, from the frozen code
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_STUCK, EXIT_TERMINATED

PARENT = "KINEMAE_PARENT"  # process id of the agent that started this process
COMMIT = "KINEMAE_COMMIT"  # commit of the frozen code, which is outside any repository
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Read the job, set the environment and exec the command."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -P task.py JOB.json\n")
        return EXIT_CONFIG
    try:
        job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
        environment = environment_of(job, os.environ)
        os.chdir(job["cwd"])
    except OSError as error:  # a file system may be away for a moment
        sys.stderr.write(f"{os.uname().nodename}: cannot start a process of {argv[0]}: {error}\n")
        return EXIT_STUCK
    end_with_parent(int(os.environ[PARENT]))
    command = command_of(job)
    os.execvpe(command[0], command, environment)


def command_of(job: Mapping[str, Any]) -> list[str]:
    """The command of a process; -P keeps the working folder out of the import path."""
    return [job["python"], "-P", "-m", "kinemae", *job["argv"]]


def environment_of(job: Mapping[str, Any], present: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process: the present one, the cluster file's variables, and the rank."""
    rank = {name: present[name] for name in RANK_VARIABLES if name in present}
    environment = {**present, **job["environment"], **rank}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [job["code"], environment.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"  # the last output before a crash must reach the log
    if job.get("commit"):
        environment[COMMIT] = job["commit"]
    environment.pop(PARENT, None)
    return environment


def end_with_parent(parent: int) -> None:
    """Let the kernel send SIGTERM to this process when its agent dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before prctl
        sys.exit(EXIT_TERMINATED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
