"""Predictions of videos: equal to those of evaluate, resumable, the same on any number of processes."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from kinemae.data_tools.command import run_program
from kinemae.data_tools.components import Component
from kinemae.data_tools.index import open_index, write_index
from kinemae.data_tools.stream import evaluation_clips
from kinemae.data_tools.stream.decode import probe, rgb_frames
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.inference.load import load
from kinemae.finetune.model_file import FinetunedModel, load_model, save_model
from kinemae.finetune.predict.config import PredictConfig
from kinemae.finetune.predict.predict import predict_file
from kinemae.finetune.predict.scores import VideoPrediction
from kinemae.finetune.predict.videos import Prediction
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.base import build_task
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.exported_model import EncoderDescription, save_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from tests.ranks import run_ranks, start_ranks
from tests.sharding import shard

SHAPE = EncoderShape(width=32, depth=2, heads=2, mlp_width=64, patch=(2, 8, 8))
GRID = TokenGrid.of(4, 16, SHAPE.patch)
DESCRIPTION = EncoderDescription(shape=SHAPE, grid=GRID, reference=GRID, frames=4, stride=2, size=16)
QUICK = ("device=cpu", "cpu_threads=1", "num_workers=0")


def save_random_model(folder: Path, task: Component, state: dict, head: str) -> Path:
    """Save a model with random weights that are large enough for different predictions."""
    torch.manual_seed(0)
    built, component = build_task(task), Component(name=head)
    built.load_state(state)
    kinds = {"output": built.output, "groups": built.output_groups}
    layers = build_head(component, width=SHAPE.width, outputs=built.outputs, **kinds)
    for weight in layers.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    model = TaskModel(Encoder(SHAPE, GRID), layers, built)
    save_model(folder, FinetunedModel(model=model, description=DESCRIPTION, task=task), head=component)
    return folder


@pytest.fixture(scope="module")
def videos(synth_videos: Path) -> Path:
    return synth_videos / "validation"


@pytest.fixture(scope="module")
def model_dir(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    classes = sorted(path.name for path in videos.iterdir() if path.is_dir())
    component = Component(name="classification")
    return save_random_model(tmp_path_factory.mktemp("model"), component, {"classes": classes}, "linear")


@pytest.fixture(scope="module")
def predicted(model_dir: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predicted")
    assert predict(model_dir, videos, out, "overlap=0.5", "clips_per_device=8") == 0
    return out


def predict(*arguments: object) -> int:
    return run_program(PROGRAM, ["predict", *map(str, arguments), *QUICK])


def results(out: Path) -> dict[str, bytes]:
    """The content of all results in a folder."""
    files = [*out.glob("videos/**/*"), *out.glob("*.csv"), *out.glob("*.json")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files if file.is_file()}


def test_plain_files_have_the_predictions_of_evaluate_on_their_shards(
    predicted: Path, model_dir: Path, videos: Path, tmp_path: Path
) -> None:
    shard(videos, tmp_path / "shards", "layout.name=copy", "validation_fraction=0", "workers=1")
    run = tmp_path / "model"
    shutil.copytree(model_dir, run)
    data = (f"data.validation={tmp_path / 'shards/train'}", "data.num_workers=0", "batch.clips_per_device=8")
    views = ("evaluate.sliding=true", "evaluate.overlap=0.5", "engine.device=cpu")
    assert run_program(PROGRAM, ["evaluate", str(run), *data, *views]) == 0
    evaluated = pq.read_table(run / "predictions.parquet").to_pylist()
    own = {row["video"]: row for row in pq.read_table(predicted / "video_scores.parquet").to_pylist()}
    classes = load(model_dir).classes
    assert len(own) == len(evaluated) > 10
    for row in evaluated:
        mine = own[row["name"]]
        np.testing.assert_allclose([mine[f"score/{name}"] for name in classes], row["prediction"], atol=1e-6)
        assert (mine["predicted"], mine["views"]) == (row["predicted_name"], row["views"])
    assert predict(model_dir, tmp_path / "shards/train", tmp_path / "out", "overlap=0.5") == 0
    of_shards = pq.read_table(tmp_path / "out/video_scores.parquet")
    assert sorted(of_shards["predicted"].to_pylist()) == sorted(row["predicted"] for row in own.values())


def test_a_model_folder_is_evaluated_with_its_own_chunks_and_pruning(
    model_dir: Path, synth_shards: Path, tmp_path: Path
) -> None:
    found = load_model(model_dir)
    found.model.chunks = 2
    reduction = TokenReduction(pruning=Component(name="motion", args={"keep": 0.5}))
    save_model(tmp_path, found, head=Component(name="linear"), token_reduction=reduction)
    keys = (f"data.validation={synth_shards / 'validation'}", "data.num_workers=0", "engine.device=cpu")
    for overrides, kept in (((), 8), (("pruning=none",), 16)):
        assert run_program(PROGRAM, ["evaluate", str(tmp_path), *keys, *overrides]) == 0
        tokens = json.loads((tmp_path / "result.json").read_text())["tokens"]
        assert tokens == {"grid": 16, "kept": kept}


def test_a_key_that_leads_out_of_the_folder_is_an_error(
    model_dir: Path, synth_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = open_index(synth_shards / "validation")
    samples = [replace(index.sample(0), key="../../outside")]
    shards = [replace(index.shards[0], name=str(synth_shards / "validation" / index.shards[0].name))]
    (tmp_path / "shards").mkdir()
    write_index(tmp_path / "shards", samples, shards, index.classes, {})
    assert predict(model_dir, tmp_path / "shards", tmp_path / "out") == 3
    assert "expected keys that are names of files, got '../../outside'" in capsys.readouterr().err
    assert not list(tmp_path.rglob("outside*"))


def test_an_error_of_writing_is_one_line(
    model_dir: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").write_text("in the way")
    assert predict(model_dir, sorted(videos.glob("*/*.mp4"))[0], tmp_path) == 3
    assert f"cannot write to {tmp_path}: File exists; fix that and run" in capsys.readouterr().err


def test_all_files_of_a_prediction_have_the_same_scores(
    predicted: Path, model_dir: Path, videos: Path
) -> None:
    table = pq.read_table(predicted / "scores.parquet")
    text = pyarrow.csv.read_csv(predicted / "scores.csv")
    assert text.to_pydict() == table.to_pydict()
    name = table["video"][0].as_py()
    found = VideoPrediction.from_json((predicted / "videos" / f"{name}.json").read_text())
    rows = table.filter(pyarrow.compute.equal(table["video"], name))
    assert rows["start_s"].to_pylist() == found.start_R.tolist() and found.start_R[0] == 0
    assert found.end_R[-1] == found.info["duration_s"]
    np.testing.assert_allclose(found.score_RX.mean(axis=0), found.summary_X)
    config = PredictConfig(overlap=0.5, clips_per_device=8)
    alone = predict_file(load(model_dir), videos / name, config)
    np.testing.assert_allclose(alone.score_RX, found.score_RX, atol=1e-6)
    summary = json.loads((predicted / "summary.json").read_text())
    assert summary["videos"] == len(set(table["video"].to_pylist())) and summary["failed"] == {}


def test_an_interrupted_prediction_continues_and_ends_the_same(
    predicted: Path, model_dir: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = Prediction.outputs

    def interrupted(self, units):
        for number, found in enumerate(outputs(self, units)):
            if number == 2:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(Prediction, "outputs", interrupted)
    arguments = (model_dir, videos, tmp_path, "overlap=0.5", "clips_per_device=8")
    assert predict(*arguments) == 130
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("videos/**/*.json")}
    assert kept and not (tmp_path / "summary.json").exists()
    monkeypatch.undo()
    assert predict(*arguments) == 0
    assert results(tmp_path) == results(predicted)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


@pytest.mark.processes
def test_two_processes_killed_and_repeated_give_the_files_of_one(
    predicted: Path, model_dir: Path, videos: Path, tmp_path: Path
) -> None:
    arguments = ("-m", "kinemae", "finetune", "predict", str(model_dir), str(videos), str(tmp_path), *QUICK)
    arguments = (*arguments, "overlap=0.5", "clips_per_device=8")
    ranks = start_ranks(2, *arguments)
    while not list(tmp_path.glob("videos/**/*.json")):
        assert all(rank.poll() is None for rank in ranks), ranks[0].communicate()
        time.sleep(0.01)
    for rank in ranks:
        rank.kill()
        rank.communicate()
    run_ranks(2, *arguments)
    assert results(tmp_path) == results(predicted)


def test_the_parts_of_a_long_video_are_kept_and_joined(
    model_dir: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_clips, "_BYTES_PER_ITEM", 3 * 4 * 16 * 16 * 3 // 2)  # three windows
    video = sorted(videos.glob("*/*.mp4"))[0]
    whole = predict_file(load(model_dir), video, PredictConfig(overlap=0.8))
    outputs = Prediction.outputs

    def interrupted(self, units):
        yield next(outputs(self, units))
        raise KeyboardInterrupt

    monkeypatch.setattr(Prediction, "outputs", interrupted)
    assert predict(model_dir, video, tmp_path, "overlap=0.8") == 130
    [kept] = tmp_path.glob("partial/*/*.safetensors")
    time_ns = kept.stat().st_mtime_ns
    monkeypatch.setattr(Prediction, "outputs", outputs)
    monkeypatch.setattr(Prediction, "join", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert predict(model_dir, video, tmp_path, "overlap=0.8") == 130
    assert len(list(tmp_path.glob("partial/*/*.safetensors"))) > 2 and kept.stat().st_mtime_ns == time_ns
    monkeypatch.undo()
    monkeypatch.setattr(evaluation_clips, "_BYTES_PER_ITEM", 3 * 4 * 16 * 16 * 3 // 2)
    assert predict(model_dir, video, tmp_path, "overlap=0.8") == 0
    found = VideoPrediction.from_json((tmp_path / f"videos/{video.name}.json").read_text())
    assert found.views == whole.views > 6 and (found.score_RX == whole.score_RX).all()
    assert not list(tmp_path.glob("partial/*"))
    overlay = tmp_path / f"videos/{video.name}.mp4"  # the default of a single video
    assert probe(overlay).frames == found.info["frames"]
    frames = list(rgb_frames(overlay, longest=960))
    source = list(rgb_frames(video, longest=960))
    np.testing.assert_allclose([time_s for time_s, _ in frames], [time_s for time_s, _ in source], atol=1e-4)
    bright = [int((frame_HWC[-30] > 200).all(axis=1).argmax()) for _, frame_HWC in frames]
    assert bright == sorted(bright) and bright[-1] > 400  # the cursor moves from left to right


def test_unreadable_videos_are_reported_and_all_others_predicted(
    model_dir: Path, videos: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number, video in enumerate(sorted(videos.glob("*/*.mp4"))[:2]):
        shutil.copy(video, source / f"{number}.mp4")
    (source / "bad.mp4").write_bytes(b"no video")
    assert predict(model_dir, source, tmp_path / "out", "overlay=true") == 0
    rows = pq.read_table(tmp_path / "out/video_scores.parquet").to_pylist()
    assert [(row["video"], bool(row["error"])) for row in rows] == [
        ("0.mp4", 0),
        ("1.mp4", 0),
        ("bad.mp4", 1),
    ]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert "FFmpeg cannot read it" in summary["failed"]["bad.mp4"]
    assert sorted(path.name for path in tmp_path.glob("out/videos/*.mp4")) == ["0.mp4.mp4", "1.mp4.mp4"]
    shutil.copy(sorted(videos.glob("*/*.mp4"))[2], source / "0.mp4")
    long = "1" * 251 + ".mp4"
    (source / "1.mp4").rename(source / long)
    before = (tmp_path / "out/videos/0.mp4.json").read_bytes()
    assert predict(model_dir, source, tmp_path / "out", "overlay=true") == 0
    assert (tmp_path / "out/videos/0.mp4.json").read_bytes() != before
    [result] = tmp_path.glob("out/videos/111*.json")
    assert json.loads(result.read_text())["video"] == long and result.with_suffix(".mp4").exists()


@pytest.mark.parametrize(
    "source, overrides, expected",
    [
        ("camera:99", (), (3, "camera:99: expected a camera at /dev/video99, got none; fix: connect it")),
        ("tcp://127.0.0.1:9", (), (3, "tcp://127.0.0.1:9: expected a video stream, got an error")),
        ("camera:99", ("overlay=true",), (2, "overlay must be omitted for a stream")),
        ("none.mp4", (), (3, "none.mp4: expected a video, a folder of videos or a URL, got no such file")),
        ("", ("overlap=1",), (2, "overlap must lie in")),
        ("", ("overlap=0.5", "temporal_clips=2"), (2, "temporal_clips must be omitted with overlap")),
    ],
)
def test_bad_input_is_one_line(model_dir, videos, tmp_path, source, overrides, expected, capsys) -> None:  # noqa: PLR0913 - fixtures
    code, message = expected
    assert predict(model_dir, source or videos, tmp_path, *overrides) == code
    assert message in capsys.readouterr().err


def test_another_model_or_setting_needs_another_folder(
    predicted: Path, model_dir: Path, videos: Path, capsys
) -> None:
    before = results(predicted)
    assert predict(model_dir, videos, predicted, "overlap=0.25") == 2
    assert "expected the settings of the predictions that it holds, windows=" in capsys.readouterr().err
    assert results(predicted) == before


def test_an_encoder_without_a_head_is_rejected(tmp_path: Path, videos: Path, capsys) -> None:
    save_encoder(tmp_path / "encoder", Encoder(SHAPE, GRID), DESCRIPTION)
    assert predict(tmp_path / "encoder", videos, tmp_path / "out") == 2
    assert "expected a fine-tuned model with a head, got an encoder; fix:" in capsys.readouterr().err


def test_a_video_shorter_than_a_window_is_padded_with_a_warning(model_dir, videos, tmp_path, capsys) -> None:
    video = sorted(videos.glob("*/*.mp4"))[0]
    assert predict(model_dir, video, tmp_path, "stride=1000") == 0
    assert "1 of 1 videos are shorter than a window: short_video=hold pads them" in capsys.readouterr().err


SEGMENTS = {"segments": "events"}
SPEED = {"labels": ["x", "y"], "mean": [0.0, 1.0], "deviation": [1.0, 2.0]}
AB = {"classes": ["a", "b"]}
PARTS = {
    "kind": {"name": "classification", "args": {"label": "kind"}, "state": AB},
    "speed": {"name": "regression", "args": {"labels": ["x", "y"]}, "state": SPEED},
}
TASKS = [
    ("dense", SEGMENTS, {"classes": ["background", "a", "b"]}, "temporal"),
    ("dense", {**SEGMENTS, "multi_label": True, "resolution": "frame"}, AB, "temporal"),
    ("localization", SEGMENTS, {**AB, "majority": 0}, "pyramid"),
    ("multi_label", {"label": "tags"}, AB, "linear"),
    ("ordinal", {"label": "grade"}, {"classes": ["1", "2", "3"], "offsets": [0.5, 0.0]}, "linear"),
    ("regression", {"labels": ["x", "y"]}, SPEED, "linear"),
    ("retrieval", {"dimensions": 4}, AB, "linear"),
    ("multi_task", {"labels": ["kind", "speed"]}, {"tasks": PARTS}, "linear"),
]


@pytest.mark.parametrize("name, args, state, head", TASKS)
def test_every_task_has_scores_over_time(tmp_path: Path, videos: Path, name, args, state, head) -> None:
    folder = save_random_model(tmp_path, Component(name=name, args=args), state, head)
    model = load(folder)
    video = sorted(videos.glob("*/*.mp4"))[0]
    found = predict_file(model, video, PredictConfig(overlap=0.5, spatial_crops=3, threshold=0.2))
    rows, columns = found.score_RX.shape
    assert len(found.columns) == columns == len(found.summary_X)
    assert len(found.start_R) == rows > 1 and (found.end_R > found.start_R).all()
    assert VideoPrediction.from_json(found.to_json()).to_json() == found.to_json()
    assert (found.segments is not None) == (model.task_model.task.output != "clip")
    for each in found.segments or []:
        assert 0 <= each.start_s < each.end_s <= found.info["duration_s"] + 0.2
        assert each.label in found.columns and each.score >= 0.2
