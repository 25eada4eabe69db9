"""Query and cancel jobs with Slurm's commands. A `ConfigError` says why Slurm does not respond or refuses."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kinemae.data_tools.exit_codes import EXIT_TERMINATED
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.record import Record, request_stop

CANCELLED = "cancelled"  # file in RUN/launch: do not requeue or restart the job
_TIMEOUT_S = 60


def describe_job(job_id: str) -> str:
    """State, nodes or reason, and time of a job in the queue, as in `running, n[1-2], 0:10 of 1:00`."""
    shown = slurm_output("squeue", "--noheader", f"--jobs={job_id}", "--format=%T, %R, %M of %l").strip()
    state, comma, rest = shown.partition(",")
    return state.lower() + comma + rest


def refuse_queued(run_dir: Path) -> None:
    """Refuse a second launch of a run whose job is in the queue: both would write to its folder."""
    last = Record(run_dir).read()
    job_id = last["job_id"] if last.get("kind") == "slurm" else None
    if job_id and shutil.which("squeue") and (shown := describe_job(job_id)):
        raise ConfigError(
            f"job {job_id} of {run_dir} is {shown.partition(',')[0]}; fix: set another run_dir, or run "
            f"`kinemae launch cancel {shlex.quote(str(run_dir))}`"
        )


def cancel_job(job_id: str | None, run_dir: Path) -> str:
    """Stop a job with a checkpoint and prevent its return; return what was done.

    A pending job leaves the queue. The agents of a running job are asked to stop it.
    """
    if job_id is None:
        raise ConfigError(f"{run_dir}: expected a job that sbatch has accepted, got none; fix: see squeue")
    if not describe_job(job_id):
        return f"job {job_id} is not in the queue"
    (run_dir / "launch" / CANCELLED).touch()  # before the request: the batch job reads it after the end
    slurm_output("scancel", "--state=PENDING", job_id)
    if not describe_job(job_id):
        Record(run_dir).end(EXIT_TERMINATED, job_id=job_id)
        return f"job {job_id} left the queue"
    request_stop(run_dir)
    return f"requested a stop of job {job_id}: it saves a checkpoint and ends"


def requeue_job(job_id: str, excluded: Sequence[str]) -> None:
    """Requeue a job without some nodes, in addition to those that it already excludes."""
    before = slurm_output("squeue", "--noheader", f"--jobs={job_id}", "--format=%x").strip()
    slurm_output("scontrol", "requeue", job_id)
    if excluded:  # Slurm accepts it for pending jobs only
        nodes = ",".join(filter(None, [before, *excluded]))
        slurm_output("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={nodes}")


def slurm_output(*command: str) -> str:
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
