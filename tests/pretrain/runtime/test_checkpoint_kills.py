"""A writer killed at random moments leaves an intact checkpoint; an incomplete one is never loaded.

The writers are forks of one process that has loaded its libraries, so that twenty of them cost little.
"""

import json
from pathlib import Path

import pytest

from tests.forked import run_forked

KILLS = 20

WRITER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from kinemae.pretrain.runtime.checkpoint import RunState
from tests.checkpointing import PlainEngine, checkpoints, stored_steps

torch.set_num_threads(1)
run_dir, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
shapes = {f"block.{i}": (300, 101) for i in range(12)}  # 4 MB with its moments

def train(report):
    engine, saver = PlainEngine(shapes), checkpoints(run_dir, keep=2)
    step = saver.load_newest(engine).step
    assert not step or engine.is_at(step), f"step {step} holds values of another"
    while True:
        engine.train_to(step := step + 1)
        saver.save(engine, RunState(step=step))
        os.write(report, b"saving %d\\n" % step)
        if step % 2:  # else the next save commits it
            saver.commit()
            os.write(report, b"committed %d\\n" % step)

chance, found = random.Random(seed), []
for kill in range(kills):
    read, write = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.close(read)
        train(write)
    os.close(write)
    begun = os.read(read, 100)  # the first save has begun
    time.sleep(chance.random() * 0.2)
    os.kill(writer, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGKILL, begun
    output = begun + b"".join(iter(lambda: os.read(read, 1 << 16), b""))
    os.close(read)
    lines = output.decode().splitlines()
    committed = [int(line.split()[1]) for line in lines if line.startswith("committed")]
    left = stored_steps(run_dir)
    engine = PlainEngine(shapes)
    step = checkpoints(run_dir).load_newest(engine).step
    found.append({
        "step": step, "committed": max(committed, default=0), "is_intact": not step or engine.is_at(step),
        "half": any("partial" in name for name in left),
    })
print(json.dumps(found))
"""


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_no_committed_checkpoint(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    ran = run_forked("-c", WRITER, str(run_dir), str(KILLS), "7")
    assert "damaged" not in ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == KILLS
    assert all(entry["is_intact"] for entry in found), found
    reached = 0
    for entry in found:  # each start continues from the newest committed checkpoint
        assert entry["step"] >= max(entry["committed"], reached)
        reached = entry["step"]
    assert any(entry["half"] for entry in found), "no kill fell into a write: the test would prove nothing"
