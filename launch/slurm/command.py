"""`launch slurm`: write a batch script into the run folder and submit it."""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_CONFIG
from kinemae.data_tools.files import atomic_write_text, to_json_lines
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.cluster import read_cluster, split_words
from kinemae.launch.job import LAUNCH_FOLDER, LOGS_FOLDER, Job, prepare_job, write_job
from kinemae.launch.record import STOP, Record, is_locked, read_record
from kinemae.launch.slurm.batch import BatchSettings
from kinemae.launch.slurm.cluster import SlurmCluster
from kinemae.launch.slurm.queue import CANCELLED, job_states
from kinemae.launch.slurm.script import batch_script, escape_file_name
from kinemae.launch.supervisor.start import add_launcher, agent_command

SETTINGS = "slurm.json"


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
    job = replace(job, policy={"max_restarts": cluster.max_restarts, "stop_s": float(cluster.signal_s)})
    if arguments.dry_run:
        sys.stdout.write(plan_text(cluster, job))
        return 0
    script, path = script_of(cluster, job), _script_path(job)
    _check_no_job(job)
    write_job(job)
    for name in (CANCELLED, STOP):
        (path.parent / name).unlink(missing_ok=True)
    record = Record(Path(job.run_dir))  # before the job, which changes it
    record.begin(kind="slurm", steps=job.summary.get("steps"), state="submitted")
    atomic_write_text(path, script)
    atomic_write_text(path.with_name(SETTINGS), to_json_lines(asdict(settings_of(cluster, job))))
    command = _submit_command(job)
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        record.update(state="ended", code=EXIT_CONFIG)
        raise ConfigError(f"sbatch refused the job: {ran.stderr.strip()}")
    job_id = ran.stdout.strip().partition(";")[0]  # JOB;CLUSTER if there are several clusters
    record.update(job_id=job_id)
    sys.stdout.write(f"job {job_id}; kinemae launch status {shlex.quote(job.run_dir)}\n")
    return 0


def plan_text(cluster: SlurmCluster, job: Job) -> str:
    """The output of `--dry-run`: the batch script, job.json and the submit command."""
    lines = [
        f"would write {_script_path(job)}:",
        script_of(cluster, job),
        f"would write {job.path.with_name(SETTINGS)}:",
        to_json_lines(asdict(settings_of(cluster, job))),
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
    command = [sys.executable, "-P", job.script("slurm/batch.py"), str(job.path.with_name(SETTINGS))]
    return batch_script(_directives(cluster, job), command)


def settings_of(cluster: SlurmCluster, job: Job) -> BatchSettings:
    """The settings of the batch job."""
    cores = cluster.processes_per_node * cluster.cpus_per_process
    # srun ignores sbatch's value since Slurm 22.05. Without a spare node, Slurm ends the job with a node.
    srun = [f"--cpus-per-task={cores}", "--kill-on-bad-exit=0", "--wait=0", *cluster.pyxis_options()]
    slots = ["--node-slots", str(cluster.processes_per_node)]
    return BatchSettings(
        run_dir=job.run_dir,
        nodes=cluster.nodes,
        spare=cluster.spare,
        requeue=cluster.requeue,
        max_restarts=cluster.max_restarts,
        srun=[*srun, *(["--no-kill"] if cluster.spare else [])],
        agent=agent_command(cluster.container_command(), job, *slots),
        master=cluster.environment.get("MASTER_ADDR", ""),
    )


def _directives(cluster: SlurmCluster, job: Job) -> list[tuple[str, str]]:
    logs = escape_file_name(str(Path(job.run_dir) / LOGS_FOLDER))
    given = [
        ("job-name", cluster.name or Path(job.run_dir).name),
        ("partition", cluster.partition),
        ("account", cluster.account),
        ("qos", cluster.qos),
        ("time", cluster.time),
        ("nodes", str(cluster.nodes + cluster.spare)),
        ("ntasks-per-node", "1"),
        ("cpus-per-task", str(cluster.processes_per_node * cluster.cpus_per_process)),
        ("gres", cluster.gres()),
        ("mem", cluster.memory),
        ("signal", f"B:USR1@{cluster.signal_s}"),
        ("output", f"{logs}/slurm-{'%A_%a' if cluster.array else '%j'}.log"),
        ("array", f"1-{cluster.array}%1" if cluster.array else ""),
    ]
    switches = [("open-mode", "append"), ("requeue" if cluster.requeue else "no-requeue", "")]
    switches += [("no-kill", "")] if cluster.spare else []
    extra = [option.removeprefix("--").partition("=") for option in cluster.extra]
    return [(name, value) for name, value in given if value] + switches + [(name, v) for name, _, v in extra]


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
    states = job_states(last["job_id"]) if last["kind"] == "slurm" and last["job_id"] else []
    if states or is_locked(Path(job.run_dir)):
        name = f"job {last['job_id']}" if states else f"`launch {last['kind']}`"
        state = states[0].lower() if states else "running"
        raise ConfigError(
            f"{name} of {job.run_dir} is {state}; fix: set another run_dir, or run "
            f"`kinemae launch cancel {shlex.quote(job.run_dir)}`"
        )
