"""The engine at every ZeRO stage, with one process and two: the same training, and states that fit all.

The model has what is hard to shard: a moving average that follows the weights, a loss over the global batch,
a learned scorer, registers, layer scales, drop path; and its gradients are clipped.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from kinemae.pretrain.runtime.tensor_shards import TensorShard, split_replicated
from tests.pretrain.runtime.conftest import SMALL_RUN
from tests.pretrain.runtime.engine_job import SAVED_AT, SPOILT, STAGES, STEPS
from tests.ranks import start_ranks

WORLDS = (1, 2)
HARD_TO_SHARD = """
target:
  name: weighted
  args:
    parts:
      pixels: {}
      features: {args: {decay: 0.5, final_decay: 0.9}}
      views: {args: {local_views: 2, local_drop: 0.5, slices: 64, hidden: 32, width: 16}}
pruning: {name: learned, args: {keep: 0.75}}
"""


@pytest.fixture(scope="module")
def measured(synth_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Measurements of the first process for each world size; see `engine_job.py`."""
    folder = tmp_path_factory.mktemp("stages")
    text = SMALL_RUN.replace("data: {", f"data: {{shards: {synth_shards / 'unlabelled'}, ")
    text = text.replace("model: {", "model: {registers: 2, layer_scale: 0.5, drop_path: 0.1, ")
    text = text.replace("optim: {", "optim: {clip_norm: 0.1, ")
    (folder / "config.yaml").write_text(f"run_dir: {folder / 'run'}\n{text}{HARD_TO_SHARD}")
    job = ["-m", "tests.pretrain.runtime.engine_job", str(folder / "config.yaml"), str(folder)]
    jobs = [process for world in WORLDS for process in start_ranks(world, *job, str(sum(WORLDS) - world))]
    for process in jobs:
        _, output = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]
    found = {
        (world, rank): json.loads((folder / f"world{world}-rank{rank}.json").read_text())
        for world in WORLDS
        for rank in range(world)
    }
    for name in ("unbroken", "resumed", "readable", "updates", "bf16"):
        assert found[2, 1][name] == found[2, 0][name], "all processes know the same"
    return {world: found[world, 0] for world in WORLDS}


@pytest.mark.processes
@pytest.mark.parametrize("world", WORLDS)
def test_every_stage_gives_the_same_training(measured: dict[int, dict[str, Any]], world: int) -> None:
    plain = measured[1]["unbroken"]["0"]
    assert all(norm > 0.1 for _, norm in plain), "or nothing is clipped"
    for stage in STAGES:
        lines = measured[world]["unbroken"][str(stage)]
        for line, expected in zip(lines, plain, strict=True):
            assert line == pytest.approx(expected, rel=1e-5)


@pytest.mark.processes
@pytest.mark.parametrize("world", WORLDS)
def test_a_state_loads_at_every_stage_and_world_size_and_bitwise_at_its_own(
    measured: dict[int, dict[str, Any]], world: int
) -> None:
    assert len(measured[world]["resumed"]) == 16 + 4
    for topology, lines in measured[world]["resumed"].items():
        writer, saved, stage = topology.split()
        unbroken = measured[world]["unbroken"][stage][SAVED_AT:]
        if (int(writer), saved) == (world, stage):
            assert lines == unbroken, topology
        for line, expected in zip(lines, unbroken, strict=True):
            assert line == pytest.approx(expected, rel=1e-5), topology


@pytest.mark.processes
def test_a_load_reads_each_value_once_over_all_processes(
    measured: dict[int, dict[str, Any]],
) -> None:
    everything = measured[1]["read"]["0"]
    for stage in STAGES:
        assert measured[1]["read"][str(stage)] == everything
        assert measured[2]["read"][str(stage)] == pytest.approx(everything / 2, rel=0.02), "padding"


@pytest.mark.processes
def test_a_gradient_that_is_not_finite_on_one_process_is_skipped_on_all(
    measured: dict[int, dict[str, Any]],
) -> None:
    plain = measured[2]["spoilt"]["0"]
    for stage in STAGES:
        lines = measured[2]["spoilt"][str(stage)]
        assert [math.isfinite(norm) for _, norm in lines] == [step != SPOILT for step in range(STEPS)]
        assert measured[2]["updates"][str(stage)] == [STEPS - 1]
        assert [loss for loss, _ in lines] == pytest.approx([loss for loss, _ in plain], rel=1e-5)
    unspoilt = measured[1]["unbroken"]["0"]
    assert plain[SPOILT + 1] != pytest.approx(unspoilt[SPOILT + 1], rel=1e-4), "or it was not left out"


@pytest.mark.processes
@pytest.mark.parametrize("world", WORLDS)
def test_gather_weights_updates_the_module_at_every_stage(
    measured: dict[int, dict[str, Any]], world: int
) -> None:
    plain = measured[1]["readable"]["0"]
    for stage in STAGES:
        assert measured[world]["readable"][str(stage)] == pytest.approx(plain, rel=1e-3, abs=1e-4)


@pytest.mark.processes
def test_gradients_can_be_reduced_in_bf16_at_every_stage(measured: dict[int, dict[str, Any]]) -> None:
    for stage in STAGES:
        exact, rounded = (measured[2][kind][str(stage)] for kind in ("unbroken", "bf16"))
        for line, expected in zip(rounded, exact, strict=True):
            assert line == pytest.approx(expected, rel=5e-3)
        assert rounded[0][1] != pytest.approx(exact[0][1], rel=1e-6), "or nothing was rounded"


@pytest.mark.parametrize("world", [1, 2, 3, 7, 40])
def test_replicated_shards_are_split_evenly_and_without_gaps(world: int) -> None:
    shards = [
        TensorShard(name=str(i), kind="weight", start=0, values_V=torch.full((size,), float(i)))
        for i, size in enumerate((5, 1, 0, 17, 8))
    ]
    shares = [split_replicated(shards, rank, world) for rank in range(world)]
    sizes = [sum(shard.values_V.numel() for shard in share) for share in shares]
    assert sum(sizes) == 31 and max(sizes) - min(sizes) <= 1
    reached = dict.fromkeys("0134", 0)
    for shard in (shard for share in shares for shard in share):
        assert shard.start == reached[shard.name] and (shard.values_V == float(shard.name)).all()
        reached[shard.name] = shard.stop
    assert reached == {"0": 5, "1": 1, "3": 17, "4": 8}
