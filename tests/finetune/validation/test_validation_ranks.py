"""Two processes: one dies during or after a validation; the continued run ends as the unbroken one."""

import json
import signal

import pytest
from safetensors.torch import load_file

from kinemae.pretrain.runtime.metrics import read_metrics
from tests.finetune.validation.test_validation_run import SAME_FILES, SETTINGS, lines, result
from tests.ranks import started
from tests.seeds import IS_NIGHTLY

# Validations after steps 1 to 4. Each is the best so far, but only the first one improves by min_delta:
# the run stops after 4 of 8 steps.
SHORT = [
    *("epochs=2", "batch.clips_per_device=4", "validate.every_steps=1"),
    *("validate.patience=3", "validate.min_delta=100", "save_every_steps=2", "report=false"),
    *("optim.lr=1e-4", "timeouts.start_s=600"),
]
# By ZeRO stage: the moment.
DEATHS = {0: "validated 3", 3: "scoring 4"} if IS_NIGHTLY else {3: "scoring 4"}


@pytest.fixture(scope="module")
def finished(common, tmp_path_factory):
    """Return a folder with `unbroken-STAGE` and `run-STAGE`, which was killed and continued."""
    root = tmp_path_factory.mktemp("ranks")

    def command(stage, name, dies=None):
        run = [f"engine.zero_stage={stage}", f"run_dir={root / f'{name}-{stage}'}"]
        arguments = ["train", *map(str, common), *SETTINGS, *SHORT, *run]
        return {"arguments": arguments, "dies": dies}

    def start(*commands):
        (root / "commands.json").write_text(json.dumps(commands))
        job = "tests.finetune.validation.validation_job"
        with started(root, job, str(root / "commands.json")) as ranks:
            codes = ranks.exit_codes()
            assert (codes[1] == -signal.SIGKILL) == bool(commands[-1]["dies"]), ranks.output(1)
            assert (codes[0] == 0) == (codes[1] == 0), ranks.output(0)

    before = [command(stage, "unbroken") for stage in DEATHS]
    for stage, moment in DEATHS.items():
        start(*before, command(stage, "run", moment))
        before = [command(stage, "run")]
    start(*before)
    return root


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(1800)  # with the starts of six processes on a busy machine
@pytest.mark.parametrize("stage", DEATHS)
def test_a_run_of_two_processes_killed_at_a_validation_ends_as_the_unbroken_one(finished, stage):
    run, unbroken = (finished / f"{name}-{stage}" for name in ("run", "unbroken"))

    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (run, unbroken))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    for name in SAME_FILES:
        assert (run / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert result(run) == result(unbroken)
    weights = [load_file(folder / "model" / "encoder.safetensors") for folder in (run, unbroken)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[1])
    assert [line["step"] for line in lines(run)] == [0, 1, 2, 3] == [line["step"] for line in ours]
    assert json.loads((run / "best" / "validation.json").read_text()) == lines(run)[-1]
    assert lines(run)[-1]["stopped"] and result(run)["selection"]["stopped_early"]
