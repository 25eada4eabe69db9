"""A killed run continues with other processes, ZeRO stages and workers: equal samples and losses."""

import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.order import sample_at
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.training import make_plan, run_pretraining
from tests.pretrain.runtime.test_resume import start, wait_for_step
from tests.ranks import keys_by_step, start_ranks
from tests.seeds import SEED

STEPS, CLIPS = 14, 12
RUN = [
    f"steps={STEPS}", f"batch.global_clips={CLIPS}", "save_every_steps=2", "keep_checkpoints=100",
    "batch.clips_per_device=2", "masks_per_clip=2", "ema.decay=0.8",
]  # fmt: skip


def line_of_samples(config: PretrainConfig, count: int) -> Iterator[str]:
    """Sample keys of the run in order, computed from the seed."""
    assert config.data.shards
    index = open_index(config.data.shards)
    for place in range(count):
        epoch, i = divmod(place, len(index))
        yield index.sample(sample_at(config.seed, epoch, i, len(index))).key


def steps_saved(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in run_dir.glob("checkpoints/step-*[0-9]"))


def drop_after(run_dir: Path, step: int) -> None:
    """Remove later checkpoints, as if the run had been killed before them."""
    for later in steps_saved(run_dir):
        if later > step:
            shutil.rmtree(run_dir / "checkpoints" / f"step-{later:08d}")


def go_on(small_run: Path, run_dir: Path, world: int, *overrides: str) -> None:
    """Continue a run to its end with a number of processes."""
    ranks = start_ranks(world, "-m", "pretrain", str(small_run), f"run_dir={run_dir}", *RUN, *overrides)
    outputs = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, outputs


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.processes
def test_a_killed_run_continues_with_any_number_of_processes_and_zero_stage(
    small_run: Path, small_config: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    """1 -> 2 -> 3 -> 1 processes, ZeRO 0 -> 2 -> 3 -> 1, and 3 -> 1 -> 0 -> 0 loader processes each."""
    unbroken, run_dir = tmp_path / "unbroken", tmp_path / "resumed"
    run_pretraining(make_plan(small_config(f"run_dir={unbroken}", *RUN)))
    process = start(small_run, f"run_dir={run_dir}", *RUN, "data.num_workers=3")
    wait_for_step(process, run_dir, random.Random(SEED).randrange(4, 7))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    saved = steps_saved(run_dir)[-1]
    assert 0 < saved < STEPS - 4
    stale = run_dir / "samples" / "rank-00009.jsonl"  # of a rank that there was before, and is not now
    stale.write_text(
        "".join(json.dumps({"step": step, "keys": ["stale"]}) + "\n" for step in range(saved, STEPS))
    )
    go_on(small_run, run_dir, 2, "engine.zero_stage=2", "data.num_workers=1")
    drop_after(run_dir, saved + 2)
    go_on(small_run, run_dir, 3, "engine.zero_stage=3")
    assert len(list((run_dir / "samples").glob("*"))) == 3 + 1
    drop_after(run_dir, saved + 4)
    run_pretraining(make_plan(small_config(f"run_dir={run_dir}", *RUN, "engine.zero_stage=1")))

    keys = keys_by_step(run_dir)
    expected = list(line_of_samples(small_config(), STEPS * CLIPS))
    assert sorted(keys) == list(range(STEPS))
    for step in range(STEPS):
        assert Counter(keys[step]) == Counter(expected[step * CLIPS : (step + 1) * CLIPS])
    lines, others = (read_metrics(folder / "metrics.jsonl") for folder in (run_dir, unbroken))
    assert [line["samples"] for line in lines] == [line["samples"] for line in others]
    for line, other in zip(lines, others, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert [line["loss"] for line in lines[:saved]] == [line["loss"] for line in others[:saved]]
    for name in ("encoder", "encoder_raw"):
        ours, theirs = (load_file(folder / name / "encoder.safetensors") for folder in (run_dir, unbroken))
        for key, weight in theirs.items():
            torch.testing.assert_close(ours[key], weight, atol=1e-5, rtol=1e-4)
    changed = [start["changed"] for start in json.loads((run_dir / "environment.json").read_text())]
    assert [entry.get("engine.zero_stage") for entry in changed] == [None, [0, 2], [0, 3], [0, 1]]
