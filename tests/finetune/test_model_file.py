"""Saved models are loaded unchanged, or rejected with a reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component, component_names
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.model_file import FinetunedModel, load_model, save_model
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.classification import Classification
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.exported_model import EncoderDescription, load_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid

SHAPE = EncoderShape(width=32, depth=2, heads=2, mlp_width=48, patch=(2, 8, 8))
CLASSES = ("walk", "run", "sch\u00f6n")


def saved(folder, head="linear", token_reduction=None):
    grid = TokenGrid.of(4, 16, SHAPE.patch)
    part, token_reduction = Component(name=head), token_reduction or TokenReduction()
    pruning = token_reduction.build_pruning(SHAPE)
    task = Classification()
    task.load_state({"classes": CLASSES})
    classifier = TaskModel(
        token_reduction.apply(Encoder(SHAPE, grid), pruning),
        build_head(part, width=32, outputs=3),
        task,
        pruning=pruning,
        mean=(0.4,) * 3,
        std=(0.3,) * 3,
    )
    torch.nn.init.normal_(classifier.head.linear.weight)
    description = EncoderDescription(
        shape=classifier.encoder.shape,
        grid=grid,
        reference=grid,
        frames=4,
        stride=2,
        size=16,
        mean=(0.4,) * 3,
        std=(0.3,) * 3,
    )
    finetuned = FinetunedModel(model=classifier, description=description)
    save_model(folder, finetuned, head=part, token_reduction=token_reduction)
    return classifier.eval()


# The heads of tasks in time: tests/finetune/tasks/test_runs_in_time.py loads their models.
HEADS = sorted(set(component_names("kinemae.finetune.heads")) - {"temporal", "pyramid"})


@pytest.mark.parametrize("head", HEADS)
def test_a_loaded_model_has_the_saved_models_scores(tmp_path, head):
    classifier = saved(tmp_path, head)
    clip_BCTHW = torch.randint(256, (2, 3, 4, 16, 16), dtype=torch.uint8)

    model = load_model(tmp_path)

    assert torch.equal(model.model.output(clip_BCTHW)[0], classifier.output(clip_BCTHW)[0])
    assert model.classes == CLASSES
    assert model.description.stride == 2


TOKEN_REDUCTIONS = [
    TokenReduction(pruning=Component(name="run_length", args={"threshold": 80.0})),
    TokenReduction(pruning=Component(name="learned", args={"keep": 0.5})),
    TokenReduction(merge_per_block=2),
    TokenReduction(pruning=Component(name="motion", args={"keep": 0.5}), merge_per_block=1),
]


@pytest.mark.parametrize("token_reduction", TOKEN_REDUCTIONS, ids=str)
def test_a_loaded_model_keeps_pruning_and_merging(tmp_path, token_reduction):
    classifier = saved(tmp_path, token_reduction=token_reduction)
    clip_BCTHW = torch.randint(256, (2, 3, 4, 16, 16), dtype=torch.uint8)

    model = load_model(tmp_path)

    assert torch.equal(model.model.output(clip_BCTHW)[0], classifier.output(clip_BCTHW)[0])
    assert model.description.shape == classifier.encoder.shape
    plain = load_model(tmp_path, token_reduction=TokenReduction())
    assert not torch.allclose(plain.model.output(clip_BCTHW)[0], classifier.output(clip_BCTHW)[0], atol=1e-4)


def test_a_model_trained_without_pruning_can_be_pruned(tmp_path):
    classifier = saved(tmp_path)
    clip_BCTHW = torch.randint(256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    clip_BCTHW[0] = 7

    pruned = load_model(tmp_path, token_reduction=TokenReduction(pruning=Component(name="run_length"))).model

    assert pruned.features(clip_BCTHW).kept_B.tolist() == [4, 8]
    logits_BY, plain_BY = pruned.output(clip_BCTHW)[0], classifier.output(clip_BCTHW)[0]
    assert torch.allclose(logits_BY[1], plain_BY[1], atol=1e-5), "of this clip, nothing was left out"
    assert not torch.allclose(logits_BY[0], plain_BY[0], atol=1e-4)


def test_the_folder_is_an_encoder_for_further_fine_tuning(tmp_path):
    classifier = saved(tmp_path)

    encoder, _ = load_encoder(tmp_path)

    assert torch.equal(encoder.patch_embed.weight, classifier.encoder.patch_embed.weight)


def test_nothing_in_the_folder_is_a_pickle(tmp_path):
    saved(tmp_path)

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"encoder.safetensors", "encoder.json", "head.safetensors", "head.json"}


def test_an_interrupted_save_is_not_a_model(tmp_path):
    saved(tmp_path)
    (tmp_path / "head.json").unlink()

    with pytest.raises(CheckpointError, match=r"expected a fine-tuned model, got a folder without head.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "expected format 3, got 9"),
        ({"head": {"name": "os.system", "args": {}}}, "no head named 'os.system'"),
        ({"head": {"name": "linear", "args": {"command": "x"}}}, "no argument 'command'"),
        ({"task": {"name": "os.system", "args": {}, "state": {}}}, "no task named 'os.system'"),
        ({"task": {"name": "classification", "args": {}, "state": {}}}, "expected a valid task"),
        ({"head": None}, "expected a valid task, head and token reduction"),
        ({"token_reduction": {"merge": 2}}, "wrong keys in token_reduction: unknown merge"),
        ({"token_reduction": None}, "wrong keys in token_reduction: not an object"),
        (
            {"token_reduction": {"pruning": {"name": "os.system", "args": {}}, "merge_per_block": 0}},
            "no pruning named 'os.system'",
        ),
        (
            {"token_reduction": {"pruning": {"name": "learned", "args": {}}, "merge_per_block": 0}},
            "expected a pruning that needs no trained scorer",
        ),
        (
            {"task": {"name": "classification", "args": {}, "state": {"classes": ["one"]}}},
            "expected the weights of head.json, got others.*size mismatch",
        ),
    ],
)
def test_an_invalid_description_is_rejected(tmp_path, change, message):
    saved(tmp_path)
    path = tmp_path / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_an_unreadable_description_is_rejected(tmp_path, text):
    saved(tmp_path)
    (tmp_path / "head.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"head\.json"):
        load_model(tmp_path)


def test_damaged_weights_are_rejected(tmp_path):
    saved(tmp_path)
    path = tmp_path / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(CheckpointError, match=r"head\.safetensors: expected safetensors"):
        load_model(tmp_path)


def test_missing_tensors_are_named(tmp_path):
    saved(tmp_path)
    weights = load_file(tmp_path / "head.safetensors")
    del weights["linear.bias"]
    save_file(weights, tmp_path / "head.safetensors")

    with pytest.raises(CheckpointError, match=r"linear\.bias"):
        load_model(tmp_path)
