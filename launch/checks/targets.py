"""From a cluster file to the nodes that the doctor visits."""

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from launch.checks.nodes import probe_words
from launch.checks.rounds import Target
from launch.cluster import UsageError, read_cluster
from launch.local import LocalCluster


def _local(file: Path | None, overrides: list[str]) -> Target:
    cluster = read_cluster(LocalCluster, file, overrides)
    command = [*cluster.container, *probe_words(cluster.python or sys.executable, 0)]
    return Target(
        names=["localhost"],
        processes=[cluster.processes],
        commands=[(command, [0])],
        environment=cluster.environment,
        master="127.0.0.1",
    )


KINDS: Mapping[str, Callable[[Path | None, list[str]], Target]] = {"local": _local}


def target_of(kind: str, file: Path | None, overrides: list[str]) -> Target:
    """The nodes of a cluster file and how probes get there.

    Raises:
        UsageError: the file cannot be used, or the program that starts the probes is not installed here.
    """
    target = KINDS[kind](file, overrides)
    for command, _ in target.commands:
        if shutil.which(command[0]) is None:
            raise UsageError(f"no program {command[0]!r} on this machine; it is needed to start the probes")
    return target
