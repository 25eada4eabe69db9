import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_tools.command import CheckpointError
from pretrain.encoder_file import EncoderDescription, load_description, load_encoder, save_encoder
from pretrain.model.encoder import Encoder
from pretrain.model.sizes import EncoderShape
from pretrain.model.tokens import TokenGrid

SHAPE = EncoderShape(width=16, depth=2, heads=2, mlp_width=32, patch=(2, 4, 4))
GRID = TokenGrid.of(4, 8, SHAPE.patch)
DESCRIPTION = EncoderDescription(
    shape=SHAPE, grid=GRID, frames=4, stride=2, size=8, trained_by={"step": 7, "config": {"seed": 1}}
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_encoder(tmp_path / "encoder", Encoder(SHAPE, GRID), DESCRIPTION)
    return tmp_path / "encoder"


def edit_json(folder, **changes):
    path = folder / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    weights = load_file(folder / "encoder.safetensors")
    change(weights)
    save_file(weights, folder / "encoder.safetensors")


def test_an_encoder_comes_back_from_its_folder_alone(folder):
    torch.manual_seed(0)
    original = Encoder(SHAPE, GRID)
    loaded, description = load_encoder(folder)
    patches_BNP = torch.randn(2, GRID.tokens, SHAPE.patch_values)
    assert torch.equal(loaded(patches_BNP, None), original(patches_BNP, None))
    assert description == DESCRIPTION


def test_the_folder_holds_the_two_files_and_nothing_half_written(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "encoder.safetensors"]


def test_a_bfloat16_encoder_is_written_in_float32(tmp_path):
    save_encoder(tmp_path, Encoder(SHAPE, GRID).bfloat16(), DESCRIPTION)
    assert all(value.dtype == torch.float32 for value in load_file(tmp_path / "encoder.safetensors").values())


def test_saving_again_replaces_the_encoder(folder):
    torch.manual_seed(1)
    newer = Encoder(SHAPE, GRID)
    save_encoder(folder, newer, DESCRIPTION)
    assert torch.equal(load_encoder(folder)[0].embed.weight, newer.embed.weight)


def test_drop_path_for_further_training_is_the_callers_choice(folder):
    assert load_encoder(folder, drop_path=0.2)[0].drop_path_rates == [0.0, 0.2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": 1}, "is of format 1, this version reads format 2"),
        ({"extra": 1}, "wrong keys in the file: unknown extra"),
        ({"shape": {"width": 16}}, "wrong keys in shape: missing depth, missing heads"),
        ({"grid": [2, 2, 2]}, "wrong keys in grid: missing h, missing t, missing w"),
        ({"grid": {"t": 2, "h": 2, "w": "2"}}, "grid.w must be a whole number or a list of such, got '2'"),
        ({"grid": {"t": 2, "h": 2, "w": 3}}, "grid must be TokenGrid.*for such clips and patches"),
        ({"frames": 5}, "a clip of 5 frames at 8x8 cannot be cut"),
        ({"frames": "four"}, "does not describe an encoder"),
        ({"mean": 3}, "does not describe an encoder"),
    ],
)
def test_a_description_of_something_else_is_refused(folder, changes, message):
    edit_json(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_description(folder)


def test_a_description_that_is_no_json_object_is_refused(folder):
    (folder / "encoder.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="is of format 'list'"):
        load_description(folder)
    (folder / "encoder.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*encoder.json.*export the encoder again"):
        load_description(folder)


def test_a_missing_folder_or_file_is_named(folder, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no exported encoder in .*elsewhere.*give the folder encoder/"
    ):
        load_encoder(tmp_path / "elsewhere")
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights at .*encoder.safetensors"):
        load_encoder(folder)


def test_damaged_weights_are_refused(folder):
    whole = (folder / "encoder.safetensors").read_bytes()
    for damaged in (whole[:-100], b"\x80\x04pickle", b""):
        (folder / "encoder.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged, export the encoder again"):
            load_encoder(folder)


def test_weights_of_another_encoder_are_refused_tensor_by_tensor(folder):
    def change(weights):
        del weights["norm.bias"]
        weights["head.weight"] = torch.zeros(1)
        weights["embed.bias"] = torch.zeros(3)

    edit_weights(folder, change)
    message = (
        r"1 missing \(norm.bias\), 1 unexpected \(head.weight\), "
        r"1 mis-shaped \(embed.bias \(3,\) instead of \(16,\)\) tensors"
    )
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)


def test_a_long_list_of_wrong_tensors_is_cut_short(folder):
    edit_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if "blocks" in name])
    with pytest.raises(CheckpointError, match=r"24 missing \(.*, \.\.\.\) tensors"):
        load_encoder(folder)
