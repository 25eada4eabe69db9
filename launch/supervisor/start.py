"""From a cluster and a job to processes under supervision, or to a text that says what they would be."""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kinemae.data_tools.exit_codes import EXIT_CONFIG
from kinemae.launch.cluster import add_cluster_arguments
from kinemae.launch.job import Job, describe, prepare, publish
from kinemae.launch.record import Record, held, now
from kinemae.launch.supervisor.supervise import Launch, Start, Supervisor
from kinemae.launch.supervisor.task import command_of


def add_launcher(
    parsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    about: str,
    description: str,
    epilog: str,
) -> None:
    """Register a command that starts the job behind `--` on one kind of cluster."""
    parser = parsers.add_parser(
        name,
        help=about,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_cluster_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="check, print what would run; start nothing")
    parser.set_defaults(run=run, takes_job=True)


def start(launch: Launch, arguments: argparse.Namespace) -> int:
    """Check the job, freeze it, run it to its end; the exit code of the run.

    Raises:
        UsageError, JobRefused: it cannot be started.
    """
    world = sum(launch.slots.values())
    job = prepare(
        arguments.job,
        launch.environment,
        python=launch.python or sys.executable,
        processes=world,
        is_node=launch.is_node,
    )
    job = replace(job, container=launch.container)
    if arguments.dry_run:
        sys.stdout.write(plan_text(launch, job))
        return 0
    run_dir = Path(job.run_dir)
    with held(run_dir):
        publish(job)
        record = Record(run_dir, kind=launch.kind, command=sys.argv, steps=job.counts.get("steps"))
        record.note()
        try:
            return Supervisor(launch, job, record).run()
        except Exception:
            record.note(state="ended", code=EXIT_CONFIG, ended=now())
            raise


def plan_text(launch: Launch, job: Job) -> str:
    """What `--dry-run` prints: all that would be written and executed."""
    first = launch.master or next(iter(launch.slots))
    port = "PORT" if launch.port is None else str(launch.port)
    planned = Start(dealt=launch.slots, master=f"{first}:{port}")
    lines = [
        f"checked: {job.argv[0]} accepts the job on {sum(launch.slots.values())} processes",
        "would write:",
        f"  {job.code}/  the code{f' of commit {job.commit}' if job.commit else ''}",
        f"  {frozen_config(job)}  a copy of {job.config}",
        f"  {job.path}:",
        *(f"    {line}" for line in describe(job).splitlines()),
        "would run:" if port != "PORT" else f"would run, PORT being one that is free on {first} then:",
    ]
    for path, text in launch.files(job, planned).items():
        lines[-1:-1] = [f"  {path}:", *(f"    {line}" for line in text.splitlines())]
    for host, command in launch.commands(job, planned).items():
        lines += [f"  for {host}:", f"    {shlex.join(command)}"]
    lines += [
        "each process, after `task.py` has set its environment:",
        f"  {shlex.join(command_of(vars(job)))}",
    ]
    return "\n".join(lines) + "\n"


def frozen_config(job: Job) -> str:
    """The frozen copy of the config."""
    return next(word for word in job.argv if word.startswith(str(job.path.parent)))
