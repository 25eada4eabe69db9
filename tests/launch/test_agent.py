"""Agents that are not in an attempt: they wait for the next one, or end the run."""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kinemae.data_tools.exit_codes import is_restartable
from kinemae.launch.record import Record, read_record, request_stop
from kinemae.launch.supervisor import agent as agent_module
from kinemae.launch.supervisor.agent import Agent, Ended, _Attempt, parse, start_ranks
from kinemae.launch.supervisor.leader import Leader, NodeInfo, Plan, Superseded, Verdict
from kinemae.launch.supervisor.membership import Membership, SingleNode, TooFewNodes
from kinemae.launch.supervisor.policy import History, NodeEnd, PolicyConfig, lost_node, node_failure
from tests.launch.fake_program import make_job


class Unjoined(SingleNode):
    """A rendezvous in which this node waits for a while, in vain; the others do something meanwhile."""

    def __init__(self, meanwhile: Callable[["Unjoined"], None], most: int) -> None:
        super().__init__()
        self._meanwhile, self._left = meanwhile, most

    def join(self) -> Any:
        self._left -= 1
        if self._left < 0:
            self.store.set("final", "0")  # the others have finished
            time.sleep(10)
        self._meanwhile(self)
        raise TooFewNodes


def agent_of(folder: Path, membership: Membership, **policy: float) -> Agent:
    job = make_job(folder)
    job = replace(job, policy=asdict(PolicyConfig(**{"heartbeat_timeout_s": 2.0, **policy})))
    Record(Path(job.run_dir)).begin(kind="ssh", run_id="1")
    given = parse(["job.json", "--node-slots", "1", "--nodes", "2:2"])
    start: Any = None
    return Agent(given, job, membership, start=start, signals=[], wakeup=0)


def lead(node: SingleNode, seconds: float = 1.5) -> None:
    """Send heartbeats, as the leader of an attempt."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        node.store.add("alive", 1)
        time.sleep(0.1)


def test_an_agent_that_cannot_join_a_running_attempt_waits_for_the_next(tmp_path: Path) -> None:
    agent = agent_of(tmp_path, Unjoined(lead, most=2))
    assert agent.run() == 0
    assert read_record(tmp_path / "run")["state"] == "starting"  # the others write the end


@pytest.mark.parametrize("most", [1, 2])
def test_a_run_that_no_agent_leads_ends(tmp_path: Path, most: int) -> None:
    once = iter([lead] * (most - 1))
    node = Unjoined(lambda node: next(once, lambda node: time.sleep(0.5))(node), most=9)
    assert agent_of(tmp_path, node).run() == 1
    record = read_record(tmp_path / "run")
    assert (record["state"], record["cause"]) == ("ended", "too few nodes")


@pytest.mark.parametrize("is_led", [False, True])
def test_a_stop_ends_the_run_unless_other_agents_are_in_an_attempt(tmp_path: Path, is_led: bool) -> None:
    node = Unjoined(lambda node: lead(node, 4.0) if is_led else time.sleep(4.0), most=1)
    agent = agent_of(tmp_path, node)
    threading.Timer(1.5, request_stop, [tmp_path / "run"]).start()
    assert agent.run() == (0 if is_led else 143)
    assert read_record(tmp_path / "run")["state"] == ("starting" if is_led else "ended")
    assert node.store.read("stop") == "15"


def test_an_excluded_agent_with_the_store_ends_the_run_after_all_others(tmp_path: Path) -> None:
    node = SingleNode()
    agent = agent_of(tmp_path, node, host_wait_s=0.5, heartbeat_timeout_s=0.5)
    threading.Thread(target=lead, args=[node, 3.0], daemon=True).start()
    began_s = time.monotonic()
    with pytest.raises(Ended) as ended:
        agent._wait_for_end()
    assert ended.value.code == 1 and time.monotonic() > began_s + 3.0
    assert read_record(tmp_path / "run")["cause"] == "too few nodes"


def test_an_agent_resolves_the_host_of_the_store_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = SingleNode()
    given = parse(["job.json", "--node-slots", "1", "--node", "1", "--rendezvous", "localhost:1"])
    job = make_job(tmp_path)
    Record(Path(job.run_dir)).begin(kind="ssh", run_id="1")
    nothing: Any = None
    agent = Agent(given, job, node, start=nothing, signals=[], wakeup=0)

    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    joined = node.join()._replace(node=1, nodes=2)
    joined.store.set("verdict", json.dumps(Verdict(None, ())))
    assert _Attempt(agent, joined).run() == Verdict(None, [])
    assert json.loads(joined.store.read("node/1") or "")[2] == "127.0.0.1"


def test_a_host_that_has_lost_the_run_folder_is_no_wrong_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "__file__", str(tmp_path / "unmounted" / "agent.py"))
    job = make_job(tmp_path, "wait=600")
    ranks = start_ranks(parse(["job.json", "--node-slots", "1"]), job, Plan(1, [1], "127.0.0.1:1"), 0)
    wakeup, _ = os.pipe()
    while ranks.is_running:
        ranks.wait(wakeup, 0.5)
    [failure] = ranks.close().failures
    assert is_restartable(failure["code"]) and "cannot start rank 0: [Errno 2]" in failure["message"]


def leader_of(tmp_path: Path, *, nodes: str = "1:1", count: int = 1) -> Leader:
    job = make_job(tmp_path)
    record = Record(Path(job.run_dir))
    record.begin(kind="ssh", run_id="1")
    given = parse(["job.json", "--node-slots", "1", "--nodes", nodes])
    return Leader(SingleNode().join()._replace(nodes=count), job, given, record=record)


@pytest.mark.parametrize(
    ("slots", "nodes", "processes"),
    [
        ([1, 3], 2, [1, 3]),
        ([3], 2, [2]),  # four clips cannot be shared by three processes
        ([1, 2], 3, [1, 1]),
        ([3], 1, [3]),  # all nodes: the dry run of the launch has accepted the number
    ],
)
def test_fewer_nodes_run_as_many_processes_as_can_share_the_batch(
    tmp_path: Path, slots: list[int], nodes: int, processes: list[int]
) -> None:
    leader = leader_of(tmp_path, nodes=f"1:{nodes}", count=len(slots))
    assert leader._assign(slots) == processes


def test_nodes_that_cannot_share_the_batch_end_the_run(tmp_path: Path) -> None:
    leader = leader_of(tmp_path, nodes="1:2")
    leader._job.summary["process_counts"] = [8]
    leader._store.set("node/0", json.dumps(NodeInfo("a", 3, "a", 1)))
    assert leader.prepare() == Verdict(2, ())
    record = read_record(tmp_path / "run")
    assert (record["state"], record["code"], record["cause"]) == ("ended", 2, "failed")


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
def test_checkpoints_that_cannot_be_listed_count_as_no_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    listdir, scandir = os.listdir, os.scandir

    def failing(listed: Callable[[Any], Any], path: Any) -> Any:
        if Path(path).name == "checkpoints":
            raise OSError(number, os.strerror(number))
        return listed(path)

    leader = leader_of(tmp_path)
    (tmp_path / "run" / "checkpoints" / "step-00000030").mkdir(parents=True)
    monkeypatch.setattr(os, "listdir", partial(failing, listdir))
    monkeypatch.setattr(os, "scandir", partial(failing, scandir))
    monkeypatch.setattr("kinemae.launch.record._PAUSE_S", 0.01)
    failed = node_failure("a", 1.0, "a is lost") | {"rank": 0}
    Record(tmp_path / "run").update(history=asdict(History(step=30, restarts=1)))
    decision = leader._decide([NodeEnd(failures=[failed])])
    assert (decision.code, decision.history.step, decision.history.restarts) == (None, 30, 2)
    log = (tmp_path / "run" / "logs" / "launch.log").read_text()
    assert f"cannot read the checkpoints: [Errno {number}] {os.strerror(number)}" in log


def test_the_loss_of_a_host_is_no_failure_of_its_processes(tmp_path: Path) -> None:
    leader = leader_of(tmp_path)
    for _ in range(2):
        decision = leader._decide([lost_node("a", 0.0, 30.0), NodeEnd()])
        assert decision.history.host is None and not decision.history.excluded
        Record(tmp_path / "run").update(history=asdict(decision.history))


def test_a_leader_that_was_suspended_during_a_later_attempt_changes_nothing(tmp_path: Path) -> None:
    job, joined = make_job(tmp_path), SingleNode().join()
    record = Record(Path(job.run_dir))
    record.begin(kind="ssh", run_id="1")
    given = parse(["job.json", "--node-slots", "1"])
    leader = Leader(joined, job, given, record=record)
    joined.store.set("node/0", json.dumps(NodeInfo(host="a", slots=1, address="a", port=1)))
    leader.prepare()
    assert record.read()["attempt"] == 1
    Record(Path(job.run_dir)).update(attempt=2, state="running")  # by another leader
    joined.store.set("end/0", json.dumps(NodeEnd()))
    with pytest.raises(Superseded):
        leader.follow(stop=None)
    assert read_record(Path(job.run_dir))["state"] == "running"
