"""`launch slurm`: write a batch script into the run folder and submit it."""

import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kinemae.data_tools.files import to_json_lines
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.cluster import ClusterConfig
from kinemae.launch.job import LOGS_FOLDER, Job
from kinemae.launch.record import Record
from kinemae.launch.slurm.queue import CANCELLED

SCRIPT, SETTINGS = "job.sbatch", "slurm.json"
_UNQUOTED = re.compile(r"[\w.,:=/@+%*~-]+", re.ASCII)  # values that sbatch takes without quotes

# Options that the batch script sets; a second one in `extra` would override it. An array of one run would
# write to its folder several times at once.
_OWN_OPTIONS = (
    *("account", "array", "chdir", "cpus-per-task", "error", "export", "gres", "job-name", "mem", "no-kill"),
    *("no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "partition"),
    *("qos", "requeue", "signal", "time", "wait"),
)


@dataclass(frozen=True, kw_only=True)
class SlurmCluster(ClusterConfig):
    """Cluster file of `launch slurm`; an empty text leaves the choice to the cluster.

    Attributes:
        partition, account, qos: as of sbatch; empty for the cluster's default.
        nodes, processes_per_node, gpus_per_node: machines; processes of each, one per GPU; GPUs of each.
        spare: further machines, which replace lost and bad ones.
        name: the job's name; empty for the run folder's name.
        time: time limit as for sbatch, such as 1-00:00:00.
        cpus_per_process: for the process and its data workers.
        gpu_type: as the cluster names it, such as a100; empty for any.
        memory: of each node, such as 200G.
        extra: further sbatch options, such as --constraint=a100.
        srun: further options of srun for the agents, such as --container-image=IMAGE of pyxis.
        requeue: requeue the job after a stop with a checkpoint (time limit, preemption).
        signal_s: seconds before the time limit at which Slurm sends SIGUSR1, which requests a checkpoint, and
            the time for a checkpoint after any request.
        max_restarts: restarts, or requeues, in a row without a new checkpoint.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    name: str = ""
    time: str = ""
    nodes: int = 1
    spare: int = 0
    processes_per_node: int = 1
    cpus_per_process: int = 1
    gpus_per_node: int = 0
    gpu_type: str = ""
    memory: str = ""
    extra: list[str] = field(default_factory=list)
    srun: list[str] = field(default_factory=list)
    requeue: bool = True
    signal_s: int = 600
    max_restarts: int = 3

    KIND = "slurm"

    def __post_init__(self) -> None:
        for key in ("nodes", "processes_per_node", "cpus_per_process"):
            require(getattr(self, key) >= 1, key, "be at least 1", getattr(self, key))
        for key in ("gpus_per_node", "max_restarts", "spare"):
            require(getattr(self, key) >= 0, key, "be at least 0", getattr(self, key))
        seconds = self.signal_s
        require(1 <= seconds <= 65535, "signal_s", "lie between 1 and 65535 seconds", seconds)
        for option in self.extra:
            name = option.partition("=")[0]
            example = "contain long options of sbatch, such as --constraint=a100"
            require(name.startswith("--"), "extra", example, option)
            is_free = name.removeprefix("--") not in _OWN_OPTIONS
            require(is_free, "extra", f"not contain {name}, which the launcher sets", option)

    def options(self, **own: str) -> list[str]:
        """Options of sbatch and of the doctor's srun; `own` has `_` for `-`. Empty ones are left out."""
        gpus = ["gpu", self.gpu_type, str(self.gpus_per_node)] if self.gpus_per_node else []
        given = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "ntasks_per_node": "1",
            "cpus_per_task": str(self.processes_per_node * self.cpus_per_process),
            "gres": ":".join(filter(None, gpus)),
            "mem": self.memory,
        }
        values = {**own, **given}
        return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value]

    def world(self) -> int:
        return self.nodes * self.processes_per_node

    def policy(self) -> dict[str, Any]:
        return {"max_restarts": self.max_restarts, "stop_s": float(self.signal_s)}

    def files(self, job: Job) -> dict[Path, str]:
        """The batch script, and the keys of the cluster file for `batch.py`.

        The script becomes one command, so that Slurm's signals reach it. Raises `ConfigError` for a run
        folder or a value that Slurm cannot use.
        """
        can_log = job.run_dir.isprintable() and "\\" not in job.run_dir
        expected = "be one line without backslashes: Slurm cannot log into others"
        require(can_log, "run_dir", expected, job.run_dir)
        logs = str(Path(job.run_dir) / LOGS_FOLDER).replace("%", "%%")  # `%` begins a field such as `%j`
        given = self.options(
            job_name=self.name or Path(job.run_dir).name,
            time=self.time,
            nodes=str(self.nodes + self.spare),
            signal=f"B:USR1@{self.signal_s}",
            output=f"{logs}/slurm-%j.log",
            open_mode="append",
        )
        given += ["--requeue" if self.requeue else "--no-requeue", *(["--no-kill"] if self.spare else [])]
        lines = ["#!/bin/bash", "# written by `kinemae launch slurm`"]
        lines += [f"#SBATCH {_quoted(option)}" for option in [*given, *self.extra]]
        command = [sys.executable, "-P", job.script("slurm/batch.py"), str(job.path)]
        script = "\n".join(lines) + "\n\nexec " + " \\\n    ".join(map(shlex.quote, command)) + "\n"
        usual = asdict(SlurmCluster())
        settings = {key: value for key, value in asdict(self).items() if value != usual[key]}
        return {job.path.with_name(SCRIPT): script, job.path.with_name(SETTINGS): to_json_lines(settings)}

    def commands(self, job: Job) -> dict[str, list[str]]:
        submit = ["sbatch", "--parsable", str(job.path.with_name(SCRIPT))]
        return {"this machine": submit, "the first node": self.agents(job, "ADDRESS:PORT", "JOB")}

    def agents(self, job: Job, rendezvous: str, run_id: str) -> list[str]:
        """The command that starts an agent on each node of the allocation."""
        count = self.nodes + self.spare
        # srun ignores sbatch's value since Slurm 22.05. Without a spare node, Slurm ends the job with a node.
        cores = f"--cpus-per-task={self.processes_per_node * self.cpus_per_process}"
        srun = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", cores]
        srun += ["--kill-on-bad-exit=0", "--wait=0", *(["--no-kill"] if self.spare else []), *self.srun]
        options = ["--node-slots", str(self.processes_per_node), "--nodes", f"{self.nodes}:{self.nodes}"]
        options += ["--agents", str(count), "--rendezvous", rendezvous, "--run-id", run_id]
        return [*srun, *self.agent_command(job, *options)]

    def run(self, job: Job) -> int:
        """Submit the batch script."""
        job.path.with_name(CANCELLED).unlink(missing_ok=True)
        ran = subprocess.run(self.commands(job)["this machine"], capture_output=True, text=True)
        if ran.returncode != 0:
            raise ConfigError(f"sbatch refused the job: {ran.stderr.strip()}")
        job_id = ran.stdout.strip().partition(";")[0]  # JOB;CLUSTER if there are several clusters
        Record(Path(job.run_dir)).update(job_id=job_id)
        sys.stdout.write(f"job {job_id}; kinemae launch status {shlex.quote(job.run_dir)}\n")
        return 0


def _quoted(option: str) -> str:
    name, equals, value = option.partition("=")
    require(option.isprintable(), f"{name} of sbatch", "be one line of printable text", value)
    if not equals or _UNQUOTED.fullmatch(value):
        return option
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'
