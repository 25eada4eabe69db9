"""Layer-wise learning rate decay."""

import pytest

from kinemae.finetune.adapt.layer_decay import layer_of, layer_scale


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.patch_embed.weight", 0),
        ("encoder.reg_token", 0),
        ("encoder.run_length_embed", 0),
        ("encoder.pos_embed.temporal", 0),
        ("encoder.blocks.0.extra_attns.0.qkv.weight", 1),
        ("encoder.blocks.1.ls2.gamma", 2),
        ("encoder.blocks.11.mlp.fc1.bias", 12),
        ("encoder.norm.weight", 13),
        ("encoder.scorer.fc2.weight", 13),
        ("head.linear.weight", 13),
        ("head.norm.bias", 13),
    ],
)
def test_a_parameter_belongs_to_its_layer(name, layer):
    assert layer_of(name, depth=12) == layer


def test_the_rate_decreases_by_the_same_factor_per_layer():
    scale = layer_scale(0.5, depth=2)

    names = ["head.norm", "encoder.blocks.1.norm1", "encoder.blocks.0.norm1", "encoder.embed"]
    assert [scale(f"{name}.bias") for name in names] == [1.0, 0.5, 0.25, 0.125]


def test_a_decay_of_one_changes_nothing():
    assert layer_scale(1.0, depth=4)("encoder.embed.weight") == 1.0
