"""Overhead of a step: no device synchronization, and gradients in buckets of the configured size."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pretrain.runtime.step_job import GRADIENTS, STEPS
from tests.ranks import start_ranks


def measured(world: int, stage: int, bucket_mb: int) -> list[dict[str, Any]]:
    """Counts of each step on the first process; see `step_job.py`."""
    job = start_ranks(world, "-m", "tests.pretrain.runtime.step_job", str(stage), str(bucket_mb))
    outputs = [process.communicate(timeout=240) for process in job]
    for process, (_, errors) in zip(job, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    steps: list[dict[str, Any]] = json.loads(outputs[0][0].splitlines()[-1])
    assert len(steps) == STEPS
    return steps


@pytest.mark.processes
def test_no_step_synchronizes_the_device_at_stage_1() -> None:
    assert [step["synchronized"] for step in measured(1, 1, 200)] == [0] * STEPS


@pytest.mark.processes
def test_stage_0_sends_buckets_of_the_configured_size_during_the_last_backward_pass() -> None:
    for step in measured(2, 0, 1):
        assert step["synchronized"] == 0
        exchanged = [size for size in step["reduced"] if size > 1]
        assert sum(exchanged) == GRADIENTS
        # Two of the twelve weights fit into a quarter of a million values.
        assert len(exchanged) == 6 and max(exchanged) < 250_000
        assert step["overlapped"] == [0, 6]


@pytest.mark.processes
def test_stage_1_exchanges_during_the_last_backward_pass() -> None:
    for step in measured(2, 1, 1):
        assert step["synchronized"] == 0
        first, last = step["overlapped"]
        assert first == 0 and last >= 4, step


def counted_waits(
    shards: Path, folder: Path, *, world: int, stage: int, device: str, recipes: tuple[str, ...]
) -> Any:
    """Counts of each recipe on the first process; see `wait_job.py`."""
    job = ("-m", "tests.pretrain.runtime.wait_job", str(shards), str(folder), str(stage), device, *recipes)
    processes = start_ranks(world, *job)
    outputs = [process.communicate(timeout=540) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return json.loads(outputs[0][0].splitlines()[-1])


def assert_no_waits(found: dict[str, list[dict[str, Any]]]) -> None:
    for recipe, steps in found.items():
        assert steps == [{"waits": [], "scalar_sums": 0, "synchronized": 0}] * len(steps) != [], recipe


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_no_step_of_a_recipe_waits_for_the_device(synth_shards: Path, tmp_path: Path, stage: int) -> None:
    found = counted_waits(synth_shards, tmp_path, world=1, stage=stage, device="cpu", recipes=())
    assert {kind.split()[0] for kind in found} == {"pretraining", "finetuning"} and len(found) > 8
    assert_no_waits(found)


@pytest.mark.nightly
@pytest.mark.processes
@pytest.mark.parametrize("stage", [0, 1])
def test_no_step_of_two_processes_waits_for_the_device(
    synth_shards: Path, tmp_path: Path, stage: int
) -> None:
    """With layer-wise learning rates, so with many parameter groups, and with clipping."""
    recipes = ("mae_st_base", "mae_st_base_k400")
    found = counted_waits(synth_shards, tmp_path, world=2, stage=stage, device="cpu", recipes=recipes)
    assert len(found) == 2
    assert_no_waits(found)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [0, 1])
def test_no_step_of_a_recipe_waits_for_a_gpu(synth_shards: Path, tmp_path: Path, stage: int) -> None:
    """PyTorch raises an error at a wait."""
    assert_no_waits(counted_waits(synth_shards, tmp_path, world=1, stage=stage, device="cuda", recipes=()))
