"""Overhead of a step: no device synchronization, and gradients in buckets of the configured size."""

import json
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
