"""Overhead of a step: no device synchronization, and gradients in buckets of the configured size."""

import json
from typing import Any

import pytest

from tests.pretrain.runtime.step_job import GRADIENTS, STEPS, WIDTH
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
def test_no_step_synchronizes_the_device_at_stage_0_and_buckets_have_the_configured_size() -> None:
    for step in measured(2, 0, 1):
        assert step["synchronized"] == 0
        exchanged = [size for size in step["reduced"] if size > 1]
        assert sum(exchanged) == GRADIENTS
        # A bucket is full with the first gradient that makes it larger than a quarter of a million values.
        assert len(exchanged) == 5 and max(exchanged) < 250_000 + WIDTH * WIDTH
