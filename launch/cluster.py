"""Cluster files, a YAML file and `a.b=c` overrides as all configs; and the start of a job on a cluster."""

import argparse
import importlib
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from kinemae.data_tools.config_files import find_config
from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_CRASHED
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.job import Job, config_index, plan_text, prepare_job, write_job
from kinemae.launch.record import Record, lock_run
from kinemae.launch.slurm.queue import refuse_queued
from kinemae.launch.supervisor.policy import PolicyConfig

Cluster = TypeVar("Cluster")


def read_cluster(schema: type[Cluster], file: str | Path | None, overrides: Sequence[str]) -> Cluster:
    """Build the config of one kind of cluster.

    Args:
        schema: a config dataclass.
        file: a YAML file, or the name of one in `configs/cluster`; None for defaults and overrides alone.
    """
    from kinemae.data_tools.config import load_config  # imports omegaconf, which --help does not need

    path = None if file is None else find_config(str(file), "cluster")
    return load_config(schema, path, overrides)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(ABC):
    """A kind of cluster on which `launch` starts agents, with the keys that all of them have.

    Attributes:
        environment: variables of each process.
        container: command prefix of each agent, as in [apptainer, exec, --nv, IMAGE].
        python: the interpreter of agents and processes; None for the current one.
        KIND: name of the command.
    """

    environment: dict[str, str] = field(default_factory=dict)
    container: list[str] = field(default_factory=list)
    python: str | None = None

    KIND: ClassVar[str]

    @abstractmethod
    def world(self) -> int:
        """The number of processes."""

    @abstractmethod
    def policy(self) -> dict[str, Any]:
        """The values of `PolicyConfig` that differ from its defaults."""

    def files(self, job: Job) -> dict[Path, str]:
        """Further files of the run folder, which `start` writes."""
        return {}

    @abstractmethod
    def commands(self, job: Job) -> dict[str, list[str]]:
        """The commands of a launch by the host that runs each, for a dry run; the first is that of `run`."""

    @abstractmethod
    def run(self, job: Job) -> int:
        """Run the job to its end, or submit it; return the exit code."""

    def agent_command(self, job: Job, *options: str) -> list[str]:
        """The command that starts an agent, with the command prefix of a container."""
        script = job.script("supervisor/agent.py")
        return [*self.container, job.python, "-P", script, str(job.path), *options]


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(PolicyConfig, ClusterConfig):
    """Keys of `launch local` and `launch ssh` cluster files, with those of `PolicyConfig`."""

    def __post_init__(self) -> None:
        require(self.max_restarts >= 0, "max_restarts", "be 0 or more", self.max_restarts)
        least_s = {"grace_s": 0.1, "stop_s": 0.1, "host_wait_s": 0.1, "heartbeat_timeout_s": 5}
        for key, least in least_s.items():  # an agent beats once a second
            value = getattr(self, key)
            require(least <= value <= 1e8, key, f"be at least {least} and at most 1e8 seconds", value)

    @abstractmethod
    def slots(self) -> dict[str, int]:
        """The most processes of each host, in order; the first host has the store."""

    @abstractmethod
    def on_host(self, host: str, words: Sequence[str]) -> list[str]:
        """The command that executes `words` on a host."""

    def world(self) -> int:
        return sum(self.slots().values())

    def policy(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(PolicyConfig)}


def run_start(schema: str, arguments: argparse.Namespace) -> int:
    """Run `launch local`, `ssh` or `slurm`; `schema` is MODULE:CLASS of the cluster file."""
    config_index(arguments.job)  # refuses a wrong job before slow imports
    module, _, name = schema.partition(":")
    kind: type[ClusterConfig] = getattr(importlib.import_module(f"kinemae.launch.{module}"), name)
    return start(read_cluster(kind, arguments.cluster, arguments.overrides), arguments)


def start(cluster: ClusterConfig, arguments: argparse.Namespace) -> int:
    """Check and freeze the job, run or submit it, and return the exit code."""
    job = prepare_job(
        arguments.job,
        cluster.environment,
        python=cluster.python or sys.executable,
        world_size=cluster.world(),
        trains_here=cluster.KIND == "local",
    )
    job = replace(job, policy=cluster.policy())
    files, commands = cluster.files(job), cluster.commands(job)
    if arguments.dry_run:
        sys.stdout.write(plan_text(job, cluster.world(), files, commands))
        return 0
    check_program(next(iter(commands.values()))[0])
    run_dir = Path(job.run_dir)
    with lock_run(run_dir):
        refuse_queued(run_dir)
        write_job(job)
        record = Record(run_dir)
        record.begin(kind=cluster.KIND, steps=job.summary.get("steps"), run_id="1")
        try:
            for path, text in files.items():
                atomic_write_text(path, text)
            return cluster.run(job)
        except Exception as error:
            record.end(EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_CRASHED)
            raise


def check_program(name: str) -> None:
    """Raise a ConfigError if this machine lacks the program that starts the job."""
    problem = f"expected a program {name!r} on this machine, found none"
    if shutil.which(name) is None:
        raise ConfigError(f"{problem}; fix: install it, set python, or use a login node of the cluster")
