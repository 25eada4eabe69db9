"""`launch slurm`: a readable batch script in the run's folder, given to sbatch."""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kinemae.launch.cluster import UsageError, read_cluster, require, split_words
from kinemae.launch.freezing import atomic_write_text
from kinemae.launch.job import LAUNCH_FOLDER, LOGS_FOLDER, Job, describe, prepare, publish
from kinemae.launch.record import Record, read_record
from kinemae.launch.slurm.cluster import Container, SlurmCluster
from kinemae.launch.slurm.script import batch_script, for_file_name
from kinemae.launch.slurm.watch import CANCELLED, OUTCOME, job_states
from kinemae.launch.supervisor.start import add_launcher

# Seconds that the other tasks have after the first that ended well; rank 0 exports and reports last.
_LAST_TASKS_S = 600
_EXAMPLE = """example:
  kinemae launch slurm configs/cluster/slurm.yaml nodes=4 -- pretrain CONFIG run_dir=RUN"""


def add_to(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `launch slurm`."""
    add_launcher(
        parsers,
        "slurm",
        run,
        about="a batch job on a Slurm cluster",
        description="Write a batch script into the run's folder and submit it.",
        epilog=_EXAMPLE,
    )


def run(arguments: argparse.Namespace) -> int:
    """Check, write, submit."""
    cluster = read_cluster(SlurmCluster, *split_words(arguments.words))
    job = prepare(
        arguments.job,
        cluster.environment,
        python=cluster.python or sys.executable,
        processes=cluster.nodes * cluster.processes_per_node,
        is_node=False,
    )
    job = replace(job, container=cluster.container_command())
    if arguments.dry_run:
        sys.stdout.write(plan_text(cluster, job))
        return 0
    script = script_of(cluster, job)
    path, command = _script_path(job), _submission(job)
    _check_idle(job)
    publish(job)
    for name in (CANCELLED, OUTCOME):
        (path.parent / name).unlink(missing_ok=True)
    atomic_write_text(path, script)
    job_id = _submitted(command)
    steps = job.counts.get("steps")
    record = Record(Path(job.run_dir), kind="slurm", job_id=job_id, command=command, steps=steps)
    record.note(state="submitted")
    sys.stdout.write(f"job {job_id}; kinemae launch status {shlex.quote(job.run_dir)}\n")
    return 0


def plan_text(cluster: SlurmCluster, job: Job) -> str:
    """What `--dry-run` prints: the batch script, job.json, and the command that submits."""
    lines = [
        f"would write {_script_path(job)}:",
        script_of(cluster, job),
        f"would write {job.path}:",
        describe(job),
        "",
        "would run:",
        f"  {shlex.join(_submission(job))}",
    ]
    return "\n".join(lines) + "\n"


def _script_path(job: Job) -> Path:
    return job.path.with_name("job.sbatch")


def _submission(job: Job) -> list[str]:
    return ["sbatch", "--parsable", str(_script_path(job))]


def script_of(cluster: SlurmCluster, job: Job) -> str:
    """The batch script of a job.

    Raises:
        UsageError: the run's folder cannot be used by Slurm, or is not mounted into the container.
    """
    is_fit = job.run_dir.isprintable() and "\\" not in job.run_dir
    require(is_fit, "run_dir", "be one line without backslashes: Slurm cannot log into others", job.run_dir)
    _check_mounts(cluster.container, job)
    settings: list[tuple[str, str | Sequence[str]]] = [
        ("cancelled", str(Path(job.run_dir) / LAUNCH_FOLDER / CANCELLED)),
        ("outcome", str(Path(job.run_dir) / LAUNCH_FOLDER / OUTCOME)),
        ("requeue", "yes" if cluster.requeue else "no"),
        ("max_restarts", str(cluster.max_restarts)),
        ("options", _srun_options(cluster, job)),
        ("task", [_outer_python(cluster, job), "-P", job.script("supervisor/task.py"), str(job.path)]),
    ]
    return batch_script("written by `kinemae launch slurm`", _directives(cluster, job), settings)


def _directives(cluster: SlurmCluster, job: Job) -> list[tuple[str, str]]:
    logs = for_file_name(str(Path(job.run_dir) / LOGS_FOLDER))
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
        ("signal", f"USR1@{cluster.warn_s}"),
        ("output", f"{logs}/slurm-{'%A_%a' if cluster.array else '%j'}.log"),
        ("array", f"1-{cluster.array}%1" if cluster.array else ""),
    ]
    switches = [("open-mode", "append"), ("requeue" if cluster.requeue else "no-requeue", "")]
    extra = [
        (name.removeprefix("--"), value) for name, _, value in (text.partition("=") for text in cluster.extra)
    ]
    return [(name, value) for name, value in given if value] + switches + extra


def _srun_options(cluster: SlurmCluster, job: Job) -> list[str]:
    logs = for_file_name(str(Path(job.run_dir) / LOGS_FOLDER))
    return [
        f"--cpus-per-task={cluster.cpus_per_process}",  # sbatch's does not reach srun since Slurm 22.05
        "--kill-on-bad-exit=1",
        f"--wait={_LAST_TASKS_S}",
        "--open-mode=append",
        f"--output={logs}/rank-%5t.log",
        *cluster.pyxis_options(),
    ]


def _outer_python(cluster: SlurmCluster, job: Job) -> str:
    """The interpreter of task.py: apptainer is started by it, pyxis around it."""
    return sys.executable if cluster.container.through == "apptainer" else job.python


def _check_mounts(container: Container, job: Job) -> None:
    """A container of pyxis sees nothing but its mounts; apptainer adds the home folder and more by itself."""
    if container.through != "pyxis":
        return
    seen = [Path(mount.split(":")[1]) for mount in container.mounts]
    if not any(folder == Path(job.run_dir) or folder in Path(job.run_dir).parents for folder in seen):
        raise UsageError(
            f"container.mounts must show {job.run_dir} under its own name inside the container, "
            f"as in ['{job.run_dir}:{job.run_dir}'], got {container.mounts}"
        )


def _check_idle(job: Job) -> None:
    """Refuse a second job of a run: both would write to its folder."""
    if shutil.which("sbatch") is None:
        raise UsageError("sbatch is not on the PATH: run this on a login node, or look with --dry-run")
    if not (Path(job.run_dir) / LAUNCH_FOLDER / "launch.json").exists():
        return
    last = read_record(Path(job.run_dir))
    states = job_states(str(last.get("job_id"))) if last.get("kind") == "slurm" else []
    if states:
        raise UsageError(
            f"job {last['job_id']} of {job.run_dir} is {states[0].lower()}: "
            f"end it with `kinemae launch cancel {shlex.quote(job.run_dir)}`, or choose another run_dir"
        )


def _submitted(command: list[str]) -> str:
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        raise UsageError(f"sbatch refused the job: {ran.stderr.strip()}")
    return ran.stdout.strip().partition(";")[0]  # with several clusters it says JOB;CLUSTER
