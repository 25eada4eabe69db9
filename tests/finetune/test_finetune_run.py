"""The commands train, evaluate and compare on encoded videos."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import open_index
from kinemae.finetune.__main__ import PROGRAM
from kinemae.pretrain.exported_model import EncoderDescription, save_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime import micro_batch
from tests.forked import run_forked
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow
SHAPE = EncoderShape(width=32, depth=2, heads=2, mlp_width=64, patch=(2, 8, 8))
SMALL = ["clip.frames=4", "clip.stride=2", "clip.size=16", "model.size=tiny", "model.patch_size=8"]
SCRATCH = ["encoder=null", *SMALL, "model.width=32", "model.depth=2"]


def finetune(*arguments):
    """Run a command in this process; not for training, since a process can start the engine only once."""
    return run_program(PROGRAM, [str(argument) for argument in arguments])


def start(*arguments):
    """Run a command in a new process."""
    run_forked("-m", "finetune", *map(str, arguments))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "encoder"
    grid = TokenGrid.of(4, 16, SHAPE.patch)
    description = EncoderDescription(shape=SHAPE, grid=grid, reference=grid, frames=4, stride=2, size=16)
    save_encoder(folder, Encoder(SHAPE, grid), description)
    return folder


@pytest.fixture(scope="module")
def scratch_run(common, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "scratch"
    start("train", *common, *SCRATCH, f"run_dir={run_dir}")
    return run_dir


def read_result(run_dir):
    """Read a result without the time that it took."""
    return without_time(json.loads((run_dir / "result.json").read_text()))


def without_time(result):
    for name in ("seconds", "videos_per_second", "processes"):
        del result["cost"][name]
    return result


def test_a_run_scores_every_validation_video_once(scratch_run, synth_shards):
    validation = open_index(synth_shards / "validation")

    result = read_result(scratch_run)

    assert result["videos"] == len(validation)
    assert sum(map(sum, result["confusion_matrix"])) == len(validation)
    assert result["top1_ci95"][0] <= result["top1"] <= result["top1_ci95"][1]
    assert result["views"] == {"temporal_clips": 3, "spatial_crops": 1, "total": 3}
    assert list(result["per_class_accuracy"]) == list(validation.classes)


def test_metrics_contain_loss_and_accuracy_of_each_step(scratch_run):
    lines = [json.loads(line) for line in (scratch_run / "metrics.jsonl").read_text().splitlines()]

    assert [line["step"] for line in lines] == [0, 1]
    assert all(0 <= line["accuracy"] <= 1 and line["loss"] > 0 for line in lines)


def test_evaluating_the_saved_model_repeats_the_runs_score(scratch_run, capsys):
    own = read_result(scratch_run)

    assert finetune("evaluate", scratch_run, "--json") == 0

    assert read_result(scratch_run) == own
    assert without_time(json.loads(capsys.readouterr().out)) == own


@pytest.mark.nightly
@pytest.mark.processes
def test_two_processes_score_as_one(scratch_run):
    own = read_result(scratch_run)
    (scratch_run / "result.json").unlink()

    run_ranks(2, "-m", "finetune", "evaluate", str(scratch_run))

    assert read_result(scratch_run) == own


@pytest.mark.processes
def test_two_processes_at_zero_3_train_and_score_as_one_at_zero_0(scratch_run, common, tmp_path):
    run = [f"run_dir={tmp_path / 'sharded'}", "engine.zero_stage=3"]
    run_ranks(2, "-m", "finetune", "train", *map(str, common), *SCRATCH, *run)

    own, sharded = read_result(scratch_run), read_result(tmp_path / "sharded")
    assert sharded["confusion_matrix"] == own["confusion_matrix"] and sharded["videos"] == own["videos"]
    for part in ("encoder", "head"):
        path = Path("model") / f"{part}.safetensors"
        weights, others = load_file(scratch_run / path), load_file(tmp_path / "sharded" / path)
        torch.testing.assert_close(others, weights, atol=1e-5, rtol=1e-4)


def test_more_views_are_averaged(scratch_run, tmp_path):
    before = (scratch_run / "result.json").read_text()

    assert finetune("evaluate", scratch_run, "evaluate.temporal_clips=2", "evaluate.spatial_crops=3") == 0

    assert read_result(scratch_run)["views"]["total"] == 6
    (scratch_run / "result.json").write_text(before)


def test_a_frozen_encoder_is_unchanged_and_the_head_is_trained(common, encoder, tmp_path):
    run_dir = tmp_path / "frozen"

    start("train", *common, f"encoder={encoder}", "adapt.method=frozen", f"run_dir={run_dir}")

    given, kept = (load_file(folder / "encoder.safetensors") for folder in (encoder, run_dir / "model"))
    assert all(torch.equal(kept[name], value) for name, value in given.items())
    bias_Y = load_file(run_dir / "model" / "head.safetensors")["linear.bias"]
    assert bias_Y.abs().min() > 0


@pytest.mark.parametrize(
    "setting", ["engine.zero_stage=1", pytest.param("optim.optimizer=muon", marks=pytest.mark.nightly)]
)
def test_fine_tuning_changes_the_encoder_and_can_start_from_a_model(common, encoder, tmp_path, setting):
    run_dir = tmp_path / "whole"
    attentive = ["head.name=attentive", setting]

    start("train", *common, f"encoder={encoder}", *attentive, f"run_dir={run_dir}")

    given, tuned = (load_file(folder / "encoder.safetensors") for folder in (encoder, run_dir / "model"))
    assert not any(torch.equal(tuned[name], value) for name, value in given.items() if "weight" in name)
    again = ["--dry-run", f"encoder={run_dir / 'model'}", f"run_dir={tmp_path / 'again'}"]
    assert finetune("train", *common, *again) == 0
    assert not (tmp_path / "again").exists()


def test_other_clips_than_the_encoders_are_planned_and_logged(common, encoder, tmp_path, capsys):
    clip = ["clip.frames=8", "clip.size=24", f"run_dir={tmp_path / 'run'}"]

    assert finetune("train", *common, f"encoder={encoder}", *clip, "--dry-run", "--json") == 0

    output, errors = capsys.readouterr()
    assert json.loads(output)["tokens"] == 4 * 3 * 3
    assert errors.count("positions are resampled: from 2x2x2 tokens") == 1


EVERYTHING = [
    "augment.crop=multi_scale",
    "augment.flip=true",
    "augment.jitter={brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1, grayscale: 0.2}",
    "augment.rand_augment.operations=4",
    "augment.erase.probability=0.5",
    "mix={mixup: 0.8, cutmix: 1.0}",
    "task.args.label_smoothing=0.1",
    "data.views_per_video=2",
]


@pytest.mark.processes
def test_a_run_with_every_augmentation_repeats_in_smaller_micro_batches(common, tmp_path):
    for name, size in (("whole", 8), ("cut", 4)):
        run = [f"run_dir={tmp_path / name}", f"batch.clips_per_device={size}", "epochs=0.375"]
        start("train", *common, *SCRATCH, *EVERYTHING, *run)

    whole, cut = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    )
    assert len(whole) == len(cut) == 3
    for one, other in zip(whole, cut, strict=True):
        assert one["loss"] > 0 and one["samples"] == other["samples"]
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["accuracy"] == pytest.approx(other["accuracy"])


def test_auto_trains_and_scores_as_the_number_that_it_chooses(scratch_run, common, tmp_path, capsys):
    """The memory suffices for all 8 clips of a step."""
    run_dir = tmp_path / "auto"
    start("train", *common, *SCRATCH, f"run_dir={run_dir}", "batch.clips_per_device=auto")

    losses, expected = (
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run_dir, scratch_run)
    )
    assert losses == expected
    own = read_result(run_dir)
    assert own["confusion_matrix"] == read_result(scratch_run)["confusion_matrix"]
    assert finetune("evaluate", run_dir) == 0
    assert read_result(run_dir)["top1"] == own["top1"]


def test_auto_keeps_partners_in_one_micro_batch_and_a_dry_run_prints_why(
    common, tmp_path, capsys, monkeypatch
):
    words = ["train", *common, *SCRATCH, *EVERYTHING, f"run_dir={tmp_path}", "--dry-run", "--json"]
    chosen = []
    for free_bytes in (1e12, 1):
        monkeypatch.setattr(micro_batch, "available_memory", lambda free_bytes=free_bytes: int(free_bytes))
        assert finetune(*words, "batch.clips_per_device=auto") == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary["micro_batch"].startswith("batch.clips_per_device=auto: ")
        chosen.append(summary["clips_per_process_at_once"])
    assert chosen == [8, 4]


def test_compare_prints_the_runs(scratch_run, capsys):
    assert finetune("compare", scratch_run, scratch_run) == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    first, second = (line.split("+0.0") for line in lines[2:])
    assert first[0] == second[0] and first[1].split() == ["-", "-"]
    assert second[1:] == ["     ", " to ", "  1.000"]  # the paired interval and p
    assert finetune("compare", "--json", scratch_run) == 0
    assert json.loads(capsys.readouterr().out)[0]["difference"] == 0


@pytest.mark.parametrize(
    ("overrides", "exit_code", "message"),
    [
        (["encoder=null"], 2, "expected a folder, or null with model.size, clip.frames"),
        (
            ["encoder=/nowhere"],
            4,
            "/nowhere: expected encoder.json and encoder.safetensors, got no such folder",
        ),
        ([*SCRATCH, "clip.size=20"], 2, "clip.size of model.patch_size"),
        ([*SCRATCH, "head.name=liner"], 2, "did you mean 'linear'"),
        ([*SCRATCH, "batch.global_clips=1000"], 3, "batch.global_clips: expected at most"),
        ([*SCRATCH, "batch.global_clips=9", "data.views_per_video=2"], 2, "batch.global_clips=9"),
        (
            [*SCRATCH, "mix.mixup=0.8", "data.views_per_video=4", "batch.clips_per_device=4"],
            2,
            "multiples of 2 x data.views_per_video (mix takes two videos)=8",
        ),
        (
            [*SCRATCH, "batch.clips_per_device=auto", "pruning={name: run_length, args: {keep: null}}"],
            2,
            "batch.clips_per_device must be a number with pruning.args.keep=null",
        ),
        ([*SCRATCH, "data.train=/nowhere"], 3, "no folder of shards at /nowhere"),
        ([*SCRATCH, "--epochs=2"], 2, "without dashes"),
    ],
)
def test_an_invalid_run_is_rejected_in_one_line(common, tmp_path, capsys, overrides, exit_code, message):
    run_dir = tmp_path / "run"

    assert finetune("train", *common, f"run_dir={run_dir}", *overrides) == exit_code

    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert not run_dir.exists()


def test_data_without_labels_is_rejected(common, synth_shards, tmp_path, capsys):
    unlabelled = f"data.train={synth_shards / 'unlabelled'}"

    assert finetune("train", *common, *SCRATCH, unlabelled, f"run_dir={tmp_path / 'run'}") == 3

    assert "expected labelled videos, got no labels" in capsys.readouterr().err


def test_the_run_folder_of_another_config_is_rejected(common, scratch_run, capsys):
    assert finetune("train", *common, *SCRATCH, f"run_dir={scratch_run}", "optim.weight_decay=0.5") == 2

    assert "optim.weight_decay: run 0.05, config 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optim.lr=1",
            "optim.lr: expected a key that evaluate can override (evaluate, pruning, merge, ",
        ),
        (
            "temporal_clips=5",
            "config key temporal_clips: unknown key; did you mean evaluate.temporal_clips?",
        ),
        ("evaluate.spatial_crops=2", "evaluate.spatial_crops must be 1 or 3"),
    ],
)
def test_evaluate_rejects_keys_that_the_run_determines(scratch_run, override, message, capsys):
    assert finetune("evaluate", scratch_run, override) == 2

    assert message in capsys.readouterr().err


def test_evaluate_needs_a_finished_run(scratch_run, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((scratch_run / "config.yaml").read_text())

    assert finetune("evaluate", tmp_path) == 4

    assert "got a fine-tuning run without a model; fix: repeat" in capsys.readouterr().err


def test_the_folder_of_a_pretraining_is_rejected(common, repo, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text((repo / "configs/pretrain/demo.yaml").read_text())

    assert finetune("train", *common, *SCRATCH, f"run_dir={tmp_path}") == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"run_dir {tmp_path}: expected a fine-tuning run, got a pretraining run; fix: choose another run_dir"
    )


def test_a_damaged_video_is_named_in_the_result_and_does_not_count(scratch_run, synth_shards, tmp_path):
    before = (scratch_run / "result.json").read_text()
    shutil.copytree(synth_shards / "validation", tmp_path / "validation")
    index = open_index(tmp_path / "validation")
    victim = index.sample(2)
    with index.shard_location(victim).path.open("r+b") as tar:
        tar.seek(victim.offset + victim.length // 2)
        tar.write(b"\xff\x00\xff\x00")

    assert finetune("evaluate", scratch_run, f"data.validation={tmp_path / 'validation'}") == 0

    result = read_result(scratch_run)
    assert [skipped["key"] for skipped in result["skipped"]] == [victim.key]
    assert result["skipped"][0]["error"]
    assert result["videos"] == len(index) - 1
    (scratch_run / "result.json").write_text(before)
