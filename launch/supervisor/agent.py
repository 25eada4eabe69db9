"""`python -P launch/supervisor/agent.py JOB.json ...`: run a job's processes on one host.

The agent starts the processes of its host and ends them when one fails or a stop is requested. The agents of
a run meet in a store (`membership.py`). In each round of their rendezvous, an attempt, the first of them
decides (`leader.py`). The output of rank 0 goes to stdout, lines for the user go to stderr.
"""

import argparse
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file, with -P, from the frozen code
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kinemae.data_tools.exit_codes import EXIT_CRASHED, EXIT_STUCK
from kinemae.data_tools.files import COMMIT
from kinemae.launch.job import Job
from kinemae.launch.record import AGENT_LOCK, Record, take_lock, take_stop_request
from kinemae.launch.supervisor.hosts import be_the_only_agent, free_port, print_status
from kinemae.launch.supervisor.leader import Leader, NodeInfo, Plan, Superseded, Verdict
from kinemae.launch.supervisor.membership import Heartbeat, Membership, Round, StoreLost, TooFewNodes, connect
from kinemae.launch.supervisor.policy import ARRIVE_S, STOPPED, TOO_FEW_NODES, PolicyConfig, node_failure
from kinemae.launch.supervisor.rank import NodeRanks, Rank, catch_signals, log_line, note

_ENVIRONMENT = dict(os.environ)  # of the processes, before torch and this agent change their own
_POLL_S = 1.0  # of the store
_TICK_S, _WAIT_S = 0.5, 0.3  # with processes, and for other agents
_LEAVE_S = 5.0  # the store stays for the other agents
_BUSY_S = 3.0  # for an agent of an earlier start that is about to end

Start = Callable[[Plan, int], NodeRanks]


class Ended(Exception):
    """The run has ended, or this agent leaves it."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Agent:
    """A node of a run.

    Args:
        arguments: see `parse`.
        start: starts the processes of a node, by the plan and the number of the node.
        signals: received signals; handlers append to it.
        wakeup: a descriptor that becomes readable when one arrives.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        job: Job,
        membership: Membership,
        *,
        start: Start,
        signals: list[int],
        wakeup: int,
    ):
        self._given, self._job, self._membership = arguments, job, membership
        self._policy = PolicyConfig(**job.policy)
        self._start, self._signals, self._wakeup = start, signals, wakeup
        self._store = membership.store
        self._run_dir = Path(job.run_dir)
        self._record = Record(self._run_dir)
        self._stop: int | None = None
        self._processes: NodeRanks | None = None  # in an attempt
        self._alive = Heartbeat(changed_s=-math.inf)  # of the leader of any attempt
        self._polled_s = 0.0
        self._threads = ThreadPoolExecutor(1)
        self._address = _address_to(arguments)  # once: the network may be down at a restart

    def run(self) -> int:
        """Take part in the run until its end; return its exit code, `EXIT_STUCK` if the store is lost."""
        try:
            self._wait_for_agents()
            while True:
                verdict = _Attempt(self, self._join()).run()
                if verdict is not None and verdict.code is not None:
                    self._finish(verdict.code)
                elif verdict is not None and self._given.host in verdict.excluded:
                    self._wait_for_end()
        except Ended as ended:
            return ended.code
        except StoreLost as error:
            note(f"{self._given.host}: {error}")
        except Superseded:
            note(f"{self._given.host}: other agents run the job: ending")
        return EXIT_STUCK

    def _wait_for_agents(self) -> None:
        """Wait until all agents have started, so that the first round has all nodes."""
        if self._store.add("arrived", 1) < self._given.agents:
            until = time.monotonic() + ARRIVE_S
            while self._store.add("arrived", 0) < self._given.agents and time.monotonic() < until:
                self.idle()

    def _join(self) -> Round:
        """Take part in the next round."""
        self._alive = Heartbeat(self._store.read("alive"), changed_s=-math.inf)
        while True:
            began = time.monotonic()
            joining: Future[Round] = self._threads.submit(self._membership.join)
            while not joining.done():
                self.idle()
            try:
                return joining.result()
            except TooFewNodes:
                self._alive.see(self._store.read("alive"))
                if self._alive.changed_s < began:
                    self._give_up()
                # Otherwise the others are in an attempt: this host takes part from the next restart on.

    def _give_up(self) -> None:
        log_line(self._run_dir, f"fewer than min_nodes={self._given.nodes[0]} hosts are left")
        failure = self._record.read().get("failure") or {}
        self._end(failure.get("code") or EXIT_CRASHED, TOO_FEW_NODES)

    def _end(self, code: int, cause: str) -> None:
        """End the run outside of an attempt."""
        if self._record.read().get("run_id") == self._given.run_id:
            self._record.end(code, cause=cause)
        self._finish(code)

    def _wait_for_end(self) -> None:
        """Leave the run to the other nodes; the agent with the store has to stay while there is one."""
        note(f"{self._given.host} takes no further part")
        self._membership.leave()
        self._alive = Heartbeat(self._store.read("alive"))
        limit_s = self._policy.host_wait_s + 3 * self._policy.heartbeat_timeout_s  # a rendezvous and its plan
        while self._given.serves and not self._alive.is_silent(limit_s):
            self.idle()
        if self._given.serves:
            self._give_up()
        raise Ended(EXIT_CRASHED)

    def _finish(self, code: int) -> None:
        """Tell the other agents that the run has ended; keep the store for them for a moment."""
        with suppress(StoreLost):
            self._store.set("final", str(code))
            self._store.add("left", 1)
            until = time.monotonic() + _LEAVE_S if self._given.serves else 0.0
            while time.monotonic() < until and self._store.add("left", 0) < self._store.add("arrived", 0):
                time.sleep(0.1)
        raise Ended(code)

    def idle(self) -> None:
        """Wait for a moment without processes; end after a stop or the end of the run.

        If other agents are in an attempt, they stop their processes, and the leader ends the run.
        """
        time.sleep(_WAIT_S)
        self.take_signals()
        self.poll()
        if self._stop is not None and self._given.serves and self.is_alone:
            self._end(128 + self._stop, STOPPED)

    @property
    def is_alone(self) -> bool:
        """Whether no agent leads an attempt, or the leader is lost."""
        return self._alive.is_silent(self._policy.heartbeat_timeout_s)

    def take_signals(self) -> None:
        """Request a stop of the whole run for each received signal; a second SIGINT kills."""
        while self._signals:
            number = self._signals.pop(0)
            self._request(signal.SIGKILL if number == signal.SIGINT and self._stop is not None else number)
            self._polled_s = 0.0

    def _request(self, number: int) -> None:
        if self._store.read("stop") is None or number == signal.SIGKILL:
            self._store.set("stop", str(int(number)))

    def poll(self) -> bool:
        """Once a second, read requests from the run folder and the store; return whether it did so."""
        if time.monotonic() - self._polled_s < _POLL_S:
            return False
        self._polled_s = time.monotonic()
        if self._given.serves and (requested := take_stop_request(self._run_dir)) is not None:
            self._request(requested)
        if (stop := self._store.read("stop")) is not None and int(stop) != self._stop:
            self._stop = int(stop)
            self._stop_processes()
        if self._processes is None and (final := self._store.read("final")) is not None:
            self._finish(int(final))
        self._alive.see(self._store.read("alive"))
        return True

    def start(self, plan: Plan, node: int) -> NodeRanks:
        """Start the processes of this node; a stop may have been requested meanwhile."""
        self._processes = self._start(plan, node)
        self._stop_processes()
        return self._processes

    def _stop_processes(self) -> None:
        if self._processes is not None and self._stop is not None:
            self._processes.stop(self._stop, 0 if self._stop == signal.SIGKILL else self._policy.stop_s)


class _Attempt:
    """This node's part in one round."""

    def __init__(self, agent: Agent, joined: Round):
        self._agent, self._joined, self._store = agent, joined, joined.store
        self._given, self._policy = agent._given, agent._policy
        self._leader: Leader | None = None
        if joined.node == 0:
            self._leader = Leader(joined, agent._job, self._given, record=agent._record)
        agent._alive = Heartbeat(agent._store.read("alive"))

    def run(self) -> Verdict | None:
        """Run the processes of this node to their end; return the verdict, None if the leader is lost."""
        own = NodeInfo(self._given.host, self._given.node_slots, self._agent._address, free_port())
        self._store.set(f"node/{self._joined.node}", json.dumps(own))
        plan = self._wait_for_plan()
        if not isinstance(plan, Plan):
            return plan
        processes = self._agent.start(plan, self._joined.node)
        try:
            return self._follow(processes)
        except (StoreLost, Superseded):  # end the processes without the other nodes
            processes.end(self._policy.grace_s)
            while processes.is_running:
                processes.wait(self._agent._wakeup, _TICK_S)
            processes.close()
            raise
        finally:
            self._agent._processes = None

    def _wait_for_plan(self) -> Plan | Verdict | None:
        while True:
            if self._leader is not None:
                if (made := self._leader.prepare()) is not None:
                    return made
            elif (text := self._store.read("plan")) is not None:
                return Plan(*json.loads(text))
            elif (verdict := self._verdict()) is not None or self._has_lost_leader():
                return verdict
            self._beat()
            self._agent.take_signals()
            self._agent.poll()
            time.sleep(_WAIT_S)

    def _follow(self, processes: NodeRanks) -> Verdict | None:
        agent, has_ended, is_failed = self._agent, False, False
        while True:
            processes.wait(agent._wakeup, _WAIT_S if has_ended else _TICK_S)
            agent.take_signals()
            if processes.has_failed and not is_failed:
                is_failed = True
                self._store.set("failed", "1")
                processes.end(self._policy.grace_s)
            if not processes.is_running and not has_ended:
                has_ended = True
                self._store.set(f"end/{self._joined.node}", json.dumps(processes.close()))
            if agent.poll():
                self._beat()
                if (not is_failed and self._store.read("failed") is not None) or self._has_lost_leader():
                    is_failed = True
                    processes.end(self._policy.grace_s)
            elif not has_ended:
                continue
            verdict = self._verdict() if self._leader is None else self._leader.follow(stop=agent._stop)
            if verdict is not None or (has_ended and self._has_lost_leader()):
                return verdict

    def _verdict(self) -> Verdict | None:
        text = self._store.read("verdict")
        return None if text is None else Verdict(*json.loads(text))

    def _beat(self) -> None:
        self._store.add(f"beat/{self._joined.node}", 1)
        if self._leader is not None:
            self._agent._store.add("alive", 1)

    def _has_lost_leader(self) -> bool:
        return self._leader is None and self._agent.is_alone


def start_ranks(given: argparse.Namespace, job: Job, plan: Plan, node: int) -> NodeRanks:
    """Start the processes of a node by the plan of a round."""
    first = sum(plan.processes[:node])
    address, _, port = plan.master.rpartition(":")
    shared = {
        "WORLD_SIZE": str(sum(plan.processes)),
        "LOCAL_WORLD_SIZE": str(plan.processes[node]),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    environment = {**environment_of(job, _ENVIRONMENT), **shared}
    task = [job.python, "-P", str(Path(__file__).with_name("task.py")), str(os.getpid()), job.cwd]
    command = [*task, job.python, "-P", "-m", "kinemae", *job.argv]  # -P: no module of the working folder
    about = {"run_dir": Path(job.run_dir), "host": given.host, "attempt": plan.attempt}
    ranks: list[Rank] = []
    failures = []
    try:
        os.stat(task[2])  # without the file, Python ends with 2, the code of a wrong config
        for local in range(plan.processes[node]):
            rank = {"RANK": str(first + local), "LOCAL_RANK": str(local)}
            ranks.append(Rank(first + local, command, {**environment, **rank}, **about))
    except OSError as error:  # no interpreter or run folder on this host, or too many processes
        text = f"{given.host} cannot start rank {first + len(ranks)}: {error}"
        failures = [node_failure(given.host, time.time(), text)]
    return NodeRanks(ranks, stop_s=PolicyConfig(**job.policy).stop_s, failures=failures)


def environment_of(job: Job, present: Mapping[str, str]) -> dict[str, str]:
    """The environment of all processes: the present one and the cluster file's variables."""
    environment = {**present, **job.environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [job.code, environment.get("PYTHONPATH")]))
    environment["PYTHONUNBUFFERED"] = "1"  # the last output before a crash must reach the log
    return environment | ({COMMIT: job.commit} if job.commit else {})


def _address_to(given: argparse.Namespace) -> str:
    """The address by which other nodes reach this one: that of its route to the store."""
    host, _, port = given.rendezvous.rpartition(":")
    if given.serves:
        return str(host)
    family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as handle:
        handle.connect(address)  # sends nothing
        return str(handle.getsockname()[0])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="agent.py", description="Run a job's processes on one host.")
    parser.add_argument("job", help="the job.json that `launch` wrote")
    parser.add_argument("--node", type=int, help="order of this host; default: SLURM_PROCID, or 0")
    parser.add_argument("--node-slots", type=int, required=True, help="most processes on this host")
    parser.add_argument("--nodes", default="1:1", metavar="MIN:MAX", help="hosts of an attempt")
    parser.add_argument("--agents", type=int, default=1, help="hosts with an agent; more than MAX are spare")
    parser.add_argument("--rendezvous", default="127.0.0.1:0", metavar="HOST:PORT", help="store of the run")
    parser.add_argument("--store-node", type=int, default=0, help="the host that holds the store")
    parser.add_argument("--run-id", default="1", help="name of this set of agents")
    parser.add_argument("--host", help="name of this host in messages; default: SLURMD_NODENAME, hostname")
    parser.add_argument("--job-id", help="begin RUN/launch/launch.json, as in a pod without a launcher")
    given = parser.parse_args(argv)
    given.node = int(os.environ.get("SLURM_PROCID", "0")) if given.node is None else given.node
    given.host = given.host or os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    least, _, most = given.nodes.partition(":")
    given.nodes = (int(least), int(most))
    given.serves = given.node == given.store_node
    return given


def main(argv: list[str]) -> int:
    """Read the job and take part in its run."""
    if argv[:1] == ["--query"]:
        print_status(*argv[1:])
        return 0
    given = parse(argv)
    signals: list[int] = []
    wakeup = catch_signals(signals)
    try:
        job = Job.read(Path(given.job))
        policy, record = PolicyConfig(**job.policy), Record(Path(job.run_dir))
        guard = be_the_only_agent(job.run_dir, given.host, _BUSY_S)
        lock: Any = True
        if given.serves:
            lock = take_lock(Path(job.run_dir), AGENT_LOCK, policy.heartbeat_timeout_s)
    except OSError as error:  # a file system may be away for a moment
        note(f"{given.host}: cannot read the job: {error}")
        return EXIT_STUCK
    if guard is None or lock is None:
        note(f"{given.host}: another agent of {job.run_dir} is running")
        return EXIT_STUCK
    if given.job_id and given.serves:  # a pod, which has no launcher: begin the record, or continue it
        if given.run_id == "0" or record.read().get("job_id") != given.job_id:
            record.begin(kind="k8s", job_id=given.job_id)
        record.update(run_id=given.run_id)

    def is_over() -> bool:
        return bool(signals) or (not given.job_id and record.read().get("run_id") != given.run_id)

    try:
        membership = connect(given, policy, is_over)
        start = partial(start_ranks, given, job)
        agent = Agent(given, job, membership, start=start, signals=signals, wakeup=wakeup)
    except (StoreLost, OSError) as error:
        note(f"{given.host}: {error}")
        return EXIT_STUCK
    return agent.run()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # a thread may wait for a store that does not respond
