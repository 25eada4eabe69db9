"""`launch slurm`: write a batch script into the run folder and submit it."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_CONFIG
from kinemae.data_tools.files import atomic_write_text, to_json_lines
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.cluster import read_cluster, split_words
from kinemae.launch.job import LAUNCH_FOLDER, LOGS_FOLDER, Job, plan_text, prepare_job, write_job
from kinemae.launch.record import STOP, Record, is_locked, read_record
from kinemae.launch.slurm.batch import SETTINGS, agents_command
from kinemae.launch.slurm.cluster import SlurmCluster
from kinemae.launch.slurm.queue import CANCELLED, describe_job
from kinemae.launch.supervisor.start import add_launcher

SCRIPT = "job.sbatch"
_UNQUOTED = re.compile(r"[\w.,:=/@+%*~-]+", re.ASCII)  # values that sbatch takes without quotes


def add_to(parsers: Any) -> None:
    """Register `slurm`."""
    example = "slurm CLUSTER.yaml nodes=4 -- pretrain CONFIG run_dir=RUN"
    add_launcher(parsers, "slurm", "submit a training as a batch job to a Slurm cluster", run, example)


def run(arguments: argparse.Namespace) -> int:
    """Check the job, write the batch script, submit it."""
    cluster = read_cluster(SlurmCluster, *split_words(arguments.words))
    processes = cluster.nodes * cluster.processes_per_node
    job = prepare_job(
        arguments.job,
        cluster.environment,
        python=cluster.python or sys.executable,
        world_size=processes,
        trains_here=False,
    )
    job = replace(job, policy={"max_restarts": cluster.max_restarts, "stop_s": float(cluster.signal_s)})
    files = files_of(cluster, job)
    command = ["sbatch", "--parsable", str(job.path.with_name(SCRIPT))]
    if arguments.dry_run:
        agents = agents_command(cluster, job, "ADDRESS:PORT", "JOB")
        commands = {"this machine": command, "the first node": agents}
        sys.stdout.write(plan_text(job, processes, files, commands))
        return 0
    _check_no_job(Path(job.run_dir))
    write_job(job)
    for name in (CANCELLED, STOP):
        job.path.with_name(name).unlink(missing_ok=True)
    record = Record(Path(job.run_dir))  # before the job, which changes it
    record.begin(kind="slurm", steps=job.summary.get("steps"), state="submitted")
    for path, text in files.items():
        atomic_write_text(path, text)
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        record.update(state="ended", code=EXIT_CONFIG)
        raise ConfigError(f"sbatch refused the job: {ran.stderr.strip()}")
    job_id = ran.stdout.strip().partition(";")[0]  # JOB;CLUSTER if there are several clusters
    record.update(job_id=job_id)
    sys.stdout.write(f"job {job_id}; kinemae launch status {shlex.quote(job.run_dir)}\n")
    return 0


def files_of(cluster: SlurmCluster, job: Job) -> dict[Path, str]:
    """The batch script, and the keys of the cluster file for `batch.py`.

    The script becomes one command, so that Slurm's signals reach it.

    Raises:
        ValueError: Slurm cannot use the run folder, or a value that no `#SBATCH` line can contain.
    """
    can_log = job.run_dir.isprintable() and "\\" not in job.run_dir
    require(can_log, "run_dir", "be one line without backslashes: Slurm cannot log into others", job.run_dir)
    command = [sys.executable, "-P", job.script("slurm/batch.py"), str(job.path)]
    lines = ["#!/bin/bash", "# written by `kinemae launch slurm`"]
    lines += [f"#SBATCH {_quoted(option)}" for option in _options(cluster, job)]
    script = "\n".join(lines) + "\n\nexec " + " \\\n    ".join(map(shlex.quote, command)) + "\n"
    usual = asdict(SlurmCluster())
    settings = {key: value for key, value in asdict(cluster).items() if value != usual[key]}
    return {job.path.with_name(SCRIPT): script, job.path.with_name(SETTINGS): to_json_lines(settings)}


def _options(cluster: SlurmCluster, job: Job) -> list[str]:
    """All options of sbatch."""
    logs = str(Path(job.run_dir) / LOGS_FOLDER).replace("%", "%%")  # `%` begins a field such as `%j`
    given = cluster.options(
        job_name=cluster.name or Path(job.run_dir).name,
        time=cluster.time,
        nodes=str(cluster.nodes + cluster.spare),
        signal=f"B:USR1@{cluster.signal_s}",
        output=f"{logs}/slurm-%j.log",
        open_mode="append",
    )
    switches = ["--requeue" if cluster.requeue else "--no-requeue", *(["--no-kill"] if cluster.spare else [])]
    return [*given, *switches, *cluster.extra]


def _quoted(option: str) -> str:
    name, equals, value = option.partition("=")
    require(option.isprintable(), f"{name} of sbatch", "be one line of printable text", value)
    if not equals or _UNQUOTED.fullmatch(value):
        return option
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'


def _check_no_job(run_dir: Path) -> None:
    """Refuse a second job of a run: both would write to its folder."""
    if shutil.which("sbatch") is None:
        raise ConfigError("no program sbatch; fix: run this on a login node, or add --dry-run")
    if not (run_dir / LAUNCH_FOLDER / "launch.json").exists():
        return
    last = read_record(run_dir)
    shown = describe_job(last["job_id"]) if last["kind"] == "slurm" and last["job_id"] else ""
    if shown or is_locked(run_dir):
        name = f"job {last['job_id']}" if shown else f"`launch {last['kind']}`"
        state = shown.partition(",")[0] or "running"
        raise ConfigError(
            f"{name} of {run_dir} is {state}; fix: set another run_dir, or run "
            f"`kinemae launch cancel {shlex.quote(str(run_dir))}`"
        )
