"""The commands probe and knn on encoded videos."""

import json
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from kinemae.data_tools.index import open_index
from kinemae.finetune.evaluation.predictions import read_predictions
from kinemae.pretrain.visualize.open_model import open_pretrained_model
from tests.finetune.probe.conftest import SHAPE, finetune, read, write_encoder
from tests.forked import ForkedPython, run_forked
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow
LAYERS = [
    "features.layers=[0,-1]",
    "grid={lr: [1e-3, 1e-2], weight_decay: [0.01], pool: [mean, statistics]}",
]


@pytest.fixture(scope="module")
def linear_run(encoder, data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("probes") / "run"
    assert finetune("probe", f"encoder={encoder}", *data, *LAYERS, f"run_dir={run_dir}") == 0
    return run_dir


def test_a_probe_writes_the_grid_the_choice_and_the_score(linear_run, synth_shards):
    result = read(linear_run / "linear/result.json")

    found = result["probe"]
    assert len(found["grid"]) == 2 * 2 * 2
    assert found["chosen"] in found["grid"]
    assert found["chosen"]["held_out"] == max(row["held_out"] for row in found["grid"])
    assert found["selection"]["trained_on"] + found["selection"]["held_out"] == found["training_samples"]
    low, high = found["interval"]["ci95"]
    assert low <= result["top1"] <= high
    assert found["floor"]["value"] == pytest.approx(1 / len(result["classes"]), abs=0.05)
    assert result["videos"] == len(open_index(synth_shards / "validation"))


def test_two_methods_are_compared_on_the_same_videos(linear_run, encoder, data, capsys):
    assert finetune("knn", f"encoder={encoder}", *data, "knn.k=[2]", f"run_dir={linear_run}") == 0
    capsys.readouterr()

    assert finetune("compare", linear_run / "linear", linear_run / "knn", "--json") == 0

    first, second = json.loads(capsys.readouterr().out)
    assert second["paired"]["score"] == "top1"
    assert second["paired"]["difference"] == pytest.approx(second["top1"] - first["top1"])
    table = read_predictions(linear_run / "knn/predictions.parquet")
    assert table.scores()["top1"].mean() == pytest.approx(second["top1"])


def test_evaluating_the_saved_model_repeats_the_score(linear_run):
    before = (linear_run / "linear/result.json").read_text()
    own = read(linear_run / "linear/result.json")

    assert finetune("evaluate", linear_run / "linear") == 0

    again = read(linear_run / "linear/result.json")
    (linear_run / "linear/result.json").write_text(before)
    assert again["confusion_matrix"] == own["confusion_matrix"] and again["top1"] == own["top1"]
    assert again["nll"] == pytest.approx(own["nll"], rel=1e-6)


def test_a_head_on_a_lower_block_is_saved_with_the_encoder_up_to_it(encoder, data, tmp_path):
    run = [f"run_dir={tmp_path}", "features.layers=[1]", "grid={lr: [1e-2], weight_decay: [0.0]}"]
    assert finetune("probe", f"encoder={encoder}", *data, *run) == 0
    own = read(tmp_path / "linear/result.json")

    assert finetune("evaluate", tmp_path / "linear") == 0

    assert read(tmp_path / "linear/model/encoder.json")["shape"]["depth"] == 2 < SHAPE.depth
    assert read(tmp_path / "linear/result.json")["nll"] == pytest.approx(own["nll"], rel=1e-6)


def test_a_repeated_command_reuses_the_features_and_repeats_the_result(linear_run, encoder, data, capsys):
    own = read(linear_run / "linear/result.json")
    store = linear_run / "features/encoder/statistics/train/layer-00.npy"
    written = store.stat().st_mtime_ns

    assert finetune("probe", f"encoder={encoder}", *data, *LAYERS, f"run_dir={linear_run}") == 0

    again = read(linear_run / "linear/result.json")
    assert store.stat().st_mtime_ns == written
    assert {**again["probe"], "cost": None} == {**own["probe"], "cost": None}
    assert "encoding" not in capsys.readouterr().err


def test_all_methods_share_one_store(linear_run, encoder, data):
    run = [f"encoder={encoder}", *data, f"run_dir={linear_run}", "few_shot={per_class: [1, 2], tries: 2}"]

    assert finetune("knn", *run, "knn.k=[1,5]") == 0
    assert finetune("probe", *run, "method=logistic", "logistic.c=[0.1, 1.0]", "select.folds=2") == 0

    for method in ("knn", "logistic"):
        found = read(linear_run / method / "result.json")["probe"]
        assert len(found["grid"]) == 2
        assert [row["per_class"] for row in found["few_shot"]] == [1, 2]
        assert found["few_shot"][1]["samples"] == 2 * found["few_shot"][0]["samples"]


def test_the_order_of_slices_is_a_pooling(encoder, data, tmp_path):
    grid = "grid={lr: [1e-2], weight_decay: [0.0], pool: [slices]}"
    assert finetune("probe", f"encoder={encoder}", *data, grid, f"run_dir={tmp_path}") == 0

    stored = np.load(tmp_path / "features/encoder/slices/train/layer-02.npy", mmap_mode="r")
    assert stored.shape[1:] == (1, 2, 2 * SHAPE.width)
    own = read(tmp_path / "linear/result.json")
    assert own["probe"]["chosen"]["pool"] == "slices"
    assert finetune("evaluate", tmp_path / "linear") == 0
    assert read(tmp_path / "linear/result.json")["nll"] == pytest.approx(own["nll"], rel=1e-6)


def test_attentive_heads_read_all_tokens(encoder, data, tmp_path):
    grid = ["method=attentive", "grid={lr: [1e-3, 1e-2], weight_decay: [0.01]}", "features.dtype=bfloat16"]

    assert finetune("probe", f"encoder={encoder}", *data, *grid, f"run_dir={tmp_path}") == 0

    tokens = np.load(tmp_path / "features/encoder/tokens/train/layer-02.npy", mmap_mode="r")
    assert tokens.shape[1:] == (1, 2 * 2 * 2, SHAPE.width) and tokens.dtype == np.uint16
    own = read(tmp_path / "attentive/result.json")
    assert finetune("evaluate", tmp_path / "attentive") == 0
    assert read(tmp_path / "attentive/result.json")["nll"] == pytest.approx(own["nll"], rel=0.05)


def test_random_training_views_are_stored_by_sample(encoder, data, synth_shards, tmp_path):
    views = ["features.train_views=2", "evaluate.temporal_clips=3", f"run_dir={tmp_path}"]

    assert finetune("knn", f"encoder={encoder}", *data, *views) == 0

    train, validation = (
        np.load(tmp_path / f"features/encoder/statistics/{split}/layer-02.npy")
        for split in ("train", "validation")
    )
    samples = pq.read_table(tmp_path / "features/encoder/statistics/train/samples.parquet")
    assert train.shape[1] == 2 and validation.shape[1] == 3
    assert samples.column("key").to_pylist() == open_index(synth_shards / "train").column("key").tolist()
    assert (np.abs(train).sum(axis=2) > 0).all()


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("evaluate.temporal_clips=2", "views.temporal_clips: store 1, here 2"),
        ("clip.stride=1", "clip.stride: store 2, here 1"),
        ("features.layers=[1]", "layers: store [0, 2], here [1]"),
        ("features.dtype=float16", "dtype: store float32, here float16"),
    ],
)
def test_a_store_of_other_features_is_refused(linear_run, encoder, data, override, difference, capsys):
    assert finetune("probe", f"encoder={encoder}", *data, f"run_dir={linear_run}", override) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert difference in line and "features.rebuild=true" in line


def test_a_store_of_another_encoder_is_refused_or_rebuilt(linear_run, data, tmp_path, capsys):
    other = write_encoder(tmp_path / "encoder", seed=1)
    run = [f"encoder={other}", *data, f"run_dir={tmp_path}", "grid={lr: [1e-2], weight_decay: [0.0]}"]
    shared = f"features.folder={tmp_path / 'features'}"
    assert finetune("probe", *run, shared, "weights=random") == 0
    capsys.readouterr()

    assert finetune("probe", *run, shared) == 2
    assert "encoder: store" in capsys.readouterr().err
    assert finetune("probe", *run, shared, "features.rebuild=true") == 0


def test_several_encoders_give_a_curve(data, tmp_path):
    for number in range(2):
        write_encoder(tmp_path / f"model-{number}" / "encoder", seed=number)

    run = [f"encoder={tmp_path}/model-*/encoder", *data, f"run_dir={tmp_path / 'run'}", "save_model=false"]
    assert finetune("probe", *run) == 0

    rows = read(tmp_path / "run/linear/curve.json")
    assert [row["encoder"] for row in rows] == ["model-0-encoder", "model-1-encoder"]
    for row in rows:
        assert row["value"] == read(tmp_path / "run/linear" / row["encoder"] / "result.json")["top1"]


@pytest.fixture(scope="module")
def pretraining(synth_shards, tmp_path_factory):
    """A pretraining run with three checkpoints."""
    run_dir = tmp_path_factory.mktemp("pretraining") / "run"
    small = ["model.size=tiny", "model.patch_size=8", "model.width=48", "model.depth=2", "clip.frames=4"]
    few = [
        "steps=6",
        "save_every_steps=2",
        "keep_checkpoints=3",
        "batch={global_clips: 4, clips_per_device: 4}",
    ]
    off = ["pictures.every_steps=0", "monitor.every_steps=0", "engine={device: cpu, cpu_threads: 1}"]
    given = [f"data.shards={synth_shards / 'unlabelled'}", "data.num_workers=0", f"run_dir={run_dir}"]
    run_forked("-m", "kinemae", "pretrain", "demo", *small, *few, *off, *given)
    return run_dir


@pytest.mark.processes
def test_checkpoints_of_a_pretraining_give_a_curve_and_the_last_equals_the_export(
    pretraining, data, tmp_path
):
    run = [*data, f"run_dir={tmp_path}", "features.folder=" + str(tmp_path / "features"), "save_model=false"]
    assert finetune("knn", f"encoder={pretraining / 'checkpoints'}", *run) == 0

    rows = read(tmp_path / "knn/curve.json")
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert (tmp_path / "knn/curve.svg").read_text().startswith("<svg")
    own = read(tmp_path / "knn/step-00000006/result.json")
    assert finetune("knn", f"encoder={pretraining / 'encoder'}", *run) == 0
    exported = read(tmp_path / "knn/result.json")
    assert exported["probe"]["features"]["encoder"] == own["probe"]["features"]["encoder"]
    assert exported["confusion_matrix"] == own["confusion_matrix"]


@pytest.mark.processes
def test_a_run_without_an_export_is_drawn_from_its_newest_checkpoint(pretraining, tmp_path):
    exported = open_pretrained_model(pretraining)
    shutil.copytree(pretraining, tmp_path / "run", ignore=shutil.ignore_patterns("encoder"))
    stored = open_pretrained_model(tmp_path / "run")
    older = open_pretrained_model(pretraining / "checkpoints" / "step-00000002")
    for part in ("encoder", "decoder"):
        expected, found, other = (getattr(each, part).state_dict() for each in (exported, stored, older))
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert not all(torch.equal(other[name], value) for name, value in expected.items())
    assert exported.target == stored.target and exported.config == stored.config


def test_a_folder_without_encoder_is_rejected(data, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    for name, message in (
        ("checkpoints", "expected checkpoints of a pretraining run, got none"),
        ("none-*", "expected folders of encoders or checkpoints, got none"),
        ("nowhere", "expected encoder.json and encoder.safetensors, got no such folder"),
    ):
        run = [f"encoder={tmp_path / name}", *data, f"run_dir={tmp_path / 'run'}"]
        assert finetune("probe", *run) == 4
        assert message in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.processes
def test_two_processes_and_a_killed_command_give_the_same_features(linear_run, encoder, data, tmp_path):
    run = [f"encoder={encoder}", *data, "features.layers=[0,-1]", "grid={lr: [1e-2], weight_decay: [0.0]}"]
    command = ["-m", "kinemae", "finetune", "probe", *map(str, run), f"run_dir={tmp_path}"]
    killed = ForkedPython(*command, environment={})
    partial = tmp_path / "features/encoder/statistics/train.partial/done"
    while not any(partial.glob("*.json")) and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.wait()

    run_ranks(2, *command)

    for name in ("train/layer-00.npy", "train/layer-02.npy", "validation/layer-02.npy", "train/time.npy"):
        stores = [folder / "features/encoder/statistics" / name for folder in (linear_run, tmp_path)]
        assert stores[0].read_bytes() == stores[1].read_bytes(), name
