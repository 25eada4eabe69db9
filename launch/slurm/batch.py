"""`python -P launch/slurm/batch.py RUN/launch/job.json`: the body of a batch job.

It reads the keys of the cluster file from RUN/launch/slurm.json, starts one agent on each node with srun, and
passes Slurm's signals on as requests to stop. After a stop or a loss of nodes it requeues the job if the run
makes progress. The agents restart the processes after crashes.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":  # run as a file, with -P, from the frozen code
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kinemae.data_tools.exit_codes import EXIT_CRASHED, EXIT_OK, EXIT_TERMINATED
from kinemae.data_tools.overrides import ConfigError
from kinemae.launch.doctor.probe import slurm_address
from kinemae.launch.job import Job
from kinemae.launch.record import STOP, Record, newest_step, request_stop
from kinemae.launch.slurm.cluster import SETTINGS, SlurmCluster
from kinemae.launch.slurm.queue import CANCELLED, requeue_job
from kinemae.launch.supervisor.hosts import free_port
from kinemae.launch.supervisor.policy import FAILED, STOPPED, TOO_FEW_NODES, History, requeue
from kinemae.launch.supervisor.rank import catch_signals, log_line


class BatchJob:
    """A job in its allocation."""

    def __init__(self, cluster: SlurmCluster, job: Job):
        self._cluster, self._job = cluster, job
        self._run_dir = Path(job.run_dir)
        self._record = Record(self._run_dir)
        self._id = os.environ["SLURM_JOB_ID"]
        self._signals: list[int] = []
        self._stop: int | None = None
        self._wakeup = catch_signals(self._signals)

    def run(self) -> int:
        """Run the agents to the end of the run, and requeue the job if necessary. Return its exit code."""
        name, starts = f"{self._id}.{os.environ.get('SLURM_RESTART_COUNT', '0')}", 0
        (self._run_dir / "launch" / STOP).unlink(missing_ok=True)  # of an earlier start
        if self._is_cancelled():  # before it started, or during its requeue
            log_line(self._run_dir, "`launch cancel` has stopped this run: start it with `launch slurm`")
            return self._end(EXIT_TERMINATED, STOPPED)
        while True:
            starts += 1
            attempt = self._record.read().get("attempt", 0)
            self._record.update(state="running", run_id=f"{name}.{starts}", job_id=self._id)
            log_line(self._run_dir, f"job {name} on {os.environ['SLURM_JOB_NODELIST']}")
            code = self._start_agents(f"{name}.{starts}")
            last = self._record.read()
            if last["state"] == "ended":
                return self._end(int(last["code"]), last["cause"])
            # The next agents decide about the attempt, unless they have not come to one.
            if self._stop is not None:
                return self._end(code or EXIT_CRASHED, STOPPED)
            if last.get("attempt", 0) == attempt:
                return self._end(code or EXIT_CRASHED, TOO_FEW_NODES)

    def _start_agents(self, run_id: str) -> int:
        """Run an agent on each node; return the exit code of srun, the highest of its tasks."""
        # The batch job runs on the first node.
        address = self._cluster.environment.get("MASTER_ADDR") or slurm_address(os.environ["SLURMD_NODENAME"])
        command = self._cluster.agents(self._job, f"{address}:{free_port()}", run_id)
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as agents:
            while agents.poll() is None:
                if select.select([self._wakeup], [], [], 1.0)[0]:
                    os.read(self._wakeup, 4096)
                while self._signals:
                    self._stop = self._signals.pop(0)
                    try:
                        request_stop(self._run_dir, self._stop)
                    except ConfigError:  # as on a full disk
                        agents.send_signal(signal.SIGTERM)  # srun forwards it to the agents
        return agents.returncode

    def _end(self, code: int, cause: str) -> int:
        """Requeue the job, or end it; the exit code is also for `launch status`."""
        cluster = self._cluster
        goes_on = not self._is_cancelled() and code != EXIT_OK
        history = History(**self._record.read().get("history", {}))
        step = newest_step(self._run_dir, history.queued_step)
        later = requeue(history, cause, step=step, most=cluster.max_restarts) if goes_on else None
        self._record.update(state="ended", code=code, cause=cause, job_id=self._id)
        if later is not None:
            self._record.update(history={**asdict(later), "excluded": []})
            if cluster.requeue:
                self._requeue(later.excluded)
        elif goes_on and cause != FAILED and cluster.requeue:
            log_line(self._run_dir, f"no requeue: {cluster.max_restarts} in a row without a new checkpoint")
        return code

    def _is_cancelled(self) -> bool:
        return (self._run_dir / "launch" / CANCELLED).exists()

    def _requeue(self, excluded: Sequence[str]) -> None:
        without = f" without {', '.join(excluded)}" if excluded else ""
        log_line(self._run_dir, f"requeueing the job{without}")
        for number in (signal.SIGTERM, signal.SIGCONT):
            signal.signal(number, signal.SIG_IGN)  # of the requeue; the next command needs a moment
        try:
            requeue_job(self._id, excluded)
        except ConfigError as error:
            log_line(self._run_dir, f"the requeue failed: {error}")


def main(argv: list[str]) -> int:
    """Read the files and run the job."""
    job = Job.read(Path(argv[0]))
    settings = json.loads(job.path.with_name(SETTINGS).read_text(encoding="utf-8"))
    return BatchJob(SlurmCluster(**settings), job).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
