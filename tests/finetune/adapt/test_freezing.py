"""Freezing of lower blocks, for the whole run or up to a fraction of it."""

import pytest
import torch
from safetensors.torch import load_file

from kinemae.data_tools.command import run_program
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.adapt.config import AdaptConfig
from kinemae.finetune.adapt.freezing import freeze_first_blocks, starts_at
from kinemae.finetune.adapt.layer_decay import layer_of, layer_scale
from kinemae.pretrain.exported_model import EncoderDescription, save_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid

SHAPE = EncoderShape(width=32, depth=4, heads=2, mlp_width=64, patch=(2, 8, 8))
GRID = TokenGrid.of(4, 16, SHAPE.patch)


def encoder():
    return Encoder(SHAPE, GRID, drop_path=0.3)


def layers(encoder, *, trained):
    """Layers of the encoder's trained or frozen parameters: 0 is the embedding, 5 the final norm."""
    named = encoder.named_parameters()
    return {layer_of(f"encoder.{name}", 4) for name, weight in named if weight.requires_grad == trained}


def test_the_embedding_and_the_first_blocks_are_frozen_without_drop_path():
    model = encoder()

    freeze_first_blocks(model, 2)

    assert layers(model, trained=False) == {0, 1, 2}
    assert layers(model, trained=True) == {3, 4, 5}
    assert model.drop_path_rates[:2] == [0, 0] and model.drop_path_rates[2] > 0


@pytest.mark.parametrize(
    ("frozen", "fractions", "expected"),
    [
        (0, [], [0, 0, 0, 0, 0, 0]),
        (0, [0.1, 0.2, 0.3, 0.4], [0.4, 0.4, 0.3, 0.2, 0.1, 0]),
        (0, [0.1, 0.5], [0.5, 0.5, 0.5, 0.1, 0.1, 0]),
        (2, [0.1, 0.5], [0.5, 0.5, 0.5, 0.5, 0.1, 0]),
        (3, [0.2], [0.2, 0.2, 0.2, 0.2, 0.2, 0]),
    ],
)
def test_groups_of_blocks_start_from_the_top(frozen, fractions, expected):
    model = encoder()
    if frozen:
        freeze_first_blocks(model, frozen)
    start = starts_at(model, fractions)

    names = ["patch_embed.weight", *(f"blocks.{i}.mlp.fc1.weight" for i in range(4)), "norm.weight"]

    assert [start(f"encoder.{name}") for name in names] == expected
    assert start("head.linear.weight") == 0


def test_the_head_has_a_rate_of_its_own():
    scale = layer_scale(0.5, 4, head=10.0)

    assert scale("head.linear.weight") == 10
    assert scale("encoder.norm.weight") == 1
    assert scale("encoder.blocks.3.mlp.fc1.weight") == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze_blocks": -1}, "adapt.freeze_blocks must be 0 or more"),
        (
            {"freeze_blocks": 1, "method": "lora"},
            "adapt.freeze_blocks must stay unset with adapt.method=lora",
        ),
        ({"unfreeze_at": [0.1], "method": "frozen"}, "adapt.unfreeze_at must stay unset with"),
        ({"unfreeze_at": [0.5, 0.1]}, r"adapt.unfreeze_at must be ascending numbers in \[0, 1\)"),
        ({"unfreeze_at": [1.0]}, r"adapt.unfreeze_at must be ascending numbers in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_refused_by_key(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptConfig(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=pytest.mark.nightly), 3])
def test_waiting_blocks_are_bitwise_unchanged_at_every_zero_stage(common, tmp_path, stage):
    torch.manual_seed(1)
    given = Encoder(SHAPE, GRID)
    described = EncoderDescription(shape=SHAPE, grid=GRID, reference=GRID, frames=4, stride=2, size=16)
    save_encoder(tmp_path / "encoder", given, described)
    settings = [
        f"encoder={tmp_path / 'encoder'}",
        f"run_dir={tmp_path / 'run'}",
        f"engine.zero_stage={stage}",
    ]
    # Of 4 steps the last one begins at 0.75: the group of 0.8 never starts. Block 0 is frozen anyway.
    settings += ["epochs=1", "adapt.freeze_blocks=1", "adapt.unfreeze_at=[0.2, 0.5, 0.8]", "ema.decay=0.5"]

    assert run_program(PROGRAM, ["train", *map(str, common), *settings, "validate.every_epochs=0"]) == 0

    before = load_file(tmp_path / "encoder" / "encoder.safetensors")
    after = load_file(tmp_path / "run" / "model_raw" / "encoder.safetensors")
    changed = {
        layer_of(f"encoder.{name}", 4) for name in before if not torch.equal(before[name], after[name])
    }
    assert changed == {3, 4, 5}
