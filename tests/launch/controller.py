"""A real Slurm of two nodes on this machine: own daemons, folder and ports.

Nothing of an installed Slurm's configuration is read or changed. Needs Debian's slurm-wlm and munge.
"""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.seeds import IS_NIGHTLY

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")

# `urgent` preempts `normal`, which has 30 seconds to save. A requeued job waits until its credential has
# expired: two minutes on a real cluster, five seconds here. `apart` is for jobs that run during other tests.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin={task_plugin}
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
MinJobAge=3600
KillWait=10
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=4 RealMemory=1000
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=4 RealMemory=1000
NodeName=n3 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[3]} CPUs=4 RealMemory=1000
NodeName=n4 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[4]} CPUs=4 RealMemory=1000
PartitionName=normal Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE PriorityTier=10 PreemptMode=off
PartitionName=apart Nodes=n3 MaxTime=INFINITE
PartitionName=short Nodes=n1,n2 MaxTime=2
PartitionName=three Nodes=n1,n2,n4 MaxTime=INFINITE
"""


def ask(*command: str) -> str:
    """Run a Slurm command and return its output; if it fails, raise an AssertionError with stderr."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, f"{command} left with {ran.returncode}: {ran.stderr}"
    return ran.stdout.strip()


def state(job_id: str) -> str:
    """PENDING, RUNNING, COMPLETED, ... of a job."""
    return field(job_id, "JobState")


def field(job_id: str, name: str) -> str:
    """One field of `scontrol show job`."""
    words = ask("scontrol", "show", "job", job_id).split()
    return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))


def wait_for(what: Callable[[], object], *, seconds: float = 120, doing: str) -> None:
    """Return when `what()` is true; an AssertionError after a generous time."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited {seconds} s for {doing}"
        time.sleep(0.2)


@contextmanager
def controller() -> Iterator[Path]:
    """A running Slurm; `SLURM_CONF` in the environment points at it. Gives its folder.

    Skips the test where Slurm is not installed, or where its daemons do not come up (in CI that is a failure:
    the machine has been set up for them).
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs a Slurm to run: apt-get install slurm-wlm munge ({', '.join(missing)} not found)")
    folder = Path(
        tempfile.mkdtemp(prefix="slurm-", dir="/tmp")
    )  # munged requires a path that all users can enter
    folder.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        configuration = folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(
                # Which binds each task to its cores; not every container allows it.
                task_plugin="task/affinity" if IS_NIGHTLY else "task/none",
                host=socket.gethostname().partition(".")[0],
                user=getpass.getuser(),
                folder=folder,
                ports=_free_ports(5),
            )
        )
        environment = pytest.MonkeyPatch()
        stack.callback(environment.undo)
        environment.setenv("SLURM_CONF", str(configuration))
        _start_daemons(folder, stack)
        stack.callback(_end_jobs)
        yield folder


def _end_jobs() -> None:
    subprocess.run(["scancel", "--user", getpass.getuser()], timeout=20)
    wait_for(lambda: ask("squeue", "--noheader") == "", seconds=60, doing="the end of all jobs")


def _start_daemons(folder: Path, stack: ExitStack) -> None:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munge = ["munged", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    _daemon("munged", munge, folder, stack)
    wait_for((folder / "munge.socket").exists, seconds=20, doing="munged")
    _daemon("slurmctld", ["slurmctld", "-D"], folder, stack)
    for node in ("n1", "n2", "n3", "n4"):
        _daemon(f"slurmd-{node}", ["slurmd", "-D", "-N", node], folder, stack)
    try:
        wait_for(_both_are_idle, seconds=30, doing="two idle nodes")
    except AssertionError:
        output = "\n".join(log.read_text()[-1000:] for log in folder.glob("*.out"))
        if os.environ.get("CI"):
            pytest.fail(f"Slurm is installed but does not run:\n{output}")
        pytest.skip(f"Slurm does not run on this machine:\n{output}")


def _both_are_idle() -> bool:
    seen = subprocess.run(
        ["sinfo", "-h", "-p", "normal", "-t", "idle", "-o", "%D"], capture_output=True, text=True
    )
    return seen.stdout.strip() == "2"


def _daemon(name: str, command: list[str], folder: Path, stack: ExitStack) -> None:
    with (folder / f"{name}.out").open("w") as output:
        daemon = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    stack.callback(daemon.wait, timeout=20)
    stack.callback(daemon.terminate)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
