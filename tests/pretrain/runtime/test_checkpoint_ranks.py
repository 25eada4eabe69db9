"""Several processes agree: all parts are on the disk or there is no checkpoint, and all load the same one."""

import json
from pathlib import Path

import pytest

from tests.ranks import start_ranks

# Printed by every rank: what befell it, in the order of the story.
RANK = """
import json, resource, sys
from pathlib import Path
from data_tools.command import CheckpointError
from pretrain.runtime.checkpoint import Checkpoints, RunState
from pretrain.runtime.processes import find_processes, join_group, leave_group
from tests.checkpointing import PlainEngine, stored_steps

processes, run_dir = find_processes("cpu"), Path(sys.argv[1])
join_group(processes)
saver, engine = Checkpoints(run_dir, processes), PlainEngine(rank=processes.rank, world=2)
story = {}
for step in (1, 2):
    engine.train_to(step)
    saver.save(engine, RunState(step=step, world=2))
saver.commit()
story["kept"] = stored_steps(run_dir)
processes.wait_for_all()

if processes.rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
engine.train_to(3)
try:
    saver.save(engine, RunState(step=3, world=2))
    saver.commit()
except CheckpointError as error:
    story["full"] = str(error)
if processes.rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
processes.wait_for_all()
story["left"] = stored_steps(run_dir)

if processes.rank == 0:  # what the other one will check
    path = run_dir / "checkpoints" / "step-00000002" / "pieces-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[::-1])
processes.wait_for_all()
engine.train_to(9)
story["passed over"] = saver.load_newest(engine).step
story["sound"] = engine.is_at(1)
leave_group()
print(json.dumps(story))
"""


@pytest.mark.processes
def test_two_processes_succeed_fail_and_pass_over_together(tmp_path: Path) -> None:
    ranks = start_ranks(2, "-c", RANK, str(tmp_path))
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    stories = [json.loads(out) for out, _ in said]
    assert stories[0] == stories[1]
    story = stories[0]
    assert story["kept"] == story["left"] == ["step-00000001", "step-00000002"]
    assert "could not write the checkpoint of step 3" in story["full"]
    assert "rank 1: [Errno 27] File too large" in story["full"]
    assert (story["passed over"], story["sound"]) == (1, True)
    assert "step-00000002 is damaged (pieces-00001-of-00002.safetensors has changed" in said[0][1]
    assert "damaged" not in said[1][1]  # said once
