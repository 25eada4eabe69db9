"""Start a job under supervision, or print the plan of a dry run."""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_CRASHED
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.cluster import add_cluster_arguments
from kinemae.launch.commands import add_command
from kinemae.launch.job import Job, prepare_job, write_job
from kinemae.launch.record import Record, lock_run, now
from kinemae.launch.supervisor.supervise import LaunchSpec, StartPlan, Supervisor, agent_commands
from kinemae.launch.supervisor.task import command_of


def add_launcher(parsers: Any, name: str, run: Callable[[argparse.Namespace], int], example: str) -> None:
    """Register a command that starts the job after `--` on one kind of cluster."""
    parser = add_command(parsers, name, f"example:\n  kinemae launch {example}")
    add_cluster_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check and print what would run; start nothing"
    )
    parser.set_defaults(run=run, takes_job=True)


def start(spec: LaunchSpec, arguments: argparse.Namespace) -> int:
    """Check and freeze the job, run it to its end, and return its exit code.

    Raises:
        ValueError, JobRefused: the job cannot start.
    """
    job = prepare_job(
        arguments.job,
        spec.config.environment,
        python=spec.config.python or sys.executable,
        world_size=sum(spec.slots.values()),
        trains_here=spec.trains_here,
    )
    job = replace(job, container=spec.config.container)
    if arguments.dry_run:
        sys.stdout.write(plan_text(spec, job))
        return 0
    run_dir = Path(job.run_dir)
    with lock_run(run_dir):
        write_job(job)
        record = Record(run_dir, kind=spec.kind, command=sys.argv, steps=job.summary.get("steps"))
        record.update()
        try:
            return Supervisor(spec, job, record).run()
        except Exception as error:
            code = EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_CRASHED
            record.update(state="ended", code=code, ended=now())
            raise


def plan_text(spec: LaunchSpec, job: Job) -> str:
    """The output of `--dry-run`: all files and commands."""
    port = "PORT" if spec.port is None else str(spec.port)
    plan = StartPlan(processes=spec.slots, master=f"{spec.master}:{port}")
    lines = [
        f"checked: {job.argv[0]} accepts the job on {plan.world_size} processes",
        "would write:",
        f"  {job.code}/  the code{f' of commit {job.commit}' if job.commit else ''}",
        f"  {job.frozen_config}  a copy of {job.config}",
        f"  {job.path}:",
        *(f"    {line}" for line in job.to_json().splitlines()),
        "would run:" if spec.port else f"would run, with a free port of {spec.master} as PORT:",
    ]
    for host, command in agent_commands(spec, job, plan).items():
        lines += [f"  for {host}:", f"    {shlex.join(command)}"]
    lines += [
        "each process, after `task.py` has set its environment:",
        f"  {shlex.join(command_of(vars(job)))}",
    ]
    return "\n".join(lines) + "\n"
