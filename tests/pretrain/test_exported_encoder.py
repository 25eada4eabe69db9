import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinemae.data_tools.command import CheckpointError
from kinemae.pretrain.exported_model import EncoderDescription, load_description, load_encoder, save_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from tests.full_disk import small_disk

SHAPE = EncoderShape(width=16, depth=2, heads=2, mlp_width=32, patch=(2, 4, 4))
GRID = TokenGrid.of(4, 8, SHAPE.patch)
DESCRIPTION = EncoderDescription(
    shape=SHAPE,
    grid=GRID,
    reference=GRID,
    frames=4,
    stride=2,
    size=8,
    trained_by={"step": 7, "config": {"seed": 1}},
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


def test_an_encoder_is_restored_from_its_folder(folder):
    torch.manual_seed(0)
    original = Encoder(SHAPE, GRID)
    loaded, description = load_encoder(folder)
    patches_BNP = torch.randn(2, GRID.tokens, SHAPE.patch_values)
    assert torch.equal(loaded(patches_BNP, None), original(patches_BNP, None))
    assert description == DESCRIPTION


def test_the_folder_has_the_two_files_and_no_partial_ones(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "encoder.safetensors"]


def test_a_full_disk_is_an_error_of_the_file_system(tmp_path):
    with small_disk(tmp_path / "full", 16) as is_mounted:
        if not is_mounted:
            pytest.skip("this machine does not let us mount a small disk")
        with pytest.raises(OSError, match=r"No space left on device: .*encoder\.safetensors"):
            save_encoder(tmp_path / "full", Encoder(SHAPE, GRID), DESCRIPTION)


def test_a_bfloat16_encoder_is_written_in_float32(tmp_path):
    save_encoder(tmp_path, Encoder(SHAPE, GRID).bfloat16(), DESCRIPTION)
    assert all(value.dtype == torch.float32 for value in load_file(tmp_path / "encoder.safetensors").values())


def test_saving_again_replaces_the_encoder(folder):
    torch.manual_seed(1)
    newer = Encoder(SHAPE, GRID)
    save_encoder(folder, newer, DESCRIPTION)
    assert torch.equal(load_encoder(folder)[0].patch_embed.weight, newer.patch_embed.weight)


def test_drop_path_is_an_argument_of_loading(folder):
    assert load_encoder(folder, drop_path=0.2)[0].drop_path_rates == [0.0, 0.2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": 1}, "expected format 3, got 1"),
        ({"extra": 1}, "wrong keys in the file: unknown extra"),
        ({"shape": {"width": 16}}, "wrong keys in shape: missing depth, missing heads, missing mlp_width"),
        ({"grid": [2, 2, 2]}, "wrong keys in grid: missing h, missing t, missing w"),
        ({"grid": {"t": 2, "h": 2, "w": "2"}}, "grid.w must be a whole number, got '2'"),
        ({"grid": {"t": 2, "h": 2, "w": 3}}, "grid must be TokenGrid.*for such clips and patches"),
        ({"reference": {"t": 2, "h": 0, "w": 3}}, "reference must be at least 1 along every axis"),
        ({"reference": {"t": 2, "h": 2.0, "w": 3}}, "reference.h must be a whole number, got 2.0"),
        ({"frames": 5}, "a clip of 5 frames at 8x8 cannot be cut"),
        ({"frames": "four"}, "frames must be a whole number, got 'four'"),
        ({"frames": True}, "frames must be a whole number, got True"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"size": None}, "size must be a whole number, got None"),
        ({"fps": "25"}, "fps must be a number, got '25'"),
        ({"fps": -1.0}, "fps must be null or above 0"),
        ({"sampling": "tsn"}, "sampling must be one of dense, uniform, got 'tsn'"),
        ({"sampling": ["dense"]}, "sampling must be one of dense, uniform"),
        ({"mean": 3}, "mean must be a list, got 3"),
        ({"mean": [0.5, 0.5]}, "mean must hold a number for each colour"),
        ({"std": [0.5, "0.5", 0.5]}, r"std\[1\] must be a number, got '0.5'"),
        ({"std": [0.5, 0.5, 0]}, "std must hold a number above 0 for each colour"),
        ({"std": [0.5, 0.5, float("inf")]}, r"std\[2\] must be finite"),
        ({"trained_by": "me"}, "trained_by must be an object, got 'me'"),
    ],
)
def test_an_invalid_description_is_refused(folder, changes, message):
    edit_json(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_description(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": "16"}, "shape.width must be a whole number, got '16'"),
        ({"width": 15}, "model.width must be an even number"),
        ({"depth": True}, "shape.depth must be a whole number, got True"),
        ({"depth": 0}, "model.depth, the MLP's width and every side of a patch must be at least 1"),
        ({"heads": None}, "shape.heads must be a whole number"),
        ({"mlp_width": 32.0}, "shape.mlp_width must be a whole number"),
        ({"patch": 2}, "shape.patch must be a list, got 2"),
        ({"patch": [2, 4]}, "shape.patch must hold 3 values"),
        ({"patch": [2, 4, "4"]}, r"shape.patch\[2\] must be a whole number"),
        ({"attention": "joint"}, "wrong keys in shape.attention"),
        ({"attention": {"name": 1, "args": {}}}, "shape.attention.name must be a text, got 1"),
        ({"attention": {"name": "os.system", "args": {}}}, "no attention named 'os.system'"),
        ({"positions": {"name": "sines", "args": {}}}, "no position named 'sines'; did you mean 'sine'"),
        ({"positions": {"name": "sine", "args": []}}, r"shape.positions.args must be an object, got \[\]"),
        ({"positions": {"name": "sine", "args": {"theta": 1.0}}}, "sine has no argument 'theta'"),
        ({"positions": {"name": "sine", "args": {"grid": 1}}}, "model.positions.args.grid comes from"),
        ({"qk_norm": 1}, "shape.qk_norm must be true or false, got 1"),
        ({"layer_scale": "small"}, "shape.layer_scale must be a number, got 'small'"),
        ({"layer_scale": 0}, "model.layer_scale must be null or above 0"),
        ({"registers": -1}, "model.registers must be 0 or more"),
        ({"run_lengths": 0.5}, "shape.run_lengths must be a whole number"),
        ({"scorer": None}, "shape.scorer must be true or false"),
        ({"final_norm": "yes"}, "shape.final_norm must be true or false"),
    ],
)
def test_an_invalid_shape_is_refused_by_key(folder, changes, message):
    shape = json.loads((folder / "encoder.json").read_text())["shape"]
    edit_json(folder, shape=shape | changes)
    with pytest.raises(CheckpointError, match=message):
        load_description(folder)


def test_a_description_that_is_no_json_object_is_refused(folder):
    (folder / "encoder.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected an object, got list"):
        load_description(folder)
    for text in ("{", "[" * 100_000):
        (folder / "encoder.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"encoder.json: expected JSON, got .*fix: export it again"):
            load_description(folder)


def test_a_missing_folder_or_file_is_named(folder, tmp_path):
    with pytest.raises(
        CheckpointError,
        match=r"elsewhere: expected encoder.json .*got no such folder; fix: give the folder",
    ):
        load_encoder(tmp_path / "elsewhere")
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"encoder.safetensors: expected weights, got no file"):
        load_encoder(folder)


def test_damaged_weights_are_refused(folder):
    whole = (folder / "encoder.safetensors").read_bytes()
    for damaged in (whole[:-100], b"\x80\x04pickle", b""):
        (folder / "encoder.safetensors").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"got a damaged file .*fix: export it again"):
            load_encoder(folder)


def test_weights_of_another_encoder_are_refused_tensor_by_tensor(folder):
    def change(weights):
        del weights["norm.bias"]
        weights["head.weight"] = torch.zeros(1)
        weights["patch_embed.bias"] = torch.zeros(3)

    edit_weights(folder, change)
    message = (
        r"1 missing \(norm.bias\), 1 unexpected \(head.weight\), "
        r"1 of another shape \(patch_embed.bias \(3,\) instead of \(16,\)\)"
    )
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)


def test_a_long_list_of_wrong_tensors_is_cut_short(folder):
    edit_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if "blocks" in name])
    with pytest.raises(CheckpointError, match=r"24 missing \(.*, \.\.\.\)"):
        load_encoder(folder)
