"""Training from scratch with `weights=random`: the same architecture, and no layer decay by default."""

from dataclasses import replace

import pytest
import torch

from kinemae.data_tools.components import Component
from kinemae.finetune.build import build_model, describe_encoder
from kinemae.finetune.config import resolve_layer_decay
from kinemae.finetune.train import log_initial_weights
from kinemae.pretrain.exported_model import WEIGHTS, load_description, save_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape, ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from tests.finetune.test_build import load
from tests.finetune.test_exported_formats import STORED
from tests.task_models import classification

OTHERS = EncoderShape(
    width=24, depth=2, heads=2, mlp_width=40, patch=(2, 8, 8), positions=Component(name="rotary"),
    attention=Component(name="divided"), registers=2, qk_norm=True, layer_scale=0.1,
)  # fmt: skip


TINY = ModelConfig(size="tiny", patch_size=8).shape().encoder


@pytest.fixture(params=[OTHERS, TINY], ids=["other", "tiny"])
def folder(request, tmp_path):
    """An exported encoder of the shape."""
    grid = TokenGrid.of(4, 16, request.param.patch)
    description = replace(
        load_description(STORED), shape=request.param, grid=grid, reference=grid, frames=4, size=16
    )
    torch.manual_seed(7)
    save_encoder(tmp_path, Encoder(request.param, grid), description)
    return tmp_path


def test_random_weights_keep_architecture_clip_and_normalization(folder):
    pretrained, random = (load(f"encoder={folder}", *more) for more in ([], ["weights=random"]))
    described, scratch = describe_encoder(pretrained), describe_encoder(random)
    assert scratch == replace(described, trained_by={}) and scratch.mean == (0.5, 0.4, 0.3)

    learned, fresh = (
        build_model(config, describe_encoder(config), classification(3)) for config in (pretrained, random)
    )

    assert fresh.encoder.shape == learned.encoder.shape and fresh.mean == learned.mean
    weight, other = (model.encoder.patch_embed.weight for model in (fresh, learned))
    assert weight.shape == other.shape and not torch.equal(weight, other)


def test_only_the_description_is_read_for_random_weights(folder):
    (folder / WEIGHTS).unlink()
    config = load(f"encoder={folder}", "weights=random")
    build_model(config, describe_encoder(config), classification(3))


def test_random_weights_equal_those_of_the_same_encoder_from_scratch(tmp_path):
    shape, keys = TINY, ["encoder=null", "model.size=tiny"]
    grid = TokenGrid.of(4, 16, shape.patch)
    description = replace(
        load_description(STORED), shape=shape, grid=grid, reference=grid, frames=4, stride=1, size=16
    )
    save_encoder(tmp_path, Encoder(shape, grid), description)
    keys += ["model.patch_size=8", "clip.frames=4", "clip.stride=1", "clip.size=16"]
    one, other = (
        build_model(config, describe_encoder(config), classification(3)).state_dict()
        for config in (load(*keys), load(f"encoder={tmp_path}", "weights=random"))
    )
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["encoder=x"], 0.75),
        (["encoder=x", "weights=random"], 1.0),
        (["encoder=null"], 1.0),
        (["encoder=x", "weights=random", "optim.layer_decay=0.6"], 0.6),
        (["encoder=x", "optim.layer_decay=0.6"], 0.6),
    ],
)
def test_the_default_layer_decay_depends_on_the_weights(overrides, expected):
    assert resolve_layer_decay(load(*overrides)).optim.layer_decay == expected


def test_other_values_of_weights_are_rejected():
    with pytest.raises(ValueError, match="weights"):
        load("encoder=x", "weights=imagenet")


def test_layer_decay_with_random_weights_is_logged(caplog):
    for overrides, warned in [
        (["weights=random", "optim.layer_decay=0.6"], True),
        (["weights=random"], False),
    ]:
        caplog.clear()
        log_initial_weights(resolve_layer_decay(load("encoder=x", *overrides)))
        assert ("expected null or 1 with random weights, got 0.6" in caplog.text) == warned
