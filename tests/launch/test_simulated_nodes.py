"""Agents of many nodes with a real store and rendezvous, in threads; their ranks are made up."""

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous.api import RendezvousError

from kinemae.launch.job import Job
from kinemae.launch.record import Record, read_record, request_stop
from kinemae.launch.supervisor.agent import Agent, parse
from kinemae.launch.supervisor.leader import Plan
from kinemae.launch.supervisor.membership import ElasticNodes
from kinemae.launch.supervisor.policy import NodeEnd, PolicyConfig
from tests.launch.fake_program import make_job
from tests.ranks import free_port
from tests.seeds import SEED

pytestmark = [pytest.mark.processes, pytest.mark.slow]

NODES = 12  # threads of one interpreter; with 64 the first rendezvous takes minutes
POLICY = PolicyConfig(max_restarts=3, grace_s=1.0, host_wait_s=6.0)
# What the processes of a node do in an attempt: 0 and other codes end them, "hold" waits for a signal.
Action = int | str
Script = Callable[[int, int], Action]


class Killed(BaseException):
    """The simulated death of a node."""


@dataclass(kw_only=True)
class FakeRanks:
    """Processes of a node, see `NodeRanks`."""

    plan: Plan
    host: str
    action: Action
    is_running: bool = True
    has_failed: bool = False
    stop_code: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    def wait(self, wakeup: int, timeout_s: float) -> None:
        time.sleep(min(timeout_s, 0.2))
        if not self.is_running or self.action == "hold" or time.monotonic() < self.began_s + 0.4:
            return
        if self.action == "die":
            raise Killed
        self.is_running = False
        if self.action:
            failure = {"rank": 0, "host": self.host, "code": self.action, "time_s": time.time()}
            extra = {"is_victim": False, "message": None, "log": "", "last_lines": []}
            self.failures.append({**failure, **extra})
            self.has_failed = True

    def end(self, wait_s: float) -> None:
        self.is_running = False

    def stop(self, number: int, wait_s: float) -> None:
        self.is_running, self.stop_code = False, 75

    def close(self) -> NodeEnd:
        return NodeEnd(failures=self.failures, stop_code=self.stop_code)


class Cluster:
    """Nodes of a run; node 0 has the store.

    Attributes:
        plans: number of processes of each node, by attempt.
        codes: exit codes of the agents by node; "dead" for a dead one.
    """

    def __init__(self, job: Job, count: int, nodes: tuple[int, int], script: Script, *, limit_s: float = 8.0):
        self._policy = replace(POLICY, heartbeat_timeout_s=limit_s)
        self.job = replace(job, policy=asdict(self._policy))
        self.script = script
        self.plans: dict[int, list[int]] = {}
        self.codes: dict[int, int | str] = {}
        self._members: dict[int, ElasticNodes] = {}
        self._rendezvous, self._count, self._nodes = f"127.0.0.1:{free_port()}", count, nodes
        Record(Path(job.run_dir)).begin(kind="ssh", run_id="1")
        self.threads = [
            threading.Thread(target=self._run, args=(node,), daemon=True) for node in range(count)
        ]

    def run(self, within_s: float = 120.0) -> None:
        for thread in self.threads:
            thread.start()
        until = time.monotonic() + within_s
        for thread in self.threads:
            thread.join(max(0.0, until - time.monotonic()))
        with suppress(RendezvousError):  # the other nodes may change its state at the same time
            self._members[0]._handler.set_closed()  # ends the waits of spare nodes
        alive = [node for node, thread in enumerate(self.threads) if thread.is_alive()]
        assert not alive, f"nodes {alive} run after {within_s} s; attempts {self.plans}, codes {self.codes}"

    def _run(self, node: int) -> None:
        options = ["job.json", "--node", str(node), "--node-slots", "1", "--host", f"n{node}"]
        options += ["--nodes", f"{self._nodes[0]}:{self._nodes[1]}", "--agents", str(self._count)]
        given = parse([*options, "--rendezvous", self._rendezvous])
        member = ElasticNodes(given, self._policy)
        self._members[node] = member

        def start(plan: Plan, number: int) -> Any:
            self.plans[plan.attempt] = plan.processes
            action = self.script(plan.attempt, node)
            return FakeRanks(plan=plan, host=f"n{node}", action=action)

        agent = Agent(given, self.job, member, start=start, signals=[], wakeup=0)
        try:
            self.codes[node] = agent.run()
        except Killed:
            self.codes[node] = "dead"
            member._handler._stop_heartbeats()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(tmp_path)


def failing(attempts: dict[int, dict[int, Action]]) -> Script:
    """Actions by attempt and node. Other nodes hold in such an attempt, and finish in any other."""
    return lambda attempt, node: attempts[attempt].get(node, "hold") if attempt in attempts else 0


def test_a_failure_restarts_all_nodes_and_the_run_finishes(job: Job) -> None:
    cluster = Cluster(job, 3, (3, 3), failing({1: {1: 1}}))
    cluster.run()
    assert cluster.plans == {1: [1, 1, 1], 2: [1, 1, 1]} and cluster.codes == {0: 0, 1: 0, 2: 0}
    assert read_record(Path(job.run_dir))["failure"]["host"] == "n1"


@pytest.mark.nightly
@pytest.mark.parametrize("lost", [0, 2], ids=["leader", "other"])
def test_the_others_go_on_without_a_lost_node(job: Job, lost: int) -> None:
    cluster = Cluster(job, 3, (2, 3), failing({1: {lost: "die"}}))
    cluster.run()
    assert cluster.plans == {1: [1, 1, 1], 2: [1, 1]}
    assert cluster.codes == {node: "dead" if node == lost else 0 for node in range(3)} or lost == 0
    assert read_record(Path(job.run_dir))["failure"]["message"].startswith(f"n{lost} is lost")


def to_one(actions: dict[int, Action], chance: random.Random) -> Script:
    """An action by attempt for one of its nodes, other than the first. The others hold meanwhile."""
    chosen: dict[int, int] = {}

    def script(attempt: int, node: int) -> Action:
        if attempt not in actions:
            return 0
        if (node and attempt not in chosen and chance.random() < 0.5) or node > 50:
            chosen.setdefault(attempt, node)
        return actions[attempt] if chosen.get(attempt) == node else "hold"

    return script


def test_a_spare_node_takes_the_place_of_a_lost_one(job: Job) -> None:
    cluster = Cluster(job, 4, (3, 3), failing({}))
    victims: list[int] = []

    def script(attempt: int, node: int) -> Action:
        if attempt == 1 and node and not victims:
            victims.append(node)
        return 0 if attempt > 1 else "die" if victims == [node] else "hold"

    cluster.script = script
    cluster.run()
    assert cluster.plans == {1: [1, 1, 1], 2: [1, 1, 1]}
    assert sorted(map(str, cluster.codes.values())) == ["0", "0", "0", "dead"]


@pytest.mark.nightly
def test_a_host_that_fails_first_twice_is_excluded(job: Job) -> None:
    def script(attempt: int, node: int) -> Action:
        return 1 if node == 1 else "hold" if attempt <= 2 else 0

    cluster = Cluster(job, 3, (2, 3), script)
    cluster.run()
    assert list(cluster.plans) == [1, 2, 3] and cluster.plans[3] == [1, 1]
    assert read_record(Path(job.run_dir))["history"]["excluded"] == ["n1"]
    assert cluster.codes[0] == cluster.codes[2] == 0 and cluster.codes[1] != 0


@pytest.mark.nightly
def test_too_few_nodes_end_the_run(job: Job) -> None:
    cluster = Cluster(job, 3, (3, 3), failing({1: {2: "die"}}))
    cluster.run()
    record = read_record(Path(job.run_dir))
    assert (record["state"], record["cause"], record["attempt"]) == ("ended", "too few nodes", 1)


def test_a_stop_request_stops_all_nodes(job: Job) -> None:
    cluster = Cluster(job, 3, (3, 3), lambda attempt, node: "hold")
    threading.Timer(3.0, request_stop, [Path(job.run_dir), signal.SIGUSR1]).start()
    cluster.run()
    assert cluster.codes == {0: 75, 1: 75, 2: 75}


@pytest.fixture
def quick_threads() -> Iterator[None]:
    """Change between threads often: all nodes share one interpreter."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.nightly
@pytest.mark.usefixtures("quick_threads")
@pytest.mark.parametrize("seed", [SEED])
def test_many_nodes_survive_failures_and_lost_nodes(job: Job, seed: int) -> None:
    count = NODES - 2
    script = to_one({1: 137, 2: "die"}, random.Random(seed))
    cluster = Cluster(job, NODES, (count - 2, count), script, limit_s=15.0)
    cluster.run(within_s=240.0)
    assert [len(plan) for plan in cluster.plans.values()] == [count, count, count], cluster.plans
    dead = [node for node, code in cluster.codes.items() if code == "dead"]
    assert len(dead) == 1 and set(cluster.codes.values()) == {0, "dead"}
