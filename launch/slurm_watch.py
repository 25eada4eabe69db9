"""What Slurm says of a run's job, and its end with a checkpoint; for `launch status` and `launch cancel`."""

import subprocess
from pathlib import Path

from launch.cluster import UsageError

CANCELLED = "cancelled"  # a file beside the batch script: the job is not to be requeued or started again


def job_states(job_id: str) -> list[str]:
    """The states of a job that is still in the queue (of an array: one for each element left), else nothing.

    Raises:
        UsageError: Slurm cannot be asked.
    """
    listed = _ask(["squeue", "--noheader", "--array", f"--jobs={job_id}", "--format=%T"], "Invalid job id")
    return listed.split()


def job_line(job_id: str) -> str:
    """One line for a person: state, nodes, time left, how often requeued, or how it ended.

    Raises:
        UsageError: Slurm cannot be asked.
    """
    told = _ask(["scontrol", "--oneliner", "show", "job", job_id], "Invalid job id")
    if not told:
        return f"job {job_id}: Slurm has forgotten it; its log says how it ended"
    return "\n".join(_line(line) for line in told.splitlines())


def cancel_job(job_id: str, launch_folder: Path) -> str:
    """Ask the job to stop with a checkpoint, and keep it from coming back; says what was done.

    What has not begun leaves the queue. What runs gets SIGTERM: its processes save, and leave with 143.

    Raises:
        UsageError: Slurm cannot be asked.
    """
    if not job_states(job_id):
        return f"job {job_id} is not in the queue"
    # Before the signal: the batch script looks once its processes have left.
    (launch_folder / CANCELLED).touch()
    _ask(["scancel", "--state=PENDING", job_id], "Invalid job id")
    running = "RUNNING" in job_states(job_id)
    if not running:
        return f"job {job_id} left the queue"
    _ask(["scancel", "--signal=TERM", job_id], "Invalid job id")
    return f"job {job_id} was asked to stop: it saves a checkpoint and leaves"


def _line(told: str) -> str:
    # The name comes first and may hold anything; what is read here stands behind it.
    words = told.partition(" UserId=")[2].split()
    fields = dict(word.split("=", 1) for word in words if "=" in word)
    name = told.partition(" ")[0].replace("JobId=", "job ")
    said = [f"{name}: {fields['JobState'].lower()}"]
    if fields["JobState"] == "PENDING":
        said.append(f"because of {fields.get('Reason', 'nothing it tells')}")
    elif fields["JobState"] == "RUNNING":
        said.append(f"on {fields.get('NodeList')}, {fields.get('RunTime')} of {fields.get('TimeLimit')}")
    else:
        said.append(f"exit code {fields.get('ExitCode', '?').partition(':')[0]}")
    if fields.get("Restarts", "0") != "0":
        said.append(f"requeued {fields['Restarts']} times")
    return ", ".join(said)


def _ask(command: list[str], fine: str) -> str:
    """What a Slurm command prints; nothing where it fails by saying `fine`."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        raise UsageError(
            f"{command[0]} is not on the PATH: run this on a login node of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{command[0]} did not answer for 60 s: is the Slurm controller up?") from error
    if ran.returncode != 0 and fine not in ran.stderr:
        raise UsageError(f"{command[0]} failed: {ran.stderr.strip()}")
    return ran.stdout if ran.returncode == 0 else ""
