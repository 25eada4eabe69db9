"""`python -P launch/supervisor/agent.py JOB.json ...`: run a job's processes on one host.

The agent starts the processes of its host and ends them when one fails or a stop is requested. The agents of
a run meet in a store (`membership.py`). In each round of their rendezvous, an attempt, the first of them
decides (`leader.py`). The output of rank 0 goes to stdout, lines for the user go to stderr.
"""

import argparse
import hashlib
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file, with -P, from the frozen code
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kinemae.data_tools.exit_codes import EXIT_CRASHED, EXIT_STUCK
from kinemae.launch.job import Job
from kinemae.launch.record import AGENT_LOCK, Record, take_lock, take_stop_request
from kinemae.launch.supervisor.hosts import free_port
from kinemae.launch.supervisor.leader import Leader, NodeInfo, Plan, Superseded, Verdict
from kinemae.launch.supervisor.membership import (
    ElasticNodes,
    Heartbeat,
    Membership,
    Round,
    SingleNode,
    StoreLost,
    TooFewNodes,
)
from kinemae.launch.supervisor.policy import STOPPED, TOO_FEW_NODES, PolicyConfig, node_failure
from kinemae.launch.supervisor.rank import NodeRanks, Rank, catch_signals, log_line, note

_ENVIRONMENT = dict(os.environ)  # of the processes, before torch and this agent change their own
_POLL_S = 1.0  # of the store
_TICK_S, _WAIT_S = 0.5, 0.3  # with processes, and for other agents
_LEAVE_S = 5.0  # the store stays for the other agents
_ARRIVE_S = 600.0  # the other agents start on slow file systems
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
        self._is_killed = False
        self._alive = Heartbeat(changed_s=-math.inf)  # of the leader of any attempt
        self._polled_s = 0.0
        self._threads = ThreadPoolExecutor(1)

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
            until = time.monotonic() + _ARRIVE_S
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
        self.log(f"fewer than min_nodes={self._given.nodes[0]} hosts are left")
        failure = self._record.read().get("failure") or {}
        self._end(failure.get("code") or EXIT_CRASHED, TOO_FEW_NODES)

    def _end(self, code: int, cause: str) -> None:
        """End the run outside of an attempt."""
        if self._record.read().get("run_id") == self._given.run_id:
            self._record.end(code, cause=cause, agents={})
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
        self.poll(None)
        is_alone = self._alive.is_silent(self._policy.heartbeat_timeout_s)
        if self._stop is not None and self._given.serves and is_alone:
            self._end(128 + self._stop, STOPPED)

    def take_signals(self) -> None:
        """Request a stop of the whole run for each received signal; a second SIGINT kills."""
        while self._signals:
            number = self._signals.pop(0)
            if self._stop is not None:
                number = signal.SIGKILL if number == signal.SIGINT else number
            self._request(number)
            self._polled_s = 0.0

    def _request(self, number: int) -> None:
        self._store.set("kill" if number == signal.SIGKILL else "stop", str(int(number)))

    def poll(self, processes: NodeRanks | None) -> bool:
        """Once a second, read requests from the run folder and the store; return whether it did so."""
        if time.monotonic() - self._polled_s < _POLL_S:
            return False
        self._polled_s = time.monotonic()
        if self._given.serves and (requested := take_stop_request(self._run_dir)) is not None:
            self._request(requested)
        if self._stop is None and (stop := self._store.read("stop")) is not None:
            self._stop = int(stop)
            if processes is not None:
                processes.stop(self._stop, self._policy.stop_s)
        if not self._is_killed and self._store.read("kill") is not None:
            self._is_killed, self._stop = True, self._stop or signal.SIGKILL
            if processes is not None:
                processes.stop(signal.SIGKILL, 0)
        if processes is None:
            if (final := self._store.read("final")) is not None:
                self._finish(int(final))
            self._alive.see(self._store.read("alive"))
        return True

    def log(self, text: str) -> None:
        """Print a line on the terminal and append it to RUN/logs/launch.log."""
        log_line(self._run_dir, text)


class _Attempt:
    """This node's part in one round."""

    def __init__(self, agent: Agent, joined: Round):
        self._agent, self._joined, self._store = agent, joined, joined.store
        self._given, self._policy = agent._given, agent._policy
        self._leader: Leader | None = None
        if joined.node == 0:
            self._leader = Leader(joined, agent._job, self._given, record=agent._record, log=agent.log)
        self._beats = 0
        self._leader_beats = Heartbeat()

    def run(self) -> Verdict | None:
        """Run the processes of this node to their end; return the verdict, None if the leader is lost."""
        own = NodeInfo(
            host=self._given.host, pid=os.getpid(), slots=self._given.node_slots, port=free_port(),
            address=_address_to(self._given),
        )  # fmt: skip
        self._store.set(f"node/{self._joined.node}", json.dumps(asdict(own)))
        plan = self._wait_for_plan()
        if not isinstance(plan, Plan):
            return plan
        processes = self._agent._start(plan, self._joined.node)
        try:
            self._store.set(f"started/{self._joined.node}", json.dumps(processes.pids()))
            return self._follow(processes)
        except (StoreLost, Superseded):
            self._end_alone(processes)
            raise

    def _wait_for_plan(self) -> Plan | Verdict | None:
        made: Future[Plan | Verdict] | None = None
        if self._leader is not None:  # in a thread: dry runs take long, and the others wait for beats
            made = self._agent._threads.submit(self._leader.prepare)
        while True:
            if made is not None:
                if made.done():
                    return made.result()
            elif (text := self._store.read("plan")) is not None:
                return Plan(**json.loads(text))
            elif (verdict := self._verdict()) is not None or self._has_lost_leader():
                return verdict
            self._beat()
            self._agent.take_signals()
            self._agent.poll(None)
            time.sleep(_WAIT_S)

    def _follow(self, processes: NodeRanks) -> Verdict | None:
        agent, has_ended, is_failed = self._agent, False, False
        if agent._stop is not None:  # requested meanwhile
            processes.stop(signal.SIGKILL if agent._is_killed else agent._stop, self._policy.stop_s)
        while True:
            processes.wait(agent._wakeup, _WAIT_S if has_ended else _TICK_S)
            agent.take_signals()
            if processes.has_failed and not is_failed:
                is_failed = True
                self._store.set("failed", "1")
                processes.end(self._policy.grace_s)
            if not processes.is_running and not has_ended:
                has_ended = True
                self._store.set(f"end/{self._joined.node}", json.dumps(asdict(processes.close())))
            if agent.poll(processes):
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
        return None if text is None else Verdict(**json.loads(text))

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(f"beat/{self._joined.node}", str(self._beats))
        if self._leader is not None:
            self._agent._store.add("alive", 1)  # for agents that are not in the attempt

    def _has_lost_leader(self) -> bool:
        if self._leader is not None:
            return False
        self._leader_beats.see(self._store.read("beat/0"))
        return self._leader_beats.is_silent(self._policy.heartbeat_timeout_s)

    def _end_alone(self, processes: NodeRanks) -> None:
        """End the processes without the other nodes."""
        processes.end(self._policy.grace_s)
        while processes.is_running:
            processes.wait(self._agent._wakeup, _TICK_S)
        processes.close()


def start_ranks(given: argparse.Namespace, job: Job) -> Start:
    """Start the processes of a node by the plan of a round."""

    def start(plan: Plan, node: int) -> NodeRanks:
        first = sum(plan.processes[:node])
        address, _, port = plan.master.rpartition(":")
        shared = {
            "WORLD_SIZE": str(plan.world),
            "LOCAL_WORLD_SIZE": str(plan.processes[node]),
            "MASTER_ADDR": address,
            "MASTER_PORT": port,
            "KINEMAE_PARENT": str(os.getpid()),
        }
        command = [job.python, "-P", str(Path(__file__).with_name("task.py")), given.job]
        about = {"run_dir": Path(job.run_dir), "host": given.host, "attempt": plan.attempt}
        ranks: list[Rank] = []
        failures = []
        try:
            for local in range(plan.processes[node]):
                rank = {"RANK": str(first + local), "LOCAL_RANK": str(local)}
                ranks.append(Rank(first + local, command, {**_ENVIRONMENT, **shared, **rank}, **about))
        except OSError as error:  # no such interpreter on this host, or too many processes
            text = f"{given.host} cannot start rank {first + len(ranks)}: {error}"
            failures = [node_failure(given.host, time.time(), text)]
        return NodeRanks(ranks, stop_s=PolicyConfig(**job.policy).stop_s, failures=failures)

    return start


def _address_to(given: argparse.Namespace) -> str:
    """The address by which other nodes reach this one: that of its route to the store."""
    host, _, port = given.rendezvous.rpartition(":")
    if given.serves:
        return str(host)
    family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as handle:
        handle.connect(address)  # sends nothing
        return str(handle.getsockname()[0])


def print_status(run_dir: str, host: str, master: str) -> None:
    """Print the fields of `HostStatus` as JSON: the host is reachable and has the code."""
    guard = be_the_only_agent(run_dir, host, 0)
    namespace = os.stat("/proc/self/ns/net").st_ino
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    resolve_error = None
    try:
        socket.getaddrinfo(master, 0, type=socket.SOCK_STREAM)
    except OSError as error:
        resolve_error = error.strerror or str(error)
    status = {
        "error": None if guard is not None else "an agent of an earlier start still runs there",
        "port": free_port(),
        "machine": f"{boot} {namespace}",
        "resolve_error": resolve_error,
        "hostname": socket.gethostname(),
        "own_address": own_address(),
        "has_interface": "GLOO_SOCKET_IFNAME" in os.environ,
    }
    sys.stdout.write(json.dumps(status))


def own_address() -> str | None:
    """The first bindable address of the own hostname; Gloo announces it to the other processes."""
    with suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            socket.gethostname(), 0, type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, protocol) as handle, suppress(OSError):
                handle.bind(address)
                return str(address[0])
    return None


def be_the_only_agent(run_dir: str, host: str, wait_s: float) -> socket.socket | None:
    """Keep other agents of a run off this host, until the returned socket is closed; None if there is one.

    An abstract socket disappears with its process.
    """
    name = hashlib.sha256(f"{run_dir}\0{host}".encode()).hexdigest()
    handle, until = socket.socket(socket.AF_UNIX), time.monotonic() + wait_s
    while True:
        try:
            handle.bind(f"\0kinemae-agent-{name}")
            return handle
        except OSError:
            if time.monotonic() > until:
                return None
            time.sleep(0.2)


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
    wakeup = catch_signals(signals, keep_ignored=True)  # as under nohup
    try:
        job = Job.read(Path(given.job))
        guard = be_the_only_agent(job.run_dir, given.host, _BUSY_S)
        lock: Any = True
        if given.serves:
            lock = take_lock(Path(job.run_dir), AGENT_LOCK, PolicyConfig(**job.policy).heartbeat_timeout_s)
    except OSError as error:  # a file system may be away for a moment
        note(f"{given.host}: cannot read the job: {error}")
        return EXIT_STUCK
    if guard is None or lock is None:
        note(f"{given.host}: another agent of {job.run_dir} is running")
        return EXIT_STUCK
    if given.job_id and given.serves:
        _begin_record(given, job)
    return _member(given, job, signals, wakeup)


def _member(given: argparse.Namespace, job: Job, signals: list[int], wakeup: int) -> int:
    policy, until = PolicyConfig(**job.policy), time.monotonic() + _ARRIVE_S
    membership: Membership = SingleNode()
    while given.nodes[1] > 1:
        try:
            membership = ElasticNodes(
                given.rendezvous, serves=given.serves, run_id=given.run_id, node=given.node,
                nodes=given.nodes, policy=policy,
            )  # fmt: skip
            break
        except StoreLost as error:  # the agent with the store may still start
            is_old = not given.job_id and Record(Path(job.run_dir)).read().get("run_id") != given.run_id
            if given.serves or is_old or signals or time.monotonic() > until:
                note(f"{given.host}: {error}")
                return EXIT_STUCK
            time.sleep(_POLL_S)
    start = start_ranks(given, job)
    return Agent(given, job, membership, start=start, signals=signals, wakeup=wakeup).run()


def _begin_record(given: argparse.Namespace, job: Job) -> None:
    """Begin the record of a run without a launcher, or continue that of its earlier start."""
    record = Record(Path(job.run_dir))
    if given.run_id == "0" or record.read().get("job_id") != given.job_id:
        (Path(job.run_dir) / "launch").mkdir(parents=True, exist_ok=True)
        record.begin(kind="k8s", job_id=given.job_id)
    record.update(run_id=given.run_id)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # a thread may wait for a store that does not respond
