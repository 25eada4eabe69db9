"""Two processes at ZeRO 3: one is killed during a validation; the continued run ends as the unbroken one."""

import json
import signal

import pytest
from safetensors.torch import load_file

from kinemae.pretrain.runtime.metrics import read_metrics
from tests.finetune.validation.test_validation_run import SAME_FILES, SETTINGS
from tests.ranks import started

TWO = ["engine.zero_stage=3", "evaluate.checkpoint=auto", "batch.clips_per_device=4", "epochs=1.5"]


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_of_two_processes_killed_during_a_validation_ends_as_the_unbroken_one(common, tmp_path):
    command = ["finetune", "train", *map(str, common), *SETTINGS, *TWO]
    unbroken, run_dir = tmp_path / "unbroken", tmp_path / "run"
    with started(tmp_path, *command, f"run_dir={unbroken}") as ranks:
        assert ranks.exit_codes() == [0, 0]
    with started(tmp_path, *command, f"run_dir={run_dir}") as ranks:
        # These lines are written directly before the second validation.
        ranks.wait_until(lambda: len(read_metrics(run_dir / "metrics.jsonl")) >= 4)
        ranks.processes[1].send_signal(signal.SIGKILL)
        assert ranks.exit_code(1) == -signal.SIGKILL and ranks.exit_code(0) != 0

    with started(tmp_path, *command, f"run_dir={run_dir}") as ranks:
        assert ranks.exit_codes() == [0, 0]

    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (run_dir, unbroken))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    for name in SAME_FILES:
        assert (run_dir / name).read_bytes() == (unbroken / name).read_bytes(), name
    results = [json.loads((folder / "result.json").read_text()) for folder in (run_dir, unbroken)]
    assert results[0] == results[1]
    weights = [load_file(folder / "model" / "encoder.safetensors") for folder in (run_dir, unbroken)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[1])
