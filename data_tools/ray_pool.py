"""Pool on a Ray cluster: each Ray task runs a few jobs in a child process, with the timeouts of `LocalPool`.

The Ray client is a child process. It aborts when the head of the cluster is lost, which would otherwise end
the command without an error message.
"""

import atexit
import logging
import multiprocessing
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any, Generic, NamedTuple

from kinemae import __version__
from kinemae.data_tools.command import Stuck, log
from kinemae.data_tools.overrides import ConfigError
from kinemae.data_tools.pool import Failure, Job, LocalPool, Lost, Result
from kinemae.data_tools.stream.worker import picklable
from kinemae.data_tools.stream.worker_setup import block_stop_signals, exit_with_parent, main_module_hidden

_RETRIES = 5  # of a task whose node or worker died
_TASK_S = 5.0  # duration of a task; a longer task loses more jobs when its node dies
_MAX_JOBS = 64  # per task
_LOG_EVERY_S = 60.0
_HELP = "`ray start --head` on one machine, `ray start --address=HEAD:6379` on the others, or RAY_ADDRESS"


class RayPool(Generic[Job, Result]):
    """Pool of the tasks of a Ray cluster, which all nodes of the cluster share with other programs.

    Args:
        function, jobs, timeout_s: see `imap_unordered`.
        cores: of each task.
    """

    def __init__(
        self, function: Callable[[Job], Result], jobs: Sequence[Job], *, timeout_s: float, cores: int = 1
    ):
        self._function = function
        self._jobs = jobs
        self._options = _Options(timeout_s=timeout_s, cores=cores)

    def run(self, todo: deque[int], count: int) -> Iterator[tuple[int, Result | Lost]]:
        """See `Pool.run`.

        Raises:
            ValueError: there is no cluster, or its nodes cannot run the jobs.
            Stuck: the cluster was lost.
        """
        positions = list(todo)
        if not positions:
            return
        jobs = [self._jobs[position] for position in positions]
        client = _client(os.environ.get("RAY_ADDRESS") or "auto")
        is_done = False
        try:
            client.connection.send((self._function, jobs, count, self._options))
            for number, outcome in client.results(len(jobs)):
                yield positions[number], outcome
            is_done = True
        finally:
            if not is_done:
                client.kill()  # Ray cancels its tasks
                _client.cache_clear()


class _Options(NamedTuple):
    timeout_s: float
    cores: int


@dataclass(frozen=True)
class _Status:
    """A message of the client: it is connected, or waits for free cores."""

    text: str


@lru_cache(maxsize=1)
def _client(address: str) -> "_ClientProcess":
    """The client of a cluster, for all pools of this process: Ray starts new workers for each client."""
    return _ClientProcess(address)


class _ClientProcess:
    """A process that runs `_run_client`.

    Attributes:
        connection: to the process.
    """

    def __init__(self, address: str):
        context = multiprocessing.get_context("spawn")
        self.connection, remote_end = context.Pipe()
        self._process = context.Process(
            target=_run_client, args=(remote_end, address), daemon=True, name="kinemae-ray"
        )
        with main_module_hidden():
            self._process.start()
        remote_end.close()
        atexit.register(self.kill)
        self._cluster = ""

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        atexit.unregister(self.kill)

    def results(self, total: int) -> Iterator[tuple[int, Any]]:
        """Receive the outcomes of all jobs."""
        done = 0
        while done < total:
            try:
                message = self.connection.recv()
            except (EOFError, ConnectionResetError):
                raise self._lost_cluster() from None
            if isinstance(message, Failure):
                message.reraise()
            elif isinstance(message, _Status):
                log.info("Ray: %s", message.text)
                self._cluster = self._cluster or message.text
            else:
                done += 1
                yield message

    def _lost_cluster(self) -> Exception:
        if not self._cluster:
            return ConfigError(f"engine=ray: expected a Ray cluster that answers, got none; fix: {_HELP}")
        return Stuck(
            f"engine=ray: expected an answer of the Ray cluster ({self._cluster}), got none: its head ended; "
            "fix: start the cluster and run the same command again; `index` and `shard` keep finished results"
        )


def _run_client(connection: Connection, address: str) -> None:
    """Main function of the client process."""
    block_stop_signals()
    exit_with_parent()
    os.dup2(2, 1)  # standard output is for the result of the command; Ray logs there too
    try:
        ray = _connected(address)
        cores = ray.cluster_resources().get("CPU", 0)
        connection.send(_Status(f"{len(ray.nodes())} nodes, {cores:g} cores"))
        while True:
            function, jobs, count, options = connection.recv()
            _Submission(ray, connection, function, jobs, options).run(count)
    except Exception as error:  # the main process raises it again
        connection.send(Failure(picklable(error), traceback.format_exc()))


def _connected(address: str) -> Any:
    import ray

    try:
        ray.init(address, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"engine=ray: expected a Ray cluster, got {reason}; fix: {_HELP}") from error
    return ray


class _Submission(Generic[Job]):
    """Submits tasks for some jobs and sends the outcome of each job."""

    def __init__(
        self,
        ray: Any,
        connection: Connection,
        function: Callable[[Job], Any],
        jobs: list[Job],
        options: _Options,
    ):
        self._ray = ray
        self._connection = connection
        self._function = function
        self._jobs = jobs
        self._options = options
        self._running: dict[Any, range] = {}
        self._job_s = _TASK_S  # mean duration of a job; the first tasks have one job each
        task = ray.remote(_run_task)
        self._task = task.options(num_cpus=options.cores, max_retries=_RETRIES, retry_exceptions=False)

    def run(self, count: int) -> None:
        """Run all jobs; new tasks wait in Ray, so that a cluster with an autoscaler grows."""
        following = 0
        while following < len(self._jobs) or self._running:
            limit = count or 2 * int(self._cores() / self._options.cores) + 2
            while following < len(self._jobs) and len(self._running) < limit:
                following = self._submit(following)
            finished, _ = self._ray.wait(list(self._running), timeout=_LOG_EVERY_S)
            for reference in finished:
                self._collect(reference, self._running.pop(reference))
            if not finished:
                waiting = f"{len(self._running)} tasks run or wait for one of {self._cores():g} cores"
                self._connection.send(_Status(waiting))

    def _cores(self) -> float:
        return float(self._ray.cluster_resources().get("CPU", 0))

    def _submit(self, begin: int) -> int:
        """Submit a task; returns the position of the job after its last one."""
        end = min(begin + max(1, min(int(_TASK_S / self._job_s), _MAX_JOBS)), len(self._jobs))
        jobs = self._jobs[begin:end]
        reference = self._task.remote(__version__, self._function, jobs, self._options.timeout_s)
        self._running[reference] = range(begin, end)
        return end

    def _collect(self, reference: Any, positions: range) -> None:
        """Send the outcomes of a finished task."""
        errors = self._ray.exceptions
        try:
            outcomes, self._job_s = self._ray.get(reference)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            reason = f"its Ray task was lost {_RETRIES + 1} times: {type(error).__name__}"
            lost = Lost(reason, Stuck(f"{reason}; fix: run the same command again"), is_timeout=False)
            outcomes = [lost] * len(positions)
        except errors.RayError as error:
            reason = str(getattr(error, "cause", error)).strip().rpartition("\n")[2]
            raise ConfigError(
                f"engine=ray: expected nodes with kinemae {__version__} and its packages, got {reason}; fix: "
                "install it on all nodes, or set a runtime environment"
            ) from error
        for position, outcome in zip(positions, outcomes, strict=False):
            self._connection.send(outcome if isinstance(outcome, Failure) else (position, outcome))


def _run_task(
    version: str, function: Callable[[Job], Result], jobs: list[Job], timeout_s: float
) -> tuple[list[Result | Lost | Failure], float]:
    """Run jobs on a node.

    Returns:
        The outcomes in order, up to the first `Failure`, and the mean duration of a job in seconds.
    """
    if version != __version__:
        raise ValueError(f"kinemae {__version__} on the node {os.uname().nodename}")
    begin_s = monotonic()
    outcomes: list[Result | Lost | Failure] = []
    try:
        with main_module_hidden():  # it is the worker program of Ray
            pool = LocalPool(function, jobs, timeout_s=timeout_s)
            for _, outcome in pool.run(deque(range(len(jobs))), 1):
                outcomes.append(outcome)
    except Exception as error:  # the client sends it to the command
        outcomes.append(Failure(picklable(error), traceback.format_exc()))
    return outcomes, (monotonic() - begin_s) / len(jobs)
