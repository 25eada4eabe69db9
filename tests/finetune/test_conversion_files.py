"""Other systems' files come in whole or not at all, and go out again as the same bytes."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel

from kinemae.data_tools.command import CheckpointError
from kinemae.finetune.conversion.huggingface import huggingface_tensors, write_huggingface
from kinemae.finetune.conversion.model_bundle import load_kin, save_kin
from kinemae.finetune.conversion.options import FLAT_SINE, ImportOptions
from kinemae.finetune.conversion.videomae import finetuned_layout, pretrained_layout, write_official
from kinemae.pretrain.model.sizes import SIZES, EncoderShape
from tests.conversion import (
    TINY,
    huggingface_classification,
    huggingface_pretraining,
    imported,
    official_names,
)

CLASSES = 5


def pretrained() -> dict[str, Tensor]:
    return official_names(huggingface_pretraining("tiny"))


def finetuned() -> dict[str, Tensor]:
    return official_names(huggingface_classification("tiny", CLASSES))


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and torch.equal(value, other[name]), name


@pytest.mark.parametrize("tensors", [pretrained, finetuned])
def test_an_official_file_goes_through_our_folder_unchanged(tensors, tmp_path):
    theirs = tensors()
    save_kin(tmp_path / "ours", imported(saved(tmp_path, {"model": theirs}), TINY))

    assert_same(write_official(load_kin(tmp_path / "ours"), source="ours"), theirs)


@pytest.mark.parametrize("model", ["pretraining", "classification", "encoder", "mean-pooled encoder"])
def test_a_huggingface_folder_goes_through_our_folder_unchanged(model, tmp_path):
    theirs = {
        "pretraining": lambda: huggingface_pretraining("tiny"),
        "classification": lambda: huggingface_classification("tiny", CLASSES),
        "encoder": lambda: huggingface_pretraining("tiny").videomae,
        "mean-pooled encoder": lambda: huggingface_classification("tiny", CLASSES).videomae,
    }[model]()
    theirs.save_pretrained(tmp_path / "theirs")
    save_kin(tmp_path / "ours", imported(tmp_path / "theirs"))

    kin = load_kin(tmp_path / "ours")
    write_huggingface(tmp_path / "back", kin, huggingface_tensors(kin, source="ours"))

    written = load_file(tmp_path / "back" / "model.safetensors")
    prefix = "" if type(theirs) is not VideoMAEModel else "videomae."
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    assert_same(written, {f"{prefix}{name}": value for name, value in expected.items()})
    loaded, report = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.use_mean_pooling == theirs.config.use_mean_pooling


def test_both_names_of_the_biases_are_read_and_the_older_is_written(tmp_path):
    model = huggingface_classification("tiny", CLASSES)
    model.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    older = load_file(path)
    assert any(name.endswith("attention.attention.q_bias") for name in older)
    newer = {
        name.replace("attention.q_bias", "attention.query.bias").replace(
            "attention.v_bias", "attention.value.bias"
        ): value
        for name, value in older.items()
    }
    assert newer.keys() == model.state_dict().keys()
    save_file(newer, path)

    assert_same(huggingface_tensors(imported(tmp_path / "theirs"), source="test"), older)


@pytest.mark.slow
def test_the_official_layouts_have_as_many_tensors_as_the_published_files():
    base = SIZES["base"].encoder
    with torch.device("meta"):
        pretraining = official_names(VideoMAEForPreTraining(VideoMAEConfig(use_mean_pooling=False)))
        classification = official_names(VideoMAEForVideoClassification(VideoMAEConfig()))

    def names(layout) -> set[str]:
        rules = (*layout.encoder, *layout.decoder, *layout.head)
        return {name for rule in rules for name in rule.theirs}

    assert names(pretrained_layout(base, 4)) == pretraining.keys() and len(pretraining) == 218
    unnormed = EncoderShape(width=768, depth=12, heads=12, mlp_width=3072, final_norm=False)
    assert names(finetuned_layout(unnormed, has_head=True)) == classification.keys()
    assert len(classification) == 162


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"model": tensors, "epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {}},
        lambda tensors: {"module": tensors},
        lambda tensors: {"state_dict": tensors},
        lambda tensors: {"model_state": tensors},
        lambda tensors: {"model": {f"module._orig_mod.{name}": value for name, value in tensors.items()}},
        lambda tensors: {"module": {f"backbone.{name}": value for name, value in tensors.items()}},
        lambda tensors: {f"model.{name}": value for name, value in tensors.items()},
    ],
)
def test_every_wrapping_is_taken_off(wrap, tmp_path):
    theirs = finetuned()
    assert_same(write_official(imported(saved(tmp_path, wrap(theirs)), TINY), source="test"), theirs)


def test_a_safetensors_file_with_half_precision_is_read_as_float32(tmp_path):
    theirs = {name: value.half() for name, value in finetuned().items()}
    save_file(theirs, tmp_path / "file.safetensors")

    kin = imported(tmp_path / "file.safetensors", TINY)

    assert torch.equal(kin.head.linear.weight, theirs["head.weight"].float())


def test_a_hub_folder_of_v2_is_read_without_its_head(tmp_path, caplog):
    theirs = {f"model.{name}": v for name, v in finetuned().items() if not name.startswith("head.")}
    save_file(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "VideoMAEv2_Base"}))

    kin = imported(tmp_path, TINY)

    assert kin.head is None and not kin.description.shape.final_norm
    assert torch.equal(kin.encoder.blocks[2].mlp.fc1.bias, theirs["model.blocks.2.mlp.fc1.bias"])


def test_an_encoder_alone_is_read_and_written(tmp_path):
    theirs = {name: value for name, value in pretrained().items() if name.startswith("encoder.")}

    kin = imported(saved(tmp_path, theirs), TINY)

    assert kin.decoder is None and kin.kind == "an encoder"
    assert_same(write_official(kin, source="test"), theirs)


def test_the_weights_of_layer_scale_go_through(tmp_path):
    theirs = finetuned()
    for i in range(3):
        theirs |= {f"blocks.{i}.gamma_{j}": torch.rand(24) for j in (1, 2)}

    kin = imported(saved(tmp_path, theirs), TINY)

    assert torch.equal(kin.encoder.blocks[1].ls2.gamma, theirs["blocks.1.gamma_2"])
    assert_same(write_official(kin, source="test"), theirs)
    with pytest.raises(CheckpointError, match=r"model\.layer_scale=null"):
        huggingface_tensors(kin, source="test")


def without(name: str) -> dict[str, Tensor]:
    theirs = pretrained()
    del theirs[name]
    return theirs


@pytest.mark.parametrize(
    "tensors, message",
    [
        (without("encoder.blocks.1.attn.q_bias"), r"1 missing \(encoder.blocks.1.attn.q_bias\)"),
        (without("encoder.blocks.0.mlp.fc1.weight"), "lacks encoder.blocks.0.mlp.fc1.weight"),
        (without("decoder.norm.weight"), r"1 missing \(decoder.norm.weight\) tensors; --allow-partial"),
        (
            pretrained() | {"encoder.blocks.0.attn.scale": torch.ones(1)},
            r"1 unexpected \(encoder.blocks.0.attn.scale\)",
        ),
        (finetuned() | {"norm.weight": torch.ones(24)}, r"1 unexpected \(norm.weight\)"),
        (
            pretrained() | {"encoder.blocks.0.attn.q_bias": torch.ones(23)},
            "wrong shapes|does not fit together",
        ),
        (pretrained() | {"encoder.patch_embed.proj.weight": torch.ones(24, 384)}, "must be of shape"),
        ({"weight": torch.ones(2)}, "of no system that is known here .*: its 1 tensors are called weight"),
        ({"model": {"note": "no tensors"}}, "holds no tensors by name"),
        ({"a.x": torch.ones(1), "module.a.x": torch.ones(1)}, "some tensors twice"),
        ([1, 2], "holds no tensors by name"),
    ],
)
def test_what_is_not_whole_or_not_known_is_refused_by_name(tensors, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        imported(saved(tmp_path, tensors), TINY)


def test_with_allow_partial_a_broken_decoder_and_strangers_are_left_out(tmp_path, caplog):
    theirs = without("decoder.norm.weight") | {"text.weight": torch.ones(1)}

    kin = imported(saved(tmp_path, theirs), TINY, allow_partial=True)

    assert kin.decoder is None and torch.equal(kin.encoder.norm.bias, theirs["encoder.norm.bias"])
    with pytest.raises(CheckpointError, match="1 missing"):
        imported(saved(tmp_path, without("encoder.norm.bias")), TINY, allow_partial=True)


class Trap:
    """What a file must not make us build."""

    def __reduce__(self):
        return (print, ("run",))


def test_a_file_that_would_run_code_is_refused_unread(tmp_path, capsys):
    with pytest.raises(CheckpointError, match=r"besides tensors it holds .*print"):
        imported(saved(tmp_path, {"model": finetuned(), "more": Trap()}), TINY)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04\x95", "half"])
def test_a_damaged_file_is_refused(content, name, tmp_path):
    path = tmp_path / name
    whole = saved(tmp_path, finetuned()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(CheckpointError, match="cannot read"):
        imported(path if name.startswith("file") else tmp_path, TINY)


def test_a_folder_without_weights_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        imported(tmp_path)
    with pytest.raises(CheckpointError, match="no file at"):
        imported(tmp_path / "nothing.pth")


def test_a_config_that_ours_cannot_be_is_refused(tmp_path):
    huggingface_classification("tiny", CLASSES).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(CheckpointError, match="hidden_act='relu'"):
        imported(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold an object"):
        imported(tmp_path)


def test_heads_that_nobody_knows_must_be_given(tmp_path):
    path = saved(tmp_path, pretrained())
    with pytest.raises(ValueError, match="heads must be given for a width of 24"):
        imported(path, ImportOptions(frames=8, size=24))
    with pytest.raises(ValueError, match="decoder_heads must be given for a width of 16"):
        imported(path, ImportOptions(frames=8, size=24, heads=3))
    assert imported(path, TINY).description.shape.positions == FLAT_SINE
