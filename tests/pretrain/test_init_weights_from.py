"""Initialization from exported weights: all weights are loaded, or the error states the reason."""

import re

import pytest
import torch

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component, build_component, component_names
from kinemae.pretrain.exported_model import EncoderDescription, describe_decoder, save_decoder, save_encoder
from kinemae.pretrain.init_weights_from import open_pretrained
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.targets.base import Target

PIXELS = Component(name="pixels")
FRAMES, SIZE = 4, 16


def model_of(*, seed, grid=None, reference=None, target=PIXELS, **changes):
    keys = {"size": "tiny", "patch_size": 8, "width": 24, "depth": 2, "decoder_width": 24, "decoder_depth": 1}
    config = ModelConfig(**keys | changes)
    grid = grid or TokenGrid.of(FRAMES, SIZE, config.shape().encoder.patch)
    torch.manual_seed(seed)
    built = build_component("kinemae.pretrain.targets", target, Target, key="target")
    return build_autoencoder(config, grid, target=built, noise=NoNoise(), reference=reference)


def exported(model, folder, *, with_decoder=True):
    description = EncoderDescription(
        shape=model.encoder.shape,
        grid=model.encoder.grid,
        reference=model.encoder.reference,
        frames=FRAMES,
        size=SIZE,
        stride=2,
    )
    save_encoder(folder, model.encoder, description)
    if with_decoder:
        save_decoder(folder, model.decoder, describe_decoder(model.decoder, target=PIXELS))
    return open_pretrained(str(folder))


def is_equal(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("positions", component_names("kinemae.pretrain.model.positions"))
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_encoder_and_decoder_are_those_of_the_folder(tmp_path, kind, positions):
    parts = {"decoder": kind, "positions": Component(name=positions), "registers": 1, "qk_norm": True}
    first = model_of(seed=1, **parts)
    start = exported(first, tmp_path)
    second = model_of(seed=2, **parts)
    assert not is_equal(second.encoder, first.encoder)

    summary = start.load_pretrained(second, PIXELS)

    assert is_equal(second.encoder, first.encoder) and is_equal(second.decoder, first.decoder)
    assert f"initial weights: the encoder in {tmp_path}; the decoder is the exported one" in summary


@pytest.mark.parametrize("positions", component_names("kinemae.pretrain.model.positions"))
def test_on_another_grid_the_reference_stays(tmp_path, positions):
    part = Component(name=positions)
    first = model_of(seed=1, positions=part)
    start = exported(first, tmp_path)
    second = model_of(seed=2, positions=part, grid=TokenGrid(3, 3, 4), reference=start.description.reference)

    start.load_pretrained(second, PIXELS)

    assert second.encoder.reference == second.decoder.reference == TokenGrid(2, 2, 2)
    assert is_equal(second.encoder, first.encoder) and is_equal(second.decoder, first.decoder)


@pytest.mark.parametrize(
    "changes, target, message",
    [
        (
            {"decoder_width": 36},
            PIXELS,
            "random weights: the exported one differs: shape: config DecoderShape",
        ),
        ({"decoder": "self"}, PIXELS, "differs: kind: config self, exported cross"),
        ({"noise_conditioning": True}, PIXELS, "differs: noise_conditioned: config True, exported False"),
        ({}, Component(name="features"), "differs: values: config 24, exported 384"),
        ({}, Component(name="motion"), r"is the exported one, trained on the target pixels \{\}"),
    ],
)
def test_a_decoder_that_does_not_fit_has_random_weights_and_is_named(tmp_path, changes, target, message):
    start = exported(model_of(seed=1), tmp_path)
    second, untouched = (model_of(seed=2, target=target, **changes) for _ in range(2))

    summary = start.load_pretrained(second, target)

    assert re.search(message, summary)
    assert is_equal(second.decoder, untouched.decoder) == ("random weights" in summary)


def test_without_an_exported_decoder_it_has_random_weights(tmp_path):
    start = exported(model_of(seed=1), tmp_path, with_decoder=False)
    second = model_of(seed=2)
    assert "the decoder has random weights: the folder has no decoder" in start.load_pretrained(
        second, PIXELS
    )
    assert is_equal(second.decoder, model_of(seed=2).decoder)


def test_a_moving_average_begins_with_the_given_weights_too(tmp_path):
    first = model_of(seed=1)
    start = exported(first, tmp_path)
    second = model_of(seed=2, target=Component(name="features"))

    start.load_pretrained(second, Component(name="features"))

    assert is_equal(second.target.teacher, first.encoder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 36}, "model.width: config 36, encoder 24"),
        ({"depth": 3}, "model.depth: config 3, encoder 2"),
        ({"heads": 2}, "model.heads: config 2, encoder 1"),
        (
            {"patch_frames": 1},
            r"model.patch_frames and model.patch_size: config \(1, 8, 8\), encoder \(2, 8, 8\)",
        ),
        (
            {"positions": Component(name="learned")},
            "model.positions: config Component.*learned.*, encoder Component.*sine",
        ),
        ({"qk_norm": True, "registers": 2}, "qk_norm: config True, encoder False; model.registers: config 2"),
        ({"layer_scale": 0.1}, "model.layer_scale: config 0.1, encoder None"),
        ({"mean": [0.5, 0.5, 0.5]}, r"model.mean: config \(0.5, 0.5, 0.5\), encoder \(0.485"),
    ],
)
def test_another_encoder_is_refused_by_its_keys(tmp_path, changes, message):
    start = exported(model_of(seed=1), tmp_path)
    with pytest.raises(CheckpointError, match=f"init_from={tmp_path}: expected the encoder of.*{message}"):
        start.load_pretrained(model_of(seed=2, **changes), PIXELS)


def test_init_from_null_and_a_folder_without_an_encoder(tmp_path):
    assert open_pretrained(None) is None
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*: expected encoder.json"):
        open_pretrained(str(tmp_path))


def test_damaged_weights_of_a_decoder_are_refused(tmp_path):
    start = exported(model_of(seed=1), tmp_path)
    path = tmp_path / "decoder.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        CheckpointError, match=r"decoder.safetensors: expected safetensors, got a damaged file"
    ):
        start.load_pretrained(model_of(seed=2), PIXELS)
