"""Processes of a sweep: several trials at once, their devices, logs and exit codes."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kinemae.data_tools.command import CheckpointError, DataError, Stopped, Stuck, log
from kinemae.data_tools.exit_codes import (
    EXIT_CHECKPOINT,
    EXIT_CONFIG,
    EXIT_DATA,
    EXIT_DIVERGED,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_STUCK,
    describe_exit,
)
from kinemae.finetune.sweep.halving import Trial
from kinemae.pretrain.runtime.abort import StopSignals

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_S = 0.1
_KILL_S = 120.0  # for a checkpoint after SIGTERM
_ERRORS: dict[int, type[Exception]] = {
    EXIT_CONFIG: ValueError,
    EXIT_DATA: DataError,
    EXIT_CHECKPOINT: CheckpointError,
    EXIT_STUCK: Stuck,
}


def run_trials(
    trials: Sequence[Trial], command: Callable[[Trial], list[str]], *, processes: int, gpus: Sequence[str]
) -> None:
    """Run one command per trial, at most `processes` at once. Diverged trials are recorded as failed.

    Raises:
        Stopped: after a signal; the running trials have saved checkpoints.
        ValueError, DataError, CheckpointError, Stuck: a trial failed for such a reason; all are stopped.
    """
    waiting = list(trials)
    running: dict[int, tuple[Trial, subprocess.Popen[bytes]]] = {}
    try:
        with StopSignals() as signals:
            while waiting or running:
                while waiting and len(running) < processes and not signals.is_requested:
                    slot = min(set(range(processes)) - running.keys())
                    trial = waiting.pop(0)
                    running[slot] = (
                        trial,
                        _start(trial, command(trial), _environment(slot, processes, gpus)),
                    )
                if signals.is_requested:
                    raise Stopped("stopped; repeat the command to continue the sweep")
                time.sleep(_POLL_S)
                for slot, (trial, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        _check(trial, process.returncode)
    finally:
        _stop([process for _, process in running.values()])


def log_path(trial: Trial) -> Path:
    """The file with a trial's output."""
    return trial.folder.with_suffix(".log")


def _start(trial: Trial, command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    trial.folder.parent.mkdir(parents=True, exist_ok=True)
    with log_path(trial).open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which stops the trials in order
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Send SIGTERM to this process when the sweep ends, also if it was killed. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment(slot: int, processes: int, gpus: Sequence[str]) -> dict[str, str]:
    """Environment of a trial: one GPU of several, and its share of the cores on the CPU."""
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    elif processes > 1:
        cores = max(1, len(os.sched_getaffinity(0)) // processes)
        environment.setdefault("OMP_NUM_THREADS", str(cores))
    return environment


def _check(trial: Trial, code: int) -> None:
    """Accept the end of a trial, or record or raise its failure."""
    if code in (EXIT_OK, EXIT_STOPPED):  # the caller checks whether it has reached its rung
        return
    code = code if code >= 0 else 128 - code
    if code == EXIT_DIVERGED:
        trial.fail("the loss diverged")
        log.warning("trial %d: the loss diverged; it counts as the worst", trial.number)
        return
    what = (
        f"trial {trial.number} {describe_exit(code)}; {log_path(trial)} has the reason: {_last_line(trial)}"
    )
    raise _ERRORS.get(code, DataError)(what)


def _last_line(trial: Trial) -> str:
    lines = log_path(trial).read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Let the processes save checkpoints and end."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=_KILL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
