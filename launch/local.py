"""`launch local`: run several processes on this machine."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from kinemae.data_tools.overrides import require
from kinemae.launch.cluster import SupervisedConfig
from kinemae.launch.job import Job

HOST = "localhost"


@dataclass(frozen=True, kw_only=True)
class LocalCluster(SupervisedConfig):
    """Cluster file of `launch local`.

    Attributes:
        processes: one for each GPU, or as many as the CPU's cores allow.
    """

    processes: int = 1

    KIND = "local"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.processes >= 1, "processes", "be at least 1", self.processes)

    def slots(self) -> dict[str, int]:
        return {HOST: self.processes}

    def on_host(self, host: str, words: Sequence[str]) -> list[str]:
        return list(words)

    def commands(self, job: Job) -> dict[str, list[str]]:
        options = ["--host", HOST, "--node", "0", "--node-slots", str(self.processes)]
        return {HOST: self.agent_command(job, *options)}

    def run(self, job: Job) -> int:
        """This process becomes the agent."""
        command = self.commands(job)[HOST]
        sys.stdout.flush()
        os.execvp(command[0], command)
