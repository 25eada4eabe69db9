"""`launch doctor`: start a probe on every node of a cluster file, and print a fix for each problem."""

import argparse
import json
import os
import random
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_INTERRUPTED
from kinemae.data_tools.overrides import ConfigError, require
from kinemae.launch.cluster import SupervisedConfig, check_program, read_cluster
from kinemae.launch.doctor import probe
from kinemae.launch.doctor.checks import PACKAGES, as_text, evaluate
from kinemae.launch.job import check_job
from kinemae.launch.local import LocalCluster
from kinemae.launch.slurm.cluster import SlurmCluster
from kinemae.launch.ssh import SshCluster

EXIT_ERRORS = 1
SOURCE = Path(probe.__file__).read_text(encoding="utf-8")
GROUP_S = 120  # slow file systems need a minute to import torch
_RUN_S = GROUP_S + 60  # of a probe
_QUEUE_S, _MOST_MINUTES = 120, 5  # of a Slurm job, which has to include _RUN_S
_PORTS = range(20_000, 32_000)  # below Linux' ephemeral ports
_TAIL_LINES = 5


def run_doctor(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code is `EXIT_ERRORS` if a run cannot start."""
    kind = arguments.kind
    require(kind in KINDS, "the kind of cluster", f"be one of {', '.join(KINDS)}", kind)
    target = KINDS[kind](arguments.cluster, arguments.overrides)
    check_program(target.commands[0][0][0])
    if arguments.dry_run:
        sys.stdout.write("".join(f"{shlex.join(command)}\n" for command, _ in target.commands))
        return 0
    shards = arguments.shards or []
    for folder in (arguments.run_dir, *shards):
        if folder and "://" in folder:
            raise ConfigError(f"expected a folder, got the URL {folder}; fix: use kinemae data verify")
    run_dir = arguments.run_dir
    if arguments.job:
        world_size, is_local = sum(target.processes), kind == "local"
        job = check_job(arguments.job, target.environment, world_size=world_size, trains_here=is_local)
        run_dir = run_dir or job["run_dir"]
    request: dict[str, Any] = {
        "packages": PACKAGES,
        "shards": [str(Path(folder).absolute()) for folder in shards],
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


@dataclass(frozen=True, kw_only=True)
class Target:
    """The nodes of a cluster as a job would use them.

    Attributes:
        names: of the nodes; empty if a scheduler chooses them.
        processes: of each node.
        commands: the commands that start the probes, and the nodes of each.
        master: address of the rendezvous on the first node; None on Slurm, where the nodes query it.
        limit_s: time limit of a probe, including a scheduler's queue.
    """

    names: list[str]
    processes: list[int]
    commands: Sequence[tuple[Sequence[str], Sequence[int]]]
    environment: Mapping[str, str]
    master: str | None
    port: int
    limit_s: float = _RUN_S


def _local(file: str | None, overrides: list[str]) -> Target:
    return _on_hosts(read_cluster(LocalCluster, file, overrides), "127.0.0.1", None)


def _ssh(file: str | None, overrides: list[str]) -> Target:
    cluster = read_cluster(SshCluster, file, overrides)
    return _on_hosts(cluster, cluster.master, cluster.master_port)


def _on_hosts(cluster: SupervisedConfig, master: str, port: int | None) -> Target:
    slots, words = cluster.slots(), [*cluster.container, cluster.python or sys.executable, "-"]
    return Target(
        names=list(slots),
        processes=list(slots.values()),
        commands=[(cluster.on_host(host, [*words, str(node)]), [node]) for node, host in enumerate(slots)],
        environment=cluster.environment,
        master=master,
        port=port or random.choice(_PORTS),
    )


def _slurm(file: str | None, overrides: list[str]) -> Target:
    """One step with a task on each node, in the current allocation or in a new one."""
    cluster = read_cluster(SlurmCluster, file, overrides)
    options = cluster.options(
        job_name="kinemae-doctor",
        immediate=str(_QUEUE_S),
        time=str(_MOST_MINUTES),
        nodes=str(cluster.nodes),
        ntasks=str(cluster.nodes),
    )
    words = [*cluster.container, cluster.python or sys.executable, "-"]
    return Target(
        names=[],
        processes=[cluster.processes_per_node] * cluster.nodes,
        commands=[(["srun", *options, *cluster.extra, *cluster.srun, *words], range(cluster.nodes))],
        environment=cluster.environment,
        master=None,
        port=random.choice(_PORTS),
        limit_s=_QUEUE_S + _RUN_S,
    )


KINDS = {"local": _local, "ssh": _ssh, "slurm": _slurm}


def ask(target: Target, request: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Run a probe on all nodes at once; `request` lacks what concerns the target, see `probe.main`.

    Returns:
        The report of each node by its name: the parts that it has printed, `stage` if it has started, and
        `lost` with the reason if it is not complete.
    """
    whole = {**request, "source": SOURCE, "environment": dict(target.environment), "limit_s": GROUP_S}
    whole |= {"master": target.master, "port": target.port, "processes": target.processes}
    program = f"{SOURCE}\nmain({whole!r})\n"
    started = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,  # only the doctor handles Ctrl-C
        )
        for command, _ in target.commands
    ]  # fmt: skip
    with ThreadPoolExecutor(len(started)) as pool:
        try:
            outputs = list(pool.map(lambda process: _output_of(process, program, target.limit_s), started))
        finally:
            for process in started:
                _end(process)
    reports: dict[str, dict[str, Any]] = {}
    for (_, nodes), (output, reason) in zip(target.commands, outputs, strict=True):
        for node, report in _parse(output, nodes).items():
            if report.get("stage") != "done":
                report["lost"] = reason
            name = report.get("host", {}).get("name", f"node {node}")
            reports[target.names[node] if target.names else name] = report
    return reports


def _output_of(process: subprocess.Popen[str], program: str, limit_s: float) -> tuple[str, str]:
    """The output of a command, and why it has ended: its last lines besides reports, or the time limit."""
    try:
        output, errors = process.communicate(program, timeout=limit_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return process.communicate()[0], f"no reply within {limit_s:g} s"
    lines = [line.strip() for line in [*output.splitlines(), *errors.splitlines()]]
    tail = [line for line in lines if line and not line.startswith(probe.MARK)][-_TAIL_LINES:]
    return output, " / ".join(tail) or "it ended without a message"


def _end(process: subprocess.Popen[str]) -> None:
    """End a command and its processes here; srun cancels its request at SIGTERM."""
    for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)


def _parse(output: str, nodes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The report of each node from chunks of JSON objects; what srun has damaged is left out."""
    reports: dict[int, dict[str, Any]] = {node: {} for node in nodes}
    texts = dict.fromkeys(nodes, "")
    for line in output.splitlines():
        words = line.split(" ", 3)
        if words[0] == probe.MARK and len(words) == 4:
            node = int(words[1])
            texts[node] += words[3]
            if words[2] == "0":
                with suppress(ValueError):
                    reports[node] |= json.loads(texts[node])
                texts[node] = ""
    return reports
