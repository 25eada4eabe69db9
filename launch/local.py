"""`launch local`: supervise several processes on this machine."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinemae.data_tools.overrides import require
from kinemae.launch.cluster import read_cluster, split_words
from kinemae.launch.supervisor.start import add_launcher, start
from kinemae.launch.supervisor.supervise import LaunchSpec, SupervisorConfig

HOST = "localhost"


@dataclass(frozen=True, kw_only=True)
class LocalCluster(SupervisorConfig):
    """Cluster file of `launch local`.

    Attributes:
        processes: one for each GPU, or as many as the CPU's cores allow.
    """

    processes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.processes >= 1, "processes", "be at least 1", self.processes)


class LocalTransport:
    """Runs commands on this machine."""

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """See `Transport.command`."""
        return list(words)


def add_to(parsers: Any) -> None:
    """Register `local`."""
    add_launcher(parsers, "local", run_local, "local processes=2 -- pretrain CONFIG run_dir=RUN seed=1")


def run_local(arguments: argparse.Namespace) -> int:
    """Run the command."""
    return start(spec_of(read_cluster(LocalCluster, *split_words(arguments.words))), arguments)


def spec_of(cluster: LocalCluster) -> LaunchSpec:
    """The launch specification of this machine."""
    return LaunchSpec(
        kind="local",
        slots={HOST: cluster.processes},
        transport=LocalTransport(),
        config=cluster,
        master="127.0.0.1",
    )
