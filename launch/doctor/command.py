"""`launch doctor`: check every node before a run, and print a fix for each problem.

Exit codes: 0 if a run can start (warnings are possible), 1 if not, 2 for wrong usage.
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
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_INTERRUPTED
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.cluster import add_cluster_arguments, split_words
from kinemae.launch.commands import add_command
from kinemae.launch.doctor.results import as_json, as_text
from kinemae.launch.doctor.run_checks import DoctorOptions, run_checks
from kinemae.launch.doctor.targets import KINDS, Target, target_of
from kinemae.launch.job import check_job

EXIT_ERRORS = 1
# Weights and AdamW's two moments in fp32; two checkpoints are kept while a third one is written.
_BYTES_PER_PARAMETER, _CHECKPOINTS = 12, 3
_EXAMPLES = """examples:
  kinemae launch doctor local processes=2
  kinemae launch doctor ssh CLUSTER.yaml --run-dir RUN --shards SHARDS
  kinemae launch doctor slurm CLUSTER.yaml -- pretrain CONFIG run_dir=RUN"""


def add_to(parsers: Any) -> None:
    """Register `doctor`."""
    parser = add_command(parsers, "doctor", _EXAMPLES)
    parser.add_argument("kind", choices=KINDS, help="kind of the cluster file")
    add_cluster_arguments(parser)
    parser.add_argument("--run-dir", metavar="DIR", help="a folder that all nodes share and write to")
    parser.add_argument("--shards", metavar="DIR", action="append", default=[], help="a data set; repeatable")
    parser.add_argument("--json", action="store_true", help="print results and reports as JSON")
    parser.add_argument("--dry-run", action="store_true", help="print the probes' commands; start nothing")
    parser.set_defaults(run=run_doctor, takes_job=True)


def run_doctor(arguments: argparse.Namespace) -> int:
    """Run the command."""
    target = target_of(arguments.kind, *split_words(arguments.words))
    if arguments.dry_run:
        sys.stdout.write("".join(f"{shlex.join(command)}\n" for command, _ in target.commands))
        return 0
    options, began = _options(arguments, target), time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        results, reports = run_checks(target, options)
    except KeyboardInterrupt as interrupt:  # the probes have ended, and their jobs are cancelled
        sys.stderr.write("interrupted: the probes have ended\n")
        return int(interrupt.args[0] if interrupt.args else EXIT_INTERRUPTED)
    seconds = time.monotonic() - began
    if arguments.json:
        sys.stdout.write(json.dumps(as_json(results, reports, seconds), indent=1) + "\n")
    else:
        sys.stdout.write(as_text(results, len(target.processes), seconds))
    return EXIT_ERRORS if any(result.level == "error" for result in results) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(128 + number)


def _options(arguments: argparse.Namespace, target: Target) -> DoctorOptions:
    """The options of the command line, completed by a dry run of the job.

    Raises:
        ValueError: a URL instead of a folder.
        JobRefused: the dry run failed.
    """
    for folder in (arguments.run_dir, *arguments.shards):
        if folder and "://" in folder:
            raise ConfigError(f"expected a folder, got the URL {folder}; fix: use kinemae data verify")
    options = DoctorOptions(
        run_dir=str(Path(arguments.run_dir).absolute()) if arguments.run_dir else None,
        shards=[str(Path(folder).absolute()) for folder in arguments.shards],
    )
    if not arguments.job:
        return options
    summary = check_job(
        arguments.job,
        target.environment,
        world_size=sum(target.processes),
        trains_here=arguments.kind == "local",
    )
    parameters = summary.get("parameters")
    return replace(
        options,
        run_dir=options.run_dir or str(Path(summary["run_dir"]).absolute()),
        paths=[os.getcwd()],
        checkpoint_bytes=parameters and _CHECKPOINTS * _BYTES_PER_PARAMETER * parameters,
    )
