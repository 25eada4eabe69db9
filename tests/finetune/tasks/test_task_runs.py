"""Runs with several tasks, a multi-layer head and chunks: on one process, on two, and evaluated again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import ShardIndex, open_index, write_index
from kinemae.finetune.__main__ import PROGRAM
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow
TASKS = {
    "motion": {"name": "retrieval", "args": {"label": "label", "dimensions": 8}},
    "size": {"name": "ordinal", "args": {"order": ["low", "mid", "high"], "allow_missing": True}},
    "dx": {
        "name": "regression",
        "args": {"labels": ["dx", "dy"], "flip_negates": "dx", "allow_missing": True},
    },
    "tags": {"name": "multi_label"},
}
MODEL = [
    *("encoder=null", "clip.frames=2", "clip.stride=2", "clip.size=16", "clip.chunks=2"),
    *("model.size=tiny", "model.patch_size=8", "model.width=32", "model.depth=2"),
    *("augment.flip=true", "head={name: multilayer, args: {layers: [0, 1], head_width: 16}}"),
    "task={name: multi_task, args: " + json.dumps({"tasks": TASKS}) + "}",
]


def with_columns(source: Path, folder: Path) -> ShardIndex:
    """Index the shards of a data set again, with more label columns."""
    index, numbers = open_index(source), range(len(open_index(source)))
    folder.mkdir()
    for shard in index.shards:
        (folder / shard.name).symlink_to(source / shard.name)
    columns = {
        "size": [None if number % 5 == 0 else ("low", "mid", "high")[number % 3] for number in numbers],
        "dx": [None if number % 4 == 0 else float(number % 7) for number in numbers],
        "dy": [float(number % 3) for number in numbers],
        "tags": [("red", "red;round", "", "round")[number % 4] for number in numbers],
    }
    samples = [index.sample(number) for number in numbers]
    write_index(folder, samples, index.shards, index.classes, {}, columns)
    return open_index(folder)


@pytest.fixture(scope="module")
def arguments(common, synth_shards, tmp_path_factory):
    """Arguments of a run on shards with columns for every task."""
    root = tmp_path_factory.mktemp("columns")
    for split in ("train", "validation"):
        with_columns(synth_shards / split, root / split)
    return [*common, *MODEL, f"data.train={root / 'train'}", f"data.validation={root / 'validation'}"]


def train(arguments, run_dir, *overrides, processes=1):
    run_ranks(processes, "-m", "finetune", "train", *map(str, arguments), f"run_dir={run_dir}", *overrides)
    return json.loads((run_dir / "result.json").read_text())


@pytest.fixture(scope="module")
def run(arguments, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    return run_dir, train(arguments, run_dir)


def test_a_run_scores_every_task_with_its_floor(run):
    _, result = run

    assert list(result["columns"]) == list(TASKS) and result["metric"] == "mean_skill"
    for name, metric in (("motion", "r_at_1"), ("size", "mae_classes"), ("dx", "standardized_mae")):
        assert {metric, "floor"} <= set(result["columns"][name]) and metric in result["columns"][name][
            "floor"
        ]
    assert 0 < result["columns"]["size"]["samples"] < result["videos"]
    assert result["tokens"]["grid"] == result["tokens"]["kept"] == 8


def test_evaluating_the_saved_model_repeats_the_score(run):
    run_dir, result = run

    assert run_program(PROGRAM, ["evaluate", str(run_dir)]) == 0

    again = json.loads((run_dir / "result.json").read_text())
    assert again["columns"] == result["columns"] and again["mean_skill"] == result["mean_skill"]


def test_the_model_folder_alone_has_the_score_of_its_run(run, arguments):
    run_dir, result = run
    data = [str(each) for each in arguments if str(each).startswith("data.validation=")]
    views = [f"evaluate.{name}={result['views'][name]}" for name in ("temporal_clips", "spatial_crops")]

    assert run_program(PROGRAM, ["evaluate", str(run_dir / "model"), *data, *views, "engine.device=cpu"]) == 0

    alone = json.loads((run_dir / "model/result.json").read_text())
    assert alone["mean_skill"] == pytest.approx(result["mean_skill"], abs=1e-5)
    assert alone["tokens"] == result["tokens"] and alone["views"] == result["views"]


@pytest.mark.nightly
@pytest.mark.processes
def test_two_processes_at_zero_3_equal_one(run, arguments, tmp_path):
    run_dir, result = run

    sharded = train(arguments, tmp_path / "two", "engine.zero_stage=3", processes=2)

    assert sharded["mean_skill"] == pytest.approx(result["mean_skill"], abs=1e-3)
    weights, others = (load_file(each / "model/head.safetensors") for each in (run_dir, tmp_path / "two"))
    torch.testing.assert_close(others, weights, atol=1e-5, rtol=1e-4)


def test_a_wrong_column_is_an_error_before_the_run(arguments, tmp_path, capsys):
    others = [str(each) for each in arguments if not str(each).startswith("task=")]
    wrong = ["task={name: regression, args: {labels: speed}}", f"run_dir={tmp_path / 'run'}"]

    assert run_program(PROGRAM, ["train", *others, *wrong]) == 3

    assert not (tmp_path / "run").exists()
    assert "expected a column speed, got none; fix: choose one of label, size, dx" in capsys.readouterr().err
