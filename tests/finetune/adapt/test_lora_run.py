"""Runs with adapters: resumed, on several processes, and loaded without peft."""

import json
import shutil
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kinemae.data_tools.command import run_program
from kinemae.finetune.__main__ import PROGRAM
from tests.finetune.test_finetune_run import encoder, start  # noqa: F401
from tests.forked import run_forked
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow
LORA = ["adapt.method=lora", "adapt.rank=4", "adapt.dropout=0.2", "save_every_steps=1", "keep_checkpoints=9"]


@pytest.fixture(scope="module")
def lora_run(common, encoder, tmp_path_factory):  # noqa: F811
    run_dir = tmp_path_factory.mktemp("runs") / "lora"
    settings = [*LORA, f"encoder={encoder}", "adapt.save_adapter=true"]
    start("train", *common, *settings, f"run_dir={run_dir}")
    return run_dir


def weights(run_dir):
    model = run_dir / "model"
    return {**load_file(model / "encoder.safetensors"), **load_file(model / "head.safetensors")}


def losses(run_dir):
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_model_has_the_ordinary_format_and_is_scored_without_peft(lora_run, encoder, monkeypatch):  # noqa: F811
    given, tuned = (
        load_file(encoder / "encoder.safetensors"),
        load_file(lora_run / "model/encoder.safetensors"),
    )
    changed = {name for name in given if not torch.equal(given[name], tuned[name])}

    assert tuned.keys() == given.keys()
    assert changed == {name for name in given if name.startswith("blocks.") and "norm" not in name
                       and name.endswith("weight")}  # fmt: skip
    assert (lora_run / "model/adapter/adapter_config.json").exists()
    own = json.loads((lora_run / "result.json").read_text())
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails
    assert run_program(PROGRAM, ["evaluate", str(lora_run)]) == 0
    repeated = json.loads((lora_run / "result.json").read_text())
    assert {**repeated, "cost": None} == {**own, "cost": None}  # the cost has times
    assert own["run"]["adapt"] == "lora"


def test_checkpoints_have_no_moments_of_base_weights(lora_run):
    (file,) = max((lora_run / "checkpoints").glob("step-*")).glob("*.safetensors")
    with safe_open(file, "pt") as checkpoint:
        moments = [name for name in checkpoint.keys() if name.startswith("exp_avg/")]  # noqa: SIM118
    assert any("lora_A" in name for name in moments)
    assert all("lora_" in name or name.startswith("exp_avg/head.") for name in moments)


@pytest.mark.nightly
@pytest.mark.processes
def test_a_resumed_run_equals_the_unbroken_one(lora_run, common, encoder, tmp_path):  # noqa: F811
    resumed = tmp_path / "resumed"
    shutil.copytree(lora_run, resumed)
    shutil.rmtree(resumed / "model")
    shutil.rmtree(max((resumed / "checkpoints").glob("step-*")))
    settings = [*LORA, f"encoder={encoder}", "adapt.save_adapter=true", f"run_dir={resumed}"]

    output = run_forked("-m", "kinemae", "finetune", "train", *map(str, [*common, *settings]))

    assert "continuing at step 1 of 2" in output.stderr
    kept, own = weights(lora_run), weights(resumed)
    assert all(torch.equal(own[name], value) for name, value in kept.items())


@pytest.mark.nightly
@pytest.mark.processes
def test_two_processes_at_zero_3_train_as_one(lora_run, common, encoder, tmp_path):  # noqa: F811
    settings = [*LORA, f"encoder={encoder}", f"run_dir={tmp_path / 'two'}", "engine.zero_stage=3"]

    run_ranks(2, "-m", "finetune", "train", *map(str, common), *settings)

    torch.testing.assert_close(losses(tmp_path / "two"), losses(lora_run), atol=1e-5, rtol=1e-5)
    two, one = weights(tmp_path / "two"), weights(lora_run)
    # AdamW divides a gradient of nearly zero by itself: rounding alone may turn the step of a head's bias.
    assert two.pop("linear.bias").shape == one.pop("linear.bias").shape
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)
