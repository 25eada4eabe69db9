"""The processes of one node: those that cannot start, cannot be killed, or leave a busy worker behind."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kinemae.launch.supervisor import rank as rank_module
from kinemae.launch.supervisor.agent import parse, start_ranks
from kinemae.launch.supervisor.leader import Plan
from kinemae.launch.supervisor.policy import NodeEnd
from kinemae.launch.supervisor.rank import NodeRanks, Rank
from tests.launch.fake_program import make_job, wait_for

pytestmark = pytest.mark.processes


def node_of(tmp_path: Path, script: str) -> tuple[NodeRanks, Rank]:
    rank = Rank(0, ["bash", "-c", script], dict(os.environ), run_dir=tmp_path, host="a", attempt=1)
    return NodeRanks([rank], stop_s=5.0), rank


def run(node: NodeRanks, most_s: float = 30.0) -> NodeEnd:
    reader, _ = os.pipe()
    until = time.monotonic() + most_s
    while node.is_running:
        assert time.monotonic() < until
        node.wait(reader, 0.1)
    return node.close()


def test_a_worker_that_writes_for_ever_does_not_hide_the_end_of_its_process(tmp_path: Path) -> None:
    node, rank = node_of(tmp_path, "(while :; do echo chatter; done) & exit 3")
    end = run(node)
    assert [failure["code"] for failure in end.failures] == [3] and rank.code == 3


def test_a_process_that_survives_sigkill_does_not_hold_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_module, "_UNKILLABLE_S", 0.5)
    monkeypatch.setattr(rank_module, "_DRAIN_S", 0.2)
    node, rank = node_of(tmp_path, "sleep 600")
    with monkeypatch.context() as stuck:
        stuck.setattr(os, "killpg", lambda group, number: None)  # as in an uninterruptible sleep
        stuck.setattr(rank.process, "send_signal", lambda number: None)
        node.end(0.1)
        end = run(node)
    assert rank.code == 137 and end.stop_code == 0
    assert f"process {rank.process.pid} survives SIGKILL: continuing" in capfd.readouterr().err
    rank.process.kill()
    rank.process.wait()


def test_a_host_without_the_interpreter_is_a_failure_of_that_host(tmp_path: Path) -> None:
    job = replace(make_job(tmp_path), python="/no/such/python")
    given = parse([str(job.path), "--node-slots", "2", "--host", "a"])
    node = start_ranks(given, job, Plan(attempt=1, processes=[2], master="a:1"), 0)
    assert node.has_failed and not node.is_running
    failure = node.close().failures[0]
    assert (failure["rank"], failure["host"]) == (None, "a")
    assert failure["message"].startswith("a cannot start rank 0: [Errno 2]")


def test_an_error_file_of_an_earlier_launch_is_not_read(tmp_path: Path) -> None:
    old = tmp_path / "launch" / "errors" / "start-1-rank-00000.json"
    old.parent.mkdir(parents=True)
    content = '{"message": {"message": "old"}, "kinemae": {"code": 5, "lost_peer": false, "time_s": 1.0}}'
    old.write_text(content)
    node, rank = node_of(tmp_path, "exit 4")
    wait_for("end", lambda: rank.process.poll() is not None)
    assert run(node).failures[0]["message"] is None
