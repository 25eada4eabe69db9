"""Runs of the tasks in time on encoded videos: training, sliding evaluation, processes, refused settings."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from kinemae.data_tools.command import run_program
from kinemae.data_tools.index import open_index
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.evaluation.predictions import read_predictions
from kinemae.finetune.labels.data_sets import validation_samples
from kinemae.finetune.labels.segments import iterate_events, read_segments
from tests.conftest import data_tools
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow
SCRATCH = [
    *("encoder=null", "clip.frames=8", "clip.stride=1", "clip.size=16"),
    *("model.size=tiny", "model.patch_frames=2", "model.patch_size=8", "model.width=32", "model.depth=1"),
]
DENSE = ["task={name: dense, args: {segments: segments}}", "head={name: temporal}"]
LOCALIZATION = [
    "task={name: localization, args: {segments: segments}}",
    "head={name: pyramid, args: {levels: 2}}",
]
ANTICIPATION = ["task={name: anticipation, args: {segments: segments, gap_s: 0.25}}"]
SLIDING = ["evaluate.temporal_clips=1", "evaluate.sliding=true", "evaluate.overlap=0.5"]


def finetune(*arguments):
    return run_program(PROGRAM, [str(argument) for argument in arguments])


def read_result(run_dir):
    """Read a result without the time that it took."""
    result = json.loads((run_dir / "result.json").read_text())
    for name in ("seconds", "videos_per_second", "processes"):
        del result["cost"][name]
    return result


@pytest.fixture(scope="session")
def event_shards(made_once):
    """Shards of 16 training and 8 validation videos of 64 frames with segments."""

    def make(folder):
        folder.mkdir()
        classes = "classes=[move_left,move_right,rotate_clockwise,zoom_in]"
        counts = [classes, "train_per_class=4", "validation_per_class=2", "unlabelled=0", "workers=1"]
        scene = ["task=events", "video_frames=64", "scene.size=16"]
        data_tools("synth", str(folder / "videos"), *scene, *counts)
        data_tools("shard", str(folder / "videos" / "videos.csv"), str(folder / "shards"))

    return made_once("event-shards", make) / "shards"


@pytest.fixture(scope="module")
def common(repo, event_shards):
    return [
        repo / "configs/finetune/demo.yaml",
        *(f"data.{split}={event_shards / split}" for split in ("train", "validation")),
        *("data.num_workers=0", "batch.global_clips=8", "batch.clips_per_device=8", "epochs=1"),
        *("engine.device=cpu", "engine.cpu_threads=1", "log.every_steps=1", "optim.layer_decay=null"),
        *SCRATCH,
    ]


@pytest.fixture(scope="module")
def localization_run(common, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "localization"
    assert finetune("train", *common, *LOCALIZATION, *SLIDING, f"run_dir={run_dir}") == 0
    return run_dir


def test_a_localization_run_scores_whole_videos(localization_run, event_shards):
    result = read_result(localization_run)

    index = open_index(event_shards / "validation")
    events = list(iterate_events(read_segments(index, "segments", key="k")))
    assert result["metric"] == "map" and 0 <= result["map"] <= 1
    assert result["videos"] == len(index) and result["segments"] == len(events)
    assert set(result["floor"]) == {"map", "map_at", "average_recall_at"}
    table = read_predictions(localization_run / "predictions.parquet").columns
    assert [len(each) for each in table["score"]] == [len(each) for each in table["class"]]
    assert len(table["key"]) == len(index) and (localization_run / "report.html").is_file()
    lines = [json.loads(line) for line in (localization_run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "class_loss" in line]
    assert len(steps) == 2
    assert all(
        line["loss"] == pytest.approx(line["class_loss"] + line["distance_loss"], rel=1e-4) for line in steps
    )


def test_evaluating_the_saved_model_repeats_the_score(localization_run):
    own = read_result(localization_run)

    assert finetune("evaluate", localization_run) == 0

    assert read_result(localization_run) == own


@pytest.mark.processes
@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.nightly), 3])
def test_several_processes_score_as_one(localization_run, repo, processes):
    own = read_result(localization_run)
    (localization_run / "result.json").unlink()

    run_ranks(processes, "-m", "finetune", "evaluate", str(localization_run))

    assert read_result(localization_run) == own


def test_a_dense_run_continues_as_the_unbroken_one_and_covers_every_frame(common, tmp_path):
    run_dir = tmp_path / "run"
    command = ["train", *common, *DENSE, "epochs=2", "save_every_steps=2", *SLIDING, f"run_dir={run_dir}"]
    assert finetune(*command) == 0
    unbroken, last = read_result(run_dir), run_dir / "checkpoints" / "step-00000004"
    (run_dir / "result.json").unlink()
    shutil.rmtree(run_dir / "model")
    shutil.rmtree(last)

    assert finetune(*command) == 0

    assert last.is_dir() and read_result(run_dir) == unbroken
    assert unbroken["coverage"] == 1.0 and unbroken["frames"] == 8 * 64
    assert unbroken["floor"]["edit"] == 0.0
    table = read_predictions(run_dir / "predictions.parquet").columns
    assert [np.shape(each)[1] for each in table["prediction"]] == [5] * 8  # four classes and the background
    assert [len(each) for each in table["time_s"]] == [len(each) for each in table["prediction"]]
    assert (run_dir / "report.html").is_file()


def test_a_validation_video_without_a_segment_in_its_clip_stops_no_training(
    common, tmp_path, capfd, event_shards
):
    index = open_index(event_shards / "validation")
    segments = read_segments(index, "segments", key="k")
    busy = {event.position for event in iterate_events(segments) if event.start_s < 5 and event.end_s > 3}
    quiet = set(range(8)) - busy
    seeds = (seed for seed in range(1000) if drawn_video(seed, index) in quiet)
    run_dir = tmp_path / "run"

    subset = [f"seed={next(seeds)}", "validate.videos=1", "evaluate.temporal_clips=1"]
    assert finetune("train", *common, *DENSE, *subset, f"run_dir={run_dir}") == 0

    lines = [json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines()]
    assert lines and not any("frame_map" in line for line in lines)
    assert read_result(run_dir)["coverage"] == pytest.approx(1 / 8)
    log = capfd.readouterr().err
    assert "has no score: expected frames inside segments" in log
    assert "the scores are of 12 % of the labelled frames" in log and "evaluate.sliding=true" in log


def drawn_video(seed, index):
    config = SimpleNamespace(seed=seed, validate=SimpleNamespace(videos=1))
    return validation_samples(config, index)[0]


def test_every_event_is_a_sample_of_anticipation(common, tmp_path, event_shards):
    run_dir = tmp_path / "run"

    assert finetune("train", *common, *ANTICIPATION, f"run_dir={run_dir}") == 0

    result = read_result(run_dir)
    index = open_index(event_shards / "validation")
    events = list(iterate_events(read_segments(index, "segments", key="k")))
    early = [event for event in events if event.start_s - 0.25 < 1.0]  # the clip lasts one second
    assert result["videos"] == len(events) - len(early) > 0
    assert result["events_without_clip"] == len(early) > 0
    assert result["mean_class_recall_at_5"] >= 0 and result["floor"]["top1"] > 0


def test_segments_are_samples_of_a_classification(common, tmp_path, capsys, event_shards):
    samples = ["data.segments=segments", "task={name: classification, args: {label: segment}}"]

    assert finetune("train", *common, *samples, f"run_dir={tmp_path / 'run'}", "--dry-run", "--json") == 0

    plan = json.loads(capsys.readouterr().out)
    index = open_index(event_shards / "train")
    events = list(iterate_events(read_segments(index, "segments", key="k")))
    assert plan["training_videos"] == len(events) > len(index)
    assert plan["outputs"] == len({event.label for event in events})


@pytest.mark.parametrize(
    ("overrides", "exit_code", "message"),
    [
        (
            [*LOCALIZATION, "mix.mixup=0.8"],
            2,
            "mix: expected no mixup and no cutmix for the task localization",
        ),
        ([*DENSE, "merge.per_block=1"], 2, "merge.per_block: expected 0 for the task dense"),
        (
            [*LOCALIZATION, "pruning={name: motion, args: {keep: 0.5}}"],
            2,
            "pruning.name: expected none for the task localization, whose head reads all tokens",
        ),
        ([*DENSE, "clip.short_video=loop"], 2, "clip.short_video must be hold for labels over time"),
        ([DENSE[0]], 2, "expected a head with one output per sequence"),
        (["task={name: dense, args: {segments: kind}}", DENSE[1]], 3, "expected a column kind of segments"),
        ([*ANTICIPATION, "clip.frames=64"], 3, "events that begin too early in their videos"),
    ],
)
def test_an_impossible_run_is_refused_in_one_line(common, tmp_path, capsys, overrides, exit_code, message):
    run_dir = tmp_path / "run"

    assert finetune("train", *common, f"run_dir={run_dir}", *overrides) == exit_code

    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not run_dir.exists()
