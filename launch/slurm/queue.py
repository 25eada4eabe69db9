"""Query and cancel jobs with Slurm's commands."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinemae.data_tools.exit_codes import EXIT_TERMINATED, describe_exit
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.record import Record, request_stop

CANCELLED = "cancelled"  # file in RUN/launch: do not requeue or restart the job
_TIMEOUT_S = 60


def job_states(job_id: str) -> list[str]:
    """The states of a job in the queue, one for each remaining element of an array.

    Raises:
        ValueError: Slurm does not respond.
    """
    return _run("squeue", "--noheader", "--array", f"--jobs={job_id}", "--format=%T").split()


def describe_job(job_id: str) -> str:
    """State, nodes, time and requeues of a job in the queue, as one line for each element.

    Raises:
        ValueError: Slurm does not respond.
    """
    shown = _run("scontrol", "--oneliner", "show", "job", job_id)
    return "\n".join(_describe(line) for line in shown.splitlines()) or f"job {job_id} is not in the queue"


def job_end(job_id: str, record: Mapping[str, Any]) -> tuple[int | None, str]:
    """Exit code of a job that has left the queue, as it wrote it into `launch.json`, and description."""
    if record.get("state") == "ended" and record["job_id"] == job_id:
        code = int(record["code"])
        return code, f"job {job_id}: {describe_exit(code)} (exit code {code})"
    reason = f"Slurm ended it before it wrote an exit code (sacct -j {job_id}); launch it again to resume"
    return None, f"job {job_id}: {reason}"


def cancel_job(job_id: str, run_dir: Path) -> str:
    """Stop a job with a checkpoint and prevent its return; return what was done.

    Pending elements leave the queue. The agents of a running job are asked to stop it.

    Raises:
        ValueError: Slurm does not respond.
    """
    if not job_states(job_id):
        return f"job {job_id} is not in the queue"
    (run_dir / "launch" / CANCELLED).touch()  # before the request: the batch job reads it after the end
    _run("scancel", "--state=PENDING", job_id)
    if not job_states(job_id):
        Record(run_dir).update(state="ended", code=EXIT_TERMINATED, job_id=job_id)
        return f"job {job_id} left the queue"
    request_stop(run_dir)
    return f"requested a stop of job {job_id}: it saves a checkpoint and ends"


def requeue_job(job_id: str, excluded: Sequence[str]) -> None:
    """Requeue a job without some nodes, in addition to those that it already excludes.

    Raises:
        ValueError: Slurm does not respond, or refuses.
    """
    before = _fields(_run("scontrol", "--oneliner", "show", "job", job_id)).get("ExcNodeList", "(null)")
    _run("scontrol", "requeue", job_id)
    if excluded:  # Slurm accepts it for pending jobs only
        nodes = ",".join([*([] if before == "(null)" else [before]), *excluded])
        _run("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={nodes}")


def output_of(*command: str) -> str:
    """The output of a Slurm command; empty if it fails or is not installed."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip() if ran.returncode == 0 else ""


def _run(*command: str) -> str:
    """The output of a Slurm command; empty for a job id that Slurm has deleted."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError as error:
        raise ConfigError(f"no program {command[0]}; fix: run this on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"{command[0]} did not respond for {_TIMEOUT_S} s; fix: see whether the Slurm controller is up"
        ) from error
    if ran.returncode != 0 and "Invalid job id" not in ran.stderr:
        raise ConfigError(f"{command[0]} failed: {ran.stderr.strip()}")
    return ran.stdout if ran.returncode == 0 else ""


def _fields(shown: str) -> dict[str, str]:
    # The job's name comes first and may contain anything: read only the fields behind it.
    words = shown.partition(" UserId=")[2].split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def _describe(shown: str) -> str:
    fields = _fields(shown)
    name = shown.partition(" ")[0].replace("JobId=", "job ")
    parts = [f"{name}: {fields['JobState'].lower()}"]
    if fields["JobState"] == "PENDING":
        parts.append(f"because of {fields.get('Reason', 'an unknown reason')}")
    elif fields["JobState"] == "RUNNING":
        parts.append(f"on {fields.get('NodeList')}, {fields.get('RunTime')} of {fields.get('TimeLimit')}")
    if fields.get("Restarts", "0") != "0":
        parts.append(f"requeued {fields['Restarts']} times")
    return ", ".join(parts)
