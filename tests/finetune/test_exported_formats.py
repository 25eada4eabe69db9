"""Exported models of released versions are read and have the same outputs.

`tests/data/exported` contains a tiny model of version 0.1.0 (encoder format 3, decoder format 1, head format
2) and its outputs. A new format adds a folder and keeps this one.
"""

import json
import shutil
from dataclasses import dataclass, make_dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinemae.data_tools.command import CheckpointError
from kinemae.finetune.model_file import load_model
from kinemae.pretrain.exported_model import load_decoder, load_description, load_encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import normalize, patchify
from kinemae.pretrain.serialization import read_description, read_record

STORED = Path(__file__).resolve().parents[1] / "data" / "exported"


@pytest.fixture
def folder(tmp_path):
    """A copy of the stored model."""
    return Path(shutil.copytree(STORED, tmp_path / "exported"))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@torch.no_grad()
def test_a_stored_encoder_and_head_repeat_their_outputs():
    expected = load_file(STORED / "expected.safetensors")
    encoder, description = load_encoder(STORED)
    patches_BNP = patchify(expected["clip_BCTHW"], encoder.shape.patch)
    tokens_BND = encoder.eval()(normalize(patches_BNP, description.mean, description.std), None)
    assert torch.allclose(tokens_BND, expected["tokens_BND"], atol=1e-5)
    model = load_model(STORED)
    logits_BY = model.model.output(expected["clip_BCTHW"])[0]
    assert torch.allclose(logits_BY, expected["logits_BY"], atol=1e-5)
    assert model.classes == ("open", "close", "wave") and model.model.pruning.keep == 0.5


def test_a_stored_decoder_is_read():
    decoder, description = load_decoder(STORED)
    assert description.kind == "cross" and decoder.shape.width == 8


@pytest.mark.parametrize("key", ["scorer", "final_norm", "run_lengths"])
def test_a_missing_key_takes_its_default(folder, key):
    edit(folder / "encoder.json", lambda content: content["shape"].pop(key))
    assert load_description(folder) == load_description(STORED)
    load_encoder(folder)


def test_stored_files_stay_readable_after_a_field_is_added():
    later = make_dataclass("LaterShape", [("gate", bool, False)], bases=(EncoderShape,), frozen=True)
    stored = json.loads((STORED / "encoder.json").read_text())["shape"]
    assert read_record(later, stored).gate is False


def test_a_description_of_an_older_format_is_read(tmp_path):
    @dataclass(frozen=True)
    class Described:
        width: int
        gate: bool = False
        format: int = 4

    (tmp_path / "x.json").write_text('{"format": 3, "width": 8}')
    assert read_description(tmp_path / "x.json", Described, formats=range(3, 5)) == Described(8)


@pytest.mark.parametrize(
    ("name", "load"),
    [("encoder.json", load_encoder), ("decoder.json", load_decoder), ("head.json", load_model)],
)
def test_the_error_for_a_newer_format_states_the_fix(folder, name, load):
    edit(folder / name, lambda content: content.update(format=9))
    with pytest.raises(
        CheckpointError, match=rf"{name}: expected format .*, got 9; fix: install a newer version"
    ):
        load(folder)


@pytest.mark.parametrize("number", [0, None, "3", True])
def test_the_error_for_an_unknown_format_states_the_fix(folder, number):
    edit(folder / "encoder.json", lambda content: content.update(format=number))
    with pytest.raises(CheckpointError, match=r"expected format 3, got .*; fix: export it again"):
        load_encoder(folder)


def test_an_unknown_key_is_rejected_by_name(folder):
    edit(folder / "encoder.json", lambda content: content["shape"].update(gate=True))
    with pytest.raises(CheckpointError, match=r"wrong keys in shape: unknown gate"):
        load_encoder(folder)
