"""`launch local`: run several processes on this machine."""

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kinemae.data_tools.overrides import require
from kinemae.launch.cluster import read_cluster, split_words
from kinemae.launch.job import Job
from kinemae.launch.supervisor.start import SupervisedConfig, add_launcher, agent_command, start

HOST = "localhost"


@dataclass(frozen=True, kw_only=True)
class LocalCluster(SupervisedConfig):
    """Cluster file of `launch local`.

    Attributes:
        processes: one for each GPU, or as many as the CPU's cores allow.
    """

    processes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.processes >= 1, "processes", "be at least 1", self.processes)


class LocalLaunch:
    """See `Launch`: this process becomes the agent."""

    kind, trains_here = "local", True

    def __init__(self, config: LocalCluster):
        self.config: SupervisedConfig = config
        self.slots: Mapping[str, int] = {HOST: config.processes}

    def commands(self, job: Job, port: str = "") -> dict[str, list[str]]:
        """See `Launch.commands`."""
        options = ["--host", HOST, "--node", "0", "--node-slots", str(self.slots[HOST])]
        return {HOST: agent_command(self.config.container, job, *options)}

    def run(self, job: Job) -> int:
        """See `Launch.run`."""
        command = self.commands(job)[HOST]
        sys.stdout.flush()
        os.execvp(command[0], command)


def add_to(parsers: Any) -> None:
    """Register `local`."""
    text = "run a training as several processes on this machine, with restarts after crashes"
    add_launcher(parsers, "local", text, run_local, "local processes=2 -- pretrain CONFIG run_dir=RUN seed=1")


def run_local(arguments: argparse.Namespace) -> int:
    """Run the command."""
    return start(LocalLaunch(read_cluster(LocalCluster, *split_words(arguments.words))), arguments)
