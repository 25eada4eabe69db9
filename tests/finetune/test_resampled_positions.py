"""Fine-tuning on other clips than those of the pretraining resamples the positions."""

import logging

import pytest
import torch

from kinemae.data_tools.components import Component, component_names
from kinemae.finetune.adapt.layer_decay import layer_of
from kinemae.finetune.build import build_model, clip_config, describe_encoder
from kinemae.finetune.model_file import FinetunedModel, load_model, save_model
from kinemae.pretrain.exported_model import (
    EncoderDescription,
    load_description,
    log_resampling,
    save_encoder,
)
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from tests.finetune.test_build import load
from tests.task_models import classification

GRID, OTHER = TokenGrid(2, 2, 2), TokenGrid(4, 3, 3)
LONGER = ["clip.frames=8", "clip.size=24"]


@pytest.fixture(params=component_names("kinemae.pretrain.model.positions"))
def folder(request, tmp_path):
    shape = EncoderShape(
        width=32, depth=2, heads=2, mlp_width=48, patch=(2, 8, 8), positions=Component(name=request.param)
    )
    description = EncoderDescription(shape=shape, grid=GRID, reference=GRID, frames=4, stride=2, size=16)
    torch.manual_seed(5)
    save_encoder(tmp_path / "encoder", Encoder(shape, GRID), description)
    return tmp_path / "encoder"


def saved(config, folder):
    description = describe_encoder(config)
    classifier = build_model(config, description, classification(3)).eval()
    save_model(folder, FinetunedModel(model=classifier, description=description), head=config.head)
    return classifier, description


def test_the_model_has_the_configs_clip_and_the_encoders_weights(folder):
    config = load(f"encoder={folder}", *LONGER)

    description = describe_encoder(config)

    assert (description.grid, description.reference) == (OTHER, GRID)
    assert (clip_config(config, description).frames, clip_config(config, description).size) == (8, 24)
    encoder = build_model(config, description, classification(3)).encoder
    assert (encoder.grid, encoder.reference) == (OTHER, GRID)
    torch.manual_seed(5)
    exported = Encoder(encoder.shape, GRID).state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("clip", [["clip.frames=8"], ["clip.size=24"], ["clip.frames=2", "clip.size=8"]])
def test_frames_or_size_can_differ_alone(folder, clip):
    config = load(f"encoder={folder}", *clip)
    description = describe_encoder(config)
    clip_BCTHW = torch.zeros(1, 3, description.frames, description.size, description.size, dtype=torch.uint8)
    assert build_model(config, description, classification(3)).output(clip_BCTHW)[0].isfinite().all()


def test_a_model_with_other_clips_round_trips(folder, tmp_path):
    classifier, description = saved(load(f"encoder={folder}", *LONGER), tmp_path / "model")
    clip_BCTHW = torch.randint(256, (2, 3, 8, 24, 24), dtype=torch.uint8)

    model = load_model(tmp_path / "model")

    assert torch.equal(model.model.output(clip_BCTHW)[0], classifier.output(clip_BCTHW)[0])
    assert model.description == description


def test_a_further_fine_tuning_resamples_from_the_first_grid(folder, tmp_path):
    saved(load(f"encoder={folder}", *LONGER), tmp_path / "model")
    assert load_description(tmp_path / "model").reference == GRID

    kept = describe_encoder(load(f"encoder={tmp_path / 'model'}"))
    assert (kept.grid, kept.reference) == (OTHER, GRID)

    config = load(f"encoder={tmp_path / 'model'}", "clip.frames=4", "clip.size=16")
    back = describe_encoder(config)
    assert (back.grid, back.reference) == (GRID, GRID)
    torch.manual_seed(5)
    clip_BNP = torch.randn(1, GRID.tokens, back.shape.patch_values)
    encoder = build_model(config, back, classification(3)).encoder.eval()
    torch.manual_seed(5)
    assert torch.equal(encoder(clip_BNP, None), Encoder(back.shape, GRID)(clip_BNP, None))


def test_only_resampling_is_logged_with_both_grids(folder, caplog):
    caplog.set_level(logging.INFO, logger="kinemae")
    for overrides in ([], LONGER):
        description = describe_encoder(load(f"encoder={folder}", *overrides))
        log_resampling(description.reference, description.grid)

    (message,) = caplog.messages
    assert "from 2x2x2 tokens (slices x rows x columns) in pretraining to 4x3x3" in message


def test_learned_positions_have_the_layer_decay_of_the_embedding(folder):
    config = load(f"encoder={folder}")
    classifier = build_model(config, describe_encoder(config), classification(3))
    names = [name for name, _ in classifier.named_parameters() if ".pos_embed." in name]
    assert all(layer_of(name, depth=2) == 0 for name in names)
