"""The commands of `kinemae launch`. Each is registered by its module; this file imports none of them."""

import argparse
from typing import Any, NamedTuple


class LaunchCommand(NamedTuple):
    """A command: the module whose `add_to` registers it, and its help."""

    module: str
    help: str


COMMANDS = {
    "local": LaunchCommand(
        "kinemae.launch.local",
        "run a training as several processes on this machine, with restarts after crashes",
    ),
    "ssh": LaunchCommand(
        "kinemae.launch.ssh",
        "run a training on several hosts by ssh, with restarts on the reachable hosts after crashes",
    ),
    "slurm": LaunchCommand(
        "kinemae.launch.slurm.command", "submit a training as a batch job to a Slurm cluster"
    ),
    "k8s": LaunchCommand(
        "kinemae.launch.k8s.command",
        "create a job on a Kubernetes cluster as a TrainJob or JobSet; paths are those inside the pods",
    ),
    "doctor": LaunchCommand(
        "kinemae.launch.doctor.command",
        "check every node before a run: versions, GPUs, network, process groups, shared folders",
    ),
    "plan": LaunchCommand(
        "kinemae.launch.plan.command",
        "estimate the memory of a run, and predict its time; nothing is started",
    ),
    "status": LaunchCommand("kinemae.launch.status", "show whether a run is alive, where, and its progress"),
    "logs": LaunchCommand("kinemae.launch.status", "print the log of a process of a run"),
    "cancel": LaunchCommand("kinemae.launch.status", "stop a run with a checkpoint; it can be resumed"),
}


def add_command(parsers: Any, name: str, example: str = "") -> argparse.ArgumentParser:
    """Register a subcommand with its help and an example."""
    parser = parsers.add_parser(
        name,
        help=COMMANDS[name].help,
        description=COMMANDS[name].help,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    assert isinstance(parser, argparse.ArgumentParser)
    return parser
