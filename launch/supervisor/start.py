"""Start a job with agents, or print the plan of a dry run."""

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_CRASHED
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.cluster import add_cluster_arguments, add_command
from kinemae.launch.job import Job, plan_text, prepare_job, write_job
from kinemae.launch.record import Record, lock_run
from kinemae.launch.supervisor.policy import PolicyConfig


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(PolicyConfig):
    """Keys of `launch local` and `launch ssh` cluster files, with those of `PolicyConfig`.

    Attributes:
        environment: variables of each process.
        container: command prefix of each agent, as in [apptainer, exec, --nv, IMAGE].
        python: the interpreter of agents and processes; None for the current one.
    """

    environment: dict[str, str] = field(default_factory=dict)
    container: list[str] = field(default_factory=list)
    python: str | None = None

    def __post_init__(self) -> None:
        require(self.max_restarts >= 0, "max_restarts", "be 0 or more", self.max_restarts)
        require(self.grace_s > 0, "grace_s", "be more than 0 seconds", self.grace_s)
        require(self.stop_s > 0, "stop_s", "be more than 0 seconds", self.stop_s)
        limit_s = self.heartbeat_timeout_s
        require(limit_s >= 5, "heartbeat_timeout_s", "be at least 5 (an agent beats once a second)", limit_s)
        require(self.host_wait_s > 0, "host_wait_s", "be more than 0 seconds", self.host_wait_s)

    def policy(self) -> dict[str, Any]:
        """The values of `PolicyConfig`."""
        return {one.name: getattr(self, one.name) for one in fields(PolicyConfig)}


class Launch(Protocol):
    """One kind of cluster.

    Attributes:
        slots: the most processes of each host.
        trains_here: whether this machine is one of the hosts.
    """

    kind: str
    config: SupervisedConfig
    slots: Mapping[str, int]
    trains_here: bool

    def commands(self, job: Job, port: str) -> dict[str, list[str]]:
        """The command that starts the agent of each host; `port` is the store's if none is configured."""
        ...

    def run(self, job: Job) -> int:
        """Run the job to its end; return its exit code."""
        ...


def add_launcher(
    parsers: Any, name: str, text: str, run: Callable[[argparse.Namespace], int], example: str
) -> None:
    """Register a command that starts the job after `--` on one kind of cluster."""
    parser = add_command(parsers, name, text, f"  kinemae launch {example}")
    add_cluster_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check and print what would run; start nothing"
    )
    parser.set_defaults(run=run, takes_job=True)


def start(launch: Launch, arguments: argparse.Namespace) -> int:
    """Check and freeze the job, run it to its end, and return its exit code.

    Raises:
        ValueError, JobRefused: the job cannot start.
    """
    config = launch.config
    job = prepare_job(
        arguments.job,
        config.environment,
        python=config.python or sys.executable,
        world_size=sum(launch.slots.values()),
        trains_here=launch.trains_here,
    )
    job = replace(job, policy=config.policy())
    commands = launch.commands(job, "PORT")
    if arguments.dry_run:
        sys.stdout.write(plan_text(job, sum(launch.slots.values()), {}, commands))
        return 0
    program = next(iter(commands.values()))[0]
    if shutil.which(program) is None:
        raise ConfigError(
            f"expected a program {program!r} on this machine, found none; fix: install it, or set python"
        )
    run_dir = Path(job.run_dir)
    with lock_run(run_dir):
        write_job(job)
        record = Record(run_dir)
        record.begin(kind=launch.kind, command=sys.argv, steps=job.summary.get("steps"), run_id="1")
        try:
            return launch.run(job)
        except Exception as error:
            code = EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_CRASHED
            record.end(code)
            raise


def agent_command(container: Sequence[str], job: Job, *options: str) -> list[str]:
    """The command that starts an agent, with the command prefix of a container."""
    script = job.script("supervisor/agent.py")
    return [*container, job.python, "-P", script, str(job.path), *options]
