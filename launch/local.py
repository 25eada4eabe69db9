"""`launch local`: a run as several processes on this machine, supervised."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from kinemae.launch.cluster import read_cluster, require, split_words
from kinemae.launch.supervisor.start import add_launcher, start
from kinemae.launch.supervisor.supervise import Launch, Limits, agent_commands

HOST = "localhost"


@dataclass(frozen=True, kw_only=True)
class LocalCluster(Limits):
    """This machine.

    Attributes:
        processes: one for each GPU, or as the CPU's cores allow.
        environment: set for each process, over what is set here.
        container: words before the interpreter, as in [apptainer, exec, --nv, kinemae.sif].
        python: the interpreter of the processes; None: the one that runs `launch`.
    """

    processes: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    container: list[str] = field(default_factory=list)
    python: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.processes >= 1, "processes", "be at least 1", self.processes)


class Here:
    """The link to this machine: none."""

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """See `Link.command`."""
        return list(words)


def add_to(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `local`."""
    add_launcher(
        parsers,
        "local",
        run_local,
        about="several processes on this machine",
        description="Run a training as processes on this machine; start it again after a crash.",
        epilog="example:\n  kinemae launch local processes=2 -- pretrain CONFIG run_dir=RUN seed=1",
    )


def run_local(arguments: argparse.Namespace) -> int:
    """The command."""
    return start(launch_of(read_cluster(LocalCluster, *split_words(arguments.words))), arguments)


def launch_of(cluster: LocalCluster) -> Launch:
    """How this machine runs a job."""
    link = Here()
    return Launch(
        kind="local",
        slots={HOST: cluster.processes},
        link=link,
        commands=lambda job, planned: agent_commands(job, planned, cluster, link),
        limits=cluster,
        environment=cluster.environment,
        python=cluster.python,
        container=cluster.container,
        master="127.0.0.1",
    )
