"""Validation in whole runs: lines, best model, early stopping, and interruptions at any moment.

The runs are started in this process; an exception that nothing catches stands for a kill.
"""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kinemae.data_tools.command import run_program
from kinemae.data_tools.exit_codes import EXIT_CHECKPOINT, EXIT_STOPPED
from kinemae.finetune import train
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.evaluation import inference
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.validation import best_model, stored_models, validator
from kinemae.pretrain.runtime.loop import Reporter
from kinemae.pretrain.runtime.loss_guard import IncidentLog
from kinemae.pretrain.runtime.metrics import read_metrics

pytestmark = pytest.mark.slow
MODEL = ["clip.frames=4", "clip.stride=2", "clip.size=16", "model.size=tiny", "model.patch_size=8"]
SETTINGS = [
    *("encoder=null", *MODEL, "model.width=32", "model.depth=2", "epochs=3", "optim.layer_decay=null"),
    *("validate.every_steps=2", "validate.metric=nll", "validate.patience=2", "optim.lr=1e-3", "seed=2"),
    *("save_every_steps=3", "save_in_background=false", "ema.decay=0.5", "log.every_steps=4"),
    *("evaluate.checkpoint=best", "evaluate.temporal_clips=1"),
]
SAME_FILES = ("best/encoder.safetensors", "best/head.safetensors", "best/validation.json", "validation.jsonl")


class Killed(BaseException):
    """Not an `Exception`, so that no handler of errors sees it."""


@pytest.fixture(scope="module")
def run(common):
    """Run `finetune train` in this process; return its exit code."""

    def started(run_dir, *overrides):
        arguments = ["train", *common, *SETTINGS, f"run_dir={run_dir}", *overrides]
        return run_program(PROGRAM, list(map(str, arguments)))

    return started


@pytest.fixture(scope="module")
def unbroken(run, tmp_path_factory):
    """Return the folder of an uninterrupted run at a ZeRO stage."""
    runs: dict[int, Path] = {}

    def folder(stage=0):
        if stage not in runs:
            runs[stage] = tmp_path_factory.mktemp("runs") / f"stage-{stage}"
            assert run(runs[stage], f"engine.zero_stage={stage}") == 0
        return runs[stage]

    return folder


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines()]


def result(run_dir):
    """Return the result without its cost, which has times."""
    found = json.loads((run_dir / "result.json").read_text())
    assert found.pop("cost")["parameters"] > 0
    return found


def losses(run_dir):
    return [line["loss"] for line in read_metrics(run_dir / "metrics.jsonl")]


def assert_same(run_dir, expected, *, first_step=0):
    """Check that a run, whose metrics begin at a step, ended as another one."""
    assert losses(run_dir) == losses(expected)[first_step:]
    for name in SAME_FILES:
        assert (run_dir / name).read_bytes() == (expected / name).read_bytes(), name
    for name in ("model", "model_raw"):
        ours, theirs = (load_file(folder / name / "head.safetensors") for folder in (run_dir, expected))
        assert all((ours[key] == theirs[key]).all() for key in theirs)
    assert result(run_dir) == result(expected)


def test_a_run_validates_at_its_interval_and_stops_without_improvement(unbroken):
    found = lines(unbroken())

    assert [line["step"] for line in found] == list(range(1, 2 * len(found), 2))
    assert all({"epoch", "loss", "top1", "nll", "videos"} <= line.keys() for line in found)
    values = [line["nll"] for line in found]
    assert len(found) < 6 and values.index(min(values)) == len(values) - 3
    assert [line.get("stopped") for line in found] == [None] * (len(found) - 1) + [True]
    assert len(losses(unbroken())) == 2 * len(found)


def test_the_best_model_scores_as_when_it_was_chosen(unbroken):
    best = json.loads((unbroken() / "best" / "validation.json").read_text())

    assert run_program(PROGRAM, ["evaluate", str(unbroken())]) == 0

    scored = result(unbroken())
    assert {name: scored[name] for name in best if name in scored and name != "skipped"} == {
        name: best[name] for name in best if name not in ("step", "epoch", "skipped")
    }
    assert scored["checkpoint"] == {"name": "best", "steps": best["step"] + 1}
    assert scored["selection"]["validation"] == best
    assert scored["selection"]["is_optimistic"] and scored["selection"]["stopped_early"]


def test_validation_does_not_change_the_training(run, unbroken, tmp_path):
    off = ["validate.every_steps=null", "validate.every_epochs=0", "validate.patience=0", "ema.decay=0"]
    assert run(tmp_path / "off", *off, "validate.metric=null", "evaluate.checkpoint=auto") == 0

    count = len(losses(unbroken()))
    assert losses(tmp_path / "off")[:count] == losses(unbroken())
    assert not (tmp_path / "off" / "best").exists() and not (tmp_path / "off" / "validation.jsonl").exists()
    raw = load_file(unbroken() / "model_raw" / "head.safetensors")["linear.weight"]
    assert not (raw == load_file(unbroken() / "model" / "head.safetensors")["linear.weight"]).all()


def test_a_repeated_run_that_ended_early_ends_at_once(run, unbroken, tmp_path):
    shutil.copytree(unbroken(), tmp_path / "again")
    (tmp_path / "again" / "result.json").unlink()

    assert run(tmp_path / "again") == 0

    assert_same(tmp_path / "again", unbroken())
    assert run(tmp_path / "again", "validate.patience=0") == 0
    assert len(losses(tmp_path / "again")) == 12


def while_scoring(patch, call):
    """Die in the given validation after its first forward pass."""

    def interrupted(*arguments, on_progress, **settings):
        calls.append(0)
        if len(calls) == call:
            settings["on_progress"] = die
        else:
            settings["on_progress"] = on_progress
        return inference.predict_samples(*arguments, **settings)

    calls: list[int] = []
    patch.setattr(validator, "predict_samples", interrupted)


def while_writing(patch, call):
    """Die in the given write of a model, when its encoder is written and its head is not."""

    def interrupted(folder, finetuned, **settings):
        calls.append(0)
        write(folder, finetuned, **settings)
        if len(calls) == call:
            (folder / "head.json").unlink()
            die()

    calls: list[int] = []
    write = train.save_model
    patch.setattr(train, "save_model", interrupted)


def while_renaming(patch, call):
    """Die between the two renames of the given replacement of the best model."""
    rename, calls = Path.rename, []

    def interrupted(path, target):
        if path.name == "best.partial":
            calls.append(0)
            if len(calls) == call:
                die()
        return rename(path, target)

    patch.setattr(best_model.Path, "rename", interrupted)


def after_the_best_was_written(patch, call):
    """Die before the line of the given validation reaches the state of the run."""
    add, calls = Reporter.add_validation, []

    def interrupted(reporter, line):
        calls.append(0)
        if len(calls) == call:
            die()
        add(reporter, line)

    patch.setattr(Reporter, "add_validation", interrupted)


def while_uploading(patch, call):
    """Die in the given upload of a best model, when a part of it is sent."""

    def interrupted(*arguments):
        calls.append(0)
        for number, block in enumerate(blocks(*arguments)):
            if len(calls) == call and number == 4:
                die()
            yield block

    blocks, calls = stored_models._tar_blocks, []
    patch.setattr(stored_models, "_tar_blocks", interrupted)


def die():
    raise Killed


# The second validation has the best model; the fourth one ends the run.
@pytest.mark.parametrize(
    ("moment", "call", "stage"),
    [
        (while_scoring, 3, 0),
        pytest.param(while_scoring, 3, 3, marks=pytest.mark.nightly),
        (while_writing, 2, 0),
        (while_renaming, 2, 0),
        pytest.param(while_renaming, 2, 2, marks=pytest.mark.nightly),
        (after_the_best_was_written, 2, 0),
    ],
)
def test_a_run_killed_at_any_moment_ends_as_the_unbroken_one(  # noqa: PLR0913 - fixtures
    run, unbroken, tmp_path, monkeypatch, moment, call, stage
):
    zero_stage = f"engine.zero_stage={stage}"
    with monkeypatch.context() as patch:
        moment(patch, call)
        with pytest.raises(Killed):
            run(tmp_path / "run", zero_stage)

    assert run(tmp_path / "run", zero_stage) == 0

    assert_same(tmp_path / "run", unbroken(stage))


# Checkpoint 3 has the first validation, checkpoint 6 three of them.
@pytest.mark.parametrize(
    ("moment", "call", "loaded"),
    [
        (while_uploading, 2, 3),
        pytest.param(after_the_best_was_written, 4, 6, marks=pytest.mark.nightly),
    ],
)
def test_a_run_with_a_lost_folder_continues_from_s3_and_ends_as_the_unbroken_one(  # noqa: PLR0913 - fixtures
    run, unbroken, bucket, tmp_path, monkeypatch, moment, call, loaded
):
    save_to = f"save_to={bucket}/run"
    with monkeypatch.context() as patch:
        moment(patch, call)
        with pytest.raises(Killed):
            run(tmp_path / "lost", save_to)
    shutil.rmtree(tmp_path / "lost")

    assert run(tmp_path / "run", save_to) == 0

    assert_same(tmp_path / "run", unbroken(), first_step=loaded)
    shutil.rmtree(tmp_path / "run")
    assert run(tmp_path / "run", save_to) == 0, "a run that has ended"
    assert result(tmp_path / "run") == result(unbroken())


def test_a_missing_bucket_ends_the_run_before_its_first_step(run, bucket, tmp_path, capsys):
    for _ in range(2):  # the second start finds a run folder
        assert run(tmp_path / "run", f"save_to={bucket}-absent/run") == EXIT_CHECKPOINT
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"save_to={bucket}-absent/run: cannot write" in error and "there is no such file" in error
    assert (tmp_path / "run" / "config.yaml").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("call", [2])
def test_a_signal_during_a_validation_stops_with_a_checkpoint_and_the_run_continues(
    run, unbroken, tmp_path, monkeypatch, call
):
    calls: list[int] = []

    def interrupted(*arguments, **settings):
        calls.append(0)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return inference.predict_samples(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(validator, "predict_samples", interrupted)
        assert run(tmp_path / "run") == EXIT_STOPPED
    assert (tmp_path / "run" / "checkpoints" / f"step-{2 * call:08d}").exists()
    assert len(lines(tmp_path / "run") if call > 1 else []) == call - 1

    assert run(tmp_path / "run") == 0

    assert_same(tmp_path / "run", unbroken())


def test_a_damaged_newest_checkpoint_takes_the_best_model_back(run, unbroken, tmp_path):
    shutil.copytree(unbroken(), tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    (newest / "manifest.json").unlink()

    assert run(tmp_path / "run") == 0

    assert_same(tmp_path / "run", unbroken())


SPIKE_AT = 6  # after the checkpoint of step 4, at which the run has validated 4 times
GUARDED = [
    *("epochs=2", "validate.every_steps=1", "validate.patience=0", "optim.lr=1e-4", "save_every_steps=4"),
    *("loss_guard.spike_sigmas=1000", "loss_guard.window=4"),
]


@pytest.fixture
def spike(monkeypatch):
    """Multiply the losses of one step."""

    def forward(model, batch, *arguments):
        values = train_forward(model, batch, *arguments)
        if model.training and int(batch.clip_index_B[0]) // 8 == SPIKE_AT:
            values["loss"] = values["loss"] * 1e6
        return values

    train_forward = TaskModel.forward
    monkeypatch.setattr(TaskModel, "forward", forward)


def board(run_dir):
    """Values of validation in TensorBoard: (step, value) by name."""
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    names = [tag for tag in events.Tags()["scalars"] if tag.startswith("validation/")]
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in names}


@pytest.mark.nightly
def test_after_a_rollback_history_and_best_model_are_those_of_the_loaded_checkpoint(
    run, spike, tmp_path, monkeypatch
):
    opened, restore = [], best_model.BestModel.restore

    def observed(best, history):
        before = best_model.step_of_best(best.folder)
        restore(best, history)
        opened.append((len(history), before, best_model.step_of_best(best.folder)))

    monkeypatch.setattr(best_model.BestModel, "restore", observed)
    assert run(tmp_path / "run", *GUARDED) == 0
    assert opened == [(0, -1, -1), (4, 5, 3)]  # the loss falls, so each validation was the best so far

    omitted = {"omitted": [SPIKE_AT], "rollbacks": 1}  # a run that knows the spike does not roll back
    monkeypatch.setattr(IncidentLog, "restore", lambda log, state: replace(state, **omitted))
    assert run(tmp_path / "known", *GUARDED) == 0
    assert len(opened) == 3

    assert_same(tmp_path / "run", tmp_path / "known")
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(8))
    assert board(tmp_path / "run") == board(tmp_path / "known")


def test_tensorboard_shows_every_number_of_a_validation(unbroken):
    found, written = board(unbroken()), lines(unbroken())

    numbers = {name for line in written for name in line} - {"step", "stopped"}
    assert found.keys() == {f"validation/{name}" for name in numbers} >= {"validation/nll", "validation/top1"}
    for name in numbers:
        steps, values = zip(*found[f"validation/{name}"], strict=True)
        assert list(steps) == [line["step"] for line in written]
        assert list(values) == pytest.approx([line[name] for line in written], rel=1e-6)


def test_without_a_validation_set_whole_groups_of_train_are_held_out(common, tmp_path, capfd):
    held_out = ["data.validation=null", "validate.fraction=0.25", f"run_dir={tmp_path / 'run'}"]
    settings = [*SETTINGS, "validate.patience=0", "epochs=1", "evaluate.checkpoint=auto", *held_out]
    assert run_program(PROGRAM, ["train", "--dry-run", "--json", *map(str, common), *settings]) == 0
    plan = json.loads(capfd.readouterr().out)

    assert run_program(PROGRAM, ["train", *map(str, common), *settings]) == 0

    assert (plan["training_videos"], plan["validation_videos"], plan["scored_videos"]) == (24, 8, 8)
    assert [line["videos"] for line in lines(tmp_path / "run")] == [8, 8]
    assert result(tmp_path / "run")["checkpoint"]["name"] == "last"  # the best was selected on the same data
    assert result(tmp_path / "run")["selection"] is None
    own = result(tmp_path / "run")
    assert run_program(PROGRAM, ["evaluate", str(tmp_path / "run")]) == 0
    assert result(tmp_path / "run") == own


def test_a_test_set_is_scored_with_the_best_model(common, synth_shards, tmp_path):
    folder = synth_shards / "validation"
    test = ["data.validation=null", f"data.test={folder}", f"run_dir={tmp_path / 'run'}", "validate.videos=5"]
    settings = [*SETTINGS, "validate.patience=0", "epochs=1", "evaluate.checkpoint=auto", *test]

    assert run_program(PROGRAM, ["train", *map(str, common), *settings]) == 0

    own = result(tmp_path / "run")
    assert [line["videos"] for line in lines(tmp_path / "run")] == [5, 5]
    assert own["checkpoint"]["name"] == "best" and own["videos"] == 24
    assert own["data"]["test"] == str(folder) and not own["selection"]["is_optimistic"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["validate.metric=top11"],
            "validate.metric: expected a metric of task.name=classification, got top11",
        ),
        (["validate.metric=samples"], "expected a metric of task.name=classification, got samples"),
        (["data.validation=null", "validate.fraction=0"], "validate.fraction must be above 0 without"),
        (["evaluate.data=test"], "evaluate.data must name data that the config has; data.test is not set"),
        (["evaluate.data=held_out"], "evaluate.data must name data that the config has; validate.fraction"),
        (
            ["validate.every_steps=null", "validate.every_epochs=0", "validate.patience=0"],
            "evaluate.checkpoint must be auto or last with validate.every_epochs=0",
        ),
        (
            ["evaluate.sliding=true", "validate.temporal_clips=2"],
            "validate.temporal_clips must be 1 with evaluate.sliding, which validations use too",
        ),
        (["adapt.unfreeze_at=[0.1, 0.2, 0.3]"], "adapt.unfreeze_at must have at most 2 values"),
        (["adapt.freeze_blocks=3"], "adapt.freeze_blocks must be at most 2"),
    ],
)
def test_an_invalid_config_is_refused_before_anything_starts(common, tmp_path, capsys, overrides, message):
    arguments = ["train", *common, *SETTINGS, f"run_dir={tmp_path / 'run'}", *overrides]

    assert run_program(PROGRAM, list(map(str, arguments))) == 2

    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
