"""Import and export of checkpoints: round trips are exact, and incomplete files are rejected."""

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
from kinemae.finetune.conversion.model_bundle import load_bundle, save_bundle
from kinemae.finetune.conversion.options import FLAT_SINE, ImportOptions
from kinemae.finetune.conversion.videomae import finetuning_format, pretraining_format, videomae_tensors
from kinemae.pretrain.model.sizes import SIZES, EncoderShape
from tests.conversion import (
    TINY,
    huggingface_classification,
    huggingface_pretraining,
    imported,
    videomae_names,
)

CLASSES = 5


def pretrained() -> dict[str, Tensor]:
    return videomae_names(huggingface_pretraining("tiny"))


def finetuned() -> dict[str, Tensor]:
    return videomae_names(huggingface_classification("tiny", CLASSES))


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and torch.equal(value, other[name]), name


@pytest.mark.parametrize("tensors", [pretrained, finetuned])
def test_a_videomae_round_trip_is_exact(tensors, tmp_path):
    theirs = tensors()
    save_bundle(tmp_path / "ours", imported(saved(tmp_path, {"model": theirs}), TINY))

    assert_same(videomae_tensors(load_bundle(tmp_path / "ours"), source="ours"), theirs)


@pytest.mark.parametrize("model", ["pretraining", "classification", "encoder", "mean-pooled encoder"])
def test_a_transformers_round_trip_is_exact(model, tmp_path):
    theirs = {
        "pretraining": lambda: huggingface_pretraining("tiny"),
        "classification": lambda: huggingface_classification("tiny", CLASSES),
        "encoder": lambda: huggingface_pretraining("tiny").videomae,
        "mean-pooled encoder": lambda: huggingface_classification("tiny", CLASSES).videomae,
    }[model]()
    theirs.save_pretrained(tmp_path / "theirs")
    save_bundle(tmp_path / "ours", imported(tmp_path / "theirs"))

    bundle = load_bundle(tmp_path / "ours")
    write_huggingface(tmp_path / "back", bundle, huggingface_tensors(bundle, source="ours"))

    written = load_file(tmp_path / "back" / "model.safetensors")
    prefix = "" if type(theirs) is not VideoMAEModel else "videomae."
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    assert_same(written, {f"{prefix}{name}": value for name, value in expected.items()})
    loaded, report = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.use_mean_pooling == theirs.config.use_mean_pooling


def test_both_names_of_the_biases_are_read_and_the_older_are_written(tmp_path):
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
def test_the_formats_list_the_tensors_of_the_published_checkpoints():
    base = SIZES["base"].encoder
    with torch.device("meta"):
        pretraining = videomae_names(VideoMAEForPreTraining(VideoMAEConfig(use_mean_pooling=False)))
        classification = videomae_names(VideoMAEForVideoClassification(VideoMAEConfig()))

    def names(layout) -> set[str]:
        rules = (*layout.encoder, *layout.decoder, *layout.head)
        return {name for rule in rules for name in rule.theirs}

    assert names(pretraining_format(base, 4)) == pretraining.keys() and len(pretraining) == 218
    unnormed = EncoderShape(width=768, depth=12, heads=12, mlp_width=3072, final_norm=False)
    assert names(finetuning_format(unnormed, has_head=True)) == classification.keys()
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
def test_containers_and_prefixes_are_removed(wrap, tmp_path):
    theirs = finetuned()
    assert_same(videomae_tensors(imported(saved(tmp_path, wrap(theirs)), TINY), source="test"), theirs)


def test_a_safetensors_file_with_half_precision_is_read_as_float32(tmp_path):
    theirs = {name: value.half() for name, value in finetuned().items()}
    save_file(theirs, tmp_path / "file.safetensors")

    bundle = imported(tmp_path / "file.safetensors", TINY)

    assert torch.equal(bundle.head.linear.weight, theirs["head.weight"].float())


def test_a_hub_folder_of_v2_without_a_head_is_read(tmp_path, caplog):
    theirs = {f"model.{name}": v for name, v in finetuned().items() if not name.startswith("head.")}
    save_file(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "VideoMAEv2_Base"}))

    bundle = imported(tmp_path, TINY)

    assert bundle.head is None and not bundle.description.shape.final_norm
    assert torch.equal(bundle.encoder.blocks[2].mlp.fc1.bias, theirs["model.blocks.2.mlp.fc1.bias"])


def test_an_encoder_alone_is_read_and_written(tmp_path):
    theirs = {name: value for name, value in pretrained().items() if name.startswith("encoder.")}

    bundle = imported(saved(tmp_path, theirs), TINY)

    assert bundle.decoder is None and bundle.contents == "encoder"
    assert_same(videomae_tensors(bundle, source="test"), theirs)


def test_layer_scale_round_trip_is_exact(tmp_path):
    theirs = finetuned()
    for i in range(3):
        theirs |= {f"blocks.{i}.gamma_{j}": torch.rand(24) for j in (1, 2)}

    bundle = imported(saved(tmp_path, theirs), TINY)

    assert torch.equal(bundle.encoder.blocks[1].ls2.gamma, theirs["blocks.1.gamma_2"])
    assert_same(videomae_tensors(bundle, source="test"), theirs)
    with pytest.raises(CheckpointError, match=r"model\.layer_scale=null"):
        huggingface_tensors(bundle, source="test")


def without(name: str) -> dict[str, Tensor]:
    theirs = pretrained()
    del theirs[name]
    return theirs


@pytest.mark.parametrize(
    "tensors, message",
    [
        (without("encoder.blocks.1.attn.q_bias"), r"1 missing \(encoder.blocks.1.attn.q_bias\)"),
        (
            without("encoder.blocks.0.mlp.fc1.weight"),
            "expected a complete model, got none of encoder.blocks.0.mlp.fc1.weight",
        ),
        (without("decoder.norm.weight"), r"1 missing \(decoder.norm.weight\); fix: --allow-partial"),
        (
            pretrained() | {"encoder.blocks.0.attn.scale": torch.ones(1)},
            r"1 unexpected \(encoder.blocks.0.attn.scale\)",
        ),
        (finetuned() | {"norm.weight": torch.ones(24)}, r"1 unexpected \(norm.weight\)"),
        (
            pretrained() | {"encoder.blocks.0.attn.q_bias": torch.ones(23)},
            "expected tensors of matching shapes",
        ),
        (
            pretrained() | {"encoder.patch_embed.proj.weight": torch.ones(24, 384)},
            "expected encoder.patch_embed.proj.weight of shape",
        ),
        ({"weight": torch.ones(2)}, "expected a checkpoint of VideoMAE, .* got 1 other tensors .weight"),
        ({"model": {"note": "no tensors"}}, "expected named tensors"),
        ({"a.x": torch.ones(1), "module.a.x": torch.ones(1)}, "expected unique names"),
        ([1, 2], "expected named tensors"),
    ],
)
def test_incomplete_or_unknown_checkpoints_are_rejected(tensors, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        imported(saved(tmp_path, tensors), TINY)


def test_allow_partial_skips_an_incomplete_decoder_and_unknown_tensors(tmp_path, caplog):
    theirs = without("decoder.norm.weight") | {"text.weight": torch.ones(1)}

    bundle = imported(saved(tmp_path, theirs), TINY, allow_partial=True)

    assert bundle.decoder is None and torch.equal(bundle.encoder.norm.bias, theirs["encoder.norm.bias"])
    with pytest.raises(CheckpointError, match="1 missing"):
        imported(saved(tmp_path, without("encoder.norm.bias")), TINY, allow_partial=True)


class Trap:
    """An object whose unpickling calls a function."""

    def __reduce__(self):
        return (print, ("run",))


def test_a_file_that_would_execute_code_is_rejected(tmp_path, capsys):
    with pytest.raises(CheckpointError, match=r"expected tensors and plain values, got .*print"):
        imported(saved(tmp_path, {"model": finetuned(), "more": Trap()}), TINY)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04\x95", "half"])
def test_a_damaged_file_is_rejected(content, name, tmp_path):
    path = tmp_path / name
    whole = saved(tmp_path, finetuned()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(
        CheckpointError, match=r"cannot read .*: expected a checkpoint file of PyTorch or safetensors, got"
    ):
        imported(path if name.startswith("file") else tmp_path, TINY)


def test_a_folder_without_weights_and_a_missing_file_are_rejected(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        imported(tmp_path)
    with pytest.raises(CheckpointError, match="expected a checkpoint file or folder, got no such file"):
        imported(tmp_path / "nothing.pth")


def test_an_unsupported_config_is_rejected(tmp_path):
    huggingface_classification("tiny", CLASSES).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(CheckpointError, match="hidden_act='gelu', got 'relu'"):
        imported(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object, got list"):
        imported(tmp_path)


def test_an_unknown_number_of_heads_must_be_given(tmp_path):
    path = saved(tmp_path, pretrained())
    with pytest.raises(ValueError, match=r"heads: expected .* got null; fix: add heads=.*width 24"):
        imported(path, ImportOptions(frames=8, size=24))
    with pytest.raises(ValueError, match=r"decoder_heads: expected .*width 16"):
        imported(path, ImportOptions(frames=8, size=24, heads=3))
    assert imported(path, TINY).description.shape.positions == FLAT_SINE
