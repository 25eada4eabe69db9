"""Import of MAE-ST: the encoder equals a plain implementation of the paper's model."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.data_tools.command import CheckpointError
from kinemae.finetune.conversion.huggingface import huggingface_tensors
from kinemae.finetune.conversion.model_bundle import load_bundle, save_bundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.videomae import videomae_tensors
from kinemae.pretrain.model.tokens import take_patches
from tests.conversion import imported

WIDTH, DEPTH, HEADS, MLP = 24, 3, 3, 80
PATCH = (2, 8, 8)
SLICES, PLACES = 4, 9
OPTIONS = ImportOptions(heads=HEADS)


def mae_st() -> dict[str, Tensor]:
    """Make a pretraining checkpoint with random tensors and a few of the decoder's."""
    shapes = {
        "patch_embed.proj.weight": (WIDTH, 3, *PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "cls_token": (1, 1, WIDTH),
        "pos_embed_class": (1, 1, WIDTH),
        "pos_embed_spatial": (1, PLACES, WIDTH),
        "pos_embed_temporal": (1, SLICES, WIDTH),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "mask_token": (1, 1, 16),
        "decoder_cls_token": (1, 1, 16),
        "decoder_embed.weight": (16, WIDTH),
        "decoder_blocks.0.attn.q.weight": (16, 16),
    }
    for i in range(DEPTH):
        linear = {part: (WIDTH, WIDTH) for part in ("attn.q", "attn.k", "attn.v", "attn.proj")}
        linear |= {"mlp.fc1": (MLP, WIDTH), "mlp.fc2": (WIDTH, MLP)}
        for name, shape in linear.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (WIDTH,), f"blocks.{i}.{name}.bias": (WIDTH,)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def reference(tensors: dict[str, Tensor], clip_BCTHW: Tensor, visible_BK: Tensor) -> Tensor:
    """Compute tokens_BKD of the visible tokens in float64, without the class token."""
    tensors = {name: value.double() for name, value in tensors.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-6)

    kernel, bias = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    x_BND = F.conv3d(clip_BCTHW.double(), kernel, bias, stride=PATCH).flatten(2).mT
    x_BND = x_BND + tensors["pos_embed_spatial"].repeat(1, SLICES, 1)
    x_BND = x_BND + tensors["pos_embed_temporal"].repeat_interleave(PLACES, dim=1)
    x_BKD = x_BND.gather(1, visible_BK[..., None].expand(-1, -1, WIDTH))
    class_token = (tensors["cls_token"] + tensors["pos_embed_class"]).expand(len(x_BKD), -1, -1)
    x = torch.cat([class_token, x_BKD], dim=1)
    for i in range(DEPTH):
        y = norm(x, f"blocks.{i}.norm1")
        query, key, value = (
            linear(y, f"blocks.{i}.attn.{part}").unflatten(2, (HEADS, -1)).transpose(1, 2) for part in "qkv"
        )
        weights = (query @ key.mT / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
        x = x + linear((weights @ value).transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        y = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(y, f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")[:, 1:]


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "mae_st.pyth")
    return folder / "mae_st.pyth"


def test_the_imported_encoder_equals_the_papers_model(tmp_path):
    tensors = mae_st()
    save_bundle(tmp_path / "ours", imported(saved(tmp_path, {"model_state": tensors}), OPTIONS))
    encoder = load_bundle(tmp_path / "ours").encoder.double()
    clip_BCTHW = torch.randn(2, 3, 8, 24, 24, generator=torch.Generator().manual_seed(1))
    visible_BK = torch.stack([torch.arange(36)[::5], torch.arange(36)[3::4][:8]])

    with torch.inference_mode():
        tokens_BKD = encoder(take_patches(clip_BCTHW, visible_BK, PATCH).double(), visible_BK)

    # The class token and its position are added in float32, once.
    torch.testing.assert_close(tokens_BKD, reference(tensors, clip_BCTHW, visible_BK), rtol=0, atol=1e-8)


def test_clip_and_normalization_follow_from_the_checkpoint(tmp_path):
    description = imported(saved(tmp_path, mae_st()), OPTIONS).description

    assert (description.frames, description.size, description.shape.patch) == (8, 24, PATCH)
    assert description.mean == (0.45,) * 3 and description.std == (0.225,) * 3
    assert description.shape.registers == 1 and description.shape.positions.name == "learned"


def test_another_clip_resamples_the_learned_positions(tmp_path):
    bundle = imported(saved(tmp_path, mae_st()), ImportOptions(heads=HEADS, frames=16, size=48))

    assert bundle.description.grid.tokens == 8 * bundle.description.reference.tokens
    assert bundle.encoder.pos_embed(None).shape == (8 * SLICES * PLACES, WIDTH)


@pytest.mark.parametrize(
    "tensors, message",
    [
        (mae_st() | {"head.projection.weight": torch.ones(2)}, r"1 unexpected \(head.projection.weight\)"),
        ({name: v for name, v in mae_st().items() if name != "pos_embed_class"}, "1 missing"),
        ({name: v for name, v in mae_st().items() if name != "pos_embed_temporal"}, "1 missing"),
        (
            mae_st() | {"pos_embed_spatial": torch.ones(1, 8, WIDTH)},
            "expected a square number of spatial positions, got 8",
        ),
    ],
)
def test_an_incomplete_checkpoint_is_rejected(tensors, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        imported(saved(tmp_path, tensors), OPTIONS)


def test_export_as_videomae_is_rejected(tmp_path):
    bundle = imported(saved(tmp_path, mae_st()), OPTIONS)
    for write in (videomae_tensors, huggingface_tensors):
        with pytest.raises(CheckpointError, match=r"model\.positions=flat_sine, got learned; model\.reg"):
            write(bundle, source="ours")
