"""`kinemae launch COMMAND [CLUSTER] [a.b=c] -- pretrain CONFIG [a.b=c]`."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from kinemae.data_tools.command import Command, Program, run_program
from kinemae.launch.job import JobRefused

_CLUSTER = ("cluster", "a cluster file, or a name that `kinemae configs` lists")
_RUN = ("run_dir", "the run folder, or k8s:NAMESPACE/KIND/NAME where it is not visible")
_DRY_RUN = ("--dry-run", "check and print what would run; start nothing")


def _run(module: str, function: str, *given: str) -> Callable[[argparse.Namespace], int]:
    """A `run` function that imports its module when it is called."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            called = getattr(importlib.import_module(f"kinemae.launch.{module}"), function)
            return int(called(*given, arguments))
        except JobRefused as refused:  # its text is the log of the dry run
            sys.stderr.write(f"{refused}\n")
            return refused.code

    return run


def _launcher(name: str, run: Callable[[argparse.Namespace], int], text: str, example: str) -> Command:
    """A command that starts a job on one kind of cluster."""
    return Command(
        name=name,
        help=text,
        example=f"kinemae launch {name} {example}",
        run=run,
        optional=_CLUSTER,
        options=[_DRY_RUN],
        takes_job=True,
    )


PROGRAM = Program(
    name="launch",
    description="Start and supervise trainings on this machine, on hosts by ssh, on Slurm or on Kubernetes.",
    commands=[
        _launcher(
            "local",
            _run("cluster", "run_start", "local:LocalCluster"),
            "run a training as several processes on this machine, with restarts after crashes",
            "processes=2 -- pretrain CONFIG run_dir=RUN seed=1",
        ),
        _launcher(
            "ssh",
            _run("cluster", "run_start", "ssh:SshCluster"),
            "run a training on several hosts by ssh, with restarts on the reachable hosts after crashes",
            "CLUSTER.yaml -- pretrain CONFIG run_dir=RUN",
        ),
        _launcher(
            "slurm",
            _run("cluster", "run_start", "slurm.cluster:SlurmCluster"),
            "submit a training as a batch job to a Slurm cluster",
            "CLUSTER.yaml nodes=4 -- pretrain CONFIG run_dir=RUN",
        ),
        _launcher(
            "k8s",
            _run("k8s.kubectl", "run_k8s"),
            "create a job on a Kubernetes cluster as a TrainJob or JobSet; paths are those inside the pods",
            "CLUSTER.yaml --dry-run -- pretrain CONFIG run_dir=/runs/a > job.yaml",
        ),
        Command(
            name="doctor",
            help="check every node before a run: versions, GPUs, network, process groups, shared folders",
            example="kinemae launch doctor slurm CLUSTER.yaml -- pretrain CONFIG run_dir=RUN",
            run=_run("doctor.nodes", "run_doctor"),
            positionals=[("kind", "kind of the cluster file: local, ssh or slurm")],
            optional=_CLUSTER,
            options=[
                ("--json", "print results and reports as JSON"),
                ("--dry-run", "print the probes' commands; start nothing"),
            ],
            value_options=[
                ("--run-dir", "DIR", "a folder that all nodes share and write to; default: that of the job"),
                ("--shards", "DIR ...", "a data set that all nodes read; repeatable"),
            ],
            takes_job=True,
        ),
        Command(
            name="plan",
            help="estimate the memory of a run, and predict its time; nothing is started",
            example="kinemae launch plan videomae_base nodes=2 device=h200",
            run=_run("plan.command", "run_plan"),
            positionals=[("config", "a config file, or a name that `kinemae configs` lists")],
            options=[("--json", "print the plan as JSON")],
        ),
        Command(
            name="status",
            help="show whether a run is alive, where, and its progress",
            example="kinemae launch status RUN",
            run=_run("status", "run_status"),
            positionals=[_RUN],
            options=[("--json", "print JSON")],
            takes_overrides=False,
        ),
        Command(
            name="logs",
            help="print the log of a process of a run",
            example="kinemae launch logs RUN --rank 3 --follow",
            run=_run("status", "run_logs"),
            positionals=[_RUN],
            options=[("--follow", "print new lines until the run has ended")],
            value_options=[
                ("--rank", "N", "rank of the process; default 0"),
                ("--lines", "N", "number of last lines; default 50"),
            ],
            takes_overrides=False,
        ),
        Command(
            name="cancel",
            help="stop a run with a checkpoint; it can be resumed",
            example="kinemae launch cancel RUN",
            run=_run("status", "run_cancel"),
            positionals=[_RUN],
            takes_overrides=False,
        ),
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
