"""A run with a constant learning rate is prolonged before its cool-down and equals an unbroken one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from kinemae.data_tools.config import to_yaml
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.training import make_plan, run_pretraining
from tests.checkpointing import stored_steps

BuildConfig = Callable[..., PretrainConfig]
CONSTANT = ("optim.schedule=constant", "optim.warmup_steps=2", "target.name=features", "ema.decay=0.9")
FIXED_TEACHER = "target.args={decay: 0.9, final_decay: 0.9}"


def run(config: PretrainConfig) -> list[dict[str, float]]:
    run_pretraining(make_plan(config))
    return [
        {name: line[name] for name in ("step", "loss", "lr", "samples")}
        for line in read_metrics(Path(config.run_dir) / "metrics.jsonl")
    ]


def pretend_checkpoint(config: PretrainConfig, step: int) -> None:
    """Make a run folder with a checkpoint whose content is not read."""
    run_dir = Path(config.run_dir)
    (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(to_yaml(config))


def test_a_prolonged_run_equals_an_unbroken_one_of_the_new_length(
    small_config: BuildConfig, tmp_path: Path
) -> None:
    """The first run ends without a cool-down; the second length has one of a quarter."""
    settings = (*CONSTANT, FIXED_TEACHER)
    twice = (*settings, "steps=8", "optim.cooldown_fraction=0.25")
    unbroken = small_config(*twice, f"run_dir={tmp_path / 'unbroken'}")
    expected = run(unbroken)

    place = f"run_dir={tmp_path / 'prolonged'}"
    run(small_config(*settings, "steps=4", "optim.cooldown_fraction=0", place))
    prolonged = small_config(*twice, place)
    assert run(prolonged) == expected

    lr = [line["lr"] for line in expected]
    assert lr[1] == pytest.approx(1e-3) and lr[2:7] == [lr[2]] * 5 and 1e-6 < lr[7] < 1e-3
    for name in ("encoder", "encoder_raw"):
        ours, theirs = (
            load_file(Path(config.run_dir) / name / "encoder.safetensors") for config in (prolonged, unbroken)
        )
        assert all((ours[key] == theirs[key]).all() for key in theirs)
    stored = yaml.safe_load((tmp_path / "prolonged" / "config.yaml").read_text())
    assert (stored["steps"], stored["optim"]["cooldown_fraction"]) == (8, 0.25)
    starts = json.loads((tmp_path / "prolonged" / "environment.json").read_text())
    assert [start["changed"] for start in starts] == [
        {},
        {"steps": [4, 8], "optim.cooldown_fraction": [0.0, 0.25]},
    ]
    assert run(prolonged) == expected, "the same command again"


def test_the_checkpoint_before_the_cool_down_is_kept_for_a_prolonged_run(
    small_config: BuildConfig, tmp_path: Path
) -> None:
    settings = ("optim.schedule=constant", "optim.cooldown_fraction=0.5", "keep_checkpoints=1")
    config = small_config(*settings, "steps=6", "save_every_steps=5")
    run(config)
    assert stored_steps(Path(config.run_dir)) == ["step-00000003", "step-00000006"]


@pytest.mark.parametrize(
    ("run_keys", "done", "new_keys", "message"),
    [
        (["steps=10"], 5, ["steps=20"], "only a run with optim.schedule=constant can be prolonged"),
        (
            ["steps=10", "optim.schedule=constant"],
            9,
            ["steps=20"],
            "the cool-down began at step 8; fix: remove the checkpoints after step 8",
        ),
        (
            ["steps=100", "optim.schedule=constant", "optim.warmup_fraction=0.1"],
            20,
            ["steps=200"],
            "the run has a warm-up of 10 steps; fix: set optim.warmup_steps=10",
        ),
        (
            ["steps=10", "optim.schedule=constant", "optim.cooldown_fraction=0"],
            10,
            ["steps=12", "optim.cooldown_fraction=0.5"],
            "step 10 is done: it would be in the new cool-down; fix: raise steps",
        ),
        (
            ["steps=10", "optim.schedule=constant", "target.name=features"],
            5,
            ["steps=20"],
            "target follows the progress of the run",
        ),
        (
            ["steps=10", "optim.schedule=constant", "noise.args.strength={schedule: linear}"],
            5,
            ["steps=20"],
            "noise follows the progress of the run",
        ),
        (
            ["steps=10", "optim.schedule=constant", "optim.final_weight_decay=0.1"],
            5,
            ["steps=20"],
            "optim.final_weight_decay follows the progress of the run",
        ),
    ],
)
def test_a_length_that_changes_earlier_steps_is_refused(
    small_config: BuildConfig, run_keys: list[str], done: int, new_keys: list[str], message: str
) -> None:
    pretend_checkpoint(small_config(*run_keys), done)
    with pytest.raises(ValueError, match=rf"steps: run \d+, config \d+, refused: {message}"):
        make_plan(small_config(*run_keys, *new_keys))


@pytest.mark.parametrize(
    ("run_keys", "done", "new_keys"),
    [
        (["steps=10"], 0, ["steps=20"]),
        (["steps=10", "optim.schedule=constant"], 8, ["steps=20"]),
        (
            ["steps=100", "optim.schedule=constant", "optim.warmup_fraction=0.1"],
            20,
            ["steps=200", "optim.warmup_steps=10"],
        ),
    ],
)
def test_a_length_that_keeps_earlier_steps_is_allowed(
    small_config: BuildConfig,
    caplog: pytest.LogCaptureFixture,
    run_keys: list[str],
    done: int,
    new_keys: list[str],
) -> None:
    pretend_checkpoint(small_config(*run_keys), done)
    with caplog.at_level("INFO", logger="kinemae"):
        assert make_plan(small_config(*run_keys, *new_keys)).continues
    assert "the steps so far stay the same" in caplog.text


def test_a_warm_up_as_long_as_the_run_is_refused(small_config: BuildConfig) -> None:
    with pytest.raises(ValueError, match=r"optim\.warmup_steps must be less than the run's 6 steps, got 6"):
        make_plan(small_config("optim.warmup_steps=6"))
