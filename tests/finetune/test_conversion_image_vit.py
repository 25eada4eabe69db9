"""Image models as video encoders: what a still clip keeps of timm's outputs."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from kinemae.data_tools.command import CheckpointError
from kinemae.finetune.conversion.model_bundle import ModelBundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.pretrain.model.tokens import normalize, patchify
from tests.conversion import imported, randomised

SIZE, PATCH = 24, 8
KINDS = {
    "class token": {},
    "registers without positions": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.3},
    "registers with positions": {"reg_tokens": 2, "qk_norm": True, "qkv_bias": False},
    "no class token": {"class_token": False, "global_pool": "avg"},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def image_model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=24, depth=3, num_heads=3, num_classes=5, **KINDS[kind]
    )
    for name, parameter in model.named_parameters():
        if "token" in name or "pos_embed" in name or "gamma" in name or "attn.qkv.weight" in name:
            parameter.data.normal_(std=0.3)
    return randomised(model)


def saved(model: torch.nn.Module, folder, **config: object):
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def still(frames: int) -> tuple[Tensor, Tensor]:
    """An image normalized for timm, and the clip that shows it in every frame."""
    image_BCHW = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    normal = normalize(image_BCHW.permute(0, 2, 3, 1).flatten(1)[:, None]).view(2, SIZE, SIZE, 3)
    return normal.permute(0, 3, 1, 2), image_BCHW[:, :, None].expand(-1, -1, frames, -1, -1)


def run(bundle: ModelBundle, clip_BCTHW: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    encoder, patch = bundle.encoder, bundle.description.shape.patch
    x_BND = encoder.embed(normalize(patchify(clip_BCTHW, patch)), None)
    return encoder.encode_layers(x_BND, None, range(3))


@kinds
@torch.no_grad()
def test_the_tokens_of_one_slice_are_those_of_timm(kind, tmp_path):
    model, (image_BCHW, clip_BCTHW) = image_model(kind), still(3)
    bundle = imported(saved(model, tmp_path), ImportOptions(heads=3, frames=3, patch_frames=3))
    shape, prefix = bundle.description.shape, model.num_prefix_tokens

    found_BND, blocks = run(bundle, clip_BCTHW)

    kernel_BND = bundle.encoder.patch_embed(normalize(patchify(clip_BCTHW, shape.patch)))
    torch.testing.assert_close(kernel_BND, model.patch_embed(image_BCHW), rtol=0, atol=3e-6)
    expected = model.forward_intermediates(image_BCHW, output_fmt="NLC", intermediates_only=True)
    for block_BND, expected_BND in zip(blocks, expected, strict=True):
        torch.testing.assert_close(block_BND, expected_BND, rtol=0, atol=1e-5)
    theirs_BND = model.forward_features(image_BCHW)[:, prefix:]
    if shape.final_norm:
        assert (found_BND - theirs_BND).abs().max() <= 3e-6 * theirs_BND.abs().max()
    assert shape.registers == prefix and (bundle.description.frames, bundle.description.size) == (3, SIZE)


@torch.no_grad()
def test_every_slice_of_a_still_clip_is_the_image_without_a_class_token_and_nearly_so_with_one(tmp_path):
    for kind, bound in (("no class token", 1e-5), ("class token", 1.0)):
        model, (image_BCHW, clip_BCTHW) = image_model(kind), still(8)
        (tmp_path / kind).mkdir()
        bundle = imported(saved(model, tmp_path / kind), ImportOptions(heads=3, frames=8))
        _, blocks = run(bundle, clip_BCTHW)
        expected = model.forward_intermediates(image_BCHW, output_fmt="NLC", intermediates_only=True)
        change = (blocks[-1].unflatten(1, (4, -1)) - expected[-1][:, None]).abs().max()
        assert change <= bound
        assert kind == "no class token" or change > 1e-4, "the class token has the weight of one token of all"


def test_official_files_of_mae_and_dinov2_are_read(tmp_path, capsys):
    tensors = dict(image_model("class token").state_dict())
    heads = [tensors.pop(name) for name in ("head.weight", "head.bias")]
    mae = {"mask_token": heads[0], "decoder_embed.weight": heads[0], "decoder_pos_embed": heads[0]}
    torch.save({"model": tensors | mae}, tmp_path / "mae.pth")
    registers = {"register_tokens": torch.ones(1, 4, 24), "mask_token": torch.ones(1, 24)}
    torch.save(tensors | registers, tmp_path / "dinov2.pth")

    first = imported(tmp_path / "mae.pth", ImportOptions(heads=3, frames=4))
    second = imported(tmp_path / "dinov2.pth", ImportOptions(heads=3, frames=4, size=48))

    assert (first.encoder.shape.registers, second.encoder.shape.registers) == (1, 5)
    assert torch.equal(first.encoder.reg_token, second.encoder.reg_token[:, :1])
    assert torch.equal(second.encoder.reg_token[:, 1:], torch.ones(1, 4, 24))
    assert not first.encoder.pos_embed.temporal.any(), "time is learned from zero"
    assert second.description.grid.per_slice == 36 and second.description.reference.per_slice == 9


def test_normalization_is_read_from_timms_config(tmp_path):
    config = {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    description = imported(
        saved(image_model("class token"), tmp_path, **config), ImportOptions(heads=3)
    ).description
    assert description.mean == description.std == (0.5,) * 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"norm_pre.weight": torch.ones(24)}, r"1 unexpected \(norm_pre\.weight\)"),
        ({"blocks.1.mlp.w12.weight": torch.ones(24)}, r"1 unexpected \(blocks\.1\.mlp\.w12\.weight\)"),
        ({"pos_embed": torch.ones(1, 8, 24)}, "pos_embed of a square grid, got 8 positions"),
        ({"blocks.2.norm1.bias": torch.ones(5)}, r"matching shapes, got .*blocks\.2\.norm1\.bias"),
    ],
)
def test_unsupported_image_models_are_rejected_by_name(change, message, tmp_path):
    torch.save(dict(image_model("class token").state_dict()) | change, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=message):
        imported(tmp_path / "vit.pth", ImportOptions(heads=3))
