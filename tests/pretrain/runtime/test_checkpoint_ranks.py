"""Checkpoints of several processes: complete or absent, and all processes load the same one."""

import json
import platform
from typing import Any

import pytest

from tests.checkpointing import Line
from tests.ranks import start_ranks

Events = tuple[dict[str, Any], list[tuple[str, str]]]

# Printed by every rank: the events, in order.
RANK = """
import json, resource, sys
from pathlib import Path
from kinemae.data_tools.command import CheckpointError, Stuck
from kinemae.pretrain.runtime import file_retries
from kinemae.pretrain.runtime.checkpoint import Checkpoints, RunState
from kinemae.pretrain.runtime.processes import find_processes, init_process_group, destroy_process_group
from kinemae.pretrain.runtime.tensor_shards import exchange_replicated
from tests.checkpointing import Line, PlainEngine, stored_steps

def save_again(saver, engine):
    saver.save(engine, RunState(step=10, world=2))
    saver.commit()

processes, run_dir = find_processes("cpu"), Path(sys.argv[1])
init_process_group(processes)
saver, engine = Checkpoints(run_dir, processes), PlainEngine(rank=processes.rank, world=2)
results = {}
for step in (1, 2):
    engine.train_to(step)
    saver.save(engine, RunState(step=step, world=2))
saver.commit()
results["kept"] = stored_steps(run_dir)
processes.barrier()

if processes.rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
engine.train_to(3)
try:
    saver.save(engine, RunState(step=3, world=2))
    saver.commit()
except CheckpointError as error:
    results["full"] = str(error)
if processes.rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
processes.barrier()
results["left"] = stored_steps(run_dir)

if processes.rank == 0:  # what the other one will check
    path = run_dir / "checkpoints" / "step-00000002" / "shard-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[::-1])
processes.barrier()
engine.train_to(9)
results["loaded step"] = saver.load_newest(engine).step
results["is intact"] = engine.is_at(1)

saver.save(engine, RunState(step=9, world=2))
saver.commit()
saver.commit()
results["healthy"] = stored_steps(run_dir)
file_retries.DELAYS_S = (0.01, 0.01)
few = (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
many = resource.getrlimit(resource.RLIMIT_NOFILE)
for act in (lambda: saver.load_newest(engine), lambda: save_again(saver, engine)):
    processes.barrier()
    if processes.rank == 1:
        resource.setrlimit(resource.RLIMIT_NOFILE, few)
    try:
        act()
    except Stuck as error:
        results.setdefault("out of descriptors", []).append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, many)
processes.barrier()
try:
    Checkpoints(run_dir if processes.rank == 0 else run_dir / "not mounted", processes).load_newest(engine)
except Stuck as error:
    results["not mounted"] = str(error).partition("expected ")[2]
processes.barrier()
results["in the end"] = stored_steps(run_dir)

line = Line()
line.fill(processes.rank, 2)
exchange_replicated(line.shards, processes, exchanged_values=14)
results["shared"] = [shard.values_V.tolist() for shard in line.shards]
destroy_process_group()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Events:
    """Events, equal on both processes, and the log of each process."""
    ranks = start_ranks(2, "-c", RANK, str(tmp_path_factory.mktemp("ranks")))
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    both = [json.loads(out) for out, _ in outputs]
    assert both[0] == both[1]
    return both[0], outputs


@pytest.mark.processes
def test_two_processes_agree_on_success_failure_and_damage(events: Events) -> None:
    results, outputs = events
    assert results["kept"] == results["left"] == ["step-00000001", "step-00000002"]
    assert "could not write the checkpoint of step 3" in results["full"]
    assert f"rank 1 on {platform.node()}: [Errno 27] File too large" in results["full"]
    assert (results["loaded step"], results["is intact"]) == (1, True)
    assert "step-00000002 is damaged (shard-00001-of-00002.safetensors has changed" in outputs[0][1]
    assert "damaged" not in outputs[1][1]  # outputs once


@pytest.mark.processes
def test_a_read_error_of_one_process_is_not_damage_and_can_be_retried(events: Events) -> None:
    results, _ = events
    host = platform.node()
    reading, writing = results["out of descriptors"]
    assert f"expected rank 1 on {host} to read it, got [Errno 24] Too many open files" in reading
    assert "(3 attempts in 0.02 seconds); nothing was changed" in reading
    assert "could not write the checkpoint of step 10" in writing
    assert f"rank 1 on {host}: [Errno 24] Too many open files" in writing
    expected = f"rank 1 on {host} to read it, got no shard-00001-of-00002"
    assert results["not mounted"].startswith(expected)
    assert results["in the end"] == results["healthy"]
    assert results["healthy"] == ["step-00000001", "step-00000002.quarantined", "step-00000009"]


@pytest.mark.processes
def test_replicated_shards_are_exchanged(events: Events) -> None:
    results, _ = events
    expected = Line()
    expected.fill(0, 1)
    assert results["shared"] == [shard.values_V.tolist() for shard in expected.shards]
