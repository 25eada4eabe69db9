"""`launch status|logs|cancel RUN`, from any host that sees the run folder."""

import argparse
import json
import shlex
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import yaml

from kinemae.data_tools.exit_codes import EXIT_INTERRUPTED, describe_exit
from kinemae.data_tools.overrides import ConfigError
from kinemae.data_tools.progress import duration
from kinemae.launch.commands import add_command
from kinemae.launch.job import LOGS_FOLDER
from kinemae.launch.k8s import kubectl
from kinemae.launch.record import is_locked, read_record, request_stop, saved_steps
from kinemae.launch.slurm.queue import cancel_job, describe_job, job_end, job_states

_POLL_S, _POLL_SCHEDULER_S = 0.5, 30.0
_SUPERVISED = ("local", "ssh")  # kinds whose state is that of locks, not of a scheduler


def add_to(parsers: Any) -> None:
    """Register `status`, `logs` and `cancel`."""
    status = _add(parsers, "status", "status runs/mine")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=run_status)
    logs = _add(parsers, "logs", "logs runs/mine --rank 3 --follow")
    logs.add_argument("--rank", type=int, default=0, metavar="N", help="rank of the process; default 0")
    logs.add_argument("--lines", type=int, default=50, metavar="N", help="number of last lines; default 50")
    logs.add_argument("--follow", action="store_true", help="print new lines until the run has ended")
    logs.set_defaults(run=run_logs)
    cancel = _add(parsers, "cancel", "cancel runs/mine")
    cancel.set_defaults(run=run_cancel)


def _add(parsers: Any, name: str, example: str) -> argparse.ArgumentParser:
    parser = add_command(parsers, name, f"example:\n  kinemae launch {example}")
    what = "the run folder, or k8s:NAMESPACE/KIND/NAME where it is not visible"
    parser.add_argument("run_dir", type=Path, metavar="RUN", help=what)
    return parser


def run_status(arguments: argparse.Namespace) -> int:
    """Run `launch status`."""
    status = status_of(arguments.run_dir)
    text = (
        json.dumps(status, ensure_ascii=False) + "\n" if arguments.json else _table(arguments.run_dir, status)
    )
    sys.stdout.write(text)
    return 0


def status_of(run_dir: Path) -> dict[str, Any]:
    """State and progress of a run.

    Returns:
        kind, started, host, pid, attempt, hosts, code and the last `failure` from `launch.json`; `state`
        (`running`, `ended`, `lost` or the scheduler's) and a `message`; step, steps, loss, age of the last
        metrics in seconds, estimated seconds to the last step (null if nothing runs); steps of the
        checkpoints.

    Raises:
        ValueError: the run was not launched, or its scheduler does not respond.
    """
    record = read_record(run_dir)
    kept = ("kind", "started", "host", "pid", "job_id", "attempt", "hosts", "agents", "code", "failure")
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
    if record["kind"] == "slurm" and record["job_id"]:
        states = job_states(record["job_id"])
        if states:
            return {"state": states[0].lower(), "message": describe_job(record["job_id"])}
        code, message = job_end(record["job_id"], record)
        return {"state": "ended", "code": code, "message": message}
    if record["kind"] == "k8s":
        return kubectl.job_state(record["job_id"])
    if is_locked(run_dir):
        return {"state": "running", "message": f"running since {record['started']}"}
    if record.get("state") == "ended":
        code = record["code"]
        return {"state": "ended", "message": f"{describe_exit(code)} (exit code {code})"}
    if is_locked(run_dir) is None:
        unknown = "its file system has no locks: see the age of its last step"
        return {"state": "running", "message": f"started {record['started']}, perhaps running; {unknown}"}
    return {
        "state": "lost",
        "message": "its agents were killed; start the run again to resume from its newest checkpoint",
    }


def _progress(run_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    progress: dict[str, Any] = {
        "step": None,
        "steps": record.get("steps"),
        "loss": None,
        "metrics_age_s": None,
    }
    config, path = _config(run_dir), run_dir / "metrics.jsonl"
    if progress["steps"] is None:
        progress["steps"] = config.get("steps")
    last = _last_metrics(path) if path.exists() else None
    if path.exists():
        progress |= {"step": last.get("step", -1) + 1, "loss": last.get("loss")} if last else {}
        progress["metrics_age_s"] = round(max(0.0, time.time() - path.stat().st_mtime), 1)
    return {**progress, "remaining_s": _remaining_s(progress, last or {}, config)}


def _remaining_s(progress: dict[str, Any], last: dict[str, Any], config: dict[str, Any]) -> float | None:
    """Seconds to the last step at the speed of the last report, if it is known."""
    batch = config.get("batch")
    clips = batch.get("global_clips") if isinstance(batch, dict) else None
    if not (clips and last.get("clips_per_s") and progress["step"] and progress["steps"]):
        return None
    return round(float(progress["steps"] - progress["step"]) * clips / last["clips_per_s"], 1)


def _config(run_dir: Path) -> dict[str, Any]:
    """The resolved config of the run; empty before its first start."""
    path = run_dir / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return config if isinstance(config, dict) else {}


def _last_metrics(path: Path) -> dict[str, Any] | None:
    """The last complete line of a metrics file."""
    with _open_text(path) as file:
        for line in reversed(deque(file, 2)):
            with suppress(ValueError):
                value = json.loads(line)
                return value if isinstance(value, dict) else None
    return None


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
    """Run `launch logs`."""
    folder = arguments.run_dir / LOGS_FOLDER
    path = folder / f"rank-{arguments.rank:05d}.log"
    try:
        if path.exists():
            _print_log(path, arguments)
            return 0
        record = read_record(arguments.run_dir)  # refuses a run that was not launched
        if record["kind"] == "k8s":
            shown = {"rank": arguments.rank, "lines": arguments.lines, "follow": arguments.follow}
            return kubectl.print_logs(record["job_id"], **shown)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    there = ", ".join(sorted(log.name for log in folder.glob("*.log"))) or "nothing"
    raise ConfigError(f"{path}: there is no such log; {folder} contains {there}")


def _print_log(path: Path, arguments: argparse.Namespace) -> None:
    """Print the last lines; with `--follow`, then new output until the run has ended."""
    with _open_text(path) as file:
        sys.stdout.writelines(deque(file, arguments.lines))
        next_look, is_over = 0.0, not arguments.follow
        while not is_over:
            if time.monotonic() >= next_look:
                record = read_record(arguments.run_dir)
                every_s = _POLL_S if record["kind"] in _SUPERVISED else _POLL_SCHEDULER_S  # spares it
                next_look = time.monotonic() + every_s
                is_over = _state(arguments.run_dir, record)["state"] in ("ended", "lost")
            sys.stdout.write(file.read())
            sys.stdout.flush()
            time.sleep(0 if is_over else _POLL_S)


def _open_text(path: Path) -> TextIO:
    return path.open(encoding="utf-8", errors="backslashreplace", newline="\n")


def run_cancel(arguments: argparse.Namespace) -> int:
    """Run `launch cancel`."""
    run_dir = arguments.run_dir
    record = read_record(run_dir)
    if record["kind"] == "slurm":
        sys.stdout.write(cancel_job(record["job_id"], run_dir) + "\n")
        return 0
    if record["kind"] == "k8s":
        sys.stdout.write(kubectl.cancel_job(record["job_id"]) + "\n")
        return 0
    if is_locked(run_dir) is False or record.get("state") == "ended":
        raise ConfigError(f"{run_dir}: expected a running run; {_state(run_dir, record)['message']}")
    request_stop(run_dir)
    again = shlex.join(["kinemae", "launch", "status", str(run_dir)])
    sys.stdout.write(f"requested a stop with a checkpoint; `{again}` shows when the run has ended\n")
    return 0
