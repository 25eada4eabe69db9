"""`finetune sweep` on encoded videos: checks before the start, trials, results, and an exact continuation."""

import json
import shutil

import pytest
import yaml

from kinemae.data_tools.command import run_program
from kinemae.data_tools.config import load_config
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.config import FinetuneConfig
from tests.finetune.test_finetune_run import encoder, start  # noqa: F401

pytestmark = pytest.mark.slow
RATES = "optim.lr=[1e-5, 1e-2]"
HALVING = ["sweep.rungs=2", "sweep.eta=2", "sweep.processes=2", "sweep.fraction=0.25"]


def finetune(*arguments):
    return run_program(PROGRAM, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def base(common, encoder):  # noqa: F811
    return [*common, f"encoder={encoder}", "adapt.method=frozen", "epochs=2"]


@pytest.fixture(scope="module")
def sweep_dir(base, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("sweeps") / "rates"
    start("sweep", *base, RATES, *HALVING, f"run_dir={run_dir}")
    return run_dir


def validations(folder):
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]


@pytest.mark.processes
def test_all_trials_run_to_the_first_rung_and_the_best_to_the_end(sweep_dir, synth_shards):
    found = json.loads((sweep_dir / "results.json").read_text())
    best = found["trials"][0]
    lengths = {each["trial"]: each["validations"] for each in found["trials"]}

    assert sorted(lengths.values()) == [1, 2] and lengths[found["best"]] == 2
    assert found["best"] == best["trial"] and best["status"] == "finished"
    assert best["best"] == max(
        line["top1"] for line in validations(sweep_dir / "trials" / f"{best['trial']:03d}")
    )
    stored = yaml.safe_load((sweep_dir / "trials/000/config.yaml").read_text())
    assert stored["data"]["validation"] is None and stored["validate"]["fraction"] == 0.25
    chosen = load_config(FinetuneConfig, sweep_dir / "best.yaml", [])
    assert chosen.optim.lr == float(best["values"]["optim.lr"])
    assert chosen.data.validation == str(synth_shards / "validation")


@pytest.mark.nightly
@pytest.mark.processes
def test_a_trial_that_paused_equals_an_unbroken_run(sweep_dir, tmp_path):
    number = json.loads((sweep_dir / "results.json").read_text())["best"]
    trial = sweep_dir / "trials" / f"{number:03d}"
    assert (sweep_dir / "trials" / f"{number:03d}.log").read_text().count(
        "repeat the command to continue"
    ) == 1

    start("train", trial / "config.yaml", "validate.pause_after=0", f"run_dir={tmp_path / 'run'}")

    assert validations(trial) == validations(tmp_path / "run")
    for name in ("encoder.safetensors", "head.safetensors"):
        assert (trial / "model" / name).read_bytes() == (tmp_path / "run/model" / name).read_bytes()


@pytest.mark.processes
def test_a_repeated_sweep_trains_nothing_and_another_one_is_refused(sweep_dir, base, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(sweep_dir, copy)
    logs = {path: path.stat().st_size for path in (sweep_dir / "trials").glob("*.log")}

    assert finetune("sweep", *base, RATES, *HALVING, f"run_dir={sweep_dir}") == 0
    assert {path: path.stat().st_size for path in logs} == logs
    assert capsys.readouterr().out.splitlines()[0].split() == [
        *("trial", "optim.lr", "top1", "epoch", "validations", "status")
    ]

    assert finetune("sweep", *base, "optim.lr=[1e-5, 1e-3]", *HALVING, f"run_dir={sweep_dir}") == 2
    assert "expected the same sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ([], "sweep: expected a key with several values, got none"),
        (["optim.lr=[1e-4, -1]"], "optim.lr must be above 0, got -1"),
        (["validate.fraction=[0.2, 0.3]"], "validate.fraction must have one value, because the sweep sets"),
        (["optim.rate=[1, 2]"], "config key optim.rate: unknown key"),
        ([RATES, "sweep.eta=1"], "sweep.eta must be at least 2"),
        ([RATES, "sweep.count=1"], "unknown key"),
        ([RATES, "auto=true"], "auto must be false in a sweep"),
        (["optim.lr={uniform: [1e-4, 1]}"], "sweep.trials must be a number of trials"),
        (["optim.lr=[1e-4, 1e-3]", "batch.global_clips=1000"], "batch.global_clips: expected at most 24"),
    ],
)
def test_a_wrong_sweep_is_refused_before_it_starts(base, overrides, error, tmp_path, capsys):
    run_dir = tmp_path / "sweep"
    assert finetune("sweep", *base, *overrides, f"run_dir={run_dir}") in (2, 3)
    assert error in capsys.readouterr().err
    assert not run_dir.exists()


def test_a_dry_run_prints_the_trials(base, tmp_path, capsys):
    assert finetune("sweep", *base, RATES, "seed=[0, 1]", f"run_dir={tmp_path / 'sweep'}", "--dry-run") == 0
    assert len(json.loads(capsys.readouterr().out)["trials"]) == 4
    assert not (tmp_path / "sweep").exists()
