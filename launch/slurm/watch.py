"""What Slurm says of a run's job, and its end with a checkpoint; for `launch status` and `launch cancel`."""

import subprocess
from pathlib import Path

from kinemae.data_tools.exit_codes import EXIT_CRASHED, EXIT_OK, EXIT_TERMINATED, describe_exit
from kinemae.launch.cluster import UsageError

OUTCOME = "outcome"  # a file beside the batch script: the job and its exit code, once the script has ended
CANCELLED = "cancelled"  # a file beside the batch script: the job is not to be requeued or started again


def job_states(job_id: str) -> list[str]:
    """The states of a job that is still in the queue (of an array: one for each element left), else nothing.

    Raises:
        UsageError: Slurm cannot be asked.
    """
    listed = _ask(["squeue", "--noheader", "--array", f"--jobs={job_id}", "--format=%T"], "Invalid job id")
    return listed.split()


def job_line(job_id: str) -> str:
    """One line for a person on a job in the queue: state, nodes, time left, how often requeued.

    Raises:
        UsageError: Slurm cannot be asked.
    """
    told = _ask(["scontrol", "--oneliner", "show", "job", job_id], "Invalid job id")
    return "\n".join(_line(line) for line in told.splitlines()) or f"job {job_id} is not in the queue"


def job_end(job_id: str, launch_folder: Path) -> tuple[int | None, str]:
    """The exit code of a job that has left the queue, and its description.

    The batch script writes its exit code. If the script was killed too, Slurm knows the job for some minutes,
    or as long as its accounting keeps it.

    Raises:
        UsageError: Slurm cannot be asked.
    """
    noted = _noted_code(job_id, launch_folder)
    if noted is not None:
        return noted, f"job {job_id}: {describe_exit(noted)} (exit code {noted})"
    told = _ask(["scontrol", "--oneliner", "show", "job", job_id], "Invalid job id")
    state, code = _state_and_code(told) or _accounted(job_id) or ("", "")
    if not state:
        return None, f"job {job_id}: Slurm has no record of it, and it wrote no exit code"
    number = exit_code_of(state, code)
    why = {"CANCELLED": "cancelled", "TIMEOUT": "killed at its time limit"}
    text = why.get(state, state.lower().replace("_", " "))
    return number, f"job {job_id}: {text} (exit code {number}); the same command goes on with it"


def _noted_code(job_id: str, launch_folder: Path) -> int | None:
    try:
        job, code = (launch_folder / OUTCOME).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return int(code) if job == job_id and code.isdigit() else None


def _state_and_code(told: str) -> tuple[str, str] | None:
    """Of the last element of an array."""
    lines = told.splitlines()
    fields = _fields(lines[-1]) if lines else {}
    return (fields["JobState"], fields.get("ExitCode", "")) if "JobState" in fields else None


def _accounted(job_id: str) -> tuple[str, str] | None:
    """State and exit code from Slurm's accounting, if it is enabled."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}"]
    try:
        ran = subprocess.run(
            [*command, "--format=State,ExitCode"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = ran.stdout.split("\n") if ran.returncode == 0 else []
    rows = [line.split("|") for line in lines if "|" in line]
    return (rows[-1][0].split()[0], rows[-1][1]) if rows and rows[-1][0] else None


def exit_code_of(state: str, code: str) -> int:
    """One exit code, as a shell has it, from Slurm's state and `CODE:SIGNAL`."""
    exit_code, _, number = code.partition(":")
    if exit_code.isdigit() and int(exit_code):
        return int(exit_code)
    if number.isdigit() and int(number):
        return 128 + int(number)
    codes = {"COMPLETED": EXIT_OK, "CANCELLED": EXIT_TERMINATED, "TIMEOUT": EXIT_TERMINATED}
    return codes.get(state, EXIT_CRASHED)


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


def _fields(told: str) -> dict[str, str]:
    # The name comes first and may hold anything; what is read here stands behind it.
    words = told.partition(" UserId=")[2].split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def _line(told: str) -> str:
    fields = _fields(told)
    name = told.partition(" ")[0].replace("JobId=", "job ")
    said = [f"{name}: {fields['JobState'].lower()}"]
    if fields["JobState"] == "PENDING":
        said.append(f"because of {fields.get('Reason', 'nothing it tells')}")
    elif fields["JobState"] == "RUNNING":
        said.append(f"on {fields.get('NodeList')}, {fields.get('RunTime')} of {fields.get('TimeLimit')}")
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
