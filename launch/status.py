"""`launch status|logs|cancel RUN`: looking after a run from any host that sees its folder."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kinemae.data_tools.exit_codes import EXIT_INTERRUPTED, describe_exit
from kinemae.launch.cluster import UsageError
from kinemae.launch.job import LAUNCH_FOLDER, LOGS_FOLDER
from kinemae.launch.record import ask_for_stop, checkpoints, is_held, read_record
from kinemae.launch.slurm.watch import cancel_job, job_end, job_line, job_states

_FOLLOW_S = 0.5
_BLOCK = 1 << 16
_HEADS = ("local", "ssh")  # kinds whose launcher lives as long as the run


def add_to(parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `status`, `logs` and `cancel`."""
    status = _add(parsers, "status", "whether a run goes on, where, and how far it is", "status runs/mine")
    status.add_argument("--json", action="store_true", help="print it as JSON")
    status.set_defaults(run=run_status)
    logs = _add(parsers, "logs", "what a process of the run has printed", "logs runs/mine --rank 3 --follow")
    logs.add_argument("--rank", type=int, default=0, metavar="N", help="of which process; 0 where not given")
    logs.add_argument("--lines", type=int, default=50, metavar="N", help="how many of the last lines")
    logs.add_argument("--follow", action="store_true", help="go on printing until the run has ended")
    logs.set_defaults(run=run_logs)
    cancel = _add(parsers, "cancel", "stop a run with a checkpoint; it can go on later", "cancel runs/mine")
    cancel.set_defaults(run=run_cancel)


def _add(
    parsers: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, example: str
) -> argparse.ArgumentParser:
    parser = parsers.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  kinemae launch {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the run's folder")
    return parser


def run_status(arguments: argparse.Namespace) -> int:
    """`launch status RUN`."""
    status = status_of(arguments.run_dir)
    sys.stdout.write(
        json.dumps(status, ensure_ascii=False) + "\n" if arguments.json else _table(arguments.run_dir, status)
    )
    return 0


def status_of(run_dir: Path) -> dict[str, Any]:
    """What is known of a run.

    Returns:
        kind, started, host, pid, attempt, hosts, code as `launch.json` has them; the state in a word
        (`running`, `ended`, `lost`, or the scheduler's) and in a sentence; step, steps, loss, seconds since
        the last metrics, seconds to the last step at the present speed (null where nothing runs); steps of
        the checkpoints.

    Raises:
        UsageError: the run was never launched, or its scheduler cannot be asked.
    """
    record = read_record(run_dir)
    kept = ("kind", "started", "host", "pid", "job_id", "attempt", "hosts", "agents", "code")
    state, progress = _state(run_dir, record), _progress(run_dir, record)
    if state["state"] in ("ended", "lost", "pending"):
        progress["remaining_s"] = None
    return {
        **{key: record.get(key) for key in kept},
        **state,
        **progress,
        "checkpoints": checkpoints(run_dir),
    }


def _state(run_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    if record["kind"] == "slurm":
        states = job_states(record["job_id"])
        if states:
            return {"state": states[0].lower(), "said": job_line(record["job_id"])}
        code, said = job_end(record["job_id"], run_dir / LAUNCH_FOLDER)
        return {"state": "ended", "code": code, "said": said}
    if record["kind"] not in _HEADS:
        return {"state": "unknown", "said": f"ask {record['kind']} itself for its state"}
    if is_held(run_dir):
        return {"state": "running", "said": f"running since {record['started']}"}
    if record.get("state") == "ended":
        return {"state": "ended", "said": f"{describe_exit(record['code'])} (exit code {record['code']})"}
    return {
        "state": "lost",
        "said": "its launcher died without a word; start it again and it goes on from its newest checkpoint",
    }


def _progress(run_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"step": None, "steps": record.get("steps"), "loss": None, "metrics_age_s": None}
    config, path = _config(run_dir), run_dir / "metrics.jsonl"
    if found["steps"] is None:
        found["steps"] = config.get("steps")
    last = _last_whole_line(path) if path.exists() else None
    if path.exists():
        found |= {"step": last.get("step", -1) + 1, "loss": last.get("loss")} if last else {}
        found["metrics_age_s"] = round(max(0.0, time.time() - path.stat().st_mtime), 1)
    return {**found, "remaining_s": _remaining_s(found, last or {}, config)}


def _remaining_s(found: dict[str, Any], last: dict[str, Any], config: dict[str, Any]) -> float | None:
    """Seconds to the last step at the speed of the last report; None where that is not known."""
    batch = config.get("batch")
    clips = batch.get("global_clips") if isinstance(batch, dict) else None
    if not (clips and last.get("clips_per_s") and found["step"] and found["steps"]):
        return None
    return round(float(found["steps"] - found["step"]) * clips / last["clips_per_s"], 1)


def _config(run_dir: Path) -> dict[str, Any]:
    """The run's resolved config; empty before its first start."""
    path = run_dir / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    return config if isinstance(config, dict) else {}


def _last_whole_line(path: Path) -> dict[str, Any] | None:
    """The newest line of metrics; the very last may be half written."""
    for line in reversed(last_lines(path, 2)):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        return value if isinstance(value, dict) else None
    return None


def _table(run_dir: Path, status: dict[str, Any]) -> str:
    rows = [("run", str(run_dir)), ("state", status["said"])]
    if status["kind"] in _HEADS:
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
    steps = ", ".join(map(str, status["checkpoints"])) or "none yet"
    rows.append(("checkpoints", steps))
    return "".join(f"{name:<12} {text}\n" for name, text in rows)


def duration(seconds: float) -> str:
    """A duration in words, such as 45 s, 12 min, 3 h 20 min, 2 d 5 h."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def run_logs(arguments: argparse.Namespace) -> int:
    """`launch logs RUN`."""
    folder = arguments.run_dir / LOGS_FOLDER
    path = folder / f"rank-{arguments.rank:05d}.log"
    if not path.exists() and (folder / "all-ranks.log").exists():
        path = folder / "all-ranks.log"  # of a launcher that does not keep them apart
    if not path.exists():
        read_record(arguments.run_dir)  # refuses a run that was not launched
        there = ", ".join(sorted(found.name for found in folder.glob("*.log"))) or "nothing yet"
        raise UsageError(f"no {path}: in {folder} there is {there}")
    try:
        for text in _following(arguments, path) if arguments.follow else _tail(arguments, path):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _tail(arguments: argparse.Namespace, path: Path) -> Iterator[str]:
    for line in last_lines(path, arguments.lines):
        yield f"{line}\n"


def _following(arguments: argparse.Namespace, path: Path) -> Iterator[str]:
    """The last lines, then what comes, until the run has ended."""
    with path.open("rb") as file:
        file.seek(_start_of_last_lines(path, arguments.lines))
        while True:
            is_over = _state(arguments.run_dir, read_record(arguments.run_dir))["state"] in ("ended", "lost")
            while printed := file.read(_BLOCK):
                yield printed.decode(errors="backslashreplace")
            if is_over:
                return
            time.sleep(_FOLLOW_S)


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file of any size."""
    with path.open("rb") as file:
        file.seek(_start_of_last_lines(path, count))
        return file.read().decode(errors="backslashreplace").splitlines()


def _start_of_last_lines(path: Path, count: int) -> int:
    """Where the last lines of a file begin, found from its end."""
    with path.open("rb") as file:
        place, tail = file.seek(0, 2), b""
        while place > 0 and tail.count(b"\n") <= count:
            step = min(_BLOCK, place)
            place -= step
            file.seek(place)
            tail = file.read(step) + tail
        lines = tail.splitlines(keepends=True)
        return place + len(tail) - sum(len(line) for line in lines[max(0, len(lines) - count) :])


def run_cancel(arguments: argparse.Namespace) -> int:
    """`launch cancel RUN`."""
    run_dir = arguments.run_dir
    record = read_record(run_dir)
    if record["kind"] == "slurm":
        sys.stdout.write(cancel_job(record["job_id"], run_dir / LAUNCH_FOLDER) + "\n")
        return 0
    if record["kind"] not in _HEADS:
        raise UsageError(f"{run_dir} runs on {record['kind']}: cancel it there")
    if not is_held(run_dir):
        raise UsageError(f"{run_dir} is not running: {_state(run_dir, record)['said']}")
    ask_for_stop(run_dir)
    again = shlex.join(["kinemae", "launch", "status", str(run_dir)])
    sys.stdout.write(f"asked for a stop with a checkpoint; `{again}` tells when it has ended\n")
    return 0
