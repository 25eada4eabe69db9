"""Agents that are not in an attempt: they wait for the next one, or end the run."""

import errno
import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from kinemae.launch.record import Record, read_record, request_stop
from kinemae.launch.supervisor.agent import Agent, Ended, parse
from kinemae.launch.supervisor.leader import Leader, NodeInfo, Superseded
from kinemae.launch.supervisor.membership import Membership, SingleNode, TooFewNodes
from kinemae.launch.supervisor.policy import History, NodeEnd, PolicyConfig, node_failure
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


logged: list[str] = []


@pytest.fixture(autouse=True)
def empty_log() -> None:
    logged.clear()


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


def leader_of(tmp_path: Path) -> Leader:
    job = make_job(tmp_path)
    record = Record(Path(job.run_dir))
    record.begin(kind="ssh", run_id="1")
    given = parse(["job.json", "--node-slots", "1"])
    return Leader(SingleNode().join(), job, given, record=record, log=logged.append)


def test_a_dry_run_without_an_answer_does_not_hold_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*arguments: object, limit_s: float, **options: object) -> None:
        raise subprocess.TimeoutExpired("kinemae", limit_s)

    leader = leader_of(tmp_path)
    monkeypatch.setattr("kinemae.launch.supervisor.leader.check_job", hang)
    assert leader._accepts(4)
    assert logged == ["the dry run with 4 processes took more than 300 s: starting without"]


def test_checkpoints_that_cannot_be_listed_count_as_no_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run_dir: Path) -> list[int]:
        raise OSError(errno.ESTALE, "Stale file handle")

    leader = leader_of(tmp_path)
    monkeypatch.setattr("kinemae.launch.supervisor.leader.saved_steps", fail)
    monkeypatch.setattr("kinemae.launch.supervisor.leader._POLL_S", 0.01)
    failed = node_failure("a", 1.0, "a is lost") | {"rank": 0}
    Record(tmp_path / "run").update(history=asdict(History(step=30, restarts=1)))
    decision = leader._decide([NodeEnd(failures=[failed])])
    assert (decision.code, decision.history.step, decision.history.restarts) == (None, 30, 2)
    assert "cannot read the checkpoints: [Errno 116] Stale file handle" in "\n".join(logged)


def test_a_leader_that_was_suspended_during_a_later_attempt_changes_nothing(tmp_path: Path) -> None:
    job, joined = make_job(tmp_path), SingleNode().join()
    record = Record(Path(job.run_dir))
    record.begin(kind="ssh", run_id="1")
    given = parse(["job.json", "--node-slots", "1"])
    leader = Leader(joined, job, given, record=record, log=lambda text: None)
    joined.store.set("node/0", json.dumps(asdict(NodeInfo(host="a", pid=1, slots=1, address="a", port=1))))
    leader.prepare()
    assert record.read()["attempt"] == 1
    Record(Path(job.run_dir)).update(attempt=2, state="running")  # by another leader
    joined.store.set("end/0", json.dumps(asdict(NodeEnd())))
    with pytest.raises(Superseded):
        leader.follow(stop=None)
    assert read_record(Path(job.run_dir))["state"] == "running"
