"""`launch doctor`: looks at every node before a run does, and says what to mend.

Exit codes: 0 where a run can start (there may be warnings), 1 where something is wrong, 2 for wrong usage.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from kinemae.data_tools.exit_codes import EXIT_INTERRUPTED
from kinemae.launch.cluster import UsageError, add_cluster_arguments, split_words
from kinemae.launch.doctor.checks.findings import as_json, as_text
from kinemae.launch.doctor.checks.run_checks import Wishes, examine
from kinemae.launch.doctor.checks.sessions import Target
from kinemae.launch.doctor.checks.targets import KINDS, target_of
from kinemae.launch.job import dry_run

EXIT_UNWELL = 1
# Weights and AdamW's two moments, in fp32; two checkpoints are kept while a third one is written.
_BYTES_A_PARAMETER, _CHECKPOINTS = 12, 3
_EPILOG = """examples:
  kinemae launch doctor local processes=2
  kinemae launch doctor ssh CLUSTER.yaml --run-dir RUN --shards SHARDS
  kinemae launch doctor slurm CLUSTER.yaml -- pretrain CONFIG run_dir=RUN"""


def add_to(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `doctor`."""
    parser = parsers.add_parser(
        "doctor",
        help="look at every node before a run does, and say what to mend",
        description="Start a probe on every node, compare what they report, try ports, a process group and "
        "shared folders. Takes less than a minute. Leaves with 1 where a run could not start.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS, help="what the cluster file is for")
    add_cluster_arguments(parser)
    parser.add_argument("--run-dir", metavar="DIR", help="a folder that all nodes share, as a run's is")
    parser.add_argument(
        "--shards", metavar="DIR", action="append", default=[], help="a data set; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print findings and reports as JSON")
    parser.add_argument(
        "--dry-run", action="store_true", help="print how the probes would start; start nothing"
    )
    parser.set_defaults(run=run_doctor, takes_job=True)


def run_doctor(arguments: argparse.Namespace) -> int:
    """The command."""
    file, overrides = split_words(arguments.words)
    target = target_of(arguments.kind, file, overrides)
    if arguments.dry_run:
        sys.stdout.write("".join(f"{shlex.join(command)}\n" for command, _ in target.commands))
        return 0
    wishes, began = _wishes(arguments, target), time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        findings, reports = examine(target, wishes)
    except KeyboardInterrupt as interrupt:  # the probes are ended and their jobs cancelled
        code = interrupt.args[0] if interrupt.args else EXIT_INTERRUPTED
        sys.stderr.write("interrupted: the probes are ended\n")
        return int(code)
    seconds = time.monotonic() - began
    if arguments.json:
        sys.stdout.write(json.dumps(as_json(findings, reports, seconds), indent=1) + "\n")
    else:
        sys.stdout.write(as_text(findings, len(target.processes), seconds))
    return EXIT_UNWELL if any(finding.level == "error" for finding in findings) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(128 + number)


def _wishes(arguments: argparse.Namespace, target: Target) -> Wishes:
    """What the options name, and what a job behind `--` adds to it.

    Raises:
        UsageError: a URL where a folder is expected.
        JobRefused: the room refused the job.
    """
    for folder in (arguments.run_dir, *arguments.shards):
        if folder and "://" in folder:
            raise UsageError(
                f"{folder} is a URL, and the doctor looks at folders; kinemae data verify reads URLs"
            )
    wishes = Wishes(
        run_dir=str(Path(arguments.run_dir).absolute()) if arguments.run_dir else None,
        shards=[str(Path(folder).absolute()) for folder in arguments.shards],
    )
    if not arguments.job:
        return wishes
    world = sum(target.processes)
    counts = dry_run(arguments.job, target.environment, processes=world, is_node=arguments.kind == "local")
    parameters = counts.get("parameters")
    return replace(
        wishes,
        run_dir=wishes.run_dir or str(Path(counts["run_dir"]).absolute()),
        paths=[os.getcwd()],
        checkpoint_bytes=parameters and _CHECKPOINTS * _BYTES_A_PARAMETER * parameters,
    )
