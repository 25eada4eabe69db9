"""`launch doctor`: check every node before a run, and print a fix for each problem.

Exit codes: 0 if a run can start (warnings are possible), 1 if not, 2 for wrong usage.
"""

import argparse
import json
import secrets
import shlex
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_INTERRUPTED
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.cluster import add_cluster_arguments, add_command, split_words
from kinemae.launch.doctor import probe
from kinemae.launch.doctor.checks import PACKAGES, as_text, evaluate
from kinemae.launch.doctor.nodes import KINDS, ask, target_of
from kinemae.launch.job import check_job

EXIT_ERRORS = 1
_EXAMPLES = """\
  kinemae launch doctor local processes=2
  kinemae launch doctor ssh CLUSTER.yaml --run-dir RUN --shards SHARDS
  kinemae launch doctor slurm CLUSTER.yaml -- pretrain CONFIG run_dir=RUN"""


def add_to(parsers: Any) -> None:
    """Register `doctor`."""
    text = "check every node before a run: versions, GPUs, network, process groups, shared folders"
    parser = add_command(parsers, "doctor", text, _EXAMPLES)
    parser.add_argument("kind", choices=KINDS, help="kind of the cluster file")
    add_cluster_arguments(parser)
    parser.add_argument("--run-dir", metavar="DIR", help="a folder that all nodes share and write to")
    parser.add_argument("--shards", metavar="DIR", action="append", default=[], help="a data set; repeatable")
    parser.add_argument("--json", action="store_true", help="print results and reports as JSON")
    parser.add_argument("--dry-run", action="store_true", help="print the probes' commands; start nothing")
    parser.set_defaults(run=run_doctor, takes_job=True)


def run_doctor(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        ValueError: wrong usage, or a run_dir that cannot be written here.
        JobRefused: the dry run of the job failed.
    """
    target = target_of(arguments.kind, *split_words(arguments.words))
    if arguments.dry_run:
        sys.stdout.write("".join(f"{shlex.join(command)}\n" for command, _ in target.commands))
        return 0
    for folder in (arguments.run_dir, *arguments.shards):
        if folder and "://" in folder:
            raise ConfigError(f"expected a folder, got the URL {folder}; fix: use kinemae data verify")
    run_dir = arguments.run_dir
    if arguments.job:
        world_size, is_local = sum(target.processes), arguments.kind == "local"
        job = check_job(arguments.job, target.environment, world_size=world_size, trains_here=is_local)
        run_dir = run_dir or job["run_dir"]
    request: dict[str, Any] = {
        "packages": PACKAGES,
        "shards": [str(Path(folder).absolute()) for folder in arguments.shards],
        "token": secrets.token_hex(16),
        "processes": target.processes,
    }
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    began = time.monotonic()
    try:
        with _folder_in(run_dir and Path(run_dir).absolute()) as request["run_dir"]:
            reports = ask(target, request)
            seen_here = probe.seen(0, request) or ()
    except KeyboardInterrupt as interrupt:  # the probes have ended, and their jobs are cancelled
        sys.stderr.write("interrupted: the probes have ended\n")
        return int(interrupt.args[0] if interrupt.args else EXIT_INTERRUPTED)
    processes = dict(zip(reports, target.processes, strict=True))
    results = evaluate(reports, processes, run_dir=str(run_dir), seen_here=seen_here)
    seconds = time.monotonic() - began
    page = {"seconds": round(seconds, 1), "results": list(map(asdict, results)), "nodes": reports}
    sys.stdout.write(json.dumps(page, indent=1) + "\n" if arguments.json else as_text(results, seconds))
    return EXIT_ERRORS if any(result.level == "error" for result in results) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(128 + number)


def _folder_in(run_dir: Path | None) -> AbstractContextManager[str | None]:
    """A temporary folder in the run folder, which is created if it does not exist."""
    if run_dir is None:
        return nullcontext()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix="doctor-", dir=run_dir, ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {run_dir}: {error.strerror}; fix: set another run_dir") from error
