"""After a signal to or a failure of one of two processes, both end in time with the documented exit code."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from kinemae.pretrain.runtime.metrics import read_metrics
from tests.ranks import Ranks, started

STOPPED, STUCK = 75, 5
ENDLESS = ("steps=100000", "save_every_steps=100000", "log.every_steps=1", "data.num_workers=1")


def has_done(run_dir: Path, steps: int) -> bool:
    return len(read_metrics(run_dir / "metrics.jsonl")) >= steps


def loaders_of(process: int) -> list[int]:
    """Loader workers of a process: the children of its fork server."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    return [grandchild for child in children.get(process, []) for grandchild in children.get(child, [])]


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.processes
def test_a_signal_to_one_process_stops_all_at_the_same_step_with_a_checkpoint(
    small_run: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    # With so few reports, the stop does not come at one.
    arguments = ("pretrain", str(small_run), *ENDLESS, "log.every_steps=5")
    with started(tmp_path, *arguments) as ranks:
        ranks.wait_until(lambda: has_done(run_dir, 5))
        ranks.processes[1].send_signal(signal.SIGUSR1)
        assert ranks.exit_codes() == [STOPPED, STOPPED]
        assert "SIGUSR1 received" in ranks.output(1) and "SIGUSR1" not in ranks.output(0)
        (checkpoint,) = (run_dir / "checkpoints").iterdir()
        step = json.loads((checkpoint / "state.json").read_text())["step"]
        assert f"stopped at step {step} with a checkpoint; repeat the command to continue" in ranks.output(0)
        assert "ended like all processes" in ranks.output(1)
    shown = [len(read_metrics(run_dir / "samples" / f"rank-0000{rank}.jsonl")) for rank in (0, 1)]
    assert shown == [step, step] == [len(read_metrics(run_dir / "metrics.jsonl"))] * 2


@pytest.mark.processes
# The first one has the store of the stop flags.
@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_workers_of_a_killed_process_end_and_the_other_process_exits(
    small_run: Path, tmp_path: Path, killed: int
) -> None:
    other = 1 - killed
    with started(tmp_path, "pretrain", str(small_run), *ENDLESS) as ranks:
        ranks.wait_until(lambda: has_done(tmp_path / "run", 2))
        loaders = [loaders_of(process.pid) for process in ranks.processes]
        assert [len(ours) for ours in loaders] == [1, 1]
        os.kill(ranks.processes[killed].pid, signal.SIGKILL)
        assert ranks.exit_code(other) == 1  # a crash: a supervisor starts the run again
        # gloo says "by peer" when it reads, and "by peer [ADDRESS]:PORT" when it writes.
        output = ranks.output(other)
        reason = r".* by peer[^)]*|Failed to recv[^)]*|Broken pipe"
        assert re.search(rf"lost the connection to another process \(({reason})\): its log states", output)
        assert "Traceback" not in output
        wait_for_end(ranks, [loader for ours in loaders for loader in ours])


@pytest.mark.nightly
@pytest.mark.processes
def test_a_suspended_process_makes_the_other_log_its_stacks_and_exit_with_5(
    small_run: Path, tmp_path: Path
) -> None:
    limits = ("timeouts.step_s=8", "timeouts.save_s=60")
    with started(tmp_path, "pretrain", str(small_run), *ENDLESS, *limits) as ranks:
        ranks.wait_until(lambda: has_done(tmp_path / "run", 2))
        loaders = loaders_of(ranks.processes[0].pid)
        ranks.processes[1].send_signal(signal.SIGSTOP)
        assert ranks.exit_code(0) == STUCK
        output = ranks.output(0)
        assert "rank 0 on " in output and "for more than timeouts.step_s=8 seconds" in output
        assert "waiting for another process" in output and 'train_step.py", line' in output
        wait_for_end(ranks, loaders)


def wait_for_end(ranks: Ranks, processes: list[int]) -> None:
    """Wait for the end of orphaned processes."""
    ranks.wait_until(lambda: not any(map(is_alive, processes)), while_all_run=False)
