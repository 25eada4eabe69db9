"""Evaluation: views, numbers of processes, predictions of each sample, cost, unreadable videos."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinemae.data_tools.command import run_program
from kinemae.data_tools.components import Component
from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.frame_sampling import SlidingClips, sliding_clip_count
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.build import clip_config
from kinemae.finetune.config import EvaluateConfig, FinetuneConfig
from kinemae.finetune.evaluation.cost import model_cost, training_flops
from kinemae.finetune.evaluation.inference import predict_samples, sample_groups
from kinemae.finetune.evaluation.predictions import read_predictions
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.model_file import FinetunedModel, load_model, save_model
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.classification import Classification
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.exported_model import EncoderDescription
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime.processes import Processes
from tests.ranks import run_ranks

SHAPE = EncoderShape(width=32, depth=2, heads=2, mlp_width=64, patch=(2, 8, 8))
ALONE = Processes(rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def validation(synth_shards):
    return synth_shards / "validation"


@pytest.fixture(scope="module")
def index(validation):
    return open_index(validation)


@pytest.fixture(scope="module")
def model_dir(index, tmp_path_factory):
    """A model with random weights that are large enough for different predictions."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    grid = TokenGrid.of(4, 16, SHAPE.patch)
    task = Classification()
    task.fit(index, key="data")
    head = build_head(Component(name="linear"), width=32, outputs=task.outputs)
    torch.nn.init.normal_(head.linear.weight)
    model = TaskModel(Encoder(SHAPE, grid), head, task)
    description = EncoderDescription(shape=SHAPE, grid=grid, reference=grid, frames=4, stride=2, size=16)
    finetuned = FinetunedModel(model=model, description=description)
    save_model(folder, finetuned, head=Component(name="linear"))
    return folder


def arguments(folder, validation, *more):
    keys = [
        f"data.validation={validation}",
        "data.num_workers=0",
        "engine.device=cpu",
        "engine.cpu_threads=1",
    ]
    return ["evaluate", str(folder), *keys, "batch.clips_per_device=4", *more]


def evaluated(model_dir, validation, tmp_path, *more):
    """Evaluate a copy of the model in this process; return its result and predictions."""
    folder = shutil.copytree(model_dir, tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
    assert run_program(PROGRAM, arguments(folder, validation, *more)) == 0
    return read(folder)


def read(folder):
    return json.loads((folder / "result.json").read_text()), read_predictions(folder / "predictions.parquet")


def settings(model_dir, validation, **views):
    keys = [f"run_dir={model_dir}", f"encoder={model_dir}", "epochs=1", "data.train=none"]
    keys += [f"data.validation={validation}", "data.num_workers=0", "batch.clips_per_device=4"]
    config = load_config(FinetuneConfig, None, [*keys, "engine.device=cpu"])
    return replace(config, evaluate=replace(config.evaluate, **views))


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    ("world", "views"),
    [pytest.param(2, "evaluate.temporal_clips=3", marks=pytest.mark.nightly), (3, "evaluate.sliding=true")],
)
def test_two_and_three_processes_predict_as_one_to_the_last_digit(
    model_dir, validation, index, tmp_path, world, views
):
    own, table = evaluated(model_dir, validation, tmp_path, views)
    folder = shutil.copytree(model_dir, tmp_path / "together")
    run_ranks(world, "-m", "finetune", *arguments(folder, validation, views))

    assert own["videos"] == len(index) == len(set(table.columns["key"]))
    result, others = read(folder)
    assert others.columns == table.columns
    assert {**result, "cost": 0, "run": 0} == {**own, "cost": 0, "run": 0}


def test_the_table_repeats_the_result(model_dir, validation, index, tmp_path):
    result, table = evaluated(model_dir, validation, tmp_path)

    columns, classes = table.columns, index.classes
    assert columns["key"] == index.column("key").tolist()
    assert columns["label_name"] == [classes[label] for label in index.column("label")]
    assert columns["predicted_name"] == [classes[np.argmax(row)] for row in columns["prediction"]]
    assert np.allclose([sum(row) for row in columns["prediction"]], 1)
    scores = table.scores()
    for name in ("top1", "top5", "loss"):
        assert result[name] == pytest.approx(scores[name].mean())
    assert result["nll"] == pytest.approx(result["loss"], abs=1e-5)  # one view, no label smoothing
    assert table.provenance["data"]["fingerprint"] == index.fingerprint
    assert table.provenance["config"]["batch"]["clips_per_device"] == 4
    assert result["interval"] == {
        "confidence": 0.95, "method": "Wilson for top1, bootstrap of samples for others", "groups": None
    }  # fmt: skip
    for name in ("f1", "mean_class_accuracy", "loss", "top5"):
        low, high = result[f"{name}_ci95"]
        assert low <= result[name] <= high


def test_sliding_clips_cover_each_video(model_dir, validation, index, tmp_path):
    result, table = evaluated(
        model_dir, validation, tmp_path, "evaluate.sliding=true", "evaluate.overlap=0.5"
    )

    clip = clip_config(settings(model_dir, validation), load_model(model_dir).description)
    expected = [
        sliding_clip_count(index.sample(i), clip, SlidingClips(overlap=0.5)) for i in range(len(index))
    ]
    assert table.columns["views"] == expected
    assert max(expected) > 1
    assert result["views"]["total"] == pytest.approx(np.mean(expected))


def test_one_sample_alone_is_predicted_as_in_the_whole_data_set(model_dir, validation, index):
    finetuned = load_model(model_dir)
    config = settings(model_dir, validation, temporal_clips=2, spatial_crops=3)

    everything = predict_samples(finetuned, index, config, ALONE)
    some = predict_samples(finetuned, index, config, ALONE, samples=[5, 2])

    assert [each.position for each in some] == [2, 5]
    for each in some:
        whole = everything[each.position]
        np.testing.assert_allclose(each.values["prediction"], whole.values["prediction"], rtol=1e-5)
        assert (each.key, each.views) == (whole.key, 6)


def test_an_output_that_is_not_finite_is_no_prediction(model_dir, validation, index):
    finetuned = load_model(model_dir)
    torch.nn.init.constant_(finetuned.model.head.linear.bias, torch.nan)

    predictions = predict_samples(finetuned, index, settings(model_dir, validation), ALONE)

    assert len(predictions) == len(index)
    assert all(each.values is None and "output for it is not finite" in each.error for each in predictions)


def test_an_unreadable_video_is_counted_beside_and_as_wrong(model_dir, validation, index, tmp_path):
    copy = shutil.copytree(validation, tmp_path / "damaged")
    sample = index.sample(3)
    with (copy / index.shards[sample.shard].name).open("r+b") as file:
        file.seek(sample.offset)
        file.write(bytes(sample.length))

    result, table = evaluated(model_dir, copy, tmp_path)

    [skipped] = result["skipped"]
    assert skipped["key"] == sample.key
    assert table.columns["error"][3] == skipped["error"] != ""
    assert table.columns["prediction"][3] is None
    assert result["videos"] == len(index) - 1
    counted = result["counting_skipped"]
    assert counted["top1"] == pytest.approx(result["top1"] * result["videos"] / len(index))
    assert counted["mean_class_accuracy"] <= result["mean_class_accuracy"]


@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([1, 3]), st.integers(0, 40))
def test_groups_fill_a_forward_pass_and_hold_every_sample_once(limit, clips, crops, samples):
    views = EvaluateConfig(temporal_clips=clips, spatial_crops=crops)

    groups = sample_groups(None, range(samples), clip=None, views=views, limit=limit)

    assert [position for group in groups for position in group] == list(range(samples))
    for group in groups[:-1]:
        assert (len(group) - 1) * clips * crops < limit <= len(group) * clips * crops


def test_the_cost_is_that_of_a_forward_pass(model_dir, validation, index):
    finetuned = load_model(model_dir)
    clip = clip_config(settings(model_dir, validation), finetuned.description)

    cost = model_cost(finetuned.model, index, clip)

    tokens, width, depth, mlp = 8, 32, 2, 64
    patch = 2 * 8 * 8 * 3
    products = patch * width + depth * (4 * width**2 + 2 * width * mlp + 2 * tokens * width)
    expected = 2 * (tokens * products + width * len(index.classes))
    assert cost["gflops_per_view"] == pytest.approx(expected / 1e9)
    assert cost["parameters"] == sum(weight.numel() for weight in finetuned.model.parameters())


@pytest.mark.parametrize("freeze", [False, True])
def test_the_flops_of_training_are_those_of_the_weights_with_gradients(model_dir, validation, index, freeze):
    """A backward pass costs twice its forward pass; pixels and a frozen encoder have no gradient."""
    finetuned = load_model(model_dir)
    model, clip = finetuned.model, clip_config(settings(model_dir, validation), finetuned.description)
    model.encoder.requires_grad_(not freeze)
    model.freeze = freeze
    tokens, width, depth, mlp = 8, 32, 2, 64
    patches, head = tokens * 2 * 8 * 8 * 3 * width, width * len(index.classes)
    blocks = tokens * depth * (4 * width**2 + 2 * width * mlp + 2 * tokens * width)
    expected = 3 * head + (patches + blocks if freeze else 2 * patches + 3 * blocks)
    assert training_flops(model, clip) == 2 * expected
    assert all(weight.grad is None for weight in model.parameters())


def test_the_flops_of_training_are_unknown_if_tokens_depend_on_the_video(model_dir, validation):
    reduction = TokenReduction(pruning=Component(name="run_length"))
    pruned = load_model(model_dir, token_reduction=reduction)
    clip = clip_config(settings(model_dir, validation), pruned.description)
    assert training_flops(pruned.model, clip) is None


def test_a_pruning_that_depends_on_the_video_costs_less_than_all_tokens(model_dir, validation, index):
    reduction = TokenReduction(pruning=Component(name="run_length", args={"threshold": 1000.0}))
    pruned = load_model(model_dir, token_reduction=reduction)
    clip = clip_config(settings(model_dir, validation), pruned.description)

    cost = model_cost(pruned.model, index, clip)["gflops_per_view"]

    assert 0 < cost < model_cost(load_model(model_dir).model, index, clip)["gflops_per_view"]


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"sliding": True, "temporal_clips": 3}, "evaluate.temporal_clips must be 1 with evaluate.sliding"),
        ({"overlap": 0.5}, "evaluate.overlap must be omitted without evaluate.sliding"),
        ({"step_s": 2.0}, "evaluate.step_s must be omitted without evaluate.sliding"),
        ({"sliding": True, "overlap": 1.0}, r"evaluate.overlap must lie in \[0, 1\)"),
        ({"sliding": True, "step_s": 1.0, "overlap": 0.5}, "evaluate.overlap must be omitted with"),
    ],
)
def test_views_that_contradict_each_other_are_rejected(views, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**views)
