"""`launch slurm`: write a batch script into the run folder and submit it."""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.cluster import read_cluster, split_words
from kinemae.launch.job import LAUNCH_FOLDER, LOGS_FOLDER, Job, prepare_job, write_job
from kinemae.launch.record import Record, read_record
from kinemae.launch.slurm.cluster import SlurmCluster
from kinemae.launch.slurm.queue import CANCELLED, OUTCOME, job_states
from kinemae.launch.slurm.script import batch_script, escape_file_name
from kinemae.launch.supervisor.start import add_launcher

# srun's --wait: seconds for the other tasks after the first has ended; rank 0 exports and reports last.
_LAST_TASKS_S = 600


def add_to(parsers: Any) -> None:
    """Register `slurm`."""
    example = "slurm CLUSTER.yaml nodes=4 -- pretrain CONFIG run_dir=RUN"
    add_launcher(parsers, "slurm", run, example)


def run(arguments: argparse.Namespace) -> int:
    """Check the job, write the batch script, submit it."""
    cluster = read_cluster(SlurmCluster, *split_words(arguments.words))
    job = prepare_job(
        arguments.job,
        cluster.environment,
        python=cluster.python or sys.executable,
        world_size=cluster.nodes * cluster.processes_per_node,
        trains_here=False,
    )
    job = replace(job, container=cluster.container_command())
    if arguments.dry_run:
        sys.stdout.write(plan_text(cluster, job))
        return 0
    script, path = script_of(cluster, job), _script_path(job)
    _check_no_job(job)
    write_job(job)
    for name in (CANCELLED, OUTCOME):
        (path.parent / name).unlink(missing_ok=True)
    atomic_write_text(path, script)
    command = _submit_command(job)
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        raise ConfigError(f"sbatch refused the job: {ran.stderr.strip()}")
    job_id = ran.stdout.strip().partition(";")[0]  # JOB;CLUSTER if there are several clusters
    steps = job.summary.get("steps")
    record = Record(Path(job.run_dir), kind="slurm", job_id=job_id, command=command, steps=steps)
    record.update(state="submitted")
    sys.stdout.write(f"job {job_id}; kinemae launch status {shlex.quote(job.run_dir)}\n")
    return 0


def plan_text(cluster: SlurmCluster, job: Job) -> str:
    """The output of `--dry-run`: the batch script, job.json and the submit command."""
    lines = [
        f"would write {_script_path(job)}:",
        script_of(cluster, job),
        f"would write {job.path}:",
        job.to_json(),
        "",
        "would run:",
        f"  {shlex.join(_submit_command(job))}",
    ]
    return "\n".join(lines) + "\n"


def _script_path(job: Job) -> Path:
    return job.path.with_name("job.sbatch")


def _submit_command(job: Job) -> list[str]:
    return ["sbatch", "--parsable", str(_script_path(job))]


def script_of(cluster: SlurmCluster, job: Job) -> str:
    """The batch script of a job.

    Raises:
        ValueError: Slurm cannot use the run folder, or it is not mounted into the container.
    """
    can_log = job.run_dir.isprintable() and "\\" not in job.run_dir
    require(can_log, "run_dir", "be one line without backslashes: Slurm cannot log into others", job.run_dir)
    if cluster.container.runtime == "pyxis":
        _check_mounts(cluster.container.mounts, job.run_dir)
    # Apptainer is started by task.py, so task.py runs outside of it; pyxis surrounds task.py.
    python = sys.executable if cluster.container.runtime == "apptainer" else job.python
    settings: list[tuple[str, str | Sequence[str]]] = [
        ("cancelled", str(Path(job.run_dir) / LAUNCH_FOLDER / CANCELLED)),
        ("outcome", str(Path(job.run_dir) / LAUNCH_FOLDER / OUTCOME)),
        ("requeue", "yes" if cluster.requeue else "no"),
        ("max_restarts", str(cluster.max_restarts)),
        ("options", _srun_options(cluster, job)),
        ("task", [python, "-P", job.script("supervisor/task.py"), str(job.path)]),
    ]
    return batch_script(_directives(cluster, job), settings)


def _directives(cluster: SlurmCluster, job: Job) -> list[tuple[str, str]]:
    logs = escape_file_name(str(Path(job.run_dir) / LOGS_FOLDER))
    given = [
        ("job-name", cluster.name or Path(job.run_dir).name),
        ("partition", cluster.partition),
        ("account", cluster.account),
        ("qos", cluster.qos),
        ("time", cluster.time),
        ("nodes", str(cluster.nodes)),
        ("ntasks-per-node", str(cluster.processes_per_node)),
        ("cpus-per-task", str(cluster.cpus_per_process)),
        ("gres", cluster.gres()),
        ("mem", cluster.memory),
        ("signal", f"USR1@{cluster.signal_s}"),
        ("output", f"{logs}/slurm-{'%A_%a' if cluster.array else '%j'}.log"),
        ("array", f"1-{cluster.array}%1" if cluster.array else ""),
    ]
    switches = [("open-mode", "append"), ("requeue" if cluster.requeue else "no-requeue", "")]
    extra = [option.removeprefix("--").partition("=") for option in cluster.extra]
    return [(name, value) for name, value in given if value] + switches + [(name, v) for name, _, v in extra]


def _srun_options(cluster: SlurmCluster, job: Job) -> list[str]:
    logs = escape_file_name(str(Path(job.run_dir) / LOGS_FOLDER))
    return [
        f"--cpus-per-task={cluster.cpus_per_process}",  # srun ignores sbatch's value since Slurm 22.05
        "--kill-on-bad-exit=1",
        f"--wait={_LAST_TASKS_S}",
        "--open-mode=append",
        f"--output={logs}/rank-%5t.log",
        *cluster.pyxis_options(),
    ]


def _check_mounts(mounts: Sequence[str], run_dir: str) -> None:
    """Refuse a run folder outside the mounts: a pyxis container has no other folders."""
    inside = [Path(mount.split(":")[1]) for mount in mounts]
    if not any(folder == Path(run_dir) or folder in Path(run_dir).parents for folder in inside):
        raise ConfigError(
            f"container.mounts must mount {run_dir} under its own name, "
            f"as in ['{run_dir}:{run_dir}'], got {mounts}"
        )


def _check_no_job(job: Job) -> None:
    """Refuse a second job of a run: both would write to its folder."""
    if shutil.which("sbatch") is None:
        raise ConfigError("no program sbatch; fix: run this on a login node, or add --dry-run")
    if not (Path(job.run_dir) / LAUNCH_FOLDER / "launch.json").exists():
        return
    last = read_record(Path(job.run_dir))
    states = job_states(str(last.get("job_id"))) if last.get("kind") == "slurm" else []
    if states:
        raise ConfigError(
            f"job {last['job_id']} of {job.run_dir} is {states[0].lower()}; fix: set another run_dir, or run "
            f"`kinemae launch cancel {shlex.quote(job.run_dir)}`"
        )
