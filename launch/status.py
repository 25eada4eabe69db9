"""`launch status|logs|cancel RUN`, from any host that sees the run folder."""

import argparse
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kinemae.data_tools.exit_codes import EXIT_INTERRUPTED, describe_exit
from kinemae.data_tools.files import read_jsonl, to_jsonl
from kinemae.data_tools.overrides import ConfigError, require, yaml_problem
from kinemae.data_tools.progress import duration
from kinemae.launch.job import LOGS_FOLDER
from kinemae.launch.k8s import kubectl
from kinemae.launch.record import is_locked, read_record, request_stop, saved_steps
from kinemae.launch.slurm.queue import cancel_job, describe_job

_POLL_S, _POLL_SCHEDULER_S = 0.5, 30.0
_SUPERVISED = ("local", "ssh")  # kinds whose state is that of locks, not of a scheduler


def run_status(arguments: argparse.Namespace) -> int:
    """Run `launch status`."""
    run_dir = Path(arguments.run_dir)
    try:
        status = status_of(run_dir)
    except yaml.YAMLError as error:
        problem = f"expected YAML, got {yaml_problem(error)}"
        raise ConfigError(f"{run_dir}/config.yaml: {problem}; fix: restore it") from error
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}; fix: check its mount") from error
    sys.stdout.write(to_jsonl([status]) if arguments.json else _table(run_dir, status))
    return 0


def status_of(run_dir: Path) -> dict[str, Any]:
    """State and progress of a run.

    Returns:
        kind, started, host, pid, attempt, hosts, code and the last `failure` from `launch.json`; `state`
        (`running`, `ended`, `lost` or the scheduler's) and a `message`; step, steps, loss, age of the last
        metrics in seconds, estimated seconds to the last step (null if nothing runs); steps of the
        checkpoints.
    """
    record = read_record(run_dir)
    kept = ("kind", "started", "host", "pid", "job_id", "attempt", "hosts", "code", "failure")
    state, progress = _state(run_dir, record), _progress(run_dir, record)
    if state["state"] in ("ended", "lost", "pending"):
        progress["remaining_s"] = None
    return {
        **{key: record.get(key) for key in kept},
        **state,
        **progress,
        "checkpoints": saved_steps(run_dir),
    }


def _state(run_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    job_id = record["job_id"]
    if record["kind"] == "k8s":
        return kubectl.job_state(job_id)
    is_slurm = record["kind"] == "slurm" and bool(job_id)
    if is_slurm and (shown := describe_job(job_id)):
        return {"state": shown.partition(",")[0], "message": f"job {job_id}: {shown}"}
    is_alive = False if is_slurm else is_locked(run_dir)
    if is_alive:
        return {"state": "running", "message": f"running since {record['started']}"}
    if record.get("state") == "ended":
        code = record["code"]
        return {"state": "ended", "message": f"{describe_exit(code)} (exit code {code})"}
    if is_alive is None:
        unknown = "its file system has no locks: see the age of its last step"
        return {"state": "running", "message": f"started {record['started']}, perhaps running; {unknown}"}
    killer = f"Slurm ended job {job_id} (sacct -j {job_id})" if is_slurm else "its agents were killed"
    return {"state": "lost", "message": f"{killer}; start the run again to resume from its newest checkpoint"}


def _progress(run_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The last metrics, and the time to the last step at their speed, if it is known."""
    config, path = run_dir / "config.yaml", run_dir / "metrics.jsonl"
    resolved = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
    last = next(iter(deque(read_jsonl(path), 1)), {})
    step, steps = last["step"] + 1 if last else None, record.get("steps") or resolved.get("steps")
    age_s = round(max(0.0, time.time() - path.stat().st_mtime), 1) if last else None
    remaining_s = None
    if last.get("clips_per_s") and steps:
        remaining_s = round((steps - step) * resolved["batch"]["global_clips"] / last["clips_per_s"], 1)
    progress = {"step": step, "steps": steps, "loss": last.get("loss")}
    return {**progress, "metrics_age_s": age_s, "remaining_s": remaining_s}


def _table(run_dir: Path, status: dict[str, Any]) -> str:
    rows = [("run", str(run_dir)), ("state", status["message"])]
    if status["kind"] in _SUPERVISED:
        rows.append(("launcher", f"{status['kind']}, process {status['pid']} on {status['host']}"))
    if status["attempt"]:
        rows.append(("starts", str(status["attempt"])))
    for host, processes in (status["hosts"] or {}).items():
        rows.append(("host", f"{host}: {processes} process{'es' if processes > 1 else ''}"))
    if status["step"] is not None:
        loss = f", loss {status['loss']:.4f}" if isinstance(status["loss"], float) else ""
        age = f", written {status['metrics_age_s']:.0f} s ago"
        left = "" if status["remaining_s"] is None else f", {duration(status['remaining_s'])} left"
        rows.append(("step", f"{status['step']} of {status['steps'] or '?'}{loss}{age}{left}"))
    if failure := status["failure"]:
        reason = failure["message"] or describe_exit(failure["code"])
        where = f"start {failure['attempt']}, rank {failure['rank']} on {failure['host']}"
        rows.append(("last failure", f"{where}: {reason.splitlines()[0]}"))
    if run_dir.is_dir():
        rows.append(("checkpoints", ", ".join(map(str, status["checkpoints"])) or "none"))
    return "".join(f"{name:<13}{text}\n" for name, text in rows)


def run_logs(arguments: argparse.Namespace) -> int:
    """Run `launch logs`: print the last lines; with `--follow`, then new output until the run has ended."""
    run_dir = Path(arguments.run_dir)
    rank = _whole_number("--rank", arguments.rank or "0")
    lines = _whole_number("--lines", arguments.lines or "50")
    folder = run_dir / LOGS_FOLDER
    path = folder / f"rank-{rank:05d}.log"
    try:
        if not path.exists():
            record = read_record(run_dir)  # refuses a run that was not launched
            if record["kind"] == "k8s":
                return kubectl.print_logs(record["job_id"], rank=rank, lines=lines, follow=arguments.follow)
        polls = _while_it_runs(run_dir) if arguments.follow else iter(())
        for _ in polls:
            if path.exists():  # its processes have started
                break
        if path.exists():
            with path.open(encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                sys.stdout.writelines(deque(file, lines))
                for _ in polls:
                    sys.stdout.write(file.read())
                    sys.stdout.flush()
                sys.stdout.write(file.read())
            return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    there = ", ".join(sorted(log.name for log in folder.glob("*.log"))) or "nothing"
    raise ConfigError(f"{path}: there is no such log; {folder} contains {there}")


def _whole_number(option: str, given: str) -> int:
    require(given.isdecimal(), option, "be a whole number", given)
    return int(given)


def _while_it_runs(run_dir: Path) -> Iterator[None]:
    """Yield twice a second until the run has ended."""
    next_look = 0.0
    while True:
        if time.monotonic() >= next_look:
            record = read_record(run_dir)
            if _state(run_dir, record)["state"] in ("ended", "lost"):
                return
            next_look = time.monotonic() + (_POLL_S if record["kind"] in _SUPERVISED else _POLL_SCHEDULER_S)
        yield
        time.sleep(_POLL_S)


def run_cancel(arguments: argparse.Namespace) -> int:
    """Run `launch cancel`."""
    run_dir = Path(arguments.run_dir)
    record = read_record(run_dir)
    if record["kind"] == "slurm":
        done = cancel_job(record["job_id"], run_dir)
    elif record["kind"] == "k8s":
        done = kubectl.cancel_job(record["job_id"])
    elif is_locked(run_dir) is False or record.get("state") == "ended":
        raise ConfigError(f"{run_dir}: expected a running run; {_state(run_dir, record)['message']}")
    else:
        request_stop(run_dir)
        again = shlex.join(["kinemae", "launch", "status", str(run_dir)])
        done = f"requested a stop with a checkpoint; `{again}` shows when the run has ended"
    sys.stdout.write(f"{done}\n")
    return 0
