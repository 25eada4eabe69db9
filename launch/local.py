"""`launch local`: a run as several processes on this machine, supervised."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from launch.cluster import add_cluster_arguments, read_cluster, require, split_words
from launch.start import Launch, add_job_arguments, start
from launch.supervise import Limits, agent_commands

HOST = "localhost"


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """This machine.

    Attributes:
        processes: one for each GPU, or as the CPU's cores allow.
        environment: set for each process, over what is set here.
        container: words before the interpreter, as in [apptainer, exec, --nv, kinemae.sif].
        python: the interpreter of the processes; None: the one that runs `launch`.
        max_restarts, grace_s, stop_s, silence_s: see `Limits`.
    """

    processes: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    container: list[str] = field(default_factory=list)
    python: str | None = None
    max_restarts: int = 3
    grace_s: float = 20.0
    stop_s: float = 120.0
    silence_s: float = 30.0

    def __post_init__(self) -> None:
        require(self.processes >= 1, "processes", "be at least 1", self.processes)
        self.limits()

    def limits(self) -> Limits:
        """When to give up."""
        return Limits(
            max_restarts=self.max_restarts,
            grace_s=self.grace_s,
            stop_s=self.stop_s,
            silence_s=self.silence_s,
        )


class Here:
    """The link to this machine: none."""

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """See `Link.command`."""
        return list(words)


def add_to(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `local`."""
    parser = parsers.add_parser(
        "local",
        help="several processes on this machine",
        description="Run a training as processes on this machine; start it again after a crash.",
        epilog="example:\n  python -m launch local processes=2 -- pretrain CONFIG run_dir=RUN seed=1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_cluster_arguments(parser)
    add_job_arguments(parser)
    parser.set_defaults(run=run_local)


def run_local(arguments: argparse.Namespace) -> int:
    """The command."""
    return start(launch_of(read_cluster(LocalCluster, *split_words(arguments.words))), arguments)


def launch_of(cluster: LocalCluster) -> Launch:
    """How this machine runs a job."""
    limits, link = cluster.limits(), Here()
    return Launch(
        kind="local",
        slots={HOST: cluster.processes},
        link=link,
        commands=lambda job, planned: agent_commands(job, planned, limits, link),
        limits=limits,
        environment=cluster.environment,
        python=cluster.python,
        container=cluster.container,
        master="127.0.0.1",
    )
