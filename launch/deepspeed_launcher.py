"""DeepSpeed's own launcher in place of our agents, for clusters that have settled on pdsh.

It joins what it is given to a line for a shell on the hosts and quotes none of it, and exports variables of
its own environment in the same way. So it gets an environment of a few names, and nothing but paths and
numbers; a path that a shell would take apart is refused.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from kinemae.launch.cluster import UsageError
from kinemae.launch.job import LAUNCH_FOLDER, Job
from kinemae.launch.supervisor.supervise import Start

_PLAIN = re.compile(r"[\w./@%+=:,-]+", re.ASCII)
_PASSED = ("HOME", "PATH", "USER", "SSH_AUTH_SOCK")


def check_names(hosts: Sequence[str], options: Sequence[str]) -> None:
    """Refuse what pdsh would take apart.

    Raises:
        UsageError: a host or an option of ssh holds blanks or signs that mean something to pdsh or a shell.
    """
    for word in (*hosts, *options):
        if not _PLAIN.fullmatch(word) or (word in hosts and "," in word):
            raise UsageError(
                f"through=deepspeed cannot pass {word!r} on: pdsh would split it; use through=agent"
            )


def hostfile(job: Job, start: Start) -> dict[str, str]:
    """The file that names the hosts, with its text."""
    lines = [f"{host} slots={processes}\n" for host, processes in start.dealt.items()]
    return {str(_hostfile_path(job)): "".join(lines)}


def deepspeed_commands(job: Job, start: Start, ssh: Sequence[str]) -> dict[str, list[str]]:
    """The one command, executed here, that starts the processes on all hosts.

    Raises:
        UsageError: a path would not survive DeepSpeed's shells.
    """
    for path in (str(job.path), job.code, job.python):
        if not _PLAIN.fullmatch(path):
            raise UsageError(
                f"through=deepspeed cannot pass {path!r} on: DeepSpeed hands it to a shell unquoted; "
                "choose a run_dir without blanks and special signs, or through=agent"
            )
    if job.python != sys.executable:
        raise UsageError(
            f"through=deepspeed starts the hosts' processes with the interpreter that runs it, "
            f"{sys.executable}, not python={job.python}: leave python out, or use through=agent"
        )
    address, _, port = start.master.rpartition(":")
    passed = [f"{name}={os.environ[name]}" for name in _PASSED if name in os.environ]
    options = [f"PDSH_SSH_ARGS_APPEND={' '.join(ssh)}"] if ssh else []
    runner = [job.python, "-P", "-m", "deepspeed.launcher.runner", "--hostfile", str(_hostfile_path(job))]
    runner += ["--launcher", "pdsh", "--force_multi", "--no_ssh_check", "--no_local_rank"]
    runner += ["--master_addr", address, "--master_port", port]
    # From /, since it also changes to its own working folder on the hosts, unquoted.
    command = [
        "env",
        "-i",
        "-C",
        "/",
        *passed,
        *options,
        *runner,
        job.script("supervisor/task.py"),
        str(job.path),
    ]
    return {"deepspeed": command}


def _hostfile_path(job: Job) -> Path:
    return Path(job.run_dir) / LAUNCH_FOLDER / "hostfile"
