"""Query and cancel jobs with Slurm's commands."""

import getpass
import subprocess
from pathlib import Path

from kinemae.data_tools.exit_codes import EXIT_CRASHED, EXIT_OK, EXIT_TERMINATED, describe_exit
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.slurm.cluster import seconds_of

OUTCOME = "outcome"  # file in RUN/launch: job id and exit code, written when the batch script ends
CANCELLED = "cancelled"  # file in RUN/launch: do not requeue or restart the job
_TIMEOUT_S = 60
# Prefixes of sinfo's states of nodes that accept no jobs; a * at the end marks a node that does not respond.
_UNUSABLE = ("down", "drain", "fail", "maint", "unk", "no_respond", "power")


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


def job_end(job_id: str, launch_folder: Path) -> tuple[int | None, str]:
    """The exit code of a job that has left the queue, and its description.

    The batch script writes its exit code. If the script was killed too, the code comes from Slurm's record,
    which is deleted after some minutes or kept by the accounting.

    Raises:
        ValueError: Slurm does not respond.
    """
    code = _written_code(job_id, launch_folder)
    if code is not None:
        return code, f"job {job_id}: {describe_exit(code)} (exit code {code})"
    state, pair = _shown_end(job_id) or _accounted_end(job_id) or ("", "")
    if not state:
        return None, f"job {job_id}: Slurm has no record of it, and it wrote no exit code"
    number = exit_code_of(state, pair)
    reasons = {"CANCELLED": "cancelled", "TIMEOUT": "killed at its time limit"}
    reason = reasons.get(state, state.lower().replace("_", " "))
    return number, f"job {job_id}: {reason} (exit code {number}); launch it again to resume"


def _written_code(job_id: str, launch_folder: Path) -> int | None:
    try:
        job, code = (launch_folder / OUTCOME).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return int(code) if job == job_id and code.isdigit() else None


def _shown_end(job_id: str) -> tuple[str, str] | None:
    """State and `CODE:SIGNAL` of a job that Slurm's controller still has; of the last array element."""
    lines = _run("scontrol", "--oneliner", "show", "job", job_id).splitlines()
    fields = _fields(lines[-1]) if lines else {}
    return (fields["JobState"], fields.get("ExitCode", "")) if "JobState" in fields else None


def _accounted_end(job_id: str) -> tuple[str, str] | None:
    """The same from Slurm's accounting, if it is enabled."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}"]
    rows = [line.split("|") for line in output_of(*command, "--format=State,ExitCode").splitlines()]
    rows = [row for row in rows if len(row) > 1 and row[0]]
    return (rows[-1][0].split()[0], rows[-1][1]) if rows else None


def exit_code_of(state: str, pair: str) -> int:
    """Convert Slurm's state and `CODE:SIGNAL` to an exit code as in a shell."""
    exit_code, _, number = pair.partition(":")
    if exit_code.isdigit() and int(exit_code):
        return int(exit_code)
    if number.isdigit() and int(number):
        return 128 + int(number)
    codes = {"COMPLETED": EXIT_OK, "CANCELLED": EXIT_TERMINATED, "TIMEOUT": EXIT_TERMINATED}
    return codes.get(state, EXIT_CRASHED)


def cancel_job(job_id: str, launch_folder: Path) -> str:
    """Stop a job with a checkpoint and prevent its return; return what was done.

    Pending elements leave the queue. Running processes get SIGTERM: they save and exit with 143.

    Raises:
        ValueError: Slurm does not respond.
    """
    if not job_states(job_id):
        return f"job {job_id} is not in the queue"
    (
        launch_folder / CANCELLED
    ).touch()  # before the signal: the batch script reads it after the processes end
    _run("scancel", "--state=PENDING", job_id)
    if "RUNNING" not in job_states(job_id):
        return f"job {job_id} left the queue"
    _run("scancel", "--signal=TERM", job_id)
    return f"job {job_id} received a stop signal: it saves a checkpoint and ends"


def pending_reason(job_name: str, partition: str) -> str:
    """State and reason of a job in the queue, and the nodes that accept no jobs, in Slurm's words."""
    job = output_of("squeue", "--noheader", f"--name={job_name}", "--format=job %i is %T because of %r")
    where = [f"--partition={partition}"] if partition else []
    listed = output_of("sinfo", "--noheader", "--Node", *where, "--format=%T|%N is %T (%E)").splitlines()
    states = [line.partition("|") for line in listed]
    nodes = {text for state, _, text in states if state.startswith(_UNUSABLE) or state.endswith("*")}
    return "; ".join([job or "Slurm has no record of the job", *sorted(nodes)])


def partition_limit(partition: str) -> int | None:
    """The time limit of a partition, or of the default one, in seconds; None for no limit."""
    for line in output_of("sinfo", "--noheader", "--format=%P %l").splitlines():
        name, _, limit = line.partition(" ")
        if name == partition or (not partition and name.endswith("*")) or name == f"{partition}*":
            try:
                return seconds_of(limit.strip())
            except ValueError:
                return None
    return None


def cancel_by_name(job_name: str) -> None:
    """Cancel the user's jobs of a name."""
    output_of("scancel", f"--name={job_name}", f"--user={getpass.getuser()}")


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
