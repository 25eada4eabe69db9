"""`launch local`: a run as several processes on this machine, by torchrun."""

import os
import sys
from collections.abc import Sequence

ROOMS = ("pretrain", "finetune")


def local_command(processes: int, job: Sequence[str]) -> list[str]:
    """The command that would run, as a list: nothing passes through a shell.

    Args:
        job: a room and its arguments, as in ["pretrain", "configs/pretrain/demo.yaml", "seed=1"].

    Raises:
        ValueError: no processes, or the job does not begin with a room that trains.
    """
    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    if not job or job[0] not in ROOMS:
        given = repr(job[0]) if job else "nothing"
        raise ValueError(f"expected {' or '.join(ROOMS)} and its arguments after --, got {given}")
    python = [sys.executable, "-m"]
    if processes == 1:
        return [*python, *job]
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return [*python, *torchrun, *job]


def run_local(command: Sequence[str]) -> None:
    """Become the command, so that signals and the exit code are its own."""
    os.execvp(command[0], command)
