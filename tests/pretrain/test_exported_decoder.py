"""Exported decoders: loading and errors."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component, component_names
from kinemae.pretrain.exported_model import describe_decoder, has_decoder, load_decoder, save_decoder
from kinemae.pretrain.model.decoder import DECODERS
from kinemae.pretrain.model.sizes import DecoderShape
from kinemae.pretrain.model.tokens import TokenGrid

GRID = TokenGrid(2, 3, 3)
TARGET = Component(name="pixels", args={"normalize": "patch"})


def decoder(kind="cross", *, positions="sine", grid=GRID, noise_conditioned=False):
    torch.manual_seed(0)
    shape = DecoderShape(width=24, depth=1, heads=2, positions=Component(name=positions))
    return DECODERS[kind](
        shape, grid, memory_width=16, values=6, noise_conditioned=noise_conditioned, reference=GRID
    ).eval()


def saved(folder, **kind):
    own = decoder(**kind)
    save_decoder(folder, own, describe_decoder(own, target=TARGET))
    return own


def edit(folder, **changes):
    path = folder / "decoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("positions", component_names("kinemae.pretrain.model.positions"))
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_is_restored_from_its_folder(tmp_path, kind, positions):
    own = saved(tmp_path / "encoder", kind=kind, positions=positions, noise_conditioned=True)

    loaded, description = load_decoder(tmp_path / "encoder")

    memory, visible, wanted = torch.randn(1, 2, 16), torch.tensor([[0, 9]]), torch.tensor([[3, 17, 1]])
    level = torch.tensor([0.5])
    assert torch.equal(loaded(memory, visible, wanted, level), own(memory, visible, wanted, level))
    assert (description.kind, description.values, description.memory_width) == (kind, 6, 16)
    assert description.target == TARGET and description.noise_conditioned


@pytest.mark.parametrize("positions", component_names("kinemae.pretrain.model.positions"))
def test_it_may_be_loaded_for_another_grid(tmp_path, positions):
    saved(tmp_path, positions=positions)
    other = TokenGrid(4, 5, 5)

    loaded, _ = load_decoder(tmp_path, grid=other)

    direct = decoder(positions=positions, grid=other)
    memory, visible, wanted = torch.randn(1, 2, 16), torch.tensor([[0, 99]]), torch.tensor([[3, 55]])
    assert torch.equal(loaded(memory, visible, wanted), direct(memory, visible, wanted))


def test_has_decoder_checks_the_folder(tmp_path):
    assert not has_decoder(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected decoder.json and .*got no exported decoder; fix"):
        load_decoder(tmp_path)
    saved(tmp_path)
    assert has_decoder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.json", "decoder.safetensors"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": 9}, "expected format 1, got 9"),
        ({"kind": "flat"}, "kind must be one of self, cross, got 'flat'"),
        ({"kind": ["self"]}, "kind must be a text"),
        ({"values": 0}, "values must be at least 1"),
        ({"memory_width": "16"}, "memory_width must be a whole number, got '16'"),
        ({"noise_conditioned": 0}, "noise_conditioned must be true or false, got 0"),
        ({"reference": {"t": 0, "h": 1, "w": 1}}, "reference must be at least 1 along every axis"),
        ({"target": None}, "wrong keys in target: missing name"),
        ({"shape": {}}, "wrong keys in shape: missing depth, missing heads, missing width"),
        ({"values": 7}, r"2 of another shape \(head.weight \(6, 24\) instead of \(7, 24\), head.bias"),
        ({"noise_conditioned": True}, r"1 missing \(noise_embed\)"),
    ],
)
def test_an_invalid_description_is_refused(tmp_path, changes, message):
    saved(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_decoder(tmp_path)


def test_unknown_components_are_refused(tmp_path):
    saved(tmp_path)
    shape = json.loads((tmp_path / "decoder.json").read_text())["shape"]
    edit(tmp_path, shape=shape | {"positions": {"name": "builtins.eval", "args": {}}})
    with pytest.raises(CheckpointError, match=r"no position named 'builtins.eval'"):
        load_decoder(tmp_path)


def test_weights_of_another_decoder_are_refused_tensor_by_tensor(tmp_path):
    saved(tmp_path)
    weights = load_file(tmp_path / "decoder.safetensors")
    weights["extra"] = weights.pop("mask_token")
    save_file(weights, tmp_path / "decoder.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(mask_token\), 1 unexpected \(extra\)"):
        load_decoder(tmp_path)
